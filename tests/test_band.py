"""Bands against ASE's elastic band, numpy's interpolation, closed forms on two surfaces, and a loop written by hand."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refimpl import runtime
from refimpl.autodiff import hessian_vector_product
from refimpl.landscape import (
    CURVY_VALLEY_MINIMA,
    EGG_CARTON_MINIMA,
    band_gradient,
    between,
    curvy_valley,
    egg_carton,
    nudged_elastic_band,
    path_length,
    redistribute,
    tangents,
    value_and_gradient,
)
from refimpl.training import TrainingDiverged

F64 = torch.float64
VALLEY, CARTON = torch.tensor(CURVY_VALLEY_MINIMA, dtype=F64), torch.tensor(EGG_CARTON_MINIMA, dtype=F64)


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


def straight(ends, n):
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=ends.dtype)[:, None])


@st.composite
def chains(draw, least=3):
    """A chain, perhaps with pivots that coincide, and weights of its segments."""
    n, dim = draw(st.integers(least, 9)), draw(st.integers(1, 4))
    chain = draw(st.floats(0.01, 100)) * randn(n, dim, seed=draw(st.integers(0, 99)))
    for i in draw(st.sets(st.integers(1, n - 1), max_size=2)):
        chain[i] = chain[i - 1]
    weights = draw(st.lists(st.floats(0.1, 10), min_size=n - 1, max_size=n - 1))
    return chain, torch.tensor(weights, dtype=F64)


# Surfaces


def hessian(surface, point):
    columns = [hessian_vector_product(surface, point, e) for e in torch.eye(2, dtype=F64)]
    return torch.linalg.eigvalsh(torch.stack(columns))


@pytest.mark.parametrize(
    ("surface", "point", "value", "descending"),
    [
        (curvy_valley, VALLEY[0], 0.0, 0),
        (curvy_valley, VALLEY[1], 0.0, 0),
        (curvy_valley, [0.0, 0.0], 1.0, 1),
        (egg_carton, CARTON[0], -2.0, 0),
        (egg_carton, CARTON[1], -2.0, 0),
        (egg_carton, [0.5, 0.0], 0.0, 1),
        (egg_carton, [0.0, 0.0], 2.0, 2),
    ],
)
def test_critical_points_of_the_surfaces(surface, point, value, descending):
    point = torch.as_tensor(point, dtype=F64)
    values, gradients = value_and_gradient(surface, point[None])
    close(values, [value])
    close(gradients, [[0.0, 0.0]])
    assert (hessian(surface, point) < 0).sum() == descending
    assert surface(point.float()).dtype == torch.float32


def test_the_valley_is_as_much_longer_than_its_chord_as_documented():
    from scipy.integrate import quad

    x0 = CURVY_VALLEY_MINIMA[1][0]
    ratio = quad(lambda x: math.sqrt(1 + math.cos(x) ** 2), -x0, x0)[0] / (2 * math.hypot(x0, 1))
    assert ratio == pytest.approx(1.206, abs=5e-4)


# Geometry of the chain


@settings(deadline=None)
@given(chains(least=2))
def test_redistribution_agrees_with_interpolation_by_arc_length(drawn):
    chain, weights = drawn
    new = redistribute(chain, weights)
    arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(chain.numpy(), axis=0), axis=1))])
    wanted = np.cumsum(weights.numpy())[:-1] / weights.numpy().sum() * arc[-1]
    for k in range(chain.shape[1]):
        close(new[1:-1, k], np.interp(wanted, arc, chain[:, k].numpy()), atol=1e-9 * (1 + arc[-1]))
    assert torch.equal(new[[0, -1]], chain[[0, -1]])
    assert path_length(new) <= path_length(chain) * (1 + 1e-12)


def test_redistribution_of_a_straight_line_is_done_at_once():
    line = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.7, 1.4], [1.0, 2.0]], dtype=F64)
    once = redistribute(line)
    close(once, straight(line[[0, -1]], 4))
    close(redistribute(once), once)
    close(redistribute(torch.ones(4, 2)), torch.ones(4, 2))  # no length to distribute


@settings(deadline=None)
@given(chains(), st.integers(1, 5))
def test_dense_points_lie_equally_spaced_on_the_segments(drawn, num_between):
    chain, _ = drawn
    position, points = between(chain, num_between)
    size = num_between + 1
    close(points[::size], chain, atol=0)
    parts = (points[1:] - points[:-1]).unflatten(0, (-1, size))
    close(parts, (chain.diff(dim=0) / size)[:, None].expand_as(parts), atol=1e-9 * (1 + chain.abs().max()))
    arc = torch.cat([torch.zeros(1, dtype=F64), chain.diff(dim=0).norm(dim=1).cumsum(0)])
    close(position[::size], arc / arc[-1] if arc[-1] > 0 else arc)


# Tangent and force


def ase_force(pivots, surface, spring):
    """Force on the inner pivots by ASE's elastic band, one atom a pivot."""
    from ase import Atoms
    from ase.calculators.calculator import Calculator, all_changes
    from ase.mep import NEB

    class Surface(Calculator):
        implemented_properties = ["energy", "forces"]

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            value, gradient = value_and_gradient(surface, torch.tensor(self.atoms.positions[:, :2]))
            self.results = {"energy": value.item(), "forces": np.pad(-gradient.numpy(), ((0, 0), (0, 1)))}

    images = [Atoms("H", positions=[[*p, 0.0]], calculator=Surface()) for p in pivots.tolist()]
    return torch.tensor(NEB(images, k=spring, method="improvedtangent").get_forces()[:, :2])


@pytest.mark.parametrize("surface", [curvy_valley, egg_carton])
@pytest.mark.parametrize("spring", [0.01, 3.0])
def test_force_is_that_of_ase(surface, spring):
    kinds = set()
    for seed in range(5):
        pivots = straight(VALLEY, 12) + 0.4 * randn(12, 2, seed=seed)
        values, gradients = value_and_gradient(surface, pivots)
        close(-band_gradient(pivots, values, gradients, spring=spring), ase_force(pivots, surface, spring))
        kinds |= {*zip((values.diff()[:-1] > 0).tolist(), (values.diff()[1:] > 0).tolist(), strict=True)}
    assert len(kinds) == 4  # rising, falling, maximum, minimum


def test_tangent_points_to_the_higher_neighbour():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=F64)
    forward, backward = [[0.0, 1.0]], [[1.0, 0.0]]
    for values, expected in [
        ((0, 1, 2), forward),
        ((2, 1, 0), backward),
        ((0, 0, 1), forward),
        ((1, 0, 0), backward),
        ((0, 3, 1), [[2 / math.sqrt(40), 6 / math.sqrt(40)]]),  # maximum: 2 backward + 3 forward steps
        ((3, 0, 1), [[3 / math.sqrt(13), 2 / math.sqrt(13)]]),  # minimum: 3 backward + 1 forward steps
        ((1, 1, 1), [[1 / math.sqrt(5), 2 / math.sqrt(5)]]),
    ]:
        close(tangents(corner, torch.tensor(values, dtype=F64)), expected)


@settings(deadline=None)
@given(chains(), st.integers(0, 99), st.sampled_from([1e-30, 1.0, 1e30]))
def test_tangents_are_unit_vectors_whatever_the_loss_is_measured_in(drawn, seed, scale):
    chain, _ = drawn
    assume(chain.shape[1] > 1)  # on a line, a fold may have no direction
    values = randn(len(chain), seed=1000 + seed)
    found = tangents(chain, scale * values)
    close(found, tangents(chain, values))
    stuck = (chain.diff(dim=0) == 0).all(1)
    moving = ~(stuck[:-1] | stuck[1:])
    close(found[moving].norm(dim=1), torch.ones(int(moving.sum()), dtype=F64))
    across = band_gradient(chain, values, randn(*chain.shape, seed=2000 + seed))
    close((across * found).sum(1), torch.zeros(len(chain) - 2, dtype=F64))


def test_springs_pull_towards_the_longer_segment_and_along_the_path_only():
    pivots, flat = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]], dtype=F64), torch.zeros(3, dtype=F64)
    close(-band_gradient(pivots, flat, 0 * pivots, spring=2.0), [[4.0, 0.0]])
    fits = torch.tensor([1.0, 3.0], dtype=F64)
    close(band_gradient(pivots, flat, 0 * pivots, spring=2.0, weights=fits), [[0.0, 0.0]])
    close(-band_gradient(pivots, flat, 0 * pivots, spring=2.0, weights=fits.flip(0)), [[8.0, 0.0]])
    bent = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, 0.0]], dtype=F64)
    close(band_gradient(bent, flat, 0 * bent, spring=2.0), [[0.0, 0.0]])


# Relaxation


@pytest.mark.parametrize("surface", [lambda p: 0 * p[:, 0], lambda p: 3 * p.sum(1)])
@pytest.mark.parametrize("spring", [math.inf, 1.0])
def test_even_line_along_the_gradient_is_a_fixed_point(surface, spring):
    line = straight(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64), 6)
    band, _ = nudged_elastic_band(line, surface, num_steps=20, lr=0.1, momentum=0.9, spring=spring)
    close(band, line)


@functools.cache
def descent_from_the_pass():
    """Steepest descent from the valley's saddle to its right minimum, which is half of the minimum energy path."""
    from scipy.integrate import solve_ivp

    def downhill(_, p):
        return -value_and_gradient(curvy_valley, torch.tensor(p)[None])[1][0].numpy()

    unstable = torch.linalg.eigh(torch.func.hessian(curvy_valley)(torch.zeros(2, dtype=F64))).eigenvectors[:, 0]
    start = 1e-2 * (unstable * unstable[0].sign()).numpy()
    return solve_ivp(downhill, (0, 500), start, method="LSODA", rtol=1e-6, atol=1e-9, max_step=2).y


@pytest.mark.parametrize("spring", [math.inf, 1.0, 0.01])
def test_relaxed_band_follows_steepest_descent_from_the_saddle(spring):
    band, history = nudged_elastic_band(straight(VALLEY, 41), curvy_valley, num_steps=1200, lr=0.04, spring=spring)
    x, y = descent_from_the_pass()
    half = band[band[:, 0] > 0.1].numpy()
    assert np.abs(np.interp(half[:, 0], x, y) - half[:, 1]).max() < 0.025  # 0.018 at this spacing, 0.011 at half of it
    assert np.abs(y - np.sin(x)).max() < 0.05  # as the surface's docstring says
    values, gradients = value_and_gradient(curvy_valley, band)
    assert values.max().item() == pytest.approx(1, abs=1e-3) == history.loss[-1]
    assert band_gradient(band, values, gradients).norm(dim=1).max() < 1e-3
    assert torch.equal(band[[0, -1]], VALLEY)
    if spring == math.inf:
        lengths = band.diff(dim=0).norm(dim=1)
        assert lengths.max() / lengths.min() < 1.01


def test_ridge_is_left_only_from_a_bent_start():
    line = straight(CARTON, 21)
    bend = 0.05 * torch.sin(math.pi * torch.linspace(0, 1, 21, dtype=F64))[:, None] * torch.tensor([1.0, -1.0])
    bend[-1] = 0
    on_ridge, _ = nudged_elastic_band(line, egg_carton, num_steps=200, lr=0.005)
    assert egg_carton(on_ridge).max() == 2
    around, _ = nudged_elastic_band(line + bend, egg_carton, num_steps=600, lr=0.005)
    assert egg_carton(between(around, 9)[1]).max().item() == pytest.approx(0, abs=0.01)
    assert (path_length(around) / path_length(line)).item() == pytest.approx(math.sqrt(2), abs=0.01)


@pytest.mark.parametrize("spring", [math.inf, 0.5])
def test_equals_a_loop_written_by_hand(spring):
    start, target = straight(VALLEY, 6) + 0.3 * randn(6, 2), randn(40, 2, seed=1)
    weights, shuffled = torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0], dtype=F64), runtime.generator(3)
    options = dict(lr=0.03, momentum=0.8, weight_decay=0.1, spring=spring, weights=weights)
    batches = dict(data=target, batch_size=20, generator=runtime.generator(3))

    def loss(points, batch):
        return curvy_valley(points) + (points[:, None] - batch).square().mean((1, 2))

    band, history = nudged_elastic_band(start, loss, num_steps=4, **options, **batches)
    assert torch.equal(start[[0, -1]], band[[0, -1]])

    p, velocity, best, target_length = start.clone(), torch.zeros(4, 2, dtype=F64), [], weights / 8
    for step in range(4):
        if step % 2 == 0:
            order = torch.randperm(40, generator=shuffled)
        batch = target[order[20 * (step % 2) :][:20]]
        if spring == math.inf:
            p = redistribute(p, weights)
        values, gradients = value_and_gradient(loss, p, batch)
        best.append(values.max().item())
        for i in range(1, 5):
            t = tangents(p, values)[i - 1]
            g = gradients[i] + 0.1 * p[i]
            g = g - (g @ t) * t
            if spring != math.inf:
                d = (p[1:] - p[:-1]).norm(dim=1)
                g = g - spring * ((d[i] - target_length[i] * d.sum()) - (d[i - 1] - target_length[i - 1] * d.sum())) * t
            velocity[i - 1] = 0.8 * velocity[i - 1] + g
        p = torch.cat([p[:1], p[1:-1] - 0.03 * velocity, p[-1:]])
    close(band, p)
    assert history.loss == pytest.approx(best)


def test_gradients_are_those_of_finite_differences_in_chunks_too():
    points, steps = randn(7, 2), 1e-6 * torch.eye(2, dtype=F64)
    values, gradients = value_and_gradient(curvy_valley, points)
    numeric = torch.stack([(curvy_valley(points + h) - curvy_valley(points - h)) / 2e-6 for h in steps], dim=1)
    close(gradients, numeric, atol=1e-7)
    close(values, curvy_valley(points))

    class Chunked:
        chunk_size, sizes = 3, []

        def __call__(self, points):
            self.sizes.append(len(points))
            return curvy_valley(points)

    chunked = Chunked()
    for a, b in zip(value_and_gradient(chunked, points), (values, gradients), strict=True):
        close(a, b)
    assert chunked.sizes == [3, 3, 1]


def test_dtype_follows_the_pivots():
    band, _ = nudged_elastic_band(
        straight(VALLEY.float(), 5), curvy_valley, num_steps=3, lr=0.01, weights=torch.ones(4)
    )
    assert band.dtype == torch.float32 and not band.requires_grad


@pytest.mark.parametrize("lr", [50.0, 1e30])
def test_divergence_is_named_as_such(lr):
    with pytest.raises(TrainingDiverged, match="smaller lr"):
        nudged_elastic_band(straight(VALLEY, 5) + 0.1, lambda p: (p**4).sum(1), num_steps=300, lr=lr)


def test_checkpoint_of_another_band_is_refused(tmp_path):
    start, options = straight(VALLEY, 5), dict(num_steps=3, lr=0.01, checkpoint=tmp_path / "band.pt")
    first, _ = nudged_elastic_band(start, curvy_valley, **options)
    assert torch.equal(first, nudged_elastic_band(start, curvy_valley, **options)[0])
    uneven = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=start.dtype)
    for other, change in (
        (start + 1, {}),
        (start, {"spring": 1.0}),
        (start, {"weight_decay": 0.1}),
        (start, {"weights": uneven}),
    ):
        with pytest.raises(ValueError, match="different run"):
            nudged_elastic_band(other, curvy_valley, **options | change)
