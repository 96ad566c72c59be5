def layer_gain(train, judge, rotation):
    """The layer is linear: its model is a normal with a covariance."""
    y = train @ rotation.mT
    mean = y.mean(0) @ rotation
    covariance = rotation.mT @ torch.diag((y - y.mean(0)).pow(2).mean(0)) @ rotation
    off = judge - mean
    after = (off * torch.linalg.solve(covariance, off.T).T).sum(1) + torch.logdet(covariance)
    return ((judge**2).sum(1) - after).mean() / 2


def overfitting(num_points, dim, generator):
    fresh = torch.randn(4000, dim, generator=generator).double()
    train = torch.randn(num_points, dim, generator=generator).double()
    axes = torch.linalg.svd(train - train.mean(0), full_matrices=False)[2]
    drawn = haar(dim, generator=generator).mT
    return torch.stack(
        [layer_gain(train, x, q) for q, x in ((axes, train), (axes, fresh), (drawn, train), (drawn, fresh))]
    )
