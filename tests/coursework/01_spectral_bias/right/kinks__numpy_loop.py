import numpy as np


def kink_sum(w, b, v, k, alpha=0.0):
    total = np.zeros(len(k), dtype=complex)
    for wj, bj, vj in zip(w.tolist(), b.tolist(), v.tolist()):
        if wj == 0:
            continue
        before, after = (alpha * wj, wj) if wj > 0 else (wj, alpha * wj)
        total += vj * (after - before) * np.exp(-1j * k.numpy() * (-bj / wj))
    return -total / k.numpy() ** 2
