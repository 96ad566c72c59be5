# loses: 1
def log_posterior(pi, y, means):
    parts = torch.distributions.Normal(means, 1.0).log_prob(y[:, None])
    return torch.logsumexp(pi[:, None] + parts, -1).sum(-1)
