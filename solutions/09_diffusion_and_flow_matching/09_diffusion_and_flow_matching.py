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
# # Exercises 09: Diffusion and flow matching
#
# Read [chapter 09](../../chapters/09_diffusion_and_flow_matching.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 What a score knows about the data | 4 | 4 | |
# | 2 A sampler of second order | 5 | 4 | 1 |
# | 3 Predict, then measure: guidance is not tilting | 5 | 4 | 1 |
# | 4 Straight paths | 5 | 5 | |
# | 5 Find the faults | 4 | 4 | |
# | 6 A table of samplers | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.diffusion` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - A state is $x_t=a\,x_0+b\,n$ with data $x_0$, noise $n\sim\mathcal N(0,I)$ and the coefficients $a(t),b(t)$ of the process; $p_t$ is its density, $\nabla\log p_t$ its score, and $\sigma=b/a$ the noise per data. `EDM` has $a=1$, $b=t$; `FlowPath` has $a=t$, $b=1-t$ and a clock that runs from noise to data.
# - Points are the rows of a tensor of shape (batch, dim). `process.coefficients(t)` gives $a$ and $b$, `process.times(n)` $n+1$ times from noise to data. A `DiffusionModel` answers `model.data(x, t)`, `.noise`, `.score` and `.velocity`: conditional expectations given $x_t=x$.
# - A guidance scale $w=1$ is the plain conditional model; some papers call that 0.
# - Tensors come in double precision; keep it.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment

import refimpl.diffusion as package
from refimpl import runtime
from refimpl.data import NormalMixture, digits
from refimpl.diffusion import DDPM, EDM, VP, DiffusionModel, FlowPath
from refimpl.metrics import sliced_wasserstein
from refimpl.nets import mlp
from refimpl.plots import PALETTE, use_course_style
from refimpl.training import fit

use_course_style()
F64 = torch.float64
LIKE = torch.zeros(1, dtype=F64)


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-6):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got).detach().cpu(), torch.as_tensor(wanted).detach()
    assert got.shape == wanted.shape, f"{what}: you return the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}"
    assert got.isfinite().all(), f"{what}: some of your numbers are not finite"
    error = ((got - wanted).abs().max() / wanted.abs().max().clamp_min(1)).item()
    assert error < tolerance, f"{what}: the largest error is {error:.1e}"


def number(got, what):
    """The one number that was returned, as a float."""
    assert got is not None, f"{what}: you return nothing"
    got = float(got)
    assert math.isfinite(got), f"{what}: you return {got}"
    return got


def normal(shape, seed):
    return torch.randn(shape, dtype=F64, generator=runtime.generator(seed))


def random_mixture(dim, seed):
    """Three components with full covariances and unequal weights."""
    roots = normal([3, dim, dim], seed) / math.sqrt(dim)
    covariances = roots @ roots.mT + 0.05 * torch.eye(dim, dtype=F64)
    return NormalMixture(2 * normal([3, dim], seed + 1), covariances, torch.tensor([0.5, 0.3, 0.2], dtype=F64))


# %% [markdown]
# ## Task 1: what a score knows about the data (4 points)
#
# Everything that a denoiser knows follows from the density of the states, $p_t(x)=\int p(x_0)\,\mathcal N(x;a x_0,b^2I)\,dx_0$. Derive with pencil and paper, then write:
#
# - `posterior_mean`, $\mathbb E[x_0\mid x_t=x]$ from the score at $x$. *A way:* differentiate $\log p_t$ under the integral; what remains is an average over $p(x_0\mid x)$.
# - `posterior_covariance`, $\mathrm{Cov}[x_0\mid x_t=x]$ from the Hessian of $\log p_t$ at $x$. *A way:* differentiate once more.
# - `smallest_loss`, the smallest value that any network can reach of $\mathbb E\lVert n_\theta(x_t)-n\rVert^2/\text{dim}$ at this noise level, estimated from scores at states drawn from $p_t$ and from nothing else: neither the data nor the noises are needed. *A way:* by how much does the variance of $n$ shrink when $x_t$ is known?
# - `mixture_mean`, the exact denoiser of $\sum_kw_k\mathcal N(m_k,C_k)$, without the help of `NormalMixture`. Mind two things: in 64 dimensions densities underflow, so stay with logarithms; and $a=0$ is allowed.

# %% nbgrader={"grade": false, "grade_id": "tweedie", "locked": false, "schema_version": 3, "solution": true, "task": false}
def posterior_mean(score, x, a, b):
    """E[x_0 | x_t = x], shapes (batch, dim); a and b are numbers."""
    ### BEGIN SOLUTION
    return (x + b**2 * score) / a
    ### END SOLUTION


def posterior_covariance(hessian, a, b):
    """Cov[x_0 | x_t = x] from Hessians of log p_t, shapes (batch, dim, dim); a and b are numbers."""
    ### BEGIN SOLUTION
    return (b / a) ** 2 * (torch.eye(hessian.shape[-1], dtype=hessian.dtype) + b**2 * hessian)
    ### END SOLUTION


def smallest_loss(score, b):
    """Smallest mean square error of the noise, per dimension, from scores of shape (batch, dim) at states of p_t."""
    ### BEGIN SOLUTION
    return 1 - b**2 * score.square().mean()
    ### END SOLUTION


def mixture_mean(weights, means, covariances, x, a, b):
    """E[x_0 | x_t = x], shape (batch, dim); weights (K,), means (K, dim), covariances (K, dim, dim), a >= 0, b > 0."""
    ### BEGIN SOLUTION
    root = torch.linalg.cholesky(a**2 * covariances + b**2 * torch.eye(x.shape[1], dtype=x.dtype))
    off = (x.unsqueeze(1) - a * means).unsqueeze(-1)  # (batch, K, dim, 1)
    white = torch.linalg.solve_triangular(root, off, upper=False)
    log = weights.log() - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * white.square().sum((-2, -1))
    solved = torch.linalg.solve_triangular(root.mT, white, upper=True)
    each = means + a * (covariances @ solved).squeeze(-1)
    return (log.softmax(1).unsqueeze(-1) * each).sum(1)
    ### END SOLUTION


# %% [markdown]
# The tests that you see use data that are $+1$ or $-1$ with equal probability, where $p_t$ is $\frac12\mathcal N(a,b^2)+\frac12\mathcal N(-a,b^2)$ and a denoiser has only one question to answer: which of the two was it?

# %% nbgrader={"grade": true, "grade_id": "tweedie_mean", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def coin(x, a, b):
    """Score of the noised coin; its Hessian; the chance of +1."""
    chance = torch.sigmoid(2 * a * x / b**2)
    score = (a * (2 * chance - 1) - x) / b**2
    return score, (4 * a**2 * chance * (1 - chance) / b**4 - 1 / b**2).unsqueeze(-1), chance


x = torch.linspace(-2, 2, 9, dtype=F64).unsqueeze(1)
score, _, chance = coin(x, 0.8, 0.6)
same(posterior_mean(score, x, 0.8, 0.6), 2 * chance - 1, "a coin, VP: posterior_mean")
### BEGIN HIDDEN TESTS
for process, t in ((EDM(), 0.7), (VP(), 0.3), (FlowPath(), 0.4)):
    p, (a, b) = random_mixture(3, 1), process.coefficients(torch.tensor(t, dtype=F64))
    x = process.add_noise(p.sample(20, runtime.generator(3)), normal([20, 3], 4), t)
    wanted = p.denoise(x, a, b)
    same(
        posterior_mean(p.score(x, a, b), x, a.item(), b.item()),
        wanted,
        f"a mixture, {type(process).__name__}: posterior_mean",
    )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "tweedie_covariance", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x = torch.linspace(-2, 2, 9, dtype=F64).unsqueeze(1)
_, hessian, chance = coin(x, 0.8, 0.6)
same(posterior_covariance(hessian, 0.8, 0.6), 4 * (chance * (1 - chance)).unsqueeze(-1), "a coin: posterior_covariance")
### BEGIN HIDDEN TESTS
for dim, a, b in ((2, 1.0, 0.7), (4, 0.5, 0.4), (3, 0.4, 1.5)):
    p = random_mixture(dim, 5)
    x = a * p.sample(20, runtime.generator(6)) + b * normal([20, dim], 7)
    rows = [torch.autograd.functional.hessian(lambda y, p=p, a=a, b=b: p.log_prob(y, a, b), y) for y in x]
    wanted = p.denoising_covariance(x, a, b)
    same(posterior_covariance(torch.stack(rows), a, b), wanted, f"a mixture in {dim} dimensions: posterior_covariance")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "tweedie_loss", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_loss(p, a, b, seed, num=40_000, tolerance=0.01):
    noise = normal([num, p.dim], seed)
    x = a * p.sample(num, runtime.generator(seed + 1)) + b * noise
    wanted = ((x - a * p.denoise(x, a, b)) / b - noise).square().mean().item()
    got = number(smallest_loss(p.score(x, a, b), b), "smallest_loss")
    assert abs(got - wanted) < tolerance, (
        f"dim {p.dim}, a = {a}, b = {b}: you find {got:.3f}, the exact denoiser has {wanted:.3f}"
    )


check_loss(NormalMixture(torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, 1, dtype=F64)), 1.0, 1.0, 8)
### BEGIN HIDDEN TESTS
check_loss(random_mixture(1, 10), 0.8, 0.6, 11)
check_loss(random_mixture(5, 12), 0.3, 0.9, 13)
check_loss(random_mixture(2, 14), 1.0, 2.5, 15)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "tweedie_mixture", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_mixture(p, x, a, b, what):
    got = mixture_mean(p.weights, p.means, p.covariances, x, a, b)
    same(got, (p.weights.unsqueeze(-1) * p.means).sum(0).expand_as(x) if a == 0 else p.denoise(x, a, b), what, 1e-8)


check_mixture(random_mixture(2, 16), normal([10, 2], 17), 0.0, 1.0, "a = 0, where the state says nothing: mixture_mean")
### BEGIN HIDDEN TESTS
images = digits()[0].double()[:1000]
check_mixture(random_mixture(2, 16), normal([10, 2], 18), 0.8, 0.6, "a mixture in 2 dimensions: mixture_mean")
check_mixture(random_mixture(4, 19), normal([10, 4], 20), 1.0, 3.0, "a mixture in 4 dimensions: mixture_mean")
law = NormalMixture.fit(images, 3, regularisation=0.001)
hidden, NormalMixture = NormalMixture, None  # by hand, says the task
try:
    check_mixture(law, images[:20] + 0.02 * normal([20, 64], 21), 1.0, 0.02, "digits with little noise: mixture_mean")
    check_mixture(
        law, 2 * normal([20, 64], 21), 1.0, 0.05, "states in 64 dimensions that are far from all data: mixture_mean"
    )
finally:
    NormalMixture = hidden
### END HIDDEN TESTS

# %% [markdown]
# Now on real data: 20 Gaussians fitted to scikit-learn's digits, and your exact denoiser of them. **What to look for:** from left to right the noise grows. When does the denoiser stop restoring *this* image, when does it give up the digit, and what does it paint at the end?

# %% alt="Three digits, each with growing noise and the mean of the data given the noisy image: at small noise the digit itself, at large noise a blurred average of all digits."
images = digits()[0].double()
law = NormalMixture.fit(images, 20, regularisation=0.005)
levels = [0.1, 0.25, 0.5, 1.0, 3.0]
fig, axes = plt.subplots(3, 1 + 2 * len(levels), figsize=(7.6, 2.2), gridspec_kw={"wspace": 0.05, "hspace": 0.05})
for row, index in zip(axes, (0, 4, 8)):
    x0 = images[index : index + 1]
    shown = [x0]
    for level in levels:
        x = x0 + level * normal(x0.shape, 22)
        shown += [x, mixture_mean(law.weights, law.means, law.covariances, x, 1.0, level)]
    for ax, image in zip(row, shown):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set_axis_off()
for ax, title in zip(axes[0], ["data"] + [name for s in levels for name in (f"σ = {s:g}", "mean")]):
    ax.set_title(title, fontsize=8, loc="center", fontweight="normal")
plt.show()


# %% [markdown]
# ## Task 2: a sampler of second order (5 points)
#
# In the coordinates $\bar x=x/a$ and $\sigma=b/a$ the probability-flow ODE of *every* process is $d\bar x/d\sigma=\mathbb E[n\mid x_t]$. Euler's method there is DDIM, and is written for you. Write
#
# - `heun`: from $\sigma_i$ to $\sigma_{i+1}$ an Euler step, then once more from the start with the mean of the slopes at both ends. A network can't be asked about noise where $b=0$: a step that ends there stays an Euler step, every other one is corrected. With `process.times(n)` this makes $2n-1$ calls. `refimpl.diffusion` has such a sampler, for comparison; an answer that calls it gets no points.
# - `fitted_order`: error $\approx C\cdot n^{-k}$ for $n$ steps. Return $k$ from a line fitted by least squares to the logarithms of all errors.

# %% nbgrader={"grade": false, "grade_id": "sampler_tools", "locked": true, "schema_version": 3, "solution": false, "task": false}
def gaussian(mean, std):
    return NormalMixture(torch.tensor([[float(mean)]], dtype=F64), torch.full((1, 1, 1), float(std) ** 2, dtype=F64))


def exact(p, process):
    """The model that a perfect training on p would give."""
    return DiffusionModel(lambda x, t: p.denoise(x, *process.coefficients(t)), process, "data")


def euler(model, x, times):
    """DDIM: Euler's method in (x / a, b / a)."""
    for t, s in pairwise(times):
        (a, b), (a_s, b_s) = model.process.coefficients(t), model.process.coefficients(s)
        x = a_s * (x / a + (b_s / a_s - b / a) * model.noise(x, t))
    return x


def ring(modes=8, radius=1.5, std=0.15):
    """Modes on a circle and one in its centre."""
    angle = 2 * math.pi * torch.arange(modes, dtype=F64) / modes
    means = torch.cat([radius * torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(1, 2, dtype=F64)])
    return NormalMixture(means, (std**2 * torch.eye(2, dtype=F64)).expand(modes + 1, 2, 2))


# %% nbgrader={"grade": false, "grade_id": "sampler", "locked": false, "schema_version": 3, "solution": true, "task": false}
def heun(model, x, times):
    """States at the last of the times, from states x of shape (batch, dim) at the first."""
    ### BEGIN SOLUTION
    for t, s in pairwise(times):
        (a, b), (a_s, b_s) = model.process.coefficients(t), model.process.coefficients(s)
        start, step = x / a, b_s / a_s - b / a
        slope = model.noise(x, t)
        x = a_s * (start + step * slope)
        if b_s > 0:
            x = a_s * (start + step * (slope + model.noise(x, s)) / 2)
    return x
    ### END SOLUTION


def fitted_order(steps, errors):
    """k of error = C / steps^k; two lists or tensors of numbers of the same length."""
    ### BEGIN SOLUTION
    x, y = (torch.as_tensor(v, dtype=F64).log() for v in (steps, errors))
    return -(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()).item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "sampler_step", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
model = exact(gaussian(0, 1), EDM())  # E[n | x] = sigma x / (1 + sigma^2)
x = torch.tensor([[1.0], [-2.0]], dtype=F64)
slopes = (2 / 5, (1 - 2 / 5) * 1 / 2)
same(heun(model, x, torch.tensor([2.0, 1.0], dtype=F64)), x * (1 - sum(slopes) / 2), "one step from sigma = 2 to 1")
model.reset_counts()
same(heun(model, x, torch.tensor([2.0, 0.0], dtype=F64)), x * (1 - 2 * slopes[0]), "one step from sigma = 2 to 0")
assert model.calls == 1, f"one step to sigma = 0 makes {model.calls} calls of the network, expected 1"
### BEGIN HIDDEN TESTS
from unittest.mock import patch

with patch("refimpl.diffusion.steps.check_clock", side_effect=AssertionError("heun calls a sampler of the package")):
    heun(model, x, EDM().times(2))
for times, wanted in ((EDM().times(18), 35), (EDM().times(18)[:-1], 34), (EDM().times(5), 9)):
    model = exact(ring(), EDM())
    heun(model, 80 * normal([3, 2], 30), times)
    assert model.calls == wanted, f"{len(times) - 1} steps make {model.calls} calls, expected {wanted}"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sampler_process", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
times = torch.linspace(1, 0, 200, dtype=F64) ** 2
x = VP().initial([50, 1], LIKE, runtime.generator(31))
end = heun(exact(gaussian(1, 0.5), VP()), x, times)
assert end is not None and end.shape == x.shape, "heun returns states of the shape of x"
same(end, 1 + 0.5 * x, "VP, data N(1, 1/4): each state should end at 1 + x / 2, nearly", 0.02)
### BEGIN HIDDEN TESTS
from unittest.mock import patch

with patch("refimpl.diffusion.steps.check_clock", side_effect=AssertionError("heun calls a sampler of the package")):
    heun(exact(gaussian(1, 0.5), VP()), x, times[:3])
p = random_mixture(3, 32)
for process, times in ((VP(), VP().times(12)), (FlowPath(), FlowPath().times(12)[1:]), (DDPM(), DDPM().times(9))):
    x = process.add_noise(p.sample(20, runtime.generator(33)), normal([20, 3], 34), times[0])
    wanted = package.heun(exact(p, process), x, times)
    same(heun(exact(p, process), x, times), wanted, f"a mixture, {type(process).__name__}", 1e-5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sampler_order", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def errors_of(sampler, steps, num=200):
    """Mean distance of the ends from those of very many steps of Heun's method, from the same states."""
    x = EDM().initial([num, 2], LIKE, runtime.generator(35))
    model = exact(ring(), EDM())
    ends = package.heun(model, x, EDM().times(400))
    return [(sampler(model, x, EDM().times(n)) - ends).norm(dim=1).mean().item() for n in steps]


ratio = errors_of(heun, [72])[0] / errors_of(euler, [72])[0]
assert ratio < 0.5, f"at 72 steps your error is {ratio:.2f} of Euler's"
### BEGIN HIDDEN TESTS
from unittest.mock import patch

with patch("refimpl.diffusion.steps.check_clock", side_effect=AssertionError("heun calls a sampler of the package")):
    heun(exact(ring(), EDM()), normal([3, 2], 36), EDM().times(3))
some = errors_of(heun, [36, 72, 144])
order = math.log(some[0] / some[2]) / math.log(4)
assert 1.8 < order < 2.5, f"your sampler has the order {order:.2f}, expected 2"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sampler_fit", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
got = number(fitted_order([10, 20, 40], [3 / 10**1.5, 3 / 20**1.5, 3 / 40**1.5]), "fitted_order")
assert abs(got - 1.5) < 1e-6, f"errors 3 / n^1.5 have the order 1.5; you find {got:.3f}"
### BEGIN HIDDEN TESTS
got = number(fitted_order([10, 20, 30, 80], [1.0, 0.5, 0.1, 0.02]), "fitted_order")
assert abs(got - 1.96898) < 1e-4, f"four errors that are not on a line: you find {got:.3f}"
got = number(fitted_order(torch.tensor([5, 50]), torch.tensor([1.0, 1e-3], dtype=F64)), "fitted_order")
assert abs(got - 3) < 1e-6, f"two errors: you find {got:.3f}"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** errors against *calls of the network*, which is what a sampler costs. Where do the lines cross, and how steep are they?

# %% alt="Mean error at the end of sampling against calls of the network on logarithmic axes: a line of slope one for Euler, one of slope two for Heun, which crosses it at few calls."
fig, ax = plt.subplots(figsize=(7, 2.8))
steps = [3, 5, 9, 18, 36, 72, 144]
for name, sampler, calls, colour in (("Euler (DDIM)", euler, 1, PALETTE[1]), ("Heun", heun, 2, PALETTE[0])):
    errors = errors_of(sampler, steps)
    ax.loglog([calls * n - calls + 1 for n in steps], errors, "o-", ms=4, color=colour, label=name)
    print(f"{name}: order {fitted_order(steps[4:], errors[4:]):.2f}; error at 5 steps {errors[1]:.2f}")
ax.set(xlabel="calls of the network", ylabel="mean error at the end", title="Two samplers, one exact network")
ax.legend()
plt.show()


# %% [markdown]
# **Explain** (1 point, read by a person). With very few steps the method of higher order loses, even step for step. Why? Say what the corrector of a long step does with its second slope, and what this means for the choice of a sampler if you can afford ten calls.

# %% [markdown] nbgrader={"grade": true, "grade_id": "sampler_why", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The order says how fast errors fall once steps are short, not how large they are. EDM's grid with $n=5$ goes from $\sigma=80$ to 17.5, 2.5, 0.17, 0.002 and 0: the third step crosses all levels at which the denoiser changes from "the mean of everything" to "this mode". From an exact state at 2.5 Euler lands 0.68 from the exact state at 0.17. The slope there is $(x-D)/\sigma$ with a small $\sigma$: near a mode of width 0.15 an error $\delta$ of the state changes it by about $3\,\delta$. The corrector gives this slope half the weight, over a step of length 2.35, and ends 1.9 away: it has made the error three times larger. Euler uses the slope at the start alone, where the state is right.
#
# With ten calls I would compare Euler at 10 steps and Heun at 5 by what they cost, calls, and take what measures better. On this problem that is Euler for anything below 20 calls or so; a grid made for few steps, or a distilled network, would do better than either.
#
# *Marks.* ½ for the corrector's slope at a bad prediction, or for steps that are long against the change of the slope; ½ for a choice by calls and not by order.

# %% [markdown]
# ## Task 3: predict, then measure: guidance is not tilting (5 points)
#
# Classifier-free guidance samples with the score $\tilde s=s_u+w\,(s_c-s_u)$, where $s_u$ is the score of all data and $s_c$ that of one class, both at the noise level of the state. It is often said to sample from $p(x)^{1-w}p(x\mid c)^w$, the *tilted law*. Does it?
#
# **Derive.** Let all data be $\mathcal N(0,\tau^2)$ and one class $\mathcal N(m,s^2)$, with $s\le\tau$. With `EDM` ($a=1$, $b=\sigma$) the guided ODE $dx/d\sigma=-\sigma\tilde s$ is linear in $x$. Write
#
# - `guided_std`: the standard deviation of its samples, when it starts from $\mathcal N(0,\sigma_{\max}^2)$ with $\sigma_{\max}\to\infty$. *A way:* $d(x-x')/d\sigma$ for two solutions integrates to powers of $\tau^2+\sigma^2$ and $s^2+\sigma^2$.
# - `tilted_moments`: mean and standard deviation of the tilted law of any two one-dimensional densities, given as `NormalMixture`s, by quadrature. Where these are Gaussians, compare with what completing the square gives.
# - `guided_model`: the guided `DiffusionModel`, from one of the class and one of all data with the same process.
# - `guided_moments`: mean and standard deviation of `num` guided samples; `exact` and `euler` (or your `heun`) stand above.
#
# **Predict** before you run the measurement: for two classes $\mathcal N(\pm1,\frac14)$ and $w=4$, will guided samples lie further out than the tilted law or less far, and will they spread more or less? Write it down in the cell below, and come back to it after the figures (1 point, read by a person): what did you measure, where were you wrong, and do the digits at the end of the task show the same?

# %% [markdown] nbgrader={"grade": true, "grade_id": "guidance_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer (before).* For Gaussians the tilted variance is a weighted *harmonic* mean, $1/\mathrm{std}^2=(1-w)/\tau^2+w/s^2$, the guided one a weighted *geometric* mean, $\tau^{1-w}s^w$, which for $w>1$ is smaller: with $\tau=1.12$, $s=0.5$, $w=4$ it is 0.04 against 0.27. All data with two classes have $\tau^2=1+\frac14$ but are no Gaussian, so that I expect the direction only: less spread than the tilted law. At high noise the classes overlap wherever the state is, so the guiding term pushes $w$ times as hard outwards; at low noise it vanishes, since the state has its class already, and nothing pulls back. I expect samples further out.
#
# *Later.* At $w=4$: mean 1.67 against 1.06, standard deviation 0.28 against 0.45; both directions as predicted, and the spread shrinks less than for Gaussians. The digits shift too: at $w=10$ their mean is 1.6 from that of the class (0.2 at $w=1$) and the margin has grown from 38 to 102 nats; but their spread stays as it was (0.19 to 0.21). In 64 dimensions a state has its class already at $\sigma\approx1$, so that guidance acts above it only, where the widths of all classes, about 0.2, are nothing against $\sigma$: the case of equal widths, a shift alone. (Guiding at $\sigma>1$ only gives the same numbers.)
#
# *Marks.* ½ for a prediction with a reason in both quantities; ½ for the comparison with numbers, digits included (an explanation of theirs is not asked for). A full answer may say that noising and tilting do not commute, as $\log\mathbb E[e^{w\ell}\mid x_t]\ne w\log\mathbb E[e^{\ell}\mid x_t]$.

# %% nbgrader={"grade": false, "grade_id": "guidance", "locked": false, "schema_version": 3, "solution": true, "task": false}
def guided_std(everything, label, scale):
    """Spread of guided samples for all data N(0, everything^2) and a class N(m, label^2); three numbers."""
    ### BEGIN SOLUTION
    return everything ** (1 - scale) * label**scale
    ### END SOLUTION


def tilted_moments(everything, label, scale):
    """Mean and standard deviation of the law proportional to everything^(1 - scale) label^scale."""
    ### BEGIN SOLUTION
    x = torch.linspace(-12, 12, 24_001, dtype=F64).unsqueeze(1)
    share = ((1 - scale) * everything.log_prob(x) + scale * label.log_prob(x)).softmax(0)
    mean = (share * x[:, 0]).sum()
    return mean.item(), (share * (x[:, 0] - mean).square()).sum().sqrt().item()
    ### END SOLUTION


def guided_model(everything, label, scale):
    """A DiffusionModel whose score is s_u + scale (s_c - s_u)."""

    ### BEGIN SOLUTION
    def noise(x, t):
        return (1 - scale) * everything.noise(x, t) + scale * label.noise(x, t)

    return DiffusionModel(noise, everything.process, "noise")
    ### END SOLUTION


def guided_moments(everything, label, scale, num, generator):
    """Mean and standard deviation of num guided samples, for two one-dimensional NormalMixtures."""
    ### BEGIN SOLUTION
    process = EDM()
    model = guided_model(exact(everything, process), exact(label, process), scale)
    x = euler(model, process.initial([num, 1], LIKE, generator), process.times(200))
    return x.mean().item(), x.std().item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "guidance_spread", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
for label in (0.5, 2.0):
    got = number(guided_std(2.0, label, 1.0), "guided_std")
    assert abs(got - label) < 1e-9, f"w = 1 is the class itself, with std {label}; you find {got:.4f}"
assert abs(number(guided_std(2.0, 0.5, 0.0), "guided_std") - 2) < 1e-9, "w = 0 is all data"
assert abs(number(guided_std(1.3, 1.3, 5.0), "guided_std") - 1.3) < 1e-9, "equal widths: guidance only shifts"


### BEGIN HIDDEN TESTS
def slope_of_flow(everything, label, scale):
    """Spread of the exact linear flow, by Heun's method from sigma = 200."""
    wide, narrow = gaussian(0, everything), gaussian(0, label)
    x = torch.tensor([[200.0]], dtype=F64)
    levels = EDM(sigma_max=200).times(800)
    score = lambda x, t: (1 - scale) * wide.score(x, 1, t) + scale * narrow.score(x, 1, t)  # noqa: E731
    for t, s in pairwise(levels):
        first = -t * score(x, t)
        second = -s * score(x + (s - t) * first, s)
        x = x + (s - t) * (first + second) / 2
    return x.item()


for case in ((2.0, 0.5, 3.0), (1.0, 0.7, 2.0), (1.5, 1.0, 6.0), (1.2, 0.9, 0.5)):
    got, wanted = number(guided_std(*case), "guided_std"), slope_of_flow(*case)
    assert abs(got / wanted - 1) < 5e-3, f"tau, s, w = {case}: you find {got:.4f}, the ODE gives {wanted:.4f}"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "guidance_tilt", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_tilt(everything, label, scale, wanted, what):
    got = tilted_moments(everything, label, scale)
    assert got is not None and len(got) == 2, "tilted_moments returns a mean and a standard deviation"
    same(torch.tensor([float(v) for v in got], dtype=F64), torch.tensor(wanted, dtype=F64), what, 1e-3)


check_tilt(gaussian(0, 2), gaussian(1, 0.5), 1.0, [1.0, 0.5], "w = 1: mean and std of the class")
### BEGIN HIDDEN TESTS
check_tilt(gaussian(0, 2), gaussian(1, 0.5), 3.0, [12 / 11.5, 11.5**-0.5], "two Gaussians, w = 3")
check_tilt(gaussian(0, 1), gaussian(-1, 1), 2.0, [-2.0, 1.0], "two Gaussians of one width, w = 2")
check_tilt(gaussian(0, 2), gaussian(1, 0.5), 0.0, [0.0, 2.0], "w = 0: mean and std of all data")
p = NormalMixture.joined([gaussian(1, 0.5), gaussian(-1, 0.5)])
check_tilt(p, gaussian(1, 0.5), 4.0, [1.06170, 0.45015], "two classes, w = 4")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "guidance_model", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_guided(process, t, scale, seed):
    everything, label = random_mixture(2, seed), random_mixture(2, seed + 2)
    a, b = process.coefficients(torch.tensor(t, dtype=F64))
    x = normal([10, 2], seed + 4)
    s_u, s_c = everything.score(x, a, b), label.score(x, a, b)
    model = guided_model(exact(everything, process), exact(label, process), scale)
    assert isinstance(model, DiffusionModel), "guided_model returns a DiffusionModel"
    same(
        model.score(x, t), s_u + scale * (s_c - s_u), f"{type(process).__name__}, w = {scale}: the score of your model"
    )


check_guided(EDM(), 0.7, 1.0, 40)
check_guided(EDM(), 0.7, 0.0, 41)
### BEGIN HIDDEN TESTS
check_guided(EDM(), 1.7, 4.0, 42)
check_guided(VP(), 0.4, 2.5, 43)
check_guided(FlowPath(), 0.6, 7.0, 44)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "guidance_measured", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_moments(scale, seed, wanted, tolerance):
    label = gaussian(1, 0.5)
    everything = NormalMixture.joined([label, gaussian(-1, 0.5)])
    got = guided_moments(everything, label, scale, 8000, runtime.generator(seed))
    assert got is not None and len(got) == 2, "guided_moments returns a mean and a standard deviation"
    for value, right, name in zip(got, wanted, ("mean", "standard deviation")):
        assert abs(number(value, name) - right) < tolerance, f"w = {scale:g}: you measure the {name} {float(value):.3f}"


check_moments(1.0, 45, (1.0, 0.5), 0.04)
### BEGIN HIDDEN TESTS
check_moments(4.0, 46, (1.6674, 0.2882), 0.03)
check_moments(2.0, 47, (1.3157, 0.3583), 0.03)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** guided samples (bars) against the tilted law (its mean, and a standard deviation to both sides) for $w=4$: where, and how wide?

# %% alt="A histogram of guided samples, narrower and further out than the band of the tilted law, whose mean stays near that of the class."
label = gaussian(1, 0.5)
everything = NormalMixture.joined([label, gaussian(-1, 0.5)])
process, grid = EDM(), torch.linspace(-1, 3.2, 400, dtype=F64).unsqueeze(1)
model = guided_model(exact(everything, process), exact(label, process), 4.0)
x = euler(model, process.initial([8000, 1], LIKE, runtime.generator(48)), process.times(200))
mean, std = tilted_moments(everything, label, 4.0)
fig, ax = plt.subplots(figsize=(7, 2.4))
ax.hist(x[:, 0].numpy(), 60, density=True, color=PALETTE[4], label="guided")
ax.axvspan(mean - std, mean + std, color=PALETTE[1], alpha=0.2, lw=0, zorder=0)
ax.axvline(mean, color=PALETTE[1], label="tilted law")
ax.plot(grid, label.log_prob(grid).exp(), "k:", label="class")
ax.set(xlabel="x", ylabel="density", title="Two classes on a line, w = 4")
ax.legend()
plt.show()
for scale in (1.0, 2.0, 4.0):
    mean, std = guided_moments(everything, label, scale, 8000, runtime.generator(48))
    other = tilted_moments(everything, label, scale)
    print(f"w = {scale:g}: guided {mean:.2f} +- {std:.2f}, tilted law {other[0]:.2f} +- {other[1]:.2f}")

# %% [markdown]
# On real data: one Gaussian for each of the ten digits, and samples guided towards the 8. **What to look for:** a line may mislead. Which of the two, the shift outwards or the loss of spread, is there in 64 dimensions too? Read it from the numbers as well as from the images; the margin is $\log p(x\mid 8)$ minus that of the likeliest other digit.

# %% alt="Three rows of images of the digit eight from the same noises: with a larger scale the strokes get darker and the background lighter, and the images remain different from each other."
images, kinds = digits()
classes = [NormalMixture.fit(images[kinds == k].double(), 1, regularisation=0.005) for k in range(10)]
small = EDM(sigma_max=20)
both = exact(NormalMixture.joined(classes), small), exact(classes[8], small)
fig, axes = plt.subplots(3, 1, figsize=(7.6, 2.4))
for ax, scale in zip(axes, (1.0, 3.0, 10.0)):
    start = small.initial([100, 64], LIKE, runtime.generator(49))
    x = euler(guided_model(*both, scale), start, small.times(40))
    log = torch.stack([p.log_prob(x) for p in classes])
    margin = (log[8] - torch.cat([log[:8], log[9:]]).max(0).values).mean()
    off = (x.mean(0) - classes[8].means[0]).norm()
    ax.imshow(torch.cat(list(x[:14].reshape(-1, 8, 8)), 1), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[3.5], yticklabels=[f"w = {scale:g}"])
    ax.grid(False)
    print(
        f"w = {scale:g}: margin {margin:.0f} nats, mean {off:.2f} from that of the class, spread of a pixel {x.std(0).mean():.3f}"
    )
plt.show()


# %% [markdown]
# ## Task 4: straight paths (5 points)
#
# A flow with the velocity $u(x,t)=\mathbb E[x_1-z\mid x_t=x]$, $x_t=(1-t)z+tx_1$, turns noise $z$ into data $x_1$. How pairs $(z,x_1)$ are made decides how straight its paths are, and so how many steps they need. For $z\sim\mathcal N(0,1)$ and $x_1\sim\mathcal N(m,s^2)$ derive
#
# - `flow_velocity`, $u$ when $z$ and $x_1$ are independent. *A way:* $x_t$ and $x_1-z$ are jointly Gaussian.
# - `straight_velocity`, $u$ when each $z$ is paired with where that flow takes it, $x_1=m+sz$.
# - `straightness`, for any velocity: follow Euler's method from $z$ in `num_steps` equal steps, from $t=0$ to 1, and return the mean over steps and batch of $\lVert u(x_t,t)-(x_1-z)\rVert^2$, summed over features, where $x_1$ is the end of that path. Zero means straight.

# %% nbgrader={"grade": false, "grade_id": "paths", "locked": false, "schema_version": 3, "solution": true, "task": false}
def flow_velocity(x, t, mean, std):
    """Velocity at points x (any shape) and time t for independent pairs of N(0, 1) and N(mean, std^2)."""
    ### BEGIN SOLUTION
    variance = (1 - t) ** 2 + t**2 * std**2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)
    ### END SOLUTION


def straight_velocity(x, t, mean, std):
    """The same for the pairs (z, mean + std z)."""
    ### BEGIN SOLUTION
    return mean + (std - 1) * (x - t * mean) / (1 - t + t * std)
    ### END SOLUTION


def straightness(velocity, z, num_steps):
    """A number >= 0; velocity(x, t) takes points (batch, dim) and a number t."""
    ### BEGIN SOLUTION
    x, seen = z, []
    for i in range(num_steps):
        seen.append(velocity(x, i / num_steps))
        x = x + seen[-1] / num_steps
    return (torch.stack(seen) - (x - z)).square().sum(-1).mean().item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "paths_independent", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x = torch.linspace(-2, 3, 6, dtype=F64)
same(flow_velocity(x, 0.0, 1.5, 0.5), 1.5 - x, "t = 0: the mean of the data is all that is known of x_1")
same(flow_velocity(x, 1.0, 1.5, 0.5), x, "t = 1: the mean of the noise, 0, is all that is known of z")
zero = torch.zeros(1, dtype=F64)
same(straight_velocity(zero, 0.0, 1.5, 0.5), torch.full((1,), 1.5, dtype=F64), "from z = 0 the way is m")
### BEGIN HIDDEN TESTS
for t, mean, std in ((0.3, 1.5, 0.5), (0.8, -1.0, 2.0)):
    z, n = normal([100_000, 2], 50).T
    x, way = (1 - t) * z + t * (mean + std * n), mean + std * n - z
    line = torch.cov(torch.stack([x, way]))[0]
    wanted = way.mean() + line[1] / line[0] * (torch.linspace(-1, 1, 5, dtype=F64) - x.mean())
    got = flow_velocity(torch.linspace(-1, 1, 5, dtype=F64), t, mean, std)
    same(got, wanted, f"independent pairs, t = {t}, m = {mean}, s = {std}", 0.03)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "paths_paired", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
z = torch.linspace(-2, 2, 5, dtype=F64)
same(z + straight_velocity(z, 0.0, 1.5, 0.5), 1.5 + 0.5 * z, "one Euler step from t = 0 to 1 should give m + s z")
### BEGIN HIDDEN TESTS
for t, mean, std in ((0.25, -2.0, 0.3), (0.9, 1.0, 3.0)):
    got = straight_velocity((1 - t) * z + t * (mean + std * z), t, mean, std)
    same(got, mean + (std - 1) * z, f"paired, t = {t}, m = {mean}, s = {std}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "paths_straightness", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_straightness(velocity, z, num_steps, wanted, what):
    got = number(straightness(velocity, z, num_steps), "straightness")
    assert abs(got - wanted) < 1e-6 * max(1, wanted), f"{what}: you find {got:.4f}, expected {wanted:.4f}"


z = normal([100, 2], 51)
check_straightness(lambda x, t: torch.full_like(x, 3.0), z, 10, 0.0, "constant velocity")
### BEGIN HIDDEN TESTS
for n in (2, 9):  # every path goes the same way, and its steps are the velocities / n
    speeds = torch.tensor([3 * (i / n) ** 2 for i in range(n)], dtype=F64)
    wanted = 3 * speeds.var(correction=0).item()
    check_straightness(lambda x, t: torch.full_like(x, 3.0) * t**2, normal([7, 3], 52), n, wanted, "velocity 3 t^2")
x, ways = normal([50, 1], 53), []
for i in range(4):  # u = -x: x shrinks by 3/4 a step
    ways.append(-x * 0.75**i)
wanted = (torch.stack(ways) - (0.75**4 - 1) * x).square().mean().item()
check_straightness(lambda x, t: -x, x, 4, wanted, "velocity -x")
### END HIDDEN TESTS

# %% [markdown]
# In more dimensions nobody knows the map beforehand. *Minibatch optimal transport* pairs the noises and data of a batch such that the sum of squared distances is smallest, and trains on these pairs.
#
# - `ot_pairs` does that with `linear_sum_assignment`, imported above. Return the noise as it came and the data in their new order.
# - `excess_cost` says how far from optimal transport such pairs are: the mean of $\lVert x_1-z\rVert^2$ over the pairs of `num_batches` batches, minus $W_2^2=\lVert m\rVert^2+d\,(1-s)^2$, for $z\sim\mathcal N(0,I_d)$ and $x_1\sim\mathcal N(m,s^2I_d)$. Why can its expectation not be negative, whatever the size of the batch?

# %% nbgrader={"grade": false, "grade_id": "pairing", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ot_pairs(noise, data):
    """noise and data, both (batch, dim), the data in the order that makes the sum of squared distances smallest."""
    ### BEGIN SOLUTION
    rows, columns = linear_sum_assignment(torch.cdist(noise, data).square().numpy())
    return noise, data[torch.as_tensor(columns)]
    ### END SOLUTION


def excess_cost(pair, mean, std, batch, num_batches, generator):
    """Mean cost of the pairs above W_2^2; pair is a function such as ot_pairs, mean a tensor of shape (dim,)."""
    ### BEGIN SOLUTION
    total = 0.0
    for _ in range(num_batches):
        z, n = torch.randn(2, batch, len(mean), dtype=F64, generator=generator)
        z, x1 = pair(z, mean + std * n)
        total += (x1 - z).square().sum(1).mean().item() / num_batches
    return total - mean.square().sum().item() - len(mean) * (1 - std) ** 2
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pairing_matching", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
z, x1 = normal([60, 1], 54), 3 + 2 * normal([60, 1], 55)
got = ot_pairs(z, x1)
assert got is not None and len(got) == 2, "ot_pairs returns noise and data"
same(got[0], z, "the noise, as it came")
order = z[:, 0].argsort()
same(got[1][order], x1.sort(0).values, "on a line, the k-th smallest noise goes with the k-th smallest datum")
### BEGIN HIDDEN TESTS
for dim, seed in ((2, 56), (5, 57)):
    z, x1 = normal([40, dim], seed), 1 + 0.5 * normal([40, dim], seed + 10)
    kept, moved = ot_pairs(z, x1)
    same(kept, z, "the noise, as it came")
    same(moved.sort(0).values, x1.sort(0).values, "each datum is used once")
    distance = (z.unsqueeze(1) - x1).square().sum(-1)
    best = distance[linear_sum_assignment(distance.numpy())].sum().item()
    cost = (kept - moved).square().sum().item()
    assert abs(cost - best) < 1e-9 * best, f"{dim} dimensions: the cost is {cost:.3f}, the smallest is {best:.3f}"
z = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64)  # the sum of distances is smaller the other way round
x1 = torch.tensor([[1.0, 0.0], [1.9, 0.9]], dtype=F64)
same(ot_pairs(z, x1)[1], x1, "noise (0, 0) and (1, 0), data (1, 0) and (1.9, 0.9)")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "pairing_cost", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def independent(noise, data):
    return noise, data


def check_excess(pair, mean, std, batch, wanted, tolerance, what):
    mean = torch.tensor(mean, dtype=F64)
    got = number(excess_cost(pair, mean, std, batch, 6000 // batch, runtime.generator(58)), "excess_cost")
    assert abs(got - wanted) < tolerance, f"{what}: you find {got:.3f}, expected about {wanted:.3f}"


check_excess(independent, [2.0, 0.0], 0.5, 100, 2.0, 0.25, "independent pairs: 2 d s")
### BEGIN HIDDEN TESTS
check_excess(independent, [1.0, 1.0, -1.0], 2.0, 60, 12.0, 0.9, "independent pairs in 3 dimensions: 2 d s")


def assigned(noise, data):
    return noise, data[linear_sum_assignment(torch.cdist(noise, data).square().numpy())[1]]


check_excess(assigned, [0.3, 0.0], 0.5, 16, 0.448, 0.1, "best pairs in batches of 16")
check_excess(assigned, [0.3, 0.0], 0.5, 200, 0.054, 0.08, "best pairs in batches of 200")
### END HIDDEN TESTS

# %% [markdown]
# Now train three small flows from noise to a circle, on pairs that are independent, or from your `ot_pairs` in batches of 16 or of 256. **What to look for:** Euler's method in *one* step (blue) against the data (grey), and the straightness $S$. Small batches already make paths straight; what is it that larger ones still mend?

# %%
def circle(num, generator):
    """Points near a circle of radius 1.5."""
    direction = torch.nn.functional.normalize(torch.randn(num, 2, generator=generator), dim=1)
    return (1.5 + 0.1 * torch.randn(num, 1, generator=generator)) * direction


def train_flow(pair, batch, seed=0, num_pairs=6144, num_steps=700):
    """Velocity network, trained on pairs that were made beforehand."""
    torch.manual_seed(seed)
    g = runtime.generator(seed)
    parts = [pair(torch.randn(batch, 2, generator=g), circle(batch, g)) for _ in range(num_pairs // batch)]
    pairs = torch.cat([z for z, _ in parts]), torch.cat([x1 for _, x1 in parts])
    network = mlp(3, 2, width=64, depth=4, activation=torch.nn.SiLU)

    def velocity(x, t):
        return network(torch.cat([x, torch.as_tensor(t).expand(len(x), 1)], 1))

    def loss(z, x1):
        t = torch.rand(len(z), 1, generator=g)
        return (velocity((1 - t) * z + t * x1, t) - (x1 - z)).square().mean()

    fit(
        network,
        loss,
        num_steps=num_steps,
        data=pairs,
        batch_size=256,
        generator=g,
        lr=4e-3,
        schedule="cosine",
        progress=False,
    )
    return velocity


# %% alt="Samples of one Euler step from three flows over a circle of data: independent pairs give a blob in the centre, pairs in batches of 16 a ring that is smeared inwards, of 256 nearly the data."
data, z = circle(2000, runtime.generator(60)), normal([2000, 2], 61).float()
fig, axes = plt.subplots(1, 3, figsize=(7.6, 3.1), sharex=True, sharey=True)
for ax, (name, pair, batch) in zip(
    axes, (("independent", independent, 256), ("OT, batch 16", ot_pairs, 16), ("OT, batch 256", ot_pairs, 256))
):
    velocity = train_flow(pair, batch)
    with torch.no_grad():
        end, bend = z + velocity(z, 0.0), straightness(velocity, z, 20)
    distance = sliced_wasserstein(end, data, generator=runtime.generator(62))
    ax.scatter(*data[:800].T, s=3, color="#bbbbbb")
    ax.scatter(*end[:800].T, s=3, color=PALETTE[0])
    ax.set(title=f"{name}: S = {bend:.2f}", xlabel="$x_1$", aspect="equal")
    print(f"{name}: straightness {bend:.3f}, sliced Wasserstein distance after one step {distance:.3f}")
axes[0].set(ylabel="$x_2$", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
plt.show()


# %% [markdown]
# ## Task 5: find the faults (4 points)
#
# The following functions are meant to be DDIM with any amount of noise, for processes whose clock runs from noise to data (`VP`, `DDPM`, `EDM`), and the loss of consistency training. All run without complaint.
#
# - `ddim_sample` goes from states at the first of `times` to states at the last. With $\eta=0$ it is deterministic; for every $\eta$, a step from $t$ to $s$ takes the estimates of data and noise, and returns $a_s$ times the data and noise of the standard deviation $b_s$, of which the part `std` is fresh, $\mathrm{std}^2=\eta^2b_s^2\,(1-\sigma_s^2/\sigma_t^2)$;
# - `consistency` is the function $f(x,\sigma)$ of the network; it is right: $f(x,\sigma_{\min})=x$;
# - `consistency_loss` compares $f$ at two neighbouring levels $\sigma_{\text{low}}<\sigma_{\text{high}}$ for states that lie, up to the width of the gap, on the same path, and divides by the gap.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def ddim_sample(model, x, times, eta=0.0, generator=None):
    smallest = times[-2]
    for t, s in pairwise(times):
        a, b = model.process.coefficients(t)
        a_s, b_s = model.process.coefficients(torch.maximum(s, smallest))
        data, noise = model.data_and_noise(x, t)
        std = eta * b_s * (1 - (b_s * a / (a_s * b)) ** 2).clamp_min(0).sqrt()
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = a_s * data + (b_s - std) * noise + std * fresh
    return x


SIGMA_MIN, SIGMA_DATA = 0.002, 1.0


def consistency(network, x, sigma):
    skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    out = (sigma - SIGMA_MIN) * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    return skip * x + out * network(x / (sigma**2 + SIGMA_DATA**2).sqrt(), sigma.log() / 4)


def add_noise(x, sigma, generator):
    return x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)


def consistency_loss(network, x, low, high, generator=None):
    near = consistency(network, add_noise(x, low, generator), low)
    with torch.no_grad():
        far = consistency(network, add_noise(x, high, generator), high)
    distance = ((far - near).square().sum(1, keepdim=True) + 0.03**2).sqrt() - 0.03
    return (distance / (high - low)).mean()


loss_as_found = consistency_loss


# %% [markdown]
# There are four faults, two in `ddim_sample` and two in `consistency_loss`. Do not stare at them; experiment. Data that are a single point are sampled without any error by every step of DDIM; for data $\mathcal N(0,1)$ and EDM the exact consistency function is $f(x,\sigma)=x\sqrt{(1+\sigma_{\min}^2)/(1+\sigma^2)}$; and a network may be any function, also one that answers with another parameter at each level. Then write both functions once more, whole and under the same names.

# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def ddim_sample(model, x, times, eta=0.0, generator=None):  # noqa: F811
    for t, s in pairwise(times):
        a, b = model.process.coefficients(t)
        a_s, b_s = model.process.coefficients(s)
        data, noise = model.data_and_noise(x, t)
        std = eta * b_s * (1 - (b_s * a / (a_s * b)) ** 2).clamp_min(0).sqrt()
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = a_s * data + (b_s**2 - std**2).clamp_min(0).sqrt() * noise + std * fresh
    return x


def consistency_loss(network, x, low, high, generator=None):
    noise = add_noise(torch.zeros_like(x), 1.0, generator)
    with torch.no_grad():
        near = consistency(network, x + low * noise, low)
    far = consistency(network, x + high * noise, high)
    distance = ((far - near).square().sum(1, keepdim=True) + 0.03**2).sqrt() - 0.03
    return (distance / (high - low)).mean()


### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "faults_last", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
point = NormalMixture(torch.tensor([[3.0, -1.0]], dtype=F64), 1e-12 * torch.eye(2, dtype=F64).unsqueeze(0))
x = DDPM().initial([500, 2], LIKE, runtime.generator(70))
end = ddim_sample(exact(point, DDPM()), x, DDPM().times(25), 0.0, runtime.generator(71))
off = (end - point.means[0]).norm(dim=1).mean().item()
assert off < 0.01, f"data that are one point: samples are {off:.3f} away from it on average"
### BEGIN HIDDEN TESTS
p = random_mixture(2, 72)
for process, times in ((EDM(), EDM().times(30)), (VP(), VP().times(40)), (DDPM(), DDPM().times(10)[:-1])):
    x = process.initial([40, 2], LIKE, runtime.generator(73))
    model = exact(p, process)
    same(
        ddim_sample(model, x, times, 0.0, runtime.generator(74)),
        euler(model, x, times),
        f"eta = 0, {type(process).__name__}",
        1e-4,
    )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_noise", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def after_one_step(p, process, t, s, x, eta, seed):
    """States that the model is shown at s; the sampling goes on to lower levels."""
    shown = {}

    def denoiser(x, t):
        shown[round(t.flatten()[0].item(), 6)] = x
        return p.denoise(x, *process.coefficients(t))

    times = torch.tensor([t, s, s / 2, s / 4], dtype=F64)
    ddim_sample(DiffusionModel(denoiser, process, "data"), x, times, eta, runtime.generator(seed))
    assert s in shown, "the model is not asked at the second of the times"
    return shown[s]


once = after_one_step(gaussian(0, 1), EDM(), 2.0, 1.0, torch.ones(20_000, 1, dtype=F64), 1.0, 75)
# From x = 1 at sigma = 2, the data are estimated as 1/5, the noise as 2/5, and std^2 is 3/4.
assert abs(once.mean() - 0.4) < 0.03, f"eta = 1, from x = 1 at sigma = 2 to sigma = 1: the mean is {once.mean():.3f}"
assert abs(once.var() - 0.75) < 0.03, f"eta = 1, from x = 1 at sigma = 2 to sigma = 1: the variance is {once.var():.3f}"


### BEGIN HIDDEN TESTS
def check_step(process, t, s, eta, seed):
    p, x = random_mixture(2, seed), normal([1, 2], seed + 2)
    (a, b), (a_s, b_s) = (process.coefficients(torch.tensor(v, dtype=F64)) for v in (t, s))
    data, noise = exact(p, process).data_and_noise(x, t)
    std = eta * b_s * (1 - (b_s * a / (a_s * b)) ** 2).sqrt()
    wanted = a_s * data + (b_s**2 - std**2).sqrt() * noise
    end = after_one_step(p, process, t, s, x.expand(40_000, 2), eta, seed + 3)
    same(end.std(0), std.expand(2), f"{type(process).__name__}, eta = {eta}: the spread of one step", 0.02)
    same(end.mean(0), wanted[0], f"{type(process).__name__}, eta = {eta}: the mean of one step", 0.03)


check_step(VP(), 0.6, 0.4, 1.0, 76)
check_step(DDPM(), 400.0, 200.0, 0.5, 77)
check_step(EDM(), 3.0, 1.0, 0.8, 78)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_pair", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def exact_network(x, c):
    """The network that makes consistency exact for data N(0, 1)."""
    sigma = (4 * c).exp()
    x = x * (sigma**2 + 1).sqrt()
    skip, out = 1 / ((sigma - SIGMA_MIN) ** 2 + 1), (sigma - SIGMA_MIN) / (sigma**2 + 1).sqrt()
    return (((1 + SIGMA_MIN**2) / (1 + sigma**2)).sqrt() - skip) * x / out


def levels(low, high, num):
    return torch.full((num, 1), low, dtype=F64), torch.full((num, 1), high, dtype=F64)


x = normal([20_000, 1], 79)
gap = (
    number(consistency_loss(exact_network, x, *levels(1.0, 1.001, 20_000), runtime.generator(80)), "consistency_loss")
    * 0.001
)
assert gap < 0.01, f"the exact function, levels 1 and 1.001: its values are still {gap:.3f} apart"
### BEGIN HIDDEN TESTS
for low, high, seed in ((1.0, 1.2, 81), (0.3, 0.31, 82), (5.0, 6.0, 83)):
    x, n = normal([100_000, 2], seed).T.unsqueeze(-1)
    f = [(x + s * n) * math.sqrt((1 + SIGMA_MIN**2) / (1 + s**2)) for s in (low, high)]
    wanted = ((((f[1] - f[0]).square() + 0.03**2).sqrt() - 0.03) / (high - low)).mean().item()
    got = number(
        consistency_loss(exact_network, x, *levels(low, high, len(x)), runtime.generator(seed)), "consistency_loss"
    )
    assert abs(got / wanted - 1) < 0.03, (
        f"the exact function, levels {low} and {high}: {got:.3f}, expected {wanted:.3f}"
    )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_target", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def level_gradients(low, high, seed):
    """Gradients for a network that answers with one parameter at the lower level, another at the higher."""
    lower, higher = (torch.zeros(1, dtype=F64, requires_grad=True) for _ in range(2))
    border = math.log(math.sqrt(low * high)) / 4
    network = lambda x, c: torch.where(c < border, lower, higher) + 0 * x  # noqa: E731
    x = 3 + 0.1 * normal([2000, 1], seed)
    loss = consistency_loss(network, x, *levels(low, high, 2000), runtime.generator(seed))
    return torch.autograd.grad(loss, [lower, higher], materialize_grads=True)


below, above = level_gradients(1.0, 2.0, 84)
assert above.abs() > 0, "the answer at the higher level gets no gradient: what shall it learn?"
### BEGIN HIDDEN TESTS
for low, high in ((1.0, 2.0), (0.1, 0.12)):
    below, above = level_gradients(low, high, 85)
    assert below.abs() == 0, "the answer at the lower level is the target, and yet it gets a gradient"
    out = (high - SIGMA_MIN) / math.sqrt(high**2 + 1) / (high - low)
    assert 0 < above.abs() < 1.01 * out, "the gradient at the higher level has not the right size"
### END HIDDEN TESTS

# %% [markdown]
# Data are $\pm1$ with the spread 0.2, and a network is trained with your loss on ladders of 4 and of 40 levels between 0.002 and 10, and with the loss as you found it, of which only the printed spread fits the page. **What to look for:** samples of a *single* call at $\sigma=10$. What does a coarse ladder do to the two bumps? *A hint:* the target looks at one noisy state of this one datum; what it should follow is the mean over all data that could have led there.

# %%
def train_consistency(loss, num_levels, seed=0, num_steps=800):
    torch.manual_seed(seed)
    g, law = runtime.generator(seed), NormalMixture.joined([gaussian(1, 0.2), gaussian(-1, 0.2)])
    steps = EDM(SIGMA_MIN, 10.0).times(num_levels)[:-1].flip(0).float()
    network = mlp(2, 1, width=64, depth=4, activation=torch.nn.SiLU)
    ask = lambda x, c: network(torch.cat([x, c], 1))  # noqa: E731

    def step():
        index = torch.randint(num_levels - 1, [256, 1], generator=g)
        return loss(ask, law.sample(256, g).float(), steps[index], steps[index + 1], g)

    fit(network, step, num_steps=num_steps, lr=3e-3, schedule="cosine", progress=False)
    with torch.no_grad():
        return consistency(ask, 10 * torch.randn(8000, 1, generator=g), torch.full((8000, 1), 10.0))[:, 0]


# %% alt="Densities of one-step samples of the repaired loss: with 4 levels blurred bumps, with 40 levels two bumps nearly as in the data."
law = NormalMixture.joined([gaussian(1, 0.2), gaussian(-1, 0.2)])
grid = torch.linspace(-2, 2, 300, dtype=F64).unsqueeze(1)
fig, ax = plt.subplots(figsize=(7, 2.4))
ax.plot(grid, law.log_prob(grid).exp(), "k:", label="data")
for name, loss, num, colour in (
    ("as found, 40 levels", loss_as_found, 40, None),
    ("yours, 4 levels", consistency_loss, 4, PALETTE[1]),
    ("yours, 40 levels", consistency_loss, 40, PALETTE[0]),
):
    ends = train_consistency(loss, num)
    if colour:
        ax.hist(ends.numpy(), 80, range=(-2, 2), density=True, histtype="step", lw=1.8, color=colour, label=name)
    print(f"{name}: standard deviation {ends.std():.3g}, data {math.sqrt(1.04):.3g}")
ax.set(xlabel="x", ylabel="density", title="One call of a consistency model")
ax.legend()
plt.show()

# %% [markdown]
# ## Task 6: a table of samplers (3 points)
#
# **A review** (3 points, read by a person). A paper proposes a sampler for pretrained diffusion models. Its table, for one network, one seed and 5000 images:
#
# | sampler | steps | guidance scale $w$ | Fréchet distance |
# |---|---|---|---|
# | DDIM | 50 | 1 | 9.8 |
# | Heun | 10 | 1 | 9.1 |
# | ours, which asks the network three times a step | 10 | 2 | 7.4 |
# | training images, against other training images | | | 5.9 |
#
# "Our sampler needs a fifth of the steps of DDIM and approximates the data distribution better." Write the paragraph of the review, in at most 220 words: what does the table compare, and what not; which two experiments do you ask for, of which one can tell the error of the solver from that of the network; and which conclusion would you accept now?
#
# One point is for what the table compares, with numbers; one for experiments that could prove you wrong; one for the conclusion.

# %% [markdown] nbgrader={"grade": true, "grade_id": "review", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Steps are no cost. In calls the rows are 50 (DDIM), 19 (Heun: $2\cdot10-1$) and 30, and guidance asks two networks, or one twice, in each: 60. So the new sampler is the dearest row, and Heun the cheapest. It is also the only guided one, and guidance with $w=2$ samples another law, narrower than the class and further out; a Fréchet distance in features may fall by that alone, whatever the solver does. The floor of 5.9, from finite samples, is most of every number: above it are 3.9, 3.2 and 1.5, from a single seed.
#
# I ask for (1) all samplers at equal calls (say 10, 20, 40, 80), $w=1$ and $w=2$ in each, five seeds, with recall or another measure of spread beside the distance; (2) the solver's error alone: distance of the ends from those of a solver with very many steps, from the same noises and for the same network; or a mixture of Gaussians, where the denoiser is exact, so that all that is left is the solver. A sampler that is better there and at equal $w$ would prove me wrong.
#
# I would accept that this configuration, sampler and guidance together, has a lower Fréchet distance. I would not accept "fewer calls", nor "approximates the data distribution better": neither was measured.
#
# *Marks.* 1 for calls (½) and for the guidance as a second cause or the floor and the seed (½). 1 for equal calls and equal $w$ (½) and an experiment that isolates the solver (½). 1 for a conclusion that keeps sampler and guidance together and does not speak of the distribution of the data.
