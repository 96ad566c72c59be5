"""Star-like surfaces: volumes against areas that are known, densities against libraries, and bad input."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ellipe

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.flows import AffineMap, Chain, Flow, StandardNormal, coupling_flow
from refimpl.free_form import AngleBox, StarLike, log_area, log_sphere_volume, lp_radius, to_angles, to_unit

F64 = torch.float64


def some_angles(n, num=6, seed=0, high=math.pi):
    """Angles away from the poles."""
    u = torch.rand(num, n - 1, dtype=F64, generator=runtime.generator(seed))
    return (0.1 + 0.8 * u) * high


def ellipsoid(a):
    return lambda u: ((u @ a) * u).sum(-1).rsqrt()


def by_jacobian(radius, theta):
    """log sqrt det G^T G by differentiating the embedding."""
    g = jacobian(lambda t: radius(to_unit(t)).unsqueeze(-1) * to_unit(t), theta)
    return 0.5 * torch.linalg.slogdet(g.mT @ g).logabsdet


RADII = {
    "sphere": lambda n: lambda u: 2.0 * torch.ones_like(u[..., 0]),
    "p = 0.5": lambda n: lp_radius(0.5),
    "p = 1": lambda n: lp_radius(1, 3.0),
    "p = 4": lambda n: lp_radius(4),
    "ellipsoid": lambda n: ellipsoid(torch.diag(torch.linspace(0.5, 2, n, dtype=F64))),
    "no level set": lambda n: lambda u: 1 + 0.3 * (3 * u[..., 0]).sin() * u[..., -1],
}


@pytest.mark.parametrize("name", RADII)
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_area_is_the_gram_determinant(name, n):
    theta, radius = some_angles(n), RADII[name](n)
    x, log_v = log_area(radius, theta)
    torch.testing.assert_close(log_v, by_jacobian(radius, theta), rtol=0, atol=1e-9)
    torch.testing.assert_close(x, radius(to_unit(theta)).unsqueeze(-1) * to_unit(theta))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(0.1, 10))
def test_scale_adds_the_power_of_the_dimension(n, seed, factor):
    theta = some_angles(n, seed=seed)
    larger, usual = (log_area(lp_radius(3, size), theta)[1] for size in (factor, 1.0))
    torch.testing.assert_close(larger - usual, torch.full_like(usual, (n - 1) * math.log(factor)), rtol=0, atol=1e-9)


def test_how_the_radius_goes_on_off_the_sphere_does_not_matter():
    theta = some_angles(4)
    plain = log_area(lp_radius(3), theta)[1]
    scaled = log_area(lambda u: lp_radius(3)(u) * u.norm(dim=-1) ** 5, theta)[1]
    torch.testing.assert_close(plain, scaled)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_angles_there_and_back(n, seed):
    x = torch.randn(5, n, dtype=F64, generator=runtime.generator(seed))
    theta = to_angles(x)
    torch.testing.assert_close(to_unit(theta) * x.norm(dim=-1, keepdim=True), x, rtol=0, atol=1e-10)
    assert (theta >= 0).all() and (theta[:, :-1] <= math.pi).all() and (theta[:, -1] < 2 * math.pi).all()


def box_integral(integrand, n, high, num=60):
    """Gauss-Legendre over the box of angles."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = (torch.tensor(v, dtype=F64) for v in leggauss(num))
    axes = [(nodes + 1) / 2 * h for h in high]
    theta = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    w = torch.stack(torch.meshgrid(*[weights / 2 * h for h in high], indexing="ij"), -1).prod(-1)
    return (integrand(theta) * w).sum().item()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_areas_are_known(n):
    quarter = [math.pi / 2] * (n - 1)
    sphere = box_integral(lambda t: log_sphere_volume(t).exp(), n, [*[math.pi] * (n - 2), 2 * math.pi])
    assert sphere == pytest.approx(2 * math.pi ** (n / 2) / math.gamma(n / 2), rel=1e-9)
    simplex = box_integral(lambda t: log_area(lp_radius(1), t)[1].exp(), n, quarter)
    assert simplex == pytest.approx(math.sqrt(n) / math.factorial(n - 1), rel=1e-6)


def test_length_of_an_ellipse():
    a, b = 2.0, 1.0
    radius = ellipsoid(torch.diag(torch.tensor([a**-2, b**-2], dtype=F64)))
    length = box_integral(lambda t: log_area(radius, t)[1].exp(), 2, [2 * math.pi], num=200)
    assert length == pytest.approx(4 * a * ellipe(1 - b**2 / a**2), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_angles_of_the_positive_box_never_leave_it(dtype):
    z = torch.tensor([[-200.0, 200.0], [200.0, 200.0], [-30.0, 30.0]], dtype=dtype)
    x = to_unit(AngleBox(3, positive=True).to(dtype).inverse(z)[0])
    assert (x > 0).all() and x.log().isfinite().all()


@pytest.mark.parametrize("positive", [False, True])
def test_the_box_there_and_back_with_its_slope(positive):
    box, z = AngleBox(4, positive=positive).double(), torch.randn(5, 3, dtype=F64, generator=runtime.generator(0))
    theta, log_det = box.inverse(z)
    back, other = box(theta)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(other, -log_det)
    slope = torch.linalg.slogdet(jacobian(lambda z: box.inverse(z)[0], z)).logabsdet
    torch.testing.assert_close(log_det, slope)
    high = torch.tensor([1.0, 1.0, 1.0] if positive else [2.0, 2.0, 4.0], dtype=F64) * math.pi / 2
    torch.testing.assert_close(box.inverse(torch.full([3], 50.0, dtype=F64))[0], high)


EDGE = torch.tensor([[-0.2, 0.4, 0.4], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=F64)  # beyond, and on the edge


def random_simplex(n, seed=0, context=0):
    torch.manual_seed(seed)
    body = coupling_flow(n - 1, AffineMap(), 3, width=8, dim_context=context)
    for p in body.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return StarLike(Flow(Chain(AngleBox(n, positive=True), body), StandardNormal([n - 1])), lp_radius(1)).double()


def test_a_random_flow_on_the_simplex_integrates_to_one():
    model, n = random_simplex(3), 3
    u = torch.distributions.Dirichlet(torch.ones(n, dtype=F64)).sample([40_000])  # uniform for the area
    area = math.sqrt(n) / math.factorial(n - 1)
    assert (model.log_prob(u).exp().mean() * area).item() == pytest.approx(1, abs=0.03)


def test_samples_lie_on_the_surface_and_carry_their_density():
    model = random_simplex(4)
    x, log_p = model.sample_and_log_prob([7, 2], generator=runtime.generator(1))
    assert x.shape == (7, 2, 4) and (x > 0).all()
    torch.testing.assert_close(x.sum(-1), torch.ones(7, 2, dtype=F64))
    torch.testing.assert_close(model.log_prob(x), log_p)
    assert torch.equal(model.sample([7, 2], generator=runtime.generator(1)), x)


def test_a_context_reaches_flow_and_radius():
    model = random_simplex(3, context=1)
    model.radius = lambda u, c: c[..., 0] * lp_radius(1)(u)
    c = torch.tensor([[1.0], [5.0]], dtype=F64)
    x, log_p = model.sample_and_log_prob([4], c, runtime.generator(0))
    torch.testing.assert_close(x.sum(-1), c[:, 0].expand(4, 2))
    torch.testing.assert_close(model.log_prob(x, c.expand(4, 2, 1)), log_p)


def test_the_volume_sends_gradients_to_radius_and_angles():
    theta, w = some_angles(3).requires_grad_(), torch.tensor([1.0, 2.0, 0.5], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, t: log_area(ellipsoid(torch.diag(w)), t)[1], (w, theta))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: lp_radius(0), ValueError, "p: got 0"),
        (lambda: lp_radius(1, -1.0), ValueError, "size: got -1"),
        (lambda: AngleBox(1), ValueError, "dim: got 1, expected at least 2"),
        (lambda: AngleBox(3)(torch.zeros(2, 3)), ValueError, "x: got shape .2, 3., expected .*batch, 2"),
        (lambda: to_angles(torch.ones(4, 1)), ValueError, "x: got shape .4, 1., expected at least two features"),
        (lambda: log_area(lambda u: u, some_angles(3)), ValueError, "radius: got shape .6, 3."),
        (lambda: log_area(lambda u: -u[..., 0].abs(), some_angles(3)), ValueError, "radius: got values that are not"),
        (lambda: log_area(lp_radius(1), [[0.5, 0.3]]), TypeError, "theta: got list"),
        (lambda: log_area(lp_radius(1), torch.tensor([[math.nan, 0.3]])), ValueError, "theta: has values that are not"),
        (
            lambda: log_area(lp_radius(1), torch.tensor([[-0.5, 0.3]])),
            ValueError,
            "theta: got an angle before the last",
        ),
        (lambda: log_area(lp_radius(1), torch.zeros(4, 0)), ValueError, "theta: got no angles"),
        (lambda: StarLike(AngleBox(3), lp_radius(1)), TypeError, "angles: got AngleBox"),
        (lambda: StarLike(random_simplex(3).angles, 2.0), TypeError, "radius: got 2.0"),
        (lambda: random_simplex(3).log_prob(torch.ones(2, 4).double()), ValueError, "x: got shape .2, 4., expected"),
        (lambda: random_simplex(3).log_prob(torch.ones(2, 3).double()), ValueError, "x: a point is off the surface"),
        (lambda: random_simplex(3).log_prob([[0.2, 0.4, 0.4]]), TypeError, "x: got list"),
        (lambda: random_simplex(3).log_prob(torch.tensor([[1, 0, 0]])), TypeError, "x: got torch.int64"),
        (lambda: random_simplex(3).log_prob(EDGE[:1]), ValueError, "x: a point lies outside or on the edge"),
        (lambda: random_simplex(3).log_prob(EDGE[1:2]), ValueError, "x: a point lies outside or on the edge"),
        (lambda: random_simplex(3).log_prob(EDGE[2:]), ValueError, "x: a point lies outside or on the edge"),
    ],
)
def test_bad_input_is_named(call, kind, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind, match=message):
        call()
