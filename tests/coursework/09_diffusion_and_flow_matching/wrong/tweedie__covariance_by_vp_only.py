# loses: 1
def posterior_mean(score, x, a, b):
    """E[x_0 | x_t = x], shapes (batch, dim); a and b are numbers."""
    return (x + b**2 * score) / a


def posterior_covariance(hessian, a, b):
    """Cov[x_0 | x_t = x] from Hessians of log p_t, shapes (batch, dim, dim); a and b are numbers."""
    return (1 - a**2) / a**2 * (torch.eye(hessian.shape[-1], dtype=hessian.dtype) + b**2 * hessian)


def smallest_loss(score, b):
    """Smallest mean square error of the noise, per dimension, from scores of shape (batch, dim) at states of p_t."""
    return 1 - b**2 * score.square().mean()


def mixture_mean(weights, means, covariances, x, a, b):
    """E[x_0 | x_t = x], shape (batch, dim); weights (K,), means (K, dim), covariances (K, dim, dim), a >= 0, b > 0."""
    root = torch.linalg.cholesky(a**2 * covariances + b**2 * torch.eye(x.shape[1], dtype=x.dtype))
    off = (x.unsqueeze(1) - a * means).unsqueeze(-1)  # (batch, K, dim, 1)
    white = torch.linalg.solve_triangular(root, off, upper=False)
    log = weights.log() - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * white.square().sum((-2, -1))
    solved = torch.linalg.solve_triangular(root.mT, white, upper=True)
    each = means + a * (covariances @ solved).squeeze(-1)
    return (log.softmax(1).unsqueeze(-1) * each).sum(1)
