"""Which source led to a sentence of the answer, to a file or to an effect: from what is recorded, and with how sure that is. Pure.

Nobody can look into a model. What can be said is what it had in front of it when it wrote something, and how that is tied to it:
`cited` (a checked citation stands behind it), `contained` (words or figures of it stand in what the model was told), or only
`in context` (the model was told it before it wrote). Outcomes of earlier tasks are followed back into those tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from crewlog.events.store import Recorded
from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.shared_words import Shared, sentences, shared_words
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Stream
from crewlog.schemas.run_events import RunCompleted
from crewlog.schemas.task_events import ModelCallFinished, TaskCompleted, TaskOpened, ToolFinished, ToolStarted
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Citation, Outcome

Certainty = Literal["cited", "contained", "in context"]
ORDER: Final = {"cited": 0, "contained": 1, "in context": 2}
DEPTH_MAX: Final = 8
"""Tasks that a text is followed back through."""
NAME_CHARS_MAX: Final = 120


class Source(msgspec.Struct, frozen=True):
    """Something that the writer of a text was told before."""

    certainty: Certainty
    what: str
    """`document`, `tool result`, `outcome` of an earlier task, or the `task` itself as it was given."""
    name: str
    """`<document>:<line>`, the tool with its arguments, the key of the earlier task."""
    task: str
    """Key of the task whose agent was told."""
    index: int
    """Of the event that told it; explain it with `RUN:INDEX`."""
    trust: str
    shared: str
    """The words or figures that both have; of a citation, its quote."""
    share: float
    """Part of the text's words that stand in it, from 0 to 1."""
    behind: tuple[Source, ...] = ()
    """Where an earlier outcome has it from."""


class Lineage(msgspec.Struct, frozen=True):
    """One text and where it comes from. `index` is the event that wrote it, `writer` who that was."""

    what: str
    text: str
    index: int
    task: str
    writer: str
    sources: tuple[Source, ...]


class _Writing(msgspec.Struct, frozen=True):
    """A text, and the event of a task that wrote it."""

    stream: Stream
    index: int
    text: str


def lineage_of_sentence(history: RunHistory, sentence: str) -> Lineage:
    """Follow a sentence of the answer, of an earlier outcome, or of something that was sent.

    Raises:
        NotFound: nothing that the run brought forth has these words.
        ContractError: there is nothing to look for.
    """
    if not shared_words(sentence, sentence).whole:
        raise ContractError("--sentence has no words: copy one from the answer")
    for writing in (*_outcomes(history), *_arguments(history)):
        if shared_words(sentence, writing.text).whole:
            return _lineage(history, "sentence", msgspec.structs.replace(writing, text=sentence))
    raise NotFound("sentence (nothing that this run answered or sent has it; copy it from the answer)", shorten(sentence, NAME_CHARS_MAX))


def lineage_of_artifact(history: RunHistory, name: str) -> Lineage:
    """Follow a file by its name, or by the first characters of its hash; of several versions, the last one.

    Raises:
        NotFound: no task made it.
    """
    made = [
        (index, recorded, event)
        for index, recorded, event in _numbered(history)
        if isinstance(event, ToolFinished) and any(ref.name == name or ref.hash.startswith(name) for ref in event.artifacts)
    ]
    if not made:
        names = sorted({ref.name for event in history.decoded if isinstance(event, ToolFinished) for ref in event.artifacts})
        raise NotFound(f"file (tasks of this run made: {', '.join(names) or 'none'})", name)
    index, recorded, event = made[-1]
    stream = history.stream_of(recorded.stream)
    return _lineage(history, "artifact", _Writing(stream, _asked(history, stream, event.call_id, index), _text_of_call(history, stream, event.call_id)))


def lineage_of_effect(history: RunHistory, effect: str) -> Lineage:
    """Follow what was done outside, named by the first characters of its idempotency key or by the id of its call.

    Raises:
        NotFound: no such call, or several.
    """
    found = {
        (history.stream_of(recorded.stream), event.call_id): (index, event)
        for index, recorded, event in _numbered(history)
        if isinstance(event, ToolStarted) and event.effect != "read" and (event.call_id == effect or event.idempotency_key.startswith(effect))
    }
    if len(found) != 1:
        keys = tuple(f"{event.idempotency_key} ({event.tool})" for _, event in found.values())
        raise NotFound("effect", effect, candidates=keys)
    ((stream, call_id), (index, _)) = next(iter(found.items()))
    return _lineage(history, "effect", _Writing(stream, _asked(history, stream, call_id, index), _text_of_call(history, stream, call_id)))


def lineage_of_answer(history: RunHistory) -> list[Lineage]:
    """Follow every sentence of the answer; empty while there is none."""
    end = next((event for r in history.run_events if isinstance(event := r.event(), RunCompleted)), None)
    if end is None:
        return []
    writings = _outcomes(history)
    found = []
    for sentence in sentences(history.shown(end.answer)):
        writing = next((w for w in writings if shared_words(sentence, w.text).whole), None)
        if writing is not None:
            found.append(_lineage(history, "sentence", msgspec.structs.replace(writing, text=sentence)))
    return found


def _numbered(history: RunHistory) -> list[tuple[int, Recorded, Event | Unknown]]:
    return list(zip(range(1, len(history.events) + 1), history.events, history.decoded, strict=True))


def _outcomes(history: RunHistory) -> list[_Writing]:
    """List what tasks ended with, the last one first: the answer is among the last."""
    found = []
    for index, recorded, event in _numbered(history):
        if isinstance(event, TaskCompleted):
            stream = history.stream_of(recorded.stream)
            ended_by = [e.call_id for r in history.streams[stream] if isinstance(e := r.event(), ToolFinished) and e.outcome is not None]
            found.append(_Writing(stream, _asked(history, stream, ended_by[-1] if ended_by else "", index), _words_of(event.outcome)))
    return found[::-1]


def _arguments(history: RunHistory) -> Iterator[_Writing]:
    """List what tools with effects were told, the last one first."""
    for index, recorded, event in reversed(_numbered(history)):
        if isinstance(event, ToolStarted) and event.effect != "read":
            stream = history.stream_of(recorded.stream)
            yield _Writing(stream, _asked(history, stream, event.call_id, index), _text_of_call(history, stream, event.call_id))


def _asked(history: RunHistory, stream: Stream, call_id: str, otherwise: int) -> int:
    """Return the index of the answer of a model that asked for a call; without one, of the last answer before `otherwise`."""
    last = otherwise
    for index, recorded, event in _numbered(history)[:otherwise]:
        if isinstance(event, ModelCallFinished) and history.stream_of(recorded.stream) == stream:
            last = index
            if any(call.call_id == call_id for call in event.tool_calls):
                return index
    return last


def _text_of_call(history: RunHistory, stream: Stream, call_id: str) -> str:
    said = (e for r in history.streams[stream] if isinstance(e := r.event(), ModelCallFinished))
    return "\n".join(_flat(history.shown(call.arguments)) for event in said for call in event.tool_calls if call.call_id == call_id)


def _flat(arguments: str) -> str:
    """Return the texts inside the JSON of arguments: escapes would break words."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    return "\n".join(_texts_in(value))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _words_of(outcome: Outcome) -> str:
    return "\n".join((outcome.summary, *_texts_in(msgspec.to_builtins(outcome.output))))


def _lineage(history: RunHistory, what: str, writing: _Writing) -> Lineage:
    recorded = history.events[writing.index - 1]
    event = recorded.event()
    writer = f"{event.provider}/{event.model}" if isinstance(event, ModelCallFinished) else recorded.actor
    key = _opened(history, writing.stream).key
    return Lineage(what, writing.text, writing.index, key, writer, tuple(_sources(history, writing, depth=0)))


def _opened(history: RunHistory, stream: Stream) -> TaskOpened:
    opened = next((e for r in history.streams[stream] if isinstance(e := r.event(), TaskOpened)), None)
    if opened is None:
        raise ContractError(f"{stream} has no opening: the history of the run is not whole")
    return opened


def _sources(history: RunHistory, writing: _Writing, *, depth: int) -> list[Source]:
    """List what the writer was told, what is tied closest to the text first."""
    opened = _opened(history, writing.stream)
    found = [*_cited(history, writing, opened), *_told(history, writing, opened), *_given(history, writing, opened, depth=depth)]
    return sorted(found, key=lambda source: (ORDER[source.certainty], -source.share, source.index))


def _cited(history: RunHistory, writing: _Writing, opened: TaskOpened) -> Iterator[Source]:
    """List citations of the task's outcome that the text has the quote of, or the mark of."""
    for index, recorded, event in _numbered(history):
        if not isinstance(event, TaskCompleted) or history.stream_of(recorded.stream) != writing.stream:
            continue
        for number, citation in enumerate(event.outcome.citations, 1):
            shared = shared_words(writing.text, citation.quote)
            marks = (f"[{number}]", f"{citation.source}:{citation.line}")
            if shared.run or any(mark in writing.text for mark in marks):
                at = _shown_at(history, writing, citation) or index
                yield Source("cited", "document", f"{citation.source}:{citation.line}", opened.key, at, event.outcome.trust, citation.quote, shared.share)


def _shown_at(history: RunHistory, writing: _Writing, citation: Citation) -> int | None:
    """Return the first result in which the task was shown what a citation quotes."""
    for index, event in _results(history, writing):
        if shared_words(citation.quote, history.shown(event.result)).whole:
            return index
    return None


def _results(history: RunHistory, writing: _Writing) -> Iterator[tuple[int, ToolFinished]]:
    """List the tool results that the model had in front of it, those that ended a task apart."""
    for index, recorded, event in _numbered(history)[: writing.index - 1]:
        if isinstance(event, ToolFinished) and event.outcome is None and history.stream_of(recorded.stream) == writing.stream:
            yield index, event


def _told(history: RunHistory, writing: _Writing, opened: TaskOpened) -> Iterator[Source]:
    arguments = {
        call.call_id: call.arguments for r in history.streams[writing.stream] if isinstance(e := r.event(), ModelCallFinished) for call in e.tool_calls
    }
    for index, event in _results(history, writing):
        asked = arguments.get(event.call_id)
        name = shorten(f"{event.tool} {history.shown(asked) if asked is not None else ''}".strip(), NAME_CHARS_MAX)
        yield _source("tool result", name, opened.key, index, event.trust, shared_words(writing.text, history.shown(event.result)))


def _source(what: str, name: str, task: str, index: int, trust: str, shared: Shared, behind: Sequence[Source] = ()) -> Source:
    certainty: Certainty = "contained" if shared.run or shared.figures else "in context"
    return Source(certainty, what, name, task, index, trust, shared.run or ", ".join(shared.figures), round(shared.share, 2), tuple(behind))


def _given(history: RunHistory, writing: _Writing, opened: TaskOpened, *, depth: int) -> Iterator[Source]:
    """List what the task was opened with: its objective, and the outcomes of earlier tasks, followed back."""
    at = next(index for index, r, event in _numbered(history) if event == opened and history.stream_of(r.stream) == writing.stream)
    task = msgspec.json.decode(bytes(opened.task))
    objective = shared_words(writing.text, task.get("objective", ""))
    if objective.run:
        yield _source("task", "objective", opened.key, at, "trusted", objective)
    for item in task.get("context", ()):
        outcome = item["outcome"]
        shared = shared_words(writing.text, "\n".join(_texts_in([outcome.get("summary"), outcome.get("output")])))
        behind = _behind(history, item["key"], writing, at, depth=depth) if shared.run or shared.figures else []
        yield _source("outcome", item["key"], opened.key, at, outcome.get("trust", "trusted"), shared, behind)


def _behind(history: RunHistory, key: str, writing: _Writing, before: int, *, depth: int) -> list[Source]:
    """Follow a text into the last task under a key that had ended before."""
    if depth >= DEPTH_MAX:
        return []
    ended: list[tuple[int, Recorded]] = []
    for index, recorded, event in _numbered(history)[: before - 1]:
        if isinstance(event, TaskCompleted) and _opened(history, history.stream_of(recorded.stream)).key == key:
            ended.append((index, recorded))
    if not ended:
        return []
    index, recorded = ended[-1]
    stream = history.stream_of(recorded.stream)
    return _sources(history, _Writing(stream, _asked(history, stream, "", index), writing.text), depth=depth + 1)
