import numpy as np


def uniform_gap(dim):
    """Expected power of a uniform volume in the unit ball: E[r^2] = D / (D + 2)."""
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return dim / 2 * math.log(2 * math.pi * math.e * (1 / (dim + 2))) - log_ball


def student_gap(nu):
    if nu <= 2:
        return float("inf")
    return math.log(nu / (nu - 2)) - 2 / nu


def weights_gap(weight):
    """The chapter's four terms, as they stand."""
    w = np.array([weight, 1 - weight])
    ratio = np.log(w[None, :] / w[:, None])
    reach = np.where(ratio >= 0, 1 + ratio, np.exp(np.minimum(ratio, 0)))
    return float(np.log((w[:, None] * reach).sum()) + (w * np.log(w)).sum())


def harmless_weights(variances):
    return torch.softmax(torch.tensor(variances).double().log(), 0)
