"""The claims ledger: results/README.md, and its summary in README.md, from notebooks and records.

    python tools/ledger.py           write both
    python tools/ledger.py --check   is what is committed what would be written?

Quick-size values come from the summary cell of each committed notebook, five-seed verdicts from results/seeds/,
full-size values from results/NAME.json.
"""

import argparse
import json
import sys
from pathlib import Path

import nbformat

from refimpl.claims import MIME, values_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- ledger: begin, written by tools/ledger.py -->", "<!-- ledger: end -->"


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def summary_of(notebook: Path) -> tuple[str, dict] | None:
    """Title of a chapter and what its claims measured; None for a notebook without claims."""
    nb = nbformat.read(notebook, as_version=4)
    title = next(
        line[2:]
        for c in nb.cells
        if c.cell_type == "markdown"
        for line in c.source.splitlines()
        if line.startswith("# ")
    )
    for cell in reversed(nb.cells):
        for output in cell.get("outputs", []):
            if MIME in output.get("data", {}):
                return title, output["data"][MIME]
    return None


def chapters(root: Path) -> list[dict]:
    """One entry a chapter: name, title, quick summary, five-seed verdicts, full-size record."""
    found = []
    for notebook in sorted((root / "chapters").glob("[0-9][0-9]_*.ipynb")):
        summary = summary_of(notebook)
        if summary:
            name = notebook.stem
            seeds = read_json(root / "results" / "seeds" / f"{name}.json")
            full = read_json(root / "results" / f"{name}.json")
            for record, origin in (
                (seeds and seeds["claims"], "seeds"),
                (full and {c["id"]: c for c in full["claims"]}, "full"),
            ):
                stale = [
                    c["id"]
                    for c in summary[1]["claims"]
                    if record and (record.get(c["id"]) or {}).get("criterion") != c["criterion"]
                ]
                if stale:
                    raise SystemExit(
                        f"{name}: the {origin} record has another criterion for {', '.join(stale)}; measure again"
                    )
            found.append({"name": name, "title": summary[0], "quick": summary[1], "seeds": seeds, "full": full})
    return found


def ledger_text(found: list[dict]) -> str:
    """The ledger page."""
    lines = [
        "# Claims ledger",
        "",
        "Each claim of a paper beside what this course measures. *Quick* is what you get on a laptop's CPU from the committed notebook;",
        "*five seeds* counts the seeds (0 to 4, quick size) at which the criterion holds; *full* is the record of a run on a GPU.",
        "Criteria were fixed before measuring; where one was revised after a first measurement, a line below the table says how and why.",
        "A claim with several values holds only if each of them meets the criterion.",
        "",
        "This page is written by `tools/ledger.py`.",
    ]
    for chapter in found:
        full = chapter["full"]
        lines += ["", f"## [{chapter['title']}](../chapters/{chapter['name']}.ipynb)", ""]
        if full:
            lines.append(
                f"Full size: {full['device']}, PyTorch {full['torch']}, {full['date']}, {full['seconds']:.0f} s."
            )
        else:
            lines.append("Full size: no record yet.")
        lines += [
            "",
            "| ID | claim | where | the paper reports | criterion | quick | five seeds | full |",
            "|---|---|---|---|---|---|---|---|",
        ]
        full_rows = {c["id"]: c for c in full["claims"]} if full else {}
        for c in chapter["quick"]["claims"]:
            seeds = chapter["seeds"]["claims"].get(c["id"]) if chapter["seeds"] else None
            at_seeds = f"{sum(seeds['holds'])} of {len(seeds['holds'])}" if seeds else "not run"
            cells = [c["id"], c["statement"], c["where"], c["reported"], c["criterion"], verdict(c), at_seeds]
            cells.append(verdict(full_rows[c["id"]]) if c["id"] in full_rows else "–")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        revised = [f"- {c['id']}: {c['revised']}." for c in chapter["quick"]["claims"] if c["revised"]]
        lines += ["", "Revised after a first measurement:", "", *revised] if revised else []
    return "\n".join(lines) + "\n"


def verdict(row: dict) -> str:
    return f"{'holds' if row['holds'] else '**does not hold**'}: {values_text(row['values'])}"


def summary_text(found: list[dict]) -> str:
    """The table in the README: one line a chapter."""
    lines = ["| chapter | claims | hold at quick size | hold at five seeds | at full size |", "|---|---|---|---|---|"]
    for chapter in found:
        rows = chapter["quick"]["claims"]
        seeds = chapter["seeds"]["claims"] if chapter["seeds"] else {}
        full = chapter["full"]
        lines.append(
            f"| [{chapter['title']}](chapters/{chapter['name']}.ipynb) | {len(rows)} | {sum(c['holds'] for c in rows)} "
            f"| {sum(all(s['holds']) for s in seeds.values()) if seeds else 'not run'} "
            f"| {str(sum(c['holds'] for c in full['claims'])) + ' on ' + full['device'] if full else 'no record yet'} |"
        )
    return "\n".join(lines)


def pages(root: Path) -> dict[Path, str]:
    """What the generated files must hold."""
    found = chapters(root)
    readme = (root / "README.md").read_text(encoding="utf-8")
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md: expected the marks {BEGIN} and {END} once each")
    head, tail = readme.split(BEGIN)[0], readme.split(END)[1]
    return {
        root / "results" / "README.md": ledger_text(found),
        root / "README.md": f"{head}{BEGIN}\n{summary_text(found)}\n{END}{tail}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="another repository's folder")
    arguments = parser.parse_args()
    stale = 0
    for path, text in pages(arguments.root).items():
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current == text:
            continue
        if arguments.check:
            print(f"{path.relative_to(arguments.root)} is not what tools/ledger.py makes; run: make ledger")
            stale += 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(arguments.root)}")
    if not stale:
        print("ledger is current")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
