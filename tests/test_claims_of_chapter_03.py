"""Each criterion of chapter 03 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's with fewer steps and draws, and higher learning rates to make up for it. A fault is
one that an implementation can really have: a sign, a weight, a log-determinant that is not counted, a layer that does
not see its input. Show the measured values with `pytest -rP`.
"""

import functools
import itertools
import math
import time

import pytest
import torch
from claim_cases import ClaimCases
from torch import nn

from refimpl import autodiff, runtime
from refimpl import flows as zoo
from refimpl.data import digits, moons
from refimpl.flows import Chain, Diagonal, Inverse, SplineMap
from refimpl.training import fit

case = ClaimCases("03_flow_zoo")
F64 = torch.float64
SEED = 0


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


class Miscounted(zoo.Bijection):
    """A bijection whose log-determinant is reported times a factor."""

    def __init__(self, bijection, factor):
        super().__init__()
        self.bijection, self.factor, self.event_ndim = bijection, factor, bijection.event_ndim

    def forward(self, x, context=None):
        z, log_det = self.bijection(x, context)
        return z, self.factor * log_det

    def inverse(self, z, context=None):
        x, log_det = self.bijection.inverse(z, context)
        return x, self.factor * log_det


def train(parameters, loss, *, steps, lr, data=None, batch=None):
    generator = runtime.generator(SEED)
    options = dict(schedule="cosine", clip_norm=5.0, generator=generator, progress=False)
    fit(parameters, loss, data=data, batch_size=batch, num_steps=steps, lr=lr, **options)


# --- Two moons.


@functools.cache
def two_moons():
    target, source = moons(), runtime.generator(SEED)
    return target, target.sample(20_000, source), target.sample(10_000, source)


def divergence(make, *, seed=0, steps=300, lr=1e-2):
    """KL(p || flow) in nats after training."""
    target, x, x_test = two_moons()
    torch.manual_seed(SEED + 100 * seed)
    flow = zoo.Flow(make(), zoo.StandardNormal([2]))
    train(flow, lambda x: -flow.log_prob(x).mean(), steps=steps, lr=lr, data=x, batch=256)
    with torch.no_grad():
        return (target.log_prob(x_test) - flow.log_prob(x_test)).mean().item()


def couplings(tau, layers):
    return lambda: zoo.coupling_flow(2, tau, layers, width=32)


@functools.cache
def independent():
    return divergence(couplings(zoo.AffineMap(), 8))


@case("ZOO-1")
def _():
    def ratio(make):
        return divergence(make) / independent()

    return ratio(couplings(SplineMap(8, 4.0), 2)), {
        "box smaller than the data": ratio(couplings(SplineMap(8, 1.0), 2)),
        "one half stays": ratio(lambda: Chain(*(zoo.Coupling(2, SplineMap(8, 4.0)) for _ in range(2)))),
    }


def nano(mode):
    return zoo.NanoFlow(2, 8, zoo.AffineMap(), mode, width=32)


@functools.cache
def shared(mode, seed=0):
    return divergence(lambda: nano(mode), seed=seed)


def one_sided():
    flow = nano("decomposed")
    for coupling in flow.bijections:
        coupling.swap = False
    return flow


@case("ZOO-8")
def _():
    return shared("naive") - shared("decomposed"), {
        "naive with projections of its own": shared("decomposed", seed=1) - shared("decomposed"),
        "other way round": shared("decomposed") - shared("naive"),
    }


@case("ZOO-9")
def _():
    def share(regained):
        return (shared("naive") - regained) / (shared("naive") - independent())

    return share(shared("decomposed")), {
        "no projections of its own": share(shared("naive", seed=1)),
        "halves do not alternate": share(divergence(one_sided)),
    }


def kernelised(num_points=16, change=None):
    def net(dim_in, dim_out):
        made = zoo.KernelConditioner(dim_in, dim_out, num_points=num_points)
        if change:
            with torch.no_grad():
                change(made)
        return made

    return lambda: Chain(*(zoo.Coupling(2, zoo.AffineMap(), net, swap=i % 2 == 1) for i in range(8)))


@case("ZOO-10")
def _():
    def trained(make):
        return divergence(make, steps=450, lr=2e-2)

    def excess(*settings):
        return trained(kernelised(*settings)) - networks

    networks = trained(couplings(zoo.AffineMap(), 8))
    return excess(), {
        "all points in one place": excess(16, lambda net: net.points.requires_grad_(False).zero_()),
        "one kernel": excess(1),
        "kernels too narrow to meet": excess(16, lambda net: net.log_length.requires_grad_(False).fill_(-5)),
    }


# --- Speed.


@case("ZOO-2")
def _():
    wide = torch.randn(64, 64)

    class OneSweep(zoo.MaskedAutoregressive):
        """Inverts with parameters of the latent, which are wrong."""

        def inverse(self, z, context=None):
            x, log_slopes = self.tau.inverse(z, self.made(z, context))
            return x, log_slopes.sum(-1)

    def seconds(run, repeats=5):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    def ratio(f):
        with torch.no_grad():
            return seconds(lambda: f.inverse(wide)) / seconds(lambda: f(wide))

    maf, coupling = ratio(zoo.maf(64, 2)), ratio(zoo.coupling_flow(64, zoo.AffineMap(), 2))
    iaf, one_sweep = ratio(zoo.iaf(64, 2)), ratio(Chain(*(OneSweep(64, zoo.AffineMap()) for _ in range(2))))
    return [maf / coupling, coupling / iaf], {
        "couplings for MAF": [1.0, coupling / iaf],
        "IAF not turned round": [maf / coupling, coupling / maf],
        "inverse in one sweep": [one_sweep / coupling, coupling * one_sweep],
    }


# --- Planar flows fitted to an energy.


def ring_energy(z):
    bumps = torch.stack([-0.5 * ((z[..., 0] - 2) / 0.6) ** 2, -0.5 * ((z[..., 0] + 2) / 0.6) ** 2])
    return 0.5 * ((z.norm(dim=-1) - 2) / 0.4) ** 2 - bumps.logsumexp(0)


def posterior_divergence(layers, *, steps=200):
    """KL(q || p) of a flow of these planar layers, from noise to sample."""
    flow, noise, count = zoo.Flow(Inverse(layers), zoo.StandardNormal([2])), runtime.generator(SEED), [0]

    def loss():
        count[0] += 1
        x, log_q = flow.sample_and_log_prob([128], generator=noise)
        return (log_q + min(1.0, 0.01 + 2 * count[0] / steps) * ring_energy(x)).mean()

    train(flow, loss, steps=steps, lr=3e-2)
    with torch.no_grad():
        x, log_q = flow.sample_and_log_prob([10_000], generator=noise)
    return (log_q + ring_energy(x)).mean().item() + 1.8775


@case("ZOO-3")
def _():
    def ratios(make, depths=(2, 8, 16)):
        found = []
        for k in depths:
            torch.manual_seed(SEED)
            found.append(posterior_divergence(make(k)))
        return [deep / shallow for shallow, deep in itertools.pairwise(found)]

    def planar(k):
        return Chain(*(zoo.Planar(2) for _ in range(k)))

    return ratios(planar), {
        "one layer, used again and again": ratios(lambda k: Chain(*[zoo.Planar(2)] * k), (2, 8)),
        "sign of the log-determinant": ratios(lambda k: Miscounted(planar(k), -1)),
    }


# --- Series of a log-determinant.


@functools.cache
def contraction():
    """Exact log-determinant of I + A, and the terms of its series as matrices."""
    turned = zoo.random_rotation(4, runtime.generator(SEED))
    a = turned @ torch.tensor([-0.9, -0.6, 0.3, 0.6], dtype=F64).diag() @ turned.T
    powers = torch.stack([(-1) ** (k + 1) / k * torch.linalg.matrix_power(a, k) for k in range(1, 121)])
    return torch.linalg.slogdet(torch.eye(4, dtype=F64) + a).logabsdet, powers


@case("ZOO-4")
def _():
    exact_value, powers = contraction()
    dice, draws, k = runtime.generator(SEED), 60_000, torch.arange(1, 121)
    v = torch.randn(draws, 4, dtype=F64, generator=dice)
    terms, weights = torch.einsum("ni,kij,nj->nk", v, powers, v), torch.zeros(draws, 120, dtype=F64)
    for row in weights:
        game = torch.tensor(zoo.roulette_weights(2, rate=0.1, generator=dice)[:120], dtype=F64)
        row[: len(game)] = game
    taken, products = weights > 0, weights * terms

    def off(estimates):
        """Distance of their mean from the exact value, in standard errors."""
        estimates = estimates.sum(1)
        return ((estimates.mean() - exact_value) / (estimates.std() / draws**0.5)).abs().item()

    return off(products), {
        "weights all 1": off(taken * terms),
        "1 / P(N > k) for 1 / P(N >= k)": off(products * torch.where(k > 2, 1 / 0.9, 1.0)),
        "a constant weight for all that is random": off(taken * terms * torch.where(k > 2, 1.2, 1.0)),
        "signs do not alternate": off(products * (-1) ** (k + 1)),
        "1 / k left out": off(products * k),
    }


@case("ZOO-5")
def _():
    exact_value, powers = contraction()
    traces = powers.diagonal(dim1=1, dim2=2).sum(1)

    def bias(num_terms):
        return (traces[:num_terms].sum() - exact_value).abs().item()

    return bias(12), {"twenty terms": bias(20), "sixty terms": bias(60)}


# --- Continuous flows.

RK4, MIDPOINT, EULER = ((0, 0.5, 0.5, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)), ((0, 0.5), (0, 1)), ((0,), (1,))


def random_field(points):
    torch.manual_seed(SEED)
    field = zoo.Continuous(3, width=32, depth=3).double()
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.5)
    return field, torch.randn(points, 3, dtype=F64)


def integrate(field, x, n, method, *, trace=None, trace_weights=None):
    """Log-determinant by n Runge-Kutta steps, every stage of which starts from the one before."""
    nodes, weights = method
    trace = trace or (lambda v, x: autodiff.trace_jacobian(v, x))
    total = x.new_zeros(len(x))
    for i in range(n):
        slopes, traces = [torch.zeros_like(x)], []
        for c in nodes:
            t, at = torch.tensor((i + c) / n, dtype=F64), x + c / n * slopes[-1]
            slopes.append(field.velocity(t, at))
            traces.append(trace(lambda x, t=t: field.velocity(t, x), at))
        x = x + sum(w * s for w, s in zip(weights, slopes[1:], strict=True)) / n
        total = total + sum(w * s for w, s in zip(trace_weights or weights, traces, strict=True)) / n
    return total


@torch.no_grad()
def exact(field, x, n):
    field.num_steps, field.trace = n, "exact"
    return field(x)[1]


@case("ZOO-6")
def _():
    field, at = random_field(32)
    fine = exact(field, at, 240)

    @torch.no_grad()
    def order(solve):
        coarse, fine_enough = ((solve(n) - fine).abs().mean().item() for n in (20, 80))
        return math.log(coarse / fine_enough) / math.log(4)

    def by(method, **changes):
        return order(lambda n: integrate(field, at, n, method, **changes))

    return order(lambda n: exact(field, at, n)), {
        "Euler": by(EULER),
        "midpoint": by(MIDPOINT),
        "trace at the start of each step": by(RK4, trace_weights=(1, 0, 0, 0)),
        "trace of all stages alike": by(RK4, trace_weights=(1 / 4,) * 4),
        "determinant of one step for the integral": order(lambda n: autodiff.log_det_jacobian(lambda x: x / n + x, at)),
    }


@case("ZOO-7")
@torch.no_grad()
def _():
    solves = 200
    field, at = random_field(64)
    many = at.repeat(solves, 1)
    target = exact(field, at, 5)

    def miss(estimates):
        each = estimates.view(solves, len(at))
        return ((each.mean(0) - target) / (each.std(0) / solves**0.5)).square().mean().sqrt().item()

    def probed(estimate):
        """With an estimate of the trace by two random signs v and w, held fixed over the solve."""
        v, w = (autodiff.probe_vectors(many, generator=runtime.generator(SEED + i))[0] for i in range(2))
        return miss(integrate(field, many, 5, RK4, trace=lambda f, x: estimate(f, x, v, w)))

    def product(f, x, v):
        return autodiff.jvp(f, x, v)[1]

    field.num_steps, field.trace, field.generator = 5, "hutchinson", runtime.generator(SEED)
    return miss(field(many)[1]), {
        "standard deviation 1.2": probed(lambda f, x, v, w: 1.44 * (v * product(f, x, v)).sum(-1)),
        "uniform in (-1, 1)": probed(lambda f, x, v, w: (v * product(f, x, v)).sum(-1) / 3),
        "trace of the square": probed(lambda f, x, v, w: (v * product(f, x, product(f, x, v))).sum(-1)),
        "another probe on the left": probed(lambda f, x, v, w: (w * product(f, x, v)).sum(-1)),
    }


# --- Stochastic layers.


def well(x):
    return x[..., 0] ** 4 / 4 - 3 * x[..., 0] ** 2 + x[..., 0] / 2 + x[..., 1] ** 2


def start_energy(x):
    return x.square().sum(-1) / 8


@functools.cache
def log_z():
    axis = torch.arange(-6, 6, 0.02, dtype=F64)
    return (-well(torch.cartesian_prod(axis, axis))).logsumexp(0).item() + 2 * math.log(0.02)


START, BAD = Diagonal(2, scale=0.5), Diagonal(2, scale=0.7)
nn.init.constant_(BAD.shift, -0.7)  # away from both wells


def walk(steps, *, kind=zoo.Metropolis, step=0.5, maps=(START,), weight=lambda share: share, paths=20_000):
    """log w of the paths through maps, then Metropolis steps."""
    ladder = [kind(zoo.interpolate(start_energy, well, weight((i + 1) / steps)), step) for i in range(steps)]
    flow = zoo.StochasticFlow([*maps, *ladder], zoo.StandardNormal([2]), well)
    with torch.no_grad():
        return flow.sample([paths], runtime.generator(SEED + steps))[1]


def metropolis(report=lambda delta, growth: delta, sure=False):
    """Metropolis steps that report something else, or that accept everything."""

    class Faulty(zoo.Metropolis):
        def accept(self, x, proposal, growth, generator):
            new, delta = super().accept(x, proposal, growth - (1e9 if sure else 0), generator)
            return new, report(delta, growth)

    return Faulty


@case("ZOO-11")
def _():
    def error(steps, **settings):
        return abs(zoo.log_mean_weight(walk(steps, **settings)).item() - log_z())

    right = [error(steps, paths=100_000) for steps in (0, 5, 20, 50)] + [error(50, maps=(START, BAD), paths=100_000)]
    left = Diagonal(2)  # samples in the left well alone, 0.5 and 1 wide
    left.log_scale.data[0], left.shift.data[0] = math.log(2), 5
    return max(right), {
        "Delta S = 0": error(20, kind=metropolis(lambda delta, growth: 0 * delta)),
        "sign of Delta S": error(20, kind=metropolis(lambda delta, growth: -delta)),
        "Delta S of the proposal, accepted or not": error(20, kind=metropolis(lambda delta, growth: growth)),
        "everything accepted": error(20, kind=metropolis(sure=True)),
        "log-determinant of the first map left out": error(20, maps=(Miscounted(START, 0),)),
        "one of two maps forgotten in the sum": error(20, maps=(START, Miscounted(BAD, 0))),
        "right well never visited": error(0, maps=(left,), paths=100_000),
    }


@case("ZOO-12")
def _():
    def gain(**faults):
        even, uneven = (zoo.effective_sample_size(log_w).item() for log_w in (walk(50, **faults), walk(0)))
        return even / uneven

    return gain(), {
        "steps too long to be accepted": gain(step=50.0),
        "steps too short to move": gain(step=1e-3),
        "energies never leave the start": gain(weight=lambda share: 0),
        "energies in reverse": gain(weight=lambda share: 1 - share),
        "Delta S = 0": gain(kind=metropolis(lambda delta, growth: 0 * delta)),
    }


# --- Tails.


@functools.cache
def heavy_data():
    """Points to train on and to compare with: the second feature has the tails of Student's t of index 2."""
    source = runtime.generator(SEED)
    z, u = torch.randn(220_000, 2, generator=source), torch.rand(220_000, generator=source)
    x = torch.stack([z[:, 0], z[:, 0].sin() + z[:, 1] / (-(1 - u).log()).sqrt()], 1)
    return x[:20_000], x[20_000:]


@functools.cache
def samples(base, learned=True):
    """As many of a flow with this base as there are data."""
    train_on, compare = heavy_data()
    source = runtime.generator(SEED)
    torch.manual_seed(SEED)
    tails = train_on if base is None else list(base)
    flow = zoo.tail_adaptive_flow(tails, 2, tau=SplineMap(8, 3.0), width=32, learned=learned, generator=source)
    train(flow, lambda x: -flow.log_prob(x).mean(), steps=100, lr=1e-2, data=train_on, batch=512)
    with torch.no_grad():
        return flow.sample([len(compare)], generator=source)


def index_ratio(drawn, k=500, feature=1):
    return (zoo.hill_index(drawn, k)[feature] / zoo.hill_index(heavy_data()[1], k)[feature]).item()


NORMAL = (math.inf, math.inf)


@case("ZOO-13")
def _():
    return index_ratio(samples(NORMAL)), {
        "tail-adaptive base": index_ratio(samples(None)),
        "a fifth of the points for the tail": index_ratio(samples(NORMAL), k=40_000),
        "index of the light feature": index_ratio(samples(NORMAL), feature=0),
    }


@case("ZOO-14")
def _():
    def error(*base, **settings):
        return abs(math.log(index_ratio(samples(*base, **settings))))

    return error(None), {
        "normal base": error(NORMAL),
        "index 8, not learned": error((math.inf, 8.0), learned=False),
        "heavy and light mixed up": error((2.0, math.inf)),
    }


# --- Images.


@functools.cache
def images():
    """Grey levels 0 ... 16 for training and test."""
    grey, _ = digits()
    order = torch.randperm(len(grey), generator=runtime.generator(SEED))
    grey = (16 * grey[order]).round().view(-1, 1, 8, 8)
    return grey[:1400], grey[1400:]


def bits(make, *, steps=110, logit=None):
    """Bits per dimension of the test images after training."""
    torch.manual_seed(SEED)
    flow = zoo.Flow(Chain(logit or zoo.Logit(), make()), zoo.StandardNormal([1, 8, 8])).train()
    dice = runtime.generator(SEED)

    def loss(x):
        return -flow.log_prob(zoo.dequantise(x, 17, dice)).mean() / 64

    train(flow, loss, steps=steps, lr=1e-2, data=images()[0], batch=64)
    flow.eval()
    with torch.no_grad():
        y = zoo.dequantise(images()[1], 17, runtime.generator(SEED))
        return zoo.bits_per_dim(flow.log_prob(y), 64, 17).mean().item()


@functools.cache
def best_gaussian():
    logit, (seen, unseen) = zoo.Logit(event_ndim=1), images()
    rows = [logit(zoo.dequantise(seen, 17, runtime.generator(k)).flatten(1).double())[0] for k in range(10)]
    rows = torch.cat(rows)
    z, log_det = logit(zoo.dequantise(unseen, 17, runtime.generator(99)).flatten(1).double())
    fitted = torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T))
    return zoo.bits_per_dim(fitted.log_prob(z) + log_det, 64, 17).mean().item()


def glow(change=None):
    made = zoo.glow(1, 8, num_steps=4, width=32, tau=zoo.AffineMap())
    for module in made.modules() if change else ():
        change(module)
    return made


def unmixed(module):
    """No 1x1 convolution: the same channels stay in every coupling."""
    if isinstance(module, zoo.InvertibleLinear):
        module.lu.requires_grad_(False).zero_()
        module.permutation.copy_(torch.eye(len(module.lu)))
        module.sign.fill_(1)


@case("ZOO-15")
def _():
    def gain(make=glow, **settings):
        return best_gaussian() - bits(make, **settings)

    return gain(), {
        "hardly trained": gain(steps=10),
        "channels not mixed": gain(lambda: glow(unmixed)),
        "logit's log-determinant left out": gain(logit=Miscounted(zoo.Logit(), 0), steps=30),
    }


def tar(num_blocks=4, tau=None, change=None, *, num_layers=1):
    made = zoo.tarflow((1, 8, 8), 2, num_blocks, tau=tau, width=32, num_layers=num_layers)
    for block in made.bijection.bijections if change else ():
        change(block)
    return Chain(zoo.Reshape(zoo.ActNorm(64), (1, 8, 8)), made)


def positions_only(block):
    """No attention, and no look at the tokens: every patch has fixed parameters."""
    block.layers = nn.ModuleList()
    block.embed.requires_grad_(False).weight.zero_()


def one_order(block):
    block.flip = False


@functools.cache
def four_blocks():
    return bits(tar)


@case("ZOO-16")
def _():
    deep = bits(lambda: tar(1, num_layers=4))
    return deep - four_blocks(), {
        "one order for all blocks": deep - bits(lambda: tar(change=one_order)),
        "four blocks that see nothing": deep - bits(lambda: tar(change=positions_only)),
        "neither sees anything": bits(lambda: tar(1, change=positions_only)) - bits(lambda: tar(change=positions_only)),
    }


@case("ZOO-17")
def _():
    def additive():
        return Chain(tar(4, zoo.AdditiveMap()), zoo.Reshape(Diagonal(64), (1, 8, 8)))

    preserving = bits(additive)
    return preserving - four_blocks(), {
        "blocks that see nothing": preserving - bits(lambda: tar(change=positions_only)),
        "scales held at one": preserving - bits(lambda: tar(4, zoo.AffineMap(bound=1e-3))),
    }
