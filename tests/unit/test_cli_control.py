"""What the steering commands understand before they ask a crew, and how they say what is in force."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.cli_control import span_s
from crewlog.orchestrator.cli_files import age_s
from crewlog.orchestrator.cli_run import control_line
from crewlog.projections.query_rows import ControlView
from crewlog.schemas.errors import ContractError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pause"], "say what to pause"),
        (["cancel"], "say what to terminate"),
        (["pause", "-", "--tenant", "default"], "not both"),
        (["resume", "@last", "--all"], "not both"),
        (["terminate", "--older-than", "soon"], "no span of time"),
        (["drain"], "name workers or --kind"),
        (["drain", "w1", "--kind", "data"], "name workers or --kind"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_asked(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(command_line(), arguments)

    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("3d", 259_200)])
def test_spans_of_time(text: str, seconds: float | None) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize("text", ["1", "h", "-1h", "1h30m", "1 h"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(ContractError, match="no span of time"):
        span_s(text)


@pytest.mark.parametrize("text", ["", "2", "2y", "-1d", "999999w"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(ContractError, match=f"--older-than {text}: "):
        age_s("--older-than", text)
    assert [age_s("--older-than", age) for age in ("0s", "12h", "2w")] == [0, 43_200, 1_209_600]


def test_what_is_in_force_names_who_since_when_why_and_how_to_take_it_back() -> None:
    at = datetime(2026, 11, 25, tzinfo=UTC)
    since = at.astimezone().strftime("%Y-%m-%d %H:%M:%S")

    assert control_line(ControlView("pause", "kind/data", "ada", "incident 7", at)) == (
        f"kind data is paused by ada since {since} (incident 7); resume it: crewlog resume --kind data"
    )
    assert control_line(ControlView("quarantine", "run/0123456789ab", "a\x1bb", "", at), results_held=True) == (
        f"run 01234567 is in quarantine by a b since {since}, and results are held; release it: crewlog release 01234567"
    )
