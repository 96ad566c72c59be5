def record(network, signal, frequencies, *, num_points, steps, lr, every):
    z = torch.linspace(0, 1, num_points + 1)[:-1]
    target = signal(z)
    waves = torch.exp(-2j * math.pi * torch.tensor(frequencies)[:, None] * z)
    parameters = list(network.parameters())
    moments, amplitudes, residuals = [], [], []
    for step in range(steps):
        output = network(z[:, None]).squeeze(1)
        if step % every == 0:
            missing = (waves * (output - target).detach()).mean(1).abs()
            moments.append(step)
            amplitudes.append((2 * (waves * output.detach()).mean(1).abs()).tolist())
            residuals.append((missing / (waves * target).mean(1).abs()).tolist())
        loss = torch.nn.functional.mse_loss(output, target)
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
                p -= lr * g
    return torch.tensor(moments), torch.tensor(amplitudes), torch.tensor(residuals)
