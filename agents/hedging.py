"""Two calls for one answer: when the first model is slow to begin, a second one is asked beside it, and the first good answer counts.

    begin A ─▶ no piece of an answer within `after_s` ─▶ begin B, if there is one ─▶ A or B answers: the other is cancelled, and recorded as lost
                                                                                 ─▶ A or B fails: that is recorded, and the other goes on

The calls run side by side and touch nothing but their models. One coroutine alone writes the log, so what it records of both has an order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from crewlog.agents.model import ModelError, OnText
from crewlog.schemas.blocks import ModelReply

Outcome = ModelReply | ModelError


class Call(Protocol):
    """A model call whose intent is durable."""

    async def answer(self, on_text: OnText) -> Outcome:
        """Ask the model. Records nothing."""

    def is_good(self, outcome: Outcome) -> bool:
        """Say whether the task goes on with this outcome, whatever another call may bring."""

    def close(self, outcome: Outcome) -> None:
        """Record what came of the call."""

    def lose(self, reply: ModelReply | None) -> None:
        """Record that another answer counts; `reply` is what came all the same."""


async def race(first: Call, begin_second: Callable[[], Awaitable[Call | None]], *, after_s: float, on_text: OnText, send: Callable[[], None]) -> None:
    """Ask with one call, and if that is slow with a second one; on return both are recorded.

    Args:
        begin_second: makes the intent of a second call durable; None when there is none, and why is recorded.
        after_s: how long the first may take to its first piece of text, in seconds.
        on_text: takes the pieces of both answers, as signs of progress.
        send: called when something was recorded and a call is still under way.
    """
    stirred = asyncio.Event()

    def heard(text: str) -> None:
        stirred.set()
        on_text(text)

    running = {first: asyncio.create_task(first.answer(heard))}
    running[first].add_done_callback(lambda _: stirred.set())
    try:
        if await _is_slow(stirred, after_s):
            second = await begin_second()
            if second is None:
                send()
            elif running[first].done() and first.is_good(answer := running[first].result()):
                second.lose(None)  # the answer came while the second call was made ready
                first.close(answer)
                return
            else:
                running[second] = asyncio.create_task(second.answer(on_text))
        await _close_all(running, send)
    finally:
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


async def _is_slow(stirred: asyncio.Event, after_s: float) -> bool:
    try:
        async with asyncio.timeout(after_s):
            await stirred.wait()
    except TimeoutError:
        return True
    return False


async def _close_all(running: dict[Call, asyncio.Task[Outcome]], send: Callable[[], None]) -> None:
    left = dict(running)
    while left:
        await asyncio.wait(left.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = {call: task.result() for call, task in left.items() if task.done()}
        for call, outcome in sorted(ended.items(), key=lambda item: item[0].is_good(item[1])):  # failures first
            del left[call]
            if call.is_good(outcome):
                for other in left:
                    reply = ended.get(other)
                    other.lose(reply if isinstance(reply, ModelReply) else None)
                call.close(outcome)
                return
            call.close(outcome)
        if left:
            send()
