"""A paper's claims, what was measured, the verdicts, and the record of a full-size run.

A chapter declares its claims at the top, before anything is measured, each with a criterion on one measured quantity.
Later, one call a claim compares the measured value with the criterion and prints one stable line; the criterion is
data, so that the declaration, the verdict, the record and the tests can't drift apart.

>>> claim = Claims("00_demo", [Claim("GS-1", "a fair die shows 3.5 on average", "folklore", "3.5",
...                                  "mean of 10,000 throws", "in", (3.4, 3.6))])
>>> claim("GS-1", 3.51)
GS-1 holds: a fair die shows 3.5 on average
"""

import datetime
import json
import math
import os
import re
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch

from refimpl import runtime

__all__ = ["MIME", "Claim", "Claims", "Summary", "load_record", "values_text", "write_json"]

MIME = "application/vnd.refimpl.claims+json"


@dataclass(frozen=True)
class Claim:
    """One statement of a paper with a criterion that was fixed before measuring.

    Attributes:
        id: prefix of the chapter and number, e.g. ``"SB-1"``.
        statement: what is claimed, in one line.
        where: the place in the paper (figure, theorem, experiment).
        reported: what the paper reports there, with its unit; ``"-"`` if it gives no number.
        quantity: what is measured, with its unit.
        op: ``"<="``, ``">="`` or ``"in"``.
        bound: one number, or a pair (low, high) for ``"in"``.
        revised: what about the criterion was changed after a first measurement, and why; empty if nothing was.
    """

    id: str
    statement: str
    where: str
    reported: str
    quantity: str
    op: str
    bound: float | int | tuple[float | int, float | int]
    revised: str = ""

    def __post_init__(self):
        if not re.fullmatch(r"[A-Z]+-\d+", self.id):
            raise ValueError(f"id: got {self.id!r}, expected a form such as 'SB-1'")
        if not self.statement or "\n" in self.statement:
            raise ValueError(f"statement: {self.id} needs one line, got {self.statement!r}")
        if self.op not in ("<=", ">=", "in"):
            raise ValueError(f"op: got {self.op!r}, expected '<=', '>=' or 'in'")
        numbers = self.bound if self.op == "in" else (self.bound,)
        if not isinstance(numbers, Sequence) or len(numbers) != (2 if self.op == "in" else 1):
            raise ValueError(f"bound: {self.id} has op {self.op!r} and bound {self.bound!r}")
        if not all(isinstance(b, int | float) and math.isfinite(b) for b in numbers) or list(numbers) != sorted(
            numbers
        ):
            raise ValueError(f"bound: {self.id} needs finite numbers in rising order, got {self.bound!r}")

    @property
    def criterion(self) -> str:
        """The criterion as a reader sees it."""
        if self.op == "in":
            return f"{self.quantity}: between {self.bound[0]:g} and {self.bound[1]:g}"
        return f"{self.quantity}: {'≤' if self.op == '<=' else '≥'} {self.bound:g}"

    def holds(self, value: float | int | Iterable) -> bool:
        """Whether each measured value meets the criterion; a non-finite value never does.

        Raises:
            ValueError: if ``value`` is empty.
        """
        values = as_floats(value)
        low, high = self.bound if self.op == "in" else (self.bound, self.bound)
        # A value on the bound passes, whichever way its last digit was rounded.
        above = [self.op == "<=" or v >= low - 1e-9 * abs(low) for v in values]
        below = [self.op == ">=" or v <= high + 1e-9 * abs(high) for v in values]
        return all(map(math.isfinite, values)) and all(above) and all(below)


def as_floats(value: float | int | Iterable) -> list[float]:
    """A list of one or more plain floats from a number, a tensor, an array or a sequence of numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = list(value) if isinstance(value, Iterable) else [value]
    if not values or not all(isinstance(v, Real) or (isinstance(v, torch.Tensor) and v.numel() == 1) for v in values):
        raise ValueError(f"value: got {value!r}, expected one or more numbers")
    return [float(v) for v in values]


class Claims:
    """The claims of one chapter; calling it with a measurement prints that claim's verdict line.

    Args:
        chapter: name of the chapter's files, e.g. ``"01_spectral_bias"``.
        claims: its claims, in the order in which the chapter measures them.

    Raises:
        ValueError: if the name is malformed, there is no claim, or two claims share an id.
    """

    def __init__(self, chapter: str, claims: Sequence[Claim]):
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", chapter):
            raise ValueError(f"chapter: got {chapter!r}, expected a form such as '01_spectral_bias'")
        self.chapter = chapter
        self.claims = {c.id: c for c in claims}
        if not claims or len(self.claims) != len(claims):
            raise ValueError(f"claims: got ids {[c.id for c in claims]}, expected at least one and no id twice")
        self.values: dict[str, list[float]] = {}
        self._start = time.perf_counter()

    @classmethod
    def declared(cls, chapter: str) -> "Claims":
        """The claims that ``refimpl/declared/NAME.toml`` declares, where a chapter has too many for one cell.

        Raises:
            ValueError: if there is no such declaration.
        """
        path = Path(__file__).parent / "declared" / f"{chapter}.toml"
        if not path.exists():
            raise ValueError(f"chapter: no declaration {path.name} in refimpl/declared")
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
        rows = [row | {"bound": tuple(row["bound"]) if row["op"] == "in" else row["bound"]} for row in rows]
        return cls(chapter, [Claim(**row) for row in rows])

    def __call__(self, id: str, value: float | int | Iterable) -> None:
        """Compare a measured value (or several repetitions, which must all pass) with the criterion; print the verdict.

        Raises:
            ValueError: if ``id`` was not declared or ``value`` is empty.
        """
        if id not in self.claims:
            raise ValueError(f"id: {id!r} is not declared; declared are {', '.join(self.claims)}")
        self.values[id] = as_floats(value)
        verdict = "holds" if self.claims[id].holds(self.values[id]) else "does not hold"
        print(f"{id} {verdict}: {self.claims[id].statement}")

    def _repr_markdown_(self) -> str:
        rows = [f"| {c.id} | {c.statement} | {c.where} | {c.reported} | {c.criterion} |" for c in self.claims.values()]
        return "\n".join(
            ["| ID | claim | where | the paper reports | criterion here |", "|---|---|---|---|---|", *rows]
        )

    def __repr__(self) -> str:
        return "\n".join(f"{c.id}  {c.statement} [{c.where}]: {c.criterion}" for c in self.claims.values())

    def as_dict(self) -> dict:
        """Everything measured so far as plain data (the JSON of records and of the summary).

        Raises:
            RuntimeError: if a declared claim was not measured.
        """
        missing = [i for i in self.claims if i not in self.values]
        if missing:
            raise RuntimeError(f"declared but not measured: {', '.join(missing)}")
        rows = [
            {
                "id": c.id,
                "statement": c.statement,
                "where": c.where,
                "reported": c.reported,
                "quantity": c.quantity,
                "op": c.op,
                "bound": c.bound,
                "criterion": c.criterion,
                "revised": c.revised,
                "values": [float(f"{v:.4g}") for v in self.values[c.id]],
                "holds": c.holds(self.values[c.id]),
            }
            for c in self.claims.values()
        ]
        device = runtime.device()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return {
            "chapter": self.chapter,
            "size": runtime.size_name(),
            "device": name,
            "torch": torch.__version__,
            "seed": runtime.seed(),
            "claims": rows,
        }

    def summary(self) -> "Summary":
        """Table of all claims with measured values and verdicts; the last word of a chapter."""
        return Summary(self.as_dict())

    def record(self, **numbers: object) -> str:
        """At full size, write ``results/NAME.json``; at quick size write nothing. Returns a line that says which.

        Args:
            **numbers: further measurements worth keeping (plain numbers, lists, strings).
        """
        if runtime.size_name() != "full":
            return "Quick size: no record written."
        seconds = round(time.perf_counter() - self._start, 1)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        path = runtime.results_dir() / f"{self.chapter}.json"
        write_json(path, self.as_dict() | {"date": date, "seconds": seconds, "numbers": numbers})
        return f"Record written to results/{path.name}."


class Summary:
    """What a chapter measured, as a Markdown table, as text, and as data for the ledger."""

    def __init__(self, data: dict):
        self.data = data

    def markdown(self) -> str:
        lines = ["| ID | claim | the paper reports | criterion | measured | verdict |", "|---|---|---|---|---|---|"]
        for c in self.data["claims"]:
            verdict = "holds" if c["holds"] else "**does not hold**"
            lines.append(
                f"| {c['id']} | {c['statement']} | {c['reported']} | {c['criterion']} | {values_text(c['values'])} | {verdict} |"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        rows = self.data["claims"]
        return "\n".join(
            f"{c['id']:7} {'holds' if c['holds'] else 'DOES NOT HOLD':13}  {c['criterion']}; measured {values_text(c['values'])}"
            for c in rows
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/plain": repr(self), "text/markdown": self.markdown(), MIME: self.data}


def values_text(values: Sequence[float | int]) -> str:
    """Measured values as a reader sees them: all of up to three, else their range.

    >>> values_text([1.0, 2.5]), values_text([3, 1, 2, 4])
    ('1, 2.5', '1 to 4 (4 values)')
    """
    if len(values) <= 3:
        return ", ".join(f"{v:.3g}" for v in values)
    return f"{min(values):.3g} to {max(values):.3g} ({len(values)} values)"


def write_json(path: Path, data: dict) -> None:
    """Write ``data`` to ``path`` in one step: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def load_record(chapter: str) -> dict | None:
    """The record of a chapter's full-size run, or None if none has been made."""
    path = runtime.results_dir() / f"{chapter}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
