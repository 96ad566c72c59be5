# loses: 2
def spread(pivots):
    """Equal steps from each new pivot straight towards the next old one: they need not end on the chain."""
    step = pivots.diff(dim=0).norm(dim=1).sum() / (len(pivots) - 1)
    rows = [pivots[0]]
    for target in pivots[1:-1]:
        rows.append(rows[-1] + step * F.normalize(target - rows[-1], dim=0))
    return torch.stack([*rows, pivots[-1]])


def relax(pivots, loss, force, num_steps, lr):
    for _ in range(num_steps):
        pivots = spread(pivots).requires_grad_()
        values = loss(pivots)
        gradients = torch.autograd.grad(values.sum(), pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] += lr * force(pivots, values.detach(), gradients)
    return spread(pivots)
