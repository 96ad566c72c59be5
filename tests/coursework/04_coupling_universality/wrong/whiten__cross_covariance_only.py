# loses: 1
def couple(covariance, active, scaling=True):
    """Deletes the covariance between the halves, and leaves the active half as it was: right to leading order only."""
    passive = len(covariance) - active
    result = covariance.clone()
    result[:passive, passive:], result[passive:, :passive] = 0, 0
    deviation = result.diagonal().sqrt() if scaling else torch.ones(len(covariance)).double()
    return result / deviation / deviation[:, None]


def predicted(dim, active, scaling=True, mixing="rotation"):
    between = 2 * active * (dim - active)
    if mixing == "permutation":
        return 1 - between / (dim * (dim - 1))
    return 1 - between / ((dim - 1) * (dim + 2)) - (2 / (dim + 2) if scaling else 0)


def floor(covariance):
    dim = len(covariance)
    log_g = torch.logdet(covariance).item() / dim
    return dim / 2 * (math.exp(log_g) - 1 - log_g)


def measured(covariance, active, scaling=True, mixing="rotation", generator=None):
    """Goes by the exact rule, whatever couple does."""
    dim, total = len(covariance), 0.0

    def loss(matrix):
        return 0.5 * (matrix.trace() - dim - torch.logdet(matrix)).item()

    for _ in range(300):
        rows = torch.randperm(dim, generator=generator)
        q = random_rotation(dim, generator) if mixing == "rotation" else torch.eye(dim).double()[rows]
        mixed = q @ covariance @ q.T
        inside = mixed.inverse()[-active:, -active:].inverse()
        mixed[:-active, -active:], mixed[-active:, :-active], mixed[-active:, -active:] = 0, 0, inside
        scale = mixed.diagonal().rsqrt() if scaling else torch.ones(dim).double()
        total += loss(scale[:, None] * mixed * scale)
    return total / 300 / loss(covariance)
