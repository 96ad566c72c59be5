"""The state of a training run, and its checkpoint: written atomically, read without pickle, refused if not its own.

A checkpoint holds everything that the remaining steps depend on: tensors, optimiser, moving average, position in the
data, history, and the state of every random generator. It also holds what identifies the run, so that a file of other
data, another network or another seed is not continued by mistake.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def tensors(parameters: Any) -> dict[str, Tensor]:
    """Every tensor of a module, dict or list, by name, sharing memory with it."""
    if isinstance(parameters, nn.Module):
        return {name: t for name, t in parameters.state_dict().items() if isinstance(t, Tensor)}
    items = parameters.items() if isinstance(parameters, Mapping) else enumerate(parameters)
    return {str(name): t for name, t in items}


def snapshot(parameters: Any) -> dict[str, Tensor]:
    """Copies of those tensors."""
    return {name: t.detach().clone() for name, t in tensors(parameters).items()}


def restore(parameters: Any, state: Mapping[str, Tensor]) -> None:
    """Write the copies back, in place."""
    with torch.no_grad():
        for name, t in tensors(parameters).items():
            t.copy_(state[name])


def identity(parameters: Any, optimizer: Any, data: tuple, generator: Any, **settings: Any) -> dict[str, Any]:
    """What two runs must agree in for one to continue the other."""
    facts = {
        name: value if isinstance(value, int | float | str | None) else "a function" for name, value in settings.items()
    }
    for name, t in tensors(parameters).items():
        facts[f"parameter {name}"] = f"{t.dtype} {tuple(t.shape)}"
    facts["optimizer"] = type(optimizer).__name__
    for i, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name not in ("params", "param_names"):
                facts[f"{name} of group {i}"] = str(value)
    for i, t in enumerate(data):
        facts[f"data[{i}]"] = f"{t.dtype} {tuple(t.shape)}"
        # A few entries tell data of another seed apart, on every device, without reading all.
        where = torch.linspace(0, t.numel() - 1, 16, dtype=torch.float64).long().to(t.device)
        facts[f"values in data[{i}]"] = str(t.reshape(-1)[where].tolist())
    facts["generator"] = "none" if generator is None else f"on {generator.device.type}"
    facts["seed"] = torch.initial_seed() if generator is None else generator.initial_seed()
    return facts


def _packed(record: dict) -> dict:
    """A record whose lists of numbers are tensors: many objects are slow to write."""

    def pack(value: Any) -> Any:
        if isinstance(value, dict):
            return _packed(value)
        for kind, dtype in ((int, torch.int64), (float, torch.float64)):
            if isinstance(value, list) and all(type(number) is kind for number in value):
                return torch.tensor(value, dtype=dtype)
        return value

    return {name: pack(value) for name, value in record.items()}


def _unpacked(record: dict) -> dict:
    def unpack(value: Any) -> Any:
        return _unpacked(value) if isinstance(value, dict) else value.tolist() if isinstance(value, Tensor) else value

    return {name: unpack(value) for name, value in record.items()}


def save(path: Path, facts: dict, step: int, run: tuple) -> None:
    """Write the checkpoint; whenever the process dies, the file is the old one or the new one, whole."""
    parameters, optimizer, average, batches, history, generator = run
    content = {
        "identity": facts,
        "step": step,
        "tensors": tensors(parameters),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "order": batches.order,
        "position": batches.position,
        "history": _packed(vars(history)),
        "random": torch.get_rng_state(),
        "random cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "random generator": None if generator is None else generator.get_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, facts: dict, run: tuple) -> int:
    """Put the run into the state of the checkpoint; returns the number of steps that it has made."""
    parameters, optimizer, average, batches, history, generator = run
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["identity"]
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is not a readable checkpoint; delete it to start afresh") from error
    differences = [
        f"{name} is {str(found.get(name, 'absent'))[:80]} there and {str(facts.get(name, 'absent'))[:80]} here"
        for name in {**found, **facts}
        if found.get(name, "absent") != facts.get(name, "absent")
    ]
    if differences:
        more = f"; and {len(differences) - 4} more differences" if len(differences) > 4 else ""
        raise ValueError(
            f"checkpoint: {path} belongs to a different run: {'; '.join(differences[:4])}{more}. "
            "Delete it to start afresh, or give this run a path of its own"
        )
    restore(parameters, content["tensors"])
    optimizer.load_state_dict(content["optimizer"])
    for name, t in (average or {}).items():
        t.copy_(content["average"][name])
    batches.order, batches.position = content["order"].to(batches.order.device), content["position"]
    vars(history).update(_unpacked(content["history"]))
    torch.set_rng_state(content["random"])
    if torch.cuda.is_available():
        for i, state in enumerate(content["random cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, i)
    if generator is not None:
        generator.set_state(content["random generator"])
    return content["step"]
