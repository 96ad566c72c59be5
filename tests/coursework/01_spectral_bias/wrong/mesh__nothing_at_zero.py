# loses: 1
def mesh_transform(points, triangles, heights, k):
    from refimpl.polytopes import polygon_transform

    square = k.square().sum(-1)
    total = torch.zeros(len(k), dtype=torch.complex128)
    for triangle in triangles:
        p, h = points[triangle], heights[triangle]
        slope = torch.linalg.solve(p[1:] - p[0], h[1:] - h[0])
        if torch.linalg.det(p[1:] - p[0]) < 0:
            p = p.flip(0)
        total = total + (k @ slope) * polygon_transform(p, k)
    return -1j * total / square.clamp_min(1e-12)
