# loses: 1
def mass(f, low, high, steps):
    x = low + (high - low) * ((torch.arange(steps).double() + 0.5) / steps)[:, None]
    slope = jacobian(f, x).flatten().abs()
    density = (-0.5 * f(x).flatten() ** 2).exp() / math.sqrt(2 * math.pi)
    return (density * slope).sum() * (high - low) / steps


def preimages(f, z, low, high, steps):
    y = f(torch.linspace(low, high, steps + 1).double()[:, None]).flatten()
    above = y[:, None] > z
    return (above[1:] != above[:-1]).sum(0)


def examine(flow, x):
    z = flow.encode(x)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).flatten()
    into, back = (jacobian(net, x).flatten().abs().log() for net in (flow.encode, flow.decode))
    return {
        "encoder": -(log_prior + into).mean().item(),
        "decoder": -(log_prior - back).mean().item(),
        "reconstruction": (x - flow.decode(z)).square().mean().item(),
        "mass": float(mass(flow.encode, -4, 4, 2000)),
    }
