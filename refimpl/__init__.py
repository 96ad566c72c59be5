"""Compact PyTorch reference implementations: one method, one module.

Chapter ``NN_name`` of the course derives a method; the module of the same name implements it. Import the module that
you need, e.g. ``from refimpl import spectral_bias``; importing ``refimpl`` alone loads nothing but its version.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("refimpl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
