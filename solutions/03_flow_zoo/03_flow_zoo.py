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
# # Exercises 03: The zoo of normalizing flows
#
# Read [chapter 03](../../chapters/03_flow_zoo.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 The radial flow, there and back | 4 | 4 | |
# | 2 A spline from its equation | 5 | 5 | |
# | 3 Roulette at the right stake | 4 | 4 | |
# | 4 Find the faults | 4 | 4 | |
# | 5 Predict, then measure: tails | 5 | 3 | 2 |
# | 6 Which family would you take? | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.flows` holds most of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - A bijection $f$ takes data $x$ to latents $z=f(x)$. Each direction returns beside its points the log-determinant of *its own* Jacobian: $\ln|\det\partial z/\partial x|$ on the way there, $\ln|\det\partial x/\partial z|$ on the way back. With the density $p_Z$ of the latents, $\ln p(x)=\ln p_Z(f(x))+\ln|\det\partial z/\partial x|$.
# - $n$ points of $D$ features are the rows of a tensor of shape (n, D); a log-determinant is one number a point, shape (n,).
# - Tensors come in double precision; keep it. Loops, NumPy and PyTorch are all welcome inside your functions, but in task 2 gradients must pass through them.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from refimpl import runtime
from refimpl.autodiff import log_det_jacobian
from refimpl.flows import AffineMap, Chain, Flow, MaskedAutoregressive, StudentT
from refimpl.plots import PALETTE, label_panels, say, use_course_style
from refimpl.training import fit

use_course_style()


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-10):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = (torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in (got, wanted))
    assert got.shape == wanted.shape, f"{what}: you return the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}"
    assert got.isfinite().all(), f"{what}: some of your numbers are not finite"
    error = ((got - wanted).abs().max() / wanted.abs().max().clamp_min(1)).item()
    assert error < tolerance, f"{what}: the largest error is {error:.1e}"


def both(pair, what):
    """The two tensors that a direction of a bijection returns."""
    assert isinstance(pair, tuple | list) and len(pair) == 2, f"{what} must return two tensors"
    return torch.as_tensor(pair[0]), torch.as_tensor(pair[1])


def double(values):
    """A tensor in double precision."""
    return torch.tensor(values, dtype=torch.float64)


def normal(seed, *shape):
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, generator=runtime.generator(seed), dtype=torch.float64)


# %% [markdown]
# ## Task 1: the radial flow, there and back (4 points)
#
# A radial layer has a centre $c$ and two numbers, $\alpha>0$ and $\beta>-\alpha$. It moves each point along the ray on which it lies:
#
# $$z=x+\beta\,\frac{x-c}{\alpha+r},\qquad r=\|x-c\|.$$
#
# Work out three things, with pencil and paper.
#
# - *The determinant.* The Jacobian is $\lambda I+\mu\,uu^\top$, with the unit vector $u=(x-c)/r$ and two numbers $\lambda$, $\mu$ of your own. The matrix determinant lemma, $\det(I+ab^\top)=1+b^\top a$, does the rest. Bring the two factors that you find to their simplest form.
# - *The way back.* With $R=\|z-c\|$ you get an equation between $R$ and $r$. Solve it for $r$. Why is exactly one of its two roots a distance, and where does $\beta>-\alpha$ come in?
# - *With what precision?* A formula that is right on paper may subtract two numbers that are almost equal, and lose the digits that count. Does yours, for a point far outside, or for one near the centre of a layer with $\beta\gg\alpha$? Look at the sign of $R-\alpha-\beta$, and find a form of the root that is exact for each.
#
# The points of either direction may sit on the centre itself.

# %% nbgrader={"grade": false, "grade_id": "radial", "locked": false, "schema_version": 3, "solution": true, "task": false}
def radial(x, centre, alpha, beta):
    """z, shape (n, D), and log|det dz/dx|, shape (n,). x: shape (n, D); centre: shape (D,); alpha, beta: numbers."""
    ### BEGIN SOLUTION
    away = x - centre
    h = 1 / (alpha + away.norm(dim=1))
    log_det = (x.shape[1] - 1) * torch.log1p(beta * h) + torch.log1p(alpha * beta * h**2)
    return x + beta * h[:, None] * away, log_det
    ### END SOLUTION


def radial_inverse(z, centre, alpha, beta):
    """x, shape (n, D), and log|det dx/dz|, shape (n,)."""
    ### BEGIN SOLUTION
    away = z - centre
    distance = away.norm(dim=1)
    gap = distance - alpha - beta
    root = (gap**2 + 4 * alpha * distance).sqrt()
    r = torch.where(gap > 0, (gap + root) / 2, 2 * alpha * distance / (root - gap))
    x = centre + away / (1 + beta / (alpha + r))[:, None]
    return x, -radial(x, centre, alpha, beta)[1]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "radial_there", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def moved(x, centre, alpha, beta):
    """The layer's definition."""
    away = x - centre
    return x + beta * away / (alpha + away.norm(dim=-1, keepdim=True))


def check_there(seed, dim, alpha, beta):
    x, centre = normal(seed, 20, dim), normal(seed + 1, dim)
    what = f"D = {dim}, alpha = {alpha}, beta = {beta}"
    z, log_det = both(radial(x, centre, alpha, beta), "radial")
    same(z, moved(x, centre, alpha, beta), f"{what}: z")
    same(log_det, log_det_jacobian(lambda a: moved(a, centre, alpha, beta), x), f"{what}: the log-determinant")


check_there(seed=0, dim=2, alpha=1.0, beta=2.0)
### BEGIN HIDDEN TESTS
check_there(seed=2, dim=1, alpha=0.5, beta=3.0)
check_there(seed=4, dim=7, alpha=0.8, beta=-0.7)
check_there(seed=6, dim=3, alpha=2.0, beta=0.0)
centre = normal(8, 4)
z, log_det = both(radial(centre[None], centre, 0.5, 1.0), "radial")
same(z, centre[None], "the centre itself")
same(log_det, double([4 * math.log(3.0)]), "the log-determinant at the centre, D = 4", tolerance=1e-6)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "radial_back", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_back(seed, dim, alpha, beta):
    x, centre = normal(seed, 20, dim), normal(seed + 1, dim)
    x[0] = centre
    got, _ = both(radial_inverse(moved(x, centre, alpha, beta), centre, alpha, beta), "radial_inverse")
    same(got[1:], x[1:], f"D = {dim}, alpha = {alpha}, beta = {beta}: there and back")
    same(got[:1], x[:1], f"D = {dim}, alpha = {alpha}, beta = {beta}: back from the centre itself")


check_back(seed=10, dim=2, alpha=1.0, beta=2.0)
### BEGIN HIDDEN TESTS
check_back(seed=12, dim=5, alpha=0.8, beta=-0.7)
check_back(seed=14, dim=1, alpha=3.0, beta=0.5)
check_back(seed=16, dim=30, alpha=0.1, beta=40.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "radial_back_volume", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_back_volume(seed, dim, alpha, beta):
    x, centre = normal(seed, 20, dim), normal(seed + 1, dim)
    wanted = -log_det_jacobian(lambda a: moved(a, centre, alpha, beta), x)
    _, log_det = both(radial_inverse(moved(x, centre, alpha, beta), centre, alpha, beta), "radial_inverse")
    same(log_det, wanted, f"D = {dim}, alpha = {alpha}, beta = {beta}: the log-determinant of the way back")


check_back_volume(seed=20, dim=2, alpha=1.0, beta=2.0)
### BEGIN HIDDEN TESTS
check_back_volume(seed=22, dim=6, alpha=0.8, beta=-0.7)
check_back_volume(seed=24, dim=1, alpha=3.0, beta=0.5)
### END HIDDEN TESTS

# %% [markdown]
# Now the digits. The points below lie on one ray, the centre is the origin, and each coordinate must be right to ten digits *of its own*.

# %% nbgrader={"grade": true, "grade_id": "radial_digits", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_digits(r, alpha, beta):
    x = r * double([[0.6, 0.8]])
    centre = torch.zeros(2).double()
    got, _ = both(radial_inverse(moved(x, centre, alpha, beta), centre, alpha, beta), "radial_inverse")
    error = ((got - x) / x).abs().max().item()
    assert error < 1e-10, f"r = {r}, alpha = {alpha}, beta = {beta}: your relative error is {error:.1e}"


check_digits(r=1e-3, alpha=1e-3, beta=1e6)
check_digits(r=1e9, alpha=1.0, beta=-0.5)
### BEGIN HIDDEN TESTS
check_digits(r=1e-8, alpha=3e-8, beta=50.0)
check_digits(r=1e12, alpha=2.0, beta=3.0)
check_digits(r=1.0, alpha=2.0, beta=-1.5)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** for $\beta>0$ points move outwards, for $\beta<0$ inwards. In which of the two is the density of $x$ raised at the centre, if $z$ is normal?

# %% alt="Two warped grids: for beta = 3 the cells around the centre are blown up, for beta = -0.9 they shrink to almost nothing."
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3))
lines = torch.linspace(-3, 3, 13, dtype=torch.float64)
fine = torch.linspace(-3, 3, 241, dtype=torch.float64)
centre = double([0.5, 0.0])
for ax, beta in zip(axes, (3.0, -0.9)):
    for at in lines:
        for row in (torch.stack([fine, at.expand(241)], 1), torch.stack([at.expand(241), fine], 1)):
            ax.plot(*both(radial(row, centre, 1.0, beta), "radial")[0].detach().T, color=PALETTE[0], lw=0.7)
    ax.plot(*centre, "o", color=PALETTE[1])
    ax.set(aspect="equal", xlabel="z₁", ylabel="z₂")
label_panels(axes, ["α = 1, β = 3", "α = 1, β = -0.9"])
plt.show()


# %% [markdown]
# ## Task 2: a spline from its equation (5 points)
#
# A rational-quadratic spline is given by $K+1$ knots $(x_k,y_k)$, $k=0,\dots,K$, both increasing in $k$, and slopes $d_k>0$ there. The box is $[-B,B]$: $x_0=y_0=-B$ and $x_K=y_K=B$. In bin $k$, with width $w_k=x_{k+1}-x_k$, mean slope $\sigma_k=(y_{k+1}-y_k)/w_k$ and relative position $\xi=(x-x_k)/w_k$,
#
# $$y=y_k+\frac{(y_{k+1}-y_k)\,[\sigma_k\xi^2+d_k\,\xi(1-\xi)]}{\sigma_k+(d_{k+1}+d_k-2\sigma_k)\,\xi(1-\xi)}.$$
#
# Outside the box the spline is the identity.
#
# - `spline` returns $y$ and $\ln dy/dx$. Differentiate by hand: numerator and denominator are quadratics in $\xi$, and so much cancels that every term of what is left is positive. That is why the spline increases.
# - `spline_inverse` returns $x$ and $\ln dx/dy$. Multiply the equation by its denominator, and you have a quadratic in $\xi$. Of its two roots one lies in the bin. In a bin that is straight, $d_k=d_{k+1}=\sigma_k$, the leading coefficient is 0: there are two ways to write a root of a quadratic, and one of them has no trouble with that.
#
# Points are of shape (n,), and so are both results. Many of them may lie outside the box, or on its border. Use PyTorch operations throughout, since a network that predicts knots is trained *through* your spline. One trap: `torch.where` picks the value, but backpropagation visits both branches, and `0 * nan` is `nan`. So a branch needs harmless inputs where it is not picked.

# %% nbgrader={"grade": false, "grade_id": "spline", "locked": false, "schema_version": 3, "solution": true, "task": false}
def spline(x, xs, ys, slopes):
    """y and log dy/dx, each of shape (n,). x: points, shape (n,); xs, ys, slopes: knots, each of shape (K + 1,)."""
    ### BEGIN SOLUTION
    inside = x.abs() <= xs[-1]
    at = torch.where(inside, x, 0)
    k = torch.searchsorted(xs[1:-1].detach(), at.detach(), right=True)
    width, height, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s, xi = height / width, (at - xs[k]) / width
    mix = xi * (1 - xi)
    denominator = s + (d0 + d1 - 2 * s) * mix
    y = ys[k] + height * (s * xi**2 + d0 * mix) / denominator
    log_slope = 2 * (s / denominator).log() + (d1 * xi**2 + 2 * s * mix + d0 * (1 - xi) ** 2).log()
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0)
    ### END SOLUTION


def spline_inverse(y, xs, ys, slopes):
    """x and log dx/dy, each of shape (n,)."""
    ### BEGIN SOLUTION
    inside = y.abs() <= ys[-1]
    at = torch.where(inside, y, 0)
    k = torch.searchsorted(ys[1:-1].detach(), at.detach(), right=True)
    width, height, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s, up = height / width, at - ys[k]
    bend = d0 + d1 - 2 * s
    a, b, c = height * (s - d0) + up * bend, height * d0 - up * bend, -s * up
    xi = -2 * c / (b + (b**2 - 4 * a * c).sqrt())
    x = torch.where(inside, xs[k] + xi * width, y)
    return x, -spline(x, xs, ys, slopes)[1]
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "knots", "locked": true, "schema_version": 3, "solution": false, "task": false}
def random_knots(seed, bins=6, bound=3.0):
    """Positions, heights and slopes of random knots."""
    w, h, d = normal(seed, 3, bins)
    xs, ys = (2 * bound * F.pad(v.softmax(0).cumsum(0), (1, 0)) - bound for v in (w, h))
    xs[-1] = ys[-1] = bound
    return xs, ys, F.pad(F.softplus(d[1:]) + 0.05, (1, 1), value=1.0)


SMALL = [double(v) for v in ([-1.0, 0.0, 1.0], [-1.0, 0.5, 1.0], [1.0, 2.0, 1.0])]


def interior(seed, n=200, bound=3.0):
    """Points inside the box."""
    return (torch.rand(n, generator=runtime.generator(seed), dtype=torch.float64) * 2 - 1) * bound * 0.999


# %% nbgrader={"grade": true, "grade_id": "spline_values", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
y, _ = both(spline(double([-0.5]), *SMALL), "spline")
same(y, double([-0.375]), "knots (-1, -1), (0, 0.5), (1, 1), slopes 1, 2, 1: the value at -0.5")
for seed in (30, 31):
    xs, ys, slopes = random_knots(seed)
    same(both(spline(xs[1:-1], xs, ys, slopes), "spline")[0], ys[1:-1], "random knots: the heights at the inner knots")
    y, _ = both(spline(interior(seed).sort().values, xs, ys, slopes), "spline")
    assert (y.diff() > 0).all(), "random knots: your spline does not increase"
### BEGIN HIDDEN TESTS
from refimpl.flows import SplineMap

for seed, bins, bound in ((32, 8, 3.0), (33, 1, 2.0), (34, 20, 5.0)):
    oracle, raw = SplineMap(bins, bound), 2 * normal(seed, 3 * bins - 1)
    knots = [v[:, 0] for v in oracle.knots(raw)]
    x = interior(seed, 100, bound)
    wanted = oracle.forward(x[:, None], raw.expand(100, -1))[0][:, 0]
    same(both(spline(x, *knots), "spline")[0], wanted, f"{bins} bins in [-{bound:g}, {bound:g}]: the values")
### END HIDDEN TESTS

# %% [markdown]
# The slopes are compared with differences of your own values, and at the knots with those given.

# %% nbgrader={"grade": true, "grade_id": "spline_slopes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_slopes(knots, x, step=1e-5):
    xs, _, slopes = knots
    apart = (x[:, None] - xs).abs().amin(1) > 2 * step  # the slope bends at the knots
    x = x[apart]
    difference = (spline(x + step, *knots)[0] - spline(x - step, *knots)[0]) / (2 * step)
    error = (both(spline(x, *knots), "spline")[1].exp() / torch.as_tensor(difference) - 1).abs().max().item()
    assert error < 1e-5, f"your slopes differ from differences of your values by up to {error:.1e} of the slope"
    same(both(spline(xs[1:-1], *knots), "spline")[1], slopes[1:-1].log(), "the log-slopes at the inner knots")


check_slopes(random_knots(40), interior(40))
### BEGIN HIDDEN TESTS
from refimpl.flows import SplineMap

for seed, bins, bound in ((42, 8, 3.0), (43, 1, 2.0), (44, 20, 5.0)):
    oracle, raw = SplineMap(bins, bound), 2 * normal(seed, 3 * bins - 1)
    knots = [v[:, 0] for v in oracle.knots(raw)]
    x = interior(seed, 100, bound)
    wanted = oracle.forward(x[:, None], raw.expand(100, -1))[1][:, 0]
    same(both(spline(x, *knots), "spline")[1], wanted, f"{bins} bins in [-{bound:g}, {bound:g}]: the log-slopes")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "spline_back", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
knots, y = random_knots(50), interior(50)
x, log_slope = both(spline_inverse(y, *knots), "spline_inverse")
there, log_slope_there = both(spline(x, *knots), "spline")
same(there, y, "back and there again")
same(log_slope, -log_slope_there, "the log-slope of the way back, beside that of your way there")
### BEGIN HIDDEN TESTS
from refimpl.flows import SplineMap

for seed, bins, bound in ((52, 8, 3.0), (53, 2, 2.0), (54, 20, 5.0)):
    oracle, raw = SplineMap(bins, bound), 2 * normal(seed, 3 * bins - 1)
    knots = [v[:, 0] for v in oracle.knots(raw)]
    y = interior(seed, 100, bound)
    wanted = oracle.inverse(y[:, None], raw.expand(100, -1))[0][:, 0]
    same(both(spline_inverse(y, *knots), "spline_inverse")[0], wanted, f"{bins} bins: the values of the inverse")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "spline_straight", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_straight(seed, excess):
    """Straight bins, but for a relative excess of the slopes at the inner knots."""
    xs = random_knots(seed)[0]
    slopes = torch.ones(len(xs)).double()
    slopes[1:-1] += excess * (1 + torch.arange(len(xs) - 2))
    x = interior(seed)
    y, _ = both(spline(x, xs, xs, slopes), "spline")
    back, _ = both(spline_inverse(y, xs, xs, slopes), "spline_inverse")
    same(back, x, f"a spline that is straight up to slopes of 1 + {excess:g}: there and back")


check_straight(seed=60, excess=0.0)
### BEGIN HIDDEN TESTS
for excess in (1e-12, 1e-9, 1e-6):
    check_straight(seed=61, excess=excess)
xs, ys = double([-2.0, -1.0, 1.0, 2.0]), double([-2.0, -1.0, 1.0, 2.0])
y = interior(62, bound=2.0)
x, _ = both(spline_inverse(y, xs, ys, torch.ones(4).double()), "spline_inverse")
same(x, y, "the identity backwards")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "spline_outside", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_outside(direction, name, seed, points):
    knots = [v.requires_grad_() for v in random_knots(seed)]
    x = double(points).requires_grad_()
    y, log_slope = both(direction(x, *knots), name)
    edge, far = x.detach().abs() >= 3, x.detach().abs() > 3
    same(y[edge], x[edge], f"{name}: points outside the box or on its border")
    same(log_slope[far], 0 * x[far], f"{name}: log-slopes outside the box")
    gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, *knots], allow_unused=True)
    for of, gradient in zip(("the points", "positions", "heights", "slopes"), gradients):
        assert gradient is not None, f"{name}: no gradient reaches {of}"
        assert gradient.isfinite().all(), f"{name}: the gradient of {of} is not finite"
    same(gradients[0][far], torch.ones(int(far.sum())).double(), f"{name}: the gradient of points outside the box")


check_outside(spline, "spline", 70, [-3.0, 3.0, -3.5, 17.0, 0.1])
check_outside(spline_inverse, "spline_inverse", 70, [-3.0, 3.0, -3.5, 17.0, 0.1])
### BEGIN HIDDEN TESTS
FAR_AND_NEAR = [-1e4, -50.0, -7.0, -4.0, -3.2, -1.0, 0.3, 2.0, 3.1, 3.7, 5.0, 9.0, 1e3, 1e200]
for seed in (71, 72, 73):
    for direction, name in ((spline, "spline"), (spline_inverse, "spline_inverse")):
        check_outside(direction, name, seed, points=FAR_AND_NEAR)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** a single map of one number turns the normal density into one with several modes. What do the knots have to do for a mode?

# %% alt="Left: the spline with its knots, steep in three places. Right: the density of x if y is normal, with a mode at each steep place."
xs = double([-3.0, -2.4, -1.6, -0.4, 0.4, 1.6, 2.4, 3.0])
ys = double([-3.0, -2.8, -0.9, -0.6, 0.6, 0.9, 2.8, 3.0])
slopes = double([1.0, 0.4, 0.3, 0.3, 0.3, 0.3, 0.4, 1.0])
x = torch.linspace(-3.6, 3.6, 721, dtype=torch.float64)
y, log_slope = both(spline(x, xs, ys, slopes), "spline")
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.6))
axes[0].plot(x, y, color=PALETTE[0])
axes[0].plot(xs, ys, "o", color=PALETTE[1], ms=5)
axes[0].set(xlabel="x", ylabel="y")
axes[1].fill_between(x, torch.exp(-(y**2) / 2 + log_slope) / math.sqrt(2 * math.pi), color=PALETTE[4], lw=0)
axes[1].set(xlabel="x", ylabel="density of x", ylim=(0, None))
label_panels(axes, ["The map", "What it models"])
plt.show()


# %% [markdown]
# ## Task 3: roulette at the right stake (4 points)
#
# A residual layer adds a contraction to the identity. At a point its Jacobian is $I+A$, where $A$ has eigenvalues inside $(-1,1)$, and
#
# $$\ln\det(I+A)=\sum_{k=1}^\infty a_k,\qquad a_k=\frac{(-1)^{k+1}}k\operatorname{tr}A^k.$$
#
# You cannot see $A$; you can only multiply it with a vector, at a price. So you draw *one* probe $v$, whose features are independent standard normal numbers, and *one* number of terms $n=n_0+N$: the first $n_0$ terms are certain, and after each further one the game ends with probability $p$, so that $N\ge1$ and $P(N\ge j)=(1-p)^{j-1}$. The estimate is
#
# $$X=\sum_{k=1}^{n}\frac{(-1)^{k+1}}{k}\,\frac{v^\top A^kv}{P(n\ge k)}.$$
#
# - `roulette` computes $X$ from $v$ and an $n$ that was drawn for you. It may multiply $n$ times with $A$, not more often.
# - `roulette_variance` is the exact variance of $X$ over both draws, for a *symmetric* $A$ with given eigenvalues $\lambda_i$. Write $v$ in the eigenvectors of $A$, and the estimate as a sum over $i$. What do you need of a normal number $v_i$? How do the draws of $v$ and of $N$ work together? A sum over the first 400 values of $N$ is enough for the tests, and stays clear of overflow.
# - For some $p$ the variance is infinite; return `math.inf` there. The chapter shows for $p=\frac12$ when that happens. Find the limit for every $p$; the tests stay away from the limit itself.
# - `best_p`: averaging $m$ estimates divides the variance by $m$ and multiplies the cost by $m$. So the product of variance and mean cost of one estimate tells how good it is. The cost is the number of multiplications. Return the $p$ that makes the product smallest; a product within three per cent of the smallest counts.

# %% nbgrader={"grade": false, "grade_id": "roulette", "locked": false, "schema_version": 3, "solution": true, "task": false}
def roulette(product, probe, num_terms, num_exact, p):
    """The estimate X, a number.

    product: function that multiplies A with a vector of shape (D,); probe: v, shape (D,); num_terms: n > num_exact, as
    drawn; num_exact: n_0; p: the probability that the game ends after a term.
    """
    ### BEGIN SOLUTION
    total, power = 0.0, probe
    for k in range(1, num_terms + 1):
        power = product(power)
        total = total - (-1) ** k * (1 - p) ** min(0, num_exact + 1 - k) / k * (probe * power).sum()
    return total
    ### END SOLUTION


def roulette_variance(eigenvalues, num_exact, p):
    """Variance of X for a symmetric A, math.inf where it is infinite. eigenvalues: a list of numbers in (-1, 1)."""
    ### BEGIN SOLUTION
    eigenvalues = double(eigenvalues)
    if 1 - p <= eigenvalues.abs().max() ** 2:
        return math.inf
    later, k = torch.arange(400).double(), torch.arange(1, num_exact + 401).double()
    weights = torch.cat([torch.ones(num_exact).double(), (1 - p) ** -later])
    sums = (-weights * (-eigenvalues[:, None]) ** k / k).cumsum(1)[:, num_exact:]  # one column a value of N
    squares = sums.sum(0) ** 2 + 2 * (sums**2).sum(0)  # E[v_i^2 v_j^2] = 1, and 3 for i = j
    return (p * (1 - p) ** later * squares).sum().item() - eigenvalues.log1p().sum().item() ** 2
    ### END SOLUTION


def best_p(eigenvalues, num_exact):
    """The p with the smallest product of variance and mean number of multiplications."""
    ### BEGIN SOLUTION
    limit = 1 - max(abs(x) for x in eigenvalues) ** 2
    candidates = [limit * (i + 0.5) / 200 for i in range(20, 200)]
    return min(candidates, key=lambda p: roulette_variance(eigenvalues, num_exact, p) * (num_exact + 1 / p))
    ### END SOLUTION


# %% [markdown]
# No random numbers are needed to see whether an estimate is unbiased. The mean over the probes $\sqrt D\,e_1,\dots,\sqrt D\,e_D$ is the trace exactly, and the mean over $N$ is a sum with known probabilities.

# %% nbgrader={"grade": false, "grade_id": "mean_over_draws", "locked": true, "schema_version": 3, "solution": false, "task": false}
def counted(matrix):
    """A function that multiplies with the matrix, and a list that grows by an entry each time."""
    calls = []

    def product(vector):
        calls.append(1)
        return matrix @ torch.as_tensor(vector)

    return product, calls


def mean_estimate(matrix, num_exact, p, most=80):
    """Mean of the estimate over the draws, up to a tail of N too small to matter."""
    total = 0.0
    for probe in len(matrix) ** 0.5 * torch.eye(len(matrix)).double():
        for n in range(1, most + 1):
            product, calls = counted(matrix)
            estimate = float(roulette(product, probe, num_exact + n, num_exact, p))
            assert len(calls) <= num_exact + n, f"for {num_exact + n} terms you multiply {len(calls)} times"
            total += p * (1 - p) ** (n - 1) * estimate / len(matrix)
    return total


# %% nbgrader={"grade": true, "grade_id": "roulette_mean", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_mean(matrix, num_exact, p):
    wanted = torch.linalg.slogdet(torch.eye(len(matrix)).double() + matrix).logabsdet.item()
    error = abs(mean_estimate(matrix, num_exact, p) - wanted)
    assert error < 1e-9, f"n_0 = {num_exact}, p = {p}: the mean of your estimates is off by {error:.1e}"


check_mean(double([[0.3, 0.2], [0.0, -0.4]]), num_exact=2, p=0.5)
### BEGIN HIDDEN TESTS
matrix = normal(80, 3, 3)
matrix = 0.6 * matrix / torch.linalg.matrix_norm(matrix, 2)
check_mean(matrix, num_exact=0, p=0.5)
check_mean(matrix, num_exact=5, p=0.4)
check_mean(-0.5 * torch.eye(2).double(), num_exact=1, p=0.6)
probe = normal(81, 3)
terms = [(-1) ** (k + 1) / k * probe @ torch.linalg.matrix_power(matrix, k) @ probe for k in range(1, 6)]
got = float(roulette(counted(matrix)[0], probe, 5, 2, 0.4))
wanted = terms[0] + terms[1] + terms[2] + terms[3] / 0.6 + terms[4] / 0.36
same(got, wanted, "one estimate with five terms, two of them certain")
### END HIDDEN TESTS

# %% [markdown]
# With sixty certain terms next to nothing of the series is left to chance. What is left of the variance is the probe's.

# %% nbgrader={"grade": true, "grade_id": "roulette_variance", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_variance(eigenvalues, num_exact, p, wanted):
    got = float(roulette_variance(eigenvalues, num_exact, p))
    off = abs(got / wanted - 1)
    assert off < 1e-3, f"eigenvalues {eigenvalues}, n_0 = {num_exact}, p = {p}: your variance is off by {off:.1%}"


check_variance([0.5], 60, 0.3, 2 * math.log(1.5) ** 2)
### BEGIN HIDDEN TESTS


def exact_variance(eigenvalues, num_exact, p):
    """By a recursion for sqrt(P(N = j)) S_j, which cannot overflow."""
    lam, q = double(eigenvalues), 1 - p
    fastest = max(max(abs(x) for x in eigenvalues) ** 2 / q, q)
    head = sum((-((-lam) ** k) / k for k in range(1, num_exact + 1)), torch.zeros(len(lam)).double())
    scaled, total = head * math.sqrt(p / q), 0.0
    first = -((-lam) ** (num_exact + 1)) * math.sqrt(p)
    ratio = -lam / math.sqrt(q)
    for j in range(int(max(50, -30 / math.log(fastest)))):
        scaled = math.sqrt(q) * scaled + first * ratio**j / (num_exact + 1 + j)
        total += (scaled.sum() ** 2 + 2 * (scaled**2).sum()).item()
    return total - lam.log1p().sum().item() ** 2


for eigenvalues, num_exact, p in (
    ([-0.9], 0, 0.1),
    ([-0.9, -0.6, 0.3, 0.6], 2, 0.1),
    ([0.5, -0.5, 0.2], 0, 0.5),
    ([0.7, 0.7, 0.1], 1, 0.3),
):
    check_variance(eigenvalues, num_exact, p, exact_variance(eigenvalues, num_exact, p))
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "roulette_finite", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_finite(eigenvalues, num_exact, p, finite):
    got = roulette_variance(eigenvalues, num_exact, p)
    which = f"eigenvalues {eigenvalues}, n_0 = {num_exact}, p = {p}"
    assert got is not None and not math.isnan(got), f"{which}: your variance is {got}"
    assert math.isfinite(got) == finite, f"{which}: the variance is {'' if finite else 'in'}finite, yours is {got}"


check_finite([0.3, 0.9], 2, 0.5, finite=False)
check_finite([0.3, 0.9], 2, 0.1, finite=True)
### BEGIN HIDDEN TESTS
check_finite([-0.9], 0, 0.2, finite=False)
check_finite([-0.9], 0, 0.18, finite=True)
check_finite([0.1, -0.7, 0.2], 5, 0.53, finite=False)
check_finite([0.1, -0.7, 0.2], 5, 0.49, finite=True)
check_finite([0.5], 1, 0.73, finite=True)
check_finite([0.5], 1, 0.77, finite=False)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "roulette_best", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
chosen = float(best_p([-0.9], 0))
assert 0 < chosen < 1, f"p = {chosen} is no probability between 0 and 1"
assert math.isfinite(roulette_variance([-0.9], 0, chosen)), f"at your p = {chosen} your own variance is infinite"
### BEGIN HIDDEN TESTS


def product_of(eigenvalues, num_exact, p):
    """Variance times cost, by a recursion for sqrt(P(N = j)) S_j."""
    lam, q = double(eigenvalues), 1 - p
    fastest = max(max(abs(x) for x in eigenvalues) ** 2 / q, q)
    assert fastest < 1, f"eigenvalues {eigenvalues}: at your p = {p:.3g} the variance is infinite"
    head = sum((-((-lam) ** k) / k for k in range(1, num_exact + 1)), torch.zeros(len(lam)).double())
    scaled, total = head * math.sqrt(p / q), 0.0
    first = -((-lam) ** (num_exact + 1)) * math.sqrt(p)
    ratio = -lam / math.sqrt(q)
    for j in range(int(min(3000, max(50, -30 / math.log(fastest))))):
        scaled = math.sqrt(q) * scaled + first * ratio**j / (num_exact + 1 + j)
        total += (scaled.sum() ** 2 + 2 * (scaled**2).sum()).item()
    return (total - lam.log1p().sum().item() ** 2) * (num_exact + 1 / p)


for eigenvalues, num_exact in (([-0.9], 0), ([-0.9, -0.6, 0.3, 0.6], 2), ([-0.5, 0.5], 0)):
    chosen, limit = float(best_p(eigenvalues, num_exact)), 1 - max(abs(x) for x in eigenvalues) ** 2
    assert 0.02 < chosen < 1, (
        f"eigenvalues {eigenvalues}, n_0 = {num_exact}: your p = {chosen:.3g} is far from the best"
    )
    smallest = min(product_of(eigenvalues, num_exact, limit * x) for x in torch.linspace(0.6, 0.98, 12).tolist())
    worse = product_of(eigenvalues, num_exact, chosen) / smallest - 1
    assert worse < 0.03, (
        f"eigenvalues {eigenvalues}, n_0 = {num_exact}: the product at your p = {chosen:.3g} is {worse:.0%} too large"
    )
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** how far is the best $p$ from the one at which the variance becomes infinite, and what do certain terms change? Once you see it: which side of the best $p$ would you rather be on, when the largest eigenvalue is only known roughly?

# %% alt="Variance times cost against p for eigenvalues up to 0.9 in size: three curves for 0, 2 and 10 certain terms fall slowly and end at p = 0.19."
eigenvalues = [-0.9, -0.6, 0.3, 0.6]
stakes = torch.linspace(0.03, 0.189, 60).tolist()
fig, ax = plt.subplots(figsize=(7.6, 2.7))
for num_exact, colour in zip((0, 2, 10), PALETTE):
    products = [roulette_variance(eigenvalues, num_exact, p) * (num_exact + 1 / p) for p in stakes]
    ax.plot(stakes, products, color=colour, label=f"{num_exact} certain terms")
ax.axvline(0.19, color="k", ls="--", lw=0.8, label="infinite from here on")
ax.set(xlabel="probability p that the game ends", ylabel="variance × cost", ylim=(0, 700), xlim=(0.02, 0.25))
ax.legend()
plt.show()

# %%
stake = best_p(eigenvalues, 2)
deviation = roulette_variance(eigenvalues, 2, stake) ** 0.5
say(
    f"Two certain terms: p = {stake:.3f} costs {2 + 1 / stake:.1f} products, with a standard deviation of {deviation:.2f}."
)
say(f"The probe alone would leave {(2 * double(eigenvalues).log1p().square().sum()).sqrt():.2f}.")


# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# Multi-scale flows do not carry all features to the end: after each scale a part is *factored out*, done, and only the rest goes on. Here is the smallest one that has everything, for $x=(x_1,x_2)$ in the plane.
#
# 1. *ActNorm*: $y=(x-b)\,e^{-l}$, feature by feature, with the shift $b$ and the log-scales $l$, two numbers each.
# 2. *Coupling*: $h_1=y_1$ and $h_2=y_2\,e^{s(y_1)}+t(y_1)$, with two functions $s$, $t$ of one number.
# 3. *Split*: $h_2$ is factored out. Given $h_1$, its density is that of a normal variable with mean $m(h_1)$ and standard deviation $e^{r(h_1)}$, with two more functions $m$, $r$. (A constant $m=r=0$ is RealNVP's choice, a learned one Glow's.)
# 4. *Second scale*: $z=\sinh(h_1)$, whose slope is $\cosh(h_1)$, and $z$ is standard normal.
#
# A `model` is a dictionary with the tensors `shift` and `log_scale`, of shape (2,), and the functions `s`, `t`, `m`, `r`. `log_prob_broken` is meant to be $\ln p(x)$. `sample_broken` is meant to turn standard normal noise of shape (n, 2) into samples of $p$: its first column becomes $z$, its second the standardised factored-out part $(h_2-m)\,e^{-r}$.

# %% nbgrader={"grade": false, "grade_id": "multi_scale_broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def log_normal(z):
    """Log-density of the standard normal distribution."""
    return -(z**2) / 2 - math.log(2 * math.pi) / 2


def log_prob_broken(x, model):
    """Meant to be log p(x), shape (n,), for x of shape (n, 2). Contains faults."""
    y = (x - model["shift"]) * torch.exp(-model["log_scale"])
    kept = y[:, 0]
    out = y[:, 1] * torch.exp(model["s"](kept)) + model["t"](kept)
    log_det = model["log_scale"].sum() + model["s"](x[:, 0])
    latent = torch.stack([torch.sinh(kept), out], 1)
    log_det = log_det + torch.cosh(kept).log()
    return log_normal(latent[:, 0]) + log_det


def sample_broken(noise, model):
    """Meant to make samples, shape (n, 2), of standard normal noise, shape (n, 2). Contains a fault."""
    z, standardised = noise.unbind(1)
    out = model["m"](z) + torch.exp(model["r"](z)) * standardised
    kept = torch.asinh(z)
    y = torch.stack([kept, (out - model["t"](kept)) * torch.exp(-model["s"](kept))], 1)
    return y * torch.exp(model["log_scale"]) + model["shift"]


# %% [markdown]
# There are three faults in the first and one in the second. None of them makes a program stop, and a training run goes on happily with each. A density betrays the first three, because its integral is 1: `integral` takes it over a square, and `model_with` makes a model in which all is trivial but what you name, so that you can look at one step at a time. The integral says nothing about the fourth: `sample_broken` is a bijection, too, and its samples do have a density. It is only another one.
#
# Write the repaired functions as `log_prob` and `sample`.

# %% nbgrader={"grade": false, "grade_id": "integral", "locked": true, "schema_version": 3, "solution": false, "task": false}
def model_with(shift=(0.0, 0.0), log_scale=(0.0, 0.0), **functions):
    """A model; functions that are not named are 0 everywhere."""
    model = {name: torch.zeros_like for name in "stmr"} | functions
    return model | {"shift": double(shift), "log_scale": double(log_scale)}


def integral(log_density, model, half=12.0, points=361):
    """Integral of exp(log_density(x, model)) over the square [-half, half]^2."""
    line = torch.linspace(-half, half, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    values = log_density(grid, model)
    assert values is not None, "your function returns nothing"
    heights = torch.as_tensor(values).detach().exp().view(points, points)
    return torch.trapezoid(torch.trapezoid(heights, line), line).item()


for half in (6.0, 12.0):
    total = integral(log_prob_broken, model_with(), half)
    say(f"All trivial, broken: the integral over the square with sides of {2 * half:g} is {total:.2f}.")


# %% nbgrader={"grade": false, "grade_id": "mend", "locked": false, "schema_version": 3, "solution": true, "task": false}
def log_prob(x, model):
    """log p(x), shape (n,), for x of shape (n, 2)."""
    ### BEGIN SOLUTION
    y = (x - model["shift"]) * torch.exp(-model["log_scale"])
    kept = y[:, 0]
    out = y[:, 1] * torch.exp(model["s"](kept)) + model["t"](kept)
    log_det = model["s"](kept) - model["log_scale"].sum() + torch.cosh(kept).log()
    standardised = (out - model["m"](kept)) * torch.exp(-model["r"](kept))
    return log_normal(torch.sinh(kept)) + log_normal(standardised) - model["r"](kept) + log_det
    ### END SOLUTION


def sample(noise, model):
    """Samples, shape (n, 2), of standard normal noise, shape (n, 2)."""
    ### BEGIN SOLUTION
    z, standardised = noise.unbind(1)
    kept = torch.asinh(z)
    out = model["m"](kept) + torch.exp(model["r"](kept)) * standardised
    y = torch.stack([kept, (out - model["t"](kept)) * torch.exp(-model["s"](kept))], 1)
    return y * torch.exp(model["log_scale"]) + model["shift"]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mend_split", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_integral(model, what):
    total = integral(log_prob, model)
    assert abs(total - 1) < 1e-6, f"{what}: your density integrates to {total:.4f}"


check_integral(model_with(), "all trivial")
check_integral(model_with(m=torch.sin, r=lambda h: 0.3 * torch.cos(3 * h)), "m(h) = sin h, r(h) = 0.3 cos 3h")
### BEGIN HIDDEN TESTS


def reference(x, model):
    """log p(x), from the conditional densities of x_1 and of x_2 given x_1."""
    (b1, b2), (l1, l2) = model["shift"].tolist(), model["log_scale"].tolist()
    h = (x[:, 0] - b1) / math.exp(l1)
    first = -h.sinh().square() / 2 + h.cosh().log() - l1
    width = torch.exp(model["r"](h) - model["s"](h) + l2)
    mean = b2 + math.exp(l2) * (model["m"](h) - model["t"](h)) * torch.exp(-model["s"](h))
    return first - ((x[:, 1] - mean) / width) ** 2 / 2 - width.log() - math.log(2 * math.pi)


def check_density(seed, what, **model):
    model, x = model_with(**model), normal(seed, 50, 2)
    same(log_prob(x, model), reference(x, model), f"{what}: your log-density")


check_density(90, "m and r", m=lambda h: 2 * h, r=torch.tanh)
check_density(91, "m, r, s and t", m=lambda h: h**2, r=torch.cos, s=lambda h: 0.4 * torch.sin(2 * h), t=lambda h: h - 1)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "mend_norm", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
total = integral(log_prob, model_with(shift=(0.5, -1.0), log_scale=(0.4, -0.1)))
assert abs(total - 1) < 1e-6, f"ActNorm, all else trivial: your density integrates to {total:.4f}"
### BEGIN HIDDEN TESTS
for seed, l1, l2 in ((92, 0.7, 0.2), (93, -0.3, 0.3), (94, 0.0, -0.8)):
    x = normal(seed, 50, 2)
    h = (x - double([1.0, 2.0])) / double([l1, l2]).exp()
    wanted = -(h[:, 0].sinh() ** 2) / 2 + h[:, 0].cosh().log() - h[:, 1] ** 2 / 2 - math.log(2 * math.pi) - l1 - l2
    got = log_prob(x, model_with(shift=(1.0, 2.0), log_scale=(l1, l2)))
    same(got, wanted, "ActNorm, all else trivial: your log-density")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "mend_coupling", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
total = integral(log_prob, model_with(shift=(0.5, 0.0), s=lambda h: 0.5 * h.sin(), t=torch.cos))
assert abs(total - 1) < 1e-6, f"a shift of 0.5, s(h) = 0.5 sin h, t(h) = cos h: your density integrates to {total:.4f}"
### BEGIN HIDDEN TESTS
x = normal(95, 50, 2)
h = x[:, 0] + 1.5
s, t = 0.8 * torch.cos(h), h**2
wanted = -(h.sinh() ** 2) / 2 + h.cosh().log() - ((x[:, 1] - 0.2) * s.exp() + t) ** 2 / 2 + s - math.log(2 * math.pi)
got = log_prob(x, model_with(shift=(-1.5, 0.2), s=lambda h: 0.8 * torch.cos(h), t=lambda h: h**2))
same(got, wanted, "a shift and a coupling: your log-density")
### END HIDDEN TESTS

# %% [markdown]
# For the samples, a model in which the answer is clear: $m(h)=3h$ and all else trivial. Then $x_2-3x_1$ is the standardised part itself.

# %% nbgrader={"grade": true, "grade_id": "mend_sample", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
noise = normal(96, 2000, 2)
x = torch.as_tensor(sample(noise, model_with(m=lambda h: 3 * h)))
assert x.shape == noise.shape, f"you return samples of the shape {tuple(x.shape)}, expected {tuple(noise.shape)}"
spread = (x[:, 1] - 3 * x[:, 0]).std().item()
assert abs(spread - 1) < 0.05, f"m(h) = 3h: the standard deviation of your x_2 - 3 x_1 is {spread:.2f}"
same(x[:, 1] - 3 * x[:, 0], noise[:, 1], "m(h) = 3h: your x_2 - 3 x_1 beside the second column of the noise")
### BEGIN HIDDEN TESTS


def wanted_samples(noise, model):
    """From the conditional mean and width of x_2 given x_1."""
    (b1, b2), (l1, l2) = model["shift"].tolist(), model["log_scale"].tolist()
    h = torch.asinh(noise[:, 0])
    width = torch.exp(model["r"](h) - model["s"](h) + l2)
    mean = b2 + math.exp(l2) * (model["m"](h) - model["t"](h)) * torch.exp(-model["s"](h))
    return torch.stack([b1 + math.exp(l1) * h, mean + width * noise[:, 1]], 1)


functions = dict(s=lambda h: 0.5 * h.sin(), t=torch.cos, m=lambda h: h**2, r=torch.tanh)
for model in (model_with(r=torch.tanh), model_with((0.5, -1.0), (0.4, -0.6), **functions)):
    noise = normal(97, 30, 2)
    same(sample(noise, model), wanted_samples(noise, model), "another model: your samples beside those that are meant")
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: predict, then measure: tails (5 points)
#
# A variable has *tail index* $\nu$ if $P(|x|>r)$ falls like $r^{-\nu}$. Student's $t_\nu$ has index $\nu$; a normal variable has $\nu=\infty$. Write three tools.
#
# - `hill` is Hill's estimate from samples. With the $k$ largest absolute values $|x|_{(1)}\ge\dots\ge|x|_{(k)}$ and the next one, $|x|_{(k+1)}$, it is one over the mean of $\ln\big(|x|_{(i)}/|x|_{(k+1)}\big)$, $i=1,\dots,k$. Leave the samples as they are.
# - `predicted_index` tells without sampling what a triangular map does. Feature $i$ is generated as $x_i=e^{\alpha_i}z_i+\mu_i$, where $\alpha_i$ and $\mu_i$ depend on the features before it. The bases $z_i$ are independent with index `df[i]`, every $\alpha_i$ is bounded, and $|\mu_i|$ grows like a sum of $|x_j|^{q_{ij}}$ over $j<i$. `growth[i][j]` is $q_{ij}\ge0$; 0 stands for a bounded influence, or none; features count from 0 here. Two facts suffice, both worth a line of proof: what is the index of $|x|^q$, and of a sum of independent terms? Assume that dependent terms do not cancel.
# - `needed_slope` asks how steep a map from the normal distribution would have to be. Let $f$ be a map of one number with $f(0)=0$ and slope at most $L$. What is the smallest $L$ for which $P(|f(z)|>r)$, $z$ standard normal, can be as large as $P(|t|>r)$ for $t$ of Student's distribution with `df` degrees of freedom? `scipy.stats` knows both distributions.

# %% nbgrader={"grade": false, "grade_id": "tails", "locked": false, "schema_version": 3, "solution": true, "task": false}
def hill(x, k):
    """Hill's estimate of the tail index, a number. x: samples, shape (n,); k: how many of the largest, k < n."""
    ### BEGIN SOLUTION
    top = x.abs().sort(descending=True).values[: k + 1].log()
    return 1 / (top[:k] - top[k]).mean().item()
    ### END SOLUTION


def predicted_index(df, growth):
    """Tail index of every feature, a list of D numbers. df: D numbers, math.inf for normal; growth: D rows of D numbers."""
    ### BEGIN SOLUTION
    index = []
    for i in range(len(df)):
        index.append(min([df[i], *(index[j] / growth[i][j] for j in range(i) if growth[i][j] > 0)]))
    return index
    ### END SOLUTION


def needed_slope(df, r):
    """Smallest bound on the slope of a map that can give a normal variable the tail of t_df beyond r."""
    ### BEGIN SOLUTION
    from scipy import stats

    return r / stats.norm.isf(stats.t.sf(r, df))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "tails_hill", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
few = double([1.0, -(math.e**2), 0.1, math.e, -0.3])
kept = few.clone()
same(float(hill(few, 2)), 2 / 3, "the samples 1, -e², 0.1, e, -0.3 and k = 2")
assert torch.equal(few, kept), "hill changes the samples that it gets"
uniform = (torch.arange(100_000).double() + 0.5) / 100_000
index = float(hill(uniform ** (-1 / 2.5), 1000))
assert abs(index - 2.5) < 0.02, f"a tail that is exactly a power, of index 2.5: you find {index:.2f}"
### BEGIN HIDDEN TESTS
from refimpl.flows import hill_index

for seed, k in ((100, 1), (101, 20), (102, 499)):
    x = normal(seed, 500) ** 3
    same(float(hill(x, k)), hill_index(x, k).double(), f"500 cubes of normal numbers, k = {k}")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "tails_rule", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_rule(df, growth, wanted, what):
    got = predicted_index(df, growth)
    assert got is not None and len(got) == len(df), f"{what}: predicted_index must return {len(df)} numbers"
    for i, (one, right) in enumerate(zip(got, wanted)):
        assert float(one) == right or abs(float(one) - right) < 1e-9, f"{what}: the index of feature {i} is not {one}"


inf, none = math.inf, [[0, 0], [0, 0]]
check_rule([3.0, inf], none, [3.0, inf], "two features that do not see each other")
check_rule([inf, inf], [[0, 0], [2, 0]], [inf, inf], "normal bases, x_1 fed with the square of x_0")
### BEGIN HIDDEN TESTS
check_rule([3.0, inf], [[0, 0], [1, 0]], [3.0, 3.0], "a heavy feature feeds a light one linearly")
check_rule([2.0, 3.0], [[0, 0], [0.5, 0]], [2.0, 3.0], "a heavy feature feeds a heavy one by its square root")
check_rule([3.0, 2.0], [[0, 0], [2, 0]], [3.0, 1.5], "a heavy feature feeds a heavy one by its square")
chain = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0.5, 0, 1, 0]]
check_rule([4.0, inf, inf, 3.0], chain, [4.0, 4.0, 2.0, 2.0], "four features in a chain")
check_rule([inf, 5.0, inf], [[0, 0, 0], [3, 0, 0], [0, 0, 0]], [inf, 5.0, inf], "a light feature feeds a heavy one")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "tails_slope", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
slope = float(needed_slope(1e7, 2.0))
assert abs(slope - 1) < 1e-4, f"with ten million degrees of freedom t is normal; there you need the slope {slope:.3f}"
slopes = [float(needed_slope(2, r)) for r in (3, 30, 300)]
assert slopes == sorted(slopes) and slopes[0] > 1, f"for r = 3, 30, 300 and two degrees of freedom you find {slopes}"
### BEGIN HIDDEN TESTS
from scipy.special import ndtri

for r in (3.0, 30.0, 3000.0):
    tail = 1 / (r * r + 2 + r * math.sqrt(r * r + 2))  # P(t > r) for two degrees of freedom
    same(float(needed_slope(2, r)), -r / ndtri(tail), f"two degrees of freedom, r = {r:g}", tolerance=1e-7)
tail = 0.5 - math.atan(10.0) / math.pi
same(float(needed_slope(1, 10.0)), -10 / ndtri(tail), "one degree of freedom, r = 10", tolerance=1e-7)
### END HIDDEN TESTS

# %% [markdown]
# **The experiment.** The data are $x_1\sim\mathcal N(0,1)$ and $x_2=\sin x_1+t$ with $t$ of Student's distribution with two degrees of freedom. Three flows are fitted to 4000 points of it, each of two autoregressive affine layers with bounded log-scales and small networks, whose outputs grow at most linearly.
#
# - *normal*: both bases normal, both layers generate $x_1$ before $x_2$;
# - *kept*: $x_1$ has a normal base, $x_2$ a Student-t one whose degrees of freedom are learned (from 4); both layers generate $x_1$ before $x_2$;
# - *reversed*: bases as in *kept*, but the order is reversed from one layer to the next, as MAF usually does: one layer generates $x_2$ before $x_1$.
#
# **Before you run the cell** (1 point, read by a person): what do your tools say about the tail index of $x_1$ and of $x_2$ in each flow? From 200 000 samples of each, what do you expect Hill's estimates to be for $k=200$, and how will they change with $k$? How steep would the *normal* flow have to be at $r=100$? Who will have the lowest test loss, the mean of $-\ln p$? You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "tails_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* With an index of $\infty$ at both bases and influences that grow at most linearly, *normal* has $\infty$ for both features, whatever is learned. In *kept* `predicted_index([inf, 2], [[0, 0], [1, 0]])` gives $\infty$ and 2. In *reversed* $x_2$ feeds $x_1$ in one layer, at most linearly: the network can switch this off in the bulk, but hardly everywhere, so I expect 2 for both features in theory.
# Hill's estimate from a normal sample is no infinity: about 10, and larger for smaller $k$, as only the outermost points show how fast the tail falls. A scale that depends on another feature makes it smaller, but cannot keep it there. So: 6 or more for the light ones, near 2 with an error of $2/\sqrt{200}\approx0.14$ for the heavy ones, hardly changing with $k$; $x_1$ in *reversed* between 10 and 2, and smaller for smaller $k$. `needed_slope(2, 100)` is about 26, more than an affine layer with bounded log-scales likes. *kept* and *reversed* should have nearly the same loss, *normal* a higher one, because of the few points far outside.
#
# *Marks.* ½ for indices from the rule, with $x_1$ of *reversed* picked out. ½ for what an infinite index looks like to Hill's estimate (finite, growing as $k$ falls), or for a reasoned guess of the losses.

# %% nbgrader={"grade": false, "grade_id": "experiment", "locked": true, "schema_version": 3, "solution": false, "task": false}
def heavy_data(n, source):
    """x_1 normal, x_2 = sin x_1 + t with two degrees of freedom."""
    first, noise = torch.randn(2, n, generator=source)
    t = noise / (-(1 - torch.rand(n, generator=source)).log()).sqrt()
    return torch.stack([first, first.sin() + t], 1)


def fitted(df, orders, data, seed):
    """A flow of one autoregressive affine layer for each order of the features, fitted to the data."""
    torch.manual_seed(seed)
    layers = [MaskedAutoregressive(2, AffineMap(), order=order, width=16, depth=2) for order in orders]
    flow = Flow(Chain(*layers), StudentT(df))
    source = runtime.generator(seed)
    settings = dict(num_steps=600, batch_size=256, lr=5e-3, schedule="cosine", clip_norm=5.0, progress=False)
    fit(flow, lambda x: -flow.log_prob(x).mean(), data=data, generator=source, **settings)
    return flow


ORDERS = {"normal": [[0, 1], [0, 1]], "kept": [[0, 1], [0, 1]], "reversed": [[0, 1], [1, 0]]}
dice = runtime.generator(2)
train, test = heavy_data(4000, dice), heavy_data(20_000, dice)
drawn, losses = {"data": heavy_data(200_000, dice)}, {}
for name, orders in ORDERS.items():
    flow = fitted([math.inf, math.inf if name == "normal" else 4.0], orders, train, seed=2)
    with torch.no_grad():
        drawn[name] = flow.sample([200_000], generator=dice)
        losses[name] = -flow.log_prob(test).mean().item()

# %% [markdown]
# **What to look for:** a power law is a level line, a light tail rises to the left. Which of the six tails of the flows is wrong?

# %% alt="Hill estimates against k, left for x1, right for x2. x1: data, normal and kept rise to the left, reversed falls. x2: data, kept and reversed stay near 2, normal lies between 4 and 7."
counts = [100, 200, 500, 1000, 2000, 5000, 10_000]
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.8), sharey=True)
for (name, x), colour in zip(drawn.items(), ["black", *PALETTE]):
    for feature, ax in enumerate(axes):
        ax.loglog(counts, [hill(x[:, feature], k) for k in counts], ".-", color=colour, label=name)
for ax in axes:
    ax.set(xlabel="k of 200 000", yticks=[1, 2, 5, 10], yticklabels=[1, 2, 5, 10])
axes[0].set(ylabel="Hill's estimate of the index")
axes[1].legend(ncols=2)
label_panels(axes, ["x₁, normal", "x₂, two degrees of freedom"])
plt.show()

# %%
for name, x in drawn.items():
    estimates = ", ".join(f"{hill(x[:, i], 200):.1f}" for i in (0, 1))
    loss = f"; test loss {losses[name]:.2f} nats" if name in losses else ""
    say(f"{name}: Hill's estimates for k = 200: {estimates}; largest |x₁| {x[:, 0].abs().max():.1f}{loss}.")
say(f"A slope of {needed_slope(2, 100):.0f} would be needed at r = 100.")

# %% [markdown]
# **After the measurement** (1 point, read by a person): compare with your prediction. Is the wrong tail that you found visible in the test loss? What is the practical rule for the order of features, and what would you report beside the loss?

# %% [markdown] nbgrader={"grade": true, "grade_id": "tails_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* As predicted, *normal* has a light $x_2$: its estimates rise to the left, where the data's stay at 2. Its loss is higher by more than half a nat, since a few points far outside are fantastically unlikely for it, and training has bent the bulk to reach them. *kept* is right for both features. *reversed* matches $x_2$, but its $x_1$ is too heavy: the estimates fall to the left, and its largest $|x_1|$ is far above the 4 to 5 of 200 000 normal numbers. The loss does not show it: it differs from *kept* by about 0.01 nats, because real data do not visit the region where it is wrong. Only samples tell.
# The rule: a heavy feature must never feed a light one, in any layer. Sort light before heavy, and permute or mix within the two groups alone. Report a tail index or a quantile plot of *every* feature's samples beside the loss, for more than one $k$.
#
# *Marks.* ½ for finding $x_1$ of *reversed* and saying that the loss does not show it. ½ for the rule (light before heavy, no mixing from heavy to light) with a measure of the tails to report.

# %% [markdown]
# ## Task 6: which family would you take? (3 points)
#
# Three people ask for a flow. For each, name one family of the chapter and say in at most 80 words: which direction must be fast in training and in use, and is it; what does the log-determinant cost; which weakness of the family could hurt *here*; and which measurement would tell you. More than one family can be right. An answer without a reason is not.
#
# - **(a)** A physicist has an energy $u(x)$ of 64 particles' coordinates, with several valleys, and no data. She wants averages under $e^{-u}$ *without bias*, even if the model is imperfect.
# - **(b)** A bank scores each payment, 12 numbers, by its $-\ln p(x)$ as it comes in. Some amounts are heavy-tailed. It never samples.
# - **(c)** A clinic wants synthetic images of 32 × 32 pixels. It must draw many, quickly, and it reports bits per dimension to compare with other models.

# %% [markdown] nbgrader={"grade": true, "grade_id": "families", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **(a)** Spline couplings with stochastic layers between them (a stochastic normalizing flow), or couplings alone. Training minimises $\mathbb E[\ln q(x)+u(x)]$ over *its own samples*, so that the direction from noise to sample must be fast, with the log-determinant of these samples: couplings and IAF are, MAF is not (64 passes or more a sample). The log-determinant is a sum of slopes. Averages are made unbiased by importance weights, $e^{-u}/q$ or those of the paths. Weakness: the reverse KL divergence loses valleys, and bijections connect modes by thin bridges. Measurement: effective sample size of the weights, *and* a check that cannot be fooled by a lost valley, such as samples started in each known one, or weights of data from a long simulation; a lost valley leaves the effective sample size high.
# - **(b)** A masked autoregressive flow with splines or affine maps, a Student-t base for the heavy features, light ones before heavy ones. Density of a point is one pass of the network for each layer, and sampling, slow with 12 passes, is never needed. The log-determinant is a sum. Weakness: a normal base makes every large amount look impossible; a spline is the identity outside its box; the order matters. Measurement: Hill's estimates or quantiles of the scores on held-out payments per feature, and whether the rate of alarms above a threshold is the one predicted.
# - **(c)** A multi-scale flow of couplings: Glow, or Jet with transformers. Couplings are as fast back as there. TarFlow has better likelihoods, but draws patch after patch, and FFJORD and residual flows need a solver or a fixed-point iteration for a sample; an estimated log-determinant would also make the reported bits noisy, or biased. The log-determinant is a sum of log-scales, and one small determinant for a 1x1 convolution. Weakness: many layers, memory, and samples that look worse than the likelihood suggests. Measurement: bits per dimension on a test set *with* the dequantisation noise and the constant of the pixel range, each counted once; and for the samples a second one, such as a two-sample test by a classifier, since likelihood does not measure how they look.
#
# *Marks.* One point a case: ½ for a family whose fast direction fits the use (for (a) samples with their density and weights, for (b) density, for (c) both, samples first), with the cost of its log-determinant; ½ for a weakness that matters in that case and a measurement that would reveal it (for (a) one that sees lost modes; for (b) one that sees tails; for (c) likelihood counted correctly, or samples judged apart from it). Another family earns full marks if its reasons hold: FFJORD or residual flows in (b), say, if the cost a payment is named.
