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
# # 07 · Injective flows: likelihood on a manifold, learned or known
#
# **Papers.** Peter Sorrenson, Felix Draxler, Armand Rousselot, Sander Hummerich, Lea Zimmermann, Ullrich Köthe: *Lifting Architectural Constraints of Injective Flows*, ICLR 2024, [arXiv 2306.01843](https://arxiv.org/abs/2306.01843).
# Marcello Massimo Negri, Jonathan Aellen, Volker Roth: *Injective Flows for Star-like Manifolds*, ICLR 2025, [arXiv 2406.09116](https://arxiv.org/abs/2406.09116).
#
# An autoencoder finds a surface near the data but no density on it; a normalizing flow has a density but needs as many latents as data. An *injective flow* has both: few latents, and a likelihood on the surface that the decoder draws. The first paper trains it with any two networks. Its central lesson is a trap: written down naively, the likelihood wants the surface to *curl up*. You will catch it doing so in cases that can be solved with pencil and paper.
# The second paper asks the opposite question. If the surface is known, such as the simplex or a ball's boundary, can one have the exact density cheaply, and do Bayesian inference on it without a single sample?
#
# **Afterwards you can**
#
# - write down the density of a decoder with fewer latents than data, and compute it in three ways that should agree;
# - derive the loss of free-form injective flows, and build it in 20 lines;
# - explain two ways in which maximum likelihood on a *learned* manifold fails, predict both exactly in a linear and a circular model, and say what the remedy cures and what not;
# - compare samples by a Fréchet distance without fooling yourself;
# - put a flow on any star-like surface, with a density that needs no determinant.
#
# **You need first**: [chapter 06](06_free_form_flows.ipynb) for the gradient trick, and coupling flows from [chapter 03](03_flow_zoo.ipynb). **Time**: 90 minutes.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# All sizes stand in the third code cell: *quick* runs on a laptop in about a minute; *full* has the four tables of the first paper's Table 1, with the authors' latents, noise, $\beta$, batch and learning rate, and wants a GPU.

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn import datasets, linear_model
from torch import nn

from refimpl import runtime
from refimpl.autodiff import jacobian, probe_vectors
from refimpl.claims import Claims, Summary, load_record
from refimpl.data import digits
from refimpl.data.tabular import load_tabular
from refimpl.data.uci import uci
from refimpl.flows import AffineMap, Base, Chain, Flow, StandardNormal, coupling_flow, effective_sample_size
from refimpl.free_form import (
    AngleBox,
    InjectiveFlow,
    LatentMixture,
    StarLike,
    curvature,
    exact_loss,
    fff_loss,
    log_area,
    log_sphere_volume,
    log_volume,
    lp_radius,
    on_manifold_loss,
    to_angles,
    to_unit,
    volume_change_surrogate,
    volume_term,
)
from refimpl.metrics import frechet_distance
from refimpl.nets import Stack, mlp, residual_mlp
from refimpl.plots import PALETTE, choice, label_panels, play, say, sequential, slider, use_course_style
from refimpl.training import TrainingDiverged, fit

use_course_style()

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
BETAS = [0.1, 1.0, 10.0, 100.0]
SINE = size(
    quick=dict(width=48, blocks=2, steps=1100, batch=128, lr=1e-2, runs=2),
    full=dict(width=256, blocks=4, steps=20_000, batch=256, lr=1e-3, runs=3),
)
GAUSS = size(
    quick=dict(width=48, blocks=1, steps=450, batch=96, lr=5e-3, runs=3),
    full=dict(width=128, blocks=2, steps=5000, batch=512, lr=1e-3, runs=3),
)
TABLE = dict(latents=4, width=64, depth=3, steps=size(quick=500, full=1000), batch=128, lr=5e-3, beta=5.0, noise=0.05)
DIGITS = dict(latents=8, width=128, depth=3, steps=size(quick=500, full=3000), batch=128, lr=5e-3, beta=1.0, noise=0.05)
UCI = size(quick={}, full={"power": (3, 9600), "gas": (2, 9900), "hepmass": (10, 10_500), "miniboone": (21, 10_300)})
VI = size(quick=dict(layers=5, width=32, steps=600, batch=256), full=dict(layers=10, width=64, steps=4000, batch=2048))
DIMS = size(quick=[10, 30, 100, 300], full=[10, 30, 100, 300, 1000])
print(runtime.describe())


# %% [markdown]
# ## In one picture
#
# Data in the plane that are really one-dimensional: $x_1\sim\mathcal N(0,1)$, $x_2\propto\sin(\pi x_1/2)$, both of unit variance, plus noise of standard deviation 0.1. An *encoder* $f:\mathbb R^2\to\mathbb R$ makes one latent number $z=f(x)$ of each point, a *decoder* $g:\mathbb R\to\mathbb R^2$ draws a curve. Both are plain residual networks. The loss has a term for the likelihood along the curve and $\beta$ times the squared distance $\|x-\hat x\|^2$ of a point from its *projection* $\hat x=g(f(x))$; you will derive it below.

# %%
def sine(n, source, noise=0.1):
    """n points near the curve, shape (n, 2)."""
    x1 = torch.randn(n, generator=source)
    x2 = torch.sin(math.pi * x1 / 2) / math.sqrt(0.5 - 0.5 * math.exp(-(math.pi**2) / 2))
    return (torch.stack([x1, x2], 1) + noise * torch.randn(n, 2, generator=source)).to(device)


def pair(dim, latents, width, blocks):
    """Encoder and decoder: residual networks in the space of data, one linear map between it and the latents."""
    options = dict(width=width, depth=3, blocks=blocks)
    encoder = nn.Sequential(residual_mlp(dim, **options), nn.Linear(dim, latents))
    return encoder, nn.Sequential(nn.Linear(latents, dim), residual_mlp(dim, **options))


def stacked_pairs(count, net):
    """`count` pairs from different random numbers, trained side by side."""
    pairs = [pair(2, 1, net["width"], net["blocks"]) for _ in range(count)]
    return [Stack(networks).to(device) for networks in zip(*pairs)]


def train(networks, loss, name, steps, lr, may_diverge=False, **options):
    folder = runtime.scratch_dir() / "07_injective_flows"
    checkpoint = size(quick=None, full=folder / f"{seed}-{name}.pt")
    options = dict(schedule="warmup_cosine", checkpoint=checkpoint, progress=size(quick=False, full=True)) | options
    try:
        fit(nn.ModuleList(networks), loss, num_steps=steps, lr=lr, **options)
    except TrainingDiverged as stop:  # the networks are back at their last finite state
        if not may_diverge:
            raise
        print(f"{name}: {str(stop).split('.')[0]}")


# %%
torch.manual_seed(seed)
source = runtime.generator(seed)
weights = torch.tensor(BETAS, device=device).repeat_interleave(SINE["runs"])
encode, decode = stacked_pairs(len(weights), SINE)


def sweep_loss():
    """The loss of free-form injective flows, for each pair with its own beta and its own batch."""
    x = sine(len(weights) * SINE["batch"], source).view(len(weights), -1, 2)
    z, x1, surrogate = volume_change_surrogate(encode, decode, x, generator=source)
    reconstruction = (x - x1).square().sum(-1)
    return (0.5 * z.square().sum(-1) - surrogate + weights[:, None] * reconstruction).mean(1).sum()


train([encode, decode], sweep_loss, "sine", SINE["steps"], SINE["lr"], clip_norm=30.0, generator=source)
test = sine(2000, source)

# %%
t = torch.linspace(-2.6, 2.6, 300, device=device)[None, :, None].expand(len(weights), -1, 1)
with torch.no_grad():
    projected = decode(encode(test.expand(len(weights), -1, 2)))
    curves = decode(t).cpu()
squared = (test - projected).square().sum(-1).mean(1).cpu()
best = [min(range(k, k + SINE["runs"]), key=squared.__getitem__) for k in range(0, len(weights), SINE["runs"])]


def draw_curve(ax, run, points=150):
    """Data, learned curve, and where some points are projected to."""
    ax.plot(*test[:1000].cpu().T, ".", color="#bbbbbb", ms=2)
    pairs = torch.stack([test[:points].cpu(), projected[run, :points].cpu()])
    ax.plot(*pairs.unbind(-1), color=PALETTE[4], lw=0.5)
    ax.plot(*curves[run].T, color=PALETTE[1], lw=2)
    ax.set(xlim=(-3.2, 3.2), ylim=(-2.2, 2.2), xticks=[-2, 0, 2], yticks=[-2, 0, 2])


# %% [markdown]
# **What to look for.** The curves that the decoder draws for latents from $-2.6$ to $2.6$ (orange), from weak to strong reconstruction. Blue lines lead from points to their projections. On the left: where do points that are far apart on the sine end up?

# %% alt="Noisy sine data with the learned curve for four reconstruction weights. At 0.1 the curve misses the data; from 1 on it follows the sine and the projections are short."
fig, axes = plt.subplots(1, 4, figsize=(7.8, 2.4), sharey=True)
for ax, run in zip(axes, best):
    draw_curve(ax, run)
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
label_panels(axes, [f"β = {beta:g}" for beta in BETAS])
plt.show()

# %% [markdown]
# **What you saw.** With a small weight the likelihood has its way, and what it likes is *not* the curve: points that are far apart on it are projected to the same place, and the latent mixes position with noise, since a code of small variance makes the density high. From some $\beta$ on, the curve is found. Both halves have an exact explanation.
#
# ## The claims
#
# Criteria were fixed before measuring; where one was revised, the [ledger](../results/README.md) says how and why. Of neither paper could we read the tables: numbers of the first come from reviews, from later papers and from outputs stored with the authors' code, of the second we had theorem, abstract and code. Where "reported" gives no number, that is why.

# %%
claim = Claims.declared("07_injective_flows")
claim


# %% [markdown]
# ## The idea
#
# ### A density per length, per area, per volume of the manifold
#
# Let $D$ be the number of features and $d<D$ that of latents. The decoder's Jacobian $g'(z)$ is a $D\times d$ matrix. It has no determinant, but a small box of latents is mapped to a small parallelepiped whose volume is larger by the factor
#
# $$V(z)=\sqrt{\det g'(z)^\top g'(z)}\,,\qquad\text{so}\qquad \log p\big(g(z)\big)=\log p_Z(z)-\log V(z)$$
#
# is the density on the manifold $g(\mathbb R^d)$, per $d$-dimensional volume, with $p_Z=\mathcal N(0,I)$. The matrix $g'^\top g'$ is the *Gram matrix*. Check both statements where all is known: a helix $g(z)=(\cos z,\sin z,z/2)$ has $V=\sqrt{1+\frac14}$ everywhere, and the density must integrate to 1 along its *length*.

# %%
def helix(z):
    return torch.cat([z.cos(), z.sin(), z / 2], -1)


z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
log_v = log_volume(helix, z)
density = (StandardNormal([1]).double().log_prob(z) - log_v).exp()
length = (helix(z)[1:] - helix(z)[:-1]).norm(dim=1)
print(f"V {log_v.exp().min():.6f} to {log_v.exp().max():.6f}, expected {math.sqrt(1.25):.6f}")
print(f"integral of the density along the curve: {(0.5 * (density[1:] + density[:-1]) * length).sum():.6f}")

# %% [markdown]
# ### The gradient of the volume, and which Jacobian to put it on
#
# For a tall matrix $J=g'(z)$, differentiate $\frac12\log\det J^\top J$: with $J^\dagger=(J^\top J)^{-1}J^\top$, the *pseudo-inverse*,
#
# $$\tfrac12\,\partial\log\det J^\top J=\operatorname{tr}\big(J^\dagger\,\partial J\big).$$
#
# Earlier injective flows solved linear systems to apply $J^\dagger$. But the encoder knows it. If $f$ maps every point to the latent of the *nearest* point on the manifold, the residual $x-g(f(x))$ is at right angles to the manifold, $g'(f(x))^\top\big(x-g(f(x))\big)=0$; differentiate this at a point $x=\hat x$ of the manifold:
#
# $$g'^\top\big(I-g'f'\big)=0\quad\Longrightarrow\quad f'(\hat x)=g'(z)^\dagger .$$
#
# Then $f'g'=I$, so $\operatorname{tr}(f'\,\partial g')=-\operatorname{tr}(\partial f'\,g')$: the derivative may be moved to the encoder, at the price of a sign, and Hutchinson's estimator of [chapter 06](06_free_form_flows.ipynb) finishes the job. With a random vector $v$ of latents, $\mathbb E\,vv^\top=I$,
#
# $$\partial\log V=-\,\mathbb E_v\big[v^\top\,\partial f'\;g'(z)\,v\big].$$
#
# $f'(\hat x)=g'^\dagger$ is an assumption about a *good* encoder; $f'g'=I$ alone would also allow oblique projections. Put a linear decoder with its pseudo-inverse as encoder, where everything holds exactly, and compare the gradient with that of $\frac12\log\det EE^\top$ by autograd.

# %%
source = runtime.generator(seed)
W = torch.randn(7, 3, dtype=torch.float64, generator=source)
E = torch.linalg.pinv(W).requires_grad_()
x = torch.randn(5, 7, dtype=torch.float64, generator=source)
options = dict(num_probes=3, generator=source)  # as many probes as latents: no noise left
surrogate = volume_change_surrogate(lambda x: x @ E.T, lambda z: z @ W.T, x, **options).surrogate
ours = torch.autograd.grad(surrogate.mean(), E)[0]
exact = torch.autograd.grad(0.5 * torch.logdet(E @ E.T), E)[0]
gradient_error = (ours - exact).abs().max() / exact.abs().max()
say(
    f"Largest difference of the gradients: {gradient_error:.0e} of the largest entry. The surrogate's *value* is {surrogate.mean():.6f}, the number of latents, for every network with f'g' = I: it says nothing about log V, which is {-0.5 * torch.logdet(E @ E.T):.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-3", gradient_error)


# %% [markdown]
# ## From scratch
#
# The loss of one batch, with SG for a stopped gradient:
#
# $$\mathcal L(x)=\beta\,\big\|x-g(f(x))\big\|^2-\log p_Z(f(x))-v^\top f'(x)\;\mathrm{SG}\big[g'(f(x))\,v\big].$$
#
# It is the free-form flow loss of chapter 06 with a rectangular Jacobian; the decoder learns from reconstruction only. One detail will turn out to be the whole point: the encoder's Jacobian is taken at the *data point* $x$, not at its projection $\hat x$.

# %%
def loss_from_scratch(encoder, decoder, x, beta, v):
    """v: probe vectors, shape (batch, d)."""
    x = x.clone().requires_grad_()
    z = encoder(x)
    x1, pushed = torch.autograd.functional.jvp(decoder, z.detach(), v)  # g'(z) v
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)  # v^T f'(x), and a graph to differentiate it again
    x1 = decoder(z)
    volume = (pulled * pushed.detach()).sum(-1)
    log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    return (beta * (x - x1).square().sum(-1) - log_p - volume).mean()


torch.manual_seed(seed)
encoder, decoder = pair(2, 1, 16, 1)
x = sine(64, source).cpu()
v = probe_vectors(torch.zeros(64, 1), 1, "sphere", source)
mine = loss_from_scratch(encoder, decoder, x, 5.0, v[0])
theirs = fff_loss(encoder, decoder, x, beta=5.0, probes=v)[0]
gradients = [torch.autograd.grad(value, [*encoder.parameters(), *decoder.parameters()]) for value in (mine, theirs)]
gap = max((a - b).abs().max().item() for a, b in zip(*gradients))
print(f"losses {mine.item():.6f} and {theirs.item():.6f}; gradients differ by at most {gap:.0e}")
assert abs(mine - theirs) < 1e-5 and gap < 1e-4


# %% [markdown]
# So `refimpl.free_form.fff_loss` of chapter 06 *is* the loss of injective flows. New in the package are the exact densities, `InjectiveFlow.log_prob`, by three Jacobians that a `side` names:
#
# - `"decoder"`: $-\frac12\log\det g'^\top g'$ at $f(x)$: the density of what you sample;
# - `"encoder"`: $+\frac12\log\det f'f'^\top$ at $x$;
# - `"encoder on manifold"`: the same at $\hat x$.
#
# They agree if $f$ projects orthogonally and $x$ lies on the manifold. Off it they differ, systematically, and that difference is the next section.
#
# ## Two ways to fail
#
# ### First: directions of small variance
#
# Linear model, Gaussian data with covariance $S$, $z=Ex$, $\hat x=Wz$. The likelihood of a one-dimensional code is largest where the code's variance is smallest; only reconstruction objects. Take $D=2$, variances $s_1^2<s_2^2$, $d=1$ and the *exact* negative log-likelihood by the encoder. The best decoder is $W=SE^\top(ESE^\top)^{-1}$ and scaling makes $ESE^\top=1$, so write $E=(\sqrt c/s_1,\ \sqrt{1-c}/s_2)$: $c$ is the noise direction's share of the code. What is left is
#
# $$\mathcal L(c)=-\tfrac12\log\Big(\frac c{s_1^2}+\frac{1-c}{s_2^2}\Big)-\beta\,\big(c\,s_1^2+(1-c)\,s_2^2\big)+\text{const},$$
#
# convex in $c$. Its slope at $c=0$ is $(s_2^2-s_1^2)\big(\beta-\frac1{2s_1^2}\big)$, at $c=1$ it is $(s_2^2-s_1^2)\big(\beta-\frac1{2s_2^2}\big)$. Hence
#
# $$\text{PCA }(c=0)\iff\beta\ge\frac1{2s_1^2},\qquad\text{pure noise }(c=1)\iff\beta\le\frac1{2s_2^2},\qquad\text{else}\quad\frac c{s_1^2}+\frac{1-c}{s_2^2}=\frac1{2\beta s_1^2s_2^2}.$$
#
# For more dimensions, rotating one kept direction into one discarded one is this problem, so *every* discarded variance must satisfy it: $\beta\ge 1/(2\sigma^2)$ with $\sigma^2$ the smallest variance of the data.
#
# And the surrogate? With the best decoder, its gradient is $ES-(ESE^\top)^{-1}ES$. That vanishes for **every** $E$ that whitens the code, $ESE^\top=I$. The surrogate does not care which subspace it is; reconstruction alone chooses, and chooses PCA, for every $\beta>0$. It equals the exact gradient only where $W=E^\dagger$.

# %%
def linear_loss(E, W, S, beta, exact):
    """Expected loss of linear models, one a row: E (models, d, D), W (models, D, d), beta (models,)."""
    gap = torch.eye(S.shape[-1]).to(S) - W @ E
    reconstruction = (gap @ S @ gap.mT).diagonal(dim1=1, dim2=2).sum(1)
    latent = 0.5 * (E @ S @ E.mT).diagonal(dim1=1, dim2=2).sum(1)
    if exact:
        volume = 0.5 * torch.logdet(E @ E.mT)
    else:  # the surrogate with all its probes: a trace, whose gradient goes to the encoder only
        volume = (E @ W.detach()).diagonal(dim1=1, dim2=2).sum(1)
    return (latent - volume + beta * reconstruction).sum()


# %%
def solve_exact(S, latents, beta, source, steps=400):
    """The exact loss's minimum for each beta by L-BFGS, in double precision."""
    E = 0.5 * torch.randn(len(beta), latents, len(S), dtype=S.dtype, generator=source)
    W = E.mT.clone(memory_format=torch.contiguous_format)
    leaves = [E.requires_grad_(), W.requires_grad_()]
    tools = dict(max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, history_size=40)
    optimiser = torch.optim.LBFGS(leaves, line_search_fn="strong_wolfe", **tools)

    def closure():
        optimiser.zero_grad()
        loss = linear_loss(E, W, S, beta, True)
        loss.backward()
        return loss

    optimiser.step(closure)
    return E.detach(), W.detach()


# %%
S = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))  # s_1 = 1 is the noise, s_2 = 2 the signal
source = runtime.generator(seed)
exact_betas = torch.tensor([0.08, 0.15, 0.2, 0.25, 0.3, 0.4, 0.7], dtype=torch.float64)
E, _ = solve_exact(S, 1, exact_betas, source)
variances = (E.square() * S.diagonal()).squeeze(1)
noise_share = variances[:, 0] / variances.sum(1)


def predicted_share(beta):
    return ((1 / (8 * beta) - 0.25) / 0.75).clamp(0, 1)  # solves the line above for s_1^2 = 1, s_2^2 = 4


mixture_error = (noise_share - predicted_share(exact_betas)).abs()

starts = torch.tensor([[1.0, 0.01], [1.0, 1.0], [1.0, -0.5], [0.3, 0.01]], dtype=torch.float64)
surrogate_betas = torch.tensor([0.05, 0.2, 1.0, 3.0, 10.0], dtype=torch.float64).repeat_interleave(len(starts))
E = (0.5 * starts.repeat(5, 1)[:, None]).clone().requires_grad_()
W = (2 * E.detach().mT).clone().requires_grad_()
train_linear = dict(num_steps=1500, lr=0.03, schedule="cosine", progress=False)
fit([E, W], lambda: linear_loss(E, W, S, surrogate_betas, False), **train_linear)
cosine = (E[:, 0, 1] / E[:, 0].norm(dim=1)).abs().detach()
surrogate_share = (E.square() * S.diagonal()).squeeze(1).detach()
surrogate_share = surrogate_share[:, 0] / surrogate_share.sum(1)

# %%
spectrum = torch.tensor([1.0, 1.6, 2.5, 5.0, 7.0], dtype=torch.float64)
turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=source)).Q
factors = torch.arange(0.9, 1.1, 0.02, dtype=torch.float64) + 0.01
E, _ = solve_exact((turn * spectrum) @ turn.T, 2, factors / (2 * spectrum[0]), source, steps=1500)
rows = torch.linalg.qr(E.mT).Q  # orthonormal basis of what the encoder sees
leak = 2 - (turn[:, -2:].T @ rows).square().sum((1, 2))
is_pca = leak < 1e-4
first = int(is_pca.long().argmax()) if is_pca.any() else len(factors) - 1
threshold = factors[first].item() - 0.01

# %% [markdown]
# **What to look for.** Left: do dots lie on the line, where does it reach 0, and what does the surrogate do? Right: five dimensions, two latents, eigenvalues 1, 1.6, 2.5, 5, 7; *leak* is what of the encoder's row space lies outside the principal subspace.

# %% alt="Left: noise share of the code against beta; the exact loss follows the predicted falling line to zero at one half, the surrogate is at zero everywhere. Right: leak out of the principal subspace falls to zero where beta reaches the threshold."
fig, axes = plt.subplots(1, 2, width_ratios=[1.3, 1], figsize=(7.6, 2.8))
line = torch.logspace(-1.4, 1.05, 200, dtype=torch.float64)
axes[0].semilogx(line, predicted_share(line), color=PALETTE[0], label="exact loss, theory")
axes[0].semilogx(exact_betas, noise_share, "o", color=PALETTE[0], label="exact loss, optimised")
axes[0].semilogx(surrogate_betas, surrogate_share, "s", color=PALETTE[1], label="surrogate")
axes[0].set(xlabel="β", ylabel="noise direction's share c", ylim=(-0.05, 1.05))
axes[0].legend()
axes[1].plot(factors, leak.clamp_min(0), "o-", color=PALETTE[0], ms=4)
axes[1].axvline(1, color="k", ls=":", lw=1)
axes[1].set(xlabel="β · 2σ²", ylabel="leak")
label_panels(axes, ["Two dimensions, one latent", "Five dimensions, two latents"])
plt.show()

# %%
say(
    f"Largest error of the predicted share: {mixture_error.max():.1e}. Surrogate: cosine with the principal axis at least {cosine.min():.6f}, for β from {surrogate_betas[0]:g} to {surrogate_betas[-1]:g} and from all starts, the noise direction included. In five dimensions the exact loss turns to PCA at {threshold:.2f} / (2σ²)."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-4", mixture_error)
claim("FIF-5", cosine)
claim("FIF-6", threshold)


# %% [markdown]
# **What you saw.** The paper proves PCA for $\beta\ge1/(2\sigma^2)$; for the *exact* loss this is sharp, and the surrogate does better than its theorem. A whitened code ($ESE^\top=I$) is all that the likelihood term asks for here.
#
# In a linear model $f'$ is the same everywhere: on the manifold or off makes no difference. The second failure needs curvature.
#
# ### Second: curl up
#
# Projected points $\hat x$ have a law $\hat p$ of their own, and on the manifold the expected negative log-likelihood is $\mathrm{KL}(\hat p\,\|\,p)+H(\hat p)$ with the entropy $H$ of the projections *along the manifold*. But the manifold is learned: by bending, it can push projections together, $H(\hat p)\to-\infty$, while a point's distance from the manifold stays bounded. (That $H$ is a lower bound does not yet prove divergence: the KL might grow. An example where it is 0 does.)
#
# **The circle, exactly.** Data in the plane with uniform angle and random radius $\rho$, of mean $\bar\rho$. Encoder: the angle, with a uniform latent. Decoder: a circle of radius $R$, the only parameter. $\hat p$ is uniform on the circle, the KL is 0, and
#
# $$\mathcal L_{\rm on}(R)=\log(2\pi R)+\beta\,\mathbb E(\rho-R)^2,\qquad\mathcal L_{\rm off}(R)=\log2\pi+\mathbb E\log\rho+\beta\,\mathbb E(\rho-R)^2 .$$
#
# On the manifold, $|f'(\hat x)|=1/R$ rewards small circles without limit: $\mathcal L_{\rm on}\to-\infty$ as $R\to0$. A local minimum survives only if $\beta\ge2/\bar\rho^2$, and it is biased inwards, $R_+=\frac12\big(\bar\rho+\sqrt{\bar\rho^2-2/\beta}\big)$. Off the manifold, $|f'(x)|=1/\rho$ does not know $R$, so that $R=\bar\rho$ for every $\beta$.
#
# Now by descent, with the package's exact losses and no closed form. The circles for six $\beta$ are trained side by side; the loss is differentiated with respect to $\log R$.

# %%
class UniformAngle(Base):
    """Latents uniform on a circle of angles."""

    def log_prob(self, z):
        return torch.full_like(z[..., 0], -math.log(2 * math.pi))


def descend(beta, x, side, steps=600):
    """Radii of circles after gradient descent; beta: (circles,), x: (points, 2)."""
    log_r, x = torch.zeros(len(beta), 1, 1, dtype=x.dtype, requires_grad=True), x.expand(len(beta), -1, 2)
    rate = 0.5 / (1 + 2 * beta)[:, None, None]
    base = UniformAngle([1])

    def on_circle(z):
        return log_r.exp() * torch.cat([z.cos(), z.sin()], -1)

    def angle(x):
        return torch.atan2(x[..., 1:], x[..., :1])

    for _ in range(steps):
        nll = -base.log_prob(angle(x)) - volume_term(angle, on_circle, x, side)
        loss = (nll + beta[:, None] * (x - on_circle(angle(x))).square().sum(-1)).mean(1).sum()
        (slope,) = torch.autograd.grad(loss, log_r)
        with torch.no_grad():
            log_r -= rate * slope
    return log_r.detach().exp().flatten()


# %%
source = runtime.generator(seed)
turns = 2 * math.pi * torch.rand(300, dtype=torch.float64, generator=source)
ring = torch.stack([turns.cos(), turns.sin()], 1) + 0.1 * torch.randn(300, 2, dtype=torch.float64, generator=source)
radius = ring.norm(dim=1)
mean_radius, circle_betas = radius.mean(), torch.tensor([1.0, 1.9, 2.5, 5.0, 10.0, 50.0], dtype=torch.float64)


def stationary_radius(beta):
    """R_+, or 0 where there is no local minimum."""
    root = mean_radius**2 - 2 / beta
    return torch.where(root >= 0, 0.5 * (mean_radius + root.clamp_min(0).sqrt()), 0.0)


found = {side: descend(circle_betas, ring, side) for side in ("encoder on manifold", "encoder")}
on_error = (found["encoder on manifold"] - stationary_radius(circle_betas)).abs()
off_error = (found["encoder"] - mean_radius).abs()
say(
    f"Mean radius {mean_radius:.4f}. On the manifold: "
    + "; ".join(
        f"β = {b:g} R = {r:.4f} (closed form {p:.4f})"
        for b, r, p in zip(circle_betas, found["encoder on manifold"], stationary_radius(circle_betas))
    )
    + f". Off the manifold: between {found['encoder'].min():.4f} and {found['encoder'].max():.4f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-1", on_error)
claim("FIF-2", off_error)


# %% [markdown]
# **What to look for.** The losses against $R$ (logarithmic axis), up to a constant. Where is the local minimum on the manifold, and what lies to its left?

# %% alt="Losses against the radius of the circle. On the manifold all curves fall to minus infinity at radius zero, with a local minimum left of the mean radius for large beta only. Off the manifold all have one minimum at the mean radius."
def circle_losses(R, beta):
    reconstruction = beta * ((radius - R[:, None]) ** 2).mean(1)
    return R.log() + reconstruction, radius.log().mean() + reconstruction


R = torch.logspace(-5, 0.23, 300, dtype=torch.float64)
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7.6, 2.7))
for beta, colour in zip((1.0, 2.5, 5.0, 10.0), sequential(4)):
    for ax, loss in zip(axes, circle_losses(R, beta)):
        ax.plot(R, loss, color=colour, label=f"β = {beta:g}")
    low = stationary_radius(torch.tensor(beta, dtype=torch.float64))
    if low > 0:
        axes[0].plot(low, circle_losses(low[None], beta)[0], "o", color=colour)
for ax in axes:
    ax.axvline(mean_radius, color="k", ls=":", lw=1)
    ax.set(xlabel="radius R of the decoder's circle", xscale="log", ylim=(-5, 11))
axes[0].set_ylabel("loss (nats, shifted)")
axes[1].legend(loc="lower left", ncols=2)
label_panels(axes, ["Jacobian on the manifold", "Jacobian at the data"])
plt.show()


# %% [markdown]
# **What you saw.** A well on the left that is infinitely deep. Large $\beta$ only raises the barrier in front of it and reduces the bias; it never removes it.
#
# ### Why looking from the data helps
#
# A plane curve with curvature $\kappa$ at the foot point; $s$ is the signed distance of $x$ from it, positive towards the centre of curvature. Moving $x$ by a small step along the curve moves its foot point by $1/(1-\kappa s)$ times as much (think of lanes of a bend), so for orthogonal projection
#
# $$\|f'(x)\|=\frac{\|f'(\hat x)\|}{|1-\kappa s|}\qquad\Longrightarrow\qquad\mathcal L_{\rm off}=\mathcal L_{\rm on}+\mathbb E\log|1-\kappa s| .$$
#
# Outside of a sharp tip ($s<0$) a point pays $\log(1+\kappa|s|)$, which cancels the $-\log\kappa$ that is gained by crowding its projection there. Check it on a parabola with a numerical orthogonal projection that knows nothing of $\kappa$.

# %%
def parabola(t):
    return torch.cat([t, 0.8 * t**2], -1)


def foot(x, steps=8):
    """Latent of the nearest point: the best of a grid, then Newton's method, whose last step carries the gradient."""
    grid = torch.linspace(-5, 5, 1001, dtype=x.dtype)[:, None]
    t = grid[(x.detach()[..., None, :] - parabola(grid)).square().sum(-1).argmin(-1)]
    for _ in range(steps):
        t = t.detach()
        gap, slope = x - parabola(t), torch.cat([torch.ones_like(t), 1.6 * t], -1)
        first = (gap * slope).sum(-1, keepdim=True)
        second = slope.square().sum(-1, keepdim=True) - 1.6 * gap[..., 1:]
        t = t + first / second.detach()
    return t


# %%
source = runtime.generator(seed)
t = torch.randn(500, 1, dtype=torch.float64, generator=source)
normal = torch.nn.functional.normalize(torch.cat([-1.6 * t, torch.ones_like(t)], -1), dim=-1)  # to the centre's side
s = (0.25 * torch.randn(500, 1, dtype=torch.float64, generator=source)).clamp(-0.5, 0.5)
x = parabola(t) + s * normal
off, on = (volume_term(foot, parabola, x, side) for side in ("encoder", "encoder on manifold"))
tube = torch.log((1 - curvature(parabola, t) * s[:, 0]).abs())
print(
    f"largest difference of the two sides: {(-off + on - tube).abs().max():.1e} nats, of terms up to {tube.abs().max():.2f}"
)
assert (-off + on - tube).abs().max() < 1e-9

# %% [markdown]
# ### With networks
#
# Data $\mathcal N(0,\mathrm{diag}(1,\frac14))$, one latent, $\beta=1$, three networks each. The right answer is the horizontal axis: squared error 0.25, negative log-likelihood along it $\frac12\log2\pi e=1.419$ nats. Five losses: the injective flow's surrogate; the same on the manifold; and the three exact likelihoods.
# Here $\beta=1$ is *below* the linear threshold $1/(2\cdot\frac14)=2$, so that the exact encoder likelihood should leave the axis: by the formula above $c=\frac13$, and the error is $\frac34c+\frac14=\frac12$.

# %%
SPREAD = torch.tensor([1.0, 0.5], device=device)
LOSSES = {
    "surrogate at x": lambda e, d, x, source: fff_loss(e, d, x, beta=1.0, generator=source)[0],
    "surrogate at x̂": lambda e, d, x, source: on_manifold_loss(e, d, x, beta=1.0, generator=source)[0],
    "exact, at x": lambda e, d, x, source: exact_loss(e, d, x, beta=1.0, side="encoder")[0],
    "exact, at x̂": lambda e, d, x, source: exact_loss(e, d, x, beta=1.0, side="encoder on manifold")[0],
    "exact, decoder": lambda e, d, x, source: exact_loss(e, d, x, beta=1.0, side="decoder")[0],
}


def sides(encode, decode, x):
    """Mean negative log-likelihoods by all three Jacobians, nats, and squared reconstruction error."""
    with torch.no_grad():
        z = encode(x)
        log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        names = ("decoder", "encoder", "encoder on manifold")
        nll = {side: -(log_p + volume_term(encode, decode, x, side)).mean(-1).cpu() for side in names}
        return nll | {"squared": (x - decode(z)).square().sum(-1).mean(-1).cpu()}


# %%
def fit_gaussian(name, runs):
    """Stacked networks trained by one of the losses: what they say of fresh points, their curves, their projections."""
    torch.manual_seed(seed)
    source, number = runtime.generator(seed), list(LOSSES).index(name)
    e, d = stacked_pairs(runs, GAUSS)

    def loss():
        x = SPREAD * torch.randn(runs, GAUSS["batch"], 2, generator=source).to(device)
        return runs * LOSSES[name](e, d, x, source)

    train([e, d], loss, f"gauss-{number}", GAUSS["steps"], GAUSS["lr"], name != "surrogate at x", generator=source)
    points = (SPREAD * torch.randn(4000, 2, generator=source).to(device)).expand(runs, -1, 2)
    t = torch.linspace(-2.5, 2.5, 300, device=device)[None, :, None].expand(runs, -1, 1)
    with torch.no_grad():
        more = {"curve": d(t).cpu(), "foot": d(e(points)).cpu(), "points": points[0].cpu()}
    return sides(e, d, points) | more


bends = {name: fit_gaussian(name, GAUSS["runs"]) for name in LOSSES}

# %% [markdown]
# **What to look for.** The decoder's curves (three networks in three colours) and, as black dots, where the first of them (orange) puts the projections of the data. Which curves are straight, and where do projections pile up?

# %% alt="Curves of three networks for five losses on an elongated Gaussian cloud. The surrogate at the data gives the long axis; the exact loss at the data tilts; on the manifold curves bend or fold; the decoder's loss shrinks to short pieces."
fig, axes = plt.subplots(1, 5, figsize=(7.8, 1.9), sharey=True)
for ax, (name, found) in zip(axes, bends.items()):
    ax.plot(*found["points"][:600].T, ".", color="#cccccc", ms=1.5)
    ax.plot(*found["foot"][0, :150].T, ".", color="k", ms=4)
    for curve, colour in zip(found["curve"], (PALETTE[5], PALETTE[0], PALETTE[2])):
        ax.plot(*curve.T, color=colour, lw=1.3)
    ax.set(xlim=(-3, 3), ylim=(-2.4, 2.4), xticks=[-2, 0, 2])
    ax.set_title(name, fontsize=9)
plt.show()

# %%
print(f"{'loss':>15} | squared error | NLL decoder | at x | at x̂  (three networks each; ideal 0.25 and 1.419)")
for name, found in bends.items():
    columns = [
        " ".join(f"{v:6.2f}" for v in found[key]) for key in ("squared", "decoder", "encoder", "encoder on manifold")
    ]
    print(f"{name:>15} | " + " | ".join(columns))

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-7", bends["exact, at x̂"]["encoder on manifold"] - 0.5 * math.log(2 * math.pi * math.e * 0.25))
claim("FIF-8", (bends["surrogate at x"]["decoder"] - 0.5 * math.log(2 * math.pi * math.e)).abs())

# %% [markdown]
# **What you saw.** Only the first loss finds the axis. The exact encoder likelihood at $x$ tilts to the oblique mixture, with the error that the linear theory says. On the manifold the reported likelihood is "better" than any straight line can have ($\frac12\log(2\pi e\cdot\frac14)=0.726$ nats, with a code of pure noise), and the reconstruction is ruined; the surrogate at $\hat x$ goes the same way, more slowly. The decoder's likelihood is the simplest to cheat: draw a short curve, and densities rise. **A likelihood on a learned manifold is no measure of quality by itself. Read it together with the reconstruction error, and let all three sides agree.**
#
# ### What, then, is optimised?
#
# Honestly: nobody has written down a function whose gradient is the surrogate's. It equals the gradient of the on-manifold likelihood only where reconstruction is perfect; it differs from the exact off-manifold one by design, as PCA showed, and to its advantage. The exact off-manifold likelihood is not safe either: ripples of $f$ of amplitude $a$ and frequency $\omega$ *normal* to the manifold raise $\|f'\|$ by $\sqrt{1+a^2\omega^2}$ for a reconstruction cost of order $a^2$. The surrogate looks at $f'$ along the tangent $g'v$ only, and gains nothing from them.
#
# ## Experiments
#
# ### The noisy sinusoid: how much reconstruction?
#
# Back to the first picture. The curve without noise has entropy 1.9653 nats along its length (that of $x_1$, plus the mean logarithm of the speed, by quadrature), and projection loses one direction of noise: ideal squared error $0.1^2$. Compare with the numbers stored with the authors' code: $\beta=0.1,1,10,100$ gave errors 1.53, 0.84, 0.0104, 0.0089.

# %%
grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
scale = 1 / math.sqrt(0.5 - 0.5 * math.exp(-(math.pi**2) / 2))
speed = (1 + (scale * math.pi / 2 * torch.cos(math.pi * grid / 2)) ** 2).sqrt()
weight = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
ideal = 0.5 * math.log(2 * math.pi * math.e) + (weight * speed.log()).sum().item()
measured = sides(encode, decode, test.expand(len(weights), -1, 2))
print(f"ideal: squared error 0.0100, {ideal:.4f} nats")
for run, beta in enumerate(weights.tolist()):
    row = ", ".join(f"{name} {measured[name][run]:.3f}" for name in ("decoder", "encoder", "encoder on manifold"))
    print(f"β = {beta:5g}: squared error {measured['squared'][run]:.4f}; NLL {row}")
shares = measured["squared"].view(len(BETAS), -1) / 0.01
distance = (measured["decoder"][best] - ideal).abs()

# %% [markdown]
# **What to look for.** Where does the error fall to the dashed line? Compare the three likelihoods left of that with what they say right of it.

# %% alt="Left: squared reconstruction error against beta falls from above one to the ideal 0.01 between 0.1 and 10. Right: three negative log-likelihoods against beta; left they disagree and lie below the ideal, right they come together near it."
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.7))
axes[0].loglog(weights.cpu(), measured["squared"], "o", color=PALETTE[0])
axes[0].axhline(0.01, color="k", ls="--", lw=1, label="ideal")
axes[0].set(xlabel="β", ylabel="squared error")
axes[0].legend()
for name, marker, colour in zip(("decoder", "encoder", "encoder on manifold"), "os^", PALETTE):
    axes[1].semilogx(weights.cpu(), measured[name], marker, color=colour, label=name, ms=5, alpha=0.8)
axes[1].axhline(ideal, color="k", ls="--", lw=1)
axes[1].set(xlabel="β", ylabel="NLL (nats)")
axes[1].legend(fontsize=8.5)
label_panels(axes, ["Reconstruction", "Likelihood by three Jacobians"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-9", shares[0].median())
claim("FIF-10", shares[2:].min(1).values)
claim("FIF-11", distance[2:])


# %% [markdown]
# **What you saw.** The transition. Left of it, likelihoods are *lower* (seemingly better) and disagree; right of it they meet at the truth, the decoder's first. The encoder's stays lower until $f$ is an orthogonal projection, which takes longer than a good curve. Applied to a short, straight piece of the curve, with noise 0.1, the linear bound would ask for $\beta\ge50$; here far less does.
#
# ### A table, and digits
#
# Real data: 569 breast tumours with 30 measurements ($d=4$), and 1797 digits of 64 pixels ($d=8$), standardised, with 30 % of rows held out. Three trainings of the same two networks: the injective flow, a plain *autoencoder* ($\beta$-term only) and the on-manifold variant; beside them PCA with normal codes.
# Samples are compared with held-out rows by the squared *Fréchet distance*: both are replaced by normal distributions with their means $m$ and covariances $C$,
#
# $$\|m_1-m_2\|^2+\operatorname{tr}\!\big(C_1+C_2-2(C_1^{1/2}C_2C_1^{1/2})^{1/2}\big).$$
#
# On classifier features this is the FID; here it is taken in the standardised features or pixels themselves, hence *FID-like*. The floor is not 0: two parts of the data have a distance, too.
# Latents of samples come from $\mathcal N(0,I)$, or from a Gaussian mixture with ten components fitted to the codes of training rows afterwards.

# %%
def split(x, source, scale_of):
    """Standardised training and held-out rows; statistics from training rows only."""
    x = x[torch.randperm(len(x), generator=source)]
    head, tail = x.split([int(0.7 * len(x)), len(x) - int(0.7 * len(x))])
    scale = scale_of(head)
    return ((head - head.mean(0)) / scale).to(device), ((tail - head.mean(0)) / scale).to(device)


# %%
METHODS = ["injective flow", "autoencoder", "on manifold"]


def learn(method, data, name, *, latents, width, depth, steps, batch, lr, beta, noise, source):
    """A flow trained by one of three losses, and the seconds that it took."""
    torch.manual_seed(seed)
    options = dict(width=width, depth=depth, activation=nn.SiLU)
    dim = data.shape[1]
    networks = [mlp(a, b, **options).to(device) for a, b in ((dim, latents), (latents, dim))]
    flow = InjectiveFlow(*networks, StandardNormal([latents]).to(device))

    def loss(x):
        x = x + noise * torch.randn(x.shape, generator=source).to(x)
        if method == "autoencoder":
            return beta * (x - flow.project(x)).square().sum(1).mean()
        choose = fff_loss if method == "injective flow" else on_manifold_loss
        return choose(flow.encode, flow.decode, x, beta=beta, generator=source)

    start = time.perf_counter()
    data_options = dict(data=data, batch_size=batch, generator=source, clip_norm=50.0, schedule="cosine")
    train(networks, loss, f"{name}-{METHODS.index(method)}", steps, lr, method == "on manifold", **data_options)
    return flow, time.perf_counter() - start


# %%
@torch.no_grad()
def judge(flow, data, held_out, source, n=10_000):
    """Squared error on held-out rows; FID-like distances of samples with normal and mixture latents."""
    mixture = LatentMixture.fit(flow.encode(data[:20_000]), 10, source)
    again = InjectiveFlow(flow.encoder, flow.decoder, mixture)
    distances = [frechet_distance(held_out, model.sample([n], generator=source)).item() for model in (flow, again)]
    return [(held_out - flow.project(held_out)).square().sum(1).mean().item(), *distances], again


def pca_row(data, held_out, latents, source, n=10_000):
    values, vectors = torch.linalg.eigh(data.T.cov())
    axes, stds = vectors[:, -latents:], values[-latents:].sqrt()
    samples = (torch.randn(n, latents, generator=source).to(data) * stds) @ axes.T
    error = (held_out - held_out @ axes @ axes.T).square().sum(1).mean().item()
    return [error, frechet_distance(held_out, samples).item()]


# %%
def compare(name, data, held_out, settings):
    """Rows of a table, by method, and the models."""
    source, rows, models = runtime.generator(seed), {}, {}
    rows["PCA, normal codes"] = pca_row(data, held_out, settings["latents"], source)
    for method in METHODS:
        flow, seconds = learn(method, data, name, source=source, **settings)
        numbers, again = judge(flow, data, held_out, source)
        rows[method], models[method] = [*numbers, seconds], (flow, again)
    floor = frechet_distance(data, held_out).item()
    print(
        f"{name}: {data.shape[1]} features, {settings['latents']} latents; training against held-out rows {floor:.2f}"
    )
    for method, numbers in rows.items():
        print(f"  {method:>18}: " + "  ".join(f"{v:8.2f}" for v in numbers))
    return rows, models


# %%
source = runtime.generator(seed)
print("columns: squared error, FID-like with normal latents, with mixture latents, seconds")
table = split(load_tabular("breast_cancer")[0], source, lambda x: x.std(0))
table_rows, table_models = compare("breast cancer", *table, TABLE)
images = split(digits()[0], source, lambda x: x.std())
digit_rows, digit_models = compare("digits", *images, DIGITS)

# %% [markdown]
# **What to look for.** Digits from the decoder: which latents give sharper samples, and what does the on-manifold variant draw?

# %% alt="Rows of eight-by-eight digit images: held-out digits, injective flow with normal latents, with mixture latents, autoencoder with normal latents, on-manifold variant. The injective flow's are legible; the autoencoder's with normal latents are faint and mixed up; the on-manifold ones are noise."
source = runtime.generator(seed)
shown = {"held out": images[1][:12]}
with torch.no_grad():
    flow, again = digit_models["injective flow"]
    shown["injective, normal"], shown["injective, mixture"] = (m.sample([12], generator=source) for m in (flow, again))
    for method in METHODS[1:]:
        shown[method + ", normal"] = digit_models[method][0].sample([12], generator=source)
canvas = torch.cat([nn.functional.pad(b.cpu().view(12, 8, 8), (1, 1, 1, 1), value=-1.5) for b in shown.values()])
canvas = canvas.view(5, 12, 10, 10).transpose(1, 2).reshape(50, 120)
fig, ax = plt.subplots(figsize=(7.8, 2.9))
ax.imshow(canvas.numpy(), cmap="gray_r", vmin=-1.5, vmax=2.2)
ax.set(xticks=[], yticks=[4.5 + 10 * k for k in range(5)], yticklabels=shown)
ax.grid(False)
plt.show()

# %%
flow_cost = table_rows["injective flow"][3] / table_rows["autoencoder"][3]
say(
    f"Breast cancer: FID-like distance {table_rows['injective flow'][1]:.1f} for the injective flow, {table_rows['PCA, normal codes'][1]:.1f} for PCA, {table_rows['autoencoder'][1]:.1f} for the autoencoder. "
    f"Digits: {digit_rows['injective flow'][1]:.1f} with normal latents and {digit_rows['injective flow'][2]:.1f} with a mixture; the autoencoder {digit_rows['autoencoder'][1]:.1f} and {digit_rows['autoencoder'][2]:.1f}. "
    f"The on-manifold variant reconstructs digits with an error of {digit_rows['on manifold'][0]:.0f}, against {digit_rows['injective flow'][0]:.1f}. Training the table took {flow_cost:.1f} times as long as the autoencoder (wall time, one run)."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-12", table_rows["autoencoder"][1] / table_rows["injective flow"][1])
claim("FIF-13", digit_rows["injective flow"][2] / digit_rows["injective flow"][1])
claim("FIF-14", digit_rows["on manifold"][0] / digit_rows["injective flow"][0])


# %% [markdown]
# **What you saw.** The likelihood term makes the codes nearly normal, so that normal latents decode to something like the data. The mixture repairs about half of what is left; and fitted to a *plain autoencoder's* codes it does at least as well, at this size. What the injective flow has beyond that is a density, at one Jacobian a point. On the table, whose $\beta$ is larger, the on-manifold variant happens to do no harm; with digits it fails. (The authors report divergence on their tables.)
#
# ## When the manifold is known: star-like surfaces
#
# Proportions lie on a simplex, penalised regressions on spheres of a norm. Such surfaces are *star-like*: every ray from the origin meets them once, in direction $u\in S^{n-1}$ at distance $r(u)>0$. Directions have spherical coordinates, $n-1$ angles,
#
# $$u_1=\cos\theta_1,\quad u_k=\sin\theta_1\cdots\sin\theta_{k-1}\cos\theta_k,\quad u_n=\sin\theta_1\cdots\sin\theta_{n-1},$$
#
# and a flow of the angles gives points $x=r(u(\theta))\,u(\theta)$ and, once the area per volume of angles $V$ is known, their density per *area*: $\log q(x)=\log q(\theta)-\log V(\theta)$. No encoder is learned, the manifold can't curl up, both failures are gone.
#
# In general $V=\sqrt{\det G^\top G}$ with $G=\partial x/\partial\theta$, which costs $O(n^3)$. The paper's theorem needs $O(n^2)$: with the square Jacobian $J$ of spherical coordinates $(\theta,r)$ and $\nu=(-\nabla_\theta r,1)$,
#
# $$\log V=\log|\det J|+\log\big\|J^{-\top}\nu\big\|,\qquad \log|\det J|=(n-1)\log r+\sum_{k\le n-2}(n-1-k)\log\sin\theta_k .$$
#
# *Why.* $G=JA$ with $A=\binom{I}{\nabla r^\top}$, and $\nu$ is at right angles to the columns of $A$, so $J^{-\top}\nu$ is at right angles to those of $G$; compare the volumes of $J[A\,|\,\nu]$ computed both ways. One more step: spherical coordinates are orthogonal, $J^\top J=\operatorname{diag}(h_1^2,\dots,h_{n-1}^2,1)$ with $h_k=r\sin\theta_1\cdots\sin\theta_{k-1}$, hence
#
# $$\big\|J^{-\top}\nu\big\|^2=1+\sum_k\Big(\frac{\partial_{\theta_k}r}{h_k}\Big)^2=1+\frac{|\nabla_{\!S}\,r|^2}{r^2},$$
#
# where $\nabla_{\!S}\,r$ is the gradient along the unit sphere: one backward pass, $O(n)$, and nothing is divided by a sine. All three, for $p$-norm spheres $r(u)=1/\|u\|_p$:

# %%
def by_gram(radius, theta):
    G = jacobian(lambda t: radius(to_unit(t))[..., None] * to_unit(t), theta)
    return 0.5 * torch.linalg.slogdet(G.mT @ G).logabsdet


def by_theorem(radius, theta):
    """The paper's formula with a dense solve."""
    at = torch.cat([theta, radius(to_unit(theta))[..., None]], -1)
    J = jacobian(lambda y: y[..., -1:] * to_unit(y[..., :-1]), at)
    slope = jacobian(lambda t: radius(to_unit(t))[..., None], theta)[..., 0, :]
    nu = torch.cat([-slope, torch.ones_like(slope[..., :1])], -1)
    norm = torch.linalg.solve(J.mT, nu).norm(dim=-1)
    return (len(J[0]) - 1) * at[..., -1].log() + log_sphere_volume(theta) + norm.log()


# %%
source = runtime.generator(seed)
differences = []
for n in (2, 3, 5, 10, 20):
    theta = 0.1 + (math.pi - 0.2) * torch.rand(50, n - 1, dtype=torch.float64, generator=source)
    for p in (0.5, 1, 4):
        ours = log_area(lp_radius(p), theta)[1]
        differences += [(ours - f(lp_radius(p), theta)).abs().max().item() for f in (by_gram, by_theorem)]
timing = {}
for n in DIMS:
    theta = 0.3 + 2.5 * torch.rand(4, n - 1, dtype=torch.float64, generator=source)
    for name, f in (("Gram", by_gram), ("theorem", by_theorem), ("O(n)", lambda r, t: log_area(r, t)[1])):
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            f(lp_radius(1), theta)
            spent.append(time.perf_counter() - start)
        timing[name, n] = min(spent)
say(
    f"Largest difference of log-volumes, n = 2 to 20: {max(differences):.0e}. Time by the Gram determinant over that of the O(n) formula: "
    + ", ".join(f"{timing['Gram', n] / timing['O(n)', n]:.0f} at n = {n}" for n in DIMS)
    + f"; the paper's formula with a dense solve at n = {DIMS[-1]}: {timing['theorem', DIMS[-1]] / timing['O(n)', DIMS[-1]]:.0f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-15", differences)

# %% [markdown]
# Areas that one can look up are a check on the whole chain. Integrate $V$ over the angles by Monte Carlo (uniform directions, importance weights): the whole $\ell_1$ sphere has area $2^n\sqrt n/(n-1)!$, the simplex $\sqrt n/(n-1)!$, the unit sphere $2\pi^{n/2}/\Gamma(n/2)$.

# %%
source = runtime.generator(seed)
for n in (3, 5):
    u = torch.randn(200_000, n, dtype=torch.float64, generator=source)
    u = u / u.norm(dim=1, keepdim=True)
    sphere = 2 * math.pi ** (n / 2) / math.gamma(n / 2)
    theta = to_angles(u)
    area = sphere * (log_area(lp_radius(1), theta)[1] - log_sphere_volume(theta)).exp().mean()  # per area of the sphere
    exact_area = 2**n * math.sqrt(n) / math.factorial(n - 1)
    print(
        f"n = {n}: l1 sphere {area:.4f}, exact {exact_area:.4f}; simplex {area / 2**n:.5f}, exact {exact_area / 2**n:.5f}"
    )


# %% [markdown]
# ### Inference on the simplex, with a known answer
#
# Let $\tilde p$ be an unnormalised posterior density per area of the surface. Draw $x$ from the model and minimise the *reverse* KL divergence
#
# $$\mathbb E_{x\sim q}\big[\log q(x)-\log\tilde p(x)\big],$$
#
# with gradients through $x$. No data on the manifold are needed. To see whether it is right, take a posterior that is known: multinomial counts with a Dirichlet prior have a Dirichlet posterior. (Its usual density is per volume of $n-1$ coordinates; per area of the simplex divide it by $\sqrt n$.) As the target is normalised, KL values are absolute.

# %%
def simplex_flow(n):
    body = coupling_flow(n - 1, AffineMap(), VI["layers"], width=VI["width"])
    angles = Flow(Chain(AngleBox(n, positive=True), body), StandardNormal([n - 1]))
    return angles.to(device).double()  # single precision would round angles to the simplex's edge


def infer(model, log_target, name, without_norm=None):
    """Reverse KL; `without_norm` gives the log of a factor of the volume to leave out."""
    source = runtime.generator(seed)

    def loss():
        x, log_q = model.sample_and_log_prob([VI["batch"]], generator=source)
        return (log_q + (0 if without_norm is None else without_norm(x)) - log_target(x)).mean()

    train([model], loss, name, VI["steps"], 5e-3, clip_norm=10.0, generator=source)
    with torch.no_grad():
        x, log_q = model.sample_and_log_prob([20_000], generator=source)
        log_w = log_target(x) - log_q
    return -log_w.mean().item(), effective_sample_size(log_w).item(), log_w.exp().mean().item(), x


# %%
def dirichlet(alpha):
    """Log-density per area of the simplex."""
    constant = torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum() - 0.5 * math.log(len(alpha))
    return lambda x: constant + ((alpha - 1) * x.log()).sum(-1)


simplex_kl = []
for alpha in [2.0, 3.0, 5.0], [1.5, 2.0, 0.8, 3.0, 1.0]:
    torch.manual_seed(seed)
    n, counts = len(alpha), torch.tensor(alpha, device=device, dtype=torch.float64)
    kl, ess, mass, x = infer(StarLike(simplex_flow(n), lp_radius(1)), dirichlet(counts), f"simplex-{n}")
    simplex_kl.append(abs(kl))
    off_mean = (x.mean(0) - counts / counts.sum()).abs().max()
    say(
        f"n = {n}: KL {kl:.4f} nats, effective sample size {ess:.3f}, mean of p/q {mass:.3f} (1 if normalised), largest error of the mean {off_mean:.4f}."
    )

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-16", simplex_kl)

# %% [markdown]
# ### What if one forgets a factor?
#
# Drop $\|J^{-\top}\nu\|$ and use $\log|\det J|$ alone. On the simplex the factor is $r\sqrt n=\|x\|\sqrt n$, which hardly varies: the flow would learn $q\propto p/\|x\|$, and neither a plot of samples nor the bound of the claim below would show the damage. On a surface that rays meet at a slant it is large: the uniform distribution on a cigar, the eighth of an ellipsoid with semi-axes 6, 1, 1.

# %%
shape = torch.tensor([1 / 36, 1.0, 1.0], device=device, dtype=torch.float64)


def cigar(u):
    return (u.square() * shape).sum(-1).rsqrt()


def norm_factor(x):
    """log sqrt(1 + |grad_S r|^2 / r^2), which is minus the logarithm of the cosine between ray and normal."""
    normal = x * shape
    cosine = (normal * x).sum(-1) / (normal.norm(dim=-1) * x.norm(dim=-1))
    return -cosine.log()


# %%
node, node_weight = (torch.tensor(v, device=device) for v in np.polynomial.legendre.leggauss(80))
angle = (node + 1) * math.pi / 4
mesh = torch.stack(torch.meshgrid(angle, angle, indexing="ij"), -1)
area = (log_area(cigar, mesh)[1].exp() * node_weight[:, None] * node_weight).sum() * (math.pi / 4) ** 2


def uniform(x):
    return -area.log() + 0 * x[..., 0]


cigar_runs = {}
for name, dropped in (("with", None), ("without", norm_factor)):
    torch.manual_seed(seed)
    cigar_runs[name] = infer(StarLike(simplex_flow(3), cigar), uniform, f"cigar-{name}", dropped)
x = torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)).sample([100_000])
tilt = 1 / x.norm(dim=1)
tilt = tilt / tilt.mean()  # q / p on the simplex
say(
    f"On the simplex, n = 3: without the norm factor KL {(tilt * tilt.log()).mean():.4f} nats. On the cigar: "
    + "; ".join(
        f"{name} the norm factor: KL {kl:.3f} nats, effective sample size {ess:.2f}, mean of x1 {x[:, 0].mean():.3f}"
        for name, (kl, ess, _, x) in cigar_runs.items()
    )
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-17", cigar_runs["without"][0])

# %% [markdown]
# ### A solution path for real patients
#
# The *lasso* minimises $\|y-X\beta\|^2$ subject to $\|\beta\|_1\le c$, for all sizes $c$ (here $\beta$ are regression coefficients). Its Bayesian sibling: for each $c$, the posterior $\propto\exp\big(-\|y-X\beta\|^2/(2\sigma^2T)\big)$ per area of the sphere $\|\beta\|_1=c$, with $\sigma^2$ the residual variance of least squares. One flow, *conditioned* on $c$ and on the temperature $T$, learns all of them. Cold ($T\to0$), the posterior shrinks to the lasso solution; at $T=1$ it says how sure the data are.
# The data: 442 diabetes patients, progression after a year against five standardised measurements.

# %%
NAMES = ["sex", "bmi", "bp", "s3", "s5"]
X = load_tabular("diabetes", NAMES)[0]
y = torch.tensor(datasets.load_diabetes().target, dtype=torch.float32)
X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
gram, moment = X.T @ X, X.T @ y
least_squares = torch.linalg.solve(gram, moment)
largest = least_squares.abs().sum().item()
noise_variance = ((y - X @ least_squares).square().sum() / (len(y) - 6)).item()
_, lasso, _ = linear_model.lasso_path(X.numpy(), y.numpy(), alphas=torch.logspace(0, -4, 300).numpy())
lasso = torch.tensor(lasso.T.copy())
lasso_norm = lasso.abs().sum(1)
COLD = 1 / 30
gram, moment = gram.to(device).double(), moment.to(device).double()


def log_posterior(b, temperature):
    energy = (b @ gram * b).sum(-1) - 2 * b @ moment
    return -energy / (2 * noise_variance * temperature)


# %%
torch.manual_seed(seed)
source, diamond = runtime.generator(seed), lp_radius(1)
body = coupling_flow(4, AffineMap(), 6, width=VI["width"], dim_context=2)
angles = Flow(Chain(AngleBox(5), body), StandardNormal([4])).to(device).double()
path = StarLike(angles, lambda u, c: c[..., 0] * diamond(u))  # context: size, log temperature


def path_loss():
    draw = torch.rand(VI["batch"], 2, generator=source)
    context = torch.stack([largest * (0.1 + 0.9 * draw[:, 0]), draw[:, 1] * math.log(COLD)], 1).to(device).double()
    b, log_q = path.sample_and_log_prob([], context, source)
    return (log_q - log_posterior(b, context[:, 1].exp())).mean()


train([path], path_loss, "path", VI["steps"], 5e-3, clip_norm=10.0, generator=source)
sizes = largest * torch.linspace(0.12, 0.98, 25)
draws = {}
for temperature in (1.0, COLD):
    context = torch.stack([sizes, torch.full_like(sizes, math.log(temperature))], 1).to(device).double()
    with torch.no_grad():
        draws[temperature] = path.sample([2000], context, source).float().cpu()  # (draws, sizes, features)

# %% [markdown]
# **What to look for.** Coefficients against the norm. Dashed: scikit-learn's lasso, with its corners where a coefficient leaves 0. Lines: posterior means; bands: the central 80 % of draws.

# %% alt="Coefficients of five measurements against the size of the norm, warm and cold. Cold posterior means follow the dashed lasso path closely; at temperature one they are smooth with wide bands."
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7.6, 3.1))
for ax, temperature in zip(axes, draws):
    low, high = draws[temperature].quantile(torch.tensor([0.1, 0.9]), 0)
    for k, (name, colour) in enumerate(zip(NAMES, PALETTE)):
        ax.fill_between(sizes, low[:, k], high[:, k], color=colour, alpha=0.2, lw=0)
        ax.plot(sizes, draws[temperature][..., k].mean(0), color=colour, label=name, lw=1.5)
        ax.plot(lasso_norm, lasso[:, k], "--", color=colour, lw=1)
    ax.set(xlabel="norm of the coefficients", xlim=(0, 1.02 * largest))
axes[0].set_ylabel("coefficient")
axes[0].legend(fontsize=8.5)
label_panels(axes, ["Posterior, T = 1", f"Cold posterior, T = {COLD:.2f}"])
plt.show()

# %%
judged = [0.15, 0.3, 0.5, 0.7, 0.85, 0.97]
gaps = []
for share in judged:
    near = (sizes - share * largest).abs().argmin()
    on_path = lasso[(lasso_norm - sizes[near]).abs().argmin()]
    gaps.append(((draws[COLD][:, near].mean(0) - on_path).norm() / sizes[near]).item())
say(
    "Distance of the cold mean from the lasso, over the norm, at "
    + ", ".join(f"{share:.0%}: {gap:.3f}" for share, gap in zip(judged, gaps))
    + " of the least-squares norm."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("FIF-18", gaps)


# %% [markdown]
# **What you saw.** One network in place of a run of a sampler for each $c$. The warm posterior is smooth where the lasso has corners: a Bayesian does not set coefficients to exactly 0. (Reverse KL prefers to miss a part of the posterior over covering too much: bands are on the narrow side. And our angles are cut open at $\theta_{n-1}=0$, where a posterior across the cut would be hard to fit.)
#
# ## Play
#
# **The circle.** Move $\beta$ and $R$. When is there a hill between the ball and the abyss? Does the remedy have one?

# %%
def show_circle(beta, start):
    R = torch.logspace(-6, 0.23, 400, dtype=torch.float64)
    ball = torch.tensor([start], dtype=torch.float64)
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.8), width_ratios=[1, 1.7])
    axes[0].plot(*ring.T, ".", color="#bbbbbb", ms=3)
    circle = torch.linspace(0, 2 * math.pi, 200)
    axes[0].plot(start * circle.cos(), start * circle.sin(), color=PALETTE[1])
    axes[0].set(aspect="equal", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7))
    names, places = ("on the manifold", "at the data"), circle_losses(ball, beta)
    losses = circle_losses(R, beta)
    for name, loss, place, colour in zip(names, losses, places, PALETTE):
        axes[1].plot(R, loss, color=colour, label=f"Jacobian {name}")
        axes[1].plot(ball, place, "o", color=colour)
    top = max(4.0, losses[1][0].item())  # a decoder that has shrunk to a point
    abyss = R[losses[0] < -0.25 * top][-1].item()
    axes[1].set(xlabel="R", ylabel="loss (nats, shifted)", xscale="log")
    axes[1].set(xlim=(min(abyss, 0.04), 1.7), ylim=(-0.25 * top, 1.1 * top))
    axes[1].legend()
    plt.show()


# %% alt="A circle of the chosen radius over ring-shaped data, and both losses against the radius with a ball at the chosen place."
play(
    show_circle,
    beta=slider("β", value=3.0, low=0.5, high=8.0, step=0.5),
    start=slider("R", value=0.8, low=0.05, high=1.6, step=0.05),
)


# %% [markdown]
# **Angles are not area.** The sphere of the $p$-norm in the plane, coloured by the logarithm of the area per angle, $\log V$. Uniform angles (left) crowd where $V$ is small; drawn with a density proportional to $V$ they are uniform on the curve.

# %%
def show_norm(p):
    source = runtime.generator(seed)
    theta = 2 * math.pi * (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    x, log_v = log_area(lp_radius(p), theta[:, None])
    length = log_v.exp().cumsum(0)
    draw = torch.rand(2, 250, dtype=torch.float64, generator=source)
    rows = [(draw[0] * len(theta)).long(), torch.searchsorted(length, draw[1] * length[-1])]
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.0), sharey=True)
    low, high = (v.item() for v in log_v[torch.cat(rows)].aminmax())
    for ax, kept in zip(axes, rows):
        dots = ax.scatter(*x[kept].T, c=log_v[kept], s=9, vmin=low - 0.01, vmax=high + 0.01)
    for ax in axes:
        ax.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xlabel="$x_1$")
    fig.colorbar(dots, ax=axes, label="log V")
    label_panels(axes, ["Uniform angles", "Uniform on the curve"])
    plt.show()


# %% alt="Points on the unit sphere of the p-norm in the plane, coloured by the log of the area per angle: drawn with uniform angles they crowd, weighted by area they are even."
play(show_norm, p=slider("p", value=0.6, low=0.5, high=8.0, step=0.1))


# %% [markdown]
# **The sine's networks**, one at a time: each $\beta$ and each start, with its three likelihoods. Do the two starts agree?

# %%
def show_sine(beta, start):
    run = BETAS.index(float(beta)) * SINE["runs"] + start
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.7), width_ratios=[1.4, 1])
    draw_curve(axes[0], run, points=300)
    numbers = [measured[name][run].item() for name in ("decoder", "encoder", "encoder on manifold")]
    axes[1].barh(["decoder", "encoder", "encoder on\nmanifold"], numbers, color=PALETTE[0])
    axes[1].axvline(ideal, color="k", ls="--", lw=1)
    axes[1].set(xlabel="NLL (nats), ideal dashed", xlim=(-2.5, 3))
    label_panels(axes, [f"β = {beta}: squared error {measured['squared'][run]:.3f}", "Likelihoods"])
    plt.show()


# %% alt="Learned curve over the noisy sine for the chosen beta and start, and bars of three negative log-likelihoods beside the ideal."
play(
    show_sine,
    beta=choice("β", [f"{beta:g}" for beta in BETAS], "1"),
    start=slider("start", value=0, low=0, high=SINE["runs"] - 1),
)

# %% [markdown]
# **Change it, break it.** Predict first, then try: `noise=0.3` in `sine` (where is the transition now?) · `detach=True` in `on_manifold_loss` (safer?) · 16 latents for the digits (does the mixture still help?) · `LatentMixture.fit(..., 1)` (what of the gain was just a covariance?) · `AngleBox(5, positive=True)` for the path (which coefficients suffer?).
#
# ## What goes wrong
#
# Results on manifolds are hard to compare, and much of the trouble is bookkeeping. Each of the following was found in public code for these methods; none raises an error.
#
# ### A constant, a side, a split
#
# *The Gaussian constant.* With $\frac12\|z\|^2$ for $-\log p_Z$, the likelihood is off by $\frac d2\log2\pi$. As a loss that is harmless; in a table it is not. *The side.* One code reports the encoder's likelihood at $x$, its successor the decoder's. *The split.* A loader cuts the training set short first and takes "validation" images from the end of what is left: all of them are training images. *The reference.* One paper's FID-like numbers are against test rows, the baseline's against training rows. Here is how much each is worth, with the table's model:

# %%
flow, again = table_models["injective flow"]
rows, held_out = table
with torch.no_grad():
    nll = {side: -flow.log_prob(held_out, side=side).mean().item() for side in ("decoder", "encoder")}
    seen = -flow.log_prob(rows, side="decoder").mean().item()
    samples = flow.sample([10_000], generator=runtime.generator(seed))
    few = frechet_distance(held_out, samples[: len(held_out)]).item()
    errors = [(v - flow.project(v)).square().sum(1).mean().item() for v in (held_out, rows)]
say(
    f"Decoder's side {nll['decoder']:.2f} nats, encoder's {nll['encoder']:.2f}; without the constant {nll['decoder'] - TABLE['latents'] / 2 * math.log(2 * math.pi):.2f}. On training rows the decoder's {seen:.2f}, and the squared error is {errors[1]:.2f} there, {errors[0]:.2f} on held-out rows. "
    f"FID-like against held-out rows {frechet_distance(held_out, samples):.2f}, against training rows {frechet_distance(rows, samples):.2f}, with only {len(held_out)} samples {few:.2f}."
)

# %% [markdown]
# Mind the decoder's number, the one on training rows and the two errors: along the manifold the likelihoods are much alike, while the reconstruction is far better on training rows. A density on a manifold says nothing about the distance from it, which is where this network overfits.
#
# ### A base that is not normalised
#
# For a flow on the simplex one wants a uniform base. The density of angles for the uniform law is $(n-1)!\,r^n\prod_k\sin^{n-1-k}\theta_k$ (it is $V$ over the area). A version with $r^{n-1}$ looks just as plausible. And the sphere's: its area is that of the *ambient* dimension $n$; taking the number of angles, $n-1$, gives another constant. Integrate, always:

# %%
for n in (2, 3, 4):
    axes_of_angles = [angle.double()] * (n - 1)
    mesh = torch.stack(torch.meshgrid(*axes_of_angles, indexing="ij"), -1)
    mass = torch.ones(mesh.shape[:-1], dtype=torch.float64, device=device)
    for k in range(n - 1):
        mass = mass * (node_weight.double() * math.pi / 4).view(-1, *[1] * (n - 2 - k))
    log_r = lp_radius(1)(to_unit(mesh)).log()
    plain = math.factorial(n - 1) * log_sphere_volume(mesh).exp()
    right, wrong = ((plain * (power * log_r).exp() * mass).sum().item() for power in (n, n - 1))
    ambient, angles_only = (math.log(2 * math.pi ** (m / 2) / math.gamma(m / 2)) for m in (n, n - 1))
    print(
        f"n = {n}: with r^n {right:.4f}, with r^(n-1) {wrong:.4f}; log area of the sphere {ambient:.3f}, wrongly {angles_only:.3f}"
    )

# %% [markdown]
# Reverse KL trains to the same flow with a wrong *constant*, so that no sample looks odd, but evidence and KL values are wrong. With a wrong *power* the model says of its own samples what is not true. The mean of $p/q$, which must be 1 for a normalised target, finds both.
#
# ### A logarithm forgotten, a gradient cut
#
# For a surface that is a graph, $x_n=h(x_1,\dots,x_{n-1})$, $V=\sqrt{1+\|\nabla h\|^2}$: a layer that returns this where its *logarithm* is expected is right to first order where $h$ is flat ($\sqrt{1+a^2}\approx1+\frac{a^2}2$, and $\log$ of it $\approx\frac{a^2}2$) up to the constant 1, so that a test with gentle slopes and a free constant passes. And a radius gradient computed without keeping its graph leaves samples and values of $\log V$ exact; only the *training gradient* lacks a part. Compare it with finite differences:

# %%
theta = torch.tensor([0.9, 1.1], dtype=torch.float64)
slim = torch.tensor([1 / 36, 1.0, 1.0], dtype=torch.float64)


def radius_of(u):
    return (u.square() * slim).sum(-1).rsqrt()


def whole(theta):
    return log_area(radius_of, theta)[1]


def cut_area(theta):
    """log area with the radius's gradient as a constant."""
    u = to_unit(theta)
    along = torch.func.grad(radius_of)(u.detach())
    along = along - (along @ u.detach()) * u.detach()
    r = radius_of(u)
    return log_sphere_volume(theta) + (len(u) - 2) * r.log() + 0.5 * (r**2 + along @ along).log()


step = 1e-5 * torch.eye(2, dtype=torch.float64)
finite = torch.stack([(whole(theta + e) - whole(theta - e)) / 2e-5 for e in step])
print(f"values {whole(theta):.6f} and {cut_area(theta):.6f}; finite differences {finite.tolist()}")
for name, f in (("kept", whole), ("cut", cut_area)):
    print(f"gradient {name}: {[round(v, 4) for v in torch.func.grad(f)(theta).tolist()]}")

# %% [markdown]
# ### How to notice, in one list
#
# - The surrogate's value is $d$ whatever happens: plot the exact likelihood of a subset, by two sides, and the squared error.
# - A likelihood that improves while reconstruction stagnates: $\beta$ is too low (left of the transition).
# - $f(g(z))$ far from $z$: the encoder is no left inverse, and no density is right.
# - ReLU and batch normalisation: the surrogate needs second derivatives, and rows of a batch that don't influence each other.
#
# ## At full size
#
# At full size the sine has networks of the authors' size (4 blocks of width 256), and the four tables of the paper's Table 1, POWER, GAS, HEPMASS, MINIBOONE, are trained with their latents (3, 2, 10, 21), noise 0.01, $\beta=10$, batches of 512, learning rate and about as many steps; our networks are plain MLPs, without weight decay. The tables must be downloaded once (`refimpl.data.uci` says from where); a table that is not there is skipped. All of the numbers printed beside them are quoted second-hand; those of MINIBOONE and the baseline's of POWER are from memory and not verified. Interrupted runs resume:
#
# `make full CHAPTER=07`, or where Jupyter is not installed `REFIMPL_SIZE=full python chapters/07_injective_flows.py`

# %%
REPORTED = {"power": (0.041, 0.083), "gas": (0.281, 0.110), "hepmass": (0.541, 0.779), "miniboone": (0.598, 1.001)}
large = {}
for name, (latents, steps) in UCI.items():
    try:
        parts = uci(name, download=True)
    except (FileNotFoundError, ConnectionError) as error:
        print(f"{name} skipped: {error}")
        continue
    settings = dict(latents=latents, width=256, depth=5, steps=steps, batch=512, lr=3e-4, beta=10.0, noise=0.01)
    large[name] = compare(name, parts.train.to(device), parts.test.to(device), settings)[0]
    print(f"  the paper: {REPORTED[name][0]}, rectangular flows {REPORTED[name][1]}")
record_of_full_run = load_record("07_injective_flows")
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
        betas=weights.tolist(),
        sine={name: values.tolist() for name, values in measured.items()},
        gauss={name: found["squared"].tolist() for name, found in bends.items()},
        tables={"breast cancer": table_rows, "digits": digit_rows} | large,
        path=gaps,
    )
)

# %% [markdown]
# ## Exercises and further reading
#
# **Exercises**: [sheet 07](../exercises/07_injective_flows/07_injective_flows.ipynb).
#
# **Further reading**
#
# - Sorrenson, Draxler, Rousselot, Hummerich, Zimmermann, Köthe 2024, [arXiv 2306.01843](https://arxiv.org/abs/2306.01843): the first paper; code: `vislearn/FFF`.
# - Negri, Aellen, Roth 2025, [arXiv 2406.09116](https://arxiv.org/abs/2406.09116): the second.
# - Caterini, Loaiza-Ganem, Pleiss, Cunningham 2021, [arXiv 2106.01413](https://arxiv.org/abs/2106.01413): rectangular flows, the volume term by conjugate gradients.
# - Brehmer and Cranmer 2020, [arXiv 2003.13913](https://arxiv.org/abs/2003.13913): flows on learned manifolds, and why plain likelihood does not train them.
# - Rezende, Papamakarios, Racanière, Albergo, Kanwar, Shanahan, Cranmer 2020, [arXiv 2002.02428](https://arxiv.org/abs/2002.02428): flows on tori and spheres without seams. [Chapter 08](08_manifold_free_form_flows.ipynb) has another way.
