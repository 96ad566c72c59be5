# loses: 1
def make_probe(z, noise):
    u = noise - (noise * z).sum(-1, keepdim=True) * z
    return math.sqrt(2) * u / u.norm(dim=-1, keepdim=True)


def flow_loss(encoder, decoder, x, noise, beta):
    x = x.detach().requires_grad_()
    z = project(encoder(x))
    v = make_probe(z.detach(), noise)
    x1 = project(decoder(z))
    u = torch.zeros_like(x1, requires_grad=True)
    pulled_back = torch.autograd.grad(x1, z, u, create_graph=True)[0]
    pushed = torch.autograd.grad(pulled_back, u, v, retain_graph=True)[0].detach()  # g'(z) v
    pulled = torch.autograd.grad(z, x, v, create_graph=True)[0]  # v^T f'(x)
    surrogate = (pulled * pushed).sum(-1)
    return (math.log(4 * math.pi) - surrogate + beta * (x - x1).square().sum(-1)).mean()


def decoder_log_prob(encoder, decoder, x):
    sphere = Sphere(2)
    z = project(encoder(x))
    x1 = project(decoder(z))
    inner = sphere.frame(x1).mT @ jacobian(lambda z: project(decoder(z)), z) @ sphere.frame(z)
    return -math.log(4 * math.pi) + torch.linalg.slogdet(inner).logabsdet
