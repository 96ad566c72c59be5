# loses: 3
def log_volume(J):
    tall = J if J.shape[1] >= J.shape[2] else J.mT
    return torch.logdet(tall.mT @ tall)


def log_density(f, g, x, side):
    z = f(x)
    log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    if side == "decoder":
        return log_p - log_volume(jacobian(g, z))
    return log_p + log_volume(jacobian(f, x if side == "encoder" else g(z)))
