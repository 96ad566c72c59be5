import numpy as np


def profile(log_p, cell):
    heights = -np.sort(-np.ravel(np.asarray(log_p)))
    return cell * np.arange(0.5, heights.size), heights


def witness(log_p, cell, area):
    volumes, heights = profile(log_p, cell)
    c = 2 * np.pi * np.exp(heights[0])
    inside = volumes <= area
    return c, np.abs(heights[inside] - heights[0] + c * volumes[inside] / 2 / np.pi).max()


def best(log_p, cell):
    """Normalises p* by its radius of gyration, and ranks with two argsorts."""
    flat = np.ravel(np.asarray(log_p))
    dim = np.ndim(log_p)
    volumes, heights = profile(log_p, cell)
    mass = np.exp(heights) * cell
    squares = (volumes * math.gamma(dim / 2 + 1)) ** (2 / dim) / np.pi
    variance = (mass * squares).sum() / dim
    law = -squares / (2 * variance) - dim / 2 * np.log(2 * np.pi * variance)
    some = mass > 0
    gap = (mass[some] * heights[some]).sum() - (mass * law).sum()
    rank = np.argsort(np.argsort(-flat))
    return law[rank].reshape(np.shape(log_p)), gap
