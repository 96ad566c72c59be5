# loses: 1
def turn(dim, generator):
    """Orthogonal matrix, shape (dim, dim), from the Haar distribution."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())
    return q * r.diagonal().sign()


def marginal(y, centres, widths):
    """Images of all coordinates, and the logarithms of the slopes, both of the shape of y, (n, dim)."""
    u = (y[:, None] - centres) / widths
    z = torch.special.ndtri(u.sigmoid().mean(1))
    density = (u.sigmoid() * (-u).sigmoid() / widths).mean(1)
    return z, density.log() + z.square() / 2


def fit_layers(x, num_layers, generator):
    """List of layers (rotation, centres, widths), each fitted to data of shape (n, dim)."""
    layers, share = [], (torch.arange(40).double() + 0.5) / 40
    for _ in range(num_layers):
        rotation = turn(x.shape[1], generator)
        y = x @ rotation.T
        centres = y.quantile(share, dim=0)
        layers.append((rotation, centres, 0.125 * (y.std(0) + (centres - y.mean(0)).abs())))
        x = marginal(y, *layers[-1][1:])[0]
    return layers


def push(x, layers):
    """Latent points, shape (n, dim), and the logarithm of the density at the data, shape (n,)."""
    total = torch.zeros(len(x)).double()
    for rotation, centres, widths in layers:
        x, log_slopes = marginal(x @ rotation.T, centres, widths)
        total = total + log_slopes.sum(1)
    return x, total - (x.square() + math.log(2 * math.pi)).sum(1) / 2


def pull(z, layers):
    """The points that push maps to z."""
    for rotation, centres, widths in reversed(layers):
        z = solve(lambda y: marginal(y, centres, widths)[0], z, centres, widths) @ rotation  # noqa: B023
    return z
