def log_volume(J):
    return torch.linalg.svdvals(J).log().sum(-1)


def log_density(f, g, x, side):
    code = f(x)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(code).sum(-1)
    places = {"decoder": (g, code, -1), "encoder": (f, x, 1), "encoder on manifold": (f, g(code), 1)}
    net, place, sign = places[side]
    return base + sign * log_volume(jacobian(net, place))
