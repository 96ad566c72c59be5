"""Manifolds and their densities against closed forms, geoopt and scipy: projections, frames, geodesics, volumes, samples."""

import math
import warnings

import jaxtyping
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.transform import Rotation

from refimpl import runtime
from refimpl.autodiff import jacobian, jvp
from refimpl.data import on_torus, repeated, split_points
from refimpl.free_form import (
    SO3,
    Euclidean,
    PoincareBall,
    Product,
    Sphere,
    Uniform,
    VonMisesFisherMixture,
    WrappedNormalMixture,
    manifold_log_det,
    moebius_add,
)

F64 = torch.float64
LIKE = torch.zeros(1, dtype=F64)
MANIFOLDS = [
    Sphere(2),
    Sphere(1),
    Sphere(4),
    Sphere(1, copies=3),
    Sphere(2, copies=2),
    SO3(),
    PoincareBall(3),
    Euclidean(2),
    Product(SO3(), Sphere(1, copies=2), PoincareBall(2)),
]
COMPACT = [m for m in MANIFOLDS if math.isfinite(m.volume)]
everywhere = pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)


def source(seed=0):
    return runtime.generator(seed)


def points(manifold, n, seed=0):
    if isinstance(manifold, Product):
        return torch.cat([points(f, n, seed) for f in manifold.factors], -1)
    if math.isfinite(manifold.volume):
        return manifold.uniform([n], source(seed), LIKE)
    x = torch.randn(n, manifold.dim, dtype=F64, generator=source(seed))
    return 0.6 * x / (1 + x.norm(dim=1, keepdim=True)) if isinstance(manifold, PoincareBall) else x


def near(manifold, x, size=0.4, seed=1):
    """Points a geodesic length of about `size` away."""
    w = size * torch.randn(len(x), manifold.dim, 1, dtype=F64, generator=source(seed)) / math.sqrt(manifold.dim)
    return manifold.exp(x, (manifold.unit_frame(x) @ w).squeeze(-1))


@everywhere
def test_projection_is_idempotent_and_keeps_the_manifold(manifold):
    y = torch.randn(50, manifold.ambient_dim, dtype=F64, generator=source())
    on = manifold.project(y)
    manifold.check("on", on, 1e-12)
    torch.testing.assert_close(manifold.project(on), on, rtol=0, atol=1e-12)
    x = points(manifold, 50)
    torch.testing.assert_close(manifold.project(x), x, rtol=0, atol=1e-12)


@everywhere
def test_frame_is_an_orthonormal_basis_of_what_tangent_projects_onto(manifold):
    x = points(manifold, 30)
    frame = manifold.frame(x)
    assert frame.shape == (30, manifold.ambient_dim, manifold.dim)
    torch.testing.assert_close(frame.mT @ frame, torch.eye(manifold.dim, dtype=F64).expand(30, -1, -1))
    u = torch.randn(x.shape, dtype=F64, generator=source(1))
    inside = manifold.tangent(x, u)
    torch.testing.assert_close((frame @ frame.mT @ u.unsqueeze(-1)).squeeze(-1), inside)
    torch.testing.assert_close(manifold.tangent(x, inside), inside)


@everywhere
def test_projection_differentiates_to_the_identity_on_tangents(manifold):
    x = points(manifold, 20)
    frame, slope = manifold.frame(x), jacobian(manifold.project, x)
    torch.testing.assert_close(slope @ frame, frame)  # and its image is tangent:
    torch.testing.assert_close(frame @ (frame.mT @ slope), slope)
    if isinstance(manifold, Sphere):  # here it is the orthogonal projection
        torch.testing.assert_close(slope, frame @ frame.mT)


@everywhere
def test_exp_and_log_are_inverse_and_have_the_length_of_the_distance(manifold):
    x = points(manifold, 40)
    y = near(manifold, x)
    v = manifold.log(x, y)
    torch.testing.assert_close(manifold.exp(x, v), y)
    torch.testing.assert_close(manifold.tangent(x, v), v)
    coordinates = torch.linalg.lstsq(manifold.unit_frame(x), v.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(coordinates.norm(dim=1), manifold.distance(x, y))
    half = manifold.exp(x, v / 2)
    torch.testing.assert_close(manifold.distance(x, half), manifold.distance(x, y) / 2)
    assert manifold.distance(x, x).abs().max() < 1e-7


@everywhere
def test_geodesics_start_with_their_velocity(manifold):
    x = points(manifold, 10)
    v = manifold.log(x, near(manifold, x))
    t = torch.zeros(10, 1, dtype=F64) + 1e-6
    torch.testing.assert_close(jvp(lambda t: manifold.exp(x, t * v), t, torch.ones_like(t))[1], v, rtol=1e-4, atol=1e-5)


@everywhere
def test_exp_expands_volume_by_what_the_wrapped_normal_divides_by(manifold):
    """Change of variables of v -> exp(mean, v) by its Jacobian; small enough that no second image counts."""
    mean, frame = points(manifold, 1)[0], manifold.unit_frame(points(manifold, 1)[0])
    w = 0.25 * torch.randn(20, manifold.dim, dtype=F64, generator=source(2))

    def push(w):
        return manifold.exp(mean.expand(*w.shape[:-1], -1), w @ frame.mT)

    x = push(w)
    inner = manifold.frame(x).mT @ jacobian(push, w)
    log_det = torch.linalg.slogdet(inner).logabsdet + manifold.metric_log_scale(x)
    normal = (-0.5 * (w / 0.25).square() - math.log(0.25 * math.sqrt(2 * math.pi))).sum(1)
    torch.testing.assert_close(manifold.log_wrapped_normal(x, mean, 0.25), normal - log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("manifold", COMPACT, ids=repr)
def test_wide_wrapped_normals_integrate_to_one(manifold):
    law = WrappedNormalMixture(manifold, points(manifold, 2, 3), 1.5)
    density = law.log_prob(points(manifold, 40_000, 4)).exp() * manifold.volume
    assert abs(density.mean() - 1) < 5 * density.std() / 200


@pytest.mark.parametrize("std", [7.0, 25.0])
def test_very_wide_wrapped_normals_make_all_angles_equally_likely(std):
    angle = torch.linspace(0.1, 3.0, 7, dtype=F64)
    x = torch.stack([angle.cos(), angle.sin()], -1)
    law = WrappedNormalMixture(Sphere(1), torch.tensor([[1.0, 0.0]], dtype=F64), std)
    torch.testing.assert_close(law.log_prob(x).exp() * 2 * math.pi, torch.ones(7, dtype=F64))
    law = WrappedNormalMixture(SO3(), torch.eye(3, dtype=F64).flatten()[None], std)
    turned = law.manifold.exp(law.means, (law.manifold.unit_frame(law.means[0])[:, 0] * angle[:, None]))
    density = law.log_prob(turned).exp() * 4 * math.pi * (2 - 2 * angle.cos())
    torch.testing.assert_close(density * math.pi, torch.ones(7, dtype=F64), rtol=1e-3, atol=0)


def test_wrapped_normal_on_the_disk_integrates_to_one():
    disk = PoincareBall(2)
    law = WrappedNormalMixture(disk, torch.tensor([[0.3, -0.6]], dtype=F64), 0.9)
    r, a = (torch.arange(1000, dtype=F64) + 0.5) / 1000, torch.arange(200, dtype=F64) * 2 * math.pi / 200
    x = r[:, None, None] * torch.stack([a.cos(), a.sin()], -1)
    area = disk.metric_log_scale(x).exp() * r[:, None] / 1000 * 2 * math.pi / 200
    assert abs((law.log_prob(x).exp() * area).sum() - 1) < 1e-4


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_samples_of_wrapped_normals_have_their_density(manifold):
    """Mean log-density of samples is minus the entropy, which for a narrow law is that of a normal."""
    law = WrappedNormalMixture(manifold, points(manifold, 1, 5), 0.05)
    x = law.sample([20_000], source(6))
    manifold.check("x", x, 1e-9)
    entropy = manifold.dim * (0.5 + math.log(0.05 * math.sqrt(2 * math.pi)))
    assert abs(-law.log_prob(x).mean().item() - entropy) < 0.03
    squares = manifold.distance(law.means.expand_as(x), x).square().mean() / 0.05**2
    assert abs(squares / manifold.dim - 1) < 0.03


def test_volumes_and_uniform_moments():
    assert [round(Sphere(n).volume, 6) for n in (1, 2, 3)] == [6.283185, 12.566371, 19.739209]
    assert SO3().volume == pytest.approx(8 * math.pi**2) and Sphere(1, copies=3).volume == pytest.approx(8 * math.pi**3)
    for manifold in (Sphere(2), Sphere(1, copies=2), SO3()):
        x = manifold.uniform([40_000], source(), LIKE)
        assert x.mean(0).abs().max() < 0.02
        second = x.T @ x / len(x)
        torch.testing.assert_close(
            second.diagonal(), torch.full_like(second[0], 1 / len(x[0]) * second.trace()), atol=0.01, rtol=0
        )
    turn = SO3().uniform([5000], source(), LIKE).view(-1, 3, 3)
    haar = scipy.stats.special_ortho_group(3, seed=0).rvs(5000)
    mine, theirs = (np.arccos((np.trace(r, axis1=1, axis2=2) - 1) / 2) for r in (turn.numpy(), haar))
    assert scipy.stats.ks_2samp(mine, theirs).pvalue > 1e-3


def test_so3_agrees_with_scipys_rotations():
    manifold = SO3()
    a, b = (Rotation.random(20, random_state=k) for k in (0, 1))
    x, y = (torch.tensor(r.as_matrix()).flatten(-2) for r in (a, b))
    between = (a.inv() * b).as_rotvec()
    np.testing.assert_allclose(manifold.distance(x, y), np.linalg.norm(between, axis=1), atol=1e-9)
    rotvec = torch.tensor(np.random.default_rng(0).normal(size=(20, 3)))
    v = (manifold.unit_frame(x) @ rotvec.unsqueeze(-1)).squeeze(-1)
    wanted = (a * Rotation.from_rotvec(rotvec.numpy())).as_matrix()
    np.testing.assert_allclose(manifold.exp(x, v).view(-1, 3, 3), wanted, atol=1e-12)


def test_sphere_and_ball_agree_with_geoopt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import geoopt
    for mine, theirs in ((Sphere(3), geoopt.Sphere()), (PoincareBall(3), geoopt.PoincareBall())):
        x = points(mine, 30)
        y = near(mine, x, 0.8)
        torch.testing.assert_close(mine.distance(x, y), theirs.dist(x, y).reshape(-1))
        v = mine.log(x, y)
        torch.testing.assert_close(theirs.logmap(x, y), v)
        torch.testing.assert_close(theirs.expmap(x, v), mine.exp(x, v))
    torch.testing.assert_close(geoopt.PoincareBall().mobius_add(x, y), moebius_add(x, y))


def test_so3_projection_has_finite_first_and_second_derivatives_at_rotations():
    manifold = SO3()
    x = manifold.uniform([5], source(), LIKE).requires_grad_()
    (first,) = torch.autograd.grad(manifold.project(x)[:, 1].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all() and second.isfinite().all()
    near_identity = torch.eye(3, dtype=F64).flatten() + 1e-3 * torch.randn(20, 9, dtype=F64, generator=source())
    u, _, v = torch.linalg.svd(near_identity.view(-1, 3, 3))
    assert (manifold.project(near_identity).view(-1, 3, 3) - u @ v).abs().max() < 5e-3


@pytest.mark.parametrize("manifold", [Sphere(2), SO3(), PoincareBall(3)], ids=repr)
def test_isometries_keep_volume(manifold):
    x, g = points(manifold, 20), source(7)
    turn = SO3().uniform([2], g, LIKE).view(2, 3, 3)
    f = {
        3: lambda x: moebius_add(torch.tensor([0.2, -0.5, 0.4], dtype=F64).expand_as(x), x @ turn[0].T),
        9: lambda x: (turn[0] @ x.unflatten(-1, (3, 3)) @ turn[1]).flatten(-2),
    }[manifold.ambient_dim]
    if isinstance(manifold, Sphere):
        f = lambda x: x @ turn[0].T  # noqa: E731
    assert manifold_log_det(f, x, manifold)[1].abs().max() < 1e-12


def test_von_mises_fisher_agrees_with_scipy():
    mean = torch.tensor([[0.6, 0.0, 0.8]], dtype=F64)
    for kappa in (0.5, 10.0, 200.0):
        law = VonMisesFisherMixture(mean, kappa)
        theirs = scipy.stats.vonmises_fisher(mean[0].numpy(), kappa)
        x = law.sample([4000], source())
        np.testing.assert_allclose(law.log_prob(x), theirs.logpdf(x.numpy()), atol=1e-9)
        np.testing.assert_allclose(x.norm(dim=1), 1, atol=1e-12)
        other = theirs.rvs(4000, random_state=np.random.default_rng(0)) @ mean[0].numpy()
        assert scipy.stats.ks_2samp((x @ mean[0]).numpy(), other).pvalue > 1e-3


def test_von_mises_fisher_mixture_weighs_its_components_and_learns():
    law = VonMisesFisherMixture(
        torch.eye(3), torch.tensor([5.0, 50.0, 500.0]), torch.tensor([1.0, 2.0, 1.0]), learned=True
    )
    x = law.sample([8000], source())
    nearest = (x @ torch.eye(3)).argmax(1).bincount() / 8000
    torch.testing.assert_close(nearest, torch.tensor([0.25, 0.5, 0.25]), atol=0.03, rtol=0)
    assert not law.has_rsample and len(list(law.parameters())) == 3
    (-law.log_prob(x).mean()).backward()
    assert all(p.grad.isfinite().all() for p in law.parameters())


def test_densities_of_points_that_are_not_finite_are_not_finite():
    """A training that diverges must show as such, and not as a point off the manifold or as a likelihood."""
    nan = torch.full((2, 3), math.nan)
    for law in (Uniform(Sphere(2)), VonMisesFisherMixture(torch.eye(3), 3.0)):
        assert law.log_prob(nan).isnan().all() and law.manifold.ambient_dim == 3
    assert WrappedNormalMixture(PoincareBall(3), torch.zeros(1, 3), 1.0).log_prob(nan).isnan().all()


def test_samples_are_reproducible_and_follow_dtype():
    for law in (
        Uniform(Sphere(1, copies=2)),
        WrappedNormalMixture(SO3(), torch.eye(3).flatten()[None], 0.3),
        VonMisesFisherMixture(torch.eye(3), 3.0),
    ):
        a, b = (law.sample([4], source(3)) for _ in range(2))
        assert torch.equal(a, b) and a.dtype == torch.float32
        assert law.sample([], source(3)).shape == law.event_shape
        assert law.double().sample([2], source()).dtype == F64


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Sphere(0), "dim: got 0"),
        (lambda: Sphere(2, copies=0), "copies: got 0"),
        (lambda: PoincareBall(2).uniform([3]), "PoincareBall.2. has infinite volume"),
        (lambda: Uniform(PoincareBall(2)), "manifold: got PoincareBall"),
        (lambda: Uniform(Sphere(2)).log_prob(torch.zeros(4, 2)), "z: got shape .4, 2."),
        (lambda: Uniform(Sphere(2)).log_prob(torch.ones(1, 3)), "z: has points that are off"),
        (lambda: VonMisesFisherMixture(torch.eye(3), 1.0).log_prob(torch.ones(1, 3)), "z: has points that are off"),
        (lambda: BUMP.log_prob(torch.tensor([1.0, 0.0])), "z: has points on or beyond the rim"),
        (lambda: WrappedNormalMixture(PoincareBall(2), torch.tensor([[1.0005, 0.0]]), 0.6), "means: has points on or"),
        (lambda: Product(Sphere(1), PoincareBall(2)).check("x", torch.tensor([1.0, 0, 0, 1])), "x: has points on or"),
        (lambda: manifold_log_det(lambda x: 2 * x, torch.eye(3), Sphere(2)), r"f\(x\): has points that are off"),
        (lambda: manifold_log_det(lambda x: x, 2 * torch.eye(3), Sphere(2)), "x: has points that are off"),
        (lambda: Sphere(2).check("x", torch.ones(2, 3)), "x: has points that are off Sphere.2. by"),
        (lambda: Sphere(2).check("x", torch.full((2, 3), math.nan)), "x: has points that are off"),
        (lambda: Sphere(2).check("x", torch.ones(2, 4)), "x: got shape"),
        (lambda: VonMisesFisherMixture(torch.zeros(1, 3), 1.0), "means: has a row of zeros"),
        (lambda: VonMisesFisherMixture(torch.eye(3), -1.0), "kappa: got"),
        (lambda: VonMisesFisherMixture(torch.eye(3), torch.ones(2)), "kappa: got .1.0, 1.0., expected 3 positive"),
        (lambda: VonMisesFisherMixture(torch.ones(0, 3), 1.0), "means: has no rows"),
        (lambda: WrappedNormalMixture(Sphere(2), torch.ones(0, 3), 1.0), "means: has no rows"),
        (lambda: repeated(torch.eye(3), torch.eye(2)), "train: got shape"),
        (lambda: on_torus(torch.tensor([math.nan])), "degrees: has values that are not finite"),
        (lambda: split_points(torch.zeros(3)), "x: got shape"),
        (lambda: VonMisesFisherMixture(torch.eye(3), 1.0, torch.tensor([1.0, 0.0, 1.0])), "weights: got"),
        (lambda: VonMisesFisherMixture(torch.eye(2), 1.0), "means: got shape"),
        (lambda: WrappedNormalMixture(Sphere(2), torch.ones(1, 3), 0.5), "means: has points that are off"),
        (lambda: WrappedNormalMixture(Sphere(2), torch.eye(3), 0.0), "std: got 0.0"),
        (lambda: WrappedNormalMixture(Sphere(2), torch.eye(3), torch.tensor([1.0])), "std: got"),
    ],
)
def test_bad_input_names_the_argument(call, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(ValueError, match=match):
        call()


BUMP = WrappedNormalMixture(PoincareBall(2), torch.zeros(1, 2), 1.0)


def test_types_of_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="train: got torch.float64"):
        repeated(torch.eye(3), torch.eye(3, dtype=F64))
    with pytest.raises(TypeError, match="degrees: got list"):
        on_torus([0.0])
    with pytest.raises(TypeError, match="x: got list"):
        split_points([[0.0]])
    with pytest.raises(TypeError, match="factors"):
        Product()
    with pytest.raises(TypeError, match="x: got torch.int64"):
        Sphere(2).check("x", torch.ones(2, 3, dtype=torch.long))
