"""Samplers and loaders; everything at quick size is generated or ships inside a dependency."""

from refimpl.data.digits import digits
from refimpl.data.signals import flower, grid, radial_noise, sum_of_sines

__all__ = ["digits", "flower", "grid", "radial_noise", "sum_of_sines"]
