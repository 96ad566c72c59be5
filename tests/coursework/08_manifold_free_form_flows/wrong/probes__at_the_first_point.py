# loses: 1
def sphere_probe(z, noise):
    """Tangent vectors at z, shapes (batch, D)."""
    u = noise - (noise * z[:1]).sum(1, keepdim=True) * z[:1]
    return math.sqrt(z.shape[1] - 1) * normalize(u, dim=1)


def torus_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 2 n)."""
    pairs, u = z.unflatten(1, (-1, 2)), noise.unflatten(1, (-1, 2))
    u = u - (u * pairs).sum(-1, keepdim=True) * pairs
    return math.sqrt(z.shape[1] // 2) * normalize(u.flatten(1), dim=1)


def rotation_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 9)."""
    x, u = z.unflatten(1, (3, 3)), noise.unflatten(1, (3, 3))
    turned = x.mT @ u
    return math.sqrt(3) * normalize((x @ (turned - turned.mT) / 2).flatten(1), dim=1)
