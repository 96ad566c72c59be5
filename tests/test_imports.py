"""The rooms of refimpl: who imports whom, what stays out, how long a module is, what is public."""

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "refimpl"
FILES = {
    ".".join(("refimpl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# From the ground up; a room may enter those below it and its own. What is not named here is a method.
FLOORS = [
    {"runtime"},
    {"nets", "data", "autodiff", "metrics", "claims", "plots"},
    {"training"},
]
# Methods that build on another method because the mathematics does: {who: {whom}}.
METHODS_ON_METHODS: dict[str, set[str]] = {"free_form": {"flows"}}


def room(module):
    """The part of refimpl that a module belongs to: refimpl.nets.mlp is in nets."""
    return module.split(".")[1] if "." in module else ""


def floor(module):
    """Height of a module's room; private modules of refimpl itself belong to the ground."""
    if room(module).startswith("_") or room(module) == "":
        return 0
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), len(FLOORS))


def imported(module, nested=True):
    """Names of all modules that a module imports, with those inside functions or not."""
    found = set()
    nodes = ast.walk(TREES[module]) if nested else TREES[module].body
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: line {node.lineno} imports relatively"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in FILES else node.module for a in node.names
            }
    return found


ARROWS = [(module, other) for module in FILES for other in sorted(imported(module)) if other in FILES]


def test_arrows_are_seen():
    assert ("refimpl.nets.siren", "refimpl.nets.mlp") in ARROWS
    assert ("refimpl.claims", "refimpl.runtime") in ARROWS


@pytest.mark.parametrize(("module", "other"), ARROWS)
def test_arrows_point_down(module, other):
    here, there = floor(module), floor(other)
    if here == there == len(FLOORS) and room(module) != room(other):
        assert room(other) in METHODS_ON_METHODS.get(room(module), set()), f"{module} imports the method {other}"
    assert there <= here, f"{module} imports {other}, which is above it"


def test_no_circles():
    graph = {module: set() for module in FILES}
    for module, other in ARROWS:
        if other != module.rpartition(".")[0]:  # a package imports its modules, and these need not import it
            graph[module].add(other)
    list(graphlib.TopologicalSorter(graph).static_order())


def test_methods_know_nothing_of_plots():
    assert [module for module, other in ARROWS if other == "refimpl.plots"] == []


def test_importing_everything_brings_in_no_notebook_and_no_plotting():
    code = f"import importlib, json, sys\nfor m in {list(FILES)}: importlib.import_module(m)\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert {"refimpl", "torch"} <= loaded
    unwanted = {"IPython", "ipywidgets", "jupyter_client", "jupyter_core", "matplotlib", "notebook", "traitlets"}
    assert loaded & (unwanted | {"beartype", "pandas", "scipy", "sklearn"}) == set()


def test_importing_the_package_alone_brings_in_not_even_torch():
    code = "import sys, refimpl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("module", FILES)
def test_only_runtime_reads_the_environment(module):
    touched = [
        node.lineno
        for node in ast.walk(TREES[module])
        if getattr(node, "attr", getattr(node, "id", None)) in ("environ", "environb", "getenv", "putenv")
        or (isinstance(node, ast.alias) and node.name in ("environ", "getenv", "putenv"))
    ]
    assert touched == [] or module == "refimpl.runtime", f"{module}: lines {touched}"


@pytest.mark.parametrize("module", FILES)
def test_a_module_holds_one_idea(module):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{module} has {lines} lines"
    assert ast.get_docstring(TREES[module])


def lines_of_code(module):
    """Lines that are neither blank nor comment nor docstring."""
    text, written = FILES[module].read_text(encoding="utf-8").splitlines(), set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            written |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and line.strip()[0] != "#" for i, line in enumerate(text, 1) if i not in written)


def test_the_package_stays_compact():
    lines = sum(lines_of_code(module) for module in FILES)
    print(f"refimpl: {lines} lines of code in {len(FILES)} modules")
    # About 450 lines a chapter, and there are to be twenty; the zoo of flows alone takes more than two thousand.
    assert lines <= 10_000


@pytest.mark.parametrize("module", [name for name in FILES if not name.rpartition(".")[2].startswith("_")])
def test_what_is_public_is_listed_and_described(module):
    defined, others = {}, set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.setdefault(node.name, node)
        elif isinstance(node, ast.Assign):
            others |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            others |= {alias.asname or alias.name for alias in node.names}
    listed = importlib.import_module(module).__all__
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert name in others or ast.get_docstring(defined[name]), f"{module}.{name} has no docstring"
