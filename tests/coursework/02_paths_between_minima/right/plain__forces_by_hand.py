import numpy as np


def ring_radius(spring, c, radius, num_pivots):
    return c * radius / (c + 2 * spring * (1 - np.cos(2 * np.pi / num_pivots)))


def weakest_spring(height, half_width):
    """Half of the loss's curvature at the pass, its sign reversed."""
    x = torch.zeros((), dtype=torch.float64)
    return -torch.func.grad(torch.func.grad(lambda x: height * (1 - x**2 / half_width**2) ** 2))(x) / 2


def plain_estimate(spring, num_pivots):
    pivots = straight(num_pivots, power=1.2)
    for _ in range(1500):
        slope = torch.func.grad(lambda p: curvy_valley(p).sum())(pivots)
        pull = spring * (pivots.roll(1, 0) + pivots.roll(-1, 0) - 2 * pivots) - slope
        pull[[0, -1]] = 0
        pivots = pivots + pull / (4 + 4 * spring)
    return curvy_valley(pivots).max(), highest(pivots)
