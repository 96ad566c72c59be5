# loses: 2
def layer_gain(train, judge, rotation):
    """Fall of the mean negative log-likelihood of judge, in nats; train, judge: points, shapes (n, dim) and (m, dim)."""
    y = train @ rotation.T
    mean, std = y.mean(0), y.std(0, correction=0)
    z = (judge @ rotation.T - mean) / std
    return (judge.square().sum(1).mean() - z.square().sum(1).mean()) / 2


def overfitting(num_points, dim, generator):
    """Gains with principal axes on training and on further points, then both with a random rotation."""
    train, fresh = (torch.randn(n, dim, generator=generator).double() for n in (num_points, 4000))
    axes = torch.linalg.eigh(train.T.cov()).eigenvectors.T
    rotations = (axes, haar(dim, generator=generator))
    return [layer_gain(train, points, q).item() for q in rotations for points in (train, fresh)]
