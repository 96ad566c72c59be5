# loses: 1
def spread(pivots):
    lengths = (pivots[1:] - pivots[:-1]).norm(dim=1)
    arc = torch.cat([torch.zeros(1).to(pivots), lengths.cumsum(0)])
    rows = [pivots[0]]
    for wanted in torch.linspace(0, 1, len(pivots))[1:-1].to(pivots) * arc[-1]:
        i = min(int((arc <= wanted).sum()) - 1, len(lengths) - 1)
        share = (wanted - arc[i]) / lengths[i] if lengths[i] > 0 else 0.0
        rows.append(pivots[i] + share * (pivots[i + 1] - pivots[i]))
    return torch.stack([*rows, pivots[-1]])


def relax(pivots, loss, force, num_steps, lr):
    """Applies the gradients of the old places at the new ones."""
    for _ in range(num_steps):
        pivots = pivots.detach().clone().requires_grad_()
        values = loss(pivots)
        gradients = torch.autograd.grad(values.sum(), pivots)[0]
        pivots = spread(pivots.detach())
        pivots[1:-1] += lr * force(pivots, values.detach(), gradients)
    return spread(pivots)
