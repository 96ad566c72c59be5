def path_costs(kernel, shift, x, times, y, sigma, generator):
    log_ratio = x.new_zeros(x.shape[0])
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        mean, std = kernel(x, t, s)
        if std == 0:
            x = mean
            continue
        law = torch.distributions.Normal(mean + shift(x, t, s), std)
        x = law.mean + std * torch.randn(*x.shape, generator=generator, dtype=x.dtype)
        free = torch.distributions.Normal(mean, std)
        log_ratio = log_ratio + (law.log_prob(x) - free.log_prob(x))[:, 0]
    square = ((x[:, 0] - y) / sigma) ** 2
    return x, log_ratio + 0.5 * square + math.log(sigma) + 0.5 * math.log(2 * math.pi)
