def linear_log_det(matrix, x):
    """Numerically, from the Gram determinant of the pushed frame."""
    y = x @ matrix.T
    z = y / y.norm(dim=1, keepdim=True)
    frame = Sphere(x.shape[1] - 1).frame(x)
    pushed = matrix @ frame / y.norm(dim=1)[:, None, None]
    pushed = pushed - z[:, :, None] * (z[:, None, :] @ pushed)
    return 0.5 * torch.logdet(pushed.mT @ pushed)


def angular_gaussian(covariance, x):
    dim = x.shape[1]
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, x.T, upper=False)
    area = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    return -root.diagonal().log().sum() - dim * white.norm(dim=0).log() - math.log(area)


def disk_log_det(scale, x):
    r = (x**2).sum(1)
    stretch = scale * (2 / (1 - scale**2 * r)) / (2 / (1 - r))
    return x.shape[1] * torch.log(stretch)
