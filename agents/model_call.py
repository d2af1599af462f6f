"""One model call of a task: record the intent, ask once, record what came of it. Which model is asked was decided by `next_step`.

What the log must know before money can be spent is durable before the call: which model, which request, what it can cost. A simulated
call touches nothing outside, so its intent travels with its outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from msgspec.structs import replace

from crewlog.agents.breaker import Admission, Breakers
from crewlog.agents.chain import BREAKER_OPEN, HEDGE_LOST, INTERRUPTED, OVER_BUDGET, UNPRICED
from crewlog.agents.compaction import make_room, ratio_of
from crewlog.agents.conversation import build_request
from crewlog.agents.hedging import race
from crewlog.agents.journal import Journal
from crewlog.agents.live_text import LiveText
from crewlog.agents.model import Model, ModelError, OnText
from crewlog.agents.model_errors import was_never_sent
from crewlog.agents.prices import FREE, context_window, price, refuse_unpriced, worst_case
from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Asking
from crewlog.agents.tokens import estimate_request, estimate_tokens
from crewlog.agents.turn import AskModel, hedge_of
from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolUse
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.json_output import answer_problems
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.task_events import BudgetWarned, Link, ModelCallFailed, ModelCallFinished, ModelCallSkipped, ModelCallStarted, SkipReason, ToolCall
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.usage import ESTIMATE, NOT_BILLED, OFFLINE, WORST_CASE, Price, Usage
from crewlog.schemas.values import Failure, Shortfall

log = logging.getLogger(__name__)

NAME_CHARS_MAX: Final = 200
"""Longest name of a tool, a model or a call that is recorded as a provider said it: no true one has more than some sixty characters."""
REPLY_INLINE_MAX: Final = 64 * 1024
"""A model's text stays in the event: it is the outcome when no tool ends the task."""
_LOUD: Final = frozenset({"auth", "billing", "not_found"})
"""Errors that only the operator can mend, even if another model took over."""
_UNTOLD: Final = frozenset({"timeout", "cut", "malformed"})
"""Errors behind which the provider may have worked, and bill it, without having told how much."""


MayBegin = Callable[[], Awaitable[bool]]
"""Says whether anything may be begun now: nothing may while somebody has paused it."""


@dataclass(frozen=True, slots=True)
class ModelCalls:
    """What the calls of a worker share: its models in order of preference, and what limits and prices them."""

    chain: tuple[Model, ...]
    clock: Clock
    breakers: Breakers
    prices: Mapping[str, TokenPrices]
    allow_unpriced: bool
    """A task with a spending limit may ask a model nobody knows the price of."""
    saves_money: bool
    """Past a soft limit, the chain goes on from its cheapest model."""
    live: LiveText | None
    """Where answers are told while they are written."""
    timeout_s: float
    """Longest time one call may take, in seconds; the task's own deadline may end it sooner."""

    def links(self) -> tuple[Link, ...]:
        """Describe the chain as the log keeps it."""
        return tuple(Link(m.wire, m.provider, m.name, m.simulated, 0 if m.simulated else context_window(m.provider, m.name)) for m in self.chain)

    async def make(self, journal: Journal, setup: Setup, step: AskModel, on_text: OnText, may_begin: MayBegin | None = None) -> None:
        """Carry out one step: the call it names, or the note why it was not made.

        Args:
            may_begin: asked before a second call is made beside it; by default one may be.
        """
        if step.wait_s > 0:
            await journal.commit()
            await asyncio.sleep(step.wait_s)
        with self._call(journal, setup, step) as call:
            if not await call.begin():
                return
            after_s = journal.state.hedge_after_s
            if after_s is None or step.purpose != "output" or call.model.simulated:
                call.close(await call.answer(on_text))
                return
            with ExitStack() as beside:

                async def second() -> _ModelCall | None:
                    return await self._beside(journal, setup, beside) if may_begin is None or await may_begin() else None

                await race(call, second, after_s=after_s, on_text=on_text, send=journal.send)

    def _call(self, journal: Journal, setup: Setup, step: AskModel) -> _ModelCall:
        return _ModelCall(self, journal, step, build_request(journal.state, setup, journal.read, link=step.link, purpose=step.purpose))

    async def _beside(self, journal: Journal, setup: Setup, closing: ExitStack) -> _ModelCall | None:
        """Make a second call ready beside the one that is under way, if a further model may be asked and its request fits."""
        step = hedge_of(journal.state)
        if step is None:
            return None
        room = make_room(journal.state, setup, journal.read, link=step.link, purpose=step.purpose)
        if not isinstance(room, int):
            return None
        call = closing.enter_context(self._call(journal, setup, replace(step, estimated_tokens=room)))
        return call if await call.begin() else None

    def price(self, model: Model, answered: str, usage: Usage, latency_ms: int) -> Price:
        """Price a call that ends now; `answered` is the model that did, as its provider names it."""
        at_us = self.clock.now_us() - latency_ms * 1000
        return price(model.provider, answered or model.name, usage, asked=model.name, at_us=at_us, table=self.prices)

    def price_of(self, model: Model, reply: ModelReply, latency_ms: int) -> Price:
        """Price an answer that ends now: as it says itself, such as one from a recording, else as `price`."""
        return reply.price or self.price(model, reply.model, reply.usage, latency_ms)

    def worst_case(self, model: Model, request: ModelRequest, *, calibration: float = 1.0) -> Price:
        """Return the most that a call which begins now can cost."""
        return worst_case(model.provider, model.name, request, at_us=self.clock.now_us(), calibration=calibration, table=self.prices)

    def cheapest(self, request: ModelRequest) -> int:
        """Return the place of the model that costs least for such a request, among those that cost anything."""
        costs = [self.worst_case(model, request).cost_micro_usd for model in self.chain]
        priced = [(cost, place) for place, cost in enumerate(costs) if cost]
        return min(priced)[1] if priced else 0


class _ModelCall:
    """One call of one task to one model. At the end of its block the next call may have its place."""

    def __init__(self, calls: ModelCalls, journal: Journal, step: AskModel, request: ModelRequest) -> None:
        assert journal.state.task is not None
        self._calls, self._journal, self._step, self._task, self._request = calls, journal, step, journal.state.task, request
        self.model, self._link = calls.chain[step.link], journal.state.chain[step.link]
        self._admission: Admission | None = None
        self._reserved_micro_usd = 0
        self._input_tokens = 0
        """Of the request, estimated."""
        self._heard: list[str] = []
        """What has come of the answer so far."""
        self._began: float | None = None

    async def begin(self) -> bool:
        """Record the intent; False: the call is not made, and the log says why.

        What a model can cost is reserved, and durable, before it is asked. A simulated one touches nothing outside, so its intent may wait.
        """
        calls = self._calls
        if self.model.simulated:
            self._journal.record(self._intent())
            return True
        admitted = calls.breakers.of(self.model).admit(calls.clock.monotonic())
        if not isinstance(admitted, Admission):
            until_us = calls.clock.now_us() + round(admitted.for_s * 1e6)
            self._skip(BREAKER_OPEN, until_us=until_us, retry_after_s=admitted.for_s, detail=admitted.reason)
            return False
        self._admission = admitted
        return await self._may_spend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._admission is not None:
            self._admission.released()  # changes nothing once it is known how the call ended

    async def answer(self, on_text: OnText) -> ModelReply | ModelError:
        """Ask the model. Records nothing."""
        if faults.hook is not None:
            faults.hook("before_model_call")
        self._began = self._calls.clock.monotonic()
        try:
            reply = await self._complete(on_text)
        except ModelError as error:
            return error
        if faults.hook is not None:
            faults.hook("after_model_call")
        return reply

    def is_good(self, outcome: ModelReply | ModelError) -> bool:
        """Say whether the task goes on with this outcome. What refuses does not, where the next model is asked behind it."""
        return isinstance(outcome, ModelReply) and not (outcome.stop == "refusal" and self._journal.state.refusals_fall_through)

    def close(self, outcome: ModelReply | ModelError) -> None:
        """Record what came of the call, and tell the breaker."""
        if isinstance(outcome, ModelError):
            if self._admission is not None:
                self._admission.failed(outcome.kind, self._calls.clock.monotonic(), retry_after_s=outcome.retry_after_s)
            self._failed(outcome)
            return
        if self._admission is not None:
            self._admission.succeeded()
        self._journal.close_call(self._finished(outcome), reserved_micro_usd=self._reserved_micro_usd)

    def lose(self, reply: ModelReply | None) -> None:
        """Record that another answer counts; `reply` is what came all the same, and is billed."""
        latency_ms = self._latency_ms()
        if reply is not None and self._admission is not None:
            self._admission.succeeded()
        price = self._price_of_lost(latency_ms) if reply is None else self._calls.price_of(self.model, reply, latency_ms)
        usage, request_id = (Usage(), "") if reply is None else (reply.usage, reply.request_id)
        self._close_failed(Failure(HEDGE_LOST, "another model answered first"), price, latency_ms, usage=usage, request_id=request_id)

    def _skip(self, reason: SkipReason, **known: Any) -> None:
        step, link = self._step, self._link
        self._journal.record(ModelCallSkipped(step.call_id, step.turn, link.wire, link.provider, link.model, reason, step.link, hedge=step.is_hedge, **known))

    async def _complete(self, on_text: OnText) -> ModelReply:
        timeout_s = self._calls.timeout_s
        if self.model.simulated:
            return await self.model.complete(self._request, timeout_s=timeout_s)
        with self._telling(on_text) as tell:

            def heard(text: str) -> None:
                text = clean(text)
                self._heard.append(text)
                tell(text)

            return await self._within(timeout_s, heard)

    async def _within(self, timeout_s: float, heard: OnText) -> ModelReply:
        try:
            async with asyncio.timeout(timeout_s):
                return await self.model.complete(self._request, timeout_s=timeout_s, on_text=heard)
        except TimeoutError:
            # the SDKs' own limits are per read: an answer that trickles in can exceed them
            raise ModelError("timeout", f"no whole answer from {self._link} within {timeout_s:g} s") from None

    async def _may_spend(self) -> bool:
        """Make the call durable together with the most it can cost; False: it is skipped, and the log says why."""
        calls, journal, model, request = self._calls, self._journal, self.model, self._request
        calibration = ratio_of(journal.state, self._link)
        self._input_tokens = estimate_request(request, provider=model.provider, calibration=calibration)
        worst = calls.worst_case(model, request, calibration=calibration)
        is_allowed = worst.cost_micro_usd is not None or calls.allow_unpriced or not await journal.is_limited()
        if unpriced := refuse_unpriced(model.provider, model.name, worst, is_allowed=is_allowed):
            self._skip(UNPRICED, detail=unpriced.message)
            return False
        self._reserved_micro_usd = worst.cost_micro_usd or 0
        refused = await journal.begin_call(self._intent())
        if refused is not None:
            shortfall = Shortfall(refused.scope, refused.limit_micro_usd, refused.used_micro_usd, refused.needed_micro_usd)
            self._skip(OVER_BUDGET, detail=str(refused), shortfall=shortfall)
            return False
        for scope in journal.take_warnings():
            journal.record(BudgetWarned(scope, self._step.call_id, calls.cheapest(request) if calls.saves_money else 0))
        return True

    @contextmanager
    def _telling(self, on_text: OnText) -> Iterator[OnText]:
        """Pass the text of an answer on to whoever watches, besides `on_text`. Not of a second call: two answers at once are no text."""
        task, live = self._task, self._calls.live
        if live is None or self._step.is_hedge:
            yield on_text
            return
        telling = live.of(task.tenant, RunId(task.run_id), TaskId(task.task_id), self._step.call_id)

        def heard(text: str) -> None:
            on_text(text)
            telling.heard(text)

        try:
            yield heard
        finally:
            telling.end()

    def _intent(self) -> ModelCallStarted:
        step, link, request = self._step, self._link, self._request
        return ModelCallStarted(
            step.call_id,
            step.turn,
            link.provider,
            link.model,
            request.request_hash(),
            len(request.messages),
            wire=link.wire,
            reserved_micro_usd=self._reserved_micro_usd,
            purpose=step.purpose,
            link=step.link,
            estimated_tokens=step.estimated_tokens,
            hedge=step.is_hedge,
        )

    def _failed(self, error: ModelError) -> None:
        latency_ms = self._latency_ms()
        if error.kind in _LOUD:
            log.error("%s refused the call of task %s: %s", self._link, self._task.task_id, error)
        price, usage = self._price_of_failure(error, latency_ms), error.usage or Usage()
        self._close_failed(error.failure(), price, latency_ms, usage=usage, request_id=error.request_id, status=error.status)

    def _close_failed(self, failure: Failure, price: Price, latency_ms: int, *, usage: Usage, request_id: str, status: int | None = None) -> None:
        step, link = self._step, self._link
        failed = ModelCallFailed(
            step.call_id,
            step.turn,
            link.provider,
            link.model,
            failure,
            latency_ms,
            price,
            wire=link.wire,
            link=step.link,
            status=status,
            request_id=request_id,
            usage=usage,
        )
        self._journal.close_call(failed, reserved_micro_usd=self._reserved_micro_usd)

    def _price_of_failure(self, error: ModelError, latency_ms: int) -> Price:
        is_untold = error.status is None and error.kind in _UNTOLD and not was_never_sent(error) and self._reserved_micro_usd > 0
        if is_untold and error.kind == "timeout":
            return Price(self._reserved_micro_usd, WORST_CASE)  # the provider may be writing still, and bills that
        if error.usage is not None:
            return self._calls.price(self.model, "", error.usage, latency_ms)
        return self._price_of_heard(latency_ms) if is_untold else Price(0, NOT_BILLED)

    def _price_of_lost(self, latency_ms: int) -> Price:
        if self._began is None or not self._reserved_micro_usd:
            return Price(0, NOT_BILLED)
        if not self._heard:
            return Price(self._reserved_micro_usd, WORST_CASE)  # it may have thought for all that time, which nobody was told
        return self._price_of_heard(latency_ms)

    def _price_of_heard(self, latency_ms: int) -> Price:
        used = Usage(self._input_tokens, estimate_tokens("".join(self._heard)))
        return replace(self._calls.price(self.model, "", used, latency_ms), source=ESTIMATE)

    def _finished(self, reply: ModelReply) -> ModelCallFinished:
        journal, step, link, latency_ms = self._journal, self._step, self._link, self._latency_ms()
        text = "\n\n".join(b.text for b in reply.content if isinstance(b, Text))
        uses = [b for b in reply.content if isinstance(b, ToolUse)]
        problems: tuple[str, ...] = ()
        native = reply.native
        if step.purpose == "output":
            if uses:  # it may call none; what it says besides is no result
                text, uses, native = "", [], None
            problems = answer_problems(text, self._task.output_schema or {}, bytes_max=REPLY_INLINE_MAX)
        return ModelCallFinished(
            call_id=step.call_id,
            turn=step.turn,
            stop=reply.stop,
            text=journal.pack(text, inline_max=REPLY_INLINE_MAX),
            # a result must name its call as the provider's own items do, when those are sent back; adapters see to it that no id occurs twice
            tool_calls=tuple(
                ToolCall(f"t{step.turn}-{n}" if reply.native is None else u.call_id, _name(u.name), journal.pack(u.arguments)) for n, u in enumerate(uses, 1)
            ),
            usage=reply.usage,
            price=self._calls.price_of(self.model, reply, latency_ms),
            provider=link.provider,
            model=_name(reply.model),
            simulated=self.model.simulated,
            latency_ms=latency_ms,
            raw=journal.keep(reply.raw) if reply.raw else None,
            wire=link.wire,
            native=journal.pack(bytes(native.items).decode()) if native is not None else None,
            thinking=journal.pack(reply.thinking) if reply.thinking else None,
            request_id=_name(reply.request_id),
            purpose=step.purpose,
            problems=problems,
        )

    def _latency_ms(self) -> int:
        return 0 if self._began is None else round((self._calls.clock.monotonic() - self._began) * 1000)


def _name(said: str) -> str:
    """Return a name that a provider gave, as the log can hold it."""
    return shorten(clean(said), NAME_CHARS_MAX)


def given_up(asking: Asking, *, code: str = INTERRUPTED, message: str = "the worker that made this call died before an answer was recorded") -> ModelCallFailed:
    """Record a call whose answer nobody has: it may have been billed, so what was reserved counts as spent."""
    price = FREE if asking.provider == OFFLINE else Price(asking.reserved_micro_usd, WORST_CASE)
    return ModelCallFailed(
        asking.call_id,
        asking.turn,
        asking.provider,
        asking.model,
        Failure(code, message, retryable=True),
        0,
        price,
        wire=asking.wire,
        link=asking.link,
    )
