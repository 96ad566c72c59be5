"""What a training run leaves behind: its history, or the error that ended it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from refimpl._checkpoint import restore, snapshot


@dataclass
class History:
    """What a run recorded: one entry a step in the first five, one an evaluation in the next two.

    `evaluations` maps each name that `evaluate` returned to its values: floats, or tensors on the CPU.
    `ema` is the state dict with averaged weights (None without `ema`, or if the training diverged).
    """

    steps: list = field(default_factory=list)
    loss: list = field(default_factory=list)
    terms: dict = field(default_factory=dict)
    learning_rate: list = field(default_factory=list)
    gradient_norm: list = field(default_factory=list)
    evaluation_steps: list = field(default_factory=list)
    evaluations: dict = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None

    @contextmanager
    def averaged(self, parameters: nn.Module | Mapping | Iterable) -> Iterator[Any]:
        """Inside the block, the averaged weights stand in for the trained ones of `parameters`."""
        if self.ema is None:
            raise ValueError("this history has no averaged weights: call fit with ema=0.999 or the like")
        parameters = parameters if isinstance(parameters, nn.Module | Mapping) else list(parameters)
        trained = snapshot(parameters)
        restore(parameters, self.ema)
        try:
            yield parameters
        finally:
            restore(parameters, trained)

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss and its terms over the steps, logarithmic where all are positive; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        curves = {"loss": self.loss, **self.terms}
        for name, values in curves.items():
            ax.plot(self.steps, values, label=name, linewidth=1.5 if name == "loss" else 1)
        ax.set(xlabel="step", ylabel="loss")
        if all(value > 0 for values in curves.values() for value in values if math.isfinite(value)):
            ax.set_yscale("log")
        if self.terms:
            ax.legend()
        return ax


class TrainingDiverged(RuntimeError):
    """The training met a number that is not finite.

    Attributes: `step` and `term` of the first such number (a named term of the loss, "loss", "gradients" or
    "parameters"), `state` (the last finite state dict, to which the parameters were reset) and `history`.
    """

    def __init__(self, message: str, step: int, term: str, state: dict, history: History):
        super().__init__(message)
        self.step, self.term, self.state, self.history = step, term, state, history


def record(history: History, rows: list) -> str | None:
    """Move rows from the device to the history, up to the first number that is not finite; returns its name."""
    if not rows:
        return None
    names = list(rows[0][4])
    if any(list(row[4]) != names for row in rows) or (history.loss and list(history.terms) != names):
        raise ValueError(f"loss_fn must return the same terms in every step, got {names} and others")
    columns = {name: [row[4][name] for row in rows] for name in names}
    columns.update({"loss": [row[2] for row in rows], "gradients": [row[3] for row in rows]})
    columns = {name: torch.stack([v.reshape(()) for v in column]).tolist() for name, column in columns.items()}
    stores = {name: history.terms.setdefault(name, []) for name in names}
    stores.update({"loss": history.loss, "gradients": history.gradient_norm})
    bad = None
    for i, row in enumerate(rows):
        history.steps.append(row[0])
        history.learning_rate.append(row[1])
        for name, store in stores.items():
            store.append(columns[name][i])
            if bad is None and not math.isfinite(columns[name][i]):
                bad = name
        if bad is not None:
            break
    rows.clear()
    return bad


def record_evaluation(history: History, step: int, values: Any) -> None:
    """Append what `evaluate` returned at this step."""
    if not isinstance(values, Mapping):
        raise TypeError(f"evaluate must return a dict of floats or tensors, got {type(values).__name__}")
    if history.evaluation_steps and values.keys() != history.evaluations.keys():
        raise ValueError(f"evaluate must return the same names every time, got {list(values)} at step {step}")
    history.evaluation_steps.append(step)
    for name, value in values.items():
        value = value.detach().cpu().clone() if isinstance(value, Tensor) else float(value)
        value = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        history.evaluations.setdefault(name, []).append(value)


def diverged(
    term: str, step: int, history: History, state: dict, finite_step: int, optimizer: Any, clip_norm: float | None
) -> TrainingDiverged:
    """The error that says what broke first, where, and what to try."""
    if term != "parameters":
        step = history.steps[-1]
    hints = {
        "gradients": "the loss is finite but its gradient is not: look for sqrt, norm, log or division at 0",
        "parameters": "an update overflowed",
    }
    rates = ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups)
    return TrainingDiverged(
        f"training diverged at step {step}: {term} not finite ({hints.get(term, 'it broke before anything else')}). "
        f"The parameters are back at their last finite state, step {finite_step}. Try a smaller lr (now {rates}), "
        f"clip_norm (now {clip_norm}), schedule='warmup_cosine', or float64.",
        step,
        term,
        state,
        history,
    )
