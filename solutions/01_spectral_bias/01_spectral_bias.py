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
# # Exercises 01: Spectral bias
#
# Read [chapter 01](../../chapters/01_spectral_bias.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 Kinks, and a sign | 5 | 5 | |
# | 2 A mesh seen by a wave | 4 | 4 | |
# | 3 Find the faults | 4 | 4 | |
# | 4 Predict, then measure | 4 | 4 | |
# | 5 Label noise that hurts | 5 | 3 | 2 |
# | 6 Sine instead of ReLU | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. You may use `refimpl` to check yourself.
#
# **Conventions**, as in the chapter.
#
# - Theory counts radians: $\tilde f(k)=\int f(x)\,e^{-ik\cdot x}\,dx$, with $k$ in radians per unit of $x$.
# - Experiments count cycles: for samples at $z_j=j/n$, $j=0,\dots,n-1$, the coefficient is $F_k=\frac1n\sum_jf(z_j)\,e^{-2\pi ikj/n}$. A sine of amplitude $A$ and frequency $k$ has $|F_k|=A/2$.
# - Tensors come in double precision where precision matters; keep it. Loops, NumPy and PyTorch are all welcome inside your functions.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from refimpl import runtime
from refimpl.data import digits, flower, grid, radial_noise
from refimpl.nets import Stack, mlp
from refimpl.plots import PALETTE, label_panels, say, use_course_style
from refimpl.spectral_bias import circulant_energy, coefficients, empirical_ntk
from refimpl.training import fit

use_course_style()


# %% nbgrader={"grade": false, "grade_id": "compare", "locked": true, "schema_version": 3, "solution": false, "task": false}
def same(got, wanted, what, tolerance=1e-4):
    """Raise unless got has the shape of wanted and its values, up to tolerance times the largest of them."""
    assert got is not None, f"{what}: you return nothing"
    got, wanted = torch.as_tensor(got).detach().cpu(), torch.as_tensor(wanted)
    assert got.shape == wanted.shape, f"{what}: you return the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}"
    assert got.isfinite().all(), f"{what}: some of your numbers are not finite"
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    assert error < tolerance, f"{what}: the largest error is {error:.1e} of the largest value"


# %% [markdown]
# ## Task 1: kinks, and a sign (5 points)
#
# ### Any piecewise linear unit (3 points)
#
# Take the activation $\sigma_\alpha(u)=u$ for $u>0$ and $\alpha u$ for $u\le0$: ReLU for $\alpha=0$, leaky ReLU for small $\alpha$, $|u|$ for $\alpha=-1$. A network with one hidden layer is
#
# $$f(x)=\sum_jv_j\,\sigma_\alpha(w_jx+b_j).$$
#
# Derive its transform away from $k=0$, with pencil and paper: where does unit $j$ bend, by how much does its slope jump there *from left to right*, and what do two derivatives do to a transform? Think of $w_j<0$, and of units with $w_j=0$.
#
# Then write it down as `kink_sum`. You can test it on the hat function $\max(0,1-|x|)$, whose transform is $\big(\sin\frac k2/\frac k2\big)^2$. A symmetric function does not see every mistake; find one that does.

# %% nbgrader={"grade": false, "grade_id": "kinks", "locked": false, "schema_version": 3, "solution": true, "task": false}
def kink_sum(w, b, v, k, alpha=0.0):
    """Transform of the network at the frequencies k, none of them 0.

    w, b, v: parameters of the units, shape (width,); k: shape (m,). Returns complex numbers, shape (m,).
    """
    ### BEGIN SOLUTION
    bends = w != 0
    w, b, v = w[bends], b[bends], v[bends]
    jump = (1 - alpha) * v * w.abs()
    return -(jump * torch.exp(1j * k[:, None] * b / w)).sum(1) / k**2
    ### END SOLUTION


# %% [markdown]
# The hat function out of three units that open to the right, then out of three that open to the left, and out of absolute values.

# %% nbgrader={"grade": true, "grade_id": "kinks_hat", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
k = torch.linspace(0.5, 30, 60).double()
hat = (torch.sin(k / 2) / (k / 2)) ** 2
ones, centre, bump = torch.ones(3).double(), torch.tensor([1.0, 0, -1]).double(), torch.tensor([1.0, -2, 1]).double()
same(kink_sum(ones, centre, bump, k), hat, "the hat function")
### BEGIN HIDDEN TESTS
shifted = 2 * torch.exp(-0.7j * k) * 0.5 * (torch.sin(k / 4) / (k / 4)) ** 2
same(kink_sum(ones, 0.5 * centre - 0.7, 4 * bump, k), shifted, "a hat of half width and height 2 around x = 0.7")
same(kink_sum(ones, centre, bump, -k[:7]), hat[:7], "the hat function at negative frequencies")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "kinks_weights", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
left = -torch.tensor([2.0, 1.0, 0.5]).double()
same(kink_sum(left, left * centre, bump / left.abs(), k), hat, "the hat function out of units with w = -2, -1, -0.5")
### BEGIN HIDDEN TESTS
from refimpl.polytopes import shallow_relu_transform

w, b, v = torch.randn(3, 24, generator=runtime.generator(11)).double()
same(kink_sum(w, b, v, k), shallow_relu_transform(w, b, v, k), "a random network with weights of both signs")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "kinks_leaky", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
same(kink_sum(ones, centre, bump / 2, k, alpha=-1.0), hat, "the hat function out of absolute values")
zero = torch.zeros(1).double()
with_idle = [torch.cat(pair) for pair in ((ones, zero), (centre, zero + 1), (bump, zero + 3))]
same(kink_sum(*with_idle, k), hat, "the hat function and a unit with w = 0")
### BEGIN HIDDEN TESTS
from refimpl.polytopes import shallow_relu_transform

w, b, v = torch.randn(3, 9, generator=runtime.generator(12)).double()
for alpha in (0.1, -0.5, 2.0):
    wanted = (1 - alpha) * shallow_relu_transform(w, b, v, k)
    same(kink_sum(w, b, v, k, alpha=alpha), wanted, f"a random network with alpha = {alpha}")
### END HIDDEN TESTS

# %% [markdown]
# ### The sign in Lemma 1 (2 points)
#
# In one dimension the linear regions are intervals $P=[a,b]$ with slopes $g_P$, and the paper's Lemma 1 reads
#
# $$\tilde f(k)=\frac ck\sum_Pg_P\,\tilde1_P(k),\qquad\tilde1_P(k)=\int_a^be^{-ikx}dx,$$
#
# for a continuous $f$ that vanishes outside all intervals. The paper prints $c=+i$. Its own convention for the transform, which is ours, wants either $+i$ or $-i$. Which?
#
# Write `from_slopes` with the right constant and store the constant as `lemma_constant`. Then convince yourself: integrate $\tilde1_P$ by hand, try the hat function, and try a function that is not symmetric. Two wrong signs can cancel.

# %% nbgrader={"grade": false, "grade_id": "lemma", "locked": false, "schema_version": 3, "solution": true, "task": false}
def from_slopes(edges, slopes, k):
    """Transform of the function with the given slopes between the edges, zero outside: Lemma 1 in one dimension.

    edges: rising, shape (n + 1,); slopes: shape (n,); k: frequencies, none of them 0, shape (m,). Returns shape (m,).
    """
    ### BEGIN SOLUTION
    wave = torch.exp(-1j * k[:, None] * edges)
    interval = (wave[:, 1:] - wave[:, :-1]) * 1j / k[:, None]
    return -1j / k * (slopes * interval).sum(1)
    ### END SOLUTION


### BEGIN SOLUTION
lemma_constant = -1j
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "lemma_sign", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
assert lemma_constant in (1j, -1j), f"lemma_constant is {lemma_constant!r}, expected 1j or -1j"
### BEGIN HIDDEN TESTS
assert lemma_constant == -1j, "lemma_constant has the wrong sign"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "lemma_values", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
k = torch.linspace(0.5, 30, 60).double()
wanted = (torch.sin(k / 2) / (k / 2)) ** 2
same(from_slopes(torch.tensor([-1.0, 0, 1]).double(), torch.tensor([1.0, -1]).double(), k), wanted, "the hat function")
### BEGIN HIDDEN TESTS
from refimpl.polytopes import piecewise_linear_transform

edges = torch.tensor([-0.3, 0.1, 0.4, 1.5, 2.0]).double()
heights = torch.tensor([0.0, 2.0, -1.0, 0.5, 0.0]).double()
wanted = piecewise_linear_transform(edges, heights, k)
same(from_slopes(edges, heights.diff() / edges.diff(), k), wanted, "a function without symmetry")
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: a mesh seen by a wave (4 points)
#
# A continuous piecewise linear function on the plane is often given as a *mesh*: points, triangles between them, and the function's height at each point. Inside a triangle $T$ the function is linear with a constant gradient $g_T$; outside the mesh, and on its outer boundary, it is zero. Lemma 1 with the right sign, and Lemma 2 (the divergence theorem), give
#
# $$\tilde f(k)=-\frac i{\|k\|^2}\sum_T(g_T\cdot k)\,\tilde1_T(k),\qquad
# \tilde1_T(k)=\frac i{\|k\|^2}\sum_{\text{sides }S\text{ of }T}(k\cdot n_S)\int_Se^{-ik\cdot x}\,ds,$$
#
# with the unit normals $n_S$ that point out of the triangle. Write `mesh_transform`, for many $k$ at once. It must cope with what a mesh can do to you:
#
# - the corners of a triangle come in any order, clockwise or not;
# - $k=0$, where the transform is the volume under $f$;
# - waves that meet a side head-on, $k\cdot(b-a)=0$ for the side from $a$ to $b$, and waves that *almost* do. Near that point a difference of two exponentials cancels, and digits are lost; write the integral over the side so that nothing cancels, and keep a relative error below $10^{-8}$.

# %% nbgrader={"grade": false, "grade_id": "mesh", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mesh_transform(points, triangles, heights, k):
    """Transform of the piecewise linear function on a mesh.

    points: shape (p, 2); triangles: three numbers of points each, shape (t, 3); heights: shape (p,); k: shape (m, 2).
    Returns complex numbers, shape (m,).
    """
    ### BEGIN SOLUTION
    corners, values = points[triangles], heights[triangles]  # (t, 3, 2), (t, 3)
    arms = corners[:, 1:] - corners[:, :1]
    gradient = torch.linalg.solve(arms, (values[:, 1:] - values[:, :1])[..., None])[..., 0]
    area = torch.linalg.det(arms) / 2  # negative for clockwise corners
    a, b = corners, corners.roll(-1, 1)
    side = b - a
    normal = torch.stack([side[..., 1], -side[..., 0]], -1) * area.sign()[:, None, None]  # as long as the side
    half = torch.einsum("mi,tsi->mts", k, side) / 2
    along = torch.sinc(half / math.pi) * torch.exp(-0.5j * torch.einsum("mi,tsi->mts", k, a + b))
    square = k.square().sum(-1)
    divisor = torch.where(square > 0, square, 1.0)
    indicator = 1j * (torch.einsum("mi,tsi->mts", k, normal) * along).sum(-1) / divisor[:, None]
    total = -1j * (k @ gradient.T * indicator).sum(-1) / divisor
    volume = (area.abs() * values.mean(1)).sum()
    return torch.where(square > 0, total, volume.to(total.dtype))
    ### END SOLUTION


# %% [markdown]
# The tests use the pyramid $\max(0,1-|x_1|-|x_2|)$ on four triangles. `star` makes meshes of its kind with more corners.

# %% nbgrader={"grade": false, "grade_id": "mesh_data", "locked": true, "schema_version": 3, "solution": false, "task": false}
def star(outline, summit, height):
    """Mesh of a pyramid over a polygon: outline shape (p, 2), counter-clockwise; summit shape (2,)."""
    points = torch.cat([summit[None], outline])
    n = len(outline)
    triangles = torch.tensor([[0, 1 + i, 1 + (i + 1) % n] for i in range(n)])
    heights = torch.zeros(n + 1).double()
    heights[0] = height
    return points, triangles, heights


diamond = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]).double()
pyramid = star(diamond, torch.zeros(2).double(), 1.0)

# %% nbgrader={"grade": true, "grade_id": "mesh_generic", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
some = torch.tensor([[5.0, 1], [-2, 7], [0.3, 0.1]]).double()
wanted = torch.tensor([0.1722093, 0.0320705, 0.6633405]).double()
### BEGIN HIDDEN TESTS
from refimpl.polytopes import Region, network_transform


def by_regions(points, triangles, heights, k):
    regions = []
    for corners, values in zip(points[triangles], heights[triangles]):
        gradient = torch.linalg.solve(corners[1:] - corners[0], values[1:] - values[0])
        regions.append(Region(corners, gradient, values[0] - gradient @ corners[0]))
    return network_transform(regions, k)


crooked = torch.tensor([[1.0, 0.1], [0.4, 0.9], [-0.8, 0.5], [-0.6, -0.7], [0.5, -0.8]]).double()
other = star(crooked, torch.tensor([0.2, -0.1]).double(), 2.5)
many = 6 * torch.randn(300, 2, generator=runtime.generator(21)).double()
### END HIDDEN TESTS
same(mesh_transform(*pyramid, some), wanted, "the pyramid at three frequencies")
### BEGIN HIDDEN TESTS
same(mesh_transform(*other, many), by_regions(*other, many), "another pyramid at 300 frequencies")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "mesh_order", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
points, triangles, heights = pyramid
turned = torch.stack([t.roll(i).flip(0) if i % 2 else t.roll(i) for i, t in enumerate(triangles)])
reference = mesh_transform(points, triangles, heights, some)
same(mesh_transform(points, turned, heights, some), reference, "the same mesh, corners in another order")
### BEGIN HIDDEN TESTS
points, triangles, heights = other
same(mesh_transform(points, triangles.flip(1), heights, many), by_regions(*other, many), "a mesh in clockwise order")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "mesh_head_on", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
head_on = torch.tensor([[3.0, -3], [4, 0], [0, -4]]).double()
wanted = torch.tensor([0.2304517, 0.2973002, 0.2973002]).double()
same(mesh_transform(*pyramid, head_on), wanted, "the pyramid at waves that meet a side head-on")
### BEGIN HIDDEN TESTS
tilt = torch.logspace(-12, -5, 60).double()
for mesh in (pyramid, other):
    side = mesh[0][1:].roll(-1, 0) - mesh[0][1:]
    side = side / side.norm(dim=1, keepdim=True)
    normal = torch.stack([side[:, 1], -side[:, 0]], 1)
    nearly = 4 * (normal[:, None] + tilt[:, None] * side[:, None]).flatten(0, 1)
    wanted = by_regions(*mesh, nearly)
    same(mesh_transform(*mesh, nearly), wanted, "a pyramid at waves that almost meet a side head-on", 1e-8)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "mesh_laws", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
origin = torch.zeros(1, 2).double()
same(mesh_transform(*pyramid, origin), torch.tensor([2 / 3]), "the pyramid at k = 0")
points, triangles, heights = pyramid
shift = torch.tensor([0.5, -2.0]).double()
moved = mesh_transform(points + shift, triangles, heights, some)
reference = torch.exp(-1j * (some @ shift)) * torch.as_tensor(mesh_transform(*pyramid, some))
same(moved, reference, "the pyramid, moved by (0.5, -2): which phase should that give?")
### BEGIN HIDDEN TESTS
wide = star(3 * diamond, torch.zeros(2).double(), 1.5)
same(mesh_transform(*wide, torch.cat([origin, some / 3])).real[0], torch.tensor(9.0), "a pyramid at k = 0 among others")
reference = 13.5 * torch.as_tensor(mesh_transform(*pyramid, some))
same(mesh_transform(*wide, some / 3), reference, "the pyramid, 3 times as wide and 1.5 times as high")
### END HIDDEN TESTS

# %% [markdown]
# With your function, look at Theorem 1. The pyramid's gradient jumps across its four outer sides and across the two axes. Predict for each of the directions $(1,1)$, $(1,0)$, $(2,1)$, $(3,5)$ whether $|\tilde f|$ falls like $k^{-2}$ (dashed) or like $k^{-3}$ (dotted). **What to look for:** the envelopes; zeros in between are interference of corners or sides.

# %% alt="Transform of the pyramid against frequency: along (1, 1) and (1, 0) it falls less steeply than along (2, 1) and (3, 5)."
far = torch.logspace(0.5, 3.5, 400).double()
directions = {"(1, 1)": [1.0, 1.0], "(1, 0)": [1.0, 0.0], "(2, 1)": [2.0, 1.0], "(3, 5)": [3.0, 5.0]}
fig, axes = plt.subplots(1, 2, sharey=True)
for i, (name, u) in enumerate(directions.items()):
    u = torch.tensor(u).double()
    decay = torch.as_tensor(mesh_transform(*pyramid, far[:, None] * u / u.norm())).abs()
    axes[i // 2].loglog(far, decay.clamp_min(1e-14), lw=1, color=PALETTE[i], label=f"along {name}")
for ax in axes:
    ax.loglog(far, 12 * far**-2, "k--", lw=0.8)
    ax.loglog(far, 60 * far**-3, "k:", lw=0.8)
    ax.set(xlabel="$\\|k\\|$ (radians per unit)", ylim=(1e-12, 2))
    ax.legend(loc="lower left")
axes[0].set_ylabel("$|\\tilde f(k)|$")
label_panels(axes, ["Two directions", "Two more"])
plt.show()


# %% [markdown]
# ## Task 3: find the faults (4 points)
#
# Somebody wants to know what a network learns, and when. `record_broken` is meant to
#
# - train `network` on `signal`, a function of $z$, by plain gradient descent on the mean squared error, with all points of the grid of our conventions in each step;
# - record at the steps $0$, `every`, $2\cdot$`every`, ... below `steps` what the network is *before* the update of that step, so that the first record shows the untrained network;
# - return three tensors: the steps, shape (times,); the amplitudes at the given frequencies, shape (times, modes), where $A\sin(2\pi kz+\phi)$ has amplitude $A$; and the residuals $|F_k-T_k|/|T_k|$, shape (times, modes), with $F$ the network's coefficients and $T$ the signal's.
#
# It runs without complaint, and draws handsome curves.

# %% nbgrader={"grade": false, "grade_id": "record_broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def record_broken(network, signal, frequencies, *, num_points, steps, lr, every):
    """Train and record; see above. Contains faults."""
    z = torch.linspace(0, 1, num_points)
    target = signal(z)
    wanted = torch.fft.rfft(target)[frequencies] / num_points
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    moments, amplitudes, residuals = [], [], []
    for step in range(steps):
        output = network(z[:, None])[:, 0]
        optimizer.zero_grad()
        (output - target).square().mean().backward()
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                have = torch.fft.rfft(network(z[:, None])[:, 0])[frequencies] / num_points
            moments.append(step)
            amplitudes.append(have.abs())
            residuals.append((have.abs() - wanted.abs()).abs() / wanted.abs())
    return torch.tensor(moments), torch.stack(amplitudes), torch.stack(residuals)


# %% [markdown]
# It has more than one fault. Do not stare at it; experiment. `Wave` is a network of a single sine whose amplitude is its only parameter, so that you know what every record must be. Then write the repaired function as `record`.

# %% nbgrader={"grade": false, "grade_id": "wave", "locked": true, "schema_version": 3, "solution": false, "task": false}
class Wave(nn.Module):
    """z -> amplitude * sin(2 pi frequency z + phase); the amplitude is learned."""

    def __init__(self, frequency, amplitude=0.0, phase=0.0):
        super().__init__()
        self.frequency, self.phase = frequency, phase
        self.amplitude = nn.Parameter(torch.tensor(float(amplitude)))

    def forward(self, z):
        return self.amplitude * torch.sin(2 * math.pi * self.frequency * z + self.phase)


def sines(*frequencies):
    """The signal with a sine of amplitude 1 at each frequency."""
    return lambda z: sum(torch.sin(2 * math.pi * k * z) for k in frequencies)


# %% nbgrader={"grade": false, "grade_id": "record", "locked": false, "schema_version": 3, "solution": true, "task": false}
def record(network, signal, frequencies, *, num_points, steps, lr, every):
    """Train and record; see above."""
    ### BEGIN SOLUTION
    z = torch.arange(num_points) / num_points
    target = signal(z)
    wanted = torch.fft.rfft(target, norm="forward")[frequencies]
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    moments, amplitudes, residuals = [], [], []
    for step in range(steps):
        output = network(z[:, None])[:, 0]
        if step % every == 0:
            have = torch.fft.rfft(output.detach(), norm="forward")[frequencies]
            moments.append(step)
            amplitudes.append(2 * have.abs())
            residuals.append((have - wanted).abs() / wanted.abs())
        optimizer.zero_grad()
        (output - target).square().mean().backward()
        optimizer.step()
    return torch.tensor(moments), torch.stack(amplitudes), torch.stack(residuals)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "record_pure", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
_, amplitude, _ = record(Wave(5, 1.0), sines(4, 5, 6), [4, 5, 6], num_points=64, steps=1, lr=0.0, every=1)
strays = (amplitude[0, [0, 2]] / amplitude[0, 1]).max().item()
assert strays < 1e-3, f"a network of one sine, 5 cycles, also shows {strays:.1%} of its amplitude at 4 or 6 cycles"
### BEGIN HIDDEN TESTS
_, amplitude, _ = record(Wave(9, 2.0), sines(3, 8, 9), [8, 9, 3], num_points=50, steps=2, lr=0.0, every=1)
assert (amplitude[1, [0, 2]] / amplitude[1, 1]).max() < 1e-3, "a network of one sine, 9 cycles, shows other frequencies"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "record_amplitude", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
_, amplitude, _ = record(Wave(5, 3.0), sines(5), [5], num_points=64, steps=1, lr=0.0, every=1)
assert abs(amplitude[0, 0] - 3) < 0.2, f"a sine of amplitude 3 is recorded with amplitude {amplitude[0, 0]:.2f}"
### BEGIN HIDDEN TESTS
_, amplitude, _ = record(Wave(4, -0.7, 1.0), sines(4, 7), [7, 4], num_points=100, steps=1, lr=0.0, every=1)
assert abs(amplitude[0, 1] - 0.7) < 0.06, f"a sine of amplitude 0.7 is recorded with amplitude {amplitude[0, 1]:.2f}"
_, amplitude, _ = record(Wave(4, -0.7, 1.0), lambda z: 2 * sines(4)(z), [4], num_points=100, steps=1, lr=0.0, every=1)
assert abs(amplitude[0, 0] - 0.7) < 0.06, f"with another signal, amplitude 0.7 is recorded as {amplitude[0, 0]:.2f}"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "record_moments", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
moments, amplitude, _ = record(Wave(5), sines(5), [5], num_points=64, steps=10, lr=0.1, every=3)
assert torch.as_tensor(moments).tolist() == [0, 3, 6, 9], f"recorded at the steps {torch.as_tensor(moments).tolist()}"
assert amplitude[0, 0] < 0.01, f"the untrained network is zero, but the first record says {amplitude[0, 0]:.2f}"
### BEGIN HIDDEN TESTS
moments, amplitude, _ = record(Wave(3), sines(3), [3], num_points=80, steps=21, lr=0.2, every=4)
learned = 1 - 0.8 ** torch.arange(0, 21, 4)  # one sine: each step closes a share lr of the gap
progress = torch.as_tensor(amplitude)[:, 0] / amplitude[-1, 0]
same(progress, learned / learned[-1], "the course of training of a single sine", 0.03)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "record_residual", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
_, _, residual = record(Wave(5, 1.0, math.pi / 2), sines(5), [5], num_points=64, steps=1, lr=0.0, every=1)
assert abs(residual[0, 0] - math.sqrt(2)) < 0.1, f"a cosine in place of the sine has the residual {residual[0, 0]:.2f}"
### BEGIN HIDDEN TESTS
for a, phase, wanted in ((1.0, math.pi, 2.0), (1.5, 0.0, 0.5), (0.0, 0.0, 1.0), (-1.0, 2 * math.pi / 3, 1.0)):
    _, _, residual = record(Wave(6, a, phase), sines(6, 2), [2, 6], num_points=90, steps=1, lr=0.0, every=1)
    assert abs(residual[0, 1] - wanted) < 0.1, f"amplitude {a}, phase {phase:.2f}: the residual is {residual[0, 1]:.2f}"
_, _, residual = record(Wave(6, 1.0), lambda z: 2 * sines(6)(z), [6], num_points=90, steps=1, lr=0.0, every=1)
assert abs(residual[0, 0] - 0.5) < 0.05, (
    f"half of a signal of amplitude 2 is learned, the residual is {residual[0, 0]:.2f}"
)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: predict, then measure (4 points)
#
# ### Where the spectrum must end (2 points)
#
# For a ReLU network with one hidden layer, $|\tilde f(k)|=\frac1{k^2}\big|\sum_jv_j|w_j|\,e^{-ikt_j}\big|$ with kinks $t_j=-b_j/w_j$. Let $|w_j|\le w_{\max}$ and $|v_j|\le v_{\max}$; nothing is known about $b_j$.
#
# **Predict.** `cutoff` is the smallest $k^*$ such that *no* such network with `width` units has $|\tilde f(k)|>\varepsilon$ at any $k>k^*$.
#
# **Measure.** `share_beyond` takes the magnitudes of many networks at a list of rising frequencies, and returns for each frequency the share of networks that exceed $\varepsilon$ *there or at any higher frequency of the list*. This is the volume of parameter space of the chapter, $\Xi_\varepsilon(k)$.

# %% nbgrader={"grade": false, "grade_id": "cutoff", "locked": false, "schema_version": 3, "solution": true, "task": false}
def cutoff(width, w_max, v_max, epsilon):
    """Frequency beyond which no network has a component larger than epsilon."""
    ### BEGIN SOLUTION
    return math.sqrt(width * w_max * v_max / epsilon)
    ### END SOLUTION


def share_beyond(magnitude, epsilon):
    """magnitude: shape (networks, frequencies), frequencies rising. Returns shares in [0, 1], shape (frequencies,)."""
    ### BEGIN SOLUTION
    largest_beyond = magnitude.flip(1).cummax(1).values.flip(1)
    return (largest_beyond > epsilon).double().mean(0)
    ### END SOLUTION


# %% [markdown]
# `draw` makes random networks within the bounds, `magnitudes` their spectra.

# %% nbgrader={"grade": false, "grade_id": "draw", "locked": true, "schema_version": 3, "solution": false, "task": false}
def draw(networks, width, w_max, v_max, generator):
    """Parameters w, b, v, each of shape (networks, width); |b| <= 1."""
    w, b, v = 2 * torch.rand(3, networks, width, generator=generator).double() - 1
    return w_max * w, b, v_max * v


def magnitudes(w, b, v, k):
    """|f~| of each network at the frequencies k, shape (networks, frequencies)."""
    return torch.stack([(v * w.abs() * torch.exp(1j * q * b / w)).sum(1).abs() / q**2 for q in k], 1)


# %% nbgrader={"grade": true, "grade_id": "cutoff_formula", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def worst_network(width, w_max, v_max, k):
    """A network whose kinks all lie at 0, with the largest weights that are allowed."""
    at_bound = torch.ones(1, width).double()
    return magnitudes(w_max * at_bound, 0 * at_bound, v_max * at_bound, torch.tensor([k]).double()).item()


def check_cutoff(width, w_max, v_max, epsilon):
    edge = float(cutoff(width, w_max, v_max, epsilon))
    assert worst_network(width, w_max, v_max, 1.01 * edge) <= epsilon, "a network exceeds epsilon beyond your cut-off"
    assert worst_network(width, w_max, v_max, 0.99 * edge) > epsilon, "no network reaches your cut-off: it is too large"


check_cutoff(width=1, w_max=1.0, v_max=1.0, epsilon=1.0)
check_cutoff(width=16, w_max=1.0, v_max=1.0, epsilon=0.05)
### BEGIN HIDDEN TESTS
check_cutoff(width=50, w_max=0.3, v_max=4.0, epsilon=0.2)
check_cutoff(width=7, w_max=5.0, v_max=0.1, epsilon=0.001)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "cutoff_share", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
table = torch.tensor([[9.0, 1, 1, 3], [9, 1, 1, 1], [1, 1, 1, 1], [1, 9, 3, 1]]).double()
same(share_beyond(table, 2.0), torch.tensor([0.75, 0.5, 0.5, 0.25]), "four networks, four frequencies")
### BEGIN HIDDEN TESTS
table = torch.rand(50, 30, generator=runtime.generator(41)).double() / torch.arange(1, 31)
wanted = torch.stack([(table[:, i:] > 0.04).any(1).double().mean() for i in range(30)])
same(share_beyond(table, 0.04), wanted, "fifty networks, thirty frequencies")
### END HIDDEN TESTS

# %% [markdown]
# Before you run the next cell: how far to the right does the dotted line move when the network becomes four times as wide? **What to look for:** whether any network lives beyond its line, and how near to it they come.

# %% alt="Share of random networks beyond each frequency for three widths, with the predicted cut-offs."
k = torch.logspace(0, 2.2, 60).double()
fig, ax = plt.subplots(figsize=(7.6, 2.6))
source = runtime.generator(0)
for width, colour in zip((4, 16, 64), PALETTE):
    share = share_beyond(magnitudes(*draw(1000, width, 2.0, 1.0, source), k), 0.02)
    ax.plot(k, share, color=colour, label=f"{width} units")
    ax.axvline(cutoff(width, 2.0, 1.0, 0.02), color=colour, ls=":", lw=1.4)
ax.set(xscale="log", xlabel="angular frequency k (radians per unit)", ylabel="share of networks")
ax.set_title("Networks that exceed ε at or beyond k")
ax.legend()
plt.show()


# %% [markdown]
# ### How long a frequency takes (2 points)
#
# A wide network at its $n$ training points behaves, at first, as if it were linear in its parameters $\theta$. Then its tangent kernel $K_{ij}=\nabla_\theta f(x_i)\cdot\nabla_\theta f(x_j)$ tells the whole course of training.
# Let the points lie evenly on a circle and the residual $r=f-y$ be a wave with $k$ cycles, an eigenvector of $K$ with the eigenvalue $\lambda_k=\frac1n\,e_k^*Ke_k$, $e_k=(e^{2\pi ikj/n})_{j=0,\dots,n-1}$.
#
# We train by gradient descent with step $\eta$ on the loss that `nn.MSELoss` computes, $\frac1n\sum_jr_j^2$. Mind that it is not the loss of the chapter.
#
# **Predict** the number of steps after which the amplitude of each wave has fallen to the given `share` of what it was, or below. A step may overshoot (the wave then changes its sign), but $\eta$ is small enough for a stable descent. `circulant_energy(kernel, frequencies)` gives $\lambda_k$.

# %% nbgrader={"grade": false, "grade_id": "steps", "locked": false, "schema_version": 3, "solution": true, "task": false}
def steps_needed(kernel, lr, frequencies, share):
    """Smallest numbers of steps, one for each frequency.

    kernel: shape (n, n); lr: the step eta; frequencies: whole numbers; 0 < share < 1.
    """
    ### BEGIN SOLUTION
    factor = 1 - 2 * lr * circulant_energy(kernel, frequencies) / len(kernel)
    return torch.ceil(math.log(share) / factor.abs().log()).long()
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "waiting", "locked": true, "schema_version": 3, "solution": false, "task": false}
def linear_kernel(strengths, n):
    """Tangent kernel of the linear model sum_k a_k cos(2 pi k z) + b_k sin(2 pi k z) with features of given strength."""
    angle = 2 * math.pi * torch.arange(n).double() / n
    difference = angle[:, None] - angle
    return sum(s * torch.cos(k * difference) for k, s in enumerate(strengths))


def steps_observed(network, x, frequency, lr, share, most=2000):
    """Train the network on a wave; the first step at which no more than this share of the wave is missing."""
    with torch.no_grad():
        target = network(x)[:, 0] - torch.cos(2 * math.pi * frequency * grid(len(x)))  # the residual starts as the wave
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for step in range(most):
        residual = network(x)[:, 0] - target
        if 2 * coefficients(residual.detach(), [frequency]).abs() <= share:
            return step
        optimizer.zero_grad()
        residual.square().mean().backward()
        optimizer.step()
    return most


# %% nbgrader={"grade": true, "grade_id": "steps_linear", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
kernel = linear_kernel([1.0, 1.0, 0.25, 0.04], n=24)
predicted = [int(t) for t in steps_needed(kernel, 0.3, [1, 2, 3], share=0.1)]
for frequency, steps, wanted in zip((1, 2, 3), predicted, (7, 30, 191)):
    assert abs(steps - wanted) <= 1, f"frequency {frequency} takes {wanted} steps, you predict {steps}"
### BEGIN HIDDEN TESTS
for strengths, n, lr, share in (([0.5, 0.2, 1.0, 0.7], 40, 0.4, 0.02), ([1.0, 0.3, 1.7, 0.1], 20, 1.0, 0.2)):
    kernel = linear_kernel(strengths, n)
    predicted = [int(t) for t in steps_needed(kernel, lr, [3, 1, 2], share)]
    for frequency, steps in zip((3, 1, 2), predicted):
        wave = torch.cos(2 * math.pi * frequency * torch.arange(n).double() / n)
        r, wanted = wave.clone(), 0
        while (r @ wave).abs() > share * (wave @ wave):
            r, wanted = r - 2 * lr / n * kernel @ r, wanted + 1
        assert abs(steps - wanted) <= 1, "the prediction is wrong for another linear model"
### END HIDDEN TESTS

# %% [markdown]
# Now a network with two hidden layers of 512 units, which is linear only nearly: a prediction within a fifth passes.

# %% nbgrader={"grade": true, "grade_id": "steps_network", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def compare(seed, n):
    """Steps until half of each wave is fitted: predicted from the untrained network, then observed."""
    torch.manual_seed(seed)
    network, x = mlp(2, 1, width=512, depth=3), flower(grid(n), petals=0)
    kernel = empirical_ntk(network, x)
    lr = 0.25 * n / torch.linalg.eigvalsh(kernel)[-1].item()
    predicted = [int(t) for t in steps_needed(kernel, lr, [1, 2, 3], 0.5)]
    observed = []
    for frequency in (1, 2, 3):
        copy = mlp(2, 1, width=512, depth=3)
        copy.load_state_dict(network.state_dict())
        observed.append(steps_observed(copy, x, frequency, lr, 0.5))
    for p, o in zip(predicted, observed):
        assert abs(p - o) <= 1 + 0.2 * o, f"1, 2, 3 cycles took {observed} steps, you predict {predicted}"
    return predicted, observed


predicted, observed = compare(seed=0, n=32)
say(f"Steps until half of 1, 2 and 3 cycles is fitted: predicted {predicted}, observed {observed}.")
### BEGIN HIDDEN TESTS
compare(seed=3, n=40)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: label noise that hurts (5 points)
#
# The chapter adds noise $\psi(x)$ to the training labels $\pm1$ of scikit-learn's digits 3 and 8. It takes $\psi=\sin(2\pi k\|x\|)$, a function of the *norm* of the image, and finds that slow noise does more harm than fast noise of the same power.
#
# Design noise that does harm in another way. `design_noise(x)` gets the training images, not the labels, and returns one number for each image, such that
#
# - the mean of the numbers is 0, and their mean square is $\frac12$, within 0.001;
# - they ignore the norm: their correlation with $\|x\|$ over the training images is at most 0.1 in size;
# - they do not simply shrink or stretch the labels: the correlation with the labels is at most 0.3 in size;
# - the best validation loss along the training is at least 1.5 times that with the chapter's fast noise, $k=4$, on average over several splits into training and validation part. Validation labels stay clean.

# %% nbgrader={"grade": false, "grade_id": "noise_data", "locked": true, "schema_version": 3, "solution": false, "task": false}
images, classes = digits([3, 8])
labels = (classes == 8).float() * 2 - 1


def split(seed, num_train=285):
    """Training images and labels, validation images and labels."""
    order = torch.randperm(len(images), generator=runtime.generator(seed))
    x, y = images[order], labels[order]
    return x[:num_train], y[:num_train], x[num_train:], y[num_train:]


def fast_noise(x):
    """The chapter's noise with k = 4: centred, mean square 1/2."""
    return radial_noise(x, 4.0, reference=x)


def check_rules(design, x, y):
    """Raise unless the noise keeps the rules on the training images x with labels y."""
    noise = design(x)
    assert noise is not None, "design_noise returns nothing"
    noise = torch.as_tensor(noise).detach().double()
    assert noise.shape == (len(x),), f"the noise has shape {tuple(noise.shape)} for {len(x)} images"
    assert noise.isfinite().all(), "the noise holds numbers that are not finite"
    assert noise.mean().abs() < 1e-3, f"the noise has mean {noise.mean():.4f}"
    assert (noise.square().mean() - 0.5).abs() < 1e-3, f"the noise has mean square {noise.square().mean():.4f}"
    for other, name, most in ((x.norm(dim=1), "norm", 0.1), (y, "labels", 0.3)):
        correlation = torch.corrcoef(torch.stack([noise, other.double()]))[0, 1]
        assert correlation.abs() <= most, f"the noise has correlation {correlation:.2f} with the {name}"


# %% [markdown]
# `validation_curves` trains one network for each noise and each split, all from the same initial weights within a split.

# %% nbgrader={"grade": false, "grade_id": "noise_training", "locked": true, "schema_version": 3, "solution": false, "task": false}
def validation_curves(designs, seeds):
    """Validation loss along the training, shape (times, splits, designs), and the steps; designs map images to noise."""
    xs, ys, networks = [], [], []
    for seed in seeds:
        x, y, x_clean, y_clean = split(seed)
        torch.manual_seed(seed)
        networks += [mlp(64, 1, width=64, depth=3)] * len(designs)
        for design in designs:
            noise = torch.as_tensor(design(x)).detach().float()
            xs.append(torch.cat([x, x_clean]))
            ys.append(torch.cat([y + noise, y_clean]))
    xs, ys, stack, m = torch.stack(xs), torch.stack(ys), Stack(networks), len(x)

    def squared_error(part):
        return (stack(xs[:, part])[..., 0] - ys[:, part]).square().mean(-1)

    history = fit(
        stack,
        lambda: squared_error(slice(m)).sum(),
        num_steps=100,
        lr=2e-3,
        evaluate=lambda step, _: {"loss": squared_error(slice(m, None))},
        evaluate_every=2,
        progress=False,
    )
    losses = torch.stack(history.evaluations["loss"])
    return losses.view(-1, len(seeds), len(designs)), torch.tensor(history.evaluation_steps)


def harm(design, seeds):
    """Best validation loss with the design, relative to fast noise: mean over the splits."""
    best = validation_curves([design, fast_noise], seeds)[0].amin(0)
    return (best[:, 0] / best[:, 1]).mean().item()


# %% [markdown]
# **Before you write code** (1 point, read by a person): which noise do you choose, what does *low frequency* mean for it, and by which factor do you expect it to hurt more than fast noise? What is the largest factor that could happen at all, if fast noise ends at a best loss near 0.1? Give a number with a reason. You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "noise_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* I take the projection of the images on their third principal direction, with the part that depends on the norm removed. (The first direction is nearly the labels themselves.) It is low-frequency in the sense that matters: along a direction in which the images differ much it crosses zero once, and images that are close get nearly the same noise. The network learns such a function as fast as it learns the labels, so that no moment of training has the one without the other.
# A network that learned labels and noise completely and at once would have the loss $E[\psi^2]=\frac12$ on clean labels. With 0.1 for fast noise this is a factor of 5, the largest to be expected; I guess 3.
#
# *Marks.* ½ for a noise that is smooth over the data, with a reason why a network learns it early. ½ for a bound or an estimate of the factor with a reason ($\frac12/0.1=5$, or a guess from the chapter's 2).

# %% nbgrader={"grade": false, "grade_id": "noise", "locked": false, "schema_version": 3, "solution": true, "task": false}
def design_noise(x):
    """Label noise for the training images x, shape (n, 64), pixels in [0, 1]. Returns shape (n,)."""
    ### BEGIN SOLUTION
    centred = x - x.mean(0)
    slow = torch.linalg.svd(centred, full_matrices=False).U[:, 2]  # position along the third principal direction
    norm = torch.stack([torch.ones(len(x)), x.norm(dim=1)], 1).to(x)
    slow = slow - norm @ torch.linalg.lstsq(norm, slow[:, None]).solution[:, 0]
    return slow * (0.5 / slow.square().mean()).sqrt()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "noise_rules", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check_rules(design_noise, *split(0)[:2])
### BEGIN HIDDEN TESTS
for seed, count in ((7, 285), (8, 200)):
    check_rules(design_noise, *split(seed, count)[:2])
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "noise_harm", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check_rules(design_noise, *split(0)[:2])
factor = harm(design_noise, seeds=[0, 1])
assert factor >= 1.5, f"the best validation loss is only {factor:.2f} times that with fast noise"
### BEGIN HIDDEN TESTS
factor = harm(design_noise, seeds=[2, 3])
assert factor >= 1.5, f"on other splits the best validation loss is only {factor:.2f} times that with fast noise"
### END HIDDEN TESTS

# %% [markdown]
# **What to look for.** Does your noise leave the network a moment at which it knows the labels but not yet the noise?

# %% alt="Validation loss along the training with your noise, with fast noise and without noise."
def clean(x):
    """No noise at all."""
    return torch.zeros(len(x))


curves, when = validation_curves([design_noise, fast_noise, clean], seeds=[0, 1])
fig, ax = plt.subplots(figsize=(7.6, 2.7))
for i, (name, colour) in enumerate(zip(("your noise", "fast noise, k = 4", "no noise"), (*PALETTE[:2], PALETTE[6]))):
    for j in range(2):
        ax.plot(when, curves[:, j, i], color=colour, lw=1.4, label=name if j == 0 else None)
ax.set(xlabel="step", ylabel="loss on clean labels", yscale="log")
ax.set_title("Validation loss, two splits")
ax.legend(ncols=3, loc="upper right")
plt.show()

# %%
best = curves.amin(0).mean(0)
say(
    f"Best validation loss, mean over the splits: your noise {best[0]:.3f}, fast noise {best[1]:.3f}, none {best[2]:.3f}."
)

# %% [markdown]
# **After the measurement** (1 point, read by a person): which factor did you get, and how does it compare with your prediction? What do the curves say about *why* slow noise hurts? And what would noise do that is correlated with the labels, say $\psi=-\frac1{\sqrt2}y$: is its harm an effect of frequency?

# %% [markdown] nbgrader={"grade": true, "grade_id": "noise_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* I measured 2.8, a little below my guess of 3 and well below the bound of 5. With fast noise the loss falls along with that for clean labels to about 0.12, and only then creeps up: the network knows the labels long before it fits the noise. With mine it turns near step 18, at about 0.3, while the labels are still half learned: the noise is learned at the same pace, and no early stop can separate the two.
# The noise $-y/\sqrt2$ leaves labels $\pm0.29$ that a network learns at full speed; the loss on clean labels ends near $\frac12$ whatever the frequency of $y$. That is a change of the target's scale, as the raw noise at $k=0.05$ in the chapter was a shift. A comparison of frequencies must exclude both.
#
# *Marks.* ½ for the number beside the prediction and a reading of the curves (an early turn at a high loss against a late one at a low loss). ½ for seeing that noise proportional to the labels only rescales them, so that its harm says nothing about frequency.

# %% [markdown]
# ## Task 6: sine instead of ReLU (3 points)
#
# The chapter keeps three statements apart: about **representation** (the transform of every ReLU network decays as its geometry dictates), about **parameter space** (parameters with much energy at high frequencies are few and fragile), and about **dynamics** (low frequencies are learned first).
#
# Replace every ReLU by $\sin(\omega_0\,\cdot)$ with $\omega_0=30$, and initialise as SIREN does. For each of the three: does it still hold, does it fail, or does it change? Give the reason in a sentence or two, and name the experiment of the chapter that you would repeat to show it, with the outcome that you expect. At most 200 words.

# %% [markdown] nbgrader={"grade": true, "grade_id": "sine", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **Representation: fails as stated.** A sine network is analytic and has no linear regions, so that Lemma 1 has nothing to sum over. With one hidden layer the transform consists of lines at $k=\pm\omega_0w_j$: the weights, not the geometry of kinks, say where the energy is. Repeat the decay along facet normals and in generic directions, times a smooth window: no $k^{-2}$ or $k^{-3}$, but a fall faster than any power beyond the largest weights.
# - **Parameter space: changes.** Bounded weights still bound the frequencies, with one hidden layer even sharply: nothing beyond $\omega_0\max|w_j|$, whatever $\varepsilon$. But $\omega_0=30$ moves that limit so far out that parameters with high frequencies are the typical ones. Repeat the share of random networks beyond $k$: a step near $\omega_0K$ in place of a slow fall. Perturbations act as phases $\omega_0\,\delta w\,x$ and hit low and high frequencies alike.
# - **Dynamics: fails up to a bandwidth.** The tangent kernel's eigenvalues stay nearly level up to frequencies that $\omega_0$ sets, and fall beyond. Repeat the kernel's spectrum on the circle, or the order of learning with frequencies 5 to 50: no staircase within the band.
#
# *Marks.* One point for each statement: ½ for a verdict with a reason that fits it, ½ for an experiment with the outcome expected from it. A different verdict with a sound reason earns the same.
