"""Samplers and loaders; everything at quick size is generated or ships inside a dependency."""

from refimpl.data.cifar import augment, cifar
from refimpl.data.digits import digits
from refimpl.data.signals import flower, grid, radial_noise, sum_of_sines
from refimpl.data.toy import GaussianMixture, moons, ring

__all__ = [
    "GaussianMixture",
    "augment",
    "cifar",
    "digits",
    "flower",
    "grid",
    "moons",
    "radial_noise",
    "ring",
    "sum_of_sines",
]
