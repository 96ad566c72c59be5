"""Stochastic interpolants between Gaussians in closed form, and between two samples that are both not noise; bad input."""

import math

import jaxtyping
import pytest
import torch

from refimpl.data import NormalMixture
from refimpl.diffusion import Interpolant, interpolant_losses, interpolant_sde
from refimpl.metrics import sliced_wasserstein
from refimpl.nets import timed_mlp
from refimpl.training import fit

MEAN, STD = 1.5, 0.5  # of x_1 in one dimension; x_0 is N(0, 1)
F64 = torch.float64
PATH = Interpolant()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def variance(t):
    return (1 - t) ** 2 + (t * STD) ** 2 + 2 * t * (1 - t)


def velocity(x, t):
    return MEAN + (-(1 - t) + t * STD**2 + 1 - 2 * t) / variance(t) * (x - t * MEAN)


def score(x, t):
    return -(x - t * MEAN) / variance(t)


def denoiser(x, t):
    return PATH.coefficients(t)[2] * (x - t * MEAN) / variance(t)


class Trigonometric(Interpolant):
    """Another path, as a subclass makes one."""

    def coefficients(self, t):
        return (0.5 * math.pi * t).cos(), (0.5 * math.pi * t).sin(), super().coefficients(t)[2]

    def rates(self, t):
        a, b, _ = self.coefficients(t)
        return -0.5 * math.pi * b, 0.5 * math.pi * a, super().rates(t)[2]


# --- the path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [PATH, Interpolant(0.3)])
def test_both_ends_are_exact(path):
    x0, x1, w = normal(4, 2), normal(4, 2, seed=1), normal(4, 2, seed=2)
    assert torch.equal(path.state(x0, x1, w, torch.tensor(0.0, dtype=F64)), x0)
    assert torch.equal(path.state(x0, x1, w, torch.tensor(1.0, dtype=F64)), x1)


@pytest.mark.parametrize("path", [PATH, Interpolant(0.3), Trigonometric()])
def test_rates_are_the_derivatives(path):
    x0, x1, w = normal(1, 2), normal(1, 2, seed=1), normal(1, 2, seed=2)
    for t in (0.01, 0.3, 0.5, 0.9):
        t = torch.tensor(t, dtype=F64)
        wanted = torch.func.jacrev(lambda t: path.state(x0, x1, w, t))(t)
        torch.testing.assert_close(path.velocity(x0, x1, w, t), wanted)


def test_the_scale_is_four_times_the_largest_variance():
    t = torch.linspace(0, 1, 101, dtype=F64)
    assert PATH.coefficients(t)[2].square().max() == pytest.approx(0.5)
    assert Interpolant(0.2).coefficients(t)[2].square().max() == pytest.approx(0.05)


def test_velocity_and_denoiser_are_the_conditional_means():
    """Least squares of dx_t/dt and w on (1, x_t) gives the closed forms, which the other tests stand on."""
    n = 200_000
    x0, x1, w = normal(n, 1), MEAN + STD * normal(n, 1, seed=1), normal(n, 1, seed=2)
    for t in (0.2, 0.7):
        t = torch.tensor(t, dtype=F64)
        x = PATH.state(x0, x1, w, t)
        seen = torch.cat([torch.ones_like(x), x], 1)
        for target, exact in ((PATH.velocity(x0, x1, w, t), velocity), (w, denoiser)):
            got = torch.linalg.lstsq(seen, target).solution[:, 0]
            offset = exact(torch.zeros((), dtype=F64), t)
            wanted = torch.stack([offset, exact(torch.ones((), dtype=F64), t) - offset])
            torch.testing.assert_close(got, wanted, atol=0.02, rtol=0)
        torch.testing.assert_close(PATH.score(denoiser)(x, t), score(x, t))


def test_the_score_stays_finite_at_the_ends():
    x = normal(3, 1)
    learned = PATH.score(lambda x, t: torch.ones_like(x))
    for t in (0.0, 1.0):
        got = learned(x, torch.full((3, 1), t, dtype=F64))
        torch.testing.assert_close(got, torch.full((3, 1), -1 / math.sqrt(2 * 1e-3 * (1 - 1e-3)), dtype=F64))


# --- the SDE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_every_epsilon_gives_the_same_law(epsilon):
    n = 40_000
    x = interpolant_sde(velocity, score, normal(n, 1), 400, epsilon, generator(1))
    assert abs(x.mean() - MEAN) < 4 * STD / math.sqrt(n)
    assert abs(x.std() - STD) < 4 * STD / math.sqrt(2 * n)


def test_epsilon_without_its_score_and_a_score_of_the_wrong_sign_do_not():
    n = 10_000
    for fault in (lambda x, t: torch.zeros_like(x), lambda x, t: -score(x, t)):
        x = interpolant_sde(velocity, fault, normal(n, 1), 100, 0.5, generator(1))
        assert abs(x.std() - STD) > 20 * STD / math.sqrt(2 * n)


def test_more_epsilon_forgets_more_of_the_start():
    x0 = normal(5000, 1)
    kept = []
    for epsilon in (0.0, 0.5, 2.0):
        x = interpolant_sde(velocity, score, x0, 200, epsilon, generator(1))
        kept.append(torch.corrcoef(torch.cat([x0, x], 1).T)[0, 1].item())
    assert kept[0] > 0.9999
    assert kept[0] > kept[1] + 0.1 > kept[2] + 0.2


def test_the_ode_is_the_monotone_map_and_first_order():
    x0 = normal(100, 1)
    errors = [(interpolant_sde(velocity, score, x0, n) - (MEAN + STD * x0)).abs().mean() for n in (50, 100, 200)]
    assert errors[0] < 0.01
    assert errors[0] > 1.7 * errors[1] > 2.9 * errors[2]


def test_fields_are_asked_in_the_middle_of_each_step_and_never_at_the_ends():
    asked = []

    def field(x, t):
        asked.append(t[0, 0].item())
        return torch.full_like(x, t[0, 0].item())

    x = interpolant_sde(field, field, torch.zeros(2, 1, dtype=F64), 4)
    assert asked == [0.125, 0.375, 0.625, 0.875]
    torch.testing.assert_close(x, torch.full((2, 1), 0.5, dtype=F64))


def test_the_same_generator_gives_the_same_path_and_no_noise_none():
    x0 = normal(5, 2)
    one, two = (interpolant_sde(velocity, score, x0, 5, 1.0, generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    other = interpolant_sde(velocity, score, x0, 5, 1.0, generator(4))
    assert not torch.equal(one, other)
    assert torch.equal(interpolant_sde(velocity, score, x0, 5), interpolant_sde(velocity, score, x0, 5))


# --- the losses --------------------------------------------------------------------------------------------------


def test_the_losses_are_least_at_the_conditional_means():
    """Their gradients along any change vanish there, within 4 standard errors, and grow as the change does."""
    features = [lambda x, t: torch.ones_like(x), lambda x, t: x, lambda x, t: (2 * x + 3 * t).sin()]
    slopes, g = [], generator()
    for _ in range(40):
        theta = torch.zeros(2, 3, dtype=F64, requires_grad=True)

        def changed(exact, row):
            return lambda x, t: exact(x, t) + sum(c * f(x, t) for c, f in zip(row, features, strict=True))

        x0 = torch.randn(2000, 1, dtype=F64, generator=g)
        x1 = MEAN + STD * torch.randn(2000, 1, dtype=F64, generator=g)
        losses = interpolant_losses(changed(velocity, theta[0]), changed(denoiser, theta[1]), x0, x1, PATH, generator=g)
        slopes.append(torch.autograd.grad(sum(losses), theta)[0])
    slopes = torch.stack(slopes)
    assert (slopes.mean(0).abs() / (slopes.std(0) / math.sqrt(len(slopes)))).max() < 4
    assert slopes.std(0).max() < 0.5  # or the test could not fail


def test_a_wrong_field_costs_its_squared_error():
    """Excess of the loss over the least one = mean squared error, for b and for eta."""
    x0, x1 = normal(20_000, 1), MEAN + STD * normal(20_000, 1, seed=1)
    least = interpolant_losses(velocity, denoiser, x0, x1, PATH, generator=generator(2))
    more = interpolant_losses(
        lambda x, t: velocity(x, t) + 0.7, lambda x, t: denoiser(x, t) - 0.4, x0, x1, PATH, generator=generator(2)
    )
    for one, two, error in zip(least, more, (0.49, 0.16), strict=True):
        assert (two - one).item() == pytest.approx(error, abs=0.03)
    assert least[1].item() == pytest.approx(-self_denoised(), abs=0.02)


def self_denoised():
    """Mean of eta^2 over time and state: gamma^2 / variance."""
    t = torch.linspace(0, 1, 10_001, dtype=F64)
    return torch.trapezoid(PATH.coefficients(t)[2] ** 2 / variance(t), t).item()


def test_pairs_of_w_and_minus_w_make_the_loss_steady():
    """Against the same number of independent w: the noise of the loss of b is several times smaller."""
    x0, x1 = normal(500, 1), MEAN + STD * normal(500, 1, seed=1)
    paired, plain = [], []
    for seed in range(60):
        g = generator(seed)
        paired.append(interpolant_losses(velocity, denoiser, x0, x1, PATH, generator=g)[0])
        g = generator(1000 + seed)
        t = 1e-3 + (1 - 2e-3) * torch.rand(1000, 1, dtype=F64, generator=g)
        two = x0.repeat(2, 1), x1.repeat(2, 1), torch.randn(1000, 1, dtype=F64, generator=g)
        b = velocity(PATH.state(*two, t), t)
        plain.append((b * (b - 2 * PATH.velocity(*two, t))).mean())
    paired, plain = torch.stack(paired), torch.stack(plain)
    assert abs(paired.mean() - plain.mean()) < 4 * plain.std() / math.sqrt(60)
    assert paired.std() < 0.6 * plain.std()


def test_learned_fields_carry_one_sample_to_another_at_any_epsilon():
    """Neither sample is noise: from two modes side by side to two above each other."""
    torch.manual_seed(0)
    across, along = (
        NormalMixture(torch.tensor([m, [-m[0], -m[1]]]), 0.04 * torch.eye(2).expand(2, 2, 2))
        for m in ([1.0, 0.0], [0.0, 1.0])
    )
    b, eta, path, g = *(timed_mlp(2, width=48, blocks=2) for _ in range(2)), Interpolant(0.5), generator()

    def loss():
        return sum(interpolant_losses(b, eta, across.sample(256, g), along.sample(256, g), path, generator=g))

    fit(torch.nn.ModuleList([b, eta]), loss, num_steps=500, lr=4e-3, schedule="cosine", progress=False)
    exact = along.sample(1500, g)
    with torch.no_grad():
        for epsilon in (0.0, 0.3):
            x = interpolant_sde(b, path.score(eta), across.sample(1500, g), 50, epsilon, g)
            assert sliced_wasserstein(x, exact, generator=generator(1)) < 0.15  # the start: .6


# --- bad input ---------------------------------------------------------------------------------------------------

POINTS = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Interpolant(0), ValueError, ["scale", "0"]),
        (
            lambda: interpolant_losses(velocity, denoiser, POINTS, POINTS[:3], PATH),
            ValueError,
            ["x1", "(3, 2)", "(4, 2)"],
        ),
        (lambda: interpolant_losses(velocity, denoiser, POINTS[0], POINTS, PATH), ValueError, ["x0", "(2,)"]),
        (lambda: interpolant_losses(velocity, denoiser, POINTS, POINTS.double(), PATH), TypeError, ["x1", "float64"]),
        (lambda: interpolant_losses(velocity, denoiser, POINTS, POINTS, PATH, margin=0.0), ValueError, ["margin", "0"]),
        (
            lambda: interpolant_losses(velocity, denoiser, POINTS, POINTS, PATH, margin=0.5),
            ValueError,
            ["margin", "0.5"],
        ),
        (
            lambda: interpolant_losses(lambda x, t: x[:, :1], denoiser, POINTS, POINTS, PATH),
            ValueError,
            ["velocity", "(8, 1)", "(8, 2)"],
        ),
        (
            lambda: interpolant_losses(velocity, lambda x, t: x.sum(-1), POINTS, POINTS, PATH),
            ValueError,
            ["denoiser", "(8,)", "(8, 2)"],
        ),
        (
            lambda: interpolant_sde(lambda x, t: x[:, :1], score, POINTS, 5),
            ValueError,
            ["velocity", "(4, 1)", "(4, 2)"],
        ),
        (lambda: interpolant_sde(velocity, lambda x, t: x[:1], POINTS, 5, 0.1), ValueError, ["score", "(1, 2)"]),
        (lambda: interpolant_losses(velocity, denoiser, POINTS[:0], POINTS[:0], PATH), ValueError, ["x0", "at least"]),
        (lambda: interpolant_sde(velocity, score, POINTS.long(), 5), TypeError, ["x", "int64"]),
        (lambda: interpolant_sde(velocity, score, POINTS, 0), ValueError, ["num_steps", "0"]),
        (lambda: interpolant_sde(velocity, score, POINTS, 5, -0.1), ValueError, ["epsilon", "-0.1"]),
        (lambda: interpolant_sde(velocity, score, POINTS / 0, 5), ValueError, ["x", "finite"]),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        call()
    assert [w for w in words if w not in str(caught.value)] == []
