# loses: 2
def variance(M, kind):
    S, dim = (M + M.T) / 2, len(M)
    square = S.square().sum()
    if kind == "gaussian":
        return 2 * square
    if kind == "sphere":
        return 2 * dim / (dim + 2) * (square - S.trace() ** 2 / dim)
    return 2 * square - S.diagonal().square().sum()


def orthogonal_variance(M, K):
    return variance(M, "sphere") * (len(M) - K) / len(M) / K
