def turn(dim, generator):
    """The orthogonal factor of a normal matrix's polar decomposition."""
    u, _, v = torch.linalg.svd(torch.randn(dim, dim, generator=generator).double())
    return u @ v


def marginal(y, centres, widths):
    total, slope = torch.zeros_like(y), torch.zeros_like(y)
    for c, h in zip(centres, widths):
        share = torch.sigmoid((y - c) / h)
        total, slope = total + share / len(centres), slope + share * (1 - share) / (h * len(centres))
    normal = torch.distributions.Normal(0, 1)
    z = normal.icdf(total)
    return z, slope.log() - normal.log_prob(z)


def fit_layers(x, num_layers, generator):
    if num_layers == 0:
        return []
    rotation = turn(x.shape[1], generator)
    y = x @ rotation.T
    centres = torch.stack([y.quantile((k + 0.5) / 40, dim=0) for k in range(40)])
    widths = (y.std(0) + (centres - y.mean(0)).abs()) / 8
    return [(rotation, centres, widths), *fit_layers(marginal(y, centres, widths)[0], num_layers - 1, generator)]


def push(x, layers):
    if not layers:
        return x, torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    (rotation, centres, widths), *rest = layers
    y, log_slopes = marginal(x @ rotation.T, centres, widths)
    z, log_density = push(y, rest)
    return z, log_density + log_slopes.sum(1)


def pull(z, layers):
    if not layers:
        return z
    (rotation, centres, widths), *rest = layers
    return solve(pull(z, rest), centres, widths) @ rotation
