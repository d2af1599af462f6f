"""What docstrings show is what happens: every example in the code is run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "events", "projections", "agents", "orchestrator")
SHOWN = [f"{package}.{path.stem}" for package in PACKAGES for path in sorted((ROOT / package).glob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("module", SHOWN)
def test_the_examples_of_a_module_are_true(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"crewlog.{module}"))
    assert failed == 0
    assert tried > 0


def test_some_modules_show_examples() -> None:
    assert "schemas.retry" in SHOWN
