"""Patches of photographs and dead leaves: sizes, ranges, separation of train and test, and the law of the leaves."""

import jaxtyping
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_sample_images

from refimpl.data import dead_leaves, photograph_patches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_patches_are_cut_from_the_photographs_in_rows():
    # With stride 1 along a row of patches, the first pixels are the photograph itself.
    photo = np.asarray(load_sample_images().images[0], dtype=float)
    grey = photo @ [0.299, 0.587, 0.114] / 127.5 - 1
    patches = photograph_patches(8, stride=1)
    a_row = (440 - 8) + 1
    first, below = patches[:a_row, 0], patches[a_row, :8]
    assert np.allclose(first.numpy(), grey[0, :a_row], atol=1e-6)
    assert np.allclose(below.numpy(), grey[1, :8], atol=1e-6)
    assert -1 <= patches.min() < -0.9 and 0.9 < patches.max() <= 1


def test_train_and_test_never_share_a_pixel(monkeypatch):
    # Photographs whose pixels say in which column they stand.
    column = np.broadcast_to(np.arange(640) // 3, (427, 640))[..., None].repeat(3, -1).astype(np.uint8)
    columns_of = type("Photos", (), {"images": [column, column]})()
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: columns_of)
    decoded = [(photograph_patches(8, split=split, stride=3) + 1) * 127.5 * 3 for split in ("train", "test")]
    assert decoded[0].max() < 440 and decoded[0].min() == 0
    assert decoded[1].min() > 437 and decoded[1].max() > 630  # columns in threes: 438 to 440 look alike


def test_patches_fill_each_part():
    for split, columns in (("train", 440), ("test", 200)):
        for size in (8, 16, 64):
            assert photograph_patches(size, split=split).shape == (2 * (427 // size) * (columns // size), size**2)
    assert len(photograph_patches(16, stride=4)) == 2 * ((427 - 16) // 4 + 1) * ((440 - 16) // 4 + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: photograph_patches(0), r"size: got 0, expected a whole number >= 1"),
        (lambda: photograph_patches(201), r"size: got 201, expected at most 200"),
        (lambda: photograph_patches(8, stride=0), r"stride: got 0"),
        (lambda: photograph_patches(8, split="val"), r"split: got 'val', expected 'train' or 'test'"),
        (lambda: dead_leaves(0, 8), r"n: got 0"),
        (lambda: dead_leaves(1, 8, channels=0), r"channels: got 0"),
        (lambda: dead_leaves(1, 8, radii=(3.0, 2.0)), r"radii: got \(3.0, 2.0\), expected the smallest and a larger"),
        (lambda: dead_leaves(1, 8, radii=(0.1, 2.0)), r"radii: got \(0.1, 2.0\)"),
        (lambda: dead_leaves(1, 8, radii=(1.0, 2.0, 3.0)), r"radii: got"),
    ],
)
def test_bad_input(monkeypatch, call, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(ValueError, match=message):
        call()


def test_leaves_follow_the_seed_and_the_range():
    a, b, c = (dead_leaves(5, 16, generator(seed), channels=3) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (5, 768) and a.dtype == torch.float32
    assert -1 <= a.min() and a.max() <= 1
    wide = dead_leaves(2, 8, generator(), like=torch.empty((), dtype=torch.float64))
    assert wide.dtype == torch.float64


def test_leaves_cover_every_pixel_with_uniform_colours():
    images = dead_leaves(400, 8, generator())  # more than one block
    assert images.shape == (400, 64)
    assert (images != 0).all()  # where no disc fell there would be a 0
    # One pixel an image: independent, uniform in [-1, 1].
    assert stats.kstest(images[:, 27].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_colours_of_a_disc_agree_between_pixels_but_not_between_channels():
    one = dead_leaves(1, 16, generator(3), channels=3).reshape(3, -1).T
    colours = one.unique(dim=0)
    assert 3 < len(colours) < 150
    assert all(len(set(colour.tolist())) == 3 for colour in colours)


def same_leaf(distance, small, large, power=3):
    """P(two pixels show the same leaf) = both / (one or both), of a disc of random radius (Lee et al. 2001, Section 2)."""
    r = np.linspace(small, large, 20_001)
    density = r ** -float(power)
    half = np.clip(distance / (2 * r), 0, 1)
    lens = 2 * r**2 * (np.arccos(half) - half * np.sqrt(1 - half**2))  # area in which a centre covers both
    both, single = np.trapezoid(lens * density, r), np.trapezoid(np.pi * r**2 * density, r)
    return both / (2 * single - both)


@pytest.mark.parametrize("distance", [1, 4])
def test_neighbours_share_a_leaf_as_often_as_theory_says(distance):
    small, large = 1.0, 6.0
    images = dead_leaves(1500, 16, generator(7), radii=(small, large)).reshape(-1, 16, 16)
    for a, b in ((images[:, 2, 3], images[:, 2, 3 + distance]), (images[:, 0, 0], images[:, distance, 0])):
        share, p = (a == b).double().mean().item(), same_leaf(distance, small, large)
        assert abs(share - p) < 4 * (p * (1 - p) / len(images)) ** 0.5
        # The test can tell another law of radii.
        assert abs(share - same_leaf(distance, small, large, power=2)) > 5 * (p * (1 - p) / len(images)) ** 0.5
