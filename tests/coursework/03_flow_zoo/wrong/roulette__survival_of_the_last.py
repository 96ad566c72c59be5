# loses: 3
def roulette(product, probe, num_terms, num_exact, p):
    """The weight of a term is one factor too large: N is never 0."""
    estimate, power = 0.0, probe
    for k in range(1, num_terms + 1):
        power = product(power)
        survival = (1 - p) ** max(0, k - num_exact)
        estimate += (-1) ** (k + 1) / (k * survival) * (probe @ power)
    return estimate


def roulette_variance(eigenvalues, num_exact, p):
    lam = double(eigenvalues)[:, None]
    if 1 - p <= lam.abs().max() ** 2:
        return math.inf
    n = torch.arange(1, 401).double()
    k = torch.arange(1, num_exact + 401).double()
    survival = (1 - p) ** (k - num_exact).clamp_min(0)
    sums = (-((-lam) ** k) / (k * survival)).cumsum(1)[:, num_exact:]
    second = sums.sum(0) ** 2 + 2 * (sums**2).sum(0)
    return (p * (1 - p) ** (n - 1) * second).sum().item() - lam.log1p().sum().item() ** 2


def best_p(eigenvalues, num_exact):
    edge = 1 - max(x * x for x in eigenvalues)
    grid = (edge * torch.linspace(0.05, 0.995, 120)).tolist()
    return min(grid, key=lambda p: roulette_variance(eigenvalues, num_exact, p) * (num_exact + 1 / p))
