"""Injective flows against linear algebra, closed forms, finite differences and scikit-learn; bad input by name."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import nn

from refimpl import runtime
from refimpl.flows import StandardNormal
from refimpl.free_form import (
    InjectiveFlow,
    LatentMixture,
    curvature,
    exact_loss,
    fff_loss,
    log_volume,
    on_manifold_loss,
    volume_term,
)
from refimpl.nets import Stack, mlp

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def networks(dim=5, latents=2, seed=0):
    torch.manual_seed(seed)
    make = dict(width=8, depth=3, activation=nn.SiLU)
    return mlp(dim, latents, **make).double(), mlp(latents, dim, **make).double()


def model(**sizes):
    encoder, decoder = networks(**sizes)
    return InjectiveFlow(encoder, decoder, StandardNormal([sizes.get("latents", 2)]).double())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_volume_of_a_linear_map_is_that_of_its_singular_values(dim_in, dim_out, seed):
    a = normal(dim_out, dim_in, seed=seed)
    expected = torch.linalg.svdvals(a).log().sum()
    got = log_volume(lambda x: x @ a.T, normal(3, dim_in, seed=seed))
    torch.testing.assert_close(got, expected.expand(3), rtol=0, atol=1e-8)


def test_the_volume_keeps_digits_that_the_gram_determinant_loses():
    a = torch.tensor([[1.0, 1.0], [1e-7, 0.0], [0.0, 1e-7]])
    got = log_volume(lambda z: z @ a.T, torch.zeros(1, 2)).item()
    assert got == pytest.approx(0.5 * math.log(2) + math.log(1e-7), abs=1e-3)
    assert not torch.linalg.slogdet(a.T @ a).logabsdet.isfinite()


def test_the_volume_of_a_map_without_full_rank_is_zero():
    assert (
        log_volume(lambda x: torch.cat([x, x[..., :1]], -1) * torch.tensor([0.0, 0.0]), torch.ones(4, 1))
        .isneginf()
        .all()
    )


def test_volume_is_differentiable_on_both_sides():
    a, x = normal(3, 2).requires_grad_(), normal(4, 2)
    assert torch.autograd.gradcheck(lambda a: log_volume(lambda x: (x @ a.T).sin(), x), a)
    assert torch.autograd.gradcheck(lambda a: log_volume(lambda x: (x @ a).sin(), normal(4, 3)), a)


@pytest.mark.parametrize("side", ["decoder", "encoder", "encoder on manifold"])
def test_all_sides_agree_on_the_manifold_of_a_projection(side):
    w = normal(5, 2)
    e = torch.linalg.pinv(w)
    x = normal(6, 2, seed=1) @ w.T
    got = volume_term(lambda x: x @ e.T, lambda z: z @ w.T, x, side)
    torch.testing.assert_close(got, -0.5 * torch.logdet(w.T @ w).expand(6))


def test_sides_differ_by_the_bend_of_the_tube():
    radius, x = 2.0, normal(50, 2) + 3

    def angle(x):
        return torch.atan2(x[..., 1:], x[..., :1])

    def circle(z):
        return radius * torch.cat([z.cos(), z.sin()], -1)

    distance = radius - x.norm(dim=1)  # towards the centre
    off, on = (volume_term(angle, circle, x, side) for side in ("encoder", "encoder on manifold"))
    torch.testing.assert_close(on - off, (1 - distance / radius).abs().log())
    torch.testing.assert_close(on, volume_term(angle, circle, x, "decoder"))


def test_log_prob_is_a_density_per_volume_of_the_manifold():
    w = normal(4, 2)
    flow = InjectiveFlow(
        nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False), StandardNormal([2]).double()
    ).double()
    with torch.no_grad():
        flow.decoder.weight.copy_(w)
        flow.encoder.weight.copy_(torch.linalg.pinv(w))
    q = torch.linalg.qr(w).Q  # orthonormal coordinates of the plane: there it is an ordinary normal distribution
    x = normal(7, 4, seed=1)
    root = q.T @ w
    expected = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), root @ root.T).log_prob(x @ q)
    for side in ("decoder", "encoder", "encoder on manifold"):
        torch.testing.assert_close(flow.log_prob(x, side=side), expected)
    y, log_p = flow.sample_and_log_prob([9], generator=runtime.generator(0))
    torch.testing.assert_close(flow.log_prob(y), log_p)
    torch.testing.assert_close(flow.project(y), y)
    assert torch.equal(flow.sample([9], generator=runtime.generator(0)), y)


def test_a_context_is_passed_on():
    class Given(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, context):
            return self.net(x) * context

    encoder, decoder = networks()
    flow = InjectiveFlow(Given(encoder), Given(decoder), StandardNormal([2]).double())
    x, two = normal(3, 5), torch.full([1], 2.0, dtype=F64)
    direct = InjectiveFlow(nn.Sequential(encoder, Twice()), nn.Sequential(decoder, Twice()), flow.base)
    torch.testing.assert_close(flow.log_prob(x, two), direct.log_prob(x))
    assert flow.sample([4], two.expand(3, 1)).shape == (4, 3, 5)
    assert flow.project(x, two).shape == x.shape


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("side", ["decoder", "encoder", "encoder on manifold"])
def test_the_exact_loss_is_what_log_prob_says(side):
    flow, x = model(), normal(6, 5)
    loss, parts = exact_loss(flow.encode, flow.decode, x, beta=3.0, side=side)
    torch.testing.assert_close(parts["nll"], -flow.log_prob(x, side=side).mean())
    torch.testing.assert_close(loss, parts["nll"] + 3 * (x - flow.project(x)).square().sum(1).mean())


@pytest.mark.parametrize("detach", [False, True])
def test_the_on_manifold_surrogate_has_the_gradient_of_its_trace(detach):
    encoder, decoder = networks()
    x, v = normal(4, 5), math.sqrt(2) * torch.eye(2, dtype=F64)[:, None].expand(2, 4, 2)
    loss, parts = on_manifold_loss(encoder, decoder, x, beta=1.5, detach=detach, probes=v)

    def jacobians(f, x):
        return torch.stack([torch.autograd.functional.jacobian(f, row, create_graph=True) for row in x])

    z, x1 = encoder(x), decoder(encoder(x))
    pushed = jacobians(decoder, z).detach()
    pulled = jacobians(encoder, x1.detach() if detach else x1)
    trace = (pulled @ pushed).diagonal(dim1=1, dim2=2).sum(1)
    latent = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    expected = (1.5 * (x - x1).square().sum(1) + latent - trace).mean()
    torch.testing.assert_close(loss, expected)
    leaves = [*encoder.parameters(), *decoder.parameters()]
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b)
    assert set(parts) == {"latent", "reconstruction"}


def test_where_to_take_the_jacobian_is_no_question_for_linear_encoders():
    encoder, decoder = nn.Linear(5, 2).double(), nn.Linear(2, 5).double()
    x, v = normal(8, 5), normal(1, 8, 2, seed=1)
    leaves = [*encoder.parameters(), *decoder.parameters()]
    losses = [loss(encoder, decoder, x, beta=2.0, probes=v)[0] for loss in (fff_loss, on_manifold_loss)]
    for a, b in zip(*(torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


def test_the_volume_trains_the_encoder_only():
    encoder, decoder = networks()
    x, v = normal(8, 5), normal(1, 8, 2, seed=1)
    for beta in (1.0, 2.0):
        loss, parts = fff_loss(encoder, decoder, x, beta=beta, probes=v)
        whole = torch.autograd.grad(loss, list(decoder.parameters()), retain_graph=True)
        part = torch.autograd.grad(beta * parts["reconstruction"], list(decoder.parameters()), retain_graph=True)
        for a, b in zip(whole, part, strict=True):
            torch.testing.assert_close(a, b)


def test_a_stack_of_models_is_each_of_them():
    pairs = [networks(seed=k) for k in range(3)]
    encode, decode = (Stack(nets) for nets in zip(*pairs, strict=True))
    x = normal(6, 5)
    for side in ("decoder", "encoder", "encoder on manifold"):
        together = volume_term(encode, decode, x.expand(3, 6, 5), side)
        torch.testing.assert_close(together, torch.stack([volume_term(e, d, x, side) for e, d in pairs]))


def test_curvature_of_known_curves():
    t = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    torch.testing.assert_close(curvature(lambda t: torch.cat([t, 0.5 * t**2], -1), t), ((1 + t**2) ** -1.5).squeeze(1))
    helix = curvature(lambda t: torch.cat([3 * t.cos(), 3 * t.sin(), 4 * t], -1), t)
    torch.testing.assert_close(helix, torch.full([9], 3 / 25, dtype=F64))
    line = curvature(lambda t: torch.cat([t**3 + t, 2 * t**3 + 2 * t], -1), t)
    torch.testing.assert_close(line, torch.zeros(9, dtype=F64), atol=1e-7, rtol=0)


def test_curvature_does_not_depend_on_speed_and_passes_silu():
    decoder = networks(dim=3, latents=1)[1]
    t = normal(5, 1)
    torch.testing.assert_close(curvature(decoder, t), curvature(lambda s: decoder(s**3), t.sign() * t.abs() ** (1 / 3)))


def test_the_mixture_is_scikit_learns():
    z = torch.cat([normal(60, 3), 0.3 * normal(40, 3, seed=1) + 4])
    mixture = LatentMixture.fit(z, 2, runtime.generator(0))
    theirs = GaussianMixture(2, random_state=0, reg_covar=1e-4).fit(z.numpy())
    expected = torch.tensor(theirs.score_samples(z.numpy()))
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-3, atol=1e-3)
    x = mixture.sample([100, 200], runtime.generator(1))
    assert x.shape == (100, 200, 3) and x.dtype == F64
    torch.testing.assert_close(x.mean((0, 1)), z.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(x.flatten(0, 1).T), torch.cov(z.T, correction=0), atol=0.15, rtol=0)
    assert mixture.sample([0]).shape == (0, 3) and mixture.sample([]).shape == (3,)


def test_one_component_is_a_normal_and_replaces_the_base():
    z = normal(500, 2) @ normal(2, 2, seed=1)
    mixture = LatentMixture.fit(z, 1, runtime.generator(0))
    exact = torch.distributions.MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0) + 1e-4 * torch.eye(2))
    torch.testing.assert_close(mixture.log_prob(z), exact.log_prob(z))
    encoder, decoder = networks()
    again = InjectiveFlow(encoder, decoder, mixture)
    x, log_p = again.sample_and_log_prob([5], generator=runtime.generator(0))
    assert x.shape == (5, 5) and log_p.isfinite().all()
    reloaded = LatentMixture(mixture.weights, mixture.means + 1, torch.eye(2, dtype=F64)[None])
    reloaded.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(reloaded.log_prob(z), mixture.log_prob(z))


def test_training_finds_the_principal_axis():
    """The surrogate below the threshold 1 / (2 * 0.25) of the exact loss."""
    source = runtime.generator(0)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(2, 1), nn.Linear(1, 2)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.03)
    for _ in range(400):
        x = torch.randn(256, 2, generator=source) * torch.tensor([0.5, 1.0])
        optimiser.zero_grad()
        fff_loss(encoder, decoder, x, beta=0.5, generator=source)[0].backward()
        optimiser.step()
    axis = encoder.weight.detach()[0]
    assert abs(axis[1]) / axis.norm() > 0.99
    assert abs(axis[1]).item() == pytest.approx(1, abs=0.1)  # and it whitens


encoder, decoder = networks()
HALF, EYES = torch.full([2], 0.5, dtype=F64), torch.eye(3, dtype=F64).expand(2, 3, 3)


def one(z):
    return z[..., :1]


class Thin(nn.Module):
    def forward(self, z):
        return z[..., :1]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: volume_term(encoder, decoder, normal(2, 5), "f"),
            ValueError,
            "side: got 'f', expected one of 'decoder'",
        ),
        (lambda: model().log_prob(normal(2, 5), side="x"), ValueError, "side: got 'x'"),
        (lambda: exact_loss(encoder, decoder, normal(2, 5), beta=0, side="decoder"), ValueError, "beta: got 0"),
        (lambda: on_manifold_loss(encoder, decoder, normal(2, 5), beta=-1.0), ValueError, "beta: got -1.0"),
        (lambda: on_manifold_loss(encoder, decoder, [1.0], beta=1.0), TypeError, "x: got list"),
        (lambda: on_manifold_loss(encoder, decoder, normal(2, 5) + math.nan, beta=1.0), ValueError, "x: has values"),
        (
            lambda: on_manifold_loss(encoder, decoder, normal(2, 5), beta=1.0, probes=normal(1, 2, 5)),
            ValueError,
            "probes: got",
        ),
        (lambda: exact_loss(encoder, decoder, [1.0], beta=1.0, side="decoder"), TypeError, "x: got list"),
        (
            lambda: exact_loss(encoder, decoder, normal(0, 5), beta=1.0, side="decoder"),
            ValueError,
            "x: got shape .0, 5.",
        ),
        (lambda: on_manifold_loss(encoder, decoder, normal(0, 5), beta=1.0), ValueError, "x: got shape .0, 5."),
        (
            lambda: exact_loss(encoder, one, normal(2, 5), beta=1.0, side="encoder"),
            ValueError,
            "decode: its output has",
        ),
        (
            lambda: on_manifold_loss(encoder, one, normal(2, 5), beta=1.0),
            ValueError,
            "decode: its output has shape .2, 1",
        ),
        (
            lambda: InjectiveFlow(encoder, Thin(), 2).log_prob(normal(2, 5)),
            ValueError,
            "decoder: its output has shape .2",
        ),
        (lambda: model().log_prob([[0.0] * 5]), TypeError, "x: got list"),
        (lambda: model().log_prob(normal(2, 5) / 0), ValueError, "x: has values that are not finite"),
        (lambda: LatentMixture(HALF[:1], normal(2, 3), EYES), ValueError, "weights: got shape .1,., expected .2,."),
        (lambda: LatentMixture(HALF, normal(2, 3), EYES[:, :2]), ValueError, "covariances: got shape .2, 2, 3."),
        (lambda: LatentMixture(HALF.float(), normal(2, 3), EYES), TypeError, "weights: got torch.float32"),
        (
            lambda: LatentMixture(2 * HALF, normal(2, 3), EYES),
            ValueError,
            "weights: got .1.0, 1.0., expected numbers > 0",
        ),
        (
            lambda: LatentMixture(HALF * 3 - EYES[0, 0, :2] * 2, normal(2, 3), EYES),
            ValueError,
            "weights: got .-0.5, 1.5",
        ),
        (lambda: LatentMixture(HALF, normal(2, 3), -EYES), ValueError, "covariances: got a matrix that is not"),
        (lambda: LatentMixture.fit(normal(3, 2), 4), ValueError, "z: got 3 codes, expected at least num_components=4"),
        (lambda: LatentMixture.fit(normal(3), 1), ValueError, "z: got shape .3,., expected .n, dim."),
        (lambda: LatentMixture.fit(normal(3, 2), 0), ValueError, "num_components: got 0"),
        (lambda: LatentMixture.fit(normal(3, 2) / 0, 1), ValueError, "z: has values that are not finite"),
        (lambda: model().log_prob(torch.zeros(2, 5, dtype=F64)[..., :4]), RuntimeError, "shapes cannot be multiplied"),
        (lambda: model().as_distribution(), NotImplementedError, "density on its manifold only"),
    ],
)
def test_bad_input_is_named(call, kind, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind, match=message):
        call()
