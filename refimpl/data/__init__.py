"""Samplers and loaders; everything at quick size is generated or ships inside a dependency."""

from refimpl.data.cifar import augment, cifar
from refimpl.data.digits import digits
from refimpl.data.signals import flower, grid, radial_noise, sum_of_sines

__all__ = ["augment", "cifar", "digits", "flower", "grid", "radial_noise", "sum_of_sines"]
