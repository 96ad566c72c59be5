# loses: 1
def log_posterior(pi, y, means):
    parts = torch.distributions.Normal(means, 1.0).log_prob(y[:, None]).exp()
    return (pi @ parts.mean(0)).log() * len(y)
