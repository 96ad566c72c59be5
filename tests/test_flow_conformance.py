"""Every bijection of the package keeps the contract; a new one fails `test_every_bijection_is_here` until it is listed.

Parameters are made random first, because layers that start at zero hide most mistakes. The checks are functions, so
that `test_the_checks_can_fail` can turn them on broken bijections.
"""

import copy
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

import refimpl
from refimpl import flows
from refimpl.autodiff import log_det_jacobian
from refimpl.flows import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    BlockTriangularLinear,
    Chain,
    Conditioner,
    Continuous,
    ConvConditioner,
    Coupling,
    Diagonal,
    ElementwiseMap,
    Flow,
    GINMap,
    Inverse,
    InvertibleLinear,
    KernelConditioner,
    LipschitzLinear,
    Logit,
    MaskedAutoregressive,
    Mixing,
    MultiScale,
    NanoFlow,
    Patches,
    Permutation,
    Planar,
    Radial,
    Reshape,
    Residual,
    Rotation,
    SplineMap,
    Squeeze,
    StandardNormal,
    TarBlock,
    coupling_flow,
    fit_affine_block,
    fit_affine_layers,
    glow,
    glow_step,
    iaf,
    maf,
    mixer_flow,
    nice,
    realnvp_image,
    residual_flow,
    tarflow,
)
from refimpl.flows.gaussianization import MarginalGaussianization
from refimpl.free_form.spherical import AngleBox

F64 = torch.float64
DIM, DIM_CONTEXT, SMALL = 4, 3, dict(width=16, depth=3)


@dataclass
class Case:
    """One bijection to check.

    Attributes:
        make: called with (dim, dim_context); images ignore `dim`.
        shape: of an event; None for vectors of DIM features, which are then checked in the plane as well.
        context: whether it listens to one.
        std: of the noise on its parameters.
        tolerance: of inverse and log-determinant in float64.
        tolerance32: of float32 against float64.
        box: where data live.
        domain: where the density lives, if not in the whole plane.
        latent_shape: if it is another than `shape`.
    """

    make: Callable[[int, int], Bijection]
    shape: tuple[int, ...] | None = None
    context: bool = False
    std: float = 0.3
    tolerance: float = 1e-10
    tolerance32: float = 5e-4
    box: tuple[float, float] | None = None
    domain: tuple[float, float] | None = None
    latent_shape: tuple[int, ...] | None = None

    @property
    def event(self) -> tuple[int, ...]:
        return self.shape or (DIM,)


def couple(tau: ElementwiseMap, **options) -> Callable[[int, int], Bijection]:
    def make(dim: int, dim_context: int) -> Bijection:
        return Coupling(dim, tau, functools.partial(Conditioner, dim_context=dim_context, **SMALL), **options)

    return make


def couple_channels(tau: ElementwiseMap, channels: int) -> Callable[[int, int], Bijection]:
    def make(dim: int, dim_context: int) -> Bijection:
        net = functools.partial(ConvConditioner, width=8, dim_context=dim_context)
        return Coupling(channels, tau, net, event_ndim=3)

    return make


def kernel_coupling(dim: int, dim_context: int) -> Bijection:
    net = functools.partial(KernelConditioner, num_points=8, dim_context=dim_context)
    return Chain(Coupling(dim, AffineMap(), net), Coupling(dim, AffineMap(), net, swap=True))


def marginal(dim: int, dim_context: int) -> Bijection:
    x = torch.randn(400, dim).sinh()
    return MarginalGaussianization(dim, bins=8).fit(x + 0.3)


def fit_layers(dim: int, dim_context: int) -> Bijection:
    return fit_affine_layers(torch.randn(800, dim, dtype=F64).sinh(), 2, num_bins=6, num_rotations=2)


def fit_block(dim: int, dim_context: int) -> Bijection:
    return fit_affine_block(torch.randn(800, dim, dtype=F64).sinh(), num_bins=6, num_rotations=1)


TAR = dict(width=8, num_layers=1, num_heads=2)
# A Logit's alpha = 0.05 makes it a map of the real line from an interval that is a little larger than [0, 1].
LOGIT = dict(tolerance=1e-9, box=(0.02, 0.98), domain=(-0.05 / 0.9, 0.95 / 0.9))
# Splines may be nearly flat somewhere: what is lost there is lost to rounding, not to a mistake.
SPLINE = dict(std=0.2, tolerance=1e-9, tolerance32=5e-3)
CASES = {
    "Diagonal": Case(lambda d, c: Diagonal(d)),
    "Diagonal[shared]": Case(lambda d, c: Diagonal(d, shared=True)),
    "Diagonal[no shift]": Case(lambda d, c: Diagonal(d, shift=False)),
    "Permutation": Case(lambda d, c: Permutation([*range(1, d), 0])),
    "Permutation[images]": Case(lambda d, c: Permutation([2, 0, 1], 3), (3, 2, 2)),
    "Inverse": Case(lambda d, c: Inverse(couple(SplineMap(5))(d, c)), context=True),
    "Reshape": Case(lambda d, c: Reshape(couple(AffineMap())(8, c), (2, 2, 2)), (2, 2, 2), context=True),
    "Coupling[additive]": Case(couple(AdditiveMap()), context=True),
    "Coupling[affine]": Case(couple(AffineMap()), context=True),
    "Coupling[affine, swap]": Case(couple(AffineMap(), swap=True), context=True),
    "Coupling[sigmoid]": Case(couple(AffineMap(gate="sigmoid")), context=True),
    # In the plane the only active feature's scale is its mean: a GIN coupling is additive there.
    "Coupling[GIN]": Case(couple(GINMap()), context=True),
    "Coupling[spline]": Case(couple(SplineMap(4, 2.5)), context=True, **SPLINE),
    "Coupling[kernels]": Case(kernel_coupling, context=True),
    "Coupling[affine, images]": Case(couple_channels(AffineMap(), 3), (3, 2, 2), context=True),
    "Coupling[spline, images]": Case(couple_channels(SplineMap(4), 2), (2, 2, 2), context=True, **SPLINE),
    "Coupling[GIN, images]": Case(couple_channels(GINMap(), 3), (3, 2, 2), context=True),
    "coupling_flow[affine]": Case(
        lambda d, c: coupling_flow(d, AffineMap(), 3, mix=Rotation, dim_context=c, **SMALL), context=True
    ),
    "coupling_flow[spline]": Case(
        lambda d, c: coupling_flow(d, SplineMap(4), 3, dim_context=c, **SMALL), context=True, **SPLINE
    ),
    "nice": Case(lambda d, c: nice(d, 3, dim_context=c, **SMALL), context=True),
    "nice[shared]": Case(lambda d, c: nice(d, 3, shared=True, dim_context=c, **SMALL), context=True),
    "MaskedAutoregressive[affine]": Case(
        lambda d, c: MaskedAutoregressive(d, AffineMap(), dim_context=c, **SMALL), context=True
    ),
    "MaskedAutoregressive[spline]": Case(
        lambda d, c: MaskedAutoregressive(d, SplineMap(4), dim_context=c, **SMALL), context=True, **SPLINE
    ),
    "maf": Case(lambda d, c: maf(d, 2, dim_context=c, **SMALL), context=True),
    "iaf": Case(lambda d, c: iaf(d, 2, AffineMap(gate="sigmoid"), dim_context=c, **SMALL), context=True),
    "ActNorm": Case(lambda d, c: ActNorm(d)),
    "ActNorm[images]": Case(lambda d, c: ActNorm(3, 3), (3, 2, 2)),
    "InvertibleLinear": Case(lambda d, c: InvertibleLinear(d)),
    "InvertibleLinear[images]": Case(lambda d, c: InvertibleLinear(3, 3), (3, 2, 2)),
    "Rotation": Case(lambda d, c: Rotation(d)),
    "BlockTriangularLinear": Case(lambda d, c: BlockTriangularLinear(1, d - 1)),
    "Planar": Case(lambda d, c: Planar(d)),
    "Planar[inverse]": Case(lambda d, c: Inverse(Planar(d))),
    "Radial": Case(lambda d, c: Radial(d)),
    "Squeeze": Case(lambda d, c: Squeeze(), (2, 4, 2), latent_shape=(8, 2, 1)),
    "MultiScale": Case(lambda d, c: MultiScale(ActNorm(8, 3), MultiScale(ActNorm(16, 3))), (2, 4, 4)),
    "glow_step": Case(lambda d, c: glow_step(3, width=8, dim_context=c), (3, 2, 2), context=True),
    "glow": Case(lambda d, c: glow(1, 4, num_steps=2, width=8, dim_context=c), (1, 4, 4), context=True, std=0.1),
    "realnvp_image": Case(
        lambda d, c: realnvp_image(1, 4, num_steps=2, width=8, dim_context=c), (1, 4, 4), context=True
    ),
    "Mixing[features]": Case(lambda d, c: Mixing(couple(AffineMap())(4, c), 2, shift=1), (1, 4, 4), context=True),
    "Mixing[patches]": Case(lambda d, c: Mixing(couple(AffineMap())(4, c), 2, "patches"), (1, 4, 4), context=True),
    "mixer_flow": Case(lambda d, c: mixer_flow(1, 4, 2, 2, dim_context=c, **SMALL), (1, 4, 4), context=True),
    "Logit": Case(lambda d, c: Logit(event_ndim=1), **LOGIT),
    "AngleBox": Case(
        lambda d, c: AngleBox(d + 1, positive=True), box=(0.05, 1.5), domain=(0.0, math.pi / 2), tolerance=1e-9
    ),
    "Logit[images]": Case(lambda d, c: Logit(), (1, 2, 2), **LOGIT),
    "Residual": Case(lambda d, c: Residual(d, lipschitz=0.7, dim_context=c, **SMALL), context=True),
    "Residual[series]": Case(
        lambda d, c: Residual(d, lipschitz=0.5, method="series", num_terms=32, dim_context=c, **SMALL), context=True
    ),
    "residual_flow": Case(lambda d, c: residual_flow(d, 2, lipschitz=0.6, dim_context=c, **SMALL), context=True),
    "Continuous": Case(
        lambda d, c: Continuous(d, num_steps=10, dim_context=c, **SMALL), context=True, std=0.15, tolerance=1e-5
    ),
    "NanoFlow": Case(lambda d, c: NanoFlow(d, 3, AffineMap(), dim_context=c, **SMALL), context=True),
    "NanoFlow[decomposed]": Case(
        lambda d, c: NanoFlow(d, 2, AffineMap(), "decomposed", dim_context=c, **SMALL), context=True
    ),
    "NanoFlow[naive]": Case(lambda d, c: NanoFlow(d, 2, AffineMap(), "naive", dim_context=c, **SMALL), context=True),
    "TarBlock": Case(lambda d, c: TarBlock(3, 2, AffineMap(), dim_context=c, **TAR), (3, 2), context=True),
    "TarBlock[flip]": Case(
        lambda d, c: TarBlock(3, 2, SplineMap(4), flip=True, dim_context=c, **TAR), (3, 2), context=True, **SPLINE
    ),
    "Patches": Case(lambda d, c: Patches(TarBlock(4, 4, AffineMap(), **TAR), (1, 4, 4), 2), (1, 4, 4)),
    "tarflow": Case(lambda d, c: tarflow((1, 4, 4), 2, 2, dim_context=c, **TAR), (1, 4, 4), context=True),
    "fit_affine_block": Case(fit_block),
    "fit_affine_layers": Case(fit_layers),
    "MarginalGaussianization": Case(marginal, tolerance=1e-9),
}
# Estimators of the log-determinant differ in each call: Residual(method="roulette") and
# Continuous(trace="hutchinson"), and adaptive steps depend on the batch; their own tests follow them.
VECTORS = [name for name, case in CASES.items() if case.shape is None]
CONTEXTS = [name for name, case in CASES.items() if case.context]
MADE_BY = {  # functions that return a bijection, and the case that calls them if it has another name
    "coupling_flow": "coupling_flow[affine]",
}


def randomise(f: torch.nn.Module, std: float) -> torch.nn.Module:
    """Add noise to every parameter; spectral norms follow."""
    with torch.no_grad():
        for p in f.parameters():
            p += std * torch.randn_like(p)
    for layer in f.modules():
        if isinstance(layer, LipschitzLinear):
            for _ in range(50):
                layer.refresh()
    return f


def build(name: str, *, dim: int = DIM, context: bool | None = None, seed: int = 0, dtype=F64) -> Bijection:
    """The case's bijection with random parameters, in evaluation mode."""
    case = CASES[name]
    torch.manual_seed(seed)
    dim_context = DIM_CONTEXT if (case.context if context is None else context) else 0
    return randomise(case.make(dim, dim_context), case.std).to(dtype).eval()


def data(name: str, *batch: int, seed: int = 1, dtype=F64) -> tuple[Tensor, Tensor | None]:
    """Points and contexts."""
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(*batch, *case.event, dtype=F64, generator=generator)
    if case.box:
        x = case.box[0] + (case.box[1] - case.box[0]) * torch.rand(x.shape, dtype=F64, generator=generator)
    context = torch.randn(*batch, DIM_CONTEXT, dtype=F64, generator=generator) if case.context else None
    return x.to(dtype), None if context is None else context.to(dtype)


def check_round_trip(f: Bijection, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    """inverse(forward(x)) = x, forward(inverse(z)) = z, and the two log-determinants cancel."""
    z, log_det = f(x, context)
    back, log_det_back = f.inverse(z, context)
    assert log_det.shape == log_det_back.shape == x.shape[: x.ndim - f.event_ndim]
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det_back, -log_det, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(f(back, context)[0], z, rtol=tolerance, atol=tolerance)


def check_log_det(f: Bijection, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    """The log-determinant is that of the Jacobian that autograd sees."""
    event = x.shape[x.ndim - f.event_ndim :]

    def flat(v: Tensor) -> Tensor:
        return f(v.unflatten(-1, event), context)[0].flatten(-f.event_ndim)

    expected = log_det_jacobian(flat, x.flatten(-f.event_ndim))
    torch.testing.assert_close(f(x, context)[1], expected, rtol=tolerance, atol=tolerance)


Domain = tuple[float, float] | None


def grid_of(flow: Flow, cells: int, context: Tensor | None, domain: Domain) -> tuple[Tensor, Tensor, float]:
    """Midpoints of cells that hold (nearly) all samples, or fill the domain; log p there; the area of a cell."""
    x = flow.sample([4000], context, torch.Generator().manual_seed(2)).detach()
    middle, half = (x.amax(0) + x.amin(0)) / 2, 0.75 * (x.amax(0) - x.amin(0))
    if domain:
        middle, half = torch.full((2,), sum(domain) / 2, dtype=F64), torch.full((2,), (domain[1] - domain[0]) / 2)
    ticks = (torch.arange(cells, dtype=F64) + 0.5) / cells * 2 - 1
    points = middle + half * torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        log_p = flow.log_prob(points, context)
    return points, log_p, (4 * half.prod() / cells**2).item()


def check_normalised(flow: Flow, context: Tensor | None = None, domain: Domain = None) -> None:
    """The integral of exp log_prob over the plane is 1; the tails beyond the grid hold some 1e-4."""
    _, log_p, area = grid_of(flow, 240, context, domain)
    integral = log_p.exp().sum().item() * area
    assert abs(integral - 1) < 3e-3, f"integral {integral}"


def share_told_apart(x: Tensor, y: Tensor) -> float:
    """Share of points whose sample a classifier recognises, cross-validated; 1/2 for samples of one density."""
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    points, labels = torch.cat([x, y]).numpy(), torch.arange(2).repeat_interleave(len(x)).numpy()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(3)).numpy()
    scale = points.std(0)
    return cross_val_score(KNeighborsClassifier(25), (points / scale)[order], labels[order], cv=4).mean()


def check_samples(flow: Flow, context: Tensor | None = None, domain: Domain = None, other: Flow | None = None) -> None:
    """`sample` draws from exp log_prob: no classifier tells it from draws off a grid of that density."""
    n, generator = 3000, torch.Generator().manual_seed(4)
    points, log_p, area = grid_of(flow, 160, context, domain)
    cells = torch.multinomial((log_p - log_p.max()).exp(), n, replacement=True, generator=generator)
    jitter = (torch.rand(n, 2, dtype=F64, generator=generator) - 0.5) * (points[-1] - points[0]) / 159
    drawn = (other or flow).sample([n], context, torch.Generator().manual_seed(5)).detach()
    share = share_told_apart(points[cells] + jitter, drawn)
    # Four standard deviations of an honest coin, thrown once a point.
    assert share < 0.5 + 4 * 0.5 / (2 * n) ** 0.5, f"told apart: {share:.3f}"


def check_gradient_of_round_trip(f: Bijection, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    """forward(inverse(z)) = z whatever the parameters are, so that its derivative in them vanishes; so does the sum of
    log-determinants. This holds the gradients of `inverse` to those of `forward`."""
    parameters = [p for p in f.parameters() if p.requires_grad]
    if not parameters:
        return
    z = f(x, context)[0].detach()
    weights = torch.linspace(0.5, 1.5, z.numel(), dtype=z.dtype).view_as(z)
    back, log_det_back = f.inverse(z, context)
    again, log_det = f(back, context)

    def gradient(value: Tensor) -> list[Tensor]:
        return torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)

    size = max(g.abs().max().item() for g in gradient((weights * f(back.detach(), context)[0]).sum()))
    for value in ((weights * again).sum(), (log_det + log_det_back).sum()):
        if value.requires_grad:
            assert max(g.abs().max().item() for g in gradient(value)) <= 100 * tolerance * (1 + size)


@pytest.mark.parametrize("name", CASES)
def test_inverse_and_log_det(name):
    f, (x, context) = build(name), data(name, 8)
    check_round_trip(f, x, context, CASES[name].tolerance)
    check_log_det(f, x, context, max(CASES[name].tolerance, 1e-10))
    z, log_det = f(x, context)
    assert not torch.allclose(z.flatten(), x.flatten()) or not list(f.parameters())
    assert z.shape[1:] == (CASES[name].latent_shape or CASES[name].event)


@pytest.mark.parametrize("name", VECTORS)
def test_density_in_the_plane_is_normalised_and_sampled(name):
    flow = Flow(build(name, dim=2), StandardNormal([2])).double()
    context = torch.randn(DIM_CONTEXT, dtype=F64) if CASES[name].context else None
    check_normalised(flow, context, CASES[name].domain)
    check_samples(flow, context, CASES[name].domain)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_inverse_and_forward_belong_together(name):
    f, (x, context) = build(name), data(name, 5)
    check_gradient_of_round_trip(f, x, context, max(CASES[name].tolerance, 1e-9))


@pytest.mark.parametrize("name", CONTEXTS)
def test_context_conditions_the_density(name):
    f, (x, context) = build(name), data(name, 6)
    context.requires_grad_()
    z, log_det = f(x, context)
    (gradient,) = torch.autograd.grad((0.5 * z.square()).sum() - log_det.sum(), context)
    assert (gradient.abs().amax(-1) > 0).all()
    other, _ = f(x, context + 1)
    assert ((other - z).flatten(1).abs().amax(1) > 1e-4).all()
    shared, _ = f(x, context[0])
    torch.testing.assert_close(shared[0], z[0])
    torch.testing.assert_close(shared[3], f(x[3], context[0])[0])
    for wrong in (None, context[:, 1:]):
        with pytest.raises(ValueError, match="^context: "):
            f(x, wrong)


@pytest.mark.parametrize("name", CASES)
def test_batch_shapes(name):
    f, (x, context) = build(name), data(name, 2, 3)
    tolerance = max(CASES[name].tolerance * 1e-2, 1e-12)
    flat_context = None if context is None else context.flatten(0, 1)
    for way, points in ((f, x), (f.inverse, f(x, context)[0].detach())):
        event = points.shape[2:]
        many, log_dets = way(points, context)
        flat, flat_log_dets = way(points.flatten(0, 1), flat_context)
        torch.testing.assert_close(many.flatten(0, 1), flat, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(log_dets.flatten(), flat_log_dets, rtol=tolerance, atol=tolerance)
        one, log_det = way(points[1, 2], None if context is None else context[1, 2])
        torch.testing.assert_close(one, flat[5], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(log_det, flat_log_dets[5], rtol=tolerance, atol=tolerance)
        none, log_det = way(points[0, :0], None if context is None else context[0, :0])
        assert log_det.shape == (0,) and none.numel() == 0 and none.ndim == 1 + len(event)
        empty, log_det = way(points[:0], None if context is None else context[:0])
        assert log_det.shape == (0, 3) and empty.shape[:2] == (0, 3)


# Maps that work on any number of features, or whose width another one of these checks.
ANY_WIDTH = ("Reshape", "Squeeze", "MultiScale", "Mixing", "mixer", "Logit", "Tar", "Patches", "tar", "fit", "Marginal")


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(ANY_WIDTH)])
def test_another_width_is_named(name):
    f, (x, context) = build(name), data(name, 5)
    width = x.shape[-f.event_ndim]
    for features in [[0, *range(width)], *([[0]] if width > 1 else [])]:
        points = x.index_select(-f.event_ndim, torch.tensor(features))
        with pytest.raises(ValueError, match="^[xz]: got "):
            f(points, context)
        with pytest.raises(ValueError, match="^[xz]: got "):
            f.inverse(points, context)


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64(name):
    exact, (x, context) = build(name), data(name, 16)
    f = copy.deepcopy(exact).float()
    tolerance = CASES[name].tolerance32
    context32 = None if context is None else context.float()
    for way, rough, points in ((exact, f, x), (exact.inverse, f.inverse, exact(x, context)[0].detach())):
        y, log_det = rough(points.float(), context32)
        assert y.dtype == log_det.dtype == torch.float32
        expected, expected_log_det = way(points, context)
        assert expected.dtype == expected_log_det.dtype == F64
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(log_det.double(), expected_log_det, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(name):
    f, (x, context) = build(name), data(name, 16)
    z, log_det = f(x.requires_grad_(), context)
    (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
    left = {key for key, p in f.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert left == set()  # no parameter is without use
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in f.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_saved_bijection_is_the_same_to_the_bit(name):
    f, (x, context) = build(name), data(name, 6)
    for saved in (f.state_dict(), load(save(f.state_dict()))):
        other = build(name, seed=7)
        other.load_state_dict(saved)
        for way, way_other, points in ((f, other, x), (f.inverse, other.inverse, f(x, context)[0].detach())):
            for a, b in zip(way(points, context), way_other(points, context), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.latent_shape is None])
def test_flow_and_distribution(name):
    case, f = CASES[name], build(name)
    flow, (x, context) = Flow(f, StandardNormal(case.event)).double(), data(name, 5)
    distribution = flow.as_distribution(context)
    assert distribution.event_shape == case.event
    assert distribution.batch_shape == (() if context is None else (5,))
    torch.testing.assert_close(distribution.log_prob(x), flow.log_prob(x, context))
    drawn, log_prob = distribution.rsample_and_log_prob([2])
    assert drawn.shape == (2, *distribution.batch_shape, *case.event)
    torch.testing.assert_close(
        distribution.log_prob(drawn), log_prob, rtol=10 * case.tolerance, atol=10 * case.tolerance
    )


def bijections_of_the_package() -> set[type]:
    """Every subclass of Bijection that a module of refimpl defines."""
    for module in pkgutil.walk_packages(refimpl.__path__, "refimpl."):
        importlib.import_module(module.name)
    found, todo = set(), [Bijection]
    while todo:
        for kind in todo.pop().__subclasses__():
            if kind.__module__.startswith("refimpl."):
                found.add(kind)
                todo.append(kind)
    return found


def parts_of(f: Bijection) -> set[type]:
    parts = {type(part) for part in f.modules()}
    return parts | {type(part.tau) for part in f.modules() if hasattr(part, "tau")}


def test_every_bijection_is_here():
    covered = set().union(*(parts_of(build(name)) for name in CASES))
    assert {kind.__name__ for kind in bijections_of_the_package() - covered} == set()
    assert {kind.__name__ for kind in ElementwiseMap.__subclasses__() if kind not in covered} == set()
    exported = [getattr(flows, name) for name in flows.__all__]
    builders = {
        f.__name__
        for f in exported
        if inspect.isfunction(f)
        and inspect.isclass(f.__annotations__.get("return"))
        and issubclass(f.__annotations__["return"], Bijection)
    }
    assert {name for name in builders if MADE_BY.get(name, name) not in CASES} == set()
    assert builders  # or the line above sees nothing


class WrongSign(Coupling):
    def forward(self, x, context=None):
        z, log_det = super().forward(x, context)
        return z, -log_det

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z, context)
        return x, -log_det


class NoLogDet(Coupling):
    def forward(self, x, context=None):
        return super().forward(x, context)[0], self.zeros(x)


class DetachedInverse(Coupling):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z, context)
        return x.detach(), log_det


class ShiftedInverse(Coupling):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z, context)
        return x + 0.3, log_det


def broken(kind: type, dim: int) -> Bijection:
    torch.manual_seed(0)
    return randomise(kind(dim, AffineMap(), functools.partial(Conditioner, **SMALL)), 0.8).double()


def test_the_checks_can_fail():
    x = torch.randn(8, 4, dtype=F64)

    def plane(kind: type) -> Flow:
        return Flow(broken(kind, 2), StandardNormal([2])).double()

    check_log_det(broken(Coupling, 4), x, None, 1e-9)
    check_normalised(plane(Coupling))
    check_samples(plane(Coupling))
    check_gradient_of_round_trip(broken(Coupling, 4), x, None, 1e-9)
    failing = [
        lambda: check_log_det(broken(WrongSign, 4), x, None, 1e-9),
        lambda: check_normalised(plane(WrongSign)),
        lambda: check_samples(plane(WrongSign)),
        lambda: check_log_det(broken(NoLogDet, 4), x, None, 1e-9),
        lambda: check_round_trip(broken(NoLogDet, 4), x, None, 1e-9),
        lambda: check_samples(plane(NoLogDet)),
        lambda: check_round_trip(broken(ShiftedInverse, 4), x, None, 1e-9),
        lambda: check_samples(plane(ShiftedInverse)),
        lambda: check_samples(plane(Coupling), other=Flow(Diagonal(2), StandardNormal([2])).double()),
        lambda: check_gradient_of_round_trip(broken(DetachedInverse, 4), x, None, 1e-9),
    ]
    for i, check in enumerate(failing):
        with pytest.raises(AssertionError):
            check()
            print("not caught:", i)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["coupling_flow[affine]", "coupling_flow[spline]", "maf", "nice"]),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(2, 7),
    st.floats(-4, 2),
    st.integers(0, 2**20),
)
def test_any_shape_and_scale(name, batch, dim, exponent, seed):
    f = build(name, dim=dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = 10**exponent * torch.randn(*batch, dim, dtype=F64, generator=generator)
    context = torch.randn(*batch, DIM_CONTEXT, dtype=F64, generator=generator)
    check_round_trip(f, x, context, 1e-6)
