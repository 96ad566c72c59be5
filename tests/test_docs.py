"""Every example in a docstring of refimpl does what it shows."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import refimpl

MODULES = ["refimpl", *(m.name for m in pkgutil.walk_packages(refimpl.__path__, "refimpl."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    written = len(re.findall(r"^\s*>>> ", Path(module.__file__).read_text(encoding="utf-8"), re.MULTILINE))
    assert (result.failed, result.attempted) == (0, written)  # all of them ran: none is hidden from doctest
