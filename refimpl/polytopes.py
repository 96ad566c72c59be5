r"""Exact Fourier transforms of piecewise linear functions, up to ReLU networks on the plane.

Convention: :math:`\tilde f(k)=\int f(x)\,e^{-ik\cdot x}\,dx` with angular frequency k (radians per unit of x).
Source: Rahaman et al. 2019 (arXiv 1806.08734), Lemma 1 (with the sign -i, which its own convention asks for), Lemma 2
and Theorem 1; the recursion over faces is that of Diaz, Le and Robins 2016 (arXiv 1602.08593).
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from refimpl._checks import check_tensor

__all__ = [
    "Region",
    "decay_exponent",
    "facets",
    "inside_tent",
    "linear_regions",
    "network_transform",
    "piecewise_linear_transform",
    "polygon_transform",
    "shallow_relu_transform",
]


class Region(NamedTuple):
    """A convex polygon, corners counter-clockwise, (corners, 2), on which a network is x -> gradient . x + offset."""

    vertices: Tensor
    gradient: Tensor
    offset: Tensor


def piecewise_linear_transform(
    knots: Float[Tensor, " n"], values: Float[Tensor, " n"], k: Float[Tensor, " m"]
) -> Complex[Tensor, " m"]:
    r"""Transform of the function that joins (knots, values) by straight lines and vanishes outside. Exact.

    On a piece with slope s, :math:`\int f e^{-ikx}dx=[e^{-ikx}(i f/k+s/k^2)]` between its ends.

    Raises:
        TypeError, ValueError: if an input is not finite or does not fit, knots are not two or more that rise, or some k is 0.
    """
    check_tensor("knots", knots, "(n,)")
    check_tensor("values", values, f"({len(knots)},)")
    check_tensor("k", k, "(m,)")
    if len(knots) < 2 or not (knots.diff() > 0).all():
        raise ValueError(f"knots: got {len(knots)}, expected at least two rising numbers")
    if (k == 0).any():
        raise ValueError("k: got a zero, where the transform is the integral of f and this formula divides by 0")
    phase = torch.exp(-1j * k[:, None] * knots)  # (m, n)
    level, slope = 1j * values / k[:, None], values.diff() / knots.diff() / k[:, None] ** 2
    return (phase[:, 1:] * (level[:, 1:] + slope) - phase[:, :-1] * (level[:, :-1] + slope)).sum(-1)


def shallow_relu_transform(
    w: Float[Tensor, " width"], b: Float[Tensor, " width"], v: Float[Tensor, " width"], k: Float[Tensor, " m"]
) -> Complex[Tensor, " m"]:
    r"""Transform of :math:`\sum_j v_j\,\mathrm{relu}(w_jx+b_j)` away from k = 0: a sum over its kinks. Exact.

    :math:`\tilde f(k)=-\frac1{k^2}\sum_j v_j|w_j|e^{-ikt_j}` with kinks :math:`t_j=-b_j/w_j`, because f'' is a sum of deltas.

    Raises:
        TypeError, ValueError: if an input is not a finite vector, shapes differ, some w is 0 (no kink), or some k is 0.
    """
    check_tensor("w", w, "(width,)")
    check_tensor("b", b, f"({len(w)},)")
    check_tensor("v", v, f"({len(w)},)")
    check_tensor("k", k, "(m,)")
    if (w == 0).any():
        raise ValueError("w: got a zero weight; such a unit is constant and has no kink")
    if (k == 0).any():
        raise ValueError("k: got a zero, where the transform of an unbounded function does not exist")
    return -((v * w.abs()) * torch.exp(1j * k[:, None] * b / w)).sum(-1) / k**2


def polygon_transform(vertices: Float[Tensor, "corners 2"], k: Float[Tensor, "m 2"]) -> Complex[Tensor, " m"]:
    r"""Transform of the indicator function of a polygon: the divergence theorem once, then its sides in closed form.

    :math:`\tilde 1_P(k)=\sum_{\text{sides}} \frac{i\,k\cdot n}{\|k\|^2}\,\ell\,\mathrm{sinc}\big(\tfrac{k\cdot(b-a)}2\big)\,e^{-ik\cdot(a+b)/2}`
    for sides from a to b of length :math:`\ell` with outward normal n; the area at k = 0. The sinc covers k orthogonal
    to a side, where the recursion over faces stops early. Exact; use float64 (rounding grows as 1/||k|| towards k = 0).

    Args:
        vertices: corners in counter-clockwise order, shape (corners, 2).
        k: angular frequencies, shape (m, 2).

    Raises:
        TypeError, ValueError: if an input is not finite or does not fit, or the corners are fewer than three or clockwise.

    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> polygon_transform(square, torch.zeros(1, 2)).real
    tensor([1.])
    """
    area = _check_polygon("vertices", vertices)
    check_tensor("k", k, "(m, 2)", like=vertices)
    a, b = vertices, vertices.roll(-1, 0)
    side = b - a
    normal = torch.stack([side[:, 1], -side[:, 0]], -1)  # outward, as long as the side
    half = k @ side.T / 2  # (m, sides)
    side_transform = torch.sinc(half / torch.pi) * torch.exp(-1j * (k @ (a + b).T) / 2)
    square = k.square().sum(-1)
    total = (1j * (k @ normal.T) * side_transform).sum(-1) / torch.where(square > 0, square, 1.0)
    return torch.where(square > 0, total, area.to(total.dtype))


def _check_polygon(name: str, corners: Tensor, convex: bool = False) -> Tensor:
    """Area of the polygon, once it is sure that its corners are at least three in counter-clockwise order."""
    check_tensor(name, corners, "(corners, 2)")
    if len(corners) < 3:
        raise ValueError(f"{name}: got {len(corners)}, expected at least three")
    side = corners.roll(-1, 0) - corners
    area = (corners[:, 0] * side[:, 1] - corners[:, 1] * side[:, 0]).sum() / 2
    turns = side[:, 0] * side.roll(-1, 0)[:, 1] - side[:, 1] * side.roll(-1, 0)[:, 0]
    rounding = 1e3 * torch.finfo(corners.dtype).eps * side.square().sum()
    if area < -rounding or (convex and turns.min() < -rounding):
        raise ValueError(f"{name}: expected {'a convex polygon, ' if convex else ''}corners in counter-clockwise order")
    return area


def inside_tent(net: nn.Sequential) -> nn.Sequential:
    """ReLU network for min(tent, relu(net)) with tent(x) = max(0, 1 - |x_1| - |x_2|): a network with compact support.

    Uses min(a, b) = a - relu(a - b) and |t| = relu(t) + relu(-t). The Fourier transform of a function that grows is not
    a function; this one vanishes outside the square with corners (1, 0), (0, 1), (-1, 0), (0, -1).

    Args:
        net: one hidden layer, 2 inputs, 1 output: nn.Linear, nn.ReLU, nn.Linear.

    Raises:
        ValueError: if ``net`` has another form.
    """
    if [type(m) for m in net] != [nn.Linear, nn.ReLU, nn.Linear] or (net[0].in_features, net[2].out_features) != (2, 1):
        raise ValueError("net: expected nn.Linear(2, width), nn.ReLU, nn.Linear(width, 1)")
    width = net[0].out_features
    (weight, bias), (readout, level) = (_affine(layer, net[0].weight) for layer in (net[0], net[2]))
    layers = [nn.Linear(a, b).to(weight) for a, b in ((2, width + 4), (width + 4, 2), (2, 2), (2, 1))]
    first, second, third, last = layers
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[:4] = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).to(weight)
        first.weight[4:], first.bias[4:] = weight, bias
        second.weight[0, :4], second.bias[0] = -1, 1  # tent
        second.weight[1, 4:], second.bias[1] = readout[0], level[0]
        third.weight.copy_(torch.tensor([[1, 0], [1, -1]]))  # tent, tent - relu(net)
        last.weight.copy_(torch.tensor([[1, -1]]))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last)


def linear_regions(net: nn.Sequential, corners: Float[Tensor, "corners 2"]) -> list[Region]:
    """Cut a convex polygon into the regions on which a ReLU network of two inputs and one output is affine. Exact.

    Layer by layer: on a region the pre-activation of a unit is affine, so its zero line cuts the region in two. Always
    in float64, since thin regions drown in the rounding of float32.

    Args:
        net: alternating ``nn.Linear`` and ``nn.ReLU`` modules, 2 inputs, 1 output.
        corners: the polygon's corners in counter-clockwise order, shape (corners, 2).

    Raises:
        TypeError, ValueError: if ``net`` has another form, or the polygon is not convex and counter-clockwise.
    """
    _check_polygon("corners", corners, convex=True)
    corners = corners.double()
    modules = list(net.children())
    layers = [m for m in modules if isinstance(m, nn.Linear)]
    if not layers or [type(m) for m in modules] != [t for _ in layers for t in (nn.Linear, nn.ReLU)][:-1]:
        raise ValueError("net: expected nn.Linear and nn.ReLU in turn, beginning and ending with nn.Linear")
    if layers[0].in_features != 2 or layers[-1].out_features != 1:
        raise ValueError(f"net: maps {layers[0].in_features} to {layers[-1].out_features} features, expected 2 to 1")
    # Each entry is (polygon, W, b): the layer's input on this polygon is W x + b.
    pieces = [(corners, torch.eye(2).to(corners), torch.zeros(2).to(corners))]
    for layer in layers[:-1]:
        weight, bias = _affine(layer, corners)
        finer = []
        for polygon, W, b in pieces:
            slope, shift = weight @ W, weight @ b + bias  # pre-activations: slope x + shift
            parts = [polygon]
            for s, t in zip(slope, shift, strict=True):
                parts = [p for part in parts for p in _cut(part, s, t)]
            for part in parts:
                on = (slope @ part.mean(0) + shift > 0).to(corners)
                finer.append((part, on[:, None] * slope, on * shift))
        pieces = finer
    weight, bias = _affine(layers[-1], corners)
    return [Region(polygon, (weight @ W)[0], (weight @ b + bias)[0]) for polygon, W, b in pieces]


def _affine(layer: nn.Linear, like: Tensor) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().to(like)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to(like)


def _cut(polygon: Tensor, slope: Tensor, shift: Tensor) -> list[Tensor]:
    """The parts of a convex polygon on the two sides of the line slope . x + shift = 0."""
    height = polygon @ slope + shift
    # Corners on the line stay on it: below this height there is nothing but rounding.
    tolerance = 1e3 * torch.finfo(polygon.dtype).eps * (polygon.abs() @ slope.abs() + shift.abs()).max()
    if (height >= -tolerance).all() or (height <= tolerance).all():
        return [polygon]
    above, below = [], []
    for i, (p, h) in enumerate(zip(polygon, height, strict=True)):
        q, g = polygon[i - 1], height[i - 1]
        if min(g, h) < -tolerance and max(g, h) > tolerance:
            crossing = q + (p - q) * (g / (g - h))
            above, below = [*above, crossing], [*below, crossing]
        if h >= -tolerance:
            above.append(p)
        if h <= tolerance:
            below.append(p)
    return [torch.stack(part) for part in (above, below) if len(part) >= 3]


def network_transform(regions: list[Region], k: Float[Tensor, "m 2"]) -> Complex[Tensor, " m"]:
    r"""Transform of a continuous piecewise linear function that vanishes on the outer boundary of its regions. Exact.

    Lemma 1: :math:`\tilde f(k)=-i\sum_P\frac{g_P\cdot k}{\|k\|^2}\,\tilde 1_P(k)` with the gradients :math:`g_P`.

    Raises:
        TypeError, ValueError: if there is no region, k does not fit or has a zero, or the function does not vanish outside.
    """
    if not regions:
        raise ValueError("regions: got none, expected the output of linear_regions")
    check_tensor("k", k, "(m, 2)")
    k = k.double()
    if not k.any(-1).all():
        raise ValueError("k: got a zero vector, where this formula divides by 0")
    _check_vanishes_outside(regions)
    total = torch.zeros(len(k), dtype=torch.complex128, device=k.device)
    for polygon, gradient, _ in regions:
        if gradient.any():
            total = total + (k @ gradient) * polygon_transform(polygon, k)
    return -1j * total / k.square().sum(-1)


def _check_vanishes_outside(regions: list[Region]) -> None:
    from scipy.spatial import ConvexHull

    corners = torch.cat([r.vertices for r in regions])
    values = torch.cat([r.vertices @ r.gradient + r.offset for r in regions]).abs()
    hull = torch.from_numpy(ConvexHull(corners.cpu().numpy()).equations).to(corners)  # the domain is convex
    edge = (corners @ hull[:, :2].T + hull[:, 2]).amax(1) > -1e-9 * corners.abs().max()
    if values[edge].max() > 1e-6 * values.max().clamp_min(1e-12):
        raise ValueError("regions: the function does not vanish on the outer boundary; its jump there would dominate")


def facets(regions: list[Region]) -> tuple[Float[Tensor, "facets 2"], Float[Tensor, " facets"]]:
    r"""Unit normals of the lines on which the gradient jumps, and length times jump there, strongest first. Exact.

    Along a normal n these lines give the slowest decay:
    :math:`\tilde f(kn)\to-k^{-2}\sum(\text{length}\times\text{jump})\,e^{-ikc}` over the lines n . x = c.

    Raises:
        ValueError: if there is no region.
    """
    if not regions:
        raise ValueError("regions: got none, expected the output of linear_regions")
    found: dict[tuple[float, float, float], list] = {}
    for polygon, gradient, _ in regions:
        for a, b in zip(polygon, polygon.roll(-1, 0), strict=True):
            length = (b - a).norm()
            normal = torch.stack([b[1] - a[1], a[0] - b[0]]) / length
            sign = 1.0 if (normal[0] > 1e-9 or (normal[0].abs() <= 1e-9 and normal[1] > 0)) else -1.0
            n = sign * normal
            key = tuple(round(float(v), 7) + 0.0 for v in (*n, n @ a))
            entry = found.setdefault(key, [n, torch.zeros_like(length)])
            entry[1] = entry[1] + length * (gradient @ normal)
    normals, strength = torch.stack([n for n, _ in found.values()]), torch.stack([s for _, s in found.values()]).abs()
    order = strength.argsort(descending=True)
    order = order[strength[order] > 1e-9]
    return normals[order], strength[order]


def decay_exponent(k: Float[Tensor, " m"], magnitude: Float[Tensor, " m"]) -> float:
    """Slope of log magnitude against log k, fitted to the upper envelope (largest magnitude at or beyond each k).

    Transforms oscillate through zeros, so that a fit to the raw magnitude is pulled down; the envelope is what bounds
    such as O(k^-2) speak of.

    Raises:
        TypeError, ValueError: if an input is not finite, k is not 8 or more rising numbers > 0, or magnitudes do not fit.
    """
    check_tensor("k", k, "(m,)")
    check_tensor("magnitude", magnitude, f"({len(k)},)")
    if len(k) < 8 or not (k[0] > 0 and (k.diff() > 0).all() and k[-1] > 4 * k[0]):
        raise ValueError("k: expected at least 8 positive, rising frequencies, over more than two octaves")
    if not (magnitude >= 0).all() or not (magnitude > 0).any():
        raise ValueError("magnitude: expected numbers >= 0, at least one of them positive")
    k, magnitude = k.double(), magnitude.double()
    envelope = magnitude.flip(0).cummax(0).values.flip(0)
    keep = (envelope > 0) & (k <= k[-1] / 2)  # the last octave has no future to take the maximum over
    if keep.sum() < 3:
        raise ValueError("k: expected at least three frequencies with a magnitude in the lower half of their range")
    x, y = (t - t.mean() for t in (k[keep].log(), envelope[keep].log()))
    return float(x @ y / (x @ x))
