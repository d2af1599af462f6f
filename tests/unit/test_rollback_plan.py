"""What a rollback plans: the last effect first, nothing twice, and never more than one event of the log holds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from crewlog.events.store import EVENT_BYTES_MAX, Recorded
from crewlog.orchestrator.rollback import Known, RunEffect, plan_page
from crewlog.orchestrator.run import evolve, initial_state
from crewlog.projections import run_state
from crewlog.projections.projection import fact_of
from crewlog.projections.rows import RunRow
from crewlog.projections.run_state import Changed
from crewlog.projections.runs import RUN_FOLDS
from crewlog.schemas.codec import encode, type_name
from crewlog.schemas.effects import Compensation, Rollback, RollbackPage
from crewlog.schemas.ids import Hash, RunId, TaskId, run_stream
from crewlog.schemas.run_events import RollbackContinued, RunPlanned
from crewlog.schemas.undo_steps import undo_steps

RUN = RunId(UUID(int=1))


def effect(n: int, **changes: Any) -> RunEffect:
    undo = Compensation("unmake", "1", f'{{"id":{n}}}', f"thing {n}", Hash(f"{n:064x}"))
    made = RunEffect(RUN, TaskId(UUID(int=7)), "data", f"c{n}", "make", "compensable", f"{n:032x}", Hash(""), n, n, "w1", "ok", undo)
    return replace(made, **changes)


def plan(*effects: RunEffect, undone: frozenset[str] = frozenset(), planned: frozenset[str] = frozenset()) -> RollbackPage:
    return plan_page(RUN, effects, Known(undone, frozenset({"data"})), planned=planned)


def test_the_last_effect_comes_first_and_what_is_gone_does_not_come() -> None:
    undone_here = effect(9, tool="unmake", fingerprint=effect(2).compensation.fingerprint, compensation=None, is_contained=True)  # type: ignore[union-attr]
    made = plan(effect(1), effect(2), effect(3), effect(4, status="error"), undone_here, undone=frozenset({f"{3:032x}"}))
    assert [order.key for order in made.orders] == [f"{1:032x}"]
    assert not made.left
    assert [order.key for order in plan(effect(1), effect(2)).orders] == [f"{2:032x}", f"{1:032x}"]


def test_what_cannot_be_taken_back_is_left_with_its_reason() -> None:
    bare = {"compensation": None}
    effects = (
        effect(1, effect="irreversible", **bare),
        effect(2, effect="irreversible", status="open", **bare),
        effect(3, effect="idempotent", **bare),
        effect(4, effect="idempotent", is_contained=True, **bare),
        effect(5, kind="gone"),
    )
    assert [(left.call_id, left.why) for left in plan(*effects).left] == [
        *(("c5", "no_agent"), ("c3", "no_compensation"), ("c2", "unknown"), ("c1", "irreversible"))
    ]


def test_only_a_call_in_doubt_names_the_worker_that_may_still_be_at_it() -> None:
    orders = plan(effect(1), effect(2, status="open"), effect(3, status="unknown")).orders
    assert [order.worker for order in orders] == ["", "w1", ""]


def test_the_effects_of_runs_that_came_from_it_are_taken_back_in_one_order_with_its_own() -> None:
    child = RunId(UUID(int=2))
    made = plan(effect(1), effect(3), effect(2, run_id=child), effect(4, run_id=child, effect="irreversible", compensation=None))
    assert [(order.run_id, order.key[-1]) for order in made.orders] == [(RUN, "3"), (child, "2"), (RUN, "1")]
    assert [left.run_id for left in made.left] == [child]


def test_pages_fit_into_events_and_hold_every_effect_once_in_one_order() -> None:
    effects = [effect(n) if n % 2 else effect(n, effect="irreversible", compensation=None) for n in range(3_000)]
    ordered: list[str] = []
    left: list[str] = []
    more = 3_000
    while more:
        page = plan(*effects, planned=frozenset((*ordered, *left)))
        assert page.orders
        assert len(page.orders) + len(page.left) + page.more == more
        assert len(msgspec.json.encode(page)) + 20_000 < EVENT_BYTES_MAX
        assert len(msgspec.json.encode(undo_steps(page.orders, page.kinds, behind=len(ordered)))) < EVENT_BYTES_MAX
        ordered += [order.key for order in page.orders]
        left += [one.key for one in page.left]
        more = page.more
    assert [int(key, 16) for key in ordered] == list(range(2_999, 0, -2))
    assert [int(key, 16) for key in left] == list(range(2_998, -1, -2))


def test_what_was_taken_back_meanwhile_is_on_no_page() -> None:
    undone = frozenset(f"{n:032x}" for n in range(100))
    assert plan(*map(effect, range(100)), undone=undone) == RollbackPage((), (), (), 0)


def test_views_and_runs_name_the_steps_of_all_pages_alike() -> None:
    first, second = plan(effect(3), effect(2)), plan(effect(1))
    rollback = Rollback(RUN, 1, first.orders, first.kinds, first.left, "maria", "wrong", 1, is_paged=True)
    planned = RunPlanned(undo_steps(first.orders, first.kinds), "rollback")
    state = replace(initial_state(), run_id=RUN, status="open", rollback=rollback)
    view = run_state.RunState(RunRow(RUN, status="running"))
    for event in (planned, RollbackContinued(second)):
        state = evolve(state, event)
        recorded = Recorded(1, run_stream(RUN), 1, UUID(int=9), type_name(event), 1, encode(event), 0)
        RUN_FOLDS[type(event)](view, fact_of(recorded), event, Changed())
    assert [step.key for step in state.steps] == list(view.latest) == ["undo-1", "undo-2", "undo-3"]
    assert state.rollback is not None
    assert ([order.key[-1] for order in state.rollback.orders], state.rollback.more) == (["3", "2", "1"], 0)
