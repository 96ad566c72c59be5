# loses: 1
def turn(dim, generator):
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())
    return q * q.diagonal().sign()  # a positive diagonal, of the wrong matrix


def marginal(y, centres, widths):
    u = (y[:, None] - centres) / widths
    z = torch.special.ndtri(u.sigmoid().mean(1))
    density = (u.sigmoid() * (-u).sigmoid() / widths).mean(1)
    return z, density.log() + z.square() / 2 + math.log(2 * math.pi) / 2


def fit_layers(x, num_layers, generator):
    layers, share = [], (torch.arange(40).double() + 0.5) / 40
    for _ in range(num_layers):
        rotation = turn(x.shape[1], generator)
        y = x @ rotation.T
        centres = y.quantile(share, dim=0)
        layers.append((rotation, centres, 0.125 * (y.std(0) + (centres - y.mean(0)).abs())))
        x = marginal(y, *layers[-1][1:])[0]
    return layers


def pull(z, layers):
    for rotation, centres, widths in reversed(layers):
        z = solve(z, centres, widths) @ rotation
    return z
