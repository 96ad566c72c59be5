# loses: 1
def noise_share(beta, noise, signal):
    return (1 / (2 * beta * noise * signal) - 1 / signal) / (1 / noise - 1 / signal)


def safe_beta(variances, latents):
    return 1 / (2 * min(variances))


def encoder_gradients(E, S):
    W = S @ E.T @ torch.linalg.inv(E @ S @ E.T)
    return E @ S - torch.linalg.pinv(E).T, E @ S - W.T
