def value(x, a, b, weights, means, stds, y, sigma):
    prior = NormalMixture(means[:, None], stds[:, None, None] ** 2, weights)
    one = torch.ones(1, 1, dtype=x.dtype)
    posterior = prior.condition(one, torch.tensor([y], dtype=x.dtype), sigma)
    evidence = prior.log_prob(torch.tensor([y], dtype=x.dtype), 1.0, sigma)
    point = x.unsqueeze(-1)
    return prior.log_prob(point, a, b) - posterior.log_prob(point, a, b) - evidence


def gaps(x, a, b, weights, means, stds, y, sigma):
    prior = NormalMixture(means[:, None], stds[:, None, None] ** 2, weights)
    x0 = prior.denoise(x.unsqueeze(-1), a, b).squeeze(-1)
    own = prior.denoising_covariance(x.unsqueeze(-1), a, b)[:, 0, 0]
    plug_in = -torch.distributions.Normal(x0, sigma).log_prob(torch.tensor(y, dtype=x.dtype))
    return plug_in + own / (2 * sigma**2) - value(x, a, b, weights, means, stds, y, sigma), -own / (2 * sigma**2)
