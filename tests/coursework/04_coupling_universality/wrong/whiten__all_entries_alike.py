# loses: 1
def couple(covariance, active, scaling=True):
    passive = len(covariance) - active
    pp, pa = covariance[:passive, :passive], covariance[:passive, passive:]
    result = torch.zeros_like(covariance)
    result[:passive, :passive] = pp
    result[passive:, passive:] = covariance[passive:, passive:] - pa.T @ torch.linalg.solve(pp, pa)
    deviation = result.diagonal().sqrt() if scaling else torch.ones(len(covariance)).double()
    return result / deviation / deviation[:, None]


def predicted(dim, active, scaling=True, mixing="rotation"):
    """Gives each of the D^2 entries the same mean square behind a rotation."""
    between = 2 * active * (dim - active)
    if mixing == "permutation":
        return 1 - between / (dim * (dim - 1))
    return 1 - (between + (dim if scaling else 0)) / dim**2


def floor(covariance):
    dim = len(covariance)
    log_g = torch.logdet(covariance).item() / dim
    return dim / 2 * (math.exp(log_g) - 1 - log_g)


def measured(covariance, active, scaling=True, mixing="rotation", generator=None):
    dim, total = len(covariance), 0.0

    def loss(matrix):
        return 0.5 * (matrix.trace() - dim - torch.logdet(matrix)).item()

    for _ in range(300):
        rows = torch.randperm(dim, generator=generator)
        q = random_rotation(dim, generator) if mixing == "rotation" else torch.eye(dim).double()[rows]
        total += loss(couple(q @ covariance @ q.T, active, scaling))
    return total / 300 / loss(covariance)
