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
# # 00 · How this course works
#
# Every chapter of this course takes a paper apart, rebuilds its method in a page of PyTorch, and measures whether the
# paper's claims hold. This one shows you how to work with such a chapter, and hands you four tools for the chapters on
# generative models.
#
# **You will be able to** run a chapter at two sizes, read a verdict and know what it is worth; turn a density through a
# map and back; say why maximum likelihood is a distance to the data; multiply with a Jacobian without ever forming
# it; estimate its trace from random probes and predict the error; fit a small normalizing flow to real measurements.
#
# **You need** Python, PyTorch's tensors, partial derivatives, and what a probability density is.
#
# **Minutes:** 10 to read, 30 if you play and break things.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# ## In one picture
#
# Press Shift+Enter to run a cell and move to the next. The first two prepare; the third draws.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

from refimpl import autodiff, metrics, plots, runtime
from refimpl.claims import Claim, Claims
from refimpl.data.tabular import load_tabular, split_folds
from refimpl.plots import say

plots.use_course_style()
device, generator = runtime.device(), runtime.generator(runtime.seed())
num_samples = runtime.size(quick=200_000, full=4_000_000)
num_probes = runtime.size(quick=50_000, full=1_000_000)
num_steps = 200
print(runtime.describe())


# %% [markdown]
# On the left you draw points $z$ from a standard normal distribution. A fixed, smooth, invertible map $g$ (called
# `decode` in the code) stretches, bulges and twists the plane and carries each point to $x = g(z)$.
#
# **What to look for.** Follow one colour from the left panel to the right one. Where do the grid's cells grow, where do
# they shrink, and what happens to the crowd of points there?

# %% alt="Left: round cloud of points on a square grid. Right: the same points and grid, stretched and twisted into a spiral that is thin at one end and wide at the other."
def decode(z, twist=1.2, bulge=0.5):
    """Map g: stretch z, shape (*batch, 2), widen it where z_1 is large, then twist it around the origin."""
    y1, y2 = 1.3 * z[..., 0], 0.3 * torch.exp(bulge * z[..., 0]) * z[..., 1]
    angle = twist * torch.sqrt(1 + y1**2 + y2**2)
    return torch.stack([angle.cos() * y1 - angle.sin() * y2, angle.sin() * y1 + angle.cos() * y2], -1)


z = torch.randn(1500, 2, generator=generator, dtype=torch.float64).to(device)
ticks, along = torch.linspace(-3, 3, 13, device=device), torch.linspace(-3, 3, 200, device=device)
across, down = torch.meshgrid(ticks, along, indexing="ij")
grid = torch.stack([torch.cat([across, down]), torch.cat([down, across])], -1).double()
fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.7))
for ax, move in zip(axes, (lambda z: z, decode), strict=True):
    for line in move(grid).cpu():
        ax.plot(*line.T, color="#bbbbbb", lw=0.6, zorder=1)
    ax.scatter(*move(z).T.cpu(), c=z[:, 0].cpu(), s=4, cmap="viridis", zorder=2)
    ax.set(aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
    ax.grid(False)
axes[0].set(title="latent space: z is normal", xlabel="$z_1$", ylabel="$z_2$")
axes[1].set(title="data space: x = g(z)", xlabel="$x_1$", ylabel="$x_2$")
plt.show()

# %% [markdown]
# **What you saw.** The map makes a complicated distribution out of a simple one. Where it squeezes the cells, the points
# crowd and the density rises; where it widens them, the density falls. That is all a *normalizing flow* is: you learn
# $g$ from data. The rest of this chapter makes the sentence exact.

# %% [markdown]
# ## How a chapter works
#
# **Sizes.** A chapter runs at `quick` size (a laptop, at most 90 seconds) or at `full` size (a GPU). One cell near the top
# picks every number by `runtime.size(quick=..., full=...)`; nothing else changes. You choose when you start, with
# environment variables: `REFIMPL_SIZE=full`, `REFIMPL_DEVICE=cpu`, `REFIMPL_SEED=3`. Without them you get quick size,
# the GPU if there is one, and seed 0. The line printed by `runtime.describe()` above tells you what you got.
#
# **Claims.** A claim is one sentence with a *criterion*: a bound on one measured quantity, written down before anything is
# measured. The table below is such a declaration. Later a cell compares the measurement with the bound and prints one
# line, the verdict: `holds` or `does not hold`.
#
# - `holds` means: the measured value met the bound. The bounds leave room for another seed or another machine, and for
#   each claim a test breaks the method on purpose and checks that the bound notices.
# - `does not hold` means: measured properly, the value missed it. Then the chapter says so and offers its best
#   explanation; nobody moves the bound. Such a line in your own run of an unchanged chapter is a finding.
# - Continuous integration runs every chapter and compares each verdict line with the stored one; figures and
#   measured numbers may differ between machines, verdicts may not.
#
# **Where things are.** One number and one name lead to everything that belongs together:
#
# | file | what it is |
# |---|---|
# | `chapters/NN_name.ipynb` | the chapter, executed; what you are reading |
# | `chapters/NN_name.py` | its text twin: the source, also a plain script (`python chapters/NN_name.py`) |
# | `refimpl/` | the methods, one module each, tested; chapters derive them, then import them |
# | `exercises/NN_name/` | your exercise sheet, with tests that run as you go |
# | `solutions/NN_name/` | the same sheet solved; exercises are generated from it |
# | `results/NN_name.json` | the record of a full-size run; all records and verdicts make the ledger in the README |
#
# Here are this chapter's claims. The first five are textbook identities, which must hold; the last is an experiment.

# %%
claim = Claims("00_how_this_course_works", [
    Claim("GS-1", "the change-of-variables formula gives the density of the transformed samples",
          "change of variables", "-", "total variation distance, formula to samples, 1-D and 2-D", "<=", 0.03),
    Claim("GS-2", "average negative log-likelihood is entropy plus KL divergence, for every parameter",
          "Gibbs' inequality", "0", "largest gap of NLL - entropy to KL over the sweep, nats", "<=", 0.02),
    Claim("GS-3", "Jacobian products equal the products with the full Jacobian",
          "chain rule", "0", "largest relative error of J v and of u J", "<=", 1e-10),
    Claim("GS-4", "a Jacobian product costs a few evaluations of the map in any dimension",
          "Griewank and Walther 2008, Ch. 4", "<= 5", "cost of J v and of u J, in evaluations, d = 4 to 256", "<=", 5.0),
    Claim("GS-5", "the variance of the trace estimator has its closed form, for both kinds of probes",
          "Hutchinson 1990; Girard 1989", "1", "measured variance / closed form", "in", (0.9, 1.1)),
    Claim("GS-6", "on held-out real data a small flow beats a Gaussian and a kernel density estimate",
          "this chapter", "-", "log-likelihood above the better of the two, nats per sample", ">=", 0.05,
          revised="the bound was 0.15 before the density estimate was made a stronger baseline"),
])  # fmt: skip
claim


# %% [markdown]
# ## Tool 1: change of variables
#
# Write $f = g^{-1}$ for the inverse map (`encode`), $p_Z$ for the density of $z$ and $p_X$ for that of $x = g(z)$. In one
# dimension, a short interval at $x$ of length $\mathrm dx$ holds as much probability as its image at $z = f(x)$ of length
# $\mathrm dz = |f'(x)|\,\mathrm dx$. So $p_X(x)\,\mathrm dx = p_Z(z)\,\mathrm dz$, and
#
# $$p_X(x) = p_Z(f(x))\,|f'(x)|.$$
#
# In $d$ dimensions the Jacobian $J(x)$, the matrix with entries $J_{ij} = \partial f_i/\partial x_j$, takes the place of
# $f'$, and $|\det J|$ says by how much a small volume grows:
#
# $$\log p_X(x) = \log p_Z(f(x)) + \log|\det J(x)|.$$
#
# Here are two such densities. In 1-D, $g(z) = e^{z/2}$. In 2-D, $g$ is the map of the picture: the twist turns
# each circle around the origin as a whole and so preserves areas; only the stretch enters, and
# $\log|\det J| = -\log(1.3 \cdot 0.3) - \text{bulge}\cdot z_1$.

# %%
def normal_log_prob(z):
    """log p_Z of a standard normal, z of shape (*batch, dim)."""
    return -z.square().sum(-1) / 2 - z.shape[-1] * math.log(2 * math.pi) / 2


def encode(x, twist=1.2, bulge=0.5):
    """Inverse of decode: untwist, then undo the stretch."""
    angle = -twist * torch.sqrt(1 + x.square().sum(-1))
    z1 = (angle.cos() * x[..., 0] - angle.sin() * x[..., 1]) / 1.3
    z2 = (angle.sin() * x[..., 0] + angle.cos() * x[..., 1]) / 0.3 * torch.exp(-bulge * z1)
    return torch.stack([z1, z2], -1)


def log_prob_1d(x):
    return normal_log_prob(2 * x.log()) + (2 / x).log().squeeze(-1)


def log_prob_2d(x, twist=1.2, bulge=0.5):
    z = encode(x, twist, bulge)
    return normal_log_prob(z) - math.log(1.3 * 0.3) - bulge * z[..., 0]


# %% [markdown]
# First check: automatic differentiation, which knows nothing of our algebra, must find the same log-determinant.
# `autodiff.log_det_jacobian` forms $J$ for every sample and takes $\log|\det J|$.

# %%
x = decode(z)
by_hand = log_prob_2d(x) - normal_log_prob(encode(x))
apart = (by_hand - autodiff.log_det_jacobian(encode, x)).abs().max()
undone = (encode(x) - z).abs().max()
say(f"`encode` undoes `decode` up to {undone:.0e}; the log-determinants differ by at most {apart:.0e}.")


# %% [markdown]
# Second check, the one that counts: samples. Cut a box into equal cells, count the share of samples in each, and integrate
# the formula over the same cells. *Total variation* is half the sum of the absolute differences: 0 if the two agree, 1 if
# they live in different places.

# %%
def cell_shares(x, low, high, bins):
    """Share of the samples x, shape (n, dim), in each of bins**dim equal cells of the box [low, high]^dim."""
    index = ((x - low) / (high - low) * bins).floor().long()
    index = index[((index >= 0) & (index < bins)).all(-1)]
    strides = bins ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    return torch.bincount((index * strides).sum(-1), minlength=bins ** x.shape[1]).double() / len(x)


def cell_masses(log_prob, dim, low, high, bins, fine=8):
    """Integral of exp(log_prob) over each of the same cells, by the midpoint rule with fine**dim points a cell."""
    width = (high - low) / (bins * fine)
    ticks = low + width * (torch.arange(bins * fine, device=device, dtype=torch.float64) + 0.5)
    points = torch.cartesian_prod(*[ticks] * dim).reshape(-1, dim)
    mass = log_prob(points).exp().reshape([bins, fine] * dim) * width**dim
    return mass.sum(dim=list(range(1, 2 * dim, 2))).flatten()


def total_variation(x, log_prob, low, high, bins):
    """Distance of samples and formula on the cells; all that lies outside the box counts as one more cell."""
    shares, masses = cell_shares(x, low, high, bins), cell_masses(log_prob, x.shape[1], low, high, bins)
    return 0.5 * ((shares - masses).abs().sum() + (shares.sum() - masses.sum()).abs()).item()


# %% [markdown]
# **What to look for.** Left: does the curve run through the tops of the bars? Middle and right: is there any place
# where the counted and the computed picture differ?

# %% alt="Left: histogram of one-dimensional samples with the formula's curve through the tops of its bars. Middle and right: two-dimensional histogram and computed density, two spirals that look the same."
latent = torch.randn(num_samples, 2, generator=generator, dtype=torch.float64).to(device)
x_1d, x_2d = torch.exp(latent[:, :1] / 2), decode(latent)
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(8.4, 2.9))
bars = cell_shares(x_1d, 0, 5, 50).cpu().numpy() / 0.1
left.bar([0.1 * i + 0.05 for i in range(50)], bars, width=0.1, color=plots.PALETTE[4], alpha=0.6, label="samples")
at = torch.linspace(0.02, 5, 300, dtype=torch.float64)
left.plot(at, log_prob_1d(at[:, None]).exp(), color=plots.PALETTE[1], label="formula")
left.set(title="1-D: $x = e^{z/2}$", xlabel="$x$", ylabel="density")
left.legend()
counted, computed = cell_shares(x_2d, -4, 4, 80), cell_masses(log_prob_2d, 2, -4, 4, 80)
for ax, share, title in ((middle, counted, "2-D: samples"), (right, computed, "2-D: formula")):
    image = share.reshape(80, 80).T.cpu().numpy() / 0.1**2
    shown = ax.imshow(image, origin="lower", extent=(-4, 4, -4, 4), vmax=computed.max().item() / 0.1**2)
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    ax.grid(False)
fig.colorbar(shown, ax=right, label="density")
plt.show()

# %% [markdown]
# **What you saw.** Twice the same picture; the left of the two is grainy because it is counted. The numbers:

# %%
tv = [total_variation(x_1d, log_prob_1d, 0, 8, 80), total_variation(x_2d, log_prob_2d, -5, 5, 40)]
mass = cell_masses(log_prob_2d, 2, -6, 6, 60).sum()
say(f"Total variation distance: {tv[0]:.4f} (1-D), {tv[1]:.4f} (2-D). The 2-D density integrates to {mass:.4f}.")

# %% [markdown]
# Your first verdict. Its criterion stands in the table above: at most 0.03 for both distances.

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-1", tv)

# %% [markdown]
# And this is what a failure looks like. Drop the determinant from the 2-D formula and ask the same criterion:

# %%
without = total_variation(x_2d, lambda x: normal_log_prob(encode(x)), -5, 5, 40)
held = claim.claims["GS-1"].holds([tv[0], without])
say(f"Without the determinant the distance is {without:.2f}, so the claim {'holds' if held else '**does not hold**'}.")


# %% [markdown]
# ## Tool 2: maximum likelihood is a distance to the data
#
# Your data come from an unknown density $p$; your model is $q_\theta$ with parameters $\theta$. Add and subtract $\log p$
# in the average negative log-likelihood (NLL), where $\mathbb E_p$ is the mean over data:
#
# $$\underbrace{-\mathbb E_p \log q_\theta(x)}_{\text{average NLL}}
# = \underbrace{-\mathbb E_p \log p(x)}_{\text{entropy } H(p)}
# + \underbrace{\mathbb E_p \log\frac{p(x)}{q_\theta(x)}}_{\mathrm{KL}(p\,\|\,q_\theta)\ \ge\ 0}.$$
#
# (KL cannot be negative, by Jensen's inequality: the mean of a logarithm is at most the logarithm of the mean.)
# The entropy does not depend on $\theta$. So the $\theta$ that maximises the likelihood is the one that minimises the
# *Kullback-Leibler divergence* KL, a distance in one direction only ($p$ and $q_\theta$ must not trade places), which is
# zero only for $q_\theta = p$. You can measure the left side without knowing $p$: samples suffice. That is why everybody
# trains with it.
#
# Check it where $p$ is known: a mixture of two normals. The model is the smallest flow there is, $f(x) = x/b$ with one
# parameter $b > 0$, so by tool 1 $\log q_b(x) = \log p_Z(x/b) - \log b$.

# %%
def log_p(x):
    """The data's density: a mixture of two normals with mean zero."""
    parts = [math.log(w / s) + normal_log_prob((x - m) / s) for w, m, s in ((0.6, -1.0, 0.5), (0.4, 1.5, 0.8))]
    return torch.logaddexp(*parts)


def log_q(x, b):
    return normal_log_prob(x / b) - math.log(b)


which = (torch.rand(num_samples, generator=generator) < 0.6).to(device)
samples = torch.where(which, -1 + 0.5 * latent[:, 0], 1.5 + 0.8 * latent[:, 0])[:, None]
points = torch.linspace(-12, 12, 40_001, device=device, dtype=torch.float64)[:, None]
p, width = log_p(points).exp(), 24 / 40_000
entropy = -(p * log_p(points)).sum().item() * width
scales = [0.8 * 1.04**i for i in range(40)]
kl = [(p * (log_p(points) - log_q(points, b))).sum().item() * width for b in scales]
nll = [-log_q(samples, b).mean().item() for b in scales]

# %% [markdown]
# **What to look for.** Do the dots (measured on samples) lie on the line (integrated with the true $p$)? Do both have
# their minimum at the same $b$? Right: is the best model a good one?

# %% alt="Left: KL divergence against b as a line, and average NLL minus entropy as dots on it, with one minimum. Right: two-peaked data density and three normal densities; the best one covers both peaks."
fig, (left, right) = plt.subplots(1, 2)
left.plot(scales, kl, label="KL, integrated")
left.plot(scales, [value - entropy for value in nll], "o", ms=4, label="average NLL − entropy, sampled")
best = min(range(len(scales)), key=nll.__getitem__)
left.axvline(scales[best], color=plots.PALETTE[6], lw=1, ls=":", label="best $b$")
left.set(title="One parameter, two measurements", xlabel="scale $b$ of the model", ylabel="nats", ylim=(0, 1))
left.legend(loc="upper right")
shown = points[(points.abs() < 5).squeeze(-1)][::20]
right.fill_between(shown[:, 0].cpu(), log_p(shown).exp().cpu(), color="#cccccc", label="data $p$")
for b, style in ((0.8, "--"), (scales[best], "-"), (3.0, ":")):
    right.plot(shown[:, 0].cpu(), log_q(shown, b).exp().cpu(), style, label=f"model, $b$ = {b:.2f}")
right.set(title="What the best model looks like", xlabel="$x$", ylabel="density", ylim=(0, 0.85))
right.legend()
plt.show()

# %% [markdown]
# **What you saw.** One curve, measured twice. The best model covers both peaks and fits neither: KL is zero only if the
# family contains $p$, and one number $b$ cannot bend a normal into two peaks. That is what bigger flows are for.

# %%
gaps = [abs(n - entropy - k) for n, k in zip(nll, kl, strict=True)]
best_kl = min(range(len(scales)), key=kl.__getitem__)
say(
    f"Entropy {entropy:.3f} nats. Largest gap over the sweep: {max(gaps):.4f} nats. "
    f"Smallest NLL at b = {scales[best]:.2f}, smallest KL at b = {scales[best_kl]:.2f}; "
    f"the standard deviation of the data is {samples.std():.2f}."
)

# %% [markdown]
# The verdict compares the largest gap with 0.02 nats:

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-2", max(gaps))


# %% [markdown]
# ## Tool 3: products with a Jacobian you never form
#
# A map $f:\mathbb R^d\to\mathbb R^d$ has a Jacobian of $d^2$ numbers: ten thousand million
# for a picture of a hundred thousand values.
# You rarely need them. Automatic differentiation gives you, in one pass each and without approximation,
#
# - `jvp(f, x, v)`: $f(x)$ and $J v$, the rate of change of the output when the input moves along $v$ (*forward mode*);
# - `vjp(f, x, u)`: $f(x)$ and $u^\top J$, the sensitivity of $u^\top f$ to every input at once (*reverse mode*, the
#   pass that trains every network).
#
# The full $J$ takes $d$ such passes. Check both products against it on a random network, and $Jv$ also
# against a central difference $(f(x + \epsilon v) - f(x - \epsilon v)) / 2\epsilon$.

# %%
def random_map(dim, hidden=64):
    """A map f of (*batch, dim) to itself: x plus a network with one hidden layer and random weights."""
    into, out = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((dim, hidden), (hidden, dim))
    )
    into, out = into.to(device) / math.sqrt(dim), out.to(device) / math.sqrt(hidden)
    return lambda x: x + torch.tanh(x @ into) @ out


def relative_error(value, exact):
    return ((value - exact).norm() / exact.norm()).item()


f = random_map(16)
x0, v, u = torch.randn(3, 1, 16, generator=generator, dtype=torch.float64).to(device)
jac = autodiff.jacobian(f, x0)[0]  # (16, 16)
forward, reverse = autodiff.jvp(f, x0, v)[1], autodiff.vjp(f, x0, u)[1]
errors = [relative_error(forward, v @ jac.T), relative_error(reverse, u @ jac)]
difference = (f(x0 + 1e-5 * v) - f(x0 - 1e-5 * v)) / 2e-5
say(
    f"Relative error of Jv: {errors[0]:.0e}, of uJ: {errors[1]:.0e}. "
    f"The central difference agrees with Jv to {relative_error(difference, forward):.0e}."
)

# %% [markdown]
# The products are exact to rounding; the finite difference loses digits, and you have to choose $\epsilon$.

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-3", errors)


# %% [markdown]
# Now the price, in floating-point operations, which do not depend on how busy your machine is. The unit is one evaluation
# of $f$. **What to look for:** which lines rise with the dimension?

# %% alt="Cost in evaluations of f against dimension, both logarithmic: the lines of the two products are flat and below 5, that of the full Jacobian rises in proportion to the dimension."
def flops(function, *inputs):
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


dims, costs = [4, 16, 64, 256], {"$Jv$": [], "$u^T J$": [], "full $J$": []}
for dim in dims:
    h = random_map(dim)
    x, v = torch.randn(2, 1, dim, generator=generator, dtype=torch.float64).to(device)
    once = flops(h, x)
    costs["$Jv$"].append(flops(autodiff.jvp, h, x, v) / once)
    costs["$u^T J$"].append(flops(autodiff.vjp, h, x, v) / once)
    costs["full $J$"].append(flops(autodiff.jacobian, h, x) / once)
fig, ax = plt.subplots(figsize=(5.2, 2.9))
for (name, cost), marker in zip(costs.items(), "os^", strict=True):
    ax.loglog(dims, cost, marker=marker, label=name)
ax.set(title="The price of a derivative", xlabel="dimension $d$", ylabel="evaluations of $f$", xticks=dims)
ax.set_xticks(dims, dims)
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# **What you saw.** Both products cost the same few evaluations in any dimension. The full Jacobian costs one pass for
# each output: at $d = 256$ already a factor of about $d$. Methods that scale are written with products.

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-4", costs["$Jv$"] + costs["$u^T J$"])

# %% [markdown]
# ## Tool 4: a trace from random probes
#
# Many methods need only the trace, $\operatorname{tr} J = \sum_i J_{ii}$. Take a random vector $v$ (a *probe*) with
# $\mathbb E[v v^\top] = I$, the identity. Then
#
# $$\mathbb E[v^\top J v] = \mathbb E[\operatorname{tr}(J v v^\top)] = \operatorname{tr}(J\,\mathbb E[v v^\top]) = \operatorname{tr} J,$$
#
# and $v^\top J v$ costs one product. This is Hutchinson's estimator. Its price is noise. With the symmetric part
# $S = (J + J^\top)/2$ and its Frobenius norm $\|S\|_F^2 = \sum_{ij} S_{ij}^2$, the variance of a single probe is
#
# - $2\sum_{i\ne j} S_{ij}^2$ for *Rademacher* probes (entries $\pm 1$ with equal chance),
# - $2\|S\|_F^2$ for *Gaussian* probes (entries standard normal),
#
# and the mean of $k$ probes has $1/k$ of it. Signs are never worse, because they read the diagonal without error.
# In plain PyTorch the estimator is one line; `refimpl` draws the probes and multiplies without forming $J$.

# %%
probes = {
    kind: autodiff.probe_vectors(x0.expand(num_probes, 16), 1, kind, generator)[0]
    for kind in ("rademacher", "gaussian")
}
by_hand = {kind: ((v @ jac) * v).sum(-1) for kind, v in probes.items()}
estimates = {kind: autodiff.trace_estimate(f, x0.expand(num_probes, 16), probes=v[None]) for kind, v in probes.items()}
apart = max((by_hand[kind] - estimates[kind]).abs().max().item() for kind in probes)
sym = (jac + jac.T) / 2
closed_form = {
    "rademacher": 2 * (sym.square().sum() - sym.diagonal().square().sum()),
    "gaussian": 2 * sym.square().sum(),
}
ratios = [(estimates[kind].var() / closed_form[kind]).item() for kind in probes]
say(
    f"By hand and `refimpl` differ by at most {apart:.0e}. Exact trace {jac.trace():.3f}; mean of the probes "
    + ", ".join(f"{estimates[kind].mean():.3f} ({kind})" for kind in probes)
    + f". Measured variance over closed form: {ratios[0]:.3f} (rademacher), {ratios[1]:.3f} (gaussian)."
)

# %% [markdown]
# **What to look for.** Left: is the exact trace in the middle of the estimates, and how far do single probes stray?
# Right: do the measured errors (dots) follow the closed form (lines), and what does another digit cost?

# %% alt="Left: two overlapping histograms of single-probe estimates around the exact trace. Right: standard deviation against number of probes, both logarithmic: dots on two parallel falling lines."
fig, (left, right) = plt.subplots(1, 2)
for colour, (kind, values) in zip(plots.PALETTE, estimates.items(), strict=False):
    left.hist(values.cpu(), bins=80, range=(-5, 45), density=True, histtype="step", color=colour, label=kind)
    counts = [1, 4, 16, 64, 256]
    deviations = [values[: len(values) // k * k].reshape(-1, k).mean(1).std().item() for k in counts]
    right.loglog(counts, deviations, "o", color=colour, label=f"{kind}, measured")
    right.loglog(
        counts, [(closed_form[kind].item() / k) ** 0.5 for k in counts], color=colour, label=f"{kind}, closed form"
    )
left.axvline(jac.trace().item(), color=plots.PALETTE[6], lw=1, ls=":", label="exact trace")
left.set(title="Estimates from one probe", xlabel="$v^T J v$", ylabel="density")
left.legend(loc="upper right")
right.set(
    title="Error of the mean of $k$ probes", xlabel="number of probes $k$", ylabel="standard deviation", ylim=(0.1, 30)
)
right.set_xticks(counts, counts)
right.set_yticks(levels := [0.1, 0.3, 1, 3, 10], levels)
right.minorticks_off()
right.legend()
plt.show()

# %% [markdown]
# **What you saw.** Both kinds are centred on the exact trace; the signs stray less, since this $J$ has a strong diagonal, as
# that of a residual network has. The error falls as $1/\sqrt k$: a tenth of
# the error costs a hundred times the probes. Training often gets away with $k = 1$, because stochastic gradients
# average the noise away.

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-5", ratios)


# %% [markdown]
# ## All together: a density of real data
#
# The data: 569 tumours from the Wisconsin breast cancer study, which come with scikit-learn. In an image of each, the
# outlines of the cell nuclei were traced. You model two numbers: the mean area of a nucleus, and the standard error
# of that mean (`area error`). Both are positive, skewed, and depend on each other: nothing like a Gaussian.
#
# The flow is *triangular*: $z_1 = f_1(x_1)$ and $z_2 = f_2(x_2; x_1)$, so its Jacobian is a triangular matrix and
# $\log|\det J| = \log \partial f_1/\partial x_1 + \log \partial f_2/\partial x_2$. Each $f_i$ is a sum of rising curves,
#
# $$f_i(x) = t + s x + \sum_k h_k \tanh\big(a_k (x - c_k)\big),\qquad s, h_k, a_k > 0,$$
#
# hence rising itself and invertible. The numbers $t, s, h_k, a_k, c_k$ are learned; for $f_2$ a small network computes
# them from $x_1$. Tool 1 gives the density, tool 2 the loss. That is the whole method:

# %%
class TriangularFlow(nn.Module):
    """log_prob and sample for points of shape (n, 2); density by change of variables."""

    def __init__(self, bumps=6, width=16):
        super().__init__()
        self.bumps = bumps
        zeros, centres = torch.zeros(bumps), torch.linspace(-2, 2, bumps)
        start = torch.cat([zeros - 1, zeros, centres, zeros[:2]])  # what h, a, c, t, s grow from
        self.first = nn.Parameter(start.clone())
        self.second = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, len(start)))
        nn.init.zeros_(self.second[2].weight)
        self.second[2].bias.data = start

    def rising(self, x, numbers):
        """f_i(x) and log of its slope."""
        h, a, c, (t, s) = *numbers[..., :-2].split(self.bumps, -1), numbers[..., -2:].unbind(-1)
        h, a, s = softplus(h), softplus(a), softplus(s - 2)
        u = torch.tanh(a * (x[..., None] - c))
        return t + s * x + (h * u).sum(-1), (s + (h * a * (1 - u**2)).sum(-1)).log()

    def forward(self, x):
        z1, log_slope1 = self.rising(x[:, 0], self.first)
        z2, log_slope2 = self.rising(x[:, 1], self.second(x[:, :1]))
        return torch.stack([z1, z2], -1), log_slope1 + log_slope2


# %% [markdown]
# The density is tool 1. Training is tool 2: plain maximum likelihood, on the whole training set in each step.

# %%
def log_prob(flow, x):
    z, log_det = flow(x)
    return normal_log_prob(z) + log_det


def fit(train, steps=num_steps, density=log_prob):
    torch.manual_seed(runtime.seed())
    flow = TriangularFlow().to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -density(flow, train).mean()
        loss.backward()
        optimizer.step()
    return flow.requires_grad_(False)


# %% [markdown]
# To sample, draw $z$ and solve $f_i(x_i) = z_i$ by bisection, one coordinate after the other: halve an interval that
# contains the solution until it is as short as you like. This works for any rising function.

# %%
def sample(flow, n):
    z = torch.randn(n, 2, generator=generator).to(device)
    x = torch.zeros_like(z)
    for i in range(2):
        low, high = torch.full_like(z[:, 0], -60), torch.full_like(z[:, 0], 60)
        for _ in range(40):
            x[:, i] = (low + high) / 2
            too_low = flow(x)[0][:, i] < z[:, i]
            low, high = torch.where(too_low, x[:, i], low), torch.where(too_low, high, x[:, i])
    return x


# %% [markdown]
# Two baselines make the score mean something. A Gaussian with the training set's mean and covariance; and a *kernel density
# estimate* (KDE), a normal bump of width `h` on each training point. A tumour far from all others would get almost no
# density from bumps and decide the whole score, so the KDE also gets five per cent of the Gaussian. The width is the one
# that gives left-out training points the highest likelihood.

# %%
def fit_gaussian(train):
    return torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())


def kde_log_prob(x, train, h, leave_one_out=False):
    bumps = normal_log_prob((x[:, None] - train) / h) - 2 * math.log(h)  # (n, training points)
    if leave_one_out:
        bumps.fill_diagonal_(-math.inf)
    kde = bumps.logsumexp(1) - math.log(len(train) - leave_one_out)
    return torch.logaddexp(kde + math.log(0.95), fit_gaussian(train).log_prob(x) + math.log(0.05))


def fit_kde(train):
    widths = [0.03 * 1.15**i for i in range(25)]
    return max(widths, key=lambda h: kde_log_prob(train, train, h, leave_one_out=True).mean().item())


values, names = load_tabular("breast_cancer", ["mean area", "area error"])
unit = values.std(0)
data = (values / unit).to(device)  # a fixed change of units, the same for every model

# %% [markdown]
# Five-fold cross-validation: each tumour is held out once and scored by models that never saw it.

# %%
scores = []
for train, held_out in split_folds(len(data), 5, runtime.generator(runtime.seed())):
    train, held_out = data[train.to(device)], data[held_out.to(device)]
    flow, gaussian, h = fit(train), fit_gaussian(train), fit_kde(train)
    scores.append(
        torch.stack([gaussian.log_prob(held_out), kde_log_prob(held_out, train, h), log_prob(flow, held_out)])
    )
scores = torch.cat(scores, 1).double()  # (models, tumours)
means = dict(zip(("Gaussian", "KDE", "flow"), scores.mean(1).tolist(), strict=True))
gain = means["flow"] - max(means["Gaussian"], means["KDE"])
error = ((scores[2] - scores[1]).std() / len(data) ** 0.5).item()
lines = ["| model | held-out log-likelihood, nats per sample |", "|---|---|"]
say("\n".join(lines + [f"| {name} | {value:.2f} |" for name, value in means.items()]))
say(f"The flow is {gain:.2f} nats above the better baseline; the standard error of its lead over KDE is {error:.2f}.")

# %% [markdown]
# **What to look for** in the last fold: where does each model put density that no tumour asks for? (A few tumours with very
# large nuclei lie outside the frame.)

# %% alt="Three panels with the held-out tumours as dots: contours of the Gaussian are ellipses that reach below zero, those of the KDE are bumpy at the rim, those of the flow form a narrow fan that opens to the upper right."
views = {"Gaussian": gaussian.log_prob, "KDE": lambda x: kde_log_prob(x, train, h), "flow": lambda x: log_prob(flow, x)}
area, spread = torch.meshgrid(torch.linspace(-1, 5.5, 120), torch.linspace(-1, 4, 120), indexing="ij")
box = torch.stack([area, spread], -1).reshape(-1, 2).to(device)
fig, axes = plt.subplots(1, 3, figsize=(8.6, 3.1), sharex=True, sharey=True)
for ax, (name, view) in zip(axes, views.items(), strict=True):
    heights = view(box).reshape(120, 120).cpu().numpy()
    ax.contourf(area * unit[0], spread * unit[1], heights, levels=range(-8, 3), cmap="Blues")
    ax.plot(*(held_out.cpu() * unit).T, ".", color=plots.PALETTE[1], ms=4)
    ax.axhline(0, color="#888888", lw=0.8)
    ax.axvline(0, color="#888888", lw=0.8)
    ax.set(title=name, xlabel="mean area (table's units)")
    ax.grid(False)
axes[0].set(ylabel="area error (table's units)", xlim=(-300, 1900), ylim=(-40, 180))
plt.show()

# %% [markdown]
# **What you saw.** Each band is one nat. The Gaussian spends mass on negative areas; the KDE has one width for the dense
# lower left and for the sparse upper right, so it is too wide here and too narrow there. The flow learned the
# fan: large nuclei vary more.
#
# A density is one half; do its samples look like data? The *sliced Wasserstein distance* says how far you must
# move the samples to turn them into the held-out data, on average over directions. *MMD²*, the squared maximum mean discrepancy,
# compares averages of a kernel; near zero is good, and its unbiased estimate may dip below. The first row, training data
# against held-out data, is the best that you can expect.

# %%
chosen = torch.randint(len(train), (1000,), generator=generator).to(device)
bumps = h * torch.randn(1000, 2, generator=generator).to(device)
drawn = {
    "training data": train,
    "Gaussian": gaussian.mean + torch.randn(1000, 2, generator=generator).to(device) @ gaussian.scale_tril.T,
    "KDE": train[chosen] + bumps,
    "flow": sample(flow, 1000),
}
lines = ["| samples from | sliced Wasserstein distance | MMD² | with a negative value |", "|---|---|---|---|"]
for name, points in drawn.items():
    far = metrics.sliced_wasserstein(points, held_out, p=1, generator=runtime.generator(0))
    mmd = metrics.mmd_squared(points, held_out, bandwidth=0.5)
    lines.append(f"| {name} | {far:.3f} | {mmd:.4f} | {(points < 0).any(1).double().mean():.1%} |")
say("\n".join(lines))

# %% [markdown]
# The Gaussian stands out in every column. The other two are close to the first row in the last two columns; in the first,
# the KDE comes nearer than the flow. It redraws its training points, so its samples look right by construction, and only the
# likelihood shows what its bumps cost. The criterion for that is a lead in held-out log-likelihood:

# %%
# NBVAL_CHECK_OUTPUT
claim("GS-6", gain)


# %% [markdown]
# ## Play
#
# Move the controls of the picture's map. The title shows the integral of the formula over the box. **What to look for:** can
# you find a setting in which it leaves 1 while the spiral stays inside the box?

# %% alt="Density of the twisted plane for the sliders' values, with its integral in the title."
def draw_density(twist, bulge, ax=None):
    masses = cell_masses(lambda x: log_prob_2d(x, twist, bulge), 2, -5, 5, 150, fine=1)
    panel = ax or plt.subplots(figsize=(4.2, 3.6))[1]
    panel.imshow(masses.reshape(150, 150).T.cpu().numpy() ** 0.5, origin="lower", extent=(-5, 5, -5, 5))
    panel.set(title=f"integral {masses.sum().item():.3f}", xlabel="$x_1$", ylabel="$x_2$")
    panel.grid(False)
    if ax is None:
        plt.show()


plots.play(
    draw_density,
    twist=plots.slider("twist (radians)", value=1.2, low=-3, high=3, step=0.1),
    bulge=plots.slider("bulge", value=0.5, low=-0.8, high=0.8, step=0.05),
)

# %% [markdown]
# Three settings for readers without a kernel (colour shows the square root of the density, so that you see the tails):

# %% alt="Three densities side by side: a flat ellipse, an S with one thick arm, and a tightly wound spiral; each integrates to about one."
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.1))
for ax, (twist, bulge) in zip(axes, ((0.0, 0.0), (1.2, 0.5), (-2.5, -0.3)), strict=True):
    draw_density(twist, bulge, ax)
    ax.text(-4.7, 4.2, f"twist {twist:g}, bulge {bulge:g}", color="white", fontsize=9.5)
plt.show()


# %% [markdown]
# **What you saw.** Whatever you do, the integral stays 1 until mass leaves the box: the determinant keeps the books.

# %% [markdown]
# ## What goes wrong: the forgotten determinant
#
# The most frequent bug in home-made flows is a loss without $\log|\det J|$. Nothing crashes and the loss falls nicely. It falls
# because the "likelihood" $p_Z(f(x))$ is largest at $z = 0$: the network learns to map *everything* there.
#
# **What to look for.** Left: the sweep of tool 2, with and without the determinant: where are the minima? Right: the diagnostic,
# the integral of the model's density over a box, as the flow of the last section trains on each loss.

# %% alt="Left: the complete loss has its minimum near b = 1.4, the loss without determinant falls for ever as b grows. Right: the integral stays near 1 for the complete loss and grows far above it for the broken one."
def integral(density, steps):
    model = fit(train, steps, density)
    return cell_masses(lambda x: density(model, x.float()), 2, -2, 14, 60).sum().item()


densities = {"complete": log_prob, "no determinant": lambda flow, x: normal_log_prob(flow(x)[0])}
steps = [0, 25, 50, 100, 200]
integrals = {name: [integral(density, n) for n in steps] for name, density in densities.items()}
sweep = {"complete": nll, "no determinant": [value - math.log(b) for value, b in zip(nll, scales, strict=True)]}
fig, (left, right) = plt.subplots(1, 2)
for colour, name in zip(plots.PALETTE, densities, strict=False):
    left.plot(scales, sweep[name], color=colour, label=name)
    right.semilogy(steps, integrals[name], "o-", color=colour, label=name)
left.set(title="Loss of the one-parameter flow", xlabel="scale $b$", ylabel="nats per sample")
right.axhline(1, color=plots.PALETTE[6], lw=1, ls=":")
right.set(title="Does the density integrate to 1?", xlabel="training steps", ylabel="integral over the box")
left.legend()
right.legend(loc="center right")
plt.show()

# %%
say(
    f"After {steps[-1]} steps the complete loss leaves an integral of {integrals['complete'][-1]:.3f}, "
    f"the broken one {integrals['no determinant'][-1]:.1f}."
)

# %% [markdown]
# **What you saw.** Without the determinant, wider is always better, so there is no minimum, and the flow's "density" tends to
# the constant $p_Z(0)$ all over the box. An integral above 1 proves a bug (one below 1 may be mass outside the box, as before
# the first step here); the loss curve alone shows nothing.
# In one or two dimensions, integrate. In more, where you can't, compare your log-determinant with the exact one of
# `autodiff` at a few points. For our flow:

# %%
exact = autodiff.log_det_jacobian(lambda x: flow(x)[0], held_out)
apart = (flow(held_out)[1] - exact).abs().max()
say(f"The flow's log-determinant differs from that of `autodiff` by at most {apart:.0e} (single precision).")

# %% [markdown]
# ## Change it, break it
#
# Nothing that you do in your copy can hurt; *Kernel, Restart Kernel and Run All Cells* puts everything back. Predict first, then run:
#
# 1. In `log_prob_2d`, change the sign of `bulge * z[..., 0]`. Which verdict changes? Which check finds it first?
# 2. In `log_q`, use `x - b` for `x / b` and drop `math.log(b)`. Is the determinant still needed?
# 3. Divide the probes of tool 4 by their length. What does the estimator estimate now?
# 4. Set `num_steps` to 2000. Does the flow still beat the KDE on held-out tumours? Why?
#
# ## Exercises
#
# This chapter has no sheet of its own. Sheets live in [`exercises`](../exercises/); the first belongs to chapter 01,
# on spectral bias. Work in the notebook there: the cells that say `YOUR CODE HERE` are yours, and the cells
# below them test what you wrote.
#
# ## Further reading
#
# - G. Papamakarios, E. Nalisnick, D. J. Rezende, S. Mohamed, B. Lakshminarayanan, *Normalizing Flows for Probabilistic
#   Modeling and Inference*, 2021, [arXiv 1912.02762](https://arxiv.org/abs/1912.02762). Tools 1 and 2 at length, and what
#   came of them.
# - A. Griewank, A. Walther, *Evaluating Derivatives*, 2nd edition, SIAM 2008. Tool 3, with the proof of the bound on its cost.
# - M. F. Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines*,
#   Communications in Statistics 19(2), 1990. Tool 4 with Rademacher probes; A. Girard (1989) has the Gaussian ones.
# - W. N. Street, W. H. Wolberg, O. L. Mangasarian, *Nuclear Feature Extraction for Breast Tumor Diagnosis*, 1993. How the
#   data were measured.
#
# ## What this run found

# %%
claim.summary()

# %%
print(claim.record(held_out_nats=means, standard_error=error, total_variation=tv))
