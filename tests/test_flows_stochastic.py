"""Stochastic flows: weights against integrals on a grid; the wrong Delta S is noticed."""

import math

import pytest
import torch

from refimpl import runtime
from refimpl.flows import (
    HMC,
    AffineMap,
    Diagonal,
    Kernel,
    Langevin,
    Metropolis,
    StandardNormal,
    StochasticFlow,
    coupling_flow,
    effective_sample_size,
    interpolate,
    log_mean_weight,
)

F64 = torch.float64


def double_well(x):
    return x[..., 0] ** 4 / 4 - 3 * x[..., 0] ** 2 + x[..., 0] / 2 + x[..., 1] ** 2


def wide(x):
    """Energy of 2 N(0, I), whose integral is 8 pi."""
    return x.square().sum(-1) / 8


def integrals():
    """log Z and P(x_0 > 0) of the double well, by quadrature."""
    x = torch.linspace(-7, 7, 200_001, dtype=F64)
    weights = torch.exp(-(x**4 / 4 - 3 * x**2 + x / 2))
    z = torch.trapezoid(weights, x)
    return (z.log() + 0.5 * math.log(math.pi)).item(), (weights[x > 0].sum() / weights.sum()).item()


def annealed(kernel, step, num=20, num_steps=1):
    kernels = [kernel(interpolate(wide, double_well, (i + 1) / num), step, num_steps) for i in range(num)]
    stretch = Diagonal(2, scale=0.5)  # data -> latent; base samples come out twice as wide
    return StochasticFlow([stretch, *kernels], StandardNormal([2]), double_well).double()


class Forgetful(Metropolis):
    """Returns no work, as if the moves did not matter."""

    def move(self, x, generator):
        new, delta = super().move(x, generator)
        return new, torch.zeros_like(delta)


class WrongSign(Langevin):
    def move(self, x, generator):
        new, delta = super().move(x, generator)
        return new, -delta


def z_score(log_w, log_z):
    w = (log_w - log_z).exp()
    return ((w.mean() - 1) / (w.std() / math.sqrt(len(w)))).item()


def test_the_integral_is_the_known_one():
    assert integrals()[0] == pytest.approx(10.568, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel", "step", "right"),
    [
        (Langevin, 0.02, True),
        (Metropolis, 0.5, True),
        (HMC, 0.1, True),
        (Forgetful, 0.5, False),
        (WrongSign, 0.02, False),
    ],
)
def test_mean_weight_is_the_partition_function_only_with_the_right_work(kernel, step, right):
    log_z, share = integrals()
    flow = annealed(kernel, step)
    x, log_w = flow.sample([20_000], runtime.generator(3))
    if not right:
        assert abs(log_mean_weight(log_w) - log_z) > 0.5
        return
    assert abs(z_score(log_w, log_z)) < 4
    assert abs(log_mean_weight(log_w) - log_z) < 0.12
    w = log_w.softmax(0)
    assert (w * (x[:, 0] > 0)).sum() == pytest.approx(share, abs=0.02)


@torch.no_grad()
def test_random_steps_raise_the_effective_sample_size():
    generator = runtime.generator(4)
    plain = StochasticFlow([Diagonal(2, scale=0.5)], StandardNormal([2]), double_well).double()
    few, many = [
        effective_sample_size(f.sample([20_000], generator)[1]) for f in (plain, annealed(Metropolis, 0.7, 50))
    ]
    assert many > 1.5 * few


@torch.no_grad()
@pytest.mark.parametrize("kernel", [Metropolis, HMC])
def test_exact_kernels_keep_their_density(kernel):
    """A sample of the kernel's own stationary law keeps its moments, and moves."""
    scale = torch.tensor([1.0, 0.5], dtype=F64)
    move = kernel(lambda x: 0.5 * (x / scale).square().sum(-1), 0.6, 10)
    x = torch.randn(40_000, 2, dtype=F64, generator=runtime.generator(5)) * scale
    new, delta = move(x, runtime.generator(6))
    torch.testing.assert_close(new.var(0), scale**2, rtol=0.04, atol=0)
    torch.testing.assert_close((new**4).mean(0), 3 * scale**4, rtol=0.1, atol=0)
    assert torch.corrcoef(torch.stack([x[:, 0], new[:, 0]]))[0, 1] < 0.7
    torch.testing.assert_close(delta, move.energy(new) - move.energy(x))


@torch.no_grad()
def test_with_exact_moves_at_the_target_and_an_exact_map_all_weights_are_equal():
    def target(x):
        return 0.5 * (x / 3).square().sum(-1)

    flow = StochasticFlow([Diagonal(2, scale=1 / 3), Metropolis(target, 1.0, 7)], StandardNormal([2]), target).double()
    log_w = flow.sample([100], runtime.generator(7))[1]
    torch.testing.assert_close(log_w, torch.full_like(log_w, math.log(2 * math.pi * 9)))
    assert effective_sample_size(log_w) == pytest.approx(1)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [Langevin, Metropolis])
def test_paths_backwards_from_data_have_weights_of_mean_inverse(kernel):
    """1 / E[1 / w] over data of the target is Z too: here a normal of width 2, Z = 8 pi."""
    data = 2 * torch.randn(20_000, 2, dtype=F64, generator=runtime.generator(8))
    kernels = [kernel(interpolate(lambda x: 0.5 * x.square().sum(-1), wide, w), 0.3) for w in (0.25, 0.5, 0.75, 1)]
    flow = StochasticFlow([Diagonal(2, scale=0.8), *kernels], StandardNormal([2]), wide).double()
    log_w = flow.log_weight(data, runtime.generator(9))
    assert abs(z_score(-log_w, -math.log(8 * math.pi))) < 4
    assert log_w.std() > 0.1


def test_training_on_paths_raises_their_weights():
    torch.manual_seed(0)
    layers = [coupling_flow(2, AffineMap(), 2, width=16), Langevin(interpolate(wide, double_well, 0.5), 0.02)]
    flow = StochasticFlow(layers, StandardNormal([2]), double_well)
    optimizer, means = torch.optim.Adam(flow.parameters(), lr=0.01), []
    for i in range(60):
        log_w = flow.sample([256], runtime.generator(i))[1]
        optimizer.zero_grad()
        (-log_w.mean()).backward()
        optimizer.step()
        means.append(log_w.mean().item())
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.5
    assert sum(means[-5:]) / 5 < integrals()[0]  # Jensen: E log w <= log Z


def test_effective_sample_size_counts_equal_weights():
    log_w = torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=F64) + 300
    assert effective_sample_size(log_w) == pytest.approx(0.5)
    assert log_mean_weight(log_w) == pytest.approx(300 - math.log(2))


def test_shapes_and_bad_arguments():
    flow = annealed(Langevin, 0.1, 2)
    for shape in ((), (0,), (2, 3)):
        x, log_w = flow.sample(shape)
        assert x.shape == (*shape, 2) and log_w.shape == shape and flow.log_weight(x).shape == shape
    with pytest.raises(TypeError, match="layers: got Linear"):
        StochasticFlow([torch.nn.Linear(2, 2)], StandardNormal([2]), double_well)
    with pytest.raises(ValueError, match="step: got 0"):
        Langevin(double_well, 0)
    with pytest.raises(NotImplementedError):
        Kernel(double_well, 0.1)(torch.zeros(2))
