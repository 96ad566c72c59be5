"""What a control of *Play* draws stays the same after the rest of its chapter has run: no later cell changes its names."""

import ast
from pathlib import Path

import pytest

CHAPTERS = sorted((Path(__file__).parents[1] / "chapters").glob("*.py"))
SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def set_after(tree: ast.Module, line: int) -> set[str]:
    """Global names that statements behind a line give a value."""
    names, todo = set(), [node for node in tree.body if node.lineno > line]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif not isinstance(node, SCOPES):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            todo += ast.iter_child_nodes(node)
    return names


def read_by(name: str, functions: dict[str, ast.FunctionDef], seen: set[str]) -> set[str]:
    """Global names that a function reads, itself or through functions that it calls."""
    seen.add(name)
    nodes = [node for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
    arguments = functions[name].args
    own = {a.arg for a in arguments.args + arguments.kwonlyargs}
    own |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    names = {node.id for node in nodes} - own
    return names.union(*(read_by(n, functions, seen) for n in names if n in functions and n not in seen))


def late(text: str) -> dict[str, set[str]]:
    """For each function passed to `play`: the names it reads that change later."""
    tree = ast.parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "play"]
    return {c.args[0].id: read_by(c.args[0].id, functions, set()) & set_after(tree, c.lineno) for c in calls}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_no_later_cell_changes_what_a_control_draws(chapter):
    assert {name for name, changed in late(chapter.read_text(encoding="utf-8")).items() if changed} == set()


def test_a_name_that_changes_later_is_seen():
    text = "a = 1\ndef draw(k):\n    return helper(k)\ndef helper(k):\n    return a + k\nplay(draw, k=2)\nprint(a)\n"
    assert late(text) == {"draw": set()}
    assert late(text + "for a in range(3):\n    pass\n") == {"draw": {"a"}}
