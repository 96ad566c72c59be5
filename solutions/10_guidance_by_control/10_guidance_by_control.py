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
# # Exercises 10: Guidance by control
#
# Read [chapter 10](../../chapters/10_guidance_by_control.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 The value of a state and the cost of a path | 4 | 4 | |
# | 2 What a shifted input costs | 2 | 2 | |
# | 3 A step of NDTM | 4 | 4 | |
# | 4 Predict, then measure: explicit against implicit | 6 | 4 | 2 |
# | 5 Find the faults | 4 | 4 | |
# | 6 Sharper than the posterior | 5 | 2 | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.diffusion` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - A state is $x_t=a_tx_0+b_tn$ with $n\sim\mathcal N(0,I)$. A model gives $\hat x_0(x,t)=\mathbb E[x_0\mid x_t=x]$ and $\hat\epsilon(x,t)$, with $x=a_t\hat x_0+b_t\hat\epsilon$. Here they are exact, because the data come from mixtures of Gaussians.
# - One step of sampling goes from $t$ to $s$, nearer to the data. The DDIM kernel is $p(x_s\mid x_t)=\mathcal N(\mu(x_t),c_1^2I)$,
# $$\mu(x)=a_s\hat x_0(x,t)+c_2\,\hat\epsilon(x,t),\qquad c_1=\eta\,\frac{b_s}{b_t}\sqrt{1-a_t^2/a_s^2},\qquad c_2=\sqrt{b_s^2-c_1^2}$$
# (with $a^2+b^2=1$, as for all chains here).
# - With $k=a_s/a_t$ and $c_\Delta=c_2-k\,b_t$ the same mean is $\mu(x)=k\,x+c_\Delta\,\hat\epsilon(x,t)$. `kernel_numbers` below returns $k,c_\Delta,c_1,c_2$. In the last step, to the data, $c_1=c_2=0$.
# - A measurement is $y=h(x_0)+\sigma n$. Its cost is $\Phi(x_0)=-\log p(y\mid x_0)$ in nats, with the constant. Guided chains are $q$, unguided ones $p$.
# - Points are rows, with any number of batch dimensions in front. Tensors come in double precision; keep it.

# %%
import math

import matplotlib.pyplot as plt
import torch

from refimpl import runtime
from refimpl.data import NormalMixture, digits
from refimpl.diffusion import DDPM, METHODS, VP, DiffusionModel, Measurement, exact_model, guided_start
from refimpl.plots import PALETTE, say, use_course_style

use_course_style()
F64 = torch.float64
CHAIN = DDPM()


# %% nbgrader={"grade": false, "grade_id": "kernel", "locked": true, "schema_version": 3, "solution": false, "task": false}
def kernel_numbers(process, t, s, eta):
    """k, c_Delta, c_1 and c_2 of the step from t to s, for processes with a^2 + b^2 = 1."""
    (a, b), (a_s, b_s) = process.coefficients(t), process.coefficients(s)
    c1 = eta * (b_s / b) * (1 - (a / a_s) ** 2).sqrt()
    c2 = (b_s**2 - c1**2).sqrt()
    return a_s / a, c2 - a_s / a * b, c1, c2


def normal(mean, covariance):
    """A single Gaussian as a NormalMixture, from nested lists."""
    return NormalMixture(torch.tensor([mean], dtype=F64), torch.tensor([covariance], dtype=F64))


def randn(*shape, seed):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def at(*levels):
    """Levels of the chain as times."""
    return [torch.tensor(float(level), dtype=F64) for level in levels]


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-8):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got, dtype=F64).detach().cpu(), torch.as_tensor(wanted, dtype=F64).detach()
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


# %% [markdown]
# ## Task 1: the value of a state and the cost of a path (4 points)
#
# Data on the line come from the mixture $\sum_jw_j\mathcal N(m_j,s_j^2)$, and $y=x_0+\sigma n$ was measured. The **value** of a state is what the best guidance can still make of it, $V_t(x)=-\log p(y\mid x_t=x)$.
#
# - `value` is $V_t(x)$ in closed form. *A way:* given $x_t=x$, data are again a mixture; `given_state` is for its weights, means and variances (use it or not, tests don't call it). What do they become when noise of variance $\sigma^2$ is added?
# - Practical methods don't know $V_t$ and use $\Phi(\hat x_0(x,t))$, the cost of the mean. This takes two steps: $V_t=-\log\mathbb E[e^{-\Phi}]\to\mathbb E[\Phi]\to\Phi(\mathbb E[x_0])$, expectations given $x_t=x$. `gaps` returns the errors of both in closed form, $\mathbb E[\Phi]-V_t$ and $\Phi(\hat x_0)-\mathbb E[\Phi]$. Why is the sign of each of them certain, and that of their sum not?

# %% nbgrader={"grade": false, "grade_id": "value", "locked": false, "schema_version": 3, "solution": true, "task": false}
def given_state(x, a, b, weights, means, stds):
    """Log-weights, means and variances, all of shape (n, j), of the mixture that x_0 has given the states x."""
    ### BEGIN SOLUTION
    total = a**2 * stds**2 + b**2
    off = x.unsqueeze(-1) - a * means
    log_share = (weights.log() - 0.5 * (off**2 / total + total.log())).log_softmax(-1)
    return log_share, means + a * stds**2 / total * off, (stds**2 * b**2 / total).expand_as(off)
    ### END SOLUTION


def value(x, a, b, weights, means, stds, y, sigma):
    """V_t(x) for states x of shape (n,) at numbers a, b > 0; tensors of shape (j,) hold the mixture; result (n,)."""
    ### BEGIN SOLUTION
    share, mean, variance = given_state(x, a, b, weights, means, stds)
    seen = variance + sigma**2
    log_likelihood = -0.5 * ((y - mean) ** 2 / seen + (2 * math.pi * seen).log())
    return -torch.logsumexp(share + log_likelihood, -1)
    ### END SOLUTION


def gaps(x, a, b, weights, means, stds, y, sigma):
    """E[Phi] - V and Phi(E[x_0]) - E[Phi], both of shape (n,)."""
    ### BEGIN SOLUTION
    share, mean, variance = given_state(x, a, b, weights, means, stds)
    estimate = (share.exp() * mean).sum(-1)
    spread = (share.exp() * (variance + mean**2)).sum(-1) - estimate**2
    expected = 0.5 * ((y - estimate) ** 2 + spread) / sigma**2 + 0.5 * math.log(2 * math.pi * sigma**2)
    return expected - value(x, a, b, weights, means, stds, y, sigma), -0.5 * spread / sigma**2
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "value_setting", "locked": true, "schema_version": 3, "solution": false, "task": false}
def two(w=0.3, m=(-1.0, 1.5), s=(0.3, 0.6)):
    """Weights, means and standard deviations of two components."""
    return tuple(torch.tensor(v, dtype=F64) for v in ([w, 1 - w], m, s))


def on_the_grid(x, a, b, mixture, y, sigma):
    """V, E[Phi] and Phi(E[x_0]) by sums over a fine grid of x_0."""
    weights, means, stds = mixture
    x0 = torch.linspace(-12, 12, 60_001, dtype=F64)
    prior = (weights * (-0.5 * ((x0[:, None] - means) / stds) ** 2).exp() / stds).sum(-1)
    chance = prior * (-0.5 * ((x[:, None] - a * x0) / b) ** 2).exp()
    chance = chance / chance.sum(-1, keepdim=True)
    phi = 0.5 * ((y - x0) / sigma) ** 2 + 0.5 * math.log(2 * math.pi * sigma**2)
    best = -((-phi).exp() * chance).sum(-1).log()
    return best, (phi * chance).sum(-1), 0.5 * ((y - (x0 * chance).sum(-1)) / sigma) ** 2 + phi.min()


# %% nbgrader={"grade": true, "grade_id": "value_exact", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x, chance = torch.linspace(-2, 2, 9, dtype=F64), runtime.generator(1)
weights, means, stds = two()
j = torch.multinomial(weights, 400_000, replacement=True, generator=chance)
x0 = means[j] + stds[j] * torch.randn(len(j), dtype=F64, generator=chance)
evidence = (-0.5 * ((0.8 - x0) / 0.5) ** 2).exp().mean().item() / math.sqrt(2 * math.pi * 0.25)
far = value(x, 1e-6, 1.0, weights, means, stds, 0.8, 0.5)
same(far, torch.full_like(x, -math.log(evidence)), "far from the data, where V = -log p(y), by Monte Carlo", 0.01)
### BEGIN HIDDEN TESTS
for a, b, mixture, y, sigma in ((0.6, 0.8, two(), 0.4, 0.3), (0.9, 0.3, two(0.7, (0, 2.0), (1.0, 0.1)), -0.5, 1.0)):
    same(value(x, a, b, *mixture, y, sigma), on_the_grid(x, a, b, mixture, y, sigma)[0], "V_t", 1e-5)
three = tuple(torch.tensor(v, dtype=F64) for v in ([0.2, 0.5, 0.3], [-2.0, 0.0, 1.0], [0.4, 0.2, 0.9]))
same(value(x, 0.5, 0.7, *three, 0.1, 0.4), on_the_grid(x, 0.5, 0.7, three, 0.1, 0.4)[0], "V_t, 3 components", 1e-5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "value_gaps", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
single = tuple(torch.tensor([v], dtype=F64) for v in (1.0, 0.0, 1.0))
first, second = gaps(torch.zeros(1, dtype=F64), 0.6, 0.8, *single, 0.0, 0.5)
# One Gaussian: data given the state have the variance b^2 = 0.64.
same(second, [-0.64 / 0.5], "Phi(E[x_0]) - E[Phi] for N(0, 1), a = 0.6, sigma = 0.5")
assert (torch.as_tensor(first) > 0).all(), "Jensen: E[Phi] can't be below V"
### BEGIN HIDDEN TESTS
for a, b, mixture, y, sigma in ((0.6, 0.8, two(), 0.4, 0.3), (0.9, 0.3, two(0.7, (0, 2.0), (1.0, 0.1)), -0.5, 1.0)):
    best, mean_cost, cost_of_mean = on_the_grid(x, a, b, mixture, y, sigma)
    first, second = gaps(x, a, b, *mixture, y, sigma)
    same(first, mean_cost - best, "E[Phi] - V", 1e-5)
    same(second, cost_of_mean - mean_cost, "Phi(E[x_0]) - E[Phi]", 1e-5)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** far from the data (large $b/a$) the cost of the mean and the value are not shifted copies of each other: where are their minima, and how steep are they? Only slopes guide.

# %% alt="Two panels, value function and plug-in cost against the state, at high and low noise: far from the data the plug-in is much steeper, near the data they agree."
fig, axes = plt.subplots(1, 2, figsize=(9, 2.6))
for ax, level in zip(axes, (300, 40)):
    a, b = (v.item() for v in CHAIN.coefficients(*at(level)))
    x = torch.linspace(-1.8, 1.8, 200, dtype=F64)
    first, second = gaps(x, a, b, *two(), 0.8, 0.4)
    best = value(x, a, b, *two(), 0.8, 0.4)
    ax.plot(x, best, color=PALETTE[0], label="value $V_t$")
    ax.plot(x, best + first, color=PALETTE[1], label=r"$\mathbb{E}[\Phi]$")
    ax.plot(x, best + first + second, color=PALETTE[2], label=r"$\Phi(\hat x_0)$")
    ax.set(xlabel="state $x_t$", ylabel="nats", title=f"level {level}, b/a = {b / a:.2f}")
axes[0].legend()
plt.show()


# %% [markdown]
# **The bound.** A guided chain draws $x_s=\mu(x_t)+u+c_1z$, where the *shift* $u$ may depend on the state. Its law $q$ differs from the unguided $p$, and for every shift (and the $p(y)$ that the unguided chain gives)
# $$-\log p(y)\le\mathbb E_q\Big[\underbrace{\Phi(x_0)+\textstyle\sum_t\log\frac{q(x_s\mid x_t)}{p(x_s\mid x_t)}}_{\text{the cost of the path}}\Big]\qquad\text{and}\qquad p(y)=\mathbb E_q\big[e^{-\text{cost}}\big].$$
# Derive both from $p(y)=\mathbb E_p[e^{-\Phi(x_0)}]$. The expected logarithm is the KL divergence of the kernels. `path_costs` runs chains and returns their ends and the cost of each path: the logarithm at the point that was drawn, not its expectation. Where $c_1=0$ a shift would cost infinitely much: there is none.

# %% nbgrader={"grade": false, "grade_id": "paths", "locked": false, "schema_version": 3, "solution": true, "task": false}
def path_costs(kernel, shift, x, times, y, sigma, generator):
    """Ends x_0, shape (n, 1), and costs in nats, shape (n,), of guided chains that start at x, shape (n, 1).

    kernel(x, t, s) returns the mean (n, 1) and the standard deviation (a number, 0 in the last step) of p(x_s | x_t),
    shift(x, t, s) returns u, of shape (n, 1). times holds t_N, ..., 0. The measurement is y = x_0 + sigma n.
    """
    ### BEGIN SOLUTION
    cost = torch.zeros(len(x), dtype=x.dtype)
    for t, s in zip(times[:-1], times[1:]):
        mean, std = kernel(x, t, s)
        z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        if std > 0:
            u = shift(x, t, s)
            mean = mean + u
            cost = cost + (u * z / std + u**2 / (2 * std**2)).sum(-1)
        x = mean + std * z
    return x, cost - torch.distributions.Normal(x, sigma).log_prob(torch.as_tensor(y)).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "paths_mean", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def linear_kernel(x, t, s):
    """A chain that can be followed by hand; the last step only shrinks."""
    return 0.8 * x, torch.tensor(0.6 if s > 0 else 0.0, dtype=F64)


def mean_cost(push, num_steps, y, sigma):
    """Expected cost for the constant shift push, from x = 0."""
    mean = variance = 0.0
    for i in range(num_steps):
        last = i == num_steps - 1
        mean, variance = 0.8 * mean + (0 if last else push), 0.64 * variance + (0 if last else 0.36)
    phi = 0.5 * ((y - mean) ** 2 + variance) / sigma**2 + 0.5 * math.log(2 * math.pi * sigma**2)
    return phi + (num_steps - 1) * push**2 / (2 * 0.36)


def check_mean(push, num_steps, y, sigma, seed, n=20_000):
    shift = lambda x, t, s: torch.full_like(x, push)  # noqa: E731
    start, times = torch.zeros(n, 1, dtype=F64), torch.arange(num_steps, -1, -1, dtype=F64)
    ends, costs = path_costs(linear_kernel, shift, start, times, y, sigma, runtime.generator(seed))
    assert ends.shape == (n, 1) and costs.shape == (n,), "expected ends of shape (n, 1) and costs of shape (n,)"
    error, wanted = costs.std().item() / n**0.5, mean_cost(push, num_steps, y, sigma)
    got = costs.mean().item()
    assert abs(got - wanted) < 5 * error + 1e-9, f"shift {push}: the mean cost is {got:.3f}, expected {wanted:.3f}"


check_mean(0.0, 3, 1.0, 0.5, 2)
check_mean(0.3, 3, 1.0, 0.5, 3)
### BEGIN HIDDEN TESTS
check_mean(-0.4, 6, 0.5, 1.5, 4)
check_mean(0.2, 1, 0.5, 0.7, 5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "paths_evidence", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_evidence(shift, num_steps, y, sigma, seed, n=20_000):
    start, times = torch.zeros(n, 1, dtype=F64), torch.arange(num_steps, -1, -1, dtype=F64)
    costs = path_costs(linear_kernel, shift, start, times, y, sigma, runtime.generator(seed))[1]
    weights, variance = (-costs).exp(), 0.36 * sum(0.64**i for i in range(1, num_steps)) + sigma**2
    wanted = math.exp(-0.5 * y**2 / variance) / math.sqrt(2 * math.pi * variance)
    error, got = weights.std().item() / n**0.5, weights.mean().item()
    assert abs(got - wanted) < 5 * error, f"the mean of exp(-cost) is {got:.4f}, but p(y) = {wanted:.4f}"


check_evidence(lambda x, t, s: torch.zeros_like(x), 3, 0.4, 0.5, 6)
### BEGIN HIDDEN TESTS
check_evidence(lambda x, t, s: torch.full_like(x, 0.25), 3, 0.4, 0.5, 7)
check_evidence(lambda x, t, s: 0.3 * (1.0 - x), 4, 1.0, 0.4, 8)
### END HIDDEN TESTS

# %% [markdown]
# Now the mixture, with DDIM kernels ($\eta=1$), 50 steps and the shift $-\lambda c_1^2\nabla V_s(\mu(x_t))$, which is classifier guidance of strength $\lambda$. **What to look for:** where the bound is smallest, how near it comes to $-\log p(y)$ (dotted), and which strength gives the steadiest estimate of $p(y)$.

# %%
model = exact_model(NormalMixture(two()[1][:, None], two()[2][:, None, None] ** 2, two()[0]), CHAIN)


def mixture_kernel(x, t, s):
    (a_s, _), (*_, c1, c2) = CHAIN.coefficients(s), kernel_numbers(CHAIN, t, s, 1.0)
    estimate, noise = model.data_and_noise(x, t)
    return a_s * estimate + c2 * noise, c1


def classifier_shift(x, t, s, strength):
    mean, c1 = mixture_kernel(x, t, s)
    point = mean.squeeze(-1).requires_grad_()
    slope = torch.autograd.grad(value(point, *CHAIN.coefficients(s), *two(), 0.8, 0.4).sum(), point)[0]
    return -strength * c1**2 * slope.unsqueeze(-1)


# %% alt="Left: the expected cost of a path against the guidance strength, smallest near strength one and close to minus log p(y) there. Right: spread of the cost, smallest near one."
strengths = torch.linspace(0, 2, 9).tolist()
costs = torch.stack(
    [
        path_costs(
            mixture_kernel,
            lambda x, t, s, strength=strength: classifier_shift(x, t, s, strength),
            randn(1000, 1, seed=10),
            CHAIN.times(50),
            0.8,
            0.4,
            runtime.generator(11),
        )[1]
        for strength in strengths
    ]
)
evidence = value(torch.zeros(1, dtype=F64), 1e-9, 1.0, *two(), 0.8, 0.4).item()
fig, axes = plt.subplots(1, 2, figsize=(9, 2.4))
axes[0].plot(strengths, costs.mean(1), "o-", ms=3)
axes[0].axhline(evidence, color="#666666", ls=":")
axes[0].set(xlabel="strength λ", ylabel="mean cost (nats)", title="The bound", ylim=(evidence - 0.2, evidence + 2))
axes[1].plot(strengths, costs.std(1), "o-", ms=3, color=PALETTE[1])
axes[1].set(xlabel="strength λ", ylabel="std of the cost (nats)", title="How steady", ylim=(0, 3))
plt.show()
best = costs.mean(1).argmin().item()
say(f"The bound is {costs.mean(1)[0]:.2f} nats unguided and {costs.mean(1)[best]:.3f} at strength {strengths[best]:g};")
say(f"-log p(y) is {evidence:.3f}.")


# %% [markdown]
# ## Task 2: what a shifted input costs (2 points)
#
# NDTM shifts the network's *input*: $q(x_s\mid x_t)=\mathcal N(\mu(x_t+\delta),c_1^2I)$ with $\delta=\gamma u$.
#
# - `input_shift` returns how far the mean moves, $\mu(x+\delta)-\mu(x)$; the KL divergence of this kernel from the unguided one, in nats; and the bound on it in terms of $\lVert\delta\rVert^2$ and $\lVert\Delta\epsilon\rVert^2$, $\Delta\epsilon=\hat\epsilon(x+\delta,t)-\hat\epsilon(x,t)$, which follows from $\lVert p+q\rVert^2\le2\lVert p\rVert^2+2\lVert q\rVert^2$. Ask the model for nothing but `model.noise`.
# - In place of the bound, the code that came with the paper minimises $w_T\lVert y-h(\hat x_0)\rVert^2+\gamma^2\frac{a_t^2}{a_s^2}\lVert\gamma u\rVert^2+c_\Delta^2\lVert\Delta\epsilon\rVert^2$. Multiply your bound by $c_1^2$, so that $\lVert\Delta\epsilon\rVert^2$ has the same weight in both. `weight_ratio` is the code's weight of $\lVert u\rVert^2$ over that of the bound.

# %% nbgrader={"grade": false, "grade_id": "shift", "locked": false, "schema_version": 3, "solution": true, "task": false}
def input_shift(model, x, delta, t, s, eta):
    """Move of the mean, shape (*batch, dim), KL divergence and its bound, both of shape (*batch,)."""
    ### BEGIN SOLUTION
    k, c_delta, c1, _ = kernel_numbers(model.process, t, s, eta)
    change = model.noise(x + delta, t) - model.noise(x, t)
    move = k * delta + c_delta * change
    parts = (k * delta).square().sum(-1) + (c_delta * change).square().sum(-1)
    return move, move.square().sum(-1) / (2 * c1**2), parts / c1**2
    ### END SOLUTION


def weight_ratio(process, t, s, gamma):
    """The published weight of |u|^2 over that which the bound gives."""
    ### BEGIN SOLUTION
    k = kernel_numbers(process, t, s, 1.0)[0]
    return gamma**2 / k**4
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "shift_kernel", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
sphere = exact_model(normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), CHAIN)
t, s = at(500, 450)
one = torch.tensor([[1.0, 0.0]], dtype=F64)
move, divergence, bound = input_shift(sphere, torch.zeros(1, 2, dtype=F64), one, t, s, 0.5)
(a, b), (a_s, b_s) = CHAIN.coefficients(t), CHAIN.coefficients(s)
*_, c2 = kernel_numbers(CHAIN, t, s, 0.5)
same(move, (a_s * a + c2 * b) * one, "the mean for data N(0, I), where x_0 = a x and n = b x")
assert (torch.as_tensor(divergence) <= torch.as_tensor(bound)).all(), "the divergence exceeds its bound"
### BEGIN HIDDEN TESTS
ring = NormalMixture(randn(5, 3, seed=20), 0.2 * torch.eye(3, dtype=F64).expand(5, 3, 3))


def check_shift(eta, levels, seed):
    (t, s), model = at(*levels), exact_model(ring, CHAIN)
    x, delta = randn(4, 6, 3, seed=seed), 0.3 * randn(4, 6, 3, seed=seed + 1)
    (a_s, _), (k, c_delta, c1, c2) = CHAIN.coefficients(s), kernel_numbers(CHAIN, t, s, eta)
    both = [a_s * model.data(v, t) + c2 * model.noise(v, t) for v in (x + delta, x)]
    laws = [torch.distributions.Normal(mean, c1) for mean in both]
    move, divergence, bound = input_shift(model, x, delta, t, s, eta)
    same(move, both[0] - both[1], "the move of the mean")
    same(divergence, torch.distributions.kl_divergence(*laws).sum(-1), "the KL divergence")
    other = (model.noise(x, t) - model.noise(x + delta, t)).square().sum(-1)
    same(bound, (k**2 * delta.square().sum(-1) + c_delta**2 * other) / c1**2, "the bound")


check_shift(0.7, (400, 350), 21)
check_shift(1.0, (900, 700), 23)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "shift_ratio", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
near = number(weight_ratio(CHAIN, *at(2, 1), 1.0), "weight_ratio")
assert abs(near - 1) < 2e-3, f"a step so short, with gamma = 1, has the ratio 1, you say {near:.4f}"
### BEGIN HIDDEN TESTS
for levels, gamma in (((1000, 980), 1.0), ((1000, 900), 3.0), ((300, 200), 0.5)):
    bars = [CHAIN.coefficients(v)[0].item() ** 2 for v in at(*levels)]
    wanted = (bars[0] / bars[1]) ** 2 * gamma**2
    got = number(weight_ratio(CHAIN, *at(*levels), gamma), "weight_ratio")
    assert abs(got / wanted - 1) < 1e-6, f"levels {levels}, gamma = {gamma}: {got:.4f} is not right"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** in which part of the chain does the reciprocal matter, and how does it compare with what $\gamma$ does?

# %% alt="Ratio of the published control weight to that of the bound along the chain, on a logarithmic axis, for three values of gamma: flat near the data, falling by half at the noise end; gamma moves the whole curve."
times = CHAIN.times(50)
fig, ax = plt.subplots(figsize=(7, 2.4))
for gamma, colour in zip((1, 2, 4), PALETTE):
    ratio = [float(weight_ratio(CHAIN, t, s, gamma)) for t, s in zip(times[:-1], times[1:])]
    ax.semilogy(times[:-1], ratio, color=colour, label=f"γ = {gamma}")
ax.axhline(1, color="#666666", ls=":")
ax.set(xlabel="level $t$", ylabel="published / bound", title="Weight of the control, 50 steps", ylim=(0.2, 30))
ax.legend()
plt.show()


# %% [markdown]
# ## Task 3: a step of NDTM (4 points)
#
# Write one step from $t$ to $s$, for many chains at once. It minimises
# $$J(u)=w_T\,\lVert y-h(\hat x_0(x+\gamma u,t))\rVert^2+\kappa_c\lVert\gamma u\rVert^2+\kappa_s\lVert\hat\epsilon(x+\gamma u,t)-\hat\epsilon(x,t)\rVert^2$$
# from $u=0$ by `inner_steps` steps of a fresh `torch.optim.Adam` or `torch.optim.SGD` with learning rate `lr`, then takes the DDIM step from the shifted state, with the given noise $z$: $x_s=a_s\hat x_0+c_2\hat\epsilon+c_1z$, both estimates at $x+\gamma u$. Each chain is a problem of its own. The result must not hang on a graph, and the network's parameters must get no gradients. `measurement.energy(x0)` is $\lVert y-h(x_0)\rVert^2$ for each chain.

# %% nbgrader={"grade": false, "grade_id": "ndtm", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ndtm_step(
    model,
    measurement,
    x,
    t,
    s,
    z,
    *,
    inner_steps=4,
    lr=0.2,
    gamma=1.0,
    terminal_weight=5.0,
    control_weight=0.0,
    score_weight=0.0,
    eta=0.2,
    optimiser="adam",
):
    """x_s for states x of shape (*batch, dim)."""
    ### BEGIN SOLUTION
    x = x.detach()
    u = torch.zeros_like(x, requires_grad=True)
    solver = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimiser]([u], lr=lr)
    with torch.no_grad():
        unguided = model.noise(x, t)
    for _ in range(inner_steps):
        estimate, noise = model.data_and_noise(x + gamma * u, t)
        cost = terminal_weight * measurement.energy(estimate) + control_weight * (gamma * u).square().sum(-1)
        cost = cost + score_weight * (noise - unguided).square().sum(-1)
        u.grad = torch.autograd.grad(cost.sum(), u)[0]
        solver.step()
    with torch.no_grad():
        estimate, noise = model.data_and_noise(x + gamma * u, t)
    (a_s, _), (*_, c1, c2) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    return a_s * estimate + c2 * noise + c1 * z
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "ndtm_setting", "locked": true, "schema_version": 3, "solution": false, "task": false}
CLOUD = NormalMixture(randn(4, 3, seed=30), 0.1 * torch.eye(3, dtype=F64).expand(4, 3, 3))
MATRIX = randn(2, 3, seed=31)


def squash(x):
    """A non-linear measurement of three features."""
    return torch.tanh(1.5 * x @ MATRIX.T)


def problem(seed, chains=5, problems=4):
    """A measurement of several clouds at once, states (chains, problems, 3) and noise of that shape."""
    y = squash(CLOUD.sample(problems, runtime.generator(seed)))
    shape = (chains, problems, 3)
    return Measurement(squash, y, 0.1), randn(*shape, seed=seed + 1), randn(*shape, seed=seed + 2)


def ddim(model, x, t, s, z, eta):
    """The unguided step."""
    (a_s, _), (*_, c1, c2) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    estimate, noise = model.data_and_noise(x, t)
    return a_s * estimate + c2 * noise + c1 * z


# %% nbgrader={"grade": true, "grade_id": "ndtm_still", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
model, (seen, x, z), (t, s) = exact_model(CLOUD, CHAIN), problem(32), at(400, 350)
got = ndtm_step(model, seen, x, t, s, z, lr=0.0)
same(got, ddim(model, x, t, s, z, 0.2), "with a learning rate of 0 the step is DDIM's")
### BEGIN HIDDEN TESTS
got = ndtm_step(model, seen, x, t, s, z, gamma=0.0, control_weight=1.0, score_weight=1.0, eta=0.9)
same(got, ddim(model, x, t, s, z, 0.9), "with gamma = 0 the step is DDIM's", 1e-12)
weights = torch.nn.Linear(3, 3).double()
learned = DiffusionModel(lambda x, t: weights(x), CHAIN, predicts="noise")
before = x.clone()
got = ndtm_step(learned, seen, x, t, s, z)
assert not got.requires_grad, "the result hangs on a graph: a long chain would fill the memory"
assert all(p.grad is None for p in weights.parameters()), "the network's parameters got gradients"
assert torch.equal(x, before) and not x.requires_grad, "you change the states that were handed in"
got = ndtm_step(model, seen, x, *at(1, 0), z, lr=0.0, eta=1.0)
same(got, model.data(x, at(1)[0]), "the last step, unguided, ends at the estimate of the data")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "ndtm_first", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def cost_gradient(model, measurement, x, t):
    """Gradient of |y - h(x0_hat(x, t))|^2 in x, for each chain, by finite differences."""
    parts = []
    for i in range(x.shape[-1]):
        e = 1e-5 * torch.eye(x.shape[-1], dtype=x.dtype)[i]
        up, down = (measurement.energy(model.data(v, t)) for v in (x + e, x - e))
        parts.append((up - down) / 2e-5)
    return torch.stack(parts, -1)


settings = {"inner_steps": 1, "lr": 0.01, "gamma": 2.0, "terminal_weight": 3.0, "optimiser": "sgd"}
got = ndtm_step(model, seen, x, t, s, z, **settings)
moved = x - 0.01 * 2.0**2 * 3.0 * cost_gradient(model, seen, x, t)
same(got, ddim(model, moved, t, s, z, 0.2), "one step of SGD is the step of DPS, taken before DDIM's", 1e-6)
### BEGIN HIDDEN TESTS
again = ndtm_step(model, seen, x, t, s, z, **settings | {"control_weight": 5.0, "score_weight": 5.0})
assert torch.equal(got, again), "the gradients of both penalties are 0 at u = 0: they can't matter in the first step"
again = ndtm_step(model, seen, x, t, s, z, **settings | {"gamma": 4.0, "lr": 0.0025})
same(again, got, "without penalties, (gamma, lr) and (2 gamma, lr / 4) are the same for SGD")
got = ndtm_step(model, seen, x, t, s, z, inner_steps=1, lr=0.05, gamma=2.0)
moved = x - 0.05 * 2.0 * cost_gradient(model, seen, x, t).sign()
same(got, ddim(model, moved, t, s, z, 0.2), "the first step of Adam has the length lr in each coordinate", 1e-3)
moved = x
u = torch.zeros_like(x)
for _ in range(3):
    u = u - 0.01 * (2.0 * 3.0 * cost_gradient(model, seen, x + 2.0 * u, t) + 2 * 0.7 * 4.0 * u)
got = ndtm_step(model, seen, x, t, s, z, **settings | {"inner_steps": 3, "control_weight": 0.7})
same(got, ddim(model, x + 2.0 * u, t, s, z, 0.2), "three steps of SGD", 1e-6)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "ndtm_converged", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def closed_form(model, covariance, matrix, y, x, t, w, kappa_c, kappa_s):
    """The shift gamma u that minimises J for data N(0, C) and a linear measurement."""
    a, b = model.process.coefficients(t)
    inverse = torch.linalg.inv(a**2 * covariance + b**2 * torch.eye(len(covariance), dtype=F64))
    gain, slope = matrix @ (a * covariance @ inverse), b * inverse
    normal = w * gain.T @ gain + kappa_c * torch.eye(len(covariance), dtype=F64) + kappa_s * slope @ slope
    return torch.linalg.solve(normal, (w * (y - x @ gain.T) @ gain).mT).mT


def check_converged(kappa_c, kappa_s, gamma, seed, optimiser="sgd", lr=0.02):
    root = randn(3, 3, seed=seed) / 2
    covariance = root @ root.T + 0.2 * torch.eye(3, dtype=F64)
    model, (t, s) = exact_model(normal([0.0] * 3, covariance.tolist()), CHAIN), at(300, 250)
    y, x, z = randn(2, seed=seed + 1), randn(4, 3, seed=seed + 2), randn(4, 3, seed=seed + 3)
    wanted = closed_form(model, covariance, MATRIX, y, x, t, 2.0, kappa_c, kappa_s)
    weights = {"terminal_weight": 2.0, "control_weight": kappa_c, "score_weight": kappa_s, "gamma": gamma}
    got = ndtm_step(
        model, Measurement(MATRIX, y, 0.1), x, t, s, z, inner_steps=400, lr=lr, optimiser=optimiser, **weights
    )
    same(got, ddim(model, x + wanted, t, s, z, 0.2), f"400 steps with kappa = ({kappa_c}, {kappa_s})", 1e-4)


check_converged(0.5, 0.0, 1.0, 33)
### BEGIN HIDDEN TESTS
check_converged(0.5, 0.8, 2.0, 37, lr=0.005)
check_converged(0.3, 1.5, 1.0, 41)
check_converged(0.5, 0.5, 1.5, 45, optimiser="adam", lr=0.05)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "ndtm_alone", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
settings = {"control_weight": 0.1, "score_weight": 0.1, "inner_steps": 3}
whole = ndtm_step(model, seen, x, t, s, z, **settings)
half = ndtm_step(model, seen, x[:2], t, s, z[:2], **settings)
assert whole is not None and whole.shape == x.shape, "the result has the shape of x"
same(half, whole[:2], "two chains by themselves, and among five", 1e-7)
### BEGIN HIDDEN TESTS
for optimiser in ("adam", "sgd"):
    settings = {"control_weight": 0.1, "score_weight": 0.3, "inner_steps": 3, "lr": 0.05, "optimiser": optimiser}
    whole = ndtm_step(model, seen, x, t, s, z, **settings)
    alone = Measurement(squash, seen.y[1], 0.1)
    got = ndtm_step(model, alone, x[3, 1], t, s, z[3, 1], **settings)
    same(got, whole[3, 1], "one chain by itself, without batch dimensions", 1e-7)
    again = ndtm_step(model, seen, x, t, s, z, **settings)
    assert torch.equal(whole, again), "the same inputs give another result: something is kept from step to step"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: predict, then measure: explicit against implicit (6 points)
#
# On the line, with data $\mathcal N(0,\varsigma^2)$ and $y=x_0+\sigma n$, everything is linear: with $v=a_t^2\varsigma^2+b_t^2$,
# $$\hat x_0=g\,x,\quad g=a_t\varsigma^2/v,\qquad\hat\epsilon=b_t\,x/v,\qquad\mathrm{Var}[x_0\mid x_t]=C=\varsigma^2b_t^2/v.$$
# Two choices give four samplers, all with $\eta=1$.
#
# - The **cost** is $\frac{(y-\hat x_0)^2}{2D}$. The *plug-in* has $D=\sigma^2$, as if $\hat x_0$ were the data. The *full* one has $D=\sigma^2+C$: then it is the value, $V_t(x)$, up to a constant.
# - The **step** is *explicit*: the gradient $G=\partial_x\big[-\frac{(y-\hat x_0(x))^2}{2D}\big]$ at the present state is added to the score. So $\hat\epsilon\,'=\hat\epsilon-b_tG$, and DDIM goes on with $\hat\epsilon\,'$ and the estimate $(x-b_t\hat\epsilon\,')/a_t$ that belongs to it. Or it is *implicit*, NDTM with the inner problem solved: $\delta$ minimises $\frac{(\mu(x+\delta)-\mu(x))^2}{2c_1^2}+\frac{(y-\hat x_0(x+\delta))^2}{2D}$, and DDIM goes on from $x+\delta$.
#
# The chapter follows the two plug-ins: the explicit one may diverge, the implicit one can't, and with many steps they meet, beside the posterior. Here you go on from there.
#
# **Predict** (1 point, read by a person), before you run anything. (a) Does the full cost keep the explicit step from diverging, at $\sigma=0.05$ with 20 steps? (b) For small $\sigma$ the posterior of $\mathcal N(0,1)$ data has nearly the mean $y$ and the standard deviation $\sigma$. By which factor is the law that the plug-ins share too narrow? (c) How does the largest $\sigma$ at which the explicit plug-in diverges change with the number of steps $N$? Give reasons; a wrong guess with a reason earns its mark.

# %% [markdown] nbgrader={"grade": true, "grade_id": "moments_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* (a) Yes. The explicit plug-in has $A=\mu'-(\dots)g^2/\sigma^2$, which falls without limit as $\sigma$ does. With $D=\sigma^2+C$ the last term is at most that with $D=C$, and there everything cancels to $A=c_2/b_t$, between 0 and 1 however few the steps. (b) Every step counts the measurement as if $\hat x_0$ were certain. Near the data the force is $-(x-y)/\sigma^2$ in units in which fresh noise has the variance 1; for an equation $\dot x=-(x-y)/\sigma^2+$ white noise the stationary variance is $\sigma^2/2$. So $\sqrt2$ too narrow, around $y$. (c) It overshoots once $\Delta/\sigma^2$ exceeds about 2, with a step $\Delta\propto1/N$ in $-\log a^2$: like $N^{-1/2}$.
#
# *Marks.* ½ for (a) with a reason. ½ for (b) or (c) with a reason.

# %% [markdown]
# **Measure**, without a single sample: each step is $x_s=Ax_t+B+c_1z$, so a Gaussian stays one.
#
# - `affine_step` returns $A$ and $B$ of one step. Derive them in a form that holds for $c_1=0$ too. It gets times as tensors and works elementwise.
# - `final_law` returns mean and standard deviation of the samples after all steps, from $x\sim\mathcal N(0,1)$. Times are those of `process.times(num_steps)`.

# %% nbgrader={"grade": false, "grade_id": "moments", "locked": false, "schema_version": 3, "solution": true, "task": false}
def affine_step(process, t, s, std, y, sigma, implicit, full):
    """A and B, in the shape of t."""
    ### BEGIN SOLUTION
    (a, b), (a_s, _), (*_, c1, c2) = (
        process.coefficients(t),
        process.coefficients(s),
        kernel_numbers(process, t, s, 1.0),
    )
    v = a**2 * std**2 + b**2
    g = a * std**2 / v
    unguided = a_s * g + c2 * b / v
    spread = sigma**2 + (std**2 * b**2 / v if full else 0.0)
    if implicit:
        push = unguided * c1**2 * g / (c1**2 * g**2 + unguided**2 * spread)
    else:
        push = (a_s * b**2 / a - c2 * b) * g / spread
    return unguided - push * g, push * y
    ### END SOLUTION


def final_law(process, num_steps, std, y, sigma, implicit, full):
    """Mean and standard deviation, two floats."""
    ### BEGIN SOLUTION
    times = process.times(num_steps)
    slope, offset = affine_step(process, times[:-1], times[1:], std, y, sigma, implicit, full)
    noise = kernel_numbers(process, times[:-1], times[1:], 1.0)[2]
    mean, variance = 0.0, 1.0
    for a, b, c in zip(slope.tolist(), offset.tolist(), noise.tolist()):
        mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, math.sqrt(variance)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "moments_step", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
### BEGIN HIDDEN TESTS
def by_autograd(process, t, s, std, y, sigma, implicit, full):
    """A, B and c_1 of a step, from the mixture's model and derivatives by machine."""
    prior, x = normal([0.0], [[std**2]]), torch.tensor([[0.0], [1.0]], dtype=F64, requires_grad=True)
    (a, b), (*_, c1, c2), model = process.coefficients(t), kernel_numbers(process, t, s, 1), exact_model(prior, process)
    spread = sigma**2 + full * prior.denoising_covariance(x.detach(), a, b)[:, 0]
    mean = lambda x0, noise: process.coefficients(s)[0] * x0 + c2 * noise  # noqa: E731
    x0, noise = model.data_and_noise(x, t)
    cost = (y - x0) ** 2 / (2 * spread)
    if implicit and c1 > 0:
        cost = cost + (mean(x0, noise) - mean(x0, noise).detach()) ** 2 / (2 * c1**2)
        first = torch.autograd.grad(cost.sum(), x, create_graph=True)[0]
        x0, noise = model.data_and_noise(x - first / torch.autograd.grad(first.sum(), x)[0], t)
    elif not implicit:
        noise = noise + b * torch.autograd.grad(cost.sum(), x)[0]
        x0 = (x - b * noise) / a
    zero, one = mean(x0, noise).flatten().tolist()
    return one - zero, zero, c1.item()


### END HIDDEN TESTS
t, s = at(400, 300)
wanted = (
    CHAIN.coefficients(s)[0] * CHAIN.coefficients(t)[0] + kernel_numbers(CHAIN, t, s, 1)[3] * CHAIN.coefficients(t)[1]
)
for implicit in (False, True):
    got = affine_step(CHAIN, t, s, 1.0, 0.7, 1e6, implicit, False)
    same(got, [wanted, 0.0], "A and B for data N(0, 1), where the measurement says nothing")
### BEGIN HIDDEN TESTS
for settings in ((1.0, 1.0, 0.3), (0.5, -2.0, 0.05)):
    for kind in ((False, False), (False, True), (True, False), (True, True)):
        for levels in ((400, 300), (1000, 950), (20, 0)):
            wanted = by_autograd(CHAIN, *at(*levels), *settings, *kind)[:2]
            got = affine_step(CHAIN, *at(*levels), *settings, *kind)
            same(got, wanted, f"implicit, full = {kind}: A and B from {levels[0]} to {levels[1]}", 1e-6)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "moments_law", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
### BEGIN HIDDEN TESTS
def law_by_autograd(process, num_steps, *settings):
    times, centre, variance = process.times(num_steps), 0.0, 1.0
    for i in range(num_steps):
        slope, offset, noise = by_autograd(process, times[i], times[i + 1], *settings)
        centre, variance = slope * centre + offset, slope**2 * variance + noise**2
    return [centre, variance**0.5]


### END HIDDEN TESTS
mean, deviation = final_law(CHAIN, 1000, 1.0, 1.0, 0.3, False, True)
assert abs(number(mean, "the mean") - 1 / 1.09) < 0.005, (
    "explicit and full, 1000 steps: the mean is not the posterior's"
)
assert abs(number(deviation, "std") / (0.3 / 1.09**0.5) - 1) < 0.03, "explicit and full, 1000 steps: nor is the std"
### BEGIN HIDDEN TESTS
for settings in ((0.5, 1.0, 0.3, False, False), (0.5, -1.0, 0.2, True, False), (2.0, 1.0, 0.5, True, True)):
    wanted = law_by_autograd(CHAIN, 30, *settings)
    same(final_law(CHAIN, 30, *settings), wanted, "mean and std after 30 steps", 1e-5)
### END HIDDEN TESTS

# %% [markdown]
# Two numbers follow.
#
# - `edge` is the largest $\sigma$ at which the samples of the explicit plug-in have a standard deviation above that of the data, here 1: found by bisection, to three digits.
# - `limit_law` is the law of the *plug-in* for $\varsigma=1$ and infinitely many steps, mean and standard deviation in closed form. *A way:* in the variable $\alpha=a^2$, from 0 to 1, the guided SDE has the mean $M$ and the variance $S$ with
# $$\alpha M'=-\Big(\frac12+\frac\alpha{\sigma^2}\Big)M+\frac{\sqrt\alpha\,y}{\sigma^2},\qquad\alpha S'=-\Big(1+\frac{2\alpha}{\sigma^2}\Big)S+1.$$

# %% nbgrader={"grade": false, "grade_id": "limits", "locked": false, "schema_version": 3, "solution": true, "task": false}
def edge(process, num_steps):
    """The largest sigma at which the explicit plug-in diverges for data N(0, 1)."""
    ### BEGIN SOLUTION
    low, high = 0.01, 2.0
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        diverged = final_law(process, num_steps, 1.0, 0.0, middle, False, False)[1] > 1
        low, high = (middle, high) if diverged else (low, middle)
    return math.sqrt(low * high)
    ### END SOLUTION


def limit_law(y, sigma):
    """Mean and standard deviation of the plug-in for data N(0, 1), two floats."""
    ### BEGIN SOLUTION
    mean = -y * math.expm1(-1 / sigma**2)
    return mean, math.sqrt(-0.5 * sigma**2 * math.expm1(-2 / sigma**2))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "limits_edge", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
found = number(edge(CHAIN, 20), "edge")
assert 0.1 < found < 0.4, f"20 steps: {found:.3f} is far from where the explicit step starts to diverge"
### BEGIN HIDDEN TESTS
for num_steps in (20, 50):
    found = number(edge(CHAIN, num_steps), "edge")
    stds = [law_by_autograd(CHAIN, num_steps, 1.0, 0.0, share * found, False, False)[1] for share in (0.99, 1.01)]
    assert stds[0] > 1 > stds[1], (
        f"{num_steps} steps: at {found:.3f} times 0.99 and 1.01 the std is {stds[0]:.2f}, {stds[1]:.2f}"
    )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "limits_closed", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
mean, deviation = limit_law(1.0, 30.0)
same([mean, deviation], [1 / 900, 1.0], "a measurement that says nothing", 1e-3)


### BEGIN HIDDEN TESTS
def by_ode(y, sigma, num_steps=4000):
    """Runge-Kutta in log(alpha), from alpha = 1e-12."""
    rate = lambda log, m, v: (  # noqa: E731
        -(0.5 + math.exp(log) / sigma**2) * m + math.exp(log / 2) * y / sigma**2,
        -(1 + 2 * math.exp(log) / sigma**2) * v + 1,
    )
    log, m, v = -12 * math.log(10), 0.0, 1.0
    h = -log / num_steps
    for _ in range(num_steps):
        k1 = rate(log, m, v)
        k2 = rate(log + h / 2, m + h / 2 * k1[0], v + h / 2 * k1[1])
        k3 = rate(log + h / 2, m + h / 2 * k2[0], v + h / 2 * k2[1])
        k4 = rate(log + h, m + h * k3[0], v + h * k3[1])
        m, v = (old + h / 6 * (p + 2 * q + 2 * r + u) for old, p, q, r, u in zip((m, v), k1, k2, k3, k4))
        log += h
    return m, math.sqrt(v)


for y, sigma in ((1.0, 0.5), (-2.0, 1.0), (0.3, 2.0)):
    same(limit_law(y, sigma), by_ode(y, sigma), f"the limit for sigma = {sigma}", 1e-4)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for.** Left, 20 steps: where the explicit plug-in leaves the picture, and what the others do there. Right, $\sigma=0.3$: which errors vanish with more steps, and where the other two meet. Compare the plug-ins' limit with your closed form.

# %% alt="Left: standard deviation against measurement noise with 20 steps; the explicit plug-in blows up below 0.2, the others stay bounded. Right: KL divergence from the posterior against the number of steps; full costs fall to zero, plug-ins meet at a constant."
def kl(law, other):
    (m, s), (n, r) = law, other
    return math.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5


SAMPLERS = [("explicit", False), ("implicit", True)]
sigmas, steps = torch.logspace(-1.5, 0.3, 60).tolist(), [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
for (kind, implicit), style in zip(SAMPLERS, ("-", "--")):
    for cost, full in (("plug-in", False), ("full", True)):
        colour = PALETTE[1 if full else 0]
        stds = [final_law(CHAIN, 20, 1.0, 1.0, sigma, implicit, full)[1] for sigma in sigmas]
        axes[0].loglog(sigmas, stds, style, color=colour, label=f"{kind}, {cost}")
        posterior = (1 / 1.09, 0.3 / 1.09**0.5)
        far = [kl(final_law(VP(), n, 1.0, 1.0, 0.3, implicit, full), posterior) for n in steps]
        axes[1].loglog(steps, far, style, color=colour)
axes[0].loglog(sigmas, [v / math.sqrt(1 + v**2) for v in sigmas], "k:", label="posterior")
axes[0].set(xlabel="measurement noise σ", ylabel="std of samples", title="20 steps", ylim=(5e-3, 20))
axes[0].legend(fontsize=7)
axes[1].axhline(kl(limit_law(1.0, 0.3), posterior), color="#666666", ls=":")
axes[1].set(xlabel="steps $N$", ylabel="KL from the posterior (nats)", title="σ = 0.3", ylim=(1e-4, 5))
plt.show()
ends = {n: edge(CHAIN, n) for n in (10, 20, 50, 100, 200)}
say("Edge of the explicit plug-in: " + ", ".join(f"{v:.3f} with {n} steps" for n, v in ends.items()) + ".")
say(f"Slope of log edge against log N, from 10 to 200: {math.log(ends[200] / ends[10]) / math.log(20):.2f}.")


# %% [markdown]
# **Read it** (1 point, read by a person). Compare with your prediction, with numbers. Why does the *full* cost need more steps in the implicit than in the explicit form? You have 20 network calls, $\sigma=0.05$, and no way to know $C$: which sampler do you take, and what do you tell whoever uses its samples as a posterior?

# %% [markdown] nbgrader={"grade": true, "grade_id": "moments_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* With 20 steps the explicit plug-in diverges below $\sigma\approx0.22$, the three others nowhere: (a) holds. The edge falls from 0.280 to 0.069 between 10 and 200 steps, a slope of $-0.47$: (c) nearly. Both plug-ins tend to $\mathcal N(y(1-e^{-1/\sigma^2}),\frac{\sigma^2}2(1-e^{-2/\sigma^2}))$, for small $\sigma$ half the posterior's variance around $y$ itself: (b), and more steps don't help. Per unit of slope the implicit move of the mean is at most about $c_1^2$; the explicit one is $a_sb_t^2/a_t-c_2b_t=\frac{a_sb_t^2}{a_tb_s^2}\,c_1^2$. For short steps these are the same, for long ones near the data the second is much larger, and the last step, with $c_1=0$, is of no use to the implicit form. So with the full cost and few steps its samples lag behind: too wide, with a mean short of $y$. With the plug-in, whose force is too strong anyway, this is a mercy.
#
# I take the implicit plug-in: it can't diverge and lands near $y$. I tell the user that its spread is set by the step and not by the posterior; at $\sigma=0.05$ and 20 steps it is about three times too wide, with many steps $\sqrt2$ times too narrow.
#
# *Marks.* ½ for a comparison with numbers. ½ for a choice that names a property (stable) and a warning that names another (its spread is no posterior's).

# %% [markdown]
# ## Task 5: find the faults (4 points)
#
# The two functions below are meant to be a step of diffusion posterior sampling, $x_s=\text{DDIM}(x_t)-\zeta\,\nabla_{x_t}\lVert y-h(\hat x_0(x_t,t))\rVert$, for many chains at once. They run, and guided samples do move towards the measurement.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def residual_gradient(model, measurement, x, t):
    """Gradient in x of |y - h(x0_hat(x, t))|, for each chain; shape of x."""
    a, b = model.process.coefficients(t)
    with torch.no_grad():
        noise = model.noise(x, t)
    x = x.detach().requires_grad_()
    estimate = (x - b * noise) / a
    distance = measurement.residual(estimate).norm()
    return torch.autograd.grad(distance, x)[0]


def dps_step(model, measurement, x, t, s, z, scale, eta):
    """The state at s, without a graph."""
    (a_s, b_s), (*_, c1, _) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    with torch.no_grad():
        estimate, noise = model.data_and_noise(x, t)
    x = a_s * estimate + b_s * noise + c1 * z
    return x - scale * residual_gradient(model, measurement, x, t)


# %% [markdown]
# There are four faults, two in each function. Do not stare at them; experiment: with `scale=0`, with one chain and with several, with finite differences. Then write both functions once more, whole and under the same names.

# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def residual_gradient(model, measurement, x, t):  # noqa: F811
    x = x.detach().requires_grad_()
    distance = measurement.residual(model.data(x, t)).norm(dim=-1)
    return torch.autograd.grad(distance.sum(), x)[0]


def dps_step(model, measurement, x, t, s, z, scale, eta):  # noqa: F811
    (a_s, _), (*_, c1, c2) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    with torch.no_grad():
        estimate, noise = model.data_and_noise(x, t)
    return a_s * estimate + c2 * noise + c1 * z - scale * residual_gradient(model, measurement, x, t)


### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "faults_network", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
CROWD = NormalMixture(randn(4, 3, seed=50), 0.1 * torch.eye(3, dtype=F64).expand(4, 3, 3))
flat = normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1e-6]])
state, (t,) = torch.tensor([0.5, 0.5], dtype=F64), at(400)
seen = Measurement(torch.eye(2, dtype=F64), torch.tensor([2.0, 2.0], dtype=F64), 0.1)
off = residual_gradient(exact_model(flat, CHAIN), seen, state, t)
assert off[1].abs() < 1e-3 * off[0].abs(), "data never leave a line, and yet a chain is driven away from it"
### BEGIN HIDDEN TESTS


def by_differences(model, measurement, x, t):
    tiny = 1e-5 * torch.eye(x.shape[-1]).to(x)
    up, down = (measurement.residual(model.data(x + sign * tiny, t)).norm(dim=-1) for sign in (1, -1))
    return (up - down) / 2e-5


for level, seed in ((700, 51), (200, 53)):
    x, target = randn(3, seed=seed), randn(2, seed=seed + 1)
    seen = Measurement(lambda x: torch.tanh(x[..., :2]) + x[..., 1:], target, 0.1)
    got = residual_gradient(exact_model(CROWD, CHAIN), seen, x, *at(level))
    same(got, by_differences(exact_model(CROWD, CHAIN), seen, x, *at(level)), "the gradient for a single chain", 1e-5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_batch", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
pair = exact_model(normal([0.0, 0.0], [[1.0, 0.3], [0.3, 1.0]]), CHAIN)
seen = Measurement(torch.tensor([[1.0, 2.0]], dtype=F64), torch.tensor([1.5], dtype=F64), 0.1)
x, (t, s) = randn(6, 2, seed=55), at(400, 350)
alone = torch.stack([residual_gradient(pair, seen, row, t) for row in x[:2]])
together = residual_gradient(pair, seen, x[:2], t)
assert (alone - together).abs().max() < 1e-9, "a chain's gradient depends on which other chains are in its batch"
### BEGIN HIDDEN TESTS
many = Measurement(seen.operator, randn(3, 1, seed=57), 0.1)
x = randn(4, 3, 2, seed=56)
whole = residual_gradient(pair, many, x, t)
for i, j in ((0, 0), (3, 2), (1, 1)):
    one = residual_gradient(pair, Measurement(seen.operator, many.y[j], 0.1), x[i, j], t)
    same(whole[i, j], one, "a chain by itself, and as one of twelve")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_noise", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x, times = randn(4000, 2, seed=58), CHAIN.times(20)
for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
    x = dps_step(pair, seen, x, t, s, randn(4000, 2, seed=60 + i), 0.0, 1.0)
spread = x.var(0)
assert (spread < 1.3).all(), f"unguided samples of data with variances of 1 have the variances {spread.tolist()}"
### BEGIN HIDDEN TESTS
for eta in (0.0, 0.4, 1.0):
    x, z, (t, s) = randn(5, 3, seed=90), randn(5, 3, seed=91), at(300, 200)
    free = Measurement(torch.ones(1, 3, dtype=F64), torch.zeros(1, dtype=F64), 0.1)
    estimate, noise = exact_model(CROWD, CHAIN).data_and_noise(x, t)
    (a_s, _), (*_, c1, c2) = CHAIN.coefficients(s), kernel_numbers(CHAIN, t, s, eta)
    got = dps_step(exact_model(CROWD, CHAIN), free, x, t, s, z, 0.0, eta)
    same(got, a_s * estimate + c2 * noise + c1 * z, f"the step with scale 0 and eta = {eta}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_place", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
crowd, seen = exact_model(CROWD, CHAIN), Measurement(torch.eye(3, dtype=F64), randn(3, seed=100), 0.1)
x, z, (t, s) = randn(1, 3, seed=92), randn(1, 3, seed=93), at(900, 500)


def push(x, t, s, z, scale, eta=1.0):
    """What guidance adds to the step."""
    return dps_step(crowd, seen, x, t, s, z, scale, eta) - dps_step(crowd, seen, x, t, s, z, 0.0, eta)


same(push(x, t, s, z, 2.0), 2 * push(x, t, s, z, 1.0), "a scale twice as large moves the state twice as far")
same(push(x, t, s, -z, 1.0), push(x, t, s, z, 1.0), "noise that comes after the state at t changes the gradient at t")
### BEGIN HIDDEN TESTS
for seed, levels in ((94, (900, 500)), (96, (300, 290)), (98, (1, 0))):
    x, z, (t, s) = randn(1, 3, seed=seed), randn(1, 3, seed=seed + 1), at(*levels)
    wanted = -0.7 * residual_gradient(crowd, seen, x, t)
    same(push(x, t, s, z, 0.7, 0.5), wanted, "what guidance adds, against your gradient at x_t")
    assert not dps_step(crowd, seen, x, t, s, z, 0.7, 0.5).requires_grad, "the result hangs on a graph"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6: sharper than the posterior (5 points)
#
# The prior is a mixture of two Gaussians for each class of digit, fitted to scikit-learn's images of $8\times8$ pixels in $[-1,1]$. A truth drawn from it is measured at 16 random pixels, with noise. Now the posterior is known exactly, and so is the class of an image.
#
# - `expected_errors`: the truth and a sample are two independent draws from the posterior. What is the expected squared error per pixel of a sample, and what is that of the posterior's mean? In closed form, from `posterior.moments()`.
# - `psnr_gain`: a sampler's samples have, in total over the pixels, `share` times the posterior's variance, and their mean is off by `bias` times that variance (squared distance over trace). By how many decibels does its PSNR, $10\log_{10}(4/\text{mean squared error})$, exceed that of exact posterior samples?

# %% nbgrader={"grade": false, "grade_id": "errors", "locked": false, "schema_version": 3, "solution": true, "task": false}
def expected_errors(posterior):
    """Expected squared error per pixel of a sample and of the mean, both of the posterior's batch shape."""
    ### BEGIN SOLUTION
    covariance = posterior.moments()[1]
    own = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    return 2 * own, own
    ### END SOLUTION


def psnr_gain(share, bias=0.0):
    """In decibels, positive if the sampler scores higher than exact samples."""
    ### BEGIN SOLUTION
    return 10 * math.log10(2 / (1 + share + bias))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "errors_moments", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
cloud = normal([0.0, 0.0], [[1.0, 0.0], [0.0, 3.0]])
sample_error, mean_error = expected_errors(cloud)
assert number(mean_error, "the error of the mean") <= number(sample_error, "the error of a sample"), "the mean is best"
### BEGIN HIDDEN TESTS
same([sample_error, mean_error], [4.0, 2.0], "variances 1 and 3: both errors")
two_modes = NormalMixture(randn(3, 2, 4, seed=100), 0.1 * torch.eye(4, dtype=F64).expand(2, 4, 4))
draws = [two_modes.sample(20_000, runtime.generator(seed)) for seed in (101, 102)]
wanted = [(draws[0] - other).square().mean((0, -1)) for other in (draws[1], two_modes.moments()[0])]
for got, by_chance, what in zip(expected_errors(two_modes), wanted, ("a sample", "the mean")):
    same(got, by_chance, f"a batch of mixtures, the error of {what}", 0.03)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "errors_gain", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert abs(number(psnr_gain(1.0), "psnr_gain")) < 1e-9, "exact samples gain nothing over themselves"
assert number(psnr_gain(0.5), "psnr_gain") > 0 > number(psnr_gain(1.0, 0.5), "psnr_gain"), "one of the signs is wrong"
### BEGIN HIDDEN TESTS
truth, sample = (cloud.sample(400_000, runtime.generator(seed)) for seed in (103, 104))
exact = (truth - sample).square().mean()
for share, bias in ((0.0, 0.0), (0.6, 0.2), (1.4, 0.3)):
    moved = math.sqrt(share) * sample + torch.tensor([math.sqrt(4 * bias), 0.0], dtype=F64)
    wanted = 10 * (exact / (truth - moved).square().mean()).log10().item()
    got = number(psnr_gain(share, bias), "psnr_gain")
    assert abs(got - wanted) < 0.05, f"share {share}, bias {bias}: {got:.2f} dB, measured {wanted:.2f} dB"
### END HIDDEN TESTS

# %% [markdown]
# Three samplers now answer the same questions: exact posterior samples, DPS (40 calls) and NDTM (6 steps of 4 inner ones, started from the measurement at level 600), the last two as the package has them. **What to look for:** which has the highest PSNR; whether share and bias explain it; how often the truth lies between the 10th and the 90th percentile of 16 samples, pixel by pixel (dotted: what 16 independent draws from the right law reach); and how often an answer "this digit, with probability 0.8" is right.

# %%
pixels, labels = digits()
pixels, g = 2 * pixels.double() - 1, runtime.generator(runtime.seed())
PRIOR = NormalMixture.joined([NormalMixture.fit(pixels[labels == c], 2) for c in range(10)])
truth = PRIOR.sample(60, g)
mask = torch.eye(64, dtype=F64)[torch.randperm(64, generator=g)[:16]]
seen = Measurement(mask, truth @ mask.T + 0.1 * torch.randn(60, 16, dtype=F64, generator=g), 0.1)
posterior = PRIOR.condition(mask, seen.y, 0.1)


def guided(name, times, start, **settings):
    """16 samples for each of the 60 measurements."""
    return METHODS[name](exact_model(PRIOR, CHAIN), seen, start, times, generator=g, **settings)


late = (0.6 * CHAIN.times(6)).round()
samples = {
    "exact": posterior.sample(16, g),
    "DPS": guided("dps", CHAIN.times(40), CHAIN.initial((16, 60, 64), truth, g), scale=1.5, eta=1.0),
    "NDTM": guided("ndtm", late, guided_start(seen, CHAIN, late[0], (16, 60, 64), g)),
}


# %% alt="Left: gain in PSNR over exact samples, measured and predicted from share and bias, for exact, DPS and NDTM. Middle: share of truths in the 80 percent interval. Right: share of right answers against the stated probability."
def shares(x):
    """Share and bias of samples, as psnr_gain takes them; the mean of 16 is itself uncertain, which is taken off."""
    mean, covariance = posterior.moments()
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum()
    share = (x.var(0).sum() / trace).item()
    return share, ((x.mean(0) - mean).square().sum() / trace).item() - share / len(x)


def reliability(x, edges=(0.0, 0.05, 0.3, 0.7, 0.95, 1.01)):
    """Stated probabilities of all 60 x 10 answers in bins: their means, and how often they are right."""
    digit = [PRIOR.responsibilities(v).unflatten(-1, (10, 2)).sum(-1).argmax(-1) for v in (x, truth)]
    said, right = (torch.nn.functional.one_hot(v, 10).double() for v in digit)
    said = said.mean(0)
    bins = [(said >= low) & (said < high) for low, high in zip(edges[:-1], edges[1:])]
    return [said[b].mean() for b in bins], [right[b].mean() for b in bins]


exact_error = expected_errors(posterior)[0].mean().item()
fig, axes = plt.subplots(1, 3, figsize=(10, 2.8))
for i, (name, x) in enumerate(samples.items()):
    share, bias = shares(x)
    gain = 10 * math.log10(exact_error / (x - truth).square().mean().item())
    low, high = x.quantile(torch.tensor([0.1, 0.9], dtype=F64), 0)
    inside = ((truth > low) & (truth < high)).double().mean().item()
    axes[0].bar(i, gain, color=PALETTE[i])
    axes[0].plot(i, psnr_gain(share, bias), "kD", ms=5)
    axes[1].bar(i, inside, color=PALETTE[i])
    axes[2].plot(*reliability(x), "o-", ms=3, color=PALETTE[i], label=name)
    say(f"{name}: {gain:+.2f} dB against exact samples, share {share:.2f}, bias {bias:.2f}, {inside:.0%} inside.")
for ax, title in zip(axes, ("PSNR gain (dB), ◆ predicted", "truth between the percentiles", "")):
    ax.set(xticks=range(3), xticklabels=samples, title=title)
axes[1].axhline(0.8 * 15 / 17, color="#666666", ls=":")
axes[2].plot([0, 1], [0, 1], color="#666666", ls=":")
axes[2].set(xlabel="stated probability", ylabel="share right", title="Which digit?", xticks=[0, 0.5, 1])
axes[2].set_xticklabels(["0", "½", "1"])
axes[2].legend(fontsize=7)
plt.show()

# %% [markdown]
# **A review** (3 points, read by a person). A paper restores images from few pixels. Its sampler has a PSNR 0.7 dB above that of its closest competitor, and on a synthetic prior even above that of exact posterior samples. It concludes: "our samples follow the posterior more closely, and their spread shows the user which parts of an image to trust". Write the paragraph of the review, in at most 200 words: how can the PSNR of a sampler exceed that of the exact posterior, with a number; which two measurements would support or refute the conclusion, and what did they say in your experiment above; which conclusion would you accept?
#
# One point is for the PSNR, one for measurements that could prove you wrong, one for the conclusion.

# %% [markdown] nbgrader={"grade": true, "grade_id": "review", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Truth and exact sample are two independent draws: their expected squared error is twice the posterior's variance. Returning the posterior's mean halves it, 3 dB more with no spread at all; keeping the mean and a share $r$ of the variance gains $10\log_{10}\frac2{1+r}$ dB, and 0.7 dB need only $r=0.7$. A PSNR above that of exact samples thus proves too little spread, not closeness.
#
# I ask for (1) the share of true values inside intervals of the samples, pixel by pixel, beside what exact samples of that number reach, and the ratio of variances; (2) the reliability of what users read off samples, such as class probabilities, and on the synthetic prior a distance to exact samples beside that between two exact sets. Above, NDTM scored higher than exact samples with about 0.7 of the variance, and its intervals held the truth at about half of the pixels instead of 71 %. DPS has too much variance around a mean that is off, and its class probabilities are too cautious; those of NDTM were nearly right, so that one check alone would have misled.
#
# I accept that single samples are good restorations. I do not accept that their spread shows what to trust.
#
# *Marks.* 1 for the doubled error (½) and a number (½). 1 for two measurements that can fail (½) and what they said here (½). 1 for a conclusion that separates restoring from knowing.
