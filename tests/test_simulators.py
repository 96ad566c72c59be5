"""Simulators: their densities integrate to one, their draws follow them, and posteriors are those of Bayes' rule."""

import math

import jaxtyping
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from refimpl.data.simulators import SLCP, GaussianLinear, GaussianMixtureTask, TwoMoons
from refimpl.metrics import mmd_squared

F64 = torch.float64
TASKS = [GaussianLinear(3), GaussianMixtureTask(), TwoMoons(), SLCP()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(low, high, number):
    """Midpoints of a square grid, and the area of a cell."""
    side = (high - low) / number
    line = low + side * (torch.arange(number, dtype=F64) + 0.5)
    return torch.cartesian_prod(line, line), side**2


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_shapes_precision_and_seeds(task):
    theta = task.sample_prior(6, generator(), like=torch.zeros(1, dtype=F64))
    assert theta.shape == (6, task.dim) and theta.dtype == F64 and task.log_prior(theta).isfinite().all()
    x = task.simulate(theta.view(2, 3, -1), generator())
    assert x.shape == (2, 3, task.dim_data) and x.dtype == F64
    assert torch.equal(x, task.simulate(theta.view(2, 3, -1), generator()))
    assert not torch.equal(x, task.simulate(theta.view(2, 3, -1), generator(1)))
    log_joint = task.log_joint(theta, x[0, 0])
    assert log_joint.shape == (6,) and log_joint.dtype == F64
    draws = task.sample_posterior(x[0, 0], 5, generator())
    assert draws.shape == (5, task.dim) and draws.dtype == F64 and task.log_joint(draws, x[0, 0]).isfinite().all()
    assert torch.equal(draws, task.sample_posterior(x[0, 0], 5, generator()))
    assert task.sample_prior(2).dtype == torch.float32


@pytest.mark.parametrize("task", TASKS[1:], ids=lambda t: type(t).__name__)
def test_the_prior_is_uniform_on_its_box(task):
    theta = task.sample_prior(4000, generator()) / task.bound
    assert theta.abs().max() <= 1
    assert theta.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 4000)
    torch.testing.assert_close(theta.square().mean(0), torch.full((task.dim,), 1 / 3), atol=0.03, rtol=0)
    beyond = torch.full((task.dim,), 1.01 * task.bound)
    assert task.log_prior(beyond) == -math.inf
    assert task.log_prior(0 * beyond).item() == pytest.approx(-task.dim * math.log(2 * task.bound))


@pytest.mark.parametrize(
    ("task", "low", "high", "number"),
    [(GaussianMixtureTask(), -6, 6, 600), (TwoMoons(), -2, 1, 1500), (GaussianLinear(2), -3, 3, 200)],
    ids=["mixture", "moons", "linear"],
)
def test_likelihoods_integrate_to_one_and_have_the_moments_of_the_draws(task, low, high, number):
    theta = torch.tensor([0.3, 0.1], dtype=F64)
    x, area = cells(low, high, number)
    density = (task.log_joint(theta, x) - task.log_prior(theta)).exp() * area
    assert density.sum().item() == pytest.approx(1, abs=0.01)
    draws = task.simulate(theta.expand(20000, 2), generator())
    mean = density @ x
    spread = (density @ (x - mean).square()).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * spread / math.sqrt(20000)).all()
    torch.testing.assert_close(draws.std(0), spread, rtol=0.03, atol=0)


def test_two_moons_are_a_crescent_moved_along_its_axis():
    x = TwoMoons().simulate(
        torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.0, 0.5]]).repeat_interleave(2000, 0), generator()
    )
    one, mirrored, other = x.view(3, 2000, 2)
    centre = torch.tensor([0.25 - 1 / math.sqrt(2), 0.0])
    radius = (one - centre).norm(dim=1)
    assert radius.mean().item() == pytest.approx(0.1, abs=1e-3) and radius.std().item() == pytest.approx(0.01, abs=1e-3)
    assert (one[:, 0] > centre[0]).all()
    torch.testing.assert_close(mirrored.mean(0), one.mean(0), atol=0.01, rtol=0)
    moved = torch.tensor([0.5 / math.sqrt(2), 0.5 / math.sqrt(2)])
    torch.testing.assert_close(other.mean(0) - one.mean(0), moved, atol=0.01, rtol=0)


def test_slcp_is_four_normal_points():
    theta = torch.tensor([0.7, -2.9, -1.0, 0.8, 0.5], dtype=F64)
    s1, s2, rho = 1.0, 0.64, math.tanh(0.5)
    covariance = torch.tensor([[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]], dtype=F64)
    normal = MultivariateNormal(theta[:2], covariance)
    x = SLCP().simulate(theta.expand(20000, 5), generator())
    points = x.unflatten(1, (4, 2))
    likelihood = SLCP().log_joint(theta, x) + 5 * math.log(6)
    torch.testing.assert_close(likelihood, normal.log_prob(points).sum(1))
    torch.testing.assert_close(points.flatten(0, 1).T.cov(), covariance, atol=0.03, rtol=0)
    assert (points[:, 0] * points[:, 1]).mean(0).sub(theta[:2] ** 2).abs().max() < 0.1  # points are independent


def test_linear_posterior_is_that_of_bayes_rule():
    task, g = GaussianLinear(4), generator()
    theta, x = torch.randn(5, 4, dtype=F64, generator=g), torch.randn(4, dtype=F64, generator=g)
    posterior = task.log_posterior(theta, x)
    evidence = Normal(0.0, math.sqrt(0.2)).log_prob(x).sum()
    torch.testing.assert_close(posterior, task.log_joint(theta, x) - evidence)
    draws = task.sample_posterior(x, 20000, g)
    torch.testing.assert_close(draws.mean(0), x / 2, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.T.cov(), 0.05 * torch.eye(4, dtype=F64), atol=0.003, rtol=0)


@pytest.mark.parametrize(
    ("task", "x", "low", "high", "number"),
    [
        (GaussianMixtureTask(), [1.0, -2.0], -10, 10, 600),
        (GaussianMixtureTask(), [9.7, -9.9], -10, 10, 600),
        (TwoMoons(), [0.0, 0.0], -1, 1, 1000),
        (TwoMoons(), [0.3, 0.1], -1, 1, 1000),
        (TwoMoons(), [-0.6, 0.5], -1, 1, 1000),
    ],
    ids=["mixture", "mixture in a corner", "moons", "moons that touch", "moons cut off"],
)
def test_posteriors_integrate_to_one_and_their_draws_fill_the_same_cells(task, x, low, high, number):
    x = torch.tensor(x, dtype=F64)
    theta, area = cells(low, high, number)
    density = task.log_posterior(theta, x).exp() * area
    assert density.sum().item() == pytest.approx(1, abs=0.01)
    draws = task.sample_posterior(x, 20000, generator())
    mean = density @ theta
    covariance = (theta - mean).T @ (density[:, None] * (theta - mean))
    scale = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * scale / math.sqrt(20000) + 1e-3 * scale).all()
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.04, atol=0.02 * float(covariance.diagonal().max()))
    # Expected log-density: an entropy, which sees the fine structure that moments do not.
    entropy = -torch.special.xlogy(density, density / area).sum()
    assert -task.log_posterior(draws, x).mean().item() == pytest.approx(entropy.item(), abs=0.04)


@pytest.mark.parametrize("cells", [40, 8])
def test_slcp_posterior_agrees_with_weighted_draws_of_the_prior(cells):
    task, g = SLCP(), generator()
    task.cells = cells
    x = task.simulate(torch.tensor([0.7, -2.9, -1.0, -0.9, 0.6]), g)  # near the edge of the box, which cuts it off
    draws = task.sample_posterior(x, 4000, g)
    assert (draws.abs() <= 3).all()
    prior = task.sample_prior(1_000_000, g)
    log_joint = torch.cat([task.log_joint(part, x) for part in prior.split(100_000)])
    keep = log_joint > log_joint.max() - 15
    weights = log_joint[keep].softmax(0)
    size = 1 / weights.square().sum()
    assert size > 100

    def moments(theta):
        t1, t2, t3, t4, t5 = theta.unbind(1)
        return torch.stack([t1, t2, t3.abs(), t4.abs(), t5, t1 * t2, t3.abs() * t5, t2**2], 1)

    values = moments(prior[keep])
    mean = weights @ values
    error = (weights @ (values - mean).square()).div(size).sqrt()
    assert ((moments(draws).mean(0) - mean).abs() < 4.5 * error + 0.01).all()
    signs = (draws[:, 2:4] > 0).float() @ torch.tensor([1.0, 2.0])
    torch.testing.assert_close(
        torch.bincount(signs.long(), minlength=4) / 4000, torch.full((4,), 0.25), atol=0.04, rtol=0
    )


def test_posterior_draws_and_joint_draws_are_the_same_given_x():
    """theta from the prior, x from theta, theta' from the posterior of x: theta' is distributed as the prior is."""
    task, g = TwoMoons(), generator()
    x = task.simulate(task.sample_prior(1000, g), g)
    again = torch.cat([task.sample_posterior(one, 1, g) for one in x])
    fresh = task.sample_prior(1000, g)
    assert mmd_squared(again, fresh) < 0.005


LINEAR, MOONS = GaussianLinear(3), TwoMoons()
CALLS = [
    ("dim", lambda: GaussianLinear(0)),
    ("n", lambda: LINEAR.sample_prior(0)),
    ("n", lambda: MOONS.sample_prior(2.5)),
    ("n", lambda: MOONS.sample_posterior(torch.zeros(2), -1)),
    ("theta", lambda: MOONS.simulate(torch.zeros(5, 3))),
    ("theta", lambda: MOONS.simulate(torch.zeros(5, 2, dtype=torch.long))),
    ("theta", lambda: LINEAR.log_prior(torch.zeros(2))),
    ("theta", lambda: MOONS.log_joint(torch.full((2,), math.nan), torch.zeros(2))),
    ("x", lambda: MOONS.log_joint(torch.zeros(2), torch.zeros(3))),
    ("x", lambda: MOONS.log_joint(torch.zeros(2), torch.zeros(2, dtype=F64))),
    ("x", lambda: MOONS.sample_posterior(torch.zeros(1, 2), 5)),
    ("x", lambda: MOONS.sample_posterior(torch.tensor([50.0, 0.0]), 5)),
    ("x", lambda: SLCP().sample_posterior(torch.full((8,), 40.0), 5)),
    ("theta", lambda: LINEAR.log_posterior(torch.zeros(5, 4), torch.zeros(5, 4))),
    ("theta", lambda: LINEAR.log_posterior([0.0] * 3, torch.zeros(3))),
    ("x", lambda: LINEAR.log_posterior(torch.zeros(5, 3), torch.zeros(5, 1))),
    ("x", lambda: LINEAR.log_joint(torch.zeros(5, 3), torch.zeros(4, 3))),
    ("x", lambda: GaussianMixtureTask().log_posterior(torch.zeros(2), torch.zeros(1))),
    ("x", lambda: GaussianMixtureTask().log_posterior(torch.zeros(2), torch.tensor([500.0, 0.0]))),
    ("x", lambda: MOONS.log_posterior(torch.zeros(2), torch.zeros(3))),
    ("x", lambda: MOONS.log_posterior(torch.zeros(2), torch.full((2,), 5.0))),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_bad_input_is_named(name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: "):
        call()
