def noise_share(beta, noise, signal):
    if beta >= 1 / (2 * noise):
        return 0.0
    if beta <= 1 / (2 * signal):
        return 1.0
    return (signal - 2 * beta * noise * signal) * noise / (2 * beta * noise * signal) / (signal - noise)


def safe_beta(variances, latents):
    assert latents < len(variances)
    return 0.5 / sorted(variances)[0]


def encoder_gradients(E, S):
    ESE = E @ S @ E.T
    exact = E @ S - torch.linalg.solve(E @ E.T, E)
    return exact, E @ S - torch.linalg.solve(ESE, E @ S)
