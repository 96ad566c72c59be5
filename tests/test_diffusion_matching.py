"""Flow matching's pairings against closed forms for Gaussians, other libraries, and what optimal transport promises."""

import math

import jaxtyping
import ot
import pytest
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    EDM,
    VP,
    DiffusionModel,
    FlowPath,
    TrigonometricPath,
    euler,
    exact_model,
    independent_pairs,
    minibatch_ot_pairs,
    reflow_pairs,
    straightness,
    transport_cost,
)
from refimpl.diffusion.losses import denoising_loss
from refimpl.metrics import sliced_wasserstein

MEAN, STD = 1.5, 0.5  # of the data in one dimension; the noise is N(0, 1)
F64 = torch.float64
PATH = FlowPath()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def gaussian_model():
    p = NormalMixture(torch.tensor([[MEAN]], dtype=F64), torch.tensor([[[STD**2]]], dtype=F64))
    return exact_model(p, PATH)


def gaussian_velocity(x, t):
    slope = (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2)
    return MEAN + slope * (x - t * MEAN)


def ring():
    angles = torch.arange(8, dtype=F64) * math.pi / 4
    means = 1.5 * torch.stack([angles.cos(), angles.sin()], -1)
    return NormalMixture(means, 0.0225 * torch.eye(2, dtype=F64).expand(8, 2, 2))


def batches():
    return st.tuples(st.integers(1, 24), st.integers(1, 4), st.integers(0, 10_000))


# --- velocities of Gaussians -------------------------------------------------------------------------------------


def test_exact_velocity_of_a_gaussian_and_the_map_of_its_flow():
    model, x, t = gaussian_model(), normal(50, 1), torch.rand(50, 1, dtype=F64, generator=generator(1))
    torch.testing.assert_close(model.velocity(x, t), gaussian_velocity(x, t))
    z, data = reflow_pairs(model, x, PATH.times(200))
    assert torch.equal(z, x)
    torch.testing.assert_close(data, MEAN + STD * z, atol=2e-4, rtol=0)


def test_the_pairs_are_of_second_order_in_the_step():
    """A fault such as Euler's rule would halve the error, not quarter it. (For one Gaussian the order is even three.)"""
    model, z = exact_model(ring(), PATH), normal(100, 2)
    ends = [reflow_pairs(model, z, torch.linspace(0, 0.8, n + 1, dtype=F64))[1] for n in (10, 20, 40, 320)]
    errors = [(end - ends[-1]).abs().mean() for end in ends[:-1]]
    assert 3 < errors[0] / errors[1] < 5.5
    assert 3 < errors[1] / errors[2] < 5.5


def test_after_reflow_the_velocity_is_in_closed_form_and_one_euler_step_is_exact():
    z = normal(100, 1)
    pairs = z, MEAN + STD * z

    def velocity(x, t):
        return MEAN + (STD - 1) * (x - t * MEAN) / (1 - t + t * STD)

    model = DiffusionModel(velocity, PATH, predicts="velocity")
    for t in (0.0, 0.3, 0.9):  # lines never cross, so that the mean over lines is the line's own velocity
        x = PATH.add_noise(pairs[1], pairs[0], t)
        torch.testing.assert_close(velocity(x, t), pairs[1] - pairs[0])
    torch.testing.assert_close(euler(model, z, PATH.times(1)), pairs[1], atol=1e-14, rtol=0)
    assert straightness(model, z, PATH.times(10)) < 1e-24
    assert (euler(gaussian_model(), z, PATH.times(1)) - pairs[1]).abs().max() > 0.3  # before reflow it is not


def test_straightness_of_a_gaussian_flow():
    """Paths are t m + sigma_t z, so that S is the integral of (d sigma_t/dt - (s - 1))^2."""
    t = torch.linspace(0, 1, 100_001, dtype=F64)
    sigma = (t**2 * STD**2 + (1 - t) ** 2).sqrt()
    rate = (t * STD**2 - (1 - t)) / sigma
    wanted = torch.trapezoid((rate - (STD - 1)) ** 2, t)
    z = normal(100, 1)
    z = (z - z.mean()) / z.std(correction=0)
    got = straightness(gaussian_model(), z, PATH.times(400))
    torch.testing.assert_close(got, wanted, rtol=0.01, atol=0)
    two = straightness(gaussian_model(), z, torch.linspace(0, 1, 401, dtype=F64) ** 2)  # an uneven grid: same integral
    torch.testing.assert_close(two, wanted, rtol=0.02, atol=0)


def test_straightness_falls_from_random_to_straight():
    """Of the ring: .99 with independent pairs, 0 for a flow that knows the assignment."""
    z = normal(500, 2)
    assert 0.8 < straightness(exact_model(ring(), PATH), z, PATH.times(50)) < 1.2
    vp = straightness(exact_model(ring(), VP()), z, VP().times(50)[:-5])
    assert vp > 0.1  # any process that has rates


def test_context_reaches_the_network_and_calls_are_two_a_step():
    model = DiffusionModel(lambda x, t, c: c.expand_as(x), PATH, predicts="velocity")
    z = normal(5, 2)
    data = reflow_pairs(model, z, PATH.times(4), torch.tensor([3.0], dtype=F64))[1]
    torch.testing.assert_close(data, z + 3)
    assert model.calls == 2 * 3 + 1
    assert not data.requires_grad


# --- the loss ----------------------------------------------------------------------------------------------------


def test_the_least_loss_is_the_conditional_variance():
    """Var[x_1 - x_0 | x_t] for Gaussians, integrated over time; no network falls below."""
    t = torch.linspace(0, 1, 10_001, dtype=F64)
    variance = STD**2 + 1 - (t * STD**2 - (1 - t)) ** 2 / (t**2 * STD**2 + (1 - t) ** 2)
    least = torch.trapezoid(variance, t).item()
    data = MEAN + STD * normal(100_000, 1)
    loss = denoising_loss(gaussian_model(), data, kind="velocity", generator=generator(3)).item()
    assert abs(loss - least) < 0.01
    wrong = DiffusionModel(lambda x, t: 0.9 * gaussian_velocity(x, t), PATH, predicts="velocity")
    assert denoising_loss(wrong, data, generator=generator(3)) > loss + 0.005


def test_conditional_and_marginal_flow_matching_have_the_same_gradient():
    """Sample by sample they differ; their means agree within the error of the mean."""
    n = 40_000
    z, data = normal(n, 1), MEAN + STD * normal(n, 1, seed=1)
    t = torch.rand(n, 1, dtype=F64, generator=generator(2))
    x = PATH.add_noise(data, z, t)
    features = torch.cat([torch.ones_like(x), x, x * t, (3 * x).sin()], 1)
    guess = features @ torch.tensor([[0.5], [-0.2], [0.7], [0.3]], dtype=F64)
    conditional = (guess - (data - z)) * features
    marginal = (guess - gaussian_velocity(x, t)) * features
    off = (conditional - marginal).mean(0) / ((conditional - marginal).std(0) / math.sqrt(n))
    assert off.abs().max() < 4
    assert marginal.mean(0).abs().max() > 0.1


def test_flow_matching_library_has_the_same_path_velocity_and_flow():
    z, data, t = normal(20, 2), normal(20, 2, seed=1), torch.rand(20, dtype=F64, generator=generator(2))
    theirs = CondOTProbPath().sample(x_0=z, x_1=data, t=t)
    torch.testing.assert_close(PATH.add_noise(data, z, t[:, None]), theirs.x_t)
    a, b = PATH.rates(t[:, None])
    torch.testing.assert_close(a * data + b * z, theirs.dx_t)

    model = exact_model(ring(), PATH)

    class Wrapped(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model.velocity(x, t)

    grid = torch.linspace(0, 0.95, 20, dtype=F64)
    solved = ODESolver(Wrapped(model)).sample(z, step_size=None, method="midpoint", time_grid=grid)
    torch.testing.assert_close(reflow_pairs(model, z, grid)[1], solved, atol=1e-9, rtol=1e-9)


# --- pairs -------------------------------------------------------------------------------------------------------


@given(batches())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_exact_pairs_are_a_cheapest_bijection_and_leave_the_data_alone(case):
    n, dim, seed = case
    noise, data = normal(n, dim, seed=seed), 2 + normal(n, dim, seed=seed + 1)
    paired, same = minibatch_ot_pairs(noise, data)
    assert torch.equal(same, data)
    rows = [tuple(row) for row in paired.tolist()]
    assert sorted(rows) == sorted(tuple(row) for row in noise.tolist())
    cost = torch.cdist(data, noise).square().numpy()
    best = cost[linear_sum_assignment(cost)].mean()
    assert transport_cost(paired, data).item() == pytest.approx(best, rel=1e-9)
    assert best == pytest.approx(ot.emd2([], [], cost), rel=1e-9)
    assert transport_cost(paired, data) <= transport_cost(*independent_pairs(noise, data, generator(seed))) + 1e-12


@given(batches())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_in_one_dimension_exact_pairs_are_the_sorted_ones(case):
    n, _, seed = case
    noise, data = normal(n, 1, seed=seed), normal(n, 1, seed=seed + 1).exp()
    paired, _ = minibatch_ot_pairs(noise, data)
    order = data[:, 0].argsort()
    assert torch.equal(paired[order], noise.sort(0).values)


def test_exact_pairs_do_not_depend_on_the_order_of_the_noise():
    noise, data = normal(40, 3), normal(40, 3, seed=1)
    shuffled, _ = independent_pairs(noise, data, generator())
    assert not torch.equal(shuffled, noise)
    assert torch.equal(minibatch_ot_pairs(noise, data)[0], minibatch_ot_pairs(shuffled, data)[0])


def test_equal_points_are_still_a_bijection():
    noise, data = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.zeros(4, 1)
    paired, _ = minibatch_ot_pairs(noise, data)
    assert paired.flatten().sort().values.tolist() == [0, 0, 1, 1]


def test_float32_points_and_their_dtype_stay():
    noise, data = normal(300, 2).float(), normal(300, 2, seed=1).float()
    paired, same = minibatch_ot_pairs(noise, data)
    assert paired.dtype == same.dtype == torch.float32
    assert len({tuple(row) for row in paired.tolist()}) == 300


def test_sinkhorn_tends_to_exact_and_to_independent():
    noise, data = normal(40, 2), 3 * normal(40, 2, seed=1)
    exact, costs = transport_cost(*minibatch_ot_pairs(noise, data)), []
    for regularisation in (0.2, 1.0, 100.0):
        g = generator()
        settings = dict(method="sinkhorn", regularisation=regularisation, generator=g)
        costs.append(sum(transport_cost(*minibatch_ot_pairs(noise, data, **settings)) for _ in range(10)) / 10)
    product = torch.cdist(noise, data).square().mean()
    assert abs(costs[0] - exact) < 0.02 * exact
    assert costs[0] < costs[1] < costs[2]
    assert abs(costs[2] - product) < 0.1 * product


def test_sinkhorn_draws_each_row_from_the_entropic_plan():
    """Two by two in closed form: the plan's odds are exp((c12 + c21 - c11 - c22) / (2 regularisation))."""
    noise, data = torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([[0.2], [0.9]], dtype=F64)
    cost = torch.cdist(data, noise).square()
    odds = math.exp((cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / (2 * 0.5))
    g, n = generator(), 200
    hits = [
        minibatch_ot_pairs(noise, data, method="sinkhorn", regularisation=0.5, generator=g)[0][0, 0].item()
        for _ in range(n)
    ]
    share = odds / (1 + odds)
    assert abs(hits.count(0.0) / n - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_independent_pairs_shuffle_uniformly_and_by_seed():
    noise, data = torch.arange(4, dtype=F64)[:, None], torch.zeros(4, 1, dtype=F64)
    g, n = generator(), 2000
    first = torch.tensor([independent_pairs(noise, data, g)[0][0, 0].item() for _ in range(n)])
    share = torch.bincount(first.long(), minlength=4) / n
    assert (share - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / n)
    one, two = independent_pairs(noise, data, generator(7)), independent_pairs(noise, data, generator(7))
    assert torch.equal(one[0], two[0])


def test_transport_cost_is_the_mean_power_of_the_distance():
    noise, data = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert [transport_cost(noise, data, p).item() for p in (1, 2, 3)] == [2.5, 12.5, 62.5]


def test_reflow_lowers_every_convex_cost_and_keeps_the_data_law():
    p, z = ring(), normal(1000, 2)
    data = p.sample(1000, generator(1))
    pairs = reflow_pairs(exact_model(p, PATH), z, PATH.times(60))
    for power in (1, 2, 4):
        assert transport_cost(*pairs, power) < 0.6 * transport_cost(z, data, power)
    assert sliced_wasserstein(pairs[1], data, generator=generator(3)) < 0.15  # two exact samples: .08; noise: .31


@pytest.mark.parametrize("process", [VP(), EDM(), TrigonometricPath()])
def test_pairs_come_from_any_process_with_rates(process):
    p = NormalMixture(torch.tensor([[MEAN]], dtype=F64), torch.tensor([[[STD**2]]], dtype=F64))
    start = process.initial((50, 1), torch.zeros((), dtype=F64), generator())
    data = reflow_pairs(exact_model(p, process), start, process.times(300))[1]
    a, b = process.coefficients(torch.tensor(process.noise_time, dtype=F64))
    wanted = MEAN + STD * (start - a * MEAN) / (a**2 * STD**2 + b**2).sqrt()
    torch.testing.assert_close(data, wanted, atol=0.02, rtol=0)


# --- bad input ---------------------------------------------------------------------------------------------------

POINTS, FEW = torch.zeros(4, 2), torch.zeros(3, 2)
STILL = DiffusionModel(lambda x, t: torch.zeros_like(x), PATH, predicts="velocity")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: minibatch_ot_pairs(POINTS, FEW), ValueError, ["data", "(3, 2)", "(4, 2)"]),
        (lambda: minibatch_ot_pairs(POINTS, torch.zeros(4, 3)), ValueError, ["data", "(4, 3)"]),
        (lambda: minibatch_ot_pairs(POINTS[0], POINTS), ValueError, ["noise", "(2,)"]),
        (lambda: minibatch_ot_pairs(POINTS, POINTS.double()), TypeError, ["data", "float64", "float32"]),
        (lambda: minibatch_ot_pairs(POINTS / 0, POINTS), ValueError, ["noise", "finite"]),
        (lambda: minibatch_ot_pairs(POINTS.long(), POINTS), TypeError, ["noise", "int64"]),
        (lambda: minibatch_ot_pairs(POINTS, POINTS, method="greedy"), ValueError, ["method", "greedy", "sinkhorn"]),
        (
            lambda: minibatch_ot_pairs(POINTS, POINTS, method="sinkhorn", regularisation=0.0),
            ValueError,
            ["regularisation", "0.0"],
        ),
        (
            lambda: minibatch_ot_pairs(
                normal(20, 2), 100 * normal(20, 2, seed=1), method="sinkhorn", regularisation=0.01
            ),
            ValueError,
            ["regularisation", "0.01", "converge"],
        ),
        *(
            (lambda pair=pair: pair(POINTS[:0], POINTS[:0]), ValueError, ["noise", "(0, 2)", "at least one"])
            for pair in (independent_pairs, minibatch_ot_pairs, transport_cost)
        ),
        (lambda: reflow_pairs(STILL, POINTS[:0], PATH.times(4)), ValueError, ["noise", "(0, 2)"]),
        (lambda: straightness(STILL, POINTS[:0], PATH.times(4)), ValueError, ["noise", "(0, 2)"]),
        (lambda: independent_pairs(POINTS, FEW), ValueError, ["data", "(3, 2)"]),
        (lambda: transport_cost(POINTS, FEW), ValueError, ["data", "(3, 2)"]),
        (lambda: transport_cost(POINTS, POINTS, 0.5), ValueError, ["power", "0.5", "1"]),
        (lambda: reflow_pairs(STILL, POINTS[0], PATH.times(4)), ValueError, ["noise", "(2,)"]),
        (lambda: reflow_pairs(STILL, POINTS, [1.0, 0.5, 0.0]), ValueError, ["times", "rising"]),
        (lambda: reflow_pairs(STILL.network, POINTS, PATH.times(4)), TypeError, ["model", "DiffusionModel"]),
        (lambda: straightness(STILL, POINTS[None], PATH.times(4)), ValueError, ["noise", "(1, 4, 2)"]),
        (lambda: straightness(STILL, POINTS, [0.0]), ValueError, ["times", "two or more"]),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []


def test_times_may_be_a_list():
    assert straightness(STILL, POINTS, [0, 0.5, 1]) < 1e-12
    assert torch.equal(reflow_pairs(STILL, POINTS, [0, 0.5, 1])[1], reflow_pairs(STILL, POINTS, PATH.times(2))[1])
