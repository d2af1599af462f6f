"""Versions of tools: a new task is offered the last one, a task that began earlier keeps its own as long as somebody carries it out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.scripted import Recorder

from crewlog.agents.toolbox import Toolbox
from crewlog.schemas.errors import ConfigError

ONE = replace(Recorder().tool("look"), version="1")
TWO = replace(ONE, version="2")


def test_the_last_version_is_offered_and_both_are_found() -> None:
    box = Toolbox((ONE, TWO))
    assert [tool.version for tool in box.offered] == ["2"]
    assert box.find("look", "1") is ONE
    assert box.find("look", "2") is TWO


def test_a_retired_version_is_kept_for_those_who_began_with_it() -> None:
    box = Toolbox((replace(ONE, retired=True), replace(TWO, retired=True)))
    assert box.offered == ()
    assert box.find("look", "1") is not None


def test_a_later_version_may_serve_an_earlier_one() -> None:
    three = replace(ONE, version="3", serves=("1", "2"))
    assert Toolbox((three,)).find("look", "1") is three
    assert Toolbox((TWO, three)).find("look", "2") is TWO
    assert Toolbox((three,)).find("look", "0") is None


def test_the_same_version_twice_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="'look' has version '1' twice"):
        Toolbox((ONE, ONE))
