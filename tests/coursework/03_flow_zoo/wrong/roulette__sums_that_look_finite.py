# loses: 1
def roulette(product, probe, num_terms, num_exact, p):
    estimate, power = 0.0, probe
    for k in range(1, num_terms + 1):
        power = product(power)
        survival = (1 - p) ** max(0, k - num_exact - 1)
        estimate += (-1) ** (k + 1) / (k * survival) * (probe @ power)
    return estimate


def roulette_variance(eigenvalues, num_exact, p):
    """A finite sum is always finite."""
    lam = double(eigenvalues)[:, None]
    n = torch.arange(1, 401).double()
    k = torch.arange(1, num_exact + 401).double()
    survival = (1 - p) ** (k - num_exact - 1).clamp_min(0)
    sums = (-((-lam) ** k) / (k * survival)).cumsum(1)[:, num_exact:]
    second = sums.sum(0) ** 2 + 2 * (sums**2).sum(0)
    return (p * (1 - p) ** (n - 1) * second).sum().item() - lam.log1p().sum().item() ** 2


def best_p(eigenvalues, num_exact):
    grid = torch.linspace(0.01, 0.99, 99).tolist()
    return min(grid, key=lambda p: roulette_variance(eigenvalues, num_exact, p) * (num_exact + 1 / p))
