"""Each criterion of chapter 08 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's at a fraction of its size. Show the measured values with `pytest -rP`.
"""

import functools
import math

import pytest
import torch
from claim_cases import ClaimCases
from torch import nn
from torch.nn.functional import normalize

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.data import airports, split_points
from refimpl.free_form import (
    SO3,
    ManifoldFlow,
    MatchingFlow,
    PoincareBall,
    Product,
    Sphere,
    Uniform,
    VonMisesFisherMixture,
    WrappedNormalMixture,
    manifold_log_det,
    model_integral,
    moebius_add,
    tangent_probes,
    volume_change_surrogate,
)
from refimpl.nets import residual_mlp
from refimpl.training import fit

case = ClaimCases("08_manifold_free_form_flows")
F64 = torch.float64
LIKE = torch.zeros(1, dtype=F64)
SPHERE, TORUS, ROTATIONS, DISK = Sphere(2), Sphere(1, copies=2), SO3(), PoincareBall(2)


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


def source(seed=0):
    return runtime.generator(seed)


def random_points(manifold, n, g):
    if math.isfinite(manifold.volume):
        return manifold.uniform([n], g, LIKE)
    return 0.25 * torch.randn(n, manifold.dim, dtype=F64, generator=g)


# --- Change of variables.


class Skewed(Sphere):
    """Its frame spans the tangent space, but is not orthonormal."""

    def frame(self, x):
        return super().frame(x) @ torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=x.dtype)


@case("MFF-1")
def _():
    g = source()
    a = torch.eye(3, dtype=F64) + 0.5 * torch.randn(3, 3, dtype=F64, generator=g)
    x, y = SPHERE.uniform([50], g, LIKE), random_points(DISK, 50, g)
    shift = torch.tensor([0.4, -0.6], dtype=F64)
    closed = a.det().abs().log() - 3 * (x @ a.T).norm(dim=1).log()

    def error(sphere=SPHERE, disk=DISK, project=SPHERE.project):
        linear = manifold_log_det(lambda x: project(x @ a.T), x, sphere)[1] - closed
        moved = manifold_log_det(lambda y: moebius_add(shift.expand_as(y), y), y, disk)[1]
        return [linear.abs().max().item(), moved.abs().max().item()]

    def bare():
        z = SPHERE.project(x @ a.T)
        inner = SPHERE.frame(z).mT @ a @ SPHERE.frame(x)
        return (torch.linalg.slogdet(inner).logabsdet - closed).abs().max().item()

    return error(), {
        "projection left out of the Jacobian": bare(),
        "metric term dropped": error(disk=FlatDisk(2)),
        "half of the metric term": error(disk=HalfDisk(2)),
        "frames not orthonormal": error(sphere=Skewed(2)),
    }


class FlatDisk(PoincareBall):
    def metric_log_scale(self, x):
        return x.new_zeros(x.shape[:-1])


class HalfDisk(PoincareBall):
    def metric_log_scale(self, x):
        return super().metric_log_scale(x) / 2


MANIFOLDS = [SPHERE, TORUS, ROTATIONS, DISK, Product(ROTATIONS, SPHERE)]


def gradients(manifold, draw, *, inverse=True, project=True):
    """Exact gradient, and those of the surrogate for each function of z in draw, at 200 points."""
    g = source()
    torch.manual_seed(0)
    net = residual_mlp(manifold.ambient_dim, width=16, depth=2).double()
    x = random_points(manifold, 200, g)

    def encode(x):
        return manifold.project(0.7 * net(x))

    z, log_det = manifold_log_det(encode, x, manifold)
    exact = log_det - manifold.metric_log_scale(z) + manifold.metric_log_scale(x)
    flat = [torch.cat([p.flatten() for p in torch.autograd.grad(exact.mean(), net.parameters())])]
    q, r = manifold.frame(x), manifold.frame(z).detach()
    back = q @ torch.linalg.inv(r.mT @ jacobian(encode, x).detach() @ q) @ r.mT
    back = back if inverse else q @ r.mT

    def decode(y):
        return x + (back @ (y - z.detach()).unsqueeze(-1)).squeeze(-1)

    for probes in draw:
        f = encode if project else lambda x: z.detach() + 0.7 * (net(x) - net(x).detach())
        s = volume_change_surrogate(f, decode, x, probes=probes).surrogate
        flat.append(
            torch.cat([p.flatten() for p in torch.autograd.grad(s.mean(), net.parameters(), materialize_grads=True)])
        )
    return flat[0], torch.stack(flat[1:])


@case("MFF-2")
def _():
    def errors(longer=None, **options):
        out = []
        for m in MANIFOLDS:
            draw = tangent_probes(m, m.dim, source())
            factor = 1.0 if longer is None else longer(m)
            exact, (got,) = gradients(m, [lambda z, d=draw, f=factor: f * d(z)], **options)
            out.append(((got - exact).norm() / exact.norm()).item())
        return out

    return errors(), {
        "probes of length sqrt(D)": errors(lambda m: math.sqrt(m.ambient_dim / m.dim)),
        "decoder is no inverse": errors(inverse=False),
        "projection left out of the Jacobian": errors(project=False),
        "one probe": [
            ((got[0] - exact).norm() / exact.norm()).item()
            for exact, got in (gradients(m, [tangent_probes(m, 1, source())]) for m in MANIFOLDS)
        ],
    }


@case("MFF-3")
def _():
    def means(change=lambda m, d: d, repeats=60):
        out = []
        for m in MANIFOLDS:
            exact, got = gradients(m, [change(m, tangent_probes(m, 1, source()))] * repeats)
            out.append((got.mean(0) @ exact / exact.square().sum()).item())
        return out

    def longer():
        return means(lambda m, d: lambda z: m.ambient_dim / m.dim * d(z), 5)

    def first_axis(m, d):
        return lambda z: math.sqrt(m.dim) * m.frame(z)[..., 0].unsqueeze(0)

    ratios = [m.ambient_dim / m.dim for m in MANIFOLDS]
    long = means(lambda m, d: lambda z: math.sqrt(m.ambient_dim / m.dim) * d(z))
    return means() + [value / ratio for value, ratio in zip(long, ratios, strict=True)], {
        "probes of length sqrt(D)": long,
        "too long by D / n, not by its root": [value / ratio for value, ratio in zip(longer(), ratios, strict=True)],
        "unit probes": means(lambda m, d: lambda z: d(z) / math.sqrt(m.dim), 5),
        "always the first axis": means(first_axis, 2),
    }


# --- Training.


def no_volume(z):
    return torch.zeros_like(z).unsqueeze(0)


def train(base, draw, steps, *, manifold=None, lr=1e-2, batch=128, network=None, **weights):
    torch.manual_seed(0)
    manifold = manifold or base.manifold
    make = network or (lambda: residual_mlp(manifold.ambient_dim, width=48, depth=4))
    flow, g = ManifoldFlow(make(), make(), base, manifold), source(1)
    if steps:
        fit(
            flow,
            lambda: flow.loss(draw(batch, g), generator=g, **weights),
            num_steps=steps,
            lr=lr,
            schedule="warmup_cosine",
            clip_norm=1.0,
            progress=False,
        )
    return flow


@torch.no_grad()
def gap(flow, law, side="decoder", n=2000):
    x = law.sample([n], source(5))
    return (law.log_prob(x) - flow.log_prob(x, side=side)).mean().item()


@case("MFF-4")
def _():
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.0, 0.6, 1.6]])

    class Angular:
        def sample(self, shape, g):
            return normalize(torch.randn(*shape, 3, generator=g) @ factor.T, dim=-1)

        def log_prob(self, x, power=1.5):
            inverse = torch.linalg.inv(factor @ factor.T)
            return -math.log(4 * math.pi) - factor.logdet() - power * (x @ inverse * x).sum(-1).log()

    law = Angular()

    def run(steps=400, probes=None, scale=1.0):
        torch.manual_seed(0)
        options = dict(beta=10, lr=3e-2, batch=256, probes=probes, network=lambda: nn.Linear(3, 3, bias=False))
        flow = train(Uniform(SPHERE), lambda n, g: law.sample([n], g), steps, **options)
        return abs(gap(flow, law))

    return run(), {"untrained": run(0), "no volume term": run(probes=no_volume, steps=150)}


MODES = normalize(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [-0.5, 0.8, -0.3], [0.0, -1.0, 0.0]]), dim=-1)
FOUR = VonMisesFisherMixture(MODES, 10.0)


@functools.cache
def on_sphere(steps=550, beta=30, cycle=3, probes=None):
    weights = dict(beta=beta, beta_cycle=cycle, probes=probes, lr=1.5e-2)
    return train(Uniform(SPHERE), lambda n, g: FOUR.sample([n], g), steps, **weights)


@case("MFF-5")
def _():
    return gap(on_sphere(), FOUR), {
        "untrained": gap(on_sphere(0), FOUR),
        "no volume term": gap(on_sphere(60, probes=no_volume), FOUR),
        "beta = 0.3": gap(on_sphere(150, 0.3, 0), FOUR),
    }


def grid_on_sphere(n=2000):
    k = torch.arange(n) + 0.5
    height, angle = 1 - 2 * k / n, k * math.pi * (3 - math.sqrt(5))
    return torch.cat(
        [(1 - height**2).sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], -1), height[:, None]], -1
    )


def grid_on_torus(n=48):
    angle = (torch.arange(n) + 0.5) * 2 * math.pi / n
    pairs = torch.cartesian_prod(angle, angle)
    return torch.stack([pairs.cos(), pairs.sin()], -1).flatten(1)


def integrals(flow, points, change=None):
    def log_prob(x, side):
        return flow.log_prob(x, side=side) if change is None else change(flow, x, side)

    return [model_integral(lambda x, s=s: log_prob(x, s), points, flow.manifold)[0] for s in ("decoder", "encoder")]


def without_projection(flow, x, side):
    z = flow.encode(x)
    f, at = (flow.encoder, x) if side == "encoder" else (flow.decoder, z)
    to = flow.encode(x) if side == "encoder" else flow.decode(z)
    inner = flow.manifold.frame(to).mT @ jacobian(f, at) @ flow.manifold.frame(at)
    log_det = torch.linalg.slogdet(inner).logabsdet
    return flow.base.log_prob(z) + (log_det if side == "encoder" else -log_det)


CORNERS = torch.tensor([[-1.2, 2.4], [-1.1, -0.7], [1.0, 0.8], [2.8, 2.9]])
CORNERS = WrappedNormalMixture(TORUS, torch.stack([CORNERS.cos(), CORNERS.sin()], -1).flatten(1), 0.5)


@functools.cache
def on_torus(steps=350, probes=None):
    return train(Uniform(TORUS), lambda n, g: CORNERS.sample([n], g), steps, beta=30, beta_cycle=3, probes=probes)


@case("MFF-6")
def _():
    right = integrals(on_sphere(), grid_on_sphere()) + integrals(on_torus(), grid_on_torus())
    return right, {
        "beta = 0.3": integrals(on_sphere(150, 0.3, 0), grid_on_sphere()),
        "projection left out of the Jacobian": integrals(on_sphere(), grid_on_sphere(), without_projection),
        "uniform per area of the plane": [v / math.pi for v in right],
    }


@case("MFF-7")
def _():
    return gap(on_torus(), CORNERS), {
        "untrained": gap(on_torus(0), CORNERS),
        "no volume term": gap(on_torus(60, no_volume), CORNERS),
        "total volume 2 pi": gap(on_torus(), CORNERS) - math.log(2 * math.pi),
    }


TURNS = WrappedNormalMixture(ROTATIONS, ROTATIONS.uniform([4], source(7)), 0.3)


@functools.cache
def on_rotations(cycle, steps=480):
    options = dict(beta=30, beta_cycle=cycle)
    return train(Uniform(ROTATIONS), lambda n, g: TURNS.sample([n], g), steps, **options)


@case("MFF-8")
def _():
    flow = on_rotations(3)
    x = TURNS.sample([1000], source(5))
    right = (TURNS.log_prob(x) - flow.log_prob(x)).mean().item()
    return right, {
        "untrained": gap(on_rotations(3, 0), TURNS),
        "volume of the Frobenius metric": right + 1.5 * math.log(2),
        "the same, the other way": right - 1.5 * math.log(2),
    }


@case("MFF-9")
def _():
    def ratio(a, b, points):
        with torch.no_grad():
            errors = [(f.decode(f.encode(points)) - points).square().sum(-1).mean().item() for f in (a, b)]
        return errors[1] / errors[0]

    spread = ROTATIONS.uniform([2000], source(8))
    return ratio(on_rotations(3), on_rotations(0), spread), {
        "judged at data": ratio(on_rotations(3), on_rotations(0), TURNS.sample([2000], source(9))),
        "the same twice": ratio(on_rotations(3), on_rotations(3), spread),
    }


BLOB = WrappedNormalMixture(DISK, torch.tensor([[-0.489, 0.489]]), 0.6)


@functools.cache
def on_disk(flat=False, steps=300):
    centre = WrappedNormalMixture(DISK, torch.zeros(1, 2), 0.6)
    options = dict(lr=5e-3, beta=100, beta_cycle=1, beta_projection=10)
    flow = train(centre, lambda n, g: BLOB.sample([n], g), steps, manifold=FlatDisk(2) if flat else DISK, **options)
    flow.manifold = DISK
    return flow


@case("MFF-10")
def _():
    def no_metric():
        flow = on_disk()
        x = BLOB.sample([2000], source(5))
        z = flow.encode(x)
        log_prob = flow.base.log_prob(z) - manifold_log_det(flow.decode, z, FlatDisk(2))[1]
        return (BLOB.log_prob(x) - log_prob).mean().item()

    return gap(on_disk(), BLOB), {
        "untrained": gap(on_disk(steps=0), BLOB),
        "metric left out of the density": no_metric(),
    }


@case("MFF-11")
def _():
    def mean(flow):
        with torch.no_grad():
            return BLOB.log_prob(flow.sample([4000], generator=source(10))).mean().item()

    right, flat = mean(on_disk()), mean(on_disk(flat=True))
    return right - flat, {
        "term in both": right - mean(on_disk(steps=290)),
        "untrained": mean(on_disk(steps=0)) - flat,
        "exchanged": flat - right,
    }


@case("MFF-12")
def _():
    pole = VonMisesFisherMixture(torch.tensor([[0.0, 0.0, 1.0]]), 3.0)

    @functools.cache
    def kl(longer):
        draw = tangent_probes(SPHERE, 1, source(12))
        options = dict(manifold=SPHERE, lr=5e-3, beta=50, beta_cycle=3, probes=lambda z: longer * draw(z))
        flow = train(pole, lambda n, g: pole.sample([n], g), 160, **options)
        return gap(flow, pole, n=8000)

    return kl(math.sqrt(1.5)) - kl(1.0), {
        "sqrt(n) twice": kl(1.0) - kl(1.0),
        "twice the length": kl(2.0) - kl(1.0),
        "exchanged": kl(1.0) - kl(math.sqrt(1.5)),
    }


# --- Real places.


@functools.cache
def places():
    return split_points(airports()[0], generator=source(2))


def rows_of(x):
    return lambda n, g: x[torch.randint(len(x), (n,), generator=g)]


def kernel(train, x, kappa):
    squares = torch.cdist(x.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    log_scale = math.log(kappa / (2 * math.pi)) - math.log1p(-math.exp(-2 * kappa)) - math.log(len(train))
    bumps = torch.logsumexp(-0.5 * kappa * squares, 1) + log_scale + math.log(0.95)
    return -torch.logaddexp(bumps, torch.full_like(bumps, math.log(0.05 / (4 * math.pi)))).mean().item()


def best_kernel(train, choose, test, kappas=(1e2, 1e3, 1e4, 1e5, 1e6)):
    return kernel(train, test, min(kappas, key=lambda kappa: kernel(train, choose, kappa)))


@functools.cache
def world(steps=750, probes=None):
    flow = train(Uniform(SPHERE), rows_of(places()[0]), steps, lr=1.5e-2, beta=30, beta_cycle=3, probes=probes)
    with torch.no_grad():
        return -flow.log_prob(places()[2]).mean().item()


@case("MFF-13")
def _():
    learn, choose, test = places()
    g, mixtures = source(15), []
    for _ in range(2):
        mixture = VonMisesFisherMixture(learn[torch.randperm(len(learn), generator=g)[:5]], 7.0, learned=True)
        fit(
            mixture,
            lambda m=mixture: -m.log_prob(learn).mean(),
            num_steps=120,
            lr=0.08,
            schedule="cosine",
            progress=False,
        )
        mixtures.append(mixture)
    five = -max(mixtures, key=lambda m: m.log_prob(choose).mean().item()).log_prob(test).mean().item()
    return five - world(), {"untrained": five - world(0), "no volume term": five - world(60, no_volume)}


@case("MFF-14")
def _():
    learn, choose, test = places()
    learn = learn[::2]
    return world() - best_kernel(learn, choose[:400], test[:400]), {
        "kernel much too wide": world() - kernel(learn, test[:400], 10.0),
        "width chosen on training points": world() - best_kernel(learn, learn[:400], test[:400]),
    }


@case("MFF-15")
def _():
    g = source(16)
    some = airports()[0][torch.randperm(7882, generator=g)[:700]]
    times = torch.randint(1, 7, (700,), generator=g)
    once = best_kernel(*split_points(some, generator=g))
    by_place = split_points(torch.arange(700.0)[:, None], generator=g)
    apart = [some[k[:, 0].long()].repeat_interleave(times[k[:, 0].long()], 0) for k in by_place]
    return once - best_kernel(*split_points(some.repeat_interleave(times, 0), generator=g)), {
        "copies dropped": once
        - best_kernel(*split_points(some.repeat_interleave(times, 0).unique(dim=0), generator=g)),
        "split by place": once - best_kernel(*apart),
        "width fixed": kernel(*apart[::2], 100.0) - kernel(*split_points(some.repeat_interleave(times, 0))[::2], 100.0),
    }


# --- Flow matching, and a weight that is too small.


@functools.cache
def matching(steps=500):
    torch.manual_seed(0)
    flow = MatchingFlow(residual_mlp(3, width=48, depth=4, dim_context=1), Uniform(SPHERE))
    if steps:
        g = source(17)
        options = dict(num_steps=steps, lr=1e-2, schedule="warmup_cosine", clip_norm=1.0, progress=False)
        fit(flow, lambda: flow.loss(FOUR.sample([256], g), g), **options)
    return flow


def discrepancy(x, y, kappa=10.0):
    total = -2 * (kappa * (x @ y.T - 1)).exp().mean()
    for p in (x, y):
        total += ((kappa * (p @ p.T - 1)).exp().sum() - len(p)) / (len(p) * (len(p) - 1))
    return total.item()


@case("MFF-16")
def _():
    fresh = FOUR.sample([2000], source(18))

    def off(flow, *calls, seed=19):
        with torch.no_grad():
            drawn = flow.sample([2000], *calls, generator=source(seed))
        return discrepancy(drawn, fresh)

    return off(matching(), 1) / off(on_sphere()), {
        "free-form flow untrained": off(matching(), 1) / off(on_sphere(0)),
        "flow matching with 50 calls": off(matching(), 50) / off(on_sphere()),
        "flow matching in its place": off(matching(), 1) / off(matching(), 1, seed=20),
    }


@case("MFF-17")
def _():
    x = FOUR.sample([1000], source(5))
    other = (FOUR.log_prob(x) - matching().log_prob(x)).mean().item()
    return gap(on_sphere(), FOUR) - other, {
        "free-form flow untrained": gap(on_sphere(0), FOUR) - other,
        "no volume term": gap(on_sphere(60, probes=no_volume), FOUR) - other,
        "free-form flow that runs away": gap(on_sphere(300, 1, 0), FOUR) - other,
        "flow matching untrained": gap(on_sphere(), FOUR) - (FOUR.log_prob(x) - matching(0).log_prob(x)).mean().item(),
    }


@case("MFF-18")
def _():
    def integral(beta):
        return max(abs(math.log(max(value, 1e-30))) for value in integrals(on_sphere(300, beta, 0), grid_on_sphere()))

    return integral(1), {"beta = 10": integral(10), "beta = 30": integral(30)}
