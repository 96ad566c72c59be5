import numpy as np


def couple(covariance, active, scaling=True):
    """What is left of the active half, from the inverse: the conditional covariance is a block of it, inverted."""
    sigma = np.array(covariance)
    passive = len(sigma) - active
    inside = np.linalg.inv(np.linalg.inv(sigma)[passive:, passive:])
    sigma[passive:, passive:], sigma[:passive, passive:], sigma[passive:, :passive] = (inside + inside.T) / 2, 0, 0
    if scaling:
        sigma = sigma / np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
    return torch.tensor(sigma)


def predicted(dim, active, scaling=True, mixing="rotation"):
    """Counts the entries that survive."""
    passive = dim - active
    pairs = active * (active - 1) + passive * (passive - 1)
    if mixing == "permutation":
        return pairs / (dim * (dim - 1))
    return pairs / ((dim - 1) * (dim + 2)) + (0 if scaling else 2 / (dim + 2))


def floor(covariance):
    logs = np.log(np.linalg.eigvalsh(np.asarray(covariance)))
    return float(len(logs) / 2 * (np.exp(logs.mean()) - 1) - logs.sum() / 2)


def measured(covariance, active, scaling=True, mixing="rotation", generator=None):
    def loss(matrix):
        values = np.linalg.eigvalsh(np.asarray(matrix)) - 1
        return (values - np.log1p(values)).sum() / 2

    shares = []
    for _ in range(300):
        if mixing == "permutation":
            order = torch.randperm(len(covariance), generator=generator)
            mixed = covariance[order][:, order]
        else:
            q = random_rotation(len(covariance), generator)
            mixed = q @ covariance @ q.T
        shares.append(loss(couple(mixed, active, scaling)) / loss(covariance))
    return np.mean(shares)
