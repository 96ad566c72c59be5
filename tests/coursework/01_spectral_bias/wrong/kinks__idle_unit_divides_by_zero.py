# loses: 1
def kink_sum(w, b, v, k, alpha=0.0):
    return -((1 - alpha) * v * w.abs() * torch.exp(1j * k[:, None] * b / w)).sum(1) / k**2
