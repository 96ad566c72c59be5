# loses: 2
def radial_layer(x, g):
    r = x.norm(dim=1).detach().requires_grad_()
    new = g(r)
    slope = torch.autograd.grad(new.sum(), r)[0]
    stretch = torch.where(r > 0, new / r, slope).detach()
    return stretch[:, None] * x, slope.log() + (x.shape[1] - 1) * stretch.log()


def repair(log_p, cell):
    """Puts each height where the normal has the same share of its peak: nearly right for a normal."""
    heights = log_p.flatten().sort(descending=True).values
    volumes = (torch.arange(len(heights)).double() + 0.5) * cell
    drop = heights[0] - heights + 1e-9 * torch.arange(1, len(heights) + 1).double()
    return (volumes / math.pi).sqrt(), (2 * drop).sqrt()
