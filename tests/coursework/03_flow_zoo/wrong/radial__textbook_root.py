# loses: 1
def radial(x, centre, alpha, beta):
    away = x - centre
    r = away.norm(dim=1)
    h = 1 / (alpha + r)
    log_det = (x.shape[1] - 1) * torch.log(1 + beta * h) + torch.log(1 + alpha * beta * h * h)
    return x + beta * h[:, None] * away, log_det


def radial_inverse(z, centre, alpha, beta):
    """The root with the plus sign as it stands in the textbook: near the centre its two terms cancel."""
    away = z - centre
    distance = away.norm(dim=1)
    gap = distance - alpha - beta
    r = (gap + torch.sqrt(gap * gap + 4 * alpha * distance)) / 2
    x = centre + away * ((alpha + r) / (alpha + r + beta))[:, None]
    return x, -radial(x, centre, alpha, beta)[1]
