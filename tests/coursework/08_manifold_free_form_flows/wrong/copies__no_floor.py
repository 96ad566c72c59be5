# loses: 1
def share_of_copies(test, train, tolerance=1e-9):
    """Between 0 and 1; shapes (n, 3) and (m, 3)."""
    distance = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance.min(1).values <= tolerance).double().mean().item()


def kernel_nll(train, test, kappa, epsilon=0.05):
    """Mean over test points, in nats."""
    squares = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist").square()
    log_scale = math.log(kappa / (2 * math.pi)) - math.log1p(-math.exp(-2 * kappa)) - math.log(len(train))
    bumps = torch.logsumexp(-0.5 * kappa * squares, 1) + log_scale + math.log(1 - epsilon)
    return -bumps.mean().item()
