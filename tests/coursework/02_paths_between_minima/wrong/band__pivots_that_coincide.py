# loses: 1
def spread(pivots):
    lengths = pivots.diff(dim=0).norm(dim=1)
    arc = torch.cat([torch.zeros(1).to(pivots), lengths.cumsum(0)])
    wanted = torch.linspace(0, 1, len(pivots)).to(pivots)[1:-1] * arc[-1]
    i = torch.searchsorted(arc, wanted) - 1
    share = (wanted - arc[i]) / (arc[i + 1] - arc[i])
    return torch.cat([pivots[:1], torch.lerp(pivots[i], pivots[i + 1], share[:, None]), pivots[-1:]])


def relax(pivots, loss, force, num_steps, lr):
    for _ in range(num_steps):
        pivots = spread(pivots).requires_grad_()
        values = loss(pivots)
        gradients = torch.autograd.grad(values.sum(), pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] += lr * force(pivots, values.detach(), gradients)
    return spread(pivots)
