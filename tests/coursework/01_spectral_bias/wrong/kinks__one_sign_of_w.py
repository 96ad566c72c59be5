# loses: 1
def kink_sum(w, b, v, k, alpha=0.0):
    bends = w != 0
    w, b, v = w[bends], b[bends], v[bends]
    jump = v * (w.abs() - alpha * w)
    return -(jump * torch.exp(1j * k[:, None] * b / w)).sum(1) / k**2
