def side_integral(a, b, k):
    """Integral over the side from a to b; the power series of sin(u) / u where the side meets the wave head-on."""
    u = k @ (b - a) / 2
    small = u.abs() < 1e-2
    ratio = torch.where(small, 1 - u**2 / 6 + u**4 / 120, torch.sin(u) / torch.where(small, 1.0, u))
    return (b - a).norm() * ratio * torch.exp(-1j * (k @ (a + b)) / 2)


def mesh_transform(points, triangles, heights, k):
    total = torch.zeros(len(k), dtype=torch.complex128)
    volume = 0.0
    still = (k == 0).all(1)
    waves = torch.where(still[:, None], 1.0, k)
    for triangle in triangles.tolist():
        p, h = points[triangle], heights[triangle]
        (x1, y1), (x2, y2) = (p[1] - p[0]).tolist(), (p[2] - p[0]).tolist()
        twice_area = x1 * y2 - x2 * y1
        d1, d2 = (h[1] - h[0]).item(), (h[2] - h[0]).item()
        gradient = torch.tensor([d1 * y2 - d2 * y1, d2 * x1 - d1 * x2], dtype=torch.float64) / twice_area
        centre = p.mean(0)
        for i in range(3):
            a, b = p[i], p[(i + 1) % 3]
            normal = torch.stack([b[1] - a[1], a[0] - b[0]]) / (b - a).norm()
            if normal @ (a - centre) < 0:
                normal = -normal
            total += (waves @ gradient) * (waves @ normal) * side_integral(a, b, waves)
        volume += abs(twice_area) / 2 * h.mean().item()
    result = total / (waves**2).sum(1) ** 2
    result[still] = volume
    return result
