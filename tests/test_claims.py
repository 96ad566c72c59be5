"""Claims: declaration, verdict, summary and record."""

import datetime
import json
import math

import numpy as np
import pytest
import torch

from refimpl import claims
from refimpl.claims import MIME, Claim, Claims

GOOD = {
    "id": "XY-1",
    "statement": "a fair die shows 3.5 on average",
    "where": "Sec. 1",
    "reported": "3.5",
    "quantity": "mean of the throws",
    "op": "in",
    "bound": (3.4, 3.6),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("SIZE", "SEED"):
        monkeypatch.delenv(f"REFIMPL_{name}", raising=False)
    monkeypatch.setenv("REFIMPL_DEVICE", "cpu")
    monkeypatch.setenv("REFIMPL_RESULTS", str(tmp_path / "results"))


def make(**changes):
    return Claim(**(GOOD | changes))


def pair():
    return Claims("00_demo", [make(), make(id="XY-2", statement="it never shows 7", op="<=", bound=6.0)])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": "xy-1"}, "id"),
        ({"id": "XY1"}, "id"),
        ({"id": "XY-"}, "id"),
        ({"id": "XY-1 "}, "id"),
        ({"statement": ""}, "statement"),
        ({"statement": "two\nlines"}, "statement"),
        ({"op": "<"}, "op"),
        ({"op": "=="}, "op"),
        ({"op": "in", "bound": 3.5}, "bound"),
        ({"op": "in", "bound": (3.6, 3.4)}, "bound"),
        ({"op": "<=", "bound": (3.4, 3.6)}, "bound"),
        ({"op": "<=", "bound": math.inf}, "bound"),
        ({"op": ">=", "bound": math.nan}, "bound"),
        ({"op": "in", "bound": (0.0, math.inf)}, "bound"),
    ],
)
def test_a_malformed_declaration_is_named(changes, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        make(**changes)


def test_a_claim_cannot_be_changed_after_its_declaration():
    with pytest.raises(AttributeError):
        make().bound = (0.0, 10.0)


@pytest.mark.parametrize(
    ("name", "declared", "named"),
    [
        ("demo", [make()], "chapter"),
        ("0_demo", [make()], "chapter"),
        ("00_Demo", [make()], "chapter"),
        ("00_demo", [], "claims"),
        ("00_demo", [make(), make()], "claims"),
    ],
)
def test_a_malformed_chapter_is_named(name, declared, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        Claims(name, declared)


@pytest.mark.parametrize(
    ("op", "bound", "inside", "outside"),
    [
        ("<=", 2.0, [2.0, -1e300, 0.0], [2.0000001, 1e300]),
        (">=", 2.0, [2.0, 1e300], [1.9999999, -1e300]),
        ("in", (1.0, 2.0), [1.0, 1.5, 2.0], [0.9999999, 2.0000001]),
    ],
)
def test_bounds_are_inclusive_and_every_value_counts(op, bound, inside, outside):
    claim = make(op=op, bound=bound)
    assert all(claim.holds(value) for value in inside) and claim.holds(inside)
    for value in outside:
        assert not claim.holds(value)
        assert not claim.holds([*inside, value])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("op", "bound"), [("<=", 2.0), (">=", 2.0), ("in", (1.0, 2.0))])
def test_a_value_that_is_not_finite_never_holds(op, bound, value):
    assert not make(op=op, bound=bound).holds(value)
    assert not make(op=op, bound=bound).holds([1.5, value])


def test_any_kind_of_number_can_be_measured():
    claim = make(op="<=", bound=2.0)
    numbers = (1, 1.5, np.float64(1.5), torch.tensor(1.5))
    several = (torch.tensor([1.0, 2.0]), np.array([1, 2]), [1, 2.0], (1.0, 2.0), [torch.tensor(1.0), np.float64(2.0)])
    for value in (*numbers, *several):
        assert claim.holds(value)
    assert claim.holds(v for v in (1.0, 2.0))
    for empty in ([], torch.zeros(0), np.zeros(0), "1.5", [None], [[1.0]]):
        with pytest.raises(ValueError, match="^value: got .* numbers?"):
            claim.holds(empty)


def test_the_criterion_reads_as_a_sentence():
    assert "mean of the throws" in make().criterion and "between 3.4 and 3.6" in make().criterion
    assert make(op="<=", bound=6.0).criterion.endswith("≤ 6")
    assert make(op=">=", bound=0.25).criterion.endswith("≥ 0.25")


def test_a_call_prints_exactly_the_verdict_line(capsys):
    claim = pair()
    claim("XY-1", 3.51)
    claim("XY-2", [1.0, 7.0])
    out = capsys.readouterr()
    assert out.out == "XY-1 holds: a fair die shows 3.5 on average\nXY-2 does not hold: it never shows 7\n"
    assert out.err == ""


def test_a_second_measurement_replaces_the_first(capsys):
    claim = pair()
    claim("XY-1", [1.0, 2.0])
    claim("XY-1", 3.5)
    assert claim.values["XY-1"] == [3.5]
    assert capsys.readouterr().out.splitlines()[1].startswith("XY-1 holds")


def test_an_undeclared_claim_is_named():
    with pytest.raises(ValueError, match="^id: 'XY-3' is not declared; declared are XY-1, XY-2"):
        pair()("XY-3", 1.0)
    with pytest.raises(ValueError, match="^value: got .* numbers?"):
        pair()("XY-1", [])


def test_the_declaration_is_shown_with_its_criteria():
    claim = pair()
    table = claim._repr_markdown_().splitlines()
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    for line, declared in zip(table[2:], claim.claims.values(), strict=True):
        for part in (declared.id, declared.statement, declared.where, declared.reported, declared.criterion):
            assert part in line
    assert repr(claim).splitlines()[0].startswith("XY-1  a fair die")


def test_there_is_no_summary_before_everything_is_measured(capsys):
    claim = pair()
    claim("XY-1", 3.5)
    with pytest.raises(RuntimeError, match="^declared but not measured: XY-2$"):
        claim.summary()


def test_the_summary_carries_text_markdown_and_data(capsys, monkeypatch):
    monkeypatch.setenv("REFIMPL_SEED", "3")
    claim = pair()
    claim("XY-1", [3.51234567, 3.5])
    claim("XY-2", [1.0, 2.0, 3.0, 7.0])
    summary = claim.summary()
    bundle = summary._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/markdown", MIME}
    data = bundle[MIME]
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(claim.as_dict()))
    assert [data[k] for k in ("chapter", "size", "device", "torch", "seed")] == [
        "00_demo",
        "quick",
        "CPU",
        torch.__version__,
        3,
    ]
    first, second = data["claims"]
    assert first["values"] == [3.512, 3.5] and first["holds"] is True
    assert second["values"] == [1, 2, 3, 7] and second["holds"] is False
    assert {k: tuple(v) if k == "bound" else v for k, v in first.items() if k in GOOD} == GOOD
    assert first["criterion"] == claim.claims["XY-1"].criterion
    assert "**does not hold**" in bundle["text/markdown"].splitlines()[3]
    assert bundle["text/plain"] == repr(summary) and "DOES NOT HOLD" in repr(summary).splitlines()[1]


def test_the_verdict_uses_the_value_before_it_is_rounded_for_display(capsys):
    claim = Claims("00_demo", [make(op="<=", bound=1.0)])
    claim("XY-1", 1.00001)
    row = claim.as_dict()["claims"][0]
    assert row["values"] == [1.0] and row["holds"] is False


def test_quick_size_writes_no_record(capsys, tmp_path):
    claim = pair()
    claim("XY-1", 3.5)
    claim("XY-2", 6.0)
    assert claim.record(extra=1) == "Quick size: no record written."
    assert not (tmp_path / "results").exists()
    assert claims.load_record("00_demo") is None


def test_a_record_survives_the_round_trip(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_SIZE", "full")
    claim = pair()
    claim("XY-1", 3.5)
    claim("XY-2", [5.0, 6.0])
    assert claim.record(losses=[0.5, 0.25], note="ä") == "Record written to results/00_demo.json."
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["00_demo.json"]
    record = claims.load_record("00_demo")
    assert record["numbers"] == {"losses": [0.5, 0.25], "note": "ä"}
    assert record["size"] == "full" and record["seconds"] >= 0
    assert datetime.date.fromisoformat(record["date"])
    assert {k: v for k, v in record.items() if k not in ("numbers", "seconds", "date")} == json.loads(
        json.dumps(claim.as_dict())
    )
    claim.record()
    assert claims.load_record("00_demo")["numbers"] == {}


def test_a_record_that_cannot_be_written_leaves_the_old_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_SIZE", "full")
    claim = Claims("00_demo", [make()])
    claim("XY-1", 3.5)
    claim.record(good=1)
    with pytest.raises(TypeError):
        claim.record(bad=object())
    assert claims.load_record("00_demo")["numbers"] == {"good": 1}
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["00_demo.json"]


def test_values_are_shown_in_full_or_as_a_range():
    assert claims.values_text([0.123456]) == "0.123"
    assert claims.values_text([1.0, 2.0, 3.0]) == "1, 2, 3"
    assert claims.values_text([4.0, 1.0, 3.0, 2.0]) == "1 to 4 (4 values)"


def test_a_declaration_can_stand_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "__file__", str(tmp_path / "claims.py"))
    (tmp_path / "declared").mkdir()
    rows = [GOOD | {"bound": [3.4, 3.6]}, GOOD | {"id": "XY-2", "op": "<=", "bound": 6.0}]
    text = "\n".join("[[claim]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in row.items()) for row in rows)
    (tmp_path / "declared" / "00_demo.toml").write_text(text, encoding="utf-8")
    read = Claims.declared("00_demo")
    assert read.chapter == "00_demo"
    assert read.claims == {"XY-1": make(), "XY-2": make(id="XY-2", op="<=", bound=6.0)}
    with pytest.raises(ValueError, match="^chapter: no declaration 01_missing.toml"):
        Claims.declared("01_missing")
