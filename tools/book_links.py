"""Relative links of the repository's Markdown and notebooks, made to work in the book.

A link between two files that are both pages of the book stays relative. A link to any other file or folder of the
repository becomes that file's address at the hosting site. A link to nothing is a problem that fails the build.
"""

import os
import posixpath
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from launch import source_link

IMAGES = {".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp"}
OUTSIDE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#")
# Code and mathematics may hold brackets that look like links: fences, code spans, display and inline formulas.
OPAQUE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$.+?\$\$"
    r"|(?<![\\$])\$(?=\S)[^$\n]+?(?<=\S)\$(?!\d)"
    r"|<!--.*?-->",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(
    r"(?P<image>!?)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*(?P<inline><[^<>\n]*>|[^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)"
    r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)"
    r"|^ {0,3}\[[^\]\n]+\]:[ \t]*(?P<reference><[^<>\n]*>|\S+)"
    r"|<a\s[^>]*?href=[\"'](?P<html>[^\"']*)[\"']"
    r"|<img\s[^>]*?src=[\"'](?P<picture>[^\"']*)[\"']",
    re.MULTILINE,
)


class Links:
    """Rewrites the links of one page after the other and collects what is wrong with them.

    Args:
        root: the repository.
        source: the folder in which the book's source is assembled; pictures are copied there.
        pages: for each page, its path in the repository and its path in the book's source.
        folders: for each folder that has a page of its own, that page's path in the book's source.
        address: the repository's address.
    """

    def __init__(self, root: Path, source: Path, pages: dict[str, str], folders: dict[str, str], address: str):
        self.root, self.source, self.pages, self.folders, self.address = root, source, pages, folders, address
        self.problems: list[str] = []

    def rewrite(self, text: str, page: str) -> str:
        """The Markdown `text` of the file `page` (path in the repository) with links that work in the book."""
        spans = [match.span() for match in OPAQUE.finditer(text)]
        pieces, end = [], 0
        for match in LINK.finditer(_blank(text, spans)):
            kind = next(name for name in ("inline", "reference", "html", "picture") if match[name] is not None)
            start, stop = match.span(kind)
            target = text[start:stop]
            pieces += [text[end:start], self._target(target, page, kind, image=bool(match["image"]))]
            end = stop
        return "".join(pieces) + text[end:]

    def _target(self, target: str, page: str, kind: str, *, image: bool) -> str:
        bare = target[1:-1] if target.startswith("<") else target
        if not bare or OUTSIDE.match(bare):
            return target
        if kind == "picture":
            return self._problem(page, bare, "write a picture as ![what it shows](path), the book cannot follow <img>")
        path, hash_, fragment = bare.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(path)))
        if path.startswith("/") or place.startswith(".."):
            return self._problem(page, bare, "it must be relative and stay inside the repository")
        here = posixpath.dirname(self.pages[page])
        inside = self.pages.get(place) or self.folders.get(place)
        if inside:
            link = posixpath.relpath(inside, here or ".") + hash_ + fragment
            return re.sub(r"\.(ipynb|md)(?=$|#)", ".html", link) if kind == "html" else link
        found = self.root / place
        if not _exists_exactly(self.root, place):
            return self._problem(page, bare, "no such file")
        if place.split("/")[0] in {"build", ".venv", ".git"}:
            return self._problem(page, bare, "the file is not part of the repository")
        if image and found.suffix.lower() in IMAGES:
            copy = self.source / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, copy)
            return posixpath.relpath(place, here or ".")
        return source_link(self.address, place, folder=found.is_dir()) + hash_ + fragment

    def _problem(self, page: str, target: str, reason: str) -> str:
        self.problems.append(f"{page}: link to {target}: {reason}")
        return target


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with the characters of `spans` blotted out, lines and length unchanged."""
    hide: Callable[[str], str] = lambda piece: re.sub(r"[^\n]", "\0", piece)  # noqa: E731
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], hide(text[start:stop])]
        end = stop
    return "".join(pieces) + text[end:]


def _exists_exactly(root: Path, place: str) -> bool:
    """Whether `place` exists with this very spelling, on file systems that ignore the case too."""
    folder = root
    for part in Path(place).parts:
        if part not in os.listdir(folder):
            return False
        folder = folder / part
        if folder.is_file():
            return folder == root / place
    return True
