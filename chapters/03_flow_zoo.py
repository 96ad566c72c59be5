# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · The zoo of normalizing flows
#
# **Papers.** Many families, one interface: NICE (non-linear independent component estimation; Dinh, Krueger, Bengio 2015, [1410.8516](https://arxiv.org/abs/1410.8516)), RealNVP (real-valued non-volume-preserving transformations; Dinh, Sohl-Dickstein, Bengio 2017, [1605.08803](https://arxiv.org/abs/1605.08803)), Glow (Kingma, Dhariwal 2018, [1807.03039](https://arxiv.org/abs/1807.03039)), neural spline flows (Durkan et al. 2019, [1906.04032](https://arxiv.org/abs/1906.04032)),
# MADE, MAF and IAF (masked autoencoder for distribution estimation, masked and inverse autoregressive flow; Germain et al. 2015, [1502.03509](https://arxiv.org/abs/1502.03509); Papamakarios et al. 2017, [1705.07057](https://arxiv.org/abs/1705.07057); Kingma et al. 2016, [1606.04934](https://arxiv.org/abs/1606.04934)), planar and radial flows (Rezende, Mohamed 2015, [1505.05770](https://arxiv.org/abs/1505.05770)), residual flows (Chen et al. 2019, [1906.02735](https://arxiv.org/abs/1906.02735)), FFJORD (free-form Jacobian of reversible dynamics; Grathwohl et al. 2019, [1810.01367](https://arxiv.org/abs/1810.01367)),
# stochastic normalizing flows (Wu, Köhler, Noé 2020, [2002.06707](https://arxiv.org/abs/2002.06707)), tail-adaptive flows (Laszkiewicz, Lederer, Fischer 2022, [2206.10311](https://arxiv.org/abs/2206.10311)), NanoFlow (Lee, Kim, Yoon 2020, [2006.06280](https://arxiv.org/abs/2006.06280)), kernelised flows and MixerFlow (English, Kirchler, Lippert 2024 and 2023, [2307.14839](https://arxiv.org/abs/2307.14839), [2310.16777](https://arxiv.org/abs/2310.16777)), TarFlow (a Transformer autoregressive flow; Zhai et al. 2024, [2412.06329](https://arxiv.org/abs/2412.06329)).
#
# A normalizing flow is an invertible network between data and noise. Invertible, it gives you three things at once that other models make you choose between: exact densities, exact samples, and a latent point for each datum. The price is a determinant. Everything in this zoo is a way not to pay it.
#
# **Afterwards you can**
#
# - derive the density of a transformed variable, and say for each family why its determinant is cheap;
# - build a flow from parts (chain, invert, condition on a context), train it, and hand it on as a `torch.distributions` object;
# - choose: which family is fast in which direction, which is expressive, which keeps the tails of its base;
# - estimate a log-determinant without bias when it cannot be computed, and know when an estimate is no likelihood;
# - report bits per dimension of images without the classical mistakes.
#
# **You need first**: PyTorch, Jacobians, and "How a chapter works" in [chapter 00](00_how_this_course_works.ipynb). **Time**: 90 minutes.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# Every size that this chapter uses stands in the second cell below: *quick* runs on a laptop in a minute or two, *full* trains longer and larger and wants a GPU.

# %%
import math
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from refimpl import autodiff, runtime
from refimpl import flows as zoo
from refimpl.claims import Claims, Summary, load_record
from refimpl.data import digits, moons
from refimpl.plots import PALETTE, choice, label_panels, play, say, slider, use_course_style
from refimpl.training import fit

use_course_style()

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
PLANE = size(
    quick=dict(width=32, steps=600, batch=256, lr=5e-3),
    full=dict(width=128, steps=20_000, batch=1024, lr=1e-3),
)
VI = size(quick=dict(layers=[2, 8, 16], steps=600, batch=256), full=dict(layers=[2, 8, 32], steps=20_000, batch=1024))
KERNEL_LR = size(quick=2e-2, full=3e-3)
ROULETTE, PROBES, PATHS = size(quick=(60_000, 200, 100_000), full=(200_000, 2000, 1_000_000))
TAILS = size(quick=dict(steps=300), full=dict(steps=10_000))
IMAGES = size(
    quick=dict(width=32, layers=1, steps_of_flow=4, steps=160, batch=128),
    full=dict(width=96, layers=2, steps_of_flow=8, steps=400, batch=256),
)
print(runtime.describe())

# %% [markdown]
# ## In one picture
#
# The data are two moons in the plane. Write $p(x)$ for their density; we made it from 80 small Gaussians along the arcs, so that it is known exactly and a model's distance from it can be measured.
# The flow has eight *coupling layers*: each keeps one of two coordinates and lets a small network decide, from the kept one, how to stretch and shift the other. A rotation between them mixes the coordinates. We train it by maximum likelihood.

# %%
target = moons()
source = runtime.generator(seed)
x = target.sample(20_000, source).to(device)
x_test = target.sample(10_000, source).to(device)


seconds_of = {}


def checkpoint(name):
    return size(quick=None, full=runtime.scratch_dir() / "03_flow_zoo" / f"{seed}-{name}.pt")


def train(flow, data, name, *, steps, batch=PLANE["batch"], lr=PLANE["lr"], loss=None, context=None):
    """Maximum likelihood with Adam, gradients clipped, the learning rate falling to zero along a cosine."""
    flow, start = flow.to(device), time.perf_counter()
    history = fit(
        flow,
        loss or (lambda *batch: -flow.log_prob(*batch).mean()),
        data=data if context is None else (data, context),
        batch_size=batch,
        num_steps=steps,
        lr=lr,
        schedule="cosine",
        clip_norm=5.0,
        generator=runtime.generator(seed),
        checkpoint=checkpoint(name),
        progress=size(quick=False, full=True),
    )
    seconds_of[name] = time.perf_counter() - start
    return history


def divergence(flow, chunk=2500):
    """KL(p || model) in nats, from the test points; the true density is known."""
    with torch.no_grad():
        model = torch.cat([flow.log_prob(part) for part in x_test.split(chunk)])
    return (target.log_prob(x_test.cpu()) - model.cpu()).mean().item()


# %%
torch.manual_seed(seed)
turn = partial(zoo.Rotation, generator=source)
first = zoo.Flow(zoo.coupling_flow(2, zoo.AffineMap(), 8, mix=turn, width=64), zoo.StandardNormal([2]))
history = train(first, x, "first", steps=3 * PLANE["steps"] // 2)
say(
    f"Loss {history.loss[0]:.2f} nats at first, {sum(history.loss[-50:]) / 50:.2f} in the end; distance from the data's density {divergence(first):.3f} nats."
)


# %% [markdown]
# **What to look for.** Top: the test data after 0, 2, 4, 6 and 8 of the couplings, on their way to the latent space; colours mark the moon that a point came from. Below: the density that the flow has learned beside the true one, and its samples, which are latent noise sent the other way.

# %% alt="Top: two moons are bent layer by layer into one round Gaussian cloud. Bottom: true density, learned density and samples of the flow agree."
def heat(ax, log_prob, half=3.2, points=120, highest=None):
    """Image of a density on a square around the origin; `highest` is the value of the brightest colour."""
    axis = torch.linspace(-half, half, points)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    with torch.no_grad():
        values = log_prob(cells.view(-1, 2).to(device)).exp().cpu().view(points, points)
    ax.imshow(values, extent=[-half, half] * 2, origin="lower", cmap="cividis", vmin=0, vmax=highest)


def frame(ax, half=3.2):
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    ax.grid(False)


fig = plt.figure(figsize=(7.6, 4.3))
spec = fig.add_gridspec(2, 15)
points = x_test[:1500]
moon = torch.cdist(points.cpu(), target.means).argmin(1) < len(target.means) // 2
steps = [points]
with torch.no_grad():
    for layer in first.bijection.bijections:
        steps.append(layer(steps[-1])[0])
for column, z in enumerate(steps[i] for i in (0, 3, 7, 11, 15)):  # a rotation stands between two couplings
    ax = fig.add_subplot(spec[0, 3 * column : 3 * column + 3])
    ax.scatter(*z.cpu().T, s=1, c=moon, cmap="coolwarm")
    frame(ax)
    ax.set_title(["data", "2 couplings", "4", "6", "8: latent"][column])
panels = [fig.add_subplot(spec[1, 5 * i : 5 * i + 5]) for i in range(3)]
heat(panels[0], lambda cells: target.log_prob(cells.cpu()))
heat(panels[1], first.log_prob)
panels[2].scatter(*first.sample([1500], generator=source).detach().cpu().T, s=1, color=PALETTE[0])
for ax in panels:
    frame(ax)
label_panels(panels, ["True density", "Learned density", "Samples"])
plt.show()

# %% [markdown]
# **What you saw.** Each coupling can only push along one of its two (turned) coordinates, by an amount that depends on the other; eight of them unroll both moons into one round cloud. A continuous invertible map cannot tear the plane, so a bridge between the moons remains; it can be made fainter only by a steeper map. [Chapter 04](04_coupling_universality.ipynb) asks what that means for what flows can learn.
#
# ## The claims
#
# Each has a criterion that was fixed before we measured; where one was revised afterwards, the [ledger](../results/README.md) says how and why. Skim the table; its words are explained where each claim gets its verdict.
# The papers' own numbers are for image sets and networks that a laptop cannot train, so most rows test a *statement* of the paper at a small size; "reported" says what the paper says.

# %%
claim = Claims.declared("03_flow_zoo")
claim

# %% [markdown]
# ## The idea: change of variables
#
# Let $f:\mathbb R^D\to\mathbb R^D$ be smooth and invertible, and let $p_Z$ be a density that we choose, the *base*, here always a standard normal unless said otherwise. If $z=f(x)$ has density $p_Z$, what is the density of $x$?
# In one dimension, probability in a small interval is conserved, $p(x)\,|dx|=p_Z(z)\,|dz|$, so $p(x)=p_Z(f(x))\,|f'(x)|$. In $D$ dimensions a small cube around $x$ becomes a small parallelepiped, larger by the factor $|\det J|$ with the Jacobian matrix $J_{ij}=\partial f_i/\partial x_j$:
#
# $$\ln p(x)=\ln p_Z(f(x))+\ln\big|\det J_f(x)\big|.$$
#
# Training maximises the mean of this over data. Sampling draws $z\sim p_Z$ and returns $f^{-1}(z)$. For a chain $f=f_n\circ\dots\circ f_1$ determinants multiply, so log-determinants add, each taken at the point where the data are by then; for $f^{-1}$ they change sign.
#
# $$\text{data }x\;\xrightarrow{\;\texttt{forward}\;=\;f\;}\;\text{latent }z\;\xrightarrow{\;\texttt{inverse}\;=\;f^{-1}\;}\;\text{data }x$$
#
# That is the whole algebra, and `refimpl.flows` is built on it: a *bijection* is a module with `forward(x, context=None)`, from data to latent, and `inverse(z, context=None)`; both return the result and their own log-determinant. `Chain` adds, `Inverse` swaps. Check all of it on a chain of a diagonal map, a rotation and a spline coupling:

# %%
from refimpl.flows import Chain, Diagonal, Inverse

torch.manual_seed(seed)
spline_coupling = zoo.coupling_flow(3, zoo.SplineMap(), 2, width=16).double()
for parameter in spline_coupling.parameters():
    nn.init.normal_(parameter, std=0.4)
chain = Chain(Diagonal(3, scale=0.7).double(), zoo.Rotation(3, generator=source).double(), spline_coupling)
at = torch.randn(100, 3, dtype=torch.float64)
z, log_det = chain(at)
back, log_det_back = chain.inverse(z)
by_autograd = autodiff.log_det_jacobian(lambda x: chain(x)[0], at)
say(
    f"Largest errors over 100 points: there and back {(back - at).abs().max():.0e}, log-determinant against autograd "
    f"{(log_det - by_autograd).abs().max():.0e}, sum of both directions' log-determinants {(log_det + log_det_back).abs().max():.0e}, "
    f"`Inverse(chain)` against `chain.inverse` {(Inverse(chain)(z)[0] - back).abs().max():.0e}."
)

# %% [markdown]
# The second identity to check is that a density integrates to one. That notices what no inverse notices: a wrong factor in a log-determinant. The flow that you trained above, on a grid of cells of side 0.02:

# %%
side = 0.02
axis = torch.arange(-6, 6, side)
with torch.no_grad():
    cells = torch.cartesian_prod(axis, axis).to(device)
    mass = sum(first.log_prob(part).double().exp().sum().item() for part in cells.split(60_000)) * side**2
say(f"Its density integrates to {mass:.5f}.")

# %% [markdown]
# ### What makes a determinant cheap
#
# A determinant of a dense $D\times D$ matrix costs $O(D^3)$, for each datum and in each training step, and an arbitrary network's Jacobian costs $D$ backward passes before that. Every family restricts $f$ so that it need not be computed:
#
# | trick | identity | families |
# |---|---|---|
# | triangular Jacobian (or factors) | $\det=\prod_iJ_{ii}$ | NICE, RealNVP, Glow, splines, MAF, IAF, kernelised, MixerFlow, NanoFlow, TarFlow |
# | rank one | $\det(I+uv^\top)=1+v^\top u$ | planar, radial |
# | contractive | $\ln\det(I+A)=\sum_{k\ge1}\frac{(-1)^{k+1}}k\operatorname{tr}A^k$ | residual flows |
# | continuous time | $\frac{d}{dt}\ln\det=\operatorname{tr}\frac{\partial v}{\partial x}$ for a velocity $v$ | neural ODEs, FFJORD |
# | none needed | weights of whole random paths (Family 6) | stochastic normalizing flows |
#
# Here are six maps in six dimensions, with random weights. **What to look for**: which entries of $J$ (rows: outputs; columns: inputs) are exactly zero, and what the colours say about the rest.

# %% alt="Six Jacobian heat maps: coupling is the identity with one dense block, MAF is lower triangular, planar is the identity plus a rank-one pattern, the others are dense."
torch.manual_seed(seed + 4)
six = {
    "coupling": zoo.coupling_flow(6, zoo.AffineMap(), 1, width=32),
    "MAF": zoo.maf(6, 1, width=32),
    "1x1 linear (Glow)": zoo.InvertibleLinear(6, generator=source),
    "planar": zoo.Planar(6),
    "residual": zoo.Residual(6, width=32, method="series"),
    "continuous": zoo.Continuous(6, width=32),
}
fig, axes = plt.subplots(1, 6, figsize=(7.6, 1.75))
point = torch.randn(1, 6, dtype=torch.float64)
errors = {}
for ax, (name, f) in zip(axes, six.items()):
    f.double()
    for parameter in [] if "linear" in name else f.parameters():
        nn.init.normal_(parameter, std=0.35)
    f.train()(point)  # in training mode, a residual block bounds its slope anew
    f.eval()
    J = autodiff.jacobian(lambda x, f=f: f(x)[0], point)[0].detach()
    errors[name] = (f(point)[1] - J.slogdet().logabsdet).abs().item()
    ax.imshow(J, cmap="PuOr", vmin=-1.5, vmax=1.5)
    for i, j in (J == 0).nonzero():
        ax.plot(j, i, ".", color="#999999", ms=2)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(name, fontsize=8.5)
plt.show()

# %%
say(
    "Dots mark exact zeros. The log-determinant that each family returns, against that of the matrix shown: "
    + ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
    + ". (The residual block sums twenty terms of its series; the continuous flow is as exact as its solver.)"
)


# %% [markdown]
# **What you saw.** Coupling and MAF leave zeros above the diagonal, so the diagonal is all that counts. The planar layer's matrix is the identity plus one column times one row. The others have no zeros: Glow's matrix is stored as triangular factors, the residual block stays close to the identity by construction, and the continuous flow integrates a trace.
#
# ## From scratch: an affine coupling flow
#
# Split $x=(b,a)$ into a *passive* half $b$, which stays, and an *active* half $a$. A network, the *conditioner*, predicts from $b$ a log-scale $s$ and a shift $t$ for each active feature, and
#
# $$(b,a)\mapsto\big(b,\;a\odot e^{s(b)}+t(b)\big),\qquad\ln|\det J|=\sum_is_i(b).$$
#
# The inverse subtracts $t(b)$ and divides by $e^{s(b)}$. It needs no inverse of the network: $b$ was not changed, so the network can be asked again. With $s\equiv0$ this is NICE, which keeps volumes; with $s$ it is RealNVP.
# Two details decide whether it trains: $s$ is held in $(-2,2)$ by $2\tanh(s/2)$, because one wild exponential can ruin a run, and the networks' last layers start at zero, so that the flow starts as the identity.

# %%
class AffineCoupling(nn.Module):
    def __init__(self, dim, width, swap):
        super().__init__()
        self.half, self.swap = dim // 2, swap
        passive, active = (dim - self.half, self.half) if swap else (self.half, dim - self.half)
        self.net = nn.Sequential(
            nn.Linear(passive, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * active)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def transform(self, x, sign):
        b, a = (x[:, self.half :], x[:, : self.half]) if self.swap else (x[:, : self.half], x[:, self.half :])
        s, t = self.net(b).chunk(2, dim=1)
        s = 2 * torch.tanh(s / 2)
        a = a * s.exp() + t if sign > 0 else (a - t) * (-s).exp()
        return torch.cat([a, b] if self.swap else [b, a], 1), sign * s.sum(1)


class AffineFlow(nn.Module):
    def __init__(self, dim, num_layers, width):
        super().__init__()
        self.layers = nn.ModuleList(AffineCoupling(dim, width, i % 2 == 1) for i in range(num_layers))

    def log_prob(self, x):
        total = 0
        for layer in self.layers:
            x, log_det = layer.transform(x, +1)
            total = total + log_det
        return total - 0.5 * (x**2 + math.log(2 * math.pi)).sum(1)

    def sample(self, z):
        for layer in reversed(self.layers):
            z, _ = layer.transform(z, -1)
        return z


# %% [markdown]
# In `refimpl` the same flow is `Flow(coupling_flow(2, AffineMap(), 4), StandardNormal([2]))`. Train that one for a moment, copy its weights over, and both must give the same numbers.

# %%
torch.manual_seed(seed)
theirs = zoo.Flow(zoo.coupling_flow(2, zoo.AffineMap(), 4, width=16), zoo.StandardNormal([2])).to(device)
ours = AffineFlow(2, 4, 16).to(device)
train(theirs, x, "scratch", steps=50)
with torch.no_grad():
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.copy_(other)
    same_density = (ours.log_prob(x_test) - theirs.log_prob(x_test)).abs().max()
    z = torch.randn(500, 2, device=device)
    same_samples = (ours.sample(z) - theirs.bijection.inverse(z)[0]).abs().max()
assert same_density < 1e-4 and same_samples < 1e-4
say(f"After 50 steps of training: log-densities agree to {same_density:.0e}, samples to {same_samples:.0e}.")

# %% [markdown]
# ## Family 1: couplings, and what moves inside them
#
# The affine map $a\mapsto ae^s+t$ is one choice of an increasing function with a known inverse. In `refimpl` the moving part is an argument of its own, an `ElementwiseMap`: `AdditiveMap` (NICE), `AffineMap` (RealNVP; with `gate="sigmoid"` Glow), `GINMap` (scales that multiply to one), `SplineMap`.
#
# A **rational-quadratic spline** cuts $[-B,B]$ into $K$ bins, with knots $(x_k,y_k)$ and slopes $d_k>0$ at the knots; outside it is the identity, so the slopes at $\pm B$ are 1. With bin widths $w_k=x_{k+1}-x_k$, mean slope $\sigma_k=(y_{k+1}-y_k)/w_k$ and relative position $\xi=(x-x_k)/w_k$,
#
# $$y=y_k+\frac{(y_{k+1}-y_k)\,[\sigma_k\xi^2+d_k\xi(1-\xi)]}{\sigma_k+(d_{k+1}+d_k-2\sigma_k)\,\xi(1-\xi)}.$$
#
# Its derivative, whose logarithm is what the log-determinant needs, has only positive terms,
#
# $$\frac{dy}{dx}=\frac{\sigma_k^2\,[d_{k+1}\xi^2+2\sigma_k\xi(1-\xi)+d_k(1-\xi)^2]}{[\sigma_k+(d_{k+1}+d_k-2\sigma_k)\,\xi(1-\xi)]^2},$$
#
# so the spline is increasing for *any* positive widths, heights and slopes, and a network may predict them freely: softmax makes widths and heights, softplus makes slopes. Its inverse is the root of a quadratic. **What to look for**: the slope is continuous (the spline is $C^1$), and a single map of one number already makes three modes out of one.

# %% alt="Left: a rational-quadratic spline with its knots. Middle: its slope, continuous, with kinks at the knots. Right: the density it induces, with three modes."
from refimpl.flows import SplineMap

spline = SplineMap(bins=6, bound=3.0)
# 6 raw widths, 6 raw heights, 5 raw slopes
shape = torch.tensor([0.2, 0.0, -0.3, -0.3, 0.0, 0.2, -0.4, 1.2, -1.4, 0.9, -1.4, 1.0, 0.5, 0.9, -0.5, 0.9, 0.5])
line = torch.linspace(-3.6, 3.6, 721)[:, None]


def draw_spline(params, axes):
    """A spline, its slope, and the density of x if y is standard normal."""
    y, log_slope = spline.forward(line, params.expand(len(line), -1))
    knots_x, knots_y, _ = (k[:, 0] for k in spline.knots(params))
    density = torch.exp(-0.5 * y**2 + log_slope) / math.sqrt(2 * math.pi)
    axes[0].plot(line, y, color=PALETTE[0])
    axes[0].plot(knots_x, knots_y, "o", color=PALETTE[1], ms=5)
    axes[1].plot(line, log_slope.exp(), color=PALETTE[0])
    axes[2].fill_between(line[:, 0], density[:, 0], color=PALETTE[4], lw=0)
    for ax, label in zip(axes, ("y", "dy / dx", "density of x")):
        ax.set(xlabel="x", ylabel=label)
    axes[0].set(ylim=(-3.6, 3.6))
    axes[1].set(ylim=(0, None))
    axes[2].set(ylim=(0, None))


fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.5))
draw_spline(shape, axes)
label_panels(axes, ["The map", "Its slope", "What it models"])
plt.show()

# %% [markdown]
# An affine coupling makes each *conditional* density $p(a\mid b)$ a Gaussian if the latent is Gaussian. A spline coupling can give each active feature any increasing map, so with one of them $p(a\mid b)$ can have any shape. It should need fewer layers. Two spline couplings against eight affine ones, networks and training alike, two runs each, because the affine ones differ by a factor of two from run to run:

# %%
torch.manual_seed(seed)
couplings = {
    "8 affine couplings": (zoo.AffineMap(), 8),
    "2 spline couplings": (SplineMap(8, 4.0), 2),
}
of_couplings = {name: [] for name in couplings}
for run in range(2):
    for name, (tau, layers) in couplings.items():
        model = zoo.Flow(zoo.coupling_flow(2, tau, layers, width=PLANE["width"]), zoo.StandardNormal([2]))
        train(model, x, f"{name.replace(' ', '-')}-{run}", steps=PLANE["steps"])
        of_couplings[name].append(divergence(model))
of_runs = "; ".join(f"{name} {a:.3f} and {b:.3f} nats" for name, (a, b) in of_couplings.items())
say(f"Distance from the true density: {of_runs}.")

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-1", sum(of_couplings["2 spline couplings"]) / sum(of_couplings["8 affine couplings"]))

# %% [markdown]
# **What you saw.** Fewer layers do more. The price: a spline needs $3K-1$ numbers a feature instead of two, and outside its box it models nothing, so standardise your data and choose $B$ with room to spare: beyond it the density is the base's.
#
# ## Family 2: autoregressive flows
#
# Why only halves? The chain rule $p(x)=\prod_ip(x_i\mid x_1,\dots,x_{i-1})$ suggests to let feature $i$ depend on *all* before it: $z_i=\tau(x_i;h_i)$ with $\tau(\cdot\,;h)$ an increasing map of one number with parameters $h$, such as an affine one with $h=(s,t)$, and $h_i$ a function of $x_{<i}$. The Jacobian is lower triangular, and its diagonal holds the slopes of $\tau$.
# One network can predict all $h_i$ at once, if no path in it leads from $x_j$ to $h_i$ unless $j<i$. MADE gives every hidden unit a degree $m$: it may see inputs of index up to $m$ and hidden units of degree up to $m$, and be seen by outputs of index above $m$; all other weights are multiplied by zero. Paths can be counted: multiply the masks of all layers.

# %% alt="Three binary masks of a MADE network and their product, which is strictly lower triangular."
made = zoo.maf(6, 1, width=12).bijections[0]
first_mask, middle, last = (layer.mask.float() for layer in made.modules() if hasattr(layer, "mask"))
last = last[:6]  # the first six outputs are the log-scales, the next six, the shifts, see the same
paths = last @ middle @ first_mask
fig, axes = plt.subplots(1, 4, figsize=(7.6, 2.5), width_ratios=[0.75, 1.3, 1.3, 1])
for ax, matrix in zip(axes, (first_mask, middle, last, paths)):
    ax.imshow(matrix, cmap="cividis", vmax=matrix.max())
    ax.set(xticks=[], yticks=[], xlabel="from", ylabel="to")
    ax.grid(False)
for i, j in paths.nonzero():
    ax.text(
        j,
        i,
        f"{paths[i, j]:.0f}",
        ha="center",
        va="center",
        fontsize=7.5,
        color="black" if paths[i, j] > 40 else "white",
    )
label_panels(axes, ["inputs, hidden", "hidden, hidden", "hidden, outputs", "paths"])
plt.show()

# %% [markdown]
# The numbers in the last panel count paths from input to output. It is strictly lower triangular: output $i$ is reached from inputs before $i$ only. **Density** in one pass: all $x$ are known. **Sampling** needs $x_1$ to find $x_2$, both to find $x_3$, and so on: $D$ passes. This direction, with affine $\tau$, is MAF. Turn it round, and you have IAF: samples in one pass, densities of *given* points in $D$. Couplings are the compromise, one pass each way.
# Measure it in 64 dimensions. We compare ratios of times in one run, because seconds depend on the machine.

# %%
torch.manual_seed(seed)
wide = torch.randn(256, 64, device=device)


def seconds(run, repeats=11):
    """Shortest time of one call; on a CPU that of the processor, which does not count what others do meanwhile."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)


ratios = {}
with torch.no_grad():
    for name, f in {
        "coupling": zoo.coupling_flow(64, zoo.AffineMap(), 4),
        "MAF": zoo.maf(64, 4),
        "IAF": zoo.iaf(64, 4),
    }.items():
        f = f.to(device)
        ratios[name] = seconds(lambda f=f: f.inverse(wide)) / seconds(lambda f=f: f(wide))
say("Time to sample over time for a density, D = 64: " + ", ".join(f"{k} {v:.3g}" for k, v in ratios.items()) + ".")

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-2", [ratios["MAF"] / ratios["coupling"], ratios["coupling"] / ratios["IAF"]])


# %% [markdown]
# **What you saw.** The same triangular map, two directions, and about a factor $D$ between them each way. Train with MAF if you have data and want densities; with IAF if you have a density and want samples, as in variational inference, which comes next.
#
# ## Family 3: planar and radial flows, and fitting a density that you can evaluate
#
# So far we trained the direction from data to latent, $f$. Now we train the other one, $g=f^{-1}$, from latent to sample; its log-determinant enters with a minus sign, and in code `Inverse(...)` turns the layers round.
# A planar layer adds one column: $z'=z+\hat u\tanh(w^\top z+b)$. Its Jacobian is $I+\hat u\,(1-\tanh^2)\,w^\top$, and the *matrix determinant lemma* $\det(I+uv^\top)=1+v^\top u$ makes its determinant one number,
#
# $$\ln\det=\ln\big(1+(1-\tanh^2(w^\top z+b))\,w^\top\hat u\big),$$
#
# positive for all $z$ if and only if $w^\top\hat u>-1$, because $1-\tanh^2$ lies in $(0,1]$. With $\hat u=u+(\mathrm{softplus}(w^\top u)-1-w^\top u)\,w/\|w\|^2$ we get $w^\top\hat u=\mathrm{softplus}(w^\top u)-1>-1$ for any $u$. A radial layer moves points towards or away from a centre $c$: $z'=z+\beta(z-c)/(\alpha+\|z-c\|)$, with an inverse in closed form; that of a planar layer needs a bisection.
#
# These were made for the reverse task. Now no data are given, but an unnormalised density $\tilde p(x)=e^{-U(x)}$, such as a posterior. Draw $z_0$ from the base, send it through $K$ layers to $x$, and minimise
#
# $$\mathbb E\big[\ln q(x)+U(x)\big]=\mathrm{KL}(q\,\|\,p)-\ln Z,\qquad\ln q(x)=\ln q_0(z_0)-\sum_k\ln\det_k,\quad Z=\int e^{-U}.$$
#
# Only the direction from noise to sample is needed, in which planar layers are fast. In the first half of training $U$ is multiplied by a factor that rises to 1, as the paper does, or the flow settles on one part of the target. Rezende and Mohamed's first test is a ring with two bumps; quadrature gives $Z$.
#
# With $w_n=\tilde p(x_n)/q(x_n)$ the *effective sample size* $(\sum_nw_n)^2/(N\sum_nw_n^2)$ says what share of $N$ samples is left after reweighting them to the target. **What to look for**: how does the picture improve with the number of layers $K$?

# %%
def energy(z):
    """U: -log of an unnormalised density, a ring of radius 2 with two bumps (Rezende and Mohamed's first)."""
    bumps = torch.stack([-0.5 * ((z[..., 0] - 2) / 0.6) ** 2, -0.5 * ((z[..., 0] + 2) / 0.6) ** 2])
    return 0.5 * ((z.norm(dim=-1) - 2) / 0.4) ** 2 - bumps.logsumexp(0)


def quadrature(u):
    """Cells of a fine grid and the mass of exp(-u) in each."""
    axis = torch.arange(-6, 6, 0.01, dtype=torch.float64)
    cells = torch.cartesian_prod(axis, axis)
    return cells, torch.exp(-u(cells)) * 0.01**2


ring_log_z = quadrature(energy)[1].sum().log().item()


# %% [markdown]
# One flow for each $K$. `sample_and_log_prob` gives samples and their log-density in one pass; the schedule, which `fit` calls with the number of the step, also sets the warm-up.

# %%
def fit_to_energy(num_layers):
    torch.manual_seed(seed)
    model = zoo.Flow(Inverse(Chain(*(zoo.Planar(2) for _ in range(num_layers)))), zoo.StandardNormal([2])).to(device)
    noise, warm = runtime.generator(seed), [0.0]

    def cosine_and_warm(step):
        # `fit` tells the schedule which step it is at, also after a resume; the warm-up keeps step with it.
        warm[0] = min(1.0, 0.01 + 2 * step / VI["steps"])
        return 0.5 * (1 + math.cos(math.pi * step / VI["steps"]))

    def loss():
        x, log_q = model.sample_and_log_prob([VI["batch"]], generator=noise)
        return (log_q + warm[0] * energy(x)).mean()

    fit(
        model,
        loss,
        num_steps=VI["steps"],
        lr=1e-2,
        schedule=cosine_and_warm,
        clip_norm=5.0,
        generator=noise,
        checkpoint=checkpoint(f"planar-{num_layers}"),
        progress=False,
    )
    with torch.no_grad():
        x, log_q = model.sample_and_log_prob([20_000], generator=noise)
    return model, (log_q + energy(x)).mean().item() + ring_log_z, zoo.effective_sample_size(-energy(x) - log_q).item()


posteriors = {k: fit_to_energy(k) for k in VI["layers"]}

# %% alt="The target, a ring with two bumps, and planar flows with 2, 8 and 16 layers: the more layers, the closer."
fig, axes = plt.subplots(1, 4, figsize=(7.6, 2.2))
heat(axes[0], lambda z: -energy(z) - ring_log_z)
for ax, (model, *_) in zip(axes[1:], posteriors.values()):
    heat(ax, model.log_prob)
for ax in axes:
    frame(ax)
label_panels(axes, ["Target", *(f"K = {k}" for k in posteriors)])
plt.show()

# %%
of_depth = [kl for _, kl, _ in posteriors.values()]
say(
    f"ln Z = {ring_log_z:.4f}. KL(q || p) in nats, and effective sample size: "
    + "; ".join(f"K = {k}: {kl:.3f}, {100 * ess:.0f} %" for k, (_, kl, ess) in posteriors.items())
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-3", [of_depth[1] / of_depth[0], of_depth[2] / of_depth[1]])

# %% [markdown]
# **What you saw.** Each layer can bend space along one line only, so it takes many. Variational inference returns in a later chapter.
#
# ## Family 4: residual flows
#
# Any network $g$ gives an invertible map $z=x+g(x)$ if its slope is bounded by some $L<1$ in every direction: $x\mapsto z-g(x)$ is then a contraction, and its fixed point is the inverse. Dividing each weight matrix by its largest singular value, followed with power iterations, enforces the bound.
# Nothing is triangular now. But $\ln\det(I+J)$ has a power series, with $J$ now the Jacobian of $g$:
#
# $$\ln\det(I+J)=\sum_{k=1}^\infty\frac{(-1)^{k+1}}k\operatorname{tr}J^k,\qquad\operatorname{tr}J^k=\mathbb E\,v^\top J^kv$$
#
# for random $v$ with $\mathbb E\,vv^\top=I$, and $v^\top J^k$ costs $k$ backward passes. Where to stop? Cutting after $n$ terms is *biased*: a flow trained so can raise its reported likelihood by making the rest of the series wrong. **Russian roulette** stops at a random $n$ and weighs term $k$ by $1/P(n\ge k)$:
#
# $$\mathbb E\sum_{k\le n}\frac{a_k}{P(n\ge k)}=\sum_ka_k\,\frac{\mathbb E\,\mathbf 1[n\ge k]}{P(n\ge k)}=\sum_ka_k .$$
#
# Try it on a linear contraction $g(x)=Ax$, a symmetric $A$ with eigenvalues $-0.9,-0.6,0.3,0.6$, where $\ln\det(I+A)$ is known. Two terms are always taken; after each further one the game ends with probability 0.1, which makes twelve terms on average. (That is small enough: the variance stays finite only if $L^2<1-0.1$, of which more below.) The competitor spends the same on a fixed cut after twelve.
# **What to look for**: which means lie on the exact value, and how many terms does the cut series need to come close?

# %% alt="Mean estimates with error bars against the number of terms: roulette lies on the exact line at once, the cut series approaches it from above."
from refimpl.flows import roulette_weights

CONTRACTION = [-0.9, -0.6, 0.3, 0.6]
dice = runtime.generator(seed)
turned = zoo.random_rotation(4, dice)
A = turned @ torch.diag(torch.tensor(CONTRACTION, dtype=torch.float64)) @ turned.T
exact_log_det = torch.linalg.slogdet(torch.eye(4, dtype=torch.float64) + A).logabsdet.item()
powers = torch.stack([(-1) ** (k + 1) / k * torch.linalg.matrix_power(A, k) for k in range(1, 201)])
v = autodiff.probe_vectors(torch.zeros(ROULETTE, 4, dtype=torch.float64), kind="gaussian", generator=dice)[0]
terms = torch.einsum("ni,kij,nj->nk", v, powers, v)  # row: one draw's terms, each with the same random probe


def play_roulette(rate):
    """Estimates of the log-determinant, and the mean number of terms."""
    games = [torch.tensor(roulette_weights(2, rate=rate, generator=dice)[:200]).double() for _ in range(ROULETTE)]
    estimates = torch.stack([game @ row[: len(game)] for game, row in zip(games, terms)])
    return estimates, sum(map(len, games)) / ROULETTE


roulette, cost = play_roulette(0.1)
fig, ax = plt.subplots(figsize=(5.6, 2.6))
for n in (2, 4, 6, 8, 12, 16, 24, 32):
    cut = terms[:, :n].sum(1)
    ax.errorbar(n, cut.mean(), 2 * cut.std() / ROULETTE**0.5, fmt="s", color=PALETTE[1], ms=4, capsize=2)
ax.errorbar(cost, roulette.mean(), 2 * roulette.std() / ROULETTE**0.5, fmt="o", color=PALETTE[0], capsize=2)
ax.plot([], [], "s", color=PALETTE[1], ms=4, label="cut series")
ax.plot([], [], "o", color=PALETTE[0], label="roulette")
ax.axhline(exact_log_det, color="black", ls="--", lw=1.2, label="exact")
ax.set(xlabel="terms (roulette: on average)", ylabel="mean ± 2 s.e. (nats)")
ax.legend()
plt.show()
truncated = terms[:, :12].sum(1)
bias_of_cut = powers[:12].diagonal(dim1=1, dim2=2).sum().item() - exact_log_det  # exact traces: no chance in it

# %%
off = {
    name: ((values.mean() - exact_log_det) / (values.std() / ROULETTE**0.5)).item()
    for name, values in (("roulette", roulette), ("cut", truncated))
}
say(
    f"Exact: {exact_log_det:.3f}. Roulette, {cost:.1f} terms on average: mean {roulette.mean():.3f}, "
    f"{off['roulette']:+.1f} standard errors off. Cut after 12: mean {truncated.mean():.3f}; with exact traces its bias is {bias_of_cut:+.3f} nats."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-4", abs(off["roulette"]))
claim("ZOO-5", abs(bias_of_cut))

# %% [markdown]
# **What you saw.** The roulette's mean is right at a cost at which the cut series is still clearly off; the cut series needs two to three times the terms to hide its bias behind these error bars. A single estimate is noisy in both. In training, a gradient that is right on average is all that stochastic gradient descent asks for.
#
# ## Family 5: continuous flows
#
# Take residual steps ever smaller, $x\leftarrow x+\epsilon\,v(t,x)$, and the flow becomes an ordinary differential equation $\dot x=v(t,x)$ from data at $t=0$ to latent at $t=1$. Every smooth field is allowed, because solutions of an ODE never cross; and since $\det(I+\epsilon J)=1+\epsilon\operatorname{tr}J+O(\epsilon^2)$, the log-determinant follows its own equation,
#
# $$\frac{d}{dt}\ln\det=\operatorname{tr}\frac{\partial v}{\partial x}.$$
#
# `Continuous` hands both to `torchdiffeq`. A solver of fourth order should lose accuracy like the fourth power of its step. A very fine solution for a smooth random field is the reference:

# %%
torch.manual_seed(seed)
field = zoo.Continuous(3, width=32, depth=3).double()
for parameter in field.parameters():
    nn.init.normal_(parameter, std=0.5)
at = torch.randn(64, 3, dtype=torch.float64)


def solve(num_steps):
    field.num_steps = num_steps
    with torch.no_grad():
        return field(at)[1]


fine = solve(320)
solver_error = {n: (solve(n) - fine).abs().mean().item() for n in (10, 20, 40, 80)}
order = math.log(solver_error[20] / solver_error[80]) / math.log(4)
say(
    "Mean error of the log-determinant by number of steps: "
    + ", ".join(f"{n}: {e:.1e}" for n, e in solver_error.items())
    + f". Between 20 and 80 it falls with the power {order:.2f} of the step."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-6", order)

# %% [markdown]
# In $D$ dimensions the exact trace costs $D$ backward passes in every step of the solver. FFJORD uses one random probe instead, $\epsilon^\top\frac{\partial v}{\partial x}\epsilon$ (Hutchinson's estimator), **drawn once a solve and held fixed**: the ODE that the solver sees stays deterministic. The path $x(t)$ does not depend on the probe, so the expectation passes under the integral, and the estimate is unbiased. Check that:

# %%
field.num_steps, field.trace, field.generator = 10, "hutchinson", runtime.generator(seed)
with torch.no_grad():
    probed = torch.stack([field(at)[1] for _ in range(PROBES)])
field.trace = "exact"
miss = (probed.mean(0) - solve(10)) / (probed.std(0) / PROBES**0.5)
say(
    f"Over {PROBES} solves the mean of the estimates misses the exact log-determinant by {miss.square().mean().sqrt():.2f} standard errors "
    f"(root mean square over {len(at)} points; 1 is expected of an unbiased estimate). One estimate alone is off by {probed.std(0).mean():.2f} nats."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-7", miss.square().mean().sqrt().item())


# %% [markdown]
# **What you saw.** Unbiased, and noisy: fine for a gradient, poor for a reported likelihood. Report with exact traces, or average probes.
#
# ## The zoo side by side
#
# Now all families learn the two moons, with settings that suit each; *ActNorm*, before each residual block, is a scale and shift for each feature that starts by standardising the first batch. This is no contest, for steps, sizes and learning rates differ. **What to look for**: the *character* of each family in its errors. Where does a bridge remain, which one cannot stretch?

# %%
def kernel_coupling(i):
    conditioner = partial(zoo.KernelConditioner, num_points=16)
    return zoo.Coupling(2, zoo.AffineMap(), conditioner, swap=i % 2 == 1)


def residual_step():
    return Chain(zoo.ActNorm(2), zoo.Residual(2, width=32, lipschitz=0.97, num_iterations=1))


width, n = PLANE["width"], PLANE["steps"]
families = {
    "NICE": (lambda: zoo.nice(2, 8, width=width, mix=turn), 2 * n // 3, {}),
    "splines": (lambda: zoo.coupling_flow(2, SplineMap(8, 4.0), 4, width=width, mix=turn), n // 2, {}),
    "MAF": (lambda: zoo.maf(2, 8, width=width), 2 * n // 3, {}),
    "planar": (lambda: Chain(*(zoo.Planar(2) for _ in range(24))), n // 2, dict(lr=2e-2)),
    "residual": (lambda: Chain(*(residual_step() for _ in range(5))), n // 3, dict(lr=1e-2, batch=128)),
    "continuous": (lambda: zoo.Continuous(2, width=width, num_steps=3), n // 3, dict(lr=2e-2, batch=128)),
    "kernelised": (lambda: Chain(*(kernel_coupling(i) for i in range(8))), n, dict(lr=KERNEL_LR)),
}
gallery, spent = {"RealNVP": first}, {"RealNVP": (3 * n // 2, seconds_of["first"])}
for name, (make, num_steps, settings) in families.items():
    torch.manual_seed(seed)
    gallery[name] = zoo.Flow(make(), zoo.StandardNormal([2]))
    train(gallery[name], x, f"gallery-{name}", steps=num_steps, **settings)
    spent[name] = (num_steps, seconds_of[f"gallery-{name}"])
    gallery[name].eval()

# %% alt="Densities of two moons learned by eight families of flows."
fig, axes = plt.subplots(2, 4, figsize=(7.6, 4.2))
kl_of = {name: divergence(model) for name, model in gallery.items()}
for ax, (name, model) in zip(axes.flat, gallery.items()):
    heat(ax, model.log_prob, highest=0.28)  # a little above the true density's peak
    frame(ax)
    ax.set_title(f"{name}: {kl_of[name]:.2f} nats", fontsize=9.5)
plt.show()

# %%
numbers = {name: sum(p.numel() for p in model.parameters()) for name, model in gallery.items()}
say(
    "| family | parameters | steps | milliseconds a step | KL to the true density (nats) |\n|---|---|---|---|---|\n"
    + "\n".join(
        f"| {name} | {numbers[name]:,} | {done} | {1e3 * seconds_spent / done:.1f} | {kl_of[name]:.3f} |"
        for name, (done, seconds_spent) in spent.items()
    )
    + "\n\nFrom seed to seed these distances change by up to a factor of two: small differences mean nothing."
)

# %% [markdown]
# **What you saw.** NICE keeps volumes but for one scale of each latent coordinate, so that $p(x)=c\,p_Z(f(x))$ with a constant $c$: the density can vary only as the latent radius does, bright in a thin thread in the middle, faint at the outer ends. The planar layers do much with few numbers. A residual block may move points only a little, and would want many more of them. The continuous flow draws the smoothest moons, at the highest price a step.
#
# ### Few numbers in a coupling: kernels, and shared networks
#
# The kernelised couplings of the gallery are a claim of its own. **Kernelised flows** replace each conditioner by a linear function of Gaussian kernels $k_j(b)=\exp(-\|b-w_j\|^2/2\ell^2)$ around a few learned points $w_j$. **NanoFlow** keeps networks but lets all couplings share one, with a last layer of their own ("decomposed"), and in the paper also a learned embedding of the step that the shared network sees ("full"). If not even the last layer is private ("naive"), all steps are the same map.

# %%
sharing = {"independent": lambda: zoo.coupling_flow(2, zoo.AffineMap(), 8, width=32)}
for mode in ("naive", "decomposed", "full"):
    sharing[mode] = partial(zoo.NanoFlow, 2, 8, zoo.AffineMap(), mode, width=32)
shared_kl, shared_size = {"kernelised": kl_of["kernelised"]}, {"kernelised": numbers["kernelised"]}
for name, make in sharing.items():
    torch.manual_seed(seed)
    model = zoo.Flow(make(), zoo.StandardNormal([2]))
    train(model, x, f"sharing-{name}", steps=n, lr=KERNEL_LR)  # all at the same rate
    shared_kl[name], shared_size[name] = divergence(model), sum(p.numel() for p in model.parameters())
say(
    "Eight affine couplings each. "
    + "; ".join(f"{name}: {shared_size[name]:,} numbers, KL {kl:.3f} nats" for name, kl in shared_kl.items())
    + f'. The embedding of "full" {"helps" if shared_kl["full"] < shared_kl["decomposed"] else "does not help"} here.'
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-8", shared_kl["naive"] - shared_kl["decomposed"])
claim("ZOO-9", (shared_kl["naive"] - shared_kl["decomposed"]) / (shared_kl["naive"] - shared_kl["independent"]))
claim("ZOO-10", shared_kl["kernelised"] - shared_kl["independent"])


# %% [markdown]
# **What you saw.** A last layer of its own wins back what sharing loses, or nearly. The learned embedding, which the paper adds and finds useful on speech and images, does not pay on this small problem. Sixteen kernels do about as well as a network of two hidden layers.
#
# ## Family 6: stochastic layers, and weights of paths
#
# A flow trained on an energy, as the planar ones above, has a typical disease. Take the double well $U(x)=\frac14x_1^4-3x_1^2+\frac12x_1+x_2^2$, whose right well holds a small share of the mass. $\mathrm{KL}(q\|p)$ forgives a $q$ that ignores it. **What to look for**: the flow's own diagnostic, the effective sample size, beside the truth from quadrature.

# %%
def well(x):
    return x[..., 0] ** 4 / 4 - 3 * x[..., 0] ** 2 + x[..., 0] / 2 + x[..., 1] ** 2


cells, boltzmann = quadrature(well)
log_z = boltzmann.sum().log().item()
right_well = (boltzmann[cells[:, 0] > 0].sum() / boltzmann.sum()).item()

torch.manual_seed(seed)
noise = runtime.generator(seed)
wide_start = Diagonal(2, scale=0.5).requires_grad_(False)  # samples start twice as wide as the standard normal
couplings = zoo.coupling_flow(2, zoo.AffineMap(), 6, width=32)
alone = zoo.StochasticFlow([wide_start, couplings], zoo.StandardNormal([2]), well).to(device)
fit(
    couplings,
    lambda: -alone.sample([256], noise)[1].mean(),
    num_steps=VI["steps"] // 2,
    lr=5e-3,
    schedule="cosine",
    clip_norm=5.0,
    generator=noise,
    checkpoint=checkpoint("well"),
    progress=False,
)


def judge_paths(model):
    """Samples resampled by weight, estimate of ln Z, effective sample size, share of the right well."""
    with torch.no_grad():
        end, log_w = model.sample([PATHS], noise)
    share = (log_w.softmax(0) * (end[:, 0] > 0)).sum().item()
    kept = torch.multinomial(log_w.softmax(0).cpu(), 2500, replacement=True, generator=runtime.generator(seed))
    return end.cpu()[kept], zoo.log_mean_weight(log_w).item(), zoo.effective_sample_size(log_w).item(), share


of_flow = judge_paths(alone)


# %% [markdown]
# **Stochastic normalizing flows** put random steps between the maps, such as Metropolis steps that walk uphill only sometimes, each aimed at an energy $u_\lambda=(1-\lambda)u_0+\lambda U$ on the way from the start's to the target's. Random steps have no Jacobian. But a *path* $x_0,x_1,\dots,x_T$ has a probability forwards and one backwards, and their ratio is the path's weight
#
# $$\ln w=-U(x_T)-\ln p_Z(x_0)+\sum_t\Delta S_t,$$
#
# where $\Delta S_t$ is the log-determinant for a map. For a step that jumps from $x$ to $x'$ with probability density $k(x\to x')$ it is $\ln\frac{k(x'\to x)}{k(x\to x')}$, and if the step is in detailed balance with $e^{-u_\lambda}$, $e^{-u_\lambda(x)}k(x\to x')=e^{-u_\lambda(x')}k(x'\to x)$, that is $u_\lambda(x')-u_\lambda(x)$. Then $\mathbb E\,w=Z$ holds for *any* layers, good or bad.

# %%
def start_energy(x):
    return x.square().sum(-1) / 8


def walk(num_steps, detour=()):
    ladder = [zoo.Metropolis(zoo.interpolate(start_energy, well, (i + 1) / num_steps), 0.5) for i in range(num_steps)]
    return judge_paths(zoo.StochasticFlow([wide_start, *detour, *ladder], zoo.StandardNormal([2]), well).to(device))


walks = {f"{steps} random steps": walk(steps) for steps in (0, 5, 20, 50)}
# A map that is plainly bad: it moves all points away from both wells, and the steps after it must bring them back.
bad_map = Diagonal(2, scale=0.7).requires_grad_(False)
bad_map.shift.fill_(-0.7)
walks["a bad map, then 50 steps"] = walk(50, [bad_map])
rows = {"coupling flow": of_flow} | walks
say(
    f"Exact: ln Z = {log_z:.3f}, right well {100 * right_well:.1f} %. Without the right well ln Z would be {log_z + math.log(1 - right_well):.3f}.\n\n"
    "| layers | ln Z | effective sample size | right well |\n|---|---|---|---|\n"
    + "\n".join(f"| {k} | {z:.3f} | {100 * ess:.0f} % | {100 * s:.1f} % |" for k, (_, z, ess, s) in rows.items())
)

# %% alt="Samples of the double well: the coupling flow sits in the left well only; samples of paths with random steps, drawn by weight, sit in both."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.4), sharey=True)
heat(axes[0], lambda x: -well(x) - log_z, half=4)
for ax, points in ((axes[1], of_flow[0]), (axes[2], walks["50 random steps"][0])):
    ax.scatter(*points.T, s=1, color=PALETTE[0])
for ax in axes:
    frame(ax, half=4)
label_panels(axes, ["Target", "Coupling flow", "50 random steps"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-11", max(abs(z - log_z) for _, z, _, _ in walks.values()))
claim("ZOO-12", walks["50 random steps"][2] / walks["0 random steps"][2])


# %% [markdown]
# **What you saw.** The coupling flow reports a splendid effective sample size, for one well: importance weights cannot see what is never sampled, and its $\ln Z$ is too small by just the mass of the missing well. The random walk is right at every length, and more steps make its weights more even. The paper trains maps and random steps together, which needs data from both wells, or this disease returns.
#
# ## The base matters: tails
#
# (That light tails stay light was worked out by Jaini, Kobyzev, Yu and Brubaker 2020, [1907.04481](https://arxiv.org/abs/1907.04481), who proposed a Student-t base; the marginal version is Laszkiewicz et al.'s.) Real data (claims, returns, gradients) often have *heavy tails*: $P(|x|>r)\sim r^{-\nu}$ with a finite *tail index* $\nu$. A normal variable has $\nu=\infty$, and a map $g$ from latent to data that grows at most linearly, $|g(z)|\le a+L\|z\|$, keeps it so, because $P(|g(z)|>r)\le P(\|z\|>(r-a)/L)$. Splines, identity outside their box, grow so. Training can stretch the bulk, but no training makes the tails heavy.
# Test: $x_1$ normal, $x_2=\sin x_1+t$, with $t$ of Student's distribution with $\nu=2$. `tail_adaptive_flow` estimates from data which features are heavy, gives those a Student-t base with a learned $\nu$, and keeps heavy features from feeding light ones. Hill's estimator reads the index from the $k$ largest values $r_1\ge\dots\ge r_k$: $1/\hat\nu=\frac1k\sum_{i\le k}\ln(r_i/r_{k+1})$.

# %%
def heavy_data(n, generator):
    z, u = torch.randn(n, 2, generator=generator), torch.rand(n, generator=generator)
    t = (
        z[:, 1] / (-torch.log1p(-u)).clamp_min(1e-8).sqrt()
    )  # -log(uniform) is half a chi-squared variable of two degrees of freedom
    return torch.stack([z[:, 0], z[:, 0].sin() + t], 1).to(device)


tail_source = runtime.generator(seed)
heavy, heavy_test = heavy_data(20_000, tail_source), heavy_data(200_000, tail_source)
# The first argument of `tail_adaptive_flow`: the tail index of each feature, or data from which to estimate it.
bases = {"normal base": [math.inf, math.inf], "tail-adaptive base": heavy}
tails = {}
for name, tail in bases.items():
    torch.manual_seed(seed)
    model = zoo.tail_adaptive_flow(tail, 2, tau=SplineMap(8, 3.0), width=32, generator=tail_source)
    train(model, heavy, name.replace(" ", "-"), steps=TAILS["steps"], batch=512)
    with torch.no_grad():
        drawn, nll = model.sample([200_000], generator=tail_source), -model.log_prob(heavy_test).mean().item()
    tails[name] = (drawn[:, 1].abs().cpu(), zoo.hill_index(drawn, 500)[1].item(), nll, model.base.df.tolist())
true_index = zoo.hill_index(heavy_test, 500)[1].item()

# %% alt="Log-log plot of tail probabilities: data and the tail-adaptive flow fall along a straight line, the normal base drops off a cliff."
fig, ax = plt.subplots(figsize=(5.6, 2.8))
probability = torch.arange(1, 200_001) / 200_000
for name, values, colour in (
    ("data", heavy_test[:, 1].abs().cpu(), "black"),
    ("normal base", tails["normal base"][0], PALETTE[1]),
    ("tail-adaptive base", tails["tail-adaptive base"][0], PALETTE[0]),
):
    ax.loglog(values.sort(descending=True).values, probability, color=colour, label=name)
ax.set(xlabel="r", ylabel="P(|x₂| > r)", xlim=(0.5, 1000))
ax.legend()
plt.show()

# %%
say(
    f"Hill index of 200,000 test points: {true_index:.2f}. "
    + "; ".join(f"{k}: {hill:.2f}, test loss {nll:.2f} nats" for k, (_, hill, nll, _) in tails.items())
    + f". The learned degrees of freedom: {tails['tail-adaptive base'][3][1]:.2f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-13", tails["normal base"][1] / true_index)
claim("ZOO-14", abs(math.log(tails["tail-adaptive base"][1] / true_index)))

# %% [markdown]
# **What you saw.** On a double-logarithmic axis a heavy tail is a straight line, and only the adaptive base follows it. The average loss is a poor judge here: a normal density charges $r^2/2$ for each far point, and with $\nu=2$ the mean of $r^2$ is infinite, so that the normal base's printed loss depends on the largest points of the test sample and would grow with its size.
#
# ## Images, in bits per dimension
#
# scikit-learn's digits have 64 pixels with 17 grey levels. A density model of *integers* can cheat: it can put a narrow spike on each of them, and its likelihood grows without bound. **Dequantisation** spreads each level evenly over its cell: $y=(x+u)/17$, $u\sim U[0,1)$, anew in every step. Then by Jensen's inequality
#
# $$\mathbb E_u\log_2p(y)\le\log_2\!\int p\big(\tfrac{x+u}{17}\big)\,du=\log_2\big(17^{64}P(x)\big),$$
#
# so a density never promises more than the probability $P(x)$ of a proper model of the integers, and $\log_217-\frac1{64}\,\mathbb E\log_2p(y)$ are *bits per dimension*: an upper bound on the length, per pixel, of the code that the model gives the integers. The uniform density needs $\log_217=4.09$.
#
# Pixels live in a box and the base does not, so a *logit* layer, $\ln\frac{y}{1-y}$ after shrinking the box a little, comes first; its log-determinant counts like any other. Then three architectures, all made of parts that you know:
#
# - **Glow**: a chain of *ActNorm* (per-channel scale and shift), invertible 1x1 convolution (one matrix $W=PLU$ for all pixels, $\ln\det=HW\sum\ln|u_{ii}|$), and a coupling of channels with a convolutional network. It is *multi-scale*: each squeeze turns 2x2 pixels into channels, and half of these are then finished, the other half goes on. (The finished half counts in the base density like the rest: to forget it is a classical mistake.)
# - **MixerFlow**: cut the image into patches; one small flow mixes the numbers inside a patch and is shared by all patches, another mixes patches and is shared by all positions inside them.
# - **TarFlow**: an autoregressive flow over patches. A causal Transformer reads the patches before $i$ and gives scale and shift for patch $i$; the order alternates between blocks.

# %%
grey, labels = digits()
order = torch.randperm(len(grey), generator=runtime.generator(seed))
grey = (16 * grey[order]).round().view(-1, 1, 8, 8).to(device)
images, images_test = grey[:1400], grey[1400:]


def bits(flow, integers, repeats=4):
    """Mean bits per dimension, over several draws of the noise."""
    flow.eval()
    with torch.no_grad():
        draws = [zoo.dequantise(integers, 17, runtime.generator(k)) for k in range(repeats)]
        return torch.stack([zoo.bits_per_dim(flow.log_prob(y), 64, 17).mean() for y in draws]).mean().item()


# %%
def train_on_images(make, name, lr=3e-3, batch=IMAGES["batch"]):
    torch.manual_seed(seed)
    flow = zoo.Flow(Chain(zoo.Logit(), make()), zoo.StandardNormal([1, 8, 8])).to(device).train()
    dice = runtime.generator(seed)
    return flow, fit(
        flow,
        lambda x: -flow.log_prob(zoo.dequantise(x, 17, dice)).mean() / 64,
        data=images,
        batch_size=batch,
        num_steps=IMAGES["steps"],
        lr=lr,
        schedule="cosine",
        clip_norm=5.0,
        generator=dice,
        checkpoint=checkpoint(f"images-{name}"),
        progress=size(quick=False, full=True),
    )


def tar(num_blocks, **settings):
    """TarFlow on pixels that ActNorm has standardised, so that blocks need not learn the pixels' scales."""
    settings = dict(width=IMAGES["width"], num_layers=IMAGES["layers"]) | settings
    return Chain(zoo.Reshape(zoo.ActNorm(64), (1, 8, 8)), zoo.tarflow((1, 8, 8), 2, num_blocks, **settings))


models = {
    "Glow": lambda: zoo.glow(1, 8, num_steps=IMAGES["steps_of_flow"], width=IMAGES["width"], tau=zoo.AffineMap()),
    "MixerFlow": lambda: zoo.mixer_flow(1, 8, 2, 3, width=IMAGES["width"]),
    "TarFlow, 1 deep block": lambda: tar(1, num_layers=4 * IMAGES["layers"]),
    "TarFlow, 4 blocks": lambda: tar(4),
    "TarFlow, 4, volume-preserving": lambda: Chain(tar(4, tau=zoo.AdditiveMap()), zoo.Reshape(Diagonal(64), (1, 8, 8))),
}
painters = {}
for name, make in models.items():
    settings = dict(lr=1e-2, batch=IMAGES["batch"] // 2) if name.startswith("TarFlow") else {}
    painters[name] = train_on_images(make, name.replace(" ", "-"), **settings)[0]

# %% [markdown]
# As a baseline, the best Gaussian: mean and full covariance of the same dequantised, logit-transformed pixels, in closed form. A flow that does not beat it has learned nothing beyond correlations.

# %%
logit = zoo.Logit(event_ndim=1)
rows = torch.cat([logit(zoo.dequantise(images, 17, runtime.generator(k)).flatten(1).double())[0] for k in range(10)])
gaussian = torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T))


def bits_of_gaussian(integers):
    z, log_det = logit(zoo.dequantise(integers, 17, runtime.generator(99)).flatten(1).double())
    return zoo.bits_per_dim(gaussian.log_prob(z) + log_det, 64, 17).mean().item()


of_gaussian_train, of_gaussian = bits_of_gaussian(images), bits_of_gaussian(images_test)
of_images = {name: bits(flow, images_test) for name, flow in painters.items()}
say(
    "| model | parameters | bits per dimension, training | test |\n|---|---|---|---|\n"
    f"| Gaussian, full covariance | {64 + 64 * 65 // 2:,} | {of_gaussian_train:.3f} | {of_gaussian:.3f} |\n"
    + "\n".join(
        f"| {name} | {sum(p.numel() for p in flow.parameters()):,} | {bits(flow, images, 1):.3f} | {of_images[name]:.3f} |"
        for name, flow in painters.items()
    )
)

# %%
# NBVAL_CHECK_OUTPUT
claim("ZOO-15", of_gaussian - of_images["Glow"])
claim("ZOO-16", of_images["TarFlow, 1 deep block"] - of_images["TarFlow, 4 blocks"])
claim("ZOO-17", of_images["TarFlow, 4, volume-preserving"] - of_images["TarFlow, 4 blocks"])

# %%
behind = [name for name, value in of_images.items() if value > of_gaussian]
overfit = max(of_images[name] - bits(flow, images, 1) for name, flow in painters.items())
say(
    f"**What you saw.** Behind the Gaussian are still: {', '.join(behind) or 'none'}. Test bits exceed training bits by {overfit:.2f} at most: "
    + ("these flows want more training." if overfit < 0.1 else "with so few images, longer training overfits.")
    + " The claims about TarFlow compare it with itself; the single deep block has as many Transformer layers as the four blocks together."
)

# %% [markdown]
# **What to look for** in the samples: strokes that hold together.

# %% alt="Rows of digits: real ones, and samples of Glow, MixerFlow and TarFlow."
fig, axes = plt.subplots(4, 15, figsize=(7.6, 2.2), width_ratios=[2.2, *[1] * 14])
shown = {"data": images_test[:14]}
for name in ("Glow", "MixerFlow", "TarFlow, 4 blocks"):
    with torch.no_grad():
        shown[name] = painters[name].sample([14], generator=runtime.generator(seed + 1)) * 17 - 0.5
for row, (name, pictures) in zip(axes, shown.items()):
    row[0].text(0, 0.5, name.replace(", ", "\n"), va="center", fontsize=9)
    for ax, picture in zip(row[1:], pictures.cpu()):
        ax.imshow(picture[0], cmap="gray_r", vmin=0, vmax=16)
    for ax in row:
        ax.axis("off")
plt.show()

# %% [markdown]
# ### Conditions
#
# Every conditioner takes a *context*, features that are joined to the passive half; the flow then models $p(x\mid c)$, one density for every $c$. Here $c$ is the digit, one-hot, and $x$ the ten first principal components of an image. Bayes' rule turns the flow into a classifier, and `as_distribution` gives a `torch.distributions.Distribution` with one batch entry per context, which also works inside Pyro.

# %%
centred = grey.flatten(1) - grey[:1400].flatten(1).mean(0)
axes_of_digits = torch.linalg.svd(centred[:1400], full_matrices=False).Vh[:10]
codes = centred @ axes_of_digits.T
codes = codes / codes[:1400].std(0)
one_hot = F.one_hot(labels[order], 10).float().to(device)
torch.manual_seed(seed)
conditional = zoo.Flow(zoo.coupling_flow(10, zoo.AffineMap(), 6, width=64, dim_context=10), zoo.StandardNormal([10]))
train(conditional, codes[:1400], "conditional", steps=IMAGES["steps"], batch=128, context=one_hot[:1400])
distribution = conditional.as_distribution(torch.eye(10, device=device))
with torch.no_grad():
    answers = distribution.log_prob(codes[1400:, None]).argmax(1)
accuracy = (answers == one_hot[1400:].argmax(1)).float().mean().item()
say(
    f"Batch shape {tuple(distribution.batch_shape)}, event shape {tuple(distribution.event_shape)}. The digit whose density is highest "
    f"is the right one for {100 * accuracy:.1f} % of {len(answers)} test images."
)

# %% [markdown]
# ### Which one when
#
# | family | density | sample | log-determinant | mind | take it for |
# |---|---|---|---|---|---|
# | affine coupling | 1 pass | 1 pass | exact | needs many layers | both directions, images |
# | spline coupling | 1 pass | 1 pass | exact | its box: standardise | few layers, tables of data |
# | MAF, TarFlow | 1 pass | $D$ passes, one a patch | exact | slow samples | densities |
# | IAF | $D$ passes | 1 pass | exact | slow density of given points | variational inference |
# | planar, radial | 1 pass in the trained direction | bisection, closed form | exact | little a layer | small posteriors, teaching |
# | residual | a series | fixed point | unbiased estimate | many blocks | networks without structure |
# | continuous | an ODE | an ODE | trace or probe | steps of the solver | smooth fields |
# | stochastic | weights of paths only | 1 pass | none | needs an energy | several wells |
# | tail-adaptive base | as its layers | as its layers | as its layers | estimating the tails | heavy tails |

# %% [markdown]
# ### What it costs
#
# A flow's least cost is that of its networks. `python benchmarks/flows.py` times a training step (log-density and its gradient) and sampling of eight couplings with networks of 128-128 hidden units, beside the networks alone and beside the same architecture in `zuko`, `normflows`, `nflows` and `FrEIA`; all take turns within one run. Its recorded table:

# %%
import json

speed_record = runtime.results_dir() / "benchmarks" / "flows.json"
if not speed_record.exists():
    say("No record here: run `python benchmarks/flows.py`.")
else:
    speed = json.loads(speed_record.read_text())
    columns = list(speed["cells"][0]["milliseconds"])
    lines = [
        f"| | D | batch | {' | '.join(columns)} | ours / bare | fastest other / ours |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for cell in speed["cells"]:
        times = [f"{cell['milliseconds'][c]:.1f}" if c in cell["milliseconds"] else "-" for c in columns]
        ends = f"{cell['ours_to_bare']:.2f} | {cell['fastest_other_to_ours']:.2f}"
        lines.append(
            f"| {cell['task']}, {cell['maps']} | {cell['dim']} | {cell['batch']} | {' | '.join(times)} | {ends} |"
        )
    say(
        f"Milliseconds, medians of {speed['rounds']} rounds, {speed['threads']} thread(s) on {speed['device']}, PyTorch {speed['torch']}.\n\n"
        + "\n".join(lines)
    )

# %% [markdown]
# ## Play
#
# A circle of radius $r$ around the latent's origin holds the share $1-e^{-r^2/2}$ of a standard normal in the plane. Its *pre-image* $f^{-1}$(circle) in the space of data must then hold the same share of data, or the flow is wrong there. Move $r$, change the family. Left: the pre-image of this circle over the data, thick, and of some smaller ones. Right: the share of test points inside, against what it should be.

# %%
radii = math.sqrt(2 * math.log(2)) * torch.linspace(1 / 6, 17 / 6, 17)  # the sixth holds just half
angle = torch.linspace(0, 2 * math.pi, 241)
circles = radii[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
pulled, inside = {}, {}
for name, model in gallery.items():
    with torch.no_grad():
        pulled[name] = model.bijection.inverse(circles.to(device))[0].cpu()
        distance = model.bijection(x_test[:4000])[0].norm(dim=-1).cpu()
    inside[name] = (distance[:, None] < radii).float().mean(0)
cloud = x_test[:1500].cpu()


def show_circles(family, r):
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.4))
    axes[0].scatter(*cloud.T, s=1, color="#999999")
    for i in range(r % 3, r + 1, 3):
        axes[0].plot(*pulled[family][i].T, color=PALETTE[0], lw=2 if i == r else 0.7)
    frame(axes[0], half=3.6)
    share = 1 - torch.exp(-radii.square() / 2)
    axes[1].plot([0, 1], [0, 1], color="#999999", lw=1)
    axes[1].plot(share, inside[family], color=PALETTE[0])
    axes[1].plot(share[r], inside[family][r], "o", color=PALETTE[1], ms=8)
    axes[1].set(xlabel="share of the base inside the circle", ylabel="share of data inside its pre-image")
    axes[1].set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    label_panels(axes, [f"{family}, r = {radii[r]:.1f}", f"{100 * inside[family][r]:.0f} % inside"])
    plt.show()


# %% alt="Left: pre-images of latent circles wind around the two moons. Right: share of data inside against the expected share, close to the diagonal."
play(show_circles, family=choice("family", list(gallery), "RealNVP"), r=slider("radius", value=8, low=0, high=16))

# %% [markdown]
# Without a running kernel: the pre-image of the circle that should hold half of the data, for all eight.

# %% alt="Pre-images of the latent circle that holds half of the mass, for eight families of flows."
fig, axes = plt.subplots(2, 4, figsize=(7.6, 4.2))
for ax, name in zip(axes.flat, gallery):
    ax.scatter(*cloud.T, s=0.5, color="#bbbbbb")
    ax.plot(*pulled[name][5].T, color=PALETTE[0])
    frame(ax)
    ax.set_title(f"{name}: {100 * inside[name][5]:.0f} %", fontsize=9.5)
plt.show()


# %% [markdown]
# **What you saw.** A family can hold half of the data in quite different sets: maximum likelihood judges the density, not the shape. Where the share is far from one half, the fit is bad.
#
# And the spline, to bend by hand: lift its middle, and change the slope there. What happens to the density when the slope goes to zero?

# %%
def bend_spline(height, slope):
    params = torch.zeros(spline.num_params)
    params[6:9] += height  # the first three of six raw heights: all knots between move up
    params[14] = slope
    fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.5))
    draw_spline(params, axes)
    label_panels(axes, ["The map", "Its slope", "What it models"])
    plt.show()


# %% alt="A spline whose middle can be lifted, its slope and the density that it induces."
play(
    bend_spline,
    height=slider("lift", value=0.6, low=-2.0, high=2.0, step=0.1),
    slope=slider("slope", value=-2.0, low=-5.0, high=3.0, step=0.25),
)

# %% [markdown]
# **Change it, break it.** Predict first, then try:
#
# - `zoo.MaskedAutoregressive(2, zoo.AffineMap())` in the gallery, and then with `order=[1, 0]`: one affine layer makes $p(x_1)$ and $p(x_2\mid x_1)$ Gaussian, or the other way round; which order loses less on the moons?
# - `SplineMap(8, 1.0)` in place of `SplineMap(8, 4.0)`: what happens outside the box?
# - `zoo.StudentT([2.0, 2.0])` as the base of the first flow: better or worse on the moons?
#
# ## What goes wrong
#
# ### A mask that leaves someone out
#
# Two couplings in a row with the *same* active half are one coupling: the passive half is never transformed. Nothing crashes, the loss falls, and stops too high. The diagnostic takes one line: which latents still equal their data?

# %%
torch.manual_seed(seed)
stuck = zoo.Flow(Chain(*(zoo.Coupling(2, zoo.AffineMap()) for _ in range(4))), zoo.StandardNormal([2]))
train(stuck, x, "stuck", steps=PLANE["steps"] // 2)
with torch.no_grad():
    moved = (stuck.bijection(x_test)[0] - x_test).abs().mean(0).tolist()
say(
    f"KL {divergence(stuck):.2f} nats after training. Mean movement of the two coordinates: {moved[0]:.2f} and {moved[1]:.2f}. "
    "The first never moved: alternate the halves, or mix features between couplings."
)

# %% [markdown]
# ### Inverses that explode
#
# A flow is invertible on paper; in floating point an error $\varepsilon$ in $z$ becomes up to $\varepsilon/\sigma_{\min}$ in $x$, with $\sigma_{\min}$ the smallest singular value of the Jacobian. Deep stacks of affine couplings with large scales are the classical victims. **What to look for**: how does the round trip's error grow with the size of the weights, in single and in double precision, and does the smallest singular value announce it?

# %% alt="Round-trip error against weight scale on a logarithmic axis: single precision loses all digits, double precision stays nine digits better; the inverse of the smallest singular value rises alike."
scales = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
lost = {torch.float32: [], torch.float64: []}
amplification = []
for scale in scales:
    torch.manual_seed(seed)
    deep = zoo.coupling_flow(8, zoo.AffineMap(), 16, width=32)
    for parameter in deep.parameters():
        nn.init.normal_(parameter, std=scale)
    inputs = torch.randn(200, 8)
    for dtype, errors in lost.items():
        deep.to(dtype)
        with torch.no_grad():
            z = deep(inputs.to(dtype))[0]
            errors.append((deep.inverse(z)[0] - inputs).abs().median().item())
    singular = torch.linalg.svdvals(autodiff.jacobian(lambda x, f=deep: f(x)[0], inputs.double()).detach())
    amplification.append((1 / singular[:, -1]).median().item())
fig, ax = plt.subplots(figsize=(5.6, 2.7))
for errors, colour, name in zip(lost.values(), PALETTE, ("single precision", "double precision")):
    ax.semilogy(scales, errors, "o-", color=colour, label=name)
ax.semilogy(scales, torch.tensor(amplification) * 6e-8, "--", color="black", lw=1.2, label="6e-8 / σ min")
ax.set(xlabel="standard deviation of the weights", ylabel="round-trip error")
ax.legend(fontsize=8.5)
plt.show()

# %% [markdown]
# **What you saw.** The smallest singular value announces the error well until hardly a digit is left. The map is still exactly invertible in theory. Cures: tighter bounds on the scales (`AffineMap(bound=0.5)`), few layers with expressive maps, double precision for evaluation; and test the round trip on *data and samples*, since an inverse can be fine on one and not on the other.
#
# ### Roulette for too high a stake
#
# An unbiased estimate can still be useless. With probability $\frac12$ of ending after each term, term $k$ gets the weight $2^{k-3}$; its square grows like $4^k$, is paid with probability $2^{-k}$, and the term itself shrinks like $L^{2k}$: the variance is finite only if $2L^2<1$. The contraction above has $L=0.9$.

# %% alt="Running means of two roulette estimates: with rate one tenth it settles on the exact value early, with rate one half it stays above it for long."
risky, _ = play_roulette(0.5)
draws = torch.arange(1, ROULETTE + 1)
fig, ax = plt.subplots(figsize=(5.6, 2.6))
ax.plot(draws, roulette.cumsum(0) / draws, color=PALETTE[0], label="ends with probability 0.1")
ax.plot(draws, risky.cumsum(0) / draws, color=PALETTE[1], label="ends with probability 0.5")
ax.axhline(exact_log_det, color="black", ls="--", lw=1.2)
ax.set(
    xlabel="draws",
    ylabel="running mean (nats)",
    xscale="log",
    ylim=(exact_log_det - 0.8, exact_log_det + 0.8),
    xlim=(10, None),
)
ax.legend()
plt.show()

# %%
say(
    f"Largest single estimate in absolute value: {roulette.abs().max():.0f} with probability 0.1, {risky.abs().max():.0f} with 0.5; "
    f"standard deviation of the first 1,000 and of all draws {roulette[:1000].std():.1f} and {roulette.std():.1f}, "
    f"against {risky[:1000].std():.1f} and {risky.std():.1f}."
)

# %% [markdown]
# **What you saw.** With the riskier rate the mean stays on one side for long: what is missing are rare and huge estimates, and a standard error computed without them looks small. A standard deviation that grows with the number of draws is the diagnostic.
#
# ### A norm that lags behind
#
# Power iteration follows the largest singular value from below, one step behind the weights. After one large update the bound that the code believes in and the true one differ, and a "contraction" may not be one. Here one update adds noise to the weights; then the estimate is refreshed by one iteration at a time. The code believes in 0.9 at most, all along.

# %%
torch.manual_seed(seed)
block = zoo.Residual(16, width=64, lipschitz=0.9, num_iterations=1)
before = block.lipschitz_bound()
with torch.no_grad():
    for layer in block.net:
        if isinstance(layer, zoo.LipschitzLinear):
            layer.weight += 0.5 * torch.randn_like(layer.weight)
bounds = [block.lipschitz_bound()]
for refreshes in (1, 5, 30):
    for _ in range(refreshes):
        block(torch.randn(2, 16))
    bounds.append(block.lipschitz_bound())
say(
    f"Product of the true spectral norms: {before:.2f} at first, {bounds[0]:.2f} after the update, "
    f"{bounds[1]:.2f} after one iteration, {bounds[2]:.2f} after six, {bounds[3]:.2f} after 36. Above 1 nothing guarantees an inverse, and between 0.9 and 1 "
    "the error bound of the series is not what it was: check the exact norms before you trust a sample or a likelihood."
)

# %% [markdown]
# ### Forgetting the noise
#
# Model the integers themselves, without dequantisation, and the likelihood has no upper limit. Take one pixel in the middle of the digits and a density that puts a Gaussian of width $\sigma$ on each grey level, with the level's share as its weight. **What to look for**: the reported bits as $\sigma$ shrinks, with and without noise, against the entropy of the grey levels, which no honest code can beat.

# %% alt="Reported bits against the width of the spikes: without noise they fall below zero as the spikes narrow, with noise they stay above the entropy."
from refimpl.data import GaussianMixture

pixel = grey[:, 0, 3, 4].cpu()
share = torch.bincount(pixel.long(), minlength=17) / len(pixel)
entropy = -(share[share > 0] * share[share > 0].log2()).sum().item()
present = share > 0
levels = ((torch.arange(17) + 0.5) / 17)[present, None]
widths = torch.logspace(-4, -0.5, 36)
reported = {"without noise": [], "with noise": []}
for sigma in widths:
    spikes = GaussianMixture(levels, sigma.item(), share[present])
    for name, y in (("without noise", (pixel + 0.5) / 17), ("with noise", zoo.dequantise(pixel, 17, dice))):
        reported[name].append(zoo.bits_per_dim(spikes.log_prob(y[:, None]), 1, 17).mean().item())
fig, ax = plt.subplots(figsize=(5.6, 2.7))
for (name, curve), colour in zip(reported.items(), (PALETTE[1], PALETTE[0])):
    ax.semilogx(widths, curve, color=colour, label=name)
ax.axhline(entropy, color="black", ls="--", lw=1.2, label="entropy of the grey levels")
ax.set(xlabel="width of the spikes, in units of the pixel's range", ylabel="reported bits", ylim=(-5, 9))
ax.legend(fontsize=8.5)
plt.show()

# %%
say(
    f"Entropy {entropy:.2f} bits. Least reported bits with noise: {min(reported['with noise']):.2f}; "
    f"without: {reported['without noise'][0]:.2f} at the narrowest width tried, and falling."
)

# %% [markdown]
# **What you saw.** A code shorter than the entropy, or of negative length, is the signature. The same mistake hides in any continuous model of data that repeat exactly: prices in cents, ages in years, a table with a constant column.
#
# ## At full size
#
# At full size the flows of the plane train for twenty thousand steps on wider networks, the images get larger flows for some thousand steps, and the tails are measured after ten thousand steps. Runs resume where they were interrupted.
#
# `make full CHAPTER=03`, or where Jupyter is not installed `REFIMPL_SIZE=full python chapters/03_flow_zoo.py`
#
# The papers' own tables are for data that do not come with this course, so this record has no column of theirs.

# %%
record_of_full_run = load_record("03_flow_zoo")
if record_of_full_run is None:
    say("No full-size record has been committed yet.")
else:
    where = f"{record_of_full_run['device']}, {record_of_full_run['date']}, {record_of_full_run['seconds']:.0f} s"
    say(f"{where}\n\n{Summary(record_of_full_run).markdown()}")

# %% [markdown]
# ## What holds

# %%
claim.summary()

# %%
print(
    claim.record(
        divergence=kl_of,
        parameters=numbers,
        sharing=shared_kl,
        planar={k: kl for k, (_, kl, _) in posteriors.items()},
        tails={name: hill for name, (_, hill, *_) in tails.items()},
        bits_per_dim=of_images | {"Gaussian": of_gaussian},
        accuracy=accuracy,
    )
)

# %% [markdown]
# ## Exercises and further reading
#
# **Exercises**: [sheet 03](../exercises/03_flow_zoo/03_flow_zoo.ipynb).
#
# **Further reading**
#
# - Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan 2021, [arXiv 1912.02762](https://arxiv.org/abs/1912.02762): the survey to read after this chapter.
# - Kobyzev, Prince, Brubaker 2021, [arXiv 1908.09257](https://arxiv.org/abs/1908.09257): another, with more on theory.
# - Theis, van den Oord, Bethge 2016, [arXiv 1511.01844](https://arxiv.org/abs/1511.01844): what a likelihood does and does not say about samples.
# - Kolesnikov, Susano Pinto, Tschannen 2025, [arXiv 2412.15129](https://arxiv.org/abs/2412.15129): Jet, couplings with Transformers: a family that you can now write in twenty lines.
# - Libraries: `zuko`, `normflows`, `nflows`, `FrEIA`. The tests compare this package with all four; [the benchmark](../benchmarks/flows.py) times them side by side.
