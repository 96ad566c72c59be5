"""Check a built book: links, anchors and pictures lead somewhere, and no page needs anything from outside."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

CSS_URL = re.compile(r"(?:@import\s+|url\(\s*)[\"']?([^\"')\s;]+)", re.IGNORECASE)
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADS |= {"embed": "src", "object": "data", "input": "src", "track": "src", "image": "href"}
LINK_TYPES = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "modulepreload", "manifest", "apple-touch-icon"}


class Page(HTMLParser):
    """What one page links to, what it loads, and the anchors that it offers."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.nameless = 0
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag in ("a", "area") and "href" in values:
            self.links.append(values["href"])
        elif tag == "link":
            kinds = set(values.get("rel", "").lower().split())
            (self.loads if kinds & LINK_TYPES else self.links).append(values.get("href", ""))
        elif LOADS.get(tag) in values:
            self.loads.append(values[LOADS[tag]])
        # Sphinx writes a picture's own address where its author wrote no text.
        if tag == "img" and values.get("alt", values.get("src")) == values.get("src"):
            self.nameless += 1
        for candidate in values.get("srcset", "").split(","):
            self.loads += candidate.split()[:1]
        self.loads += CSS_URL.findall(values.get("style", ""))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._style = False

    def handle_data(self, data: str) -> None:
        if self._style:
            self.loads += CSS_URL.findall(CSS_COMMENT.sub("", data))


def check(html: Path) -> list[str]:
    """Everything wrong with the book in the folder `html`, a line each; empty when it is sound."""
    files = _pages(html)
    if not (html / "index.html").is_file():
        return [f"{html}: there is no built book; run: python tools/book.py build"]
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in files}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(html.resolve()).as_posix()
        if page.nameless:
            problems.append(f"{name}: {page.nameless} picture(s) without an alternative text")
        for target in page.loads:
            problems += _load(html, path, target, name)
        for target in page.links:
            problems += _link(html, path, target, name, pages)
    for sheet in sorted(html.rglob("*.css")):
        name = sheet.relative_to(html).as_posix()
        for target in CSS_URL.findall(CSS_COMMENT.sub("", sheet.read_text(encoding="utf-8"))):
            problems += _load(html, sheet.resolve(), target, name)
    return list(dict.fromkeys(problems))


def count(html: Path) -> int:
    """Number of pages in the folder `html`."""
    return len(_pages(html))


def _pages(html: Path) -> list[Path]:
    """The pages; the theme's templates in _static are none."""
    return [path for path in sorted(html.rglob("*.html")) if path.relative_to(html).parts[0] != "_static"]


def _load(html: Path, path: Path, target: str, name: str) -> list[str]:
    if target.startswith("data:") or target.startswith("#") or not target:
        return []
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return [f"{name}: loads {target} from outside"]
    file = (path.parent / unquote(parts.path)).resolve()
    return [] if file.is_file() and file.is_relative_to(html.resolve()) else [f"{name}: {target} does not exist"]


def _link(html: Path, path: Path, target: str, name: str, pages: dict[Path, Page]) -> list[str]:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return [] if parts.scheme in {"https", "http", "mailto"} else [f"{name}: {target} is not a web address"]
    if target in ("", "#"):
        return []
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if file.is_dir():
        file = file / "index.html"
    if not file.is_file() or not file.is_relative_to(html.resolve()):
        return [f"{name}: link to {target}: no such page"]
    anchor = unquote(parts.fragment)
    if anchor and file in pages and anchor not in pages[file].anchors:
        return [f"{name}: link to {target}: no such place on that page"]
    return []
