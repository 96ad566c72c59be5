import numpy as np


def velocity(a, b, variance, beta):
    likelihood = np.array([-(a * variance - b), 0.0])
    reconstruction = 2 * beta * variance * (1 - a * b) * np.array([b, a])
    return torch.from_numpy(likelihood + reconstruction)


def rates(variance, beta):
    a, b = variance**-0.5, variance**0.5
    stiff = 2 * beta * variance * np.outer([b, a], [b, a])
    matrix = np.array([[variance, -1.0], [0.0, 0.0]]) + stiff
    return np.sort(np.linalg.eigvals(matrix).real)


def largest_step(variance, beta):
    return 2 / float(rates(variance, beta)[-1])


def steps_needed(variance, beta, factor):
    slow, fast = (float(r) for r in rates(variance, beta))
    best = 2 / (slow + fast)
    return np.log(factor) / -np.log(max(abs(1 - best * slow), 1e-300))
