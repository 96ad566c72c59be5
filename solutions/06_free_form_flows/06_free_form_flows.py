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
# # Exercises 06: Free-form flows
#
# Read [chapter 06](../../chapters/06_free_form_flows.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 What one vector costs | 4 | 4 | |
# | 2 The surrogate | 4 | 4 | |
# | 3 Training on a line | 4 | 4 | |
# | 4 Find the faults | 4 | 4 | |
# | 5 Predict, then measure: a fold on a line | 5 | 3 | 2 |
# | 6 A likelihood to review | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. Hand in text only where a cell asks for it, "read by a person". `refimpl.free_form` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - $f$ is the encoder, $g$ the decoder, $z=f(x)$, $p_Z=\mathcal N(0,I)$ in $D$ dimensions; $f'$ and $g'$ are Jacobians. Networks are functions of tensors of shape (batch, dim) that treat the rows independently.
# - $v$ is a random vector with $\mathbb E[vv^\top]=I$; the *surrogate* is $s=(v^\top f'(x))\,\mathrm{SG}[g'(z)v]$, where SG stops the gradient.
# - The loss of a point is $-\log p_Z(f(x))-s(x)+\beta\,\|x-g(f(x))\|^2$, with the square summed over features.
# - Densities in nats. Tensors come in double precision; keep it.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from refimpl import runtime
from refimpl.autodiff import jacobian, log_det_jacobian, probe_vectors
from refimpl.data import GaussianMixture
from refimpl.free_form import FreeFormFlow
from refimpl.nets import residual_mlp
from refimpl.plots import PALETTE, label_panels, say, use_course_style
from refimpl.training import fit

use_course_style()


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-6):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them (or 1)."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got).detach().double(), torch.as_tensor(wanted).detach().double()
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


def network(dim, seed, width=8):
    """A smooth network in double precision."""
    torch.manual_seed(seed)
    return residual_mlp(dim, width=width, depth=2).double()


def inverse_at(f, x):
    """A decoder with g(f(x)) = x and g'(f(x)) f'(x) = I at the given points, without parameters."""
    with torch.no_grad():
        z, inverse = f(x), torch.linalg.inv(jacobian(f, x))
    return lambda z1: x.detach() + (inverse @ (z1 - z).unsqueeze(-1)).squeeze(-1)


def parameter_gradient(scalar, net):
    """The gradient in all parameters of net as one vector; zero where there is none."""
    parameters = list(net.parameters())
    parts = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, parameters)])


# %% [markdown]
# ## Task 1: what one vector costs (4 points)
#
# A one-vector gradient is $v^\top Mv$ for some square matrix $M$, not symmetric in general. Derive with pencil and paper the variance of $v^\top Mv$ for
#
# - `"gaussian"`: $v\sim\mathcal N(0,I)$;
# - `"sphere"`: $v$ uniform on the sphere of radius $\sqrt D$, for which $\mathbb E\,v_i^4=\frac{3D}{D+2}$ and $\mathbb E\,v_i^2v_j^2=\frac D{D+2}$;
# - `"rademacher"`: independent random signs;
#
# and then of the mean of $v_k^\top Mv_k$ over $k=1,\dots,K$ vectors on the same sphere that are *at right angles to each other* (`orthogonal_variance`). For the last: what must the variance be at $K=D$? The directions are exchangeable, so that all pairs $(v_k,v_l)$ have the same covariance; that is enough.

# %% nbgrader={"grade": false, "grade_id": "variance", "locked": false, "schema_version": 3, "solution": true, "task": false}
def variance(M, kind):
    """Variance of v^T M v; M: shape (dim, dim)."""
    ### BEGIN SOLUTION
    S, dim = (M + M.T) / 2, len(M)
    square = S.square().sum()
    if kind == "gaussian":
        return 2 * square
    if kind == "sphere":
        return 2 * dim / (dim + 2) * (square - S.trace() ** 2 / dim)
    return 2 * (square - S.diagonal().square().sum())
    ### END SOLUTION


def orthogonal_variance(M, K):
    """Variance of the mean over K orthogonal vectors of length sqrt(dim), 1 <= K <= dim."""
    ### BEGIN SOLUTION
    # K (a + (K - 1) c) / K^2 with the covariance c of a pair, and zero at K = dim: c = -a / (dim - 1).
    dim = len(M)
    return variance(M, "sphere") / K * ((dim - K) / (dim - 1) if dim > 1 else 1)
    ### END SOLUTION


# %% [markdown]
# Tests compare with simulations and, where all vectors can be listed, with exact sums.

# %% nbgrader={"grade": true, "grade_id": "variance_gaussian", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def random_matrix(dim, seed):
    return torch.randn(dim, dim, generator=runtime.generator(seed)).double()


def check_simulated(kind, dim, seed, n=200_000):
    M = random_matrix(dim, seed)
    v = probe_vectors(torch.zeros(n, dim).double(), 1, kind, runtime.generator(seed))[0]
    measured = torch.einsum("ni,ij,nj->n", v, M, v).var().item()
    got = number(variance(M, kind), f"{kind}, D = {dim}")
    assert abs(got / measured - 1) < 0.04, (
        f"{kind}, D = {dim}: yours is {got / measured:.3f} times the measured variance"
    )


check_simulated("gaussian", 4, 1)
### BEGIN HIDDEN TESTS
check_simulated("gaussian", 7, 2)
antisymmetric = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
assert abs(number(variance(antisymmetric, "gaussian"), "antisymmetric")) < 1e-12, (
    "an antisymmetric matrix has v^T M v = 0"
)
same(variance(torch.eye(3).double(), "gaussian"), torch.tensor(6.0), "identity, Gaussian")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "variance_sphere", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check_simulated("sphere", 4, 3)
### BEGIN HIDDEN TESTS
check_simulated("sphere", 9, 4)
same(variance(3.0 * torch.eye(5).double(), "sphere"), torch.tensor(0.0), "a multiple of the identity, sphere")
angle = torch.arange(1000).double() * 2 * math.pi / 1000
circle = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
M = random_matrix(2, 5)
values = torch.einsum("ni,ij,nj->n", circle, M, circle)
same(variance(M, "sphere"), values.var(correction=0), "on the circle", 1e-9)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "variance_signs", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_signs(dim, seed):
    M = random_matrix(dim, seed)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * dim)
    values = torch.einsum("ni,ij,nj->n", signs, M, signs)
    same(variance(M, "rademacher"), values.var(correction=0), f"all signs in D = {dim}", 1e-9)


check_signs(3, 6)
### BEGIN HIDDEN TESTS
check_signs(6, 7)
same(variance(torch.diag(torch.tensor([1.0, -4.0, 2.0]).double()), "rademacher"), torch.tensor(0.0), "diagonal, signs")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "variance_orthogonal", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_orthogonal(dim, K, seed, n=100_000):
    M = random_matrix(dim, seed)
    v = probe_vectors(torch.zeros(n, dim).double(), K, "orthogonal", runtime.generator(seed))
    measured = torch.einsum("kni,ij,knj->n", v, M, v).div(K).var().item()
    got = number(orthogonal_variance(M, K), f"D = {dim}, K = {K}")
    assert abs(got / measured - 1) < 0.05, (
        f"D = {dim}, K = {K}: yours is {got / measured:.3f} times the measured variance"
    )


check_orthogonal(4, 2, 8)
same(orthogonal_variance(random_matrix(4, 8), 4), torch.tensor(0.0), "as many vectors as dimensions", 1e-9)
### BEGIN HIDDEN TESTS
check_orthogonal(6, 5, 9)
check_orthogonal(3, 1, 10)
M = random_matrix(5, 11)
ratio = number(orthogonal_variance(M, 4), "K = 4") / number(orthogonal_variance(M, 1), "K = 1")
assert abs(ratio - 1 / 16) < 1e-9, f"D = 5: four vectors leave {ratio:.4f} of the variance of one, which is not right"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** independent vectors fall like $1/K$. How much faster do vectors at right angles fall? What does the last vector buy, compared with a batch that is larger by the same factor?

# %% alt="Variance of the mean over K vectors against K in ten dimensions: independent vectors fall like 1/K, orthogonal ones faster, to zero at K = 10."
M = random_matrix(10, 12)
counts = range(1, 11)
fig, ax = plt.subplots(figsize=(7.0, 2.5))
ax.plot(counts, [variance(M, "sphere") / K for K in counts], "o-", color=PALETTE[0], label="independent")
ax.plot(counts, [orthogonal_variance(M, K) for K in counts], "s-", color=PALETTE[1], label="at right angles")
ax.set(xlabel="number of vectors K", ylabel="variance", xticks=list(counts))
ax.legend()
plt.show()


# %% [markdown]
# ## Task 2: the surrogate (4 points)
#
# Write `surrogate`: it returns $z=f(x)$ and $x_1=g(z)$, both with gradients, and $s$ for every row of $x$: the mean over the $K$ vectors in `v`, shape (K, batch, dim), of $(v_k^\top f'(x))\,\mathrm{SG}[g'(z)v_k]$. A backward pass through $s$ must reach the parameters of $f$, and none through $g'(z)v_k$. The tensor `x` that the caller handed in must stay as it is: its `requires_grad` and its `grad` are not yours.
#
# A loop over the $K$ vectors is welcome. `torch.autograd.grad(y, x, v, create_graph=True)` is $v^\top y'(x)$ with a graph. For $g'(z)v$ use `refimpl.autodiff.jvp`, which returns $g(z)$ as well, or the trick of the chapter.

# %% nbgrader={"grade": false, "grade_id": "surrogate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def surrogate(f, g, x, v):
    """z, x1, s; x: shape (batch, dim), v: shape (K, batch, dim), s: shape (batch,)."""
    ### BEGIN SOLUTION
    from refimpl.autodiff import jvp

    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z)
    s = 0
    for one in v:
        pushed = jvp(g, z.detach(), one)[1].detach()
        (pulled,) = torch.autograd.grad(z, x, one, create_graph=True)
        s = s + (pulled * pushed).sum(1)
    return z, x1, s / len(v)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "surrogate_value", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_value(dim, K, seed):
    f, g = network(dim, seed), network(dim, seed + 100)
    x = torch.randn(5, dim, generator=runtime.generator(seed)).double()
    v = torch.randn(K, 5, dim, generator=runtime.generator(seed + 1)).double()
    z, x1, s = surrogate(f, g, x, v)
    same(z, f(x), "z")
    same(x1, g(f(x)), "x1")
    J, G = jacobian(f, x), jacobian(g, f(x))
    same(s, torch.einsum("kbi,bij,bjl,kbl->kb", v, J, G, v).mean(0), f"s, D = {dim}, K = {K}")


check_value(3, 1, 1)
### BEGIN HIDDEN TESTS
check_value(4, 3, 2)
check_value(1, 1, 3)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "surrogate_gradient", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_gradient(dim, seed):
    f = network(dim, seed)
    x = torch.randn(6, dim, generator=runtime.generator(seed)).double()
    exact = parameter_gradient(log_det_jacobian(f, x).mean(), f)
    v = probe_vectors(x, dim, "orthogonal", runtime.generator(seed))
    got = parameter_gradient(surrogate(f, inverse_at(f, x), x, v)[2].mean(), f)
    same(got, exact, f"D = {dim}: gradient with all vectors against that of log|det f'|")


check_gradient(3, 4)
### BEGIN HIDDEN TESTS
check_gradient(5, 5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "surrogate_stop", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_stop(seed):
    f, g = network(3, seed), network(3, seed + 1)
    x = torch.randn(4, 3, generator=runtime.generator(seed)).double()
    v = probe_vectors(x, 1, "sphere", runtime.generator(seed))
    s = surrogate(f, g, x, v)[2]
    assert s.requires_grad, "s carries no gradient at all"
    assert parameter_gradient(s.sum(), g).abs().max() == 0, "the decoder's parameters get a gradient from s"


check_stop(6)
### BEGIN HIDDEN TESTS
net = network(2, 7)  # as encoder and decoder: the gradient must be that of the encoder's part alone
x = torch.randn(4, 2, generator=runtime.generator(7)).double()
v = probe_vectors(x, 1, "sphere", runtime.generator(7))
frozen = network(2, 7).requires_grad_(False)
wanted = parameter_gradient(surrogate(net, frozen, x, v)[2].sum(), net)
got = parameter_gradient(surrogate(net, net, x, v)[2].sum(), net)
same(got, wanted, "one network as encoder and decoder")
before = network(2, 8)  # z must not carry a gradient into g'(z) v either
z, _, s = surrogate(before, lambda z: z + 0.3 * z**3, x, v)
J, z = jacobian(before, x), z.detach()
pushed = (1 + 0.9 * z**2) * v[0]
same(
    parameter_gradient(s.sum(), before),
    parameter_gradient(torch.einsum("bi,bij,bj->", v[0], J, pushed), before),
    "a curved decoder",
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "surrogate_input", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_input(seed):
    f, g = network(2, seed), network(2, seed + 1)
    x = torch.randn(4, 2, generator=runtime.generator(seed)).double()
    copy = x.clone()
    z, x1, s = surrogate(f, g, x, probe_vectors(x, 2, "orthogonal", runtime.generator(seed)))
    assert not x.requires_grad and x.grad is None, "you change the caller's x: it requires gradients now"
    assert torch.equal(x, copy), "you change the numbers in the caller's x"
    both = parameter_gradient(z.sum(), f).abs().max(), parameter_gradient(x1.sum(), g).abs().max()
    assert min(both) > 0, "z or x1 carries no gradient to its network: reconstruction could not be trained"


check_input(8)
### BEGIN HIDDEN TESTS
f, g = network(2, 9), network(2, 10)
x = torch.randn(3, 2, generator=runtime.generator(9)).double().requires_grad_()
z, x1, s = surrogate(f, g, x, probe_vectors(x.detach(), 1, "sphere", runtime.generator(9)))
(s.sum() + (x1 - z).square().sum()).backward()
assert all(p.grad is not None for p in f.parameters() if p.ndim == 2), "some weights of f get no gradient"
assert parameter_gradient(surrogate(f, g, x.detach(), torch.ones(1, 3, 2).double())[1].sum(), f).abs().max() > 0, (
    "x1 carries no gradient to the encoder"
)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: training on a line (4 points)
#
# $f(x)=ax$, $g(z)=bz$, data of mean 0 and variance $\sigma^2$.
#
# - `velocity` is minus the gradient of the loss in $(a,b)$, as the surrogate gives it ($v^2=1$ in one dimension, and $b$ is not differentiated in $s$). Derive it; don't call autograd.
# - `rates` are the two rates, the smaller first, with which small deviations from the fixed point $a=1/\sigma$, $b=\sigma$ decay when $(\dot a,\dot b)$ is this velocity: minus the eigenvalues of the linearisation (real for all values that are asked for here; between, trajectories may spiral).
# - `largest_step` is the largest learning rate with which gradient descent, $(a,b)\leftarrow(a,b)+\eta\,\text{velocity}$, does not diverge from the fixed point.
# - `steps_needed` is the number of steps, not rounded, in which gradient descent with the *best* constant learning rate divides small deviations by `factor`, whichever direction they point to. With the best rate the slow and the fast direction shrink by factors of the same size per step.

# %% nbgrader={"grade": false, "grade_id": "line", "locked": false, "schema_version": 3, "solution": true, "task": false}
def velocity(a, b, variance, beta):
    """(da/dt, db/dt); variance: that of the data."""
    ### BEGIN SOLUTION
    off = 2 * beta * variance * (1 - a * b)
    return b - a * variance + off * b, off * a
    ### END SOLUTION


def rates(variance, beta):
    """The slow and the fast rate."""
    ### BEGIN SOLUTION
    total, product = variance + 2 * beta * variance**2 + 2 * beta, 4 * beta * variance
    root = math.sqrt(total**2 / 4 - product)
    return product / (total / 2 + root), total / 2 + root  # the difference would lose digits
    ### END SOLUTION


def largest_step(variance, beta):
    """Largest stable learning rate."""
    ### BEGIN SOLUTION
    return 2 / rates(variance, beta)[1]
    ### END SOLUTION


def steps_needed(variance, beta, factor):
    """Steps at the best constant learning rate."""
    ### BEGIN SOLUTION
    slow, fast = rates(variance, beta)
    if fast == slow:
        return 1.0
    return math.log(factor) / math.log((fast + slow) / (fast - slow))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "line_velocity", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_velocity(a, b, variance, beta):
    ab = torch.tensor([a, b]).double().requires_grad_()
    x = math.sqrt(variance) * torch.tensor([-1.0, 1.0]).double()
    z = ab[0] * x
    loss = (0.5 * z**2 + beta * (x - ab[1] * z) ** 2).mean() - ab[0] * ab[1].detach()
    wanted = -torch.autograd.grad(loss, ab)[0]
    same(torch.tensor([float(t) for t in velocity(a, b, variance, beta)]), wanted, f"a, b = {a}, {b}")


check_velocity(0.5, 1.5, 1.0, 2.0)
### BEGIN HIDDEN TESTS
check_velocity(0.5, 1.5, 4.0, 0.3)
check_velocity(-1.0, 0.2, 0.25, 10.0)
check_velocity(0.0, 1.0, 1.0, 1.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "line_rates", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_rates(variance, beta, wanted):
    got = torch.tensor([float(r) for r in rates(variance, beta)]).double()
    same(
        got / torch.tensor(wanted), torch.ones(2), f"variance {variance}, beta {beta}: rates over the right ones", 1e-3
    )


check_rates(1.0, 10.0, (1.0, 40.0))
check_rates(1.0, 0.1, (0.4, 1.0))
### BEGIN HIDDEN TESTS
check_rates(0.25, 10.0, (0.47557, 21.02443))
check_rates(4.0, 0.5, (10.5 - math.sqrt(102.25), 10.5 + math.sqrt(102.25)))
check_rates(1.0, 1e6, (1.0, 4e6))
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "line_step", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def descend(variance, beta, eta, steps):
    """Gradient descent on the exact velocity, from next to the fixed point; how far away it ends."""
    a, b = 1 / math.sqrt(variance) + 1e-6, math.sqrt(variance) - 2e-6
    for _ in range(steps):
        off = 2 * beta * variance * (1 - a * b)
        a, b = a + eta * (b - a * variance + off * b), b + eta * off * a
        if not abs(a) + abs(b) < 1e3:
            return math.inf
    return math.hypot(a - 1 / math.sqrt(variance), b - math.sqrt(variance))


def check_step(variance, beta):
    eta = number(largest_step(variance, beta), "largest_step")
    assert descend(variance, beta, 0.99 * eta, 3000) < 1e-6, (
        f"variance {variance}, beta {beta}: 0.99 of your step diverges"
    )
    assert descend(variance, beta, 1.01 * eta, 3000) > 1e-3, (
        f"variance {variance}, beta {beta}: a larger step is stable"
    )


check_step(1.0, 10.0)
### BEGIN HIDDEN TESTS
check_step(1.0, 0.05)
check_step(4.0, 3.0)
check_step(0.25, 1.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "line_steps", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_steps(variance, beta, factor, wanted):
    got = number(steps_needed(variance, beta, factor), "steps_needed")
    assert abs(got / wanted - 1) < 0.01, (
        f"variance {variance}, beta {beta}, factor {factor}: {got:.2f} steps are not right"
    )


check_steps(1.0, 10.0, 100.0, 92.08)
### BEGIN HIDDEN TESTS
check_steps(1.0, 100.0, 10.0, 460.5)
check_steps(1.0, 0.1, 100.0, 5.435)
ratio = (10.5 + math.sqrt(102.25)) / (10.5 - math.sqrt(102.25))
check_steps(4.0, 0.5, 10.0, math.log(10) / math.log((ratio + 1) / (ratio - 1)))
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** the $\beta$ at which this toy is trained fastest, and how steps grow for larger $\beta$. What would that say about "$\beta$ as large as possible"?

# %% alt="Steps to divide a deviation by 100 against beta, both axes logarithmic: a sharp minimum at beta = 1/4 and proportional growth to both sides."
betas = torch.logspace(-2, 3, 200).tolist()
fig, ax = plt.subplots(figsize=(7.0, 2.5))
ax.loglog(betas, [max(1.0, steps_needed(1.0, beta, 100.0)) for beta in betas], color=PALETTE[0])
ax.set(xlabel="beta", ylabel="steps to 1 %")
ax.set_title("Variance 1, best learning rate")
plt.show()


# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# Five functions, meant to do this:
#
# - `probes` draws one vector for each row of $z$, uniform on a sphere, with $\mathbb E[vv^\top]=I$;
# - `log_prior` is $\log p_Z$;
# - `volume` returns $z$, $x_1$ and the surrogate for one vector a row, as in the conventions;
# - `objective` is the mean over the batch of the loss, as in the conventions;
# - `decoder_nll` is the mean of $-\log p_Z(f(x))+\log|\det g'(f(x))|$.
#
# All run without complaint.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def probes(z, generator):
    v = torch.randn(z.shape, dtype=z.dtype, generator=generator)
    return v / v.norm(dim=1, keepdim=True)


def log_prior(z):
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def volume(f, g, x, v):
    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z)
    u = torch.zeros_like(x1, requires_grad=True)
    (back,) = torch.autograd.grad(x1, z, u, create_graph=True)
    (pushed,) = torch.autograd.grad(back, u, v, create_graph=True)
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    return z, x1, (pulled * pushed).sum(1)


def objective(f, g, x, beta, v):
    z, x1, s = volume(f, g, x, v)
    return (beta * (x - x1).square().mean(1) - log_prior(z) - s).mean()


def decoder_nll(f, g, x):
    return (log_det_jacobian(g, x) - log_prior(f(x))).mean()


# %% [markdown]
# There are four faults, at most one in each function. Do not stare at them; experiment. Pairs with a known inverse are a good place to begin. Then write those functions that need repair once more, whole and under the same names, into the cell that is left free for it. What is right you need not repeat.

# %%
x = torch.randn(4, 2, generator=runtime.generator(1)).double()
v = probes(x, runtime.generator(2))
f, g = network(2, 1), network(2, 2)
print(
    f"it runs: s {volume(f, g, x, v)[2][0].item():.3f}, loss {objective(f, g, x, 10.0, v).item():.3f}, NLL {decoder_nll(f, g, x).item():.3f}"
)


# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def probes(z, generator):
    v = torch.randn(z.shape, dtype=z.dtype, generator=generator)
    return v * (math.sqrt(z.shape[1]) / v.norm(dim=1, keepdim=True))


def volume(f, g, x, v):
    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z)
    u = torch.zeros_like(x1, requires_grad=True)
    (back,) = torch.autograd.grad(x1, z, u, create_graph=True)
    (pushed,) = torch.autograd.grad(back, u, v, retain_graph=True)
    (pulled,) = torch.autograd.grad(z, x, v, create_graph=True)
    return z, x1, (pulled * pushed.detach()).sum(1)


def objective(f, g, x, beta, v):
    z, x1, s = volume(f, g, x, v)
    return (beta * (x - x1).square().sum(1) - log_prior(z) - s).mean()


def decoder_nll(f, g, x):
    z = f(x)
    return (log_det_jacobian(g, z) - log_prior(z)).mean()


### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "faults_probes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_probes(dim, seed, n=100_000):
    v = probes(torch.zeros(n, dim).double(), runtime.generator(seed))
    same(v.T @ v / n, torch.eye(dim), f"D = {dim}: mean of v v^T", 0.03)
    lengths = v.norm(dim=1)
    assert lengths.std() < 1e-9, f"D = {dim}: your vectors are not all of one length"


check_probes(3, 1)
### BEGIN HIDDEN TESTS
check_probes(6, 2)
v = probes(torch.zeros(50_000, 2).double(), runtime.generator(3))
assert abs((v[:, 0] ** 4).mean().item() - 1.5) < 0.05, "your vectors are not uniform on the circle"
z = torch.zeros(4, 3).double()
same(probes(z, runtime.generator(5)), probes(z, runtime.generator(5)), "the same seed must give the same vectors")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_volume", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_volume(seed):
    f, g = network(3, seed), network(3, seed + 1)
    x = torch.randn(5, 3, generator=runtime.generator(seed)).double()
    v = torch.randn(5, 3, generator=runtime.generator(seed + 1)).double()
    z, x1, s = volume(f, g, x, v)
    J, G = jacobian(f, x), jacobian(g, f(x)).detach()
    wanted = torch.einsum("bi,bij,bjl,bl->b", v, J, G, v)
    same(s, wanted, "the value of s")
    same(parameter_gradient(s.sum(), f), parameter_gradient(wanted.sum(), f), "the encoder's gradient of s")
    return s, g


check_volume(4)
### BEGIN HIDDEN TESTS
s, g = check_volume(6)
assert parameter_gradient(s.sum(), g).abs().max() == 0, "the decoder's parameters get a gradient from s"
f, g = network(3, 20), network(3, 21)
x = torch.randn(5, 3, generator=runtime.generator(20)).double()
z, x1, s = volume(f, g, x, torch.ones(5, 3).double())
same(z, f(x), "z")
same(x1, g(f(x)), "x1")
for net in (f, g):
    x1 = volume(f, g, x, torch.ones(5, 3).double())[1]
    assert x1.requires_grad, "x1 carries no gradient"
    same(parameter_gradient(x1.sum(), net), parameter_gradient(g(f(x)).sum(), net), "gradient of x1")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_objective", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_objective(dim, beta, seed):
    """On f = 2x, g = z/4 every term is known."""
    x = torch.randn(7, dim, generator=runtime.generator(seed)).double()
    v = torch.ones(7, dim).double()
    got = objective(lambda x: 2 * x, lambda z: z / 4, x, beta, v)
    squares = x.square().sum(1).mean()
    wanted = beta * squares / 4 + 2 * squares + dim / 2 * math.log(2 * math.pi) - dim / 2
    same(got, wanted, f"D = {dim}, beta = {beta}: the loss of f = 2x, g = z/4", 1e-9)


check_objective(1, 3.0, 8)
check_objective(4, 0.0, 9)
### BEGIN HIDDEN TESTS
check_objective(4, 3.0, 10)
check_objective(2, 50.0, 11)
f, g = network(3, 22), network(3, 23)
x = torch.randn(5, 3, generator=runtime.generator(22)).double()
got = parameter_gradient(objective(f, g, x, 3.0, torch.ones(5, 3).double()), g)
_, x1, s = volume(f, g, x, torch.ones(5, 3).double())  # yours: a fault there is judged there
wanted = parameter_gradient(3 * (x - x1).square().sum(1).mean() - s.mean(), g)
same(got, wanted, "the decoder's gradient of the loss")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_nll", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_nll(seed):
    """A pair with a known inverse: z1 = x1 e^a, z2 = x2 e^b + sinh x1."""
    a, b = 0.3 + 0.1 * seed, -0.5

    def f(x):
        return torch.stack([x[:, 0] * math.exp(a), x[:, 1] * math.exp(b) + x[:, 0].sinh()], 1)

    def g(z):
        x0 = z[:, 0] * math.exp(-a)
        return torch.stack([x0, (z[:, 1] - x0.sinh()) * math.exp(-b)], 1)

    x = torch.randn(20, 2, generator=runtime.generator(seed)).double()
    wanted = 0.5 * f(x).square().sum(1).mean() + math.log(2 * math.pi) - a - b
    same(decoder_nll(f, g, x), wanted, "a pair with constant volume", 1e-9)


check_nll(1)
### BEGIN HIDDEN TESTS
f, g = (lambda x: x.sinh()), (lambda z: z.asinh())  # volume that varies
x = torch.randn(20, 3, generator=runtime.generator(12)).double()
wanted = (0.5 * x.sinh().square() + 0.5 * math.log(2 * math.pi) - x.cosh().log()).sum(1).mean()
same(decoder_nll(f, g, x), wanted, "f = sinh, g = asinh", 1e-9)
f, g = (lambda x: 2 * x), (lambda z: z + z**3)  # not inverse to each other
z = 2 * x
wanted = ((1 + 3 * z**2).log() + 0.5 * z**2 + 0.5 * math.log(2 * math.pi)).sum(1).mean()
same(decoder_nll(f, g, x), wanted, "a pair that is not inverse", 1e-9)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: predict, then measure: a fold on a line (5 points)
#
# On a line everything can be drawn. Data: two narrow modes, $\frac12\mathcal N(-1,0.2^2)+\frac12\mathcal N(1,0.2^2)$. Six pairs of small networks, $\beta=0.3$ to $1000$, are trained for 400 steps each (`train_on_line`, below).
#
# **Before you write more code** (1 point, read by a person): sketch $f$ for a large and for a small $\beta$. Which $\beta$ belongs to the noise of 0.2? In one dimension $f$ must be monotone to be invertible. What shape could $f$ take that maps *both* modes onto the whole normal, and what would be the integral of $p_Z(f(x))\,|f'(x)|$ then? You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "fold_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* $\beta=1/(2\cdot0.04)=12.5$. For a large $\beta$, $f$ rises monotonically, steep at the modes and flat in the gap between them. For a small one it can be shaped like the letter N: rise through the whole normal over the first mode, come down in the gap, and rise again over the second. Then each latent has up to three points, two in the modes and one in the gap, so that the integral is near 3 (nearly 2 if the gap's steep descent is not counted, but it is). The likelihood of each mode is then up to $\ln2$ too good, as each gets the whole normal to itself, without sharing.
#
# *Marks.* ½ for $\beta$ and the monotone shape. ½ for a fold with an integral of two or three, or a reasoned alternative.

# %% [markdown]
# **Measure.**
#
# - `mass` is the integral of $p_Z(f(x))\,|f'(x)|$ over an interval, by the midpoint rule with `steps` cells. `f` maps (n, 1) to (n, 1).
# - `preimages` counts, for each latent in `z`, shape (m,), the points $x$ of the interval with $f(x)=z$: cut the interval into `steps` cells and count those in which $f-z$ changes sign. Return a tensor of shape (m,).
# - `examine` returns, for a `FreeFormFlow` and data `x`, shape (n, 1), a dictionary of floats: `"encoder"` and `"decoder"`, the two mean negative log-likelihoods; `"reconstruction"`, the mean of $(x-g(f(x)))^2$; and `"mass"` over the interval from $-4$ to $4$ with 2000 cells. Use your functions.

# %% nbgrader={"grade": false, "grade_id": "fold", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mass(f, low, high, steps):
    """Integral of p_Z(f(x)) |f'(x)| from low to high."""
    ### BEGIN SOLUTION
    x = low + (high - low) * ((torch.arange(steps).double() + 0.5) / steps)[:, None]
    slope = jacobian(f, x).flatten().abs()
    density = (-0.5 * f(x).flatten() ** 2).exp() / math.sqrt(2 * math.pi)
    return (density * slope).sum() * (high - low) / steps
    ### END SOLUTION


def preimages(f, z, low, high, steps):
    """How many points of the interval have f(x) = z, for each z; shape (m,)."""
    ### BEGIN SOLUTION
    y = f(torch.linspace(low, high, steps + 1).double()[:, None]).flatten()
    above = y[:, None] > z
    return (above[1:] != above[:-1]).sum(0)
    ### END SOLUTION


def examine(flow, x):
    """Both likelihoods, reconstruction, and mass."""
    ### BEGIN SOLUTION
    z = flow.encode(x)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).flatten()
    into, back = (jacobian(net, at).flatten().abs().log() for net, at in ((flow.encode, x), (flow.decode, z)))
    return {
        "encoder": -(log_prior + into).mean().item(),
        "decoder": -(log_prior - back).mean().item(),
        "reconstruction": (x - flow.decode(z)).square().mean().item(),
        "mass": float(mass(flow.encode, -4, 4, 2000)),
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "fold_mass", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_mass(f, low, high, steps, wanted, what):
    got = number(mass(f, low, high, steps), what)
    assert abs(got - wanted) < 2e-3, f"{what}: {got:.4f} is not right"


def within(a, b):
    """Probability of [a, b] under the standard normal."""
    return 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))


check_mass(lambda x: 2 * x, -1.0, 1.0, 1000, within(-2, 2), "f = 2x")
check_mass(lambda x: x**3 - 3 * x, -4.0, 4.0, 4000, 1 + 2 * within(-2, 2), "f = x^3 - 3x")
### BEGIN HIDDEN TESTS
check_mass(lambda x: -2 * x, 0.0, 1.0, 1000, within(-2, 0), "f = -2x")
check_mass(lambda x: x**2, -1.0, 2.0, 4000, within(0, 1) + within(0, 4), "f = x^2")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "fold_preimages", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_preimages(f, z, low, high, steps, wanted, what):
    z, wanted = torch.tensor(z).double(), torch.tensor(wanted)
    same(preimages(f, z, low, high, steps), wanted, what)


check_preimages(lambda x: x**3 - 3 * x, [-3.0, -1.0, 0.5, 3.0], -4.0, 4.0, 999, [1, 3, 3, 1], "f = x^3 - 3x")
### BEGIN HIDDEN TESTS
check_preimages(lambda x: -x, [0.1, 5.0], -1.0, 1.0, 77, [1, 0], "f = -x")
check_preimages(lambda x: x**2, [-1.0, 0.5, 3.0], -1.0, 2.0, 500, [0, 2, 1], "f = x^2")
check_preimages(lambda x: (5 * x).sin(), [0.3, 2.0], 0.0, 2 * math.pi, 1000, [10, 0], "f = sin 5x")
### END HIDDEN TESTS

# %% nbgrader={"grade": false, "grade_id": "formula", "locked": true, "schema_version": 3, "solution": false, "task": false}
class Formula(nn.Module):
    """A function as a network."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x):
        return self.formula(x)


def check_examine(f, g, wanted, what, x):
    got = examine(FreeFormFlow(Formula(f), Formula(g), 1), x)
    for key, value in wanted.items():
        assert key in got, f"the entry {key!r} is missing"
        mine = number(got[key], key)
        assert abs(mine - value) < 2e-3, f"{what}: your {key} is {mine:.4f}"


# %% nbgrader={"grade": true, "grade_id": "fold_examine", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
x = torch.linspace(-1, 1, 11).double()[:, None]
known = 0.5 * math.log(2 * math.pi) + 2 * x.square().mean().item()
check_examine(
    lambda x: 2 * x,
    lambda z: z / 2,
    {"encoder": known - math.log(2), "decoder": known - math.log(2), "reconstruction": 0.0, "mass": 1.0},
    "f = 2x, g = z/2",
    x,
)
### BEGIN HIDDEN TESTS
check_examine(
    lambda x: 2 * x,
    lambda z: -z,
    {"encoder": known - math.log(2), "decoder": known, "reconstruction": 9 * x.square().mean().item(), "mass": 1.0},
    "f = 2x, g = -z",
    x,
)
x = torch.linspace(1.2, 1.5, 9).double()[:, None]
z = x**3 - 3 * x
prior = (0.5 * z**2 + 0.5 * math.log(2 * math.pi)).mean().item()
check_examine(
    lambda t: t**3 - 3 * t,
    lambda z: z + z**3 / 3,
    {
        "encoder": prior - (3 * x**2 - 3).log().mean().item(),
        "decoder": prior + (1 + z**2).log().mean().item(),
        "mass": 1 + 2 * within(-2, 2),
    },
    "a cubic",
    x,
)
### END HIDDEN TESTS

# %% nbgrader={"grade": false, "grade_id": "train_on_line", "locked": true, "schema_version": 3, "solution": false, "task": false}
modes = GaussianMixture(torch.tensor([[-1.0], [1.0]]).double(), std=0.2)


def train_on_line(beta, seed=0):
    """A pair of small networks after 400 steps."""
    torch.manual_seed(seed)
    source = runtime.generator(seed)
    flow = FreeFormFlow(*(residual_mlp(1, width=32, depth=3) for _ in range(2)), 1).double()

    def loss():
        return flow.loss(modes.sample(128, source), beta=beta, generator=source)

    fit(flow, loss, num_steps=400, lr=5e-3, schedule="warmup_cosine", clip_norm=1.0, progress=False)
    return flow


# %% [markdown]
# **What to look for.** Left: encoders for three values of $\beta$; how many points share the latent 0? Right: what both likelihoods lack to the entropy, and the mass beyond 1.

# %% alt="Left: encoders against x: for beta 1 N-shaped, rising at both modes and falling between; for beta 12.5 nearly monotone; for beta 1000 monotone. Right: gaps of both likelihoods, of which one is negative at small beta, and the mass beyond one, two at beta 1 and zero from 100 on."
LINE_BETAS = [0.3, 1.0, 3.0, 12.5, 100.0, 1000.0]
points = modes.sample(3000, runtime.generator(50))
line_entropy = -modes.log_prob(points).mean().item()
line_flows = {beta: train_on_line(beta) for beta in LINE_BETAS}
line_checks = {beta: examine(flow, points) for beta, flow in line_flows.items()}
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.8))
t = torch.linspace(-2, 2, 400).double()[:, None]
for beta, colour in zip((1.0, 12.5, 1000.0), PALETTE):
    axes[0].plot(t, line_flows[beta].encode(t).detach(), color=colour, label=f"beta = {beta:g}")
axes[0].fill_between(t.flatten(), -4 + modes.log_prob(t).exp(), -4, color="#cccccc")
axes[0].set(xlabel="x", ylabel="f(x)", ylim=(-4, 4))
for key, colour in (("encoder", PALETTE[1]), ("decoder", PALETTE[0])):
    gaps = [check[key] - line_entropy for check in line_checks.values()]
    axes[1].semilogx(LINE_BETAS, gaps, "o-", color=colour, label=f"{key}, nats")
axes[1].semilogx(LINE_BETAS, [c["mass"] - 1 for c in line_checks.values()], "s-", color=PALETTE[3], label="mass - 1")
axes[1].axhline(0, color="black", lw=0.8)
axes[1].set(xlabel="beta", ylim=(-1, 2.5))
for ax in axes:
    ax.legend(fontsize=8.5)
label_panels(axes, ["Encoders, and the data", "Likelihood minus entropy"])
plt.show()

# %%
draws = torch.randn(500, generator=runtime.generator(51)).double()
for beta, check in line_checks.items():
    with torch.no_grad():
        shared = preimages(line_flows[beta].encode, draws, -4, 4, 2000).double().mean()
    say(
        f"beta {beta:g}: NLL - entropy {check['encoder'] - line_entropy:+.2f} (encoder), {check['decoder'] - line_entropy:+.2f} (decoder); mass {check['mass']:.2f}; points that share a latent {shared:.2f}; reconstruction {check['reconstruction']:.4f}"
    )

# %% [markdown]
# **Read the result** (1 point, read by a person). Compare with your sketch. Which of the printed numbers would have misled you if it were the only one? Why does the decoder's reconstruction error for the smallest $\beta$ have the size that it has?

# %% [markdown] nbgrader={"grade": true, "grade_id": "fold_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The encoder for $\beta=1$ is the N of the sketch: mass near 3, and as many preimages. Its encoder-side likelihood is better than the entropy by a quarter of a nat, about half of the $\ln2$ that a complete fold could gain; alone, it would win any comparison. The decoder can return one point for a latent that two modes share. Best in the mean square is their average, near 0, at a distance of 1 from both: an error up to about 1 for a complete fold, and 0.3 to 0.8 here, as the fold is not complete or the decoder prefers one side. At $\beta=12.5$, the value of the noise, a little fold is left after these few steps, and from 100 on there is none, but the likelihood is worse: training is stiff.
#
# *Marks.* ½ for the encoder's likelihood as the misleading number, beside the mass. ½ for the average of two modes as the reason for the reconstruction error.

# %% [markdown]
# ## Task 6: a likelihood to review (3 points)
#
# You review a paper. It says: *"We train a free-form flow with ReLU networks on 21-dimensional data that we standardised. The loss converged within 2 epochs and stayed flat, so we stopped. We use $\beta=1$; smaller values gave even better likelihoods. The decoder-side negative log-likelihood on the validation set, which we also used to choose $\beta$, is 1.3 nats better than that of a spline flow. Reconstruction loses only 8 % of the variance. Samples look plausible. We conclude that free-form flows are superior density estimators."*
#
# (3 points, read by a person) Write your review in at most 250 words: which statements carry no evidence and why, what you ask the authors to measure and what each answer would tell you, and what you would change in their training, in which order.

# %% [markdown] nbgrader={"grade": true, "grade_id": "review", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **The loss.** The surrogate's value is $D$ whatever the model, so a flat loss is no sign of convergence. Ask for exact likelihoods of both sides along training; 21 Jacobian rows are cheap.
# - **The likelihood.** At $\beta=1$ in standardised units the pair is only asked to match the data up to noise of 0.7. With 8 % of the variance lost, $f$ probably folds. "Smaller values gave even better likelihoods" is the signature of a spurious one. Ask for the encoder side, $\|g'f'-I\|_F$ on held-out points, and an estimate of the integral by importance sampling with its standard error. Disagreement or a mass above 1 ends the discussion; agreement and mass 1 would make the number credible. $\beta$ must be chosen by these, not by the likelihood, and the number must come from a test set.
# - **ReLU.** Kinks have no derivative, so the gradient of the log-determinant misses biases.
# - **Changes, in order.** Smooth activations; $\beta$ up until both sides agree (begin at $1/(2\sigma^2)$ for the finest scale); more steps, stopped by the exact likelihood; then compare with the spline flow at equal training time, on the test set, over several seeds.
# - **The conclusion** does not follow; plausible samples don't speak about densities.
#
# *Marks.* 1 for the loss and the spurious likelihood, with reasons (½ each). 1 for measurements that could refute the claim, and what they would say. 1 for ReLU, selection on the validation set, and changes in a sensible order.
