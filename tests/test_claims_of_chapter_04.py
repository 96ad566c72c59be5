"""Each criterion of chapter 04 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's at a fraction of its size. Show the measured values with `pytest -rP`.
"""

import functools
import math

import pytest
import torch
from claim_cases import ClaimCases

from refimpl import runtime
from refimpl.data import GaussianMixture, digits, moons, ring
from refimpl.data.tabular import load_tabular
from refimpl.flows import (
    AdditiveMap,
    AffineMap,
    BinnedCoupling,
    Chain,
    Conditioner,
    Coupling,
    Flow,
    RadialMixture,
    StandardNormal,
    additive_improvement,
    affine_improvement,
    best_volume_preserving,
    conditional_moments,
    coupling_flow,
    fit_affine_layers,
    gaussian_profile,
    height_profile,
    nice,
    random_rotation,
    separated_modes_gap,
    var_max_bound,
    whiten,
    whitening_block,
    whitening_ratio,
)
from refimpl.metrics import sliced_wasserstein
from refimpl.training import fit

case = ClaimCases("04_coupling_universality")
F64 = torch.float64


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


# --- Volume-preserving flows.

TARGET = GaussianMixture([[-3.0, 0.0], [3.0, 0.0]], std=[1.0, 0.2])
GAP = separated_modes_gap([1.0, 0.04])


def plane(spacing):
    x, y = torch.arange(-8, 8, spacing, dtype=F64), torch.arange(-6, 6, spacing, dtype=F64)
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), -1), spacing**2


def make_flow(kind):
    settings = dict(num_layers=8, width=64)
    if kind == "affine":
        return Flow(coupling_flow(2, AffineMap(), **settings), StandardNormal([2]))
    return Flow(nice(2, shared=True, **settings), RadialMixture(2) if kind == "learned base" else StandardNormal([2]))


def train(flow, loss, steps, generator, **options):
    options = dict(lr=5e-3, schedule="warmup_cosine", clip_norm=5.0) | options
    fit(flow, loss, num_steps=steps, generator=generator, progress=False, **options)
    return flow


@functools.cache
def trained(kind):
    torch.manual_seed(0)
    flow, source = make_flow(kind), runtime.generator(0)
    return train(flow, lambda: -flow.log_prob(TARGET.sample(256, source)).mean(), 800, source)


@torch.no_grad()
def divergence(log_prob, errors=0):
    x = TARGET.sample(100_000, runtime.generator(1))
    excess = TARGET.log_prob(x) - log_prob(x)
    return ((excess.mean() + errors * excess.std() / math.sqrt(len(x))) / GAP).item()


def no_log_det(flow):
    return lambda x: flow.base.log_prob(flow.bijection(x)[0])


@case("CU-1")
def _():
    points, cell = plane(0.02)
    variances, weights = [1.0, 0.25], [0.3, 0.7]
    log_p = GaussianMixture(TARGET.means.double(), torch.tensor(variances).sqrt(), weights).log_prob(points)
    best, (volume, heights) = best_volume_preserving(log_p, cell), height_profile(log_p, cell)
    weight = heights.exp() * cell
    unsorted = (log_p.flatten().exp() * cell) @ volume

    def error(gap):
        return abs(separated_modes_gap(variances, weights) - gap)

    return error(best.gap), {
        "not sorted": error(1 + unsorted.log().item() - best.entropy),
        "no scale": error(-(weight @ gaussian_profile(volume, 1.0, 2)).item() - best.entropy),
        "radius for volume": error(best_volume_preserving(log_p, cell, dim=1).gap),
        "weights forgotten": abs(separated_modes_gap(variances) - best.gap),
    }


@torch.no_grad()
def off_law(flow, c=None, scan=False):
    points, cell = plane(0.05)
    volume, heights = height_profile(flow.log_prob(points.float()).double(), cell)
    volume, heights = volume[volume < 20], heights[volume < 20]
    c = flow.bijection(torch.zeros(2))[1].exp().item() if c is None else c
    scanned = torch.logspace(-1, 1.5, 60).tolist() if scan else [c]
    return min((heights - gaussian_profile(volume, c, 2)).abs().max().item() for c in scanned)


def shaken(kind):
    flow = make_flow(kind)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, Conditioner):  # their last layers start at zero
                module.net[-1].weight.normal_(std=0.3)
        x = torch.randn(1000, 2)
        assert (flow.log_prob(x) - StandardNormal([2]).log_prob(x)).abs().max() > 0.5
    return flow


@case("CU-2")
def _():
    additive = trained("additive")
    return [off_law(shaken("additive")), off_law(additive)], {
        "affine couplings, random": off_law(shaken("affine")),
        "affine couplings, trained": off_law(trained("affine")),
        "learned base": off_law(trained("learned base")),
        "scale left out of the law": off_law(additive, c=1.0),
    }


@case("CU-3")
def _():
    return off_law(trained("affine"), scan=True), {
        "additive, trained": off_law(trained("additive"), scan=True),
        "additive, random": off_law(shaken("additive"), scan=True),
        "affine, untrained": off_law(make_flow("affine"), scan=True),
    }


@case("CU-4")
def _():
    additive = trained("additive")
    return divergence(additive.log_prob, 4), {
        "affine couplings": divergence(trained("affine").log_prob, 4),
        "learned base": divergence(trained("learned base").log_prob, 4),
        "untrained": divergence(make_flow("additive").log_prob, 4),
        "log-determinant left out": divergence(no_log_det(additive), 4),
    }


@case("CU-5")
def _():
    affine = trained("affine")
    return divergence(affine.log_prob), {
        "additive couplings": divergence(trained("additive").log_prob),
        "additive, learned base": divergence(trained("learned base").log_prob),
        "untrained": divergence(make_flow("affine").log_prob),
        "log-determinant left out": divergence(no_log_det(affine)),
    }


@case("CU-6")
def _():
    flow = trained("learned base")

    def with_base(base):
        return divergence(Flow(flow.bijection, base).log_prob)

    return divergence(flow.log_prob), {
        "normal base": divergence(trained("additive").log_prob),
        "base put back to its start": with_base(RadialMixture(2)),
        "base replaced by the normal": with_base(StandardNormal([2])),
    }


@functools.cache
def tumours(kind, steps=200, seed=0, normal=False):
    table, _ = load_tabular("breast_cancer", ["mean area", "area error"])
    if normal:  # a table of the same means and covariance without anything else
        law = torch.distributions.MultivariateNormal(table.mean(0), torch.cov(table.T))
        torch.manual_seed(0)
        table = law.sample([len(table)])
    order = torch.randperm(len(table), generator=runtime.generator(0))
    table = table[order]
    table = (table - table[:400].mean(0)) / table[:400].std(0)
    torch.manual_seed(seed)
    source = runtime.generator(seed)
    if kind == "one component":
        flow = Flow(nice(2, shared=True, num_layers=8, width=32), RadialMixture(2, num_components=1))
    else:
        flow = make_flow(kind)

    def loss(x, source=source):
        return -flow.log_prob(x + 0.05 * torch.randn(x.shape, generator=source)).mean()

    train(flow, loss, steps, source, data=table[:400], batch_size=200, lr=3e-3)
    with torch.no_grad():
        return loss(table[400:].repeat(20, 1), runtime.generator(1000)).item()


@case("CU-7")
def _():
    affine = tumours("affine")
    return tumours("additive") - affine, {
        "affine against affine": tumours("affine", seed=1) - affine,
        "the wrong way round": affine - tumours("additive"),
        "normal data": tumours("additive", normal=True) - tumours("affine", normal=True),
    }


@case("CU-8")
def _():
    additive, affine = tumours("additive"), tumours("affine")

    def share(repaired):
        return (additive - repaired) / (additive - affine)

    return share(tumours("learned base")), {
        "no repair": share(tumours("additive", seed=1)),
        "a single width": share(tumours("one component")),
        "hardly trained": share(tumours("learned base", steps=30)),
    }


# --- One coupling.

B = torch.linspace(-7, 7, 2001, dtype=F64)
WEIGHT = torch.softmax(-0.5 * B.square(), 0)
M, SIGMA = torch.sin(2 * B), 0.3 + 0.2 * B.square()
EXACT = 0.5 * (WEIGHT @ (M.square() + SIGMA.square() - 1 - 2 * SIGMA.log())).item()


@case("CU-9")
def _():
    source = runtime.generator(0)

    def sample(n, swapped=False):
        b, noise = torch.randn(2, n, generator=source)
        a = torch.sin(2 * b) + (0.3 + 0.2 * b.square()) * noise
        return torch.stack([a, b] if swapped else [b, a], 1)

    def removed(tau, swapped=False):
        torch.manual_seed(0)
        coupling = Coupling(2, tau, lambda passive, raw: Conditioner(passive, raw, width=32))
        flow = Flow(coupling, StandardNormal([2]))
        train(flow, lambda: -flow.log_prob(sample(256, swapped)).mean(), 400, source)
        with torch.no_grad():
            t, log_s = coupling.double()(torch.stack([B, torch.zeros_like(B)], 1))  # what becomes of a = 0 is the shift
            s, t = log_s.exp(), t[:, 1]
        after = 0.5 * ((s * M + t).square() + (s * SIGMA).square()) - s.log()
        return (WEIGHT @ (0.5 * (M.square() + SIGMA.square()) - after)).item() / EXACT

    variance = (WEIGHT @ (M.square() + SIGMA.square())).item()
    return removed(AffineMap()), {
        "additive": removed(AdditiveMap()),
        "halves swapped": removed(AffineMap(), swapped=True),
        "standardised, but not conditionally": 0.5 * (variance - 1 - math.log(variance)) / EXACT,
        "ln of the deviation for ln of the variance": 0.5
        * (WEIGHT @ (M.square() + SIGMA.square() - 1 - SIGMA.log())).item()
        / EXACT,
    }


def at_angle(x, angle, bins):
    angle = torch.tensor(angle)
    y = x @ torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2).T
    return conditional_moments(y[:, 0], y[:, 1:], bins)


def at_best_angle(x, improvement=affine_improvement, bins=32, angles=12):
    return max(improvement(at_angle(x, k * math.pi / angles, bins)).item() for k in range(angles))


@functools.cache
def laws(n=2**14):
    source = runtime.generator(0)
    u, v = torch.rand(2, n, 2, generator=source)
    angle = 2 * math.pi * u[:, 1]
    found = {
        "normal": torch.randn(n, 2, generator=source),
        "disc": 2 * u[:, :1].sqrt() * torch.stack([angle.cos(), angle.sin()], 1),
        "square": math.sqrt(12) * (v - 0.5),
        "ring": ring(20).sample(n, source),
        "moons": moons().sample(n, source),
        "Laplace": torch.distributions.Laplace(0.0, 1.0).icdf(u.clamp_min(1e-6)),
    }
    return {name: (x - x.mean(0)) / x.std(0) for name, x in found.items()}


@case("CU-10")
def _():
    def ratio(*args, **settings):
        values = {name: at_best_angle(x, *args, **settings) for name, x in laws().items()}
        return min(values[name] for name in values if name != "normal") / values["normal"]

    return ratio(), {
        "means only": ratio(additive_improvement),
        "one angle": ratio(angles=1),
        "bins of eight samples": ratio(bins=2**11),
        "scale only, of all samples": ratio(bins=1),
    }


def over_normal(name, improvement, bins=32):
    return at_best_angle(laws()[name], improvement, bins) / at_best_angle(laws()["normal"], improvement, bins)


@case("CU-11")
def _():
    return over_normal("disc", additive_improvement), {
        "moons for the disc": over_normal("moons", additive_improvement),
        "square for the disc": over_normal("square", additive_improvement),
        "affine": over_normal("disc", affine_improvement),
    }


@case("CU-20")
def _():
    return over_normal("disc", affine_improvement), {
        "additive": over_normal("disc", additive_improvement),
        "normal for the disc": over_normal("normal", affine_improvement),
        "bins of eight samples": over_normal("disc", affine_improvement, bins=2**11),
        "one bin": over_normal("disc", affine_improvement, bins=1),
    }


# --- Layer by layer.


RING = ring(20, radius=2 / math.sqrt(2.04), std=0.2 / math.sqrt(2.04))  # standardised: variance 2^2 / 2 + 0.2^2 before


@functools.cache
def ring_flow(kind="half"):
    source = runtime.generator(0)
    x = RING.sample(2**14, source)
    if kind in ("half", "full"):
        return fit_affine_layers(x, 40, num_bins=32, step={"half": 0.5, "full": 1.0}[kind], generator=source)
    blocks = []
    for _ in range(40):
        rotation = torch.eye(2) if kind == "unrotated" else random_rotation(2, source).float()
        y = x @ rotation.T
        position, m, s = conditional_moments(y[:, 0], y[:, 1:], 32)
        scale, shift = (torch.ones_like(s), -0.5 * m) if kind == "additive" else (0.5 + 0.5 / s, -0.5 * m / s)
        blocks.append(BinnedCoupling(rotation, position, scale, shift))
        x, _ = blocks[-1](x)
    return Chain(*blocks)


FRESH = RING.sample(2**14, runtime.generator(1))


def ring_divergence(blocks, log_det=True):
    z, total = Chain(*blocks)(FRESH) if len(blocks) else (FRESH, 0.0)
    return (RING.log_prob(FRESH) - StandardNormal([2]).log_prob(z) - log_det * total).mean().item()


@case("CU-12")
def _():
    def ratio(kind, num_blocks=20, **settings):
        return ring_divergence(ring_flow(kind).bijections[:num_blocks], **settings) / ring_divergence([])

    return ratio("half"), {
        "full steps": ratio("full"),
        "additive blocks": ratio("additive"),
        "no rotations": ratio("unrotated"),
        "five blocks": ratio("half", 5),
        "log-determinant left out": ratio("half", log_det=False),
    }


@case("CU-13")
def _():
    def ratio(kind, num_blocks=40, **settings):
        z = Chain(*ring_flow(kind).bijections[:num_blocks])(FRESH)[0]
        return at_best_angle(z, **settings) / at_best_angle(FRESH, **settings)

    return ratio("half"), {
        "additive blocks": ratio("additive"),
        "no rotations": ratio("unrotated"),
        "five blocks": ratio("half", 5),
        "bins of eight samples": ratio("half", bins=2**10),
    }


def conditions(f, x, largest_only=False):
    x = x.detach().requires_grad_()
    z = f(x)
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    values = torch.linalg.svdvals(torch.stack(rows, 1).double())
    return (values[:, 0] if largest_only else values[:, 0] / values[:, 1]).quantile(0.99).item()


A, S = 1.5, 0.5
LATENT = torch.randn(8000, 2, generator=runtime.generator(2)) * torch.tensor([1, S])


def shear(eps):
    return lambda x: torch.stack([x[:, 0], x[:, 1] + A * (x[:, 0] / eps).sin()], 1)


@functools.cache
def toy():
    """(distance of samples, divergence) of shears by their epsilon, and of plain normals that may scale."""
    source, phases = runtime.generator(3), torch.arange(200) * 2 * math.pi / 200
    b, noise = torch.randn(2, 8000, generator=source)
    a = S * noise + A * (2 * math.pi * torch.rand(8000, generator=source)).sin()
    log_q = (-0.5 * ((a[:, None] - A * phases.sin()) / S).square()).exp().mean(1).log()

    def distance(x):
        wide = torch.stack([b, a], 1)
        return sliced_wasserstein(x, wide, num_projections=30, generator=runtime.generator(0)).item()

    def sheared(eps):
        return distance(shear(eps)(LATENT)), (log_q + 0.5 * ((a - A * (b / eps).sin()) / S).square()).mean().item()

    def normal(std):  # a plain normal of this width for a, which the likelihood can follow as well
        log_p = -0.5 * (a / std).square() - math.log(std / S)
        return distance(LATENT * torch.tensor([1, std / S])), (log_q - log_p).mean().item()

    return {eps: sheared(eps) for eps in (1.0, 0.7, 0.02)}, [normal(S), normal(a.std().item())]


@case("CU-14")
def _():
    by_eps, _ = toy()
    return by_eps[0.02][0] / by_eps[1.0][0], {
        "coarse only": by_eps[0.7][0] / by_eps[1.0][0],
        "the wrong way round": by_eps[1.0][0] / by_eps[0.02][0],
        "the divergence": by_eps[0.02][1] / by_eps[1.0][1],
    }


@case("CU-19")
def _():
    by_eps, (narrow, wide) = toy()
    return by_eps[0.02][1] / by_eps[1.0][1], {
        "the distance": by_eps[0.02][0] / by_eps[1.0][0],
        "a coupling that may scale": wide[1] / narrow[1],
    }


@case("CU-15")
def _():
    def slope(conds, scales):
        x, y = -torch.tensor(scales).log(), torch.tensor(conds).log()
        return (torch.cov(torch.stack([x, y]))[0, 1] / x.var()).item()

    def of_shear(*scales, **settings):
        return slope([conditions(shear(eps), LATENT, **settings) for eps in scales], scales)

    z, found = FRESH[:2000], []
    for block in ring_flow("half").bijections[:20]:
        found.append(conditions(lambda x, block=block: block(x)[0], z))
        z = block(z)[0]
    return of_shear(0.2, 0.1, 0.05, 0.02), {
        "coarse oscillation": of_shear(5.0, 2.0, 1.0),
        "largest singular value for condition number": of_shear(0.2, 0.1, 0.05, 0.02, largest_only=True),
        "blocks for the oscillation": slope(found, [1 / k for k in range(1, 21)]),
    }


# --- Whitening.


@case("CU-16")
def _():
    source = runtime.generator(0)

    def error(dim, formula=whitening_ratio, block=whitening_block, rotate=random_rotation, **settings):
        bend = 1e-3 * torch.randn(dim, dtype=F64, generator=source)
        start = torch.diag(1 + bend - bend.mean())
        losses = []
        for _ in range(2500):
            q = rotate(dim, source)
            losses.append(block(q @ start @ q.T, dim // 2, **settings))
        after = torch.linalg.eigvalsh(torch.stack(losses)) - 1
        before = 0.5 * (bend - bend.mean() - torch.log1p(bend - bend.mean())).sum()
        mean = (0.5 * (after - torch.log1p(after)).sum(-1)).mean() / before
        return abs(mean.item() / formula(dim) - 1)

    def keep_cross(covariance, active):
        scale = covariance.diagonal().rsqrt()
        return scale[:, None] * covariance * scale

    def permutation(dim, source):
        return torch.eye(dim, dtype=F64)[torch.randperm(dim, generator=source)]

    return [error(dim) for dim in (8, 16)], {
        "passive features not scaled": error(8, scale_passive=False),
        "half": error(8, formula=lambda dim: 0.5),
        "cross-covariance kept": error(8, block=keep_cross),
        "permutations of a diagonal": error(8, rotate=permutation),
    }


@case("CU-17")
def _():
    source, measured = runtime.generator(0), []
    spectra = [c ** torch.linspace(0, 1, 16, dtype=F64) for c in (1.5, 100.0)]
    spectra += [torch.ones(16, dtype=F64).index_fill(0, torch.tensor([0]), value) for value in (0.01, 0.1, 10.0)]
    spectra = [x / x.mean() for x in spectra]
    for x in spectra:
        measured.append(whiten(torch.diag(x).expand(100, 16, 16), 1, generator=source)[0][:, :])
    after = [losses[1].mean().item() for losses in measured]

    def bound(x, factor=1.0, divide=True):
        loss = 0.5 * (x - 1 - x.log()).sum()
        share = 16**2 / (2 * 15 * 18) * (x - 1).square().mean() / (x.max() if divide else 1)
        return (loss + factor * 4 * torch.log1p(-share)).item()

    def largest(bounds):
        return max(math.inf if not a > 0 else b / a for a, b in zip(bounds, after, strict=True))

    assert [bound(x) for x in spectra] == pytest.approx([var_max_bound(x).item() for x in spectra])
    return largest([var_max_bound(x).item() for x in spectra]), {
        "not divided by the largest eigenvalue": largest([bound(x, divide=False) for x in spectra]),
        "twice the logarithm": largest([bound(x, factor=2.0) for x in spectra]),
        "no block": max(losses[0, 0].item() / bound(x) for losses, x in zip(measured, spectra, strict=True)),
    }


@case("CU-18")
def _():
    pixels = digits()[0].double()
    pixels = pixels + 0.1 * torch.randn(pixels.shape, dtype=F64, generator=runtime.generator(0))
    correlation = torch.corrcoef(pixels.T)

    def rate(first=5, runs=3, **settings):
        losses, _ = whiten(correlation.expand(runs, 64, 64), 30, generator=runtime.generator(0), **settings)
        return (losses[first + 1 :] / losses[first:-1]).mean().item()

    return rate(), {
        "halves only take turns": rate(rotate=False),
        "passive features not scaled": rate(scale_passive=False),
        "an eighth active": rate(active=8),
    }
