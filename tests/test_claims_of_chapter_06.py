"""Each criterion of chapter 06 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's at a fraction of its size. Show the measured values with `pytest -rP`.
"""

import functools
import math

import pytest
import torch
from claim_cases import ClaimCases
from torch import nn

from refimpl import runtime
from refimpl.autodiff import jacobian, jvp, log_det_jacobian, probe_vectors
from refimpl.data import digits, moons
from refimpl.data.molecules import dw4
from refimpl.data.monte_carlo import anneal, metropolis
from refimpl.data.simulators import GaussianLinear
from refimpl.flows import AffineMap, StandardNormal, coupling_flow, log_mean_weight
from refimpl.free_form import FreeFormFlow, diagnose, fff_loss, grid_integral, volume_change_surrogate
from refimpl.free_form.equivariant import MeanFreeNormal
from refimpl.nets import mlp, residual_mlp
from refimpl.nets.egnn import egnn
from refimpl.training import fit

case = ClaimCases("06_free_form_flows")
F64 = torch.float64
LAW = moons(0.15)
BETA = 1 / (2 * 0.15**2)


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


def source(seed=0):
    return runtime.generator(seed)


def surrogate(f, g, x, v, *, stop=True, forward=False):
    """The surrogate by hand, with its faults: no stop-gradient, or the encoder's product by forward mode."""
    x = x.detach().requires_grad_()
    z = f(x)
    x1, pushed = jvp(g, z, v)
    if forward:  # J_f v in place of v^T J_f
        pulled = jvp(f, x, v)[1]
    else:
        (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    return z, x1, (pulled * (pushed.detach() if stop else pushed)).sum(-1)


# --- The estimator.


def inverse_at(f, x):
    with torch.no_grad():
        z, inverse = f(x), torch.linalg.inv(jacobian(f, x))
    return lambda z1: x + (inverse @ (z1 - z).unsqueeze(-1)).squeeze(-1)


def gradient(scalar, net):
    parts = torch.autograd.grad(scalar, list(net.parameters()), allow_unused=True)
    return torch.cat([p.flatten() for p in parts if p is not None])


@case("FFF-1")
def _():
    def errors(probes=None, decode=inverse_at, **faults):
        found = []
        for net, dim in ((residual_mlp(4, width=8, depth=3), 4), (egnn(3, 2, width=4, blocks=1, divisor=1), 6)):
            net, x = net.double(), torch.randn(5, dim, generator=source(), dtype=F64)
            exact = gradient(log_det_jacobian(net, x).mean(), net)
            v = probe_vectors(x, dim, "orthogonal", source())[:probes]
            s = torch.stack([surrogate(net, decode(net, x), x, one, **faults)[2] for one in v]).mean()
            found.append(((gradient(s, net) - exact).norm() / exact.norm()).item())
        return found

    return errors(), {
        "one probe less": errors(probes=-1),
        "J_f v for v^T J_f": errors(forward=True),
        "decoder: identity": errors(decode=lambda net, x: lambda z: z),
        "no stop-gradient, shared decoder": errors(stop=False, decode=lambda net, x: lambda z: z + x - net(x)),
    }


def one_vector_gradients(kind="sphere", n=20_000, length=1.0):
    """Derivatives along h, their exact mean, and h' f'^-1."""
    torch.manual_seed(1)
    flow = coupling_flow(4, AffineMap(), 3, width=8).double().requires_grad_(False)
    h = mlp(4, 4, width=16, depth=2, activation=nn.SiLU).double().requires_grad_(False)
    for p in (*flow.parameters(), *h.parameters()):
        p.add_(0.3 * torch.randn_like(p))
    f, g = (lambda x: flow(x)[0]), (lambda z: flow.inverse(z)[0])
    point = torch.randn(1, 4, dtype=F64)
    M = jacobian(h, point)[0] @ torch.linalg.inv(jacobian(f, point)[0])
    x, t = point.expand(n, 4), torch.zeros(n, 1, dtype=F64, requires_grad=True)
    v = length * probe_vectors(x, 1, kind, source())
    s = volume_change_surrogate(lambda x: f(x) + t * h(x), g, x, probes=v).surrogate
    return torch.autograd.grad(s.sum(), t)[0].squeeze(1), M


@case("FFF-2")
def _():
    def distance(**options):
        draws, M = one_vector_gradients(**options)
        return ((draws.mean() - M.trace()).abs() / draws.std() * math.sqrt(len(draws))).item()

    return [distance(kind=kind) for kind in ("gaussian", "sphere", "rademacher")], {
        "probes of length 1": distance(length=0.5),
        "probes a tenth too long": distance(length=1.1),
    }


def closed_variance(kind, M):
    S, dim = (M + M.T) / 2, len(M)
    square, trace = S.square().sum(), S.trace()
    return {
        "gaussian": 2 * square,
        "sphere": 2 * dim / (dim + 2) * (square - trace**2 / dim),
        "rademacher": 2 * (square - S.diagonal().square().sum()),
    }[kind]


@case("FFF-3")
def _():
    draws = {kind: one_vector_gradients(kind) for kind in ("gaussian", "sphere", "rademacher")}

    def ratios(formula=closed_variance):
        return [(values.var() / formula(kind, M)).item() for kind, (values, M) in draws.items()]

    return ratios(), {
        "M not symmetrised": ratios(lambda kind, M: 2 * M.square().sum()),
        "Gaussian formula for all": ratios(lambda kind, M: closed_variance("gaussian", M)),
    }


@case("FFF-4")
def _():
    def worst(decode_at=None, length=1.0):
        out = []
        for seed in range(3):
            torch.manual_seed(seed)
            flow = coupling_flow(4, AffineMap(), 3, width=8).double().requires_grad_(False)
            for p in flow.parameters():
                p.add_(0.2 * torch.randn_like(p))
            x = torch.randn(20, 4, dtype=F64)
            g = decode_at or (lambda z, flow=flow: flow.inverse(z)[0])
            v = length * probe_vectors(x, 1, "sphere", source())
            out.append(volume_change_surrogate(lambda x, flow=flow: flow(x)[0], g, x, probes=v).surrogate)
        return ((torch.cat(out) - 4).abs().max() / 4).item()

    return worst(), {
        "probes of length 1": worst(length=0.5),
        "decoder: identity": worst(decode_at=lambda z: z * 1),
    }


# --- Two moons.


def pair_of(seed=0, activation=nn.SiLU, width=48, dim=2):
    torch.manual_seed(seed)
    return FreeFormFlow(*(residual_mlp(dim, width=width, depth=4, activation=activation) for _ in range(2)), dim)


@functools.cache
def trained(steps=1500, beta=BETA, activation=nn.SiLU, stop=True, length=2**0.5, batch=128, volume=1.0, lr=3e-3):
    g, pair = source(), pair_of(activation=activation)

    def loss():
        x = LAW.sample(batch, g)
        v = probe_vectors(x, 1, "sphere", g)[0] * (length / 2**0.5)
        if stop and length == 2**0.5:
            z, x1, s = volume_change_surrogate(pair.encode, pair.decode, x, probes=v[None])
        else:
            z, x1, s = surrogate(pair.encode, pair.decode, x, v, stop=stop)
        return (beta * (x - x1).square().sum(1) + 0.5 * z.square().sum(1) - volume * s).mean()

    fit(pair, loss, num_steps=steps, lr=lr, schedule="warmup_cosine", clip_norm=1.0, progress=False)
    return pair


LONG = dict(steps=1500, batch=256)
HELD_OUT = LAW.sample(1500, source(99))
ENTROPY = -LAW.log_prob(HELD_OUT).mean().item()


def gap(side="decoder", **options):
    found = diagnose(trained(**options), HELD_OUT, integrate=False)
    return getattr(found, f"nll_{side}") - ENTROPY


def mass(**options):
    return diagnose(trained(**options), HELD_OUT, steps=150).integral


@case("FFF-5")
def _():
    pair = trained(**LONG).double()
    x = HELD_OUT[:200].double()
    z = pair.encode(x).detach()
    f1, g1 = jacobian(pair.encode, x).detach(), jacobian(pair.decode, z).detach()
    squares = (x - pair.decode(z)).detach().norm(dim=1)
    pair.float()

    def shares(size=lambda: (g1 @ f1 - torch.eye(2, dtype=F64)).flatten(1).norm(dim=1), exact=False, small=False):
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            dJ = jacobian(residual_mlp(2, width=8, depth=2).double(), x).detach()
            inner = torch.linalg.solve(f1, dJ)
            right = inner if exact else dJ @ g1
            bias = (right - inner).diagonal(dim1=1, dim2=2).sum(1)
            scale = size() * (1 if small else inner.flatten(1).norm(dim=1))
            found.append((bias.abs() / scale).max().item())
        return max(found)

    return shares(), {
        "reconstruction in place of Jacobians": shares(lambda: squares),
        "a bias that is not there": shares(exact=True),
    }


@case("FFF-8")
def _():
    return gap(**LONG), {
        "probes of length 1": gap(steps=600, length=1.0),
        "ReLU": gap(steps=600, activation=nn.ReLU),
        "beta = 300": gap(steps=600, beta=300.0),
        "without the volume term": gap(steps=300, volume=0.0),
    }


@case("FFF-9")
def _():
    return mass(**LONG), {"beta = 1": mass(steps=800, beta=1.0), "half of the volume": 0.5 * mass(**LONG)}


@case("FFF-10")
def _():
    return mass(steps=800, beta=1.0), {
        "beta = 1 / (2 noise^2)": mass(**LONG),
        "hardly trained": mass(steps=10, beta=1.0),
    }


def count(pair, latents, reach=6.0, steps=200, both=True):
    """Mean number of preimages, by triangles."""
    ticks = torch.linspace(-reach, reach, steps)
    with torch.no_grad():
        y = pair.encode(torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1))
    halves = [(y[:-1, :-1], y[1:, :-1], y[:-1, 1:]), (y[1:, 1:], y[1:, :-1], y[:-1, 1:])][: 1 + both]
    a, b, c = (torch.cat([t.reshape(-1, 2) for t in corner]) for corner in zip(*halves, strict=True))

    def cross(p, q):
        return p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]

    area, total = cross(b - a, c - a), 0
    for z in latents:
        s, t = cross(z - a, c - a) / area, cross(b - a, z - a) / area
        total += ((s >= 0) & (t >= 0) & (s + t <= 1)).sum().item()
    return total / len(latents)


@case("FFF-11")
def _():
    pair = trained(steps=800, beta=1.0)
    corner = torch.tensor([-6.0, -6.0])
    with torch.no_grad():
        area = grid_integral(lambda x: pair.log_prob(x, side="encoder"), corner, -corner, 200).item()
    latents = torch.randn(300, 2, generator=source())
    return count(pair, latents) / area, {
        "half of the triangles": count(pair, latents, both=False) / area,
        "latents of the data": count(pair, 0.3 * latents) / area,
        "without the Gaussian constant": count(pair, latents) / (area * 2 * math.pi),
        "one": 1 / area,
    }


@case("FFF-12")
def _():
    short = dict(steps=600)
    return gap(beta=300.0, **short) - gap(beta=30.0, **short), {
        "the same beta": gap(**short) - gap(beta=30.0, **short),
        "steps enough": gap(**LONG) - gap(beta=30.0, **short),
    }


@case("FFF-13")
def _():
    def missed(activation, step=0.05, forgotten=()):
        torch.manual_seed(0)
        net = residual_mlp(2, width=16, depth=3, activation=activation).double()
        x = torch.randn(10_000, 2, generator=source(), dtype=F64)
        biases = [p for p in net.parameters() if p.shape == (16,)]
        found, true, error = [], [], 0.0
        grads = torch.autograd.grad(log_det_jacobian(net, x).mean(), biases, allow_unused=True)
        for _ in range(6):
            shift = [torch.randn_like(p) for p in biases]
            found.append(
                sum(
                    (g * d).sum()
                    for k, (g, d) in enumerate(zip(grads, shift, strict=True))
                    if g is not None and k not in forgotten
                )
            )
            ends = []
            for sign in (1, -2, 1):
                with torch.no_grad():
                    for p, d in zip(biases, shift, strict=True):
                        p.add_(sign * step * d)
                    ends.append(log_det_jacobian(net, x).detach())
            change = (ends[0] - ends[1]) / (2 * step)
            true.append(change.mean())
            error = max(error, change.std().item() / len(x) ** 0.5)
        true = torch.stack(true)
        seen = true.norm() > 10 * error * len(true) ** 0.5
        return ((true - torch.tensor(found)).norm() / true.norm()).item() if seen else math.inf

    return missed(nn.ReLU), {
        "SiLU": missed(nn.SiLU),
        "tanh": missed(nn.Tanh),
        "SiLU, one layer's biases forgotten": missed(nn.SiLU, forgotten=(0,)),
        "no activation, so no change to miss": missed(nn.Identity),
    }


@case("FFF-14")
def _():
    none = gap(steps=600)
    return gap(steps=600, stop=False) - none, {
        "with it": gap(steps=600, batch=100) - none,
        "without decoder": gap("encoder", steps=600) - none,
    }


# --- Closed forms.


def velocity(a, b, beta, stop=True, scale=1.0):
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)
    ab = torch.tensor([a, b], dtype=F64, requires_grad=True)
    v = torch.ones(2, 1, dtype=F64)
    if stop:
        loss = fff_loss(lambda x: ab[0] * x, lambda z: ab[1] * z, x, beta=scale * beta, probes=v[None])[0]
    else:
        z, x1, s = surrogate(lambda x: ab[0] * x, lambda z: ab[1] * z, x, v, stop=False)
        loss = (beta * (x - x1).square() + 0.5 * z.square()).mean() - s.mean()
    return -torch.autograd.grad(loss, ab)[0]


@case("FFF-6")
def _():
    def ratios(**faults):
        found, e = [], 1e-5
        for beta in (0.1, 1.0, 10.0):
            field = functools.partial(velocity, beta=beta, **faults)
            columns = [field(1 + e, 1) - field(1 - e, 1), field(1, 1 + e) - field(1, 1 - e)]
            rates = -torch.linalg.eigvals(torch.stack(columns, 1) / (2 * e)).real
            found += [(a / b).item() for a, b in zip(rates.sort().values, sorted((1, 4 * beta)), strict=True)]
        return found

    return ratios(), {"no stop-gradient": ratios(stop=False), "half the square": ratios(scale=0.5)}


@case("FFF-7")
def _():
    a, b = torch.meshgrid(torch.linspace(0.2, 3, 40).double(), torch.linspace(0.2, 3, 40).double(), indexing="xy")

    def kl(variance, other):
        return 0.5 * (variance / other - 1 - (variance / other).log())

    def worst(noise=1.0, entropy=0.0, slope=lambda a, b: b):
        found = []
        for beta in (0.5, 10.0):
            blur = noise / (2 * beta)
            left = kl(torch.tensor(1 + blur).double(), slope(a, b) ** 2 + blur)
            right = kl(torch.ones(()).double(), 1 / a**2) + beta * (1 - a * b) ** 2 - entropy
            found.append((left / right)[right > 1e-6].max().item())
        return found

    return worst(), {
        "beta = 2 / sigma^2": worst(noise=0.25),
        "no noise": worst(noise=1e-6),
        "entropy with the wrong sign": worst(entropy=0.3),
    }


# --- Digits, a posterior, molecules.


@case("FFF-15")
def _():
    g = source()
    x = 16 * digits()[0][torch.randperm(1797, generator=g)]

    def dequantise(x):
        return x + torch.rand(x.shape, generator=g)

    cloud = dequantise(x[:1400].repeat(20, 1))
    values, vectors = torch.linalg.eigh(torch.cov(cloud.T))
    whitener, centre = vectors / values.sqrt(), cloud.mean(0)
    test = (dequantise(x[1400:1600]) - centre) @ whitener
    normal = -StandardNormal([64]).log_prob(test).mean().item()

    def better(steps=400, beta=30.0, volume=True):
        torch.manual_seed(0)
        pair = FreeFormFlow(*(residual_mlp(64, width=192, depth=3) for _ in range(2)), 64)

        def loss(batch):
            y = (dequantise(batch) - centre) @ whitener
            value, parts = pair.loss(y, beta=beta, generator=g)
            return value if volume else parts["latent"] + beta * parts["reconstruction"]

        fit(
            pair,
            loss,
            data=x[:1400],
            batch_size=128,
            generator=g,
            num_steps=steps,
            lr=2e-3,
            schedule="warmup_cosine",
            clip_norm=1.0,
            progress=False,
        )
        found = diagnose(pair, test, integrate=False)
        return (normal - max(found.nll_encoder, found.nll_decoder)) / (64 * math.log(2))

    return better(), {
        "beta = 1000": better(steps=100, beta=1000.0),
        "no volume term": better(steps=100, volume=False),
        "hardly trained": better(steps=20),
    }


@functools.cache
def posterior(steps=400, context=True, beta=25.0):
    g, task = source(), GaussianLinear(4)
    theta = task.sample_prior(5000, g)
    x = task.simulate(theta, g)
    torch.manual_seed(0)
    pair = FreeFormFlow(*(residual_mlp(4, width=32, depth=3, dim_context=4) for _ in range(2)), 4)
    loss = lambda a, b: pair.loss(a, b if context else 0 * b, beta=beta, generator=g)  # noqa: E731
    options = dict(schedule="warmup_cosine", clip_norm=1.0, progress=False, generator=g)
    fit(pair, loss, data=(theta / 0.1**0.5, x / 0.2**0.5), batch_size=128, num_steps=steps, lr=5e-3, **options)
    return pair


@case("FFF-16")
def _():
    task, g = GaussianLinear(4), source(1)
    theta = task.sample_prior(2000, g)
    x = task.simulate(theta, g)

    def miss(context=True, unit=True, **options):
        pair, seen = posterior(context=context, **options), x / 0.2**0.5 * context
        with torch.no_grad():
            learned = pair.log_prob(theta / 0.1**0.5, seen)
        return (task.log_posterior(theta, x) - learned).mean().item() + unit * 2 * math.log(0.1)

    return miss(), {
        "the prior": miss(context=False),
        "unit of the parameters left out": miss(unit=False),
        "hardly trained": miss(steps=20),
    }


def c2st(x, y):
    """Accuracy of a quadratic discriminant on the other half."""
    half = len(x) // 2
    laws = [torch.distributions.MultivariateNormal(t[:half].mean(0), torch.cov(t[:half].T)) for t in (x, y)]
    votes = [laws[0].log_prob(t[half:]) > laws[1].log_prob(t[half:]) for t in (x, y)]
    return 0.5 * (votes[0].float().mean() + 1 - votes[1].float().mean()).item()


@case("FFF-17")
def _():
    task, g = GaussianLinear(4), source(2)
    xs = [task.simulate(task.sample_prior(1, g), g)[0] for _ in range(3)]

    def accuracy(context=True, stretch=1.0, **options):
        found = []
        for x in xs:
            torch.manual_seed(0)
            mine = posterior(context=context, **options).as_distribution(x / 0.2**0.5 * context).sample([2000])
            mine = mine * 0.1**0.5 * stretch
            found.append(c2st(mine, task.sample_posterior(x, 2000, g)))
        return sum(found) / 3

    return accuracy(), {
        "the prior": accuracy(context=False),
        "unit of the parameters left out": accuracy(stretch=0.1**-0.5),
        "hardly trained": accuracy(steps=20),
    }


@functools.cache
def molecules(steps=350, width=12):
    g, energy = source(), dw4()
    start = anneal(energy, 400, num_stages=60, sweeps=3, large_share=0.2, generator=g)
    chains = metropolis(energy, start.states, num_draws=30, thin=5, step=start.step, large_share=0.2, generator=g)
    x, held_out = chains.states[:26].flatten(0, 1) / 2.128, chains.states[26:].flatten(0, 1) / 2.128
    torch.manual_seed(0)
    settings = dict(width=width, blocks=2, rounds=1, divisor=1)
    pair = FreeFormFlow(*(egnn(4, 2, **settings) for _ in range(2)), MeanFreeNormal(4, 2))
    options = dict(schedule="warmup_cosine", clip_norm=1.0, progress=False, generator=g)
    loss = lambda x: pair.loss(x, beta=45.0, generator=g)  # noqa: E731
    if steps:
        fit(pair, loss, data=x, batch_size=64, num_steps=steps, lr=1e-2, **options)
    else:
        pair = FreeFormFlow(nn.Identity(), nn.Identity(), pair.base)
    return pair, held_out


@case("FFF-18")
def _():
    def miss(dimensions=6, constant=0.0, sign=-1, steps=350):
        pair = molecules(steps)[0]
        with torch.no_grad():
            y, log_q = pair.sample_and_log_prob([3000], generator=source(3))
        log_w = sign * dw4()(y * 2.128) - log_q - constant + dimensions * math.log(2.128)
        return abs(log_mean_weight(log_w).item() - 29.69)

    return miss(), {
        "volume of all 8 coordinates": miss(dimensions=8),
        "unit left out": miss(dimensions=0),
        "Gaussian constant left out": miss(constant=3 * math.log(2 * math.pi)),
        "sign of the energy": miss(sign=1),
        "hardly trained": miss(steps=5),
    }


@case("FFF-20")
def _():
    def excess(dimensions=6, constant=0.0, steps=350):
        pair, x = molecules(steps)
        with torch.no_grad():
            return dimensions * math.log(2.128) - constant - pair.log_prob(x).mean().item() - 7.15

    return excess(), {
        "identity pair": excess(steps=0),
        "hardly trained": excess(steps=5),
        "Gaussian constant left out": excess(constant=3 * math.log(2 * math.pi)),
        "unit left out": excess(dimensions=0),
    }


@case("FFF-19")
def _():
    def changes(nets=None, q=None, base=None):
        torch.manual_seed(0)
        nets = nets or [egnn(4, 2, width=6, blocks=2, divisor=1) for _ in range(2)]
        pair = FreeFormFlow(*nets, base or MeanFreeNormal(4, 2)).double()
        x = torch.randn(50, 4, 2, dtype=F64, generator=source())
        x = x - x.mean(1, keepdim=True)
        q = torch.linalg.qr(torch.randn(2, 2, generator=source()).double())[0] if q is None else q
        moved = x[:, torch.tensor([2, 0, 3, 1])] @ q
        with torch.no_grad():
            return (pair.log_prob(moved.flatten(1)) - pair.log_prob(x.flatten(1))).abs().max().item()

    torch.manual_seed(0)
    plain = [residual_mlp(8, width=16, depth=3) for _ in range(2)]
    return changes(), {
        "networks without symmetry": changes(plain, base=StandardNormal([8])),
        "not a rotation": changes(q=torch.tensor([[1.2, 0.0], [0.0, 1 / 1.2]], dtype=F64)),
    }
