"""The page with the figures, and what it tells its reader to type."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.children import ROOT
from benchmarks.document import PAGES, filled
from benchmarks.measures import MEASURES
from benchmarks.plots import RESULT

PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_json_gives(page: Path) -> None:
    text = page.read_text("utf-8")
    assert filled(text, json.loads(RESULT.read_text("utf-8"))) == text


def test_every_measure_has_its_place() -> None:
    assert set(MEASURES) <= set(re.findall(r"<!-- figures: ([\w-]+) -->", PAGE))


def test_every_command_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, re.MULTILINE)) <= targets
    modules = re.findall(r"python -m ([\w.]+)", PAGE)
    assert modules
    for module in modules:
        assert find_spec(module), module


def test_options_of_commands_are_there() -> None:
    options = {name for parameter in main.params for name in parameter.opts}
    named = re.findall(r"(?:make bench ARGS=|python -m benchmarks )([^\n`#]*)", PAGE)
    words = [word for arguments in named for part in shlex.split(arguments) for word in part.split()]
    assert {word for word in words if word.startswith("--")} <= options | {"--help"}
    assert {word for before, word in itertools.pairwise(words) if before == "--only"} <= set(MEASURES)
