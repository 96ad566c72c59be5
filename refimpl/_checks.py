"""Checks of arguments that several modules share; every message names the argument, what came and what was expected."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def check_sizes(**sizes: Any) -> None:
    """Raise ValueError naming the first that is not a whole number >= 1."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a whole number >= 1")


def check_positive(name: str, value: Any, unit: str = "") -> None:
    """Raise ValueError unless ``value`` is a finite number above 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value!r}, expected a finite number > 0{f' ({unit})' if unit else ''}")


def check_numbers(
    name: str, values: Any, *, low: float | int = -math.inf, high: float | int = math.inf, whole: bool = False
) -> None:
    """Raise ValueError unless ``values`` is a sequence of one or more finite (whole) numbers in [low, high)."""
    known = isinstance(values, Sequence) and all(isinstance(v, Real) and math.isfinite(v) for v in values)
    if not known or not values or not all(low <= v < high and (not whole or v == int(v)) for v in values):
        where = "" if low == -math.inf else f" >= {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
        raise ValueError(
            f"{name}: got {values!r}, expected one or more {'whole' if whole else 'finite'} numbers{where}"
        )


def image_shape(shape: Any) -> tuple[int, int, int]:
    """(channels, height, width); raise ValueError unless ``shape`` is that, or (height, width)."""
    if not isinstance(shape, Sequence) or len(shape) not in (2, 3):
        raise ValueError(f"shape: got {shape!r}, expected (height, width) or (channels, height, width)")
    check_sizes(**{f"shape[{i}]": n for i, n in enumerate(shape)})
    return (*[1] * (3 - len(shape)), *shape)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of the first shape can be expanded to the second."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))


def check_tensor(name: str, value: Any, shape: str, like: Tensor | None = None, some: bool = False) -> None:
    """Raise TypeError or ValueError unless ``value`` is a finite floating-point tensor of that shape.

    Args:
        name: the argument.
        value: what came.
        shape: what is expected, such as ``"(n, dim)"``, ``"(m, 2)"``, ``"(n, n)"`` or ``"(*batch, n)"``; numbers must
            match, and equal names mean equal sizes.
        like: tensor whose floating-point type ``value`` must have.
        some: whether it must hold at least one number.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor of shape {shape}")
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{name}: got {value.dtype}, expected {like.dtype} like the other arguments")
    sizes = [size.strip() for size in shape.strip("()").split(",") if size.strip()]
    batched = sizes[0].startswith("*")
    sizes = sizes[batched:]
    fits = value.ndim >= len(sizes) if batched else value.ndim == len(sizes)
    last = value.shape[value.ndim - len(sizes) :] if fits else ()
    known = dict(zip(sizes, last, strict=False))
    if not fits or any(n != (int(s) if s.isdecimal() else known[s]) for s, n in zip(sizes, last, strict=True)):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {shape}")
    if some and not value.numel():
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, which holds nothing; expected at least one point")
    if not value.isfinite().all():
        raise ValueError(f"{name}: has values that are not finite")
