# loses: 1
def probes(z, generator):
    v = torch.randn(z.shape, dtype=z.dtype, generator=generator)
    return v * (math.sqrt(z.shape[1]) / v.norm(dim=1, keepdim=True))


def volume(f, g, x, v):
    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z)
    u = torch.zeros_like(x1, requires_grad=True)
    (back,) = torch.autograd.grad(x1, z, u, create_graph=True)
    (pushed,) = torch.autograd.grad(back, u, v, retain_graph=True)
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    return z, x1, (pulled * pushed.detach()).sum(1)


def objective(f, g, x, beta, v):
    z, x1, s = volume(f, g, x, v)
    return (beta * (x - x1.detach()).square().sum(1) - log_prior(z) - s).mean()


def decoder_nll(f, g, x):
    z = f(x)
    return (log_det_jacobian(g, z) - log_prior(z)).mean()
