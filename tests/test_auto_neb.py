"""AutoNEB: what insertion keeps and adds, the schedule's bookkeeping, and the same bits after an interruption."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from refimpl import runtime
from refimpl.landscape import (
    CURVY_VALLEY_MINIMA,
    AutoNEBPath,
    Cycle,
    NetworkLoss,
    auto_neb,
    between,
    curvy_valley,
    insert_pivots,
)
from refimpl.nets import mlp

F64 = torch.float64
VALLEY = torch.tensor(CURVY_VALLEY_MINIMA, dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=runtime.generator(seed))


# Insertion


@settings(deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(1, 3), st.floats(0, 0.5), st.integers(0, 999))
def test_insertion_agrees_with_a_search_point_by_point(n, num_between, count, threshold, seed):
    chain, values = randn(n, 3, seed=seed), randn((n - 1) * (num_between + 1) + 1, seed=seed + 1)
    weights = torch.rand(n - 1, dtype=F64, generator=runtime.generator(seed)) + 0.1
    new, new_weights = insert_pivots(chain, weights, values, max_insertions=count, threshold=threshold)

    size = num_between + 1
    at_pivots = values[::size].tolist()
    scale = max(at_pivots) - min(at_pivots)
    worst = []
    for i in range(n - 1):
        rises = [
            (values[i * size + j].item() - (1 - j / size) * at_pivots[i] - j / size * at_pivots[i + 1], j)
            for j in range(1, size)
        ]
        worst.append((*max(rises), i))
    assume(scale > 1e-3 and all(abs(w[0] / scale - threshold) > 1e-6 for w in worst))
    splits = {i: j / size for rise, j, i in sorted(worst)[-count:] if rise > threshold * scale}

    expected, expected_weights = [], []
    for i in range(n - 1):
        expected.append(chain[i])
        if i in splits:
            expected.append(between(chain, num_between)[1][i * size + round(splits[i] * size)])
        parts = [splits[i], 1 - splits[i]] if i in splits else [1.0]
        expected_weights += [part * weights[i].item() for part in parts]
    torch.testing.assert_close(new, torch.stack([*expected, chain[-1]]))
    torch.testing.assert_close(new_weights, torch.tensor(expected_weights, dtype=F64) / weights.sum())
    assert len(new) - len(chain) == len(splits) <= count


def test_no_pivot_where_the_loss_is_straight_between_pivots():
    pivots = torch.tensor([0.0, 1.0, 0.5, 2.0, 2.0], dtype=F64)
    values = between(pivots[:, None], 4)[1][:, 0]
    chain, weights = randn(5, 2), torch.full((4,), 0.25, dtype=F64)
    new, new_weights = insert_pivots(chain, weights, values, threshold=1e-6)
    assert torch.equal(new, chain) and torch.equal(new_weights, weights)
    bump = values.clone()
    bump[7] += 0.199  # the pivots' losses have a range of 2
    assert len(insert_pivots(chain, weights, bump)[0]) == 5
    bump[7] += 0.002
    assert len(insert_pivots(chain, weights, bump)[0]) == 6


# Cycles


def test_cycles_keep_what_was_done():
    calls = []

    def loss(points):
        calls.append(len(points))
        return curvy_valley(points)

    path = auto_neb(*VALLEY, loss, schedule=[(40, 0.02)] * 4, evaluate=curvy_valley, num_between=4)
    assert [len(c.pivots) for c in path.cycles] == [5, 7, 9, 11]
    assert calls == [n for n in (5, 7, 9, 11) for _ in range(40)]
    for cycle in path.cycles:
        positions, points = between(cycle.pivots, 4)
        torch.testing.assert_close(cycle.values, curvy_valley(points), atol=0, rtol=0)
        torch.testing.assert_close(cycle.values[::5], curvy_valley(cycle.pivots), atol=0, rtol=0)
        assert torch.equal(cycle.positions, positions)
        assert torch.equal(cycle.pivots[[0, -1]], VALLEY)
        assert cycle.num_gradients == 40 * len(cycle.pivots)
        assert cycle.weights.sum().item() == pytest.approx(1) and len(cycle.weights) == len(cycle.pivots) - 1
        assert cycle.saddle == curvy_valley(points).max()


def test_the_best_cycle_counts_not_the_last():
    path = auto_neb(*VALLEY, curvy_valley, schedule=[(100, 0.04)] * 3 + [(3, 1.0)])
    saddles = [cycle.saddle for cycle in path.cycles]
    assert saddles[-1] > 2 * min(saddles)
    assert path.saddle == min(saddles) and path.pivots is path.cycles[saddles.index(min(saddles))].pivots
    values = [torch.tensor([0.0, v]) for v in (3.0, 1.0, 2.0)]
    assert AutoNEBPath(tuple(Cycle(v, v, v, v, 1) for v in values)).saddle == 1.0


@pytest.mark.parametrize("spring", [float("inf"), 1.0, 0.01])
def test_finds_the_pass_of_the_valley(spring):
    path = auto_neb(*VALLEY, curvy_valley, schedule=[(150, 0.04)] * 8, spring=spring, threshold=0.01)
    saddles = [cycle.saddle for cycle in path.cycles]
    assert saddles[0] > 2.5 and path.saddle == pytest.approx(1, abs=1e-3)


def test_first_band_may_be_given():
    initial = torch.stack([VALLEY[0], VALLEY.flip(1)[1] * torch.tensor([-0.2, 0.2]), VALLEY[1]])
    path = auto_neb(*VALLEY, curvy_valley, schedule=[(1, 1e-9)], initial=initial)
    torch.testing.assert_close(path.pivots, initial)


# Interruption


def problem():
    torch.manual_seed(0)
    ends = [mlp(2, 2, width=4, depth=2).double() for _ in range(2)]
    loss = NetworkLoss(ends[0], F.cross_entropy)
    x = randn(60, 2)
    return [loss.vector(net) for net in ends], loss, (x, (x.prod(1) > 0).long())


def run(folder, loss, ends, data, seed=1):
    source = runtime.generator(seed)

    def augment(x, *rest):  # its numbers come from the generator whose state the checkpoints hold
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype, generator=source), *rest

    options = dict(momentum=0.9, weight_decay=1e-3, batch_size=20, transform=augment, generator=source)
    return auto_neb(*ends, loss, schedule=[(8, 0.3)] * 3, num_between=3, data=data, checkpoint=folder, **options)


@pytest.mark.parametrize("interrupted_after", [3, 11, 23])
def test_interrupted_run_ends_with_the_same_bits(tmp_path, interrupted_after):
    ends, loss, data = problem()
    whole = run(None, loss, ends, data)
    calls = 0

    def fails(points, *batch):
        nonlocal calls
        calls += len(batch[0]) == 20  # the dense evaluation sees all samples
        if calls > interrupted_after:
            raise KeyboardInterrupt
        return loss(points, *batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fails, ends, data)
    resumed = run(tmp_path, loss, ends, data)
    finished = run(tmp_path, loss, ends, data)  # reads the cycles, makes no step
    for path in (resumed, finished):
        for a, b in zip(path.cycles, whole.cycles, strict=True):
            assert torch.equal(a.pivots, b.pivots) and torch.equal(a.values, b.values)
            assert torch.equal(a.weights, b.weights)


def test_checkpoints_of_another_pair_or_seed_are_refused(tmp_path):
    ends, loss, data = problem()
    run(tmp_path, loss, ends, data)
    with pytest.raises(ValueError, match="different run"):
        run(tmp_path, loss, ends[::-1], data)
    with pytest.raises(ValueError, match="different run: seed"):
        run(tmp_path, loss, ends, data, seed=2)


def test_options_that_the_schedule_sets_are_refused():
    with pytest.raises(TypeError, match="lr"):
        auto_neb(*VALLEY, curvy_valley, schedule=[(1, 0.1)], lr=0.2)


def test_data_may_be_one_tensor():
    path = auto_neb(*VALLEY, lambda p, x: curvy_valley(p) + x.mean(), schedule=[(1, 0.1)], data=torch.ones(4))
    torch.testing.assert_close(path.best.values[0].item(), 1.0)
