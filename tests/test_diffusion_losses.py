"""Denoising losses, times to draw, and networks with a closed form built in."""

import math
import re

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl.data import NormalMixture
from refimpl.diffusion import (
    DDPM,
    EDM,
    VE,
    VP,
    DiffusionModel,
    FlowPath,
    GaussianSkip,
    Preconditioned,
    TrigonometricPath,
    denoising_loss,
    exact_model,
    lognormal_times,
    uniform_times,
)

F64 = torch.float64
PROCESSES = [VP(), VE(), EDM(), FlowPath(), TrigonometricPath(), DDPM()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
MIXTURE = NormalMixture(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), torch.eye(2, dtype=F64).expand(2, 2, 2) * 0.1
)
NORMAL = NormalMixture(torch.zeros(1, 2, dtype=F64), torch.diag(torch.tensor([0.5, 2.0], dtype=F64))[None])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def at(time):
    return lambda n, like, generator: like.new_full((n, 1), float(time))


@pytest.mark.parametrize("kind", ["data", "noise", "score", "v", "velocity"])
def test_the_least_loss_is_the_conditional_variance(kind):
    """For N(0, diag(lambda)): Var[x_0 | x_t] = lambda b^2 / S, and a kind p x_0 + q n has that times (p - q a / b)^2."""
    process, t, n = VP(), 0.4, 20_000
    t64 = torch.tensor(t, dtype=F64)
    (a, b), (da, db) = process.coefficients(t64), process.rates(t64)
    p, q = {"data": (1, 0), "noise": (0, 1), "score": (0, -1 / b), "v": (-b, a), "velocity": (da, db)}[kind]
    lam = torch.tensor([0.5, 2.0], dtype=F64)
    wanted = ((p - q * a / b) ** 2 * lam * b**2 / (a**2 * lam + b**2)).mean()
    x0, model = NORMAL.sample(n, seeded()), exact_model(NORMAL, process)
    found = denoising_loss(model, x0, kind=kind, draw_times=at(t), generator=seeded(1))
    assert found.shape == () and (found / wanted).item() == pytest.approx(1, abs=0.05)
    worse = DiffusionModel(lambda x, t: 1.1 * model.network(x, t), process, "data")
    assert denoising_loss(worse, x0, kind=kind, draw_times=at(t), generator=seeded(1)) > found


def test_losses_differ_by_their_weights_only():
    """|noise off|^2 = (a / b)^2 |data off|^2, and so on: the same draws give the same number."""
    process, x0 = VP(), MIXTURE.sample(200, seeded())
    model = DiffusionModel(lambda x, t: torch.tanh(x + t), process, "noise")
    a_b = process.coefficients

    def of_noise(t):
        a, b = a_b(t)
        return (a / b) ** 2

    def of_score(t):
        return of_noise(t) / a_b(t)[1] ** 2

    def of_v(t):
        return 1 + of_noise(t)

    draw = uniform_times(process, 0.05)
    for kind, weight in (("noise", of_noise), ("score", of_score), ("v", of_v)):
        one = denoising_loss(model, x0, kind=kind, draw_times=draw, generator=seeded(2))
        other = denoising_loss(model, x0, kind="data", weight=weight, draw_times=draw, generator=seeded(2))
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        denoising_loss(model, x0, generator=seeded(3)), denoising_loss(model, x0, kind="noise", generator=seeded(3))
    )


def test_given_pairs_make_it_flow_matching():
    """With noise that is a shift of the data, straight paths have one velocity, which a constant predicts without loss."""
    shift = torch.tensor([1.0, -2.0])
    x0 = torch.randn(50, 2, generator=seeded())
    model = DiffusionModel(lambda x, t: shift.expand_as(x), FlowPath(), "velocity")
    assert denoising_loss(model, x0, noise=x0 - shift, generator=seeded(1)).item() < 1e-12
    assert denoising_loss(model, x0, generator=seeded(1)) > 1


def test_the_gradient_of_the_conditional_loss_is_that_of_the_marginal_one():
    """Regressing on samples or on the exact expectation moves the parameters alike, on average."""
    n, process = 60_000, FlowPath()
    layer = nn.Linear(3, 2).double()
    model = DiffusionModel(lambda x, t: layer(torch.cat([x, t], -1)), process, "velocity")
    x0, t = MIXTURE.sample(n, seeded()), torch.rand(n, 1, dtype=F64, generator=seeded(1)) * 0.9
    noise = torch.randn(n, 2, dtype=F64, generator=seeded(2))
    conditional = denoising_loss(model, x0, draw_times=lambda *_, **__: t, noise=noise)
    x = process.add_noise(x0, noise, t)
    marginal = (model.velocity(x, t) - exact_model(MIXTURE, process).velocity(x, t)).square().mean()
    first, second = (
        torch.cat([g.flatten() for g in torch.autograd.grad(v, layer.parameters())]) for v in (conditional, marginal)
    )
    assert (first - second).abs().max() < 0.03 * second.abs().max()
    assert conditional > 1.2 * marginal


def test_batches_contexts_and_parameters():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(2))

        def forward(self, x, t, context):
            assert t.shape == (4, 3, 1) and context.shape == (3, 1)
            return x + self.by * context

    model, x0 = DiffusionModel(Shift(), VP()), torch.randn(4, 3, 2)
    loss = denoising_loss(model, x0, context=torch.ones(3, 1), generator=seeded())
    loss.backward()
    assert loss.dtype == torch.float32 and model.network.by.grad.abs().min() > 0
    again = denoising_loss(model, x0, context=torch.ones(3, 1), generator=seeded())
    assert torch.equal(loss.detach(), again.detach())


@each
def test_uniform_times_cover_the_clock(process):
    t = uniform_times(process, 0.1)(20_000, torch.zeros((), dtype=F64), seeded())
    assert t.shape == (20_000, 1) and t.dtype == F64
    share = (t - process.data_time) / (process.noise_time - process.data_time)
    if isinstance(process, DDPM):
        assert torch.equal(t, t.round()) and t.min() == 1 and t.max() == 1000
        assert (t.squeeze().long().bincount(minlength=1001)[1:] > 0).all()
    else:
        assert share.min() >= 0.1 and share.max() <= 1
        assert share.mean().item() == pytest.approx(0.55, abs=0.01)


def test_lognormal_times():
    log = lognormal_times(-1.1, 2.0)(40_000, torch.zeros((), dtype=F64), seeded()).log()
    assert log.mean().item() == pytest.approx(-1.1, abs=0.05) and log.std().item() == pytest.approx(2.0, rel=0.02)


@each
def test_at_zero_the_preconditioned_network_is_exact_for_normal_data(process):
    data_std = 0.7
    net = Preconditioned(lambda x, t: torch.zeros_like(x), process, data_std)
    exact = NormalMixture(torch.zeros(1, 2, dtype=F64), data_std**2 * torch.eye(2, dtype=F64)[None])
    model, oracle = DiffusionModel(net, process), exact_model(exact, process)
    assert model.predicts == "data"
    for t in process.times(5):
        x = process.initial((6, 2), torch.zeros((), dtype=F64), seeded())
        torch.testing.assert_close(model.data(x, t), oracle.data(x, t))


@each
def test_inner_inputs_and_targets_have_variance_one(process):
    """For any data of that standard deviation: with F = 0 the weighted loss is the mean square of F's target."""
    x0 = torch.randint(0, 2, (40_000, 1), generator=seeded()).double() * 1.4 - 0.7
    seen = []

    def zero(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    net = Preconditioned(zero, process, 0.7)
    for t in (process.times(9)[2], process.times(9)[6]):
        loss = denoising_loss(
            DiffusionModel(net, process), x0, weight=net.weight, draw_times=at(t), generator=seeded(1)
        )
        assert loss.item() == pytest.approx(1, abs=0.03)
        assert seen[-1][0].std().item() == pytest.approx(1, abs=0.02)
        assert seen[-1][1].unique().item() == pytest.approx(process.sigma(t).log().item() / 4, abs=1e-9)


def test_the_weighted_loss_is_the_plain_loss_of_the_inner_network():
    process, inner = EDM(), nn.Linear(2, 2).double()
    net, x0 = Preconditioned(lambda x, t: inner(x), process, 0.5), MIXTURE.sample(100, seeded())
    t = lognormal_times()(100, x0, seeded(1))
    noise = torch.randn(x0.shape, dtype=F64, generator=seeded(2))
    x, s = x0 + t * noise, (t**2 + 0.25).sqrt()
    target = (x0 - 0.25 / s**2 * x) / (0.5 * t / s)
    found = denoising_loss(
        DiffusionModel(net, process), x0, noise=noise, draw_times=lambda *_, **__: t, weight=net.weight
    )
    torch.testing.assert_close(found, (inner(x / s) - target).square().mean())
    torch.testing.assert_close(net.weight(t), (t**2 + 0.25) / (0.5 * t) ** 2)


def test_diffusers_preconditions_alike():
    from diffusers import EDMEulerScheduler

    library, inner = EDMEulerScheduler(sigma_data=0.5), nn.Linear(2, 2).double()
    net, x, t = (
        Preconditioned(lambda x, c: inner(x) + c, EDM(), 0.5),
        MIXTURE.sample(5, seeded()),
        torch.tensor([[0.7]]),
    )
    wanted = library.precondition_outputs(
        x, inner(library.precondition_inputs(x, t)) + library.precondition_noise(t), t
    )
    torch.testing.assert_close(net(x, t.double().expand(5, 1)), wanted, rtol=1e-5, atol=1e-5)


@each
def test_the_gaussian_skip_is_the_noise_of_a_gaussian(process):
    root = torch.randn(3, 3, dtype=F64, generator=seeded())
    mean, covariance = torch.tensor([1.0, -2.0, 0.5], dtype=F64), root @ root.T + 0.1 * torch.eye(3, dtype=F64)
    oracle = exact_model(NormalMixture(mean[None], covariance[None]), process)
    model = DiffusionModel(GaussianSkip(lambda x, t: torch.zeros_like(x), process, mean, covariance), process)
    assert model.predicts == "noise"
    for t in process.times(5)[:-1]:
        x = process.initial((6, 3), mean, seeded())
        torch.testing.assert_close(model.noise(x, t), oracle.noise(x, t), rtol=1e-7, atol=1e-7)
    net = GaussianSkip(lambda x, t, c: c + 0 * x, process, mean, covariance)
    more = net(x, process.times(5)[1].expand(6, 1), torch.ones(3, dtype=F64)) - 1
    torch.testing.assert_close(more, oracle.noise(x, process.times(5)[1]), rtol=1e-7, atol=1e-7)


def test_what_they_hold_moves_with_them():
    inner = nn.Linear(2, 2)
    skip = GaussianSkip(lambda x, t: inner(x), VP(), torch.zeros(2), torch.eye(2))
    assert {name for name, _ in skip.named_buffers()} == {"mean", "eigenvalues", "eigenvectors"}
    assert skip.double().mean.dtype == F64
    net = Preconditioned(inner, EDM(), 1.0)
    assert len(list(DiffusionModel(net, EDM()).parameters())) == 2


def test_flat_data_have_a_skip_too():
    flat = torch.diag(torch.tensor([1.0, 0.0]))
    skip = GaussianSkip(lambda x, t: torch.zeros_like(x), EDM(), torch.zeros(2), flat)
    torch.testing.assert_close(skip(torch.ones(2), torch.tensor([0.5])), torch.tensor([0.4, 2.0]))


def always(time):
    return lambda n, like, generator: torch.full((n, 1), time)


model, x0 = DiffusionModel(lambda x, t: x, VP()), torch.zeros(4, 2)
ROWS = [
    ("x0", lambda: denoising_loss(model, x0 + math.nan)),
    ("x0", lambda: denoising_loss(model, x0.long())),
    ("x0", lambda: denoising_loss(model, x0[:0])),
    ("model", lambda: denoising_loss(lambda x, t: x, x0)),
    ("kind", lambda: denoising_loss(model, x0, kind="epsilon")),
    ("noise", lambda: denoising_loss(model, x0, noise=x0[:2])),
    ("draw_times", lambda: denoising_loss(model, x0, draw_times=lambda n, like, generator: torch.zeros(n + 1))),
    ("weight", lambda: denoising_loss(model, x0, weight=lambda t: t.squeeze(-1))),
    ("low", lambda: uniform_times(VP(), 1.0)),
    ("low", lambda: uniform_times(VP(), -0.1)),
    ("process", lambda: uniform_times("VP")),
    ("draw_times", lambda: denoising_loss(model, x0, draw_times=always(2.0))),
    ("draw_times", lambda: denoising_loss(model, x0, draw_times=always(-0.1))),
    ("draw_times", lambda: denoising_loss(model, x0, draw_times=always(math.nan))),
    ("draw_times", lambda: denoising_loss(DiffusionModel(lambda x, t: x, EDM()), x0, draw_times=always(-1.0))),
    ("mean", lambda: lognormal_times(math.nan)),
    ("std", lambda: lognormal_times(0.0, 0.0)),
    ("sigma_data", lambda: Preconditioned(nn.Identity(), EDM(), 0.0)),
    ("process", lambda: Preconditioned(nn.Identity(), "EDM", 1.0)),
    ("network", lambda: Preconditioned(None, EDM(), 1.0)),
    ("network", lambda: GaussianSkip(None, EDM(), x0[0], torch.eye(2))),
    ("mean", lambda: GaussianSkip(nn.Identity(), EDM(), x0, torch.eye(2))),
    ("covariance", lambda: GaussianSkip(nn.Identity(), EDM(), x0[0], torch.eye(3))),
    ("covariance", lambda: GaussianSkip(nn.Identity(), EDM(), x0[0], -torch.eye(2))),
    ("covariance", lambda: GaussianSkip(nn.Identity(), EDM(), x0[0], torch.tensor([[1.0, 0.5], [0.0, 1.0]]))),
]


@pytest.mark.parametrize(("name", "call"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
def test_malformed_calls_name_the_argument(monkeypatch, name, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"{name}\b.*: ", str(caught.value)), str(caught.value)
