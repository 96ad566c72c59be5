"""scikit-learn's bundled handwritten digits: 1797 grey images of 8 x 8 pixels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["digits"]


def digits(classes: Sequence[int] | None = None) -> tuple[Float[Tensor, "n 64"], Int[Tensor, " n"]]:
    """Images as rows of 64 pixels in [0, 1], and their digits, in the data set's own order.

    Args:
        classes: which digits to keep (default: all ten).

    Raises:
        ValueError: if a class is not a digit 0..9 or none is asked for.

    >>> x, y = digits([3, 8])
    >>> tuple(x.shape), sorted(set(y.tolist()))
    ((357, 64), [3, 8])
    """
    from sklearn.datasets import load_digits

    if classes is not None:
        known = isinstance(classes, Sequence) and all(type(c) is int and 0 <= c <= 9 for c in classes)
        if not known or len(classes) == 0:
            raise ValueError(f"classes: got {classes!r}, expected a list of some of the digits 0..9")
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    if classes is None:
        return x, y
    keep = torch.isin(y, torch.tensor(list(classes)))
    return x[keep], y[keep]
