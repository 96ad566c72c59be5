# loses: 2
def couple(covariance, active, scaling=True):
    passive = len(covariance) - active
    pp, pa = covariance[:passive, :passive], covariance[:passive, passive:]
    result = torch.zeros_like(covariance)
    result[:passive, :passive] = pp
    result[passive:, passive:] = covariance[passive:, passive:] - pa.T @ torch.linalg.solve(pp, pa)
    deviation = result.diagonal().sqrt() if scaling else torch.ones(len(covariance)).double()
    return result / deviation / deviation[:, None]


def predicted(dim, active, scaling=True, mixing="rotation"):
    between = 2 * active * (dim - active)
    if mixing == "permutation":
        return 1 - between / (dim * (dim - 1))
    return 1 - between / ((dim - 1) * (dim + 2)) - (2 / (dim + 2) if scaling else 0)


def floor(covariance):
    """Forgets that the trace belongs to the loss."""
    return -0.5 * torch.logdet(covariance).item()


def measured(covariance, active, scaling=True, mixing="rotation", generator=None):
    """The same mistake: -1/2 ln det is the loss only if the trace is D."""
    dim, total = len(covariance), 0.0
    for _ in range(300):
        rows = torch.randperm(dim, generator=generator)
        q = random_rotation(dim, generator) if mixing == "rotation" else torch.eye(dim).double()[rows]
        total += torch.logdet(couple(q @ covariance @ q.T, active, scaling)).item()
    return total / 300 / torch.logdet(covariance).item()
