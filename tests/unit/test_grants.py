"""Who may write what: the table itself. That the database keeps to it is tried in `tests/contract/test_gate_rights.py`."""

from __future__ import annotations

import pytest

from crewlog.events.grants import BUILT_IN_KINDS, GRANTS, ORCHESTRATOR, SPECIALIST, Grant, kind_role
from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.task_events import TASK_EVENTS


def of_tasks(role: str) -> list[Grant]:
    return [grant for grant in GRANTS if (grant.role, grant.category) == (role, "task")]


@pytest.mark.parametrize("kind", [*BUILT_IN_KINDS, "shouter"])
def test_an_agent_may_write_to_tasks_of_its_own_kind_and_to_no_stream_without_one(kind: str) -> None:
    (own,) = of_tasks(kind_role(kind))
    assert own.covers(kind)
    assert not own.covers(None)
    assert [other for other in (*BUILT_IN_KINDS, "shouter") if own.covers(other)] == [kind]
    assert not own.opens


def test_what_agents_do_the_orchestrator_cannot_say_and_the_other_way_round() -> None:
    (decides,), (works,) = of_tasks(ORCHESTRATOR), of_tasks(SPECIALIST)
    assert not decides.types & works.types
    assert decides.types | works.types == {cls.__name__ for cls in TASK_EVENTS}, "each has somebody who writes it"
    assert {grant.types for kind in BUILT_IN_KINDS for grant in of_tasks(kind_role(kind))} == {works.types}


def test_runs_are_the_orchestrators_alone() -> None:
    runs = {cls.__name__ for cls in RUN_EVENTS}
    assert {(grant.role, grant.category) for grant in GRANTS if grant.types & runs} == {(ORCHESTRATOR, "run")}
