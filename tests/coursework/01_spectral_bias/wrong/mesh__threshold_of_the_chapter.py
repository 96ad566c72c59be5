# loses: 1
def mesh_transform(points, triangles, heights, k):
    """Exponentials at both ends of a side, a special case below a threshold: above it digits cancel."""
    corners, values = points[triangles], heights[triangles]
    arms = corners[:, 1:] - corners[:, :1]
    gradient = torch.linalg.solve(arms, (values[:, 1:] - values[:, :1])[..., None])[..., 0]
    area = torch.linalg.det(arms) / 2
    a, b = corners, corners.roll(-1, 1)
    side = b - a
    normal = torch.stack([side[..., 1], -side[..., 0]], -1) * area.sign()[:, None, None]
    p = torch.einsum("mi,tsi->mts", k, side)
    start, end = (torch.exp(-1j * torch.einsum("mi,tsi->mts", k, x)) for x in (a, b))
    along = torch.where(p.abs() < 1e-9, start, 1j * (end - start) / torch.where(p.abs() < 1e-9, 1.0, p))
    square = k.square().sum(-1)
    indicator = 1j * (torch.einsum("mi,tsi->mts", k, normal) * along).sum(-1) / square[:, None]
    total = -1j * (k @ gradient.T * indicator).sum(-1) / square
    return torch.where(square > 0, total, (area.abs() * values.mean(1)).sum().to(total.dtype))
