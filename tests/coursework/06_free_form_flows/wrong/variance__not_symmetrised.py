# loses: all
def variance(M, kind):
    dim, square = len(M), M.square().sum()
    if kind == "gaussian":
        return 2 * square
    if kind == "sphere":
        return 2 * dim / (dim + 2) * (square - M.trace() ** 2 / dim)
    return 2 * (square - M.diagonal().square().sum())


def orthogonal_variance(M, K):
    dim = len(M)
    return variance(M, "sphere") / K * (dim - K) / (dim - 1)
