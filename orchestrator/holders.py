"""What orchestrators tell each other about messages that they hold back.

Whoever holds something back says so with its beat (`peers`), and answers which. So the others know that such a task is not lost, however long
it waits, and notice when whoever held it is gone.

Turns are taken within one queue. So there is one for each kind: while an orchestrator holds messages of a kind back, the others give theirs
to it, and of two that do the one whose name comes first keeps both. Nobody is elected: when it has sent everything, or is gone, each sends
its own again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.fair_queue import Waiting
from crewlog.orchestrator.peers import ASK_TIMEOUT_S, Beat, Peers
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import control_orchestrator

GIVEN_AT_ONCE_MAX: Final = 250
"""Messages that are given to another orchestrator in one request."""
GIVEN_BYTES_MAX: Final = 384 * 1024
"""Of their bodies as many go with them; the others are read from the log when it is their turn."""

log = logging.getLogger(__name__)


class Given(msgspec.Struct, frozen=True):
    """A message that another orchestrator is to send in its turn, see `fair_queue.Waiting`."""

    tenant: str
    run_id: RunId
    dispatch: Dispatch
    nonce: str


class Question(msgspec.Struct, omit_defaults=True):
    """Which of these does an orchestrator hold back? And will it hold back those, too?"""

    tasks: tuple[TaskId, ...] = ()
    given: tuple[Given, ...] = ()


class Held(msgspec.Struct, frozen=True):
    """Where a message stands that is held back."""

    kind: str
    ahead: int
    """About how many go before it."""
    in_flight: int
    """Tasks of its kind that are with agents, or on their queue."""
    size: int
    """How many may be."""
    is_limited: bool
    """True when that is the operator's limit for the kind, not what the agents can take."""


class Answer(msgspec.Struct):
    """Those that it does."""

    held: dict[TaskId, Held] = {}


_read_question: Final = msgspec.json.Decoder(Question).decode
_read_answer: Final = msgspec.json.Decoder(Answer).decode


class Holders:
    """The other orchestrators that hold messages back, as one of them knows them."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        name: str,
        *,
        waiting: Callable[[], tuple[dict[str, int], tuple[str, ...]]],
        held: Callable[[Collection[TaskId]], dict[TaskId, Held]],
        take: Callable[[Waiting], None],
        is_heard_idle: bool,
    ) -> None:
        """Prepare.

        Args:
            waiting: counts what this one holds back, by tenant, and says of which kinds.
            held: says where these messages stand, those that this one holds back.
            take: holds back a message that another one gives.
            is_heard_idle: see `Peers`.
        """
        self._bus, self._name, self._held, self._take = bus, name, held, take
        self._peers = Peers(bus, clock, name, says=waiting, is_heard_idle=is_heard_idle)
        self.begin = self._peers.begin
        self._answering: Subscription | None = None

    async def start(self, adopt: Callable[[], None]) -> asyncio.Task[None]:
        """Begin to listen; the returned task ends only with `stop` or a defect.

        Args:
            adopt: called when another one is gone.
        """
        self._answering = await self._bus.subscribe(control_orchestrator(self._name), self._answer)
        return await self._peers.start(adopt)

    async def stop(self) -> None:
        """Leave what this one holds back to the others. Safe to call twice."""
        if self._answering is not None:
            await self._answering.stop()
            self._answering = None
        await self._peers.stop()

    @property
    def holding(self) -> dict[str, Beat]:
        """Others that hold something back, and what they said."""
        return {name: known.beat for name, known in self._peers.others.items() if known.beat.waiting}

    def waiting_of(self, tenant: str) -> int:
        """Count the messages of a tenant that the others hold back."""
        return sum(beat.waiting.get(tenant, 0) for beat in self.holding.values())

    async def held(self, task_ids: Collection[TaskId]) -> dict[TaskId, Held]:
        """Ask the others which of these messages they hold back; those that do not answer hold none."""
        found: dict[TaskId, Held] = {}
        question = msgspec.json.encode(Question(tasks=tuple(task_ids)))
        for name in list(self.holding):
            try:
                reply = await self._bus.request(control_orchestrator(name), question, timeout_s=ASK_TIMEOUT_S)
                found |= _read_answer(reply.data).held
            except (Unavailable, msgspec.MsgspecError) as error:
                log.info("orchestrator %s does not say what it holds back: %s", name, error)
        return found

    def keeper_of(self, kind: str, *, holds: bool) -> str | None:
        """Return the other orchestrator that holds messages of a kind back and is to have those of this one; None when each keeps its own.

        Args:
            holds: whether this one holds some back itself.
        """
        names = [name for name, beat in self.holding.items() if kind in beat.kinds and not (holds and name > self._name)]
        return min(names, default=None)

    async def give(self, name: str, entries: Sequence[Waiting]) -> bool:
        """Give messages to another orchestrator; False when it does not take them. One that does not answer is taken for gone."""
        room = GIVEN_BYTES_MAX
        given = []
        for tenant, run_id, dispatch, nonce in entries:
            room -= len(dispatch.message or b"")
            given.append(Given(tenant, run_id, dispatch if room >= 0 else dispatch._replace(message=None), nonce))
        try:
            await self._bus.request(control_orchestrator(name), msgspec.json.encode(Question(given=tuple(given))), timeout_s=ASK_TIMEOUT_S)
        except Unavailable:
            self._peers.lost(name)
            return False
        return True

    async def _answer(self, message: Message) -> None:
        asked = _read_question(message.data)
        for given in asked.given:
            self._take(Waiting(given.tenant, given.run_id, given.dispatch, given.nonce))
        if message.reply:
            await self._bus.publish(message.reply, msgspec.json.encode(Answer(self._held(asked.tasks))))
