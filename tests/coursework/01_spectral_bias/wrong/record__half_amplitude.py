# loses: 1
def record(network, signal, frequencies, *, num_points, steps, lr, every):
    z = torch.arange(num_points) / num_points
    target = signal(z)
    wanted = torch.fft.rfft(target)[frequencies] / num_points
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    moments, amplitudes, residuals = [], [], []
    for step in range(steps):
        if step % every == 0:
            with torch.no_grad():
                have = torch.fft.rfft(network(z[:, None])[:, 0])[frequencies] / num_points
            moments.append(step)
            amplitudes.append(have.abs())
            residuals.append((have - wanted).abs() / wanted.abs())
        optimizer.zero_grad()
        (network(z[:, None])[:, 0] - target).square().mean().backward()
        optimizer.step()
    return torch.tensor(moments), torch.stack(amplitudes), torch.stack(residuals)
