"""fit(): the one training loop of the course, from a regression network to flows and diffusion models.

A loss is a plain function of a batch that closes over its networks, so the loop knows nothing about the method. It adds
what every experiment needs: shuffled minibatches, a learning-rate schedule, gradient clipping, a moving average of the
weights, evaluations along the way, a guard against divergence, and checkpoints from which an interrupted run resumes to
the same bits.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from refimpl._checkpoint import identity, load, restore, save, snapshot
from refimpl._history import History, TrainingDiverged, diverged, record, record_evaluation

__all__ = ["History", "TrainingDiverged", "fit"]

# Reading a number from a GPU waits for it, so losses are collected there and looked at once in so many steps.
GUARD_EVERY = 50


def fit(
    parameters: nn.Module | Mapping | Iterable,
    loss_fn: Callable,
    *,
    num_steps: int,
    data: Tensor | tuple | list | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    optimizer: torch.optim.Optimizer | Callable | None = None,
    lr: float | None = None,
    schedule: str | Callable | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    evaluate: Callable | None = None,
    evaluate_every: int | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> History:
    """Minimise a loss by gradient descent, in place.

    Each step draws a batch, calls `loss_fn(*batch)`, and updates. Numbers are looked at once in 50 steps (at least once
    a second); when one is not finite, the parameters go back to the last finite state and `TrainingDiverged` says which
    term broke first. The networks' train/eval mode is the caller's.

    Args:
        parameters: a module (several: `nn.ModuleList`), or a dict or list of tensors that require gradients, such as
            the stacked parameters of an ensemble.
        loss_fn: called with the tensors of a batch (nothing if `data` is None); returns a scalar, or a scalar and a
            dict of named scalar terms to record. Draws its random numbers from `generator`.
        num_steps: number of updates.
        data: tensor, or tuple of tensors, with samples along the first dimension.
        batch_size: samples a step, without replacement until fewer are left than a batch, then reshuffled;
            None: all of them in every step.
        generator: shuffles the data; torch's global one if None.
        optimizer: an optimiser of these parameters, or a function that makes one from their list; None: Adam, fused,
            which on small networks is several times faster than the plain one and differs in rounding only.
        lr: learning rate of that Adam, default 1e-3; an `optimizer` brings its own.
        schedule: factor on the learning rate: "constant" (or None), "cosine" (to zero), "warmup_cosine" (5 % linear
            rise first), or a function of the step 0 ... num_steps - 1.
        clip_norm: largest norm of the whole gradient.
        ema: decay d of the moving average e <- d e + (1 - d) w, started from the initial weights; see `History.ema`.
        evaluate: called as `evaluate(step, parameters)` *before* the update of a step, so that step 0 is the untrained
            network, and after the last; returns a dict of floats or tensors.
        evaluate_every: steps between two evaluations, default num_steps / 20.
        checkpoint: file to resume from if it exists, written to (atomically) every `checkpoint_every` steps and at the
            end. On the CPU, an interrupted run that is started again the same way ends with the same bits. Restored
            are parameters, optimiser, average, data order, history, and `generator` and torch's global random state.
        checkpoint_every: steps between two checkpoints, default num_steps / 20.
        progress: show a progress bar.
    Returns: the run's `History`.
    Raises:
        TrainingDiverged: see above.
        TypeError, ValueError: if an argument does not fit, or `checkpoint` is unreadable or of a different run.

    >>> line = nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 20)[:, None]
    >>> history = fit(line, lambda x: (line(x) - 3 * x).square().mean(), num_steps=300, data=x, lr=0.1, progress=False)
    >>> round(line.weight.item(), 3)
    3.0
    """
    if not isinstance(parameters, nn.Module | Mapping | Tensor):
        parameters = list(parameters)
    leaves = _leaves(parameters)
    _check_positive(num_steps=num_steps, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    for name, value, high in (("lr", lr, math.inf), ("clip_norm", clip_norm, math.inf), ("ema", ema, 1.0)):
        if value is not None and not 0 < value < high:
            raise ValueError(f"{name} must lie between 0 and {high:g}, got {value}")
    evaluate_every = evaluate_every or max(1, num_steps // 20)
    checkpoint_every = checkpoint_every or max(1, num_steps // 20)
    factor = _factor(schedule, num_steps)
    batches = _Batches(data, batch_size, generator)
    optimizer = _optimizer(optimizer, lr, leaves)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    base = [float(group["lr"]) for group in optimizer.param_groups]
    average, update_average = None, None
    if ema is not None:
        average, update_average = {n: t.detach().clone() for n, t in leaves.items()}, get_ema_multi_avg_fn(ema)

    history, step = History(), 0
    run = (parameters, optimizer, average, batches, history, generator)
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        settings = dict(num_steps=num_steps, batch_size=batch_size, schedule=schedule, clip_norm=clip_norm, ema=ema)
        facts = identity(parameters, optimizer, batches.data, generator, **settings)
        if checkpoint.exists():
            step = load(checkpoint, facts, run)
    start, rows, finite, finite_step, seen = step, [], snapshot(parameters), step, time.monotonic()
    bar = _progress_bar(num_steps, start, progress)
    try:
        while True:
            last = step == num_steps
            evaluating = evaluate is not None and (last or step % evaluate_every == 0)
            saving = checkpoint is not None and step > start and (last or step % checkpoint_every == 0)
            whole = last or evaluating or saving or step % GUARD_EVERY == 0
            if whole or time.monotonic() - seen > 1.0:
                fresh = len(rows)
                term = record(history, rows)
                if fresh:
                    bar.set_postfix_str(f"loss {history.loss[-1]:.4g}", refresh=False)
                    bar.update(fresh)
                if term is None and whole:
                    if all(torch.isfinite(t).all() for t in leaves.values()):
                        finite_step, finite = step, snapshot(parameters)
                    else:
                        term = "parameters"
                if term is not None:
                    restore(parameters, finite)
                    optimizer.state.clear()  # its moments are not finite either
                    raise diverged(term, step, history, finite, finite_step, optimizer, clip_norm)
                seen = time.monotonic()
            if evaluating and history.evaluation_steps[-1:] != [step]:
                record_evaluation(history, step, evaluate(step, parameters))
            if saving:
                save(checkpoint, facts, step, run)
            if last:
                break
            scale = float(factor(step))
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * scale
            for p in trained:
                p.grad = None
            loss, terms = _loss(loss_fn(*batches.draw()))
            loss.backward()
            gradients = [p.grad.reshape(-1) for p in trained if p.grad is not None]
            if not gradients:
                raise ValueError("loss_fn returned a loss that does not depend on any of the parameters")
            if clip_norm is None:
                norm = torch.linalg.vector_norm(torch.cat(gradients))
            else:
                norm = clip_grad_norm_(trained, clip_norm)
            optimizer.step()
            if average is not None:
                update_average(list(average.values()), list(leaves.values()), None)
            rows.append((step, base[0] * scale, loss.detach().clone(), norm, terms))
            step += 1
    finally:
        bar.close()
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate
    if average is not None:
        history.ema = {**snapshot(parameters), **average}
    return history


class _Batches:
    """Endless minibatches without replacement within an epoch; `order` and `position` are its whole state."""

    def __init__(self, data: Tensor | tuple | list | None, batch_size: int | None, generator: torch.Generator | None):
        self.data = () if data is None else (data,) if isinstance(data, Tensor) else tuple(data)
        for i, t in enumerate(self.data):
            if not isinstance(t, Tensor) or t.ndim == 0:
                raise TypeError(
                    f"data must be a tensor or a tuple of tensors with a first dimension, got {type(t).__name__}"
                )
            if len(t) != len(self.data[0]) or len(t) == 0:
                raise ValueError(f"data must have equally many samples, at least 1, got {[len(t) for t in self.data]}")
            if not torch.isfinite(t).all():
                raise ValueError(f"data must be finite, but tensor {i} holds nan or inf")
        if batch_size is not None and not (self.data and 1 <= batch_size <= len(self.data[0])):
            have = f"{len(self.data[0])} samples" if self.data else "no data"
            raise ValueError(f"batch_size must lie between 1 and the number of samples, got {batch_size} with {have}")
        self.size, self.generator, self.position = batch_size, generator, 0
        self.order = torch.empty(0, dtype=torch.long, device=self.data[0].device if self.data else "cpu")

    def draw(self) -> tuple:
        if self.size is None:
            return self.data
        if self.position + self.size > len(self.order):
            device = "cpu" if self.generator is None else self.generator.device
            order = torch.randperm(len(self.data[0]), generator=self.generator, device=device)
            self.order, self.position = order.to(self.order.device), 0
        index = self.order[self.position : self.position + self.size]
        self.position += self.size
        return tuple(t.index_select(0, index) for t in self.data)


def _leaves(parameters: Any) -> dict[str, Tensor]:
    """The tensors to train, by name."""
    wanted = "a module (several: nn.ModuleList), or a dict or list of tensors"
    if isinstance(parameters, Tensor):
        raise TypeError(f"parameters must be {wanted}, got one tensor: put it into a list")
    if isinstance(parameters, nn.Module):
        leaves = {n: p for n, p in parameters.named_parameters(remove_duplicate=False) if p.requires_grad}
    else:
        items = parameters.items() if isinstance(parameters, Mapping) else enumerate(parameters)
        leaves = {str(name): t for name, t in items}
        for name, t in leaves.items():
            if not isinstance(t, Tensor):
                raise TypeError(f"parameters must be {wanted}, got {type(t).__name__} for {name!r}")
            if not (t.requires_grad and t.is_leaf):
                raise ValueError(f"parameters must be leaf tensors that require gradients, unlike {name!r}")
    if not leaves:
        raise ValueError(
            f"parameters must hold at least one tensor that requires gradients, got {type(parameters).__name__}"
        )
    return leaves


def _optimizer(optimizer: Any, lr: float | None, leaves: dict[str, Tensor]) -> torch.optim.Optimizer:
    own = list(dict.fromkeys(leaves.values()))
    if optimizer is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in own)
        return torch.optim.Adam(own, lr=1e-3 if lr is None else lr, fused=fused)
    if lr is not None:
        raise ValueError(f"lr={lr} is for the default Adam; set the learning rate in optimizer instead")
    made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(own)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be, or make, a torch.optim.Optimizer, got {type(made).__name__}")
    if not {id(p) for group in made.param_groups for p in group["params"]} <= {id(p) for p in own}:
        raise ValueError("optimizer holds tensors that are not among parameters: was it made for another network?")
    return made


def _factor(schedule: str | Callable | None, num_steps: int) -> Callable[[int], float]:
    rise = max(1, num_steps // 20)
    named = {
        None: lambda step: 1.0,
        "constant": lambda step: 1.0,
        "cosine": lambda step: 0.5 + 0.5 * math.cos(math.pi * step / num_steps),
        "warmup_cosine": lambda step: (
            (step + 1) / rise
            if step < rise
            else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, num_steps - rise))
        ),
    }
    if callable(schedule):
        return schedule
    if schedule not in named:
        raise ValueError(
            f"schedule must be one of 'constant', 'cosine', 'warmup_cosine' or a function, got {schedule!r}"
        )
    return named[schedule]


def _check_positive(**counts: Any) -> None:
    for name, value in counts.items():
        if value is None and name != "num_steps":
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _loss(result: Any) -> tuple[Tensor, dict[str, Tensor]]:
    loss, terms = result if isinstance(result, tuple) else (result, {})
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a scalar tensor, or one and a dict of terms, got {type(loss).__name__}")
    terms = {name: torch.as_tensor(value).detach().clone() for name, value in terms.items()}
    if not {"loss", "gradients"}.isdisjoint(terms):
        raise ValueError("loss_fn must not call a term 'loss' or 'gradients': these are recorded anyway")
    for name, value in {"loss": loss, **terms}.items():
        if value.numel() != 1:
            raise ValueError(f"loss_fn must return scalars, but {name!r} has shape {tuple(value.shape)}")
    if not loss.requires_grad:
        raise ValueError("loss_fn returned a loss that does not depend on parameters: detached, or under no_grad?")
    return loss, terms


def _progress_bar(num_steps: int, start: int, progress: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.auto warns when ipywidgets is missing, and draws a text bar
        from tqdm.auto import tqdm

        return tqdm(total=num_steps, initial=start, disable=not progress, leave=False, unit="step")
