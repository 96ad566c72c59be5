"""Fourier diagnostics, perturbations, Lipschitz bounds and the tangent kernel, each against an independent oracle."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import circulant
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import rbf_kernel
from torch import nn

from refimpl import runtime
from refimpl import spectral_bias as sb
from refimpl.data import flower, grid
from refimpl.nets import FourierFeatures, mlp

F64 = torch.float64


def seeded(seed, make):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=runtime.generator(seed))


@pytest.mark.parametrize(("dtype", "complex_dtype"), [(torch.float32, torch.complex64), (F64, torch.complex128)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_coefficients_are_those_of_numpy(batch, dtype, complex_dtype):
    y = normal(*batch, 15, dtype=dtype)
    got = sb.coefficients(y, [0, 3, 7])
    assert got.shape == (*batch, 3) and got.dtype == complex_dtype
    expected = np.fft.fft(y.double().numpy())[..., [0, 3, 7]] / 15
    torch.testing.assert_close(got.to(torch.complex128), torch.from_numpy(expected), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 31), st.floats(0.1, 5), st.floats(0, 6.28))
def test_a_sine_has_half_its_amplitude_in_its_own_bin(k, amplitude, phase):
    y = amplitude * torch.sin(2 * math.pi * k * grid(64).double() + phase)
    magnitude = sb.coefficients(y, range(32)).abs()
    assert magnitude[k].item() == pytest.approx(amplitude / 2, rel=1e-9)
    assert magnitude.sum().item() == pytest.approx(amplitude / 2, rel=1e-9)  # nothing leaks


def test_parseval():
    y = normal(33)
    power = sb.coefficients(y, range(17)).abs().square()
    assert (power[0] + 2 * power[1:].sum()).item() == pytest.approx(y.square().mean().item(), rel=1e-12)


def test_recovered_sees_amplitude_and_only_the_residual_sees_phase():
    z = grid(64).double()
    target = torch.sin(2 * math.pi * 3 * z) + 0.1 * torch.cos(2 * math.pi * 9 * z)
    y = torch.stack([0.5 * torch.sin(2 * math.pi * 3 * z), -target, target])
    magnitude, residual = (sb.recovered(y, target, [3, 9], kind=kind) for kind in ("magnitude", "residual"))
    torch.testing.assert_close(magnitude, torch.tensor([[0.5, 0], [1, 1], [1, 1]], dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(residual, torch.tensor([[0.5, 1], [2, 2], [0, 0]], dtype=F64), atol=1e-12, rtol=0)


def test_learning_order_is_the_rank_correlation_of_clipped_averages():
    history = 2 * torch.rand(50, 6, generator=runtime.generator(4))
    average, correlation = sb.learning_order(history, [1, 2, 3, 5, 8, 13])
    clipped = np.clip(history.numpy(), 0, 1).mean(0)
    np.testing.assert_allclose(average, clipped, rtol=1e-6)
    assert correlation == pytest.approx(spearmanr([1, 2, 3, 5, 8, 13], clipped).statistic)
    time = torch.arange(100)[:, None]
    staircase = (time > torch.tensor([10, 30, 50, 90])).float() * 1.3  # overshooting must not count
    assert sb.learning_order(staircase, [1, 2, 3, 4])[1] == -1
    assert sb.learning_order(staircase.flip(1), [1, 2, 3, 4])[1] == 1


def test_perturbation_robustness_is_the_mean_of_magnitudes_over_unit_directions():
    net, x, ks = seeded(0, lambda: mlp(1, 1, width=6, depth=3).double()), grid(16).double()[:, None], [1, 3]
    got = sb.perturbation_robustness(net, x, ks, [0, 0.7], num_draws=5, generator=runtime.generator(1))
    torch.testing.assert_close(got[0], torch.ones(2, dtype=F64))

    source, before = runtime.generator(1), nn.utils.parameters_to_vector(net.parameters()).detach()
    directions = [torch.randn(5, len(before), generator=source).double() for _ in range(2)][1]
    reference, rows = sb.coefficients(net(x)[:, 0].detach(), ks).abs(), []
    for u in directions:
        nn.utils.vector_to_parameters(before + 0.7 * u / u.norm(), net.parameters())
        rows.append(sb.coefficients(net(x)[:, 0].detach(), ks).abs() / reference)
    nn.utils.vector_to_parameters(before, net.parameters())
    torch.testing.assert_close(got[1], torch.stack(rows).mean(0), atol=1e-6, rtol=1e-6)


def test_perturbation_leaves_the_network_alone():
    net = seeded(0, lambda: mlp(1, 1, width=6, depth=3))
    before = [p.clone() for p in net.parameters()]
    sb.perturbation_robustness(net, grid(16)[:, None], [1], [3.0], num_draws=2)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 12), st.integers(1, 3), st.floats(0.3, 3))
def test_slope_spectral_norms_and_max_norm_come_in_this_order(seed, depth, width, dim, scale):
    net = seeded(seed, lambda: mlp(dim, 1, width=width, depth=depth).double())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    slope = sb.local_slope(net, 3 * normal(200, dim, seed=seed)).max().item()
    spectral, max_norm = sb.lipschitz_bound(net), sb.lipschitz_bound(net, "max_norm")
    assert slope <= spectral * (1 + 1e-12) and spectral <= max_norm * (1 + 1e-12)


def test_the_chain_is_an_equality_for_aligned_layers_of_rank_one():
    u = [torch.nn.functional.normalize(normal(n, seed=n), dim=0) for n in (3, 5, 4, 1)]
    net = nn.Sequential(*(nn.Linear(len(a), len(b)) for a, b in zip(u, u[1:], strict=False))).double()
    with torch.no_grad():
        for layer, a, b, s in zip(net, u, u[1:], (2.0, 3.0, 0.5), strict=False):
            layer.weight.copy_(s * torch.outer(b, a))
    assert sb.lipschitz_bound(net) == pytest.approx(3.0, rel=1e-12)
    assert sb.local_slope(net, normal(4, 3)).tolist() == pytest.approx([3.0] * 4, rel=1e-12)


def test_max_norm_is_an_equality_where_all_weights_are_equal():
    net = mlp(3, 1, width=7, depth=4).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.2)
    assert sb.lipschitz_bound(net, "max_norm") == pytest.approx(0.2**4 * math.sqrt(3) * 7**3, rel=1e-12)
    assert sb.lipschitz_bound(net) == pytest.approx(sb.lipschitz_bound(net, "max_norm"), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_local_slope_is_the_norm_of_the_difference_quotient(dtype):
    net = seeded(1, lambda: mlp(3, 1, width=8, depth=3)).to(dtype)
    x = normal(10, 3, dtype=dtype)
    slope = sb.local_slope(net, x)
    assert slope.shape == (10,) and slope.dtype == dtype
    net, x, h = net.double(), x.double(), 1e-7
    with torch.no_grad():
        quotients = [(net(x + h * e) - net(x - h * e)) / (2 * h) for e in torch.eye(3, dtype=F64)]
    expected = torch.cat(quotients, 1).norm(dim=1)
    torch.testing.assert_close(slope.double(), expected, atol=1e-6, rtol=1e-5)


def test_eigenbasis_is_that_of_scikit_learns_kernel_smooth_first():
    x = normal(30, 4)
    values, vectors = sb.gaussian_kernel_eigenbasis(x, 1.5)
    kernel = torch.from_numpy(rbf_kernel(x.numpy(), gamma=1 / (2 * 1.5**2)))
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(kernel @ vectors, vectors * values, atol=1e-10, rtol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(30, dtype=F64), atol=1e-10, rtol=0)
    _, on_a_line = sb.gaussian_kernel_eigenbasis(grid(50)[:, None], 0.1)
    dominant = torch.fft.rfft(on_a_line[:, :20].T).abs().argmax(1)
    assert spearmanr(range(20), dominant).statistic > 0.9


def test_tangent_kernel_is_the_gram_matrix_of_parameter_gradients():
    net, x = seeded(2, lambda: mlp(2, 1, width=9, depth=3)), normal(6, 2, dtype=torch.float32)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(y, net.parameters(), retain_graph=True)]) for y in net(x)
    ]
    kernel = sb.empirical_ntk(net, x)
    assert kernel.dtype == F64
    torch.testing.assert_close(kernel, (torch.stack(rows) @ torch.stack(rows).T).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sb.empirical_ntk(nn.Linear(2, 1), x), (x @ x.T + 1).double(), atol=1e-6, rtol=1e-6)


def test_circulant_energies_are_the_eigenvalues_of_a_circulant_kernel():
    column = np.exp(-(np.minimum(np.arange(16), 16 - np.arange(16)) ** 2) / 9)
    kernel = torch.from_numpy(circulant(column))
    got = sb.circulant_energy(kernel, range(8))
    np.testing.assert_allclose(got, np.fft.fft(column).real[:8], atol=1e-12)


def test_kernel_on_the_circle_turns_circulant_as_the_network_widens():
    circle = flower(grid(24), petals=0)

    def deviation(width, seed):
        kernel = sb.empirical_ntk(seeded(seed, lambda: mlp(2, 1, width=width, depth=2)), circle)
        mean = torch.stack([kernel.roll((-i, -i), (0, 1))[0] for i in range(24)]).mean(0)
        return (kernel - torch.from_numpy(circulant(mean.numpy())).T).square().mean().sqrt() / mean[0]

    narrow, wide = (sum(deviation(width, seed) for seed in range(6)) for width in (64, 4096))
    assert 5 < narrow / wide < 13  # sqrt(4096 / 64) = 8


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_prediction_is_exact_for_a_model_linear_in_its_parameters(dtype):
    x, y = normal(20, 1), normal(20, seed=1)
    net = nn.Sequential(FourierFeatures(1, 8, sigma=1, generator=runtime.generator(0)), nn.Linear(16, 1)).double()
    kernel, lr = sb.empirical_ntk(net, x), 0.5
    start = (net(x)[:, 0] - y).detach()
    predicted = sb.linearized_residual(kernel, start.to(dtype), lr=lr, steps=[0, 1, 7, 60])
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=lr), []
    for step in range(61):
        residual = net(x)[:, 0] - y
        if step in (0, 1, 7, 60):
            seen.append(residual.detach())
        optimizer.zero_grad()
        (residual.square().mean() / 2).backward()
        optimizer.step()
    assert predicted.dtype == dtype
    tolerance = 1e-10 if dtype == F64 else 1e-5
    torch.testing.assert_close(predicted.double(), torch.stack(seen), atol=tolerance, rtol=0)


def test_prediction_tends_to_gradient_flow():
    basis = torch.linalg.qr(normal(5, 5)).Q
    rates, start = torch.tensor([0.0, 0.5, 1, 2, 4], dtype=F64), normal(5, seed=2)
    kernel = basis @ rates.diag() @ basis.T
    fine = sb.linearized_residual((kernel + kernel.T) / 2, start, lr=1e-4, steps=[30_000])[0]
    torch.testing.assert_close(fine, basis @ (torch.exp(-rates * 3 / 5) * (basis.T @ start)), atol=2e-4, rtol=0)
