"""The race of two calls: what is recorded of each, in which order, when answers come at awkward moments."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from support.scripted import says

from crewlog.agents.hedging import race
from crewlog.agents.model import ModelError, OnText
from crewlog.schemas.blocks import ModelReply

WITHIN_S = 60.0
NOW_S = 0.001
ANSWER = says("42")
BROKEN = ModelError("server", "it broke")


@dataclass(eq=False)
class Runner:
    """A call that answers once its gate is open, and writes down what is recorded of it."""

    name: str
    outcome: ModelReply | ModelError | Exception
    log: list[tuple[str, str, object]]
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: bool = False

    async def answer(self, on_text: OnText) -> ModelReply | ModelError:
        self.is_asked.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        if isinstance(self.outcome, ModelReply | ModelError):
            return self.outcome
        raise self.outcome

    def is_good(self, outcome: ModelReply | ModelError) -> bool:
        return isinstance(outcome, ModelReply)

    def close(self, outcome: ModelReply | ModelError) -> None:
        self.log.append(("close", self.name, outcome))

    def lose(self, reply: ModelReply | None) -> None:
        self.log.append(("lose", self.name, reply))


@dataclass
class Track:
    """Two calls, and a race between them that begins at once."""

    log: list[tuple[str, str, object]]
    first: Runner
    second: Runner

    async def run(self, *, prepare: asyncio.Event | None = None, preparing: asyncio.Event | None = None) -> None:
        async def begin_second() -> Runner:
            if prepare is not None and preparing is not None:
                preparing.set()
                await prepare.wait()
            return self.second

        async with asyncio.timeout(WITHIN_S):
            await race(self.first, begin_second, after_s=NOW_S, on_text=lambda _: None, send=lambda: self.log.append(("send", "", None)))


def track(first: ModelReply | ModelError, second: ModelReply | ModelError | Exception = ANSWER) -> Track:
    log: list[tuple[str, str, object]] = []
    return Track(log, Runner("a", first, log), Runner("b", second, log))


async def both_asked(of: Track) -> None:
    async with asyncio.timeout(WITHIN_S):
        await of.first.is_asked.wait()
        await of.second.is_asked.wait()


async def test_the_loser_is_recorded_before_the_winner_and_cancelled() -> None:
    made = track(ANSWER)
    running = asyncio.create_task(made.run())
    await both_asked(made)
    made.second.gate.set()
    await running
    assert made.log == [("lose", "a", None), ("close", "b", ANSWER)]
    assert made.first.is_cancelled


async def test_of_two_answers_at_once_the_first_call_has_it_and_the_other_is_known_all_the_same() -> None:
    made = track(ANSWER, other := says("43"))
    running = asyncio.create_task(made.run())
    await both_asked(made)
    made.first.gate.set()
    made.second.gate.set()
    await running
    assert made.log == [("lose", "b", other), ("close", "a", ANSWER)]


@pytest.mark.parametrize(("first", "second"), [(ANSWER, BROKEN), (BROKEN, ANSWER)])
async def test_a_failure_that_comes_together_with_an_answer_is_a_failure(first: ModelReply | ModelError, second: ModelReply | ModelError) -> None:
    made = track(first, second)
    running = asyncio.create_task(made.run())
    await both_asked(made)
    made.first.gate.set()
    made.second.gate.set()
    await running
    assert [(what, outcome) for what, _, outcome in made.log] == [("close", BROKEN), ("close", ANSWER)]


async def test_an_answer_that_comes_while_the_second_call_is_made_ready_is_taken() -> None:
    made, prepare, preparing = track(ANSWER), asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(made.run(prepare=prepare, preparing=preparing))
    async with asyncio.timeout(WITHIN_S):
        await preparing.wait()
    made.first.gate.set()
    await asyncio.wait([asyncio.create_task(made.first.gate.wait())])
    prepare.set()
    await running
    assert made.log == [("lose", "b", None), ("close", "a", ANSWER)]
    assert not made.second.is_asked.is_set(), "what nobody needs is not asked for"


async def test_both_failures_are_recorded_and_the_first_one_at_once() -> None:
    made = track(BROKEN, BROKEN)
    running = asyncio.create_task(made.run())
    await both_asked(made)
    made.second.gate.set()
    while not made.log:
        await asyncio.wait([asyncio.create_task(made.second.gate.wait())])
    assert made.log == [("close", "b", BROKEN), ("send", "", None)]
    made.first.gate.set()
    await running
    assert made.log[2:] == [("close", "a", BROKEN)]


async def test_a_defect_in_one_call_ends_both() -> None:
    made = track(ANSWER, ZeroDivisionError("a bug"))
    running = asyncio.create_task(made.run())
    await both_asked(made)
    made.second.gate.set()
    with pytest.raises(ZeroDivisionError):
        await running
    assert made.first.is_cancelled
    assert made.log == []
