# loses: 1
def probes(z, generator):
    v = torch.randn(z.shape, dtype=z.dtype, generator=generator)
    return v * (math.sqrt(z.shape[1]) / v.norm(dim=1, keepdim=True))


def volume(f, g, x, v):
    x = x.detach().requires_grad_()
    z = f(x)
    with torch.no_grad():
        x1, pushed = torch.func.jvp(g, (z,), (v,))
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    return z, x1, (pulled * pushed.detach()).sum(1)


def objective(f, g, x, beta, v):
    z, x1, s = volume(f, g, x, v)
    return (beta * (x - x1).square().sum(1) - log_prior(z) - s).mean()


def decoder_nll(f, g, x):
    z = f(x)
    return (log_det_jacobian(g, z) - log_prior(z)).mean()
