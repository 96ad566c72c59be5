import numpy as np


def variance(M, kind):
    """Sum over all four indices with the vector's fourth moments."""
    A = np.asarray(M)
    dim = len(A)
    one = {"gaussian": 3.0, "sphere": 3 * dim / (dim + 2), "rademacher": 1.0}[kind]
    two = {"gaussian": 1.0, "sphere": dim / (dim + 2), "rademacher": 1.0}[kind]
    mean_square = 0.0
    for i in range(dim):
        mean_square += one * A[i, i] ** 2
        for j in range(dim):
            if i != j:
                mean_square += two * (A[i, i] * A[j, j] + A[i, j] ** 2 + A[i, j] * A[j, i])
    return torch.tensor(mean_square - np.trace(A) ** 2)


def orthogonal_variance(M, K):
    dim = len(M)
    single = variance(M, "sphere")
    pair = -single / max(dim - 1, 1)
    return (K * single + K * (K - 1) * pair) / K**2
