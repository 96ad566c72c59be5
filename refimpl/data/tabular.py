"""Tables of real measurements that come with scikit-learn: nothing is downloaded."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["TABLES", "load_tabular", "split_folds"]

TABLES = ("breast_cancer", "diabetes", "iris", "wine")


def load_tabular(
    name: str, features: Sequence[str] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "rows features"], list[str]]:
    """Measurements of one table, in its own units, without the class labels.

    ==================  =====================================================  ====  ========
    name                what a row is                                          rows  features
    ==================  =====================================================  ====  ========
    ``breast_cancer``   cell nuclei of one tumour, measured in an image         569        30
    ``diabetes``        a patient's age, body mass index, blood values          442        10
    ``iris``            a flower's sepals and petals, cm                        150         4
    ``wine``            a wine's chemical analysis                              178        13
    ==================  =====================================================  ====  ========

    Args:
        name: one of the four.
        features: names of the columns that you want, in that order; all if None.
        dtype: floating-point type of the result.

    Returns:
        The values on the CPU, shape (rows, features), and the columns' names.

    Raises:
        ValueError: if `name` or a feature is unknown, or `features` is empty.

    >>> x, names = load_tabular("breast_cancer", ["mean area", "area error"])
    >>> tuple(x.shape), names
    ((569, 2), ['mean area', 'area error'])
    """
    if name not in TABLES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(TABLES)}")
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    columns = [str(column) for column in table.feature_names]
    wanted = columns if features is None else list(features)
    unknown = [column for column in wanted if column not in columns]
    if unknown or not wanted:
        raise ValueError(f"features: got {unknown or wanted}, expected some of {', '.join(columns)}")
    return torch.tensor(table.data[:, [columns.index(column) for column in wanted]], dtype=dtype), wanted


def split_folds(rows: int, num_folds: int, generator: torch.Generator | None = None) -> list[tuple[Tensor, Tensor]]:
    """Random folds for cross-validation: every row is held out exactly once.

    Args:
        rows: number of rows.
        num_folds: number of folds, 2 to `rows`.
        generator: source of the random order; torch's global one if None.

    Returns:
        For each fold the indices of the rows to train on and of those held out.

    Raises:
        ValueError: if `num_folds` is less than 2 or more than `rows`.

    >>> [(len(train), len(held_out)) for train, held_out in split_folds(5, 2)]
    [(2, 3), (3, 2)]
    """
    if not 2 <= num_folds <= rows:
        raise ValueError(f"num_folds: got {num_folds}, expected 2 to {rows} (the number of rows)")
    device = generator.device if generator else None
    folds = torch.randperm(rows, generator=generator, device=device).cpu().tensor_split(num_folds)
    return [(torch.cat(folds[:k] + folds[k + 1 :]), folds[k]) for k in range(num_folds)]
