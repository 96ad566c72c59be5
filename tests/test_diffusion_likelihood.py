"""Likelihoods along the probability-flow ODE: exact densities, Hutchinson's variance, another library."""

import math
import re

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.data import NormalMixture
from refimpl.diffusion import EDM, VE, VP, DiffusionModel, FlowPath, TrigonometricPath, exact_model, log_prob

F64 = torch.float64
MIXTURE = NormalMixture(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64),
    torch.tensor([[[0.1, 0.05], [0.05, 0.1]], [[0.05, 0.0], [0.0, 0.2]]], dtype=F64),
    torch.tensor([0.6, 0.4], dtype=F64),
)
COVARIANCE = torch.tensor([[1.0, 0.6, -0.3], [0.6, 0.8, 0.2], [-0.3, 0.2, 0.5]], dtype=F64)
NORMAL = NormalMixture(torch.tensor([[0.3, -0.2, 0.1]], dtype=F64), COVARIANCE[None])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smoothed(p, process, x, t):
    return p.log_prob(x, *process.coefficients(torch.tensor(t, dtype=F64)))


@pytest.mark.parametrize(
    ("process", "end", "settings"),
    [
        (VP(), 1e-3, {}),
        (VP(), 1e-3, {"num_steps": 120}),
        (VE(sigma_max=500.0), 0.0, {"tolerance": 1e-6}),
        (EDM(0.01, 200.0), 0.01, {"num_steps": 100, "method": "rk4"}),
        (FlowPath(), 0.99, {}),
        (FlowPath(), 0.99, {"num_steps": 50, "method": "rk4"}),
        (TrigonometricPath(), 0.99, {"num_steps": 100}),
    ],
)
def test_a_mixture_within_a_hundredth_of_a_nat(process, end, settings):
    """The prior is N(0, b^2) and not what the process makes of the data: diffusions need enough noise for that."""
    x = MIXTURE.sample(20, seeded())
    found = log_prob(exact_model(MIXTURE, process), x, end_time=end, **settings)
    assert (found - smoothed(MIXTURE, process, x, end)).abs().max() < 1e-2


def test_heun_is_of_second_order_and_takes_two_calls_a_step():
    process, x = EDM(0.01), MIXTURE.sample(30, seeded())
    model, errors = exact_model(MIXTURE, process), []
    for n in (16, 32, 64):
        model.reset_counts()
        found = log_prob(model, x, times=process.times(n)[:-1])
        assert model.calls == 2 * (n - 1)
        errors.append((found - smoothed(MIXTURE, process, x, 0.01)).abs().mean().item())
    assert errors[0] > 3.3 * errors[1] > 3.3 * 3 * errors[2]
    torch.testing.assert_close(log_prob(model, x, end_time=0.01, num_steps=64), found)


def test_it_is_a_density():
    """Its integral over a grid is 1 for a velocity that is nobody's exact one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    model = DiffusionModel(lambda x, t: net(torch.cat([x, t], -1)), FlowPath(), "velocity")
    axis = torch.linspace(-6, 6, 61, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    mass = log_prob(model, grid, end_time=1.0, times=None, num_steps=10, method="rk4").exp().sum() * 0.2**2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("method", ["midpoint", "dopri5"])
def test_flow_matching_agrees(method):
    from flow_matching.solver import ODESolver

    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    model = DiffusionModel(lambda x, t: net(torch.cat([x, t], -1)), FlowPath(), "velocity")
    x, times = torch.randn(10, 2, dtype=F64, generator=seeded()), FlowPath().times(8)
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2, dtype=F64), 1.0), 1)
    _, wanted = ODESolver(lambda x, t: net(torch.cat([x, t.expand(len(x), 1)], -1))).compute_likelihood(
        x.clone(), prior.log_prob, None, method, time_grid=times.flip(0), exact_divergence=True
    )
    found = log_prob(model, x, times=times, method=method)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased_and_has_its_variance(kind):
    """For Gaussian data the integrated Jacobian is M = (log S_noise - log S_end) / 2 whatever the point: the estimate is
    v^T M v, with the variance 2 sum_{i != j} M_ij^2 for signs and 2 |M|_F^2 for normal probes."""
    n, process, end = 4000, FlowPath(), 0.9
    turn, (a, b) = torch.linalg.eigh(COVARIANCE), process.coefficients(torch.tensor(end, dtype=F64))
    m = turn.eigenvectors * (-0.5 * (a**2 * turn.eigenvalues + b**2).log()) @ turn.eigenvectors.T
    x = torch.tensor([0.5, 0.2, 0.0], dtype=F64)
    model, settings = exact_model(NORMAL, process), dict(end_time=end, num_steps=20, method="rk4")
    exact = log_prob(model, x, **settings)
    torch.testing.assert_close(exact, smoothed(NORMAL, process, x, end), rtol=0, atol=1e-3)
    found = log_prob(model, x.expand(n, 3), divergence=kind, generator=seeded(), **settings)
    off = m - m.diag().diag() if kind == "rademacher" else m
    variance = 2 * off.square().sum()
    assert (found.mean() - exact).abs() < 4 * (variance / n).sqrt()
    assert (found.var() / variance).item() == pytest.approx(1, abs=0.15)
    again = log_prob(model, x.expand(n, 3), divergence=kind, generator=seeded(), **settings)
    assert torch.equal(found, again)


def test_the_gradient_is_the_score():
    process, x = VP(), NORMAL.sample(4, seeded()).requires_grad_()
    found = log_prob(exact_model(NORMAL, process), x, end_time=0.05, num_steps=60)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    wanted = NORMAL.score(x.detach(), *process.coefficients(torch.tensor(0.05, dtype=F64)))
    torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)
    layer = nn.Linear(3, 3).double()
    model = DiffusionModel(lambda x, t: layer(x), FlowPath(), "velocity")
    assert not log_prob(model, x.detach(), end_time=1.0, num_steps=2).requires_grad


def test_context_batches_and_dtype():
    """Data ~ N(c, 1) for the context c: the density moves with it."""

    def denoise(x, t, c):
        a, b = FlowPath().coefficients(t)
        return c + a / (a**2 + b**2) * (x - a * c)

    model, c = DiffusionModel(denoise, FlowPath(), "data"), torch.tensor([[0.0], [2.0]])
    x = torch.zeros(5, 2, 1)
    found = log_prob(model, x, end_time=0.99, context=c, tolerance=1e-4)
    assert found.shape == (5, 2) and found.dtype == torch.float32
    a, b = 0.99, 0.01
    wanted = torch.distributions.Normal(a * c, math.sqrt(a**2 + b**2)).log_prob(x).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert log_prob(model, x[0, 0], end_time=0.99, context=c[0], num_steps=3).shape == ()


model, x = exact_model(MIXTURE, VP()), torch.zeros(4, 2, dtype=F64)
ROWS = [
    ("model", lambda: log_prob(lambda x, t: x, x, end_time=0.1)),
    ("model", lambda: log_prob(None, x, times=[1.0, 0.1])),
    ("x", lambda: log_prob(model, x + math.nan, end_time=0.1)),
    ("x", lambda: log_prob(model, [0.0, 0.0], end_time=0.1)),
    ("x", lambda: log_prob(model, x.float(), end_time=0.1)),
    ("x", lambda: log_prob(model, x[:0], end_time=0.1)),
    ("end_time", lambda: log_prob(model, x)),
    ("end_time", lambda: log_prob(model, x, end_time=0.1, times=[1.0, 0.1])),
    ("end_time", lambda: log_prob(model, x, times=[1.0, 0.1], num_steps=3)),
    ("end_time", lambda: log_prob(model, x, end_time="0")),
    ("end_time", lambda: log_prob(model, x, end_time=0.0)),
    ("end_time", lambda: log_prob(model, x, end_time=1.0)),
    ("end_time", lambda: log_prob(model, x, times=[1.0, 0.0])),
    ("times", lambda: log_prob(model, x, end_time=-0.5)),
    ("times", lambda: log_prob(model, x, times=[0.1, 1.0])),
    ("num_steps", lambda: log_prob(model, x, end_time=0.1, num_steps=0)),
    ("method", lambda: log_prob(model, x, end_time=0.1, method="heun")),
    ("tolerance", lambda: log_prob(model, x, end_time=0.1, tolerance=-1.0)),
    ("divergence", lambda: log_prob(model, x, end_time=0.1, divergence="hutchinson")),
]


@pytest.mark.parametrize(("name", "call"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
def test_malformed_calls_name_the_argument(monkeypatch, name, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"{name}\b.*: ", str(caught.value)), str(caught.value)
