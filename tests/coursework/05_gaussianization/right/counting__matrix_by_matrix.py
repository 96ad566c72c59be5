import numpy as np


def reached_dimensions(rotations, log_scales):
    """Derivative by hand: the product rule for each scale, the upper triangle as a row."""
    count, dim = log_scales.shape
    s = np.exp(np.asarray(log_scales))
    q = np.asarray(rotations)
    below = [np.eye(dim)]
    for layer in range(count):
        below.append(np.diag(s[layer]) @ q[layer] @ below[-1])
    above = [np.eye(dim)]
    for layer in reversed(range(count)):
        above.append(above[-1] @ np.diag(s[layer]) @ q[layer])
    above = above[::-1]  # above[l + 1]: what comes after layer l
    rows = []
    for layer in range(count):
        for i in range(dim):
            change = s[layer, i] * np.outer(above[layer + 1][:, i], (q[layer] @ below[layer])[i])
            symmetric = change.T @ below[-1]
            rows.append((symmetric + symmetric.T)[np.triu_indices(dim)])
    return np.linalg.matrix_rank(np.array(rows), tol=1e-9)


def fewest_layers(dim):
    return math.ceil((dim + 2) / 2) if dim > 1 else 1.0


def one_layer(covariance):
    u, s, _ = np.linalg.svd(np.asarray(covariance))
    return -u[:, ::-1].T.copy(), 1 / np.sqrt(s[::-1])
