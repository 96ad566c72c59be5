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
# # 10 · Guidance by variational control: steering a diffusion model to a posterior
#
# **Paper.** Kushagra Pandey, Farrin Marouf Sofian, Felix Draxler, Theofanis Karaletsos, Stephan Mandt: *Variational Control for Guidance in Diffusion Models*, ICML 2025,
# [arXiv 2502.03686](https://arxiv.org/abs/2502.03686). Its method is NDTM, *non-linear diffusion trajectory matching*. Beside it the methods that it contains or competes with: DPS, diffusion posterior sampling ([2209.14687](https://arxiv.org/abs/2209.14687)); PiGDM, pseudo-inverse guidance ([ICLR 2023](https://openreview.net/forum?id=9_gsMA8MRKQ)); TMPD, Tweedie moment projected diffusion ([2310.06721](https://arxiv.org/abs/2310.06721)); MPGD, manifold preserving guidance ([2311.16424](https://arxiv.org/abs/2311.16424)); FreeDoM ([2303.09833](https://arxiv.org/abs/2303.09833)), RED-diff ([2305.04391](https://arxiv.org/abs/2305.04391)), D-Flow ([2402.14017](https://arxiv.org/abs/2402.14017)).
#
# You have a diffusion model of images and a blurred photograph. Which images could it have been? You do not want to train a network for every kind of blur. So you steer: at each step of sampling, push the state towards what explains the photograph, and not so far that the model would no longer believe it. *How far*, and *with which push*, is a question of optimal control, and this chapter derives the answer.
#
# Then it does what papers on images cannot: it scores every method against the **exact posterior**, for models in which that is known.
#
# **Afterwards you can**
#
# - derive guidance as variational control, and say which two approximations make it practical;
# - implement NDTM, and place ten other methods by their control, their cost and their solver;
# - tell an explicit from an implicit step, and predict when the first one explodes;
# - judge samples against a posterior: distance, spread, class frequencies, and not only PSNR;
# - see in the residual whether an inner optimisation has begun to fit the noise.
#
# **You need first**: [chapter 09](09_diffusion_and_flow_matching.ipynb) (noise processes, what networks predict, DDIM, mixtures of Gaussians). **Time**: 85 minutes.

# %% tags=["launch"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("refimpl") is None:  # for example on Colab: install the course from its repository
    package = "refimpl[course] @ git+https://github.com/OWNER/REPOSITORY"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# Sizes stand in the third cell below: *quick* runs on a laptop in about a minute; *full* trains a U-Net on larger images, chooses the settings on mixtures anew, and wants a GPU.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from refimpl import runtime
from refimpl.claims import Claims, Summary, load_record
from refimpl.metrics import frechet_distance, psnr, ssim
from refimpl.nets import timed_mlp
from refimpl.nets.unet import unet
from refimpl.plots import PALETTE, choice, label_panels, play, say, sequential, slider, use_course_style
from refimpl.training import fit

use_course_style()

# %%
from refimpl.data import NormalMixture, dead_leaves, digits, photograph_patches
from refimpl.diffusion import (
    DDPM,
    BlindBlur,
    DiffusionModel,
    GaussianSkip,
    Measurement,
    average_pooling,
    blind_blur,
    ddim_step,
    denoising_loss,
    dps,
    exact_log_likelihood,
    exact_model,
    from_adm,
    guided_start,
    inpainting,
    jpeg,
    ndtm,
    ndtm_step,
    nonlinear_blur,
    random_pixels,
    sample_posterior,
)
from refimpl.diffusion.gaussian_guidance import gaussian_posterior, guided_moments
from refimpl.diffusion.posterior_report import posterior_report

# %%
size, device, seed = runtime.size, runtime.device(), runtime.seed()
F64 = torch.float64
STDS = (0.15, 0.3, 0.6)  # of the measurements on mixtures
POSED = size(
    quick=dict(problems=5, chains=200, calls=48, pool=200_000),
    full=dict(problems=20, chains=500, calls=96, pool=1_000_000),
)
CURVE = size(quick=[12, 48, 144, 288], full=[12, 24, 48, 96, 192, 384, 768])  # network calls
DIGITS = size(
    quick=dict(width=128, blocks=2, steps=1500, images=64, chains=4, exact=12, exact_chains=48),
    full=dict(width=512, blocks=4, steps=30_000, images=200, chains=16, exact=50, exact_chains=200),
)
PATCHES = size(quick=dict(components=16, fit=3000, images=256), full=dict(components=60, fit=5500, images=500))
LEAVES = size(  # a U-Net on larger images: at full size only
    quick=dict(steps=0), full=dict(steps=8000, pool=50_000, width=128, images=64, batch=256, dps=1000)
)
TUNE = size(quick=0, full=8)  # problems to choose settings with; 0: the settings below were chosen so before
print(runtime.describe())


# %% [markdown]
# ## In one picture
#
# A prior with nine modes, a ring of eight and one in the middle. Somebody measures one number, $y=Ax_0+\sigma n$: the position along a direction (the row $A$) with noise of standard deviation $\sigma$ ($n$ is standard normal). Four samplers ask the same model for the noise-free point $x_0$: 96 calls each.

# %%
def source(offset=0):
    """Random numbers; each use gets its own."""
    return runtime.generator(1000 * seed + offset)


def ring_mixture():
    angle = torch.arange(8) * math.pi / 4
    means = torch.cat([1.5 * torch.stack([angle.cos(), angle.sin()], -1), torch.zeros(1, 2)])
    return NormalMixture(means, 0.15**2 * torch.eye(2).expand(9, 2, 2))


def random_mixture(g, components=12, dim=8):
    """Gaussians with random means, axes and variances, in float64."""
    means = 0.9 * torch.randn(components, dim, dtype=F64, generator=g)
    axes = torch.linalg.qr(torch.randn(components, dim, dim, dtype=F64, generator=g)).Q
    variances = (2.5 * torch.rand(components, dim, dtype=F64, generator=g) - 4).exp()
    covariances = axes * variances.unsqueeze(-2) @ axes.mT
    weights = torch.rand(components, dtype=F64, generator=g) + 0.2
    return NormalMixture(means, (covariances + covariances.mT) / 2, weights)


def random_rows(m, dim, g):
    """m orthonormal rows."""
    return torch.linalg.qr(torch.randn(dim, m, generator=g)).Q.T


# %%
process = DDPM()  # 1000 noise levels, as the paper's networks have
ring = ring_mixture()
direction = torch.tensor([[math.cos(0.5), math.sin(0.5)]])
measured = Measurement(direction, torch.tensor([[0.95]]), 0.2)  # one y, with a dimension for problems
ring_posterior = ring.condition(direction, measured.y, measured.std)
log_likelihood = exact_log_likelihood(ring, ring_posterior, process)
runs = {
    "no guidance": ("unguided", 96, {}),
    "exact guidance": ("exact", 96, dict(log_likelihood=log_likelihood)),
    "DPS": ("dps", 96, dict(scale=0.2)),
    "NDTM": ("ndtm", 16, dict(inner_steps=4, lr=0.4, terminal_weight=1.0, eta=0.7)),
}
paths, calls = {}, {}
for label, (name, steps, settings) in runs.items():
    model, g = exact_model(ring, process), source(1)
    x = process.initial((400, 1, 2), ring.means, g)
    found = sample_posterior(name, model, measured, x, process.times(steps), generator=g, return_path=True, **settings)
    paths[label], calls[label] = found[:, :, 0], model.calls
print(calls)


# %% [markdown]
# **What to look for.** Grey contours: the exact posterior, whose modes lie along the line that the measurement allows. Dots: samples; thin lines: how a few of them got there. Which samplers find all modes, and with the right spread *across* the line?

# %%
def contours(ax, posterior, colour="#999999"):
    """Density of a posterior in the plane."""
    line = torch.linspace(-2.2, 2.2, 120)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    density = posterior.log_prob(points.unsqueeze(-2))[..., 0].exp()
    levels = density.max() * torch.tensor([0.02, 0.1, 0.3, 0.7])
    ax.contour(line.numpy(), line.numpy(), density.numpy(), levels=levels.tolist(), colors=colour, linewidths=0.8)
    ax.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", xticks=[], yticks=[])
    ax.grid(False)


# %% alt="Four panels with contours of the posterior, whose modes lie along an oblique line. Without guidance samples fill all nine modes; exact guidance reproduces the posterior; DPS and NDTM find the modes along the line, with other shares of samples."
fig, axes = plt.subplots(1, 4, figsize=(7.9, 2.2))
for ax, path in zip(axes, paths.values()):
    contours(ax, ring_posterior)
    ax.plot(path[:, :4, 0], path[:, :4, 1], color=PALETTE[4], lw=0.5, alpha=0.7)
    ax.plot(path[-1, :, 0], path[-1, :, 1], ".", ms=2.2, color=PALETTE[1])
label_panels(axes, list(paths))
plt.show()

# %% [markdown]
# **What you saw.** Exact guidance, possible here because a mixture of Gaussians has a closed form for everything, is right. DPS and NDTM steer the samples to the line, without having been trained for it: that is the promise of guidance. But neither has the right spread, nor the right share of samples in each mode, and NDTM leaves samples between the modes. This chapter is about what they get right, what they do not, and why.

# %% [markdown]
# ## The claims
#
# Each has a criterion that was fixed before its measurement; where one was revised afterwards, the [ledger](../results/README.md) says how and why. "Ours" marks what the paper does not claim but you should know. DTM-8 is what a reader may take home from tables of image metrics; it can be tested only where the posterior is known.

# %%
claim = Claims.declared("10_guidance_by_control")
claim


# %% [markdown]
# ## The idea
#
# ### What is given, and what we want
#
# States $x_t=a_tx_0+b_tn$, $n\sim\mathcal N(0,I)$; sampling goes from the noise, $t=T$, step by step from $t$ to an earlier $s<t$. The model gives two estimates, $\hat\epsilon(x,t)=\mathbb E[n\,|\,x_t=x]$ and $\hat x_0(x,t)=\mathbb E[x_0\,|\,x_t=x]=(x-b_t\hat\epsilon)/a_t$. A step of DDIM with stochasticity $\eta$ is
#
# $$p(x_s|x_t)=\mathcal N\big(\mu(x_t),c_1^2I\big),\qquad \mu(x)=a_s\hat x_0+c_2\hat\epsilon,\qquad c_1=\eta\,\tfrac{b_s}{b_t}\sqrt{1-a_t^2/a_s^2},\qquad c_2=\sqrt{b_s^2-c_1^2}.$$
#
# (This $c_1$ needs $a^2+b^2=1$, as for all chains here.)
#
# A measurement $y=h(x_0)+\sigma n$ has the *terminal cost* $\Phi(x_0)=-\log p(y|x_0)=\lVert y-h(x_0)\rVert^2/2\sigma^2+\text{const}$. We want samples of $p(x_0|y)\propto p(x_0)\,e^{-\Phi(x_0)}$ without training anything.
#
# ### Guidance is variational inference over trajectories
#
# Let $q$ be any other chain, with kernels $q(x_s|x_t)$ that may know $y$, and the same start. How far are its *whole trajectories* from those of the posterior? Insert Bayes' rule into the KL divergence, $p(x_{0:T}|y)=p(x_{0:T})\,e^{-\Phi(x_0)}/p(y)$, and let the product over steps become a sum:
#
# $$0\le\mathrm{KL}\big(q(x_{0:T})\,\big\|\,p(x_{0:T}|y)\big)=\log p(y)+\underbrace{\mathbb E_q[\Phi(x_0)]}_{\text{terminal}}+\underbrace{\sum_t\mathbb E_q\,\mathrm{KL}\big(q(x_s|x_t)\,\big\|\,p(x_s|x_t)\big)}_{\text{transient}} .$$
#
# So *terminal plus transient cost is at least $-\log p(y)$*, and the $q$ that attains it samples the posterior. This is *diffusion trajectory matching* (DTM): explain the measurement, and pay for each step away from what the model would have done. The trade-off is a control problem.
#
# ### Its solution
#
# Define the *value* of a state, $V_t(x)=-\log\mathbb E[e^{-\Phi(x_0)}\,|\,x_t=x]=-\log p(y\,|\,x_t=x)$: how badly the model expects to explain $y$ from here if it is left alone from now on. It obeys $e^{-V_t(x_t)}=\int p(x_s|x_t)\,e^{-V_s(x_s)}\mathrm dx_s$. The optimal kernels (Doob's transform) are
#
# $$q^\star(x_s|x_t)\propto p(x_s|x_t)\,e^{-V_s(x_s)} .$$
#
# If only the mean may be shifted, by $\delta$, it should minimise $\lVert\delta\rVert^2/2c_1^2+\mathbb E\,V_s(\mu+\delta+c_1z)$. For small steps $\delta^\star=-c_1^2\nabla V_s=c_1^2\nabla\log p(y|x_s)$: classifier guidance, with a perfect classifier.
#
# **Check it** where all is Gaussian: prior $\mathcal N(0,1)$, $y=1$, $\sigma=0.3$. Every kernel is affine, so costs are closed forms. We shift each mean by `scale` times the optimal shift.

# %%
def step_coefficients(t, s, eta=1.0):
    """a_t, b_t, a_s, and of the DDIM step from t to s the noise c_1 and the weight c_2 of the noise estimate."""
    (a_t, b_t), (a_s, b_s) = (process.coefficients(torch.as_tensor(v, dtype=F64)) for v in (t, s))
    c1 = eta * b_s / b_t * (1 - (a_t / a_s) ** 2).sqrt()
    return a_t, b_t, a_s, c1, (b_s**2 - c1**2).clamp_min(0).sqrt()


def chain_of_gaussians(num_steps):
    """Of each step A, c_1 in x_s ~ N(A x_t, c_1^2), and g, w in x_0 | x_s ~ N(g x_s, w)."""
    times, steps, g, w = process.times(num_steps), [], 1.0, 0.0
    for t, s in zip(times[:-1].flip(0), times[1:].flip(0)):
        a, b, a_s, c1, c2 = step_coefficients(t, s)
        A = a_s * a + c2 * b  # data estimate a x, noise estimate b x
        steps.insert(0, (A, c1, g, w))
        g, w = g * A, w + (g * c1) ** 2
    return steps, -torch.distributions.Normal(0.0, (g**2 + w + STD**2).sqrt()).log_prob(Y).item()


# %%
STD, Y = 0.3, torch.tensor(1.0, dtype=F64)


def costs(num_steps, scale=1.0, shrink=False, plug_in=False):
    """Terminal and transient cost in nats; shrink: also the optimal variance; plug_in: value without its variance w."""
    steps, _ = chain_of_gaussians(num_steps)
    mean, var, transient = torch.zeros(()), torch.ones(()), 0.0
    for A, c1, g, w in steps[:-1]:  # the last step has no noise: x_0 is the data estimate
        gain = c1**2 * g / (g**2 * c1**2 + STD**2 + (0 if plug_in else w))
        v = c1**2 * (1 - gain * g) if shrink else c1**2
        off = (Y - g * A * mean) ** 2 + (g * A) ** 2 * var  # E (y - g A x_t)^2
        kl = (scale * gain) ** 2 * off / c1**2 + v / c1**2 - 1 - (v / c1**2).log()
        transient = transient + 0.5 * kl
        mean, var = A * mean + scale * gain * (Y - g * A * mean), (A - scale * gain * g * A) ** 2 * var + v
    A = steps[-1][0]
    terminal = 0.5 * ((Y - A * mean) ** 2 + A**2 * var) / STD**2 + 0.5 * math.log(2 * math.pi * STD**2)
    return terminal, transient


# %%
scale = torch.linspace(0, 2, 61, dtype=F64)
curves = {n: costs(n, scale) for n in (5, 20, 100)}
optimal = {n: sum(costs(n, shrink=True)).item() - chain_of_gaussians(n)[1] for n in curves}
greedy = {n: sum(costs(n, plug_in=True)).item() - chain_of_gaussians(n)[1] for n in curves}

# %% [markdown]
# **What to look for.** Left: the two costs pull against each other, and their sum has its minimum at scale 1. Right: what is missing to $-\log p(y)$. Why does it not vanish for a shift alone, and why does it shrink with more steps?

# %% alt="Left: with the scale of the control the terminal cost falls and the transient cost rises; their sum is least at scale one, just above minus log p of y. Right: the excess of the sum on a logarithmic axis for 5, 20 and 100 steps, each least near scale one and lower for more steps."
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.6))
terminal, transient = curves[20]
axes[0].plot(scale, terminal, "--", label="terminal")
axes[0].plot(scale, transient, "-.", label="transient")
axes[0].plot(scale, terminal + transient, label="sum")
axes[0].axhline(chain_of_gaussians(20)[1], color="black", lw=1, ls=":", label="-log p(y)")
axes[0].set(xlabel="scale of the control", ylabel="nats", ylim=(-0.5, 6))
axes[0].legend(fontsize=8.5)
for (n, (terminal, transient)), style in zip(curves.items(), ("--", "-.", "-")):
    axes[1].semilogy(scale, terminal + transient - chain_of_gaussians(n)[1], style, label=f"{n} steps")
axes[1].set(xlabel="scale of the control", ylabel="excess over -log p(y) (nats)")
axes[1].legend(fontsize=8.5)
label_panels(axes, ["20 steps", "The bound"])
plt.show()

# %%
say(
    "Excess over -log p(y) with 5, 20 and 100 steps: "
    + "; ".join(
        f"{name} " + ", ".join(f"{v:.2g}" for v in values)
        for name, values in (
            ("optimal kernels", optimal.values()),
            ("means shifted optimally", [sum(costs(n)).item() - chain_of_gaussians(n)[1] for n in curves]),
            ("greedy, with a plug-in (the section after next)", greedy.values()),
        )
    )
    + " nats."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-1", list(optimal.values()))

# %% [markdown]
# **What you saw.** The optimal kernels attain the bound but for a trace: the start $p(x_T)$ already knows a little of $x_0$, for $a_T$ is not quite zero. Their variance is smaller than $c_1^2$, and whoever shifts means only pays for that; the smaller the steps, the less. That is why control of the mean is enough. The third group, a plug-in for the value, pays whole nats, and *more* with smaller steps: what it is, and why no number of steps mends it, comes next.
#
# ### The value of a state, exactly
#
# For a mixture of Gaussians and a linear measurement, the posterior is a mixture again, and so is its noised version. Bayes' rule at time $t$ gives the value and the optimal force without any integral:
#
# $$-V_t(x)=\log p(y|x_t)=\log p(y)+\log p_t(x_t|y)-\log p_t(x_t),\qquad \nabla\log p(y|x_t)=\text{posterior's score}-\text{prior's score} .$$
#
# So *exact guidance is to run any sampler with the posterior's score*. Check the value against its definition: draw $x_0$ given $x_t$, and average $e^{-\Phi}$. (Given $x_t$, the mixture is conditioned on a "measurement" with the matrix $a_tI$ and the noise $b_t$.)

# %%
line = NormalMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), torch.full((2, 1, 1), 0.09, dtype=F64))
one = torch.eye(1, dtype=F64)
seen = Measurement(one, torch.tensor([0.5], dtype=F64), 0.4)
line_posterior = line.condition(one, seen.y, seen.std)
log_evidence = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(line.weights),
    torch.distributions.Normal(line.means[:, 0], (line.covariances[:, 0, 0] + seen.std**2).sqrt()),
).log_prob(seen.y)


def value(x, t):
    """V_t(x), exactly."""
    a, b = process.coefficients(torch.tensor(float(t), dtype=F64))
    return line.log_prob(x, a, b) - line_posterior.log_prob(x, a, b) - log_evidence


def plug_in(x, t):
    """Phi(E[x_0 | x_t = x])."""
    return -seen.log_likelihood(line.denoise(x, *process.coefficients(torch.tensor(float(t), dtype=F64))))


g = runtime.generator(seed)
for t, x in ((200, 0.3), (500, -0.4), (800, 1.0)):
    x = torch.tensor([x], dtype=F64)
    a, b = process.coefficients(torch.tensor(float(t), dtype=F64))
    drawn = line.condition(a * one, x, b.item()).sample(200_000, g)
    sampled = -seen.log_likelihood(drawn).exp().mean().log()
    print(
        f"t = {t}, x = {x.item():+.1f}: value {value(x, t).item():.3f}, by sampling {sampled.item():.3f}, plug-in {plug_in(x, t).item():.3f}"
    )
    assert abs(value(x, t) - sampled) < 0.02

# %% [markdown]
# ### Greedy, with a plug-in: what makes it practical, and what it costs
#
# Nobody has $V$ for images. DTM in practice makes two approximations, and so does every method of this chapter:
#
# 1. *greedy*: at each step minimise transient cost plus the cost to go, for this step alone;
# 2. *plug-in*: replace the cost to go by the cost of the expected outcome, $V_t(x)\approx\Phi(\hat x_0(x,t))$.
#
# The second hides two gaps, each a case of Jensen's inequality: $-\log\mathbb E\,e^{-\Phi}\le\mathbb E\,\Phi$, and $\mathbb E\,\Phi(x_0)$ is not $\Phi(\mathbb E\,x_0)$. What gets lost is the covariance $C_t=\mathrm{Cov}[x_0|x_t]$. If all is linear and Gaussian,
#
# $$V_t=\tfrac12(y-A\hat x_0)^\top\big(\sigma^2I+AC_tA^\top\big)^{-1}(y-A\hat x_0)+\text{const},\qquad \text{plug-in}:\ \ \tfrac12\,\lVert y-A\hat x_0\rVert^2/\sigma^2 .$$
#
# At high noise the model does not know yet where $x_0$ will be, and a plug-in behaves as if it did.
#
# **What to look for.** Two modes at $\pm1$; $y=0.5$, $\sigma=0.4$. Compare how steep the two curves are at high noise, and where they have their minimum.

# %% alt="Value and plug-in against the state at three noise levels. At low noise they have the same shape. At t = 300 the value is nearly flat on the right, while the plug-in is a valley around the state whose expected outcome is the measurement. At t = 500 the value is a gentle slope and the plug-in is several times as steep."
fig, axes = plt.subplots(1, 3, figsize=(7.8, 2.3), sharey=True)
x = torch.linspace(-2.5, 2.5, 201, dtype=F64)[:, None]
for ax, t in zip(axes, (100, 300, 500)):
    ax.plot(x[:, 0], value(x, t), label="value $V_t$")
    ax.plot(x[:, 0], plug_in(x, t), "--", label="plug-in")
    ax.set(xlabel="$x_t$", ylim=(-0.2, 8))
axes[0].set_ylabel("nats")
axes[0].legend(fontsize=8.5)
label_panels(axes, [f"t = {t}" for t in (100, 300, 500)])
plt.show()

# %% [markdown]
# **What you saw.** At $t=100$ the two have the same shape, the plug-in a little steeper. At $t=300$ the true value is nearly flat on the right, while the plug-in has a valley around the state whose *average* outcome is $y$, and pulls back towards it, though no single outcome there explains $y$ any better. At $t=500$ the value hardly cares where you are, and the plug-in still pulls. Remember this: it is why approximate guidance is far from the posterior below, however many steps it takes.
#
# ### NDTM: control the input of the network
#
# Which controls are allowed? Shifting $x_s$ after the step uses the network's opinion about the old state. NDTM shifts the *input*: $q(x_s|x_t,u)=\mathcal N(\mu(x_t+\gamma u),c_1^2I)$ with a scale $\gamma>0$, so the network answers for the shifted state, and the control acts through it non-linearly. With $k=a_s/a_t$ and $c_\Delta=c_2-kb_t$ the mean is $\mu(x)=kx+c_\Delta\hat\epsilon(x)$, therefore
#
# $$\mu(x_t+\gamma u)-\mu(x_t)=k\gamma u+c_\Delta\Delta\epsilon,\qquad\Delta\epsilon=\hat\epsilon(x_t+\gamma u,t)-\hat\epsilon(x_t,t),$$
#
# $$\mathrm{KL}=\frac{\lVert k\gamma u+c_\Delta\Delta\epsilon\rVert^2}{2c_1^2}\le\frac{k^2\lVert\gamma u\rVert^2+c_\Delta^2\lVert\Delta\epsilon\rVert^2}{c_1^2}$$
#
# by $\lVert a+b\rVert^2\le2\lVert a\rVert^2+2\lVert b\rVert^2$. Each step therefore minimises, by $M$ steps of Adam from $u=0$,
#
# $$\boxed{\;J_t(u)=w_T\,\lVert y-h(\hat x_0(x_t+\gamma u,t))\rVert^2+\kappa_c\lVert\gamma u\rVert^2+\kappa_s\lVert\Delta\epsilon\rVert^2\;}$$
#
# The factor $1/c_1^2$ is infinite for $\eta=0$ and is absorbed in the weight $w_T$. Theory says $\kappa_c=k^2$, $\kappa_s=c_\Delta^2$. The published code has $\kappa_c=\gamma^2/k^2$: the reciprocal of $k^2$, and another $\gamma^2$. The first is harmless, as $k\approx1$; the second makes the penalty grow with $\gamma^4$ for a given $u$, with $\gamma^2$ for a given shift $\gamma u$, which we come back to. (In $w_T$, $T$ stands for *terminal*, not for the time of the start.)
#
# Check identity and bound on a mixture in eight dimensions, at all noise levels.

# %%
g = runtime.generator(seed)
cloud = random_mixture(g)


def estimates(x, a, b):
    """Of the data and of the noise."""
    x0 = cloud.denoise(x, a, b)
    return x0, (x - a * x0) / b


x0 = cloud.sample(200, g)
ratios, errors = [], []
for t, s in zip(process.times(50)[:-2], process.times(50)[1:]):
    a_t, b_t, a_s, c1, c2 = step_coefficients(t, s)
    x = a_t * x0 + b_t * torch.randn(x0.shape, dtype=F64, generator=g)
    shift = 0.3 * torch.randn(x.shape, dtype=F64, generator=g)
    (data, noise), (moved_data, moved_noise) = estimates(x, a_t, b_t), estimates(x + shift, a_t, b_t)
    k, change = a_s / a_t, moved_noise - noise
    difference = a_s * (moved_data - data) + c2 * change
    errors.append((difference - k * shift - (c2 - k * b_t) * change).abs().max().item())
    bound = k**2 * shift.square().sum(-1) + (c2 - k * b_t) ** 2 * change.square().sum(-1)
    ratios.append(0.5 * difference.square().sum(-1) / bound)
ratios = torch.stack(ratios)
print(f"identity: largest error {max(errors):.0e}; KL over its bound: mean {ratios.mean():.2f}")
assert max(errors) < 1e-12

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-2", [ratios.min(), ratios.max()])

# %% [markdown]
# ### Explicit and implicit steps
#
# Leave $\Delta\epsilon$ out. At the minimum of $J$ the shift $\delta=\gamma u$ obeys
#
# $$\delta=-\tfrac{w_T}{2\kappa_c}\,\nabla_\delta\,\lVert y-h(\hat x_0(x_t+\delta,t))\rVert^2,$$
#
# with the gradient *at the shifted state*: an *implicit* (proximal, backward Euler) step. DPS takes the gradient at the unshifted one: *explicit*. And if you take a single step of plain gradient descent from $u=0$, both penalties have gradient zero, and $\delta=-\ell\gamma^2w_T\nabla\lVert y-h(\hat x_0(x_t,t))\rVert^2$ with the learning rate $\ell$: the direction of DPS, applied before the network is asked and not after. So NDTM goes from DPS to its proximal version as the inner loop gets longer.
#
# ### The same question, eleven answers
#
# | method | what is controlled | cost to go | solved by |
# |---|---|---|---|
# | exact | mean of $x_s$ | $V_t$ itself | closed form |
# | classifier guidance | mean of $x_s$ | $V_t$ learned by a classifier of noisy states | one gradient |
# | DPS | $x_s$ | $\Phi(\hat x_0)$ | one gradient step of size $\zeta$ on $\lVert y-h(\hat x_0)\rVert$, not squared |
# | DPS, Bayes' weight | $\hat\epsilon$ | $\Phi(\hat x_0)$ | one gradient step with the weight $1/2\sigma^2$ |
# | PiGDM | $\hat\epsilon$ | $\Phi$ with $\sigma^2I+r_t^2AA^\top$, $r_t^2=s^2b_t^2/(a_t^2s^2+b_t^2)$ for data with standard deviation $s$ | closed form |
# | TMPD | $\hat\epsilon$ | $\Phi$ with $\sigma^2I+AC_tA^\top$, $C_t$ from the network's Jacobian | closed form |
# | MPGD | $\hat x_0$ | $\Phi(\hat x_0)$ | one gradient step, no Jacobian of the network |
# | FreeDoM | $x_s$ | any energy of $\hat x_0$ | one gradient step, repeated after adding noise again |
# | RED-diff | one $x_0$ for all $t$ | $\Phi(x_0)$ and denoising terms | Adam over $t$ |
# | D-Flow | the initial noise | $\Phi(x_0)$, exactly, through the whole ODE | Adam or L-BFGS |
# | **NDTM** | the network's input | $\Phi(\hat x_0)$ and the bound on the KL | $M$ steps of Adam |
#
# In the package each is a function with the same arguments, and `sample_posterior(name, ...)` calls it by name.
#
# ### A closed form to test an inner loop with
#
# Gaussian prior $\mathcal N(m,C)$, $h=A$, $S=a^2C+b^2I$: with $K_x=aCS^{-1}$, $K_\epsilon=bS^{-1}$ and $G=AK_x$, $J$ is quadratic and
#
# $$\gamma u^\star=\big(w_TG^\top G+\kappa_cI+\kappa_sK_\epsilon^\top K_\epsilon\big)^{-1}w_TG^\top(y-A\hat x_0) .$$
#
# Check that the gradient of $J$ vanishes there, with autograd through the exact model.

# %%
g = runtime.generator(seed)
C = torch.cov(torch.randn(4, 40, dtype=F64, generator=g))
bell = NormalMixture(torch.randn(1, 4, dtype=F64, generator=g), C[None])
A, y = torch.randn(2, 4, dtype=F64, generator=g), torch.randn(2, dtype=F64, generator=g)
a, b = process.coefficients(torch.tensor(400.0, dtype=F64))
x, weights = torch.randn(4, dtype=F64, generator=g), (5.0, 0.8, 0.3)  # w_T, kappa_c, kappa_s


def inner_cost(shift):
    data = bell.denoise(torch.stack([x, x + shift]), a, b)
    noises = (torch.stack([x, x + shift]) - a * data) / b
    squares = ((y - A @ data[1]), shift, noises[1] - noises[0])
    return sum(w * v.square().sum() for w, v in zip(weights, squares))


one, (w_T, kappa_c, kappa_s) = torch.eye(4, dtype=F64), weights
S_inverse = (a**2 * C + b**2 * one).inverse()
G, K_eps = A @ (a * C @ S_inverse), b * S_inverse
optimum = torch.linalg.solve(
    w_T * G.T @ G + kappa_c * one + kappa_s * K_eps.T @ K_eps, w_T * G.T @ (y - A @ bell.denoise(x, a, b))
)
slopes = [torch.func.grad(inner_cost)(shift).norm().item() for shift in (0 * optimum, optimum)]
print(f"norm of the gradient without control {slopes[0]:.1f}, at the closed form {slopes[1]:.0e}")
assert slopes[1] < 1e-10


# %% [markdown]
# ## From scratch
#
# NDTM whole, for one process and one measurement. `denoise(x, t)` is the network, as an estimate of the data.

# %%
def controlled_step(denoise, measurement, x, t, s, u_rate, noise, *, inner, gamma, w_terminal, eta):
    """One step of NDTM from t to s, with the penalties of the published code."""
    a_t, b_t, a_s, c1, c2 = (float(v) for v in step_coefficients(t, s, eta))
    k, c_delta = a_s / a_t, c2 - a_s / a_t * b_t
    with torch.no_grad():
        before = (x - a_t * denoise(x, t)) / b_t
    u = torch.zeros_like(x, requires_grad=True)
    optimiser = torch.optim.Adam([u], lr=u_rate)
    for _ in range(inner):
        shifted = x + gamma * u
        x0 = denoise(shifted, t)
        change = (shifted - a_t * x0) / b_t - before
        penalty = gamma**2 / k**2 * (gamma * u).square().sum() + c_delta**2 * change.square().sum()
        loss = w_terminal * measurement.energy(x0).sum() + penalty
        optimiser.zero_grad()
        (u.grad,) = torch.autograd.grad(loss, u)
        optimiser.step()
    with torch.no_grad():
        shifted = x + gamma * u
        x0 = denoise(shifted, t)
        return a_s * x0 + c1 * noise + c2 * (shifted - a_t * x0) / b_t


# %%
def ndtm_from_scratch(denoise, measurement, x, times, *, rate, generator, **settings):
    for i, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist())):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        decayed = rate * (1 - i / (len(times) - 1))
        x = controlled_step(denoise, measurement, x, t, s, decayed, noise, **settings)
    return x


# %% [markdown]
# The same in `refimpl`: equal states, to the last digit but a few. And one inner step of plain gradient descent against DPS, as promised: take the gradient out of a step of `dps`, move the state along it, and let DDIM step from there.

# %%
cloud_model = exact_model(cloud, process)
two_numbers = random_rows(2, 8, g).double()
seen = Measurement(two_numbers, cloud.sample(20, g) @ two_numbers.T, 0.2)
start, times = torch.randn(20, 8, dtype=F64, generator=g), process.times(10)
settings = dict(gamma=1.5, eta=0.5)
ours = ndtm_from_scratch(
    cloud_model.data, seen, start, times, rate=0.1, generator=runtime.generator(1), inner=3, w_terminal=5, **settings
)
theirs = ndtm(
    cloud_model,
    seen,
    start,
    times,
    lr=0.1,
    generator=runtime.generator(1),
    inner_steps=3,
    terminal_weight=5,
    **settings,
)
print(f"ten steps of NDTM: largest difference {(ours - theirs).abs().max():.0e}")
assert (ours - theirs).abs().max() < 1e-6
x, t, s, lr, w = start, torch.tensor(500.0), torch.tensor(400.0), 1e-3, 5.0
norm = seen.energy(cloud_model.data(x, t)).sqrt().unsqueeze(-1)
plain = ddim_step(*cloud_model.data_and_noise(x, t), process, t, s)
gradient = (
    2 * norm * (plain - dps.step(cloud_model, seen, x, t, s, torch.zeros_like(x), scale=1.0, eta=0.0))
)  # of |y - A x^_0|^2
moved = x - lr * 1.5**2 * w * gradient
by_hand = ddim_step(*cloud_model.data_and_noise(moved, t), process, t, s)
options = dict(inner_steps=1, lr=lr, gamma=1.5, terminal_weight=w, eta=0.0, optimiser="sgd")
one_step = (ndtm_step(cloud_model, seen, x, t, s, torch.zeros_like(x), **options) - by_hand).abs().max().item()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-3", one_step)

# %% [markdown]
# ## Experiments
#
# ### One number, without sampling error
#
# Prior $\mathcal N(0,1)$, $y=1$. Each method's step is affine in $x_t$, so mean and variance of the result follow exactly (`guided_moments`; the inner problem of NDTM is solved, not descended). Both DPS and NDTM get the weight of Bayes' rule, $w_T=1/2\sigma^2$, NDTM with the exact KL.
#
# **What to look for.** Left: the standard deviation of the result for 20 steps, while the measurement gets sharper. Where does the explicit step explode? Right: $\sigma=0.3$, more and more steps. Do they arrive at the posterior?

# %%
sharp = torch.logspace(-1.6, 0.0, 25, dtype=F64).tolist()
many = [10, 20, 50, 100, 200, 500, 1000]
shown = {"exact": "exact", "dps_bayes": "DPS, Bayes weight", "pigdm": "PiGDM", "ndtm": "NDTM"}
by_sharpness = {m: [guided_moments(m, process, process.times(20), y=1.0, std=v)[1] for v in sharp] for m in shown}
by_steps = {m: [guided_moments(m, process, process.times(n), y=1.0, std=0.3) for n in many] for m in shown}
right = gaussian_posterior(1.0, 0.3)
exploded, held = (
    guided_moments(m, process, process.times(20), y=1.0, std=0.05, prior_std=0.5)[1] for m in ("dps_bayes", "ndtm")
)

# %% alt="Left: final standard deviation against the measurement's noise, both logarithmic; DPS explodes below 0.2, the others follow the posterior from a distance. Right: against the number of steps, exact guidance and PiGDM go to the posterior, DPS and NDTM to a common, too small value."
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.6))
styles = dict(zip(shown, ("-", "--", "o", "-.")))
for m, label in shown.items():
    axes[0].loglog(sharp, by_sharpness[m], styles[m], label=label, ms=4, mfc="none")
    axes[1].semilogx(many, [v[1] for v in by_steps[m]], styles[m], label=label, ms=4, mfc="none")
axes[0].loglog(sharp, [gaussian_posterior(1.0, v)[1] for v in sharp], color="black", lw=0.8, label="posterior")
axes[1].axhline(right[1], color="black", lw=0.8)
axes[0].set(xlabel="noise σ of the measurement", ylabel="final standard deviation", ylim=(5e-3, 20))
axes[1].set(xlabel="steps", ylim=(0, 0.4))
axes[0].legend(fontsize=8)
label_panels(axes, ["20 steps", "σ = 0.3"])
plt.show()

# %%
limits = {m: by_steps[m][-1] for m in shown}
say(
    f"Posterior: mean {right[0]:.3f}, standard deviation {right[1]:.3f}. After 1000 steps: "
    + ", ".join(f"{shown[m]} {mean:.3f} and {std:.3f}" for m, (mean, std) in limits.items())
    + f". Prior with standard deviation 0.5, σ = 0.05, 20 steps: DPS {exploded:.1e}, NDTM {held:.3f}; right is {gaussian_posterior(1.0, 0.05, 0.0, 0.5)[1]:.3f}."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-4", math.log10(exploded / held))
claim("DTM-5", [limits[m][1] / right[1] for m in ("dps_bayes", "ndtm")])


# %% [markdown]
# **What you saw.** An explicit step of size $1/\sigma^2$ overshoots as soon as the measurement is sharp for the steps taken, and each overshoot feeds the next. The implicit step cannot overshoot. (That is why DPS as published divides by the norm of the residual: it gives up Bayes' weight to stay stable.) But with many small steps, implicit and explicit are the same thing, and both end *beside* the posterior: too certain, and with the mean too near to $y$. The plug-in did that. PiGDM's covariance happens to be right for this prior, so it arrives: its circles lie on the curve of exact guidance. (That curve, too, is below the posterior where the measurement is sharp: 20 steps are too few even for the right force.)
#
# ### Every method against the exact posterior
#
# Three measurements of mixtures of Gaussians, each at three noise levels:
#
# - *line*: one coordinate of the ring of the first picture;
# - *plane*: two coordinates of a mixture of twelve Gaussians in eight dimensions;
# - *bent*: the same, but what is measured is $\tanh(1.5z)+0.3z^2$ of the coordinates $z$: not one-to-one. Here no closed form exists; the reference draws from the prior and weights by the likelihood (*importance resampling*).
#
# Every method calls the network 48 times a sample. Its settings were chosen on *other* problems (other mixtures, other measurements), one choice for each of the three measurements and all noise levels, by the mean distance, and for DPS as for NDTM also $\eta$; at full size they are chosen again.

# %%
def late_times(num_steps, start=1000):
    """num_steps whole times from about start, evenly down to 1, then 0: the published code's, if the steps divide start."""
    times = torch.linspace(start * (1 - 1 / num_steps) + 1, 1, num_steps, dtype=F64).round()
    return torch.cat([times, torch.zeros(1, dtype=F64)])


def bend(matrix):
    def operator(x):
        z = x @ matrix.T
        return (1.5 * z).tanh() + 0.3 * z.square()

    return operator


# %%
def posed(kind, std, number, chains, g):
    """Problems of one kind: prior, measurement, truth, exact posterior (None if bent), 2 chains exact samples."""
    prior = ring_mixture() if kind == "line" else random_mixture(g).to(torch.zeros(()))
    prior = prior.to(torch.zeros((), device=device))
    matrix = random_rows(1 if kind == "line" else 2, prior.dim, g).to(device)
    truth = prior.sample(number, g)
    operator = bend(matrix) if kind == "bent" else matrix
    clean = operator(truth) if kind == "bent" else truth @ matrix.T
    y = clean + std * torch.randn(clean.shape, generator=g).to(device)
    seen = Measurement(operator, y, std, y @ matrix if kind == "bent" else None)
    if kind != "bent":
        posterior = prior.condition(matrix, y, std)
        return prior, seen, truth, posterior, posterior.sample(2 * chains, g), math.inf
    pool = prior.sample(POSED["pool"], g)
    share = seen.log_likelihood(pool.unsqueeze(1)).softmax(0).T  # (problems, pool)
    picked = torch.multinomial(share.cpu(), 2 * chains, replacement=True, generator=g).T.to(device)
    return prior, seen, truth, None, pool[picked], 1 / share.square().sum(1).max().item()


# %%
NAMES = {"exact": "exact", "dps": "DPS", "dps_bayes": "DPS, Bayes weight", "pigdm": "PiGDM", "tmpd": "TMPD"}
NAMES |= {"mpgd": "MPGD", "freedom": "FreeDoM", "red_diff": "RED-diff", "d_flow": "D-Flow", "ndtm": "NDTM"}
SETTINGS = {
    "line": dict(dps=(0.2, 1.0), mpgd=0.1, freedom=0.1, pigdm=1.0, red_diff=1.0, d_flow=0.3, ndtm=(2, 0.4, 1.0, 0.7)),
    "plane": dict(dps=(0.8, 1.0), mpgd=0.6, freedom=0.2, pigdm=0.6, red_diff=1.0, d_flow=0.3, ndtm=(2, 0.4, 5.0, 1.0)),
    "bent": dict(dps=(0.4, 0.7), mpgd=0.3, freedom=0.2, pigdm=0.6, red_diff=1.0, d_flow=0.3, ndtm=(2, 0.4, 1.0, 1.0)),
}
NAME_OF_SETTING = dict(mpgd="scale", freedom="scale", pigdm="prior_std", red_diff="weight", d_flow="lr")


def settings_of(name, chosen):
    """Keyword arguments of a method from the one number (DPS: two, NDTM: four) that was chosen for it."""
    if name in ("dps", "ndtm"):
        names = {"dps": ("scale", "eta"), "ndtm": ("inner_steps", "lr", "terminal_weight", "eta")}
        return dict(zip(names[name], chosen))
    settings = {NAME_OF_SETTING[name]: chosen} if name in NAME_OF_SETTING else {}
    return settings | {"d_flow": {"iterations": 5}, "red_diff": {"lr": 0.5}}.get(name, {})


# %%
def guide(name, problem, chains, calls, settings, g):
    """Samples by a method with so many calls of the network; the calls that were really made."""
    prior, seen, _, posterior, _, _ = problem
    each = {"freedom": 2, "ndtm": settings.get("inner_steps", 0) + 2, "d_flow": settings.get("iterations", 0) + 1}
    model = exact_model(prior, process)
    if name == "exact":
        settings = settings | {"log_likelihood": exact_log_likelihood(prior, posterior, process)}
    x = process.initial((chains, len(seen.y), prior.dim), seen.y, g)
    x = sample_posterior(name, model, seen, x, late_times(calls // each.get(name, 1)), generator=g, **settings)
    return x, model.calls


# %%
inner = [(m, lr, w, eta) for m in (2, 4, 8) for lr in (0.2, 0.4) for w in (1.0, 5.0) for eta in (0.2, 0.7, 1.0)]
GRIDS = dict(
    mpgd=(0.1, 0.3, 0.6), freedom=(0.1, 0.2, 0.4), pigdm=(0.3, 0.6, 1.0), red_diff=(0.25, 1.0, 4.0), ndtm=inner
)
GRIDS |= dict(dps=[(scale, eta) for scale in (0.1, 0.2, 0.4, 0.8) for eta in (0.2, 0.7, 1.0)], d_flow=(0.1, 0.3, 1.0))


def mean_distance(kind, name, candidate):
    """Over noise levels, on problems that the table does not use."""
    total = 0.0
    for level, std in enumerate(STDS):
        problem = posed(kind, std, TUNE, 150, runtime.generator(10_000 + level))
        x, _ = guide(name, problem, 150, POSED["calls"], settings_of(name, candidate), runtime.generator(5))
        x = x.nan_to_num(1e3, 1e3, -1e3)
        report = posterior_report(x, problem[4], problem[0], generator=runtime.generator(6))
        total += report["distance"].mean().item() / len(STDS)
    return total


if TUNE:
    for kind in SETTINGS:
        for name, grid in GRIDS.items():
            SETTINGS[kind][name] = min(grid, key=lambda candidate: mean_distance(kind, name, candidate))

# %%
KEYS = ("distance", "floor", "mmd_squared", "variance_ratio", "row_variance_ratio", "residual", "coverage")
scores, effective = {}, math.inf
for kind, chosen in SETTINGS.items():
    for level, std in enumerate(STDS):
        problem = posed(
            kind, std, POSED["problems"], POSED["chains"], source(100 * level + 10 * list(SETTINGS).index(kind))
        )
        prior, seen, truth, posterior, exact, weight = problem
        effective = min(effective, weight)
        for name in NAMES:
            if name == "exact" and posterior is None:
                continue
            x, calls = guide(
                name, problem, POSED["chains"], POSED["calls"], settings_of(name, chosen.get(name)), source(7)
            )
            assert calls == POSED["calls"]
            if not x.isfinite().all():
                scores[kind, level, name] = dict.fromkeys(KEYS, math.inf)  # it diverged
                continue
            report = posterior_report(x, exact, prior, measurement=seen, truth=truth, generator=source(8))
            scores[kind, level, name] = {key: report[key].mean().item() for key in KEYS if key in report}
say(
    f"The smallest effective number of draws behind a reference of the bent measurement: {effective:.0f} of {POSED['pool']}."
)


def mean_score(kind, name, key="distance"):
    return sum(scores[kind, level, name][key] for level in range(3)) / 3


# %% [markdown]
# **What to look for.** The sliced Wasserstein distance to exact samples, in units of that from the prior: 1 means that guidance was for nothing. The dotted vertical line is the floor, the distance between two sets of exact samples; a bar that leaves the panel on the right belongs to a method that diverged; NDTM's bar is orange. Dots are the three noise levels, from sharp (dark) to vague (light); the bar is their mean. Who reaches the floor? What do the best approximations have in common?

# %% alt="Three panels, one for each measurement, with a row for each method: relative distances at three noise levels. Exact guidance lies near the floor; every approximation is at least half as far again. RED-diff and D-Flow are among the worst at this budget."
fig, axes = plt.subplots(1, 3, figsize=(7.9, 3.6), sharey=True, sharex=True)
rows = list(NAMES)[::-1]
for ax, kind in zip(axes, SETTINGS):
    floor = mean_score(kind, "dps", "floor")
    ax.axvline(floor, color="#666666", ls=":")
    for height, name in enumerate(rows):
        if (kind, 0, name) not in scores:
            continue
        ax.barh(
            height,
            min(mean_score(kind, name), 2),
            height=0.55,
            color=PALETTE[1] if name == "ndtm" else PALETTE[4],
            alpha=0.6,
        )
        for level, shade in enumerate(sequential(3)):
            ax.plot(scores[kind, level, name]["distance"], height, "o", ms=4, color=shade)
    ax.set(xlabel="relative distance", xlim=(0, 1.1))
axes[0].set_yticks(range(len(rows)), [NAMES[name] for name in rows])
label_panels(axes, [f"{kind}" for kind in SETTINGS])
plt.show()

# %%
head = (
    "| method, means over noise levels | "
    + " | ".join(f"{kind}: distance · MMD² · spread · residual/σ · coverage" for kind in SETTINGS)
    + " |"
)
lines = [head, "|---|" + "---|" * len(SETTINGS)]
for name in NAMES:
    cells = []
    for kind in SETTINGS:
        keys = ("distance", "mmd_squared", "variance_ratio", "residual", "coverage")
        known = (kind, 0, name) in scores
        finite = known and math.isfinite(mean_score(kind, name))
        text = " · ".join(f"{mean_score(kind, name, key):.2f}" for key in keys) if finite else "diverged"
        cells.append(text if known else "")
    lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
floors = " · ".join(f"{kind} {mean_score(kind, 'dps', 'floor'):.2f}" for kind in SETTINGS)
say("\n".join(lines))
say(
    f"Floors of the distance: {floors}. *Spread* is total variance over the exact one, *coverage* the share of true coordinates inside the samples' central 90 %."
)

# %%
approximations = [name for name in NAMES if name != "exact"]
ranked = {kind: sorted(approximations, key=lambda name: mean_score(kind, name)) for kind in SETTINGS}
over_floor = {kind: mean_score(kind, ranked[kind][0]) / mean_score(kind, "dps", "floor") for kind in SETTINGS}
nearer = {kind: mean_score(kind, "dps") - mean_score(kind, "ndtm") for kind in SETTINGS}
exact_over_floor = [mean_score(kind, "exact") / mean_score(kind, "exact", "floor") for kind in ("line", "plane")]
say(
    "The three nearest approximations, and the distance of the first over the floor: "
    + " | ".join(
        f"{kind}: {' < '.join(NAMES[n] for n in ranked[kind][:3])}; {over_floor[kind]:.1f}" for kind in SETTINGS
    )
    + ". Among the nearest three for all measurements: "
    + (" and ".join(NAMES[n] for n in approximations if all(n in r[:3] for r in ranked.values())) or "none")
    + ". Distance of DPS minus that of NDTM: "
    + "; ".join(f"{kind} {value:+.3f}" for kind, value in nearer.items())
    + "."
)

# %% [markdown]
# For the claim on exact guidance the steps must not be the limit: more problems (other ones) and 144 calls.

# %%
ratio = {}
for kind, number in {"line": 16, "plane": 6}.items():
    total = {"distance": 0.0, "floor": 0.0}
    for level, std in enumerate(STDS):
        problem = posed(kind, std, number, 120, source(300 + 10 * level + (kind == "plane")))
        x, _ = guide("exact", problem, 120, 144, {}, source(9))
        report = posterior_report(x, problem[4], problem[0], generator=source(8))
        total = {key: total[key] + report[key].mean().item() for key in total}
    ratio[kind] = total["distance"] / total["floor"]
say(
    "Exact guidance, distance over floor: 144 calls "
    + ", ".join(f"{kind} {value:.2f}" for kind, value in ratio.items())
    + f"; {POSED['calls']} calls, in the table, "
    + ", ".join(f"{kind} {value:.2f}" for kind, value in zip(ratio, exact_over_floor))
    + "."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-6", ratio.values())
claim("DTM-7", over_floor.values())
claim("DTM-8", nearer.values())

# %% [markdown]
# **What you saw.** Exact guidance is near the floor, up to what its steps cost in variance (its *spread*). Nobody else is. The line under the table says who is nearest: mostly those that weigh the residual as Bayes' rule would, with a covariance put back (PiGDM, TMPD) or, where it does not explode, without (DPS with Bayes' weight; with a sharp, bent measurement and other random numbers it may). The others tune a step. Coverage is below 0.9 even for exact samples, as a few truths and chains make it vary: compare with that row.
#
# **Is NDTM nearer to the posterior than DPS?** Sometimes, and never by much: on the ring hardly ever, otherwise the sign changes from seed to seed (the [ledger](../results/README.md) has five). (Before DPS had its $\eta$ chosen, too, and all steps were chosen again, NDTM looked clearly nearer with the bent measurement at some seeds: much of a comparison is who was tuned, and how well.) As a general statement DTM-8 does not hold, and where it is true the gain is small beside what separates both from the floor. The derivation says why. Both put the same plug-in in place of the value, and NDTM solves that wrong problem better. It pays three extra calls a step for it ($M=2$), so it takes fewer steps; and its weight $w_T$ is one number for all $\sigma$, where Bayes' rule has $1/2\sigma^2$. On the ring all depends on how many samples each mode gets, and that is decided at high noise, where the plug-in is worst.
#
# ### More calls, and what they do not buy
#
# If the distance came from too few steps, more would cure it. *Plane*, $\sigma=0.3$.

# %%
curve_problem = posed("plane", STDS[1], 6, 100, source(40))
MEASURES = {"distance": "relative distance", "mmd_squared": "MMD²", "coverage": "coverage"}
curve = {}
for name in ("exact", "pigdm", "dps", "dps_bayes", "ndtm"):
    for calls in CURVE:
        x, used = guide(name, curve_problem, 100, calls, settings_of(name, SETTINGS["plane"].get(name)), source(41))
        report = posterior_report(
            x.nan_to_num(9.0, 9.0, -9.0).clamp(-9, 9),  # where it diverged
            curve_problem[4],
            curve_problem[0],
            truth=curve_problem[2],
            generator=source(42),
        )
        curve[name, calls] = {key: report[key].mean().item() for key in MEASURES}
        assert used == calls
curve_floor = report["floor"].mean().item()

# %% [markdown]
# **What to look for.** Three measures of the same samples: sliced Wasserstein distance, maximum mean discrepancy, and the share of true coordinates inside the central 90 % (few chains and few truths: compare with the exact one, not with 0.9). Which curves still move at the right end?

# %% alt="Three panels against network calls: relative distance, MMD squared and coverage. Exact guidance is near the floor and near zero from few calls on; the approximations stay above it however many calls they make."
fig, axes = plt.subplots(1, 3, figsize=(7.9, 2.6))
names = list(dict.fromkeys(name for name, _ in curve))
for ax, (key, label) in zip(axes, MEASURES.items()):
    for name, style in zip(names, ("o-", "^:", "s--", "v-", "D-.")):
        ax.semilogx(CURVE, [curve[name, calls][key] for calls in CURVE], style, ms=3.5, label=NAMES[name])
    ax.set(xlabel="network calls for a sample", title=label)
    ax.set_xticks(CURVE, [str(calls) for calls in CURVE])
    ax.minorticks_off()
axes[0].axhline(curve_floor, color="#666666", ls=":", lw=1, label="floor")
axes[0].set_ylim(0, 1.1)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
plt.show()

# %%
last = {name: curve[name, CURVE[-1]] for name in names}
say(
    f"With {CURVE[-1]} calls: distance (floor {curve_floor:.2f}) and coverage "
    + "; ".join(f"{NAMES[name]} {row['distance']:.2f}, {row['coverage']:.2f}" for name, row in last.items())
    + "."
)

# %% [markdown]
# **What you saw.** Exact guidance is near the floor early, in all three measures. The approximations gain little, or even lose: their settings were chosen for few calls, and DPS's step of fixed size, taken more often, is more guidance. But DPS with Bayes' weight and PiGDM have no such step, and level off above the floor as well. That rest is *bias*: of the plug-in or, for PiGDM, of a wrong covariance.
#
# ### Images whose posterior is known
#
# Two Gaussians for each digit, fitted to scikit-learn's $8\times8$ digits with pixels in $[-1,1]$: a diffusion model of images *with an exact score*, and an exact posterior, with exact probabilities of the ten digits. The measurement keeps 16 of the 64 pixels, $\sigma=0.1$; the truths are drawn from the model, so that the posterior is calibrated. All methods but exact guidance begin at $t\approx600$ from the measurement's rough inverse, noised: the *truncated start* of the published scripts. DPS and NDTM had the same choice on other digits, a start at 300 or 600, $\eta$ of 0.2 or 1, and a step, and both have here what was best there in PSNR.

# %%
images, labels = digits()
order = torch.randperm(len(images), generator=source(50))
images, labels = (2 * images - 1)[order].to(device), labels[order]
train_images, test_images = images[:1400], images[1400:]
by_class = [NormalMixture.fit(train_images[labels[:1400] == k], 2, seed=seed) for k in range(10)]
digit_mixture = NormalMixture.joined(by_class)
digit_of = torch.arange(10, device=device).repeat_interleave(2)  # which digit a component belongs to


def restore(name, model, measurement, start, num_steps, chains, g, **settings):
    """Samples of images given a measurement; starts from its rough inverse, or from noise if start is 1000."""
    times, shape = late_times(num_steps, start), (chains, *measurement.start.shape)
    model.reset_counts()
    if start == 1000:
        x = process.initial(shape, measurement.start, g)
    else:
        x = guided_start(measurement, process, times[0], shape, g)
    return sample_posterior(name, model, measurement, x, times, generator=g, **settings)


# %%
NDTM_IMAGES = dict(inner_steps=8, lr=0.2, terminal_weight=5.0, control_weight="ddim", eta=0.2)
g, chains = source(51), DIGITS["exact_chains"]
digit_truth = digit_mixture.sample(DIGITS["exact"], g)
hidden = inpainting((8, 8), random_pixels((8, 8), 16, (), g)).measure(digit_truth, 0.1, as_matrix=True, generator=g)
digit_posterior = digit_mixture.condition(hidden.matrix, hidden.y, hidden.std)
digit_model = exact_model(digit_mixture, process)
exact_digits = digit_posterior.sample(2 * chains, g)
drawn, spent = {"posterior": exact_digits[chains:]}, {"posterior": "-"}
for label, name, start, steps, settings in (
    ("exact", "exact", 1000, 40, dict(log_likelihood=exact_log_likelihood(digit_mixture, digit_posterior, process))),
    ("DPS", "dps", 600, 40, dict(scale=1.5)),
    ("PiGDM", "pigdm", 600, 40, dict(prior_std=0.6)),
    ("MPGD", "mpgd", 600, 40, dict(scale=1.0)),
    ("NDTM", "ndtm", 600, 4, NDTM_IMAGES),
    ("NDTM, 30 inner steps", "ndtm", 600, 4, NDTM_IMAGES | dict(inner_steps=30, control_weight="zero")),
):
    many = chains if "30" not in label else chains // 2
    drawn[label] = restore(name, digit_model, hidden, start, steps, many, source(52), **settings)
    spent[label] = f"{digit_model.calls} + {digit_model.pullbacks}"

# %%
judged = {}
for label, x in drawn.items():
    report = posterior_report(
        x,
        exact_digits if label == "posterior" else digit_posterior,
        digit_mixture,
        measurement=hidden,
        truth=digit_truth,
        generator=source(53),
    )
    report["mode_tv"] = posterior_report(x, digit_posterior, digit_mixture, modes=digit_of, generator=source(53))[
        "mode_tv"
    ]
    judged[label] = {key: value.mean().item() for key, value in report.items()} | {
        "psnr": psnr(x, digit_truth).mean().item()
    }
columns = {
    "distance": "distance",
    "mode_tv": "wrong share of digits",
    "variance_ratio": "spread",
    "residual": "residual/σ",
    "coverage": "coverage",
    "psnr": "PSNR (dB)",
}
lines = ["| samples | calls + pullbacks | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]
for label, row in judged.items():
    lines.append(f"| {label} | {spent[label]} | " + " | ".join(f"{row[key]:.2f}" for key in columns) + " |")
say("\n".join(lines))
say(
    f"Floor of the distance {judged['DPS']['floor']:.2f}. *Wrong share of digits*: total variation between the sampled and the exact probabilities of the ten digits. "
    f"NDTM minus DPS: distance {judged['NDTM']['distance'] - judged['DPS']['distance']:+.2f}, coverage {judged['NDTM']['coverage'] - judged['DPS']['coverage']:+.2f}. "
    f"Forty exact steps have lost {1 - judged['exact']['variance_ratio'] / judged['posterior']['variance_ratio']:.0%} of the variance, and gained {judged['exact']['psnr'] - judged['posterior']['psnr']:.1f} dB by it; NDTM has four noise levels."
)


# %% [markdown]
# **What to look for.** Left column: truth, and what was kept of it. Then four samples of the posterior, and of three samplers. Which look like *different guesses*, and which like one guess with noise?

# %%
def show_images(ax, rows, side=8):
    """A table of small images: a list of rows, each a list of images."""
    grid = torch.stack([torch.stack(list(row)) for row in rows]).unflatten(-1, (side, side)).cpu()
    grid = torch.nn.functional.pad(grid, (1, 1, 1, 1), value=1.0)
    ax.imshow(grid.transpose(1, 2).flatten(2).flatten(0, 1).numpy(), cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


# %% alt="Digits: truth, the sixteen pixels that were kept, and four samples each of the posterior, of exact guidance, of DPS and of NDTM. The posterior's samples differ from each other; NDTM's are clean and more alike; DPS's are noisier."
fig, axes = plt.subplots(1, 5, figsize=(7.9, 2.4), width_ratios=[2, 4, 4, 4, 4])
digit_probability = digit_posterior.weights.unflatten(-1, (10, 2)).sum(-1)
some = digit_probability.max(-1).values.argsort()[:4].tolist()  # those whose digit is least certain
kept = hidden.start.where(hidden.matrix.sum(0) > 0, -0.3)
show_images(axes[0], [[digit_truth[i], kept[i]] for i in some])
for ax, label in zip(axes[1:], ("posterior", "exact", "DPS", "NDTM")):
    show_images(ax, [drawn[label][:4, i] for i in some])
label_panels(axes, ["Given", "Posterior", "Exact guidance", "DPS", "NDTM"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-9", judged["NDTM"]["variance_ratio"] / judged["DPS"]["variance_ratio"])
claim("DTM-10", judged["NDTM"]["psnr"] - judged["DPS"]["psnr"])

# %% [markdown]
# **What you saw.** NDTM has the higher PSNR by a wide margin, and is no nearer to the posterior than DPS for it; both get the probabilities of the digits wrong. No contradiction: PSNR is highest for the posterior's *mean*, a single blurred answer, and falls with every bit of spread, right or wrong. NDTM's samples vary least, and too little: their intervals miss the truth too often, while DPS's spread is nearly right. So PSNR may even exceed that of exact samples. Part of it is the price of few steps: see exact guidance. A single restored image should be near the mean; a statement about what could have been should be near the posterior. Know which one you are after.
#
# ### Real digits, a trained network
#
# Now without a closed form. The network predicts the noise as *that of a Gaussian with the data's mean and covariance, plus a small residual network* (`GaussianSkip`): it starts where the closed form ends.

# %%
torch.manual_seed(seed)
centre, spread = train_images.mean(0), torch.cov(train_images.T) + 0.01 * torch.eye(64, device=device)
residual = timed_mlp(64, width=DIGITS["width"], blocks=DIGITS["blocks"], time_scale=1000)
network = DiffusionModel(GaussianSkip(residual, process, centre, spread), process, "noise").to(device)
g = runtime.generator(seed + 1, device)
checkpoint = size(quick=None, full=runtime.scratch_dir() / "10_guidance_by_control" / f"{seed}-digits.pt")
with torch.no_grad():
    before = sum(denoising_loss(network, test_images, generator=source(60 + i)).item() for i in range(10)) / 10
history = fit(
    network,
    lambda x: denoising_loss(network, x, generator=g),
    num_steps=DIGITS["steps"],
    data=train_images,
    batch_size=128,
    generator=g,
    lr=2e-3,
    schedule="warmup_cosine",
    ema=0.995,
    checkpoint=checkpoint,
    progress=False,
)
network.load_state_dict(history.ema)
network.requires_grad_(False)
after = sum(denoising_loss(network, test_images, generator=source(60 + i)).item() for i in range(10)) / 10
say(
    f"Held-out loss of the noise: {before:.3f} by the Gaussian alone, {after:.3f} after training ({sum(p.numel() for p in residual.parameters()):,} parameters)."
)

# %% [markdown]
# Four measurements of held-out digits: a *non-linear blur*, $\tanh(2.5Bx)+0.5(Bx)^2$ with a Gaussian blur $B$ of 0.9 pixels; *JPEG* at quality 10, whose rounding passes gradients straight through; *inpainting* of 48 of 64 pixels; *pooling* of $2\times2$ pixels. DPS and MPGD have the best start, $\eta$ and step *for each task*; NDTM has **one** setting for all, and for the non-linear blur also its own best start beside it. All were chosen by PSNR on other images: 64 training images that a second network had not been trained on. DPS sees $h$ of the clamped estimate, as its code does.

# %%
real = test_images[torch.randperm(len(test_images), generator=source(61))[: DIGITS["images"]]]
g = source(62)
tasks = {
    "non-linear blur": nonlinear_blur((8, 8)).measure(real, 0.05, generator=g),
    "JPEG": jpeg((8, 8), 10).measure(real, 0.02, generator=g),
    "inpainting": inpainting((8, 8), random_pixels((8, 8), 16, (len(real),), g)).measure(real, 0.1, generator=g),
    "pooling": average_pooling((8, 8)).measure(real, 0.05, generator=g),
}
CHOSEN = {  # start, eta and step
    "dps": dict(zip(tasks, ((300, 0.2, 0.5), (600, 1.0, 0.7), (600, 1.0, 1.0), (600, 1.0, 2.2)))),
    "mpgd": dict(zip(tasks, ((300, 0.2, 0.3), (600, 1.0, 0.3), (600, 1.0, 1.0), (600, 1.0, 1.0)))),
}


def clamped(measurement):
    """The same measurement of the clamped estimate."""
    return Measurement(lambda x: measurement.apply(x.clamp(-1, 1)), measurement.y, measurement.std, measurement.start)


def restored(task, name, start=600, steps=None, **changes):
    """Samples of the held-out digits, (chains, images, 64)."""
    seen, settings = tasks[task], {"clamp": 1.0} | (NDTM_IMAGES if name == "ndtm" else {})
    if name != "ndtm":
        start, settings["eta"], settings["scale"] = CHOSEN[name][task]
    steps = steps or (4 if name == "ndtm" else 40)
    seen = clamped(seen) if name == "dps" else seen
    return restore(name, network, seen, start, steps, DIGITS["chains"], source(63), **(settings | changes))


# %%
results, cost = {}, {}
for name in ("dps", "mpgd", "ndtm"):
    for task in tasks:
        results[task, name], cost[name] = restored(task, name), f"{network.calls} + {network.pullbacks}"

# %% [markdown]
# Two measures beside PSNR: *SSIM*, which compares local means, contrasts and structure; and the *Fréchet distance* between restored and true digits in the features of a small classifier, which asks whether the restored ones look like digits at all, whichever.

# %%
torch.manual_seed(seed)
classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
targets = labels[:1400].to(device)
fit(
    classifier,
    lambda x, y: nn.functional.cross_entropy(classifier(x), y),
    data=(train_images, targets),
    batch_size=200,
    num_steps=400,
    lr=3e-3,
    generator=runtime.generator(seed, device),
    progress=False,
)


@torch.no_grad()
def quality(x, truth):
    features = [classifier[:2](v.reshape(-1, 64)) for v in (x, test_images)]
    return (
        psnr(x, truth).mean().item(),
        ssim(x, truth, (8, 8), std=0.8).mean().item(),
        frechet_distance(*features).item(),
    )


marks = {key: quality(x, real) for key, x in results.items()}
for task, seen in tasks.items():
    marks[task, "rough inverse"] = quality(seen.start.expand(2, -1, -1), real)
label_of = {"rough inverse": "rough inverse", "dps": "DPS", "mpgd": "MPGD", "ndtm": "NDTM"}
lines = [
    "| PSNR (dB) · SSIM · Fréchet distance | calls + pullbacks | " + " | ".join(tasks) + " |",
    "|---|---|" + "---|" * len(tasks),
]
for name, label in label_of.items():
    cells = ["{:.1f} · {:.2f} · {:.1f}".format(*marks[task, name]) for task in tasks]
    lines.append(f"| {label} | {cost.get(name, '-')} | " + " | ".join(cells) + " |")
say("\n".join(lines))
with torch.no_grad():
    parts = [classifier[:2](v) for v in (train_images[:397], test_images)]
say(f"The Fréchet distance between as many training and test digits is {frechet_distance(*parts).item():.2f}.")

# %% [markdown]
# **What to look for.** In each block a column is an image: truth, what the measurement shows (its rough inverse), one sample of DPS, one of NDTM.

# %% alt="Four blocks of restored digits, one for each measurement: rows are truth, rough inverse, DPS and NDTM. Both restore digits; they are hard to tell apart by eye."
fig, axes = plt.subplots(1, 4, figsize=(7.9, 2.3))
for ax, (task, seen) in zip(axes, tasks.items()):
    show_images(ax, [v[:4].clamp(-1, 1) for v in (real, seen.start, results[task, "dps"][0], results[task, "ndtm"][0])])
label_panels(axes, [task.capitalize() if task != "JPEG" else task for task in tasks])
axes[0].set_yticks([4.5 + 10 * i for i in range(4)], ["truth", "seen", "DPS", "NDTM"], fontsize=8)
plt.show()

# %%
gain = {task: marks[task, "ndtm"][0] - marks[task, "dps"][0] for task in tasks}
own_start = psnr(restored("non-linear blur", "ndtm", start=300), real).mean().item()
gain_at_best = own_start - marks["non-linear blur", "dps"][0]
say(
    "PSNR of NDTM with its one setting minus that of DPS: "
    + ", ".join(f"{task} {value:+.2f} dB" for task, value in gain.items())
    + f"; for the non-linear blur with its own best start, 300, {gain_at_best:+.2f} dB. Its Fréchet distance is above that of DPS for "
    + f"{sum(marks[task, 'ndtm'][2] > marks[task, 'dps'][2] for task in tasks)} of {len(tasks)} tasks."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-11", gain_at_best)
claim("DTM-12", [gain["JPEG"], gain["inpainting"], gain["pooling"]])

# %% [markdown]
# **What you saw.** With forty calls NDTM has the higher PSNR in three of four tasks, and with one setting, as the paper claims; for the linear pooling DPS wins, so DTM-12 does not hold as it stands. Part of what looks like a method's merit is its *start*: given a late start and little fresh noise, DPS comes much nearer in the non-linear blur than with the settings it was published with. DTM-11 rests on a choice as well: there NDTM's start, too, is the best for the task; with its one setting the gain is smaller, and at some seeds below the bound. And the Fréchet distance tells another story than PSNR: nearer to the truth is not the same as more like a digit.
#
# ### An unknown blur
#
# *Blind* deblurring: $y=k*x+\sigma n$, and the kernel $k$ is not known either. Its logits (a softmax keeps weights positive and their sum 1) become parameters beside the control, with one Adam for the whole trajectory. Each image has a kernel of its own to find; the truth is a Gaussian of 1.2 pixels in a $5\times5$ window.

# %%
offsets = torch.arange(5) - 2
true_kernel = BlindBlur((8, 8), -(offsets[:, None] ** 2 + offsets**2) / (2 * 1.2**2)).to(device).requires_grad_(False)
blurred = true_kernel.measure(real, 0.02, generator=source(64))
BLIND = NDTM_IMAGES | dict(inner_steps=5, lr=0.1, clamp=1.0)


def unblurred(operator, **more):
    seen = Measurement(operator, blurred.y, blurred.std, blurred.start)
    return restore("ndtm", network, seen, 600, 20, DIGITS["chains"], source(65), **(BLIND | more))


guess, found = (blind_blur((8, 8), 5, batch=(len(real),), generator=source(66)).to(device) for _ in range(2))
sharpened = {"kernel known": unblurred(true_kernel), "wrong kernel kept": unblurred(guess.requires_grad_(False))}
sharpened["kernel inferred"] = unblurred(found, parameters=[found.logits], parameter_lr=0.05)
blind = {label: psnr(x, real).mean().item() for label, x in sharpened.items()}
off = [(op.kernel() - true_kernel.kernel()).abs().sum((-1, -2)).mean().item() / 2 for op in (guess, found)]
say(
    "PSNR (dB): blurred "
    + f"{psnr(blurred.start, real).mean():.1f}, "
    + ", ".join(f"{label} {value:.1f}" for label, value in blind.items())
    + f". Total variation of the kernel from the truth: {off[0]:.2f} at the start, {off[1]:.2f} at the end."
)

# %% [markdown]
# **What to look for.** Yellow is a large weight. Is the inferred kernel round, and as wide as the true one? Where does the image pay for what is missing?

# %% alt="Rows of digits: truth, blurred, restored with the true kernel, with the inferred one, and with the wrong one kept, which are smeared. Beside them the true kernel, a round spot, its random start, one inferred kernel, a rougher spot, and the mean of all inferred ones."
fig, axes = plt.subplots(1, 5, figsize=(7.9, 2.2), width_ratios=[4, 1.5, 1.5, 1.5, 1.5])
order_shown = ("kernel known", "kernel inferred", "wrong kernel kept")
show_images(
    axes[0], [v[:10].clamp(-1, 1) for v in (real, blurred.start, *(sharpened[label][0] for label in order_shown))]
)
axes[0].set_yticks([4.5 + 10 * i for i in range(5)], ["truth", "blurred", "known", "inferred", "wrong"], fontsize=8)
for ax, kernel in zip(axes[1:], (true_kernel.kernel(), guess.kernel()[0], found.kernel()[0], found.kernel().mean(0))):
    ax.imshow(kernel.detach().cpu().numpy(), vmin=0, vmax=0.15)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
label_panels(axes, ["Digits", "True", "Start", "Inferred", "Mean of all"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-13", blind["kernel inferred"] - blind["wrong kernel kept"])

# %% [markdown]
# **What you saw.** The kernel moves towards the truth and the image with it, but not all the way: a slightly sharper kernel and a slightly blurrier image explain the same $y$. The paper spends 200 to 400 noise levels and 15 inner steps on this task.
#
# ### Natural images
#
# Patches of $8\times8$ pixels from two photographs, left parts for fitting, right parts for testing; the model is a mixture of Gaussians with full covariances, so again the score is exact. Smooth patches vary on a smaller scale than digits, and Adam's first steps have the size of the learning rate, whatever the gradient: with the digits' `lr` of 0.2, NDTM writes noise into every pixel. So start, $\eta$ and step of *both* methods are chosen, from as many candidates and at as many calls, on patches of the left parts that the model was not fitted to.

# %%
patches, unseen = (photograph_patches(8, split=part).to(device) for part in ("train", "test"))
shuffled = torch.randperm(len(patches), generator=source(70))
subset = patches[shuffled[: PATCHES["fit"]]]
patch_mixture = NormalMixture.fit(subset, PATCHES["components"], regularisation=1e-3, seed=seed)
patch_model = exact_model(patch_mixture, process)
scene = unseen[torch.randperm(len(unseen), generator=source(71))[: PATCHES["images"]]]
g = source(72)
STEPS_TRIED = {"dps": (0.15, 0.3, 0.5, 0.8), "ndtm": (0.02, 0.05, 0.1, 0.2)}
CANDIDATES = {
    name: [(start, eta, step) for start in (300, 600) for eta in (0.2, 1.0) for step in steps]
    for name, steps in STEPS_TRIED.items()
}


def restored_patches(name, seen, chosen, chains=2):
    """Samples with a start, an eta, and a step: DPS's scale or NDTM's learning rate. 36 calls each."""
    start, eta, step = chosen
    seen, num_steps, settings = clamped(seen), 36, dict(scale=step, eta=eta)
    if name == "ndtm":
        num_steps, settings = 6, NDTM_IMAGES | dict(inner_steps=4, lr=step, eta=eta)
    return restore(name, patch_model, seen, start, num_steps, chains, source(73), clamp=1.0, **settings)


# %%
known = patches[shuffled[PATCHES["fit"] :][:96]]  # choices are made on patches that the model has not seen
LRS = STEPS_TRIED["ndtm"]
patch_samples, patch_psnr, picked = {}, {}, {}
head = ["patches, PSNR (dB)", "rough inverse", "DPS, its best", "NDTM, its best", *(f"NDTM, lr {lr}" for lr in LRS)]
lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
for task, operator in (("blur", nonlinear_blur((8, 8))), ("pooling", average_pooling((8, 8)))):
    practice, seen = (operator.measure(v, 0.05, generator=g) for v in (known, scene))
    row = [psnr(seen.start, scene).mean().item()]
    for name, candidates in CANDIDATES.items():
        trials = [psnr(restored_patches(name, practice, c, 1).nan_to_num(), known).mean().item() for c in candidates]
        picked[task, name] = candidates[trials.index(max(trials))]
        x = patch_samples[task, name] = restored_patches(name, seen, picked[task, name])
        patch_psnr[task, name] = psnr(x, scene).mean().item()
        row.append(patch_psnr[task, name])
    for lr in LRS:
        x = patch_samples[task, lr] = restored_patches("ndtm", seen, (*picked[task, "ndtm"][:2], lr))
        row.append(psnr(x, scene).mean().item())
    lines.append(f"| {task} | " + " | ".join(f"{v:.1f}" for v in row) + " |")
    patch_samples[task, "start"] = seen.start
say("\n".join(lines))

# %%
choices = "; ".join(f"{task}, {NAMES[name]} {c}" for (task, name), c in picked.items())
ahead = ", ".join(f"{t} {patch_psnr[t, 'ndtm'] - patch_psnr[t, 'dps']:+.2f} dB" for t in ("blur", "pooling"))
say(f"Chosen (start, η, step): {choices}. NDTM minus DPS: {ahead}.")

# %% [markdown]
# **What to look for.** Twelve patches with much in them. Compare the last two rows on even ground: with the digits' learning rate they are rougher than with the chosen one.

# %% alt="Rows of photograph patches with edges: truth, what the non-linear blur shows, DPS, NDTM with its best learning rate, and with 0.2, whose patches are rougher."
fig, ax = plt.subplots(figsize=(6.2, 2.7))
busy = scene.std(-1).argsort(descending=True)[:12]
shown_rows = (scene, patch_samples["blur", "start"], *(patch_samples["blur", key][0] for key in ("dps", "ndtm", 0.2)))
show_images(ax, [v[busy].clamp(-1, 1) for v in shown_rows])
ax.set_yticks([4.5 + 10 * i for i in range(5)], ["truth", "seen", "DPS", "NDTM, best", "NDTM, 0.2"], fontsize=8)
ax.set_title("Non-linear blur of photograph patches")
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-14", patch_psnr["blur", "ndtm"] - patch_psnr["blur", "dps"])


# %% [markdown]
# **What you saw.** NDTM's learning rate must be far below the digits', which costs decibels here: the step must fit the scale of the data, and the one setting that "serves all tasks" serves them on *one* kind of image. The start matters, too: given the choice, both mostly take the late one. But do not build on DTM-14: it holds at the seed of this page, and the ledger has a seed at which DPS is ahead. The PSNR of a patch ranges over tens of decibels, from smooth sky to foliage, so that means over a few hundred patches, and choices made on a hundred, are less certain than the gap between the best candidates of both methods is wide. With both tuned, take them as about equal here.
#
# ### Networks that others trained
#
# Image networks in the format of guided-diffusion take images and integer levels, and return the noise in their first channels and variances in as many more. `from_adm` makes a `DiffusionModel` of rows of pixels, to which everything above applies; `from_diffusers` does so for that library, and `load_weights` fills a network from a file and checks its sum. Here is one in that format, colour, tiny, not trained:

# %%
class TinyADM(nn.Module):
    """The interface of guided-diffusion: (images, levels 0 to 999) -> noise and variances, 2 x 3 channels."""

    def __init__(self):
        super().__init__()
        self.convolution, self.seen = nn.Conv2d(3, 6, 3, padding=1), []

    def forward(self, images, timesteps):
        self.seen.append(int(timesteps[0]))
        return self.convolution(images)


torch.manual_seed(seed)
foreign = TinyADM().to(device)
colour = from_adm(foreign.requires_grad_(False), (3, 8, 8))
picture = 0.3 * torch.randn(2, 192, generator=source(80)).to(device)
smaller = average_pooling((3, 8, 8)).measure(picture, 0.05, generator=source(81))
out = restore("ndtm", colour, smaller, 400, 4, 3, source(82), **(NDTM_IMAGES | dict(clamp=1.0)))
print(
    f"samples {tuple(out.shape)}; calls {colour.calls}, pullbacks {colour.pullbacks}; levels {sorted(set(foreign.seen), reverse=True)}"
)
assert torch.equal(
    colour.noise(picture, 301.0), foreign(picture.unflatten(-1, (3, 8, 8)), torch.tensor([300]))[:, :3].flatten(1)
)

# %% [markdown]
# ## Play
#
# NDTM on the ring. Move the number of inner steps, and watch the paths bend. Left: samples over the exact contours. Right: where they end along the measured direction. Start at 0, without control; find the number at which both agree best; then go on, and see the distribution across the line collapse on $y$. Under a weight of 0.1 the penalties pull Adam back, and it never collapses.

# %%
NOISES = {"sharp": 0.1, "medium": 0.2, "vague": 0.5}


def show_control(inner_steps, weight, noise):
    seen = Measurement(direction, measured.y, NOISES[noise])
    posterior, g = ring.condition(direction, seen.y, seen.std), runtime.generator(seed + 3)
    x = process.initial((200, 1, 2), ring.means, g)
    settings = dict(
        inner_steps=max(inner_steps, 1), lr=0.2 if inner_steps else 0.0, terminal_weight=float(weight), eta=0.7
    )
    path = ndtm(exact_model(ring, process), seen, x, late_times(14), generator=g, return_path=True, **settings)
    report = posterior_report(path[-1], posterior, ring, measurement=seen, generator=g)
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), width_ratios=[1, 1.4])
    contours(axes[0], posterior)
    axes[0].plot(path[:, :12, 0, 0], path[:, :12, 0, 1], color=PALETTE[4], lw=0.6)
    axes[0].plot(*path[-1, :, 0].T, ".", ms=3, color=PALETTE[1])
    along = {"exact posterior": posterior.sample(4000, g), "NDTM": path[-1]}
    for (label, points), colour in zip(along.items(), ("#888888", PALETTE[1])):
        axes[1].hist(
            (points[:, 0] @ direction[0]).numpy(), 45, range=(-2, 2), density=True, alpha=0.6, color=colour, label=label
        )
    axes[1].axvline(seen.y.item(), color="black", lw=0.8, ls=":", label="y")
    axes[1].set(xlabel="position along the measured direction", yticks=[])
    axes[1].legend(fontsize=8.5, loc="upper left")
    spread = report["row_variance_ratio"].item()
    label_panels(
        axes,
        [
            f"Distance {report['distance'].item():.2f}",
            f"Spread across the line {spread:.2f}, residual {report['residual'].item():.1f} σ",
        ],
    )
    plt.show()


# %% alt="Left: NDTM's paths and samples over the exact contours of the posterior on the ring. Right: histograms of the position along the measured direction, samples beside the exact posterior."
play(
    show_control,
    inner_steps=slider("inner steps", value=1, low=0, high=12),
    weight=choice("weight", ["1", "10", "0.1"]),
    noise=choice("measurement", ["medium", "sharp", "vague"]),
)


# %% [markdown]
# And the one-dimensional laws, exactly: move the number of steps and the noise, and find where the explicit step leaves the picture.

# %%
def show_laws(steps, noise):
    fig, ax = plt.subplots(figsize=(6.4, 2.8))
    x = torch.linspace(-1, 3, 400, dtype=F64)
    times = process.times(steps)
    laws = {label: guided_moments(m, process, times, y=1.0, std=noise) for m, label in shown.items() if m != "pigdm"}
    laws = {"posterior": gaussian_posterior(1.0, noise)} | laws
    for (label, (mean, std)), style, colour in zip(laws.items(), ("-", "-", "--", "-."), ("#888888", *PALETTE)):
        if std < 5:
            ax.plot(x, torch.distributions.Normal(mean, std).log_prob(x).exp(), style, color=colour, label=label)
        else:
            ax.plot([], [], style, color=colour, label=f"{label}: exploded, std {std:.0e}")
    ax.set(xlabel="$x_0$", ylabel="density", title=f"{steps} steps, σ = {noise:g}")
    ax.legend(fontsize=8.5)
    plt.show()


# %% alt="Densities of the results of exact guidance, DPS with Bayes' weight and NDTM on one Gaussian number beside the posterior."
play(
    show_laws,
    steps=slider("steps", value=30, low=5, high=200, step=5),
    noise=slider("noise", value=0.3, low=0.05, high=1.0, step=0.05),
)

# %% [markdown]
# ## What goes wrong
#
# ### One inner step: penalties that do nothing
#
# At $u=0$ the penalties' gradients vanish. With $M=1$ they are never felt. Two runs of the JPEG task with the same random numbers:

# %%
single = [restored("JPEG", "ndtm", inner_steps=1, control_weight=weight) for weight in ("ddim", "zero")]
inert = (single[0] - single[1]).abs().max().item()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-15", inert)

# %% [markdown]
# ### Too many inner steps: fitting the noise
#
# The inner problem can be solved better and better. On the digits with the exact model:
#
# **What to look for.** The residual in units of $\sigma$ is near 1 for *samples of the posterior*; PSNR prefers less. What does PSNR do when it falls far below, with and without penalties?

# %%
INNER = (1, 2, 4, 8, 16, 30)
converging = {}
for weight in ("ddim", "zero"):
    for inner in INNER:
        options = NDTM_IMAGES | dict(inner_steps=inner, control_weight=weight)
        x = restore("ndtm", digit_model, hidden, 600, 6, chains // 4, source(83), **options)
        residual_now = (hidden.residual(x) / hidden.std).square().mean().sqrt().item()
        converging[weight, inner] = (residual_now, psnr(x, digit_truth).mean().item())

# %% alt="Against the number of inner steps: left, the residual over sigma falls, without penalty far below one; right, PSNR rises to four or eight steps; with penalties it stays there, without it falls by a decibel or more."
fig, axes = plt.subplots(1, 2, figsize=(7.8, 2.4))
for (weight, label), style in zip({"ddim": "published penalties", "zero": "none"}.items(), ("o-", "s--")):
    for column, ax in enumerate(axes):
        ax.plot(INNER, [converging[weight, inner][column] for inner in INNER], style, ms=4, label=label)
axes[0].axhline(1, color="black", lw=0.8, ls=":")
axes[0].set(yscale="log", ylabel="residual / σ")
axes[1].set(ylabel="PSNR (dB)")
for ax in axes:
    ax.set(xlabel="inner steps", xscale="log")
    ax.set_xticks(INNER, [str(inner) for inner in INNER])
    ax.minorticks_off()
axes[0].legend(fontsize=8.5)
label_panels(axes, ["Residual", "PSNR"])
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-16", converging["zero", 4][1] - converging["zero", 30][1])

# %% [markdown]
# **What you saw.** At the end of sampling the estimate follows $y$ to a fraction of its noise, and what it adds to the image is that noise. Without penalties each further step copies more of it, and PSNR falls: stop early. The penalties do that for you: their curve levels off. A residual far below 1 says that the samples know $y$ too well; PSNR need not notice, but NDTM's coverage in the table of the digits does.
#
# ### Settings that belong together
#
# Five traps in one table, all on the non-linear blur with the trained network: a start from pure noise; the scale $\gamma$, changed alone and changed together with $w_T$ (for a given shift $\gamma u$ the published penalty grows with $\gamma^2$, so $w_T$ must too, and Adam's step on $\gamma u$ grows with $\gamma$, so the learning rate must shrink; $\kappa_s$ would have to grow as well, but matters little); the weight $w_T$, which Adam divides out if there is no penalty; gradient descent in place of Adam; and no clamp.

# %%
variants = {
    "as above": {},
    "start at 1000": dict(start=1000),
    "γ = 4, lr / 4": dict(gamma=4.0, lr=0.05),
    "γ = 4, lr / 4, w × 16": dict(gamma=4.0, lr=0.05, terminal_weight=80.0),
    "no penalty": dict(control_weight="zero"),
    "no penalty, w × 100": dict(control_weight="zero", terminal_weight=500.0),
    "gradient descent": dict(optimiser="sgd", lr=0.1),
    "no clamp": dict(clamp=None),
}
ablation = {label: restored("non-linear blur", "ndtm", **changes) for label, changes in variants.items()}
decibel = {label: psnr(x, real).mean().item() for label, x in ablation.items()}
say(
    "\n".join(
        ["| NDTM | PSNR (dB) |", "|---|---|", *(f"| {label} | {value:.1f} |" for label, value in decibel.items())]
    )
)
moved = (ablation["no penalty"] - ablation["no penalty, w × 100"]).abs().median().item()
say(
    f"A hundred times the weight moves a pixel by a median of {moved:.0e} when nothing but the measurement is in the loss."
)

# %%
# NBVAL_CHECK_OUTPUT
claim("DTM-17", decibel["as above"] - decibel["start at 1000"])
claim("DTM-18", decibel["as above"] - decibel["γ = 4, lr / 4"])

# %% [markdown]
# **What you saw.** The truncated start is part of the method in practice. $\gamma$ and the learning rate are *not* interchangeable; with $w_T$ scaled by $\gamma^2$ as well, nearly the same samples come back. With so few inner steps the penalty itself may go without loss of PSNR; but then $w_T$ is decoration, as Adam divides each gradient by its own size. The clamp of $\hat x_0$ to $[-1,1]$ helps: at high noise $\hat x_0=(x-b\hat\epsilon)/a$ divides by a small $a$, and a curved $h$ makes more of it.
#
# ### Too much guidance leaves the images
#
# Turn up DPS's step, and ask the exact model how likely the results are *as digits*.
#
# **What to look for.** Where do rows stop looking like digits, and does the residual say so?

# %%
SCALES = (0.3, 1.0, 3.0, 10.0)
typical = digit_mixture.log_prob(exact_digits).mean().item()
pushed = {scale: restore("dps", digit_model, hidden, 600, 40, 12, source(84), scale=scale) for scale in SCALES}
plausible = {scale: digit_mixture.log_prob(x).mean().item() for scale, x in pushed.items()}
missed = {scale: (hidden.residual(x) / hidden.std).square().mean().sqrt().item() for scale, x in pushed.items()}

# %% alt="Rows of digits for four step sizes of DPS: faint and of many shapes for the smallest, clear in the middle, harsh and speckled for the largest."
fig, ax = plt.subplots(figsize=(6.2, 2.3))
show_images(ax, [pushed[scale][0, :12].clamp(-1, 1) for scale in SCALES])
ax.set_yticks([4.5 + 10 * i for i in range(4)], [f"ζ = {scale:g}" for scale in SCALES])
ax.set_title("DPS, larger and larger steps")
plt.show()

# %%
say(
    f"Mean log-density as a digit, in nats: exact posterior samples {typical:.0f}; DPS with ζ = "
    + ", ".join(f"{scale:g}: {value:.0f}" for scale, value in plausible.items())
    + ". Residual over σ: "
    + ", ".join(f"{scale:g}: {value:.1f}" for scale, value in missed.items())
    + "."
)

# %% [markdown]
# **What you saw.** At the largest step the samples leave the images (the figure clips them) *and* the measurement: the explicit step overshoots. And where a smaller step gives a log-density above that of exact samples, that is no praise: likelier is not more typical.
#
# ### A constant step at low noise: no spread along what is measured
#
# MPGD moves $\hat x_0$ by the same factor at every noise level, also at the last ones, where Bayes' rule would hardly move it. What the measurement sees is then fixed to $y$, noise and all; only the other directions vary. The network's Jacobian, which MPGD leaves out, is not to blame for that: at low noise it is nearly the identity.
#
# Where a *one-sided* gradient, without that Jacobian, does matter is at high noise. By Tweedie's formula the Jacobian is $\frac{a_t}{b_t^2}C_t$: through it a measured coordinate also moves what is correlated with it. How much of the full gradient points out of the measured directions?

# %%
outside = {}
for t in (20, 200, 500, 800):
    a, b = process.coefficients(torch.tensor(float(t), dtype=F64))
    x0 = cloud.sample(200, source(85))
    x = (a * x0 + b * torch.randn(x0.shape, dtype=F64, generator=source(86))).requires_grad_()
    miss = 0.5 * (cloud.denoise(x, a, b) @ two_numbers.T - x0 @ two_numbers.T).square().sum()
    (full,) = torch.autograd.grad(miss, x)
    across_part = full @ two_numbers.T @ two_numbers
    outside[t] = ((full - across_part).square().sum() / full.square().sum()).sqrt().item()
say("Share (norm) outside, at t = " + ", ".join(f"{t}: {value:.2f}" for t, value in outside.items()) + ".")

# %%
across = {name: mean_score("plane", name, "row_variance_ratio") for name in ("exact", "tmpd", "dps", "ndtm", "mpgd")}
say(
    "Variance along the measured directions over the exact one, *plane*: "
    + ", ".join(f"{NAMES[name]} {value:.2f}" for name, value in across.items())
    + "."
)


# %% [markdown]
# A spread near 0 is a sampler that is sure of what it cannot know. Of two samplers with the same distance from the posterior, this tells which way each is wrong.
#
# ## At full size
#
# At full size the digits' network is larger, the mixtures' problems are more and their settings chosen anew before the table, and a U-Net is trained on *dead leaves*: colour images of $32\times32$ pixels with discs of all sizes that hide each other, the simplest images with the statistics of scenes. On these: DPS with 1000 steps, as published, and with 50, from noise and from NDTM's start, with $\eta$ of 1 and of NDTM, against NDTM with 50 noise levels and 2 inner steps. Training resumes from its checkpoint.
#
# `make full CHAPTER=10`, or where Jupyter is not installed `REFIMPL_SIZE=full python chapters/10_guidance_by_control.py`
#
# **Not run here**: the paper's numbers for FFHQ-256 and ImageNet-256 (for example FID 34.31 against 78.07 for non-linear deblurring on ImageNet) need published weights of hundreds of millions of parameters and hours of a GPU. `from_adm` is where those weights go.

# %%
def restore_leaves(model, truth):
    """PSNR of DPS and NDTM on four measurements of dead leaves."""
    shape, g, out = (3, 32, 32), runtime.generator(seed + 93, device), {}
    kept = random_pixels(shape, 102, (len(truth),), runtime.generator(seed + 94))
    for task, operator, std in (
        ("non-linear blur", nonlinear_blur(shape, (0.9, 2.0)), 0.01),
        ("JPEG", jpeg(shape, 10), 0.01),
        ("inpainting, 90 % hidden", inpainting(shape, kept), 0.01),
        ("4x4 pooling", average_pooling(shape, 4), 0.01),
    ):
        seen = operator.measure(truth, std, generator=g)
        for start, steps, eta in ((1000, LEAVES["dps"], 1.0), (1000, 50, 1.0), (600, 50, 1.0), (600, 50, 0.2)):
            x = restore("dps", model, clamped(seen), start, steps, 1, g, scale=1.0, eta=eta, clamp=1.0)
            out[f"{task}: DPS, {steps} from {start}, eta {eta:g}"] = psnr(x.nan_to_num(0.0), truth).mean().item()
        settings = dict(lr=0.05, terminal_weight=50.0, eta=0.2, inner_steps=2, clamp=1.0)
        x = restore("ndtm", model, seen, 600, 50, 1, g, **settings)
        out[f"{task}: NDTM, 50 x 2"] = psnr(x, truth).mean().item()
    return out


# %%
leaves = {}
if LEAVES["steps"]:
    torch.manual_seed(seed)
    g = runtime.generator(seed + 90, device)
    pool = dead_leaves(LEAVES["pool"], 32, g, channels=3, like=torch.zeros((), device=device))
    net = unet((3, 32, 32), width=LEAVES["width"], time_scale=1000)
    leaf_model = DiffusionModel(net, process, "noise").to(device)
    path = runtime.scratch_dir() / "10_guidance_by_control" / f"{seed}-leaves.pt"
    settings = dict(data=pool, batch_size=LEAVES["batch"], lr=2e-4, schedule="warmup_cosine", clip_norm=1.0, ema=0.999)
    history = fit(
        leaf_model,
        lambda x: denoising_loss(leaf_model, x, generator=g),
        num_steps=LEAVES["steps"],
        generator=g,
        checkpoint=path,
        progress=False,
        **settings,
    )
    leaf_model.load_state_dict(history.ema)
    leaf_model.requires_grad_(False)
    leaves = restore_leaves(leaf_model, dead_leaves(LEAVES["images"], 32, g, channels=3, like=pool))
for label, value in leaves.items():
    print(f"{label:40s} {value:.2f} dB")

# %%
record_of_full_run = load_record("10_guidance_by_control")
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
        distances={
            f"{kind}, {STDS[level]}, {NAMES[name]}": row["distance"] for (kind, level, name), row in scores.items()
        },
        against_calls={f"{NAMES[name]}, {calls}": value for (name, calls), value in curve.items()},
        digits_exact=judged,
        digits_trained={f"{task}, {name}": list(values) for (task, name), values in marks.items()},
        settings={f"{kind}, {NAMES[name]}": str(v) for kind, chosen in SETTINGS.items() for name, v in chosen.items()},
        leaves=leaves,
    )
)

# %% [markdown]
# ## Exercises and further reading
#
# **Exercises**: [sheet 10](../exercises/10_guidance_by_control/10_guidance_by_control.ipynb).
#
# **Further reading**
#
# - Pandey, Marouf Sofian, Draxler, Karaletsos, Mandt 2025, [arXiv 2502.03686](https://arxiv.org/abs/2502.03686): this chapter's paper; code: `czi-ai/oc-guidance`.
# - Chung, Kim, Mccann, Klasky, Ye 2023, [arXiv 2209.14687](https://arxiv.org/abs/2209.14687): DPS, the explicit step that everybody compares with.
# - Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz 2023, [arXiv 2310.06721](https://arxiv.org/abs/2310.06721): TMPD, the covariance put back.
# - Cardoso, Janati Idrissi, Le Corff, Moulines 2023, [arXiv 2308.07983](https://arxiv.org/abs/2308.07983): sequential Monte Carlo for guidance; posteriors of mixtures as a yardstick.
# - Mardani, Song, Kautz, Vahdat 2023, [arXiv 2305.04391](https://arxiv.org/abs/2305.04391): RED-diff, one control for all times.
# - Ben-Hamu, Puny, Gat, Karrer, Singer, Lipman 2024, [arXiv 2402.14017](https://arxiv.org/abs/2402.14017): D-Flow, control of the initial noise only.
# - Zoran and Weiss 2011, *From Learning Models of Natural Image Patches to Whole Image Restoration*: mixtures of Gaussians of patches.
