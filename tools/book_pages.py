"""What stands in the book: its parts, the pages found in the repository, and the pages written from them."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch import hub_query, launch_links, source_link

PARTS = (
    ("Start", range(0, 1)),
    ("I · What networks learn, and where minima lie", range(1, 3)),
    ("II · Normalizing flows", range(3, 6)),
    ("III · Free-form", range(6, 9)),
    ("IV · Diffusion", range(9, 11)),
    ("V · Flows at work", range(11, 15)),
    ("VI · Inference and trust", range(15, 20)),
)
CLAIMS = "application/vnd.refimpl.claims+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
GENERATED = {"index.md", "launch.md", "exercises/index.md"}
SINGLE = ("LICENSE-TEXT.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md")


@dataclass(frozen=True)
class Notebook:
    """A chapter or an exercise sheet: path in the repository, number, title, lead sentence, claims with verdicts."""

    path: str
    number: int
    title: str
    lead: str
    claims: tuple[dict, ...]

    @property
    def docname(self) -> str:
        return self.path.removesuffix(".ipynb")


def chapters(root: Path) -> list[Notebook]:
    """The chapters that exist, in order.

    Raises:
        ValueError: if one has no title, is no notebook, shares its number, or belongs to no part.
    """
    found = [_read(root, path) for path in sorted((root / "chapters").glob("[0-9][0-9]_*.ipynb"))]
    for chapter in found:
        if not any(chapter.number in numbers for _, numbers in PARTS):
            raise ValueError(f"{chapter.path}: no part of the book has a chapter {chapter.number:02d}")
    for first, second in zip(found, found[1:], strict=False):
        if first.number == second.number:
            raise ValueError(f"{first.path} and {second.path} have the same number")
    return found


def sheets(root: Path) -> list[Notebook]:
    """The exercise sheets that exist, exercises/NN_name/NN_name.ipynb, in order."""
    paths = sorted((root / "exercises").glob("[0-9][0-9]_*/[0-9][0-9]_*.ipynb"))
    return [_read(root, path) for path in paths if path.stem == path.parent.name]


def _read(root: Path, path: Path) -> Notebook:
    name = path.relative_to(root).as_posix()
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: not a notebook ({error})") from error
    heading = re.match(r"\s*#\s+(.+?)\s*#*\s*$", texts[0], re.MULTILINE) if texts else None
    if not heading:
        raise ValueError(f"{name}: its first text cell must begin with a title, a line `# Title`")
    outputs = (output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    bundles = [data[CLAIMS] for data in outputs if CLAIMS in data]
    return Notebook(
        path=name,
        number=int(path.name[:2]),
        title=re.sub(r"^(?:(?:Chapter|Exercises?|Sheet)\s*)?\d\d?\s*(?:[.:·–—-]\s*)?", "", heading[1]),
        lead=_lead(texts[0][heading.end() :]),
        claims=tuple(bundles[-1]["claims"]) if bundles else (),
    )


def _lead(text: str) -> str:
    """The first paragraph of `text` that is plain prose: no list, table, heading, quotation, formula or link."""
    for block in re.split(r"\n\s*\n", text.strip()):
        if block and not re.match(r"[\s#|>*+<$`\\:-]|\d+\.\s|\[", block):
            return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(block.split()))
    return ""


def files(root: Path, found: list[Notebook], exercises: list[Notebook]) -> dict[str, str]:
    """Each file of the repository that has a page, with the page's path in the book's source."""
    pages = {notebook.path: notebook.path for notebook in found + exercises}
    pages["README.md"] = "index.md"
    if exercises or (root / "exercises/README.md").is_file():
        pages["exercises/README.md"] = "exercises/index.md"
    texts = [root / "results/README.md", *sorted((root / "teaching").glob("*.md")), *(root / name for name in SINGLE)]
    pages |= {path.relative_to(root).as_posix(): path.relative_to(root).as_posix() for path in texts if path.is_file()}
    if (root / "LICENSE").is_file():
        pages["LICENSE"] = "LICENSE.md"
    return pages


def folders(root: Path, exercises: list[Notebook], pages: dict[str, str]) -> dict[str, str]:
    """Each folder of the repository that has a page, with the page's path in the book's source."""
    found = {".": "index.md", "chapters": "index.md"}
    if "exercises/README.md" in pages:
        found["exercises"] = "exercises/index.md"
        found |= {sheet.path.rsplit("/", 1)[0]: sheet.path for sheet in exercises}
    return found | {name: f"{name}/README.md" for name in ("results", "teaching") if f"{name}/README.md" in pages}


def notebook(text: str, rewrite: Callable[[str], str], path: str) -> str:
    """The notebook as the book shows it: links rewritten; widgets left out; the launch cell is not shown."""
    stored = json.loads(text)
    for cell in stored["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = rewrite("".join(cell["source"]))
            continue
        if "launch" in (tags := cell["metadata"].get("tags", [])):
            cell["metadata"]["tags"] = [*tags, "remove-cell"]
        if path.startswith("exercises/"):
            cell["outputs"], cell["execution_count"] = [], None
        cell["outputs"] = [output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]
        for output in cell["outputs"]:
            output.get("data", {}).pop(CLAIMS, None)
        if alt := cell["metadata"].get("alt"):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    stored.get("metadata", {}).pop("widgets", None)
    return json.dumps(stored, indent=1, ensure_ascii=False)


def title_and_pitch(root: Path) -> tuple[str, str]:
    """The course's name and what it is in a paragraph: title and first paragraph of README.md.

    Raises:
        ValueError: if README.md does not begin with a title.
    """
    text = (root / "README.md").read_text(encoding="utf-8")
    heading = re.match(r"\s*# +(.+?)\s*$", text, re.MULTILINE)
    if not heading:
        raise ValueError("README.md must begin with a title, a line `# Title`")
    blocks = re.split(r"\n\s*\n", text[heading.end() :].strip())
    prose = [block for block in blocks if block and not re.match(r"[#|>*+<`!\[-]", block)]
    return heading[1], prose[0] if prose else ""


def measured(root: Path) -> dict[str, str]:
    """What each chapter measures, from the lines `| NN | [title](chapters/NN_name.ipynb) | what |` of README.md."""
    text = (root / "README.md").read_text(encoding="utf-8")
    row = re.compile(r"^\|[^|]*\|\s*\[[^\]]*\]\((chapters/[^)]+\.ipynb)\)\s*\|\s*(.+?)\s*\|\s*$", re.MULTILINE)
    return dict(row.findall(text))


def home(title: str, pitch: str, found: list[Notebook], pages: dict[str, str], measures: dict[str, str]) -> str:
    """The home page: the pitch, then the parts with a card a chapter that says what it measures."""
    lines = [f"# {title}", "", "```{div} pitch", pitch, "```", ""]
    if found:
        lines += [
            "````{div} start",
            "```{button-ref} " + found[0].docname,
            ":color: primary",
            "",
            "Begin reading",
            "```",
        ]
        lines += ["```{button-ref} launch", ":color: primary", ":outline:", "", "Run it elsewhere", "```", "````", ""]
    trees = []
    for part, numbers in PARTS:
        here = [chapter for chapter in found if chapter.number in numbers]
        if here:
            lines += [f"## {part}", "", ":::::{grid} 1 1 2 2", ":gutter: 3", ":class-container: chapters", ""]
            lines += [line for chapter in here for line in _card(chapter, measures.get(chapter.path))] + [":::::", ""]
            trees.append((part, [f"{_entry(chapter)} <{chapter.docname}>" for chapter in here]))
    if "exercises/index.md" in pages.values():
        trees.append(("Practice", ["exercises/index"]))
    about = ["launch"]
    about += [path.removesuffix(".md") for path in pages.values() if path.endswith(".md") and path not in GENERATED]
    trees.append(("About", about))
    for caption, names in trees:
        lines += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""]
    return "\n".join(lines)


def _entry(item: Notebook) -> str:
    """The notebook's line in the navigation, as plain text."""
    return f"{item.number:02d} {re.sub(r'[*_`$<>]', '', item.title)}"


def _card(chapter: Notebook, measures: str | None) -> list[str]:
    lines = [f"::::{{grid-item-card}} {{bdg-primary-line}}`{chapter.number:02d}` {chapter.title}"]
    lines += [f":link: {chapter.docname}", ":link-type: doc", ""]
    lines += [f"You measure {measures.rstrip('.')}." if measures else chapter.lead]
    if chapter.claims:
        held, number = sum(bool(claim["holds"]) for claim in chapter.claims), len(chapter.claims)
        lines += ["", ":::{div} verdicts", f"{number} claims · {held} hold at quick size", ":::"]
    return [*lines, "::::", ""]


def exercises(root: Path, address: str, text: str, found: list[Notebook]) -> str:
    """The page of the exercises: `text`, which is their README.md, and the list of the sheets."""
    lines = [text.strip() or "# Exercises", ""]
    if found:
        lines += ["## The sheets", "", "| sheet | solved sheet |", "|---|---|"]
    for sheet in found:
        name = sheet.path.split("/")[1]
        solved = f"solutions/{name}/{name}.ipynb"
        link = f"[in the repository]({source_link(address, solved)})" if (root / solved).is_file() else "–"
        lines.append(f"| [{sheet.number:02d} {sheet.title}]({name}/{name}.ipynb) | {link} |")
    names = [f"{_entry(sheet)} <{sheet.docname.removeprefix('exercises/')}>" for sheet in found]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *names, "```", ""])


def launch(address: str, found: list[Notebook], exercises: list[Notebook], hub: str | None) -> str:
    """The page with every notebook's launch links, and a field that makes those of the reader's JupyterHub."""
    rows = []
    for item in [*found, *exercises]:
        kind = "exercise sheet" if item.path.startswith("exercises/") else "chapter"
        name = f"{item.number:02d} {html.escape(item.title)}"
        links = [f'<a href="{html.escape(url)}">{k}</a>' for k, url in launch_links(address, item.path).items()]
        links.append(f'<a class="hub" data-query="{html.escape(hub_query(address, item.path))}">JupyterHub</a>')
        rows.append(f"<tr><td>{name}</td><td>{kind}</td><td>{' · '.join(links)}</td></tr>")
    return LAUNCH.format(address=address, hub=html.escape(hub or ""), rows="\n".join(rows))


LAUNCH = """# Run it elsewhere

Every notebook runs on your own machine after `make setup`; [the repository]({address}) says how. To try one without
installing anything, open it on Binder or Colab. Both give you a small machine with a processor only or a shared GPU, and
forget your work when you leave: download what you want to keep.

If your university has a JupyterHub with the extension *nbgitpuller*, write its address here; the last link of each line
then opens the notebook there, in a copy of the course that is yours and that keeps your changes.

<div class="hub-address">
<label for="hub">JupyterHub</label>
<input id="hub" type="url" placeholder="https://hub.example.edu" value="{hub}" autocomplete="off" spellcheck="false">
</div>
<div class="pst-scrollable-table-container">
<table class="table launch">
<thead><tr><th>notebook</th><th>kind</th><th>open in</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<script src="_static/hub.js"></script>
"""
