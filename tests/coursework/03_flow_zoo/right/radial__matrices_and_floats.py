def radial(x, centre, alpha, beta):
    """The Jacobian as a matrix, point by point."""
    rows, log_dets = [], []
    for point in x:
        away = point - centre
        r = float(torch.linalg.vector_norm(away))
        rows.append(point + away * (beta / (alpha + r)))
        matrix = (1 + beta / (alpha + r)) * torch.eye(len(away)).double()
        if r > 0:
            matrix = matrix - beta / (r * (alpha + r) ** 2) * torch.outer(away, away)
        log_dets.append(torch.linalg.slogdet(matrix).logabsdet)
    return torch.stack(rows), torch.stack(log_dets)


def radial_inverse(z, centre, alpha, beta):
    rows = []
    for point in z:
        away = point - centre
        distance = float(torch.linalg.vector_norm(away))
        half = (distance - alpha - beta) / 2
        product = alpha * distance  # of minus the two roots
        large = abs(half) + math.sqrt(half * half + product)
        r = large if half >= 0 else product / large
        rows.append(centre + away * ((alpha + r) / (alpha + beta + r)))
    x = torch.stack(rows)
    return x, -radial(x, centre, alpha, beta)[1]
