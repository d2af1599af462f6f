"""Limits on the command line: the names that errors give are the names one raises."""

from __future__ import annotations

import pytest
from support.decider import a_task

from crewlog.orchestrator.cli_limits import read_limits
from crewlog.schemas.errors import ContractError
from crewlog.schemas.task import Limits


def test_limits_are_named_as_in_errors() -> None:
    assert read_limits(["turns_max=80", "idle_seconds=30", "timeout_seconds=60"], "a goal") == {
        "timeout_seconds": 60,
        "limits": Limits(turns_max=80, idle_seconds=30),
    }
    assert read_limits([], "a goal") == {}


def test_limits_of_a_file_stay_where_nothing_else_is_given() -> None:
    task = a_task(limits={"turns_max": 7, "tool_calls_max": 9})
    assert read_limits(["turns_max=8"], task) == {"limits": Limits(turns_max=8, tool_calls_max=9)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("turns=8", "there is no limit 'turns'; there are: turns_max, tool_calls_max"),
        ("turns_max", "limit turns_max needs a whole number, got ''; write --limit turns_max=N"),
        ("turns_max=-1", "got '-1'"),
        ("turns_max=²", "got '²'"),
        ("turns_max=0", "/turns_max: Input should be greater than or equal to 1"),
    ],
)
def test_what_is_no_limit_is_said(given: str, said: str) -> None:
    with pytest.raises(ContractError) as error:
        read_limits([given], "a goal")
    assert said in str(error.value)
