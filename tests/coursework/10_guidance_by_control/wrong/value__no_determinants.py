# loses: 2
def given_state(x, a, b, weights, means, stds):
    """Log-weights, means and variances, all of shape (n, j), of the mixture that x_0 has given the states x."""
    total = a**2 * stds**2 + b**2
    off = x.unsqueeze(-1) - a * means
    log_share = (weights.log() - 0.5 * (off**2 / total)).log_softmax(-1)
    return log_share, means + a * stds**2 / total * off, (stds**2 * b**2 / total).expand_as(off)


def value(x, a, b, weights, means, stds, y, sigma):
    """V_t(x) for states x of shape (n,) at numbers a, b > 0; tensors of shape (j,) hold the mixture; result (n,)."""
    share, mean, variance = given_state(x, a, b, weights, means, stds)
    seen = variance + sigma**2
    log_likelihood = -0.5 * ((y - mean) ** 2 / seen + (2 * math.pi * seen).log())
    return -torch.logsumexp(share + log_likelihood, -1)


def gaps(x, a, b, weights, means, stds, y, sigma):
    """E[Phi] - V and Phi(E[x_0]) - E[Phi], both of shape (n,)."""
    share, mean, variance = given_state(x, a, b, weights, means, stds)
    estimate = (share.exp() * mean).sum(-1)
    spread = (share.exp() * (variance + mean**2)).sum(-1) - estimate**2
    expected = 0.5 * ((y - estimate) ** 2 + spread) / sigma**2 + 0.5 * math.log(2 * math.pi * sigma**2)
    return expected - value(x, a, b, weights, means, stds, y, sigma), -0.5 * spread / sigma**2
