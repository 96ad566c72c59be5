"""Addresses that open a notebook of this repository on Binder, on Colab or on a JupyterHub.

All of them derive from one address, ``[project.urls] Repository`` in pyproject.toml. A JupyterHub needs the
nbgitpuller extension and its own address:

    python tools/launch.py chapters/01_spectral_bias.ipynb --hub https://hub.example.edu
"""

import argparse
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"


def repository(root: Path = ROOT) -> str:
    """The repository's address, without a slash or ``.git`` at its end.

    Raises:
        ValueError: if pyproject.toml has no ``[project.urls] Repository`` or it is not an https address OWNER/NAME.
    """
    with open(root / "pyproject.toml", "rb") as file:
        address = tomllib.load(file).get("project", {}).get("urls", {}).get("Repository")
    if not address:
        raise ValueError(f"{root / 'pyproject.toml'}: [project.urls] Repository is missing")
    address = address.strip().rstrip("/").removesuffix(".git")
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.netloc or len(parts.path.strip("/").split("/")) < 2:
        raise ValueError(f"[project.urls] Repository must look like https://HOST/OWNER/NAME, not {address!r}")
    return address


def source_link(address: str, path: str, *, folder: bool = False) -> str:
    """Where the hosting site shows a file or a folder of the repository.

    >>> source_link("https://github.com/a/b", "refimpl", folder=True)
    'https://github.com/a/b/tree/main/refimpl'
    """
    return f"{address}/{'tree' if folder else 'blob'}/{BRANCH}/{quote(path)}".rstrip("/")


def hub_query(address: str, path: str) -> str:
    """What follows a JupyterHub's address in a link that fetches the repository with nbgitpuller and opens `path`."""
    name = urlsplit(address).path.rsplit("/", 1)[-1]
    query = urlencode({"repo": address, "branch": BRANCH, "urlpath": f"lab/tree/{name}/{path}"})
    return f"/hub/user-redirect/git-pull?{query}"


def launch_links(address: str, path: str, hub: str | None = None) -> dict[str, str]:
    """Name of each service that can open the notebook at `path`, with the address that does it.

    Args:
        address: the repository, as `repository` returns it.
        path: the notebook, relative to the repository's root.
        hub: address of a JupyterHub with nbgitpuller; without it there is no such link.

    >>> launch_links("https://github.com/a/b", "chapters/01_x.ipynb")["Colab"]
    'https://colab.research.google.com/github/a/b/blob/main/chapters/01_x.ipynb'
    """
    parts = urlsplit(address)
    slug = parts.path.strip("/")
    links = {}
    if parts.netloc == "github.com":
        links["Binder"] = f"https://mybinder.org/v2/gh/{slug}/{BRANCH}?urlpath={quote('lab/tree/' + path, safe='')}"
        links["Colab"] = f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/{quote(path)}"
    else:
        where = quote(address, safe="")
        links["Binder"] = f"https://mybinder.org/v2/git/{where}/{BRANCH}?urlpath={quote('lab/tree/' + path, safe='')}"
    if hub:
        links["JupyterHub"] = hub.rstrip("/") + hub_query(address, path)
    return links


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the launch links of notebooks as Markdown.")
    parser.add_argument("notebooks", nargs="+", help="paths relative to the repository's root")
    parser.add_argument("--hub", help="address of a JupyterHub with nbgitpuller")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    args = parser.parse_args(argv)
    try:
        address = repository(args.root)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in args.notebooks:
        if not (args.root / path).is_file():
            print(f"{path}: no such notebook in {args.root}", file=sys.stderr)
            return 1
        print(f"{path}: " + " · ".join(f"[{k}]({v})" for k, v in launch_links(address, path, args.hub).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
