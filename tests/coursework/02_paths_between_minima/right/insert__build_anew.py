import numpy as np


def insert(pivots, weights, values, most=2, threshold=0.1):
    v = values.numpy()
    n = len(pivots) - 1
    m = (len(v) - 1) // n
    span = np.ptp(v[::m]) + 1e-12
    found = []
    for i in range(n):
        piece = v[i * m : (i + 1) * m + 1]
        bump = (piece - np.interp(np.arange(m + 1), [0, m], [piece[0], piece[-1]])) / span
        j = int(bump[1:-1].argmax()) + 1
        found.append((bump[j], i, j / m))
    chosen = {i: s for b, i, s in sorted(found, reverse=True)[:most] if b > threshold}
    points, parts = [], []
    for i in range(n):
        points.append(pivots[i])
        if i in chosen:
            points.append(pivots[i] + chosen[i] * (pivots[i + 1] - pivots[i]))
            parts += [float(weights[i]) * chosen[i], float(weights[i]) * (1 - chosen[i])]
        else:
            parts.append(float(weights[i]))
    return torch.stack([*points, pivots[-1]]), torch.tensor(parts)
