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
# # 02 · Paths between minima: the loss landscape of a network
#
# **Paper.** Felix Draxler, Kambis Veschgini, Manfred Salmhofer, Fred A. Hamprecht: *Essentially No Barriers in Neural Network Energy Landscape*, ICML 2018,
# [arXiv 1803.00885](https://arxiv.org/abs/1803.00885). Beside it: Garipov et al. 2018 ([1802.10026](https://arxiv.org/abs/1802.10026)) on curves, Ainsworth et al. 2023 ([2209.04836](https://arxiv.org/abs/2209.04836)) on permutations.
#
# Train a network twice from different initial weights, and you get two sets of weights that have nothing to do with each other. Walk straight from one to the other, and halfway the network is ruined.
# The two minima look like two valleys with a mountain between them. They are not: there is a path around the mountain on which the loss hardly rises. This chapter finds it.
#
# Why care? If good minima are connected, a bad run is not a run that fell into the wrong valley; networks along a path can be averaged; and pictures of isolated basins, which much intuition about training rests on, are misleading.
#
# **Afterwards you can**
#
# - find a path of low loss between two minima of any `nn.Module`, with a nudged elastic band that grows where it has to (AutoNEB);
# - say why a chain of springs fails at this, and why projecting its forces does not;
# - compare it with a trained Bezier curve and with matching the networks' hidden units, at what cost;
# - map many minima with a spanning tree, and read curvature from Hessian-vector products;
# - notice when a "flat" path is an artefact: hidden barriers, batch-norm statistics, too little data.
#
# **You need first**: PyTorch, gradients and Hessians, and "How a chapter works" in [chapter 00](00_how_this_course_works.ipynb). **Time**: 90 minutes.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# Every size that this chapter uses stands in the second cell below: *quick* runs on a laptop in about a minute, *full* uses the paper's schedule and wants a GPU.

# %%
import itertools
import math
import time

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from refimpl import runtime
from refimpl.claims import Claims, Summary, load_record
from refimpl.data import augment, cifar, digits
from refimpl.landscape import PAPER_SCHEDULE, NetworkLoss, auto_neb, between
from refimpl.nets import Stack, cnn, densenet, mlp, resnet
from refimpl.plots import PALETTE, choice, label_panels, play, say, sequential, slider, use_course_style
from refimpl.training import fit

use_course_style()

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
MLP = size(
    quick=dict(width=32, pairs=5, steps=600, batch=128, schedule=[(80, 0.1)] * 4 + [(80, 0.01)] * 2),
    full=dict(width=32, pairs=5, steps=1500, batch=128, schedule=PAPER_SCHEDULE),
)
CURVE = size(quick=dict(steps=400, points=4), full=dict(steps=10_000, points=4))
WIDTHS = size(quick=dict(widths=[16, 64, 256], steps=300), full=dict(widths=[16, 64, 256, 1024], steps=3000))
TREE = size(
    quick=dict(minima=6, runs=9, schedule=[(40, 0.1)] * 2 + [(40, 0.01)]),
    full=dict(minima=10, runs=45, schedule=[(400, 0.1)] * 3 + [(400, 0.01)]),
)
NETWORKS = size(
    quick={
        "CNN": lambda: cnn(1, 10, channels=[8, 16], image_size=8),
        "ResNet-6": lambda: resnet(6, in_channels=1, width=4, stages=2),
    },
    full={
        "CNN-12": lambda: cnn(3, 10, channels=[12], kernel_size=5, pool="max", hidden=256, image_size=32),
        "ResNet-20": lambda: resnet(20),
        "DenseNet-40-12": lambda: densenet(40),
    },
)
IMAGES = size(
    quick=dict(steps=300, batch=64, judge=500, between=3, chunk=None, schedule=[(45, 0.1)] * 4 + [(45, 0.01)] * 2),
    full=dict(
        steps=20_000,
        batch=128,
        judge=5000,
        between=3,
        chunk=4,
        schedule=[(500, r) for r in (0.1,) * 3 + (0.01, 0.01, 0.001, 0.001)],
    ),
)
XOR_STARTS, HIDDEN = size(quick=(8, 8), full=(20, 32))
print(runtime.describe())

# %% [markdown]
# ## In one picture
#
# Ten networks of one architecture, two hidden layers of 32 ReLU units, learn scikit-learn's handwritten digits from ten random initialisations.
# Write $\theta\in\mathbb R^D$ for all weights of a network in one long vector, and $L(\theta)$ for its mean cross-entropy (in nats) over the training images.
# `Stack` trains all ten at once; `NetworkLoss` turns the network into a function of $\theta$.

# %%
pictures, classes = digits()
order = torch.randperm(len(pictures), generator=runtime.generator(seed))
pictures, classes = pictures[order].to(device), classes[order].to(device)
x, y, x_test, y_test = pictures[:1400], classes[:1400], pictures[1400:], classes[1400:]
WEIGHT_DECAY = 1e-4


def train(make, n, x, y, *, steps, batch, name, transform_with=None, watch=None):
    """n networks from n initialisations, by SGD with momentum; the learning rate falls to a tenth at 1/2 and 3/4 of the steps."""
    stack, source = Stack([make() for _ in range(n)]).to(device), runtime.generator(seed)
    transform = transform_with and transform_with(source)  # augmentation, used at full size only

    def loss(x, y):
        x, y = (x, y) if transform is None else transform(x, y)
        return n * F.cross_entropy(stack(x.expand(n, *x.shape)).flatten(0, 1), y.repeat(n))

    history = fit(
        stack,
        loss,
        data=(x, y),
        batch_size=batch,
        num_steps=steps,
        generator=source,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=WEIGHT_DECAY),
        schedule=lambda step: 0.1 ** ((step >= steps // 2) + (step >= 3 * steps // 4)),
        evaluate=watch and (lambda step, _: {"loss": loss(x, y) / n}),
        evaluate_every=watch,
        checkpoint=checkpoint(name + ".pt"),
        progress=size(quick=False, full=True),
    )
    return stack, history


def checkpoint(name):
    return size(quick=None, full=runtime.scratch_dir() / "02_paths_between_minima" / f"{seed}-{name}")


# %%
torch.manual_seed(seed)


def make_mlp():
    return mlp(64, 10, width=MLP["width"], depth=3)


stack, training = train(make_mlp, 2 * MLP["pairs"], x, y, steps=MLP["steps"], batch=MLP["batch"], name="mlp", watch=10)
loss = NetworkLoss(make_mlp(), F.cross_entropy)
minima = loss.vector(stack)  # (networks, D)
at_minima = loss.evaluate(minima, x, y)["loss"]
say(
    f"$D$ = {loss.dim:,} weights; ten minima with training losses from {at_minima.min():.4f} to {at_minima.max():.4f} nats. "
    f"Guessing would cost ln 10 = {math.log(10):.2f}."
)

# %% [markdown]
# Take the first two. On the straight line $(1-s)\,\theta_A+s\,\theta_B$ the loss is evaluated at 61 points: `between` returns positions and points of a chain, here with 59 points inside its only segment.
# AutoNEB starts from the same line and bends it for a few seconds. It works with a chain of points called *pivots*; the rest of the chapter explains how.

# %%
theta_a, theta_b = minima[0], minima[1]
line_position, line = between(torch.stack([theta_a, theta_b]), 59)
options = dict(data=(x, y), batch_size=256, momentum=0.9, weight_decay=WEIGHT_DECAY)


def find_path(name, loss, a, b, schedule=MLP["schedule"], **changes):
    source = runtime.generator(seed)
    return auto_neb(a, b, loss, schedule=schedule, generator=source, checkpoint=checkpoint(name), **options | changes)


path = find_path("pair-0", loss, theta_a, theta_b)
position, points = between(path.pivots, 9)

# %% [markdown]
# **What to look for.** How high is the mountain on the straight line, on a logarithmic axis, and what is left of it on the path? Right: does the path cost anything on the 397 test images?

# %% alt="Left: training loss along the straight line has a high hump, along the AutoNEB path it is flat. Right: test error, likewise."
fig, axes = plt.subplots(1, 2)
for where, at, colour, name in (
    (line, line_position, PALETTE[1], "straight line"),
    (points, position, PALETTE[0], "AutoNEB"),
):
    axes[0].plot(at.cpu(), loss.evaluate(where, x, y)["loss"].cpu(), color=colour, label=name)
    axes[1].plot(at.cpu(), 100 * loss.evaluate(where, x_test, y_test)["error"].cpu(), color=colour, label=name)
axes[0].set(yscale="log", ylabel="training loss (nats)", xlabel="position on the path")
axes[1].set(ylabel="test error (%)", xlabel="position on the path", ylim=(0, None))
axes[0].legend(loc="upper right")
label_panels(axes, ["Training loss", "Test error"])
plt.show()

# %% [markdown]
# **What you saw.** On the line, the loss rises by more than an order of magnitude. On the path it hardly rises; in places it is lower than at the ends, because the band, too, is trained. Both minima, and everything between them on the path, are networks that do the task.
# The rest of the chapter derives the method, asks how general this is, and what it does and does not mean.
#
# ## The claims
#
# Each has a criterion that was fixed before we measured; where one was revised afterwards, the [ledger](../results/README.md) says how and why. We could read the paper's abstract, its authors' code and a reader's notes, not every table: where a number is missing under "reported", that is why.
# Skim the table; its words are explained where each claim gets its verdict.

# %%
claim = Claims.declared("02_paths_between_minima")
claim

# %% [markdown]
# ## The idea: a rope across the mountains
#
# A *path* is a continuous map $p:[0,1]\to\mathbb R^D$ with $p(0)=\theta_A$ and $p(1)=\theta_B$. Its quality is its highest loss, $\max_s L(p(s))$. The best path has the lowest maximum, and the point where it is reached is a *saddle*: a maximum along the path, a minimum across it. Its value is the *saddle loss*
#
# $$L_{AB}=\min_p\,\max_s\,L(p(s)).$$
#
# A path that follows the steepest descent from its saddle to both sides is called a *minimum energy path*. What an algorithm returns is some path, and its highest loss $\hat L_{AB}\ge L_{AB}$ is an upper bound; "saddle loss of a path" below always means that: the highest loss on the path that was found, its ends included.
#
# The *barrier* is the saddle loss minus the larger of $L(\theta_A),L(\theta_B)$. (Others subtract the mean of the two. A path without barrier in our sense never rises above its worse end.)
# Chemists have the same problem: a reaction goes from one arrangement of atoms to another over the lowest pass. We borrow their method, and start where everything can be drawn: in the plane, on
#
# $$L(x,y)=(y-\sin x)^2+\Big(1-\frac{x^2}{x_0^2}\Big)^2,\qquad x_0=\tfrac52\pi,$$
#
# a valley along a sine, with minima of loss 0 at its two ends, $(\mp x_0,\mp1)$, and the pass at the origin, where the loss is exactly 1.
#
# ### First attempt: an elastic band
#
# Put pivots $p_1,\dots,p_N$ on the line between the ends $p_0,p_{N+1}$, tie neighbours together with springs of stiffness $k$, and go downhill on
#
# $$E=\sum_i L(p_i)+\frac k2\sum_i\|p_{i+1}-p_i\|^2.$$

# %%
from refimpl.landscape import CURVY_VALLEY_MINIMA, curvy_valley, nudged_elastic_band, value_and_gradient

valley_ends = torch.tensor(CURVY_VALLEY_MINIMA, dtype=torch.float64)
# Uneven spacing: with an even start, symmetry would leave the outcome to rounding.
uneven = torch.linspace(0, 1, 16).double()[:, None] ** 1.2
valley_line = torch.lerp(*valley_ends, uneven)


def plain_band(band, k, steps=4000):
    band, lr = band.clone(), 1 / (4 + 4 * k)  # stable: the valley's sides and the springs curve by less than 4 + 4k
    for _ in range(steps):
        _, gradient = value_and_gradient(curvy_valley, band)
        pull = 2 * band[1:-1] - band[2:] - band[:-2]
        band[1:-1] -= lr * (gradient[1:-1] + k * pull)
    return band


stiffness = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
plain = {k: plain_band(valley_line, k) for k in stiffness}
plain_saddle = torch.tensor([curvy_valley(between(band, 9)[1]).max() for band in plain.values()])

# %% [markdown]
# **What to look for.** The dots are pivots, the cross is the pass. Left: where have the pivots gone? Middle: where is the band, compared with the dark bottom of the valley? The right panel is where we want to get, with the method that comes next.

# %% alt="Three contour plots of the curvy valley: weak springs leave a gap at the pass, stiff springs cut the corners, the nudged band follows the valley."
nudged, _ = nudged_elastic_band(valley_line, curvy_valley, num_steps=1500, lr=0.02)
gx, gy = torch.meshgrid(torch.linspace(-9, 9, 181), torch.linspace(-2.2, 2.2, 90), indexing="xy")
height = curvy_valley(torch.stack([gx, gy], -1))
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.4), sharey=True)
for ax, band in zip(axes, (plain[0.01], plain[10.0], nudged)):
    ax.contourf(gx, gy, height.clamp(max=5), levels=18, cmap="cividis")
    ax.plot(*valley_ends.T, "--", color="white", lw=1)
    ax.plot(*band.T, "o-", color=PALETTE[1], ms=4, lw=1.3)
    ax.plot(0, 0, "x", color="white", ms=8, mew=2)
    ax.set(xlabel="x")
    ax.grid(False)
axes[0].set_ylabel("y")
label_panels(axes, ["Weak springs", "Stiff springs", "Nudged"])
plt.show()

# %%
say(
    "Highest loss on the plain band, for springs from weak to stiff: "
    + ", ".join(f"{k:g}: {value:.2f}" for k, value in zip(stiffness, plain_saddle))
    + f". The nudged band, with as many pivots: {curvy_valley(between(nudged, 9)[1]).max():.2f}. The pass is at 1."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-3", (plain_saddle - 1).abs().min().item())


# %% [markdown]
# **What you saw.** Weak springs let the pivots slide down towards the minima, and a few long segments cross everything between (the weakest of these bands are still sliding). Stiff springs pull the band out of the bends of the valley, up its sides: they *cut corners*. No stiffness in between is right (more pivots make the errors smaller, and dearer), because both faults come from forces that act in the wrong *direction*.
#
# ### Second attempt: nudge it
#
# Let $\tau_i$ be the unit tangent of the band at pivot $i$. Split both forces. The loss may push a pivot *across* the band only, the springs may push it *along* the band only:
#
# $$F_i=-\big(\nabla L(p_i)-(\nabla L(p_i)\cdot\tau_i)\,\tau_i\big)+k\big(\|p_{i+1}-p_i\|-\|p_i-p_{i-1}\|\big)\,\tau_i.$$
#
# Now nothing slides, because the loss does not act along the band; and nothing is cut, because the springs do not act across it. At rest, $\nabla L$ has no component across the path: the path follows the gradient, which is the definition of a minimum energy path.
#
# Three details matter:
#
# - **The tangent.** $p_{i+1}-p_{i-1}$ looks natural, and makes kinks where the loss changes much from pivot to pivot. With $t^+=p_{i+1}-p_i$ and $t^-=p_i-p_{i-1}$, Henkelman and Jonsson (2000) point $\tau_i$ *towards the neighbour of higher loss*: along $t^+$ where the loss rises from $i-1$ over $i$ to $i+1$, along $t^-$ where it falls.
#   At a local maximum or minimum of the band they blend: let $M$ and $m$ be the larger and the smaller of $|L_{i+1}-L_i|$ and $|L_{i-1}-L_i|$; then $\tau_i\propto Mt^++mt^-$ if $L_{i+1}>L_{i-1}$, else $mt^++Mt^-$.
# - **Infinitely stiff springs.** Along the band, only the spacing matters. So one may leave the spring term out, and put the pivots back at equal distances along the chain before every step. That is what the authors' configurations do ($k=\infty$), and we with them.
# - **All pivots see the same batch.** Otherwise "higher" is a matter of luck.
#
# ## From scratch
#
# The force across the band, in plain PyTorch. `loss` maps the whole chain, of shape (pivots, $D$), to one value a pivot.

# %%
def across(band, loss):
    """Gradient of the loss at the inner pivots, without its part along the band."""
    points = band.detach().requires_grad_()
    values = loss(points)
    (gradient,) = torch.autograd.grad(values.sum(), points)  # pivots are independent: this holds each one's gradient
    values, t = values.detach(), band.diff(dim=0)
    to_next, to_previous = values[2:] - values[1:-1], values[:-2] - values[1:-1]  # how much higher the neighbours are
    M, m = torch.maximum(to_next.abs(), to_previous.abs()), torch.minimum(to_next.abs(), to_previous.abs())
    m = torch.where(to_next * to_previous < 0, 0.0, m)  # between a lower and a higher neighbour: the higher one alone
    next_is_higher = to_next > to_previous
    forward, backward = torch.where(next_is_higher, M, m), torch.where(next_is_higher, m, M)
    tangent = F.normalize(forward[:, None] * t[1:] + backward[:, None] * t[:-1], dim=1)
    inner = gradient[1:-1]
    return inner - (inner * tangent).sum(1, keepdim=True) * tangent


def spread(band):
    """The pivots at equal distances along their own chain."""
    arc = torch.cat([torch.zeros(1, dtype=band.dtype), band.diff(dim=0).norm(dim=1).cumsum(0)])
    target = arc[-1] * torch.linspace(0, 1, len(band), dtype=band.dtype)
    left = torch.searchsorted(arc, target, right=True).clamp(1, len(band) - 1) - 1
    fraction = (target - arc[left]) / (arc[left + 1] - arc[left]).clamp_min(1e-300)  # pivots may coincide
    return torch.lerp(band[left], band[left + 1], fraction[:, None])


# %% [markdown]
# The whole method is then: spread, step across, repeat. Next to `refimpl`, which adds momentum, weight decay, springs of finite stiffness, batches and checkpoints:

# %%
from refimpl.landscape import band_gradient, tangents

start = torch.lerp(*valley_ends, torch.linspace(0, 1, 15).double()[:, None])
mine = start.clone()
for _ in range(200):
    mine = spread(mine)
    mine[1:-1] -= 0.02 * across(mine, curvy_valley)
theirs, _ = nudged_elastic_band(start, curvy_valley, num_steps=200, lr=0.02)
assert (mine - theirs).abs().max() < 1e-9
values, gradients = value_and_gradient(curvy_valley, mine)
along = (band_gradient(mine, values, gradients) * tangents(mine, values)).sum(1).abs().max()
say(
    f"Largest difference between the loop above and `refimpl` after 200 steps: {(mine - theirs).abs().max():.0e}. "
    f"Component of its force along the band: {along:.0e}."
)

# %% [markdown]
# ### AutoNEB: let the band grow where it must
#
# How many pivots? Each costs a gradient in every step, so as few as possible; but a barrier between two pivots goes unseen. AutoNEB starts with three inner pivots and works in *cycles*:
#
# 1. relax the band, with the learning rate that the schedule has for this cycle;
# 2. evaluate the loss *densely*, at nine points inside every segment. On each segment, take the largest excess of the loss over the straight interpolation between its two pivots, in units of the range of the pivots' losses;
# 3. insert a pivot there on the (at most two) worst segments, if the excess is above a threshold: 0.1 for networks, 0.01 here, where we want the pass to three digits. A new pivot divides its segment's share of the length, and later redistributions keep these shares: pivots stay where they are needed.
#
# The result is the cycle with the lowest dense maximum, which need not be the last.
# One caution in this valley: with three inner pivots, the middle one sits on the pass from the start, by symmetry. For the verdict we therefore also start with four.

# %%
from refimpl.landscape import path_length

growing = auto_neb(*valley_ends, curvy_valley, schedule=[(300, 0.02)] * 6, threshold=0.01)
four = auto_neb(*valley_ends, curvy_valley, schedule=[(300, 0.02)] * 4, num_pivots=4, threshold=0.01)
valley_error = abs(four.saddle - 1)
u = torch.linspace(valley_ends[0, 0], valley_ends[1, 0], 2001, dtype=torch.float64)
sine = torch.trapezoid((1 + u.cos().square()).sqrt(), u)  # length of the valley's bottom line
say(
    "Highest loss on the path after each cycle: "
    + ", ".join(f"{c.saddle:.4f}" for c in growing.cycles)
    + f"; {len(growing.pivots)} points at the end. Started with four inner pivots, it ends at {four.saddle:.4f}. The path is {path_length(growing.pivots) / valley_ends.diff(dim=0).norm():.2f} times as long as the line "
    f"(the sine {sine / valley_ends.diff(dim=0).norm():.2f} times: a chain of segments is a little shorter than a curve)."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-1", valley_error)

# %% [markdown]
# One trap remains. On the egg carton $\cos2\pi x+\cos2\pi y$, the line between two diagonal neighbours runs over a mountain top *exactly*. There, the gradient points along the line and its part across is zero. The band has no reason to move left rather than right, and stays. A bend of five hundredths is reason enough.

# %%
from refimpl.landscape import EGG_CARTON_MINIMA, egg_carton

egg_ends = torch.tensor(EGG_CARTON_MINIMA, dtype=torch.float64)
s = torch.linspace(0, 1, 11).double()[:, None]
straight = torch.lerp(*egg_ends, s)
bent = straight + 0.05 * s * (1 - s) * 4 * torch.tensor([1.0, -1.0]).double()
stuck, freed = (
    auto_neb(*egg_ends, egg_carton, schedule=[(300, 0.005)] * 4, initial=start) for start in (straight, bent)
)
egg_error = abs(freed.saddle)

# %% [markdown]
# **What to look for.** Left: the loss along the path in the curvy valley, cycle after cycle; what does the second cycle see that the first did not? Right: the band that was started straight, and the one that was started with a bend.

# %% alt="Left: loss along the path for each AutoNEB cycle in the valley, falling to a smooth hump of height one. Right: egg carton with a straight stuck band and a band going round."
fig, axes = plt.subplots(1, 2, width_ratios=[1.5, 1])
for number, (cycle, colour) in enumerate(zip(growing.cycles, sequential(len(growing.cycles))), start=1):
    axes[0].plot(cycle.positions, cycle.values, color=colour, lw=1.4, label=f"cycle {number}")
    axes[0].plot(cycle.positions[::10], cycle.values[::10], "o", color=colour, ms=3.5)
axes[0].axhline(1, color="#999999", ls="--", lw=0.8)
axes[0].set(xlabel="position on the path", ylabel="loss", ylim=(0, 3.7))
axes[0].legend(fontsize=8, ncols=3, loc="upper center")
gx, gy = torch.meshgrid(torch.linspace(-1, 1, 121), torch.linspace(-1, 1, 121), indexing="xy")
axes[1].contourf(gx, gy, egg_carton(torch.stack([gx, gy], -1)), levels=14, cmap="cividis")
axes[1].plot(*stuck.pivots.T, "o--", color="white", ms=3, label="started straight")
axes[1].plot(*freed.pivots.T, "o-", color=PALETTE[1], ms=4, label="started bent")
axes[1].set(xlabel="x", ylabel="y", aspect="equal")
axes[1].legend(fontsize=8, loc="upper right", facecolor="white", frameon=True)
axes[1].grid(False)
label_panels(axes, ["Cycles in the curvy valley", "Egg carton"])
plt.show()

# %%
say(
    f"Highest loss from the straight start: {stuck.saddle:.3f}; from the bent one: {egg_error:.1e} (the passes are at 0)."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-2", egg_error)

# %% [markdown]
# **What you saw.** The first cycle's pivots (dots) sit low, and the chain between them runs over the valley's sides: only the dense evaluation sees it. New pivots repair it, though not in every cycle: compare the third and the fourth number above the figure.
# On the egg carton, the bent start went round the mountain by way of the third minimum in the corner. In networks, the noise of the batches plays the part of the bend.
#
# ## Networks
#
# ### Many networks in one pass
#
# A band of $n$ pivots asks for $n$ gradients a step, of the same architecture on the same batch. `NetworkLoss` stacks the weights along a new first dimension, and `torch.func.vmap` turns $n$ small products into one batched product.
# First, that this computes what a loop over copies of the module computes, and what it saves.

# %%
small = NetworkLoss(cnn(1, 10, channels=[8, 16], image_size=8).to(device), F.cross_entropy)
pivots = 0.1 * torch.randn(21, small.dim, generator=runtime.generator(seed)).to(device)
xb, yb = x[:32].view(-1, 1, 8, 8), y[:32]
module = small.network(pivots[0]).train()


def one_by_one(pivots):
    gradients = []
    for pivot in pivots:
        nn.utils.vector_to_parameters(pivot, module.parameters())
        value = F.cross_entropy(module(xb), yb)
        gradients.append(nn.utils.parameters_to_vector(torch.autograd.grad(value, list(module.parameters()))))
    return torch.stack(gradients)


def seconds(run):
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


expected = one_by_one(pivots)
difference = (value_and_gradient(small, pivots, xb, yb)[1] - expected).abs().max() / expected.abs().max()
both = [
    [seconds(lambda: one_by_one(pivots)), seconds(lambda: value_and_gradient(small, pivots, xb, yb))] for _ in range(9)
]
loop_time, stacked_time = torch.tensor(both).median(0).values.tolist()
assert difference < (1e-5 if device.type == "cpu" else 1e-2)  # GPUs round convolutions to fewer digits
say(
    f"Gradients of 21 pivots of a small convolutional network on a batch of 32: largest relative difference {difference:.0e}; the loop takes {loop_time / stacked_time:.1f} times as long "
    "as the stack. The gain is large where networks and batches are small, and ends where one network keeps the processor busy; `benchmarks/elastic_band.py` has the table."
)

# %% [markdown]
# ### Five pairs of minima
#
# Now the same as in the first picture for all five pairs of networks.

# %%
paths = [path]
for pair in range(1, MLP["pairs"]):
    paths.append(find_path(f"pair-{pair}", loss, minima[2 * pair], minima[2 * pair + 1]))
ends = minima.view(MLP["pairs"], 2, -1)
lines = [between(pair, 59)[1] for pair in ends]


# %%
def highest(points):
    """Highest training loss (nats) and test error (percent) among the points."""
    on_train, on_test = loss.evaluate(points, x, y), loss.evaluate(points, x_test, y_test)
    return on_train["loss"].max().item(), 100 * on_test["error"].max().item()


def over_pairs(tracks):
    return torch.tensor([highest(track) for track in tracks]).T  # (loss and error, pairs)


worse_end, worse_error = over_pairs(ends)
on_line, on_line_error = over_pairs(lines)
on_path, on_path_error = over_pairs([between(p.pivots, 9)[1] for p in paths])
cycles = torch.tensor([[c.saddle for c in p.cycles] for p in paths])  # (pairs, cycles)
error_rise = on_path_error - worse_error
never = find_path("pair-0-fixed", loss, theta_a, theta_b, threshold=1e9)

# %% [markdown]
# **What to look for.** Left: one line a pair, the saddle loss divided by the worse end's; which value does it tend to, and how fast? Right: the band of the first pair tightening.

# %% alt="Left: saddle loss against cycle for five pairs, falling to the worse end's loss. Right: loss along the first pair's path for each cycle."
fig, axes = plt.subplots(1, 2)
for pair, colour in enumerate(PALETTE[: MLP["pairs"]]):
    ratio = torch.cat([on_line[pair : pair + 1], cycles[pair]]) / worse_end[pair]
    axes[0].plot(range(len(ratio)), ratio, "o-", ms=4, lw=1.2, color=colour)
axes[0].axhline(1, color="#999999", ls="--", lw=0.8)
axes[0].set(yscale="log", xlabel="cycle (0: straight line)", ylabel="highest loss / worse end's loss")
for number, (cycle, colour) in enumerate(zip(path.cycles, sequential(len(path.cycles))), start=1):
    axes[1].plot(cycle.positions.cpu(), cycle.values.cpu(), color=colour, lw=1.3, label=f"{number}")
    axes[1].plot(cycle.positions[::10].cpu(), cycle.values[::10].cpu(), "o", color=colour, ms=3)
axes[1].set(
    yscale="log",
    xlabel="position on the path",
    ylabel="training loss (nats)",
    ylim=(0.3 * at_minima.min().item(), 5 * path.cycles[0].saddle),
)
axes[1].legend(title="cycle", fontsize=8, ncols=3, loc="upper right")
label_panels(axes, ["Saddle by cycle", "The first pair's band"])
plt.show()

# %%
for pair in range(MLP["pairs"]):
    say(
        f"Pair {pair + 1}: worse end {worse_end[pair]:.4f}, straight line {on_line[pair]:.3f}, AutoNEB {on_path[pair]:.4f}; "
        f"test error: worse end {worse_error[pair]:.1f} %, line {on_line_error[pair]:.1f} %, AutoNEB {on_path_error[pair]:.1f} %; "
        f"path {path_length(paths[pair].pivots) / (ends[pair, 1] - ends[pair, 0]).norm():.2f} times as long as the line."
    )
gone = int((on_path <= 1.25 * worse_end + 0.01).sum())
say(f"The saddle is at most 1.25 times the worse end plus 0.01 nats for {gone} of {MLP['pairs']} pairs.")
say(
    "What does inserting contribute? The first pair with the same cycles, but no pivot ever inserted: "
    + ", ".join(f"{c.saddle:.4f}" for c in never.cycles)
    + "; with insertion: "
    + ", ".join(f"{c.saddle:.4f}" for c in path.cycles)
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-4", on_line / worse_end)
claim("NB-5", (on_path - worse_end) / (on_line - worse_end))
claim("NB-6", error_rise)
claim("NB-7", cycles[:, -1] / cycles[:, 0])

# %% [markdown]
# **What you saw.** "Essentially no barrier" is no figure of speech: at this size the highest point of the path *is* the worse end, or hardly above it, and the path is only a little longer than the line. The test error stays as well.
# Most of the descent from cycle to cycle is the relaxation and the falling learning rate; the last bit needs the inserted pivots.
#
# The paper also compares the saddles with the loss *during* training, which falls below them only after the learning rate has dropped: the heights that paths cross are reached early, and the rest of training happens below.

# %%
training_loss = torch.tensor(training.evaluations["loss"])
training_steps = torch.tensor(training.evaluation_steps)
drop = MLP["steps"] // 2
before_drop = training_loss[(training_steps > drop - 100) & (training_steps <= drop)].mean()
saddle_mean = on_path.mean().item()
first_below = training_steps[(training_loss < saddle_mean).nonzero()[0, 0]]
say(
    f"Mean saddle loss of the five pairs: {saddle_mean:.4f}. Mean training loss in the last hundred steps before the first drop (step {drop}): {before_drop:.4f}; "
    f"it is first below the saddles at step {first_below}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-8", first_below.item() / drop)

# %% [markdown]
# Mind how little this says here: our saddles *are* the worse ends, so training is compared with its own last value. The comparison has content where saddles lie well above the minima, as in the paper's deep networks.
#
# ### Narrow networks: no barrier here either
#
# In the paper (Fig. 5), plain convolutional networks that are shallow and narrow keep a barrier on CIFAR-10, which shrinks with width and faster with depth. Is it there on the digits, if we make the network bad enough? One hidden layer of 3 or 10 units:

# %%
torch.manual_seed(seed)
narrow = {}
for width in (3, 10):

    def make_narrow(width=width):
        return mlp(64, 10, width=width, depth=2)

    pair, _ = train(make_narrow, 2, x, y, steps=MLP["steps"], batch=MLP["batch"], name=f"narrow-{width}")
    narrow_loss = NetworkLoss(make_narrow(), F.cross_entropy)
    a, b = narrow_loss.vector(pair)
    found = find_path(f"narrow-path-{width}", narrow_loss, a, b, MLP["schedule"][::2])
    tracks = torch.stack([a, b]), between(torch.stack([a, b]), 59)[1], between(found.pivots, 9)[1]
    narrow[width] = [narrow_loss.evaluate(track, x, y)["loss"].max().item() for track in tracks]
say(
    "; ".join(
        f"{w} units: worse end {e:.3f}, straight line {t:.2f}, AutoNEB {p:.3f}" for w, (e, t, p) in narrow.items()
    )
    + "."
)

# %% [markdown]
# The networks are worse, the straight line is as bad as ever, and yet there is next to no barrier on the path at either width. So the paper's trend cannot be seen here: the digits are too easy to leave a barrier. It is not among the claims above for that reason.
#
# ### One bend is enough
#
# Garipov et al. need no band. They train a single bend $\theta$ of a quadratic Bezier curve,
#
# $$\varphi(t)=(1-t)^2\,\theta_A+2t(1-t)\,\theta+t^2\,\theta_B,$$
#
# by drawing a random $t$ in each step and following the gradient of $L(\varphi(t))$; the chain rule brings in a factor $2t(1-t)$, and nothing else changes from ordinary training.
# The average loss over $t$ is what this minimises, not the maximum.

# %%
from refimpl.landscape import BezierCurve, PolygonalChain, fit_curve


def fitted(curve, name):
    fit_curve(
        curve.to(device),
        loss,
        num_steps=CURVE["steps"],
        points_per_step=CURVE["points"],
        lr=0.3,  # larger than in training, since the factor 2t(1 - t) shortens the gradient
        weight_decay=WEIGHT_DECAY,
        data=(x, y),
        batch_size=256,
        generator=runtime.generator(seed),
        checkpoint=checkpoint(f"{name}.pt"),
    )
    return curve


curves = [fitted(BezierCurve(*pair), f"curve-{number}") for number, pair in enumerate(ends)]
corner = fitted(PolygonalChain(*ends[0]), "corner")
with torch.no_grad():
    bezier_points = [curve(torch.linspace(0, 1, 61).to(device)) for curve in curves]
    on_corner, _ = highest(corner(torch.linspace(0, 1, 61).to(device)))
on_bezier, on_bezier_error = over_pairs(bezier_points)
say(
    f"First pair: highest training loss {on_bezier[0]:.4f} nats on the Bezier curve, {on_corner:.4f} on two straight segments with one trained corner, trained alike (`PolygonalChain`)."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-9", on_bezier / on_line)

# %% [markdown]
# **What you saw.** A criterion against the straight line, which the curve meets with room to spare. Whether it is *flat* is another question; the comparison below has the numbers beside the worse ends.

# %% [markdown]
# ### Are they different networks at all?
#
# Swap two hidden units of a layer, together with their incoming and outgoing weights: other weights, same function. A layer of 32 units has $32!\approx10^{35}$ such copies, and training picks one at random. Perhaps the mountain is there only because we compare copies whose units are numbered differently.
#
# *Weight matching* (Git Re-Basin) looks for the permutation of one network's units that brings its weights closest to the other's, that is, with the largest inner product $\langle\theta_A,\pi(\theta_B)\rangle$. One layer at a time, this is a linear assignment problem, which has an exact solution; go through the layers until nothing changes.
# First on a network whose answer we know: one of ours with its units shuffled.

# %%
from refimpl.landscape import chain_permutations, matching_objective, permute, weight_matching

spec = chain_permutations(make_mlp())
state_a = loss.state(minima[0])
planted = {
    group: torch.randperm(MLP["width"], generator=runtime.generator(seed + i)).to(device)
    for i, group in enumerate({axis for axes in spec.values() for axis in axes if axis is not None})
}
shuffled = permute(state_a, spec, planted)
found = weight_matching(spec, state_a, shuffled, generator=runtime.generator(seed))
recovered = loss.vector(permute(shuffled, spec, found))
same_function = (loss.outputs(torch.stack([minima[0], loss.vector(shuffled)]), x).diff(dim=0)).abs().max()
assert torch.equal(recovered, minima[0]) and same_function < 1e-3
say(
    f"Shuffling changes the outputs by {same_function:.0e}; matching puts every one of the {2 * MLP['width']} units back in its place."
)


# %% [markdown]
# Now on the five pairs. The order in which layers are visited matters a little, so we take the best of three tries. The permuted network is the same function; only the straight line to it is another.

# %%
def match(loss, spec, a, b, tries=3):
    """b with its hidden units in the order that fits a best."""
    state_a, state_b = loss.state(a), loss.state(b)
    found = [weight_matching(spec, state_a, state_b, generator=runtime.generator(i)) for i in range(tries)]
    states = [permute(state_b, spec, permutation) for permutation in found]
    return loss.vector(max(states, key=lambda state: matching_objective(spec, state_a, state)))


matched = [torch.stack([a, match(loss, spec, a, b)]) for a, b in ends]
matched_lines = [between(pair, 59)[1] for pair in matched]
on_matched, on_matched_error = over_pairs(matched_lines)

# %% [markdown]
# **What to look for.** Each dot is a pair. How do the three remedies compare in loss, and in test error? What each costs is said below the figure.

# %% alt="Highest training loss and test error for five pairs: worse end, straight line, matched line, Bezier curve, AutoNEB."
fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.0))
rows = [
    ("worse end", worse_end, worse_error),
    ("straight line", on_line, on_line_error),
    ("matched line", on_matched, on_matched_error),
    ("Bezier curve", on_bezier, on_bezier_error),
    ("AutoNEB", on_path, on_path_error),
]
for i, (_, losses, errors) in enumerate(rows):
    for ax, values in zip(axes, (losses, errors)):
        ax.plot(values, [i] * len(values), "o", color=[PALETTE[k] for k in (6, 1, 2, 3, 0)][i], alpha=0.7)
for ax in axes:
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
axes[0].set(yticklabels=[name for name, *_ in rows], xscale="log", xlabel="highest training loss (nats)")
axes[1].set(yticklabels=[], xlabel="highest test error (%)", xlim=(0, None))
label_panels(axes, ["Training loss", "Test error"])
plt.show()

# %%
cost = sum(c.num_gradients for c in path.cycles)
say(
    f"Means over the pairs: straight line {on_line.mean():.3f}, matched line {on_matched.mean():.3f}, Bezier {on_bezier.mean():.4f}, AutoNEB {on_path.mean():.4f}, worse end {worse_end.mean():.4f} nats. "
    f"AutoNEB took {cost:,} gradients (on batches of 256) for the first pair, the Bezier curve {CURVE['steps'] * CURVE['points']:,}, matching none; training its two ends {2 * MLP['steps']:,} (on batches of {MLP['batch']}). "
    f"Test error at most: line {on_line_error.max():.1f} %, matched {on_matched_error.max():.1f} %, Bezier {on_bezier_error.max():.1f} %, AutoNEB {on_path_error.max():.1f} %."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-10", (on_matched / on_line).mean().item())


# %% [markdown]
# **What you saw.** Numbering explains most of the mountain, but not all of it in networks this narrow; the Bezier curve, for less than half of the gradients, stays within a factor of a few of the worse end; the band reaches it. The remedies answer different questions: matching says how much of the barrier is *bookkeeping*; a curve or a band shows that a path exists even between the copies as they are.
#
# ### The picture to remember
#
# Three points span a plane: the two minima and one more. With the bend of the Bezier curve as the third, that curve lies in the plane entirely. With the middle pivot of the band, the rest of the band is only near it: we draw its projection.

# %%
def plane(a, b, c):
    """Orthogonal axes through a: u towards b, v towards c, both as long as b - a."""
    u = b - a
    v = (c - a) - ((c - a) @ u) / (u @ u) * u
    return u, v / v.norm() * u.norm()


def project(points, a, u, v):
    return torch.stack([(points - a) @ u, (points - a) @ v], -1).cpu() / (u @ u).cpu()


maps = []
band = paths[0].pivots
for third, track in ((curves[0].bends[0].detach(), bezier_points[0]), (band[len(band) // 2], band)):
    u, v = plane(theta_a, theta_b, third)
    gx, gy = torch.meshgrid(torch.linspace(-0.35, 1.35, 35), torch.linspace(-0.45, 0.85, 27), indexing="xy")
    grid_points = theta_a + gx.reshape(-1, 1).to(device) * u + gy.reshape(-1, 1).to(device) * v
    heights = loss.evaluate(grid_points, x[:500], y[:500])["loss"].view(gx.shape).cpu()
    maps.append((heights, project(track, theta_a, u, v)))

# %% [markdown]
# **What to look for.** The colour is the loss, on a logarithmic scale; the axes are in units of the distance between the minima. Where does the straight line (dashed) run, and where the curve?

# %% alt="Two maps of the loss in planes through two minima: the straight line crosses a ridge, the Bezier curve and the elastic band go round it."
fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.3), sharey=True)
for ax, (heights, track), name in zip(axes, maps, ("Bezier curve", "elastic band")):
    picture = ax.contourf(
        gx, gy, heights.clamp(5e-3, 5).log10(), levels=torch.linspace(-2.31, 0.7, 16).tolist(), cmap="cividis"
    )
    ax.plot([0, 1], [0, 0], "--", color="white", lw=1.5, label="straight line")
    marker = dict(marker="o", ms=4) if name == "elastic band" else {}
    ax.plot(*track.T, color=PALETTE[1], lw=2, label=name, **marker)
    ax.plot([0, 1], [0, 0], "o", color="white", ms=6, mec="black")
    ax.set(xlabel="along the line", aspect="equal")
    ax.legend(loc="upper right", fontsize=8, labelcolor="white", frameon=True, facecolor="#333333")
    ax.grid(False)
axes[0].set_ylabel("towards the third point")
fig.colorbar(picture, ax=axes, shrink=0.75, label="loss (nats)", ticks=[-2, -1, 0]).ax.set_yticklabels(
    ["0.01", "0.1", "1"]
)
label_panels(axes, ["Plane of the Bezier curve", "Plane of the band's middle pivot"])
plt.show()


# %% [markdown]
# **What you saw.** Left: not two valleys but one, curved like a banana around a ridge, and the curve stays in it. The straight line crosses the ridge. Right: the pivots other than the middle one lie outside this plane, so the colour under them is not their loss; the saddles that the plane shows between the dark spots are ones that the band avoids by leaving the plane.
#
# ### Wider networks need less
#
# Ainsworth et al. find that what matching leaves of the barrier falls with the width of the layers. One hidden layer, three widths, two pairs each. As they do, we measure the barrier here from the *mean* of the two ends' losses.

# %%
def hump(loss, a, b):
    """Barrier of the straight line above the mean loss of its ends."""
    along_line = loss.evaluate(between(torch.stack([a, b]), 19)[1], x, y)["loss"]
    return (along_line.max() - along_line[[0, -1]].mean()).item()


torch.manual_seed(seed)
leftover, unmatched = {}, {}
for width in WIDTHS["widths"]:

    def make_wide(width=width):
        return mlp(64, 10, width=width, depth=2)

    wide, _ = train(make_wide, 4, x, y, steps=WIDTHS["steps"], batch=128, name=f"width-{width}")
    wide_loss, wide_spec = NetworkLoss(make_wide(), F.cross_entropy), chain_permutations(make_wide())
    vectors = wide_loss.vector(wide)
    pairs = vectors.view(2, 2, -1)
    unmatched[width] = sum(hump(wide_loss, a, b) for a, b in pairs) / 2
    leftover[width] = sum(hump(wide_loss, a, match(wide_loss, wide_spec, a, b)) for a, b in pairs) / 2
widths = WIDTHS["widths"]
say(
    "Barrier on the straight line, before and after matching: "
    + "; ".join(f"width {w}: {unmatched[w]:.3f} and {leftover[w]:.3f}" for w in widths)
    + " nats; matching leaves "
    + ", ".join(f"{leftover[w] / unmatched[w]:.0%}" for w in widths)
    + " of it."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-11", leftover[widths[-1]] / leftover[widths[0]])


# %% [markdown]
# **What you saw.** The claim holds, but look at the percentages: matching takes away much the same share at each width. What falls with the width is the barrier as a whole, before matching already.
#
# ## Batch normalisation
#
# Convolutional networks come with batch norm, and batch norm comes with *buffers*: running means and variances, which training updates on the side and evaluation uses. They are no weights, yet they must fit the weights.
# What are they at a point of the path where no training ever was? Two answers:
#
# - **interpolate** them like the weights. The authors' code does this: its coordinates include the statistics;
# - **estimate them anew** at every point, from one pass over training images. Garipov et al. do this.
#
# The mean of a layer's inputs is *not* linear in the weights, so interpolated statistics belong to no point of the line. `NetworkLoss` leaves buffers out of $\theta$; for gradients it normalises with the batch at hand, as training does.

# %%
def small_images():
    """Digits as images of one channel; no augmentation."""
    return x.view(-1, 1, 8, 8), y, x_test.view(-1, 1, 8, 8), y_test, None, "scikit-learn digits, 8 x 8"


def cifar_images():
    """CIFAR-10 with the paper's augmentation; enlarged digits, which must not be mirrored, if the archive is not there."""
    try:
        parts = [part.to(device) for part in cifar(10)]
        name = "CIFAR-10"
    except FileNotFoundError as missing:
        print(missing)
        big = [(F.interpolate(t.view(-1, 1, 8, 8), size=32) * 255).byte().expand(-1, 3, -1, -1) for t in (x, x_test)]
        parts = [big[0].contiguous(), y, big[1].contiguous(), y_test]
        name = "scikit-learn digits enlarged to 32 x 32, CIFAR-10 was not there"
    flip = name == "CIFAR-10"

    def transform_with(source):
        return lambda xb, yb: ((augment(xb, source) if flip else xb).float() / 255, yb)

    return *parts, transform_with, name


xi, yi, xi_test, yi_test, transform_with, data_name = size(quick=small_images, full=cifar_images)()
xj, yj = xi[: IMAGES["judge"]], yi[: IMAGES["judge"]]  # images on which paths are judged, without augmentation
xj, xi_test = (t.float() / 255 if t.dtype == torch.uint8 else t for t in (xj, xi_test))
print(data_name)


# %%
def judged(loss, points, x=xj, y=yj):
    """Loss and error at every point, with batch-norm statistics estimated anew there."""
    fresh = loss.batch_norm_statistics(points, xj, batch_size=1400)
    return loss.evaluate(points, x, y, fresh, batch_size=1400)


def on_the_line(loss, stack):
    """Positions, loss with interpolated statistics, and with new ones, between the two networks of a stack."""
    t, points = between(loss.vector(stack), 20)
    stored = {name: value for name, value in stack.state().items() if "running" in name}
    mixed = {name: torch.lerp(v[0], v[1], t.view(-1, *[1] * (v.ndim - 1))) for name, v in stored.items()}
    interpolated = loss.evaluate(points, xj, yj, mixed, batch_size=1400)["loss"]
    return t.cpu(), interpolated.cpu(), judged(loss, points)["loss"].cpu()


# %% [markdown]
# For each network: train two, evaluate the line both ways, and find the path.

# %%
def study(name, make):
    torch.manual_seed(seed)
    sizes = dict(steps=IMAGES["steps"], batch=IMAGES["batch"])
    stack, _ = train(make, 2, xi, yi, name=f"{name}-{len(xi)}", transform_with=transform_with, **sizes)
    source = runtime.generator(seed)  # of batches and augmentation alike, so that a run that resumes repeats both
    loss = NetworkLoss(make().to(device), F.cross_entropy, chunk_size=IMAGES["chunk"])
    path = auto_neb(
        *loss.vector(stack),
        loss,
        schedule=IMAGES["schedule"],
        num_between=IMAGES["between"],
        evaluate=lambda points: judged(loss, points)["loss"],
        transform=transform_with and transform_with(source),
        generator=source,
        checkpoint=checkpoint(f"{name}-{len(xi)}"),
        **options | dict(data=(xi, yi), batch_size=IMAGES["batch"]),
    )
    s, points = between(path.pivots, IMAGES["between"])
    result = dict(zip(("t", "interpolated", "renewed"), on_the_line(loss, stack)))
    on_test = judged(loss, points, xi_test, yi_test)["error"].cpu()
    return result | dict(s=s.cpu(), path=path.best.values.cpu(), path_error=on_test, cycles=path.cycles, dim=loss.dim)


studies = {name: study(name, make) for name, make in NETWORKS.items()}

# %% [markdown]
# **What to look for.** How much of the hump on the straight line is the statistics' fault? And is there a path without barrier for these networks, too?

# %% alt="Loss along the straight line with interpolated and with renewed batch-norm statistics, and along the AutoNEB path, for two networks."
fig, axes = plt.subplots(1, len(studies), sharey=True)
for ax, result in zip(axes, studies.values()):
    ax.plot(result["t"], result["interpolated"], "--", color=PALETTE[1], label="line, statistics interpolated")
    ax.plot(result["t"], result["renewed"], color=PALETTE[1], label="line, estimated anew")
    ax.plot(result["s"], result["path"], color=PALETTE[0], label="AutoNEB")
    ax.set(yscale="log", xlabel="position on the path")
axes[0].set_ylabel("training loss (nats)")
axes[0].set_ylim(1e-4, 12)
axes[0].legend(fontsize=8, loc="lower center")
label_panels(axes, [f"{name}, {result['dim']:,} weights" for name, result in studies.items()])
plt.show()

# %%
barriers = {}
for name, result in studies.items():
    worse = result["renewed"][[0, -1]].max()
    barriers[name] = ((result["path"].max() - worse) / (result["renewed"].max() - worse)).item()
overstated = {name: (result["interpolated"].max() / result["renewed"].max()).item() for name, result in studies.items()}
for name, result in studies.items():
    say(
        f"{name}: ends {result['path'][0]:.4f} and {result['path'][-1]:.4f}; line {result['interpolated'].max():.2f} with interpolated and {result['renewed'].max():.2f} with new statistics; "
        f"saddle by cycle {', '.join(f'{c.saddle:.3f}' for c in result['cycles'])}; test error at the ends {100 * result['path_error'][0]:.1f} and {100 * result['path_error'][-1]:.1f} %, at most {100 * result['path_error'].max():.1f} % on the path."
    )

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-12", list(barriers.values()))
claim("NB-13", sum(overstated.values()) / len(overstated))

# %% [markdown]
# **What you saw.** The path exists here as well; its saddle may lie a little above the worse end, and far below the line. On the straight line the statistics matter, most of all on the flanks of the hump, where interpolated ones raise the loss several times over; the claim compares the maxima, because a barrier is a maximum. Whoever reports a barrier of a network with batch norm should say which statistics were used.
#
# ## Many minima: a map
#
# A path from $A$ to $B$ and one from $B$ to $C$ make a path from $A$ to $C$, so for saddle losses
#
# $$L_{AC}\le\max(L_{AB},L_{BC}).$$
#
# and the same holds for the lowest saddles *known*, once paths may be joined. Take minima as nodes and known saddles as weights of edges. The best known path between *any* two nodes then runs along a *minimum spanning tree*: $N-1$ good edges are all one needs. The paper explores in that order: connect everything with the best minimum first; then remove the tree's worst edge, and try to bridge the gap elsewhere.
# We give each pair only a short run of three cycles, so that the edges differ.

# %%
from refimpl.landscape import explore, merge_tree, saddle_matrix, spanning_tree


def connect(i, j):
    return find_path(f"tree-{i}-{j}", loss, minima[i], minima[j], TREE["schedule"], num_between=5).saddle


losses = at_minima[: TREE["minima"]].tolist()
star = explore(losses, connect, max_runs=TREE["minima"] - 1)
star_mean = sum(w for *_, w in spanning_tree(star).edges(data="saddle")) / (TREE["minima"] - 1)
graph = explore(losses, connect, max_runs=TREE["runs"] - (TREE["minima"] - 1), graph=star)
tree = spanning_tree(graph)
weights = [w for *_, w in tree.edges(data="saddle")]
minimax = saddle_matrix(graph)
excess = max(minimax[i, j].item() - w for i, j, w in graph.edges(data="saddle"))
say(
    f"{graph.number_of_edges()} runs between {TREE['minima']} minima. Mean edge of the tree after the star: {star_mean:.4f}, after the further runs: {sum(weights) / len(weights):.4f}. "
    f"Losses of the minima themselves: {min(losses):.4f} to {max(losses):.4f}."
)

# %% [markdown]
# **What to look for.** Left: the tree; imagine water rising in the landscape; each bracket joins two groups of minima at the level where their lakes meet (mind that the axis does not start at zero). Right: the best known saddle between every two minima; how many different numbers are there?

# %% alt="Left: merge tree of the minima with saddle losses. Right: matrix of the best known saddle losses."
from scipy.cluster.hierarchy import dendrogram

fig, axes = plt.subplots(1, 2, width_ratios=[1.2, 1])
dendrogram(merge_tree(graph), ax=axes[0], color_threshold=0, above_threshold_color=PALETTE[0])
axes[0].set(ylim=(0.9 * min(weights), 1.05 * max(weights)), ylabel="saddle loss (nats)", xlabel="minimum")
axes[0].grid(axis="x", visible=False)
shown = minimax.clone().fill_diagonal_(math.nan)
picture = axes[1].imshow(shown, cmap="cividis")
for i, j in itertools.permutations(range(TREE["minima"]), 2):
    bright = shown[i, j] > (min(weights) + max(weights)) / 2
    axes[1].text(
        j, i, f"{1000 * shown[i, j]:.1f}", ha="center", va="center", fontsize=7, color="black" if bright else "white"
    )
axes[1].set(xlabel="minimum", ylabel="minimum")
axes[1].grid(False)
label_panels(axes, ["Merge tree", "Best known saddle (0.001 nats)"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-14", excess)

# %% [markdown]
# The last claim is true by construction; it can fail only if our tree is wrong, and that is what it checks.
#
# **What you saw.** At most $N-1$ different saddles fill the whole matrix; of any three numbers $L_{AB},L_{BC},L_{AC}$ the two largest are equal, which is what "ultrametric" means. The gain from going round is small here: all our paths are about equally good. With a spread of saddles it would be larger; the exploration order is what carries over.
#
# ## Why is there a path?
#
# ### Redundancy: a spare unit
#
# The paper's smallest example is XOR: inputs $\pm1$ in two coordinates, class 1 if the signs differ. Two hidden tanh units can do it. Let $\theta_B$ be $\theta_A$ with the units swapped: the same function. The penalty $\frac\lambda2\|\theta\|^2$ with $\lambda=10^{-3}$ keeps weights finite.

# %%
corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]).double()
truth = torch.tensor([0.0, 1, 1, 0]).double()[:, None]


def xor_loss(hidden):
    net = NetworkLoss(mlp(2, 1, width=hidden, depth=2, activation=nn.Tanh).double(), F.binary_cross_entropy_with_logits)
    return net, lambda p: net(p, corners, truth) + 0.5e-3 * p.square().sum(1)


def minimise(loss, start, steps=300):
    p = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([p], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        value = loss(p[None])[0]
        value.backward()
        return value

    optimizer.step(closure)
    return p.detach()


net2, loss2 = xor_loss(2)
source = runtime.generator(seed)
tries = [minimise(loss2, torch.randn(net2.dim, generator=source).double()) for _ in range(8)]
solution = min(tries, key=lambda p: loss2(p[None]).item())  # some starts end in a worse minimum
parts = net2.state(solution)
units = chain_permutations(mlp(2, 1, width=2, depth=2, activation=nn.Tanh))
swapped = net2.vector(permute(parts, units, {"0": torch.tensor([1, 0])}))

# %% [markdown]
# Is there a path from one to the other along which the *function* stays the same? With two units, no: for tanh networks without superfluous units, Sussmann (1992) proved that the only weights with the same function are permutations and flips of sign of the units, finitely many isolated points. Anything between them is another function, and with weights this constrained, a worse one.
# Add a third, unused unit, and the theorem no longer applies: there is a detour. It has seven moves, each a straight line:
#
# 1. the spare unit takes the incoming weights of unit 1 (its outgoing weight is 0, so nothing changes);
# 2. the outgoing weight moves from unit 1 to the spare unit (both compute the same, so nothing changes);
# 3. unit 1, now unused, takes the incoming weights of unit 2;
# 4. it takes over unit 2's outgoing weight;
# 5. unit 2 takes the incoming weights of the spare unit;
# 6. it takes over the spare unit's outgoing weight;
# 7. the spare unit lets go of its incoming weights.
#
# The state of a network is a dict of weights; a move changes one entry of it. The chain of states is a path, densely evaluated like any other.

# %%
net3, loss3 = xor_loss(3)


def with_spare(parts):
    pad = {"0.weight": (0, 0, 0, 1), "0.bias": (0, 1), "2.weight": (0, 1)}
    return {name: F.pad(value, pad[name]) if name in pad else value for name, value in parts.items()}


def take_inputs(state, unit, of):
    """Unit gets the incoming weights of another (None: lets go of its own)."""
    state = {name: value.clone() for name, value in state.items()}
    for name in ("0.weight", "0.bias"):
        state[name][unit] = 0 if of is None else state[name][of]
    return state


def take_output(state, unit, of):
    """The outgoing weight moves from one unit to another."""
    state = {name: value.clone() for name, value in state.items()}
    state["2.weight"][0, unit], state["2.weight"][0, of] = state["2.weight"][0, of].clone(), 0.0
    return state


moves = [(take_inputs, 2, 0), (take_output, 2, 0), (take_inputs, 0, 1), (take_output, 0, 1)]
moves += [(take_inputs, 1, 2), (take_output, 1, 2), (take_inputs, 2, None)]
detour = [with_spare(parts)]
for move, unit, of in moves:  # units count from 0 here
    detour.append(move(detour[-1], unit, of))
detour = net3.vector({name: torch.stack([state[name] for state in detour]) for name in detour[0]})
detour_position, detour_points = between(detour, 20)
data_loss = net3(detour_points, corners, truth)
assert (
    torch.equal(detour[-1], net3.vector(with_spare(net2.state(swapped))))
    and (data_loss - data_loss[0]).abs().max() < 1e-9
)


# %% [markdown]
# Can AutoNEB find such a detour by itself? We start it from randomly bent lines, with two hidden units and with three.

# %%
def xor_path(loss, a, b, number):
    t = torch.linspace(0, 1, 9).double()[:, None]
    direction = F.normalize(torch.randn(len(a), generator=runtime.generator(100 * seed + number)).double(), dim=0)
    start = torch.lerp(a, b, t) + 2 * t * (1 - t) * (b - a).norm() * direction
    start[0], start[-1] = a, b
    return auto_neb(a, b, loss, schedule=[(200, 0.1)] * 2, initial=start, momentum=0.9, threshold=0.05)


two_units = [xor_path(loss2, solution, swapped, i) for i in range(XOR_STARTS)]
three_units = [xor_path(loss3, detour[0], detour[-1], i) for i in range(XOR_STARTS)]
lowest_two, lowest_three = (min(p.saddle for p in group) for group in (two_units, three_units))
detour_high = loss3(detour_points).max().item()
say(
    f"Both ends: {loss2(solution[None]).item():.4f}. Saddles with two units: {', '.join(f'{p.saddle:.3f}' for p in two_units)}. "
    f"With a spare unit: {', '.join(f'{p.saddle:.3f}' for p in three_units)}; the detour by hand: {detour_high:.4f}, while the loss on the data stays constant to {(data_loss - data_loss[0]).abs().max():.0e}."
)

# %% [markdown]
# **What to look for.** Which curves stay at the bottom, along the green band, and how many of the blue ones?

# %% alt="Loss along paths between two XOR networks: two units always cross a barrier, three units can avoid it."
fig, ax = plt.subplots(figsize=(7.6, 2.9))
for group, colour, name in (
    (two_units, PALETTE[1], "AutoNEB, two units"),
    (three_units, PALETTE[0], "AutoNEB, three units"),
):
    for i, found in enumerate(group):
        ax.plot(
            found.best.positions, found.best.values, color=colour, lw=1.3, alpha=0.8, label=name if i == 0 else None
        )
ax.plot(
    detour_position,
    loss3(detour_points),
    color=PALETTE[2],
    lw=5,
    alpha=0.5,
    zorder=0,
    label="detour by hand, three units",
)
ax.set(xlabel="position on the path", ylabel="loss with penalty (nats)", ylim=(0, 0.75))
ax.legend(loc="upper right", fontsize=8.5)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-15", lowest_two - lowest_three)
claim("NB-16", detour_high)

# %% [markdown]
# **What you saw.** One spare unit is enough for a path with next to no barrier, and AutoNEB finds one in some of its runs, not in all: a band finds *a* path, not the best one. So the orange curves are no proof that two units cannot do it, only that no run did. The paper's explanation is that large networks have spare units in plenty (and, its second reason, *resilience*: many weights can make up for a change in one).
#
# ### Flat directions
#
# Differentiate the loss twice along a path $p(s)$: with the Hessian $H=\nabla^2L$,
#
# $$\frac{d^2}{ds^2}L(p(s))=\dot p^\top H\,\dot p+\nabla L\cdot\ddot p.$$
#
# At a minimum the gradient vanishes; if the loss is constant along the path, so does the left side, and $\dot p^\top H\,\dot p=0$: the Hessian has a flat direction there. Some directions are flat for reasons that we know. In a network with one hidden layer of $h$ ReLU units:
#
# - adding a constant to all logits changes nothing: $h+1$ directions, one for each input of the last layer and one for its bias;
# - a change of a unit's incoming weights that does not change its input on any image on which it is active does nothing. The weights of pixels that are always black are of this kind; in general there are $65-\mathrm{rank}$ such directions a unit, for the matrix of those images with a column of ones for the bias.
#
# Scaling a unit's incoming weights by $c$ and its outgoing ones by $1/c$ changes nothing either, but that path is curved. Where the gradient is not zero, the second term of the equation counts: we train with the penalty $\frac\lambda2\|\theta\|^2$, so that at its minimum $\nabla L=-\lambda\theta$ for the loss $L$ of the data alone, and the scaling directions have curvature exactly $\lambda$.
#
# In a network small enough for its whole Hessian, we count eigenvalues of the data's loss. It is trained with L-BFGS, with $\lambda=10^{-3}$.

# %%
from torch.func import vmap

from refimpl.autodiff import hessian_vector_product
from refimpl.landscape import hessian_eigenvalues, rayleigh_quotient

few_x, few_y = x[:500].double().cpu(), y[:500].cpu()
tiny = NetworkLoss(mlp(64, 10, width=HIDDEN, depth=2).double(), F.cross_entropy)
torch.manual_seed(seed)
start = tiny.vector(mlp(64, 10, width=HIDDEN, depth=2).double())
bottom = minimise(lambda p: tiny(p, few_x, few_y) + 0.5e-3 * p.square().sum(1), start, steps=500)


def data_loss_at(p):
    return tiny(p[None], few_x, few_y)[0]


hessian = vmap(lambda v: hessian_vector_product(data_loss_at, bottom, v), chunk_size=128)(torch.eye(tiny.dim).double())
spectrum = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
slope = torch.func.grad(data_loss_at)(bottom)
say(
    f"Gradient of the data's loss where L-BFGS stops: length {slope.norm():.0e}; with the penalty: {(slope + 1e-3 * bottom).norm():.0e}."
)

# %% [markdown]
# Now count: eigenvalues that are zero to rounding, against the directions that we can name.

# %%
weights_in, biases_in, weights_out, _ = tiny.state(bottom).values()
with_ones = torch.cat([few_x, torch.ones(len(few_x), 1).double()], 1)
active = few_x @ weights_in.T + biases_in > 0  # (images, units)
blind = sum(65 - torch.linalg.matrix_rank(with_ones[active[:, j]], tol=1e-9).item() for j in range(HIDDEN))
explained = HIDDEN + 1 + blind
flat = int((spectrum.abs() < 1e-6 * spectrum[-1]).sum())
exact = int((spectrum.abs() < 1e-13 * spectrum[-1]).sum())
scaling = {"0.weight": weights_in, "0.bias": biases_in, "2.weight": -weights_out, "2.bias": torch.zeros(10).double()}
scaled = rayleigh_quotient(data_loss_at, bottom, tiny.vector(scaling)).item()
top, _ = hessian_eigenvalues(data_loss_at, bottom, num=3, tolerance=1e-6, generator=runtime.generator(seed))
assert torch.allclose(top, spectrum[-3:].flip(0), rtol=1e-4)
say(
    f"{tiny.dim} eigenvalues from {spectrum[0]:.1e} to {spectrum[-1]:.2f}. Zero to rounding: {exact}; explained: {explained} ({HIDDEN + 1} shifts of the logits, {blind} changes of incoming weights that no image sees). "
    f"Below $10^{{-6}}$ of the largest: {flat}. Curvature along the direction that scales all units: {scaled:.6f}, with λ = 0.001. "
    f"The three largest by Lanczos iterations, which find extreme eigenvalues from products $Hv$ alone and never form $H$: {', '.join(f'{v:.3f}' for v in top)}."
)

# %% [markdown]
# The path itself must leave along such a direction. For the ten ends of our five paths we measure the curvature $\tau^\top H\tau$ along the first segment $\tau$ of the path, along the straight line to the other minimum, and along a random direction, all relative to the largest eigenvalue (Lanczos: $D$ is too large for the whole matrix).

# %%
ratios = {"path": [], "straight line": [], "random": []}
for pair, found in enumerate(paths):
    for end, towards, other in ((0, found.pivots[1], minima[2 * pair + 1]), (1, found.pivots[-2], minima[2 * pair])):
        here = ends[pair, end]

        def at(p):
            return loss(p[None], x, y)[0]

        largest = hessian_eigenvalues(at, here, tolerance=1e-2, generator=runtime.generator(seed))[0]
        noise = torch.randn(loss.dim, generator=runtime.generator(seed + pair)).to(here)
        for name, direction in (("path", towards - here), ("straight line", other - here), ("random", noise)):
            ratios[name].append((rayleigh_quotient(at, here, direction) / largest).item())
curvature = {name: sum(map(abs, values)) / len(values) for name, values in ratios.items()}

# %% [markdown]
# **What to look for.** Left: the part of the spectrum on the floor. Right: ten dots a row; is the path's direction flatter than any direction, and than the line's?

# %% alt="Left: magnitudes of Hessian eigenvalues, sorted, with a floor of tiny ones. Right: curvature along the path, the straight line and random directions relative to the largest eigenvalue."
fig, axes = plt.subplots(1, 2)
magnitude = (spectrum.abs() / spectrum[-1]).sort(descending=True).values.clamp_min(1e-12)
axes[0].semilogy(range(1, len(magnitude) + 1), magnitude, color=PALETTE[0])
axes[0].axhline(1e-6, color="#999999", ls="--", lw=0.8)
axes[0].axvline(tiny.dim - explained, color=PALETTE[1], lw=1, label=f"explained: the last {explained}")
axes[0].set(xlabel="eigenvalue, by size", ylabel="size relative to the largest")
axes[0].legend(fontsize=8.5)
for i, values in enumerate(ratios.values()):
    axes[1].plot(torch.tensor(values).abs(), [i] * len(values), "o", color=PALETTE[i], alpha=0.6)
axes[1].set(
    xscale="log", yticks=range(3), yticklabels=list(ratios), ylim=(2.5, -0.5), xlabel="curvature / largest eigenvalue"
)
label_panels(axes, ["Spectrum of a small network", "Directions at the ten minima"])
plt.show()

# %%
say(
    "Mean size of the curvature relative to the largest eigenvalue: "
    + ", ".join(f"{name} {value:.1e}" for name, value in curvature.items())
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-17", flat - explained)
claim("NB-18", curvature["path"] / curvature["random"])

# %% [markdown]
# **What you saw.** Left: the spectrum falls off a cliff, and behind it are the directions that we can explain, flat to rounding. Before the cliff comes a long slope of eigenvalues that are tiny without being zero. So "vanishing, beyond known invariances" depends on what you call vanishing: many directions are flat for every practical purpose, and we can name those that are flat exactly.
# Right: the path leaves along directions much flatter than random ones or the line's. But mind the axis: next to the largest eigenvalue *every* direction that was not chosen for it is flat in thousands of dimensions, because the few large eigenvalues are far above the average one.
#
# ## Play
#
# Walk from one network to the other, along four kinds of paths. Left: loss and test error, and where you are. Right: the first eight test digits that the network *at this position* gets wrong, with its answer. Which of them come and go on the way, and which stay wrong from end to end?

# %%
tracks = {
    "straight line": lines[0],
    "matched line": matched_lines[0],
    "Bezier curve": bezier_points[0],
    **{f"AutoNEB, cycle {i}": between(c.pivots, 9)[1] for i, c in enumerate(path.cycles, start=1)},
}
scenes = {}
for name, track in tracks.items():
    at = torch.linspace(0, len(track) - 1, 41).round().long().to(device)
    wrong = loss.evaluate(track, x_test, y_test)["error"].cpu(), loss.outputs(track[at], x_test).argmax(-1).cpu()
    scenes[name] = (torch.linspace(0, 1, len(track)), loss.evaluate(track, x, y)["loss"].cpu(), *wrong, at.cpu())
test_pictures, test_classes = x_test.cpu().view(-1, 8, 8), y_test.cpu()


def show(track, position):
    s, on_train, error, answers, at = scenes[track]
    here = at[position]
    fig = plt.figure(figsize=(7.6, 3.0))
    spec = fig.add_gridspec(2, 6, width_ratios=[6, 1.1, 1, 1, 1, 1])
    ax = fig.add_subplot(spec[:, 0])
    ax.plot(s, on_train, color=PALETTE[0], label="training loss (nats)")
    ax.plot(s, error, color=PALETTE[1], label="test error (fraction)")
    ax.plot([s[here]] * 2, [on_train[here], error[here]], "o", color="black", ms=6)
    ax.set(yscale="log", ylim=(3e-3, 2), ylabel="loss, error", xlabel="position (equal steps within each segment)")
    ax.set_title(
        f"{track}: loss {on_train[here]:.3f}, {(answers[position] != test_classes).sum()} of 397 wrong", fontsize=9.5
    )
    ax.legend(fontsize=8, loc="upper right")
    missed = (answers[position] != test_classes).nonzero()[:8, 0]
    for k, i in enumerate(missed):
        ax = fig.add_subplot(spec[k // 4, 2 + k % 4])
        ax.imshow(test_pictures[i], cmap="gray_r", vmin=0, vmax=1)
        ax.set_title(f"{test_classes[i]}, not {answers[position][i]}", fontsize=8, fontweight="normal")
        ax.axis("off")
    plt.show()


# %% alt="Left: loss and test error along a path with a marker. Right: eight test digits that the network at this position misclassifies."
play(
    show,
    track=choice("path", list(scenes), f"AutoNEB, cycle {len(path.cycles)}"),
    position=slider("position", value=20, low=0, high=40),
)

# %% [markdown]
# Without a running kernel, as in the book: the number of wrong answers along four of the paths, and how many test digits get the same answer as from network $A$, or as from $B$ (the straight line runs out of the frame).

# %% alt="Left: wrong test answers along four paths. Right: share of test digits with the same answer as from network A and from network B."
fig, axes = plt.subplots(1, 2)
for name, colour in zip(
    ("straight line", "matched line", "Bezier curve", f"AutoNEB, cycle {len(path.cycles)}"),
    (PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[0]),
):
    s, _, _, answers, at = scenes[name]
    axes[0].plot(torch.linspace(0, 1, 41), (answers != test_classes).sum(1), color=colour, label=name)
    for end, style in ((0, "-"), (-1, "--")):
        same = 100 * (answers == answers[end]).float().mean(1)
        axes[1].plot(torch.linspace(0, 1, 41), same, style, color=colour, lw=1.3)
axes[0].set(xlabel="position on the path", ylabel="wrong, of 397", ylim=(0, None))
axes[0].legend(fontsize=8)
axes[1].set(xlabel="position on the path", ylabel="same answer (%)", ylim=(90, 100.5))
label_panels(axes, ["Wrong answers", "Agreement with A (solid), B (dashed)"])
plt.show()

# %% [markdown]
# **What you saw.** On the path the function changes as well, slowly: agreement with $A$ falls while agreement with $B$ rises. A path of constant loss is not a path of constant function, which is what Garipov's fast ensembles live on: they average predictions along a path.
#
# **Change it, break it.** Predict first, then try:
#
# - `schedule=[(80, 0.1)]` in the first call of `find_path`: one cycle, three inner pivots. What does the first picture look like then?
# - `spring=1.0` in the same call: does the saddle change?
# - `MLP` width 4: what happens to the straight line, and to the path?
# - `weight_decay=0` in `options` while the minima keep theirs: which way does the path's loss go, and why?
#
# ## What goes wrong
#
# ### A barrier between the pivots
#
# A band with a single inner pivot, for each pair. Judged at its pivots, it looks much better than it is.

# %%
bands = []
for pair in ends:
    chain = torch.stack([pair[0], pair.mean(0), pair[1]])
    for lr in (0.1, 0.01):
        chain, _ = nudged_elastic_band(chain, loss, num_steps=80, lr=lr, generator=runtime.generator(seed), **options)
    where, dense = between(chain, 9)
    bands.append((where.cpu(), loss.evaluate(dense, x, y)["loss"].cpu()))
hidden = [(on_chain.max() / on_chain[::10].max()).item() for _, on_chain in bands]
first = [(p.cycles[0].values.max() / p.cycles[0].values[::10].max()).item() for p in paths]

# %% [markdown]
# **What to look for.** The dots are all that the band itself knows.

# %% alt="Loss along five bands with one inner pivot: humps between the pivots that are higher than the pivots."
fig, ax = plt.subplots(figsize=(7.6, 2.5))
for (where, on_chain), colour in zip(bands, PALETTE):
    ax.plot(where, on_chain, color=colour, lw=1.3)
    ax.plot(where[::10], on_chain[::10], "o", color=colour)
ax.set(xlabel="position on the path", ylabel="training loss (nats)", ylim=(0, None))
plt.show()

# %%
say(
    "Highest loss anywhere over the highest at the pivots, one inner pivot: "
    + ", ".join(f"{h:.1f}" for h in hidden)
    + "; with the three of AutoNEB's first cycle: "
    + ", ".join(f"{h:.1f}" for h in first)
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("NB-19", sum(hidden) / len(hidden))

# %% [markdown]
# **What you saw.** One pivot finds low ground, and the segments to it climb over something. Report dense maxima, always; and if you read a paper's "no barrier", look for how many points it was evaluated at.
#
# ### Flat in the loss that it saw, and nowhere else
#
# The same five pairs, but the band is relaxed on the first 40 training images only.

# %%
few = (x[:40], y[:40])
rows = []
for pair, (a, b) in enumerate(ends):
    schedule = [(80, 0.1)] * 2 + [(80, 0.01)]
    found = find_path(f"few-{pair}", loss, a, b, schedule, data=few, batch_size=40)
    track = between(found.pivots, 9)[1]
    on_few = loss.evaluate(track, *few)["loss"]
    rows.append((on_few[[0, -1]].max().item(), on_few.max().item(), *highest(track)))
few_end, seen, everywhere, wrong = torch.tensor(rows).T
say(
    f"On the 40 images that the band saw, the path is at most {(seen - few_end).max():.4f} nats above its worse end. On all training images: {everywhere.min():.2f} to {everywhere.max():.2f} nats "
    f"(straight lines: {on_line.min():.2f} to {on_line.max():.2f}). Test error at most {wrong.min():.0f} to {wrong.max():.0f} %, against {worse_error.max():.1f} % at the ends."
)

# %% [markdown]
# The band does what it is told: it finds a path that is flat for 40 images, and runs over the mountain of the other 1360. Nothing in its own numbers betrays it. A path, like a network, must be judged on data that it was not fitted to; the cure is to relax it on all the data that the minima were trained on.
#
# ### What a path does not prove
#
# AutoNEB *searches* for a path, and spends more gradients on it than training spent on both ends. That it finds one says that low loss is connected, not that training would ever walk there, nor that a random path would do. And a band can miss: a path with a barrier proves nothing (see XOR).
#
# ## At full size
#
# At full size the digits' networks get the paper's schedule (14 cycles, 16,000 steps), ten minima are mapped with all 45 pairs, and the batch-norm part runs a plain CNN, ResNet-20 and DenseNet-40-12 on CIFAR-10 with a reduced schedule. Expect hours rather than minutes on one data-centre GPU (it has not been timed yet); training, bands and curves resume where they were interrupted:
#
# `make full CHAPTER=02`, or where Jupyter is not installed `REFIMPL_SIZE=full python chapters/02_paths_between_minima.py`
#
# CIFAR-10 is not part of the course. Put `cifar-10-binary.tar.gz` where the chapter's message says, or fetch it with `python -c "from refimpl.data import cifar; cifar(download=True)"`; without it the chapter takes digits enlarged to 32 x 32 instead, and the record says so.
#
# The numbers to compare with, for CIFAR-10 and ResNet-20, as means over the edges of a spanning tree over ten minima: minima 0.0162 ± 0.0009, saddles 0.0324 ± 0.0033 nats. They stand in the notebook of the authors' later code, on augmented images and with interpolated statistics; ours are without augmentation and with statistics estimated anew.
# The paper says that the test error rises by at most 0.5 percentage points.

# %%
record_of_full_run = load_record("02_paths_between_minima")
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
        data=data_name,
        straight_line=on_line.tolist(),
        saddle=on_path.tolist(),
        worse_end=worse_end.tolist(),
        test_error_rise=error_rise.tolist(),
        bezier=on_bezier.tolist(),
        matched=on_matched.tolist(),
        tree_mean=sum(weights) / len(weights),
        image_saddles={name: result["path"].max().item() for name, result in studies.items()},
        image_ends={name: result["path"][[0, -1]].tolist() for name, result in studies.items()},
        image_lines={name: result["renewed"].max().item() for name, result in studies.items()},
    )
)

# %% [markdown]
# ## Exercises and further reading
#
# **Exercises**: [sheet 02](../exercises/02_paths_between_minima/02_paths_between_minima.ipynb). You write the nudged force and the redistribution, measure how springs fail, find the bug in a tangent, and lead XOR's units past each other.
#
# **Further reading**
#
# - Draxler, Veschgini, Salmhofer, Hamprecht 2018, [arXiv 1803.00885](https://arxiv.org/abs/1803.00885): this chapter's paper; code: `fdraxler/PyTorch-AutoNEB`.
# - Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, [arXiv 1802.10026](https://arxiv.org/abs/1802.10026): found at the same time; curves, and ensembles along them.
# - Henkelman and Jonsson 2000, *J. Chem. Phys.* 113, 9978: the tangent, from chemistry. E, Ren, Vanden-Eijnden 2002, *Phys. Rev. B* 66, 052301: the string method, springs of infinite stiffness.
# - Ainsworth, Hayase, Srinivasa 2023, [arXiv 2209.04836](https://arxiv.org/abs/2209.04836): Git Re-Basin. Entezari et al. 2022, [arXiv 2110.06296](https://arxiv.org/abs/2110.06296): the conjecture behind it. Jordan et al. 2023, [arXiv 2211.08403](https://arxiv.org/abs/2211.08403): why batch statistics must be repaired.
# - Frankle, Dziugaite, Roy, Carbin 2020, [arXiv 1912.05671](https://arxiv.org/abs/1912.05671): when two runs from *one* early checkpoint are joined by a straight line.
