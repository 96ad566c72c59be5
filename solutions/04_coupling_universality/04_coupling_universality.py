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
# # Exercises 04: What coupling flows can reach
#
# Read [chapter 04](../../chapters/04_coupling_universality.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 Heights and volumes | 4 | 4 | |
# | 2 The gap, by hand | 4 | 4 | |
# | 3 One layer that changes volumes | 4 | 4 | |
# | 4 Find the faults | 4 | 4 | |
# | 5 Predict, then measure: whitening | 7 | 5 | 2 |
# | 6 What a universal flow promises | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.flows` holds some of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - A flow $f$ maps data $x\in\mathbb R^D$ to latents $z$ with the density $p_Z$, the *base*, which is $\mathcal N(0,I)$ unless another is named. Its own density is $p_\theta(x)=p_Z(f(x))\,|\det f'(x)|$. It is *volume-preserving* if $|\det f'|$ is the same number $c$ everywhere.
# - A density is given by `log_p`, its natural logarithm at the centres of the cells of a regular grid, of any shape: (rows, columns) in the plane. All cells have the same volume `cell`. The grid holds all mass: the sum of $p\cdot$`cell` is 1.
# - $V(x)$ is the volume of $\{p\ge p(x)\}$, where $p$ is at least as high as at $x$. $\omega_D=\pi^{D/2}/\Gamma(\frac D2+1)$ is the volume of the unit ball.
# - All losses are in nats. Tensors come in double precision; keep it. Loops, NumPy and PyTorch are all welcome inside your functions.

# %%
import math

import matplotlib.pyplot as plt
import torch

from refimpl import runtime
from refimpl.data.toy import GaussianMixture
from refimpl.flows import random_rotation
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


def plane(width, height, step):
    """Centres of the square cells that cover [-width, width] x [-height, height], and the area of a cell."""
    sides = [torch.arange(-side + step / 2, side, step).double() for side in (width, height)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1), step**2


def modes(points, variances, weights=None, distance=6.0):
    """ln p of a row of round Gaussian modes in the plane, `distance` apart, at points of shape (..., 2)."""
    x = distance * (torch.arange(len(variances)).double() - (len(variances) - 1) / 2)
    std = torch.tensor(variances).double().sqrt()
    return GaussianMixture(torch.stack([x, 0 * x], 1), std, weights).log_prob(points)


def random_flow(points, seed, affine=False):
    """Latents and ln|det f'| of four couplings with random networks, at points of shape (..., 2)."""
    source = runtime.generator(seed)
    log_c = 0.4 * torch.randn((), generator=source).double()
    (a, b), log_det = points.unbind(-1), log_c.expand(points.shape[:-1])
    for _ in range(4):
        inner, bias, shift, scale = torch.randn(4, 12, generator=source).double()
        hidden = torch.tanh(0.7 * a[..., None] * inner + bias)
        log_s = torch.tanh(hidden @ scale / 2) if affine else torch.zeros_like(a)
        a, b, log_det = log_s.exp() * b + hidden @ shift / 2, a, log_det + log_s
    return torch.stack([a, b], -1) * (log_c / 2).exp(), log_det


# %% [markdown]
# ## Task 1: heights and volumes (4 points)
#
# Sort all cells by the density, highest first. Cell number $i=0,1,\dots$ in this order has the volume $V_i=(i+\frac12)\cdot$`cell` above it, counted to its own middle. The pairs of $V_i$ and the logarithm of the height are the *profile*.
#
# A volume-preserving flow cannot change its profile; only $c$ is free. In the plane
#
# $$\ln p_\theta=\ln\frac c{2\pi}-\frac{c\,V}{2\pi},$$
#
# whatever the networks' weights are: the highest density is $\frac c{2\pi}$, and the rest is a straight line. So a density alone can tell you that no volume-preserving flow has made it. Write
#
# - `profile`, which returns the $V_i$, rising, and the logarithms of the heights, falling;
# - `witness`, for densities in the plane. It reads off $c$ from the highest cell, and returns this number and the largest distance between $\ln p_\theta$ and the line that belongs to *this* $c$, over the cells with $V\le$ `area`. Do not fit a line: a profile that is straight but has another slope is no volume-preserving flow's, either.
#
# The best volume-preserving flow for a density $p$ ranks all points as $p$ does, and gives the point at volume $V$ the height
#
# $$\ln p^\star=\ln c-\frac D2\ln2\pi-\frac12\Big(\frac{c\,V}{\omega_D}\Big)^{2/D},\qquad\text{with $c$ such that}\qquad\mathbb E_p\Big[\Big(\frac{c\,V}{\omega_D}\Big)^{2/D}\Big]=D.$$
#
# - `best` returns $\ln p^\star$ on the grid of $p$, and the gap $\mathrm{KL}(p\,\|\,p^\star)$. It works for grids in any dimension $D$, which is the number of dimensions of `log_p`. Where $p=0$, `log_p` is $-\infty$; such cells add nothing to expectations, nor to the gap.

# %% nbgrader={"grade": false, "grade_id": "heights", "locked": false, "schema_version": 3, "solution": true, "task": false}
def profile(log_p, cell):
    """Volumes, rising, and logarithms of the heights, falling; both of shape (number of cells,)."""
    ### BEGIN SOLUTION
    heights = log_p.flatten().sort(descending=True).values
    return (torch.arange(len(heights)).double() + 0.5) * cell, heights
    ### END SOLUTION


def witness(log_p, cell, area):
    """c, as the highest cell tells it, and the largest deviation from its straight line where V <= area."""
    ### BEGIN SOLUTION
    volumes, heights = profile(log_p, cell)
    c = 2 * math.pi * heights[0].exp()
    line = (c / (2 * math.pi)).log() - c * volumes / (2 * math.pi)
    return c.item(), (heights - line)[volumes <= area].abs().max().item()
    ### END SOLUTION


def best(log_p, cell):
    """ln p* on the grid, of the shape of log_p, and the gap KL(p || p*)."""
    ### BEGIN SOLUTION
    dim, (volumes, heights) = log_p.ndim, profile(log_p, cell)
    weights = heights.exp() * cell
    ball = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    power = (volumes / ball) ** (2 / dim)
    squared = dim / (weights @ power)  # c^(2 / D)
    law = 0.5 * dim * (squared / (2 * math.pi)).log() - 0.5 * squared * power
    gap = (weights * (heights - law))[weights > 0].sum().item()
    result = torch.empty_like(law)
    result[log_p.flatten().argsort(descending=True)] = law
    return result.view(log_p.shape), gap
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "heights_profile", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
few = torch.tensor([[0.1, 0.4, 0.05], [0.25, 0.15, 0.05]]).double().log()
volumes, heights = profile(few, 2.0)
same(volumes, torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]), "volumes of six cells of volume 2")
same(torch.as_tensor(heights).exp(), torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.05]), "heights of six cells")
### BEGIN HIDDEN TESTS
cube = torch.randn(5, 6, 7, generator=runtime.generator(0)).double()
volumes, heights = profile(cube, 0.3)
same(volumes, 0.3 * (torch.arange(210).double() + 0.5), "volumes of a grid in three dimensions")
same(heights, cube.flatten().sort(descending=True).values, "heights of a grid in three dimensions")
### END HIDDEN TESTS

# %% [markdown]
# Random networks: a volume-preserving flow, one with affine couplings, and one whose author forgot a factor in the determinant.

# %% nbgrader={"grade": true, "grade_id": "heights_witness", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
points, cell = plane(8, 8, 0.04)


def log_density(seed, affine=False, factor=1.0):
    """ln p of the flow with random networks, and its true c (of its first point, if it is affine)."""
    z, log_det = random_flow(points, seed, affine)
    return -0.5 * z.square().sum(-1) + log_det - math.log(2 * math.pi / factor), log_det[0, 0].exp().item()


log_p, true_c = log_density(seed=1)
c, deviation = witness(log_p, cell, area=10.0)
same(c, true_c, "c of a volume-preserving flow with random networks", tolerance=0.01)
assert float(deviation) < 0.05, f"a volume-preserving flow is off the line by {float(deviation):.2f}"
deviation = float(witness(log_density(seed=1, affine=True)[0], cell, area=10.0)[1])
assert deviation > 0.3, f"you take an affine flow for a volume-preserving one: deviation {deviation:.2f}"
deviation = float(witness(log_density(seed=1, factor=1.5)[0], cell, area=10.0)[1])
assert deviation > 0.3, f"a density that sums to 1.5 passes for a volume-preserving flow: deviation {deviation:.2f}"
### BEGIN HIDDEN TESTS
from refimpl.flows import gaussian_profile, height_profile

for seed in range(2, 7):
    for settings in ({}, {"affine": True}, {"factor": 0.7}):
        log_p, true_c = log_density(seed, **settings)
        c, deviation = witness(log_p, cell, area=6.0)
        volumes, heights = height_profile(log_p, cell)
        wanted = 2 * math.pi * heights[0].exp()
        off = (heights - gaussian_profile(volumes, wanted.item(), 2))[volumes <= 6.0].abs().max()
        same(c, wanted, f"c of the highest cell, {settings or 'volume-preserving'}")
        same(deviation, off, f"deviation where V <= 6, {settings or 'volume-preserving'}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "heights_best", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
points, cell = plane(8, 6, 0.04)
log_p = modes(points, [1.0, 0.04])
log_best, gap = best(log_p, cell)
same(gap, 0.4453, "the gap of two modes with variances 1 and 0.04", tolerance=2e-3)
log_best = torch.as_tensor(log_best)
assert log_best.shape == log_p.shape, f"you return the shape {tuple(log_best.shape)}, expected {tuple(log_p.shape)}"
total = (log_best.exp().sum() * cell).item()
assert abs(total - 1) < 0.01, f"p* adds up to {total:.3f}, not to 1: has it the right scale?"
where = log_p.flatten().argsort()
assert (log_best.flatten()[where].diff() > -0.01).all(), "p* does not rank the cells as p does"  # -0.01: cells may tie
### BEGIN HIDDEN TESTS
from refimpl.flows import best_volume_preserving

no_ties = torch.tensor([0.011, 0.007]).double()  # off the grid's symmetries
log_p = modes(points + no_ties, [0.3, 0.1, 0.5], [0.5, 0.2, 0.3], distance=4.0)
wanted = best_volume_preserving(log_p, cell)
log_best, gap = best(log_p, cell)
same(gap, wanted.gap, "the gap of three modes", tolerance=1e-5)
same(torch.as_tensor(log_best).exp(), wanted.log_p.exp(), "p* of three modes", tolerance=1e-4)
same(best(modes(points, [0.2, 0.2]), cell)[1], 0.0, "the gap of two equal modes", tolerance=1e-3)
leaf = torch.where((points[..., 0] ** 2 + points[..., 1].abs() < 2), 1.0, 0.0).double()
gap = best((leaf / leaf.sum() / cell).log(), cell)[1]
same(gap, 1 - math.log(2), "the gap of a uniform density", tolerance=1e-3)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "heights_dims", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
line = torch.arange(-12, 12, 0.01).double()
bell = -0.5 * (line / 1.3) ** 2 - math.log(1.3 * math.sqrt(2 * math.pi))
log_best, gap = best(bell, 0.01)
same(gap, 0.0, "one dimension: the gap of a normal", tolerance=1e-3)
same(torch.as_tensor(log_best)[800:1600], bell[800:1600], "one dimension: ln p* of a normal", tolerance=0.02)
### BEGIN HIDDEN TESTS
from refimpl.flows import best_volume_preserving

side = torch.arange(-5.95, 6, 0.1).double()
cube = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1)
ball = -0.5 * cube.square().sum(-1) / 1.2 - 1.5 * math.log(2 * math.pi * 1.2)
same(best(ball, 1e-3)[1], 0.0, "three dimensions: the gap of a normal", tolerance=3e-3)
centres = torch.tensor([[-2.017, 0.013, 0.007], [2.519, -0.03, 0.02]]).double()  # no two cells of the same height
log_p = GaussianMixture(centres, torch.tensor([0.9, 0.4]).double(), [0.7, 0.3]).log_prob(cube)
wanted = best_volume_preserving(log_p, 1e-3)
log_best, gap = best(log_p, 1e-3)
same(gap, wanted.gap, "three dimensions: the gap of two modes", tolerance=1e-5)
same(torch.as_tensor(log_best).exp(), wanted.log_p.exp(), "three dimensions: p* of two modes", tolerance=1e-4)
same(best((line.abs() < 3).double().div(6).log(), 0.01)[1], 0.1764, "one dimension: uniform density", tolerance=2e-3)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** the densities of two random flows look equally wild. Which of them betrays itself on the right, and how far does its curve run from its line?

# %% alt="Left and middle: densities of a volume-preserving and an affine flow with random networks, both bent. Right: log-density against volume, straight for the first, curved for the second."
points, cell = plane(8, 8, 0.04)
fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.6), width_ratios=[1, 1, 1.3])
for ax, seed, colour in zip(axes, (1, 2), PALETTE):
    z, log_det = random_flow(points, seed, affine=seed == 2)
    log_p = -0.5 * z.square().sum(-1) + log_det - math.log(2 * math.pi)
    ax.imshow(log_p[50:350, 50:350].exp().T, origin="lower", extent=(-6, 6, -6, 6))
    ax.grid(False)
    volumes, heights = (torch.as_tensor(part)[:10_000:20] for part in profile(log_p, cell))
    c, _ = witness(log_p, cell, 10.0)
    axes[2].plot(volumes, heights, color=colour, label="affine" if seed == 2 else "volume-preserving")
    axes[2].plot(volumes, math.log(c / (2 * math.pi)) - c * volumes / (2 * math.pi), "k:", lw=1)
axes[2].set(xlabel="volume V", ylabel="ln p", ylim=(-7, 0))
axes[2].legend(fontsize=8)
label_panels(axes, ["Volume-preserving", "Affine", "Profiles"])
plt.show()


# %% [markdown]
# ## Task 2: the gap, by hand (4 points)
#
# With the best $c$ put in, the gap of task 1 becomes
#
# $$\text{gap}=\frac D2\Big(1+\ln\frac{2\pi}D\,\mathbb E_p\big[V^{2/D}\big]\Big)-\ln\omega_D-H(p),\qquad\text{in the plane}\qquad\text{gap}=1+\ln\mathbb E_p[V]-H(p),$$
#
# with the entropy $H(p)=-\mathbb E_p[\ln p]$. For some densities both expectations can be done with pencil and paper. Derive, then write down as functions of a few numbers:
#
# - `uniform_gap(dim)`: $p$ is uniform on a set $A\subset\mathbb R^D$ of volume $|A|$ and zero elsewhere. All of $A$ has the same height, so the order of its points is open: take any, so that $V(x)$ is uniformly distributed between 0 and $|A|$. The result depends neither on $|A|$ nor on the shape of $A$.
# - `student_gap(nu)`: the Student-t density in the plane with $\nu>0$ degrees of freedom, $p(x)=\frac1{2\pi}\big(1+\frac{\|x\|^2}\nu\big)^{-(\nu+2)/2}$. Its mass outside the radius $r$ is $(1+r^2/\nu)^{-\nu/2}$. If no volume-preserving flow has a finite loss, return `math.inf`.
# - `weights_gap(weight)`: two round Gaussian modes in the plane, far from each other, of the *same* variance, with the weights $w$ and $1-w$, $0<w<1$. The chapter gives $\mathbb E_p[V]$ as a sum of four terms; bring it into the simplest form that you find.
# - `harmless_weights(variances)`: any number of round Gaussian modes in the plane, far from each other, with the *different* variances that are given. There is exactly one choice of weights for which the gap is zero. Before you calculate: what shape must $\ln p$ against $V$ have, and where does it bend?

# %% nbgrader={"grade": false, "grade_id": "gap", "locked": false, "schema_version": 3, "solution": true, "task": false}
def uniform_gap(dim):
    """Gap of the uniform density on any set in dim dimensions."""
    ### BEGIN SOLUTION
    # E[V^(2/D)] = |A|^(2/D) D / (D + 2), and H = ln |A|.
    return dim / 2 * (1 + math.log(2 * math.pi / (dim + 2)) - math.log(math.pi)) + math.lgamma(dim / 2 + 1)
    ### END SOLUTION


def student_gap(nu):
    """Gap of the Student-t density in the plane with nu > 0 degrees of freedom."""
    ### BEGIN SOLUTION
    # E[V] = pi E[r^2] = 2 pi nu / (nu - 2), infinite for nu <= 2; H = ln 2 pi + 1 + 2 / nu.
    return math.inf if nu <= 2 else -math.log(1 - 2 / nu) - 2 / nu
    ### END SOLUTION


def weights_gap(weight):
    """Gap of two separate modes of equal variance in the plane, with the weights `weight` and 1 - `weight`."""
    ### BEGIN SOLUTION
    small, large = min(weight, 1 - weight), max(weight, 1 - weight)
    mean_volume = 1 + 2 * small + small * math.log(large / small)  # in units of 2 pi times the variance
    return math.log(mean_volume) + small * math.log(small) + large * math.log(large)
    ### END SOLUTION


def harmless_weights(variances):
    """Weights, with sum 1, of separate modes with these variances in the plane for which the gap is zero."""
    ### BEGIN SOLUTION
    # The profile bends at the peak of each mode; it is straight only if all peaks, w / (2 pi s), are equally high.
    return [s / sum(variances) for s in variances]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "gap_uniform", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(uniform_gap(2), 0.3069, "a uniform density in the plane", tolerance=1e-4)
same(uniform_gap(1), 0.1765, "a uniform density on the line", tolerance=1e-4)
### BEGIN HIDDEN TESTS


def uniform_by_sum(dim, size):
    """The gap of a uniform density on a set of this volume, its expectation by a sum."""
    volumes = (torch.arange(200_000).double() + 0.5) / 200_000 * size
    log_omega = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)
    spread = (volumes ** (2 / dim)).mean().item()
    return dim / 2 * (1 + math.log(2 * math.pi / dim * spread)) - log_omega - math.log(size)


for dim, size in ((2, 7.0), (3, 0.1), (5, 1.0), (16, 30.0)):
    same(uniform_gap(dim), uniform_by_sum(dim, size), f"a uniform density in {dim} dimensions", tolerance=1e-4)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "gap_student", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(student_gap(5), 0.1108, "the Student-t density with 5 degrees of freedom", tolerance=1e-4)
assert abs(float(student_gap(1e4))) < 1e-4, (
    "with very many degrees of freedom it is almost a normal, and the gap is not 0"
)
### BEGIN HIDDEN TESTS


def student_by_sum(nu):
    """The gap by quadrature over the mass u outside of a radius."""
    u = (torch.arange(4_000_000).double() + 0.5) / 4_000_000
    squared = nu * (u ** (-2 / nu) - 1)
    entropy = math.log(2 * math.pi) + (nu + 2) / 2 * torch.log1p(squared / nu).mean().item()
    return 1 + math.log(math.pi * squared.mean().item()) - entropy


for nu, tolerance in ((4.5, 1e-3), (8.0, 1e-4), (30.0, 1e-5)):
    same(student_gap(nu), student_by_sum(nu), f"{nu} degrees of freedom", tolerance=tolerance)
assert float(student_gap(2.02)) > 3, "2.02 degrees of freedom: the gap is larger than 3"
for nu in (2, 2.0, 1.0, 0.5):
    assert student_gap(nu) == math.inf, f"{nu} degrees of freedom: can any volume-preserving flow have a finite loss?"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "gap_weights", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(weights_gap(0.3), 0.0066, "modes of the weights 0.3 and 0.7", tolerance=1e-4)
same(weights_gap(0.5), 0.0, "modes of the same weight", tolerance=1e-9)
### BEGIN HIDDEN TESTS
from refimpl.flows import separated_modes_gap

for w in (0.7, 0.3, 0.1, 0.9, 0.02, 0.98, 1e-4):
    same(weights_gap(w), separated_modes_gap([1.0, 1.0], [w, 1 - w]), f"modes of the weights {w} and {1 - w:.4g}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "gap_harmless", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(torch.as_tensor(harmless_weights([0.5, 0.5])).double(), torch.tensor([0.5, 0.5]), "weights of two equal modes")
weights = torch.as_tensor(harmless_weights([1.0, 0.04])).double()
assert weights.shape == (2,) and abs(weights.sum() - 1) < 1e-6, "two modes need two weights with the sum 1"
### BEGIN HIDDEN TESTS
from refimpl.flows import separated_modes_gap

for variances in ([1.0, 0.04], [0.3, 2.0, 7.0], [1.0, 1.0, 4.0, 0.01]):
    weights = torch.as_tensor(harmless_weights(variances)).double()
    assert weights.shape == (len(variances),), f"{len(variances)} modes need {len(variances)} weights"
    left = separated_modes_gap(variances, weights.tolist())
    assert left < 1e-6, f"modes with the variances {variances}: with your weights the gap is {left:.2g}"
    assert abs(weights.sum() - 1) < 1e-6, "the weights do not add up to 1"
### END HIDDEN TESTS

# %% [markdown]
# Now let task 1 judge task 2, on a grid. **What to look for:** three of the densities have more than one mode. Which of the four needs a flow that changes volumes most?

# %%
points, cell = plane(11, 6, 0.03)
square = (points.abs().amax(-1) < 2).double()
cases = {
    "square": ((square / square.sum() / cell).log(), uniform_gap(2)),
    "weights 0.3 and 0.7": (modes(points, [0.5, 0.5], [0.3, 0.7], distance=10.0), weights_gap(0.3)),
    "harmless weights": (modes(points, [1.0, 0.04], [float(w) for w in harmless_weights([1.0, 0.04])]), 0.0),
    "equal weights": (modes(points, [1.0, 0.04]), 0.4453),
}
for name, (log_p, by_hand) in cases.items():
    say(f"{name}: {by_hand:.4f} nats by hand, {best(log_p, cell)[1]:.4f} by sorting the grid.")


# %% [markdown]
# ## Task 3: one layer that changes volumes (4 points)
#
# The chapter repairs volume-preserving flows by a learned base. Here is the other way: keep the normal base, and put one layer in front of it,
#
# $$z=\frac{g(r)}r\,x,\qquad r=\|x\|,$$
#
# which moves every point along its own ray. $g$ is increasing and smooth, $g(0)=0$, $g'(0)>0$.
#
# - Derive $\ln|\det|$ of its Jacobian. (Along the ray lengths are multiplied by one number, in the $D-1$ directions across by another.)
# - `radial_layer` returns $z$ and $\ln|\det|$ for points $x$ of shape (n, D). It gets $g$ as a function of a tensor of radii, and finds $g'$ by automatic differentiation. One of the points may be the origin, where the layer is as smooth as anywhere: what are $z$ and $\ln|\det|$ there? Only $g$ at radii $\ge0$ is defined.
#
# Which $g$ does a density $p$ in the plane need? Imagine that the couplings have done all that they can: they have arranged the level sets as discs around the origin, without a change of volume. What reaches the layer then falls off with the radius and has the profile of $p$: the disc of radius $r$ holds as much mass as the highest points of $p$ do on an area of $\pi r^2$. Behind the layer there should be $\mathcal N(0,I)$, for which the disc of radius $\rho$ holds the mass $1-e^{-\rho^2/2}$. The layer carries discs to discs, and their mass with them.
#
# - `repair` returns $r$ and $g(r)$ for the circles through the *middles* of all cells, sorted from the highest cell downwards: the volume above cell $i$ is $V_i=(i+\frac12)\cdot$`cell`, and as in $V_i$ half of the cell's own mass counts as inside. Far out the mass inside is so near 1 that 1 minus it is noise or zero in double precision. The mass *outside* is a sum of small numbers; add them up from the other end.

# %% nbgrader={"grade": false, "grade_id": "radial", "locked": false, "schema_version": 3, "solution": true, "task": false}
def radial_layer(x, g):
    """z, shape (n, D), and ln|det|, shape (n,), at the points x of shape (n, D). g maps radii to radii."""
    ### BEGIN SOLUTION
    r = x.norm(dim=1).detach().requires_grad_()
    new = g(r)
    slope = torch.autograd.grad(new.sum(), r)[0]
    stretch = torch.where(r > 0, new / r, slope).detach()
    return stretch[:, None] * x, slope.log() + (x.shape[1] - 1) * stretch.log()
    ### END SOLUTION


def repair(log_p, cell):
    """r and g(r), both rising and of shape (number of cells,), for a density in the plane."""
    ### BEGIN SOLUTION
    mass = log_p.flatten().sort(descending=True).values.exp() * cell
    outside = mass.flip(0).cumsum(0).flip(0) - mass / 2
    volumes = (torch.arange(len(mass)).double() + 0.5) * cell
    return (volumes / math.pi).sqrt(), (-2 * outside.log()).sqrt()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "radial_det", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_radial(seed, dim, g, what):
    x = torch.randn(20, dim, generator=runtime.generator(seed)).double()
    z, log_det = radial_layer(x, g)
    wanted = x * (g(x.norm(dim=1)) / x.norm(dim=1))[:, None]
    same(z, wanted, f"{what}, D = {dim}: z")
    inputs = x.clone().requires_grad_()
    outputs = inputs * (g(inputs.norm(dim=1)) / inputs.norm(dim=1))[:, None]
    rows = [torch.autograd.grad(outputs[:, i].sum(), inputs, retain_graph=True)[0] for i in range(dim)]
    same(log_det, torch.linalg.slogdet(torch.stack(rows, 1))[1], f"{what}, D = {dim}: ln|det|")


check_radial(0, 2, torch.sinh, "g = sinh")
check_radial(1, 3, torch.sinh, "g = sinh")
### BEGIN HIDDEN TESTS
check_radial(2, 6, lambda r: r + r**3, "another g")
check_radial(3, 2, lambda r: torch.log1p(3 * r), "another g")
check_radial(4, 1, torch.arcsinh, "another g")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "radial_origin", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
centre = torch.zeros(1, 2).double()
with_centre = torch.cat([centre, centre + 1])
z, log_det = radial_layer(with_centre, lambda r: torch.sinh(2 * r))
same(torch.as_tensor(z)[0], centre[0], "the origin: z")
same(torch.as_tensor(log_det)[0], 2 * math.log(2), "the origin: ln|det| for g = sinh(2 r), D = 2")
### BEGIN HIDDEN TESTS
for dim in (1, 3, 8):
    origins = torch.zeros(2, dim).double()
    z, log_det = radial_layer(origins, lambda r: 0.3 * r + r**2)
    same(z, origins, f"the origin, D = {dim}: z")
    same(log_det, torch.full((2,), dim * math.log(0.3)), f"the origin, D = {dim}: ln|det|")
tiny = torch.full((1, 4), 1e-9).double()
same(radial_layer(tiny, torch.sinh)[1], torch.zeros(1), "very near to the origin: ln|det| for g = sinh")
### END HIDDEN TESTS

# %% [markdown]
# For a normal density of standard deviation $\sigma$ you know $g$: it only has to divide by $\sigma$.

# %% nbgrader={"grade": true, "grade_id": "radial_normal", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_normal(variance, half_width):
    points, cell = plane(half_width, half_width, half_width / 200)
    radius, new = (torch.as_tensor(part) for part in repair(modes(points, [variance]), cell))
    assert radius.shape == new.shape == (160_000,), f"you return the shapes {tuple(radius.shape)}, {tuple(new.shape)}"
    assert (radius.diff() > 0).all() and (new.diff() > 0).all(), "r and g(r) must rise"
    near = (radius > 0.2 * math.sqrt(variance)) & (radius < 3 * math.sqrt(variance))
    same((new / radius)[near] * math.sqrt(variance), torch.ones(near.sum()), "a normal: sigma g(r) / r", tolerance=0.01)


check_normal(variance=1.0, half_width=6.0)
### BEGIN HIDDEN TESTS
check_normal(variance=4.0, half_width=15.0)
check_normal(variance=0.09, half_width=2.0)
few = torch.tensor([[0.1, 0.4, 0.06], [0.25, 0.15, 0.04]]).double()
radius, new = repair((few / 2).log(), 2.0)
same(radius, (torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]).double() / math.pi).sqrt(), "six cells of volume 2: r")
outside = torch.tensor([0.8, 0.475, 0.275, 0.15, 0.07, 0.02]).double()
same(new, (-2 * outside.log()).sqrt(), "six cells of volume 2: g(r)")
### END HIDDEN TESTS

# %% [markdown]
# For two modes the test computes from your $r$ and $g(r)$ the profile that the repaired flow has, and its distance from $p$ in nats. Without the layer it is 0.4453 or more. The grid reaches far out, to densities of $10^{-130}$.

# %% nbgrader={"grade": true, "grade_id": "radial_modes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def repaired_gap(log_p, cell):
    """KL(p || p of the repaired flow) and the numbers r and g."""
    radius, new = (torch.as_tensor(part).double() for part in repair(log_p, cell))
    assert radius.isfinite().all() and new.isfinite().all(), "some of your numbers are not finite"
    outside = torch.exp(-0.5 * new**2)
    heights = -outside.diff() / (math.pi * radius.square().diff())
    assert (heights > 0).all(), "far out your g no longer rises from cell to cell"
    sorted_log_p = log_p.flatten().sort(descending=True).values
    middle = (sorted_log_p[1:] + sorted_log_p[:-1]) / 2
    return (middle.exp() * cell * (middle - heights.log())).sum().item()


points, cell = plane(20, 8, 0.08)
left = repaired_gap(modes(points, [1.0, 0.04]), cell)
assert abs(left) < 0.01, f"with your g the repaired flow is {left:.3f} nats away from the two modes"
### BEGIN HIDDEN TESTS
for variances, weights in (([0.5, 0.1, 2.0], [0.2, 0.5, 0.3]), ([1.0, 1.0], [0.9, 0.1]), ([2.0], None)):
    left = repaired_gap(modes(points, variances, weights, distance=7.0), cell)
    assert abs(left) < 0.01, f"variances {variances}: the repaired flow is {left:.3f} nats away"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** a volume-preserving flow needs no layer if $g$ is a straight line. Where do the two modes ask for a bend? The slope of $g$ is small where the layer presses points together.

# %% alt="Radial maps g for two equal modes, a straight line, and for modes with variances 1 and 0.04, which rises steeply at first, bends, and then runs flatter."
points, cell = plane(9, 6, 0.04)
fig, ax = plt.subplots(figsize=(7.6, 2.7))
for (name, variances), colour in zip({"variances 1 and 0.04": [1.0, 0.04], "1 and 1": [1.0, 1.0]}.items(), PALETTE):
    radius, new = (torch.as_tensor(part)[:40_000:20] for part in repair(modes(points, variances), cell))
    ax.plot(radius, new, color=colour, label=name)
ax.set(xlabel="radius r in front of the layer", ylabel="radius g(r) behind it", xlim=(0, 4.5), ylim=(0, 4.5))
ax.set_title("What one layer has to do for two modes")
ax.legend()
plt.show()


# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# The building block of the layer-wise flow: the first feature is passive, all others are active. For points $x$ of shape (n, D)
#
# - `moments_broken` sorts the samples by the passive feature and cuts them into bins of equally many, so that the n % num_bins samples with the largest passive feature are left out. It returns the mean of the passive feature in each bin, and mean $m$ and standard deviation $\sigma$ (divided by the number of samples, not by one less) of the active features;
# - `improvement_broken` turns them into the loss that the best affine coupling removes, $\Delta=\frac12\mathbb E_b\sum_i(m_i^2+\sigma_i^2-1-\ln\sigma_i^2)$, where the sum runs over the active features and the expectation is the mean over the bins;
# - `fit_broken` makes the coupling that goes the share `step` of the way from the identity to $s=\frac1\sigma$, $t=-\frac m\sigma$;
# - `couple_broken` applies it: $s$ and $t$ are interpolated linearly between the bins' positions, and constant beyond the first and the last. It returns $z$ and $\ln|\det|$.
#
# Each function was tried on samples that hide its faults.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def moments_broken(passive, active, num_bins):
    """Position (bins,), mean (bins, active) and standard deviation (bins, active). Contains faults."""
    count = len(passive) // num_bins
    position = passive.sort().values[: num_bins * count].view(num_bins, count).mean(1)
    binned = active[: num_bins * count].view(num_bins, count, -1)
    return position, binned.mean(1), binned.std(1, correction=0)


def improvement_broken(mean, std):
    """Delta in nats, from mean and std of shape (bins, active). Contains faults."""
    return 0.5 * (mean**2 + std**2 - 1 - std.log()).mean()


def fit_broken(x, num_bins, step=0.5):
    """Position (bins,), scale (bins, active) and shift (bins, active) of the coupling. Contains faults."""
    position, mean, std = moments_broken(x[:, 0], x[:, 1:], num_bins)
    return position, 1 + step * (1 / std - 1), -step * mean


def couple_broken(x, position, scale, shift):
    """z of shape (n, D) and ln|det| of shape (n,). Contains faults."""
    right = torch.searchsorted(position, x[:, 0].contiguous()).clamp(1, len(position) - 1)
    share = ((x[:, 0] - position[right - 1]) / (position[right] - position[right - 1]))[:, None]
    s, t = (torch.lerp(part[right - 1], part[right], share) for part in (scale, shift))
    return torch.cat([x[:, :1], s * x[:, 1:] + t], 1), s.log().sum(1)


# %% [markdown]
# There are five faults, at least one in each function. Two of them you only find if you go beyond the plane, or beyond the bins. Do not stare; experiment: make samples for which you know each result, such as $b\sim\mathcal N(0,1)$ and $a\mid b\sim\mathcal N(\sin2b,(0.3+0.2b^2)^2)$ with $\Delta=0.7125$ from the chapter, and turn one knob at a time. Then write the repaired functions.

# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
def moments(passive, active, num_bins):
    """Position (bins,), mean (bins, active) and standard deviation (bins, active)."""
    ### BEGIN SOLUTION
    count = len(passive) // num_bins
    order = passive.argsort()[: num_bins * count]
    binned = active[order].view(num_bins, count, -1)
    return passive[order].view(num_bins, count).mean(1), binned.mean(1), binned.std(1, correction=0)
    ### END SOLUTION


def improvement(mean, std):
    """Delta in nats, from mean and std of shape (bins, active)."""
    ### BEGIN SOLUTION
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1).mean()
    ### END SOLUTION


def fit_coupling(x, num_bins, step=0.5):
    """Position (bins,), scale (bins, active) and shift (bins, active) of the coupling."""
    ### BEGIN SOLUTION
    position, mean, std = moments(x[:, 0], x[:, 1:], num_bins)
    return position, 1 + step * (1 / std - 1), -step * mean / std
    ### END SOLUTION


def apply_coupling(x, position, scale, shift):
    """z of shape (n, D) and ln|det| of shape (n,)."""
    ### BEGIN SOLUTION
    right = torch.searchsorted(position, x[:, 0].contiguous()).clamp(1, len(position) - 1)
    share = ((x[:, 0] - position[right - 1]) / (position[right] - position[right - 1])).clamp(0, 1)[:, None]
    s, t = (torch.lerp(part[right - 1], part[right], share) for part in (scale, shift))
    return torch.cat([x[:, :1], s * x[:, 1:] + t], 1), s.log().sum(1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "faults_moments", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
known = torch.tensor([[3.0, 10.0], [1.0, 4.0], [5.0, 0.0], [2.0, 6.0], [4.0, 30.0]]).double()
position, mean, std = moments(known[:, 0], known[:, 1:], 2)
same(position, torch.tensor([1.5, 3.5]), "five samples in two bins: positions")
same(mean, torch.tensor([[5.0], [20.0]]), "five samples in two bins: means")
same(std, torch.tensor([[1.0], [10.0]]), "five samples in two bins: standard deviations")
### BEGIN HIDDEN TESTS
from refimpl.flows import conditional_moments

cloud = torch.randn(1003, 4, generator=runtime.generator(30)).double()
cloud[:, 2] += 2 * cloud[:, 0].abs()
for name, got, wanted in zip(
    ("positions", "means", "standard deviations"),
    moments(cloud[:, 0], cloud[:, 1:], 20),
    conditional_moments(cloud[:, 0], cloud[:, 1:], 20),
):
    same(got, wanted, f"1003 samples, three active features: {name}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_improvement", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
b = math.sqrt(2) * torch.erfinv((2 * torch.arange(20_000).double() + 1) / 20_000 - 1)  # bins of equal mass of a normal
curve = torch.sin(2 * b)[:, None], (0.3 + 0.2 * b**2)[:, None]
same(improvement(*curve), 0.7125, "the curve of the chapter", tolerance=5e-4)
same(improvement(0 * curve[0], 0 * curve[1] + 1), 0.0, "a normal", tolerance=1e-9)
### BEGIN HIDDEN TESTS
from refimpl.flows import ConditionalMoments, affine_improvement

three = [
    torch.cat([curve[0], 0.2 * curve[0], 0 * curve[0]], 1),
    torch.cat([curve[1], curve[1] + 1, 0 * curve[1] + 2], 1),
]
wanted = affine_improvement(ConditionalMoments(b, *three))
same(improvement(*three), wanted, "three active features at once")
same(improvement(torch.zeros(4, 1).double(), torch.full((4, 1), math.e).double()), 2.1945, "sigma = e", tolerance=1e-4)
### END HIDDEN TESTS

# %% [markdown]
# Samples whose active features have the same mean and spread in every bin: with full steps all of them must come out standardised.

# %% nbgrader={"grade": true, "grade_id": "faults_step", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def even_cloud(seed, mean, std, n=640):
    """Samples in random order; in every bin of 10 or 20 the active features have exactly this mean and std."""
    source = runtime.generator(seed)
    signs = torch.tensor([1.0, -1.0]).double().repeat(n // 2)[:, None]
    x = torch.cat([torch.linspace(-2, 2, n).double()[:, None], mean + std * signs], 1)
    return x[torch.randperm(n, generator=source)]


mean, std = torch.tensor([3.0]).double(), torch.tensor([0.5]).double()
for step, wanted in ((1.0, (0.0, 1.0)), (0.5, (1.5, 0.75))):
    x = even_cloud(31, mean, std)
    z, _ = apply_coupling(x, *fit_coupling(x, 64, step))
    same(torch.as_tensor(z)[:, 1].mean(), wanted[0], f"step {step}: mean of what had mean 3 and deviation 0.5")
    same(torch.as_tensor(z)[:, 1].std(correction=0), wanted[1], f"step {step}: its standard deviation")
### BEGIN HIDDEN TESTS
from refimpl.flows import BinnedCoupling, conditional_moments

mean, std = torch.tensor([3.0, -1.0, 0.2]).double(), torch.tensor([0.5, 4.0, 1.0]).double()
x = even_cloud(32, mean, std)
z, log_det = apply_coupling(x, *fit_coupling(x, 32, 1.0))
same(torch.as_tensor(z)[:, 1:].mean(0), torch.zeros(3), "three active features: their means")
same(torch.as_tensor(z)[:, 1:].std(0, correction=0), torch.ones(3), "three active features: their deviations")
same(log_det, -std.log().sum().expand(len(x)), "three active features: ln|det|")
x = torch.randn(4000, 3, generator=runtime.generator(33)).double()
x[:, 1] = torch.sin(2 * x[:, 0]) + (0.3 + 0.2 * x[:, 0] ** 2) * x[:, 1]
at, m, s = conditional_moments(x[:, 0], x[:, 1:], 40)
block = BinnedCoupling(torch.eye(3).double(), at, 1 + 0.3 * (1 / s - 1), -0.3 * m / s)
inside = x[(x[:, 0] > at[0]) & (x[:, 0] < at[-1])]
for name, got, wanted in zip(("z", "ln|det|"), apply_coupling(inside, *fit_coupling(x, 40, 0.3)), block(inside)):
    same(got, wanted, f"the curve of the chapter, step 0.3: {name}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_rim", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
position = torch.tensor([-1.0, 0.0, 1.0]).double()
scale, shift = torch.tensor([[2.0], [1.0], [0.5]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
x = torch.tensor([[-1.0, 1.0], [0.5, 1.0], [1.0, 1.0]]).double()
z, log_det = apply_coupling(x, position, scale, shift)
same(torch.as_tensor(z)[:, 1], torch.tensor([2.0, 2.75, 3.5]), "between the bins: z")
same(log_det, torch.tensor([2.0, 0.75, 0.5]).log(), "between the bins: ln|det|")
_, log_det = apply_coupling(torch.tensor([[7.0, 1.0], [-7.0, 1.0]]).double(), position, scale, shift)
assert torch.as_tensor(log_det).isfinite().all(), "a sample that lies far out gets a ln|det| that is not finite"
### BEGIN HIDDEN TESTS
from refimpl.flows import BinnedCoupling

source = runtime.generator(34)
position = torch.randn(6, generator=source).double().sort().values
scale, shift = torch.rand(6, 2, generator=source).double() + 0.2, torch.randn(6, 2, generator=source).double()
x = torch.randn(200, 3, generator=source).double() * 4
wanted = BinnedCoupling(torch.eye(3).double(), position, scale, shift)(x)
for name, got, right in zip(("z", "ln|det|"), apply_coupling(x, position, scale, shift), wanted):
    same(got, right, f"samples inside and outside of the bins: {name}")
### END HIDDEN TESTS

# %% [markdown]
# Put your block to work on a ring of twenty modes. Before each block, $\Delta$ for its rotation is what the block promises; the fall of $\mathbb E[\frac12\|z\|^2-\ln|\det|]$ is what it removes. **What to look for:** do blocks with full steps keep their promise, and do those with half steps? Who is ahead behind ten blocks?

# %%
turns = torch.arange(20).double() * math.pi / 10
ring = GaussianMixture(2 * torch.stack([turns.cos(), turns.sin()], 1), 0.2)
for step in (1.0, 0.5):
    source = runtime.generator(40)
    z, removed, promised = ring.sample(2**15, source) / math.sqrt(2.04), [], []
    for _ in range(10):
        z = z @ random_rotation(2, source).T
        promised.append(float(improvement(*moments(z[:, 0], z[:, 1:], 64)[1:])))
        new, log_det = apply_coupling(z, *fit_coupling(z, 64, step))
        removed.append((log_det + 0.5 * (z**2 - new**2).sum(1)).mean().item())
        z = new
    say(
        f"Step {step}: the first block promised {promised[0]:.3f} nats and removed {removed[0]:.3f}; "
        f"ten blocks promised {sum(promised):.3f} and removed {sum(removed):.3f}."
    )


# %% [markdown]
# ## Task 5: predict, then measure: whitening (7 points)
#
# For Gaussian data, centred and with the covariance $\Sigma$, the whole loss is $S(\Sigma)=\frac12(\operatorname{tr}\Sigma-D-\ln\det\Sigma)$. How much of it does one coupling block leave? The block mixes the features, then the last $D_A$ of them are active and the first $D_P=D-D_A$ passive:
#
# $$\Sigma=\begin{pmatrix}\Sigma_{PP}&\Sigma_{PA}\\\Sigma_{AP}&\Sigma_{AA}\end{pmatrix}.$$
#
# - An *additive* block subtracts from the active half its conditional mean, $\Sigma_{AP}\Sigma_{PP}^{-1}b$, and that is all.
# - A *scaling* block does this, and then divides each feature, active and passive, by its standard deviation.
# - The mixing is a random *rotation* (`random_rotation`, uniform over all of them), or only a random *permutation* of the features.
#
# **Predict**, with pencil and paper, the share $\mathbb E[S_\text{new}]/S$ that a block leaves, near the end of training: $\Sigma=I+E$ with a small symmetric $E$ with $\operatorname{tr}E=0$. To leading order $S=\frac14\sum_{ij}E_{ij}^2$, and a block deletes some of the entries of $E$ and leaves the others as they are. Which ones? It remains to know how large each of them is on average behind the mixing.
#
# - *Rotations.* By symmetry all diagonal entries have the same mean square, and so have all others. In terms of the eigenvalues $\epsilon_k$ of $E$, a diagonal entry behind the rotation is $\sum_k\epsilon_kq_k^2$ with $q$ a random unit vector, for which $\mathbb E[q_k^4]=\frac3{D(D+2)}$ and $\mathbb E[q_k^2q_l^2]=\frac1{D(D+2)}$ for $k\ne l$. The sum of all squares does not change.
# - *Permutations.* Take a diagonal of $E$ that is zero already, as it is behind a scaling block.
#
# And one exact number. An additive block changes no volume, and neither does a rotation: whatever such blocks do, $\det\Sigma$ stays. `floor` is the smallest $S$ that a covariance with this determinant can have.

# %% [markdown]
# **Before you write more code** (1 point, read by a person). For $D=12$, predict the share that a block leaves: $D_A=3$ and $D_A=6$, scaling blocks with rotations and with permutations, additive blocks with rotations. How many scaling blocks with rotations and $D_A=6$ turn a small loss into a thousandth of it? You are about to start from eigenvalues between 0.1 and 10, far from the identity: what will the loss do in 16 blocks of each kind? You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "whiten_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Each diagonal entry has the mean square $\frac{2}{D(D+2)}\sum E^2$, each other $\frac1{(D+2)(D-1)}\sum E^2$. A scaling block deletes the diagonal and the $2D_AD_P$ entries between the halves and leaves $1-\frac2{D+2}-\frac{2D_AD_P}{(D-1)(D+2)}$: 0.5065 for $D_A=3$ and 0.3896 for $D_A=6$. An additive one leaves the diagonal: 0.6494 and 0.5325. With permutations a pair survives if both of its features fall into the same half, $\frac{D_A(D_A-1)+D_P(D_P-1)}{D(D-1)}$: 0.5909 and 0.4545. A thousandth at $D_A=6$: $\ln1000/{-\ln0.3896}=7.3$, so eight blocks.
# From far away the first blocks will be slower than that, because the loss is not quadratic there. Then I expect straight lines on a logarithmic axis for both scaling blocks, permutations behind rotations. The additive blocks cannot change $\det\Sigma$, so their loss stops at the floor, $\frac D2(g-1-\ln g)$ with $g=(\det\Sigma)^{1/D}$; with mean eigenvalue 1 and $g$ around a half, more than a nat.
#
# *Marks.* ½ for the shares of at least two kinds of block, with a reason for each (guesses in words that follow from deleted entries are enough if the numbers are off). ½ for what the additive blocks do, or for a slower start far from the identity.

# %% [markdown]
# **Now write them down**, and the simulation: `couple` applies one block to a covariance whose features are mixed already. `measured` is the mean, over 300 random mixings, of $S_\text{new}/S$ for one given covariance. `loss_of` is $S$, exactly and not to leading order, and `mixed` makes one random mixing.

# %% nbgrader={"grade": false, "grade_id": "mixing", "locked": true, "schema_version": 3, "solution": false, "task": false}
def loss_of(covariance):
    """S in nats, as a number."""
    return 0.5 * (covariance.trace() - len(covariance) - torch.logdet(covariance)).item()


def mixed(covariance, mixing, generator):
    """Covariance of the features behind a random rotation ("rotation") or in random order ("permutation")."""
    order = torch.randperm(len(covariance), generator=generator)
    q = torch.eye(len(covariance)).double()[order]
    if mixing == "rotation":
        q = random_rotation(len(covariance), generator)
    return q @ covariance @ q.T


# %% nbgrader={"grade": false, "grade_id": "whiten", "locked": false, "schema_version": 3, "solution": true, "task": false}
def couple(covariance, active, scaling=True):
    """Covariance behind a block, shape (D, D). active: D_A, the number of features at the end that are active."""
    ### BEGIN SOLUTION
    passive = len(covariance) - active
    pp, pa = covariance[:passive, :passive], covariance[:passive, passive:]
    result = torch.block_diag(pp, covariance[passive:, passive:] - pa.T @ torch.linalg.solve(pp, pa))
    deviation = result.diagonal().sqrt() if scaling else torch.ones(len(covariance)).double()
    return result / deviation / deviation[:, None]
    ### END SOLUTION


def predicted(dim, active, scaling=True, mixing="rotation"):
    """Share of S that a block leaves near the identity; mixing is "rotation" or "permutation"."""
    ### BEGIN SOLUTION
    between = 2 * active * (dim - active)
    if mixing == "permutation":
        return 1 - between / (dim * (dim - 1))
    return 1 - between / ((dim - 1) * (dim + 2)) - (2 / (dim + 2) if scaling else 0)
    ### END SOLUTION


def floor(covariance):
    """Smallest S that additive blocks and rotations can reach from this covariance, as a number."""
    ### BEGIN SOLUTION
    dim = len(covariance)
    log_g = torch.logdet(covariance).item() / dim
    return dim / 2 * (math.exp(log_g) - 1 - log_g)
    ### END SOLUTION


def measured(covariance, active, scaling=True, mixing="rotation", generator=None):
    """Mean of S_new / S over 300 random mixings of the covariance, drawn from the generator."""

    ### BEGIN SOLUTION
    total = 0.0
    for _ in range(300):
        total += loss_of(couple(mixed(covariance, mixing, generator), active, scaling))
    return total / 300 / loss_of(covariance)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "whiten_couple", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def random_covariance(seed, dim):
    root = torch.randn(dim, 2 * dim, generator=runtime.generator(seed)).double()
    return root @ root.T / (2 * dim)


pair = torch.tensor([[4.0, 2.0], [2.0, 3.0]]).double()
same(couple(pair, 1, scaling=False), torch.tensor([[4.0, 0.0], [0.0, 2.0]]), "an additive block in the plane")
same(couple(pair, 1), torch.eye(2), "a scaling block in the plane")
four = random_covariance(50, 4)
change = abs(torch.logdet(torch.as_tensor(couple(four, 3, scaling=False))) - torch.logdet(four)).item()
assert change < 1e-9, f"an additive block changes ln det of the covariance by {change:.2g}"
### BEGIN HIDDEN TESTS
from refimpl.flows import whitening_block

for seed, dim, active in ((51, 5, 2), (52, 7, 1), (53, 12, 6)):
    before = random_covariance(seed, dim)
    same(couple(before, active), whitening_block(before, active), f"a scaling block, D = {dim}, D_A = {active}")
    move = torch.eye(dim).double()
    move[-active:, :-active] = -before[-active:, :-active] @ before[:-active, :-active].inverse()
    same(couple(before, active, False), move @ before @ move.T, f"an additive block, D = {dim}, D_A = {active}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "whiten_rotations", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(predicted(48, 24), 0.4698, "the share that the chapter gives for D = 48, scaling blocks", tolerance=1e-4)
same(predicted(2, 1), 0.0, "the plane: one scaling block whitens it", tolerance=1e-9)
assert predicted(48, 24, scaling=False) > predicted(48, 24), "additive blocks should leave more than scaling ones"
### BEGIN HIDDEN TESTS
from refimpl.flows import whitening_ratio

for dim, active in ((12, 3), (12, 9), (7, 2), (100, 50)):
    share = whitening_ratio(dim, active)
    same(predicted(dim, active), share, f"scaling blocks, D = {dim}, D_A = {active}")
    same(predicted(dim, active, False), share + 2 / (dim + 2), f"additive blocks, D = {dim}, D_A = {active}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "whiten_permutations", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(predicted(2, 1, mixing="permutation"), 0.0, "the plane, permutations", tolerance=1e-9)
gain = predicted(48, 24, mixing="permutation") - predicted(48, 24)
assert 0 < gain < 0.1, "in 48 dimensions permutations should do a little worse than rotations"
### BEGIN HIDDEN TESTS
for dim, active in ((12, 3), (12, 6), (7, 2), (100, 50)):
    together = sum(1 for i in range(dim) for j in range(dim) if i != j and (i < active) == (j < active))
    wanted = together / (dim * (dim - 1))
    same(predicted(dim, active, mixing="permutation"), wanted, f"permutations, D = {dim}, D_A = {active}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "whiten_floor", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(floor(torch.diag(torch.tensor([4.0, 1.0]).double())), 0.3069, "the eigenvalues 4 and 1", tolerance=1e-4)
same(floor(torch.diag(torch.tensor([4.0, 0.25]).double())), 0.0, "the eigenvalues 4 and 1/4", tolerance=1e-9)
### BEGIN HIDDEN TESTS
from refimpl.flows import nonstandardness

for seed, dim, factor in ((54, 3, 1.0), (55, 9, 1.0), (55, 9, 3.0), (56, 20, 0.1)):
    turned = factor * random_covariance(seed, dim)
    wanted = nonstandardness(torch.eye(dim).double() * torch.linalg.det(turned) ** (1 / dim))
    same(floor(turned), wanted, f"a random covariance, D = {dim}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "whiten_measured", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def near_identity(seed, dim, size=0.02):
    """Random covariance with I + small deviations, ones on the diagonal."""
    noise = torch.randn(dim, dim, generator=runtime.generator(seed)).double() * size / math.sqrt(dim)
    return torch.eye(dim).double() + (noise + noise.T) - 2 * torch.diag(noise.diagonal())


def check_measured(covariance, active, wanted, what, **settings):
    got = float(measured(covariance, active, generator=runtime.generator(60), **settings))
    assert abs(got - wanted) < 0.06 * wanted, (
        f"{what}: you measure the share {got:.3f}, which should be near {wanted:.3f}"
    )


check_measured(near_identity(61, 48), 24, 0.4698, "D = 48, scaling blocks with rotations, near the identity")
### BEGIN HIDDEN TESTS
from refimpl.flows import whiten

small = near_identity(62, 12)
check_measured(small, 3, 0.5065, "D = 12, D_A = 3, scaling blocks with rotations")
check_measured(small, 3, 0.6494, "D = 12, D_A = 3, additive blocks with rotations", scaling=False)
check_measured(small, 6, 0.4545, "D = 12, D_A = 6, scaling blocks with permutations", mixing="permutation")
wide = torch.diag(torch.logspace(-1, 1, 8).double())
wide = wide * 8 / wide.trace()
losses = whiten(wide.expand(2000, 8, 8), 1, active=2, generator=runtime.generator(63))[0]
check_measured(wide, 2, (losses[1] / losses[0]).mean().item(), "D = 8, D_A = 2, far from the identity")
wide = 2 * wide
losses = whiten(wide.expand(2000, 8, 8), 1, active=4, generator=runtime.generator(64))[0]
check_measured(wide, 4, (losses[1] / losses[0]).mean().item(), "D = 8, all covariances twice as large")
### END HIDDEN TESTS

# %% [markdown]
# Your predictions beside your measurements, and 16 blocks in a row from eigenvalues between 0.1 and 10, in ten runs. **What to look for:** do the lines have the slopes that you predicted? Two of the three kinds do something else in the end.

# %%
small = near_identity(70, 12)
kinds = {
    "scaling, rotations": dict(scaling=True, mixing="rotation"),
    "scaling, permutations": dict(scaling=True, mixing="permutation"),
    "additive, rotations": dict(scaling=False, mixing="rotation"),
}
for name, kind in kinds.items():
    source = runtime.generator(71)
    pairs = [(predicted(12, k, **kind), measured(small, k, **kind, generator=source)) for k in (3, 6)]
    say(f"{name}, D_A = 3 and 6: " + ", ".join(f"predicted {a:.4f}, measured {b:.4f}" for a, b in pairs) + ".")


# %% alt="Loss of ten runs against the number of blocks on a logarithmic axis: with rotations straight falling lines; with permutations lines that fall a little more slowly, then drop to zero within a dozen blocks; additive blocks level off at about one nat."
def run(covariance, scaling, mixing, source, num_blocks=16):
    losses = [loss_of(covariance)]
    for _ in range(num_blocks):
        covariance = torch.as_tensor(couple(mixed(covariance, mixing, source), 6, scaling))
        losses.append(loss_of(covariance))
    return losses


source, starts = runtime.generator(72), []
for _ in range(10):
    spectrum, q = 10 ** (2 * torch.rand(12, generator=source).double() - 1), random_rotation(12, source)
    starts.append(q @ torch.diag(spectrum / spectrum.mean()) @ q.T)
fig, ax = plt.subplots(figsize=(7.6, 2.9))
for (name, kind), colour in zip(kinds.items(), PALETTE):
    paths = torch.tensor([run(start, **kind, source=source) for start in starts])
    lines = ax.semilogy(paths.T.clamp_min(1e-12), color=colour, lw=0.8)
    lines[0].set_label(name)
    done = (paths[:, -1] < 1e-12).sum()
    middle = ", ".join(f"{paths[:, k].median():.2g}" for k in (0, 1, 2, 4))
    say(f"{name}: {middle} nats behind 0, 1, 2, 4 blocks (median); behind 16 blocks {done} of 10 runs are below 1e-12.")
ax.axhline(sum(floor(start) for start in starts) / 10, color="k", ls="--", lw=1, label="floor, mean of the runs")
ax.set(xlabel="blocks", ylabel="S (nats)", ylim=(1e-7, 30))
ax.set_title("Whitening in 12 dimensions")
ax.legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# **After the measurement** (1 point, read by a person): set the measured shares beside your predictions. Then explain what the lines do in the end. Why does the floor of the additive blocks not contradict tasks 1 and 2: which *single* number, learned, would remove it, and for which data does this work? And permutations leave more than rotations in the mean, but at some block they are *done*, to the last digit. Follow two features through the blocks: from when on are they independent for good, and how many pairs are there?

# %% [markdown] nbgrader={"grade": true, "grade_id": "whiten_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Near the identity the measured shares agree with the formulas to about 0.005: 0.507 and 0.390 for scaling blocks with rotations, 0.591 and 0.455 with permutations, 0.649 and 0.533 for additive blocks. From far away the scaling blocks start a little slower, then keep the slope.
# The additive blocks make all eigenvalues equal, to $g=(\det\Sigma)^{1/D}$, and stop there. What is left is a matter of units: one learned factor $1/\sqrt g$ for all features removes it. This works for Gaussian data, whose height profile is that of the base; so their gap is zero, and a volume-preserving flow with its one scale reaches them. Where the profile is bent, as for modes of different heights, no single number helps.
# With permutations, two features that were in different halves once are independent, and stay so. A block acts within groups of features that depend on each other; it splits groups and never joins two. So a run is done, exactly, when each of the 66 pairs has been in different halves once: it is Gaussian elimination in random order. After $k$ blocks the pairs that have not are $66\cdot0.4545^k$ in the mean, so at most that share of the runs is unfinished: 2.5 % for $k=10$. The predicted share is right all the same: it is the mean over runs, carried in the end by the few in which a pair has survived. A rotation spreads what is left over all entries again, so that nothing is ever finished.
#
# *Marks.* ½ for the floor: a wrong common scale, removable by one number, because Gaussian data have the profile of the base. ½ for permutations: separated once is separated for good (or: pairs are deleted one by one), whereas rotations spread what is left.

# %% [markdown]
# ## Task 6: what a universal flow promises (3 points)
#
# A colleague writes: *"We train an additive coupling flow on molecules. At 40 layers its validation loss has stopped at 0.45 nats above the entropy that we know for this toy system, and at 80 layers it is the same. Coupling flows are universal, this was proved in 2020, so the optimiser is to blame; we will try 200 layers and a smaller learning rate. Its density joins the two states by a thin bridge, which shows that training was bad. On the other hand the latents look fine: in every rotation that we tried, the mean of one half given the other is zero, so no coupling could improve the flow any more, and the latents are normal."*
#
# Advise the colleague in at most 250 words. Take up at least these questions. In which sense may a flow be universal, and what does each sense say about the loss? Which measurement on the trained flow tells within minutes whether the optimiser is to blame, and what would it show in either case? What does the bridge prove? What do vanishing conditional means prove about the latents, and what would you measure in their place? What is the smallest change to the flow that can help?
#
# One point is for the sense of universality and what it leaves open; one for a measurement that tells a wall from bad training, with the bridge put in its place; one for the latents and the change to the flow.

# %% [markdown] nbgrader={"grade": true, "grade_id": "promise", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **The sense.** A theorem on approximation in distribution (weakly, in Wasserstein distance or $L^p$ on bounded sets) says nothing about the likelihood: a tiny share of mass in the wrong place costs any amount of it. Additive flows can be close in that sense, at the price of ever steeper networks, and stay a fixed number of nats away. For affine couplings the layer-wise argument shows that the improvement per block goes to zero and the latents converge in distribution; neither a rate, nor that the loss goes to zero, nor that gradient descent finds the blocks.
# - **A wall or bad training?** Sort the target by its density, on a grid or by samples if it is known up to a factor: the gap $\frac D2(1+\ln\frac{2\pi}D\mathbb E[V^{2/D}])-\ln\omega_D-H(p)$ is what every such flow's loss exceeds the entropy by, at least. If it is 0.45, no number of layers helps; if it is 0.01, go on training. That 40 and 80 layers agree speaks for a wall, but does not prove it. Another hint: the profile of the flow is a Gaussian's, whatever it learned, so compare the peaks of the states with those of the target.
# - **The bridge** is topology: every flow with a connected base has one, the good ones too. It can be thin and cost next to nothing.
# - **The latents.** Vanishing conditional means show that they are round, not that they are normal: a uniform disc passes. Measure $\Delta$ with the conditional variances, at many rotations, against its noise of bins over samples; additive couplings cannot use what it finds, affine ones can.
# - **The change.** One piece that changes volumes: a learned radial base or a radial layer, a few numbers; or affine couplings throughout.
#
# *Marks.* 1 for weak convergence against the loss, with one thing that the theorem for affine couplings leaves open. 1 for a measurement that can come out either way (gap of the target, or profiles of target and flow) *and* for the bridge as topology. 1 for round but not normal, with conditional variances as the remedy (½), and for a learned radial base, a radial layer or affine couplings (½).
