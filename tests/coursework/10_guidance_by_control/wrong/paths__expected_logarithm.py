# loses: 1
def path_costs(kernel, shift, x, times, y, sigma, generator):
    """Ends x_0, shape (n, 1), and costs in nats, shape (n,), of guided chains that start at x, shape (n, 1).

    kernel(x, t, s) returns the mean (n, 1) and the standard deviation (a number, 0 in the last step) of p(x_s | x_t),
    shift(x, t, s) returns u, of shape (n, 1). times holds t_N, ..., 0. The measurement is y = x_0 + sigma n.
    """
    cost = torch.zeros(len(x), dtype=x.dtype)
    for t, s in zip(times[:-1], times[1:]):
        mean, std = kernel(x, t, s)
        z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        if std > 0:
            u = shift(x, t, s)
            mean = mean + u
            cost = cost + (u**2 / (2 * std**2)).sum(-1)
        x = mean + std * z
    return x, cost - torch.distributions.Normal(x, sigma).log_prob(torch.as_tensor(y)).sum(-1)
