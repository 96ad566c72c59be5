def sphere_probe(z, noise):
    dim = z.shape[1]
    projector = torch.eye(dim, dtype=z.dtype) - z[:, :, None] * z[:, None, :]
    u = (projector @ noise[:, :, None])[:, :, 0]
    return u * ((dim - 1) / (u**2).sum(1, keepdim=True)).sqrt()


def torus_probe(z, noise):
    cosine, sine = z[:, 0::2], z[:, 1::2]
    speed = -sine * noise[:, 0::2] + cosine * noise[:, 1::2]
    speed = speed * (speed.shape[1] / (speed**2).sum(1, keepdim=True)).sqrt()
    return torch.stack([-sine * speed, cosine * speed], -1).flatten(1)


def rotation_probe(z, noise):
    w = noise[:, :3]
    w = w * (3 / (w**2).sum(1, keepdim=True)).sqrt() / 2**0.5
    zero = torch.zeros_like(w[:, 0])
    rows = [[zero, -w[:, 2], w[:, 1]], [w[:, 2], zero, -w[:, 0]], [-w[:, 1], w[:, 0], zero]]
    skew = torch.stack([torch.stack(row, -1) for row in rows], 1)
    return (z.view(-1, 3, 3) @ skew).flatten(1)
