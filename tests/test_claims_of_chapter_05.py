"""Each criterion of chapter 05 can fail: a correct small experiment meets it, plausible faults in the same do not.

The experiments are the chapter's at a fraction of its size. Show the measured values with `pytest -rP`.
"""

import functools
import math

import numpy as np
import pytest
import torch
from claim_cases import ClaimCases
from torch import distributions as td
from torch.nn.functional import avg_pool2d

from refimpl import runtime
from refimpl.data import digits
from refimpl.flows import Bijection
from refimpl.flows.gaussian_recursion import (
    best_scales,
    correlation,
    expected_layers,
    haar,
    layers_to,
    loss_curve,
)
from refimpl.flows.gaussianization import MarginalGaussianization, gaussianize
from refimpl.flows.whitening import nonstandardness, whitening_block

case = ClaimCases("05_gaussianization")
F64 = torch.float64


@pytest.mark.parametrize("id", case.claims)
def test_criterion_tells_the_right_measurement_from_the_faulty(id):
    case.check(id)


def source(seed=0):
    return runtime.generator(seed)


# --- Laws with known densities: how to sample, and log p.


def three_modes(dim, g, spread=10.0):
    means, stds = spread * torch.randn(3, dim, generator=g), 1 + torch.rand(3, dim, generator=g)

    def sample(n):
        which = torch.randint(3, (n,), generator=g)
        return means[which] + stds[which] * torch.randn(n, dim, generator=g)

    def log_prob(x):
        modes = td.Independent(td.Normal(means.to(x), stds.to(x)), 1)
        return td.MixtureSameFamily(td.Categorical(torch.ones(3)), modes).log_prob(x)

    return sample, log_prob


def normals(means, covariances, g):
    root, (num, dim) = torch.linalg.cholesky(covariances), means.shape

    def sample(n):
        which, noise = torch.randint(num, (n,), generator=g), torch.randn(n, dim, 1, generator=g)
        return means[which] + (root[which] @ noise)[..., 0]

    modes = td.MultivariateNormal(means, scale_tril=root)
    return sample, td.MixtureSameFamily(td.Categorical(torch.ones(num)), modes).log_prob


def gaussian(dim, g):
    q = haar(dim, generator=g).float()
    return normals(torch.zeros(1, dim), ((q * torch.linspace(-1.2, 1.2, dim).exp()) @ q.T)[None], g)


def bananas(dim, g, noise=0.5, rotated=True):
    q, scale = haar(dim, generator=g).float() if rotated else torch.eye(dim), math.sqrt(2 + noise**2)

    def sample(n):
        a, b = torch.randn(n, dim, generator=g).chunk(2, 1)
        return torch.cat([a, (a**2 - 1 + noise * b) / scale], 1) @ q.T

    def log_prob(x):
        a, b = (x @ q).chunk(2, 1)
        squares = a**2 + ((b * scale - (a**2 - 1)) / noise) ** 2
        return -0.5 * squares.sum(1) - dim / 2 * math.log(2 * math.pi * noise / scale)

    return sample, log_prob


def digit_law(dim, g):
    pictures, classes = digits()
    x = avg_pool2d(pictures.view(-1, 1, 8, 8), 8 // math.isqrt(dim)).flatten(1).double()
    groups = [x[classes == k] for k in range(10)]
    covariances = torch.stack([torch.cov(group.T) + 0.05**2 * torch.eye(dim) for group in groups])
    return normals(torch.stack([group.mean(0) for group in groups]).float(), covariances.float(), g)


def kl(law, layers, g, *, n=8000, test=5000, share=0.0, **options):
    """Held-out KL after 0, 1, ... layers, down to a share of the first."""
    sample, log_prob = law
    test = sample(test)
    entropy = -log_prob(test).double().mean().item()
    stop = lambda losses: losses[-1] - entropy <= share * (losses[0] - entropy)  # noqa: E731
    return (
        torch.tensor(gaussianize(sample(n), layers, held_out=test, stop=stop, generator=g, **options).held_out).double()
        - entropy
    )


def stay(x, g):
    return torch.eye(x.shape[1])


def shuffle(x, g):
    return torch.eye(x.shape[1])[torch.randperm(x.shape[1], generator=g)]


def slope(x, y):
    x, y = (torch.as_tensor(v, dtype=F64) for v in (x, y))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def exponent(dims, layers):
    return slope(np.log(dims), np.log(layers))


# --- In the plane.


def dependence(law, n=801, reach=60.0):
    t, step = torch.linspace(-reach, reach, n, dtype=F64), 2 * reach / (n - 1)
    log_p = law[1](torch.stack(torch.meshgrid(t, t, indexing="ij"), -1))
    rows, columns = log_p.logsumexp(1) + math.log(step), log_p.logsumexp(0) + math.log(step)
    return (log_p.exp() * (log_p - rows[:, None] - columns)).sum().item() * step**2


@case("GA-1")
def _():
    laws = [three_modes(2, source(k)) for k in range(3)]
    exact = [dependence(law) for law in laws]

    def error(layers=1, bandwidth=0.25, rotation=stay, **fit):
        def marginal(x):
            return MarginalGaussianization(2).fit(x, bandwidth=bandwidth, **fit)

        curves = [
            kl(law, max(layers, 1), source(), n=20_000, test=20_000, rotation=rotation, marginal=marginal)
            for law in laws
        ]
        return max(abs(curve[layers] - value) / curve[0] for curve, value in zip(curves, exact, strict=True))

    return error(), {
        "before the layer": error(0),
        "rotated first, dependence not": error(rotation="random"),
        "kernel four times as wide": error(bandwidth=1.0),
        "mass of the prior comparable with the data's": error(prior=20_000),
    }


@case("GA-2")
def _():
    laws = [three_modes(2, source(k)) for k in range(3)]

    def ratio(layers=17, **options):
        curves = [kl(law, layers, source(), **options) for law in laws]
        return sum(curve[layers] for curve in curves) / sum(curve[1] for curve in curves)

    return ratio(), {
        "never rotated": ratio(rotation=stay),
        "permutations": ratio(rotation=shuffle),
        "two layers": ratio(2),
        "always by the same small angle": ratio(rotation=lambda x, g: torch.linalg.matrix_exp(0.02 * SKEW)),
        "scales only": ratio(marginal=Scale),
    }


SKEW = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


class Scale(Bijection):
    """Mean and standard deviation only."""

    def __init__(self, x):
        super().__init__()
        self.mean, self.std = x.mean(0), x.std(0)

    def forward(self, x, context=None):
        return (x - self.mean) / self.std, self.zeros(x) - self.std.log().sum()


# --- Gaussian input.


@case("GA-3")
def _():
    def shares(rotations=lambda dim, n, g: haar(dim, n, generator=g), step=correlation, spread=0.1, extra=2):
        out = []
        for dim in (4, 8, 16, 48):
            g = source(dim)
            eigenvalues = torch.exp(spread * (torch.rand(dim, generator=g, dtype=F64) - 0.5))
            q = haar(dim, generator=g)
            sigma, turns = correlation((q * eigenvalues) @ q.T), rotations(dim, 2000 * 48 // dim, g)
            left = nonstandardness(step(turns @ sigma @ turns.mT)) / nonstandardness(sigma)
            out.append((1 - left.mean().item()) * (dim + extra) / 2)
        return out

    def small_angles(dim, n, g):
        a = 0.2 * torch.randn(n, dim, dim, generator=g, dtype=F64) / math.sqrt(dim)
        return torch.linalg.matrix_exp(a - a.mT)

    def in_pairs(dim, n, g):
        blocks = haar(2, n, dim // 2, generator=g)
        return torch.stack([torch.block_diag(*each) for each in blocks])

    return shares(), {
        "permutations": shares(lambda dim, n, g: torch.eye(dim, dtype=F64)[torch.randperm(dim, generator=g)][None]),
        "small angles": shares(small_angles),
        "pairs only": shares(in_pairs),
        "variances for standard deviations": shares(step=wrong_scale),
        "couplings": shares(step=half),
        "far from the identity": shares(spread=8.0),
        "2 / (D + 1)": shares(extra=1),
    }


def wrong_scale(sigma):
    scale = 1 / sigma.diagonal(dim1=-2, dim2=-1)
    return sigma * scale.unsqueeze(-1) * scale.unsqueeze(-2)


def half(sigma):
    return whitening_block(sigma, sigma.shape[-1] // 2)


def covariance(kind, dim, runs, g):
    if kind == "Wishart":
        factor = torch.randn(runs, dim, 2 * dim, dtype=F64, generator=g)
        return factor @ factor.mT / (2 * dim)
    uniform = torch.rand(runs, dim, dtype=F64, generator=g)
    if kind == "spike":
        eigenvalues = torch.ones_like(uniform)
        eigenvalues[:, 0] = dim
    else:
        eigenvalues = (uniform - 0.5).exp() if kind == "mild" else 10 ** (2 * uniform - 1)
    q = haar(dim, runs, generator=g)
    return (q * eigenvalues[:, None]) @ q.mT


SIZES = [8, 16, 32, 64]


@functools.cache
def curves(kind="mild", step=correlation, to=0.01):
    g = source()
    return [loss_curve(covariance(kind, dim, max(2, 64 // dim), g), to=to, step=step, generator=g) for dim in SIZES]


def layers(*args, share=0.01, **kwargs):
    return [layers_to(curve, share).mean().item() for curve in curves(*args, **kwargs)]


def below(nats, kind="mild"):
    return [(curve > nats).sum(0).double().mean().item() for curve in curves(kind, to=1e-4)]


@case("GA-4")
def _():
    theory = slope(SIZES, [expected_layers(dim, 100) for dim in SIZES])

    def relative(measured):
        return slope(SIZES, measured) / theory

    return relative(layers()), {
        "couplings": relative(layers(step=half)),
        "below 0.01 nats": relative(below(0.01)),
        "to 10 %": relative(layers(share=0.1)),
        "counting's bound": relative([(dim + 1) / 2 for dim in SIZES]),
        "a far spectrum": relative(layers("log-uniform")),
    }


@case("GA-5")
def _():
    spectra = ["mild", "Wishart", "log-uniform", "spike"]

    def exponents(measure):
        return [exponent(SIZES, measure(kind)) for kind in spectra]

    return exponents(layers), {
        "below 0.01 nats": exponents(lambda kind: below(0.01, kind)),
        "couplings": exponents(lambda kind: layers(kind, step=half)),
        "the first 15 % of the loss": exponents(lambda kind: layers(kind, share=0.85)),
    }


def too_few(dim):
    return math.ceil((dim + 1) / 2) - 1


def enough(dim):
    return math.ceil((dim + 1) / 2) + 1


def least(depth, restarts, **options):
    """Least loss of `depth(dim)` layers trained together, in two dimensions."""
    g, out = source(), []
    for dim in (4, 5):
        sigma = covariance("log-uniform", dim, 1, g)[0]
        turns = haar(dim, enough(dim), generator=g)[: depth(dim)]
        out.append(best_scales(sigma, turns, restarts=restarts, generator=g, **options)[0].item())
    return out


@case("GA-6")
def _():
    return least(too_few, 12), {"enough": least(enough, 2), "as many numbers as equations": least(square, 6)}


def square(dim):
    return math.ceil((dim + 1) / 2)


@case("GA-15")
def _():
    return least(enough, 3), {
        "too few": least(too_few, 3),
        "hardly trained": least(enough, 3, num_steps=3),
        "one by one": greedy(),
    }


def greedy():
    """The same layers, each fitted for itself."""
    g, out = source(), []
    for dim in (4, 5):
        sigma = correlation(covariance("log-uniform", dim, 1, g)[0])
        for turn in haar(dim, enough(dim), generator=g):
            sigma = correlation(turn @ sigma @ turn.T)
        out.append(nonstandardness(sigma).item())
    return out


@case("GA-7")
def _():
    def ratios(theirs=half, times=1):
        kinds = ("mild", "log-uniform")
        return [layers(kind)[-1] / (times * layers(kind, step=theirs)[-1]) for kind in kinds]

    return ratios(), {
        "one active coordinate": ratios(lambda sigma: whitening_block(sigma, 1)),
        "cross-covariance kept": ratios(correlation),
        "twenty times as many couplings": ratios(times=20),
    }


@case("GA-16")
def _():
    def exponents(step=half):
        return [exponent(SIZES, layers(kind, step=step)) for kind in ("mild", "log-uniform")]

    return exponents(), {
        "one active coordinate": exponents(lambda sigma: whitening_block(sigma, 1)),
        "cross-covariance kept": exponents(correlation),
    }


# --- From samples.


class QuantileMap(Bijection):
    def __init__(self, x, num=24):
        super().__init__()
        levels = np.arange(1, num + 1) / (num + 1)
        self.x = torch.from_numpy(np.quantile(x.numpy(), levels, axis=0)).to(x)
        self.z = torch.special.ndtri(torch.from_numpy(levels)).to(x)

    def forward(self, x, context=None):
        k = torch.searchsorted(self.x.T.contiguous(), x.T.contiguous()).T.sub(1).clamp(0, len(self.z) - 2)
        x0, x1 = self.x.gather(0, k), self.x.gather(0, k + 1)
        s = (self.z[k + 1] - self.z[k]) / (x1 - x0).clamp_min(1e-9)
        return self.z[k] + (x - x0) * s, s.log().sum(1)


def growth(make, dims, share, *, runs=2, most=100, **options):
    """Exponent of the layers in the dimension; a law that is not brought down in ``most`` layers makes it infinite."""
    counts = []
    for dim in dims:
        g = [source(100 * dim + run) for run in range(runs)]
        found = [layers_to(kl(make(dim, g), most, g, share=share, **options), share).item() for g in g]
        counts.append(sum(found) / runs)
    return exponent(dims, counts) if all(map(math.isfinite, counts)) else math.inf


@case("GA-8")
def _():
    def measure(**options):
        return growth(gaussian, [8, 16, 24], 0.2, **dict(n=20_000, most=60) | options)

    return measure(), {
        "PCA": measure(rotation="pca"),
        "permutations": measure(rotation=shuffle, most=10, runs=1),
        "plain quantile maps": measure(n=2000, most=20, runs=1, marginal=QuantileMap),
    }


@case("GA-9")
def _():
    def measure(make=three_modes, dims=(4, 8, 16), **options):
        return growth(make, dims, 0.5, **dict(runs=6, n=5000, most=40) | options)

    return measure(), {
        "one mode": measure(gaussian, runs=10),
        "bananas": measure(bananas, (2, 4, 8), runs=2),
        "scales only": measure(marginal=Scale, most=10, runs=1),
        "modes that overlap": measure(lambda dim, g: three_modes(dim, g, spread=0.5), (4, 8, 16), runs=1),
    }


@case("GA-10")
def _():
    def measure(make=bananas, dims=(4, 6, 8, 12), **options):
        return growth(make, dims, 0.5, **dict(runs=3, n=10_000, most=150) | options)

    straight = measure(gaussian, runs=10)

    def split(dim, g):
        return bananas(dim, g, rotated=False)

    return measure(runs=2) - straight, {
        "modes that every direction sees": measure(three_modes) - straight,
        "not rotated": measure(split, rotation=pairs, runs=2) - straight,
        "ICA": measure(dims=(4, 8), rotation="ica", n=2000, runs=1) - straight,
        "Gaussian data": measure(gaussian, n=8000, runs=8) - straight,
        "the exponent itself, of Gaussian data": straight - 0.5,
    }


def pairs(x, g):
    """Turns each banana for itself."""
    half_dim = x.shape[1] // 2
    order = torch.arange(x.shape[1]).view(2, half_dim).T.flatten()
    blocks = torch.block_diag(*haar(2, half_dim, generator=g))
    gather = torch.eye(x.shape[1], dtype=blocks.dtype)[order]
    return gather.T @ blocks @ gather


@case("GA-11")
def _():
    def measure(make=digit_law, dims=(4, 16), **options):
        return growth(make, dims, 0.7, most=30, n=6000, **options)

    return measure(), {
        "modes without correlated pixels": measure(three_modes),
        "PCA": measure(rotation="pca"),
    }


@case("GA-12")
def _():
    def ratio(rule="ica", make=bananas, after=2):
        rows = []
        for run in range(2):
            law = make(8, source(run))
            ours, random = kl(law, 2, source(), n=4000, rotation=rule), kl(law, 10, source(), n=4000)
            rows.append((ours[after] / random[10]).item())
        return sum(rows) / len(rows)

    return ratio(), {
        "random": ratio("random"),
        "PCA": ratio("pca"),
        "ICA undone": ratio(lambda x, g: torch.eye(8)),
        "no layer yet": ratio(after=0),
        "data without sources": ratio(make=gaussian),
    }


@case("GA-13")
def _():
    def costs(n=200, dim=50, rules=("pca", "ica", "sliced"), judge="held_out"):
        g = source()
        x, fresh = (torch.randn(m, dim, generator=g) for m in (n, 4000))
        cost = {}
        for rule in ("random", *rules):
            losses = getattr(gaussianize(x, 1, rotation=rule, held_out=fresh, generator=g), judge)
            cost[rule] = losses[1] - losses[0]
        return [cost[rule] - cost["random"] for rule in rules]

    return costs(), {
        "points enough": costs(n=3000),
        "few dimensions": costs(dim=4),
        "judged on the points seen": costs(judge="train"),
        "rotations that do not look": costs(rules=(lambda x, g: haar(50, generator=g),)),
    }


@case("GA-14")
def _():
    def rise(marginal, n=2000, layers=40):
        curve = kl(gaussian(16, source()), layers, source(), n=n, marginal=marginal)
        return (curve[-1] / curve[0]).item()

    return rise(QuantileMap), {
        "smooth": rise(None),
        "ten times as many points": rise(QuantileMap, n=20_000, layers=20),
        "scales only": rise(Scale),
        "five layers": rise(QuantileMap, layers=5),
    }
