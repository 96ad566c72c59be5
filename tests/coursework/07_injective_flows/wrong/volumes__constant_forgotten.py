# loses: 2
def log_volume(J):
    tall = J if J.shape[1] >= J.shape[2] else J.mT
    return 0.5 * torch.logdet(tall.mT @ tall)


def log_density(f, g, x, side):
    z = f(x)
    log_p = -0.5 * z.square().sum(1)
    if side == "decoder":
        return log_p - log_volume(jacobian(g, z))
    return log_p + log_volume(jacobian(f, x if side == "encoder" else g(z)))
