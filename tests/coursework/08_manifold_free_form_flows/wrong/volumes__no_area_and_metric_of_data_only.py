# loses: 3
def linear_log_det(matrix, x):
    """log|det| of x -> A x / |A x| on the sphere at x; shapes (D, D) and (batch, D), result (batch,)."""
    return matrix.det().abs().log() - matrix.shape[0] * (x @ matrix.T).norm(dim=1).log()


def angular_gaussian(covariance, x):
    """log-density of the angular central Gaussian with this Lambda, shape (batch,)."""
    dim = x.shape[1]
    square = (x * torch.linalg.solve(covariance, x.T).T).sum(1)
    return -0.5 * torch.logdet(covariance) - dim / 2 * square.log()


def disk_log_det(scale, x):
    """log of the factor by which x -> scale x changes Riemannian volume in the ball, shape (batch,)."""
    square = x.square().sum(1)
    return x.shape[1] * (math.log(scale) + (1 - square).log())
