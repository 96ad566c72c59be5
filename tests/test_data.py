"""Signals and curves by their spectra, label noise by its moments, digits by their source."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from refimpl import runtime
from refimpl import spectral_bias as sb
from refimpl.data import digits, flower, grid, radial_noise, sum_of_sines

F64 = torch.float64


def test_grid_is_numpys_without_end_point():
    np.testing.assert_allclose(grid(7), np.linspace(0, 1, 7, endpoint=False), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_signals_have_their_amplitudes_and_nothing_else(dtype):
    signals = sum_of_sines(grid(64).to(dtype), [3, 8], [0.5, 2], num_signals=4, generator=runtime.generator(0))
    assert signals.shape == (4, 64) and signals.dtype == dtype
    spectrum = sb.coefficients(signals, range(32)).abs()
    expected = torch.zeros(4, 32, dtype=dtype)
    expected[:, 3], expected[:, 8] = 0.25, 1
    torch.testing.assert_close(spectrum, expected, atol=1e-5, rtol=0)


def test_phases_are_uniform_independent_and_reproducible():
    one, same = (
        sum_of_sines(grid(16).double(), [2, 5], num_signals=4000, generator=runtime.generator(3)) for _ in range(2)
    )
    assert torch.equal(one, same)
    directions = sb.coefficients(one, [2, 5]) * 2  # each of length 1, at the angle of its phase
    assert directions.mean(0).abs().max() < 0.06  # 4 / sqrt(4000)
    assert (directions[:, 0] * directions[:, 1].conj()).mean().abs() < 0.06


def test_the_same_phases_whatever_the_positions():
    z = grid(32).double()
    a, b = (sum_of_sines(t, [1, 4], generator=runtime.generator(1)) for t in (z, z[5:9]))
    torch.testing.assert_close(a[:, 5:9], b)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(3, 20))
def test_a_coordinate_has_three_frequencies_along_a_flower(petals):
    spectrum = 2 * sb.coefficients(flower(grid(64).double(), petals)[:, 0], range(32)).abs()
    expected = torch.zeros(32, dtype=F64)
    expected[1], expected[petals - 1], expected[petals + 1] = 1, expected[petals - 1] + 0.25, 0.25
    if petals > 2:
        torch.testing.assert_close(spectrum, expected, atol=1e-12, rtol=0)


def test_a_flower_is_a_circle_without_petals_and_grows_longer_with_each():
    z = grid(4000).double()
    lengths = [(flower(z, petals).roll(-1, 0) - flower(z, petals)).norm(dim=1).sum().item() for petals in range(8)]
    assert lengths[0] == pytest.approx(2 * math.pi, rel=1e-5) and (np.diff(lengths) > 0).all()
    torch.testing.assert_close(flower(z, 0).norm(dim=1), torch.ones(4000, dtype=F64))


def test_radial_noise_is_a_sine_of_the_norm():
    x = torch.tensor([[0.0, 0.25], [3.0, 4.0]], dtype=F64)
    torch.testing.assert_close(radial_noise(x, 1), torch.tensor([1.0, 0.0], dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("frequency", [0.05, 1, 4.0])
def test_equalised_noise_has_mean_zero_and_half_power_on_its_reference(frequency):
    x = torch.randn(300, 8, generator=runtime.generator(0))
    noise = radial_noise(x, frequency, reference=x)
    assert noise.mean().abs() < 1e-4 and noise.square().mean().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(radial_noise(x[:7], frequency, reference=x), noise[:7])


def test_digits_are_scikit_learns_in_their_order():
    bunch = load_digits()
    x, y = digits()
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() == 1
    np.testing.assert_array_equal(16 * x, bunch.data)
    np.testing.assert_array_equal(y, bunch.target)
    x38, y38 = digits((8, 3))
    keep = (y == 3) | (y == 8)
    assert torch.equal(x38, x[keep]) and torch.equal(y38, y[keep])
