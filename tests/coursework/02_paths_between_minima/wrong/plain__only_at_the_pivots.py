# loses: 1
def ring_radius(spring, c, radius, num_pivots):
    return radius / (1 + 4 * spring / c * math.sin(math.pi / num_pivots) ** 2)


def weakest_spring(height, half_width):
    return 2 * height / half_width**2


def plain_estimate(spring, num_pivots):
    pivots = straight(num_pivots, power=1.2)
    for _ in range(1500):
        pivots.requires_grad_()
        energy = curvy_valley(pivots).sum() + spring / 2 * (pivots[1:] - pivots[:-1]).square().sum()
        gradient = torch.autograd.grad(energy, pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] -= gradient[1:-1] / (4 + 4 * spring)
    return curvy_valley(pivots).max().item(), curvy_valley(pivots).max().item()
