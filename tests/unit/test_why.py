"""What an unfinished task waits for, made of the views and of what those say that are there: one reason for each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from crewlog.orchestrator.why import Held, Known, why_imported, why_run, why_task
from crewlog.projections.query_rows import AgentView, ApprovalView, ProviderView, RunView, TaskView

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
LOCAL = f"{AT.astimezone():%Y-%m-%d %H:%M:%S}"


def view(type_: Any, **given: Any) -> Any:
    """Make a row of a view: what is not given is empty."""
    fields = {field.name: given.get(field.name) for field in msgspec.structs.fields(type_)}
    return type_(**fields)


def task(status: str, text: str = "", **given: Any) -> TaskView:
    made: TaskView = view(TaskView, task_id=UUID(int=1), key="a", kind="data", status=status, waiting_reason=text, **given)
    return made


def worker(name: str = "data-1", **given: Any) -> AgentView:
    made: AgentView = view(AgentView, kind="data", worker=name, **{"slots": 4, "unavailable": "", "started_at": AT, **given})
    return made


ASKED = view(ApprovalView, approval_id=UUID("abcdef01" + "0" * 24), expires_at=AT, tool="send")
LOST = view(ApprovalView, approval_id=UUID("abcdef01" + "0" * 24), expires_at=AT, tool="send", question="outcome")
DOUBT = task("suspended", "a person's word on whether send happened, until T")
SHUT = view(ProviderView, worker="data-1", provider="anthropic", model="m", until_at=AT, reason="overloaded")
QUEUED = task("queued", "queued for data (attempt 1)")
WORKING = task("running", "working: turn 1, preparing", worker="data-1", started_at=AT)


PAUSED = task("planned", "paused by ann since T (late); go on with: crewlog resume 1234")
SHORT = task("held", "budget run/1: $1 of $1 used; go on with: crewlog budget raise run/1 --hard USD")
AGAIN = task("retrying", "retry: attempt 2 due at T after timeout", error="no word")


@pytest.mark.parametrize(
    ("waiting", "known", "reason", "detail", "ends"),
    [
        (task("planned", "waiting for steps b, c"), {}, "dependency", "waiting for steps b, c", "steps b, c ending"),
        (PAUSED, {}, "paused", "paused by ann since T (late)", "crewlog resume 1234"),
        (SHORT, {}, "budget", "budget run/1: $1", "crewlog budget raise"),
        (task("suspended", "approval of send by a person until T"), {"approvals": [ASKED]}, "approval", "approval of send by", "crewlog approve abcdef01,"),
        (DOUBT, {"approvals": [LOST]}, "approval", "on whether send happened", "crewlog resolve abcdef01 happened, did-not-happen"),
        (DOUBT, {"out": {}}, "approval", "on whether send happened", "an orchestrator, any moment"),
        (task("suspended", "approval was decided: the orchestrator resumes it"), {"out": {}}, "orchestrator", "approval was decided", "any moment"),
        (AGAIN, {}, "retry", "attempt 2 due at T after timeout: no word", "the next attempt"),
        (AGAIN, {"providers": [SHUT]}, "breaker", f"does not ask anthropic/m until {LOCAL} (overloaded)", "answering again"),
        (QUEUED, {}, "orchestrator", "no orchestrator answers", "an orchestrator that starts"),
        (QUEUED, {"out": {}}, "no_worker", "none has ever registered", "crewlog scale data=1"),
        (QUEUED, {"out": {}, "gone": worker()}, "no_worker", f"data-1 registered at {LOCAL} and does not answer", "crewlog agent data"),
        (QUEUED, {"out": {}, "gone": worker(stopped_at=AT)}, "no_worker", f"data-1, stopped at {LOCAL}", "crewlog agent data"),
        (
            *(QUEUED, {"out": {}, "version": "3", "versions": ["2", "1", "2"]}, "no_worker"),
            *("waits for a worker of version 3 of kind data; versions live: 1, 2", "a worker of kind data that starts with version 3"),
        ),
        (QUEUED, {"out": {}, "version": "3"}, "no_worker", "versions live: none (none has ever registered)", "that starts with version 3"),
        (QUEUED, {"out": {}, "version": "3", "crew": [worker(version="3")]}, "queue", "0 tasks are out for 4 slots", "an agent, any moment"),
        (QUEUED, {"out": {}, "crew": [worker(unavailable="pip install x")]}, "no_worker", "can work: pip install x", "installing that"),
        (QUEUED, {"out": {"data": 9}, "crew": [worker()]}, "queue", "9 tasks are out for 4 slots", "crewlog scale data=2"),
        (QUEUED, {"out": {"data": 1}, "crew": [worker()]}, "queue", "1 tasks are out for 4 slots", "any moment"),
        (QUEUED, {"out": {}, "crew": [worker()], "held": Held(7, 5, 5, False)}, "fairness", "about 7 others go first", "crewlog scale data=2"),
        (QUEUED, {"out": {}, "crew": [worker()], "held": Held(0, 2, 2, True)}, "limit", "2 of at most 2 data tasks are out; it is next", "higher limit"),
        (QUEUED, {"out": {}, "held": Held(7, 5, 5, True)}, "no_worker", "no data agent is there", "crewlog scale data=1"),
        (QUEUED, {"out": {}, "is_shadow": True}, "no_worker", "no data agent is there for shadows", "crewlog scale data.shadow=1"),
        (QUEUED, {"out": {"data.shadow": 9}, "is_shadow": True, "crew": [worker()]}, "queue", "9 tasks are out for 4", "crewlog scale data.shadow=2"),
        (WORKING, {"holds": True}, "lease", f"preparing, held by data-1 since {LOCAL}", "its agent"),
        (WORKING, {"crew": [worker("data-2")]}, "lease", "data-1 held it since", "another data agent"),
        (WORKING, {"gone": worker()}, "lease", "does not answer", "crewlog scale data=1"),
        (WORKING, {"holds": False, "crew": [worker()]}, "lease", "has given it back", "the next data agent"),
        (task("reviewing", "the outcome waits for review by the orchestrator"), {"out": {}}, "orchestrator", "the outcome waits", "any moment"),
        (task("deciding", "attempt 1 failed"), {}, "orchestrator", "attempt 1 failed", "an orchestrator that starts"),
    ],
)
def test_a_task_has_one_reason_and_what_ends_it(waiting: TaskView, known: dict[str, Any], reason: str, detail: str, ends: str) -> None:
    wait = why_task(waiting, Known(**known))
    assert wait.reason == reason
    assert detail in wait.detail
    assert ends in wait.ends


def test_of_a_kind_that_users_made_only_they_know_the_module() -> None:
    own = msgspec.structs.replace(QUEUED, kind="mine")
    assert why_task(own, Known(out={})).ends == "an agent of kind mine: crewlog agent module:ATTR"
    assert why_task(own, Known(out={}, is_shadow=True)).ends == "an agent of kind mine: crewlog agent module:ATTR --shadow"
    assert why_task(own, Known(out={"mine": 9}, crew=[worker()])).ends.endswith("more agents: crewlog agent module:ATTR")


def test_an_imported_run_waits_for_nobody() -> None:
    assert why_imported().reason == "none"
    assert "crewlog import FILE" in why_imported().ends


def test_a_run_without_a_waiting_task_is_in_quarantine_or_stands_still() -> None:
    run: RunView = view(RunView, run_id=UUID("abcdef01" + "0" * 24), status="quarantined")
    assert why_run(run)[::2] == ("quarantine", "crewlog release abcdef01")
    assert why_run(msgspec.structs.replace(run, status="running")).reason == "none"
