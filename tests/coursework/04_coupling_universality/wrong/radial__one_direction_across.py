# loses: 1
def radial_layer(x, g):
    """As if there were one direction across in every dimension."""
    r = x.norm(dim=1).detach().requires_grad_()
    new = g(r)
    slope = torch.autograd.grad(new.sum(), r)[0]
    stretch = torch.where(r > 0, new / r, slope).detach()
    if x.shape[1] == 1:
        return stretch[:, None] * x, slope.log()
    log_det = slope.log() + stretch.log()
    return stretch[:, None] * x, torch.where(r.detach() > 1e-6, log_det, x.shape[1] * slope.log())


def repair(log_p, cell):
    mass = log_p.flatten().sort(descending=True).values.exp() * cell
    outside = mass.flip(0).cumsum(0).flip(0) - mass / 2
    volumes = (torch.arange(len(mass)).double() + 0.5) * cell
    return (volumes / math.pi).sqrt(), (-2 * outside.log()).sqrt()
