import numpy as np


def four_parts(pivots, gradients, tangents, spring):
    p, g, tau = pivots.numpy(), gradients.numpy(), tangents.numpy()
    parts = [[], [], [], []]
    for i in range(1, len(p) - 1):
        projector = np.outer(tau[i - 1], tau[i - 1])
        for first, force in ((0, -g[i]), (2, spring * (p[i + 1] - p[i]) + spring * (p[i - 1] - p[i]))):
            parts[first].append(projector @ force)
            parts[first + 1].append(force - projector @ force)
    return [torch.tensor(np.array(part)) for part in parts]


def unit_tangents(pivots, values):
    p, v = pivots.numpy(), values.numpy()
    rows = []
    for i in range(1, len(p) - 1):
        forward, backward = p[i + 1] - p[i], p[i] - p[i - 1]
        first, second = v[i] - v[i - 1], v[i + 1] - v[i]
        if first * second > 0:
            row = forward if second > 0 else backward
        elif first == second == 0:
            row = p[i + 1] - p[i - 1]
        else:
            weights = sorted([abs(first), abs(second)])
            if v[i + 1] <= v[i - 1]:
                weights.reverse()
            row = weights[0] * backward + weights[1] * forward
        rows.append(row / np.sqrt(row @ row))
    return torch.tensor(np.array(rows))


def nudged_force(pivots, values, gradients, spring=0.0):
    p, g, tau = pivots.numpy(), gradients.numpy(), unit_tangents(pivots, values).numpy()
    rows = []
    for i, t in enumerate(tau, start=1):
        longer = np.linalg.norm(p[i + 1] - p[i]) - np.linalg.norm(p[i] - p[i - 1])
        rows.append((g[i] @ t) * t - g[i] + spring * longer * t)
    return torch.tensor(np.array(rows))
