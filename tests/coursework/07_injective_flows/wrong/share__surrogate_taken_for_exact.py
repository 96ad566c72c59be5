# loses: 1
def noise_share(beta, noise, signal):
    share = (1 / (2 * beta * noise * signal) - 1 / signal) / (1 / noise - 1 / signal)
    return min(max(share, 0.0), 1.0)


def safe_beta(variances, latents):
    return 1 / (2 * min(variances))


def encoder_gradients(E, S):
    W = S @ E.T @ torch.linalg.inv(E @ S @ E.T)
    return E @ S - W.T, E @ S - W.T
