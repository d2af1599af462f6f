"""Wall clock and standstill, in virtual time: nothing is waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from support.alone import carried_out
from support.scripted import calls

from crewlog.agents.model import OnText
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.task_events import AttemptFailed


@dataclass
class SlowModel:
    """Says one word after the other, `pause_s` apart."""

    words: int
    pause_s: float
    wire: str = "test.wire"
    provider: str = "test"
    name: str = "slow"
    simulated: bool = False

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        for _ in range(self.words):
            await asyncio.sleep(self.pause_s)
            if on_text is not None:
                on_text("word ")
        return calls(("submit", '{"text":"done"}'))


def failure(model: SlowModel, **limits: Any) -> tuple[str, bool, str]:
    stretch = carried_out(model, **limits)
    last = stretch.recorded[-1].event()
    assert stretch.ended == "failed"
    assert isinstance(last, AttemptFailed)
    return last.error.code, last.error.retryable, last.error.message


def test_an_answer_that_keeps_coming_is_no_standstill_however_long_it_takes() -> None:
    assert carried_out(SlowModel(words=20, pause_s=9.0), limits={"idle_seconds": 10}).ended == "completed"


def test_an_answer_that_stops_coming_is_a_standstill_worth_another_attempt() -> None:
    found = failure(SlowModel(words=20, pause_s=11.0), limits={"idle_seconds": 10})
    assert found == ("limit_idle_seconds", True, "limit idle_seconds reached: 10 of max 10, raise limits.idle_seconds to go on")


def test_the_time_of_a_task_has_an_end_whatever_still_comes() -> None:
    found = failure(SlowModel(words=200, pause_s=1.0), timeout_seconds=60, limits={"idle_seconds": 10})
    assert found == ("timeout", False, "limit timeout_seconds reached: 60 of max 60, raise timeout_seconds to go on")
