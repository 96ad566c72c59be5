# loses: 1
def spline(x, xs, ys, slopes):
    """Picks the result, not the input: gradients of the branch that is not picked get through."""
    inside = x.abs() <= xs[-1]
    k = torch.searchsorted(xs[1:-1].detach(), x.detach(), right=True)
    w, h, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s, xi = h / w, (x - xs[k]) / w
    below = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
    y = ys[k] + h * (s * xi**2 + d0 * xi * (1 - xi)) / below
    above = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2)
    return torch.where(inside, y, x), torch.where(inside, above.log() - 2 * below.log(), 0)


def spline_inverse(y, xs, ys, slopes):
    inside = y.abs() <= ys[-1]
    k = torch.searchsorted(ys[1:-1].detach(), y.detach(), right=True)
    w, h, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s, up = h / w, y - ys[k]
    bend = d0 + d1 - 2 * s
    a, b, c = h * (s - d0) + up * bend, h * d0 - up * bend, -s * up
    xi = 2 * c / (-b - torch.sqrt(b**2 - 4 * a * c))
    x = torch.where(inside, xs[k] + xi * w, y)
    return x, -spline(x, xs, ys, slopes)[1]
