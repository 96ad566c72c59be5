"""Exact transforms against closed forms, quadrature, invariances, and the networks themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import nn

from refimpl import polytopes
from refimpl.nets import mlp

F64 = torch.float64
SQUARE = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=F64)
DIAMOND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)
few = settings(max_examples=25, deadline=None, derandomize=True)


def network(seed, width=5, depth=3, dim_in=2):
    """A small network in float64 whose biases make its regions irregular."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = mlp(dim_in, 1, width=width, depth=depth).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, dtype=F64) / math.sqrt(p.shape[-1]))
    return net


def tent():
    """inside_tent of a constant that is above the tent: the pyramid max(0, 1 - |x_1| - |x_2|) itself."""
    high = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for p in high.parameters():
            p.zero_()
        high[2].bias.fill_(9.0)
    return polytopes.inside_tent(high)


numbers = st.floats(-3, 3, allow_nan=False).map(lambda v: round(v, 3))


@st.composite
def polygons(draw):
    """A convex polygon: points on a circle, stretched, turned and moved."""
    corners = draw(st.integers(3, 7))
    gaps = np.array(draw(st.lists(st.floats(0.2, 1), min_size=corners, max_size=corners)))
    angles = torch.tensor(2 * math.pi * np.cumsum(gaps) / gaps.sum())
    turn, stretch = draw(st.floats(0, 6)), draw(st.floats(0.3, 2))
    x = torch.stack([angles.cos() * stretch, angles.sin()], 1)
    c, s = math.cos(turn), math.sin(turn)
    return x @ torch.tensor([[c, s], [-s, c]], dtype=F64) + torch.tensor([draw(numbers), draw(numbers)], dtype=F64)


waves = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4).map(
    lambda rows: 3 * torch.tensor(rows, dtype=F64).view(-1, 2)
)


def test_unit_square_has_its_closed_form_also_head_on_and_at_zero():
    k = torch.tensor([[3.0, -2.0], [0.0, 5.0], [7.0, 0.0], [0.0, 0.0], [1e-7, 4.0], [-40.0, 31.0]], dtype=F64)

    def side(q):
        return torch.where(q == 0, torch.ones_like(q) + 0j, (1 - torch.exp(-1j * q)) / torch.where(q == 0, 1, 1j * q))

    transform = polytopes.polygon_transform((SQUARE + 1) / 2, k)
    torch.testing.assert_close(transform, side(k[:, 0]) * side(k[:, 1]), atol=1e-9, rtol=1e-9)


def test_triangle_agrees_with_scipy_quadrature():
    a, b, c = 0.7, 1.3, -0.4  # corners (0, 0), (b, 0), (c, a)
    triangle, k = torch.tensor([[0, 0], [b, 0], [c, a]], dtype=F64), (2.0, -3.0)

    def part(trig):
        def integrand(x, y):
            return trig(k[0] * x + k[1] * y)

        return integrate.dblquad(integrand, 0, a, lambda y: c * y / a, lambda y: b + (c - b) * y / a, epsabs=1e-11)[0]

    expected = part(math.cos) - 1j * part(math.sin)
    assert polytopes.polygon_transform(triangle, torch.tensor([k], dtype=F64)).item() == pytest.approx(
        expected, abs=1e-9
    )


@few
@given(polygons(), waves, st.tuples(numbers, numbers), st.floats(0.2, 3))
def test_translation_scaling_and_conjugation(polygon, k, by, scale):
    transform = polytopes.polygon_transform(polygon, k)
    moved = torch.tensor(by, dtype=F64)
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(
        polytopes.polygon_transform(polygon + moved, k), torch.exp(-1j * (k @ moved)) * transform, **close
    )
    torch.testing.assert_close(
        polytopes.polygon_transform(scale * polygon, k),
        scale**2 * polytopes.polygon_transform(polygon, scale * k),
        **close,
    )
    torch.testing.assert_close(polytopes.polygon_transform(polygon, -k), transform.conj(), **close)


@few
@given(polygons(), waves, st.integers(0, 6), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_the_parts_of_a_cut_polygon_add_up(polygon, k, at, s, t):
    polygon = polygon.roll(at, 0)
    p, q = polygon[0] + s * (polygon[1] - polygon[0]), polygon[2] + t * (polygon[(3) % len(polygon)] - polygon[2])
    one, other = (
        torch.stack([p, polygon[1], polygon[2], q]),
        torch.cat([torch.stack([q]), polygon[3:], polygon[:1], p[None]]),
    )
    total = sum(polytopes.polygon_transform(part, k) for part in (one, other))
    torch.testing.assert_close(total, polytopes.polygon_transform(polygon, k), atol=1e-9, rtol=1e-9)


def test_polygons_keep_their_precision():
    k = torch.tensor([[3.0, -2.0], [0.0, 5.0]])
    single, double = polytopes.polygon_transform(DIAMOND.float(), k), polytopes.polygon_transform(DIAMOND, k.double())
    assert (single.dtype, double.dtype) == (torch.complex64, torch.complex128)
    torch.testing.assert_close(single.to(double), double, atol=1e-6, rtol=1e-6)


@few
@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=5), st.integers(0, 1000), st.floats(0.3, 12))
def test_linear_pieces_agree_with_scipy_quadrature(gaps, seed, k):
    knots = torch.tensor([-1.0, *(-1 + np.cumsum(gaps))], dtype=F64)
    values = torch.randn(len(knots), dtype=F64, generator=torch.Generator().manual_seed(seed))

    def part(trig):
        rows = zip(knots[:-1].tolist(), knots[1:].tolist(), strict=True)
        return sum(
            integrate.quad(lambda x: np.interp(x, knots, values) * trig(k * x), a, b, epsabs=1e-12)[0] for a, b in rows
        )

    transform = polytopes.piecewise_linear_transform(knots, values, torch.tensor([k], dtype=F64)).item()
    assert transform == pytest.approx(part(math.cos) - 1j * part(math.sin), abs=1e-9)


def test_hat_has_its_closed_form_by_pieces_and_by_kinks():
    k = torch.linspace(-40, 40, 81, dtype=F64)
    k = k[k != 0]
    closed_form = ((k / 2).sin() / (k / 2)).square() + 0j
    pieces = polytopes.piecewise_linear_transform(*torch.tensor([[-1.0, 0, 1], [0, 1, 0]], dtype=F64), k)
    kinks = polytopes.shallow_relu_transform(*torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=F64), k)
    torch.testing.assert_close(pieces, closed_form, atol=1e-12, rtol=0)
    torch.testing.assert_close(kinks, closed_form, atol=1e-12, rtol=0)


def test_kinks_agree_with_second_differences():
    w, b, v = torch.randn(3, 12, dtype=F64, generator=torch.Generator().manual_seed(3))
    k = torch.tensor([0.5, 2.0, -5.0], dtype=F64)
    x = torch.arange(-300_000, 300_001, dtype=F64) * 1e-4  # all kinks lie inside
    assert (b / w).abs().max() < 29
    f = (v * torch.relu(x[:, None] * w + b)).sum(1)
    second = (f[2:] - 2 * f[1:-1] + f[:-2]) / 1e-4  # the integral of f'' over each cell
    expected = -(second * torch.exp(-1j * k[:, None] * x[1:-1])).sum(1) / k**2
    torch.testing.assert_close(polytopes.shallow_relu_transform(w, b, v, k), expected, atol=1e-6, rtol=1e-6)


def test_scaling_all_weights_of_a_bias_free_network_scales_its_transform():
    w, v = torch.randn(2, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    k, none = torch.tensor([1.0, 3.0], dtype=F64), torch.zeros(6, dtype=F64)
    plain = polytopes.shallow_relu_transform(w, none, v, k)
    torch.testing.assert_close(polytopes.shallow_relu_transform(3 * w, none, 3 * v, k), 9 * plain)


@few
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 4), st.booleans())
def test_regions_tile_the_square_and_are_the_network(seed, width, depth, bias):
    net = network(seed, width, depth)
    if not bias:
        for layer in net[::2]:
            layer.bias = None
    regions = polytopes.linear_regions(net, SQUARE)
    areas = [polytopes.polygon_transform(r.vertices, torch.zeros(1, 2, dtype=F64)).real.item() for r in regions]
    assert min(areas) > 0 and sum(areas) == pytest.approx(4, rel=1e-9)
    weights = torch.rand(20, dtype=F64, generator=torch.Generator().manual_seed(seed))
    for region, area in zip(regions, areas, strict=True):
        mix = weights[: len(region.vertices)] + 0.01
        x = (mix / mix.sum() @ region.vertices).requires_grad_()
        value = net(x)[0]
        torch.testing.assert_close(x.detach() @ region.gradient + region.offset, value.detach(), atol=1e-9, rtol=1e-9)
        if area > 1e-6:  # inside a sliver, the gradient at one point may be a neighbour's
            torch.testing.assert_close(region.gradient, torch.autograd.grad(value, x)[0], atol=1e-9, rtol=1e-9)


def test_lines_in_general_position_make_as_many_regions_as_counted():
    net = network(11, width=6, depth=2)
    w, b = net[0].weight.detach(), net[0].bias.detach()
    heights = SQUARE @ w.T + b
    crossing = [j for j in range(6) if heights[:, j].min() < 0 < heights[:, j].max()]
    inside = 0
    for i, j in ((i, j) for i in crossing for j in crossing if i < j):
        inside += bool((torch.linalg.solve(w[[i, j]], -b[[i, j]]).abs() < 1).all())
    assert len(crossing) >= 3 and inside >= 1
    assert len(polytopes.linear_regions(net, SQUARE)) == 1 + len(crossing) + inside


def test_scaling_the_layers_of_a_bias_free_network_scales_gradients():
    net = network(4, depth=3)
    for layer in net[::2]:
        layer.bias = None
    plain = polytopes.linear_regions(net, SQUARE)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    for a, b in zip(plain, polytopes.linear_regions(net, SQUARE), strict=True):
        torch.testing.assert_close(b.vertices, a.vertices)
        torch.testing.assert_close(b.gradient, 8 * a.gradient)


@pytest.mark.parametrize("domain", [SQUARE, DIAMOND, 3 * SQUARE, DIAMOND.float()])
def test_pyramid_has_its_known_values(domain):
    regions = polytopes.linear_regions(tent(), domain)
    k = torch.tensor([[3.0, -3.0], [4.0, 0.0], [5.0, 1.0]], dtype=F64)
    expected = torch.tensor([0.23045, 0.29730, 0.17221], dtype=F64) + 0j
    torch.testing.assert_close(polytopes.network_transform(regions, k), expected, atol=6e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_network_inside_the_tent_agrees_with_quadrature(seed):
    net = polytopes.inside_tent(network(seed, width=8, depth=2))
    m = 800
    axis = (torch.arange(m, dtype=F64) + 0.5) * 2 / m - 1
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        f = net(x)[:, 0]
        ceiling = torch.relu(1 - x.abs().sum(1))
        torch.testing.assert_close(f, torch.minimum(ceiling, torch.relu(network(seed, width=8, depth=2)(x)[:, 0])))
    k = torch.tensor([[3.0, 1.0], [-2.0, 6.0], [5.0, 5.0]], dtype=F64)
    quadrature = torch.stack([(f * torch.exp(-1j * (x @ q))).sum() for q in k]) * (2 / m) ** 2
    exact = polytopes.network_transform(polytopes.linear_regions(net, SQUARE), k)
    torch.testing.assert_close(exact, quadrature, atol=3e-5 * quadrature.abs().max().item(), rtol=0)


def test_single_precision_networks_are_cut_in_double_precision():
    net = polytopes.inside_tent(network(1, width=8, depth=2))
    k = torch.tensor([[3.0, 1.0], [20.0, -7.0]])
    exact = polytopes.network_transform(polytopes.linear_regions(net, SQUARE), k)
    single = polytopes.network_transform(polytopes.linear_regions(net.float(), SQUARE.float()), k)
    assert single.dtype == torch.complex128
    torch.testing.assert_close(single, exact, atol=1e-6, rtol=1e-5)


def test_a_function_that_jumps_at_the_edge_is_refused():
    sides = polytopes.linear_regions(network(0), DIAMOND)
    with pytest.raises(ValueError, match="regions.*does not vanish"):
        polytopes.network_transform(sides, torch.ones(1, 2, dtype=F64))
    # Zero at the diamond's corners, but not along its sides.
    bump = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        bump[0].weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]]))
        bump[0].bias.fill_(-1 + 2**0.5 / 2)
        bump[2].weight.fill_(1.0)
        bump[2].bias.fill_(-2 * bump[0](DIAMOND[:1]).clamp_min(0).max().item())
    regions = polytopes.linear_regions(bump, DIAMOND)
    assert bump(DIAMOND).abs().max() < 1e-12
    with pytest.raises(ValueError, match="regions.*does not vanish"):
        polytopes.network_transform(regions, torch.ones(1, 2, dtype=F64))


def test_facets_of_the_pyramid():
    normals, strengths = polytopes.facets(polytopes.linear_regions(tent(), SQUARE))
    # The two axes: length 2, jump 2. Each slanted direction: two parallel sides of length and jump sqrt(2), apart.
    torch.testing.assert_close(strengths, torch.tensor([4.0, 4, 2, 2, 2, 2], dtype=F64))
    torch.testing.assert_close(normals[:2].abs().sort(0).values, torch.eye(2, dtype=F64).sort(0).values)
    torch.testing.assert_close(normals[2:].abs(), torch.full((4, 2), 2**-0.5, dtype=F64))


def test_along_a_normal_the_transform_tends_to_what_its_facets_say():
    regions = polytopes.linear_regions(tent(), SQUARE)
    k = torch.tensor([[3e4, 0.0]], dtype=F64)  # the axis x_1 = 0, where the slope falls by 2 over a length of 2
    assert polytopes.network_transform(regions, k).item() * 9e8 == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("power", [-1.0, -2.0, -3.0])
def test_decay_exponent_is_that_of_the_envelope(power):
    k = torch.logspace(1, 4, 1500, dtype=F64)
    assert polytopes.decay_exponent(k, k**power) == pytest.approx(power, abs=1e-9)
    assert polytopes.decay_exponent(k, k**power * k.cos().abs()) == pytest.approx(power, abs=0.03)
