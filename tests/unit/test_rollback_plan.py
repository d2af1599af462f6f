"""What a rollback plans: the last effect first, nothing twice, and never more than one event of the log holds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from crewlog.events.store import EVENT_BYTES_MAX
from crewlog.orchestrator.rollback import RunEffect, plan_rollback, undo_steps
from crewlog.schemas.effects import Compensation, Rollback
from crewlog.schemas.ids import Hash, RunId, TaskId

RUN = RunId(UUID(int=1))


def effect(n: int, **changes: Any) -> RunEffect:
    undo = Compensation("unmake", "1", f'{{"id":{n}}}', f"thing {n}", Hash(f"{n:064x}"))
    made = RunEffect(TaskId(UUID(int=7)), "data", f"c{n}", "make", "compensable", f"{n:032x}", Hash(""), n, "w1", "ok", undo)
    return replace(made, **changes)


def plan(*effects: RunEffect, undone: frozenset[str] = frozenset(), kinds: frozenset[str] = frozenset({"data"})) -> Rollback:
    return plan_rollback(RUN, effects, number=1, undone=undone, kinds=kinds, actor="maria", reason="wrong")


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


def test_a_plan_fits_into_its_event_and_says_what_did_not_fit() -> None:
    made = plan(*(effect(n) for n in range(2_000)), *(effect(n, effect="irreversible", compensation=None) for n in range(2_000, 4_000)))
    assert len(made.orders) + len(made.left) + made.more == 4_000
    assert made.orders
    assert made.left
    assert len(msgspec.json.encode(made)) + 20_000 < EVENT_BYTES_MAX
    assert len(msgspec.json.encode(undo_steps(made))) < EVENT_BYTES_MAX
