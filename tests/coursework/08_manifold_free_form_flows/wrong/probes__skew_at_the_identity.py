# loses: 2
def sphere_probe(z, noise):
    """Tangent vectors at z, shapes (batch, D)."""
    u = noise - (noise * z).sum(1, keepdim=True) * z
    return math.sqrt(z.shape[1] - 1) * normalize(u, dim=1)


def torus_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 2 n)."""
    pairs, u = z.unflatten(1, (-1, 2)), noise.unflatten(1, (-1, 2))
    u = u - (u * pairs).sum(-1, keepdim=True) * pairs
    return math.sqrt(z.shape[1] // 2) * normalize(u.flatten(1), dim=1)


def rotation_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 9)."""
    u = noise.unflatten(1, (3, 3))
    return math.sqrt(3) * normalize((u - u.mT).flatten(1), dim=1)
