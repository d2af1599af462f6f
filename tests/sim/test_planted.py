"""Tests of the tests: defects planted in the product, each of which the explorer must find within a fixed number of seeds.

A defect is a replaced function here, never a switch in the product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from sim.network import SimStore
from sim.plan import draw_plan
from sim.world import run

from crewlog.agents import model_call, tool_calls, tool_runner, undo, work
from crewlog.agents.journal import Journal
from crewlog.agents.orders import Orders
from crewlog.agents.worker import Worker
from crewlog.events.store import ANY, Appended, AppendRequest
from crewlog.orchestrator import advance, interventions
from crewlog.orchestrator.sweep import Sweep
from crewlog.orchestrator.window import Window
from crewlog.schemas.ids import category
from crewlog.schemas.usage import NOT_BILLED, Price

Plant = Callable[[pytest.MonkeyPatch], None]
SEEDS_MAX: Final = 400


def ack_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A task is acknowledged before anything of it is durable."""
    handle = Worker.handle

    async def hasty(self: Worker, delivery: Any) -> None:
        await delivery.ack()
        await handle(self, delivery)

    patch.setattr(Worker, "handle", hasty)
    patch.setattr(Sweep, "_check", _nothing)  # the sweep would find the lost task after all


def no_expected_version(patch: pytest.MonkeyPatch) -> None:
    """Workers append without saying which version they own."""
    append = SimStore.append

    async def unfenced(self: SimStore, request: AppendRequest) -> Any:
        writes = [w if category(w.stream) != "task" or w.kind else w._replace(expected=ANY) for w in request.writes]
        return await append(self, request._replace(writes=writes))

    patch.setattr(SimStore, "append", unfenced)
    patch.setattr(Journal, "_append", _unchecked)


def key_with_the_attempt(patch: pytest.MonkeyPatch) -> None:
    """The idempotency key changes with every try."""
    count = itertools.count()
    key = undo.idempotency_key
    patch.setattr(undo, "idempotency_key", lambda run, task, call: key(run, task, f"{call}#{next(count)}"))


def no_sweep(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks for what stands still."""
    patch.setattr(Sweep, "sweep", _nothing)


def blind_repeat(patch: pytest.MonkeyPatch) -> None:
    """What may have happened is done again without asking."""
    patch.setattr(tool_runner, "REPEATABLE", frozenset({"read", "idempotent", "irreversible", "compensable"}))


def nobody_is_asked(patch: pytest.MonkeyPatch) -> None:
    """A call that may have happened is left unknown, and no person hears of it."""
    judge = tool_runner.judge

    def silent(call: Any, *rest: Any) -> Any:
        verdict = judge(call, *rest)
        is_question = isinstance(verdict, tool_runner.Ask) and verdict.question == "outcome"
        return tool_runner.Refuse("it may have happened", "unknown") if is_question else verdict

    patch.setattr(tool_calls, "judge", silent)


def lost_calls_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """A call whose worker died is taken for one that was never billed."""
    given_up = model_call.given_up
    patch.setattr(work, "given_up", lambda asking, **said: msgspec.structs.replace(given_up(asking, **said), price=Price(0, NOT_BILLED)))


def room_that_never_comes_back(patch: pytest.MonkeyPatch) -> None:
    """Whoever has an end makes no room for what waits for its turn."""
    patch.setattr(Window, "ended", lambda *_: None)
    patch.setattr(Window, "seen", lambda *_: [])


def deaf_to_operators(patch: pytest.MonkeyPatch) -> None:
    """A worker never looks at what is paused."""

    async def nothing_is_against(*_: Any) -> str:
        return ""

    patch.setattr(Orders, "against", nothing_is_against)


def returned_tasks_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What was handed back while its run was paused stays where it is when the run goes on."""
    patch.setattr(interventions, "_go_on", interventions.advance)


def ends_slip_out(patch: pytest.MonkeyPatch) -> None:
    """A quarantine keeps nothing back."""
    complete = advance._complete

    def end_all_the_same(draft: Any) -> None:
        kept, draft.state = draft.state.quarantines, msgspec.structs.replace(draft.state, quarantines=())
        complete(draft)
        draft.state = msgspec.structs.replace(draft.state, quarantines=kept)

    patch.setattr(advance, "_complete", end_all_the_same)


async def _nothing(*_: Any) -> None:
    return None


async def _unchecked(self: Journal, request: AppendRequest, blobs: list[bytes], before: Any) -> Appended:
    if blobs:
        await self._store.put_blobs(blobs)
    if before is not None:
        await before
    return await self._store.append(request)


PLANTS: Final[tuple[Plant, ...]] = (
    *(ack_before_commit, no_expected_version, key_with_the_attempt, no_sweep, blind_repeat, nobody_is_asked, lost_calls_for_nothing),
    *(room_that_never_comes_back, deaf_to_operators, returned_tasks_forgotten, ends_slip_out),
)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_defect_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = next((seed for seed in range(SEEDS_MAX) if run(draw_plan(seed)).violations), None)
    assert found is not None, f"{plant.__name__}: {SEEDS_MAX} schedules did not show it"
