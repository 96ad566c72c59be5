"""Each criterion of chapter 01 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's at a fraction of its size. A fault is one that an implementation can really have: a
sign, a normalisation, an order, a layer left out. Show the measured values with `pytest -rP`.
"""

import functools
import math

import pytest
import torch
from claim_cases import ClaimCases
from torch import nn
from torch.nn import functional as F

from refimpl import polytopes, runtime
from refimpl import spectral_bias as sb
from refimpl.data import digits, flower, grid, radial_noise, sum_of_sines
from refimpl.nets import FourierFeatures, Stack, mlp, siren
from refimpl.training import fit

case = ClaimCases("01_spectral_bias")
F64 = torch.float64


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


def train(networks, x, y, *, steps, lr, every, before_step=lambda stack: None):
    """As in the chapter: each network fits its own row of y; outputs have shape (time, networks, points)."""
    stack = Stack(networks)

    def loss():
        with torch.no_grad():
            before_step(stack)
        return (stack(x)[..., 0] - y).square().mean(-1).sum()

    history = fit(
        stack,
        loss,
        num_steps=steps,
        lr=lr,
        evaluate=lambda step, _: {"output": stack(x)[..., 0]},
        evaluate_every=every,
        progress=False,
    )
    return stack, torch.stack(history.evaluations["output"])


# --- Order of learning, norms, robustness: one training serves four claims.

WAVES = [2, 4, 6, 8, 10]


def small():
    return mlp(1, 1, width=64, depth=5)


@functools.cache
def sines():
    """Rows: two of equal amplitudes, two of rising ones, two with shuffled inputs, two with clipped weights."""
    torch.manual_seed(1)
    source, z = runtime.generator(1), grid(96)
    equal = sum_of_sines(z, WAVES, num_signals=2, generator=source)
    rising = sum_of_sines(z, WAVES, torch.linspace(0.1, 1, 5).tolist(), num_signals=2, generator=source)
    x = z[:, None].repeat(8, 1, 1)
    x[4:6] = x[4:6, torch.randperm(96, generator=source)]
    y = torch.cat([equal, rising, equal, equal])
    networks = [small() for _ in range(8)]
    before = [sb.lipschitz_bound(net) for net in networks]

    def clip(stack):
        for p in stack.parameters():
            p[6:].clamp_(-0.15, 0.15)

    stack, outputs = train(networks, x, y, steps=1200, lr=1e-3, every=20, before_step=clip)
    return before, [stack.network(i, small()) for i in range(8)], outputs, y


def order(outputs, y, rows, **options):
    history = sb.recovered(outputs, y, WAVES, **options)
    return [sb.learning_order(history[:, i], WAVES)[1] for i in rows]


@case("SB-1")
def _():
    _, _, outputs, y = sines()
    return order(outputs, y, (0, 1)), {
        "residual taken for magnitude": order(outputs, y, (0, 1), kind="residual"),
        "inputs in another order than targets": order(outputs, y, (4, 5)),
    }


@case("SB-2")
def _():
    _, _, outputs, y = sines()
    unscaled = sb.coefficients(outputs, WAVES).abs() * 2
    return order(outputs, y, (2, 3)), {
        "not divided by the target's magnitude": [sb.learning_order(unscaled[:, i], WAVES)[1] for i in (2, 3)],
        "residual taken for magnitude": order(outputs, y, (2, 3), kind="residual"),
    }


@case("SB-3")
def _():
    before, trained, _, _ = sines()
    after = [sb.lipschitz_bound(net) for net in trained]
    return [a / b for a, b in zip(after[:4], before, strict=False)], {
        "weights at the start not copied, so both norms are the trained ones": [
            a / b for a, b in zip(after, after, strict=True)
        ],
        "weights clipped": [a / b for a, b in zip(after[6:], before[6:], strict=True)],
        "mean of the norms for their product": [
            sum(map(spectral, net)) / sum(map(spectral, small())) for net in trained[:4]
        ],
    }


def spectral(layer):
    return float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) if isinstance(layer, nn.Linear) else 0.0


@case("SB-9")
def _():
    _, trained, _, _ = sines()
    z = grid(96)[:, None]

    def robustness(norm, frequencies=WAVES):
        kept = [
            sb.perturbation_robustness(net, z, frequencies, [norm], num_draws=60, generator=runtime.generator(i))[0]
            for i, net in enumerate(trained[:2])
        ]
        return [(k[:2].mean() / k[-2:].mean()).item() for k in kept]

    count = sum(p.numel() for p in small().parameters())
    return robustness(4), {
        "norm taken per parameter": robustness(4 / math.sqrt(count)),
        "norm of 0": robustness(0),
        "frequencies in reverse": robustness(4, WAVES[::-1]),
    }


# --- Representation.


@case("SB-4")
def _():
    def scaled(depth, factor):
        net = mlp(2, 1, width=24, depth=depth)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(factor)
        return net

    def aligned():
        """Each layer passes on what the one before stretches most: a tight chain. The middle one is far from normal."""
        net, even = mlp(2, 1, width=16, depth=3), torch.arange(16) % 2 / math.sqrt(8)
        u = [torch.tensor([1.0, 0.0]), even, even.roll(1), torch.ones(1)]
        with torch.no_grad():
            for layer, a, b in zip(net[::2], u[:-1], u[1:], strict=True):
                layer.weight.copy_(2 * torch.outer(b, a) + 0.01 * layer.weight)
        return net

    networks = [scaled(depth, factor) for depth in (2, 4, 6) for factor in (1, 4)] + [aligned()]
    places = 4 * torch.rand(500, 2, generator=runtime.generator(0)) - 2

    def chain(bound):
        ratios = []
        for net in networks:
            slope, norms = sb.local_slope(net, places).max().item(), bound(net)
            ratios += [slope / norms, norms / sb.lipschitz_bound(net, "max_norm")]
        return max(ratios)

    def eigenvalue(layer):
        """Power iteration with A instead of A^T A; the first and the last layer are not square and keep their norm."""
        square = layer.in_features == layer.out_features
        return torch.linalg.eigvals(layer.weight.detach()).abs().max().item() if square else spectral(layer)

    def product(norm, layers=slice(None)):
        return lambda net: math.prod(norm(layer) for layer in net[::2][layers])

    return chain(sb.lipschitz_bound), {
        "last layer left out": chain(product(spectral, slice(-1))),
        "sum of the norms for their product": chain(lambda net: sum(map(spectral, net))),
        "largest eigenvalue for largest singular value": chain(product(eigenvalue)),
        "root mean square of the entries": chain(product(lambda a: a.weight.detach().square().mean().sqrt().item())),
    }


@functools.cache
def ring():
    """Regions of a small network with compact support, and the network."""
    torch.manual_seed(0)
    points = (2 * torch.rand(512, 2) - 1).double()
    goal = 0.45 * torch.exp(-(((points.norm(dim=1) - 0.45) / 0.22) ** 2))
    inner = mlp(2, 1, width=8, depth=2).double()
    fit(inner, lambda: (inner(points)[:, 0] - goal).square().mean(), num_steps=300, lr=2e-2, progress=False)
    net = polytopes.inside_tent(inner)
    square = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=F64)
    return polytopes.linear_regions(net, square), net


@case("SB-5")
def _():
    regions, net = ring()
    m = 1700
    axis = (torch.arange(m, dtype=F64) + 0.5) * 2 / m - 1
    cells = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        heights = net(cells)[:, 0]
    k = 8 * (2 * torch.rand(3, 2, dtype=F64, generator=runtime.generator(0)) - 1)
    brute = torch.stack([(heights * torch.exp(-1j * (cells @ q))).sum() for q in k]) * (2 / m) ** 2
    exact = polytopes.network_transform(regions, k)

    def error(transform):
        return ((transform - brute).abs().max() / brute.abs().max()).item()

    # The region that adds least of those that slope: a missing one must show even so.
    parts = [-1j * (k @ r.gradient) * polytopes.polygon_transform(r.vertices, k) / k.square().sum(1) for r in regions]
    least = min((p for p in parts if p.abs().max() > 0), key=lambda p: p.abs().max())
    return error(exact), {
        "+i, as the paper prints": error(-exact),
        "e^{+ikx}": error(exact.conj()),
        "the least region missing": error(exact - least),
        "no factor i": error(exact * 1j),
    }


def directions(count):
    angle = 2 * math.pi * torch.rand(count, dtype=F64, generator=runtime.generator(0))
    return torch.stack([angle.cos(), angle.sin()], 1)


FAR = torch.logspace(4, 7, 800, dtype=F64)


def decays(along, transform=None):
    transform = transform or functools.partial(polytopes.network_transform, ring()[0])
    return [polytopes.decay_exponent(FAR, transform(FAR[:, None] * u).abs()) for u in along]


def steps_instead(k):
    """Transform of what has the network's regions but is constant on each, so that it jumps between them."""
    return sum(r.gradient[0] * polytopes.polygon_transform(r.vertices, k) for r in ring()[0])


@case("SB-6")
def _():
    normals = polytopes.facets(ring()[0])[0][:6]
    return decays(normals), {
        "a function that jumps": decays(normals, steps_instead),
        "tangents for normals": decays(normals.flip(1) * torch.tensor([1, -1])),
        "normals rounded to two digits": decays((100 * normals).round() / 100),
        "random directions": decays(directions(6)),
    }


@case("SB-7")
def _():
    return decays(directions(6)), {
        "a function that jumps": decays(directions(6), steps_instead),
        "normals for random directions": decays(polytopes.facets(ring()[0])[0][:6]),
    }


@case("SB-8")
def _():
    width, epsilon = 16, 0.05
    k = torch.arange(1, 129, dtype=F64)
    uniform = 2 * torch.rand(3, 3, 2000, width, dtype=F64, generator=runtime.generator(0)) - 1

    def beyond(power=0.5, excess=1.0, decay=2):
        found = []
        for K, draw in zip((0.5, 1.0, 2.0), uniform, strict=True):
            w, b, v = excess * K * draw
            magnitude = [(v * w.abs() * torch.exp(1j * q * b / w)).sum(1).abs().max() / q**decay for q in k]
            found.append(torch.stack(magnitude)[k > K * (width / epsilon) ** power].max().item() / epsilon)
        return found

    return beyond(), {
        "fourth root for square root": beyond(power=0.25),
        "parameters up to 2 K": beyond(excess=2.0),
        "1/k for 1/k^2": beyond(decay=1),
    }


# --- Dynamics.


@case("SB-10")
def _():
    n, modes, steps = 32, [1, 3, 6], 20
    theta = grid(n)
    circle = flower(theta, petals=0)
    wide = mlp(2, 1, width=768, depth=3)
    waves = torch.stack([torch.sin(2 * math.pi * k * theta) for k in modes])
    kernel = sb.empirical_ntk(wide, circle)
    eta = 0.25 * n / torch.linalg.eigvalsh(kernel)[-1].item()
    copies, goals = Stack([wide] * 3), waves + wide(circle)[:, 0].detach()
    inputs = circle.expand(3, -1, -1)
    fit(
        copies,
        lambda: (copies(inputs)[..., 0] - goals).square().mean(-1).sum() / 2,
        num_steps=steps,
        optimizer=lambda p: torch.optim.SGD(p, lr=eta),
        progress=False,
    )

    def left(residuals):
        return [(sb.coefficients(r, [k]).abs() * 2).item() for r, k in zip(residuals, modes, strict=True)]

    observed = left(copies(inputs)[..., 0].detach() - goals)

    def errors(kernel, lr):
        predicted = left(torch.stack([sb.linearized_residual(kernel, -w, lr=lr, steps=[steps])[0] for w in waves]))
        return [abs(a - b) for a, b in zip(observed, predicted, strict=True)]

    with torch.no_grad():
        features = wide[:-1](circle).double()
    narrow = sb.empirical_ntk(mlp(2, 1, width=4, depth=3), circle)
    return errors(kernel, eta), {
        "kernel of the last layer alone": errors(features @ features.T + 1, eta),
        "loss without its factor 1/2": errors(kernel, 2 * eta),
        "rate not divided by n": errors(kernel, eta / n),
        "kernel of a narrow network": errors(narrow, eta),
    }


@functools.cache
def noisy_digits():
    """Losses of one small network a label, (time, labels): on clean validation, on noisy validation, on training."""
    torch.manual_seed(0)
    images, labels = digits([3, 8])
    labels = (labels == 8).float() * 2 - 1
    shuffled = torch.randperm(len(images), generator=runtime.generator(0))
    x, y, n = images[shuffled], labels[shuffled], 285

    def noise(k, factor=2 * math.pi):
        return radial_noise(x, k * factor / (2 * math.pi), reference=x[:n])

    noises = [noise(0.1), noise(4.0), torch.zeros(len(x)), noise(0.1, 1.0), noise(4.0, 1.0)]
    goals = torch.stack([y + extra for extra in noises])
    net = mlp(64, 1, width=96, depth=4)
    stack, rows = Stack([net] * 5), []

    def record(step, _):
        out = stack(x.expand(5, -1, -1))[..., 0]
        errors = [(out - y)[:, n:], (out - goals)[:, n:], (out - goals)[:, :n]]
        rows.append(torch.stack([e.detach().square().mean(1) for e in errors]))
        return {}

    fit(
        stack,
        lambda: (stack(x[:n].expand(5, -1, -1))[..., 0] - goals[:, :n]).square().mean(-1).sum(),
        num_steps=400,
        lr=5e-4,
        evaluate=record,
        evaluate_every=4,
        progress=False,
    )
    return torch.stack(rows).unbind(1)


@case("SB-11")
def _():
    clean, noisy, _ = noisy_digits()
    best, last = clean.min(0).values, clean[-1]
    on_noisy = noisy.min(0).values
    return best[0] / best[1], {
        "noise on the validation labels too": on_noisy[0] / on_noisy[1],
        "last loss for best loss": last[0] / last[1],
        "frequencies swapped": best[1] / best[0],
        "the same noise twice": best[1] / best[1],
    }


@case("SB-12")
def _():
    clean, _, training = noisy_digits()
    return clean[-1, 1] / clean[:, 1].min(), {
        "training loss for validation loss": training[-1, 1] / training[:, 1].min(),
        "no noise": clean[-1, 2] / clean[:, 2].min(),
    }


@case("SB-13")
def _():
    images, labels = digits([3, 8])
    images, labels = images[::2], (labels[::2] == 8).float() * 2 - 1
    count = len(images)
    _, vectors = sb.gaussian_kernel_eigenbasis(images, sigma=1.0)
    vectors = vectors.float()
    y = labels + vectors @ (torch.arange(count) / (count - 1)) ** 2
    _, outputs = train([mlp(64, 1, width=96, depth=4)], images[None], y[None], steps=400, lr=1e-3, every=2)

    def delay(basis):
        missing, wanted = (outputs[:, 0] - y) @ basis, y @ basis
        first, last = (slice(0, count // 5), slice(4 * count // 5, count))
        at = []
        for part in (first, last):
            fitted = missing[:, part].square().sum(1) / wanted[part].square().sum() < 0.1
            at.append(2 * (int(fitted.long().argmax()) if fitted.any() else len(fitted)))
        return at[1] / max(at[0], 1)

    return delay(vectors), {
        "eigenvectors in rising order": delay(vectors.flip(1)),
        "eigenvectors as rows": delay(vectors.T),
    }


@case("SB-14")
def _():
    z = grid(200)
    signal = sum_of_sines(z, [10, 20, 30], generator=runtime.generator(0))
    net = mlp(2, 1, width=64, depth=4)

    def slow_petals(z, petals):
        radius = 1 + 0.5 * torch.sin(petals * z)
        return radius[:, None] * flower(z, 0)

    def of_unit_norm(z, petals):
        return F.normalize(flower(z, petals), dim=1)

    curves = [flower(z, 0), flower(z, 10), slow_petals(z, 10), of_unit_norm(z, 10)]
    y = signal.expand(4, -1)
    _, outputs = train([net] * 4, torch.stack(curves), y, steps=400, lr=1e-3, every=5)
    loss = (outputs[-5:] - y).square().mean((0, 2))
    return loss[0] / loss[1], {
        "petals without 2 pi": loss[0] / loss[2],
        "points normalised": loss[0] / loss[3],
        "petals swapped": loss[1] / loss[0],
    }


@functools.cache
def spike(depth, width, *, weights=math.inf, gradients=math.inf, activation=nn.ReLU):
    """Mean of n |F_k| over k >= 1 of networks that have learned a spike."""
    torch.manual_seed(3)
    n, runs = 60, 3
    stack = Stack([mlp(1, 1, width=width, depth=depth, activation=activation) for _ in range(runs)])
    goal = F.one_hot(torch.tensor(n // 2), n).float()
    inputs = grid(n)[:, None].expand(runs, -1, 1)

    def loss():
        with torch.no_grad():
            for p in stack.parameters():
                p.clamp_(-weights, weights)
        return (stack(inputs)[..., 0] - goal).square().mean(-1).sum()

    for p in stack.parameters():
        if gradients < math.inf:
            p.register_hook(lambda g: g.clamp(-gradients, gradients))
    fit(stack, loss, num_steps=500, lr=2e-3, progress=False)
    return sb.coefficients(stack(inputs)[..., 0].detach(), range(1, n // 2)).abs().mean().item() * n


@case("SB-15")
def _():
    shallow = spike(3, 32)
    return spike(5, 32) / shallow, {
        "no activation between the layers": spike(5, 32, activation=nn.Identity) / shallow,
        "depth counted without effect": spike(3, 32) / shallow,
    }


@case("SB-16")
def _():
    return spike(4, 64, weights=0.5) / spike(4, 64, weights=0.1), {
        "gradients clipped for weights": spike(4, 64, gradients=0.5) / spike(4, 64, gradients=0.1),
        "not clipped": spike(4, 64, weights=50.0) / spike(4, 64, weights=10.0),
    }


# --- Paths inside a class, and remedies.


@case("SB-17")
def _():
    pictures, classes = digits()
    classifier = mlp(64, 10, width=48, depth=3)
    fit(classifier, lambda: F.cross_entropy(classifier(pictures), classes), num_steps=150, lr=5e-3, progress=False)
    certain = F.softmax(classifier(pictures), -1).detach() > 0.96
    pairs = [torch.where(certain[:, c] & (classes == c))[0][:16].view(8, 2) for c in range(10)]
    ends, target = pictures[torch.cat(pairs)], torch.arange(10).repeat_interleave(8)

    def inside(path):
        t = torch.arange(5)[:, None] / 5
        dense = (path[:, :-1, None] * (1 - t) + path[:, 1:, None] * t).flatten(1, 2)
        p = F.softmax(classifier(dense), -1)[torch.arange(len(path)), :, target]
        return (p.min(1).values > 0.95).float().mean().item()

    def relaxed(direction, ends=ends, across=True, steps=25):
        path = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.linspace(0, 1, 11)[:, None]
        for _ in range(steps):
            pivots = path[:, 1:-1].clone().requires_grad_()
            energy = -F.log_softmax(classifier(pivots), -1)[torch.arange(len(path)), :, target]
            (downhill,) = torch.autograd.grad(energy.sum(), pivots)
            tangent = F.normalize(path[:, 2:] - path[:, :-2], dim=-1)
            downhill = downhill - across * (downhill * tangent).sum(-1, keepdim=True) * tangent
            moved = pivots - direction * 0.1 * F.normalize(downhill, dim=-1) * (energy > 0.005)[..., None]
            path = torch.cat([path[:, :1], moved.detach(), path[:, -1:]], 1)
        return path

    return inside(relaxed(1)), {
        "uphill": inside(relaxed(-1)),
        "ends of two classes": inside(relaxed(1, torch.stack([ends[:, 0], ends[:, 1].roll(8, 0)], 1))),
        "labels shifted by one": inside(relaxed(1, ends.roll(8, 0))),
    }


@functools.cache
def remedies():
    """Losses on and between the samples by network."""
    z = grid(100)
    between = z + 0.005
    ks = [5, 10, 15, 20, 25]
    signal, truth = (sum_of_sines(t, ks, generator=runtime.generator(0))[0] for t in (z, between))

    def features(sigma):
        return nn.Sequential(
            FourierFeatures(1, 64, sigma=sigma, generator=runtime.generator(1)), *mlp(128, 1, width=64, depth=3)
        )

    torch.manual_seed(0)
    networks = {
        "plain": mlp(1, 1, width=64, depth=4),
        0.1: features(0.1),
        0.5: features(0.5),
        5: features(5),
        50: features(50),
        "siren": siren(1, 1, width=64, depth=4, generator=runtime.generator(1)),
        "omega 1": siren(1, 1, width=64, depth=4, omega=1, generator=runtime.generator(1)),
    }
    losses = {}
    for name, net in networks.items():
        wave = name in ("siren", "omega 1")
        x, off = ((2 * t - 1 if wave else t)[:, None] for t in (z, between))
        fit(
            net,
            lambda net=net, x=x: (net(x)[:, 0] - signal).square().mean(),
            num_steps=300,
            lr=5e-4 if wave else 2e-3,
            progress=False,
        )
        with torch.no_grad():
            losses[name] = [(net(t)[:, 0] - goal).square().mean().item() for t, goal in ((x, signal), (off, truth))]
    return losses


@case("SB-18")
def _():
    on = {name: loss[0] for name, loss in remedies().items()}
    return [on["plain"] / on[5], on["plain"] / on["siren"]], {
        "bandwidth without effect": [on["plain"] / on[0.1], on["plain"] / on["siren"]],
        "omega left out": [on["plain"] / on[5], on["plain"] / on["omega 1"]],
    }


@case("SB-19")
def _():
    on, off = ({name: loss[i] for name, loss in remedies().items()} for i in (0, 1))
    return [off[0.5] / off[5], off[50] / off[5]], {
        "loss on the samples for loss between them": [on[0.5] / on[5], on[50] / on[5]],
        "the same bandwidth": [off[5] / off[5]] * 2,
        "too small and smaller": [off[0.1] / off[0.5], off[0.5] / off[0.5]],
    }
