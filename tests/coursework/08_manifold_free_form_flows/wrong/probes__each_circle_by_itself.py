# loses: 1
def sphere_probe(z, noise):
    """Tangent vectors at z, shapes (batch, D)."""
    u = noise - (noise * z).sum(1, keepdim=True) * z
    return math.sqrt(z.shape[1] - 1) * normalize(u, dim=1)


def torus_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 2 n)."""
    pairs, u = z.unflatten(1, (-1, 2)), noise.unflatten(1, (-1, 2))
    u = u - (u * pairs).sum(-1, keepdim=True) * pairs
    return normalize(u, dim=-1).flatten(1) * torch.linspace(0.5, 1.5, z.shape[1] // 2, dtype=z.dtype).repeat_interleave(
        2
    )


def rotation_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 9)."""
    x, u = z.unflatten(1, (3, 3)), noise.unflatten(1, (3, 3))
    turned = x.mT @ u
    return math.sqrt(3) * normalize((x @ (turned - turned.mT) / 2).flatten(1), dim=1)
