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
# # Exercises 05: Gaussianization
#
# Read [chapter 05](../../chapters/05_gaussianization.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 What a random direction sees | 4 | 4 | |
# | 2 Layers against dimension | 4 | 4 | |
# | 3 Count what the layers can reach | 3 | 3 | |
# | 4 Find the faults | 4 | 4 | |
# | 5 Predict, then measure: independent sources | 5 | 3 | 2 |
# | 6 A rotation chosen from noise | 5 | 2 | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.flows` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - $D$ is the dimension. A *layer* is $z=g(Qx)$ with an orthogonal matrix $Q$ and a map $g$ of each coordinate alone. The rows $q_1,\dots,q_D$ of $Q$ are the directions that the coordinates of $Qx$ look along. A *random* rotation is drawn from the Haar distribution, under which every $q_i$ is uniform on the unit sphere.
# - The *loss* is the KL divergence from the data's distribution to $\mathcal N(0,I)$, in nats. The *gain* of a layer is the loss before it minus the loss after it.
# - For Gaussian data of mean 0 and covariance $\Sigma$ the loss is $\frac12(\operatorname{tr}\Sigma-D-\ln\det\Sigma)$, and the best $g$ divides each coordinate by its standard deviation. If all variances are 1 already, only $\mathcal L=-\frac12\ln\det\Sigma$ is left.
# - Points are the rows of a tensor of shape (n, dim), so that a rotation acts as `x @ q.T`. Tensors come in double precision; keep it. Loops, NumPy and PyTorch are all welcome inside your functions.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from refimpl import runtime
from refimpl.flows.gaussian_recursion import best_scales, haar
from refimpl.plots import PALETTE, label_panels, say, use_course_style

use_course_style()


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-6):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got).detach().cpu(), torch.as_tensor(wanted)
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


def random_covariance(dim, generator):
    """Covariance with unit variances, close to the identity: a random rotation of a spectrum within [0.6, 1.65]."""
    spectrum = (torch.rand(dim, generator=generator).double() - 0.5).exp()
    q = haar(dim, generator=generator)
    sigma = (q * spectrum) @ q.T
    scale = sigma.diagonal().rsqrt()
    return scale[:, None] * sigma * scale


def exact_gain(eigenvalues):
    """Mean gain of one layer with a random rotation, for Gaussian data of unit variances with these eigenvalues.

    Exact, as an integral over u: E ln(sum of eigenvalues_j g_j^2), g normal, is one of 1 / sqrt(det) by Frullani.
    """
    u = torch.linspace(-40, 60, 4001).double()[:, None]
    one, other = (-0.5 * torch.log1p(2 * v * u.exp()).sum(1) for v in (torch.ones_like(eigenvalues), eigenvalues))
    return -len(eigenvalues) / 2 * ((one.exp() - other.exp()).sum() * (u[1] - u[0])).item()


# %% [markdown]
# ## Task 1: what a random direction sees (4 points)
#
# Gaussian data with unit variances have a covariance with eigenvalues $\lambda_j=1+\epsilon_j$ and $\sum_j\epsilon_j=0$. Along a random direction $q$, in the coordinates of the eigenvectors, their variance is $1+y$ with $y=\sum_j\epsilon_jq_j^2$. A random layer gains, on average,
#
# $$R=-\frac D2\,\mathbb E\ln(1+y),\qquad\text{out of}\qquad\mathcal L=-\frac12\sum_j\ln(1+\epsilon_j).$$
#
# Everything follows from the moments of $q$. Derive these four with pencil and paper, then write them down as functions.
#
# - `sphere_moment` is $\mathbb E\,q_1^{a_1}q_2^{a_2}\cdots$ for whole exponents $a_1,a_2,\dots\ge0$. A vector $g$ of $D$ independent standard normals is its length times a uniform direction, and the two are independent. So a moment of $q$ is one of $g$ over one of its length, and $\|g\|^2$ has the moments $\mathbb E\|g\|^{2m}=D(D+2)\cdots(D+2m-2)$.
# - `second_order` are $\mathcal L$ and $R$ up to and including $\epsilon^2$. Use $\sum_j\epsilon_j=0$.
# - `layers_needed` is the number of layers, not rounded, that divides the loss by the factor $F$, if every layer leaves the same share as near the identity. It is the exact expression, not its limit for large $D$.
# - `skew_coefficient` is the $c$, a function of $D$ alone, in the next order of the share that is removed,
#
# $$\frac R{\mathcal L}=\frac2{D+2}\Big(1+c\,\frac{\sum_j\epsilon_j^3}{\sum_j\epsilon_j^2}+\dots\Big).$$
#
# For this one you need $\mathbb Ey^3$. With $\sum_j\epsilon_j=0$ three kinds of sixth moments shrink to one multiple of $\sum_j\epsilon_j^3$. Mind that $\mathcal L$ has a third order, too.

# %% nbgrader={"grade": false, "grade_id": "sphere", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sphere_moment(powers, dim):
    """Mean of q_1^a_1 q_2^a_2 ... for q uniform on the unit sphere in dim dimensions; powers: (a_1, a_2, ...)."""
    ### BEGIN SOLUTION
    if any(a % 2 for a in powers):
        return 0.0
    above = math.prod(math.prod(range(1, a, 2)) for a in powers)  # (a - 1)!!
    return above / math.prod(dim + 2 * m for m in range(sum(powers) // 2))
    ### END SOLUTION


def second_order(eigenvalues):
    """Loss and mean gain of a random layer, to second order; eigenvalues: shape (dim,), of mean 1."""
    ### BEGIN SOLUTION
    squares = (eigenvalues - 1).square().sum()
    return squares / 4, squares / (2 * (len(eigenvalues) + 2))
    ### END SOLUTION


def layers_needed(dim, factor):
    """Layers after which the loss is 1 / factor of what it was."""
    ### BEGIN SOLUTION
    return math.log(factor) / math.log((dim + 2) / dim)
    ### END SOLUTION


def skew_coefficient(dim):
    """The c above."""
    ### BEGIN SOLUTION
    return 2 * dim / (3 * (dim + 4))  # E y^3 = 8 sum(eps^3) / (D (D + 2) (D + 4))
    ### END SOLUTION


# %% [markdown]
# On a sphere the squares of all coordinates add up to 1, which ties the moments together.

# %% nbgrader={"grade": true, "grade_id": "sphere_moments", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_moments(dim):
    fourth, mixed = (number(sphere_moment(a, dim), f"sphere_moment({a}, {dim})") for a in ((4,), (2, 2)))
    total = dim * fourth + dim * (dim - 1) * mixed
    assert abs(total - 1) < 1e-9, f"D = {dim}: with your moments the mean of |q|^4 is {total:.4f}"
    turned = (2 * fourth + 6 * mixed) / 4  # of (q_1 + q_2) / sqrt(2)
    assert abs(turned - fourth) < 1e-9, f"D = {dim}: your fourth moment changes from {fourth:.4f} if the axes turn"


def check_moment(powers, dim, wanted):
    got = number(sphere_moment(powers, dim), f"sphere_moment({powers}, {dim})")
    assert abs(got - wanted) < 1e-9, f"the moment with the exponents {powers} in {dim} dimensions is not {got:.6f}"


check_moments(dim=3)
check_moment((2,), 7, 1 / 7)
check_moment((1, 2), 3, 0.0)
### BEGIN HIDDEN TESTS
check_moments(dim=2)
check_moments(dim=48)
check_moment((4,), 2, 3 / 8)
check_moment((6,), 5, 15 / 315)
check_moment((4, 2), 5, 3 / 315)
check_moment((2, 2, 2), 5, 1 / 315)
check_moment((4, 4), 3, 9 / 945)
check_moment((8,), 3, 1 / 9)
check_moment((3, 3), 6, 0.0)
check_moment((2, 0, 4), 5, 3 / 315)
check_moment((), 4, 1.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sphere_second", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_second(direction, name):
    """Compare with the exact loss and gain of 1 + t * direction for small t, averaged over both signs of t."""
    direction = torch.tensor(direction).double()
    direction = direction - direction.mean()
    t = 1e-3 / direction.norm()
    exact = [[-0.5 * v.log().sum().item(), exact_gain(v)] for v in (1 + t * direction, 1 - t * direction)]
    exact = torch.tensor(exact).mean(0).tolist()
    got = second_order(1 + t * direction)
    assert got is not None and len(got) == 2, "second_order must return two numbers"
    for what, mine, right in zip(("loss", "mean gain"), got, exact):
        off = number(mine, what) / right
        assert abs(off - 1) < 1e-2, f"{name}: your {what} is {off:.3f} times the exact one"


check_second([1.0, -1.0], "two dimensions")
### BEGIN HIDDEN TESTS
check_second([3.0, 1.0, 0.0, 0.0, -1.0], "five dimensions")
check_second(torch.linspace(-1, 1, 40).tolist(), "forty dimensions")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sphere_layers", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_layers(dim, factor, wanted):
    got = number(layers_needed(dim, factor), "layers_needed")
    assert abs(got - wanted) < 0.01, f"D = {dim}, F = {factor:.3g}: {got:.2f} layers are not right"


check_layers(2, 4, 2.0)
check_layers(8, 100, 20.64)
### BEGIN HIDDEN TESTS
for row in (
    (8, math.e, 4.48),
    (16, 10, 19.55),
    (32, 100, 75.96),
    (64, 10, 74.83),
    (128, 10, 148.51),
    (128, 100, 297.03),
):
    check_layers(*row)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "sphere_skew", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def exact_share(eigenvalues):
    return exact_gain(eigenvalues) / (-0.5 * eigenvalues.log().sum().item())


def check_skew(direction):
    direction = torch.tensor(direction).double()
    direction = direction - direction.mean()
    dim, t = len(direction), 0.02 / direction.norm()
    slope = (exact_share(1 + t * direction) - exact_share(1 - t * direction)) / 2
    wanted = slope * (dim + 2) / 2 * direction.square().sum() / (t * direction**3).sum()
    got = number(skew_coefficient(dim), f"skew_coefficient({dim})")
    assert got * wanted > 0, f"D = {dim}: c has the opposite sign"
    assert abs(got / wanted - 1) < 1e-3, f"D = {dim}: your c is {got / wanted:.4f} times the right one"


check_skew([1.0, 0.0, 0.0, 0.0])
### BEGIN HIDDEN TESTS
check_skew([5.0, 1.0, 0.0])
check_skew([-4.0, *[0.0] * 11])
check_skew([9.0, -3.0, *[0.5] * 38])
### END HIDDEN TESTS

# %% [markdown]
# The correction has a sign: what does it say about a spectrum with one large eigenvalue, and about one with a single small eigenvalue? **What to look for:** whether the exact curve leaves $2/(D+2)$ in the direction and with the slope that you derived, and which way the exact curve bends where $\epsilon$ is no longer small.

# %% alt="Share of the loss that a random layer removes, against the deviation of one eigenvalue from 1: it rises from 0.02 at -1 through 0.11 at 0 to 0.29 at 8; the straight tangent of the derivation touches it at 0."
dim = 16
deviation = torch.cat([torch.linspace(-0.98, -0.02, 30), torch.linspace(0.02, 8, 60)]).double()
shares, lines = [], []
for e in deviation:
    eps = torch.full((dim,), -e / (dim - 1)).double()
    eps[0] = e
    shares.append(exact_share(1 + eps))
    lines.append(2 / (dim + 2) * (1 + skew_coefficient(dim) * (eps**3).sum() / eps.square().sum()))
fig, ax = plt.subplots(figsize=(7.6, 2.7))
ax.plot(deviation, shares, color=PALETTE[0], label="exact")
ax.plot(deviation, lines, "--", color=PALETTE[1], label="with your coefficient")
ax.axhline(2 / (dim + 2), color="k", ls=":", lw=0.8, label="2 / (D + 2)")
ax.set(xlabel="deviation of one eigenvalue from 1", ylabel="share removed by a layer", ylim=(0, 0.35))
ax.set_title("One eigenvalue that differs, D = 16")
ax.legend()
plt.show()


# %% [markdown]
# ## Task 2: layers against dimension (4 points)
#
# Gaussian data stay Gaussian, so that whole networks can be simulated on covariances, without a sample.
#
# - `gaussian_layer` takes any covariance and any orthogonal matrix. It returns the covariance after the layer, and the layer's gain. The covariance that comes in need not have unit variances.
# - `layers_until` counts. Divide each coordinate by its standard deviation first; the loss is now $\mathcal L_0$. Then add layers with random rotations until the loss is at most $\mathcal L_0/F$, and return their number, the standardisation not counted. `haar(dim, generator=generator)` draws a rotation.
# - `layers_per_dimension` draws `num_runs` covariances from `random_covariance` for each dimension in `dims`, counts the layers of each with `layers_until`, and returns the slope of the least-squares line, with an intercept, of the number of layers against the dimension.

# %% nbgrader={"grade": false, "grade_id": "layers", "locked": false, "schema_version": 3, "solution": true, "task": false}
def gaussian_layer(covariance, rotation):
    """Covariance after a layer, shape (dim, dim), and the layer's gain in nats."""
    ### BEGIN SOLUTION
    turned = rotation @ covariance @ rotation.T
    variances = turned.diagonal()
    scale = variances.rsqrt()
    after = scale[:, None] * turned * scale
    return (after + after.T) / 2, 0.5 * (variances - 1 - variances.log()).sum()
    ### END SOLUTION


def layers_until(covariance, factor, generator):
    """Number of random layers that divide the loss by factor; the loss is counted from after standardisation."""
    ### BEGIN SOLUTION
    sigma, _ = gaussian_layer(covariance, torch.eye(len(covariance)).to(covariance))
    first = left = -0.5 * torch.logdet(sigma)
    count = 0
    while left > first / factor:
        sigma, _ = gaussian_layer(sigma, haar(len(sigma), generator=generator))
        left, count = -0.5 * torch.logdet(sigma), count + 1
    return count
    ### END SOLUTION


def layers_per_dimension(factor, dims, num_runs, generator):
    """Slope of the number of layers against the dimension."""
    ### BEGIN SOLUTION
    x = torch.tensor([float(d) for d in dims for _ in range(num_runs)])
    y = torch.tensor([float(layers_until(random_covariance(int(d), generator), factor, generator)) for d in x])
    x = x - x.mean()
    return (x * y).sum() / x.square().sum()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "layers_step", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_step(covariance, rotation, wanted):
    kept = covariance.clone()
    found = gaussian_layer(covariance, rotation)
    assert found is not None and len(found) == 2, "gaussian_layer must return a covariance and a number"
    after = torch.as_tensor(found[0])
    assert torch.equal(kept, covariance), "gaussian_layer changes the covariance that it gets"
    assert after.shape == covariance.shape, f"you return the shape {tuple(after.shape)} for {tuple(covariance.shape)}"
    assert (after - after.T).abs().max() < 1e-9, "what you return is not symmetric"
    variance = after.diagonal()
    assert (variance - 1).abs().max() < 1e-9, f"after a layer the variances are {variance.tolist()}"
    same(after, wanted, "the covariance after a layer")


turned = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double()
sigma = torch.tensor([[4.0, 0.0], [0.0, 1.0]]).double()
r = -1.44 / math.sqrt(2.08 * 2.92)
check_step(sigma, turned, torch.tensor([[1.0, r], [r, 1.0]]).double())
### BEGIN HIDDEN TESTS
from refimpl.flows.gaussian_recursion import correlation

for seed, dim in ((0, 5), (1, 12)):
    source = runtime.generator(seed)
    sigma = random_covariance(dim, source)
    spread = torch.rand(dim, generator=source).double() + 0.3
    q = haar(dim, generator=source)
    for start in (sigma, spread[:, None] * sigma * spread):
        check_step(start, q, correlation(q @ start @ q.T))
### END HIDDEN TESTS

# %% [markdown]
# The gain must be what the loss falls by, and PyTorch knows the KL divergence between two Gaussians.

# %% nbgrader={"grade": true, "grade_id": "layers_gain", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def kl_to_normal(sigma):
    zero = torch.zeros(len(sigma)).double()
    p, q = (torch.distributions.MultivariateNormal(zero, s) for s in (sigma, torch.eye(len(sigma)).double()))
    return torch.distributions.kl_divergence(p, q).item()


def check_gain(sigma, rotation, what):
    turned = rotation @ sigma @ rotation.T
    d = turned.diagonal()
    wanted = kl_to_normal(sigma) - kl_to_normal(turned / (d[:, None] * d).sqrt())
    got = number(gaussian_layer(sigma, rotation)[1], "the gain")
    assert abs(got - wanted) < 1e-8, f"{what}: the loss falls by {wanted:.5f}, you say {got:.5f}"


check_gain(random_covariance(4, runtime.generator(2)), haar(4, generator=runtime.generator(3)), "unit variances")
check_gain(
    torch.diag(torch.tensor([0.5, 1.0, 1.5])).double(), haar(3, generator=runtime.generator(4)), "mean variance 1"
)
### BEGIN HIDDEN TESTS
large = 3 * random_covariance(6, runtime.generator(5))
check_gain(large, haar(6, generator=runtime.generator(6)), "variances of 3")
check_gain(large / 30, torch.eye(6).double(), "variances of 0.1, no rotation")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "layers_count", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_count(dim, factor, seed, low, high, spread=1.0, num_runs=24):
    source = runtime.generator(seed)
    total = 0.0
    for _ in range(num_runs):
        scale = torch.linspace(1 / spread, spread, dim).double()
        count = layers_until(scale[:, None] * random_covariance(dim, source) * scale, factor, source)
        total += number(count, "layers_until")
    mean = total / num_runs
    assert low < mean < high, f"D = {dim}, F = {factor}: {num_runs} runs take {mean:.1f} layers on average"


sigma = random_covariance(6, runtime.generator(7))
count = layers_until(sigma, 1, runtime.generator(8))
assert count == 0, f"the loss need not fall at all, and you use {count} layers"
count = layers_until(sigma, 1.0001, runtime.generator(8))
assert count == 1, f"the first layer is enough, and you use {count} layers"
check_count(dim=16, factor=10, seed=9, low=18.5, high=22.5)
### BEGIN HIDDEN TESTS
check_count(dim=16, factor=10, seed=10, low=18.5, high=22.5, spread=3.0)
check_count(dim=16, factor=10, seed=11, low=18.5, high=22.5, spread=0.2)
check_count(dim=8, factor=100, seed=12, low=18.0, high=24.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "layers_slope", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_slope(factor, seed, low, high, dims=(8, 16, 32), num_runs=8):
    got = number(layers_per_dimension(factor, dims, num_runs, runtime.generator(seed)), "layers_per_dimension")
    assert low < got < high, f"F = {factor}: {got:.3f} layers for each further dimension"


check_slope(factor=5, seed=13, low=0.65, high=0.95)
### BEGIN HIDDEN TESTS
check_slope(factor=5, seed=14, low=0.7, high=0.95, num_runs=16)
check_slope(factor=100, seed=15, low=2.1, high=2.6)
check_slope(factor=10, seed=16, low=0.95, high=1.35, dims=(12, 24), num_runs=20)
kept, layers_until = layers_until, lambda covariance, factor, generator: {4: 10, 8: 12, 20: 40}[len(covariance)]
try:
    got = number(layers_per_dimension(5, (4, 8, 20), 2, runtime.generator(18)), "layers_per_dimension")
finally:
    layers_until = kept
assert abs(got - 1.9808) < 1e-3, f"for 10, 12 and 40 layers in 4, 8 and 20 dimensions your slope is {got:.4f}"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** which part of the numbers is a straight line, and does your `layers_needed` of task 1, which knows nothing of this covariance but its dimension, meet it?

# %% alt="Layers needed against the dimension for three factors: the measured points lie on three straight lines, steepest for the factor 100."
dims, source = (4, 8, 12, 16, 24, 32), runtime.generator(17)
fig, ax = plt.subplots(figsize=(7.6, 2.7))
for factor, colour in zip((100, 10, 5), PALETTE):
    counts = [sum(layers_until(random_covariance(d, source), factor, source) for _ in range(6)) / 6 for d in dims]
    ax.plot(dims, counts, "o", color=colour, label=f"F = {factor}, measured")
    ax.plot(dims, [layers_needed(d, factor) for d in dims], color=colour, lw=1, label="task 1")
ax.set(xlabel="dimension", ylabel="layers")
ax.set_title("Layers that divide the loss by F")
ax.legend(ncols=3, loc="upper left")
plt.show()


# %% [markdown]
# ## Task 3: count what the layers can reach (3 points)
#
# Fix $L$ rotations, train everything else. For Gaussian data that leaves positive scales, $A=S_LQ_L\cdots S_1Q_1$ with diagonal $S_\ell$, and whitening $\Sigma$ means $A\Sigma A^\top=I$, that is, $A^\top A=\Sigma^{-1}$. A symmetric matrix has $D(D+1)/2$ numbers. The chapter counts $LD$ scales and concludes that $L\ge(D+1)/2$ layers are necessary.
#
# That is true. But *necessary* is all that it says, and it counts scales, not what they reach. The dimension of what they reach is the rank of the derivative of $A^\top A$ with respect to all scales.
#
# - `reached_dimensions` computes this rank, at the given logarithms of the scales. `torch.func.jacrev` gives you the derivative, `torch.linalg.matrix_rank` the rank. Count each entry of the symmetric matrix as often as you like: copies add no rank.
# - Look at its values for several $D$ and $L$ and random rotations (`haar(dim, L)` draws $L$ at once). Is the rank the number of scales? Find the reason, and conclude how many layers are necessary to whiten almost every $\Sigma$. `fewest_layers` is this number for rotations in general position, like those that `haar` draws.
# - Now let the rotation look at the data. `one_layer` returns an orthogonal $Q$ and the positive scales on the diagonal of $S$, shape (dim,), such that a single layer whitens the given covariance exactly.

# %% nbgrader={"grade": false, "grade_id": "counting", "locked": false, "schema_version": 3, "solution": true, "task": false}
def reached_dimensions(rotations, log_scales):
    """Rank of the derivative; rotations: shape (L, dim, dim), the first is applied first; log_scales: shape (L, dim)."""
    ### BEGIN SOLUTION
    dim = rotations.shape[-1]

    def gram(s):
        product = torch.eye(dim).to(rotations)
        for q, log_scale in zip(rotations, s):
            product = log_scale.exp()[:, None] * (q @ product)
        return product.T @ product

    derivative = torch.func.jacrev(gram)(log_scales).reshape(dim**2, -1)
    return int(torch.linalg.matrix_rank(derivative, rtol=1e-9))
    ### END SOLUTION


def fewest_layers(dim):
    """Smallest number of layers that counting allows."""
    ### BEGIN SOLUTION
    count = 1
    while (
        count * (dim - 1) + 1 < dim * (dim + 1) // 2
    ):  # one factor can move from layer to layer: L - 1 scales do nothing
        count += 1
    return count
    ### END SOLUTION


def one_layer(covariance):
    """Orthogonal matrix and positive scales of a layer that whitens the covariance."""
    ### BEGIN SOLUTION
    values, vectors = torch.linalg.eigh(covariance)
    return vectors.T, values.rsqrt()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "counting_rank", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_rank(rotations, wanted, what, seed=20):
    shape = rotations.shape[:-1]
    got = reached_dimensions(rotations, 0.3 * torch.randn(*shape, generator=runtime.generator(seed)).double())
    assert got is not None, "reached_dimensions returns nothing"
    assert int(got) == wanted, f"{what}, L = {shape[0]}, D = {shape[1]}: the rank is not {int(got)}"


still = torch.eye(4).double().expand(3, 4, 4)
check_rank(still, 4, "no rotations at all")
check_rank(haar(3, 1, generator=runtime.generator(21)), 3, "one layer")
check_rank(haar(2, 5, generator=runtime.generator(22)), 3, "more than enough layers")
### BEGIN HIDDEN TESTS
for seed, dim, layers, wanted in ((23, 4, 2, 7), (24, 5, 3, 13), (25, 5, 4, 15), (26, 3, 9, 6), (27, 6, 2, 11)):
    check_rank(haar(dim, layers, generator=runtime.generator(seed)), wanted, "random rotations", seed)
check_rank(
    torch.eye(5)[torch.tensor([[1, 2, 3, 4, 0], [4, 2, 0, 1, 3]])].double(), 5, "permutations in place of rotations"
)
blocks = torch.zeros(4, 4, 4).double()
blocks[:, :2, :2], blocks[:, 2:, 2:] = (
    haar(2, 4, generator=runtime.generator(28)),
    haar(2, 4, generator=runtime.generator(29)),
)
check_rank(blocks, 6, "rotations within two halves that never mix")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "counting_layers", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_fewest(dim, wanted):
    got = number(fewest_layers(dim), f"fewest_layers({dim})")
    assert got == int(got), f"a number of layers is whole, you return {got}"
    assert got <= wanted, f"D = {dim}: fewer layers than your {int(got)} are not excluded by any count"
    assert got >= wanted, f"D = {dim}: {int(got)} layers cannot reach {dim * (dim + 1) // 2} dimensions"


check_fewest(2, 2)
check_fewest(4, 3)
check_fewest(6, 4)
### BEGIN HIDDEN TESTS
for row in ((1, 1), (3, 3), (5, 4), (7, 5), (10, 6), (101, 52), (784, 393)):
    check_fewest(*row)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "counting_one_layer", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_one(sigma, what):
    found = one_layer(sigma)
    assert found is not None and len(found) == 2, "one_layer must return a matrix and the scales"
    q, s = (torch.as_tensor(part).to(sigma) for part in found)
    assert q.shape == sigma.shape and s.shape == sigma.shape[:1], (
        f"{what}: shapes {tuple(q.shape)} and {tuple(s.shape)}"
    )
    assert (s > 0).all(), f"{what}: some of your scales are not positive"
    same(q @ q.T, torch.eye(len(q)).double(), f"{what}: your matrix times its transpose, against the identity")
    a = s[:, None] * q
    same(a @ sigma @ a.T, torch.eye(len(q)).double(), f"{what}: the covariance behind your layer, against the identity")


check_one(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), "a covariance with the eigenvalues 1 and 3")
### BEGIN HIDDEN TESTS
check_one(random_covariance(7, runtime.generator(30)), "a random covariance")
check_one(100 * random_covariance(3, runtime.generator(31)), "large variances")
check_one(2 * torch.eye(3).double(), "a covariance whose eigenvalues are all equal")
### END HIDDEN TESTS

# %% [markdown]
# Does a count tell what training finds? `best_scales` of `refimpl` trains all scales together. **What to look for:** five dimensions, where your count and the chapter's differ by one layer.

# %%
source = runtime.generator(32)
points = torch.randn(10, 5, generator=source).double()
sigma = points.T @ points / 10
for count in (2, 3, 4):
    rotations = haar(5, count, generator=source)
    rank = reached_dimensions(rotations, torch.zeros(count, 5).double())
    left = best_scales(sigma, rotations, generator=source)[0].clamp_min(0)
    say(
        f"D = 5, L = {count}: {5 * count} scales, rank {rank} of 15, the least loss that training finds is {left:.1e} nats."
    )


# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# Now data, in place of covariances. A layer is a tuple `(rotation, centres, widths)`: the marginal map of coordinate $i$ is $g_i=\Phi^{-1}\circ F_i$ with the distribution function of a kernel estimate with logistic kernels,
#
# $$F_i(y)=\frac1K\sum_{k=1}^Ks\Big(\frac{y-c_{ki}}{h_{ki}}\Big),\qquad s(u)=\frac1{1+e^{-u}},\qquad s'(u)=s(u)\,s(-u).$$
#
# Both `centres` $c$ and `widths` $h$ have the shape (K, dim); $\Phi$ is the normal distribution function. (The chapter's kernels are Gaussian. The heavier tails of these keep a point far out finite.) The following five functions are meant to do this:
#
# - `turn` draws an orthogonal matrix from the Haar distribution;
# - `marginal` returns $g(y)$ for all coordinates, and $\ln g_i'(y_i)$, both of the shape of `y`;
# - `fit_layers` fits layer after layer. The centres are quantiles of what the layers before, and the new rotation, make of the data. The width of a kernel is an eighth of (standard deviation + distance of its centre from the mean), so that the tails get wide ones;
# - `push` maps data to latent points and returns them with the logarithm of the model's density at the data;
# - `pull` is the inverse of the way to the latent points.
#
# All run without complaint. (`solve`, in the cell after them, inverts the marginal map.)

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def turn(dim, generator):
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0]


def marginal(y, centres, widths):
    u = (y[:, None] - centres) / widths
    z = torch.special.ndtri(u.sigmoid().mean(1))
    density = (u.sigmoid() * (-u).sigmoid() / widths).mean(1)
    return z, density.log()


def fit_layers(x, num_layers, generator):
    layers, share = [], (torch.arange(40).double() + 0.5) / 40
    for _ in range(num_layers):
        rotation = turn(x.shape[1], generator)
        y = x @ rotation.T
        centres = y.quantile(share, dim=0)
        layers.append((rotation, centres, 0.125 * (y.std(0) + (centres - y.mean(0)).abs())))
    return layers


def push(x, layers):
    total = torch.zeros(len(x)).double()
    for rotation, centres, widths in layers:
        x, log_slopes = marginal(x @ rotation.T, centres, widths)
        total = total + log_slopes.sum(1)
    return x, total - (x.square() + math.log(2 * math.pi)).sum(1) / 2


def pull(z, layers):
    for rotation, centres, widths in layers:
        z = solve(z, centres, widths) @ rotation
    return z


# %% [markdown]
# They have four faults, at most one in each function. Do not stare at them; experiment. One dimension is a good place to begin: there, with a single layer, the model's density *is* the kernel estimate. And `made_layers` below gives you layers that nobody had to fit. Then write those functions that need repair once more, whole and under the same names, into the cell that is left free for it. What is right you need not repeat.

# %% nbgrader={"grade": false, "grade_id": "made_layers", "locked": true, "schema_version": 3, "solution": false, "task": false}
def solve(z, centres, widths):
    """The y whose image under marginal is z, by bisection; this one is right."""
    low, high = (centres - 40 * widths).amin(0).expand_as(z), (centres + 40 * widths).amax(0).expand_as(z)
    for _ in range(58):
        middle = (low + high) / 2
        above = marginal(middle, centres, widths)[0] > z
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def made_layers(dim, num_layers, seed, num_centres=7):
    """Layers with random rotations, centres and widths."""
    source = runtime.generator(seed)
    return [
        (
            haar(dim, generator=source),
            torch.randn(num_centres, dim, generator=source).double(),
            0.3 + 0.5 * torch.rand(num_centres, dim, generator=source).double(),
        )
        for _ in range(num_layers)
    ]


def two_arcs(num_points, seed):
    """Points on two interleaved half circles, shape (num_points, 2)."""
    source = runtime.generator(seed)
    angle = math.pi * torch.rand(num_points, generator=source).double()
    side = (torch.arange(num_points) % 2).double() * 2 - 1
    points = torch.stack([angle.cos() + 0.5 * side, (angle.sin() - 0.3) * side], 1)
    return 1.4 * points + 0.1 * torch.randn(num_points, 2, generator=source).double()


# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def turn(dim, generator):  # noqa: F811
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())
    return q * r.diagonal().sign()


def marginal(y, centres, widths):  # noqa: F811
    u = (y[:, None] - centres) / widths
    z = torch.special.ndtri(u.sigmoid().mean(1))
    density = (u.sigmoid() * (-u).sigmoid() / widths).mean(1)
    return z, density.log() + z.square() / 2 + math.log(2 * math.pi) / 2


def fit_layers(x, num_layers, generator):  # noqa: F811
    layers, share = [], (torch.arange(40).double() + 0.5) / 40
    for _ in range(num_layers):
        rotation = turn(x.shape[1], generator)
        y = x @ rotation.T
        centres = y.quantile(share, dim=0)
        layers.append((rotation, centres, 0.125 * (y.std(0) + (centres - y.mean(0)).abs())))
        x = marginal(y, *layers[-1][1:])[0]
    return layers


def pull(z, layers):  # noqa: F811
    for rotation, centres, widths in reversed(layers):
        z = solve(z, centres, widths) @ rotation
    return z


### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "faults_turn", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_turn(dim, num_draws, seed, slack):
    source = runtime.generator(seed)
    q = torch.stack([torch.as_tensor(turn(dim, source)) for _ in range(num_draws)]).double()
    assert q.shape == (num_draws, dim, dim), f"you return the shape {tuple(q.shape[1:])} for dim = {dim}"
    same(q @ q.mT, torch.eye(dim).double().expand_as(q), "your matrix times its transpose, against the identity")
    positive = (q > 0).double().mean(0)
    worst = (positive - 0.5).abs().argmax().item()
    share = positive.flatten()[worst]
    i, j = divmod(worst, dim)
    assert abs(share - 0.5) < slack, f"the entry [{i}, {j}] of {num_draws} matrices is positive in {share:.0%} of them"
    return q


check_turn(dim=3, num_draws=100, seed=40, slack=0.25)
### BEGIN HIDDEN TESTS
for dim in (2, 5):
    q = check_turn(dim, num_draws=1500, seed=41, slack=0.08)
    fourth = q.pow(4).mean(0) * dim * (dim + 2) / 3
    worst = (fourth - 1).abs().max().item()
    assert worst < 0.2, f"D = {dim}: the fourth moment of an entry is off by {worst:.0%}"
    twice = (q @ q).diagonal(dim1=-2, dim2=-1).sum(-1).mean().item()
    assert abs(twice - 1) < 0.25, f"D = {dim}: the trace of the squared matrix has the mean {twice:.2f}"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_density", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
line = made_layers(dim=1, num_layers=1, seed=42)
rotation, centres, widths = line[0]
at = torch.linspace(-5, 5, 41).double()[:, None]
kernels = 1 / (4 * widths.T * torch.cosh((rotation * at - centres.T) / (2 * widths.T)) ** 2)
wanted = kernels.mean(1).log()
same(push(at, line)[1], wanted, "one layer in one dimension: the log-density, against that of the kernel estimate")
slope = torch.func.vmap(torch.func.grad(lambda y: marginal(y.view(1, 1), centres, widths)[0].sum()))(at)
same(
    torch.as_tensor(marginal(at, centres, widths)[1]).exp(), slope, "the slope, against the derivative of your own map"
)
### BEGIN HIDDEN TESTS
grid = torch.linspace(-24, 24, 401).double()
plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).flatten(0, 1)
total = (
    torch.as_tensor(push(plane, made_layers(dim=2, num_layers=1, seed=43))[1]).exp().nan_to_num(0).sum().item()
    * 0.12**2
)
assert abs(total - 1) < 1e-3, f"one layer in two dimensions: the density has the integral {total:.4f}"
layers = made_layers(dim=3, num_layers=3, seed=43)
x = torch.randn(20, 3, generator=runtime.generator(45)).double()
jacobian = torch.func.vmap(torch.func.jacrev(lambda p: push(p[None], layers)[0][0]))(x)
wanted = torch.linalg.slogdet(jacobian)[1] + torch.distributions.Normal(0, 1).log_prob(push(x, layers)[0]).sum(1)
same(push(x, layers)[1], wanted, "three layers: the log-density, against the Jacobian of your own map")
rotation, centres, widths = made_layers(dim=3, num_layers=1, seed=44)[0]
u = (x @ rotation.T - centres[:, None]) / widths[:, None]
latent = torch.distributions.Normal(0, 1).icdf((1 + torch.tanh(u / 2)).mean(0) / 2)
same(push(x, [(rotation, centres, widths)])[0], latent, "one layer in three dimensions: the latent points")
wanted = (1 / (4 * widths[:, None] * torch.cosh(u / 2) ** 2)).mean(0).log().sum(1)
same(push(x, [(rotation, centres, widths)])[1], wanted, "one layer in three dimensions: the log-density")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_fit", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_fit(x, num_layers, seed):
    kept = x.clone()
    layers = fit_layers(x, num_layers, runtime.generator(seed))
    assert torch.equal(x, kept), "fit_layers changes the data that it gets"
    assert layers is not None and len(layers) == num_layers, f"expected {num_layers} layers"
    share = (torch.arange(40).double() + 0.5) / 40
    for i, (rotation, centres, widths) in enumerate(layers):
        y = x @ rotation.T
        off = (centres - y.quantile(share, dim=0)).abs().max().item()
        assert off < 1e-6, f"layer {i + 1}: its centres are up to {off:.2f} away from the data that reach it"
        same(widths, 0.125 * (y.std(0) + (centres - y.mean(0)).abs()), f"layer {i + 1}: the widths")
        x = torch.special.ndtri(((y[:, None] - centres) / widths).sigmoid().mean(1))
    return layers


check_fit(two_arcs(500, seed=46), num_layers=1, seed=47)
latent = push(two_arcs(500, seed=46), fit_layers(two_arcs(500, seed=46), 12, runtime.generator(47)))[0]
low, high = torch.as_tensor(latent).std(0).aminmax()
assert 0.82 < low and high < 1.05, (
    f"behind twelve layers the data have standard deviations from {low:.2f} to {high:.2f}"
)
### BEGIN HIDDEN TESTS
check_fit(two_arcs(1500, seed=48), num_layers=6, seed=50)
check_fit(torch.rand(300, 4, generator=runtime.generator(51)).double() * 7, num_layers=3, seed=52)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_pull", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_pull(x, layers):
    kept = [tuple(part.clone() for part in layer) for layer in layers]
    z = torch.as_tensor(push(x, layers)[0])
    found = torch.as_tensor(pull(z, layers))
    assert found.shape == x.shape, f"you return the shape {tuple(found.shape)} for {tuple(x.shape)}"
    off = (found - x).abs().max().item()
    assert off < 1e-5, f"{len(layers)} layers: there and back again ends up to {off:.2g} away from the start"
    same_order = all(torch.equal(a, b) for mine, old in zip(layers, kept) for a, b in zip(mine, old))
    assert same_order, "pull changes the list of layers that it gets"


x = torch.randn(50, 3, generator=runtime.generator(53)).double()
check_pull(x, made_layers(dim=3, num_layers=1, seed=54))
check_pull(x, made_layers(dim=3, num_layers=2, seed=55))
### BEGIN HIDDEN TESTS
check_pull(x[:, :2], made_layers(dim=2, num_layers=5, seed=56))
check_pull(x, made_layers(dim=3, num_layers=4, seed=57))
check_pull(x, [])
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** samples of the model, that is, normal points that you pull back. One layer gets only the marginals right, in a frame of its own. How many does it take until the arcs come apart?

# %% alt="Four panels of points: the data, two interleaved arcs; samples of a model with one layer, a filled cross-like cloud; with four layers, a rough outline; with sixteen layers, two arcs again, a little blurred."
arcs, noise = two_arcs(800, seed=58), torch.randn(800, 2, generator=runtime.generator(59)).double()
layers = fit_layers(arcs, 16, runtime.generator(60))
fig, axes = plt.subplots(1, 4, figsize=(7.6, 2.1), sharex=True, sharey=True)
for ax, points in zip(axes, [arcs, *(pull(noise, layers[:n]) for n in (1, 4, 16))]):
    ax.plot(*torch.as_tensor(points).T, ".", ms=1.5, color=PALETTE[0])
    ax.set(xlim=(-3.5, 3.5), ylim=(-2.5, 2.5), aspect="equal")
label_panels(axes, ["Data", "1 layer", "4 layers", "16 layers"])
plt.show()


# %% [markdown]
# ## Task 5: predict, then measure: independent sources (5 points)
#
# All the theory so far is about covariance. What if the dependence hides elsewhere? Take $D$ independent sources of mean 0 and variance 1, all from the same non-normal family, and rotate them. The data are white: no covariance is left. The *negentropy* of a density $p$ with mean 0 and variance 1 is its KL divergence to the normal, $J(p)=\int p\ln\frac p\varphi$ with the density $\varphi$ of $\mathcal N(0,1)$. The loss is $D$ times the negentropy of a source, however they are rotated; and the first layer gains the sum of the negentropies of the $D$ projections $q_i\cdot x$.
#
# **Predict** how much a random projection shows. A density with skewness $s$ and excess kurtosis $k$, close to the normal, has the negentropy
#
# $$J\approx\frac{s^2}{12}+\frac{k^2}{48},$$
#
# and cumulants add up: the projection on $q$ has the skewness $s\sum_jq_j^3$ and the excess kurtosis $k\sum_jq_j^4$, where $s$ and $k$ are those of a source. `predicted` is the mean of this $J$ over all directions $q$, exactly, for every $D$. The means of squares that you meet are sphere moments; with $\mathbb E\|g\|^{2m}=D(D+2)\cdots(D+2m-2)$ from task 1 you also find them by hand.

# %% [markdown]
# **Before you write more code** (1 point, read by a person): exponentials have $s=2$, $k=6$; uniforms $s=0$, $k=-1.2$. The negentropy of a source is 0.419 for the one and 0.176 for the other. For rotated uniforms in $D=64$ dimensions, what share of the loss does the first layer remove, and how does this share scale with $D$? Compare with Gaussian data. For which of the two families do you trust the formula at small $D$, and on which side does it err for the other one? You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "projection_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The share is $J$ of a projection over $J$ of a source. For uniforms $J\approx\frac{k^2}{48}\cdot\frac{9}{D^2}=0.27/D^2$, about $6.6\cdot10^{-5}$ at $D=64$, which is $0.04\,\%$ of 0.176; it falls like $D^{-2}$. Gaussian data lose $2/(D+2)=3\,\%$ in a layer, eighty times as much, and this falls only like $D^{-1}$. I trust the formula for the uniforms, whose projections are nearly normal soon. For exponentials it says 0.12 at $D=8$; there skewness and kurtosis are large, the expansion is not valid yet, and I guess that it says too much, as it grows with the square of the cumulants without any bound while the true $J$ stays below that of a source. So the measured slope should be flatter than $-2$.
#
# *Marks.* ½ for a share that falls like $D^{-2}$, with a number at $D=64$ beside the Gaussian $2/(D+2)$. ½ for a reasoned guess of where the expansion fails.

# %% [markdown]
# **Measure**, without a single sample: `projected_density` computes the density of a projection from the product of the sources' characteristic functions.
#
# - `negentropy` is $\int p\ln\frac p\varphi$ on an evenly spaced grid `x`, for one density or many. Where $p$ is 0 the integrand is 0. Take the definition literally, also for a $p$ whose mean is not 0 or whose variance is not 1.
# - `mean_negentropy` is its mean over `num_draws` directions, drawn uniformly from the sphere.
# - `exponent` is the slope of $\ln$(`mean_negentropy`) against $\ln D$, by least squares over the dimensions `dims`.

# %% nbgrader={"grade": false, "grade_id": "projected_density", "locked": true, "schema_version": 3, "solution": false, "task": false}
def projected_density(directions, family):
    """Grid x, shape (n,), and densities of q . x on it, shape (*batch, n); directions: unit vectors, shape (*batch, dim).

    family: "exponential" or "uniform", for independent sources of mean 0 and variance 1.
    """
    n, half = 1024, 16.0
    x = (torch.arange(n).double() - n // 2) * (2 * half / n)
    t = math.pi / half * torch.arange(n // 2 + 1).double()
    product = torch.exp(-1j * half * t)  # the grid begins at -half
    for q in directions.unbind(-1):
        at = q[..., None] * t
        source = torch.sinc(math.sqrt(3) / math.pi * at) if family == "uniform" else torch.exp(1j * at) / (1 + 1j * at)
        product = product * source
    return x, torch.fft.irfft(product, n).clamp_min(0) * n / (2 * half)


# %% nbgrader={"grade": false, "grade_id": "projection", "locked": false, "schema_version": 3, "solution": true, "task": false}
def predicted(dim, skewness, kurtosis):
    """Mean over all directions of the negentropy's two leading terms; skewness, kurtosis (excess): of a source."""
    ### BEGIN SOLUTION
    third = 15 / ((dim + 2) * (dim + 4))  # only the q_j^6 survive
    fourth = (105 + 9 * (dim - 1)) / ((dim + 2) * (dim + 4) * (dim + 6))  # q_j^8 and q_i^4 q_j^4
    return skewness**2 / 12 * third + kurtosis**2 / 48 * fourth
    ### END SOLUTION


def negentropy(x, p):
    """KL divergence to the standard normal, in nats; x: grid, shape (n,); p: densities, shape (*batch, n)."""
    ### BEGIN SOLUTION
    against = p * (x.square() + math.log(2 * math.pi)) / 2
    return (torch.special.xlogy(p, p) + against).sum(-1) * (x[1] - x[0])
    ### END SOLUTION


def mean_negentropy(family, dim, num_draws, generator):
    """Mean negentropy of random projections of dim sources."""
    ### BEGIN SOLUTION
    q = F.normalize(torch.randn(num_draws, dim, generator=generator).double(), dim=1)
    return negentropy(*projected_density(q, family)).mean()
    ### END SOLUTION


def exponent(family, dims, num_draws, generator):
    """Slope of the logarithm of the mean negentropy against the logarithm of the dimension."""
    ### BEGIN SOLUTION
    y = torch.stack([mean_negentropy(family, d, num_draws, generator) for d in dims]).log()
    x = torch.tensor(dims).double().log()
    x = x - x.mean()
    return (x * y).sum() / x.square().sum()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "projection_predicted", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_predicted(dim, s, k, seed, tolerance):
    q = F.normalize(torch.randn(20_000, dim, generator=runtime.generator(seed)).double(), dim=1)
    sums = [(q**power).sum(1).square().mean().item() for power in (3, 4)]
    wanted = s**2 / 12 * sums[0] + k**2 / 48 * sums[1]
    off = number(predicted(dim, s, k), "predicted") / wanted
    assert abs(off - 1) < tolerance, (
        f"D = {dim}, s = {s}, k = {k}: you predict {off:.3f} times what 20 000 directions say"
    )


check_predicted(10, 2.0, 0.0, seed=70, tolerance=0.1)
check_predicted(10, 0.0, -1.2, seed=70, tolerance=0.1)
### BEGIN HIDDEN TESTS
for dim, s, k, wanted in (
    (1, 2.0, 6.0, 1 / 3 + 3 / 4),
    (4, 0.0, 2.0, 132 / (12 * 480)),
    (8, 1.0, 0.0, 15 / (12 * 120)),
    (30, 2.0, 6.0, 5 / 1088 + 0.75 * 366 / 39168),
):
    got = number(predicted(dim, s, k), "predicted")
    assert abs(got / wanted - 1) < 1e-6, f"D = {dim}, s = {s}, k = {k}: {got:.6f} is not right"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "projection_negentropy", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x = torch.linspace(-12, 12, 2401).double()


def check_negentropy(distribution, wanted, what, tolerance=1e-4):
    got = number(negentropy(x, distribution.log_prob(x).exp()), what)
    assert abs(got - wanted) < tolerance, f"{what}: {got:.4f} nats are not right"


check_negentropy(torch.distributions.Normal(0, 1), 0.0, "a standard normal")
laplace = torch.distributions.Laplace(0, math.sqrt(0.5))
check_negentropy(laplace, 0.072365, "a Laplace density of variance 1")
### BEGIN HIDDEN TESTS
check_negentropy(torch.distributions.Normal(0.5, 1), 0.125, "a normal with the mean 0.5")
check_negentropy(torch.distributions.Normal(0, 2), 1.5 - math.log(2), "a normal with the standard deviation 2")
root = math.sqrt(3)
flat = (x.abs() < root).double() / (2 * root)
wanted = 0.5 * math.log(math.pi * math.e / 6)
got = negentropy(x, torch.stack([flat, flat]))
same(got, torch.tensor([wanted, wanted]).double(), "two uniform densities, which are 0 on a part of the grid", 4e-3)
coarse = torch.linspace(-8, 8, 81).double()
same(
    negentropy(coarse, torch.distributions.Normal(1, 1).log_prob(coarse).exp()),
    0.5,
    "a grid with another spacing",
    1e-4,
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "projection_measured", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_mean(family, dim, num_draws, seed, wanted, slack):
    got = number(mean_negentropy(family, dim, num_draws, runtime.generator(seed)), "mean_negentropy")
    assert abs(got / wanted - 1) < slack, f"{family}, D = {dim}: you measure {got / wanted:.2f} times what we find"


def check_exponent(family, dims, num_draws, seed, low, high):
    got = number(exponent(family, dims, num_draws, runtime.generator(seed)), "exponent")
    assert low < got < high, f"{family}, D = {dims}: an exponent of {got:.2f}"


check_mean("uniform", 16, 200, 71, 1.13e-3, 0.25)
check_exponent("uniform", (16, 32, 64), 60, 72, -2.6, -1.4)
### BEGIN HIDDEN TESTS
check_mean("uniform", 32, 300, 73, 2.78e-4, 0.2)
check_mean("exponential", 16, 300, 74, 1.74e-2, 0.2)
check_exponent("uniform", (16, 32, 64), 200, 75, -2.25, -1.8)
check_exponent("exponential", (16, 32, 64), 200, 76, -1.75, -1.3)
check_mean("uniform", 2, 400, 78, 0.0659, 0.15)
kept, mean_negentropy = (
    mean_negentropy,
    lambda family, dim, *rest: torch.tensor({4: 0.1, 8: 0.09, 64: 0.001}[dim]).double(),
)
try:
    got = number(exponent("uniform", (4, 8, 64), 5, runtime.generator(79)), "exponent")
finally:
    mean_negentropy = kept
assert abs(got + 1.7770) < 1e-3, f"for 0.1, 0.09 and 0.001 nats in 4, 8 and 64 dimensions your exponent is {got:.4f}"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** where each family meets the prediction, and on which side of it it comes from.

# %% alt="Mean negentropy of a random projection against the dimension, both axes logarithmic. The uniforms lie close to the predicted line of slope -2 from 16 dimensions on; the exponentials lie below theirs and reach it near 128."
dims, source = (4, 8, 16, 32, 64, 128), runtime.generator(77)
fig, ax = plt.subplots(figsize=(7.6, 2.9))
for family, s, k, colour in (("exponential", 2.0, 6.0, PALETTE[1]), ("uniform", 0.0, -1.2, PALETTE[0])):
    measured = [float(mean_negentropy(family, d, 60, source)) for d in dims]
    ax.loglog(dims, measured, "o-", color=colour, label=f"{family}, measured")
    ax.loglog(dims, [predicted(d, s, k) for d in dims], "--", color=colour, label="predicted")
    slopes = [math.log(b / a) / math.log(2) for a, b in zip(measured, measured[1:])]
    say(f"{family}: slopes from each dimension to twice it: {', '.join(f'{v:.2f}' for v in slopes)}.")
    if family == "uniform":
        share = measured[4] / 0.1765
        say(f"At D = 64 the first layer removes {share:.4%} of the loss; of Gaussian data it would be {2 / 66:.1%}.")
ax.set(xlabel="dimension", ylabel="negentropy (nats)")
ax.set_title("What a random projection shows of independent sources")
ax.legend()
plt.show()


# %% [markdown]
# **After the measurement** (1 point, read by a person): compare with your prediction, and explain where the formula fails. Then use the number at $D=64$: about how many random layers would it take to remove half of the loss of rotated uniforms, if every layer removed the same share as the first, beside Gaussian data? Which rotation would need a single layer, and why is that no contradiction?

# %% [markdown] nbgrader={"grade": true, "grade_id": "projection_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The uniforms follow the formula within a quarter from $D=16$ on, and their slope is $-2$ as predicted. The exponentials lie below the prediction: at $D=8$ it says 0.12 and I measure 0.046. Their slope is only about $-1.5$ between 16 and 64 and grows steeper towards $-2$ as the projections become nearly normal and the expansion valid.
# Half of the loss needs $\ln2/0.0004\approx1700$ layers, against $\ln2\,(D+1)/2\approx23$ for Gaussian data. The inverse of the rotation that mixed the sources needs one: then the coordinates are independent, all loss is in the marginals, and one layer removes it all. No contradiction: this rotation has probability 0 among random ones; it depends on the data, and an algorithm such as ICA has to find it. (That a layer keeps removing the same share is an extrapolation.)
#
# *Marks.* ½ for numbers beside the prediction, with the reason why the exponentials lie below. ½ for a number of layers of the right size for both (1000 to 3000, and about 20), and the unmixing rotation.

# %% [markdown]
# ## Task 6: a rotation chosen from noise (5 points)
#
# So let the data choose the rotation? With $N$ points this has a price. Take pure noise: points of $\mathcal N(0,I)$, from which no layer can gain anything.
#
# - `layer_gain` fits a Gaussian layer to the points `train`: after the rotation, subtract their mean and divide by their standard deviation, the root of the mean square (divide by $n$), coordinate by coordinate. It returns how much the mean negative log-likelihood of the points `judge` falls if this layer is put in front of $\mathcal N(0,I)$, compared with $\mathcal N(0,I)$ alone. The rotation's determinant is $\pm1$; the division's is not.
# - `overfitting` draws `num_points` points of pure noise to train with, and 4000 further ones to judge by. It returns four gains: with the principal axes of the training points as the rotation, judged by the training points and by the further ones; then the same two with a random rotation.

# %% nbgrader={"grade": false, "grade_id": "noise", "locked": false, "schema_version": 3, "solution": true, "task": false}
def layer_gain(train, judge, rotation):
    """Fall of the mean negative log-likelihood of judge, in nats; train, judge: points, shapes (n, dim) and (m, dim)."""
    ### BEGIN SOLUTION
    y = train @ rotation.T
    mean, std = y.mean(0), y.std(0, correction=0)
    z = (judge @ rotation.T - mean) / std
    return (judge.square().sum(1).mean() - z.square().sum(1).mean()) / 2 - std.log().sum()
    ### END SOLUTION


def overfitting(num_points, dim, generator):
    """Gains with principal axes on training and on further points, then both with a random rotation."""
    ### BEGIN SOLUTION
    train, fresh = (torch.randn(n, dim, generator=generator).double() for n in (num_points, 4000))
    axes = torch.linalg.eigh(train.T.cov()).eigenvectors.T
    rotations = (axes, haar(dim, generator=generator))
    return [layer_gain(train, points, q).item() for q in rotations for points in (train, fresh)]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "noise_gain", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_layer_gain(train, judge, rotation, what):
    y = train @ rotation.T
    model = torch.distributions.Normal(y.mean(0), (y - y.mean(0)).square().mean(0).sqrt())
    before = torch.distributions.Normal(0.0, 1.0).log_prob(judge).sum(1).mean()
    wanted = (model.log_prob(judge @ rotation.T).sum(1).mean() - before).item()
    got = number(layer_gain(train, judge, rotation), "layer_gain")
    assert abs(got - wanted) < 1e-6 * max(1, abs(wanted)), f"{what}: a gain of {wanted:.4f} nats, you find {got:.4f}"


source = runtime.generator(80)
train = torch.randn(30, 4, generator=source).double() * torch.tensor([0.5, 1.0, 2.0, 3.0])
check_layer_gain(train, train, torch.eye(4).double(), "the training points, no rotation")
### BEGIN HIDDEN TESTS
check_layer_gain(train + 2, train + 2, haar(4, generator=source), "shifted points, a random rotation")
other = torch.randn(11, 4, generator=source).double()
check_layer_gain(train, other, haar(4, generator=source), "other points to judge by")
check_layer_gain(
    train - 1, other, torch.eye(4)[[1, 2, 3, 0]].double(), "other points, the coordinates in another order"
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "noise_overfits", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_overfitting(num_points, dim, seed, learned, drawn, slack=0.25):
    """learned, drawn: (gain on the training points, loss on further ones) of principal axes and of random rotations."""
    rows = [overfitting(num_points, dim, runtime.generator(seed + i)) for i in range(5)]
    assert all(row is not None and len(row) == 4 for row in rows), "overfitting must return four gains"
    rows = torch.tensor([[number(v, "a gain") for v in row] for row in rows])
    assert (rows[:, [0, 2]] > 0).all(), f"N = {num_points}, D = {dim}: on its own training points a fitted layer gains"
    assert (rows[:, [1, 3]] < 0).all(), (
        f"N = {num_points}, D = {dim}: on further points of pure noise no layer can gain"
    )
    for name, got, wanted in zip(("principal axes", "a random rotation"), rows.mean(0).view(2, 2), (learned, drawn)):
        for where, mine, right in zip(("training", "further"), got.tolist(), (wanted[0], -wanted[1])):
            off = abs(mine / right - 1)
            assert off < slack, f"N = {num_points}, D = {dim}, {name}: a mean gain of {mine:.3f} on {where} points"


check_overfitting(200, 50, 81, learned=(3.57, 5.08), drawn=(0.25, 0.255))
### BEGIN HIDDEN TESTS
check_overfitting(400, 20, 90, learned=(0.29, 0.31), drawn=(0.05, 0.05), slack=0.5)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** gain and loss are two sides of the same thing; and how many points it takes until the price of a learned rotation is as small as that of a random one with 200 points.

# %% alt="What one layer gains on its training points and loses on further ones, in pure noise of 50 dimensions, against the number of points, both axes logarithmic: principal axes gain 3.5 nats with 200 points and lose 5; random rotations gain and lose 0.25. All four lines fall like one over the number of points or a little faster."
counts, source = (200, 400, 800, 1600, 3200, 6400), runtime.generator(97)
runs = [[[float(v) for v in overfitting(n, 50, source)] for n in counts] for _ in range(3)]
gains = torch.tensor(runs).mean(0)
fig, ax = plt.subplots(figsize=(7.6, 2.9))
for column, (name, colour) in enumerate((("principal axes", PALETTE[1]), ("random rotation", PALETTE[0]))):
    ax.loglog(counts, gains[:, 2 * column], "o-", color=colour, label=f"{name}: gain on training points")
    ax.loglog(counts, -gains[:, 2 * column + 1], "s:", color=colour, label=f"{name}: loss on further points")
ax.set(xlabel="number of training points", ylabel="nats", ylim=(3e-3, 60), xticks=counts, xticklabels=counts)
ax.minorticks_off()
ax.set_title("One layer on pure noise, D = 50")
ax.legend(ncols=2, fontsize=8.5)
plt.show()

# %%
learned, drawn = gains[0, :2].tolist(), gains[0, 2:].tolist()
say(f"200 points: principal axes {learned[0]:+.2f} on the training points and {learned[1]:+.2f} on further ones, ")
say(f"a random rotation {drawn[0]:+.3f} and {drawn[1]:+.3f}.")

# %% [markdown]
# **What the theorem forbids, and what it does not** (3 points, read by a person). A colleague writes: *"Gaussianization needs a number of layers that grows linearly with the dimension, a coupling flow about seven at any dimension. So Gaussianization wastes parameters. Two remedies: train all marginal maps together instead of one after the other, then a handful of layers will do; and learn the rotations, which cut our training loss three times as fast on 200 points in 50 dimensions. After all, the theorem says that random rotations are slow on every data set."*
#
# Answer in at most 250 words. Take up at least these questions. How many *parameters*, not layers, do both need to divide the loss of Gaussian data by 100? What does training the maps together change, given task 3? What would you have to see before you believe in the learned rotations? On which data are random rotations fast, and on which are they slower than the theorem?
#
# One point is for the count of parameters and for what joint training cannot do; one for the learned rotations; one for the limits of the theorem, on both sides.

# %% [markdown] nbgrader={"grade": true, "grade_id": "theorem", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **Parameters.** To divide the loss of Gaussian data by 100, Gaussianization takes $\frac{D+1}2\ln100$ layers of $D$ useful scales, about $2.3\,D^2$ parameters. A coupling halves the loss with $D^2/4$ entries of a linear conditioner (and $D$ scales): $\ln100/\ln2\approx7$ layers, about $1.7\,D^2$. The same order. Gaussianization is inefficient in depth, not in parameters, and its layers are fitted without gradients.
# - **Joint training** cannot go below $D/2+1$ layers with fixed rotations, as there are not enough directions to reach $D(D+1)/2$ numbers. That is still linear in $D$, though it whitens exactly where layer-by-layer fitting only approaches.
# - **Learned rotations.** On 200 points in 50 dimensions the principal axes gain more than 3 nats in pure noise, and lose 5 on fresh data. A training loss proves nothing here. I want a held-out likelihood after every layer, the same procedure run on noise as a control, a number of points well above the dimension, and a stop as soon as the held-out loss rises. With enough data a learned rotation may win honestly: one layer for Gaussian data with PCA, one for independent sources with ICA.
# - **The theorem** is about Gaussian data, random rotations, the mean, and a bounded condition number. A mixture of few distant modes shows them in every projection, and a single large eigenvalue is seen by every direction: fast. Rotated independent sources show $D^{-2}$ of their loss: slower.
#
# *Marks.* 1 for parameters of the same order, $D^2$, in both (½), and a bound that is linear in $D$ for joint training (½). 1 for naming overfitting with a number, or reason, from the task (½), and for a held-out loss or a control on noise as the evidence (½). 1 for one faster (½) and one slower case (½), or the conditions of the theorem in place of either.
