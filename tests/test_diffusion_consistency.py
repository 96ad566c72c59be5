"""Consistency models against the exact one of a Gaussian, their two losses against each other, schedules; bad input."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    EDM,
    VP,
    ConsistencyModel,
    DiffusionModel,
    consistency_loss,
    consistency_sample,
    ct_schedule,
    draw_levels,
    exact_model,
    ict_num_levels,
    integrate,
    pseudo_huber,
)
from refimpl.metrics import sliced_wasserstein
from refimpl.nets import timed_mlp
from refimpl.training import fit

F64 = torch.float64
STD = 0.8  # of Gaussian data of mean 0 with an exact consistency function
PROCESS = EDM(sigma_min=0.01, sigma_max=10.0)
TWO = NormalMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), torch.full((2, 1, 1), 0.09, dtype=F64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def square(x, y):
    return (x - y).square().sum(-1)


def as_network(f, process=PROCESS, sigma_data=0.5):
    """The network with which a ConsistencyModel is the function f(x, sigma); written from the paper's formulas."""

    def network(x, t):
        sigma = (4 * t).exp()
        x = x * (sigma**2 + sigma_data**2).sqrt()
        skip = sigma_data**2 / ((sigma - process.sigma_min) ** 2 + sigma_data**2)
        out = sigma_data * (sigma - process.sigma_min) / (sigma**2 + sigma_data**2).sqrt()
        return (f(x, sigma) - skip * x) / out.clamp_min(1e-12)

    return network


def exact_function(x, sigma):
    return x * ((STD**2 + PROCESS.sigma_min**2) / (STD**2 + sigma**2)).sqrt()


EXACT = ConsistencyModel(as_network(exact_function), PROCESS)
TEACHER = DiffusionModel(lambda x, t: x * STD**2 / (STD**2 + t**2), PROCESS, "data")

# --- the model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_at_the_lowest_level_it_is_the_identity_whatever_the_network_says(dtype):
    for process in (PROCESS, EDM(), EDM(sigma_min=0.3, sigma_max=2)):
        f = ConsistencyModel(lambda x, t: 1e6 * (1 + x), process, 0.7)
        x = normal(5, 2).to(dtype)
        assert torch.equal(f(x, process.sigma_min), x)
        levels = process.times(5)[-2:-1].to(x).expand(5, 1)
        torch.testing.assert_close(ConsistencyModel(lambda x, t: x, process, 0.7)(x, levels), x)
    assert torch.equal(ConsistencyModel(lambda x, t: x + 9, EDM())(torch.ones(3), 0.002), torch.ones(3))


def test_it_is_the_formula_of_the_paper():
    x, sigma = normal(20, 1), torch.linspace(0.02, 10, 20, dtype=F64)[:, None]
    torch.testing.assert_close(EXACT(x, sigma), exact_function(x, sigma))
    seen = []
    f = ConsistencyModel(lambda x, t, c: seen.append((x, t, c)) or x, PROCESS, 0.5)
    f(x, 1.0, torch.ones(3))
    assert torch.equal(seen[0][0], x / math.sqrt(1.25)) and seen[0][1].shape == (20, 1)
    assert f.calls == 1 and torch.equal(seen[0][2], torch.ones(3))
    f(x, 4.0, torch.ones(3))
    torch.testing.assert_close(seen[1][1], torch.full((20, 1), math.log(4) / 4, dtype=F64))


def test_its_scalings_keep_inputs_at_unit_variance_and_tend_to_edm_s():
    """c_skip, c_out of Karras et al. at levels far above sigma_min."""
    far, sigma_data = EDM(sigma_min=1e-9), 0.5
    for sigma in (0.05, 0.5, 5.0):
        x = torch.ones(1, dtype=F64)
        skip = ConsistencyModel(lambda x, t: torch.zeros_like(x), far, sigma_data)(x, sigma)
        both = ConsistencyModel(lambda x, t: torch.ones_like(x), far, sigma_data)(x, sigma)
        assert skip.item() == pytest.approx(sigma_data**2 / (sigma**2 + sigma_data**2), rel=1e-6)
        assert (both - skip).item() == pytest.approx(sigma * sigma_data / math.hypot(sigma, sigma_data), rel=1e-6)
        seen = []
        data = sigma_data * normal(50_000, 1) + sigma * normal(50_000, 1, seed=1)
        ConsistencyModel(lambda x, t, seen=seen: seen.append(x) or x, far, sigma_data)(data, sigma)
        assert seen[0].std().item() == pytest.approx(1, abs=0.02)


def test_the_exact_function_follows_the_probability_flow_ode():
    """Oracle of the tests below: states of one trajectory share one end; the closed form is the ODE's solution."""
    x = normal(20, 1)
    path = integrate(TEACHER, 10 * x, PROCESS.times(60)[:-1], tolerance=1e-9, return_path=True)
    for state, sigma in zip(path[::10], PROCESS.times(60)[:-1:10], strict=True):
        torch.testing.assert_close(EXACT(state, sigma), EXACT(10 * x, 10.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(path[-1], EXACT(10 * x, 10.0), atol=1e-6, rtol=0)


# --- the losses --------------------------------------------------------------------------------------------------


def mean_loss(model, num_levels, teacher=None, **settings):
    x0 = STD * normal(4000, 1)
    even = dict(distance=square, weight=lambda low, high: torch.ones_like(low)) | settings
    return consistency_loss(model, x0, num_levels, teacher=teacher, generator=generator(1), **even).item()


def test_distillation_of_the_exact_function_costs_nothing_in_the_limit():
    """A Heun step is off by a third power of the step, so the squared loss falls by about 2^6 for half the steps."""
    losses = [mean_loss(EXACT, n, TEACHER) for n in (20, 40, 80)]
    assert losses[0] < 1e-3
    assert losses[0] > 30 * losses[1] > 900 * losses[2]
    assert mean_loss(ConsistencyModel(as_network(lambda x, s: 0.8 * exact_function(x, s)), PROCESS), 80, TEACHER) > 1e-5


def test_training_on_the_exact_function_costs_nothing_in_the_limit():
    """Half the steps, a quarter of the squared loss: what is left is the noise of the target, not its bias."""
    losses = [mean_loss(EXACT, n) for n in (20, 40, 80)]
    assert 3 < losses[0] / losses[1] < 6 and 3 < losses[1] / losses[2] < 6


def test_with_fresh_noise_for_the_lower_state_it_would_not():
    """The fault, written out: the two states are then on different trajectories however close their levels are."""
    x0 = STD * normal(4000, 1)
    for num_levels in (40, 80):
        levels = PROCESS.times(num_levels)[:-1].flip(0)
        n = draw_levels(levels, len(x0), generator=generator(1))
        low, high = levels[n, None], levels[n + 1, None]
        one, two = normal(4000, 1, seed=2), normal(4000, 1, seed=3)
        shared = square(EXACT(x0 + high * one, high), EXACT(x0 + low * one, low)).mean()
        fresh = square(EXACT(x0 + high * one, high), EXACT(x0 + low * two, low)).mean()
        assert shared.item() == pytest.approx(mean_loss(EXACT, num_levels), rel=0.2)
        assert fresh > 50 * shared


def trained_model():
    """Nonlinear, four parameters, far from consistent."""
    theta = nn.Parameter(torch.tensor([0.3, -0.5, 0.4, 0.2], dtype=F64))

    def network(x, t):
        return theta[0] + theta[1] * x + theta[2] * torch.sin(2 * x) + theta[3] * t

    return ConsistencyModel(network, PROCESS, 1.04), theta


def test_the_gradient_of_training_tends_to_that_of_distillation():
    x0, (f, theta), off = TWO.sample(100_000, generator()), trained_model(), []
    for n in (5, 10, 20, 40):
        both = [
            torch.autograd.grad(
                consistency_loss(f, x0, n, teacher=teacher, distance=square, generator=generator(1)), theta
            )[0]
            for teacher in (None, exact_model(TWO, PROCESS))
        ]
        off.append(((both[0] - both[1]).norm() / both[1].norm()).item())
    assert off[0] > 0.2 and off[3] < 0.05  # measured .32, .13, .06, .03: first order in the gap
    assert off[0] > 1.6 * off[1] > 2.6 * off[2] > 4 * off[3]


def test_no_gradient_goes_through_the_target():
    x0, (f, theta) = TWO.sample(500, generator()), trained_model()
    other, frozen = trained_model()
    settings = dict(generator=generator(1))
    own = torch.autograd.grad(consistency_loss(f, x0, 10, **settings), theta)[0]
    settings = dict(generator=generator(1))
    loss = consistency_loss(f, x0, 10, target=other, **settings)
    torch.testing.assert_close(torch.autograd.grad(loss, theta)[0], own)
    with torch.no_grad():
        frozen += 0.1
    moved = consistency_loss(f, x0, 10, target=other, generator=generator(1))
    assert not torch.isclose(moved, loss)
    moved.backward()
    assert frozen.grad is None and theta.grad is not None


def test_weight_distance_indices_and_context_are_used():
    x0, seen = normal(6, 2), []

    def first(levels, num, generator):
        return torch.zeros(num, dtype=torch.long)

    def record(low, high):
        seen.append((low, high))
        return 3 * torch.ones_like(low)

    f = ConsistencyModel(lambda x, t, c: 0 * x + c, PROCESS, 0.5)
    settings = dict(
        indices=first, distance=lambda x, y: (x - y).abs().sum(-1), context=torch.tensor([1.0, 2.0], dtype=F64)
    )
    loss = consistency_loss(f, x0, 4, weight=record, generator=generator(), **settings)
    low, high = seen[0]
    grid = PROCESS.times(4)
    assert (low == grid[-2]).all() and (high == grid[-3]).all()
    noise = torch.randn(6, 2, dtype=F64, generator=generator())
    gap = f(x0 + high * noise, high, settings["context"]) - f(x0 + low * noise, low, settings["context"])
    torch.testing.assert_close(loss, 3 * gap.abs().sum(-1).mean())
    default = consistency_loss(f, x0, 4, generator=generator(), **settings)
    torch.testing.assert_close(default, loss / 3 / (high - low)[0, 0])


def test_levels_are_drawn_as_the_discretised_log_normal():
    levels, n = EDM().times(12)[:-1].flip(0), 50_000
    counts = torch.bincount(draw_levels(levels, n, generator=generator()), minlength=11)
    cdf = [0.5 * (1 + math.erf((math.log(s) + 1.1) / (2 * math.sqrt(2)))) for s in levels.tolist()]
    wanted = n * torch.tensor([b - a for a, b in zip(cdf[:-1], cdf[1:], strict=True)]) / (cdf[-1] - cdf[0])
    assert len(counts) == 11
    assert ((counts - wanted).square() / wanted).sum() < 30  # chi-squared with 10 degrees of freedom
    assert torch.equal(draw_levels(levels, 5, generator=generator(3)), draw_levels(levels, 5, generator=generator(3)))


def test_pseudo_huber_is_a_square_near_and_a_distance_far_away():
    x, y = torch.zeros(2, 4, dtype=F64), torch.tensor([[1e-4, 0, 0, 0], [3e3, 4e3, 0, 0]], dtype=F64)
    near, far = pseudo_huber(x, y, 1.0).tolist()
    assert near == pytest.approx(0.5e-8, rel=1e-3)
    assert far == pytest.approx(5e3 - 1, abs=1e-3)
    c = 0.00054 * 2
    assert pseudo_huber(x, y)[0].item() == pytest.approx(math.sqrt(1e-8 + c**2) - c)
    assert torch.equal(pseudo_huber(y, y), torch.zeros(2, dtype=F64))


# --- schedules ---------------------------------------------------------------------------------------------------


def test_first_paper_s_schedule():
    """From 2 to s_1 + 1 levels like a square root; the decay is mu_0 at the start and mu_0^(2/N) later."""
    steps, first, last = 800_000, 2, 200
    numbers = [ct_schedule(k, steps, first, last) for k in range(0, steps + 1, 1000)]
    for k, (num_levels, decay) in zip(range(0, steps + 1, 1000), numbers, strict=True):
        real = math.sqrt(k / steps * (201**2 - 4) + 4)  # the number of levels is within 1 of it
        assert real <= num_levels < real + 1
        assert decay == pytest.approx(math.exp(2 * math.log(0.95) / num_levels))
    assert numbers[0] == (2, pytest.approx(0.95)) and numbers[-1][0] == 201
    assert [n for n, _ in numbers] == sorted(n for n, _ in numbers)
    assert numbers[len(numbers) // 4][0] == pytest.approx(201 / 2, abs=1.5)


def test_second_paper_s_schedule():
    """400,000 steps: 8 stages of 50,000, from 10 + 1 to 1280 + 1, doubling."""
    steps = 400_000
    assert [ict_num_levels(i * 50_000, steps) for i in range(8)] == [10 * 2**i + 1 for i in range(8)]
    assert [ict_num_levels(i * 50_000 - 1, steps) for i in range(1, 9)] == [10 * 2**i + 1 for i in range(8)]
    assert ict_num_levels(steps, steps) == 1281
    assert {ict_num_levels(k, 5, 10, 160) for k in range(6)} == {11, 21, 41, 81, 161}
    assert ict_num_levels(7, 10, 10, 10) == 11


# --- sampling ----------------------------------------------------------------------------------------------------


def test_samples_of_the_exact_function_have_the_data_law_in_any_number_of_calls():
    """One call from N(0, sigma_max^2), whose missing variance STD^2 shrinks it; more calls mend that."""
    n, start = 20_000, PROCESS.initial((20_000, 1), torch.zeros((), dtype=F64), generator())
    std = math.hypot(STD, PROCESS.sigma_min)
    EXACT.calls = 0
    one = consistency_sample(EXACT, start)
    assert EXACT.calls == 1
    torch.testing.assert_close(one, exact_function(start, torch.tensor(10.0, dtype=F64)))
    assert abs(one.std() - std) < 4 * std / math.sqrt(2 * n) + 0.01
    EXACT.calls = 0
    three = consistency_sample(EXACT, start, [2.0, 0.5], generator=generator(1))
    assert EXACT.calls == 3
    assert abs(three.std() - std) < 4 * std / math.sqrt(2 * n)
    assert torch.equal(three, consistency_sample(EXACT, start, [2.0, 0.5], generator=generator(1)))
    wrong = EXACT(one + 0.5 * normal(n, 1, seed=4), 0.5)  # adds sigma, not sqrt(sigma^2 - sigma_min^2): .02 % more
    assert wrong.std() > EXACT(one + math.sqrt(0.5**2 - 0.01**2) * normal(n, 1, seed=4), 0.5).std()


def test_added_noise_brings_the_level_exactly():
    """At sigma_min itself nothing is added, and nothing happens."""
    f, x = ConsistencyModel(lambda x, t: x, EDM(sigma_min=0.5, sigma_max=5.0), 1.0), normal(10, 1)
    torch.testing.assert_close(consistency_sample(f, x, [0.5], generator=generator()), f(x, 5.0))


@pytest.mark.parametrize("distilled", [False, True])
def test_it_learns_to_sample_in_one_call(distilled):
    torch.manual_seed(0)
    p, process, g, step = TWO.to(torch.zeros(1)), EDM(sigma_min=0.01, sigma_max=10.0), generator(), [0]
    f = ConsistencyModel(timed_mlp(1, width=32, blocks=2), process, 1.0)
    teacher, start = exact_model(p, process) if distilled else None, process.initial((2000, 1), None, g)
    exact = p.sample(2000, g)

    def loss():
        num_levels = ict_num_levels(step[0], 800, 10, 40)
        step[0] += 1
        return consistency_loss(f, p.sample(256, g), num_levels, teacher=teacher, generator=g)

    assert sliced_wasserstein(consistency_sample(f, start), exact) > 0.6
    fit(f, loss, num_steps=800, lr=3e-3, schedule="cosine", progress=False)
    assert sliced_wasserstein(consistency_sample(f, start), exact) < 0.3  # measured .13 to .21


def test_context_reaches_the_samples():
    f = ConsistencyModel(lambda x, t, c: 0 * x + c, PROCESS, 0.5)
    x = consistency_sample(f, torch.zeros(3, 2), [1.0], context=torch.tensor([2.0, -2.0]), generator=generator())
    assert x.shape == (3, 2) and not x.requires_grad and (x[:, 0] > x[:, 1]).all()


# --- bad input ---------------------------------------------------------------------------------------------------

POINTS = torch.zeros(4, 2)
PLAIN = ConsistencyModel(lambda x, t: x, EDM(), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ConsistencyModel(3, EDM()), TypeError, ["network", "int"]),
        (lambda: ConsistencyModel(nn.Identity(), VP()), TypeError, ["process", "VP", "EDM"]),
        (lambda: ConsistencyModel(nn.Identity(), EDM(), 0.0), ValueError, ["sigma_data", "0.0"]),
        (lambda: PLAIN(POINTS, torch.ones(4)), ValueError, ["t:", "(4,)"]),
        (
            lambda: ConsistencyModel(lambda x, t: x[:, :1], EDM())(POINTS, 1.0),
            ValueError,
            ["network", "(4, 1)", "(4, 2)"],
        ),
        (lambda: consistency_loss(PLAIN, POINTS, 1), ValueError, ["num_levels", "1", "2"]),
        (lambda: consistency_loss(PLAIN, POINTS, 10.0), ValueError, ["num_levels", "10.0"]),
        (lambda: consistency_loss(PLAIN, POINTS[0], 10), ValueError, ["x0", "(2,)"]),
        (lambda: consistency_loss(PLAIN, POINTS / 0, 10), ValueError, ["x0", "finite"]),
        (
            lambda: consistency_loss(PLAIN, POINTS, 10, teacher=DiffusionModel(lambda x, t: x, VP(), "data")),
            TypeError,
            ["teacher", "EDM"],
        ),
        (lambda: consistency_loss(PLAIN, POINTS, 10, teacher=nn.Identity()), TypeError, ["teacher", "DiffusionModel"]),
        (lambda: pseudo_huber(POINTS, POINTS, 0), ValueError, ["c:", "0"]),
        (lambda: draw_levels(torch.ones(3), 0), ValueError, ["num", "0"]),
        (lambda: draw_levels(torch.ones(3), 4, std=-1), ValueError, ["std", "-1"]),
        (lambda: ct_schedule(11, 10), ValueError, ["step", "11", "10"]),
        (lambda: ct_schedule(-1, 10), ValueError, ["step", "-1"]),
        (lambda: ct_schedule(1, 10, 1), ValueError, ["first", "1", "2"]),
        (lambda: ct_schedule(1, 10, ema=1.0), ValueError, ["ema", "1.0"]),
        (lambda: ict_num_levels(0, 0), ValueError, ["num_steps", "0"]),
        (lambda: ict_num_levels(0, 10, 20, 10), ValueError, ["first", "20", "10"]),
        (lambda: PLAIN(POINTS, 0.0), ValueError, ["sigma", "0", "0.002"]),
        (lambda: PLAIN(POINTS, torch.full((len(POINTS), 1), 1e-3)), ValueError, ["sigma", "0.001", "0.002"]),
        (lambda: consistency_loss(PLAIN, POINTS[:0], 10), ValueError, ["x0", "at least one"]),
        (lambda: consistency_sample(PLAIN, POINTS, [0.5, 2.0]), ValueError, ["levels", "0.5", "falling"]),
        (lambda: consistency_sample(PLAIN, POINTS, [90.0]), ValueError, ["levels", "90", "80"]),
        (lambda: consistency_sample(PLAIN, POINTS, [0.001]), ValueError, ["levels", "0.001", "0.002"]),
        (lambda: consistency_sample(PLAIN, POINTS.long()), TypeError, ["x", "int64"]),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
