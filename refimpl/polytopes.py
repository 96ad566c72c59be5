r"""Exact Fourier transforms of piecewise linear functions, up to ReLU networks on the plane.

Convention: :math:`\tilde f(k)=\int f(x)\,e^{-ik\cdot x}\,dx` with angular frequency k (radians per unit of x).
Source: Rahaman et al. 2019 (arXiv 1806.08734), Lemma 1 (with the sign -i, which its own convention asks for), Lemma 2
and Theorem 1; the recursion over faces is that of Diaz, Le and Robins 2016 (arXiv 1602.08593).
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

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
    """A convex polygon on which a network is the affine map x -> gradient . x + offset.

    Attributes:
        vertices: corners in counter-clockwise order, shape (corners, 2).
        gradient: shape (2,).
        offset: shape ().
    """

    vertices: Tensor
    gradient: Tensor
    offset: Tensor


def piecewise_linear_transform(
    knots: Float[Tensor, " n"], values: Float[Tensor, " n"], k: Float[Tensor, " m"]
) -> Complex[Tensor, " m"]:
    r"""Transform of the function that joins (knots, values) by straight lines and vanishes outside. Exact.

    On a piece with slope s, :math:`\int f e^{-ikx}dx=[e^{-ikx}(i f/k+s/k^2)]` between its ends.

    Raises:
        ValueError: if there are fewer than two knots, they do not rise, values do not match, or some k is 0.
    """
    if knots.ndim != 1 or len(knots) < 2 or not (knots.diff() > 0).all():
        raise ValueError(f"knots: got shape {tuple(knots.shape)}, expected at least two rising numbers")
    if values.shape != knots.shape:
        raise ValueError(f"values: got shape {tuple(values.shape)}, expected {tuple(knots.shape)}")
    if (k == 0).any():
        raise ValueError("k: got a zero, where the transform is the integral of f and this formula divides by 0")
    phase = torch.exp(-1j * k[:, None] * knots)  # (m, n)
    slope = values.diff() / knots.diff()
    ends = phase[:, 1:] * (1j * values[1:] / k[:, None] + slope / k[:, None] ** 2)
    starts = phase[:, :-1] * (1j * values[:-1] / k[:, None] + slope / k[:, None] ** 2)
    return (ends - starts).sum(-1)


def shallow_relu_transform(
    w: Float[Tensor, " width"], b: Float[Tensor, " width"], v: Float[Tensor, " width"], k: Float[Tensor, " m"]
) -> Complex[Tensor, " m"]:
    r"""Transform of :math:`\sum_j v_j\,\mathrm{relu}(w_jx+b_j)` away from k = 0: a sum over its kinks. Exact.

    :math:`\tilde f(k)=-\frac1{k^2}\sum_j v_j|w_j|e^{-ikt_j}` with kinks :math:`t_j=-b_j/w_j`, because f'' is a sum of deltas.

    Raises:
        ValueError: if shapes differ, some w is 0 (no kink), or some k is 0.
    """
    if not (w.shape == b.shape == v.shape and w.ndim == 1):
        raise ValueError(f"b, v: got {tuple(b.shape)}, {tuple(v.shape)}, expected vectors like w, {tuple(w.shape)}")
    if (w == 0).any():
        raise ValueError("w: got a zero weight; such a unit is constant and has no kink")
    if (k == 0).any():
        raise ValueError("k: got a zero, where the transform of an unbounded function does not exist")
    kinks = -b / w
    return -((v * w.abs()) * torch.exp(-1j * k[:, None] * kinks)).sum(-1) / k**2


def polygon_transform(vertices: Float[Tensor, "corners 2"], k: Float[Tensor, "m 2"]) -> Complex[Tensor, " m"]:
    r"""Transform of the indicator function of a polygon: the divergence theorem once, then its sides in closed form.

    :math:`\tilde 1_P(k)=\sum_{\text{sides}} \frac{i\,k\cdot n}{\|k\|^2}\,\ell\,\mathrm{sinc}\big(\tfrac{k\cdot(b-a)}2\big)\,e^{-ik\cdot(a+b)/2}`
    for sides from a to b of length :math:`\ell` with outward normal n; the area at k = 0. The sinc covers k orthogonal
    to a side, where the recursion over faces stops early and the decay is slowest. Exact; use float64.

    Args:
        vertices: corners in counter-clockwise order, shape (corners, 2).
        k: angular frequencies, shape (m, 2).

    Raises:
        ValueError: if there are fewer than three corners, their order is clockwise, or k is not of shape (m, 2).

    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> polygon_transform(square, torch.zeros(1, 2)).real
    tensor([1.])
    """
    if vertices.ndim != 2 or vertices.shape[1] != 2 or len(vertices) < 3:
        raise ValueError(f"vertices: got shape {tuple(vertices.shape)}, expected at least three corners, (corners, 2)")
    if k.ndim != 2 or k.shape[1] != 2:
        raise ValueError(f"k: got shape {tuple(k.shape)}, expected (m, 2)")
    a, b = vertices, vertices.roll(-1, 0)
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    if area < 0:
        raise ValueError("vertices: got clockwise order, expected counter-clockwise")
    side = b - a
    normal = torch.stack([side[:, 1], -side[:, 0]], -1)  # outward, as long as the side
    half = k @ side.T / 2  # (m, sides)
    side_transform = torch.sinc(half / torch.pi) * torch.exp(-1j * (k @ (a + b).T) / 2)
    square = k.square().sum(-1)
    total = (1j * (k @ normal.T) * side_transform).sum(-1) / torch.where(square > 0, square, 1.0)
    return torch.where(square > 0, total, area.to(total.dtype))


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
    weight, width = net[0].weight.detach(), net[0].out_features
    layers = [nn.Linear(a, b).to(weight) for a, b in ((2, width + 4), (width + 4, 2), (2, 2), (2, 1))]
    first, second, third, last = layers
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[:4] = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).to(weight)
        first.weight[4:], first.bias[4:] = weight, net[0].bias
        second.weight[0, :4], second.bias[0] = -1, 1  # tent
        second.weight[1, 4:], second.bias[1] = net[2].weight[0], net[2].bias[0]
        third.weight.copy_(torch.tensor([[1, 0], [1, -1]]))  # tent, tent - relu(net)
        last.weight.copy_(torch.tensor([[1, -1]]))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last)


def linear_regions(net: nn.Sequential, corners: Float[Tensor, "corners 2"]) -> list[Region]:
    """Cut a convex polygon into the regions on which a ReLU network of two inputs and one output is affine. Exact.

    Layer by layer: on a region the pre-activation of a unit is affine, so its zero line cuts the region in two.

    Args:
        net: alternating ``nn.Linear`` and ``nn.ReLU`` modules, 2 inputs, 1 output.
        corners: the polygon's corners in counter-clockwise order, shape (corners, 2).

    Raises:
        ValueError: if ``net`` has another form.
    """
    layers = [m for m in net if isinstance(m, nn.Linear)]
    if [type(m) for m in net] != [t for _ in layers for t in (nn.Linear, nn.ReLU)][:-1]:
        raise ValueError("net: expected nn.Linear and nn.ReLU in turn, beginning and ending with nn.Linear")
    if layers[0].in_features != 2 or layers[-1].out_features != 1:
        raise ValueError(
            f"net: got {layers[0].in_features} inputs, {layers[-1].out_features} outputs, expected 2 and 1"
        )
    # Each entry is (polygon, W, b): the layer's input on this polygon is W x + b.
    pieces = [(corners, torch.eye(2).to(corners), torch.zeros(2).to(corners))]
    for layer in layers[:-1]:
        weight, bias = layer.weight.detach().to(corners), layer.bias.detach().to(corners)
        finer = []
        for polygon, W, b in pieces:
            slope, shift = weight @ W, weight @ b + bias  # pre-activations: slope x + shift
            for part in _cut_by_lines(polygon, slope, shift):
                on = (slope @ part.mean(0) + shift > 0).to(corners)
                finer.append((part, on[:, None] * slope, on * shift))
        pieces = finer
    weight, bias = layers[-1].weight.detach().to(corners), layers[-1].bias.detach().to(corners)
    return [Region(polygon, (weight @ W)[0], (weight @ b + bias)[0]) for polygon, W, b in pieces]


def _cut_by_lines(polygon: Tensor, slope: Tensor, shift: Tensor) -> list[Tensor]:
    """Parts of a convex polygon between the lines slope_j . x + shift_j = 0."""
    parts = [polygon]
    for s, t in zip(slope, shift, strict=True):
        parts = [p for part in parts for p in _cut(part, part @ s + t)]
    return parts


def _cut(polygon: Tensor, height: Tensor, tolerance: float = 1e-12) -> list[Tensor]:
    """The parts of a convex polygon with height > 0 and < 0, for an affine height given at its corners."""
    if (height >= -tolerance).all() or (height <= tolerance).all():
        return [polygon]
    above, below = [], []
    for i, (p, h) in enumerate(zip(polygon, height, strict=True)):
        q, g = polygon[i - 1], height[i - 1]
        if (h > tolerance and g < -tolerance) or (h < -tolerance and g > tolerance):
            crossing = q + (p - q) * (g / (g - h))
            above.append(crossing)
            below.append(crossing)
        if h >= -tolerance:
            above.append(p)
        if h <= tolerance:
            below.append(p)
    return [torch.stack(part) for part in (above, below) if len(part) >= 3]


def network_transform(regions: list[Region], k: Float[Tensor, "m 2"]) -> Complex[Tensor, " m"]:
    r"""Transform of a continuous piecewise linear function that vanishes on the outer boundary of its regions. Exact.

    Lemma 1: :math:`\tilde f(k)=-i\sum_P\frac{g_P\cdot k}{\|k\|^2}\,\tilde 1_P(k)` with the gradients :math:`g_P`.

    Raises:
        ValueError: if there is no region, some k is 0, or the function does not vanish on the outer boundary.
    """
    if not regions:
        raise ValueError("regions: got none, expected the output of linear_regions")
    if k.ndim != 2 or k.shape[1] != 2 or (k == 0).all(-1).any():
        raise ValueError(f"k: got shape {tuple(k.shape)}, expected non-zero vectors, (m, 2)")
    _check_vanishes_outside(regions)
    total = torch.zeros(len(k), dtype=torch.complex128, device=k.device)
    for polygon, gradient, _ in regions:
        if gradient.any():
            total = total + (k @ gradient) * polygon_transform(polygon, k)
    return -1j * total / k.square().sum(-1)


def _check_vanishes_outside(regions: list[Region]) -> None:
    corners = torch.cat([r.vertices for r in regions])
    values = torch.cat([r.vertices @ r.gradient + r.offset for r in regions])
    edge = (corners <= corners.amin(0) + 1e-9).any(-1) | (corners >= corners.amax(0) - 1e-9).any(-1)
    if values[edge].abs().max() > 1e-6 * values.abs().max().clamp_min(1e-12):
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
    normals = torch.stack([n for n, _ in found.values()])
    strength = torch.stack([s for _, s in found.values()]).abs()
    order = strength.argsort(descending=True)
    order = order[strength[order] > 1e-9]
    return normals[order], strength[order]


def decay_exponent(k: Float[Tensor, " m"], magnitude: Float[Tensor, " m"]) -> float:
    """Slope of log magnitude against log k, fitted to the upper envelope (largest magnitude at or beyond each k).

    Transforms oscillate through zeros, so that a fit to the raw magnitude is pulled down; the envelope is what bounds
    such as O(k^-2) speak of.

    Raises:
        ValueError: if shapes differ, k is not positive and rising, or no magnitude is positive.
    """
    if k.shape != magnitude.shape or k.ndim != 1 or len(k) < 8:
        raise ValueError(
            f"magnitude: got {tuple(magnitude.shape)} for k {tuple(k.shape)}, expected two equal vectors (>= 8)"
        )
    if not ((k > 0).all() and (k.diff() > 0).all()):
        raise ValueError("k: expected positive, rising frequencies")
    if not (magnitude > 0).any():
        raise ValueError("magnitude: expected at least one positive number")
    envelope = magnitude.flip(0).cummax(0).values.flip(0)
    keep = (envelope > 0) & (k <= k[-1] / 2)  # the last octave has no future to take the maximum over
    x, y = k[keep].log(), envelope[keep].log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
