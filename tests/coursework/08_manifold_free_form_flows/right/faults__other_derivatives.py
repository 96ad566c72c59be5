def make_probe(z, noise):
    frame = Sphere(2).frame(z)
    w = (frame.mT @ noise.unsqueeze(-1)).squeeze(-1)
    w = w / w.norm(dim=-1, keepdim=True)
    return 2**0.5 * (frame @ w.unsqueeze(-1)).squeeze(-1)


def flow_loss(encoder, decoder, x, noise, beta):
    z = project(encoder(x))
    v = make_probe(z.detach(), noise).detach()
    with torch.no_grad():
        pushed = (jacobian(lambda z: project(decoder(z)), z.detach()) @ v.unsqueeze(-1)).squeeze(-1)
    moved = (jacobian(lambda x: project(encoder(x)), x) @ pushed.detach().unsqueeze(-1)).squeeze(-1)
    error = ((x - project(decoder(z))) ** 2).sum(-1)
    return math.log(4 * math.pi) + (beta * error - (moved * v).sum(-1)).mean()


def decoder_log_prob(encoder, decoder, x):
    z = project(encoder(x))
    pushed = jacobian(lambda z: project(decoder(z)), z) @ Sphere(2).frame(z)
    return -math.log(4 * math.pi) - 0.5 * torch.logdet(pushed.mT @ pushed)
