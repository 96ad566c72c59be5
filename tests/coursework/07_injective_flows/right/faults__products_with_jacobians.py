def draw_probes(n, d, generator):
    return 2.0 * torch.randint(2, (n, d), generator=generator).double() - 1


def loss(f, g, x, beta, v):
    x = x.clone().requires_grad_()
    z = f(x)
    pushed = torch.autograd.functional.jvp(g, z.detach(), v)[1]
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    volume = (pulled * pushed.detach()).sum()
    squares = beta * (x.detach() - g(z)).square().sum() + 0.5 * z.square().sum()
    return (squares - volume) / len(x)


def report(f, g, x):
    z = f(x)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    return (torch.linalg.svdvals(jacobian(g, z)).log().sum(1) - log_p).mean()
