# loses: 1
def draw_probes(n, d, generator):
    v = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return math.sqrt(d) * v / v.norm(dim=1, keepdim=True)


def loss(f, g, x, beta, v):
    z = f(x)
    x1 = g(z)
    pushed = (jacobian(g, z) @ v[..., None])[..., 0]
    pulled = (v[:, None] @ jacobian(f, x))[:, 0]
    volume = (pulled * pushed.detach()).sum(1)
    reconstruction = (x - x1).square().sum(1)
    return (beta * reconstruction + 0.5 * z.square().sum(1) - volume).mean()


def report(f, g, x):
    J = jacobian(f, x)
    return (0.5 * (f(x).square() + math.log(2 * math.pi)).sum(1) - 0.5 * torch.logdet(J @ J.mT)).mean()
