def double_factorial(n):
    return 1.0 if n < 2 else n * double_factorial(n - 2)


def sphere_moment(powers, dim):
    """Dirichlet moments of the squares."""
    if sum(a % 2 for a in powers):
        return torch.zeros(())
    halves = torch.tensor([a / 2 for a in powers]).double()
    alpha = torch.full_like(halves, 0.5)
    top = (torch.lgamma(alpha + halves) - torch.lgamma(alpha)).sum()
    n = torch.tensor(dim / 2).double()
    return (top + torch.lgamma(n) - torch.lgamma(n + halves.sum())).exp()


def second_order(eigenvalues):
    dim = len(eigenvalues)
    variance = float(((eigenvalues - eigenvalues.mean()) ** 2).mean())
    mean_square = variance * dim * (sphere_moment((4,), dim) - sphere_moment((2, 2), dim))
    return [dim * variance / 4, dim * mean_square / 4]


def layers_needed(dim, factor):
    return -math.log(factor) / math.log1p(-2 / (dim + 2))


def skew_coefficient(dim):
    # E y^3 with the deviations (2, -1, -1, 0, ...), whose cubes sum to 6 and whose squares do so, too
    e = [2.0, -1.0, -1.0] if dim > 2 else [1.0, -1.0]
    third = 0.0
    for i in range(len(e)):
        for j in range(len(e)):
            for k in range(len(e)):
                powers = [0] * len(e)
                for at in (i, j, k):
                    powers[at] += 2
                third += e[i] * e[j] * e[k] * float(sphere_moment(powers, dim))
    ey2 = 2 * 6 / (dim * (dim + 2))
    return (-third / 3) / (ey2 / 2) + 2 / 3
