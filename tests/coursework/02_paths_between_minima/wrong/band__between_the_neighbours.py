# loses: 3
def spread(pivots):
    """Moves each pivot to the middle between its neighbours, until nothing changes: that is the straight line."""
    pivots = pivots.clone()
    for _ in range(2000):
        pivots[1:-1] += 0.4 * (pivots[2:] - 2 * pivots[1:-1] + pivots[:-2])
    return pivots


def relax(pivots, loss, force, num_steps, lr):
    for _ in range(num_steps):
        pivots = spread(pivots).requires_grad_()
        values = loss(pivots)
        gradients = torch.autograd.grad(values.sum(), pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] += lr * force(pivots, values.detach(), gradients)
    return spread(pivots)
