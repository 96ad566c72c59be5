# loses: 1
def mesh_transform(points, triangles, heights, k):
    corners, values = points[triangles], heights[triangles]
    arms = corners[:, 1:] - corners[:, :1]
    gradient = torch.linalg.solve(arms, (values[:, 1:] - values[:, :1])[..., None])[..., 0]
    a, b = corners, corners.roll(-1, 1)
    side = b - a
    normal = torch.stack([side[..., 1], -side[..., 0]], -1)
    half = torch.einsum("mi,tsi->mts", k, side) / 2
    along = torch.sinc(half / math.pi) * torch.exp(-0.5j * torch.einsum("mi,tsi->mts", k, a + b))
    square = k.square().sum(-1)
    indicator = 1j * (torch.einsum("mi,tsi->mts", k, normal) * along).sum(-1) / square[:, None]
    total = -1j * (k @ gradient.T * indicator).sum(-1) / square
    volume = (torch.linalg.det(arms).abs() / 2 * values.mean(1)).sum()
    return torch.where(square > 0, total, volume.to(total.dtype))
