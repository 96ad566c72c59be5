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
# # Exercises 07: Injective flows
#
# Read [chapter 07](../../chapters/07_injective_flows.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 How much noise a code keeps | 4 | 4 | |
# | 2 Volumes and densities | 3 | 3 | |
# | 3 Predict, then measure: spheres that collapse | 6 | 4 | 2 |
# | 4 Find the faults | 4 | 4 | |
# | 5 Area without a determinant | 4 | 4 | |
# | 6 How many of each kind | 4 | 1 | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.free_form` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter. $D$ features, $d<D$ latents; encoder $f$, decoder $g$, code $z=f(x)$, projection $\hat x=g(f(x))$, latent density $p_Z=\mathcal N(0,I)$. Losses are means over points, in nats; squared errors are summed over features. Tensors come in double precision, in task 6 in single; keep it.

# %%
import math

import matplotlib.pyplot as plt
import torch

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.flows import AffineMap, Chain, Flow, StandardNormal, coupling_flow
from refimpl.free_form import AngleBox, StarLike, log_sphere_volume, lp_radius, to_unit
from refimpl.plots import PALETTE, label_panels, say, use_course_style
from refimpl.training import fit

use_course_style()


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-6):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got).detach().cpu().double(), torch.as_tensor(wanted).double()
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


def normal(*shape, seed):
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=runtime.generator(seed))


# %% [markdown]
# ## Task 1: how much noise a code keeps (4 points)
#
# A linear model with one latent: $z=Ex$, $\hat x=Wz$, data of mean 0 and covariance $S$. With the best decoder, $W=SE^\top(ESE^\top)^{-1}$, the expected *exact* loss is
#
# $$\mathcal L(E)=\tfrac12ESE^\top-\tfrac12\log EE^\top+\beta\,\Big(\operatorname{tr}S-\frac{ES^2E^\top}{ESE^\top}\Big)+\text{const}.$$
#
# - `noise_share`: two features with variances `noise` < `signal`, not correlated. At the minimum the code is a mixture; return the share $c$ of its variance that comes from the noise direction, as a function of $\beta$. It is 0 or 1 beyond two thresholds.
# - `safe_beta`: the smallest $\beta$ for which the minimum is the principal subspace, for $D$ uncorrelated features of given variances (a list, in any order) and `latents` latents.
# - `encoder_gradients`: the gradients with respect to $E$ of the *likelihood part* of the loss, at any $E$ of shape (d, D), with the best decoder: first that of the exact loss (not its $\beta$ term), then that of the injective flow's surrogate with all its probes. In the second, the decoder's Jacobian is a constant.

# %% nbgrader={"grade": false, "grade_id": "share", "locked": false, "schema_version": 3, "solution": true, "task": false}
def noise_share(beta, noise, signal):
    """Share of the code's variance that comes from the noise direction, a number in [0, 1]."""
    ### BEGIN SOLUTION
    share = (1 / (2 * beta * noise * signal) - 1 / signal) / (1 / noise - 1 / signal)
    return min(max(share, 0.0), 1.0)
    ### END SOLUTION


def safe_beta(variances, latents):
    """Smallest beta whose minimum is the principal subspace."""
    ### BEGIN SOLUTION
    left_out = sorted(variances)[: len(variances) - latents]
    return 1 / (2 * min(left_out))
    ### END SOLUTION


def encoder_gradients(E, S):
    """Gradients of the likelihood part, exact and surrogate, both of the shape (d, D) of E."""
    ### BEGIN SOLUTION
    W = S @ E.T @ torch.linalg.inv(E @ S @ E.T)
    return E @ S - torch.linalg.pinv(E).T, E @ S - W.T
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "share_inside", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_share(beta, noise, signal, wanted):
    got = number(noise_share(beta, noise, signal), "noise_share")
    assert abs(got - wanted) < 1e-4, f"beta = {beta}, variances {noise} and {signal}: {got:.4f} is not the minimum"


check_share(0.2, 1.0, 4.0, 0.5)
### BEGIN HIDDEN TESTS
check_share(0.3, 1.0, 4.0, 0.222222)
check_share(0.9, 0.5, 0.7, 0.277778)
check_share(0.05, 3.0, 20.0, 0.411765)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "share_outside", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check_share(0.6, 1.0, 4.0, 0.0)
### BEGIN HIDDEN TESTS
check_share(0.1, 1.0, 4.0, 1.0)
check_share(50.0, 0.5, 0.7, 0.0)
check_share(0.01, 3.0, 20.0, 1.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "share_safe", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_safe(variances, latents, wanted):
    got = number(safe_beta(variances, latents), "safe_beta")
    assert abs(got / wanted - 1) < 1e-9, f"variances {variances}, {latents} latent(s): you say {got:.4f}"


check_safe([4.0, 1.0], 1, 0.5)
### BEGIN HIDDEN TESTS
check_safe([1.6, 5.0, 0.25, 2.5], 2, 2.0)
check_safe([1.6, 5.0, 0.25, 2.5], 1, 2.0)
check_safe([0.01, 9.0, 3.0], 2, 50.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "share_gradients", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_gradients(E, S, wanted):
    found = encoder_gradients(E, S)
    assert found is not None and len(found) == 2, "encoder_gradients must return two matrices"
    for got, right, name in zip(found, wanted, ("exact", "surrogate")):
        same(got, right, f"d = {len(E)}, D = {len(S)}: the {name} gradient", 1e-6)


S = torch.tensor([[1.0, 1.0], [1.0, 4.0]]).double()
check_gradients(torch.tensor([[1.0, 0.5]]).double(), S, ([[0.7, 2.6]], [[1.0, 2.0]]))
### BEGIN HIDDEN TESTS
for d, dim, seed in ((2, 5, 3), (3, 4, 5)):
    E, root = normal(d, dim, seed=seed).requires_grad_(), normal(dim, dim, seed=seed + 1)
    S = root @ root.T + torch.eye(dim)
    W = (S @ E.T @ torch.linalg.inv(E @ S @ E.T)).detach()
    latent, volumes = 0.5 * (E @ S @ E.T).trace(), (0.5 * torch.logdet(E @ E.T), (E @ W).trace())
    wanted = [torch.autograd.grad(latent - volume, E, retain_graph=True)[0] for volume in volumes]
    check_gradients(E.detach(), S, wanted)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** three pairs of variances. For which does a moderate $\beta$ suffice, and where is the jump from noise to signal sudden?

# %% alt="Noise share of the code against beta for three pairs of variances: falling curves between two thresholds, steeper and further right where the variances are closer and smaller."
fig, ax = plt.subplots(figsize=(7.6, 2.5))
betas = torch.logspace(-2, 2, 300).tolist()
for (noise, signal), colour in zip(((1.0, 4.0), (0.5, 0.7), (0.01, 1.0)), PALETTE):
    ax.semilogx(betas, [noise_share(b, noise, signal) for b in betas], color=colour, label=f"{noise:g} and {signal:g}")
ax.set(xlabel="β", ylabel="noise share c")
ax.legend(title="variances")
plt.show()


# %% [markdown]
# ## Task 2: volumes and densities (3 points)
#
# - `log_volume` of Jacobians, shape (points, rows, columns): $\frac12\log\det J^\top J$ for tall ones, $\frac12\log\det JJ^\top$ for wide ones.
# - `log_density` of points, shape (points, D), for functions `f` and `g` that act on batches. `side` is `"decoder"` (Jacobian of $g$ at the code), `"encoder"` (of $f$ at $x$) or `"encoder on manifold"` (of $f$ at $\hat x$). The result is in nats, constants included. `jacobian(f, x)` gives Jacobians of shape (points, outputs, inputs).

# %% nbgrader={"grade": false, "grade_id": "volumes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def log_volume(J):
    """Log of the factor by which a linear map changes volume; J: shape (points, rows, columns)."""
    ### BEGIN SOLUTION
    tall = J if J.shape[1] >= J.shape[2] else J.mT
    return 0.5 * torch.logdet(tall.mT @ tall)
    ### END SOLUTION


def log_density(f, g, x, side):
    """Log-density on the manifold by one of three Jacobians, shape (points,)."""
    ### BEGIN SOLUTION
    z = f(x)
    log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    if side == "decoder":
        return log_p - log_volume(jacobian(g, z))
    return log_p + log_volume(jacobian(f, x if side == "encoder" else g(z)))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "volumes_factor", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_volume(points, rows, columns, seed):
    J = normal(points, rows, columns, seed=seed)
    same(log_volume(J), torch.linalg.svdvals(J).log().sum(1), f"Jacobians of {rows} rows and {columns} columns", 1e-8)


check_volume(4, 5, 2, seed=10)
### BEGIN HIDDEN TESTS
check_volume(3, 2, 5, seed=11)
check_volume(2, 3, 3, seed=12)
check_volume(6, 1, 4, seed=13)
### END HIDDEN TESTS

# %% [markdown]
# On the manifold of an orthogonal projection all sides must agree; a point beside it tells them apart.

# %% nbgrader={"grade": true, "grade_id": "volumes_linear", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
SIDES = ("decoder", "encoder", "encoder on manifold")


def check_linear(d, dim, seed):
    W = normal(dim, d, seed=seed)
    E, x = torch.linalg.pinv(W), normal(6, dim, seed=seed + 1)
    q = torch.linalg.qr(W).Q
    model = torch.distributions.MultivariateNormal(torch.zeros(d).double(), q.T @ W @ W.T @ q)
    for side in SIDES:
        got = log_density(lambda x: x @ E.T, lambda z: z @ W.T, x, side)
        same(got, model.log_prob(x @ q), f"a linear model, {side}", 1e-8)


check_linear(2, 4, seed=14)
### BEGIN HIDDEN TESTS
check_linear(1, 3, seed=16)
check_linear(3, 7, seed=18)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "volumes_sides", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_circle(radius, seed):
    x = normal(9, 2, seed=seed) + 2

    def angle(x):
        return torch.atan2(x[..., 1:], x[..., :1])

    def circle(z):
        return radius * torch.cat([z.cos(), z.sin()], -1)

    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(angle(x)[:, 0])
    wanted = {
        "decoder": log_p - math.log(radius),
        "encoder on manifold": log_p - math.log(radius),
        "encoder": log_p - x.norm(dim=1).log(),
    }
    for side, right in wanted.items():
        same(log_density(angle, circle, x, side), right, f"a circle of radius {radius}, {side}", 1e-8)


check_circle(1.0, seed=20)
### BEGIN HIDDEN TESTS
check_circle(0.3, seed=21)
shift = torch.tensor([2.0, 0.5, -1.0]).double()
crooked = (lambda x: x[..., :1] + 0.1 * x[..., 1:2] ** 3, lambda z: z * shift + z**2)
point = normal(5, 3, seed=22)
code = crooked[0](point)
speed = (shift + 2 * code).norm(dim=1).log()
log_p = torch.distributions.Normal(0.0, 1.0).log_prob(code[:, 0])
same(log_density(*crooked, point, "decoder"), log_p - speed, "a crooked pair, decoder", 1e-8)
slope = 0.5 * torch.log(1 + (0.3 * crooked[1](code)[:, 1] ** 2) ** 2)
same(log_density(*crooked, point, "encoder on manifold"), log_p + slope, "a crooked pair, encoder on manifold", 1e-8)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: spheres that collapse (6 points)
#
# The chapter's circle, in $D$ dimensions: data with uniform direction and radius $\rho$, of mean $\bar\rho$. The encoder is the direction $x/\|x\|$, with a latent uniform on the unit sphere (whose area is $2\pi^{D/2}/\Gamma(D/2)$), the decoder a sphere of radius $R$. The volume now has $D-1$ dimensions.
#
# **Prediction first** (1 point, read by a person). Before you compute: does the collapse become more or less dangerous with the dimension, if $\beta$ and $\bar\rho$ stay the same? From which $\beta$ on do you expect a local minimum with the Jacobian on the manifold, for $D=2$ and $D=20$?

# %% [markdown] nbgrader={"grade": true, "grade_id": "spheres_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* More dangerous: shrinking by a factor lowers the on-manifold loss by $D-1$ times the logarithm, while the reconstruction term does not grow with $D$. The loss is that of the circle with $\beta/(D-1)$ in place of $\beta$, up to a factor, so I expect $\beta\ge2(D-1)/\bar\rho^2$: 2 for the circle and 38 for $D=20$, at $\bar\rho=1$.
#
# *Marks.* ½ for the direction with a reason, ½ for numbers for both dimensions (right or wrong) that were plainly written before the measurement.

# %% [markdown]
# - `sphere_losses`: both expected losses, on the manifold and off it, at radius `R`, for radii `rho` of data (a tensor of shape (points,); means over points). Constants included.
# - `stationary_radius`: the local minimum of the on-manifold loss, as a function of $\beta$, the mean radius and $D$; 0 if there is none.
# - `descend`: the radius after gradient descent on $\log R$, from $R=\bar\rho$, with the loss chosen by `on` (True: on the manifold). Choose step and number of steps yourself; a collapse must end below $10^{-3}$, everything else within $10^{-3}$ of the limit.

# %% nbgrader={"grade": false, "grade_id": "spheres", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sphere_losses(R, rho, beta, dim):
    """Losses with the Jacobian on the manifold and at the data, two numbers."""
    ### BEGIN SOLUTION
    area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    reconstruction = beta * (rho - R).square().mean()
    return area + (dim - 1) * math.log(R) + reconstruction, area + (dim - 1) * rho.log().mean() + reconstruction
    ### END SOLUTION


def stationary_radius(beta, mean_radius, dim):
    """R of the local minimum on the manifold, or 0."""
    ### BEGIN SOLUTION
    root = mean_radius**2 - 2 * (dim - 1) / beta
    return 0.5 * (mean_radius + math.sqrt(root)) if root >= 0 else 0.0
    ### END SOLUTION


def descend(rho, beta, dim, on):
    """R after gradient descent from the mean radius."""
    ### BEGIN SOLUTION
    mean, s = rho.mean().item(), math.log(rho.mean().item())
    rate = 0.5 / (dim + 2 * beta * mean**2)
    for _ in range(20_000):
        R = math.exp(s)
        s -= rate * ((dim - 1 if on else 0) - 2 * beta * R * (mean - R))
        if s < -20:
            break
    return math.exp(s)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "spheres_losses", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_losses(R, rho, beta, dim, wanted):
    found = sphere_losses(R, rho, beta, dim)
    assert found is not None and len(found) == 2, "sphere_losses must return two numbers"
    for got, right, where in zip(found, wanted, ("on the manifold", "at the data")):
        same(got, right, f"D = {dim}: {where}", 1e-6)


check_losses(0.8, torch.tensor([0.9, 1.0, 1.2]).double(), 3.0, 2, (1.82473355, 2.07353078))
### BEGIN HIDDEN TESTS
for R, beta, dim, seed in ((0.5, 1.0, 3, 31), (1.2, 20.0, 10, 32)):
    rho = 1 + 0.1 * normal(50, seed=seed)
    area = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    reconstruction = beta * ((rho - R) ** 2).mean()
    on = math.log(area * R ** (dim - 1)) + reconstruction
    check_losses(R, rho, beta, dim, (on, math.log(area) + (dim - 1) * rho.log().mean() + reconstruction))
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "spheres_radius", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_radius(beta, mean, dim, wanted):
    got = number(stationary_radius(beta, mean, dim), "stationary_radius")
    assert abs(got - wanted) < 1e-4, f"beta = {beta}, mean radius {mean}, D = {dim}: you say {got:.4f}"


check_radius(5.0, 1.0, 2, 0.887298)
check_radius(1.0, 1.0, 2, 0.0)
### BEGIN HIDDEN TESTS
check_radius(50.0, 1.0, 20, 0.744949)
check_radius(30.0, 1.0, 20, 0.0)
check_radius(3.0, 2.0, 4, 1.707107)
check_radius(1e6, 3.0, 5, 2.999999)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "spheres_descent", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
def check_descent(beta, dim, on, wanted, mean=1.0, seed=33):
    rho = 0.1 * normal(200, seed=seed)
    rho = rho - rho.mean() + mean
    got = number(descend(rho, beta, dim, on), "descend")
    where = "on the manifold" if on else "at the data"
    what = f"beta = {beta}, mean radius {mean}, D = {dim}, {where}"
    assert abs(got - wanted) < 1e-3, f"{what}: your descent ends at R = {got:.4f}"


check_descent(5.0, 2, True, 0.887298)
check_descent(1.0, 2, True, 0.0)
check_descent(1.0, 2, False, 1.0)
### BEGIN HIDDEN TESTS
check_descent(50.0, 20, True, 0.744949)
check_descent(30.0, 20, True, 0.0)
check_descent(30.0, 20, False, 1.0)
check_descent(0.3, 3, False, 1.0)
check_descent(3.0, 4, True, 1.707107, mean=2.0)
check_descent(3.0, 4, False, 2.0, mean=2.0)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** the radius that descent finds against $\beta$, for three dimensions. Where does each curve jump, and how far below 1 does it start?

# %% alt="Radius found by descent against beta for dimensions 2, 5 and 20: zero up to a threshold that grows with the dimension, then a jump to about one half and a slow rise towards one; off the manifold it is one everywhere."
rho = 1 + 0.1 * normal(200, seed=34)
rho = rho - rho.mean() + 1
betas = torch.logspace(0, 2.5, 26).tolist()
fig, ax = plt.subplots(figsize=(7.6, 2.5))
for dim, colour in zip((2, 5, 20), PALETTE):
    ax.semilogx(betas, [descend(rho, b, dim, True) for b in betas], "o-", ms=3, color=colour, label=f"D = {dim}")
ax.semilogx(betas, [descend(rho, b, 20, False) for b in betas], "k--", lw=1, label="off the manifold, D = 20")
ax.set(xlabel="β", ylabel="radius")
ax.legend()
plt.show()


# %% [markdown]
# **After the measurement** (1 point, read by a person): compare with your prediction. With noise of standard deviation $\sigma$ on data of $D$ features, somebody proposes $\beta=1/(2\sigma^2)$ "because that makes the linear model safe". Is a sphere in 20 dimensions safe with it, on the manifold, at $\sigma=0.1$ and at $\sigma=0.2$? (Take $\bar\rho=1$.)

# %% [markdown] nbgrader={"grade": true, "grade_id": "spheres_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The thresholds are at $2(D-1)$, as predicted, and the radius jumps to one half there. With $\sigma=0.1$, $\beta=50$ lies above 38: there is a local minimum, at $R=0.74$, heavily biased, and the well at 0 is still deeper. With $\sigma=0.2$, $\beta=12.5$ is below 38: collapse. The linear rule is about directions of small variance, not about curvature; off the manifold neither happens.
#
# *Marks.* ½ for the comparison with numbers, ½ for both values of $\sigma$ with the bias or the deeper well mentioned for the first.

# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# The code below trains and runs without complaint. It has five faults; each alone spoils the method or its evaluation. `f` and `g` act on batches.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def draw_probes(n, d, generator):
    """Probe vectors for n points and d latents, shape (n, d)."""
    v = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return v / v.norm(dim=1, keepdim=True)


def loss(f, g, x, beta, v):
    """Loss of an injective flow; x: (n, D), v: probe vectors (n, d)."""
    z = f(x)
    x1 = g(z)
    pushed = (jacobian(g, z) @ v[..., None])[..., 0]
    pulled = (v[:, None] @ jacobian(f, x1))[:, 0]
    volume = (pulled * pushed).sum(1)
    reconstruction = (x - x1).square().mean(1)
    return (beta * reconstruction + 0.5 * z.square().sum(1) - volume).mean()


def report(f, g, x):
    """Negative log-likelihood of the decoder's density in nats, mean over points."""
    z = f(x)
    J = jacobian(g, z)
    return (0.5 * z.square().sum(1) + 0.5 * torch.logdet(J.mT @ J)).mean()


# %% [markdown]
# Write all three functions anew, corrected. (An additive constant in `loss` is no fault; in `report` it is.)

# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def draw_probes(n, d, generator):  # noqa: F811
    v = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return math.sqrt(d) * v / v.norm(dim=1, keepdim=True)


def loss(f, g, x, beta, v):  # noqa: F811
    z = f(x)
    x1 = g(z)
    pushed = (jacobian(g, z) @ v[..., None])[..., 0]
    pulled = (v[:, None] @ jacobian(f, x))[:, 0]
    volume = (pulled * pushed.detach()).sum(1)
    reconstruction = (x - x1).square().sum(1)
    return (beta * reconstruction + 0.5 * z.square().sum(1) - volume).mean()


def report(f, g, x):  # noqa: F811
    z = f(x)
    J = jacobian(g, z)
    return (0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + 0.5 * torch.logdet(J.mT @ J)).mean()


### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "faults_probes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_probes(n, d, seed):
    v = draw_probes(n, d, runtime.generator(seed))
    assert v is not None and tuple(v.shape) == (n, d), f"draw_probes must return the shape {(n, d)}"
    second = v.mT @ v / n
    error = (second - torch.eye(d)).abs().max().item()
    assert error < 0.15, f"d = {d}: the mean of v v^T is off from the identity by {error:.2f}"


check_probes(4000, 3, seed=40)
### BEGIN HIDDEN TESTS
check_probes(4000, 1, seed=41)
check_probes(10_000, 8, seed=42)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_decoder", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def bent_pair(a, b):
    """Encoder and decoder with their parameters."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    return lambda x: torch.tanh(0.3 * x @ a.T) + x @ a.T, lambda z: torch.sin(z @ b.T), a, b


def check_decoder(beta, seed):
    f, g, a, b = bent_pair(normal(2, 4, seed=seed), normal(4, 2, seed=seed + 1))
    x, v = normal(7, 4, seed=seed + 2), normal(7, 2, seed=seed + 3)
    got = torch.autograd.grad(loss(f, g, x, beta, v), b)[0]
    wanted = torch.autograd.grad(beta * (x - g(f(x))).square().sum(1).mean(), b)[0]
    same(got, wanted, "the decoder's gradient, which comes from the reconstruction alone", 1e-8)


check_decoder(1.0, seed=43)
### BEGIN HIDDEN TESTS
check_decoder(10.0, seed=47)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_encoder", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_encoder(a, b, x, v, beta, wanted):
    f, g, a, b = bent_pair(a, b)
    got = torch.autograd.grad(loss(f, g, x, beta, v), a)[0]
    same(got, wanted, f"beta = {beta}: the encoder's gradient", 1e-6)


ramp = torch.arange(12).double() / 10
some = (ramp[:8].view(2, 4) - 0.3, 0.5 - ramp[:8].view(4, 2), ramp.view(3, 4) - 0.5)  # a, b, three points
v = torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.3, -1.4]]).double()
gradient = [[-0.85590952, -0.69628111, -0.53696716, -0.37755843], [-0.42271506, -0.14846524, 0.12717113, 0.40207618]]
check_encoder(*some, v, 2.0, gradient)
### BEGIN HIDDEN TESTS
for beta, seed in ((1.0, 51), (10.0, 55)):
    f, g, a, b = bent_pair(normal(2, 4, seed=seed), normal(4, 2, seed=seed + 1))
    x, v = normal(7, 4, seed=seed + 2), normal(7, 2, seed=seed + 3)
    slope = (1 + 0.3 / torch.cosh(0.3 * x @ a.T).square())[..., None] * a  # f' at x
    tangent = (torch.cos(f(x) @ b.T)[..., None] * b) @ v[..., None]
    volume = (v[:, None] @ slope @ tangent.detach()).sum((1, 2))
    right = beta * (x - g(f(x))).square().sum(1) + 0.5 * f(x).square().sum(1) - volume
    check_encoder(a.detach(), b.detach(), x, v, beta, torch.autograd.grad(right.mean(), a)[0])
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_report", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_report(d, dim, seed):
    W = normal(dim, d, seed=seed)
    E, x, q = torch.linalg.pinv(W), normal(20, dim, seed=seed + 1), torch.linalg.qr(W).Q
    model = torch.distributions.MultivariateNormal(torch.zeros(d).double(), q.T @ W @ W.T @ q)
    wanted = -model.log_prob(x @ q).mean()
    got = number(report(lambda x: x @ E.T, lambda z: z @ W.T, x), "report")
    assert abs(got - wanted) < 1e-6, f"d = {d}: a linear model has {wanted:.4f} nats, you report {got:.4f}"


check_report(2, 4, seed=59)
### BEGIN HIDDEN TESTS
check_report(1, 3, seed=61)
check_report(5, 9, seed=63)
off_circle = normal(9, 2, seed=65) + 2
turn = torch.atan2(off_circle[:, 1:], off_circle[:, :1])
got = number(
    report(
        lambda x: torch.atan2(x[..., 1:], x[..., :1]), lambda z: 0.3 * torch.cat([z.cos(), z.sin()], -1), off_circle
    ),
    "report",
)
wanted = math.log(0.3) - torch.distributions.Normal(0.0, 1.0).log_prob(turn).mean().item()
assert abs(got - wanted) < 1e-6, f"a circle of radius 0.3 has {wanted:.4f} nats by its decoder, you report {got:.4f}"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: area without a determinant (4 points)
#
# A star-like surface $x=r(u)\,u$, $u=u(\theta)$ the unit vector of $n-1$ angles (`to_unit`). `log_sphere_volume` gives $\sum_k(n-1-k)\log\sin\theta_k$, the unit sphere's area per angle.
#
# - `ellipsoid_radius`: $r$ for the ellipsoid $x^\top Ax=1$; `u` has the shape (*batch, n).
# - `log_area`: the log of the area per volume of angles, for any function `radius` of unit vectors, from one gradient and without a determinant. `radius` may be defined off the sphere in any way; your result must not depend on it.
# - `uniform_simplex_log_prob`: log-density *of the angles* for the uniform distribution on the simplex, $\theta\in(0,\frac\pi2)^{n-1}$. It must integrate to 1 over the angles.

# %% nbgrader={"grade": false, "grade_id": "area", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ellipsoid_radius(u, A):
    """Distance of the ellipsoid from the origin in the directions u, shape (*batch,)."""
    ### BEGIN SOLUTION
    return ((u @ A) * u).sum(-1) ** -0.5
    ### END SOLUTION


def log_area(radius, theta):
    """Log of the area per volume of angles; theta: shape (points, n - 1)."""
    ### BEGIN SOLUTION
    u = to_unit(theta)
    r, pull = torch.func.vjp(radius, u)
    slope = pull(torch.ones_like(r))[0]
    along = slope - (slope * u).sum(-1, keepdim=True) * u
    return log_sphere_volume(theta) + (u.shape[-1] - 2) * r.log() + 0.5 * (r**2 + along.square().sum(-1)).log()
    ### END SOLUTION


def uniform_simplex_log_prob(theta):
    """Log-density of the angles of a uniform point of the simplex, shape (points,)."""
    ### BEGIN SOLUTION
    n = theta.shape[-1] + 1
    return math.lgamma(n) + log_sphere_volume(theta) - n * to_unit(theta).sum(-1).log()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "area_radius", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def some_angles(points, n, seed, high=math.pi):
    return (0.1 + 0.8 * torch.rand(points, n - 1, dtype=torch.float64, generator=runtime.generator(seed))) * high


def check_ellipsoid(n, seed):
    root, u = normal(n, n, seed=seed), to_unit(some_angles(6, n, seed))
    A = root @ root.T + 0.1 * torch.eye(n)
    r = ellipsoid_radius(u, A)
    assert r is not None and r.shape == (6,), "ellipsoid_radius must return one number a direction"
    x = r[:, None] * u
    same(((x @ A) * x).sum(1), torch.ones(6), f"n = {n}: x^T A x of your points", 1e-9)


check_ellipsoid(3, seed=70)
### BEGIN HIDDEN TESTS
check_ellipsoid(6, seed=71)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "area_smooth", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_area(radius, n, seed, what):
    theta = some_angles(5, n, seed)
    G = jacobian(lambda t: radius(to_unit(t))[..., None] * to_unit(t), theta)
    same(log_area(radius, theta), 0.5 * torch.logdet(G.mT @ G), f"{what}, n = {n}", 1e-7)


check_area(lambda u: 2.0 + 0 * u[..., 0], 3, seed=72, what="a sphere")
check_area(lp_radius(4), 3, seed=73, what="the sphere of the 4-norm")
### BEGIN HIDDEN TESTS
check_area(lp_radius(1), 2, seed=74, what="the sphere of the 1-norm")
check_area(lp_radius(0.5), 6, seed=75, what="the sphere of the half-norm")
check_area(lambda u: 1 + 0.3 * torch.sin(3 * u[..., 0]) * u[..., -1], 8, seed=76, what="some surface")


def forbidden(*args, **options):
    raise AssertionError("log_area must do without determinants and decompositions of matrices")


names = ("logdet", "det", "slogdet", "qr", "svd", "svdvals", "cholesky", "eigh", "eigvalsh", "eigvals", "lu_factor")
places = [(where, name) for where in (torch, torch.linalg, torch.Tensor) for name in names if hasattr(where, name)]
kept = [getattr(where, name) for where, name in places]
try:
    for where, name in places:
        setattr(where, name, forbidden)
    log_area(lp_radius(4), some_angles(3, 5, 80))
finally:
    for (where, name), function in zip(places, kept):
        setattr(where, name, function)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "area_off_sphere", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_off_sphere(power, n, seed):
    plain = lp_radius(3)
    check_area(lambda u: plain(u) * u.norm(dim=-1) ** power, n, seed, f"the 3-norm's sphere, times |u|^{power}")


check_off_sphere(1, 3, seed=77)
### BEGIN HIDDEN TESTS
check_off_sphere(5, 4, seed=78)
check_off_sphere(-2, 7, seed=79)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "area_uniform", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_uniform(n, num):
    t = (torch.arange(num).double() + 0.5) / num * math.pi / 2
    mesh = torch.stack(torch.meshgrid(*[t] * (n - 1), indexing="ij"), -1).reshape(-1, n - 1)
    total = uniform_simplex_log_prob(mesh).exp().sum().item() * (math.pi / 2 / num) ** (n - 1)
    assert abs(total - 1) < 1e-3, f"n = {n}: your density has the integral {total:.4f}"
    x = to_unit(mesh) / to_unit(mesh).sum(1, keepdim=True)
    weight = uniform_simplex_log_prob(mesh).exp()[:, None] * (math.pi / 2 / num) ** (n - 1)
    same((weight * x).sum(0), torch.full([n], 1 / n), f"n = {n}: the mean of the points", 2e-3)
    same((weight * x**2).sum(0), torch.full([n], 2 / (n * (n + 1))), f"n = {n}: the mean of their squares", 2e-3)


check_uniform(3, 200)
### BEGIN HIDDEN TESTS
check_uniform(2, 1000)
check_uniform(4, 60)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6: how many of each kind (4 points)
#
# Numbers $y_i$ come from three normal distributions of known means and standard deviation 1, in unknown proportions $\pi$, a point of the simplex. `log_posterior` is the logarithm, up to a constant, of the posterior density of $\pi$ *per area of the simplex*, with a prior that is uniform for the area: `pi` has the shape (draws, 3), `y` (points,), `means` (3,). The flow below learns from it, without a sample of the posterior.

# %% nbgrader={"grade": false, "grade_id": "weights", "locked": false, "schema_version": 3, "solution": true, "task": false}
def log_posterior(pi, y, means):
    """Log of the posterior of the proportions, shape (draws,)."""
    ### BEGIN SOLUTION
    parts = torch.distributions.Normal(means, 1.0).log_prob(y[:, None])  # (points, 3)
    return torch.logsumexp(pi.log()[:, None] + parts, -1).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "weights_posterior", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
MEANS = torch.tensor([-2.0, 0.0, 1.5])


def observed(n, seed):
    """n numbers with proportions 0.2, 0.5, 0.3."""
    source = runtime.generator(seed)
    which = torch.multinomial(torch.tensor([0.2, 0.5, 0.3]), n, replacement=True, generator=source)
    return MEANS[which] + torch.randn(n, generator=source)


def check_posterior(n, seed):
    y = observed(n, seed)
    pi = torch.distributions.Dirichlet(torch.ones(3)).sample([6])
    mixtures = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(pi), torch.distributions.Normal(MEANS.expand(6, 3), torch.ones(6, 3))
    )
    wanted = mixtures.log_prob(y[:, None]).sum(0)
    got = log_posterior(pi, y, MEANS)
    assert got is not None and got.shape == (6,), "log_posterior must return one number a draw"
    same(got - got[0], wanted - wanted[0], f"{n} points: differences of your log-posterior", 1e-4)


check_posterior(1, seed=80)
### BEGIN HIDDEN TESTS
check_posterior(40, seed=81)
check_posterior(300, seed=82)
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** posteriors of the proportions for 20 and 200 numbers, as samples in the triangle whose corners are the three kinds; the cross marks the proportions that made the data. How do spread and tilt change?

# %%
def learn(y, steps=300):
    """A flow on the simplex, trained by reverse KL."""
    torch.manual_seed(0)
    source = runtime.generator(0)
    body = coupling_flow(2, AffineMap(), 4, width=16)
    model = StarLike(Flow(Chain(AngleBox(3, positive=True), body), StandardNormal([2])), lp_radius(1))

    def reverse_kl():
        pi, log_q = model.sample_and_log_prob([64], generator=source)
        return (log_q - log_posterior(pi, y, MEANS)).mean()

    fit(model, reverse_kl, num_steps=steps, lr=6e-3, schedule="cosine", clip_norm=10.0, progress=False)
    with torch.no_grad():
        return model.sample([1000], generator=source)


def grid_mean(y, num=150):
    """Posterior mean on a fine grid of the triangle."""
    a = (torch.arange(num) + 0.5) / num
    pi = torch.stack(torch.meshgrid(a, a, indexing="ij"), -1).reshape(-1, 2)
    pi = torch.cat([pi, 1 - pi.sum(1, keepdim=True)], 1)
    pi = pi[pi[:, 2] > 0]
    weight = torch.cat([log_posterior(part, y, MEANS) for part in pi.split(4000)]).softmax(0)
    return (weight[:, None] * pi).sum(0)


# %% alt="Samples of the posterior in the triangle of proportions: a wide tilted cloud for 20 numbers and a small one around the true proportions for 200."
fig, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), sharey=True)
for ax, n in zip(axes, (20, 200)):
    y = observed(n, 83)
    draws = learn(y)
    ax.plot([0, 1, 0.5, 0], [0, 0, 0.87, 0], color="k", lw=1)
    ax.plot(draws[:, 1] + 0.5 * draws[:, 2], 0.87 * draws[:, 2], ".", ms=2, color=PALETTE[0])
    ax.plot(0.65, 0.87 * 0.3, "x", color=PALETTE[1], ms=9, mew=2)
    for name, x, y_of_corner in (("mean -2", -0.05, -0.09), ("mean 0", 0.85, -0.09), ("mean 1.5", 0.4, 0.9)):
        ax.text(x, y_of_corner, name, fontsize=8.5)
    ax.set(aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.12, 0.98))
    ax.set_axis_off()
    mean, right = draws.mean(0).tolist(), grid_mean(y).tolist()
    say(
        f"{n} numbers: mean {', '.join(f'{v:.3f}' for v in mean)}; on a grid {', '.join(f'{v:.3f}' for v in right)}; standard deviations {', '.join(f'{v:.3f}' for v in draws.std(0).tolist())}."
    )
label_panels(axes, ["20 numbers", "200 numbers"])
plt.show()

# %% [markdown]
# **Which model, which measure, which evidence?** (3 points, read by a person) A colleague wants to publish generated blood counts: 12 proportions a patient, adding up to 1, 400 patients. He trains an injective flow with 8 latents, $\beta=1$, Jacobian at the projections "to be exact", and reports "NLL −31 against −18 for the flow of the other group, FID-like 0.4 against the training set". The other group has a flow on the simplex with all 11 dimensions.
#
# Answer in at most 250 words. May the two likelihoods be compared? What do you suspect about the −31, and which three numbers do you ask for? What is wrong with the 0.4? When would you use a learned manifold for these data, and when the known one?
#
# One point is for the likelihoods and their measures, one for the suspicion with its evidence, one for the choice.

# %% [markdown] nbgrader={"grade": true, "grade_id": "weights_judgement", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **Measures.** No. One is a density per 8-dimensional volume on a learned surface, the other per 11-dimensional area of the simplex. They have different units; a change of scale of the data adds $8\log s$ to one and $11\log s$ to the other. Even on the same learned surface, a change of the surface changes the density. Besides: whose side, encoder or decoder, and is the Gaussian constant in it?
# - **Suspicion.** $\beta=1$ is tiny for proportions, whose variances are around 0.01: the code may well prefer directions of small variance, and on the manifold the surface may curl up. Both improve the likelihood without limit. I ask for the squared reconstruction error of held-out patients beside that of PCA, the likelihood by all three Jacobians (do they agree?), and $\|f(g(z))-z\|$ for draws $z$. Then a run with the Jacobian at $x$ and larger $\beta$.
# - **FID-like.** Against training rows, with 400 patients, it rewards memorising; it must be against held-out patients, beside the value between training and held-out rows as a floor. It sees two moments only.
# - **Choice.** The simplex is known and must hold exactly: use it, and its density per area, if all 11 directions carry variation, or for inference without samples. A learned manifold in addition (on log-ratios, or a decoder that ends on the simplex) if the data really vary in fewer directions and a projection is wanted; then the likelihood is a training device, and reconstruction is what to report.
#
# *Marks.* 1 for different reference measures or dimensions (½) and the side or constant (½). 1 for collapse or small variance as the suspicion (½) with reconstruction and at least two further checks, and held-out reference for the 0.4 (½). 1 for a choice with reasons for both.
