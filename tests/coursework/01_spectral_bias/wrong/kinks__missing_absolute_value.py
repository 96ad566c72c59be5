# loses: 2
def kink_sum(w, b, v, k, alpha=0.0):
    bends = w != 0
    w, b, v = w[bends], b[bends], v[bends]
    return -((1 - alpha) * v * w * torch.exp(1j * k[:, None] * b / w)).sum(1) / k**2
