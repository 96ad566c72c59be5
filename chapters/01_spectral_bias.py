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
# # 01 · Spectral bias: what a network learns first
#
# **Paper.** Nasim Rahaman, Aristide Baratin, Devansh Arpit, Felix Draxler, Min Lin, Fred A. Hamprecht, Yoshua Bengio,
# Aaron Courville: *On the Spectral Bias of Neural Networks*, ICML 2019, [arXiv 1806.08734](https://arxiv.org/abs/1806.08734).
#
# A network with a quarter of a million weights can pass through a few hundred points in endlessly many ways, most of them wild.
# Gradient descent finds a tame one, and it gets there from the smooth side: slow waves first, fast waves late or never.
# This chapter measures that preference, derives where it comes from, and shows ways around it.
#
# **Afterwards you can**
#
# - measure which frequencies a network has learned at any moment of its training;
# - compute the exact Fourier transform of a ReLU network, and read its decay off the geometry of its linear regions;
# - keep apart what a network *can represent*, what *most parameters* represent, and what *training reaches first*;
# - predict learning speed frequency by frequency from the tangent kernel;
# - choose Fourier features or a sine network when you need the high frequencies.
#
# **You need first**: PyTorch, the discrete Fourier transform, the divergence theorem (for two short derivations), and "How a chapter works" in
# [chapter 00](00_how_this_course_works.ipynb). **Time**: 90 minutes.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# Every size that this chapter uses stands in the next cell: *quick* runs on a laptop in about a minute, *full* is the paper's size and wants a GPU.
# Throughout, `depth` counts linear layers, one more than there are hidden layers.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from refimpl import polytopes, runtime
from refimpl import spectral_bias as sb
from refimpl.claims import Claims, Summary, load_record
from refimpl.data import digits, flower, grid, radial_noise, sum_of_sines
from refimpl.nets import FourierFeatures, Stack, mlp, siren
from refimpl.plots import PALETTE, choice, label_panels, play, say, sequential, slider, use_course_style
from refimpl.training import fit

use_course_style()

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
SINES = size(
    quick=dict(points=128, frequencies=[2, 4, 6, 8, 10], runs=2, width=128, depth=5, lr=5e-4, steps=2500),
    full=dict(points=200, frequencies=list(range(5, 51, 5)), runs=10, width=256, depth=6, lr=3e-4, steps=60_000),
)
DIGITS = size(
    quick=dict(splits=3, width=96, depth=4, lr=5e-4, steps=400, kernel_steps=500),
    full=dict(splits=10, width=256, depth=6, lr=1e-4, steps=5000, kernel_steps=5000),
)
CURVE = size(
    quick=dict(points=300, frequencies=[10, 20, 30, 40, 50], runs=2, width=96, depth=4, lr=1e-3, steps=700),
    full=dict(points=1000, frequencies=list(range(20, 201, 20)), runs=5, width=256, depth=6, lr=3e-4, steps=10_000),
)
DELTA = size(quick=dict(points=100, runs=3, lr=1e-3, steps=1000), full=dict(points=200, runs=10, lr=3e-4, steps=60_000))
KERNEL_WIDTH, REMEDY_STEPS = size(quick=(1024, 500), full=(2048, 2000))
print(runtime.describe())

# %% [markdown]
# ## In one picture
#
# The target is a sum of sines of amplitude 1, $\lambda(z)=\sum_i\sin(2\pi k_iz+\phi_i)$, on $z\in[0,1)$; the frequencies $k_i$ count
# cycles over the interval, the phases $\phi_i$ are random. A plain ReLU network $f$ sees $n$ equispaced points and learns $\lambda$ by least squares, all points in every step.
# Every ten steps, before the update, we take the discrete Fourier transform of its outputs, $F_k=\frac1n\sum_j f(z_j)\,e^{-2\pi ikj/n}$. A sine of amplitude $A$ has $|F_k|=A/2$
# (the other half sits at $-k$), so $2|F_k|/A$ tells how much of it the network has.
#
# This is the whole experiment in plain PyTorch.

# %%
torch.manual_seed(seed)
n, frequencies = SINES["points"], torch.tensor(SINES["frequencies"])
z = torch.arange(n) / n  # the end point 1 is left out, so that whole frequencies fall on whole bins
phases = 2 * math.pi * torch.rand(len(frequencies), 1)
target = torch.sin(2 * math.pi * frequencies[:, None] * z + phases).sum(0)

sizes = [1] + [SINES["width"]] * (SINES["depth"] - 1) + [1]
layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
network = nn.Sequential(*layers[:-1])
start = {name: value.clone() for name, value in network.state_dict().items()}

optimizer = torch.optim.Adam(network.parameters(), lr=SINES["lr"])
spectra = []
for step in range(2500):
    output = network(z[:, None])[:, 0]
    if step % 10 == 0:
        spectra.append(2 / n * torch.fft.rfft(output.detach()).abs()[frequencies])
    loss = (output - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
spectra = torch.stack(spectra)  # (time, modes)

# %% [markdown]
# **What to look for.** Time runs to the right. Each row of the left panel is one frequency; it turns bright when the network has that sine at full amplitude.
# Right: where does the network still miss the target after the last step?

# %% alt="Heat map of recovered amplitude: low frequencies become bright early, high frequencies late. Right: target and three snapshots of the network."
fig, (left, right) = plt.subplots(1, 2, width_ratios=[1.25, 1])
image = left.imshow(
    spectra.T.clamp(0, 1),
    aspect="auto",
    origin="lower",
    interpolation="nearest",
    extent=[0, 2500, -0.5, len(frequencies) - 0.5],
)
left.set(xlabel="step", ylabel="frequency (cycles)", yticks=range(len(frequencies)), yticklabels=frequencies.tolist())
left.grid(False)
fig.colorbar(image, ax=left, label="recovered amplitude")
right.plot(z, target, color="#bbbbbb", lw=4, label="target")
right.plot(z, output.detach(), color=PALETTE[0], label="network, last step")
right.set(xlabel="z", ylabel="value", ylim=(1.3 * target.min().item(), 1.75 * target.max().item()))
right.legend(ncols=1, loc="upper right")
label_panels([left, right], ["What has been learned, and when", "What is left at the end"])
plt.show()

# %% [markdown]
# **What you saw.** A staircase: the higher the frequency, the later its row turns bright, and the highest are not done at the last step. What is missing then are quick wiggles.
# Nothing in the loss asks for this order, since all sines weigh the same in it.
# The rest of the chapter asks why, and when it is not so.
#
# ## The claims
#
# Each claim that we check, of this paper or of one that it leads to, has a criterion, fixed before we measured; where one was revised afterwards, the [ledger](../results/README.md) says how and why. Entries "read off" were read by eye from the figures in the authors' notebooks.
# Skim the table; its words are explained where each claim gets its verdict.

# %%
claim = Claims.declared("01_spectral_bias")
claim


# %% [markdown]
# ## The idea: three different statements
#
# "Networks prefer low frequencies" can mean three things, and the paper has a result on each. Keep them apart:
#
# 1. **Representation.** The Fourier transform of *any* ReLU network decays at a rate that its geometry dictates. True for all parameters, before any training.
# 2. **Parameter space.** Among all parameters of bounded size, those with much energy at high frequencies are few, and easily disturbed.
# 3. **Dynamics.** Gradient descent reaches low frequencies first.
#
# The first does not imply the third. We take the dynamics first, because you have just seen them; then the two others; then the tangent kernel, which turns the third into a prediction.
#
# ## The order of learning
#
# One run may be luck. We train several networks at once, each with its own initial weights and phases: `Stack` holds their parameters along a new first dimension, so that one batched product
# serves all, and `fit` is the training loop that the whole course uses. First, that this machinery computes what the plain loop above computed.

# %%
def train(networks, x, y, *, steps, lr, record_every, name):
    """Fit each network to its own row of y; outputs along the way have shape (time, networks, points)."""
    stack = Stack(networks).to(device)
    x, y = x.to(device), y.to(device)
    history = fit(
        stack,
        lambda x, y: (stack(x)[..., 0] - y).square().mean(-1).sum(),  # a sum: each network gets its own gradient
        data=(x, y),
        num_steps=steps,
        lr=lr,
        evaluate=lambda step, _: {"output": stack(x)[..., 0]},
        evaluate_every=record_every,
        checkpoint=size(quick=None, full=runtime.scratch_dir() / "01_spectral_bias" / f"{name}-{seed}.pt"),
        progress=size(quick=False, full=True),
    )
    return stack, torch.tensor(history.evaluation_steps), torch.stack(history.evaluations["output"]).cpu()


copy = mlp(1, 1, width=SINES["width"], depth=SINES["depth"])
copy.load_state_dict(start)
_, _, outputs = train([copy], z[None, :, None], target[None], steps=200, lr=SINES["lr"], record_every=10, name="copy")
# `fit` records before each update, as the loop did, and once more after the last one: leave that one out
difference = (sb.recovered(outputs[:-1, 0], target, SINES["frequencies"]) - spectra[:20]).abs().amax(1)
assert device.type == "cuda" or difference[:2].max() < 1e-5, difference
say(
    f"Largest difference between the plain loop and `refimpl`: {difference[:2].max():.0e} in the first 10 steps, {difference.max():.0e} in the first 200."
)

# %% [markdown]
# The two agree to rounding at first. Then they part, as two correct programs may: their last digits differ, sooner or later a unit switches in one copy only, and training amplifies the difference. That is why this course compares numbers early, and conclusions late.
#
# Now the paper's Experiment 1, with equal amplitudes and with amplitudes that rise from 0.1 to 1, so that the *highest* frequency carries the most energy.
# `recovered` divides the magnitudes $|F_k|$ of the outputs by those of the target (with `kind="residual"` it does something else, explained below).

# %%
torch.manual_seed(seed)
source = runtime.generator(seed)
ks, runs = SINES["frequencies"], SINES["runs"]
rising = torch.linspace(0.1, 1, len(ks)).tolist()
z = grid(SINES["points"])
signals = torch.cat(
    [sum_of_sines(z, ks, a, num_signals=runs, generator=source) for a in (1.0, rising)]
)  # (2 runs, points): equal amplitudes first
networks = [mlp(1, 1, width=SINES["width"], depth=SINES["depth"]) for _ in range(2 * runs)]
bounds_before = [sb.lipschitz_bound(net) for net in networks]
x = z[:, None].expand(2 * runs, -1, 1)
record = max(SINES["steps"] // 250, 1)
stack, steps, outputs = train(
    networks, x, signals, steps=SINES["steps"], lr=SINES["lr"], record_every=record, name="sines"
)
trained = [
    stack.network(i, mlp(1, 1, width=SINES["width"], depth=SINES["depth"]).to(device)).cpu() for i in range(2 * runs)
]
magnitude = sb.recovered(outputs, signals, ks)  # (time, networks, modes)
residual = sb.recovered(outputs, signals, ks, kind="residual")

# %% [markdown]
# **What to look for.** Left and middle: do the curves come in the order of their colours, dark (low) to light (high)? Right: what happens to the product of the layers' spectral norms (largest singular values), which bounds the steepest slope of $f$?
#
# To say it in one number, `learning_order` averages each curve, clipped at 1, over time: what is learned earlier has a larger average. The rank correlation of these averages with the frequency is $-1$ if lower frequencies always come first.

# %% alt="Recovered amplitude against step for five frequencies, equal and rising amplitudes; product of norms before and after training for each run."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.9), width_ratios=[1, 1, 0.55])
for ax, run in zip(axes[:2], (0, runs)):
    for i, colour in enumerate(sequential(len(ks))):
        ax.plot(steps, magnitude[:, run, i], color=colour, lw=1.4, label=f"k = {ks[i]}")
    ax.axhline(1, color="#999999", lw=0.8, ls="--")
    ax.set(xlabel="step", ylim=(0, 1.7))
axes[0].set_ylabel("recovered amplitude")
axes[0].legend(fontsize=8, ncols=2, loc="lower right", handlelength=1.2, columnspacing=0.8)
bounds_after = [sb.lipschitz_bound(net) for net in trained]
for pair in zip(bounds_before, bounds_after):
    axes[2].plot(["before", "after"], pair, "o-", color=PALETTE[0], lw=1, ms=5, alpha=0.7)
axes[2].set(yscale="log", ylabel="product of spectral norms", xlim=(-0.4, 1.4))
label_panels(axes, ["Equal amplitudes", "Rising amplitudes", "Norms"])
plt.show()

# %%
order = [sb.learning_order(magnitude[:, i], ks) for i in range(2 * runs)]
correlation = torch.tensor([rho for _, rho in order])
mean_magnitude = [magnitude[:, part].clamp(0, 1).mean(1) for part in (slice(runs), slice(runs, None))]
mean_correlation = [sb.learning_order(curves, ks)[1] for curves in mean_magnitude]  # over runs first, as in the paper
complex_order = torch.tensor([sb.learning_order(1 - residual[:, i], ks)[1] for i in range(runs, 2 * runs)])
growth = torch.tensor(bounds_after) / torch.tensor(bounds_before)
# The spectrum of an untrained network falls too, so the order means something only if something was learned.
assert (magnitude[:, :, 0].amax(0) > 0.9).all() and (magnitude[0, :runs, 0] < 0.5).all()
say(
    f"Rank correlation of frequency with the amplitude, averaged over time and runs: {mean_correlation[0]:.1f} with equal amplitudes, "
    f"{mean_correlation[1]:.1f} with rising ones; in the worst single run {correlation[:runs].max():.1f} and {correlation[runs:].max():.1f}. "
    f"The product of norms grew {growth.min():.0f}-fold or more."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-1", mean_correlation[0])
claim("SB-2", mean_correlation[1])
claim("SB-3", growth)

# %% [markdown]
# The paper's figures show means over ten runs, and the criterion speaks of the mean as well. Single runs scatter: with rising amplitudes, the lowest sine is so weak that in some of them it falls behind its neighbours.
#
# A magnitude is blind to phase. With rising amplitudes the weak low sines overshoot early, while the strong high ones are still missing: a magnitude of 1 at the wrong phase counts as learned.
# The complex residual $|F_k-T_k|/|T_k|$, with $T_k$ the target's coefficient, sees the difference. Judged by it, the order under rising amplitudes is less clean:

# %%
say(
    "Rank correlation from the complex residual, rising amplitudes, run by run: "
    + ", ".join(f"{c:.1f}" for c in complex_order)
    + " (from magnitudes: "
    + ", ".join(f"{c:.1f}" for c in correlation[runs:])
    + ")."
)

# %% [markdown]
# So Figure 1b of the paper holds for the quantity that the paper plots; "learned" in the stricter sense is a weaker statement. Task 3 of the exercise sheet comes back to the two.
#
# ## Representation: the Fourier transform of a ReLU network
#
# ### One dimension
#
# From here on $\tilde f(k)=\int f(x)\,e^{-ikx}\,dx$ with *angular* frequency $k$ in radians per unit of $x$; experiments count cycles, theory counts radians.
# Take one hidden layer, $f(x)=\sum_j v_j\,\mathrm{relu}(w_jx+b_j)$. Each unit bends the graph at its kink $t_j=-b_j/w_j$, where the slope jumps by $v_j|w_j|$, and nowhere else. A jump of the slope by 1 at $t$ is a Dirac delta $\delta(x-t)$ in $f''$, so, away from $k=0$,
#
# $$f''(x)=\sum_j v_j|w_j|\,\delta(x-t_j)\qquad\Longrightarrow\qquad \tilde f(k)=-\frac1{k^2}\sum_j v_j|w_j|\,e^{-ikt_j},$$
#
# because differentiating twice multiplies the transform by $(ik)^2=-k^2$. The whole theory is visible here: a decay of $k^{-2}$; a numerator bounded by the number of kinks times the largest change of slope.
#
# Check: choose weights so that $f$ vanishes outside $[-1,1]$, and integrate it numerically. The hat function $\max(0,1-|x|)$ has kinks at $-1,0,1$ with slope changes $1,-2,1$, and transform $(\sin\frac k2/\frac k2)^2$.
# A third way, `piecewise_linear_transform`, takes edges and heights and adds up the linear pieces; in a moment you derive it as Lemma 1.

# %%
w, b, v = torch.ones(3).double(), torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([1.0, -2.0, 1.0]).double()
k = torch.linspace(0.5, 40, 80).double()
fine = torch.linspace(-1, 1, 20_001).double()
values = (v * F.relu(fine[:, None] * w + b)).sum(1)
quadrature = torch.trapezoid(values * torch.exp(-1j * k[:, None] * fine), fine)
kinks = polytopes.shallow_relu_transform(w, b, v, k)
pieces = polytopes.piecewise_linear_transform(
    torch.tensor([-1.0, 0, 1]).double(), torch.tensor([0.0, 1, 0]).double(), k
)
closed_form = (torch.sin(k / 2) / (k / 2)) ** 2
say(
    f"Largest differences from the closed form: kink sum {(kinks - closed_form).abs().max():.0e}, "
    f"sum over linear pieces {(pieces - closed_form).abs().max():.0e}, quadrature {(quadrature - closed_form).abs().max():.0e}."
)
assert (kinks - closed_form).abs().max() < 1e-12 and (quadrature - closed_form).abs().max() < 1e-7


# %% [markdown]
# ### More dimensions: Lemma 1
#
# A ReLU network $f:\mathbb R^d\to\mathbb R$ cuts its input space into convex polytopes $P$, its *linear regions*: inside one, no unit switches, and $f(x)=g_P\cdot x+c_P$ with a constant gradient $g_P$.
# Suppose that $f$ vanishes outside a bounded set, and write $1_P$ for the indicator function of $P$, 1 inside and 0 outside. Integrate $\mathrm{div}(k\,f\,e^{-ik\cdot x})=(k\cdot\nabla f-i\|k\|^2f)\,e^{-ik\cdot x}$ over all space; the left side gives zero, hence
#
# $$\tilde f(k)=-\frac{i}{\|k\|^2}\sum_P (g_P\cdot k)\;\tilde 1_P(k),\qquad \tilde 1_P(k)=\int_P e^{-ik\cdot x}dx.$$
#
# Continuity of $f$ is what makes the boundaries between regions cancel. (The paper prints $+i$; with its own convention the sign is minus, and task 1 of the exercise sheet has you check it in one dimension.)
#
# ### Lemma 2: a polygon seen by a wave
#
# What is left is the transform of an indicator function. The divergence theorem again, now on one face $Q$ of dimension $m$ with the field $p\,e^{-ik\cdot x}$, where $p$ is the part of $k$ along $Q$.
# Within $Q$ its divergence is $-i\|p\|^2e^{-ik\cdot x}$, and its flux leaves through the *facets* $S$, the faces of dimension $m-1$ that bound $Q$ (a polygon's sides, a side's two corners):
#
# $$\tilde 1_Q(k)=\frac{i}{\|p\|^2}\sum_{S}(p\cdot n_S)\,\tilde 1_S(k)\quad\text{over the facets $S$ of $Q$ with outward normals $n_S$};\qquad \tilde 1_Q(k)=\mathrm{vol}_m(Q)\,e^{-ik\cdot x_0}\ \text{ if }p=0,\ x_0\in Q.$$
#
# Each step down, from polygon to side to corner, costs one factor $1/k$, *unless the wave meets a face head-on* ($p=0$, $k$ orthogonal to the face: all its points have the same phase); there the chain stops early. That is all of Theorem 1. The recursion from scratch, for the plane:

# %%
def corner(x, k):
    return torch.exp(-1j * (k @ x))


def side(a, b, k):
    """Transform of the segment from a to b for one frequency k: Lemma 2 with m = 1."""
    tangent = (b - a) / (b - a).norm()
    p = k @ tangent
    if p.abs() < 1e-9:  # the wave meets the side head-on: every point has the same phase
        return (b - a).norm() * corner(a, k)
    return 1j / p * (corner(b, k) - corner(a, k))


def polygon(vertices, k):
    """Transform of a polygon's indicator function: Lemma 2 with m = 2."""
    total = 0
    for a, b in zip(vertices, vertices.roll(-1, 0)):
        tangent = (b - a) / (b - a).norm()
        normal = torch.stack([tangent[1], -tangent[0]])  # outward for counter-clockwise corners
        total = total + 1j * (k @ normal) / (k @ k) * side(a, b, k)
    return total


# %% [markdown]
# Against `refimpl`, on a triangle and three waves, the second of which meets a side head-on:

# %%
triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.9]]).double()
waves = torch.tensor([[3.0, -2.0], [0.0, 5.0], [40.0, 7.0]]).double()
by_recursion = torch.stack([polygon(triangle, k) for k in waves])
in_refimpl = polytopes.polygon_transform(triangle, waves)
assert torch.allclose(by_recursion, in_refimpl, atol=1e-12)
say(f"Recursion and `polytopes.polygon_transform` differ by {(by_recursion - in_refimpl).abs().max():.0e}.")

# %% [markdown]
# `refimpl` writes the side as its length times a $\mathrm{sinc}$, times the phase of its midpoint, which is the same function without the special case and without cancellation near it.
#
# ### A whole network
#
# We need a network with compact support: `inside_tent` builds $\min(\text{tent},\mathrm{relu}\,h)$ with the tent $\max(0,1-|x_1|-|x_2|)$ out of ReLU layers, for any one-hidden-layer network $h$.
# We train $h$ to draw a hill off the centre, then cut the square into the exact linear regions, layer by layer: on a region, a unit's pre-activation is affine, so its zero line cuts the region in two.

# %%
torch.manual_seed(seed)
points = (2 * torch.rand(1024, 2) - 1).double()
hill = 0.55 * torch.exp(-((points - torch.tensor([0.15, -0.1])).norm(dim=1) / 0.4).square())
inner = mlp(2, 1, width=16, depth=2).double()
fit(inner, lambda: (inner(points)[:, 0] - hill).square().mean(), num_steps=800, lr=1e-2, progress=False)
tent_network = polytopes.inside_tent(inner)
square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).double()
regions = polytopes.linear_regions(tent_network, square)
normals, strengths = polytopes.facets(regions)
say(
    f"The network has {len(regions)} linear regions in the square and {len(normals)} lines along which its gradient jumps."
)

# %% [markdown]
# **Check of Lemma 1.** The sum over regions against brute-force quadrature on a fine grid, for six random waves.

# %%
m = 1500
axis = (torch.arange(m).double() + 0.5) / m * 2 - 1
cells = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    heights = tent_network(cells)[:, 0]
waves = 8 * (2 * torch.rand(6, 2, generator=runtime.generator(seed)).double() - 1)
brute = torch.stack([(heights * torch.exp(-1j * (cells @ k))).sum() for k in waves]) * (2 / m) ** 2
exact = polytopes.network_transform(regions, waves)
lemma_error = ((exact - brute).abs().max() / brute.abs().max()).item()
say(f"Largest difference, relative to the largest magnitude: {lemma_error:.1e}.")

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-5", lemma_error)

# %% [markdown]
# ### Theorem 1: decay depends on the direction
#
# In the plane a generic wave vector $k$ is orthogonal to no side, so the chain runs down to the corners: $k^{-2}$ from Lemma 2 and $k^{-1}$ from Lemma 1, together $\tilde f=O(k^{-3})$.
# Along the normal of a facet the chain stops one step earlier: $O(k^{-2})$. In general $O(k^{-\Delta-1})$, where $\Delta$ is the smallest codimension ($d$ minus the dimension) of a face orthogonal to $k$: 1 for a side that is hit head-on, and never more than $d$, since a corner is orthogonal to every $k$.
#
# **What to look for.** Left: the regions, coloured by the network's value. Middle: $|\tilde f(k)|\,\|k\|^3$, which the theorem bounds in generic directions; where are the rays? Right: the decay along one ray, and along the random direction that lies farthest from any ray; compare the upper edges, since the dips are interference.
#
# How far out must you look? A wave that meets a facet *almost* head-on follows $k^{-2}$ until it is fast enough to tell the difference. So `decay` fits the exponent to the upper envelope from $\|k\|=10^4$ on, where the right panel shows only the last decade.

# %%
angle = torch.rand(6, generator=runtime.generator(seed)).double() * 2 * math.pi
generic = torch.stack([angle.cos(), angle.sin()], 1)
far = torch.logspace(4, 7, 2500).double()  # far enough that even nearby facets count as generic


def decay(direction, band=far):
    return polytopes.decay_exponent(band, polytopes.network_transform(regions, band[:, None] * direction).abs())


along_normals = torch.tensor([decay(n) for n in normals[:6]])
along_generic = torch.tensor([decay(u) for u in generic])
nearer = torch.tensor([decay(u, torch.logspace(1.3, 3.7, 600).double()) for u in generic])

# %% alt="Linear regions of the hill network; the plane of frequencies with bright rays along facet normals; decay like k^-2 on a ray and k^-3 off it."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.75))
heights_max = heights.max()
for region in regions:
    value = (region.vertices.mean(0) @ region.gradient + region.offset) / heights_max
    axes[0].fill(*region.vertices.T, facecolor=plt.cm.cividis(float(value)), edgecolor="white", lw=0.5)
axes[0].set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
span = torch.linspace(-150, 150, 140).double()
plane = torch.cartesian_prod(span, span)
bright = (polytopes.network_transform(regions, plane).abs() * plane.norm(dim=1) ** 3).view(140, 140)
axes[1].imshow(bright.log10().T, origin="lower", extent=[-150, 150, -150, 150], vmin=0.5, vmax=2.6)
axes[1].set(xlabel="$k_1$", ylabel="$k_2$", xticks=[-100, 0, 100], yticks=[-100, 0, 100])
for ax in axes[:2]:
    ax.grid(False)
line = torch.logspace(0.5, 5, 700).double()
far_off = generic[(generic @ normals.T).abs().amax(1).argmin()]  # the random direction farthest from any normal
for direction, colour, name in ((normals[0], PALETTE[1], "facet normal"), (far_off, PALETTE[0], "generic")):
    axes[2].loglog(
        line, polytopes.network_transform(regions, line[:, None] * direction).abs(), color=colour, lw=0.8, label=name
    )
axes[2].loglog(line, line**-2.0, "k--", lw=0.8, label="$k^{-2}$")
axes[2].loglog(line, 8 * line**-3.0, "k:", lw=0.8, label="$k^{-3}$")
axes[2].set(
    xlabel="$\\|k\\|$ (radians per unit)", ylabel="$|\\tilde f(k)|$", ylim=(1e-19, 1), yticks=[1, 1e-5, 1e-10, 1e-15]
)
axes[2].legend(fontsize=8, loc="lower left")
label_panels(axes, ["Linear regions", "$\\log_{10}|\\tilde f|\\,\\|k\\|^3$", "Decay"])
plt.show()

# %%
say(
    f"Fitted exponents along the six strongest facet normals: {along_normals.min():.2f} to {along_normals.max():.2f}; "
    f"in six random directions: {along_generic.min():.2f} to {along_generic.max():.2f}. "
    f"In the same directions between 20 and 5000 radians: only {nearer.max():.2f} to {nearer.min():.2f}; the theorem's rate sets in late."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-6", along_normals)
claim("SB-7", along_generic)


# %% [markdown]
# **What you saw.** Each line along which the gradient jumps casts a ray into the frequency plane, both ways and at a right angle to itself. The dashed line falls like $k^{-2}$, the dotted one like $k^{-3}$.
# Smoothness in pieces alone would not give this: in one dimension $\sqrt{|x|}$ is smooth in pieces, yet decays only like $k^{-3/2}$ instead of $k^{-2}$. It is *linearity* in pieces that matters.
#
# ### How large is the numerator? Weight norm, depth and width
#
# The paper bounds the numerators by the number of linear regions times the Lipschitz constant $L_f$, and that by the weights:
#
# $$L_f\;\le\;\prod_{l=1}^{L+1}\|W^{(l)}\|_2\;\le\;\|\theta\|_\infty^{L+1}\,\sqrt d\,\prod_{l=1}^{L}d_l$$
#
# with $L$ hidden layers of widths $d_l$, weight matrices $W^{(l)}$, and the largest parameter $\|\theta\|_\infty$ (the largest weight will do). The second step replaces each spectral norm by the Frobenius norm, which is at most $\|\theta\|_\infty\sqrt{d_{l-1}d_l}$, with $d_0=d$ and $d_{L+1}=1$.
# Exponential in depth, polynomial in width: as far as the bound goes, depth buys high frequencies cheaply. How tight is the chain?
#
# **What to look for.** How the three terms grow when one of scale, depth and width changes, and how far they lie apart. (The *steepest slope found* is the largest gradient at 2000 random points, so $L_f$ is at least that.)

# %%
def chain(net):
    """Steepest slope found, product of spectral norms, max-norm bound."""
    places = 4 * torch.rand(2000, net[0].in_features, generator=runtime.generator(seed)) - 2
    return [sb.local_slope(net, places).max().item(), sb.lipschitz_bound(net), sb.lipschitz_bound(net, "max_norm")]


def scaled(net, factor):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    return net


torch.manual_seed(seed)
scales, depths, widths = [0.5, 1, 2, 4], [2, 3, 4, 6, 8], [16, 32, 64, 128, 256]
sweeps = {
    "factor on all weights": (scales, [chain(scaled(mlp(2, 1, width=64, depth=4), s)) for s in scales]),
    "linear layers": (depths, [chain(scaled(mlp(2, 1, width=64, depth=d), 2)) for d in depths]),
    "width": (widths, [chain(mlp(2, 1, width=w, depth=4)) for w in widths]),
}
chains = torch.tensor([row for _, rows in sweeps.values() for row in rows] + [chain(net) for net in trained])
chain_ratio = torch.cat([chains[:, 0] / chains[:, 1], chains[:, 1] / chains[:, 2]]).max()

# %% alt="Three log plots: slope found, spectral product and max-norm bound against weight scale, depth and width."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.7))
for ax, (label, (setting, rows)) in zip(axes, sweeps.items()):
    for column, name, colour in zip(range(3), ["steepest slope found", "spectral norms", "max norm"], PALETTE):
        ax.plot(setting, [row[column] for row in rows], "o-", color=colour, ms=4, label=name)
    ax.set(yscale="log", xlabel=label)
axes[0].set(xscale="log", xticks=scales, xticklabels=scales)
axes[2].set(xscale="log", xticks=widths, xticklabels=widths)
for ax in (axes[0], axes[2]):
    ax.minorticks_off()
axes[1].legend(fontsize=8, loc="upper left")
label_panels(axes, ["Weight norm", "Depth (weights × 2)", "Width"])
fig.suptitle("Random, untrained networks", fontsize=10)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-4", chain_ratio)

# %% [markdown]
# **What you saw.** The chain holds, and is far from tight. All three terms grow by a power of the scale. With depth both bounds grow exponentially, yet the slope of these random networks does not grow at all: even with its weights doubled, PyTorch's initialisation shrinks a signal a little in each layer.
# Width moves the slope very little, too, since weights are drawn smaller in wider layers. A bound says what weights of this size could do, not what random ones do.
#
# ## Parameter space: high frequencies are rare and fragile
#
# ### Rare
#
# In one dimension with one hidden layer, the kink sum gives a cut-off without any unknown constant: if all parameters lie in $[-K,K]$ then $|\tilde f(k)|\le\text{width}\cdot K^2/k^2$,
# so that beyond $k^*=K\sqrt{\text{width}/\varepsilon}$ *no* network has a component larger than $\varepsilon$. We draw thousands of random networks and ask which share of them exceeds $\varepsilon$ anywhere beyond $k$.
#
# **What to look for.** Does the share fall with $k$, does a larger $K$ shift it, and is it exactly zero right of the dotted lines?

# %%
width, epsilon, draws = 16, 0.05, 4000
k = torch.arange(1, 129).double()
source = runtime.generator(seed)
volume, beyond = {}, []
for K in (0.5, 1.0, 2.0):
    w, b, v = K * (2 * torch.rand(3, draws, width, generator=source).double() - 1)
    spectrum = torch.stack([(v * w.abs() * torch.exp(1j * q * b / w)).sum(1).abs() / q**2 for q in k], 1)
    largest_beyond = spectrum.flip(1).cummax(1).values.flip(1)  # (draws, k): largest magnitude at or beyond k
    volume[K] = (largest_beyond > epsilon).double().mean(0)
    beyond.append((spectrum[:, k > K * math.sqrt(width / epsilon)].max() / epsilon).item())

# %% alt="Share of random networks with a component above epsilon beyond frequency k, for three weight bounds, with the cut-off of each."
fig, ax = plt.subplots(figsize=(7.6, 2.6))
for (K, share), colour in zip(volume.items(), PALETTE):
    ax.plot(k, share, "o-", ms=3, color=colour, label=f"parameters up to K = {K:g}")
    ax.axvline(K * math.sqrt(width / epsilon), color=colour, ls=":", lw=1.4)
ax.set(xscale="log", xlabel="angular frequency k", ylabel="share of networks")
ax.set_title("Networks with $|\\tilde f|>\\varepsilon$ at or beyond k")
ax.legend(loc="upper right")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-8", beyond)

# %% [markdown]
# **What you saw.** The share falls with $k$, a larger $K$ moves the fall to the right, and no network that we drew lives beyond its dotted line. Most stay well short of it: to reach it, all kinks would have to be in phase, with all weights at the bound.
#
# ### Fragile
#
# The paper's Experiment 2: take a trained network, move *all* its parameters $\theta$ to $\theta+\delta u$ with a random unit vector $u$, and see how much of each frequency is left, averaged over many $u$.
# We average magnitudes: complex values would also cancel by random phases, which is another effect.
#
# **What to look for.** At which perturbation does each curve leave 1, and in which order?

# %%
norms = [0, 0.5, 1, 2, 3, 4, 6]
source = runtime.generator(seed)
kept = torch.stack(
    [sb.perturbation_robustness(net, z[:, None], ks, norms, num_draws=40, generator=source) for net in trained[:runs]]
)
at_four = kept[:, norms.index(4)]
single = at_four[:, :2].mean(1) / at_four[:, -2:].mean(1)
robustness = (at_four[:, :2].mean() / at_four[:, -2:].mean()).item()

# %% alt="Retained magnitude against the norm of the parameter perturbation: high frequencies fall first."
fig, ax = plt.subplots(figsize=(7.6, 2.6))
for i, colour in enumerate(sequential(len(ks))):
    ax.plot(norms, kept.mean(0)[:, i], "o-", ms=4, color=colour, label=f"k = {ks[i]}")
ax.set(xlabel="norm of the perturbation δ", ylabel="retained magnitude", ylim=(0, None))
ax.set_title(f"After perturbing all parameters, mean over {runs} networks")
ax.legend(ncols=2)
plt.show()

# %%
say(
    f"At norm 4 the two lowest frequencies keep {robustness:.1f} times as much as the two highest on average; "
    "network by network: " + ", ".join(f"{ratio:.1f}" for ratio in single) + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-9", robustness)

# %% [markdown]
# **What you saw.** High frequencies need parameters that conspire; a random nudge breaks the conspiracy. This is a statement about averages, as in the paper's figure: single networks scatter widely, and with another seed one of them can lose its low frequencies almost as fast as its high ones. The lowest frequency can even *gain* magnitude; a likely reason is that what a random perturbation adds is itself mostly of low frequency.
#
# ## Dynamics: the kernel's prediction
#
# The paper bounds learning speed: $|d\tilde h(k)/dt|=O(k^{-\Delta})$ for the residual $h=f-\lambda$, since differentiating a phase $e^{-ik\cdot x_0(\theta)}$ by a parameter brings down one factor $k$.
# That is an upper bound with constants that move during training, not a proof of the order. A sharper tool for wide networks is the **neural tangent kernel**
# $K_{ij}=\nabla_\theta f(x_i)\cdot\nabla_\theta f(x_j)$. Gradient descent with step $\eta$ on $\frac1{2n}\sum_jr_j^2$, with the residuals $r_j=f(x_j)-\lambda(x_j)$ at the training points, moves $\theta$ by $-\frac\eta n\sum_jr_j\nabla_\theta f(x_j)$.
# If $f$ were linear in its parameters, each step would therefore change $r$ by $-\frac\eta nKr$, and after $t$ steps
#
# $$r_t=\Big(1-\frac{\eta}{n}K\Big)^t\,r_0 .$$
#
# Place $n$ points evenly on a circle. For a very wide network the kernel then depends on the angle between two points only, $K$ is (nearly) circulant, its eigenvectors are Fourier modes, and mode $k$ decays at the rate $\eta\lambda_k/n$
# with the eigenvalue $\lambda_k=\frac1ne_k^*Ke_k$, $e_k=(e^{2\pi ikj/n})_j$ (an index $k$ makes it an eigenvalue; $\lambda$ with a point, as $\lambda(x_j)$, stays the target). For ReLU networks with biases $\lambda_k$ falls like $k^{-2}$ here, once $k$ is large (Basri et al. 2019). We compute $K$ at initialisation and *predict*, then train for real.

# %%
torch.manual_seed(seed)
n = 64
theta = grid(n)
circle = flower(theta, petals=0)
wide = mlp(2, 1, width=KERNEL_WIDTH, depth=3).to(device)
kernel = sb.empirical_ntk(wide, circle.to(device)).cpu()
energies = sb.circulant_energy(kernel, range(17)) / n
modes = [1, 3, 6, 9]
waves = torch.stack([torch.sin(2 * math.pi * k * theta) for k in modes])
eta = 0.25 * n / torch.linalg.eigvalsh(kernel)[-1].item()  # stable below 2 n / (largest eigenvalue)
times = [0, 5, 10, 20, 50, 100, 150]
with torch.no_grad():
    initial = wide(circle.to(device))[:, 0].cpu()
predicted = torch.stack(
    [sb.linearized_residual(kernel, -wave, lr=eta, steps=times) for wave in waves], 1
)  # (times, modes, n)

# %% [markdown]
# The real networks: one for each mode, all from the same weights. We add the initial output to the target, so that the residual starts as exactly minus the wave, as in the prediction.

# %%
copies = Stack([wide] * len(modes)).to(device)
inputs, goals = circle.expand(len(modes), -1, -1).to(device), (waves + initial).to(device)
seen = []


def observe(step, _):
    return {"residual": copies(inputs)[..., 0] - goals}


history = fit(
    copies,
    lambda: (copies(inputs)[..., 0] - goals).square().mean(-1).sum() / 2,
    num_steps=max(times),
    optimizer=lambda p: torch.optim.SGD(p, lr=eta),
    evaluate=observe,
    evaluate_every=5,
    progress=False,
)
observed = torch.stack([history.evaluations["residual"][history.evaluation_steps.index(t)].cpu() for t in times])


# %%
def left(residuals):
    """Share of each network's own mode that is still missing, shape (times, modes)."""
    own = [sb.coefficients(residuals[:, i], [k]) / sb.coefficients(waves[i], [k]) for i, k in enumerate(modes)]
    return torch.cat(own, -1).abs()


kernel_error = (left(observed)[times.index(20)] - left(predicted)[times.index(20)]).abs()

# %% [markdown]
# **What to look for.** Left: from where on does the kernel's spectrum follow the dashed $k^{-2}$ line? Right: do the dots (training) lie on the lines (prediction made before training), and until when?

# %% alt="Kernel eigenvalues falling like k^-2; predicted and observed residual of four modes over 150 steps."
fig, axes = plt.subplots(1, 2)
axes[0].loglog(range(1, 17), energies[1:] / energies[1], "o-", ms=4)
axes[0].loglog(
    range(2, 17), energies[8] / energies[1] * (torch.arange(2, 17.0) / 8) ** -2, "k--", lw=0.8, label="$k^{-2}$"
)
axes[0].legend()
axes[0].set(
    xlabel="frequency k (cycles)",
    ylabel="$\\lambda_k/\\lambda_1$",
    xticks=[1, 2, 4, 8, 16],
    xticklabels=[1, 2, 4, 8, 16],
)
axes[0].minorticks_off()
for i, colour in enumerate(sequential(len(modes))):
    axes[1].plot(times, left(predicted)[:, i], color=colour, label=f"k = {modes[i]}")
    axes[1].plot(times, left(observed)[:, i], "o", color=colour, ms=5)
axes[1].set(xlabel="step", ylabel="share still missing", ylim=(0, 1.05))
axes[1].legend(ncols=2)
label_panels(axes, ["Kernel on the circle", "Prediction (lines), training (dots)"])
plt.show()

# %%
late = (left(observed)[-1] - left(predicted)[-1]).abs().max()
say(f"Largest error of the prediction: {kernel_error.max():.3f} at step 20, {late:.3f} at step {times[-1]}.")

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-10", kernel_error)

# %% [markdown]
# **What you saw.** The order of learning is the order of the kernel's eigenvalues. As training goes on, the prediction drifts: it takes the kernel to stand still, and that is exact only for infinite width.
#
# ## On real data: label noise of a chosen frequency
#
# Images live on no grid, but a label can still depend on them slowly or quickly. The paper's Experiment 3 takes two digit classes with labels $\pm1$, adds $\sin(2\pi k\|x\|)$ to the *training* labels only, and watches the loss on clean validation labels.
# Here: scikit-learn's digits 3 and 8, 64 pixels.
#
# There is a catch. At $k=0.05$ the argument hardly changes from image to image, and the noise is almost the same number for all: the labels are *shifted*, and shifted labels hurt whatever their frequency. So we also run a fair version,
# with the noise centred and scaled to equal power on the training set.

# %%
images, labels = digits([3, 8])
labels = (labels == 8).float() * 2 - 1
num_train = int(0.8 * len(images))
kinds = {"clean": None, "raw, k = 0.05": 0.05, "k = 0.1": 0.1, "k = 1": 1.0, "k = 4": 4.0}
source = runtime.generator(seed)
xs, ys, shift = [], [], []
for _ in range(DIGITS["splits"]):
    order = torch.randperm(len(images), generator=source)
    x_split, y_split = images[order], labels[order]
    train_part = x_split[:num_train]
    shift.append(radial_noise(train_part, 0.05).mean().item())
    for name, k in kinds.items():
        noise = (
            torch.zeros(num_train)
            if k is None
            else radial_noise(train_part, k, reference=None if "raw" in name else train_part)
        )
        xs.append(x_split)
        ys.append(torch.cat([y_split[:num_train] + noise, y_split[num_train:]]))
xs, ys = torch.stack(xs), torch.stack(ys)  # (splits * kinds, images, ...): training images first
say(f"Mean of the raw noise at k = 0.05: {sum(shift) / len(shift):.2f}, out of at most 1. It is a shift.")

# %%
torch.manual_seed(seed)
networks = [mlp(64, 1, width=DIGITS["width"], depth=DIGITS["depth"]) for _ in range(DIGITS["splits"])]
noisy = Stack([net for net in networks for _ in kinds]).to(device)  # one initialisation a split, shared by all kinds
x_all, y_all = xs.to(device), ys.to(device)
every = max(DIGITS["steps"] // 100, 1)
history = fit(
    noisy,
    lambda: (noisy(x_all[:, :num_train])[..., 0] - y_all[:, :num_train]).square().mean(-1).sum(),
    num_steps=DIGITS["steps"],
    lr=DIGITS["lr"],
    evaluate=lambda step, _: {"loss": (noisy(x_all[:, num_train:])[..., 0] - y_all[:, num_train:]).square().mean(-1)},
    evaluate_every=every,
    progress=size(quick=False, full=True),
)
validation = torch.stack(history.evaluations["loss"]).cpu().view(-1, DIGITS["splits"], len(kinds))
best, final = validation.min(0).values, validation[-1]

# %% [markdown]
# **What to look for.** Which curves stay high from the beginning, and which dip before they rise?

# %% alt="Validation loss over steps for clean labels, raw low-frequency noise and three equalised noises."
fig, ax = plt.subplots(figsize=(7.6, 2.9))
for i, (name, colour) in enumerate(zip(kinds, ["#444444", PALETTE[3], PALETTE[0], PALETTE[2], PALETTE[1]])):
    ax.plot(history.evaluation_steps, validation.mean(1)[:, i], color=colour, label=name)
ax.set(xlabel="step", ylabel="loss on clean labels", yscale="log", ylim=(None, 9))
ax.set_title(f"Validation loss, mean over {DIGITS['splits']} splits")
ax.legend(ncols=5, loc="upper center", columnspacing=1.2, handlelength=1.5)
plt.show()

# %%
low, middle, high = (list(kinds).index(name) for name in ("k = 0.1", "k = 1", "k = 4"))
noise_ratio = (best[:, low].mean() / best[:, high].mean()).item()
middle_ratio = (best[:, low].mean() / best[:, middle].mean()).item()
raw_ratio = (best[:, 1].mean() / best[:, high].mean()).item()
dip = final[:, high] / best[:, high]
leaning = torch.corrcoef(torch.stack([radial_noise(images, 0.1, reference=images), labels]))[0, 1]
say(
    f"Best validation loss relative to k = 4: raw noise at k = 0.05 {raw_ratio:.1f} times, equal-power noise at k = 0.1 {noise_ratio:.1f} times. "
    f"Against k = 1 instead, the factor is {middle_ratio:.1f}: between the smallest and the largest norm in this data set fit "
    f"only {images.norm(dim=1).max() - images.norm(dim=1).min():.1f} waves at k = 1. The noise at k = 0.1 has correlation {leaning:.2f} with the labels, "
    "since eights have the larger norm: part of its harm is that it shrinks them."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-11", noise_ratio)
claim("SB-12", dip)

# %% [markdown]
# **What you saw.** All three equal-power noises leave a dip, the deeper and the longer the higher the frequency. High-frequency noise is fitted late, so early stopping filters it out: stopping early *is* a low-pass filter. Most of the dramatic gap in the raw version, however, is the shift.
#
# ### A spectrum without a grid: eigenvectors of a kernel
#
# Experiment 4 replaces sine waves by the eigenvectors $v_1,v_2,\dots$ of a Gaussian kernel matrix $\exp(-\|x_i-x_j\|^2/2\sigma^2)$ on the images, in order of falling eigenvalue: the first vary slowly over the data, the last change sign from neighbour to neighbour.
# We add noise $\sum_n(n/N)^2v_n$ with $N$ images, two thirds of whose energy ($1-0.8^5$) lies in the last fifth of the eigenvectors, and follow the residual's energy in fifths of the spectrum, each relative to the noisy labels' energy there. A fifth counts as fitted when a tenth of it is left.
# All images are trained on; there is no validation set here. (The paper's $\sigma=1.25$ makes the kernel almost the identity on MNIST, with all eigenvalues near 1; on these digits, with $\sigma=1$, they differ widely.)

# %%
eigenvalues, vectors = sb.gaussian_kernel_eigenbasis(images, sigma=1.0)
vectors = vectors.float()
count = len(images)
noisy_labels = labels + vectors @ (torch.arange(count) / (count - 1)) ** 2
torch.manual_seed(seed)
_, kernel_steps, outputs = train(
    [mlp(64, 1, width=128, depth=DIGITS["depth"])],
    images[None],
    noisy_labels[None],
    steps=DIGITS["kernel_steps"],
    lr=DIGITS["lr"],
    record_every=5,
    name="eigenbasis",
)
missing = (outputs[:, 0] - noisy_labels) @ vectors  # residual in the eigenbasis, (time, eigenvectors)
wanted = noisy_labels @ vectors
fifths = torch.arange(count).chunk(5)
share = torch.stack([missing[:, part].square().sum(1) / wanted[part].square().sum() for part in fifths], 1)
clean_loss = (outputs[:, 0] - labels).square().mean(1)
fitted_at = [
    kernel_steps[(share[:, i] < 0.1).nonzero()[0, 0]].item() if (share[:, i] < 0.1).any() else math.inf
    for i in range(5)
]
last_fitted = f"at step {fitted_at[-1]}"
if math.isinf(fitted_at[-1]):  # not fitted at all within the budget: later than the last step
    fitted_at[-1] = kernel_steps[-1].item()
    last_fitted = f"not before step {fitted_at[-1]}"

# %% [markdown]
# **What to look for.** Left: in which order do the fifths of the spectrum reach the dashed line? Right: how much of each fifth is fitted when the loss on clean labels is lowest?

# %% alt="Residual energy of five spectral bands over steps; loss on clean labels with a dip."
fig, axes = plt.subplots(1, 2)
for i, colour in enumerate(sequential(5)):
    axes[0].plot(kernel_steps, share[:, i], color=colour, label=f"fifth {i + 1}")
axes[0].axhline(0.1, color="#999999", ls="--", lw=0.8)
axes[0].set(xlabel="step", ylabel="residual energy / target energy", yscale="log", ylim=(1e-3, 12))
axes[0].legend(fontsize=8, ncols=3, loc="upper right", handlelength=1.2, columnspacing=0.8)
axes[1].plot(kernel_steps, clean_loss, color=PALETTE[1])
axes[1].set(xlabel="step", ylabel="loss on clean labels", yscale="log")
label_panels(axes, ["Fifths of the kernel's spectrum", "The dip"])
plt.show()

# %%
say(
    f"First fifth fitted at step {fitted_at[0]}, last {last_fitted}. The clean loss is lowest ({clean_loss.min():.3f}) at step "
    f"{kernel_steps[clean_loss.argmin()]} and ends at {clean_loss[-1]:.2f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-13", fitted_at[-1] / fitted_at[0])

# %% [markdown]
# **What you saw.** The first fifth goes early, the last three late and close together, not in strict order. In between lies the dip: the network has most of the smooth part, which carries the labels, and little of the last fifths.
#
# ## Data on a curve: the embedding decides what is "low"
#
# Frequencies are measured in the coordinates that the network sees. Put the same signal $\lambda(z)$ on a closed curve in the plane, $\gamma_L(z)=R_L(z)\,(\cos2\pi z,\sin2\pi z)$ with $R_L(z)=1+\frac12\sin2\pi Lz$: a circle for $L=0$, a flower with $L$ petals otherwise.
# A petal carries the network through a large part of the plane in a short time $z$, so that a *slow* function of the plane, $f(x)=x_1$ say, is already *fast* along the curve: it has frequencies 1, $L-1$ and $L+1$.

# %%
torch.manual_seed(seed)
petals = [0, 4, 10, 16]
z = grid(CURVE["points"])
signals = sum_of_sines(z, CURVE["frequencies"], num_signals=CURVE["runs"], generator=runtime.generator(seed))
bases = [mlp(2, 1, width=CURVE["width"], depth=CURVE["depth"]) for _ in range(CURVE["runs"])]
_, curve_steps, outputs = train(
    [net for net in bases for _ in petals],
    torch.stack([flower(z, L) for _ in bases for L in petals]),
    signals.repeat_interleave(len(petals), 0),
    steps=CURVE["steps"],
    lr=CURVE["lr"],
    record_every=10,
    name="curve",
)
curve_loss = (
    (outputs - signals.repeat_interleave(len(petals), 0)).square().mean(-1).view(-1, CURVE["runs"], len(petals))
)
last = curve_loss[-5:].mean(0)  # mean over the last records, since Adam's loss jumps
petal_ratio = (last[:, 0] / last[:, petals.index(10)]).mean().item()

# %% [markdown]
# **What to look for.** The same signals, networks and budget: only the shape of the curve differs. Does each further petal help?

# %% alt="Four flower curves coloured by the signal; training loss against step for each."
fig = plt.figure(figsize=(7.6, 3.0))
grid_spec = fig.add_gridspec(2, 4, width_ratios=[1.3, 1.3, 0.15, 3])
for i, L in enumerate(petals):
    ax = fig.add_subplot(grid_spec[i // 2, i % 2])
    ax.scatter(*flower(z, L).T, c=signals[0], s=5, cmap="cividis")
    ax.set(aspect="equal", xticks=[], yticks=[], xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    ax.set_title(f"L = {L}", fontsize=9)
    ax.grid(False)
ax = fig.add_subplot(grid_spec[:, 3])
for i, (L, colour) in enumerate(zip(petals, sequential(4))):
    ax.plot(curve_steps, curve_loss.mean(1)[:, i], color=colour, label=f"L = {L}")
ax.set(xlabel="step", ylabel="training loss", ylim=(0, None))
ax.legend()
plt.show()

# %%
say(
    "Training loss at the end, mean over runs: "
    + ", ".join(f"L = {L}: {v:.2f}" for L, v in zip(petals, last.mean(0)))
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-14", petal_ratio)

# %% [markdown]
# **What you saw.** Petals make the same signal easier than the circle does, as the paper says. Whether 16 of them beat 10 within this budget is another matter; read the numbers above.
#
# ## Capacity: depth, width, and a bound on the weights
#
# Experiment 7 fits a spike: $y=1$ at one grid point and 0 elsewhere. Its spectrum is flat, so that all frequencies count alike; $n|F_k|=1$ is a perfect fit for every $k$, and the mean over $k\ge1$ says how much of the spectrum the network has.
# We vary the depth (at width 32), the width (with 3 layers), and a clip that puts all parameters back into $[-K,K]$ before each step (4 layers of width 64). For depth and width, $K=10$.

# %%
z = grid(DELTA["points"])
spike = torch.zeros(DELTA["points"])
spike[DELTA["points"] // 2] = 1.0
bands = list(range(1, DELTA["points"] // 2))


def recovered_spike(depth, width, clip):
    """Mean of n |F_k| over k >= 1 after training, one value a run."""
    nets = Stack([mlp(1, 1, width=width, depth=depth) for _ in range(DELTA["runs"])]).to(device)
    inputs, goals = (t.expand(DELTA["runs"], *t.shape).to(device) for t in (z[:, None], spike))

    def loss(inputs, goals):
        with torch.no_grad():
            for p in nets.parameters():
                p.clamp_(-clip, clip)
        return (nets(inputs)[..., 0] - goals).square().mean(-1).sum()

    name = f"spike-{depth}-{width}-{clip}-{seed}.pt"
    checkpoint = size(quick=None, full=runtime.scratch_dir() / "01_spectral_bias" / name)
    data = (inputs, goals)
    fit(nets, loss, data=data, num_steps=DELTA["steps"], lr=DELTA["lr"], checkpoint=checkpoint, progress=False)
    with torch.no_grad():
        return sb.coefficients(nets(inputs)[..., 0], bands).abs().mean(-1).cpu() * DELTA["points"]


# %%
torch.manual_seed(seed)
by_depth = {depth: recovered_spike(depth, 32, 10.0) for depth in (3, 4, 5)}
by_clip = {clip: recovered_spike(4, 64, clip) for clip in (0.1, 0.2, 0.5, 2.0)}
by_width = {16: recovered_spike(3, 16, 10.0), 32: by_depth[3], 64: recovered_spike(3, 64, 10.0)}

# %% [markdown]
# **What to look for.** Which of the three knobs moves the dots most? Each dot is one run.

# %% alt="Share of a delta's spectrum recovered against depth, width and weight clip; dots are runs."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.6), sharey=True)
for ax, results, label in zip(axes, (by_depth, by_width, by_clip), ("linear layers", "width", "parameters clipped at")):
    for i, values in enumerate(results.values()):
        ax.plot([i] * len(values), values, "o", color=PALETTE[0], alpha=0.6)
    ax.plot(range(len(results)), [values.mean() for values in results.values()], color=PALETTE[1])
    ax.set(xticks=range(len(results)), xticklabels=list(results), xlabel=label, xlim=(-0.4, len(results) - 0.6))
axes[0].set(ylabel="recovered spectrum", ylim=(0, 1))
label_panels(axes, ["Depth", "Width", "Weight bound"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-15", (by_depth[5].mean() / by_depth[3].mean()).item())
claim("SB-16", (by_clip[0.5].mean() / by_clip[0.1].mean()).item())

# %% [markdown]
# **What you saw.** Depth and the bound on the weights move the dots far; width alone moves them little.
#
# ## Inside a class: one connected, smooth piece
#
# If the output is smooth in the input, then inputs of one class should be joined by paths on which the network never changes its mind. Experiment 9 finds such paths for all pairs of CIFAR-10 images of a class, even between *adversarial* images: pictures of something else, nudged until the network names the class.
# We do this on the digits. A path is a chain of pivots between two end points; each pivot moves down the negative log-probability of the class, but only across the path, and the pivots are spread out evenly again after each move. (The same idea, in the space of parameters, finds paths between minima: [chapter 02](02_paths_between_minima.ipynb).)

# %%
torch.manual_seed(seed)
pictures, classes = digits()
classifier = mlp(64, 10, width=64, depth=3)
fit(classifier, lambda: F.cross_entropy(classifier(pictures), classes), num_steps=300, lr=3e-3, progress=False)


def fool(x, wanted, steps=200):
    """Nudge images until the network is 99 % certain of the wanted class."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        log_p = F.log_softmax(classifier(x), -1).gather(1, wanted[:, None])[:, 0]
        direction = torch.autograd.grad(log_p.sum(), x)[0]
        x = x + 0.05 * F.normalize(direction, dim=1) * (log_p < math.log(0.99))[:, None]
    return x.detach()


# %% [markdown]
# End points for each class: a third of the pairs joins two real images, a third a real and an adversarial one, a third two adversarial ones.

# %%
source = runtime.generator(seed)
ends, target_class = [], []
for c in range(10):
    certain = (classes == c) & (F.softmax(classifier(pictures), -1)[:, c] > 0.96)
    real = pictures[certain][torch.randperm(int(certain.sum()), generator=source)[:36]]
    others = pictures[classes != c][torch.randperm(int((classes != c).sum()), generator=source)[:36]]
    false = fool(others, torch.full((36,), c))
    ends.append(
        torch.cat(
            [
                torch.stack([real[:12], real[12:24]], 1),
                torch.stack([real[24:], false[:12]], 1),
                torch.stack([false[12:24], false[24:]], 1),
            ]
        )
    )
    target_class.append(torch.full((36,), c))
ends, target_class = torch.cat(ends), torch.cat(target_class)  # (pairs, 2, 64): real-real, real-false, false-false


# %% [markdown]
# The path itself, for all pairs at once:

# %%
def spread(path):
    """Move the pivots along their polygon so that all its segments have the same length."""
    lengths = (path[:, 1:] - path[:, :-1]).norm(dim=-1)
    travelled = F.pad(lengths.cumsum(1), (1, 0))
    wanted = torch.linspace(0, 1, path.shape[1]) * travelled[:, -1:]
    upper = torch.searchsorted(travelled, wanted).clamp(1, path.shape[1] - 1)
    low, high = (travelled.gather(1, i) for i in (upper - 1, upper))
    weight = ((wanted - low) / (high - low))[..., None]
    pick = [path.gather(1, i[..., None].expand(-1, -1, path.shape[2])) for i in (upper - 1, upper)]
    return pick[0] * (1 - weight) + pick[1] * weight


def certainty(path, between=10):
    """Lowest probability of the class along the polygon, looked at between the pivots too."""
    t = torch.arange(between)[:, None] / between
    dense = torch.cat([(path[:, :-1, None] * (1 - t) + path[:, 1:, None] * t).flatten(1, 2), path[:, -1:]], 1)
    p = F.softmax(classifier(dense), -1)
    return p[torch.arange(len(path)), :, target_class].min(1).values.detach()


# %%
line = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.linspace(0, 1, 17)[:, None]
path = line.clone()
for _ in range(60):
    middle_part = path[:, 1:-1].clone().requires_grad_()
    energy = -F.log_softmax(classifier(middle_part), -1)[torch.arange(len(path)), :, target_class]
    (downhill,) = torch.autograd.grad(energy.sum(), middle_part)
    tangent = F.normalize(path[:, 2:] - path[:, :-2], dim=-1)
    across = downhill - (downhill * tangent).sum(-1, keepdim=True) * tangent
    step = 0.05 * F.normalize(across, dim=-1) * (energy > 0.01)[..., None]
    path = spread(torch.cat([path[:, :1], (middle_part - step).detach(), path[:, -1:]], 1))
length = ((path[:, 1:] - path[:, :-1]).norm(dim=-1).sum(1) / (ends[:, 1] - ends[:, 0]).norm(dim=-1)).mean()

# %% [markdown]
# **What to look for.** The pair whose *straight* line was worst: how certain is the network along the line and along the path, and do the images on the path look like the class on the axis, to you?

# %% alt="Certainty of the class along the straight line and along the relaxed path; the images on that path."
worst = certainty(line).argmin()
fig = plt.figure(figsize=(7.6, 3.1))
grid_spec = fig.add_gridspec(2, 9, height_ratios=[2.1, 1])
ax = fig.add_subplot(grid_spec[0, :])
kind = ["two real images", "a real and an adversarial image", "two adversarial images"][int(worst) % 36 // 12]
ax.set_title(f"The hardest pair for the straight line: {kind}")
for chain_of_images, name, colour in ((line, "straight line", PALETTE[1]), (path, "path", PALETTE[0])):
    t = torch.linspace(0, 1, 17)
    p = F.softmax(classifier(chain_of_images[worst]), -1)[:, target_class[worst]].detach()
    ax.plot(t, p, "o-", ms=4, color=colour, label=name)
ax.axhline(0.95, color="#999999", ls="--", lw=0.8)
ax.set(xlabel="position between the two images", ylabel=f"probability of “{int(target_class[worst])}”")
ax.legend(loc="lower right")
for i in range(9):
    ax = fig.add_subplot(grid_spec[1, i])
    ax.imshow(path[worst, 2 * i].view(8, 8), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
plt.show()

# %%
connected = (certainty(path) > 0.95).float().mean().item()
straight = (certainty(line) > 0.95).float().mean().item()
say(
    f"{len(ends)} pairs, two thirds of them with adversarial ends. Certain all along: the straight line for {straight:.1%}, the path for {connected:.1%}. "
    f"Paths are {length - 1:.2%} longer than straight on average."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-17", connected)

# %% [markdown]
# **What you saw.** The claim holds, but on data this easy the straight line almost always does; the paths have little left to do. CIFAR-10, the paper's case, is a harder test.
#
# ## Ways around the bias
#
# **Random Fourier features** (Tancik et al. 2020) feed the network $[\cos2\pi Bx,\sin2\pi Bx]$ with a fixed Gaussian matrix $B$ of standard deviation $\sigma$. The inner product of two mapped points, divided by the number of rows of $B$, is nearly $\exp(-2\pi^2\sigma^2\|x-x'\|^2)$: the tangent kernel becomes a function of the distance whose width you choose, and $\sigma$, in cycles per unit of $x$, is its bandwidth.
#
# **SIREN** (Sitzmann et al. 2020) uses $\sin(\omega_0\,\cdot)$ as activation with $\omega_0=30$, and an initialisation that keeps the variance of every layer's input at the same value.
#
# Target: ten sines up to 50 cycles, 200 samples, few steps. We look at the loss on the samples and *between* them, halfway from each sample to the next.

# %%
z = grid(200)
between = z + 0.5 / 200
ks_remedy = list(range(5, 51, 5))
signal, truth_between = (sum_of_sines(t, ks_remedy, generator=runtime.generator(seed)) for t in (z, between))


def plain(depth):
    return lambda source: mlp(1, 1, width=128, depth=depth)


def with_features(sigma):
    return lambda source: nn.Sequential(
        FourierFeatures(1, 128, sigma=sigma, generator=source), *mlp(256, 1, width=128, depth=4)
    )


makers = {
    "ReLU, 3 layers": plain(3),
    "ReLU, 5 layers": plain(5),
    "Fourier features, σ = 1": with_features(1.0),
    "Fourier features, σ = 10": with_features(10.0),
    "Fourier features, σ = 100": with_features(100.0),
    "SIREN": lambda source: siren(1, 1, width=128, depth=4, generator=source),
}


# %%
def learn(name, net):
    """Outputs along the training, (time, 400): on the 200 samples, then between them."""
    t = torch.cat([z, between])[:, None].to(device)
    both, goal = (2 * t - 1 if name == "SIREN" else t), signal[0].to(device)  # SIREN wants inputs in [-1, 1]
    history = fit(
        net,
        lambda: (net(both[:200])[:, 0] - goal).square().mean(),
        num_steps=REMEDY_STEPS,
        lr=5e-4 if name == "SIREN" else 1e-3,
        evaluate=lambda step, _: {"output": net(both)[:, 0]},
        evaluate_every=REMEDY_STEPS // 50,
        progress=False,
    )
    return history.evaluation_steps, torch.stack(history.evaluations["output"]).cpu()


# %%
torch.manual_seed(seed)
films, losses = {}, {}
for name, make in makers.items():
    film_steps, films[name] = learn(name, make(runtime.generator(seed)).to(device))
    parts = films[name][-1].split(200)
    losses[name] = [(end - truth[0]).square().mean().item() for end, truth in zip(parts, (signal, truth_between))]

# %% [markdown]
# **What to look for.** Light bars: how well are the samples fitted? (A bar that seems missing ends below the axis.) Dark bars: is the curve right between them, too?

# %% alt="Bars of loss on and between the samples for plain networks, Fourier features of three bandwidths, and SIREN."
fig, ax = plt.subplots(figsize=(7.6, 2.9))
place = torch.arange(len(losses))
ax.bar(
    place - 0.2,
    [max(on, 1e-8) for on, _ in losses.values()],
    0.38,
    color=PALETTE[4],
    label="on the samples",
    bottom=1e-9,
)
ax.bar(
    place + 0.2, [off for _, off in losses.values()], 0.38, color=PALETTE[0], label="between the samples", bottom=1e-9
)
ax.axhline(len(ks_remedy) / 2, color="#999999", ls="--", lw=0.8)
ax.set(yscale="log", ylim=(1e-8, 60), ylabel="mean squared error", xticks=place)
ax.set_xticklabels([name.replace(", ", ",\n") for name in losses], fontsize=8.5)
ax.set_title(f"After {REMEDY_STEPS} steps; the dashed line is the loss of predicting 0")
ax.legend(ncols=2, loc="upper right", fontsize=8.5)
ax.grid(axis="x", visible=False)
plt.show()


# %%
def on(name):
    return losses[name][0]


def off(name):
    return losses[name][1]


best_plain = min(on("ReLU, 3 layers"), on("ReLU, 5 layers"))
remedies = [best_plain / max(on(name), 1e-12) for name in ("Fourier features, σ = 10", "SIREN")]
bandwidth = [off(f"Fourier features, σ = {s}") / off("Fourier features, σ = 10") for s in (1, 100)]
say(
    f"Between the samples: σ = 1 is {bandwidth[0]:.0f} times worse than σ = 10, and σ = 100 is {bandwidth[1]:.0f} times worse."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("SB-18", remedies)
claim("SB-19", bandwidth)


# %% [markdown]
# **What you saw.** The bias is a property of coordinates and activation, and both are yours to choose. The price is also visible: with too large a bandwidth the samples are fitted perfectly and the space between them is noise. A bandwidth is a prior, not a free lunch.
#
# ## Play
#
# Move through the training of each network: the curve on the left, and how much of each frequency it has on the right. Compare σ = 1 with σ = 100, and the two depths.

# %%
def show(network, moment):
    film = films[network][moment]
    fig, axes = plt.subplots(1, 2, width_ratios=[1.5, 1])
    where = torch.cat([z, between]).argsort()
    axes[0].plot(z, signal[0], ".", color="#999999", ms=4, label="samples")
    axes[0].plot(torch.cat([z, between])[where], film[where], color=PALETTE[0], lw=1.2, label=network)
    axes[0].set(xlim=(0, 0.5), ylim=(-8, 8), xlabel="z", ylabel="value")
    axes[0].legend(loc="lower left", ncols=2, fontsize=8)
    have = sb.recovered(film[:200], signal[0], ks_remedy)
    axes[1].bar(range(len(ks_remedy)), have, color=sequential(len(ks_remedy)))
    axes[1].axhline(1, color="#999999", ls="--", lw=0.8)
    axes[1].set(
        xticks=range(len(ks_remedy)),
        xticklabels=ks_remedy,
        xlabel="frequency (cycles)",
        ylabel="recovered amplitude",
        ylim=(0, 1.5),
    )
    label_panels(axes, [f"Step {film_steps[moment]}", "Spectrum"])
    plt.show()


# %% alt="Left: samples and a network's curve at one moment of training. Right: recovered amplitude at ten frequencies."
play(
    show,
    network=choice("network", list(films), "Fourier features, σ = 1"),
    moment=slider("moment", value=12, low=0, high=len(film_steps) - 1),
)

# %% [markdown]
# Without a running kernel, as in the book, the same in still pictures: each row is a network, each column a moment.

# %% alt="Grid of spectra: plain network, Fourier features with three bandwidths and SIREN at four moments of training."
chosen = ["ReLU, 5 layers", *(f"Fourier features, σ = {sigma}" for sigma in (1, 10, 100)), "SIREN"]
moments = [2, 8, 20, 50]
fig, axes = plt.subplots(len(chosen), len(moments), figsize=(7.6, 5.4), sharex=True, sharey=True)
for row, name in zip(axes, chosen):
    for ax, moment in zip(row, moments):
        ax.bar(
            range(len(ks_remedy)),
            sb.recovered(films[name][moment, :200], signal[0], ks_remedy),
            color=sequential(len(ks_remedy)),
        )
        ax.set(ylim=(0, 1.6), xticks=[0, 4, 9], xticklabels=[5, 25, 50], yticks=[0, 1])
    row[0].set_ylabel(name.replace(", ", ",\n").replace("Fourier features", "Features"), fontsize=8.5)
for ax, moment in zip(axes[0], moments):
    ax.set_title(f"step {film_steps[moment]}", fontsize=9)
fig.supxlabel("frequency (cycles)", fontsize=10)
plt.show()

# %% [markdown]
# **What you saw.** The left column shows that the order of learning is still there with σ = 10: low bars first. It only passes sooner. With σ = 100 no order is left to see, and nothing holds the curve between the samples.
#
# **Change it, break it.** Predict first, then try:
#
# - more petals on the curve, `petals = [0, 10, 20, 26]`: does it go on?
# - `nn.Tanh` for `nn.ReLU` in the first training loop: is the staircase gone? (The comparison with `refimpl` after it then fails, as it should.) What does Theorem 1 still say?
# - `reference=None` for all noises on the digits: which curve moves most, and why?
# - SIREN's $\omega_0$: pass `omega=5.0` to `siren`. Which bar of the spectrum falls first?
#
# ## What goes wrong
#
# ### The grid's end point
#
# Include $z=1$ in the grid and each sine is sampled with a slightly wrong period. Its energy leaks into all bins, and the leak looks just like a spectrum that "the network has learned".

# %%
right_grid, wrong_grid = torch.arange(128) / 128, torch.linspace(0, 1, 128)
spectra_of_a_sine = [
    torch.fft.rfft(torch.sin(2 * math.pi * 10 * g), norm="forward").abs() * 2 for g in (right_grid, wrong_grid)
]

# %% alt="Spectrum of one sine on the right grid: one bar. On the wrong grid: a comb of leaked amplitude."
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.2), sharey=True)
for ax, spectrum in zip(axes, spectra_of_a_sine):
    ax.bar(range(25), spectrum[:25].clamp_min(1e-8), color=PALETTE[0], bottom=1e-9)
    ax.set(yscale="log", ylim=(1e-8, 3), xlabel="frequency (cycles)")
axes[0].set_ylabel("amplitude")
label_panels(axes, ["End point left out", "End point included"])
plt.show()
leak = spectra_of_a_sine[1][5].item()
assert spectra_of_a_sine[0][5] < 1e-6 < leak

# %% [markdown]
# On the left all bins but one hold rounding errors; on the right nearly every bin has a share of the sine. **Diagnose it** by transforming the *target* first: bins outside its frequencies must be zero up to rounding. `grid` leaves the end point out, and `recovered` refuses frequencies that the target lacks:

# %%
try:
    sb.recovered(signal[0], signal[0], [7])
except ValueError as error:
    print(error)
else:
    raise AssertionError("a frequency that the target lacks must be refused")

# %% [markdown]
# ### A spectral norm that is none
#
# The numbers in the paper's Figure 1 (right) are too large by a factor of 256. Its notebook estimates the norm of $A$ by power iteration, but operator precedence divides by the transposed vector *before* the last product; for a vector of 256 entries the result is 256 times $b^\top Ab$,
# and iterating with $A$ instead of $A^\top A$ finds an eigenvalue, not a singular value. Compare any hand-made norm with the library's on a matrix whose answer you know. Here: Gaussian entries of variance $\frac1{256}$, for which the norm is near 2.

# %%
torch.manual_seed(seed)
A = torch.randn(256, 256) / 16
b = F.normalize(torch.randn(256), dim=0)
for _ in range(100):
    b = F.normalize(A.T @ (A @ b), dim=0)
true_norm = torch.linalg.matrix_norm(A, 2).item()
say(
    f"Power iteration with $A^\\top A$: {(A @ b).norm():.3f}; library: {true_norm:.3f}; the notebook's formula with the same vector: {256 * abs((b @ A @ b).item()):.1f}."
)
assert abs((A @ b).norm().item() - true_norm) < 0.02 * true_norm

# %% [markdown]
# ### A SIREN with the wrong initialisation
#
# SIREN is an initialisation more than an activation. With PyTorch's default weights the same network starts with waves that are far too fast; the statistics of the hidden layers show it before any training.

# %%
torch.manual_seed(seed)
good = siren(1, 1, width=256, depth=6)
bad = siren(1, 1, width=256, depth=6)
for layer in bad:
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()
probe = torch.rand(2000, 1) * 2 - 1


def input_spread(net):
    """Standard deviation of what the weights send into each sine after the first (biases only shift the phase)."""
    spreads, h = [], probe
    with torch.no_grad():
        for layer in net[:-1]:
            if isinstance(layer, nn.Linear):
                spreads.append((30 * F.linear(h, layer.weight)).std().item())
            h = layer(h)
    return spreads[1:]


say(
    "Spread of what enters each sine: SIREN's initialisation "
    + ", ".join(f"{s:.2f}" for s in input_spread(good))
    + "; PyTorch's default "
    + ", ".join(f"{s:.1f}" for s in input_spread(bad))
    + "."
)
assert all(0.7 < s < 1.3 for s in input_spread(good)) and min(input_spread(bad)) > 2

# %% [markdown]
# What did the theory expect? If $u$ is normal with variance $s$, the mean square of $\sin u$ is $\frac12(1-e^{-2s})$, and SIREN's weights double it. Without biases the variance settles where $s=1-e^{-2s}$, at a standard deviation of about 0.9; the biases move it a little.
# A spread of several radians means that neighbouring inputs land on unrelated phases: expect such a network to start as noise and to fit the samples without the curve between them, as $\sigma=100$ did above.
#
# ## At full size
#
# The next cell shows the record of the full run on a GPU, if one has been made: the paper's network (6 layers of 256), its frequencies 5 to 50, ten runs and 60,000 steps.
# Reproduce it with `make full CHAPTER=01`. Plan for more than ten minutes, since the delta fits run one after the other, 60,000 steps each; it resumes where it was interrupted. Digits stay scikit-learn's at full size: MNIST would need a download.

# %%
record_of_full_run = load_record("01_spectral_bias")
if record_of_full_run is None:
    say("No full-size record has been committed yet.")
else:
    where = f"{record_of_full_run['device']}, {record_of_full_run['date']}, {record_of_full_run['seconds']:.0f} s"
    say(f"{where}\n\n{Summary(record_of_full_run).markdown()}")

# %% [markdown]
# ## What was measured

# %%
claim.summary()

# %%
averages = [sb.learning_order(magnitude[:, i], ks)[0].tolist() for i in range(2 * runs)]
print(
    claim.record(
        frequencies=ks, time_averaged_amplitude=averages, perturbation_norms=norms, retained=kept.mean(0).tolist()
    )
)

# %% [markdown]
# ## Exercises
#
# [Exercise sheet 01](../exercises/01_spectral_bias/01_spectral_bias.ipynb): check the sign in Lemma 1, transform a mesh, fix a broken recorder of spectra, predict a cut-off and a training run, design label noise that hurts, and say what a sine network changes.
#
# ## Further reading
#
# - Rahaman et al. 2019, [arXiv 1806.08734](https://arxiv.org/abs/1806.08734): the paper; read Appendix C for Lemma 2 in any dimension.
# - Xu et al. 2019, [arXiv 1901.06523](https://arxiv.org/abs/1901.06523): the same phenomenon, found independently as the "frequency principle".
# - Jacot, Gabriel, Hongler 2018, [arXiv 1806.07572](https://arxiv.org/abs/1806.07572): the tangent kernel.
# - Basri et al. 2019, [arXiv 1906.00425](https://arxiv.org/abs/1906.00425): its spectrum on the circle, with and without biases.
# - Tancik et al. 2020, [arXiv 2006.10739](https://arxiv.org/abs/2006.10739) and Sitzmann et al. 2020, [arXiv 2006.09661](https://arxiv.org/abs/2006.09661): the two remedies.
# - Diaz, Le, Robins 2016, [arXiv 1602.08593](https://arxiv.org/abs/1602.08593): Fourier transforms of polytopes.
