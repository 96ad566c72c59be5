# loses: 1
def record(network, signal, frequencies, *, num_points, steps, lr, every):
    z = torch.arange(num_points) / num_points
    target = signal(z)
    wanted = torch.fft.rfft(target, norm="forward")[frequencies]
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    moments, amplitudes, residuals = [], [], []
    for step in range(steps):
        output = network(z[:, None])[:, 0]
        if step % every == 0:
            have = torch.fft.rfft(output.detach(), norm="forward")[frequencies]
            moments.append(step)
            amplitudes.append(have.abs() / wanted.abs())
            residuals.append((have - wanted).abs() / wanted.abs())
        optimizer.zero_grad()
        (output - target).square().mean().backward()
        optimizer.step()
    return torch.tensor(moments), torch.stack(amplitudes), torch.stack(residuals)
