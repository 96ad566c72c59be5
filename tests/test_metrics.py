"""Distances between samples, each against an independent oracle; the bundled tables."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from refimpl import runtime
from refimpl.data.tabular import load_tabular, split_folds
from refimpl.metrics import median_bandwidth, mmd_squared, sliced_wasserstein


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=runtime.generator(seed))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (50, 50), (30, 45), (7, 64), (64, 7)])
def test_one_dimension_is_the_exact_wasserstein_distance(n, m):
    x, y = normal(n, 1), 2 * normal(m, 1, seed=1) + 0.3
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, num_projections=3).item() == pytest.approx(expected, rel=1e-12)


def test_a_shift_has_its_closed_form_for_every_order_that_has_one():
    x, shift = normal(40, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    measured = sliced_wasserstein(x, x + shift, num_projections=20_000, generator=runtime.generator(1))
    assert measured.item() == pytest.approx(shift.norm().item() / math.sqrt(3), rel=0.02)


def test_two_gaussians_have_the_distance_of_their_scales():
    x, y = normal(20_000, 4), 2.5 * normal(30_000, 4, seed=1)
    assert sliced_wasserstein(x, y, generator=runtime.generator(2)).item() == pytest.approx(1.5, rel=0.02)


def test_unequal_sizes_agree_with_repeated_samples():
    x, y = normal(6, 2), normal(4, 2, seed=1)
    apart = sliced_wasserstein(x, y, generator=runtime.generator(3))
    repeated = sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1), generator=runtime.generator(3))
    assert apart.item() == pytest.approx(repeated.item(), rel=1e-12)


def test_sliced_wasserstein_is_a_symmetric_differentiable_distance():
    x, y = normal(20, 2).requires_grad_(), normal(20, 2, seed=1)
    there, back = (sliced_wasserstein(a, b, generator=runtime.generator(4)) for a, b in ((x, y), (y, x)))
    assert there.item() == pytest.approx(back.item(), rel=1e-12) and there > 0
    assert sliced_wasserstein(x, x[torch.randperm(20, generator=runtime.generator(5))]).item() == 0
    assert torch.autograd.gradcheck(lambda x: sliced_wasserstein(x, y, generator=runtime.generator(4)), x)


def test_the_same_seed_gives_the_same_distance():
    x, y = normal(20, 5), normal(20, 5, seed=1)
    first, second = (sliced_wasserstein(x, y, generator=runtime.generator(6)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_is_the_sum_over_pairs(unbiased):
    x, y, h = normal(5, 3), normal(7, 3, seed=1), 0.8

    def mean_kernel(a, b, skip=False):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (skip and i == j)]
        return np.mean([math.exp(-((a[i] - b[j]).norm().item() ** 2) / (2 * h * h)) for i, j in pairs])

    expected = mean_kernel(x, x, unbiased) + mean_kernel(y, y, unbiased) - 2 * mean_kernel(x, y)
    assert mmd_squared(x, y, bandwidth=h, unbiased=unbiased).item() == pytest.approx(expected, rel=1e-10)


def test_mmd_of_two_gaussians_has_its_closed_form():
    dim, h, shift = 2, 1.3, 1.0
    x, y = normal(4000, dim), normal(4000, dim, seed=1)
    y[:, 0] += shift
    same = (h * h / (h * h + 2)) ** (dim / 2)
    expected = 2 * same * (1 - math.exp(-(shift**2) / (2 * (h * h + 2))))
    assert mmd_squared(x, y, bandwidth=h).item() == pytest.approx(expected, rel=0.1)


def test_the_unbiased_estimate_is_zero_on_average_and_the_biased_one_is_not():
    trials = [
        [
            mmd_squared(normal(10, 2, seed=2 * i), normal(10, 2, seed=2 * i + 1), bandwidth=1.0, unbiased=u)
            for u in (True, False)
        ]
        for i in range(300)
    ]
    unbiased, biased = torch.tensor(trials, dtype=torch.float64).T
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(300)
    assert biased.min() >= 0 and biased.mean() > 10 * biased.std() / math.sqrt(300)


def test_several_bandwidths_are_averaged_and_none_is_the_median():
    x, y = normal(20, 2), normal(30, 2, seed=1)
    both = [mmd_squared(x, y, bandwidth=h).item() for h in (0.5, 2.0)]
    assert mmd_squared(x, y, bandwidth=[0.5, 2.0]).item() == pytest.approx(sum(both) / 2)
    points = [*x, *y]
    expected = np.median([(a - b).norm().item() for i, a in enumerate(points) for b in points[:i]])
    assert median_bandwidth(x, y) == pytest.approx(expected, rel=1e-2)
    assert mmd_squared(x, y) == mmd_squared(x, y, bandwidth=median_bandwidth(x, y))


def test_mmd_does_not_lose_digits_far_from_the_origin_and_is_differentiable():
    x, y = normal(20, 2), normal(20, 2, seed=1)
    near, far = (mmd_squared((x + at).float(), (y + at).float(), bandwidth=1.0).item() for at in (0, 1000))
    assert near == pytest.approx(far, abs=1e-4)
    assert torch.autograd.gradcheck(lambda x: mmd_squared(x, y, bandwidth=1.0), x.requires_grad_())


@pytest.mark.parametrize("distance", [sliced_wasserstein, mmd_squared])
@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (torch.zeros(3), torch.zeros(3, 1), "x"),
        (torch.zeros(3, 2), torch.zeros(3, 1), "y"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64), "y"),
        (torch.zeros(0, 2), torch.zeros(3, 2), "x"),
        (torch.zeros(3, 0), torch.zeros(3, 0), "x"),
        (torch.zeros(3, 2), torch.full((3, 2), math.nan), "y"),
    ],
)
def test_bad_samples_are_named(distance, x, y, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        distance(x, y)


def test_bad_settings_are_named():
    x = normal(3, 2)
    for settings, named in (({"p": 0.5}, "p"), ({"p": math.inf}, "p"), ({"num_projections": 0}, "num_projections")):
        with pytest.raises(ValueError, match=f"^{named}: "):
            sliced_wasserstein(x, x, **settings)
    for bandwidth in (0.0, -1.0, math.nan, [], [1.0, 0.0]):
        with pytest.raises(ValueError, match="^bandwidth: "):
            mmd_squared(x, x, bandwidth=bandwidth)
    with pytest.raises(ValueError, match="^x, y: most points coincide"):
        median_bandwidth(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="^x: .* at least 2"):
        mmd_squared(x[:1], x, bandwidth=1.0)


@pytest.mark.parametrize(
    ("name", "shape"), [("breast_cancer", (569, 30)), ("diabetes", (442, 10)), ("iris", (150, 4)), ("wine", (178, 13))]
)
def test_tables_are_complete_and_in_their_own_units(name, shape):
    x, names = load_tabular(name)
    assert tuple(x.shape) == shape and len(names) == shape[1] and x.dtype == torch.float32
    assert x.isfinite().all() and x.abs().max() > 5  # scikit-learn's scaled diabetes table stays below 0.2


def test_columns_come_in_the_order_asked_for():
    x, names = load_tabular("wine", ["hue", "alcohol"], dtype=torch.float64)
    whole, columns = load_tabular("wine", dtype=torch.float64)
    assert names == ["hue", "alcohol"]
    assert torch.equal(x, whole[:, [columns.index("hue"), columns.index("alcohol")]])


def test_unknown_tables_and_columns_are_named():
    with pytest.raises(ValueError, match="^name: got 'digits'"):
        load_tabular("digits")
    for features in (["hue", "colour"], []):
        with pytest.raises(ValueError, match="^features: "):
            load_tabular("wine", features)


@pytest.mark.parametrize("num_folds", [2, 5, 11])
def test_every_row_is_held_out_once(num_folds):
    folds = split_folds(11, num_folds, runtime.generator(0))
    assert torch.cat([held_out for _, held_out in folds]).sort().values.tolist() == list(range(11))
    for train, held_out in folds:
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(11))


@pytest.mark.parametrize("num_folds", [0, 1, 12])
def test_impossible_folds_are_named(num_folds):
    with pytest.raises(ValueError, match="^num_folds: "):
        split_folds(11, num_folds)
