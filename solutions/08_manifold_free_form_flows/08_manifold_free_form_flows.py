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
# # Exercises 08: Free-form flows on manifolds
#
# Read [chapter 08](../../chapters/08_manifold_free_form_flows.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 Volumes of a linear map | 4 | 4 | |
# | 2 Tangent probes | 4 | 4 | |
# | 3 A normal on the rotations | 3 | 3 | |
# | 4 Find the faults | 4 | 4 | |
# | 5 Predict, then measure: how long is a probe? | 5 | 3 | 2 |
# | 6 Copies, clusters and what a likelihood says | 5 | 2 | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.free_form` holds part of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - $M$ is a manifold of dimension $n$ in $\mathbb R^D$, $\pi$ a projection onto it, $f=\pi\circ\tilde f$ and $g=\pi\circ\tilde g$. A *frame* at $x$ is a $D\times n$ matrix with an orthonormal basis of the tangent space $T_xM$ in its columns.
# - Points are the rows of a tensor of shape (batch, D), so that a matrix $A$ acts as `x @ A.T`. A rotation in $SO(3)$ is a row of nine numbers, its matrix row by row. A point of the torus $T^n$ is $(\cos a_1,\sin a_1,\cos a_2,\dots)$.
# - Log-densities are in nats and, unless it says otherwise, per unit of Riemannian volume. On $SO(3)$ lengths are angles of rotation, and the whole volume is $8\pi^2$.
# - Tensors come in double precision; keep it.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import normalize

from refimpl import runtime
from refimpl.autodiff import jacobian
from refimpl.data import airports, split_points
from refimpl.free_form import SO3, ManifoldFlow, Sphere, VonMisesFisherMixture, manifold_log_det, tangent_probes
from refimpl.nets import residual_mlp
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


def random_matrix(dim, seed):
    return torch.eye(dim, dtype=F64) + 0.4 * torch.randn(dim, dim, dtype=F64, generator=runtime.generator(seed))


def on_sphere(dim, num, seed):
    """num uniform points of the unit sphere in dim dimensions."""
    return Sphere(dim - 1).uniform([num], runtime.generator(seed), LIKE)


# %% [markdown]
# ## Task 1: volumes of a linear map (4 points)
#
# On the unit sphere $S^{D-1}$ in $\mathbb R^D$, a linear network followed by the projection is $f(x)=Ax/\lVert Ax\rVert$. Derive the following with pencil and paper, then write them as functions, in closed form: nothing that differentiates by machine.
#
# - `linear_log_det` is $\log|\det(R^\top f'(x)Q)|$, for every $D\ge2$. *A way:* a small ball of radius 1 to $1+h$ around the sphere's patch at $x$ is a piece of a cone. $A$ multiplies its volume by $|\det A|$, and projecting changes both its radius and its surface. Compare surfaces.
# - `angular_gaussian` is the log-density of $f^{-1}(z)$ where $z$ is uniform: the angular central Gaussian. Its parameter is $\Lambda=(A^\top A)^{-1}$, which is all that you get. The area of $S^{D-1}$ is $2\pi^{D/2}/\Gamma(D/2)$.
# - `disk_log_det` is the change of *Riemannian* volume by $x\mapsto sx$, $0<s<1$, in the Poincaré ball of dimension $n$, with $\lambda(x)=2/(1-\lVert x\rVert^2)$.

# %% nbgrader={"grade": false, "grade_id": "volumes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def linear_log_det(matrix, x):
    """log|det| of x -> A x / |A x| on the sphere at x; shapes (D, D) and (batch, D), result (batch,)."""
    ### BEGIN SOLUTION
    return matrix.det().abs().log() - matrix.shape[0] * (x @ matrix.T).norm(dim=1).log()
    ### END SOLUTION


def angular_gaussian(covariance, x):
    """log-density of the angular central Gaussian with this Lambda, shape (batch,)."""
    ### BEGIN SOLUTION
    dim = x.shape[1]
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    square = (x * torch.linalg.solve(covariance, x.T).T).sum(1)
    return -0.5 * torch.logdet(covariance) - dim / 2 * square.log() - log_area
    ### END SOLUTION


def disk_log_det(scale, x):
    """log of the factor by which x -> scale x changes Riemannian volume in the ball, shape (batch,)."""
    ### BEGIN SOLUTION
    square = x.square().sum(1)
    return x.shape[1] * (math.log(scale) + (1 - square).log() - (1 - scale**2 * square).log())
    ### END SOLUTION


# %% [markdown]
# The tests that you see compare with numbers at a few points, and the third integrates; the grader's compare with automatic differentiation. Do the same before you hand in.

# %% nbgrader={"grade": true, "grade_id": "volumes_linear", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
ellipse, axes = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=F64)), torch.eye(3, dtype=F64)
wanted = torch.tensor([-2.0, 1.0, 1.0], dtype=F64) * math.log(2)
same(linear_log_det(ellipse, axes), wanted, "A = diag(2, 1, 1) at the three axes")
### BEGIN HIDDEN TESTS
exact_log_det, exact_jacobian = manifold_log_det, jacobian


def check_linear(dim, seed):
    a, x = random_matrix(dim, seed), on_sphere(dim, 30, seed + 1)
    sphere = Sphere(dim - 1)
    wanted = exact_log_det(lambda x: normalize(x @ a.T, dim=-1), x, sphere)[1]
    same(linear_log_det(a, x), wanted, f"linear_log_det for D = {dim}")


check_linear(3, 1)
check_linear(2, 2)
check_linear(6, 3)
same(linear_log_det(2 * torch.eye(4, dtype=F64), on_sphere(4, 3, 4)), torch.zeros(3, dtype=F64), "for A = 2 I")
flipped = random_matrix(3, 5)
flipped[0] *= -1
same(
    linear_log_det(flipped, on_sphere(3, 3, 4)),
    linear_log_det(random_matrix(3, 5), on_sphere(3, 3, 4)),
    "with a mirror",
)
manifold_log_det = jacobian = None  # a formula needs neither
try:
    check_linear(4, 17)
finally:
    manifold_log_det, jacobian = exact_log_det, exact_jacobian
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "volumes_pullback", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
wanted = torch.tensor([2.0, -1.0, -1.0], dtype=F64) * math.log(2) - math.log(4 * math.pi)
covariance = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=F64))
same(angular_gaussian(covariance, torch.eye(3, dtype=F64)), wanted, "Lambda = diag(4, 1, 1) at the three axes")


### BEGIN HIDDEN TESTS
def check_pullback(dim, seed):
    a, x = random_matrix(dim, seed), on_sphere(dim, 30, seed + 1)
    log_det = manifold_log_det(lambda x: normalize(x @ a.T, dim=-1), x, Sphere(dim - 1))[1]
    wanted = log_det - math.log(Sphere(dim - 1).volume)
    same(angular_gaussian(torch.linalg.inv(a.T @ a), x), wanted, f"angular_gaussian for D = {dim}")


check_pullback(3, 6)
check_pullback(2, 7)
check_pullback(5, 8)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "volumes_integral", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_integral(dim, seed, scale=1.0):
    a, x = random_matrix(dim, seed), on_sphere(dim, 40_000, seed + 1)
    density = torch.as_tensor(angular_gaussian(scale * torch.linalg.inv(a.T @ a), x)).exp() * Sphere(dim - 1).volume
    total, error = density.mean().item(), density.std().item() / 200
    assert abs(total - 1) < 5 * error + 1e-9, f"D = {dim}: your density integrates to {total:.3f}"


check_integral(3, 9)
### BEGIN HIDDEN TESTS
check_integral(2, 10)
check_integral(3, 11, scale=7.0)
check_integral(4, 12, scale=0.1)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "volumes_disk", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
for dim in (1, 2, 3):
    wanted = torch.full((1,), dim * math.log(0.5), dtype=F64)
    same(disk_log_det(0.5, torch.zeros(1, dim, dtype=F64)), wanted, f"at the centre, in {dim} dimensions")


### BEGIN HIDDEN TESTS
def check_disk(dim, scale, seed):
    x = 0.5 * torch.rand(20, dim, dtype=F64, generator=runtime.generator(seed)) / math.sqrt(dim)
    jacobians = jacobian(lambda x: scale * x, x)
    factor = [(2 / (1 - y.square().sum(1))) ** dim for y in (scale * x, x)]
    wanted = (jacobians.det().abs() * factor[0] / factor[1]).log()
    same(disk_log_det(scale, x), wanted, f"disk_log_det in {dim} dimensions")


check_disk(2, 0.5, 13)
check_disk(3, 0.9, 14)
check_disk(1, 0.2, 15)
x = 0.4 * on_sphere(2, 5, 16)
wanted = torch.full((5,), 2 * math.log(0.5 * (1 - 0.16) / (1 - 0.04)), dtype=F64)
keep, manifold_log_det, jacobian = (manifold_log_det, jacobian), None, None  # a formula needs neither
try:
    same(disk_log_det(0.5, x), wanted, "disk_log_det at radius 0.4")
finally:
    manifold_log_det, jacobian = keep
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: tangent probes (4 points)
#
# A probe at $z$ is a random tangent vector $v$ with $\mathbb E\,vv^\top=RR^\top$, the projector onto the tangent space, and always of the same length, because that lowers the variance of the estimate. Make one from `noise`, which is standard normal and has the shape of `z`, on three manifolds:
#
# - `sphere_probe` on $S^{D-1}$,
# - `torus_probe` on $T^n$; the whole vector has one length (of each circle by itself would do as well: why?),
# - `rotation_probe` on $SO(3)$; the tangent space at $X$ holds $XS$ with skew $S$, and its inner product is that of $\mathbb R^9$.

# %% nbgrader={"grade": false, "grade_id": "probes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sphere_probe(z, noise):
    """Tangent vectors at z, shapes (batch, D)."""
    ### BEGIN SOLUTION
    u = noise - (noise * z).sum(1, keepdim=True) * z
    return math.sqrt(z.shape[1] - 1) * normalize(u, dim=1)
    ### END SOLUTION


def torus_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 2 n)."""
    ### BEGIN SOLUTION
    pairs, u = z.unflatten(1, (-1, 2)), noise.unflatten(1, (-1, 2))
    u = u - (u * pairs).sum(-1, keepdim=True) * pairs
    return math.sqrt(z.shape[1] // 2) * normalize(u.flatten(1), dim=1)
    ### END SOLUTION


def rotation_probe(z, noise):
    """Tangent vectors at z, shapes (batch, 9)."""
    ### BEGIN SOLUTION
    x, u = z.unflatten(1, (3, 3)), noise.unflatten(1, (3, 3))
    turned = x.mT @ u
    return math.sqrt(3) * normalize((x @ (turned - turned.mT) / 2).flatten(1), dim=1)
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "probes_check", "locked": true, "schema_version": 3, "solution": false, "task": false}
def check_probe(probe, manifold, seed, moments=False):
    g = runtime.generator(seed)
    z = manifold.uniform([1], g, LIKE).expand(20_000, -1) if moments else manifold.uniform([50], g, LIKE)
    v = probe(z, torch.randn(z.shape, dtype=F64, generator=g))
    assert v is not None and v.shape == z.shape, "a probe has the shape of z"
    same(manifold.tangent(z, v), v, f"{manifold!r}: the part of your probe that is tangent, against the probe")
    lengths = v.square().sum(1)
    assert (lengths - lengths[0]).abs().max() < 1e-9, f"{manifold!r}: your probes have different lengths"
    if moments:
        frame = manifold.frame(z[0])
        off = (v.T @ v / len(v) - frame @ frame.T).abs().max().item()
        assert off < 0.06, f"{manifold!r}: the mean of v v^T is off by {off:.2f} from the projector"
    else:
        assert lengths[0] > 1e-3, f"{manifold!r}: your probe is zero"


# %% nbgrader={"grade": true, "grade_id": "probes_sphere", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check_probe(sphere_probe, Sphere(2), 20)
### BEGIN HIDDEN TESTS
check_probe(sphere_probe, Sphere(2), 21, moments=True)
check_probe(sphere_probe, Sphere(4), 22, moments=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "probes_torus", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check_probe(torus_probe, Sphere(1, copies=2), 23)
### BEGIN HIDDEN TESTS
check_probe(torus_probe, Sphere(1, copies=2), 24, moments=True)
check_probe(torus_probe, Sphere(1, copies=5), 25, moments=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "probes_rotation", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check_probe(rotation_probe, SO3(), 26)
### BEGIN HIDDEN TESTS
check_probe(rotation_probe, SO3(), 27, moments=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: a normal on the rotations (3 points)
#
# Draw a rotation vector from $\mathcal N(0,s^2I_3)$: its direction is an axis, its length $\rho$ an angle in radians. The rotation by that angle about that axis has the density `rotation_density`, a function of the angle $\theta\in(0,\pi]$ of the rotation alone. Two things to mind:
#
# - The map from vectors to rotations squeezes volume: a shell of vectors with length $\rho$ has the area $4\pi\rho^2$, the rotations with angle $\rho$ only $4\pi\cdot(2-2\cos\rho)$.
# - Several vectors give the same rotation: with $\theta$ about an axis, also $\theta+2\pi j$ for every integer $j$, negative ones included. Sum over enough of them.

# %% nbgrader={"grade": false, "grade_id": "wrapped", "locked": false, "schema_version": 3, "solution": true, "task": false}
def rotation_density(angle, std):
    """Density per Riemannian volume (8 pi^2 in all) at rotations with these angles; shape of angle."""
    ### BEGIN SOLUTION
    total = torch.zeros_like(angle)
    for j in range(-6, 7):
        radius = angle + 2 * math.pi * j
        normal = (-0.5 * (radius / std) ** 2).exp() / (2 * math.pi * std**2) ** 1.5
        total = total + normal * radius**2 / (2 - 2 * angle.cos())
    return total
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "wrapped_narrow", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
angle = torch.tensor([0.05, 0.1, 0.2], dtype=F64)
flat = (-0.5 * (angle / 0.1) ** 2).exp() / (2 * math.pi * 0.01) ** 1.5
same(
    rotation_density(angle, 0.1) / flat,
    angle**2 / (2 - 2 * angle.cos()),
    "narrow: your density over that of N(0, s^2 I)",
    1e-4,
)
### BEGIN HIDDEN TESTS
angle = torch.tensor([0.5, 1.5, 2.5], dtype=F64)
flat = (-0.5 * (angle / 0.5) ** 2).exp() / (2 * math.pi * 0.25) ** 1.5
same(
    rotation_density(angle, 0.5) / flat, angle**2 / (2 - 2 * angle.cos()), "your density over that of N(0, s^2 I)", 0.05
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "wrapped_integral", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def total(std):
    angle = (torch.arange(4000, dtype=F64) + 0.5) * math.pi / 4000
    values = torch.as_tensor(rotation_density(angle, std))
    return (values * 4 * math.pi * (2 - 2 * angle.cos())).sum().item() * math.pi / 4000


assert abs(total(0.3) - 1) < 1e-3, f"std 0.3: your density integrates to {total(0.3):.3f}"
### BEGIN HIDDEN TESTS
assert abs(total(1.0) - 1) < 2e-3, f"std 1: your density integrates to {total(1.0):.3f}"
assert abs(total(2.0) - 1) < 2e-3, f"std 2: your density integrates to {total(2.0):.3f}"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "wrapped_wide", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def angle_density(angle, std):
    return torch.as_tensor(rotation_density(angle, std)) * 4 * math.pi * (2 - 2 * angle.cos())


spread = angle_density(torch.tensor([1.0, 2.0, 3.0], dtype=F64), 3.5)
assert (spread * math.pi - 1).abs().max() < 0.1, "for a large std every angle should be about equally likely"
### BEGIN HIDDEN TESTS
spread = angle_density(torch.tensor([0.05, 1.0, 3.1], dtype=F64), 4.0)
assert (spread * math.pi - 1).abs().max() < 0.02, "for std 4 every angle should be equally likely, to 2 %"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** where does the density of the *angle*, $4\pi(2-2\cos\theta)\,p(\theta)$, have its maximum for a small $s$, and what does it tend to as $s$ grows? It is not the uniform distribution of rotations (dotted): a wide normal, wrapped, makes all *angles* equally likely.

# %% alt="Density of the rotation angle for four standard deviations: narrow bumps at small angles turn into a constant, unlike the curve (1 - cos) / pi of uniform rotations."
angle = torch.linspace(0.01, math.pi, 200, dtype=F64)
fig, ax = plt.subplots(figsize=(7, 2.4))
for std, colour in zip((0.2, 0.5, 1.0, 3.5), PALETTE):
    ax.plot(
        angle, rotation_density(angle, std) * 4 * math.pi * (2 - 2 * angle.cos()), color=colour, label=f"s = {std:g}"
    )
ax.plot(angle, (1 - angle.cos()) / math.pi, "k:", label="uniform")
ax.set(xlabel="angle θ (radians)", ylabel="density of the angle", title="Wrapped normals on SO(3)")
ax.legend()
plt.show()


# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# The following functions are meant to be the training loss of a free-form flow on the sphere $S^2$ with uniform latents, and the evaluation of its density. All run without complaint.
#
# - `project` puts points onto the sphere;
# - `make_probe` makes a tangent probe from normal noise;
# - `flow_loss` is the mean over the batch of $-\log p_Z-s(x)+\beta\lVert x-x_1\rVert^2$. Its gradient in the encoder's parameters must be that of the likelihood when the decoder is the exact inverse;
# - `decoder_log_prob` is the log-density of the decoder's side, at $g(f(x))$.

# %% nbgrader={"grade": false, "grade_id": "broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def project(y):
    return y / y.square().sum(-1, keepdim=True).sqrt()


def make_probe(z, noise):
    u = noise - (noise * z).sum(-1, keepdim=True) * z
    return math.sqrt(3) * u / u.norm(dim=-1, keepdim=True)


def flow_loss(encoder, decoder, x, noise, beta):
    x = x.detach().requires_grad_()
    z = project(encoder(x))
    v = make_probe(z.detach(), noise)
    x1 = project(decoder(z))
    u = torch.zeros_like(x1, requires_grad=True)
    pulled_back = torch.autograd.grad(x1, z, u, create_graph=True)[0]
    pushed = torch.autograd.grad(pulled_back, u, v, create_graph=True)[0]  # g'(z) v
    pulled = torch.autograd.grad(z, x, v, create_graph=True)[0]  # v^T f'(x)
    surrogate = (pulled * pushed).sum(-1)
    return (math.log(4 * math.pi) - surrogate + beta * (x - x1).square().sum(-1)).mean()


def decoder_log_prob(encoder, decoder, x):
    sphere = Sphere(2)
    z = project(encoder(x))
    x1 = project(decoder(z))
    inner = sphere.frame(x1).mT @ jacobian(decoder, z) @ sphere.frame(z)
    return -math.log(4 * math.pi) + torch.linalg.slogdet(inner).logabsdet


# %% [markdown]
# There are four faults in the last three functions, and none in the first. Do not stare at them; experiment. Linear networks $A$ and $A^{-1}$ are an exact inverse, and task 1 knows the answer for them. Then write the functions that need repair once more, whole and under the same names.

# %% nbgrader={"grade": false, "grade_id": "faults", "locked": false, "schema_version": 3, "solution": true, "task": false}
### BEGIN SOLUTION
def make_probe(z, noise):  # noqa: F811
    u = noise - (noise * z).sum(-1, keepdim=True) * z
    return math.sqrt(2) * u / u.norm(dim=-1, keepdim=True)


def flow_loss(encoder, decoder, x, noise, beta):  # noqa: F811
    x = x.detach().requires_grad_()
    z = project(encoder(x))
    v = make_probe(z.detach(), noise)
    x1 = project(decoder(z))
    u = torch.zeros_like(x1, requires_grad=True)
    pulled_back = torch.autograd.grad(x1, z, u, create_graph=True)[0]
    pushed = torch.autograd.grad(pulled_back, u, v, retain_graph=True)[0].detach()  # g'(z) v
    pulled = torch.autograd.grad(z, x, v, create_graph=True)[0]  # v^T f'(x)
    surrogate = (pulled * pushed).sum(-1)
    return (math.log(4 * math.pi) - surrogate + beta * (x - x1).square().sum(-1)).mean()


def decoder_log_prob(encoder, decoder, x):  # noqa: F811
    sphere = Sphere(2)
    z = project(encoder(x))
    x1 = project(decoder(z))
    inner = sphere.frame(x1).mT @ jacobian(lambda z: project(decoder(z)), z) @ sphere.frame(z)
    return -math.log(4 * math.pi) - torch.linalg.slogdet(inner).logabsdet


### END SOLUTION

# %% nbgrader={"grade": false, "grade_id": "faults_linear", "locked": true, "schema_version": 3, "solution": false, "task": false}
def linear_pair(seed):
    a = random_matrix(3, seed)
    encoder, decoder = (torch.nn.Linear(3, 3, bias=False).double() for _ in range(2))
    with torch.no_grad():
        encoder.weight.copy_(a)
        decoder.weight.copy_(torch.linalg.inv(a))
    return a, encoder, decoder


# %% nbgrader={"grade": true, "grade_id": "faults_length", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
g = runtime.generator(40)
z, noise = on_sphere(3, 40_000, 41)[:1].expand(40_000, -1), torch.randn(40_000, 3, dtype=F64, generator=g)
v = make_probe(z, noise)
mean_square = v.square().sum(1).mean().item()
assert (v * z).sum(1).abs().max() < 1e-9, "the probe is not tangent"
### BEGIN HIDDEN TESTS
trace = Sphere(2).frame(z[0])
off = (v.T @ v / len(v) - trace @ trace.T).abs().max().item()
assert off < 0.05, f"the mean of v v^T is off by {off:.2f} from the projector onto the tangent space"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_gradient", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def right_probe(z, noise):
    v = noise - (noise * z).sum(-1, keepdim=True) * z
    return math.sqrt(2) * v / v.norm(dim=-1, keepdim=True)


def check_gradient(seed, batch=4000):
    """Mean gradient for the encoder, over many probes, against the exact one, with inverse networks."""
    a, encoder, decoder = linear_pair(seed)
    x = on_sphere(3, batch, seed + 1)
    loss = flow_loss(encoder, decoder, x, torch.randn(x.shape, dtype=F64, generator=runtime.generator(seed)), 1.0)
    got = torch.autograd.grad(loss, encoder.weight)[0]
    weight = a.clone().requires_grad_()
    exact = torch.autograd.grad(-(weight.det().abs().log() - 3 * (x @ weight.T).norm(dim=1).log()).mean(), weight)[0]
    return ((got * exact).sum() / exact.square().sum()).item()


share = check_gradient(42)
assert share > 0.3, f"the gradient for the encoder has {share:.2f} of the exact one's length along it"
### BEGIN HIDDEN TESTS
own_probe, make_probe = make_probe, right_probe  # the length of your probe has a test of its own
x = on_sphere(3, 30, 54)
for seed in (43, 44):
    share = check_gradient(seed)
    assert abs(share - 1) < 0.15, f"the gradient for the encoder has {share:.2f} of the exact one's length along it"
a, encoder, decoder = linear_pair(53)
loss = flow_loss(encoder, decoder, x, noise[: len(x)], 1.0)
own = torch.autograd.grad(loss, decoder.weight, materialize_grads=True)[0].abs().max().item()
assert own < 1e-9, "the decoder is the exact inverse, and yet it gets a gradient"
with torch.no_grad():
    decoder.weight += 0.1 * torch.randn(3, 3, dtype=F64, generator=runtime.generator(55))
parts = [encoder.weight, decoder.weight]
double, single = (
    torch.autograd.grad(flow_loss(encoder, decoder, x, noise[: len(x)], beta), parts) for beta in (2.0, 1.0)
)
error = (x - project(decoder(project(encoder(x))))).square().sum(-1).mean()
for two, one, wanted in zip(double, single, torch.autograd.grad(error, parts), strict=True):
    same(two - one, wanted, "the gradient of the reconstruction error")
make_probe = own_probe
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_jacobian", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
a, encoder, decoder = linear_pair(45)
x = on_sphere(3, 20, 46)
wanted = a.det().abs().log() - 3 * (x @ a.T).norm(dim=1).log() - math.log(4 * math.pi)
got = decoder_log_prob(encoder, decoder, x)
spread = (torch.as_tensor(got).detach() - wanted).std().item()
opposite = (torch.as_tensor(got).detach() + wanted).std().item()
assert min(spread, opposite) < 1e-6, "decoder_log_prob is off by an amount that varies from point to point"
### BEGIN HIDDEN TESTS
a, encoder, decoder = linear_pair(47)
x = on_sphere(3, 20, 48)
change = a.det().abs().log() - 3 * (x @ a.T).norm(dim=1).log()
got = decoder_log_prob(encoder, decoder, x).detach() + math.log(4 * math.pi)
assert min((got - change).abs().max(), (got + change).abs().max()) < 1e-6, "the volume change is not right"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "faults_sign", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
a, encoder, decoder = linear_pair(49)
x = on_sphere(3, 20_000, 50)
density = torch.as_tensor(decoder_log_prob(encoder, decoder, x)).detach()
covariance = torch.linalg.inv(a.T @ a)
axis = torch.linalg.eigh(covariance).eigenvectors[:, -1]
aligned = torch.corrcoef(torch.stack([density, (x @ axis).abs()]))[0, 1].item()
assert aligned > 0, "the density is low where it should be high"
### BEGIN HIDDEN TESTS
for seed in (51, 52):
    a, encoder, decoder = linear_pair(seed)
    whole = decoder_log_prob(encoder, decoder, on_sphere(3, 40_000, seed)).detach().exp() * 4 * math.pi
    assert abs(whole.mean() - 1) < 5 * whole.std() / 200, f"the density integrates to {whole.mean():.3f}"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: predict, then measure: how long is a probe? (5 points)
#
# A flow on $S^2$ has the fixed latent density vMF($\kappa$), and data from vMF($\kappa$) as well: the identity would be perfect. Someone trains with probes that are $\sqrt\lambda$ times too long.
#
# **Predict** (1 point, read by a person). What does such a training maximise? What do samples look like for $\lambda=2$, compared with the data, and what for $\lambda=\frac12$: more concentrated, or less? Does it matter if the latent density is uniform? Write your reasons before you run anything below.

# %% [markdown] nbgrader={"grade": true, "grade_id": "length_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The gradient of the log-determinant is multiplied by $\lambda$, so training maximises $\mathbb E[\log p_Z(f)+\lambda\log|\det|]=\lambda\,\mathbb E[\log p_Z^{1/\lambda}(f)+\log|\det|]$: the likelihood for latents $\propto p_Z^{1/\lambda}$, which is vMF($\kappa/\lambda$). For $\lambda=2$ the encoder spreads the data out to vMF($\kappa/2$). Its inverse pulls points together; fed with vMF($\kappa$) it makes samples that are too concentrated. For $\lambda=\frac12$ the other way round. A uniform density stays uniform under any power, so only the weight of the penalties changes.
#
# *Marks.* ½ for the effective latent density; ½ for both directions and the uniform case.

# %% [markdown]
# **Then write it down.** `final_kl` is the KL divergence of the data from the flow's samples after perfect training with the factor $\lambda$, in nats. With $C(\kappa)=\kappa/(4\pi\sinh\kappa)$ and the mean height $A(\kappa)=\coth\kappa-1/\kappa$ it has a closed form. `mean_height` is what you expect for the mean of $x_3$ under the *effective* latent density, the vMF with its axis along $x_3$ which the encoder makes of the data.
#
# `measured_kl` trains a flow: `train_flow` does the work if you hand it a function of $z$ that returns probes of shape (1, batch, 3). Return the mean over `points` of the data's log-density minus the flow's, and nothing else. `tangent_probes(SPHERE, 1, generator)` makes probes of the right length.

# %% nbgrader={"grade": false, "grade_id": "length_train", "locked": true, "schema_version": 3, "solution": false, "task": false}
SPHERE = Sphere(2)


def pole(kappa):
    return VonMisesFisherMixture(torch.tensor([[0.0, 0.0, 1.0]]), float(kappa))


def train_flow(kappa, probes, seed=0, num_steps=150):
    """A trained ManifoldFlow with vMF(kappa) latents on data from vMF(kappa)."""
    torch.manual_seed(seed)
    law, g = pole(kappa), runtime.generator(seed)
    flow = ManifoldFlow(*(residual_mlp(3, width=32, depth=3) for _ in range(2)), pole(kappa), SPHERE)
    fit(
        flow,
        lambda: flow.loss(law.sample([128], g), generator=g, beta=50, beta_cycle=3, probes=probes),
        num_steps=num_steps,
        lr=8e-3,
        schedule="warmup_cosine",
        clip_norm=1.0,
        progress=False,
    )
    return flow


# %% nbgrader={"grade": false, "grade_id": "length", "locked": false, "schema_version": 3, "solution": true, "task": false}
def final_kl(kappa, ratio):
    """KL divergence in nats for probes that are sqrt(ratio) times too long."""
    ### BEGIN SOLUTION
    k = kappa / ratio
    log_c = [math.log(c / (4 * math.pi * math.sinh(c))) for c in (k, kappa)]
    return (k - kappa) * (1 / math.tanh(k) - 1 / k) + log_c[0] - log_c[1]
    ### END SOLUTION


def mean_height(kappa, ratio):
    """Mean of x_3 of the data's latents after training with such probes."""
    ### BEGIN SOLUTION
    return 1 / math.tanh(kappa / ratio) - ratio / kappa
    ### END SOLUTION


def measured_kl(kappa, ratio, points, generator):
    """Mean over points, drawn from vMF(kappa), of its log-density minus that of a trained flow."""
    ### BEGIN SOLUTION
    draw = tangent_probes(SPHERE, 1, generator)
    flow = train_flow(kappa, lambda z: math.sqrt(ratio) * draw(z))
    with torch.no_grad():
        return (pole(kappa).log_prob(points) - flow.log_prob(points)).mean().item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "length_formula", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_formula(kappa, ratio):
    h = torch.linspace(-1, 1, 20_001, dtype=F64)
    log_p, log_q = (c * h + math.log(c / (2 * math.sinh(c))) for c in (kappa / ratio, kappa))
    wanted = torch.trapezoid(log_p.exp() * (log_p - log_q), h).item()
    got = number(final_kl(kappa, ratio), "final_kl")
    assert abs(got - wanted) < 1e-5, f"kappa = {kappa}, lambda = {ratio}: {got:.4f} nats are not right"


check_formula(3.0, 1.5)
assert abs(number(final_kl(5.0, 1.0), "final_kl")) < 1e-9, "probes of the right length should leave no divergence"
### BEGIN HIDDEN TESTS
check_formula(3.0, 0.5)
check_formula(8.0, 2.0)
check_formula(0.7, 3.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "length_height", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_height(kappa, ratio):
    h = torch.linspace(-1, 1, 20_001, dtype=F64)
    p = (kappa / ratio * h).exp()
    wanted = (torch.trapezoid(p * h, h) / torch.trapezoid(p, h)).item()
    got = number(mean_height(kappa, ratio), "mean_height")
    assert abs(got - wanted) < 1e-4, f"kappa = {kappa}, lambda = {ratio}: a mean height of {got:.4f} is not right"


check_height(3.0, 1.0)
### BEGIN HIDDEN TESTS
check_height(3.0, 2.0)
check_height(4.0, 0.5)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "length_measured", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
points = pole(3).sample([4000], runtime.generator(60))
got = number(measured_kl(3, 2.0, points, runtime.generator(61)), "measured_kl")
assert 0.08 < got < 0.40, f"lambda = 2: you measure {got:.3f} nats"
### BEGIN HIDDEN TESTS
got = number(measured_kl(3, 1.0, points, runtime.generator(62)), "measured_kl")
assert abs(got) < 0.03, f"lambda = 1: you measure {got:.3f} nats"
trains, seen = train_flow, []


def train_flow(kappa, probes, **_):
    z = on_sphere(3, 20, 65).float()
    seen.append(probes(z).square().sum(-1).mean().item())
    return ManifoldFlow(torch.nn.Identity(), torch.nn.Identity(), pole(kappa), SPHERE)


got = number(measured_kl(3, 0.5, points, runtime.generator(62)), "measured_kl")
train_flow = trains
assert seen, "you do not train with train_flow"
assert abs(seen[0] - 1) < 0.01, f"lambda = 1/2: your probes have the squared length {seen[0]:.3f}, expected 1"
assert abs(got) < 1e-5, "the data's log-density minus that of the flow that train_flow returns is something else"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** the heights of samples for three lengths of probes, against those of the data (dotted).

# %% alt="Densities of the height of samples for too short, right and too long probes: too short ones give too flat a curve, too long ones too steep a curve."
fig, ax = plt.subplots(figsize=(7, 2.4))
h = torch.linspace(-1, 1, 100)
ax.plot(h, 3 * (3 * h).exp() / (2 * math.sinh(3)), "k:", label="data")
for ratio, colour in zip((0.5, 1.0, 2.0), PALETTE):
    draw = tangent_probes(SPHERE, 1, runtime.generator(63))
    flow = train_flow(3, lambda z, ratio=ratio, draw=draw: math.sqrt(ratio) * draw(z))
    with torch.no_grad():
        height = flow.sample([8000], generator=runtime.generator(64))[:, 2]
        latent = flow.encode(points)[:, 2].mean()
    ax.hist(height.numpy(), 40, density=True, histtype="step", color=colour, label=f"λ = {ratio:g}")
    print(
        f"lambda = {ratio:g}: mean height of the latents {latent:.3f}, expected {mean_height(3, ratio):.3f}; of samples {height.mean():.3f}"
    )
ax.set(xlabel="height $x_3$", ylabel="density", title="Samples, by length of the probes")
ax.legend()
plt.show()


# %% [markdown]
# **Read it** (1 point, read by a person). Does the measurement agree with your prediction, in direction and in size? If the data's density were unknown, as it always is: by which number, which you can compute from the trained flow and data, would you find the fault?

# %% [markdown] nbgrader={"grade": true, "grade_id": "length_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Direction and size agree: latents have the mean height of vMF($\kappa/\lambda$), and samples are too concentrated for $\lambda=2$. Without the truth, compare the latents of held-out data with the base density: their mean height is $A(\kappa/\lambda)$ and not $A(\kappa)$, which a test on the latents shows at once. The integral of the density says nothing, as the flow is a proper density, only of the wrong law; a held-out likelihood alone says nothing either, unless a right training stands beside it.
#
# *Marks.* ½ for the comparison with numbers; ½ for a check that needs no truth (latents of the data against the base, or samples against data).

# %% [markdown]
# ## Task 6: copies, clusters and what a likelihood says (5 points)
#
# - `share_of_copies` is the share of test points that are copies of a training point, up to `tolerance` in Euclidean distance.
# - `kernel_nll` is the mean negative log-likelihood, on $S^2$, of a kernel density estimate: a vMF bump of concentration $\kappa$ on each training point, with weight $1-\epsilon$ in all, and the uniform density with weight $\epsilon$. It must be right for $\kappa=10^7$, for points that were once stored in single precision, as the airports are. *Mind:* for unit vectors $\kappa(x\cdot y-1)=-\frac\kappa2\lVert x-y\rVert^2$, but a vector that was rounded is no longer of length 1. Take the form with the distance.

# %% nbgrader={"grade": false, "grade_id": "copies", "locked": false, "schema_version": 3, "solution": true, "task": false}
def share_of_copies(test, train, tolerance=1e-9):
    """Between 0 and 1; shapes (n, 3) and (m, 3)."""
    ### BEGIN SOLUTION
    distance = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance.min(1).values <= tolerance).double().mean().item()
    ### END SOLUTION


def kernel_nll(train, test, kappa, epsilon=0.05):
    """Mean over test points, in nats."""
    ### BEGIN SOLUTION
    squares = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist").square()
    log_scale = math.log(kappa / (2 * math.pi)) - math.log1p(-math.exp(-2 * kappa)) - math.log(len(train))
    bumps = torch.logsumexp(-0.5 * kappa * squares, 1) + log_scale + math.log(1 - epsilon)
    floor = torch.full_like(bumps, math.log(epsilon / (4 * math.pi)))
    return -torch.logaddexp(bumps, floor).mean().item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "copies_count", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
some = on_sphere(3, 50, 70)
assert abs(number(share_of_copies(some[:10], some[5:]), "share_of_copies") - 0.5) < 1e-9, "five of ten are copies"
### BEGIN HIDDEN TESTS
moved = normalize(some + 1e-6, dim=1)
assert number(share_of_copies(moved, some), "share_of_copies") == 0, "points that were moved by 1e-6 are no copies"
assert number(share_of_copies(moved, some, 1e-4), "share_of_copies") == 1, "with a tolerance of 1e-4 they are"
again = some[[0, 0, 0, 1]]
assert number(share_of_copies(again, some[:1]), "share_of_copies") == 0.75, "each record counts"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "copies_kernel", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_kernel(kappa, seed, epsilon=0.05):
    train, test = on_sphere(3, 30, seed), on_sphere(3, 20, seed + 1)
    law = VonMisesFisherMixture(train, float(kappa))
    wanted = -torch.logaddexp(
        law.log_prob(test) + math.log(1 - epsilon), torch.tensor(math.log(epsilon / (4 * math.pi)))
    ).mean()
    got = number(kernel_nll(train, test, float(kappa), epsilon), "kernel_nll")
    assert abs(got - wanted) < 1e-6, f"kappa = {kappa:g}: {got:.4f} nats are not right"


check_kernel(5, 71)
### BEGIN HIDDEN TESTS
check_kernel(300, 73)
check_kernel(1, 75, epsilon=0.5)
train = on_sphere(3, 1, 77).float().double()
near = normalize(train + 1e-4 * torch.tensor([[1.0, -1.0, 0.5]], dtype=F64), dim=1).float().double()
exact = 0.5 * 1e7 * (near - train).square().sum().item() - math.log(1e7 / (2 * math.pi)) - math.log(0.95)
got = number(kernel_nll(train, near, 1e7), "kernel_nll")
assert abs(got - exact) < 1e-3, f"kappa = 1e7, a test point very near: {got:.3f} nats, expected {exact:.3f}"
### END HIDDEN TESTS

# %% [markdown]
# Now on real places: 1500 airports, each recorded once; and the same, each recorded one to four times before the split. **What to look for:** where each curve has its minimum.

# %% alt="Held-out negative log-likelihood of the kernel estimate against its concentration, with and without copies: a minimum without, a fall without end with them."
g = runtime.generator(80)
some = airports()[0].double()
some = some[torch.randperm(len(some), generator=g)[:1500]]
records = some.repeat_interleave(torch.randint(1, 5, (len(some),), generator=g), 0)
kappas = [10.0**k for k in range(1, 8)]
fig, ax = plt.subplots(figsize=(7, 2.4))
for name, points_, colour in (("once", some, PALETTE[0]), ("one to four times", records, PALETTE[1])):
    train, _, test = split_points(points_, generator=g)
    ax.semilogx(kappas, [kernel_nll(train, test, k) for k in kappas], "o-", ms=3, color=colour, label=name)
    print(f"{name}: {100 * share_of_copies(test, train):.0f} % of the test points are copies")
ax.axhline(math.log(4 * math.pi), color="#666666", ls=":", label="uniform")
ax.set(xlabel="concentration κ", ylabel="NLL (nats)", title="Kernel estimate of airports, held out")
ax.legend()
plt.show()

# %% [markdown]
# **A review** (3 points, read by a person). A paper proposes a flow on the sphere. Its table reports a negative log-likelihood of -7.9 nats on volcanic eruptions, against -2.3 for a competitor, on a random split of 827 eruptions at 267 places, and calls this a better model. Its flow adds noise of standard deviation $\sigma$ to the training points, and the smallest of four values of $\sigma$ was best. The integral of the density was not computed. Write the paragraph of the review, in at most 200 words: what does the number measure, which two experiments do you ask for, and which conclusion would you accept?
#
# One point is for what the number measures, with an estimate; one for experiments that could prove you wrong; one for the conclusion.

# %% [markdown] nbgrader={"grade": true, "grade_id": "review", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.* With 73 % of the test points exact copies of training points, the likelihood has no bound: a model that puts the share $w$ of its mass into bumps of concentration $\kappa$ on $N$ training points gains $\log(w\kappa/2\pi N)$ nats or so at each copy. From $\kappa=10^6$ to $10^7$ this alone adds 2.3 nats for each copy, 1.7 on average. The number measures how narrow the bumps may get, which is the noise $\sigma$, and how well a method can make narrow bumps; a kernel estimate without any learning does it best.
#
# I ask for (1) the same table on the 267 distinct places, or with all eruptions of a place in the same part of the split, and with a kernel density estimate whose width is chosen on validation points as a row; (2) the integral of the density over the sphere by a grid fine enough for its bumps, with both methods at several $\sigma$. If the order is the same there, it is about models.
#
# I would accept that the flow can represent sharper densities than its competitor. I would not accept that it generalises better.
#
# *Marks.* 1 for memory of copies without a bound (½) and a number (½). 1 for a split by place or without copies (½) and a baseline or the integral (½). 1 for a conclusion that separates sharpness from generalisation.
