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
# # 09 · Diffusion and flow matching: from noise to data, bent or straight
#
# **Papers.** Ho, Jain, Abbeel: *Denoising Diffusion Probabilistic Models* (DDPM), 2020, [arXiv 2006.11239](https://arxiv.org/abs/2006.11239). Song, Meng, Ermon: *Denoising Diffusion Implicit Models* (DDIM), 2021, [2010.02502](https://arxiv.org/abs/2010.02502). Song et al.: *Score-Based Generative Modeling through SDEs*, 2021, [2011.13456](https://arxiv.org/abs/2011.13456). Karras et al.: *Elucidating the Design Space* (EDM), 2022, [2206.00364](https://arxiv.org/abs/2206.00364). Ho and Salimans: *Classifier-Free Guidance*, 2022, [2207.12598](https://arxiv.org/abs/2207.12598). Lipman et al.: *Flow Matching*, 2022, [2210.02747](https://arxiv.org/abs/2210.02747). Liu, Gong, Liu: *Flow Straight and Fast* (rectified flow), 2022, [2209.03003](https://arxiv.org/abs/2209.03003). Song et al.: *Consistency Models*, 2023, [2303.01469](https://arxiv.org/abs/2303.01469).
#
# Spoil data with noise, a little at a time, until nothing is left; learn to undo one small step; start from pure noise and undo them all. That is a diffusion model. Flow matching draws a straight line from each noise to a data point and learns the mean velocity of the lines. In this chapter you see that both are one method, with one function to learn: *given a noisy state, what was the data on average?*
#
# Nothing is left to faith. If the data are a mixture of Gaussians, this average is a formula, at every noise level, also for images. So each sampler, likelihood and guidance rule below is first run with the *exact* function in place of a network, and what is wrong then is the rule's own fault.
#
# **Afterwards you can**
#
# - translate between noise, score, velocity and whatever else a paper's network predicts, and between the papers' clocks;
# - derive reverse SDE and probability-flow ODE in five lines, and sample with DDPM, DDIM, Euler and Heun at their proper order;
# - compute exact likelihoods, and cheap ones with probes;
# - say what guidance samples from, and what it doesn't;
# - train flow matching, straighten its paths, and go from noise to data in one call.
#
# **You need first**: Gaussians, and gradients in PyTorch. [Chapter 03](03_flow_zoo.ipynb) helps with the change of variables, and it is good to have met the divergence of a vector field and a differential equation. **Time**: 90 minutes without the three sections that are marked *optional*, 120 with them.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# Every size that this chapter uses stands in the third cell below: *quick* runs on a laptop in about a minute; *full* uses larger networks, longer training and more points, and wants a GPU.

# %%
import math
import warnings

import matplotlib.pyplot as plt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn
from torchdiffeq import odeint

from refimpl import runtime
from refimpl.autodiff import jacobian, trace_estimate, trace_jacobian
from refimpl.claims import Claims, Summary, load_record
from refimpl.data import NormalMixture, cifar, dead_leaves, digits
from refimpl.metrics import frechet_distance, sliced_wasserstein
from refimpl.nets import timed_mlp, unet
from refimpl.plots import PALETTE, choice, label_panels, play, say, slider, use_course_style
from refimpl.training import fit

use_course_style()

# %%
from refimpl.diffusion import (
    DDPM,
    EDM,
    VE,
    VP,
    ConsistencyModel,
    DiffusionModel,
    FlowPath,
    GaussianSkip,
    Preconditioned,
    TrigonometricPath,
    ancestral,
    classifier_free,
    classifier_guided,
    consistency_loss,
    consistency_sample,
    convert,
    ddim,
    ddim_step,
    denoising_loss,
    draw_levels,
    drop_labels,
    euler,
    exact_model,
    heun,
    ict_num_levels,
    interpolant_sde,
    log_prob,
    minibatch_ot_pairs,
    pseudo_huber,
    reflow_pairs,
    straightness,
    transport_cost,
)

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
NET = size(quick=dict(width=64, blocks=3), full=dict(width=256, blocks=6))
DIGIT_NET = size(quick=dict(width=128, blocks=3), full=dict(width=512, blocks=6))
BATCH = size(quick=256, full=1024)
PAIRED = size(quick=128, full=512)  # points that one optimal pairing joins
STEPS = size(
    quick=dict(scratch=1000, flow=1500, paired=800, reflow=1000, consistency=1500, digits=700),
    full=dict(scratch=5000, flow=10_000, paired=4000, reflow=5000, consistency=20_000, digits=20_000),
)
POINTS = size(
    quick=dict(samples=4000, order=700, moments=4000, likelihood=200, digits=1000),
    full=dict(samples=20_000, order=10_000, moments=50_000, likelihood=2000, digits=5000),
)
IMAGES = size(  # at full size only
    quick=dict(steps=0),
    full=dict(steps=2500, batch=256, width=128, samples=5000, train=50_000),
)
print(runtime.describe())


# %%
def source(offset=0):
    """Random numbers on the device; each use gets its own."""
    return runtime.generator(seed + offset, device)


def checkpoint(name):
    return size(quick=None, full=runtime.scratch_dir() / "09_diffusion_and_flow_matching" / f"{seed}-{name}.pt")


# %% [markdown]
# ## In one picture
#
# 1,797 handwritten digits of 8 × 8 pixels, scaled to $[-1,1]$. We fit two Gaussians to each class of 1,400 of them. From here on this mixture of twenty Gaussians in 64 dimensions *is* the distribution $p$ of the data, and we can sample from it in two ways: directly, or by starting from pure noise and following an arrow that a formula gives.

# %%
pixels, labels = digits()
pixels = (2 * pixels - 1).to(device)
order = torch.randperm(len(pixels), generator=runtime.generator(seed))
learn, test = order[:1400], order[1400:]
by_class = [NormalMixture.fit(pixels[learn][labels[learn] == d], 2, regularisation=0.02) for d in range(10)]
digit_law = NormalMixture.joined(by_class)

edm = EDM()
digit_model = exact_model(digit_law, edm)
path = heun(digit_model, edm.initial([12, 64], pixels, source(1)), edm.times(18), return_path=True)
levels = edm.times(18).tolist()
say(
    f"{digit_model.calls} evaluations of the formula take twelve times 64 random numbers to twelve digits; one of them is shown next."
)


# %% [markdown]
# **What to look for.** Top: a test digit with more and more noise, from left to right; numbers are standard deviations σ of the noise. (States are divided by $\sqrt{1+\sigma^2}$, to show all at one contrast.) Below, read from right to left: pure noise, and what it turns into while σ falls. At the bottom: the formula's best guess of the clean image, $\mathbb E[x_0\mid x]$, for each image of the row above it. When is it decided which digit it will be?

# %%
def tiles(ax, rows, low=-1.0, high=1.0):
    """Rows of 8 x 8 images (rows, columns, 64) as one picture."""
    n, m = rows.shape[:2]
    image = rows.detach().cpu().reshape(n, m, 8, 8)
    image = torch.nn.functional.pad((image - low) / (high - low), (0, 1, 0, 1), value=1.0)
    ax.imshow(
        image.permute(0, 2, 1, 3).reshape(9 * n, 9 * m)[:-1, :-1], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


# %% alt="Rows of images of digits at falling noise: a real digit drowns in noise; pure noise turns into a digit; the denoiser's guess goes from a grey mean over a blurred shape to the digit."
shown = [18, 13, 12, 11, 10, 9, 8, 7, 4, 0]
scale = torch.tensor([math.sqrt(1 + levels[i] ** 2) for i in shown]).to(pixels)[:, None]
noise = torch.randn(64, generator=source(2), device=device)
spoiled = torch.stack([pixels[test[3]] + levels[i] * noise for i in shown]) / scale
rows = [spoiled, path[shown, 1] / scale]
rows.append(torch.stack([digit_law.denoise(path[i, 1], 1.0, levels[i]) for i in shown]))
fig, ax = plt.subplots(figsize=(7.8, 2.3))
tiles(ax, torch.stack(rows), -1.2, 1.2)
ax.set_xticks([9 * k + 3.5 for k in range(len(shown))], [f"{levels[i]:.2g}" for i in shown])
ax.set_yticks([3.5, 12.5, 21.5], ["data + noise", "noise to data", "best guess"])
ax.set_xlabel("standard deviation σ of the noise, in units of the pixels")
plt.show()

# %% [markdown]
# **What you saw.** At large σ the best guess is the mean of all digits, and the state moves towards it. Around σ of 2 to 1 the class is decided; below, strokes sharpen. No image was stored, no network trained: one function of state and noise level, applied a few dozen times. The rest of this chapter derives this function, learns it where there is no formula, and asks how few evaluations suffice.
#
# ## The claims
#
# Each has a criterion that was fixed before its measurement (some bounds after a prototype of the same experiment: the declaration says which); where one was revised afterwards, the [ledger](../results/README.md) says how and why. "Ours" marks what the papers do not claim but you should know.

# %%
claim = Claims.declared("09_diffusion_and_flow_matching")
claim

# %% [markdown]
# ## The idea
#
# ### One process, many names
#
# Let $x_0\sim p$ be data and $n\sim\mathcal N(0,I)$ noise of the same shape. All methods of this chapter look at the same states,
#
# $$x_t=a(t)\,x_0+b(t)\,n,$$
#
# and differ in two functions of a clock $t$: how much of the data is left, $a$, and how much noise is there, $b$.
#
# | in `refimpl` | paper | $a(t)$ | $b(t)$ | clock |
# |---|---|---|---|---|
# | `VP` | Song et al. | $\sqrt{\bar\alpha(t)}$ | $\sqrt{1-\bar\alpha(t)}$ | data at 0, noise at 1 |
# | `DDPM` | Ho et al. | $\sqrt{\bar\alpha_t}$ | $\sqrt{1-\bar\alpha_t}$ | data at 0, noise at 1000 |
# | `VE` | Song et al. | 1 | $\sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t$ | data at 0 |
# | `EDM` | Karras et al. | 1 | $t$, written $\sigma$ | data at 0 |
# | `FlowPath` | Lipman et al., Liu et al. | $t$ | $1-t$ | data at **1** |
# | `TrigonometricPath` | Albergo et al. | $\sin(\pi t/2)$ | $\cos(\pi t/2)$ | data at **1** |
#
# With VP, $\bar\alpha(t)=\exp(-0.1\,t-9.95\,t^2)$. DDPM is a chain: step $t=1,\dots,1000$ replaces a share $\beta_t$ of the variance by noise, so $\bar\alpha_t=\prod_{i\le t}(1-\beta_i)$, and VP is its limit for many small steps. Diffusion's clock runs from data to noise, flow's from noise to data. Most confusion between papers is about this line.
#
# What matters is the noise per data, $\sigma=b/a$: dividing a state by $a$ gives $x_0+\sigma n$, the state of EDM. So two processes show the same states, at another scale, at another time. As a check, the score (the gradient of the log-density $p_t$ of $x_t$) of each process must follow from EDM's: $\nabla\log p_t(x)=\frac1a\nabla\log p^{\mathrm{EDM}}_{b/a}(x/a)$. The data for this and what follows are nine Gaussians in the plane, eight on a ring and one in its centre.

# %%
angle = torch.arange(8) * math.pi / 4
centres = torch.cat([torch.zeros(1, 2), 1.5 * torch.stack([angle.cos(), angle.sin()], -1)]).to(device)
ring = NormalMixture(centres, 0.15**2 * torch.eye(2, device=device).repeat(9, 1, 1))
oracle = ring.double()
F64 = torch.float64

processes = [VP(), VE(), EDM(), FlowPath(), TrigonometricPath()]
x = 2 * torch.randn(500, 2, generator=source(3), dtype=F64, device=device)
for process in processes:
    t = torch.tensor(0.4, dtype=F64, device=device)
    a, b = process.coefficients(t)
    off = (oracle.score(x, a, b) - oracle.score(x / a, 1.0, b / a) / a).abs().max()
    print(f"{type(process).__name__:18s} at t = 0.4: a = {a:.3f}, b = {b:.3f}; scores differ by {off:.0e}")
    assert off < 1e-9

# %% [markdown]
# **What to look for.** Left: each process as a curve in the plane of $a$ and $b$. Right: the noise per data σ against the share of the way from data to noise. A ray from the origin on the left has one σ: where curves cross a ray, they show the same states.

# %% alt="Left: VP and the trigonometric path lie on the unit circle, the flow path on the straight line from data to noise, EDM and VE on a vertical line. Right: sigma against time on a log scale, which rises at different speeds."
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.9))
way = torch.linspace(0, 1, 201, dtype=F64)
for k, process in enumerate(processes):
    a, b = process.coefficients(process.data_time + way * (process.noise_time - process.data_time))
    style = dict(color=PALETTE[k], ls=["-", "--", ":", "-", (0, (1, 2))][k], label=type(process).__name__)
    axes[0].plot(a, b, **style)
    axes[1].semilogy(way[1:-1], (b / a)[1:-1], **style)
axes[0].set(xlabel="a: share of data", ylabel="b: noise", ylim=(0, 1.6), xlim=(0, 1.15))
axes[1].set(xlabel="share of the way from data to noise", ylabel="σ = b / a", ylim=(1e-2, 1e3))
axes[0].legend(fontsize=8.5, loc="lower left")
label_panels(axes, ["Five roads from data to noise", "Five clocks"])
plt.show()

# %% [markdown]
# **What you saw.** VP and the trigonometric path are the same quarter of a circle, walked at other speeds; flow matching takes the chord; EDM and VE keep the data whole and drown them. Every road ends at noise, and σ tells where you are on it. Samplers start there, at $\mathcal N(0,b^2I)$. Only a flow's states are exactly that at the end: VP has a trace of the data left, and EDM and VE have all of them ($a=1$), under noise of standard deviation 80 and 50. That is a small error of its own.
#
# ### One prediction in five forms
#
# What can be learned about a state is an expectation given it. For $x=a x_0+b n$, write $\hat x_0=\mathbb E[x_0\mid x]$ and $\hat n=\mathbb E[n\mid x]$. Take the expectation of the equation itself: $x=a\hat x_0+b\hat n$. One of both is enough. The others that papers use are linear in them:
#
# $$\underbrace{s=-\hat n/b}_{\text{score (proved below)}}\qquad\underbrace{v=a\hat n-b\hat x_0}_{\text{v-prediction}}\qquad\underbrace{u=\dot a\,\hat x_0+\dot b\,\hat n}_{\text{velocity}=\mathbb E[\dot x_t\mid x]}$$
#
# with $\dot a=da/dt$. So a network that predicts one of them predicts all: `DiffusionModel(network, process, predicts)` has `.data`, `.noise`, `.score`, `.velocity`, whatever the network was trained for. All five are linear in data and noise, so known $x_0$ and $n$ can stand for their expectations: write down the five forms of one pair, and go from each to each other and back.

# %%
kinds = ["data", "noise", "score", "v", "velocity"]
translated = {}
for process in processes:
    share = torch.linspace(0.05, 0.95, 500, dtype=F64, device=device)[:, None]
    t = process.data_time + share * (process.noise_time - process.data_time)
    (a, b), (da, db) = process.coefficients(t), process.rates(t)
    x0, n = (torch.randn(500, 2, generator=source(4 + k), dtype=F64, device=device) for k in range(2))
    x, forms = a * x0 + b * n, [x0, n, -n / b, a * n - b * x0, da * x0 + db * n]
    worst = 0.0
    for here, given in zip(kinds, forms):
        for there, known in zip(kinds, forms):
            moved = convert(given, x, t, process, source=here, target=there)
            back = convert(moved, x, t, process, source=there, target=here)
            for got, right in ((moved, known), (back, given)):
                worst = max(worst, ((got - right).abs().max() / right.abs().max()).item())
    translated[type(process).__name__] = worst
print({name: f"{worst:.0e}" for name, worst in translated.items()})

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-1", translated.values())

# %% [markdown]
# ### Tweedie, twice
#
# The density of a state is $p_t(x)=\int p(x_0)\,\mathcal N(x;a x_0,b^2I)\,dx_0$. Differentiate its logarithm. The gradient of the Gaussian brings down $(a x_0-x)/b^2$, and what is left is an average over the data that could be behind $x$:
#
# $$s(x)=\nabla\log p_t(x)=\frac{a\,\mathbb E[x_0\mid x]-x}{b^2}=-\frac{\hat n}{b}\qquad\Longleftrightarrow\qquad \hat x_0=\frac{x+b^2 s(x)}{a} .$$
#
# This is Tweedie's formula: *denoising is following the score*, and the other way round. Differentiate once more. The gradient of an average over $p(x_0\mid x)$ is a covariance with the exponent's gradient, $a\,x_0/b^2$:
#
# $$\frac{\partial\hat x_0}{\partial x}=\frac{a}{b^2}\operatorname{Cov}[x_0\mid x].$$
#
# So the Jacobian of a perfect denoiser is symmetric and positive semi-definite, and it tells how uncertain the guess is, in which directions. A network's need not be; test yours. For the nine Gaussians mean and covariance have formulas of their own, through responsibilities; compare them with automatic differentiation.

# %%
a, b = 0.8, 0.6
x = 1.2 * torch.randn(200, 2, generator=source(6), dtype=F64, device=device)
watched = x.clone().requires_grad_()
(score,) = torch.autograd.grad(oracle.log_prob(watched, a, b).sum(), watched)
mean_error = ((x + b**2 * score) / a - oracle.denoise(x, a, b)).abs().max()
slope = jacobian(lambda x: oracle.denoise(x, a, b), x)
covariance_error = (b**2 / a * slope - oracle.denoising_covariance(x, a, b)).abs().max()
print(f"mean: {mean_error:.0e}, covariance: {covariance_error:.0e}")
print(
    f"smallest eigenvalue of a Jacobian: {torch.linalg.eigvalsh(slope).min():.1e}; symmetric to {(slope - slope.mT).abs().max():.0e}"
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-2", [mean_error, covariance_error])


# %% [markdown]
# **What to look for.** The density of the states at three noise levels, and from some states an arrow to the best guess $\hat x_0$. Where do arrows point when there is much noise, and when there is little? (In the middle, at σ = 0.6, the blurred Gaussians form a plateau: no slope, hence no arrow.)

# %% alt="Three noise levels of the nine Gaussians with arrows from states to denoised guesses: at high noise all arrows point towards the centre, at low noise each to its nearest Gaussian."
def density_map(ax, a, b, limit=2.6, n=60):
    line = torch.linspace(-limit, limit, n, device=device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    image = ring.log_prob(grid, a, b).exp().cpu()
    ax.contourf(line.cpu(), line.cpu(), image, levels=8, cmap="Blues", vmax=1.4 * image.max(), antialiased=False)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.grid(False)


fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.7))
for ax, sigma in zip(axes, [1.5, 0.6, 0.25]):
    density_map(ax, 1.0, sigma)
    line = torch.linspace(-2.2, 2.2, 9, device=device)
    start = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    arrow = (ring.denoise(start, 1.0, sigma) - start).cpu()
    ax.quiver(*start.cpu().T, *arrow.T, angles="xy", scale_units="xy", scale=1, width=0.006, color=PALETTE[1])
label_panels(axes, [f"σ = {sigma}" for sigma in (1.5, 0.6, 0.25)])
plt.show()


# %% [markdown]
# **What you saw.** With much noise the guess is near the mean of all data, wherever you are: an average over nine Gaussians, so a point where there may be no data at all. With little noise it is the nearest Gaussian. A sampler must follow the arrows *part of the way* while the noise falls; follow one to its tip and you get averages.
#
# ### Why the arrow leads back: ODE and SDE
#
# The states $x_t$ have the law of an SDE that starts at data: drift $f(x,t)=\frac{\dot a}{a}x$, noise of strength $g$ with $g^2=2b\,(\dot b-b\,\dot a/a)$ (differentiate mean and variance of $x_t$ given $x_0$). Such a *stochastic differential equation*, $dx=f\,dt+g\,dB$, moves a point in a short time $h$ by $f h$ plus $g\sqrt h$ times a fresh normal number; these $\sqrt h$ times normal numbers, added up, are the *Brownian motion* $B$. The density of many such points is carried along by $f$ (a divergence: what flows out of a place, less what flows in) and spread by the noise as heat spreads. That is the Fokker-Planck equation
#
# $$\partial_t p_t=-\nabla\cdot(f\,p_t)+\tfrac12 g^2\,\nabla^2 p_t .$$
#
# The one trick of the whole field: $\nabla p_t=p_t\nabla\log p_t=p_t\,s$. Diffusion is transport along $-s$. So
#
# $$\partial_t p_t=-\nabla\cdot\big[(f-\tfrac12 g^2 s)\,p_t\big] ,$$
#
# which is a continuity equation, $\partial_tp+\nabla\cdot(u\,p)=0$: mass moves with a velocity $u$ and is never lost. It is that of the **probability-flow ODE** $\dot x=u(x,t)=f-\tfrac12g^2 s$. No noise, and the same density at each time. Insert $s$ and you find the velocity of the section before, $u=\dot a\hat x_0+\dot b\hat n$.
#
# Now back in time, with $\tau=T-t$ from the clock's end $T$. The equation reads $\partial_\tau p=\nabla\cdot(u\,p)$. Add $0=\tfrac{\lambda^2}2g^2\,(\nabla^2p-\nabla\cdot(s\,p))$: the first term is a diffusion of strength $\lambda g$, the second a velocity $+\tfrac{\lambda^2}2g^2s$ in the direction of $\tau$, that is $-\tfrac{\lambda^2}2g^2s$ in that of $t$. So you may walk back with any amount $\lambda\ge0$ of noise, if you pay for it with the score ($\bar B$ is a Brownian motion in reversed time):
#
# $$dx=\big[f-\tfrac{1+\lambda^2}{2}\,g^2 s\big]dt+\lambda g\,d\bar B ,\qquad\lambda=0:\text{ODE},\quad\lambda=1:\text{Anderson's reverse SDE.}$$
#
# Check both equations at random points: divided by $p_t$, $\;\partial_t\log p_t+\nabla\cdot u+u\cdot s$ must vanish, and so must $\partial_t\log p_t+\nabla\cdot f+f\cdot s-\tfrac12g^2(\nabla\cdot s+\lVert s\rVert^2)$.

# %%
def divergence(f, x, t):
    return trace_jacobian(lambda x: f(x, t), x)


for process in (VP(), FlowPath(), TrigonometricPath()):
    model = exact_model(oracle, process)
    t = torch.full((300, 1), 0.35, dtype=F64, device=device).requires_grad_()
    x = 1.5 * torch.randn(300, 2, generator=source(7), dtype=F64, device=device)
    (change,) = torch.autograd.grad(oracle.log_prob(x, *process.coefficients(t)).sum(), t)
    t = t.detach()
    (a, b), (da, db) = process.coefficients(t), process.rates(t)
    u, s = model.velocity(x, t), model.score(x, t)
    continuity = change[:, 0] + divergence(model.velocity, x, t) + (u * s).sum(1)
    f, g2 = da / a * x, 2 * b * (db - b * da / a)
    spread = divergence(model.score, x, t) + s.square().sum(1)
    fokker_planck = change[:, 0] + 2 * (da / a)[:, 0] + (f * s).sum(1) - 0.5 * g2[:, 0] * spread
    print(f"{type(process).__name__:18s} {continuity.abs().max():.0e} {fokker_planck.abs().max():.0e}")
    assert continuity.abs().max() < 1e-8 and fokker_planck.abs().max() < 1e-8

# %% [markdown]
# For a clock that runs towards data, $g^2$ comes out negative: such a process has no forward SDE, and doesn't need one. `process.diffusion_squared` is its absolute value, and walking towards data the signs come out as above.
#
# Now all the way, and with finite steps. For Gaussian data, $x_0\sim\mathcal N(m,C)$, mean and covariance of what a sampler makes are known. Five samplers with the exact score: do their samples have the right moments, up to the error that a finite number of samples must have?

# %%
mean, covariance = torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([[1.2, 0.5], [0.5, 0.4]], dtype=F64)
gaussian = NormalMixture(mean[None].to(device), covariance[None].to(device))
vp, ddpm = VP(), DDPM()
exact = {process: exact_model(gaussian, process) for process in (vp, ddpm, edm)}
n = POINTS["moments"]


def begin(process, offset):
    return process.initial([n, 2], gaussian.means, source(offset))


samplers = {
    "ODE, Euler": lambda: euler(exact[vp], begin(vp, 10), vp.times(400)),
    "SDE, λ = 1": lambda: euler(exact[vp], begin(vp, 11), vp.times(400), stochasticity=1.0, generator=source(21)),
    "SDE, λ = 2": lambda: euler(exact[vp], begin(vp, 12), vp.times(800), stochasticity=2.0, generator=source(22)),
    "DDPM, ancestral": lambda: ancestral(exact[ddpm], begin(ddpm, 13), ddpm.times(1000), generator=source(23)),
    "ODE, Heun": lambda: heun(exact[edm], begin(edm, 14), edm.times(40)),
}

# %%
moments, expected = {}, torch.cat([mean, covariance[[0, 0, 1], [0, 1, 1]]])
variance = covariance.diagonal()
error = torch.cat(
    [variance, torch.stack([2 * variance[0] ** 2, variance.prod() + covariance[0, 1] ** 2, 2 * variance[1] ** 2])]
)
for name, sampler in samplers.items():
    drawn = sampler().cpu()
    got = torch.cat([drawn.mean(0), torch.cov(drawn.T)[[0, 0, 1], [0, 1, 1]]])
    moments[name] = ((got - expected) / (error / n).sqrt()).abs().max().item()
    print(f"{name:16s} mean {got[0]:.3f}, {got[1]:.3f}; covariance {got[2]:.3f}, {got[3]:.3f}, {got[4]:.3f}")
say(
    f"Expected {', '.join(f'{v:.3f}' for v in expected)}. Largest error in standard errors: "
    + "; ".join(f"{name} {z:.1f}" for name, z in moments.items())
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-3", moments.values())

# %% [markdown]
# ### What to minimise
#
# Nobody knows $\hat x_0$ for real data, but an expectation is what minimises a mean square. For any function $D$,
#
# $$\mathbb E\lVert D(x_t)-x_0\rVert^2=\mathbb E\lVert D(x_t)-\hat x_0(x_t)\rVert^2+\underbrace{\mathbb E\operatorname{tr}\operatorname{Cov}[x_0\mid x_t]}_{\text{does not depend on }D}$$
#
# (write $x_0=\hat x_0+(x_0-\hat x_0)$; the mixed term vanishes given $x_t$). So regress on the *one* data point that made the state, and you learn the mean of all that could have. In terms of the score this is **denoising score matching**: $\lVert s_\theta+n/b\rVert^2$ has the gradient of $\lVert s_\theta-s\rVert^2$. The constant is the price: the loss does not go to zero, and its value alone says nothing.
#
# The same error, written for another kind, has another weight: with $\Delta=D-x_0$ the noise is off by $a\Delta/b$ and $v$ by $\Delta/b$ if $a^2+b^2=1$. DDPM's *simple loss*, $\mathbb E\lVert\hat n_\theta-n\rVert^2$ at uniform times, is thus $\tfrac{a^2}{b^2}\lVert\Delta\rVert^2$. Its variational bound weighs this with $\beta_t/(2(1-\beta_t)(1-\bar\alpha_{t-1}))$, in the symbols of its chain above, most at the lowest noise, where nobody looks; dropping that weight made the pictures good. `denoising_loss` takes the kind, the times and the weight as arguments.
#
# Check the decomposition: two arbitrary fields $D_1$, $D_2$, many states; the difference of their losses must be the difference of their distances to the exact $\hat x_0$.

# %%
g = source(30)
x0 = oracle.sample([200_000], g)
state = 0.8 * x0 + 0.6 * torch.randn(x0.shape, generator=g, dtype=F64, device=device)
guess = oracle.denoise(state, 0.8, 0.6)
fields = [0.5 * state, state.sin()]
by_data, by_guess = ([(D - target).square().sum(1) for D in fields] for target in (x0, guess))
gap = (by_data[0] - by_data[1]) - (by_guess[0] - by_guess[1])
floor = oracle.denoising_covariance(state[:20_000], 0.8, 0.6).diagonal(dim1=-2, dim2=-1).sum(-1).mean()
print(
    f"losses {by_data[0].mean():.4f}, {by_data[1].mean():.4f}; distances {by_guess[0].mean():.4f}, {by_guess[1].mean():.4f}"
)
print(
    f"losses minus distances {(by_data[0] - by_guess[0]).mean():.3f}, {(by_data[1] - by_guess[1]).mean():.3f}; trace of the covariance {floor:.3f}"
)
assert gap.mean().abs() < 5 * gap.std() / math.sqrt(len(gap))

# %% [markdown]
# ## From scratch
#
# ### A diffusion model
#
# A network of $(x,t)$ that predicts noise, VP's $a$ and $b$, forty lines in all. Point and clock are given to the network together with a few waves of each, since a small network learns smooth functions first (that is [chapter 01](01_spectral_bias.ipynb)) and these are not.

# %%
torch.manual_seed(seed)
network = nn.Sequential(nn.Linear(35, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)).to(device)
harmonics = torch.arange(1, 9, device=device)


def predict(x, t):
    waves = torch.cat([math.pi * t * harmonics, (x[:, :, None] * harmonics[:4]).flatten(1)], 1)
    return network(torch.cat([x, t, waves.cos(), waves.sin()], 1))


def a_and_b(t):
    log_a = -0.05 * t - 4.975 * t**2
    return log_a.exp(), (1 - (2 * log_a).exp()).sqrt()


def noise_loss(x0, noise, t):
    a, b = a_and_b(t)
    return (predict(a * x0 + b * noise, t) - noise).square().mean()


# %% [markdown]
# Training draws a batch, one time and one noise for each point. Sampling is DDIM: at each time split the state into data and noise, then mix them anew with less noise.

# %%
g, data = source(31), ring.sample([20_000], source(32))
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
decay = torch.optim.lr_scheduler.PolynomialLR(optimiser, STEPS["scratch"])
for _ in range(STEPS["scratch"]):
    x0 = data[torch.randint(len(data), (BATCH,), generator=g, device=device)]
    t = 1e-3 + (1 - 1e-3) * torch.rand(BATCH, 1, generator=g, device=device)
    loss = noise_loss(x0, torch.randn(x0.shape, generator=g, device=device), t)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    decay.step()


@torch.no_grad()
def sample_from_scratch(x, num_steps):
    times = torch.linspace(1, 0, num_steps + 1, dtype=F64).tolist()
    for t, s in zip(times[:-1], times[1:]):
        (a, b), (a_s, b_s) = (a_and_b(torch.tensor(v, dtype=F64)) for v in (t, s))
        noise = predict(x, torch.full_like(x[:, :1], t))
        x = a_s * (x - b * noise) / a + b_s * noise
    return x


# %% [markdown]
# The same in `refimpl`, with the same numbers drawn: equal loss, equal samples.

# %%
scratch = DiffusionModel(predict, vp, predicts="noise")
t, noise = (
    0.01 + 0.98 * torch.rand(BATCH, 1, generator=g, device=device),
    torch.randn(x0.shape, generator=g, device=device),
)
ours = noise_loss(x0, noise, t)
theirs = denoising_loss(scratch, x0, noise=noise, draw_times=lambda n, like, generator: t)
start = vp.initial([POINTS["samples"], 2], data, source(33))
drawn = sample_from_scratch(start, 50)
packaged = ddim(scratch, start, vp.times(50))
print(
    f"losses {ours.item():.6f} and {theirs.item():.6f}; samples differ by at most {(drawn - packaged).abs().max():.0e}"
)
assert abs(ours - theirs) < 1e-5 and (drawn - packaged).abs().max() < 1e-2

# %% [markdown]
# ### Flow matching in ten lines
#
# Now the straight path, $x_t=(1-t)\,z+t\,x_1$, from noise $z$ at $t=0$ to data $x_1$ at $t=1$. Its velocity is $x_1-z$ for the whole way. Regress on that. To sample, walk with Euler's method.

# %%
network.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
decay = torch.optim.lr_scheduler.PolynomialLR(optimiser, STEPS["scratch"])
for _ in range(STEPS["scratch"]):
    x1 = data[torch.randint(len(data), (BATCH,), generator=g, device=device)]
    z, t = torch.randn(x1.shape, generator=g, device=device), torch.rand(BATCH, 1, generator=g, device=device)
    loss = (predict((1 - t) * z + t * x1, t) - (x1 - z)).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    decay.step()
flowed = start.clone()
with torch.no_grad():
    for k in range(50):
        flowed += predict(flowed, torch.full_like(flowed[:, :1], k / 50)) / 50
straight = FlowPath()
same = euler(DiffusionModel(predict, straight, predicts="velocity"), start, straight.times(50))
print(f"the same in refimpl: samples differ by at most {(flowed - same).abs().max():.0e}")
assert (flowed - same).abs().max() < 1e-3


# %% [markdown]
# **What to look for.** 2,000 samples of each, and 2,000 of the truth. Which mistakes do both make?

# %% alt="Three scatter plots of nine clusters: data, samples of the diffusion model, samples of flow matching, both with a few points between the clusters."
def cloud(ax, x, colour=PALETTE[0], limit=2.4, n=2000):
    ax.plot(*x[:n].cpu().T, ".", ms=1.2, color=colour, alpha=0.5)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")


fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.5))
for ax, x, colour in zip(axes, (data, drawn, flowed), PALETTE):
    cloud(ax, x, colour)
label_panels(axes, ["Data", "Diffusion, 50 DDIM steps", "Flow matching, 50 Euler steps"])
plt.show()


# %%
def distance(x):
    """Sliced Wasserstein distance to fresh data, always the same directions."""
    return sliced_wasserstein(x, fresh, num_projections=128, generator=source(35)).item()


fresh = ring.sample([POINTS["samples"]], source(34))
floor = distance(ring.sample([POINTS["samples"]], source(36)))
by_formula = [
    distance(sampler(exact_model(ring, process), start, process.times(50)))
    for sampler, process in ((ddim, vp), (euler, straight))
]
say(
    f"Sliced Wasserstein distance to fresh data: diffusion {distance(drawn):.3f}, flow matching {distance(flowed):.3f}; the same steps with the exact function {by_formula[0]:.3f} and {by_formula[1]:.3f}; two sets of data are {floor:.3f} apart, and that is the floor for all such numbers below."
)

# %% [markdown]
# **What you saw.** Both find all nine clusters, after some seconds of training, and both leave a thin bridge here and there: the network is smooth, and near the middle of the way the exact velocity is not. Network, start and number of steps are the same, yet flow matching is closer, and most of the difference is not the sampler's: *what* a network is asked matters, as *Real digits* below shows. From here on we separate the two sources of error, the sampler's steps and the network.
#
# ## Experiments
#
# ### DDIM is Euler, and Heun is better
#
# In the coordinates $\bar x=x/a$ and $\sigma=b/a$ the probability-flow ODE is $d\bar x/d\sigma=\hat n$ (insert $u$; all other terms cancel). Euler's step from $\sigma_t$ to $\sigma_s$ is
#
# $$\frac{x_s}{a_s}=\frac{x_t}{a_t}+(\sigma_s-\sigma_t)\,\hat n\qquad\Longleftrightarrow\qquad x_s=a_s\hat x_0+b_s\hat n ,$$
#
# and that is DDIM. It is exact if the data are one point, for then $\hat n$ is constant along the path. In general each step errs by $O(h^2)$, and all of them by $O(h)$. *Heun's* method goes there, asks for the slope once more, and takes the mean of both: error $O(h^2)$ at two calls a step. Karras et al. also choose the grid, $\sigma_i^{1/\rho}$ evenly spaced with $\rho=7$: many small steps at low noise.
#
# The exact denoiser of the ring, the same noise at the start, and a very fine solution to compare with. (We take the median over starts: a mean would be ruled by the few that lie on the watershed between two clusters.)

# %%
ring_model = exact_model(oracle, edm)
start = edm.initial([POINTS["order"], 2], oracle.means, source(40))
fine = heun(ring_model, start, edm.times(1600))
steps, errors, calls = [9, 18, 36, 72, 144], {}, {}
for name, sampler in {"DDIM (Euler)": ddim, "Heun": heun}.items():
    for N in steps:
        ring_model.reset_counts()
        reached = sampler(ring_model, start, edm.times(N))
        errors[name, N] = (reached - fine).norm(dim=1).median().item()
        calls[name, N] = ring_model.calls


def order_of(name, low, high):
    return math.log(errors[name, low] / errors[name, high]) / math.log(high / low)


orders = {name: [order_of(name, 36, 72), order_of(name, 72, 144)] for name in ("DDIM (Euler)", "Heun")}

# %% [markdown]
# **What to look for.** On logarithmic axes an order is a slope. The dotted lines have slopes 1 and 2. The horizontal axis counts calls of the denoiser, which is what you pay. Where do the lines cross?

# %% alt="Error against calls on log-log axes: DDIM falls with slope one, Heun with slope two; they cross near thirty calls."
fig, ax = plt.subplots(figsize=(5.6, 3.0))
for k, name in enumerate(orders):
    at = [calls[name, N] for N in steps]
    ax.loglog(at, [errors[name, N] for N in steps], "os"[k] + "-", color=PALETTE[k], label=name)
    guide = [errors[name, 144] * (at[-1] / c) ** (k + 1) for c in at]
    ax.loglog(at, guide, ":", color=PALETTE[k], lw=1.2, label=f"slope {k + 1}")
ax.set(xlabel="calls of the denoiser", ylabel="median error of the end point")
ax.set_title("Order of convergence, exact denoiser")
ax.legend()
plt.show()

# %%
say(
    f"Slopes: DDIM {orders['DDIM (Euler)'][0]:.2f}, {orders['DDIM (Euler)'][1]:.2f}; Heun {orders['Heun'][0]:.2f}, {orders['Heun'][1]:.2f}. "
    f"With 71 or 72 calls Heun is off by {errors['Heun', 36]:.4f}, DDIM by {errors['DDIM (Euler)', 72]:.4f}; with 17 or 18, Heun by {errors['Heun', 9]:.2f}, DDIM by {errors['DDIM (Euler)', 18]:.2f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-4", orders["DDIM (Euler)"])
claim("DIF-5", orders["Heun"])

# %% [markdown]
# **What you saw.** Each method has its theoretical order. With few calls the second order does not pay: Heun's steps are twice as long, and its advantage needs steps short against the scale on which the arrow turns. EDM's 35 calls lie just past the crossing.
#
# ### Deterministic or ancestral?
#
# DDPM's sampler is another way to take the same step. Given $x_t$ *and* $x_0$, the state $x_s$ of a Markov chain is Gaussian; put $\hat x_0$ in the place of $x_0$ and draw. DDIM joins both: keep a share of the estimated noise, and replace the rest by fresh noise so that the marginal stays right,
#
# $$x_s=a_s\hat x_0+\sqrt{b_s^2-\tau^2}\;\hat n+\tau\,n',\qquad\tau=\eta\,b_s\sqrt{1-\sigma_s^2/\sigma_t^2},$$
#
# where the subscript $s$ is the next time (not the score), $\eta=0$ is the ODE, and $\eta=1$ DDPM's posterior. One network serves all $\eta$: its loss sees only the marginals. In one step, check that $\eta=1$ is `ancestral`; then compare at different numbers of steps.

# %%
ring_ddpm = exact_model(ring, ddpm)
start = ddpm.initial([8, 2], ring.means, source(41))
pair = [
    f(ring_ddpm, start, ddpm.times(10), generator=source(42), **kw)
    for f, kw in ((ddim, dict(eta=1.0)), (ancestral, {}))
]
print(f"eta = 1 and ancestral differ by {(pair[0] - pair[1]).abs().max():.0e}")
few, by_eta, kept = [10, 20, 50, 200], {}, {}
for N in few:
    for eta in (0.0, 1.0):
        values = []
        for repeat in range(3):
            start = ddpm.initial([POINTS["samples"], 2], ring.means, source(43 + repeat))
            kept[N, eta] = ddim(ring_ddpm, start, ddpm.times(N), eta=eta, generator=source(46 + repeat))
            values.append(distance(kept[N, eta]))
        by_eta[N, eta] = sum(values) / 3

# %% [markdown]
# **What to look for.** The data's ring has radius 1.5. How large is it after ten steps, how many points lie between the clusters, and where does the fresh noise stop to matter?

# %% alt="Left and middle: samples after ten steps; both form a ring that is too small, with many points between the clusters, the stochastic one a little smaller. Right: distance to data against steps, the deterministic sampler lower, both near the floor at 200."
fig, axes = plt.subplots(1, 3, figsize=(7.8, 2.6), width_ratios=[1, 1, 1.3])
for ax, eta, colour in zip(axes, (0.0, 1.0), PALETTE):
    cloud(ax, kept[10, eta], colour)
for eta, colour in zip((0.0, 1.0), PALETTE):
    axes[2].semilogx(few, [by_eta[N, eta] for N in few], "o-", color=colour, label=f"η = {eta:g}")
axes[2].axhline(floor, color="#666666", ls=":", label="fresh data")
axes[2].set(xlabel="steps", ylabel="sliced Wasserstein", ylim=(0, None), xticks=few, xticklabels=few)
axes[2].minorticks_off()
axes[2].legend()
label_panels(axes, ["10 steps, η = 0", "10 steps, η = 1", "Distance to data"])
plt.show()


# %%
def radius_and_strays(x):
    return f"{x.norm(dim=1).mean():.2f} and {100 * (torch.cdist(x, ring.means).amin(1) > 0.45).float().mean():.0f} %"


say(
    "Mean radius, and share of points that are farther than 0.45 (three standard deviations) from every cluster: "
    + f"{radius_and_strays(kept[10, 0.0])} with ten steps and η = 0; {radius_and_strays(kept[10, 1.0])} with η = 1; {radius_and_strays(fresh)} in the data. "
    + "Distance at "
    + ", ".join(map(str, few))
    + " steps: η = 0 "
    + ", ".join(f"{by_eta[N, 0.0]:.3f}" for N in few)
    + "; η = 1 "
    + ", ".join(f"{by_eta[N, 1.0]:.3f}" for N in few)
    + f"; floor {floor:.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-6", by_eta[10, 1.0] - by_eta[10, 0.0])

# %% [markdown]
# **What you saw.** With ten steps both rings are too small, and many points lie between the clusters; more so with fresh noise. The step puts the guess in the place of $x_0$ and so forgets the covariance of $x_0$ given $x_t$; the more of the noise is fresh, the more weight $x_0$ has in $x_s$, and the more variance is lost. With hundreds of steps both agree. (With a network, noise has a virtue that an exact denoiser cannot show: it forgets errors of earlier steps.)
#
# ### Likelihoods
#
# Along an ODE $\dot x=u(x,t)$ a density changes by $\frac{d}{dt}\log p_t(x_t)=-\nabla\cdot u(x_t,t)$, the instantaneous change of variables (divide the continuity equation by $p_t$ and collect the total derivative). Walk from a data point to the noise, where the density is known, and add up:
#
# $$\log p_{\text{data end}}(x)=\log p_{\text{noise}}(x_T)+\int_{\text{data}}^{\text{noise}}\nabla\cdot u(x_t,t)\,dt .$$
#
# The divergence costs one backward pass per dimension. Hutchinson's estimate costs one: $e^\top\frac{\partial u}{\partial x}e$ with a random $e$ that has $\mathbb E\,ee^\top=I$, *the same along the whole path*. With $H$ the symmetric part of the Jacobian its variance is $2\sum_{i\ne j}H_{ij}^2$ for random signs and $2\sum_{ij}H_{ij}^2$ for normal $e$. The velocity of a diffusion is dominated by a multiple of the identity, a diagonal, which signs see without any error.
#
# At σ = 0 the velocity is nothing over nothing with this clock, so we take the likelihood of the states with noise of standard deviation 0.01, `end_time`, whose exact value we know as well.

# %%
end = 0.01
n = POINTS["likelihood"]
x = oracle.sample([n], source(50)) + end * torch.randn(n, 2, generator=source(51), dtype=F64, device=device)
truth = oracle.log_prob(x, 1.0, end)
found = log_prob(ring_model, x, end_time=end, tolerance=1e-6)
likelihood_error = (found - truth).abs()
likely = x[:20].repeat(30, 1)  # thirty probes for each of twenty points
probed = {
    kind: log_prob(ring_model, likely, end_time=end, tolerance=1e-4, divergence=kind, generator=source(52)).view(30, 20)
    for kind in ("rademacher", "gaussian")
}
spread = {kind: values.var(0).mean().sqrt().item() for kind, values in probed.items()}
bias = {kind: (values.mean(0) - truth[:20]).mean().item() for kind, values in probed.items()}
say(
    f"{n} points: mean log-likelihood {found.mean():.4f} nats by the ODE, {truth.mean():.4f} exactly; mean absolute error {likelihood_error.mean():.1e}. "
    f"With one probe for each path: standard deviation {spread['rademacher']:.2f} nats with signs, {spread['gaussian']:.1f} with normal numbers (mean over 600 probes minus exact {bias['rademacher']:.2f}, {bias['gaussian']:.2f})."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-7", likelihood_error.mean())
claim("DIF-8", spread["gaussian"] / spread["rademacher"])

# %% [markdown]
# **What you saw.** A generative model without an invertible network has likelihoods that are exact up to an ODE solver's error; and the probe's distribution matters more than anything else: the trace of a nearly isotropic flow costs normal probes dearly.
#
# ### Real digits, and what to build into a network
#
# Now a network must learn. What should it be asked? Noise? At low noise it must find something tiny in its input; at high noise its output is divided by $a\approx0$ to make a guess of the data. EDM derives the answer from three demands. Write the denoiser as $D=c_{\text{skip}}\,x+c_{\text{out}}\,F(c_{\text{in}}\,x)$ in EDM's coordinates, data with mean square $\sigma_d^2$ a pixel.
#
# 1. The *input* has unit variance: $c_{\text{in}}=1/\sqrt{\sigma^2+\sigma_d^2}$.
# 2. The *target* of $F$ is $(x_0-c_{\text{skip}}x)/c_{\text{out}}$; unit variance means $c_{\text{out}}^2=(1-c_{\text{skip}})^2\sigma_d^2+c_{\text{skip}}^2\sigma^2$.
# 3. $F$'s *errors* are multiplied by $c_{\text{out}}$; make it as small as possible: $c_{\text{skip}}=\sigma_d^2/(\sigma^2+\sigma_d^2)$, so $c_{\text{out}}=\sigma\sigma_d/\sqrt{\sigma^2+\sigma_d^2}$.
#
# With weight $1/c_{\text{out}}^2$ the loss is a plain regression of $F$. For normal data of variance $\sigma_d^2$ the best $F$ is zero: everything linear is in the skip. Check the second demand on digits. (Pixels are not centred; their mean square is what counts.)

# %%
x = pixels[learn].double()
sigma_data = x.square().mean().sqrt().item()
targets = {}
for sigma in (0.01, 0.1, 0.5, 2.0, 10.0, 50.0):
    total = math.sqrt(sigma**2 + sigma_data**2)
    skip, out = (sigma_data / total) ** 2, sigma * sigma_data / total
    denoiser = Preconditioned(lambda x, t: torch.zeros_like(x), edm, sigma_data)
    state = x + sigma * torch.randn(x.shape, generator=source(60), dtype=F64, device=device)
    given = denoiser(state, torch.full_like(state[:, :1], sigma))  # with F = 0, the skip alone
    assert torch.allclose(given, skip * state)
    targets[sigma] = ((x - given) / out).square().mean().item()
say(
    f"σ_d = {sigma_data:.3f}. Mean square of the target at σ = "
    + ", ".join(f"{s:g}: {v:.3f}" for s, v in targets.items())
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-9", targets.values())

# %% [markdown]
# Going further along this road: a *full-covariance* Gaussian is fitted to the data in a millisecond, and its noise prediction $b\,(a^2C+b^2I)^{-1}(x-a\,m)$ is a formula. Let the network learn what is missing. We train three networks of the same size for the same time on 1,400 digits, with VP's process: one predicts noise, one is preconditioned as above, one has the Gaussian skip. All get the class as `context`, which is dropped with probability 0.15, for later.

# %%
mean, covariance = pixels[learn].mean(0), torch.cov(pixels[learn].T)
one_hot, nothing = torch.eye(10, device=device), torch.zeros(10, device=device)
label_of = labels.to(device)


def digit_network(kind):
    net = timed_mlp(64, dim_context=10, **DIGIT_NET)
    if kind == "noise":
        return DiffusionModel(net, vp, "noise"), None
    if kind == "preconditioned":
        inner = Preconditioned(net, vp, sigma_data)
        return DiffusionModel(inner, vp, "data"), inner.weight
    eye = torch.eye(64, device=device)
    return DiffusionModel(GaussianSkip(net, vp, mean, covariance + 1e-3 * eye), vp, "noise"), None


# %%
def train_digits(kind):
    torch.manual_seed(seed)
    (model, weight), g = digit_network(kind), source(61)
    model.to(device)

    def loss(x0, label):
        context = drop_labels(one_hot[label], nothing, 0.15, g)
        return denoising_loss(model, x0, weight=weight, context=context, generator=g)

    settings = dict(
        lr=size(quick=2e-3, full=5e-4), schedule="warmup_cosine", clip_norm=1.0, ema=0.995, generator=g, progress=False
    )
    data = (pixels[learn], label_of[learn])
    history = fit(
        model,
        loss,
        num_steps=STEPS["digits"],
        data=data,
        batch_size=256,
        checkpoint=checkpoint(f"digits-{kind}"),
        **settings,
    )
    model.load_state_dict(history.ema)
    return model.eval()


# %%
networks = {kind: train_digits(kind) for kind in ("noise", "preconditioned", "Gaussian skip")}

# %% [markdown]
# How good are they? The error of the noise prediction on held-out digits, averaged over uniform times. And samples: the Fréchet distance (of means and covariances) to the held-out digits in 64 features, the hidden layer of a small classifier. Beside the networks stands the mixture of twenty Gaussians, as an exact diffusion model.

# %%
classifier = MLPClassifier((64,), max_iter=30, random_state=seed)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it has not converged: it is good enough
    classifier.fit(pixels[learn].cpu().numpy(), labels[learn].numpy())
weights, biases = torch.tensor(classifier.coefs_[0]).to(pixels), torch.tensor(classifier.intercepts_[0]).to(pixels)


def features(x):
    return (x @ weights + biases).relu()


def frechet(x):
    return frechet_distance(features(x), features(pixels[test])).item()


# %%
wanted = torch.randint(10, (POINTS["digits"],), generator=source(62), device=device)
start = vp.initial([len(wanted), 64], pixels, source(63))
quality, ancestry, by_ode = {}, {}, {}
for name, model in networks.items():
    with torch.no_grad():
        error = torch.stack(
            [
                denoising_loss(
                    model, pixels[test], kind="noise", context=one_hot[label_of[test]], generator=source(64 + k)
                )
                for k in range(20)
            ]
        ).mean()
    ancestry[name] = ancestral(model, start, vp.times(100), context=one_hot[wanted], generator=source(90))
    by_ode[name] = ddim(model, start, vp.times(50), context=one_hot[wanted])
    quality[name] = error.item(), frechet(ancestry[name]), frechet(by_ode[name])

# %% [markdown]
# **What to look for.** One sample of each class, from 0 to 9: by the network without and with the Gaussian skip, each with the ancestral sampler and with DDIM, and held-out digits. Which row falls out of the frame? Which can you read?

# %% alt="Five rows of ten images. Without the skip, ancestral samples are blotchy and most DDIM samples are checks of black and white; with the skip both rows are blotchy, with some readable digits. Last row: real digits, clear."
picked = torch.stack([(wanted == d).nonzero()[0, 0] for d in range(10)]).cpu()
pictured = {
    f"{name}, {kind}": drawn[name][picked]
    for name in ("noise", "Gaussian skip")
    for kind, drawn in (("ancestral", ancestry), ("DDIM", by_ode))
}
pictured["held-out data"] = torch.stack([pixels[test][labels[test] == d][0] for d in range(10)])
fig, ax = plt.subplots(figsize=(6.6, 2.6))
tiles(ax, torch.stack(list(pictured.values())), -1.1, 1.1)
ax.set_yticks([3.5 + 9 * k for k in range(len(pictured))], list(pictured))
plt.show()

# %%
learned = frechet(pixels[learn])
say(
    "\n".join(
        [
            "| network | held-out error of the noise | Fréchet, ancestral, 100 steps | Fréchet, DDIM, 50 steps |",
            "|---|---|---|---|",
        ]
        + [f"| {name} | {e:.4f} | {f:.2f} | {d:.2f} |" for name, (e, f, d) in quality.items()]
        + [
            f"| mixture of 20 Gaussians | | {frechet(digit_law.sample([len(wanted)], source(91))):.2f} (drawn directly) | |",
            f"| training digits | | {learned:.2f} | |",
        ]
    )
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-10", quality["noise"][1] / quality["Gaussian skip"][1])

# %% [markdown]
# **What you saw.** In seconds of training, what is built in decides. The network that predicts noise and nothing else is good enough for the ancestral sampler, whose fresh noise forgets its errors, and bad with the deterministic one, which keeps them: near $t=1$ an error of the noise is multiplied by $b/a$, up to 150. The preconditioned one is good with both. Few of the samples can be read with ease: 8 × 8 pixels, 1,400 images, seconds of training. Note also the mixture: on 8 × 8 pixels, twenty Gaussians are an honest rival of a network.
#
# ### Guidance, and what it does not sample
#
# Bayes' rule on scores: $\nabla\log p_t(x\mid c)=\nabla\log p_t(x)+\nabla\log p(c\mid x_t=x)$. Here $c$ is a class, and $s_c(x)=\nabla\log p_t(x\mid c)$. The last term comes from a classifier *of noisy states*, and the sum samples from $p(x\mid c)$. **Classifier guidance** multiplies it with a scale $w$. **Classifier-free guidance** gets the term as a difference of two predictions of one network, with label and without:
#
# $$\tilde s=s+w\,(s_c-s),\qquad w=0:\text{no label},\quad w=1:\text{Bayes},\quad w>1:\text{more of it.}$$
#
# (Ho and Salimans count from our $w=1$.) What does $w>1$ sample? One reads: the law $q\propto p(x)\,p(c\mid x)^w$, whose score at $t=0$ it is. But a sampler needs the score of $q$ *with noise*, at each $t$, and that is
#
# $$\nabla\log q_t(x)=s(x)+\nabla\log\mathbb E\big[p(c\mid x_0)^w\,\big|\,x_t=x\big],\qquad\text{not}\quad s(x)+w\,\nabla\log\mathbb E\big[p(c\mid x_0)\,\big|\,x_t=x\big].$$
#
# The power of a mean is not the mean of the power. Take $p(x\mid\pm)=\mathcal N(\pm1,\frac14)$, equally likely, and everything is exact. First, that $w=1$ is right both ways: the classifier's sum must equal the conditional score.

# %%
sides = [
    NormalMixture(
        torch.full((1, 1), m, dtype=F64, device=device), torch.full((1, 1, 1), 0.25, dtype=F64, device=device)
    )
    for m in (1.0, -1.0)
]
both = NormalMixture.joined(sides)


def known_label(laws, whole, process):
    """The exact model with a label: context (classes,), one-hot, or zeros for none."""

    def denoise(x, t, context):
        law = laws[int(context.argmax())] if context.any() else whole
        return law.denoise(x, *process.coefficients(t))

    return DiffusionModel(denoise, process, "data")


def log_plus(x, t):  # log p(+ | x_t), exact
    return both.responsibilities(x, *vp.coefficients(t))[..., 0].log()


line_model = known_label(sides, both, vp)

# %%
plus, no_label = torch.tensor([1.0, 0.0], dtype=F64, device=device), torch.zeros(2, dtype=F64, device=device)
x = torch.linspace(-3, 3, 101, dtype=F64, device=device)[:, None]
by_classifier = classifier_guided(exact_model(both, vp), log_plus, 1.0).score(x, 0.3)
print(
    f"classifier's and conditional score differ by {(by_classifier - line_model.score(x, 0.3, plus)).abs().max():.0e}"
)


def guide(w, n=POINTS["samples"], steps=200):
    x = vp.initial([n, 1], plus, source(100))
    return ddim(classifier_free(line_model, w, plus, no_label), x, vp.times(steps))[:, 0]


# %%
scales = [1.0, 2.0, 4.0, 8.0]
guided = {w: guide(w) for w in scales}
grid = torch.linspace(-4, 6, 4001, dtype=F64, device=device)[:, None]


def tilted_density(w):
    log = both.log_prob(grid) + w * both.responsibilities(grid)[:, 0].log()
    return (log - torch.logsumexp(log, 0)).exp() / (grid[1, 0] - grid[0, 0])


def moments_of(density):
    share = density / density.sum()
    mean = (share * grid[:, 0]).sum()
    return mean.item(), (share * (grid[:, 0] - mean).square()).sum().sqrt().item()


# %% [markdown]
# **What to look for.** Filled: samples of classifier-free guidance. Line: the tilted law $q$. Both should agree if guidance sampled $q$.

# %% alt="Three histograms of guided samples with the tilted density as a line: they agree at w = 1; at w = 2 and 4 the samples are shifted to the right and narrower."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.4), sharex=True)
for ax, w in zip(axes, scales):
    ax.hist(guided[w].cpu(), bins=60, range=(-1, 3.5), density=True, color=PALETTE[4], label="guided")
    ax.plot(grid.cpu(), tilted_density(w).cpu(), color=PALETTE[1], label="tilted")
    ax.set(xlim=(-1, 3.5), xlabel="x", yticks=[])
axes[2].legend(fontsize=8, loc="upper left")
label_panels(axes, [f"w = {w:g}" for w in scales[:3]])
plt.show()

# %%
tilted = {w: moments_of(tilted_density(w)) for w in scales}
say(
    "Mean (standard deviation) of guided samples and of the tilted law: "
    + "; ".join(
        f"w = {w:g}: {guided[w].mean():.2f} ({guided[w].std():.2f}) and {tilted[w][0]:.2f} ({tilted[w][1]:.2f})"
        for w in scales
    )
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-11", guided[4.0].mean() - tilted[4.0][0])

# %% [markdown]
# **What you saw.** Tilting hardly moves the law: a point at 1 is already recognised, and more certainty is cheap. Guidance runs away from the other class as long as there is noise, when the label is still in doubt, and lands where there were few data, here also too close together. (Not a law of nature: were the class and the whole one Gaussian each, of equal width, guidance would sample the tilted law at every $w$, with the spread unchanged.)
#
# On digits: the exact model of the mixture, and the network with the Gaussian skip, both at $w=1$ and $w=4$. We ask for each digit and count what a logistic regression says, and how much a class varies.

# %%
judge = LogisticRegression(max_iter=2000, C=0.1).fit(pixels[learn].cpu().numpy(), labels[learn].numpy())
digit_exact = known_label(by_class, digit_law, vp)
per_class = len(wanted) // 20
sheets = {}
for name, model in {"exact": digit_exact, "network": networks["Gaussian skip"]}.items():
    for w in (1.0, 4.0):
        drawn = []
        for d in range(10):
            x = vp.initial([per_class, 64], pixels, source(110 + d))
            drawn.append(ddim(classifier_free(model, w, one_hot[d], nothing), x, vp.times(50)))
        sheets[name, w] = torch.stack(drawn)  # (digit, sample, 64)


def recognised(x):
    truth = torch.arange(10).repeat_interleave(x.shape[1]).numpy()
    return judge.score(x.flatten(0, 1).cpu().numpy(), truth)


def variety(x):
    return x.var(1).sum(-1).mean().item()


# %% [markdown]
# **What to look for.** The same noise in each column. What does a larger $w$ do to the strokes, and to what lies around them?

# %% alt="Four rows of the ten digits: with guidance 4 the strokes are bolder and the contrast is higher than with guidance 1, for the exact model and for the network."
rows = [sheet[:, 0] for sheet in sheets.values()]
fig, ax = plt.subplots(figsize=(6.2, 2.1))
tiles(ax, torch.stack(rows), -1.3, 1.3)
ax.set_yticks([3.5 + 9 * k for k in range(4)], [f"{name}, w = {w:g}" for name, w in sheets])
plt.show()

# %%
rows = [
    f"| {name}, w = {w:g} | {100 * recognised(x):.1f} % | {variety(x):.1f} | {variety(x.clamp(-1, 1)):.1f} | {100 * (x.abs() > 1).float().mean():.0f} % | {frechet(x.flatten(0, 1)):.2f} |"
    for (name, w), x in sheets.items()
]
head = "| | recognised | variance within a class | the same, clamped | pixels outside $[-1,1]$ | Fréchet distance |"
say("\n".join([head, "|---|---|---|---|---|---|", *rows]))
say(f"Recognised of the held-out digits: {100 * judge.score(pixels[test].cpu().numpy(), labels[test].numpy()):.1f} %.")

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-12", variety(sheets["exact", 4.0]) / variety(sheets["exact", 1.0]))

# %% [markdown]
# **What you saw.** Every digit is recognised at $w=4$, strokes get bolder, contrast rises, and the Fréchet distance is several times worse, as the FID is in the papers once $w$ is well above 1. But the variance within a class does *not* fall, and the claim, as we declared it, does not hold. A part of the pixels lies outside $[-1,1]$ even without guidance, since a mixture of Gaussians knows no range; guidance drives more of them out, and differences grow along. Clamped to the range, as image samplers do, the variety of the exact model falls a little, less than our criterion asked for; that of the network hardly moves, or even grows.
#
# On the line, where both classes were equally wide, spread had to shrink. In general, with Gaussians of covariances $C_c$ (class) and $C$ (all), the guided score $-(w C_c^{-1}-(w-1)C^{-1})\,x+\dots$ is that of the precision $C_c^{-1}+(w-1)(C_c^{-1}-C^{-1})$: narrower where the class is narrower than the whole, *wider* where it is wider, and where it is wider by more than $w/(w-1)$ the precision is negative: a law with this score does not exist. Count such directions among the 64, in coordinates in which $C=I$:

# %%
root = torch.linalg.cholesky(digit_law.moments()[1].double())
wider, negative = [], []
for law in by_class:
    half = torch.linalg.solve_triangular(root, law.moments()[1].double(), upper=False)
    ratio = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    wider.append((ratio > 1).sum().item())
    negative.append((ratio > 4 / 3).sum().item())
say(
    f"Directions in which the digits 0 to 9 vary more than all digits: {', '.join(map(str, wider))}; with negative precision at w = 4: {', '.join(map(str, negative))}."
)

# %% [markdown]
# Every digit has directions of both kinds. [The next chapter](10_guidance_by_control.ipynb) asks what the right correction would be.
#
# ### Flow matching: a loss without a simulation
#
# Start over, without SDEs. Choose any paths from noise to data, here $x_t=(1-t)z+t\,x_1$ with a pair $(z,x_1)$, so that each has a velocity $\dot x_t=x_1-z$. Many paths go through one point; let $u(x,t)=\mathbb E[\dot x_t\mid x_t=x]$ be their mean velocity. Two facts:
#
# 1. **It carries the right densities.** For a test function $\varphi$, $\frac{d}{dt}\mathbb E\,\varphi(x_t)=\mathbb E[\nabla\varphi(x_t)\cdot\dot x_t]=\mathbb E[\nabla\varphi(x_t)\cdot u(x_t,t)]$, the continuity equation, tested by $\varphi$.
# 2. **It can be learned from the pairs.** By the decomposition that you know, $\mathbb E\lVert u_\theta-\dot x_t\rVert^2=\mathbb E\lVert u_\theta-u\rVert^2+\mathbb E\operatorname{tr}\operatorname{Cov}[\dot x_t\mid x_t]$: the *conditional* loss has the gradient of the *marginal* one.
#
# Nothing here asks for Gaussian noise, nor for independent pairs. With both, $u$ is the velocity of the probability-flow ODE for $a=t$, $b=1-t$, as the first section's formula says. Fact 2 in numbers, for a random network $h$. In $\lVert h-\text{target}\rVert^2=\lVert h\rVert^2-2\,h\cdot\text{target}+\lVert\text{target}\rVert^2$ the first term is the same in both losses and the last has no gradient; so compare the gradients of the middle one, with the exact $u$ and with $x_1-z$. (Times are drawn from the second half, where state and target have most to do with each other, so that fewer states suffice.)

# %%
flow_exact = exact_model(ring, straight)
torch.manual_seed(seed)
probe = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2)).to(device)


def gradient_of(target, offset, batches=100, batch=1000):
    """The part of the gradient that the target enters; target is a function of (x_t, t, z, x_1)."""
    g, total = source(offset), 0.0
    for _ in range(batches):
        x1, t = ring.sample([batch], g), 0.5 + 0.5 * torch.rand(batch, 1, generator=g, device=device)
        z = torch.randn(x1.shape, generator=g, device=device)
        x = (1 - t) * z + t * x1
        loss = -2 * (probe(torch.cat([x, t], 1)) * target(x, t, z, x1)).sum(1).mean()
        total = total + torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(probe.parameters()))])
    return total / batches


marginal = gradient_of(lambda x, t, z, x1: flow_exact.velocity(x, t), 120)
conditional = gradient_of(lambda x, t, z, x1: x1 - z, 120)  # the same states: only the targets differ
along = (conditional @ marginal / marginal.square().sum()).item()
print(
    f"along the marginal gradient {along:.3f}; angle between both {torch.rad2deg((torch.cosine_similarity(conditional, marginal, 0)).clamp(-1, 1).acos()):.1f} degrees"
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-13", along)


# %% [markdown]
# **What you saw.** The gradients agree up to the error of a finite number of states; the rest of the angle is the variance that the conditional target adds.
#
# Now train. `pairs` is a function that makes a batch of pairs, and all that differs between the flows of this section.

# %%
def independent(n, g):
    x1 = data[torch.randint(len(data), (n,), generator=g, device=device)]
    return torch.randn(x1.shape, generator=g, device=device), x1


def train_flow(name, pairs, steps, batch=BATCH):
    torch.manual_seed(seed)
    model, g = DiffusionModel(timed_mlp(2, **NET), straight, "velocity").to(device), source(122)

    def loss():
        z, x1 = pairs(batch, g)
        return denoising_loss(model, x1, noise=z, generator=g)

    settings = dict(
        lr=size(quick=1e-2, full=2e-3), schedule="warmup_cosine", clip_norm=1.0, generator=g, progress=False
    )
    fit(model, loss, num_steps=steps, checkpoint=checkpoint(f"flow-{name}"), **settings)
    return model.eval()


# %%
flows = {"independent": train_flow("independent", independent, STEPS["flow"])}
g = source(123)
z, x1 = independent(20_000, g)
t = 1e-3 + (1 - 2e-3) * torch.rand(len(z), 1, generator=g, device=device)
state = (1 - t) * z + t * x1
with torch.no_grad():
    u, learned = flow_exact.velocity(state, t), flows["independent"].velocity(state, t)
floor_of_loss, loss = (u - (x1 - z)).square().mean().item(), (learned - (x1 - z)).square().mean().item()
say(
    f"Loss of the trained network {loss:.3f}; of the exact velocity {floor_of_loss:.3f}, the floor; the network's distance to the exact velocity {(learned - u).square().mean():.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-14", loss - floor_of_loss)


# %% [markdown]
# Almost all of the loss is floor. A curve of it that seems to have stopped may still hide all progress that matters; compare with the floor, where you can, or look at samples.
#
# ### Straight paths: pair better, or do it twice
#
# Each pair's path is straight, the mean of crossing paths is not. If paths did not cross, one Euler step would do. Two ways to that:
#
# - **Optimal pairing in a batch.** Draw noise and data as before, then permute the noise so that the total $\sum\lVert x_1-z\rVert^2$ is smallest, an assignment problem. Paths of an optimal pairing never cross.
# - **Reflow.** Take the pairs that your flow itself makes, $(z,\text{ODE}(z))$, and train a new flow on them.
#
# *Why reflow does no harm.* Call $z_0$, $z_1$ start and end of a trajectory of $u$. Marginals are kept, by fact 1. For each convex cost $c$,
#
# $$\mathbb E\,c(z_1-z_0)=\mathbb E\,c\Big(\int_0^1u(z_t,t)\,dt\Big)\le\int_0^1\mathbb E\,c(u(x_t,t))\,dt\le\int_0^1\mathbb E\,c(x_1-z)\,dt=\mathbb E\,c(x_1-z),$$
#
# Jensen twice: first over time, then over the pairs behind a state ($z_t$ and $x_t$ have the same law). For a strictly convex cost, equality holds only if the paths are straight and do not cross. In one dimension the result is optimal transport; in more, not in general. *Straightness* is what the first inequality loses for the squared cost, $S=\int\mathbb E\lVert u(z_t,t)-(z_1-z_0)\rVert^2dt$, zero for straight paths at constant speed.

# %%
def paired(n, g):
    return minibatch_ot_pairs(*independent(n, g))


flows["optimal in batches"] = train_flow("paired", paired, STEPS["paired"], batch=PAIRED)
z = torch.randn(10_000, 2, generator=source(124), device=device)
made = reflow_pairs(flows["independent"], z, straight.times(40))


def reflowed(n, g):
    i = torch.randint(len(made[0]), (n,), generator=g, device=device)
    return made[0][i], made[1][i]


flows["reflow"] = train_flow("reflow", reflowed, STEPS["reflow"])
start = torch.randn(POINTS["samples"], 2, generator=source(125), device=device)
euler_steps, straight_by, bent = [1, 2, 4, 8, 32, 100], {}, {}
for name, model in {"exact velocity": flow_exact, **flows}.items():
    bent[name] = straightness(model, start[:2000], straight.times(32)).item()
    straight_by[name] = [distance(euler(model, start, straight.times(N))) for N in euler_steps]

# %% [markdown]
# **What to look for.** Above: fifty trajectories from noise (grey dots) to data (coloured dots). Below: samples by a *single* Euler step. In the next figure, the distance to data against the number of steps; $S$ is the straightness.

# %% alt="Trajectories of three flows: those of independent pairs bend, those of optimal pairs and of reflow are straight lines. Below, one-step samples: a blob for independent pairs; for the two others a ring and a centre, with denser spots where the clusters are."
fig, axes = plt.subplots(2, 3, figsize=(7.4, 5.0))
for column, (name, model) in enumerate(flows.items()):
    trail = euler(model, start[:50], straight.times(50), return_path=True).cpu()
    axes[0, column].plot(trail[..., 0], trail[..., 1], color=PALETTE[column], lw=0.8)
    axes[0, column].plot(*trail[0].T, ".", ms=4, color="#aaaaaa")
    axes[0, column].plot(*trail[-1].T, ".", ms=4, color=PALETTE[column])
    axes[0, column].set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    cloud(axes[1, column], euler(model, start, straight.times(1)), PALETTE[column])
    axes[0, column].set_title(name, fontsize=9.5)
    axes[1, column].set_xlabel("one Euler step", fontsize=9)
plt.show()

# %% alt="Distance to data against Euler steps: independent pairs and the exact velocity fall from 1 at one step to below 0.1 at 32; optimal pairs and reflow are nearly flat; all three networks end above the distance of fresh data, the exact velocity nearest to it."
fig, ax = plt.subplots(figsize=(5.8, 2.9))
for k, (name, values) in enumerate(straight_by.items()):
    ax.loglog(
        euler_steps, values, "osD^"[k] + "-", color=[PALETTE[6], *PALETTE][k], label=f"{name}, S = {bent[name]:.3f}"
    )
ax.axhline(floor, color="#666666", ls=":", label="fresh data")
ax.set(xlabel="Euler steps", ylabel="sliced Wasserstein distance", xticks=euler_steps, xticklabels=euler_steps)
ax.minorticks_off()
ax.legend(fontsize=8.5)
plt.show()

# %%
gain = {
    name: (bent[name] / bent["independent"], straight_by[name][0] / straight_by["independent"][0])
    for name in ("optimal in batches", "reflow")
}
say(
    "Straightness and distance after one step: "
    + "; ".join(f"{name} {bent[name]:.4f}, {straight_by[name][0]:.3f}" for name in straight_by)
    + ". After a hundred: "
    + ", ".join(f"{straight_by[name][-1]:.3f}" for name in straight_by)
    + f". Fresh data: {floor:.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-15", [straighter for straighter, _ in gain.values()])
claim("DIF-16", [better for _, better in gain.values()])

# %% [markdown]
# **What you saw.** Optimal pairs cost an assignment a batch, reflow a second training and the first flow's errors, which no further reflow can mend: it learns a map, not the data. For reflow a hundred steps gain little over one, for optimal pairs some; neither reaches the distance of fresh data, and what is left is the networks' error. (Look at the points between the clusters, though: one smooth map can't tear noise apart, and a distance along projections hardly sees it.) Small batches leave a bias: the best pairing of a hundred points is not that of the distributions; in high dimensions, hardly any gain is left.
#
# The theorem on costs, for the exact velocity, with three convex costs; and what is left to gain if a thousand of the rectified pairs are paired anew, optimally.

# %%
g = source(126)
z, x1 = independent(POINTS["samples"], g)
ends = reflow_pairs(flow_exact, z, straight.times(100))[1]
costs = {p: [transport_cost(z, x, p).item() for x in (x1, ends)] for p in (1, 2, 4)}
same = transport_cost(z[:1000], ends[:1000]).item()
best = transport_cost(*minibatch_ot_pairs(z[:1000], ends[:1000])).item()
for p, (before, after) in costs.items():
    print(f"mean of |z1 - z0|^{p}: independent {before:.3f}, rectified {after:.3f}")
print(f"a thousand of the rectified pairs: squared cost {same:.4f}; paired optimally {best:.4f}")

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-17", [after / before for before, after in costs.values()])

# %% [markdown]
# **What you saw.** Every cost falls, the squared one as far as it can: the pairs of the exact flow are already paired optimally, here, where data and noise are so symmetric. In general they are not.
#
# ### Noise on the way: stochastic interpolants (*optional*)
#
# Put noise back in, between *any* two laws: $x_t=(1-t)z+t\,x_1+\gamma(t)\,e$ with $e\sim\mathcal N(0,I)$, $\gamma(0)=\gamma(1)=0$, and $z$ from the first law. Let $u=\mathbb E[\dot x_t\mid x_t]$ and $s=-\mathbb E[e\mid x_t]/\gamma$, which is the score by Tweedie. The ODE with velocity $u$ has the marginals of $x_t$; add and subtract $\epsilon\nabla^2p=\epsilon\nabla\cdot(p\,s)$, as above, and so has
#
# $$dx=(u+\epsilon\,s)\,dt+\sqrt{2\epsilon}\,dB\qquad\text{for every }\epsilon\ge0 .$$
#
# On a line, from $\mathcal N(0,1)$ to an equal mixture of $\mathcal N(\pm1.5,0.3^2)$ with $\gamma^2=2t(1-t)$, $u$ and $s$ are closed forms: given the component, $(x_t,\dot x_t)$ is Gaussian.

# %%
place, width = torch.tensor([-1.5, 1.5], dtype=F64, device=device), 0.3


def parts_of(x, t):
    """Given each component: share of it, deviation, variance of x_t, covariance of x_t with its velocity."""
    variance = (1 - t) ** 2 + t**2 * width**2 + 2 * t * (1 - t)
    with_velocity = -(1 - t) + t * width**2 + (1 - 2 * t)
    off = x - t * place
    return (-0.5 * off.square() / variance).softmax(-1), off, variance, with_velocity


def drift(x, t):
    share, off, variance, with_velocity = parts_of(x, t)
    return (share * (place + with_velocity / variance * off)).sum(-1, keepdim=True)


def slope_of_log(x, t):
    share, off, variance, _ = parts_of(x, t)
    return -(share * off / variance).sum(-1, keepdim=True)


# %%
starts = torch.randn(20_000, 1, generator=source(130), dtype=F64, device=device)
arrived = {
    epsilon: interpolant_sde(drift, slope_of_log, starts, 200, epsilon, source(131)) for epsilon in (0.0, 0.5, 2.0)
}
for epsilon, x in arrived.items():
    print(
        f"epsilon = {epsilon:g}: mean |x| {x.abs().mean():.3f} (1.500), standard deviation of |x| {x.abs().std():.3f} (0.300)"
    )
    assert abs(x.abs().mean() - 1.5) < 0.03 and abs(x.abs().std() - 0.3) < 0.03

# %% [markdown]
# **What to look for.** Twelve trajectories each, from the same starts. What do the ends have in common, what not?

# %% alt="Trajectories from a normal distribution to two clusters for epsilon 0, 0.5 and 2: smooth and ordered, then rough, then very rough; the same histogram at the end."
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.4), sharey=True)
for ax, epsilon in zip(axes, arrived):
    g, x, trail = source(132), starts[:12].clone(), [starts[:12, 0]]
    for k in range(200):
        t = torch.tensor((k + 0.5) / 200, dtype=F64, device=device)
        x = x + (drift(x, t) + epsilon * slope_of_log(x, t)) / 200
        x = x + math.sqrt(2 * epsilon / 200) * torch.randn(x.shape, generator=g, dtype=F64, device=device)
        trail.append(x[:, 0])
    ax.plot(torch.linspace(0, 1, 201), torch.stack(trail).cpu(), color=PALETTE[0], lw=0.8)
    counts, edges = torch.histogram(arrived[epsilon][:, 0].cpu(), 60, range=(-3.0, 3.0))
    ax.fill_betweenx(edges[:-1], 1, 1 + 0.25 * counts / counts.max(), color=PALETTE[1], alpha=0.7, step="post")
    ax.set(xlabel="t", ylim=(-3, 3), xlim=(0, 1.27))
axes[0].set_ylabel("x")
label_panels(axes, [f"ε = {epsilon:g}" for epsilon in arrived])
plt.show()

# %% [markdown]
# **What you saw.** One law for all, another coupling: the ODE never changes the order of points on a line; with noise, a start says little about where it ends.
#
# ### One call: consistency models
#
# A trajectory of the probability-flow ODE has one end. So the function $f(x_\sigma,\sigma)$ that maps each state to the end of its trajectory is constant along it, and equals $x$ at $\sigma_{\min}$; and it needs one call. Learn it by agreement of neighbours. Take $\sigma'<\sigma$ close together, and a state $x_\sigma=x_0+\sigma e$:
#
# - *distillation*: a teacher's step from $x_\sigma$ to $\sigma'$ gives the neighbour on the trajectory;
# - *training*: no teacher; the neighbour is $x_0+\sigma' e$ **with the same $e$**. This is a step with slope $e$ instead of $\hat n$. But $\mathbb E[e\mid x_\sigma]=\hat n$, so to first order in $\sigma-\sigma'$ the expected target is the same.
#
# The target carries no gradient, and the form of $f$ forbids the constant as a way out: a network $F$ enters as
#
# $$f=c_{\text{skip}}\,x+c_{\text{out}}\,F,\qquad c_{\text{skip}}=\frac{\sigma_d^2}{(\sigma-\sigma_{\min})^2+\sigma_d^2},\qquad c_{\text{out}}=\frac{(\sigma-\sigma_{\min})\,\sigma_d}{\sqrt{\sigma^2+\sigma_d^2}},$$
#
# EDM's two factors, moved so that $f=x$ at $\sigma_{\min}$. The number of levels grows during training: coarse first, because signals travel one level a step, then fine, because the bias is of first order.
#
# For normal data $\mathcal N(0,\sigma_d^2)$ the exact $f$ is a factor, $f=x\sqrt{(\sigma_d^2+\sigma_{\min}^2)/(\sigma_d^2+\sigma^2)}$. Compare the exact sampler with it, and the two targets at one state:

# %%
low = EDM(sigma_min=0.002, sigma_max=20.0)
normal = exact_model(
    NormalMixture(torch.zeros(1, 1, dtype=F64, device=device), torch.ones(1, 1, 1, dtype=F64, device=device)), low
)
x = torch.linspace(-30, 30, 7, dtype=F64, device=device)[:, None]
walked = heun(normal, x, low.times(300)[:-1])
formula = x * math.sqrt((1 + low.sigma_min**2) / (1 + low.sigma_max**2))
print(f"Heun's end and the formula differ by {(walked - formula).abs().max():.0e}")
sigma, x = 1.0, torch.tensor([[0.8, 0.5]], dtype=F64, device=device)
x0 = oracle.sample([400_000], source(140))
close = torch.exp(-0.5 * (x - x0).square().sum(1) / sigma**2)  # weights of p(x_0 | x)
e = (x - x0) / sigma
mean_e = (close[:, None] * e).sum(0) / close.sum()
exact_e = ring_model.noise(x, sigma)[0]
print(f"mean of e given x: {mean_e[0]:.3f}, {mean_e[1]:.3f}; the exact noise: {exact_e[0]:.3f}, {exact_e[1]:.3f}")
assert (mean_e - exact_e).abs().max() < 0.02 and (walked - formula).abs().max() < 1e-2


# %% [markdown]
# Training, by Song and Dhariwal's recipe: levels doubled at intervals, a distance between square and absolute value (pseudo-Huber), more attention to low noise, an average of the weights at the end.

# %%
def train_consistency(name, steps, loss_of=None, **options):
    torch.manual_seed(seed)
    g, spread = source(141), ring.moments()[1].diagonal().mean().sqrt().item()
    model = ConsistencyModel(timed_mlp(2, **NET), low, spread).to(device)
    model.register_buffer("done", torch.zeros((), dtype=torch.long))  # so that a checkpoint knows it

    def loss():
        levels = ict_num_levels(int(model.done), steps, 10, 160)
        model.done += 1
        return (loss_of or consistency_loss)(model, independent(BATCH, g)[1], levels, generator=g, **options)

    settings = dict(
        lr=size(quick=5e-3, full=1e-3), schedule="cosine", clip_norm=1.0, ema=0.99, generator=g, progress=False
    )
    history = fit(model, loss, num_steps=steps, checkpoint=checkpoint(f"consistency-{name}"), **settings)
    model.load_state_dict(history.ema)
    return model.eval()


consistent = train_consistency("training", STEPS["consistency"])
start = low.initial([POINTS["samples"], 2], data, source(142))
one_call = consistency_sample(consistent, start)
two_calls = consistency_sample(consistent, start, [0.8], generator=source(143))
one_euler = euler(flow_exact, torch.randn(start.shape, generator=source(144), device=device), straight.times(1))
by_calls = {"one Euler step of the exact flow": one_euler, "one call": one_call, "two calls": two_calls}

# %% [markdown]
# **What to look for.** Three ways to spend one or two calls on the same task.

# %% alt="One Euler step of the exact flow gives a single point-like blob at the mean; the consistency model gives a ring and a centre with denser spots where the clusters are, clearer with two calls."
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.5))
for ax, x, colour in zip(axes, by_calls.values(), PALETTE):
    cloud(ax, x, colour)
label_panels(axes, ["Exact flow, one step", "Consistency, one call", "Consistency, two calls"])
plt.show()

# %%
say(
    "Sliced Wasserstein distance: "
    + ", ".join(f"{name} {distance(x):.3f}" for name, x in by_calls.items())
    + f"; floor {floor:.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DIF-18", distance(one_call) / distance(one_euler))

# %% [markdown]
# **What you saw.** The first Euler step goes to the mean of all data, whatever the noise. The consistency model learned where the whole trajectory ends. It needs no teacher and no pairs; it needs patience, and careful schedules, and its loss tells even less than the others'.
#
# ## Play
#
# Move the noise level. Arrows lead from states to the best guess, or show the score. Two trajectories from one start are drawn up to that level: the ODE's (green, dashed), and one of an SDE (orange) with as much noise as you like: before each step Karras et al.'s *churn* adds noise, so much that σ grows by a factor of 1 + churn / steps, and the step then goes all the way down. With 0 both trajectories are the same. (The density is drawn with σ of at least 0.03.)

# %%
grid_times = edm.times(60)
begin_at = 80 * torch.tensor([[0.6, -0.9]], device=device)
ring_edm = exact_model(ring, edm)
ode_path = heun(ring_edm, begin_at, grid_times, return_path=True)[:, 0].cpu()
sde_path = {
    churn: heun(ring_edm, begin_at, grid_times, churn=churn, generator=source(151), return_path=True)[:, 0].cpu()
    for churn in (0, 6, 24)
}


# %%
def show_noise(step, arrows, noise):
    sigma = max(grid_times[step].item(), 0.03)
    zoom = math.sqrt(1 + sigma**2)
    fig, ax = plt.subplots(figsize=(3.9, 3.7))
    density_map(ax, 1.0, sigma, limit=2.4 * zoom, n=60)
    line = torch.linspace(-2, 2, 9, device=device) * zoom
    at = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    arrow = ring.denoise(at, 1.0, sigma) - at
    arrow = arrow if arrows == "best guess" else 0.35 * zoom * torch.nn.functional.normalize(arrow, dim=1)
    ax.quiver(*at.cpu().T, *arrow.cpu().T, angles="xy", scale_units="xy", scale=1, width=0.005, color="#999999")
    for path, colour, line in ((sde_path[int(noise)], PALETTE[1], "-"), (ode_path, PALETTE[2], "--")):
        ax.plot(*path[max(0, step - 15) : step + 1].T, line, color=colour, lw=1.4)
        ax.plot(*path[step], "o", ms=6, color=colour)
    ax.set(title=f"σ = {grid_times[step]:.3g}", xlim=(-2.4 * zoom, 2.4 * zoom), ylim=(-2.4 * zoom, 2.4 * zoom))
    plt.show()


# %% alt="Density of the nine Gaussians with noise at the chosen level, arrows, and two trajectories from the same start."
play(
    show_noise,
    step=slider("step (of 60)", value=44, low=0, high=60),
    arrows=choice("arrows", ["best guess", "direction of the score"]),
    noise=choice("noise of the SDE", ["6", "0", "24"]),
)


# %% [markdown]
# Guidance on the line: how far does a scale push, and how far would tilting?

# %%
def show_guidance(w, steps):
    samples = guide(w, 1500, steps)
    mean, std = moments_of(tilted_density(w))
    fig, ax = plt.subplots(figsize=(4.6, 2.6))
    ax.hist(samples.cpu(), bins=60, range=(-3, 5), density=True, color=PALETTE[4], label="guided")
    ax.plot(grid.cpu(), tilted_density(w).cpu(), color=PALETTE[1], label="tilted")
    ax.set(xlim=(-3, 5), xlabel="x", yticks=[])
    ax.set_title(f"guided {samples.mean():.2f} ± {samples.std():.2f}, tilted {mean:.2f} ± {std:.2f}")
    ax.legend()
    plt.show()


# %% alt="Histogram of guided samples and the tilted density at the chosen scale and number of steps."
play(
    show_guidance,
    w=slider("scale w", value=3.0, low=0.0, high=10.0, step=0.5),
    steps=slider("steps", value=40, low=5, high=100, step=5),
)


# %% [markdown]
# And couplings: with how few steps do you get away?

# %%
def show_steps(steps, pairing):
    with torch.no_grad():
        trail = euler(flows[pairing], start_noise, straight.times(steps), return_path=True).cpu()
    fig, ax = plt.subplots(figsize=(3.6, 3.6))
    ax.plot(trail[:, :40, 0], trail[:, :40, 1], "-o", ms=2, color=PALETTE[4], lw=0.8)
    cloud(ax, trail[-1], PALETTE[1])
    ax.set_title(f"{pairing}: {steps} step{'s' * (steps > 1)}")
    plt.show()


start_noise = torch.randn(1000, 2, generator=source(152), device=device)

# %% alt="Trajectories and samples of the chosen flow with the chosen number of Euler steps."
play(show_steps, steps=slider("steps", value=2, low=1, high=20), pairing=choice("pairs", list(flows)))


# %% [markdown]
# **Change it, break it.** Predict first, then try:
#
# - `EDM(rho=1)`, evenly spaced levels: which order do you measure now, and how large is the error? (Keep `fine` on the old grid.)
# - In the from-scratch loss, let the network predict data in place of noise: which noise levels get better, which worse?
# - `minibatch_ot_pairs` of batches of 16: what happens to straightness, what to the floor that a hundred steps reach?
# - Guide only at $0.3<\sigma<3$: how much of the overshoot is left, and is the class still right? (Neither guidance function has an interval: wrap what `guide` samples from, so that $w=1$ outside.)
#
# ## What goes wrong
#
# ### A guess that is clamped, and a noise that does not know it
#
# Pixels lie in $[-1,1]$, so many programs clamp $\hat x_0$. Then $\hat n$ must be computed anew from $x=a\hat x_0+b\hat n$, or data and noise no longer make up the state. Sample with the network that predicts noise, which was bad with DDIM: without a clamp, with a clamp of $\hat x_0$ alone, and consistently.

# %%
@torch.no_grad()
def half_clamped(model, x, times, context):
    for t, s in zip(times[:-1].tolist(), times[1:].tolist()):
        x0, n = model.data_and_noise(x, t, context)
        x = ddim_step(x0.clamp(-1, 1), n, model.process, t, s)
    return x


start, bare = vp.initial([len(wanted), 64], pixels, source(63)), networks["noise"]
clamped = {
    "no clamp": ddim(bare, start, vp.times(50), context=one_hot[wanted]),
    "data alone": half_clamped(bare, start, vp.times(50), one_hot[wanted]),
    "data and noise": ddim(bare, start, vp.times(50), context=one_hot[wanted], clamp=1.0),
}
say(
    "Fréchet distance: "
    + ", ".join(f"{name} {frechet(x):.2f}" for name, x in clamped.items())
    + f". (With ancestral sampling {quality['noise'][1]:.2f}.)"
)

# %% [markdown]
# A clamp mends a guess that is out of range, and hides a network that is wrong there; and it moves samples that were right, since real strokes do reach the ends. Know whether your numbers depend on it.
#
# ### The last step, and the first
#
# DDPM's levels are numbered 1 to 1000, and the data are level 0. A grid that ends at the last level *above* 0 leaves its noise in the samples; and networks from the usual code count from 0, so they want $t-1$. With exact models, one sees the first mistake only if the grid is coarse.

# %%
start = ddpm.initial([POINTS["samples"], 2], ring.means, source(160))
for N in (10, 20, 50):
    times = ddpm.times(N)
    early, right = ddim(ring_ddpm, start, times[:-1]), ddim(ring_ddpm, start, times)
    print(f"{N} steps: ends at level {times[-2]:g}: distance {distance(early):.3f}; ends at 0: {distance(right):.3f}")

# %% [markdown]
# ### A clock that runs the other way
#
# Diffusion's clock starts at data, flow's at noise. A loop that runs a flow from 1 to 0 makes no error message, and no data. `refimpl`'s samplers compare the times with the process:

# %%
try:
    euler(flow_exact, torch.randn(5, 2, device=device), straight.times(10).flip(0))
except ValueError as error:
    print(error)

# %% [markdown]
# ### A velocity without an end (*optional*)
#
# With $\hat x_1$ the guess of the data, the velocity of the straight path is $u=(\hat x_1-x)/(1-t)$: nothing over nothing at $t=1$. A network that predicts $u$ doesn't notice; one that predicts data, or an exact denoiser, does.

# %%
for gap in (1e-2, 1e-4, 1e-6):
    t, x = torch.tensor(1 - gap, device=device), ring.sample([2000], source(161))
    off = flow_exact.velocity(x, t) - oracle.score(x.double(), 1 - gap, gap) * gap / (1 - gap) - x / (1 - gap)
    print(f"t = 1 - {gap:g}: largest error of the velocity in float32 {off.abs().max():.1e}")


# %% [markdown]
# In single precision the last digits of a difference become the first of the velocity. So stop earlier and go to the best guess in the last step, which is what every sampler here does.
#
# ### A probe that is drawn anew
#
# Hutchinson's probe must stay the same along the path. If it is drawn anew at each call, an adaptive solver sees a velocity that jumps and takes ever smaller steps.

# %%
def evaluations(fresh):
    """Calls that an adaptive solver makes for the log-density of 20 points, sigma from 0.1 to 10."""
    g, calls = source(162), [0]
    x = oracle.sample([20], g) + 0.1 * torch.randn(20, 2, generator=g, dtype=F64, device=device)
    kept = torch.randint(0, 2, (1, 20, 2), generator=g, device=device) * 2.0 - 1

    def slope(sigma, state):
        calls[0] += 1
        e = torch.randint(0, 2, (1, 20, 2), generator=g, device=device) * 2.0 - 1 if fresh else kept

        def velocity(x):
            return ring_model.velocity(x, sigma)

        return velocity(state[0]), trace_estimate(velocity, state[0], probes=e.double())

    ends = torch.tensor([0.1, 10.0], dtype=F64, device=device)
    odeint(slope, (x, torch.zeros(20, dtype=F64, device=device)), ends, rtol=1e-3, atol=1e-3)
    return calls[0]


say(f"Calls with one probe a path: {evaluations(False)}; with a new one at each call: {evaluations(True)}.")


# %% [markdown]
# ### Two noises where one belongs (*optional*)
#
# In consistency training, the two neighbours must share $e$. Give each its own, and the target is a state from another trajectory. All that is left to learn is the mean.

# %%
def two_noises(model, x0, num_levels, *, generator):
    levels = low.times(num_levels)[:-1].flip(0).to(x0)
    n = draw_levels(levels, len(x0), generator=generator)
    near, far = levels[n][:, None], levels[n + 1][:, None]
    e = torch.randn(2, *x0.shape, generator=generator, device=device)
    with torch.no_grad():
        goal = model(x0 + near * e[0], near)
    return (pseudo_huber(model(x0 + far * e[1], far), goal) / (far - near)[:, 0]).mean()


start = low.initial([POINTS["samples"], 2], data, source(142))
few_steps = STEPS["consistency"] // 4
shared, split = (
    consistency_sample(train_consistency(name, few_steps, f), start)
    for name, f in {"short": None, "split": two_noises}.items()
)
say(
    f"After {few_steps} steps: one call with shared noise {distance(shared):.3f}, with two noises {distance(split):.3f}."
)

# %% [markdown]
# The target of the second is a point of another trajectory, so what agrees best at high noise is an average.
#
# ## At full size
#
# At full size all networks above are wider and trained longer, and a U-Net (its size is printed below) learns images of 32 × 32 pixels in colour: CIFAR-10 if it can be downloaded, else *dead leaves*, discs of random size and colour that cover each other. Two flows, with independent and with optimal pairs, are compared at 1, 2, 5, 10 and 50 Euler steps, by the Fréchet distance of images averaged to 8 × 8 pixels. (It is no FID, which needs an Inception network's features.) The papers' values on CIFAR-10, for comparison of orders of magnitude: FID 1.97 with 35 calls (EDM), 2.58 for a rectified flow with an adaptive solver and 378 with one step, 12.2 with one step after reflow, 3.55 for a distilled consistency model with one call. They trained for days.
#
# `make full CHAPTER=09`, or where Jupyter is not installed `REFIMPL_SIZE=full python chapters/09_diffusion_and_flow_matching.py`
#
# Every training resumes from its checkpoint.

# %%
with torch.device("meta"):  # shapes without numbers
    parameters = sum(p.numel() for p in unet((3, 32, 32), width=128).parameters())
say(f"The U-Net has {parameters / 1e6:.1f} million parameters.")


# %%
def pictures():
    """Training and test images as rows in [-1, 1], and what they are."""
    try:
        train, _, test, _ = cifar(download=True)
        return *(2 * images.flatten(1).float() / 255 - 1 for images in (train, test)), "CIFAR-10"
    except ConnectionError:
        g = source(170)
        return *(dead_leaves(n, 32, g, channels=3, like=pixels).cpu() for n in (IMAGES["train"], 10_000)), "dead leaves"


def pooled(x):
    return torch.nn.functional.avg_pool2d(x.view(-1, 3, 32, 32), 4).flatten(1)


# %%
def train_pictures(name, train, pair):
    torch.manual_seed(seed)
    model, g = DiffusionModel(unet((3, 32, 32), width=IMAGES["width"]), straight, "velocity").to(device), source(171)

    def loss(x):
        x = x.to(device)
        z = torch.randn(x.shape, generator=g, device=device)
        z, x = pair(z, x)
        return denoising_loss(model, x, noise=z, generator=g)

    settings = dict(lr=3e-4, schedule="warmup_cosine", clip_norm=1.0, ema=0.999, generator=g, progress=False)
    history = fit(
        model,
        loss,
        num_steps=IMAGES["steps"],
        data=train,
        batch_size=IMAGES["batch"],
        checkpoint=checkpoint(name),
        **settings,
    )
    model.load_state_dict(history.ema)
    return model.eval()


# %%
paper = {}
if IMAGES["steps"]:
    train, held_out, what = pictures()
    goal = pooled(held_out[: IMAGES["samples"]])
    paper["images"], paper["training images"] = what, frechet_distance(pooled(train[-IMAGES["samples"] :]), goal).item()
    for name, pair in {"independent": lambda z, x: (z, x), "optimal in batches": minibatch_ot_pairs}.items():
        model = train_pictures(f"pictures-{name}", train, pair)
        for N in (1, 2, 5, 10, 50):
            g = source(172)
            parts = [torch.randn(250, 3072, generator=g, device=device) for _ in range(IMAGES["samples"] // 250)]
            drawn = torch.cat([euler(model, part, straight.times(N)).cpu() for part in parts])
            paper[f"{name}, {N} steps"] = frechet_distance(pooled(drawn.clamp(-1, 1)), goal).item()
for name, value in paper.items():
    print(name, value)

# %%
record_of_full_run = load_record("09_diffusion_and_flow_matching")
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
        errors={f"{name}, {N} steps": value for (name, N), value in errors.items()},
        ddim={f"eta {eta:g}, {N} steps": value for (N, eta), value in by_eta.items()},
        digits={name: list(values) for name, values in quality.items()},
        straightness=bent,
        distance_by_euler_steps=straight_by,
        consistency={name: distance(x) for name, x in by_calls.items()},
        pictures=paper,
    )
)

# %% [markdown]
# ## Exercises and further reading
#
# **Exercises**: [sheet 09](../exercises/09_diffusion_and_flow_matching/09_diffusion_and_flow_matching.ipynb).
#
# **Further reading**
#
# - Song et al. 2021, [arXiv 2011.13456](https://arxiv.org/abs/2011.13456): SDE, ODE and likelihoods in one frame; code: `yang-song/score_sde_pytorch`.
# - Karras et al. 2022, [arXiv 2206.00364](https://arxiv.org/abs/2206.00364): which choice matters for what; the appendix derives everything; code: `NVlabs/edm`.
# - Ho, Jain, Abbeel 2020, [arXiv 2006.11239](https://arxiv.org/abs/2006.11239), and Song, Meng, Ermon 2021, [arXiv 2010.02502](https://arxiv.org/abs/2010.02502): the two samplers.
# - Salimans and Ho 2022, [arXiv 2202.00512](https://arxiv.org/abs/2202.00512): v-prediction, and distillation by halving steps.
# - Dhariwal and Nichol 2021, [arXiv 2105.05233](https://arxiv.org/abs/2105.05233), and Ho and Salimans 2022, [arXiv 2207.12598](https://arxiv.org/abs/2207.12598): guidance with a classifier and without.
# - Lipman et al. 2022, [arXiv 2210.02747](https://arxiv.org/abs/2210.02747); Liu, Gong, Liu 2022, [arXiv 2209.03003](https://arxiv.org/abs/2209.03003); Albergo, Boffi, Vanden-Eijnden 2023, [arXiv 2303.08797](https://arxiv.org/abs/2303.08797): three roads to the same velocity; code: `facebookresearch/flow_matching`, `gnobitab/RectifiedFlow`.
# - Tong et al. 2023, [arXiv 2302.00482](https://arxiv.org/abs/2302.00482), and Pooladian et al. 2023, [arXiv 2304.14772](https://arxiv.org/abs/2304.14772): pairs by optimal transport; code: `atong01/conditional-flow-matching`.
# - Song et al. 2023, [arXiv 2303.01469](https://arxiv.org/abs/2303.01469), and Song and Dhariwal 2023, [arXiv 2310.14189](https://arxiv.org/abs/2310.14189): consistency models, and how to train them.
