import numpy as np


def steps_needed(kernel, lr, frequencies, share):
    K = kernel.numpy()
    n = len(K)
    counts = []
    for k in frequencies:
        wave = np.cos(2 * np.pi * k * np.arange(n) / n)
        quotient = wave @ K @ wave / (wave @ wave)
        left, count = 1.0, 0
        while abs(left) > share:
            left -= 2 * lr / n * quotient * left
            count += 1
        counts.append(count)
    return counts
