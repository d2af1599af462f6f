"""A recorded task, looked at: its state behind any event, the requests its models got, and the conversation as they saw it. Pure.

The same functions as live do the work. Events of types this program does not know are passed over: they count, they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from crewlog.agents.conversation import ReadText, build_request, result_blocks, said_blocks
from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Exchange, TaskState, evolve, initial_state
from crewlog.agents.turn import Step, next_step
from crewlog.events.store import Recorded
from crewlog.schemas.blocks import Block, Message, ModelRequest, Text
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import ModelCallFinished, ModelCallStarted, TaskEvent


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation."""

    role: str
    """`user` or `assistant`."""
    content: tuple[Block, ...]
    turn: int = 0
    """Of a message of the model: its turn, from 1."""
    is_unsent: bool = False
    """No model was told: it was said, or came back, after the last call."""
    reasoning: str = ""
    """What the model thought before it spoke, when that was asked for."""


class Conversation(msgspec.Struct, frozen=True):
    """What the last model call of a task saw, and what came behind it."""

    system: str
    tools: tuple[str, ...]
    """Names of the tools it was offered."""
    model: str
    """`<provider>/<model>` of the last call; empty when there was none."""
    is_compacted: bool
    """Something was left out to make room: earlier calls saw more."""
    lines: tuple[Line, ...]


def advance(state: TaskState, recorded: Recorded) -> TaskState:
    """Fold one recorded event; one of an unknown type only counts."""
    return _advance(state, recorded.event(), recorded.version)


def _advance(state: TaskState, event: Event | Unknown, version: int) -> TaskState:
    return evolve(state, event) if isinstance(event, TaskEvent) else replace(state, version=version)


def folded(events: Iterable[Recorded]) -> TaskState:
    """Fold the beginning of a task stream, in version order."""
    state = initial_state()
    for recorded in events:
        state = advance(state, recorded)
    return state


def setup_of(state: TaskState, read: ReadText) -> Setup | None:
    """Return the prompt and tool rules that a task began with; None before it was started."""
    return None if state.setup is None else _decoded(read(state.setup))


@lru_cache(maxsize=64)
def _decoded(text: str) -> Setup:
    # stepping through a run asks for the same few at every event
    return msgspec.json.decode(text, type=Setup)


def pending_step(state: TaskState, read: ReadText) -> Step:
    """Return what an agent that takes the task up in this state does next."""
    return next_step(state, setup_of(state, read))


def asked_request(before: TaskState, call: ModelCallStarted, read: ReadText) -> ModelRequest | None:
    """Rebuild the request of a model call.

    Args:
        before: the state of the task in front of the call.

    Returns:
        The request; None when the task was never started, so that nobody can have asked.
    """
    setup = setup_of(before, read)
    if setup is None or before.opening is None:
        return None
    return build_request(before, setup, read, link=call.link, purpose=call.purpose)


def conversation(events: Sequence[Recorded], read: ReadText, *, with_reasoning: bool = False) -> Conversation:
    """Return the conversation of a task exactly as its models saw it.

    Args:
        events: the task stream, or the beginning of one, in version order.
        with_reasoning: also tell what the models thought; it is kept apart from what they said.
    """
    state, asked = initial_state(), None
    thoughts: dict[int, Payload] = {}
    for recorded in events:
        event, before = recorded.event(), state
        state = _advance(state, event, recorded.version)
        if isinstance(event, ModelCallStarted):
            asked = before, event
        elif isinstance(event, ModelCallFinished) and event.thinking is not None and len(state.exchanges) > len(before.exchanges):
            thoughts[len(before.exchanges)] = event.thinking
    setup = setup_of(state, read)
    request = asked_request(*asked, read) if asked is not None else None
    if setup is None or asked is None or request is None:
        opening = () if state.opening is None else (Line("user", (Text(read(state.opening)),), is_unsent=True),)
        return Conversation(setup.system if setup else "", (), "", state.is_compacted, opening)
    before, call = asked
    told = {n: read(thought) for n, thought in thoughts.items()} if with_reasoning else {}
    lines = (*_seen(request.messages, before.exchanges, told), *_unsent(state.exchanges, len(before.exchanges), told, read))
    return Conversation(request.system, tuple(t.name for t in request.tools), f"{call.provider}/{call.model}", state.is_compacted, lines)


def _seen(messages: Iterable[Message], exchanges: Sequence[Exchange], told: dict[int, str]) -> Iterable[Line]:
    """Number the messages of a request: what a model said in several pieces is one of them."""
    ends = [n for n, exchange in enumerate(exchanges) if not exchange.is_paused or n == len(exchanges) - 1]
    spoken, first = iter(ends), 0
    for message in messages:
        if message.role == "user":
            yield Line("user", message.content)
            continue
        last = next(spoken)
        yield Line("assistant", message.content, last + 1, reasoning=_joined(told, range(first, last + 1)))
        first = last + 1


def _unsent(exchanges: Sequence[Exchange], known: int, told: dict[int, str], read: ReadText) -> Iterable[Line]:
    for n in range(known, len(exchanges)):
        exchange = exchanges[n]
        yield Line("assistant", said_blocks(exchange, read), n + 1, is_unsent=True, reasoning=_joined(told, [n]))
        said = (Text(exchange.said),) if exchange.said else ()
        if behind := (*result_blocks(exchange, read), *said):
            yield Line("user", behind, is_unsent=True)


def _joined(told: dict[int, str], numbers: Iterable[int]) -> str:
    return "\n\n".join(told[n] for n in numbers if n in told)
