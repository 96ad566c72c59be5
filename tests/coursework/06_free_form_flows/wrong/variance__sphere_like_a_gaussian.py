# loses: 2
def variance(M, kind):
    S = (M + M.T) / 2
    if kind in ("gaussian", "sphere"):
        return 2 * S.square().sum()
    return 2 * (S.square().sum() - S.diagonal().square().sum())


def orthogonal_variance(M, K):
    dim = len(M)
    return variance(M, "sphere") / K * (dim - K) / (dim - 1)
