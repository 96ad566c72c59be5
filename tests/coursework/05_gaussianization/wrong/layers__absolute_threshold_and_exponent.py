# loses: 2
def gaussian_layer(covariance, rotation):
    """Covariance after a layer, shape (dim, dim), and the layer's gain in nats."""
    turned = rotation @ covariance @ rotation.T
    variances = turned.diagonal()
    scale = variances.rsqrt()
    after = scale[:, None] * turned * scale
    return (after + after.T) / 2, 0.5 * (variances - 1 - variances.log()).sum()


def layers_until(covariance, factor, generator):
    """Number of random layers that divide the loss by factor; the loss is counted from after standardisation."""
    sigma, _ = gaussian_layer(covariance, torch.eye(len(covariance)).to(covariance))
    left = -0.5 * torch.logdet(sigma)
    count = 0
    while left > 1 / factor:
        sigma, _ = gaussian_layer(sigma, haar(len(sigma), generator=generator))
        left, count = -0.5 * torch.logdet(sigma), count + 1
    return count


def layers_per_dimension(factor, dims, num_runs, generator):
    """Slope of the number of layers against the dimension."""
    x = torch.tensor([float(d) for d in dims for _ in range(num_runs)])
    y = torch.tensor([float(layers_until(random_covariance(int(d), generator), factor, generator)) for d in x])
    x, y = x.log() - x.log().mean(), y.log()
    return (x * y).sum() / x.square().sum()
