# loses: 2
def linear_log_det(matrix, x):
    """log|det| of x -> A x / |A x| on the sphere at x; shapes (D, D) and (batch, D), result (batch,)."""
    return manifold_log_det(lambda x: normalize(x @ matrix.T, dim=-1), x, Sphere(x.shape[1] - 1))[1]


def angular_gaussian(covariance, x):
    """log-density of the angular central Gaussian with this Lambda, shape (batch,)."""
    dim = x.shape[1]
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    square = (x * torch.linalg.solve(covariance, x.T).T).sum(1)
    return -0.5 * torch.logdet(covariance) - dim / 2 * square.log() - log_area


def disk_log_det(scale, x):
    """log of the factor by which x -> scale x changes Riemannian volume in the ball, shape (batch,)."""
    factor = [(2 / (1 - y.square().sum(1))) ** x.shape[1] for y in (scale * x, x)]
    return (jacobian(lambda x: scale * x, x).det().abs() * factor[0] / factor[1]).log()
