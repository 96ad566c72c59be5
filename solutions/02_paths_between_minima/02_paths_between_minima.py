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
# # Exercises 02: Paths between minima
#
# Read [chapter 02](../../chapters/02_paths_between_minima.ipynb) first. The sheet takes two to three hours. Each task brings what it needs: if one resists, go on with the next.
#
# | task | points | by tests | by a person |
# |---|---|---|---|
# | 1 The nudged force | 5 | 5 | |
# | 2 A band that finds the pass | 4 | 4 | |
# | 3 Predict, then measure: the plain band | 5 | 3 | 2 |
# | 4 Find the faults | 4 | 4 | |
# | 5 Two units change places | 4 | 3 | 1 |
# | 6 What a flat path proves | 3 | | 3 |
#
# The tests below a task tell you what is wrong; the grader runs further ones on other inputs. *What to look for* before a figure is for you; hand in text only where a cell asks for it, "read by a person". `refimpl.landscape` holds most of what you write here. You learn more if you write it yourself and compare afterwards.
#
# **Conventions**, as in the chapter.
#
# - A *chain* joins two minima of a loss $L$ by straight segments. Its corners, the *pivots* $p_0,\dots,p_{n-1}$, are the rows of a tensor of shape (n, dim). The ends $p_0$ and $p_{n-1}$ stay where they are; the others are the *inner* pivots, and a function that returns something for each of these returns $n-2$ rows.
# - $L_i=L(p_i)$ is the loss at a pivot and $g_i=\nabla L(p_i)$ its gradient. $t_i^+=p_{i+1}-p_i$ and $t_i^-=p_i-p_{i-1}$ are the steps to the next pivot and from the previous one.
# - The *highest loss* of a chain is the highest anywhere on it, also between pivots. `highest` looks at 49 points inside each segment; use it.
# - Tensors come in double precision; keep it. Loops, NumPy and PyTorch are all welcome inside your functions.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from refimpl import runtime
from refimpl.landscape import CURVY_VALLEY_MINIMA, between, curvy_valley, egg_carton
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


def straight(num_pivots, power=1.0):
    """Chain on the straight line between the minima of the curvy valley; even spacing for power 1."""
    start, end = torch.tensor(CURVY_VALLEY_MINIMA, dtype=torch.float64)
    return torch.lerp(start, end, torch.linspace(0, 1, num_pivots).double()[:, None] ** power)


def highest(pivots, loss=curvy_valley):
    """Highest loss anywhere on the chain."""
    return loss(between(torch.as_tensor(pivots).detach(), 49)[1]).max().item()


def random_chain(seed, num_pivots=9, dim=3):
    """Pivots, losses and gradients without any relation to each other; the losses rise and fall."""
    source = runtime.generator(seed)
    pivots, gradients = torch.randn(2, num_pivots, dim, generator=source).double()
    return pivots, torch.randn(num_pivots, generator=source).double(), gradients


# %% [markdown]
# ## Task 1: the nudged force (5 points)
#
# Join the pivots by springs of strength $k$, and you have the *plain* elastic band, with the energy
#
# $$E=\sum_{i=1}^{n-2}L_i+\frac k2\sum_{i=0}^{n-2}\|p_{i+1}-p_i\|^2.$$
#
# Derive the force $-\partial E/\partial p_i$ on an inner pivot, with pencil and paper. At each inner pivot a unit vector $\tau_i$ along the path is given. It splits the force into four parts: the loss along and across the path, and the springs along and across it. Write them down as `four_parts`.
#
# Now imagine a chain that lies exactly at the bottom of a curved valley, where $g_i$ points along the path. Two of the four parts drive it away from there. Decide which two, and what each does to the chain, before you read on (there is nothing to hand in here; task 3 measures it). The *nudged* band goes without these two. One of the parts that stay needs a repair: where the chain bends, the springs may pull along $\tau_i$ even if the two steps are equally long. So the nudged band lets them see the lengths alone, and its force is
#
# $$F_i=-\big(g_i-(g_i\cdot\tau_i)\,\tau_i\big)+k\,\big(\|t_i^+\|-\|t_i^-\|\big)\,\tau_i.$$
#
# It remains to choose $\tau_i$. Let $M_i$ be the larger and $m_i$ the smaller of $|L_{i+1}-L_i|$ and $|L_{i-1}-L_i|$. Henkelman and Jónsson take
#
# - where the loss rises, $L_{i-1}<L_i<L_{i+1}$, or falls, $L_{i-1}>L_i>L_{i+1}$: the step that joins $p_i$ to its *higher* neighbour;
# - elsewhere, at an extremum of the $L_i$: $M_it_i^++m_it_i^-$ if $L_{i+1}>L_{i-1}$, else $m_it_i^++M_it_i^-$;
# - if all three losses are equal: $t_i^++t_i^-$;
#
# and scale the result to length 1, the steps themselves not. Write `unit_tangents` and `nudged_force`.

# %% nbgrader={"grade": false, "grade_id": "force", "locked": false, "schema_version": 3, "solution": true, "task": false}
def four_parts(pivots, gradients, tangents, spring):
    """Force of the plain band on each inner pivot, split: loss along, loss across, springs along, springs across.

    pivots, gradients: shape (n, dim); tangents: unit vectors, shape (n - 2, dim); spring: k.
    Returns four tensors of shape (n - 2, dim).
    """
    ### BEGIN SOLUTION
    pull, stretch = -gradients[1:-1], spring * (pivots[2:] - 2 * pivots[1:-1] + pivots[:-2])
    one, two = ((part * tangents).sum(1, keepdim=True) * tangents for part in (pull, stretch))
    return one, pull - one, two, stretch - two
    ### END SOLUTION


def unit_tangents(pivots, values):
    """Unit tangent at each inner pivot. pivots: shape (n, dim); values: losses, shape (n,). Shape (n - 2, dim)."""
    ### BEGIN SOLUTION
    rows = []
    for i in range(1, len(pivots) - 1):
        after, before = pivots[i + 1] - pivots[i], pivots[i] - pivots[i - 1]
        up, down = values[i + 1] - values[i], values[i - 1] - values[i]
        small, large = sorted([abs(up), abs(down)])
        if up * down < 0:
            row = after if up > 0 else before
        elif large == 0:
            row = after + before
        else:
            row = large * after + small * before if up > down else small * after + large * before
        rows.append(row / row.norm())
    return torch.stack(rows)
    ### END SOLUTION


def nudged_force(pivots, values, gradients, spring=0.0):
    """Force of the nudged band on each inner pivot, shape (n - 2, dim). spring: k; 0 is a band without springs."""
    ### BEGIN SOLUTION
    tangents, inner = unit_tangents(pivots, values), gradients[1:-1]
    across = inner - (inner * tangents).sum(1, keepdim=True) * tangents
    lengths = (pivots[1:] - pivots[:-1]).norm(dim=1)
    return -across + spring * (lengths[1:] - lengths[:-1])[:, None] * tangents
    ### END SOLUTION


# %% [markdown]
# Your four parts must add up to minus the gradient of $E$, which automatic differentiation knows.

# %% nbgrader={"grade": true, "grade_id": "force_parts", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_parts(seed, dim, spring):
    pivots, _, other = random_chain(seed, dim=dim)
    tangents = F.normalize(other[1:-1], dim=1)
    pivots.requires_grad_()
    energy = pivots.sin().sum() + spring / 2 * (pivots[1:] - pivots[:-1]).square().sum()  # the loss is sum(sin)
    wanted = -torch.autograd.grad(energy, pivots)[0][1:-1]
    parts = four_parts(pivots.detach(), pivots.detach().cos(), tangents, spring)
    assert len(parts) == 4, f"you return {len(parts)} parts, expected four"
    same(sum(torch.as_tensor(p) for p in parts), wanted, f"the sum of the four parts for k = {spring}")
    same(sum(torch.as_tensor(p) for p in parts[:2]), -pivots.detach().cos()[1:-1], "loss along + loss across")
    for name, part in zip(("loss along", "loss across", "springs along", "springs across"), parts):
        along = (torch.as_tensor(part) * tangents).sum(1)
        stray = along if "across" in name else (torch.as_tensor(part) - along[:, None] * tangents).norm(dim=1)
        assert stray.abs().max() < 1e-9, f"{name}: it has a part in the other direction"


check_parts(seed=0, dim=2, spring=1.0)
### BEGIN HIDDEN TESTS
check_parts(seed=1, dim=5, spring=0.3)
check_parts(seed=2, dim=2, spring=0.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "force_slopes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
corner = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0]]).double()
rising, falling = torch.tensor([0.0, 1.0, 3.0]).double(), torch.tensor([3.0, 1.0, 0.0]).double()
same(unit_tangents(corner, rising), torch.tensor([[0.0, 1.0]]), "the tangent at a corner where the loss rises")
same(unit_tangents(corner, falling), torch.tensor([[1.0, 0.0]]), "the tangent at a corner where the loss falls")
### BEGIN HIDDEN TESTS
from refimpl.landscape import tangents

for seed in (3, 4):
    pivots, values, _ = random_chain(seed, dim=6)
    for order in (values.sort().values, values.sort(descending=True).values):
        same(unit_tangents(pivots, order), tangents(pivots, order), "a random chain with rising or falling losses")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "force_extrema", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
level = torch.tensor([0.0, 1.0, 0.0]).double()
wanted = torch.tensor([[2.0, 1.0]]) / math.sqrt(5)
same(unit_tangents(corner, level), wanted, "the tangent at a maximum between two equal losses")
same(unit_tangents(corner, -level), wanted, "the tangent at a minimum between two equal losses")
same(unit_tangents(corner, 0 * level), wanted, "the tangent where all losses are equal")
### BEGIN HIDDEN TESTS
from refimpl.landscape import tangents

for seed in range(5, 9):
    pivots, values, _ = random_chain(seed, num_pivots=12)
    same(unit_tangents(pivots, values), tangents(pivots, values), "a random chain with maxima and minima")
    values = values.round()
    same(unit_tangents(pivots, values), tangents(pivots, values), "a random chain with losses that are often equal")
### END HIDDEN TESTS

# %% [markdown]
# Without springs the force has no part along your tangents. With springs, its part along them comes from the springs alone.

# %% nbgrader={"grade": true, "grade_id": "force_across", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_across(seed, dim):
    pivots, values, gradients = random_chain(seed, dim=dim)
    tangents, force = unit_tangents(pivots, values), torch.as_tensor(nudged_force(pivots, values, gradients))
    inner = gradients[1:-1]
    assert force.shape == inner.shape, f"you return the shape {tuple(force.shape)}, expected {tuple(inner.shape)}"
    along = (force * tangents).sum(1).abs().max().item()
    assert along < 1e-9, f"without springs the force has a part {along:.1e} along the path"
    assert (force * inner).sum(1).max() < 1e-9, "the force pushes some pivot towards a higher loss"
    lost = force + inner
    lost = (lost - (lost * tangents).sum(1, keepdim=True) * tangents).norm(dim=1).max().item()
    assert lost < 1e-9, f"across the path the force differs by {lost:.1e} from minus the gradient"


check_across(seed=10, dim=2)
### BEGIN HIDDEN TESTS
from refimpl.landscape import band_gradient

check_across(seed=11, dim=7)
pivots, values, gradients = random_chain(12)
values = values.sort().values
same(nudged_force(pivots, values, gradients), -band_gradient(pivots, values, gradients), "a random chain, no springs")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "force_springs", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
still = torch.zeros(3, 2).double()
equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).double()
same(nudged_force(equal, rising, still, spring=2.0), still[:1], "a corner with two equal lengths")
line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]).double()
pushed = torch.as_tensor(nudged_force(line, rising, still, spring=0.5))[0, 0]
assert pushed > 0, "the next segment is the longer one, and your springs push the pivot back"
### BEGIN HIDDEN TESTS
from refimpl.landscape import band_gradient

same(nudged_force(line, falling, still, spring=0.5), torch.tensor([[1.0, 0.0]]), "lengths 1 and 3, k = 0.5")
for seed, k in ((13, 0.7), (14, 30.0)):
    pivots, values, gradients = random_chain(seed)
    values = values.sort(descending=True).values
    wanted = -band_gradient(pivots, values, gradients, spring=k)
    same(nudged_force(pivots, values, gradients, spring=k), wanted, f"a random chain with springs, k = {k}")
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: a band that finds the pass (4 points)
#
# Springs along the path do one thing: they keep the lengths equal. So does a simpler step. Take the present chain as a path of straight segments, and put the inner pivots on it anew, at equal distances *measured along it*. This is the limit $k\to\infty$ of the chapter.
#
# - `spread` does it, and leaves the chain that it gets as it is. Pivots may coincide, even all of them: a segment may have length 0, by which you must not divide. A long segment may receive many new pivots.
# - `relax` repeats `num_steps` times: spread the chain; compute the losses and the gradients at all pivots; move the inner pivots by `lr` times `force(pivots, values, gradients)`, which sees the spread chain and its losses and gradients. At the end it spreads the chain once more and returns it.
#
# `loss` maps points of shape (n, dim) to n losses. Since no pivot has a part in the loss of another, one call of `torch.autograd.grad` for the sum gives you all gradients.

# %% nbgrader={"grade": false, "grade_id": "band", "locked": false, "schema_version": 3, "solution": true, "task": false}
def spread(pivots):
    """Pivots at equal distances along the given chain, shape (n, dim)."""
    ### BEGIN SOLUTION
    lengths = (pivots[1:] - pivots[:-1]).norm(dim=1)
    arc = torch.cat([torch.zeros(1).to(pivots), lengths.cumsum(0)])
    rows = [pivots[0]]
    for wanted in torch.linspace(0, 1, len(pivots))[1:-1].to(pivots) * arc[-1]:
        i = min(int((arc <= wanted).sum()) - 1, len(lengths) - 1)  # the last segment that begins before
        share = (wanted - arc[i]) / lengths[i] if lengths[i] > 0 else 0.0
        rows.append(pivots[i] + share * (pivots[i + 1] - pivots[i]))
    return torch.stack([*rows, pivots[-1]])
    ### END SOLUTION


def relax(pivots, loss, force, num_steps, lr):
    """Relaxed chain, shape (n, dim). force maps (pivots, values, gradients) to shape (n - 2, dim)."""
    ### BEGIN SOLUTION
    for _ in range(num_steps):
        pivots = spread(pivots).requires_grad_()
        values = loss(pivots)
        gradients = torch.autograd.grad(values.sum(), pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] += lr * force(pivots, values.detach(), gradients)
    return spread(pivots)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "band_spread", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
bent = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [5.0, 1.0]]).double()
kept = bent.clone()
same(spread(bent), torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 1.0], [5.0, 1.0]]), "a chain with lengths 1, 1 and 4")
assert torch.equal(bent, kept), "spread changes the chain that it gets"
### BEGIN HIDDEN TESTS
from refimpl.landscape import redistribute

for seed in (20, 21):
    pivots = random_chain(seed, num_pivots=8, dim=4)[0]
    same(spread(pivots), redistribute(pivots), "a random chain")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "band_spread_hard", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
on_one = torch.tensor([[0.0], [10.0], [10.5], [11.0], [12.0]]).double()
same(spread(on_one), torch.tensor([[0.0], [3.0], [6.0], [9.0], [12.0]]), "a chain with one long segment")
twice = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [3.0, 0.0]]).double()
same(spread(twice), torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), "a chain whose pivots coincide")
### BEGIN HIDDEN TESTS
knot = torch.tensor([[0.0], [2.0], [2.0], [2.0], [8.0]]).double()
same(spread(knot), torch.tensor([[0.0], [2.0], [4.0], [6.0], [8.0]]), "a chain with three pivots in one place")
back = torch.tensor([[0.0], [3.0], [1.0]]).double()
same(spread(back), torch.tensor([[0.0], [2.5], [1.0]]), "a chain that turns back")
same(spread(0 * knot + 3), 0 * knot + 3, "a chain whose pivots are all in one place")
### END HIDDEN TESTS

# %% [markdown]
# The tests use `sideways`, the force across the path with the simplest of tangents, from the previous to the next pivot.

# %% nbgrader={"grade": false, "grade_id": "sideways", "locked": true, "schema_version": 3, "solution": false, "task": false}
def sideways(pivots, values, gradients):
    """Minus the gradient across the path, with central differences for the tangents."""
    tangents = F.normalize(pivots[2:] - pivots[:-2], dim=1)
    inner = gradients[1:-1]
    return (inner * tangents).sum(1, keepdim=True) * tangents - inner


def to_the_right(pivots, values, gradients):
    """A force that is 1 to the right, wherever the pivots are."""
    return torch.eye(pivots.shape[1]).double()[:1].expand(len(pivots) - 2, -1)


def tilted(points):
    """The loss x^2 / 8 + x y."""
    return points[:, 0] ** 2 / 8 + points[:, 0] * points[:, 1]


def recorder(*forces):
    """A force that returns one after the other of those given, and the list of what it was handed each time."""
    handed = []

    def force(pivots, values, gradients):
        handed.append([torch.as_tensor(part).detach().clone() for part in (pivots, values, gradients)])
        assert len(handed) <= len(forces), f"you ask for the force more than {len(forces)} times"
        return torch.tensor(forces[len(handed) - 1]).double()

    return force, handed


# %% nbgrader={"grade": true, "grade_id": "band_steps", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
slope = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]).double()
kept = slope.clone()
moved = relax(slope, lambda p: p[:, 1], to_the_right, num_steps=2, lr=0.1)
same(moved, torch.tensor([[0.0, 0.0], [4 / 3, 0.0], [8 / 3, 0.0], [4.0, 0.0]]), "a force along the path, two steps")
assert torch.equal(slope, kept), "relax changes the chain that it gets"
force, handed = recorder([[0.0, 0.0], [0.0, 0.0]])
relax(slope, tilted, force, num_steps=1, lr=0.1)
assert len(handed) == 1, f"in one step you ask {len(handed)} times for the force"
same(handed[0][1], tilted(handed[0][0]), "the losses that you hand to force, at the pivots that you hand to it")
### BEGIN HIDDEN TESTS
uneven = torch.tensor([[0.0, 0.0], [1.0, 0.0], [8.0, 0.0]]).double()
force, handed = recorder([[0.0, 6.0]], [[8.0, 6.0]])
moved = relax(uneven, tilted, force, num_steps=2, lr=0.5)
assert len(handed) == 2, f"in two steps you ask {len(handed)} times for the force"
for height, (at, values, gradients) in zip((0.0, 3.0), handed):
    same(at, torch.tensor([[0.0, 0.0], [4.0, height], [8.0, 0.0]]), "an uneven chain: the pivots handed to force")
    same(values, torch.tensor([0.0, 2 + 4 * height, 8.0]), "an uneven chain: the losses handed to force")
    wanted = torch.tensor([[0.0, 0.0], [1 + height, 4.0], [2.0, 8.0]])
    same(gradients, wanted, "an uneven chain: the gradients handed to force, at its pivots")
same(moved, torch.tensor([[0.0, 0.0], [6.4, 4.8], [8.0, 0.0]]), "an uneven chain: where it is after two steps")
start = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 8.0]]).double()
wanted = torch.tensor([[0.0, 0.0], [0.1, 4.0], [0.0, 8.0]])
same(relax(start, lambda p: p[:, 1], to_the_right, num_steps=1, lr=0.1), wanted, "one step: where do you begin it?")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "band_pass", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
band = torch.as_tensor(relax(straight(20), curvy_valley, sideways, num_steps=200, lr=0.1))
assert torch.equal(band[[0, -1]], straight(2)), "the ends have moved"
found = highest(band)
assert abs(found - 1) < 0.01, f"the pass of the curvy valley has the loss 1, the highest on your band is {found:.3f}"
### BEGIN HIDDEN TESTS
turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()


def turned(points):
    return 3 * curvy_valley((points - 1) @ turn)


found = highest(relax(straight(31) @ turn.T + 1, turned, sideways, num_steps=300, lr=0.05), turned)
assert abs(found - 3) < 0.03, f"the pass of another valley has the loss 3, the highest on your band is {found:.3f}"
bow = torch.lerp(torch.tensor([-0.5, -0.5]), torch.tensor([0.5, 0.5]), torch.linspace(0, 1, 21)[:, None]).double()
bow = bow + 0.05 * torch.sin(math.pi * torch.linspace(0, 1, 21).double())[:, None] * torch.tensor([1.0, -1.0])
found = highest(relax(bow, egg_carton, sideways, num_steps=600, lr=0.01), egg_carton)
assert abs(found) < 0.05, f"the passes of the egg carton have the loss 0, the highest on your band is {found:.3f}"
### END HIDDEN TESTS

# %% [markdown]
# Now with your own force. **What to look for:** how soon the band lies in the valley, and which of its points get there last.

# %% alt="Left: a straight chain in the curvy valley bends into the valley within about ten steps. Right: the loss along it falls from about 3 to the pass at 1."
points = torch.stack(torch.meshgrid(torch.linspace(-9, 9, 120), torch.linspace(-2.2, 2.2, 60), indexing="xy"), -1)
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.7))
axes[0].contourf(points[..., 0], points[..., 1], curvy_valley(points).sqrt(), levels=18, cmap="Greys")
for steps, colour in zip((0, 3, 10, 200), PALETTE):
    band = torch.as_tensor(relax(straight(20), curvy_valley, nudged_force, num_steps=steps, lr=0.1))
    axes[0].plot(*band.T, ".-", color=colour, lw=1)
    place, dense = between(band, 19)
    axes[1].plot(place, curvy_valley(dense), color=colour, label=f"{steps} steps")
axes[0].set(xlabel="x", ylabel="y")
axes[1].set(xlabel="share of the path", ylabel="loss")
axes[1].legend()
label_panels(axes, ["Band in the valley", "Loss along it"])
plt.show()


# %% [markdown]
# ## Task 3: predict, then measure: the plain band (5 points)
#
# Back to the plain band of task 1, which keeps all four parts of the force. First you predict how wrong it gets, then you measure it.
#
# **Predict**, with pencil and paper, first two numbers that have closed forms.
#
# - *Cut corners.* A ring-shaped valley $L=\frac c2(r-R)^2$, where $r$ is the distance from the origin. A *closed* band of $n$ pivots, each joined to two neighbours by springs of strength $k$, lies in it as a regular polygon. `ring_radius` is the distance from the origin at which its pivots come to rest.
# - *Slide down.* A valley in one dimension, $L=h\,(1-x^2/a^2)^2$, with minima at $\pm a$ and the pass at $0$. A band with a single inner pivot joins the minima. `weakest_spring` is the $k$ below which the pivot leaves the pass as soon as something touches it.

# %% [markdown]
# **Before you write more code** (1 point, read by a person): you are about to relax plain bands of 20 pivots in the curvy valley, for $k$ from 0.01 to 30. What do your two formulas say about weak and about strong springs? Sketch the highest loss against $k$, and guess its smallest value; the pass has the loss 1. For which $k$ is the highest loss *at the pivots* a bad witness? You are not marked down for a wrong guess.

# %% [markdown] nbgrader={"grade": true, "grade_id": "plain_prediction", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Strong springs shorten the ring by the share $\frac{4k}c\sin^2\frac\pi n$: the band leaves the valley on the inside of each bend, and the more so the larger $k/c$. I expect a highest loss that rises with $k$, towards that of the straight line, about 3. Weak springs let the pivots slide down into the minima, until long segments span the middle, whose loss is high: below about $2h/a^2$, here $2/x_0^2\approx0.03$ with the minima at $x=\pm x_0=\pm\frac{5\pi}2$, not one pivot stays on the pass. In between I guess 1.2, not 1, near $k=1$. For weak springs the pivots are bad witnesses: they sit low, and the loss is high where none is.
#
# *Marks.* ½ for saying that both ends of the range fail, each with its reason from a formula. ½ for a guess of the smallest value, or for saying that pivots hide what is between them when springs are weak.

# %% [markdown]
# **Measure.** `plain_estimate` relaxes a plain band in the curvy valley, from `straight(num_pivots, power=1.2)`, by 1500 steps of gradient descent on $E$ with the step size $1/(4+4k)$. It returns two numbers: the highest loss at its pivots, and the highest loss anywhere on it.
#
# - *The step size.* Gradient descent diverges if a step is larger than 2 over the curvature of $E$. In the stiffest direction the valley's sides curve by about 4, and the springs by less than $4k$. So this step is about half as large as it may be.
# - *The start.* `straight(num_pivots, power=1.2)` lies on the straight line, with uneven spacing. From an even one the valley's symmetry would leave it to rounding errors to which side weak springs let the pivots slide.

# %% nbgrader={"grade": false, "grade_id": "plain", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ring_radius(spring, c, radius, num_pivots):
    """Distance from the origin of the pivots of a closed plain band in the valley c / 2 (r - radius)^2."""
    ### BEGIN SOLUTION
    return radius / (1 + 4 * spring / c * math.sin(math.pi / num_pivots) ** 2)
    ### END SOLUTION


def weakest_spring(height, half_width):
    """Smallest spring constant at which a single pivot rests on the pass of height (1 - x^2 / half_width^2)^2."""
    ### BEGIN SOLUTION
    return 2 * height / half_width**2
    ### END SOLUTION


def plain_estimate(spring, num_pivots):
    """Highest loss at the pivots, and highest loss anywhere, of a relaxed plain band in the curvy valley."""
    ### BEGIN SOLUTION
    pivots = straight(num_pivots, power=1.2)
    for _ in range(1500):
        pivots.requires_grad_()
        energy = curvy_valley(pivots).sum() + spring / 2 * (pivots[1:] - pivots[:-1]).square().sum()
        gradient = torch.autograd.grad(energy, pivots)[0]
        pivots = pivots.detach().clone()
        pivots[1:-1] -= gradient[1:-1] / (4 + 4 * spring)
    return curvy_valley(pivots).max().item(), highest(pivots)
    ### END SOLUTION


# %% [markdown]
# A band that rests where you say feels no force, and automatic differentiation can tell.

# %% nbgrader={"grade": true, "grade_id": "plain_ring", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_ring(spring, c, radius, n):
    r = float(ring_radius(spring, c, radius, n))
    angle = 2 * math.pi * torch.arange(n).double() / n
    pivots = (r * torch.stack([angle.cos(), angle.sin()], 1)).requires_grad_()
    energy = c / 2 * (pivots.norm(dim=1) - radius).square().sum()
    energy = energy + spring / 2 * (pivots.roll(-1, 0) - pivots).square().sum()
    force = torch.autograd.grad(energy, pivots)[0].norm(dim=1).max().item()
    assert force < 1e-9 * c * radius, (
        f"k = {spring}, {n} pivots: at your radius a force of {force:.1e} acts on the pivots"
    )


check_ring(spring=0.5, c=1.0, radius=2.0, n=12)
### BEGIN HIDDEN TESTS
check_ring(spring=7.0, c=3.0, radius=0.5, n=5)
check_ring(spring=0.01, c=0.2, radius=10.0, n=40)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "plain_slide", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def stays(spring, height, a):
    """Whether a pivot that was moved a little away from the pass returns to it."""
    x = 1e-3 * a
    for _ in range(3000):
        x = x - (4 * height * x / a**2 * (x**2 / a**2 - 1) + 2 * spring * x) * 0.1 * a**2 / height
    return abs(x) < 1e-3 * a


def check_slide(height, a):
    k = float(weakest_spring(height, a))
    assert stays(1.02 * k, height, a), f"h = {height}, a = {a}: with springs a little stronger than yours it slides"
    assert not stays(0.98 * k, height, a), f"h = {height}, a = {a}: weaker springs than yours would do, too"


check_slide(height=1.0, a=1.0)
### BEGIN HIDDEN TESTS
check_slide(height=5.0, a=0.7)
check_slide(height=0.3, a=4.0)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "plain_measured", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def check_estimate(spring, num_pivots, wanted):
    got = plain_estimate(spring, num_pivots)
    assert got is not None and len(got) == 2, "plain_estimate must return two numbers"
    for name, number, right in zip(("at the pivots", "anywhere"), got, wanted):
        off = abs(float(number) - right) / right
        assert off < 0.01, f"k = {spring}: the highest loss {name} is {right:.3f}, you find {float(number):.3f}"


check_estimate(1.0, 20, (1.093, 1.384))
### BEGIN HIDDEN TESTS


def recomputed(spring, n):
    p = straight(n, power=1.2).numpy().copy()
    x0 = 5 * math.pi / 2
    for _round in range(1500):
        x, y = p[1:-1].T
        off = y - torch.tensor(x).sin().numpy()
        force = spring * (p[2:] - 2 * p[1:-1] + p[:-2])
        force[:, 0] += 2 * off * torch.tensor(x).cos().numpy() + 4 * x / x0**2 * (1 - x**2 / x0**2)
        force[:, 1] -= 2 * off
        p[1:-1] += force / (4 + 4 * spring)
    chain = torch.tensor(p)
    return curvy_valley(chain).max().item(), highest(chain)


for spring, n in ((0.01, 20), (0.1, 20), (3.0, 20), (10.0, 16)):
    check_estimate(spring, n, recomputed(spring, n))
### END HIDDEN TESTS

# %% [markdown]
# Your estimates for seven springs, and the nudged band of task 2 beside them. **What to look for:** is there a spring with which the plain band is right, and would its pivots tell you?

# %% alt="Highest loss of the plain band against the spring constant: at the pivots it rises from 0.1 over 1.0 to about 1.9; anywhere on the band it is between 1.3 and 2.4. The pass is at 1."
springs = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
estimates = torch.tensor([plain_estimate(k, 20) for k in springs])
fig, ax = plt.subplots(figsize=(7.6, 2.7))
ax.semilogx(springs, estimates[:, 0], "o:", color=PALETTE[0], label="plain band, at the pivots")
ax.semilogx(springs, estimates[:, 1], "o-", color=PALETTE[1], label="plain band, anywhere")
ax.axhline(1, color="k", ls="--", lw=0.8, label="the pass")
ax.set(xlabel="spring constant k (loss per squared length)", ylabel="highest loss", ylim=(0, 2.7))
ax.set_title("What 20 pivots say about a pass of height 1")
ax.legend(loc="lower right")
plt.show()

# %%
nudged = highest(relax(straight(20), curvy_valley, sideways, num_steps=200, lr=0.1))
rows = ", ".join(f"{b:.2f} ({a:.2f})" for a, b in estimates.tolist())
say(f"Highest loss anywhere (at the pivots) for k = {', '.join(map(str, springs))}: {rows}. Nudged: {nudged:.3f}.")
say(f"At k = {springs[1]} the highest pivot has the loss {estimates[1, 0]:.2f}; the pass has the loss 1.")


# %% [markdown]
# **After the measurement** (1 point, read by a person): compare with your prediction. The last line above sets the highest pivot at $k=0.1$ beside the pass: is the band right there, and is what the pivot says an accident? And what would you gain with 100 pivots in place of 20, what would you lose?

# %% [markdown] nbgrader={"grade": true, "grade_id": "plain_reading", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* Both ends fail as predicted: 1.96 at $k=0.01$, where all pivots lie below 0.1, and 1.92 at $k=30$, where the pivots lie as high as the rest. The smallest value, 1.35 at $k=3$, is worse than my 1.2; the nudged band finds 1.000 with as many pivots. At $k=0.1$ the band is as wrong as anywhere, 2.36: one pivot rests on the pass itself, as it may above the weakest spring of about 0.03, but its neighbours have slid far down, and the segments between them leave the valley.
# More pivots shorten the segments. The corners are cut less, like $\sin^2(\pi/n)$, but the springs also pull less against the slope of the loss, so that more pivots slide: the useful range moves to larger $k$, and its best error shrinks slowly. Each pivot costs a gradient a step.
#
# *Marks.* ½ for the numbers beside the prediction, and for a pivot on the pass at $k=0.1$ that says nothing about the segments beside it. ½ for the two opposite effects of more pivots.

# %% [markdown]
# ## Task 4: find the faults (4 points)
#
# AutoNEB adds pivots where the path between two of them is higher than they tell. `insert_broken` is meant to do this:
#
# - `values` are the losses at the points of `between(pivots, m)`, so that $m$ of them lie inside each segment, equally spaced, and pivot $i$ is entry $i(m+1)$;
# - the *excess* at a point inside a segment is its loss minus the linear interpolation between the losses of the segment's two pivots, divided by the range (largest minus smallest) of the losses of *all pivots*. Add $10^{-12}$ to the range: if all pivots have the same loss, every rise between them then counts as a large one;
# - each segment is judged by its largest excess, however narrow the bump. Those `most` segments with the largest ones get a new pivot at that very point, if the excess is larger than `threshold`;
# - `weights`, the wanted lengths of the segments as shares of the whole, are handed on: the weight of a split segment is divided in the proportion of its two parts. The new weights go with the new segments, in their order.
#
# It runs without complaint, and on many paths nobody would notice.

# %% nbgrader={"grade": false, "grade_id": "insert_broken", "locked": true, "schema_version": 3, "solution": false, "task": false}
def insert_broken(pivots, weights, values, most=2, threshold=0.1):
    """Insert pivots; see above. Contains faults."""
    segments = len(pivots) - 1
    steps = (len(values) - 1) // segments
    heights = values[::steps]
    share = torch.arange(1, steps).double() / steps
    inside = values[:-1].view(segments, steps)[:, 1:]
    linear = heights[:-1, None] * share + heights[1:, None] * (1 - share)
    excess, place = (inside - linear).max(dim=1)
    chain, lengths = list(pivots), list(weights)
    for i in excess.argsort(descending=True)[:most].tolist():
        if excess[i] > threshold:
            s = share[place[i]]
            chain.insert(i + 1, (1 - s) * pivots[i] + s * pivots[i + 1])
            lengths[i : i + 1] = [(1 - s) * weights[i], s * weights[i]]
    return torch.stack(chain), torch.stack(lengths)


# %% [markdown]
# It has four faults. Do not stare at it; experiment. `on_a_line` makes a chain in one dimension on a loss of your choice, such as `polyline`, so that you know where a pivot must go. Then write the repaired function as `insert`.

# %% nbgrader={"grade": false, "grade_id": "on_a_line", "locked": true, "schema_version": 3, "solution": false, "task": false}
def on_a_line(pivots, loss, m=9):
    """Pivots (n, 1), weights (n - 1,) and the dense losses of a chain on the real line; loss maps x to losses."""
    pivots = torch.tensor(pivots).double()[:, None]
    weights = pivots.diff(dim=0)[:, 0]
    return pivots, weights / weights.sum(), loss(between(pivots, m)[1][:, 0])


def polyline(*corners):
    """The loss with straight pieces between the corners (x, loss), given from left to right."""
    x, y = torch.tensor(corners).double().T.contiguous()

    def loss(at):
        i = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
        return y[i - 1] + (at - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])

    return loss


# %% nbgrader={"grade": false, "grade_id": "insert", "locked": false, "schema_version": 3, "solution": true, "task": false}
def insert(pivots, weights, values, most=2, threshold=0.1):
    """Pivots with the new ones among them, shape (more, dim), and the new weights, shape (more - 1,)."""
    ### BEGIN SOLUTION
    segments = len(pivots) - 1
    steps = (len(values) - 1) // segments
    heights = values[::steps]
    share = torch.arange(1, steps).double() / steps
    inside = values[:-1].view(segments, steps)[:, 1:]
    linear = heights[:-1, None] * (1 - share) + heights[1:, None] * share
    excess, place = ((inside - linear) / (heights.max() - heights.min() + 1e-12)).max(dim=1)
    chain, lengths = list(pivots), list(weights)
    for i in sorted(excess.argsort(descending=True)[:most].tolist(), reverse=True):  # from the back: no index shifts
        if excess[i] > threshold:
            s = share[place[i]]
            chain.insert(i + 1, (1 - s) * pivots[i] + s * pivots[i + 1])
            lengths[i : i + 1] = [s * weights[i], (1 - s) * weights[i]]
    return torch.stack(chain), torch.stack(lengths)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "insert_excess", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
hill = on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (1, 1), (2, 0.2)))
count = len(insert(*hill)[0]) - 3
assert count == 0, f"the loss is straight between the pivots, and you insert {count} of them"
### BEGIN HIDDEN TESTS
one = on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (0.3, 0.9), (1, 1), (2, 0)))
same(insert(*one)[0][:, 0], torch.tensor([0, 0.3, 1, 2]), "a path with one bump")
count = len(insert(*one, threshold=0.7)[0]) - 3
assert count == 0, "a bump below the threshold gets a pivot"
low = on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (0.3, -0.9), (1, 1), (2, 0)))
assert len(insert(*low)[0]) == 3, "a dip in the loss gets a pivot"
thin = on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (0.6, 0.6), (0.7, 1.2), (0.8, 0.8), (1, 1), (2, 0)))
same(insert(*thin)[0][:, 0], torch.tensor([0, 0.7, 1, 2]), "a path with one narrow bump")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "insert_range", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
bump = polyline((0, 0), (0.5, 0.8), (1, 1), (2, 0))
pivots, weights, values = on_a_line([0.0, 1.0, 2.0], bump)
for scale in (1e-3, 1.0, 1e3):
    count = len(insert(pivots, weights, scale * values)[0]) - 3
    assert count == 1, f"in a landscape {scale:g} times as high, {count} pivots are inserted in place of 1"
peak = on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (0.5, 0.7), (1, 1), (1.5, 20), (2, 0)))
count = len(insert(*peak)[0]) - 3
assert count == 2, f"two bumps, one far higher than all pivots: {count} pivots are inserted in place of 2"
twins = on_a_line([0.0, 1.0], polyline((0, 0), (0.4, 2), (1, 0)))
same(insert(*twins)[0][:, 0], torch.tensor([0, 0.4, 1]), "a path between two pivots of the same loss")
### BEGIN HIDDEN TESTS
for shift in (-7.0, 50.0):
    count = len(insert(pivots, weights, values + shift)[0]) - 3
    assert count == 1, f"in a landscape {shift:g} higher, {count} pivots are inserted in place of 1"
same(insert(*peak)[0][:, 0], torch.tensor([0, 0.5, 1, 1.5, 2]), "a path with a high and a low bump")
flat = on_a_line([0.0, 1.0, 2.0], polyline((0, 3), (1, 3), (1.3, 3.5), (2, 3)))
same(insert(*flat)[0][:, 0], torch.tensor([0, 1, 1.3, 2]), "a bump between pivots that all have the loss 3")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "insert_order", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
two = on_a_line([0.0, 1.0, 2.0, 3.0, 4.0], polyline((0, 0), (0.5, 3), (1, 1), (2, 1), (2.5, 2), (3, 1), (4, 0)))
chain = insert(*two)[0][:, 0]
assert (torch.as_tensor(chain).diff() > 0).all(), f"a path from 0 to 4 goes astray: {torch.as_tensor(chain).tolist()}"
### BEGIN HIDDEN TESTS
same(chain, torch.tensor([0, 0.5, 1, 2, 2.5, 3, 4]), "a path with two bumps")
corners = ((0, 0), (0.5, 1.2), (1, 0), (1.5, 2), (2, 1), (2.5, 1.8), (3, 1), (3.5, 4), (4, 0))
three = on_a_line([0.0, 1.0, 2.0, 3.0, 4.0], polyline(*corners))
same(insert(*three, most=3)[0][:, 0], torch.tensor([0, 0.5, 1, 1.5, 2, 3, 3.5, 4]), "four bumps, three pivots")
corners = ((0, 0), (1, 1), (1.1, 1.6), (1.9, 1.6), (2, 1), (2.6, 1), (2.7, 1.9), (2.8, 1), (3, 1), (4, 0))
sizes = on_a_line([0.0, 1.0, 2.0, 3.0, 4.0], polyline(*corners))
same(insert(*sizes, most=1)[0][:, 0], torch.tensor([0, 1, 2, 2.7, 3, 4]), "a broad low and a narrow high bump, most=1")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "insert_weights", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
chain, new = insert(*on_a_line([0.0, 1.0, 2.0], polyline((0, 0), (0.2, 0.9), (1, 1), (2, 0))))
new = torch.as_tensor(new)
assert len(new) == len(chain) - 1, f"{len(chain)} pivots have {len(chain) - 1} segments, you return {len(new)} weights"
assert abs(new.sum() - 1) < 1e-9, f"the weights add up to {new.sum():.3f}, not to 1"
same(new, torch.tensor([0.1, 0.4, 0.5]), "weights 0.5 and 0.5, the first segment split at a fifth of its length")
### BEGIN HIDDEN TESTS
pivots, _, values = on_a_line([0.0, 1.0, 3.0, 4.0], polyline((0, 0), (1, 1), (2.4, 2), (3, 0.6), (4, 0)))
new = insert(pivots, torch.tensor([0.6, 0.3, 0.1]).double(), values)[1]
same(new, torch.tensor([0.6, 0.21, 0.09, 0.1]), "weights that differ from the present lengths")
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: two units change places (4 points)
#
# A network with hidden units that all do the same kind of work does not care about their order. Exchange two of its units, and you get the same function from other parameters. Between these two minima stands, on the straight line, a high barrier. Is there a way round?
#
# The network is $f(x)=c+\sum_jv_j\tanh(w_j\cdot x+b_j)$, and a *state* holds its parameters: `weight` with the rows $w_j$, `bias`, `out` with the $v_j$, and `offset` $c$. We train two units on the exclusive or, then add a third that is *free*: its $w$, $b$ and $v$ are all zero.

# %% nbgrader={"grade": false, "grade_id": "network", "locked": true, "schema_version": 3, "solution": false, "task": false}
def outputs(state, x):
    """Outputs of the network, shape (*states, points), for one state or many stacked ones; x: shape (points, dim)."""
    hidden = torch.tanh(x @ state["weight"].mT + state["bias"][..., None, :])
    return (hidden * state["out"][..., None, :]).sum(-1) + state["offset"][..., None]


def dense_states(chain, steps=25):
    """The states along straight lines from each state of the list to the next, stacked."""
    share = torch.arange(steps + 1).double() / steps
    return {
        name: torch.cat(
            [a[name] + share.view(-1, *[1] * a[name].ndim) * (b[name] - a[name]) for a, b in zip(chain, chain[1:])]
        )
        for name in chain[0]
    }


def exchanged(state, i, j):
    """The state with the units i and j exchanged."""
    order = torch.arange(len(state["out"]))
    order[[i, j]] = torch.tensor([j, i])
    return {name: value[order] if value.ndim else value for name, value in state.items()}


def free_unit(state):
    """The state with one more unit, a free one, at the end."""
    zero = {"weight": torch.zeros(1, state["weight"].shape[1]), "bias": torch.zeros(1), "out": torch.zeros(1)}
    return {name: torch.cat([value, zero[name].double()]) if name in zero else value for name, value in state.items()}


def copied(state):
    """A copy of the state that shares nothing with it."""
    return {name: value.clone() for name, value in state.items()}


# %% nbgrader={"grade": false, "grade_id": "training", "locked": true, "schema_version": 3, "solution": false, "task": false}
xor_x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).double()
xor_y = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()


def data_loss(state):
    """Cross-entropy on the exclusive or."""
    logits = outputs(state, xor_x)
    return F.binary_cross_entropy_with_logits(logits, xor_y.expand_as(logits), reduction="none").mean(-1)


def penalty(state):
    """5e-4 times the squared length of all parameters."""
    flat = [v.flatten(state["offset"].ndim) for n, v in state.items() if n != "offset"] + [state["offset"][..., None]]
    return 5e-4 * torch.cat(flat, -1).square().sum(-1)


def as_state(theta):
    """Two units out of a vector of nine numbers."""
    return {"weight": theta[:4].view(2, 2), "bias": theta[4:6], "out": theta[6:8], "offset": theta[8]}


theta = torch.randn(9, generator=runtime.generator(1)).double().requires_grad_()
optimizer = torch.optim.LBFGS([theta], max_iter=500, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    total = data_loss(as_state(theta)) + penalty(as_state(theta))
    total.backward()
    return total


optimizer.step(closure)
xor_start = free_unit(as_state(theta.detach()))
say(f"Data loss {data_loss(xor_start):.4f}, with the penalty {data_loss(xor_start) + penalty(xor_start):.4f}.")


# %% [markdown]
# Write `hand_over` (1 point): a list of at most eight states, that is, of seven steps. It begins with the given state and ends with `exchanged(start, i, j)`, so that the unit `spare` is free again. On the straight line from each state to the next, the *function* of the network does not change. Two facts are all you need, and the chapter uses both: what you may change about a unit whose $v_j$ is zero, and about two units with equal $w$ and $b$.
#
# Then `turn_over` (2 points), which the chapter does not show: tanh is odd, so that $(-w_i,-b_i,-v_i)$ in place of $(w_i,b_i,v_i)$ gives the same function as well. Lead the given state there, again with the help of a free unit, in at most six states. The straight line to it will not do: halfway the unit is gone. The first of the two points is for a way that turns the unit and keeps the function, the second for one of at most six states that also sets the spare unit free again.
#
# Leave the given state as it is.

# %% nbgrader={"grade": false, "grade_id": "units", "locked": false, "schema_version": 3, "solution": true, "task": false}
def hand_over(start, i, j, spare):
    """States from start to the one with the units i and j exchanged; the unit spare is free at both ends."""
    ### BEGIN SOLUTION
    chain = [start]
    for giver, taker in ((i, spare), (j, i), (spare, j)):
        ready = copied(chain[-1])  # v of the taker is zero: its w and b are free
        ready["weight"][taker], ready["bias"][taker] = ready["weight"][giver], ready["bias"][giver]
        done = copied(ready)  # the two are equal: only the sum of their v counts
        done["out"][taker], done["out"][giver] = ready["out"][giver], 0.0
        chain += [ready, done]
    last = copied(chain[-1])
    last["weight"][spare], last["bias"][spare] = 0.0, 0.0
    return [*chain, last]
    ### END SOLUTION


def turn_over(start, i, spare):
    """States from start to the one with w, b and v of unit i multiplied by -1; spare is free at both ends."""
    ### BEGIN SOLUTION
    chain = [start]
    for giver, taker, sign in ((i, spare, -1), (spare, i, 1)):
        ready = copied(chain[-1])
        ready["weight"][taker], ready["bias"][taker] = sign * ready["weight"][giver], sign * ready["bias"][giver]
        done = copied(ready)
        done["out"][taker], done["out"][giver] = sign * ready["out"][giver], 0.0
        chain += [ready, done]
    last = copied(chain[-1])
    last["weight"][spare], last["bias"][spare] = 0.0, 0.0
    return [*chain, last]
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "check_chain", "locked": true, "schema_version": 3, "solution": false, "task": false}
def check_ends(chain, start, end, most):
    """Raise unless the list of states leads from start to end."""
    assert chain is not None and len(chain) >= 2, "you return no list of states"
    assert len(chain) <= most, f"you need {len(chain)} states, {most} are enough"
    for name in start:
        same(chain[0][name], start[name], f"'{name}' of your first state")
        same(chain[-1][name], end[name], f"'{name}' of your last state")


def check_constant(chain, x):
    """Raise unless the function is the same all along the list of states."""
    along = outputs(dense_states(chain), x)
    steps = (along - along[0]).abs().amax(-1).view(len(chain) - 1, -1).amax(-1)
    worst = int((steps > 1e-6).int().argmax())
    assert steps.max() < 1e-6, f"step {worst + 1} is the first to change the function, by {steps[worst]:.1e}"


def random_state(seed, units, dim):
    """A network of random units and a free one at the end."""
    source = runtime.generator(seed)
    w, b, v = (torch.randn(*shape, generator=source).double() for shape in ((units, dim), (units,), (units,)))
    return free_unit({"weight": w, "bias": b, "out": v, "offset": torch.tensor(0.3).double()})


# %% nbgrader={"grade": true, "grade_id": "units_exchanged", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
kept = copied(xor_start)
chain = hand_over(xor_start, 0, 1, 2)
assert all(torch.equal(xor_start[name], kept[name]) for name in kept), "hand_over changes the state that it gets"
check_ends(chain, xor_start, exchanged(xor_start, 0, 1), most=8)
check_constant(chain, xor_x)
### BEGIN HIDDEN TESTS
other = exchanged(random_state(50, 5, 3), 0, 5)
chain = hand_over(other, 4, 2, 0)
check_ends(chain, other, exchanged(other, 4, 2), most=8)
check_constant(chain, torch.randn(40, 3, generator=runtime.generator(51)).double())
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "units_turned", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
def turned_over(state, i):
    """The state with w, b and v of unit i multiplied by -1."""
    sign = torch.ones(len(state["out"])).double()
    sign[i] = -1
    return {n: v if not v.ndim else sign.view(-1, *[1] * (v.ndim - 1)) * v for n, v in state.items()}


def check_turned(chain, start, i):
    """Raise unless the list of states begins at start and unit i is turned over in its last one."""
    assert chain is not None and len(chain) >= 2, "you return no list of states"
    for name in ("weight", "bias", "out"):
        same(chain[0][name], start[name], f"'{name}' of your first state")
        same(chain[-1][name][i], -start[name][i], f"'{name}' of the turned unit in your last state")


kept = copied(xor_start)
chain = turn_over(xor_start, 1, 2)
assert all(torch.equal(xor_start[name], kept[name]) for name in kept), "turn_over changes the state that it gets"
check_turned(chain, xor_start, 1)
check_constant(chain, xor_x)
### BEGIN HIDDEN TESTS
other = random_state(52, 6, 4)
chain = turn_over(other, 3, 6)
check_turned(chain, other, 3)
check_constant(chain, torch.randn(40, 4, generator=runtime.generator(53)).double())
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "units_turned_ends", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
chain = turn_over(xor_start, 1, 2)
check_ends(chain, xor_start, turned_over(xor_start, 1), most=6)
check_constant(chain, xor_x)
### BEGIN HIDDEN TESTS
other = exchanged(random_state(54, 4, 3), 1, 4)
chain = turn_over(other, 2, 1)
check_ends(chain, other, turned_over(other, 2), most=6)
check_constant(chain, torch.randn(40, 3, generator=runtime.generator(55)).double())
### END HIDDEN TESTS

# %% [markdown]
# **What to look for:** the data loss does not see the detour. Does the penalty, and is that a barrier?

# %% alt="Loss with penalty on the way from one network to the exchanged one: the straight line rises above 2, the detour stays below 0.06."
detour = dense_states(hand_over(xor_start, 0, 1, 2))
line = dense_states([xor_start, exchanged(xor_start, 0, 1)], steps=200)
fig, ax = plt.subplots(figsize=(7.6, 2.7))
for states, name, colour in ((line, "straight line", PALETTE[1]), (detour, "seven steps", PALETTE[0])):
    at = torch.linspace(0, 1, len(states["offset"]))
    ax.semilogy(at, data_loss(states) + penalty(states), color=colour, label=f"{name}, with penalty")
    ax.semilogy(at, data_loss(states), color=colour, ls=":", label=f"{name}, data loss")
ax.set(xlabel="share of the way", ylabel="loss", ylim=(2e-3, 4))
ax.set_title("Two units change places")
ax.legend(ncols=2, loc="lower center")
plt.show()

# %%
top = [(data_loss(s) + penalty(s)).max() for s in (line, detour)]
say(f"Highest loss with penalty: {top[0]:.3f} on the straight line, {top[1]:.4f} on the detour.")

# %% [markdown]
# **Without a spare unit** (1 point, read by a person): two units, no third. Why can no path of *constant function* exchange them? You may use a theorem of Sussmann (1992): if no $v_j$ and no $w_j$ is zero, and no two units have $(w_i,b_i)=\pm(w_j,b_j)$, then the parameters of a tanh network with one hidden layer are determined by its function and its number of units, up to the order and the signs of the units. Does this show that every path has a barrier of the *loss*?

# %% [markdown] nbgrader={"grade": true, "grade_id": "no_spare", "locked": false, "points": 1, "schema_version": 3, "solution": true, "task": false}
# *One answer.* The two trained units fulfil the theorem's conditions: by the exclusive or both are needed. So the parameters with the same function are finitely many points, $2!\cdot2^2=8$ of them. A continuous path within finitely many points stays at one of them, and cannot reach another. With the spare unit the conditions fail ($v_j=0$, or two equal units), and the finitely many points become connected by whole flat sets.
# It does not show a barrier of the loss. The loss looks at four points only, and the path may leave the function and keep the loss on those four, or raise it very little. That a barrier remains is measured in the chapter, not proved here.
#
# *Marks.* ½ for finitely many, hence isolated, parameters, between which no continuous path leads (with both conditions checked or named). ½ for the difference between a constant function and a constant loss on the data.

# %% [markdown]
# ## Task 6: what a flat path proves (3 points)
#
# A colleague writes: *"Our AutoNEB run joined two ResNets by a path on which the training loss never exceeds that of the worse end by more than 0.01. Hence there are no barriers in this loss landscape, and all minima are equally good. On the straight line the loss goes up to 2. For a third network our search ended at a saddle of 0.8, so this one is separated by a barrier."*
#
# Say in at most 250 words what these runs prove and what they do not. Take up at least these questions. What does the path found for the first pair prove, what the failed search for the third network? About which minima does "no barriers" speak, if each of them was found by training? What is known about the test error? How must the loss have been evaluated, and batch normalisation treated, for the numbers to mean anything? What did the run cost in gradients, compared with what?
#
# One point is for what a found path, a failed search and a single pair prove; one for how the numbers must have been measured; one for the cost, fairly compared, and one more limit of the colleague's conclusion.

# %% [markdown] nbgrader={"grade": true, "grade_id": "flat_path", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# *One answer.*
#
# - **An upper bound.** The path is a certificate: the lowest possible saddle between *these two* minima is at most what was found, provided that the loss was evaluated densely, between the pivots too, and on all training data. It says nothing about other pairs, nor about minima that training never reaches. Gradient descent and the band prefer the same wide regions.
# - **No lower bound.** The saddle of 0.8 is the result of a search that may have stopped too early, had too few pivots, or rests at a local optimum. It does not show a barrier; a path through another minimum may be lower: by the ultrametric inequality, $\max(L_{AB},L_{BC})$ bounds $L_{AC}$. The straight line's 2 is a value on one path and no barrier between the minima either; much of it is a mismatch of permutations.
# - **Test error** is another function. It must be measured along the path; a flat training loss allows it to rise, and equal training losses do not make the ends equally good.
# - **Batch normalisation.** Running statistics belong to one set of weights. At each point of the path they must be estimated anew from *training* data. Interpolated ones raise the loss, and statistics of the test data flatter it.
# - **Cost.** Pivots times steps: thousands of gradients or more. Compare with as many gradients of further training, or of a Bézier curve. With weight decay and small steps the band also trains: the path may lie below its ends, so "above the worse end" depends on how well these were trained.
#
# *Marks.* 1 for the asymmetry: a found path bounds from above, a failed search bounds nothing, and a pair is not the landscape. 1 for two of: test error measured separately; statistics estimated anew from training data; dense evaluation on all the data. 1 for the cost as pivots times steps with a fair comparison, and one further limit (the straight line's height is no barrier; permutations; the ends not trained to the bottom; selection by optimisation).
