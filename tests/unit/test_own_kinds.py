"""A user's module that holds no agent is refused with what is wrong with it, and never with a look into crewlog."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crewlog.agents.kinds import load_agent
from crewlog.schemas.errors import ConfigError

MODULES = {
    "def (": r"SyntaxError: invalid syntax \(own_kind\.py, line 1\)\npython -c 'import own_kind' shows all of it",
    "AGENT = 1 / 0": r"ZeroDivisionError: division by zero \(.*own_kind\.py, line 1\)",
    "import no_such_library": r"cannot import 'own_kind': No module named 'no_such_library'\nown_kind imports it: install it beside crewlog",
    "AGENTS = ()": r"own_kind:AGENT: AGENT is not there\nit must be an AgentSpec",
    "AGENT = 5": r"own_kind:AGENT: AGENT is of type int\n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("own_kind", None)


@pytest.mark.parametrize("text", MODULES)
def test_what_is_wrong_with_a_module_is_said(text: str, here: Path) -> None:
    (here / "own_kind.py").write_text(text)
    with pytest.raises(ConfigError, match=MODULES[text]):
        load_agent("own_kind:AGENT")


@pytest.mark.parametrize(
    ("name", "told"), [("own_kind", "own_kind.py is"), ("own_kind.part", "own_kind.py is"), ("", "Empty module name"), ("../x", "TypeError")]
)
def test_a_module_that_is_not_there_is_looked_for_here(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_agent(f"{name}:AGENT")
