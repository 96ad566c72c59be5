"""Rational-quadratic splines: knots, smoothness, derivatives of any kind, and accuracy where parameters are wild."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refimpl.flows import SplineMap

F64 = torch.float64


def draw(tau: SplineMap, n: int, std: float, seed: int = 0, dtype=F64) -> tuple[Tensor, Tensor]:
    """Points in the box and raw parameters of standard deviation `std`, for n features."""
    generator = torch.Generator().manual_seed(seed)
    params = std * torch.randn(tau.num_params * n, dtype=F64, generator=generator)
    x = tau.bound * (2 * torch.rand(n, dtype=F64, generator=generator) - 1)
    return x.to(dtype), params.to(dtype)


def reference(tau: SplineMap, x: float, params: Tensor) -> tuple[float, float]:
    """One point in plain numbers, from Eqs. (4) and (5) of the paper as they stand there."""
    k, m = tau.bins, tau.smallest
    w, h, d = params.tolist()[:k], params.tolist()[k : 2 * k], params.tolist()[2 * k :]
    if abs(x) > tau.bound:
        return x, 0.0

    def sizes(raw: list[float]) -> list[float]:
        e = [math.exp(v - max(raw)) for v in raw]
        return [2 * tau.bound * (m + (1 - m * k) * v / sum(e)) for v in e]

    widths, heights = sizes(w), sizes(h)
    slopes = [1.0, *[m + math.log1p(math.exp(v + tau.slope_at_zero)) for v in d], 1.0]
    left, low, i = -tau.bound, -tau.bound, 0
    while i < k - 1 and x >= left + widths[i]:
        left, low, i = left + widths[i], low + heights[i], i + 1
    xi, s, d0, d1 = (x - left) / widths[i], heights[i] / widths[i], slopes[i], slopes[i + 1]
    below = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
    y = low + heights[i] * (s * xi**2 + d0 * xi * (1 - xi)) / below
    return y, math.log(s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / below**2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.floats(0.5, 20), st.floats(1e-4, 0.05), st.floats(-1.2, 1.2), st.floats(0, 2), st.integers(0)
)
def test_equations_of_the_paper(bins, bound, smallest, place, std, seed):
    tau = SplineMap(bins, bound, smallest)
    _, params = draw(tau, 1, std, seed % 2**31)
    x = torch.tensor([place * bound], dtype=F64)
    y, log_slope = tau.forward(x, params)
    expected, expected_log_slope = reference(tau, x.item(), params)
    assert abs(y.item() - expected) < 1e-9 * bound
    assert abs(log_slope.item() - expected_log_slope) < 1e-6


@pytest.mark.parametrize("bins", [1, 2, 8])
def test_knots(bins):
    """f(x_k) = y_k and f'(x_k) = d_k, from both sides; the box's corners are knots of slope 1."""
    tau = SplineMap(bins, 2.0)
    _, params = draw(tau, 5, 1.0)
    xs, ys, slopes = tau.knots(params)
    assert xs.shape == ys.shape == slopes.shape == (bins + 1, 5)
    corners = torch.tensor([-2.0, 2.0], dtype=F64)[:, None].expand(2, 5)
    for knots in (xs, ys):
        torch.testing.assert_close(knots[[0, -1]], corners)
        assert (knots.diff(dim=0) >= 4 * tau.smallest * (1 - 1e-9)).all()
    assert (slopes[[0, -1]] == 1).all() and (slopes >= tau.smallest).all()
    for side in (-1e-9, 0, 1e-9):
        y, log_slope = tau.forward(xs + side, params.expand(bins + 1, -1))
        torch.testing.assert_close(y, ys, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_slope.exp(), slopes, rtol=1e-3, atol=0)
        x, log_slope = tau.inverse(ys + side, params.expand(bins + 1, -1))
        torch.testing.assert_close(x, xs, rtol=0, atol=1e-4)
        torch.testing.assert_close((-log_slope).exp(), slopes, rtol=1e-3, atol=0)


def test_identity_at_zero_and_outside():
    tau = SplineMap(8, 3.0)
    x = torch.linspace(-5, 5, 41, dtype=F64)
    for way in (tau.forward, tau.inverse):
        y, log_slope = way(x, torch.zeros(41 * 23, dtype=F64))
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-12)
    far = torch.tensor([-1e30, -3.1, 3.1, math.inf], dtype=F64)
    for way in (tau.forward, tau.inverse):
        y, log_slope = way(far, 5 * torch.randn(4 * 23, dtype=F64))
        assert torch.equal(y, far) and torch.equal(log_slope, torch.zeros_like(far))


@pytest.mark.parametrize("dim", [-1, -3])
def test_features_may_be_channels(dim):
    tau = SplineMap(4)
    x, params = torch.randn(5, 2, 3, 4, dtype=F64), torch.randn(5, 22, 3, 4, dtype=F64)
    if dim == -1:
        x, params = x.movedim(1, -1), params.movedim(1, -1)
    for way in (tau.forward, tau.inverse):
        y, log_slope = way(x, params, dim)
        rows = x.movedim(dim, -1).reshape(-1, 2), params.movedim(dim, -1).reshape(-1, 22)
        alone = [way(a, b) for a, b in zip(*rows, strict=True)]
        torch.testing.assert_close(y.movedim(dim, -1).reshape(-1, 2), torch.stack([a for a, _ in alone]))
        torch.testing.assert_close(log_slope.movedim(dim, -1).reshape(-1, 2), torch.stack([b for _, b in alone]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's, in forward mode
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_derivatives(direction):
    """First and second ones, in forward and reverse mode, in points and parameters."""
    way = getattr(SplineMap(3), direction)
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor([[-4.0, 3.5, 0.3], [1.1, -2.2, 2.7]], dtype=F64, requires_grad=True)
    params = torch.randn(2, 24, dtype=F64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(way, (x, params), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(way, (x, params))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("std", [1.0, 3.0, 10.0])
def test_inverse_loses_what_rounding_takes_and_no_more(dtype, std):
    """With wild parameters some slopes are 1e-7, and there an error of x is out of reach: dx = dy / slope. But the point
    found must be mapped back onto y to a few units of the last place, in float32 too, and nothing may overflow."""
    tau = SplineMap(8, 3.0)
    x, params = draw(tau, 20000, std, dtype=dtype)
    y, log_slope = tau.forward(x, params)
    back, log_slope_back = tau.inverse(y, params)
    unit = 3 * torch.finfo(dtype).eps
    for value in (y, log_slope, back, log_slope_back):
        assert value.isfinite().all()
    assert (tau.forward(back, params)[0] - y).abs().max() < 50 * unit
    reachable = unit * (1 + (-log_slope).exp().clamp_min(1))
    assert ((back - x).abs() / reachable).max() < 20
    assert log_slope.min() < -5  # they are wild


@pytest.mark.parametrize("std", [0.0, 1.0, 10.0, 100.0])
def test_gradients_are_finite_everywhere(std):
    tau = SplineMap(8, 3.0)
    x, params = draw(tau, 2000, std, dtype=torch.float32)
    x = torch.cat([x[:1500], 2 * x[1500:1990], torch.tensor([-3.0, 3.0, 0.0, 9.0, -9.0] * 2)])
    for way in (tau.forward, tau.inverse):
        a, b = x.clone().requires_grad_(), params.clone().requires_grad_()
        y, log_slope = way(a, b)
        (y + log_slope).sum().backward()
        assert a.grad.isfinite().all() and b.grad.isfinite().all()
