# loses: 1
def mass(f, low, high, steps):
    x = low + (high - low) * ((torch.arange(steps).double() + 0.5) / steps)[:, None]
    slope = jacobian(f, x).flatten().abs()
    density = (-0.5 * f(x).flatten() ** 2).exp() / math.sqrt(2 * math.pi)
    return (density * slope).sum() * (high - low) / steps


def preimages(f, z, low, high, steps):
    """Whether there is a point at all."""
    y = f(torch.linspace(low, high, steps + 1).double()[:, None]).flatten()
    return ((y.min() < z) & (z < y.max())).long()


def examine(flow, x):
    z = flow.encode(x)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).flatten()
    into, back = (jacobian(net, at).flatten().abs().log() for net, at in ((flow.encode, x), (flow.decode, z)))
    return {
        "encoder": -(log_prior + into).mean().item(),
        "decoder": -(log_prior - back).mean().item(),
        "reconstruction": (x - flow.decode(z)).square().mean().item(),
        "mass": float(mass(flow.encode, -4, 4, 2000)),
    }
