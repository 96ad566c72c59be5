# loses: 1
def sphere_moment(powers, dim):
    """Mean of q_1^a_1 q_2^a_2 ... for q uniform on the unit sphere in dim dimensions; powers: (a_1, a_2, ...)."""
    if any(a % 2 for a in powers):
        return 0.0
    above = math.prod(math.prod(range(1, a, 2)) for a in powers)  # (a - 1)!!
    return above / math.prod(dim + 2 * m for m in range(sum(powers) // 2))


def second_order(eigenvalues):
    """Loss and mean gain of a random layer, to second order; eigenvalues: shape (dim,), of mean 1."""
    squares = (eigenvalues - 1).square().sum()
    return squares / 4, squares / (2 * (len(eigenvalues) + 2))


def layers_needed(dim, factor):
    """Layers after which the loss is 1 / factor of what it was."""
    return (dim + 1) / 2 * math.log(factor)


def skew_coefficient(dim):
    """The c above."""
    return 2 * dim / (3 * (dim + 4))  # E y^3 = 8 sum(eps^3) / (D (D + 2) (D + 4))
