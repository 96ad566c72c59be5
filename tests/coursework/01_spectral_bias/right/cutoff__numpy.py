import numpy as np


def cutoff(width, w_max, v_max, epsilon):
    return np.sqrt(np.float64(width) * w_max * v_max / epsilon)


def share_beyond(magnitude, epsilon):
    above = magnitude.numpy() > epsilon
    return np.array([above[:, i:].any(axis=1).mean() for i in range(above.shape[1])])
