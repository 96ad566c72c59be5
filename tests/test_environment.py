"""One place for versions: environment.yml, binder/, constraints.txt and the citation agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = {"jupyterlab", "torch", "matplotlib", "nbval", "jupytext", "ipywidgets"}


def declared() -> dict[str, Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {r.name: r for r in map(Requirement, lines) if r.name != PROJECT["name"]}


def pip_section(path: Path) -> tuple[list[Requirement], list[str]]:
    document = yaml.safe_load(path.read_text())
    assert set(document) <= {"name", "channels", "dependencies"}
    conda = [d for d in document["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in document["dependencies"] if isinstance(d, dict)]
    assert "pip" in conda, "a pip section needs pip"
    assert any(re.fullmatch(r"python=3\.\d+", d) for d in conda)
    return [Requirement(line) for line in pip if not line.startswith("-")], [
        line for line in pip if line.startswith("-")
    ]


def test_conda_environment_agrees_with_pyproject():
    requirements, options = pip_section(ROOT / "environment.yml")
    assert {r.name for r in requirements} == NAMED
    for requirement in requirements:
        assert requirement.specifier == declared()[requirement.name].specifier, requirement
    for option in options:
        flag, _, value = option.partition(" ")
        target, _, extras = value.partition("[")
        assert flag in ("-e", "-c") and (ROOT / target).exists(), option
        assert set(filter(None, extras.rstrip("]").split(","))) <= set(PROJECT["optional-dependencies"])


def test_binder_installs_the_same_pytorch_range():
    lines = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    (torch,) = [line.removeprefix("pytorch-cpu") for line in lines if line.startswith("pytorch-cpu")]
    assert SpecifierSet(torch) == declared()["torch"].specifier
    assert "constraints.txt" in (ROOT / "binder" / "postBuild").read_text()


def test_constraints_satisfy_pyproject():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text, "the lock must not name a registry"
    for name, requirement in declared().items():
        versions = re.findall(rf"^{re.escape(name)}==([^\s;]+)", text, re.M | re.I)
        assert versions, f"{name} is not in constraints.txt; run: make lock"
        assert all(requirement.specifier.contains(v) for v in versions), name


def test_python_version_is_the_same_everywhere():
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert f"python={minimum}" in (ROOT / "environment.yml").read_text()
    assert f"Python {minimum} or newer" in (ROOT / "README.md").read_text()


def test_citation_agrees_with_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["license"] == PROJECT["license"]
