# loses: 1
def radial_layer(x, g):
    """Divides by the radius at the origin, too."""
    r = x.norm(dim=1).detach().requires_grad_()
    new = g(r)
    slope = torch.autograd.grad(new.sum(), r)[0]
    stretch = (new / r).detach()
    return stretch[:, None] * x, slope.log() + (x.shape[1] - 1) * stretch.log()


def repair(log_p, cell):
    mass = log_p.flatten().sort(descending=True).values.exp() * cell
    outside = mass.flip(0).cumsum(0).flip(0) - mass / 2
    volumes = (torch.arange(len(mass)).double() + 0.5) * cell
    return (volumes / math.pi).sqrt(), (-2 * outside.log()).sqrt()
