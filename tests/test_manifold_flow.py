"""Free-form flows and flow matching on manifolds: exact gradients, limits that are known, densities that integrate."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.flows import StandardNormal
from refimpl.free_form import (
    SO3,
    Euclidean,
    FreeFormFlow,
    ManifoldFlow,
    MatchingFlow,
    PoincareBall,
    Product,
    Sphere,
    Uniform,
    VonMisesFisherMixture,
    WrappedNormalMixture,
    manifold_log_det,
    manifold_loss,
    model_integral,
    moebius_add,
    tangent_probes,
    volume_change_surrogate,
)
from refimpl.nets import residual_mlp
from refimpl.training import fit

F64 = torch.float64
LIKE = torch.zeros(1, dtype=F64)
MANIFOLDS = [Sphere(2), Sphere(1, copies=2), SO3(), PoincareBall(2), Product(SO3(), Sphere(2)), Euclidean(3)]
everywhere = pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)


def source(seed=0):
    return runtime.generator(seed)


def points(manifold, n=40, seed=0):
    if math.isfinite(manifold.volume):
        return manifold.uniform([n], source(seed), LIKE)
    return 0.25 * torch.randn(n, manifold.dim, dtype=F64, generator=source(seed))


def encoder(manifold, seed=0, width=12):
    torch.manual_seed(seed)
    net = residual_mlp(manifold.ambient_dim, width=width, depth=2).double()
    return net, (lambda x: manifold.project(0.7 * net(x)))


def flat(values):
    return torch.cat([v.flatten() for v in values])


@everywhere
def test_surrogate_with_all_tangent_probes_has_the_exact_gradient(manifold):
    net, encode = encoder(manifold)
    x = points(manifold)
    z, log_det = manifold_log_det(encode, x, manifold)
    exact = log_det - manifold.metric_log_scale(z) + manifold.metric_log_scale(x)
    exact = flat(torch.autograd.grad(exact.sum(), net.parameters(), materialize_grads=True))
    q, r = manifold.frame(x), manifold.frame(z).detach()
    inverse = q @ torch.linalg.inv(r.mT @ jacobian(encode, x).detach() @ q) @ r.mT

    def decode(y):
        return x + (inverse @ (y - z.detach()).unsqueeze(-1)).squeeze(-1)

    found = volume_change_surrogate(encode, decode, x, probes=tangent_probes(manifold, manifold.dim, source()))
    torch.testing.assert_close(found.surrogate.detach(), torch.full((40,), float(manifold.dim), dtype=F64))
    got = flat(torch.autograd.grad(found.surrogate.sum(), net.parameters(), materialize_grads=True))
    assert (got - exact).norm() < 1e-6 * exact.norm()


@everywhere
def test_probes_are_tangent_of_length_sqrt_n_and_average_to_the_projector(manifold):
    z = points(manifold, 2)
    many = z[:1].expand(40_000, -1)
    v = tangent_probes(manifold, 1, source())(many)[0]
    torch.testing.assert_close(v.square().sum(1), torch.full((40_000,), float(manifold.dim), dtype=F64))
    torch.testing.assert_close(manifold.tangent(many, v), v)
    frame = manifold.frame(z[0])
    torch.testing.assert_close(v.T @ v / len(v), frame @ frame.T, atol=0.05, rtol=0)
    several = tangent_probes(manifold, manifold.dim, source())(z)
    torch.testing.assert_close(
        (several.unsqueeze(-1) @ several.unsqueeze(-2)).mean(0), manifold.frame(z) @ manifold.frame(z).mT
    )


def test_linear_maps_of_the_sphere_have_the_closed_form():
    sphere = Sphere(3)
    a = torch.eye(4, dtype=F64) + 0.4 * torch.randn(4, 4, dtype=F64, generator=source())
    x = points(sphere)
    z, log_det = manifold_log_det(lambda x: sphere.project(x @ a.T), x, sphere)
    torch.testing.assert_close(log_det, a.det().abs().log() - 4 * (x @ a.T).norm(dim=1).log())
    s = volume_change_surrogate(
        lambda x: sphere.project(x @ a.T),
        lambda z: sphere.project(z @ torch.linalg.inv(a).T),
        x.requires_grad_(),
        probes=tangent_probes(sphere, 1, source()),
    ).surrogate
    torch.testing.assert_close(
        s.detach(), torch.full((40,), 3.0, dtype=F64)
    )  # the exact inverse: no variance in the value


def test_flat_limit_is_a_free_form_flow():
    torch.manual_seed(0)
    nets = [residual_mlp(3, width=8, depth=2).double() for _ in range(2)]
    x = points(Euclidean(3))
    base = StandardNormal([3]).double()
    flat_flow, flow = FreeFormFlow(*nets, base), ManifoldFlow(*nets, base, Euclidean(3))
    for side in ("decoder", "encoder"):
        torch.testing.assert_close(flow.log_prob(x, side=side), flat_flow.log_prob(x, side=side))
    probes = torch.randn(1, 40, 3, dtype=F64, generator=source())
    a = flat_flow.loss(x, beta=3.0, probes=probes)[0]
    b = flow.loss(x, beta=3.0, probes=lambda z: probes)[0]
    torch.testing.assert_close(a, b)


def inverse_pair(manifold):
    """Two networks of which the second inverts the first, after projection."""
    if isinstance(manifold, PoincareBall):
        a = torch.tensor([0.4, 0.1], dtype=F64)
        return Shift(a), Shift(-a)
    a = torch.eye(3, dtype=F64) + 0.3 * torch.randn(3, 3, dtype=F64, generator=source())
    kind = Rows if isinstance(manifold, SO3) else Linear
    return kind(a), kind(torch.linalg.inv(a))


@pytest.mark.parametrize("manifold", [Sphere(2), SO3(), PoincareBall(2)], ids=repr)
def test_log_prob_by_both_sides_and_of_samples_agree_for_inverse_networks(manifold):
    maps = inverse_pair(manifold)
    mean = points(manifold, 1)
    flow = ManifoldFlow(*maps, WrappedNormalMixture(manifold, mean, 0.8))
    x, log_prob = flow.sample_and_log_prob([30], generator=source())
    manifold.check("x", x, 1e-10)
    torch.testing.assert_close(flow.sample([30], generator=source()), x)
    for side in ("decoder", "encoder"):
        torch.testing.assert_close(flow.log_prob(x, side=side), log_prob)
    if math.isfinite(manifold.volume):
        integral, error = model_integral(flow.log_prob, manifold.uniform([20_000], source(1), LIKE), manifold)
        assert abs(integral - 1) < 5 * error


class Linear(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x):
        return x @ self.a.T


class Rows(Linear):
    """A X for a matrix X; Gram and Schmidt's projection commutes with upper triangular factors from the right."""

    def forward(self, x):
        return (self.a @ x.unflatten(-1, (3, 3))).flatten(-2)


class Shift(Linear):
    def forward(self, x):
        return moebius_add(self.a.expand_as(x), x)


def test_encoders_integral_counts_preimages():
    """An encoder that goes round a circle twice: every latent has two preimages."""
    circle = Sphere(1)

    class Twice(nn.Module):
        def forward(self, x):
            return torch.stack([x[..., 0] ** 2 - x[..., 1] ** 2, 2 * x[..., 0] * x[..., 1]], -1)

    flow = ManifoldFlow(Twice(), nn.Identity(), Uniform(circle))
    angle = torch.arange(100) * 2 * math.pi / 100
    grid = torch.stack([angle.cos(), angle.sin()], -1)
    assert model_integral(lambda x: flow.log_prob(x, side="encoder"), grid, circle)[0] == pytest.approx(2, abs=1e-4)


def test_loss_has_the_parts_that_it_names():
    sphere = Sphere(2)
    torch.manual_seed(0)
    nets = [residual_mlp(3, width=8, depth=2).double() for _ in range(2)]
    x = points(sphere)
    base = Uniform(sphere).double()
    common = dict(manifold=sphere, base=base, generator=source(), beta=2.0)
    plain, terms = manifold_loss(*nets, x, **common)
    assert set(terms) == {"latent", "reconstruction"} and terms["latent"].item() == pytest.approx(math.log(4 * math.pi))
    raw = [nets[0](x), nets[1](sphere.project(nets[0](x)))]
    off = sum((y.norm(dim=1) - 1).square().mean() for y in raw)
    common["generator"] = source()
    more, terms = manifold_loss(*nets, x, **common, beta_projection=5.0)
    torch.testing.assert_close(terms["projection"], off)
    torch.testing.assert_close(more - plain, 5 * off)
    common["generator"] = source()
    more, terms = manifold_loss(*nets, x, **common, beta_cycle=3.0)
    torch.testing.assert_close(more - plain, 3 * terms["cycle"])
    perfect = manifold_loss(nn.Identity(), nn.Identity(), x, manifold=sphere, base=base, beta=1, beta_cycle=1)[1]
    assert perfect["cycle"] < 1e-12 and perfect["reconstruction"] < 1e-12


def test_metric_term_stands_in_the_loss():
    disk = PoincareBall(2)
    x, base = points(disk), WrappedNormalMixture(disk, torch.zeros(1, 2, dtype=F64), 1.0)
    scale = nn.Parameter(torch.tensor(0.5, dtype=F64))
    loss, terms = manifold_loss(lambda x: scale * x, lambda z: z / scale, x, manifold=disk, base=base, beta=1.0)
    z = 0.5 * x
    wanted = base.log_prob(z) + disk.metric_log_scale(z) - disk.metric_log_scale(x)
    torch.testing.assert_close(terms["latent"], -wanted.mean())
    (got,) = torch.autograd.grad(loss, scale)
    h = 1e-6

    def exact(s):
        return -(base.log_prob(s * x) + disk.metric_log_scale(s * x) + 2 * math.log(s)).mean().item()

    assert got.item() == pytest.approx((exact(0.5 + h) - exact(0.5 - h)) / (2 * h), rel=1e-5)


def test_training_learns_and_is_reproducible():
    sphere, law = Sphere(2), VonMisesFisherMixture(torch.eye(3)[:2], 5.0)

    def run():
        torch.manual_seed(0)
        flow, g = ManifoldFlow(*(residual_mlp(3, width=32, depth=3) for _ in range(2)), Uniform(sphere)), source()
        fit(
            flow,
            lambda: flow.loss(law.sample([128], g), generator=g, beta=30, beta_cycle=3),
            num_steps=150,
            lr=1e-2,
            schedule="warmup_cosine",
            clip_norm=1.0,
            progress=False,
        )
        return flow

    a, b = run(), run()
    assert torch.equal(flat(a.parameters()), flat(b.parameters()))
    x = law.sample([2000], source(1))
    gap = (law.log_prob(x) - a.log_prob(x)).mean().item()
    assert gap < 0.5 * (law.log_prob(x).mean().item() + math.log(4 * math.pi))
    assert model_integral(lambda x: a.log_prob(x, side="encoder"), sphere.uniform([4000], source(2)), sphere)[
        0
    ] == pytest.approx(1, abs=0.1)


def test_contexts_condition_a_flow():
    sphere = Sphere(2)
    torch.manual_seed(0)
    flow = ManifoldFlow(*(residual_mlp(3, width=8, depth=2, dim_context=1) for _ in range(2)), Uniform(sphere))
    context = torch.linspace(-1, 1, 6)[:, None]
    x = flow.sample([], context, source())
    assert x.shape == (6, 3) and flow.sample([4], context, source()).shape == (4, 6, 3)
    assert flow.log_prob(x, context).shape == (6,)
    loss, _ = flow.loss(x, context, beta=1.0, beta_cycle=1.0, generator=source())
    loss.backward()
    assert flow.as_distribution(context).sample([2]).shape == (2, 6, 3)


class Turning(nn.Module):
    """Velocity of a rigid rotation about the last axis: the exact answer, and no divergence."""

    def forward(self, x, t):
        return 0.7 * torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1)


def test_matching_flow_follows_a_known_velocity():
    base = VonMisesFisherMixture(torch.tensor([[1.0, 0.0, 0.0]], dtype=F64), 5.0)
    flow = MatchingFlow(Turning(), base, Sphere(2))
    turned = VonMisesFisherMixture(torch.tensor([[math.cos(0.7), math.sin(0.7), 0.0]], dtype=F64), 5.0)
    x = flow.sample([2000], 100, source())
    assert flow.num_calls == 100
    torch.testing.assert_close(x.mean(0), turned.sample([20_000], source(1)).mean(0), atol=0.03, rtol=0)
    x = turned.sample([50], source(2))
    torch.testing.assert_close(flow.log_prob(x, 20), turned.log_prob(x), atol=1e-3, rtol=0)


def test_matching_flow_divergence_is_that_of_the_flow_map():
    """log_prob by divergences against the exact change of volume of the solver's own map, for a random network."""
    torch.manual_seed(0)
    sphere = Sphere(2)
    flow = MatchingFlow(residual_mlp(3, width=8, depth=2, dim_context=1).double(), Uniform(sphere).double())
    x, steps = points(sphere, 10), 40

    def back(x):
        for k in range(steps, 0, -1):
            middle = sphere.project(x - 0.5 / steps * flow.velocity(x, k / steps))
            x = sphere.project(x - 1 / steps * flow.velocity(middle, (k - 0.5) / steps))
        return x

    wanted = -math.log(4 * math.pi) + manifold_log_det(back, x, sphere)[1]
    torch.testing.assert_close(flow.log_prob(x, steps), wanted.detach(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("manifold", [Sphere(2), Sphere(1, copies=2), SO3()], ids=repr)
def test_matching_loss_is_zero_for_the_velocity_of_a_single_geodesic(manifold):
    start, end = points(manifold, 2)

    class Geodesic(nn.Module):
        def forward(self, x, t):
            return manifold.log(x, end.expand_as(x)) / (1 - t)

    class Point(Uniform):
        def sample(self, shape=(), generator=None):
            return start.expand(*shape, -1)

    flow = MatchingFlow(Geodesic(), Point(manifold).double())
    assert flow.loss(end.expand(20, -1), source()) < 1e-12
    torch.testing.assert_close(flow.sample([1], 50)[0], end, atol=0.05, rtol=0)


SPHERE = Sphere(2)
X = torch.tensor([[0.0, 0.0, 1.0]])
FLOW = ManifoldFlow(nn.Identity(), nn.Identity(), Uniform(SPHERE))
MIXED = Product(SPHERE, PoincareBall(2))


def test_error_of_an_integral_counts_every_point_of_a_grid():
    points = SPHERE.uniform([10, 20], source())
    law = VonMisesFisherMixture(X, 2.0)
    assert model_integral(law.log_prob, points, SPHERE) == pytest.approx(
        model_integral(law.log_prob, points.view(-1, 3), SPHERE)
    )


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: FLOW.log_prob(2 * X), ValueError, "x: has points that are off Sphere"),
        (lambda: FLOW.log_prob(X[:, :2]), ValueError, "x: got shape"),
        (lambda: FLOW.log_prob(X, side="both"), ValueError, "side: got 'both'"),
        (lambda: FLOW.loss(X, beta=0), ValueError, "beta: got 0"),
        (lambda: FLOW.loss(X, beta=1, beta_cycle=-1), ValueError, "beta_cycle: got -1"),
        (lambda: FLOW.loss(X, beta=1, beta_projection=math.nan), ValueError, "beta_projection: got nan"),
        (lambda: FLOW.loss(X[:, :2], beta=1), ValueError, "x: got shape"),
        (lambda: FLOW.loss(2 * X, beta=1), ValueError, "x: has points that are off"),
        (lambda: FLOW.loss(X, beta=1, num_probes=3), ValueError, "num_probes must be at least 1"),
        (lambda: ManifoldFlow(nn.Identity(), nn.Identity(), StandardNormal([3])), TypeError, "manifold: got None"),
        (lambda: ManifoldFlow(nn.Identity(), nn.Identity(), Uniform(SPHERE), SO3()), ValueError, "base: got events"),
        (lambda: FLOW.loss(X[:0], beta=1), ValueError, "x: got shape .0, 3., expected one point or more"),
        (lambda: model_integral(FLOW.log_prob, X[:0], SPHERE), ValueError, "points: got shape .0, 3., expected two"),
        (lambda: model_integral(lambda x: x[:, 0], 2 * X, SPHERE), ValueError, "points: has points that are off"),
        (lambda: model_integral(FLOW.log_prob, X, PoincareBall(3)), ValueError, "manifold: got PoincareBall"),
        (lambda: MatchingFlow(nn.Identity(), StandardNormal([2])), TypeError, "manifold: got None"),
        (lambda: MatchingFlow(nn.Identity(), StandardNormal([2]), PoincareBall(2)), TypeError, "isometrically"),
        (lambda: MatchingFlow(nn.Identity(), StandardNormal([5]), MIXED), TypeError, "manifold: got Product"),
        (lambda: MatchingFlow(Turning(), Uniform(SPHERE)).sample([2], 0), ValueError, "num_steps: got 0"),
        (lambda: MatchingFlow(Turning(), Uniform(SPHERE)).log_prob(2 * X), ValueError, "x: has points that are off"),
    ],
)
def test_bad_input_names_the_argument(call, error, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error, match=match):
        call()
