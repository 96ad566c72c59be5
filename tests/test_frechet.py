"""The distance of Gaussian fits against closed forms and scipy's matrix root."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from refimpl import runtime
from refimpl.metrics import frechet_distance

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_agrees_with_the_general_matrix_root(dim, seed):
    x = normal(40, dim, seed=seed) @ normal(dim, dim, seed=seed + 1)
    y = normal(50, dim, seed=seed + 2) @ normal(dim, dim, seed=seed + 3) + 1
    a, b = (np.cov(v.numpy().T, bias=True).reshape(dim, dim) for v in (x, y))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_shift_costs_its_square_and_a_scale_its_share():
    x, shift = normal(30, 3), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    assert frechet_distance(x, x + shift).item() == pytest.approx(shift.square().sum().item(), rel=1e-9)
    centred = x - x.mean(0)
    spread = centred.square().sum(1).mean().item()  # trace of the covariance, divided by n
    assert frechet_distance(centred, 3 * centred).item() == pytest.approx(4 * spread, rel=1e-9)


def test_symmetric_and_invariant_under_rotations_and_shuffling():
    x, y = normal(30, 4), 2 * normal(25, 4, seed=1) + 1
    q = torch.linalg.qr(normal(4, 4, seed=2)).Q
    value = frechet_distance(x, y).item()
    assert frechet_distance(y, x).item() == pytest.approx(value, rel=1e-9)
    assert frechet_distance(x @ q, y @ q).item() == pytest.approx(value, rel=1e-9)
    assert frechet_distance(x.flip(0), y).item() == pytest.approx(value, rel=1e-12)


def test_singular_covariances_and_large_offsets_in_single_precision():
    flat = normal(20, 1) * torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    assert frechet_distance(flat, flat).item() == pytest.approx(0, abs=1e-7)
    x = normal(1000, 2)
    far = frechet_distance((x + 1000).float(), (2 * x + 1000).float()).item()
    assert far == pytest.approx(frechet_distance(x, 2 * x).item(), rel=1e-2)


def test_the_dtype_follows_the_input():
    assert frechet_distance(torch.zeros(3, 2), torch.ones(4, 2)).dtype == torch.float32
    assert math.isclose(frechet_distance(torch.zeros(3, 2), torch.ones(4, 2)).item(), 2.0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(3, 2), "x: got shape .1, 2., expected at least 2"),
        (torch.zeros(3, 2), torch.zeros(3, 4), "y: got dim 4"),
        (torch.zeros(3), torch.zeros(3, 2), "x: got .3,., expected a floating-point tensor of shape .samples, dim."),
        (torch.zeros(3, 2), torch.full([3, 2], math.nan), "y: has values that are not finite"),
    ],
)
def test_bad_samples_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
