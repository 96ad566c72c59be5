# loses: 2
def radial(x, centre, alpha, beta):
    """Counts the direction along the ray twice."""
    away = x - centre
    h = 1 / (alpha + away.norm(dim=1))
    log_det = x.shape[1] * torch.log1p(beta * h) + torch.log1p(alpha * beta * h**2)
    return x + beta * h[:, None] * away, log_det


def radial_inverse(z, centre, alpha, beta):
    away = z - centre
    distance = away.norm(dim=1)
    gap = distance - alpha - beta
    root = (gap**2 + 4 * alpha * distance).sqrt()
    r = torch.where(gap > 0, (gap + root) / 2, 2 * alpha * distance / (root - gap))
    x = centre + away / (1 + beta / (alpha + r))[:, None]
    return x, -radial(x, centre, alpha, beta)[1]
