"""Which source led to a sentence of the answer, to a file or to an effect: from what is recorded, and with how sure that is. Pure.

Nobody can look into a model. What can be said is what it had in front of it when it wrote something, and how that is tied to it:
`cited` (a checked citation stands behind it), `contained` (words or figures of it stand in what the model was told), or only
`in context` (the model was told it before it wrote). Outcomes of earlier tasks are followed back into those tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from crewlog.orchestrator.lineage_index import NAME_CHARS_MAX, RunIndex, Told, Tracing, texts_in
from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.shared_words import Shared, line_of, sentences, stands_in
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Stream
from crewlog.schemas.run_events import RunCompleted
from crewlog.schemas.task_events import ModelCallFinished, TaskCompleted, ToolFinished, ToolStarted
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Outcome

Certainty = Literal["cited", "contained", "in context"]
ORDER: Final = {"cited": 0, "contained": 1, "in context": 2}
DEPTH_MAX: Final = 8
"""Tasks that a text is followed back through."""


class Source(msgspec.Struct, frozen=True):
    """Something that the writer of a text was told before."""

    certainty: Certainty
    what: str
    """`document`, `tool result`, `outcome` of an earlier task, or the `task` itself as it was given."""
    name: str
    """`<document>:<line>`, the tool with its arguments, the key of the earlier task."""
    key: str
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
    key: str
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
    line, run = line_of(sentence), RunIndex(history)
    if not line:
        raise ContractError("--sentence has no words: copy one from the answer")
    for writing in (*_outcomes(run), *_arguments(run)):
        if stands_in(line, line_of(writing.text)):
            return _lineage_of_one(run, "sentence", msgspec.structs.replace(writing, text=sentence))
    raise NotFound("sentence (nothing that this run answered or sent has it; copy it from the answer)", shorten(sentence, NAME_CHARS_MAX))


def lineage_of_artifact(history: RunHistory, name: str) -> Lineage:
    """Follow a file by its name, or by the first characters of its hash; of several versions, the last one.

    Raises:
        NotFound: no task made it.
    """
    run = RunIndex(history)
    made = [
        (index, stream, event)
        for index, stream, event in run.facts
        if isinstance(event, ToolFinished) and any(ref.name == name or ref.hash.startswith(name) for ref in event.artifacts)
    ]
    if not made:
        names = sorted({ref.name for event in history.decoded if isinstance(event, ToolFinished) for ref in event.artifacts})
        raise NotFound(f"file (tasks of this run made: {', '.join(names) or 'none'})", name)
    index, stream, event = made[-1]
    return _lineage_of_one(run, "artifact", _writing_of_call(run, stream, event.call_id, index))


def lineage_of_effect(history: RunHistory, effect: str) -> Lineage:
    """Follow what was done outside, named by the first characters of its idempotency key or by the id of its call.

    Raises:
        NotFound: no such call, or several.
    """
    run = RunIndex(history)
    found = {
        (stream, event.call_id): (index, event)
        for index, stream, event in run.facts
        if isinstance(event, ToolStarted) and event.effect != "read" and (event.call_id == effect or event.idempotency_key.startswith(effect))
    }
    if len(found) != 1:
        keys = tuple(f"{event.idempotency_key} ({event.tool})" for _, event in found.values())
        raise NotFound("effect", effect, candidates=keys)
    ((stream, call_id), (index, _)) = next(iter(found.items()))
    return _lineage_of_one(run, "effect", _writing_of_call(run, stream, call_id, index))


def lineage_of_answer(history: RunHistory) -> list[Lineage]:
    """Follow every sentence of the answer; empty while there is none."""
    end = next((event for r in history.run_events if isinstance(event := r.event(), RunCompleted)), None)
    if end is None:
        return []
    run, said = RunIndex(history), sentences(history.shown(end.answer))
    tracing = Tracing(run, said)
    writings = [(line_of(writing.text), writing) for writing in _outcomes(run)]
    found = []
    for sentence in said:
        line = line_of(sentence)
        writing = next((writing for words, writing in writings if stands_in(line, words)), None)
        if writing is not None:
            found.append(_lineage(tracing, "sentence", msgspec.structs.replace(writing, text=sentence)))
    return found


def _outcomes(run: RunIndex) -> list[_Writing]:
    """List what tasks ended with, the last one first: the answer is among the last."""
    found = []
    for index, stream, event in run.facts:
        if isinstance(event, TaskCompleted):
            ended_by = [fact.event.call_id for fact in run.of(stream) if isinstance(fact.event, ToolFinished) and fact.event.outcome is not None]
            found.append(_Writing(stream, run.asked(stream, ended_by[-1] if ended_by else "", index), _words_of(event.outcome)))
    return found[::-1]


def _arguments(run: RunIndex) -> Iterator[_Writing]:
    """List what tools with effects were told, the last one first."""
    for index, stream, event in reversed(run.facts):
        if isinstance(event, ToolStarted) and event.effect != "read":
            yield _writing_of_call(run, stream, event.call_id, index)


def _writing_of_call(run: RunIndex, stream: Stream, call_id: str, index: int) -> _Writing:
    said = (fact.event for fact in run.of(stream) if isinstance(fact.event, ModelCallFinished))
    text = "\n".join(_flat(run.history.shown(call.arguments)) for event in said for call in event.tool_calls if call.call_id == call_id)
    return _Writing(stream, run.asked(stream, call_id, index), text)


def _flat(arguments: str) -> str:
    """Return the texts inside the JSON of arguments: escapes would break words."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    return "\n".join(texts_in(value))


def _words_of(outcome: Outcome) -> str:
    return "\n".join((outcome.summary, *texts_in(msgspec.to_builtins(outcome.output))))


def _lineage_of_one(run: RunIndex, what: str, writing: _Writing) -> Lineage:
    return _lineage(Tracing(run, [writing.text]), what, writing)


def _lineage(tracing: Tracing, what: str, writing: _Writing) -> Lineage:
    run = tracing.run
    event, recorded = run.facts[writing.index - 1].event, run.history.events[writing.index - 1]
    writer = f"{event.provider}/{event.model}" if isinstance(event, ModelCallFinished) else recorded.actor
    key = run.opened(writing.stream)[1].key
    return Lineage(what, writing.text, writing.index, key, writer, tuple(_sources(tracing, writing, depth=0)))


def _sources(tracing: Tracing, writing: _Writing, *, depth: int) -> list[Source]:
    """List what the writer was told, what is tied closest to the text first."""
    key = tracing.run.opened(writing.stream)[1].key
    found = [*_cited(tracing, writing, key), *_told(tracing, writing, key), *_given(tracing, writing, key, depth=depth)]
    return sorted(found, key=lambda source: (ORDER[source.certainty], -source.share, source.index))


def _cited(tracing: Tracing, writing: _Writing, key: str) -> Iterator[Source]:
    """List citations of the task's outcome that the text has the quote of, or the mark of. Of each, the first result in which the task was shown it."""
    for told, number, text, shown_at in tracing.quotes(writing.stream):
        shared = tracing.sought.shared(writing.text, told.known)
        if shared.run or f"[{number}]" in writing.text or told.name in writing.text:
            at = shown_at if shown_at is not None and shown_at < writing.index else told.at
            yield Source("cited", "document", told.name, key, at, told.trust, text, shared.share)


def _told(tracing: Tracing, writing: _Writing, key: str) -> Iterator[Source]:
    """List the tool results that the model had in front of it."""
    for told in tracing.results(writing.stream):
        if told.at >= writing.index:
            return
        yield _source("tool result", told, key, tracing.sought.shared(writing.text, told.known))


def _source(what: str, told: Told, task: str, shared: Shared, behind: Sequence[Source] = ()) -> Source:
    certainty: Certainty = "contained" if shared.run or shared.figures else "in context"
    text = shared.run or ", ".join(shared.figures)
    return Source(certainty, what, told.name, task, told.at, told.trust, text, round(shared.share, 2), tuple(behind))


def _given(tracing: Tracing, writing: _Writing, key: str, *, depth: int) -> Iterator[Source]:
    """List what the task was opened with: its objective, and the outcomes of earlier tasks, followed back."""
    given = tracing.given(writing.stream)
    objective = tracing.sought.shared(writing.text, given.objective.known)
    if objective.run:
        yield _source("task", given.objective, key, objective)
    for told in given.outcomes:
        shared = tracing.sought.shared(writing.text, told.known)
        behind = _behind(tracing, told, writing, depth=depth) if shared.run or shared.figures else []
        yield _source("outcome", told, key, shared, behind)


def _behind(tracing: Tracing, told: Told, writing: _Writing, *, depth: int) -> list[Source]:
    """Follow a text into the last task under a key that had ended before it was told."""
    if depth >= DEPTH_MAX:
        return []
    ended = [fact for fact in tracing.run.ends.get(told.name, ()) if fact.at < told.at]
    if not ended:
        return []
    index, stream, _ = ended[-1]
    return _sources(tracing, _Writing(stream, tracing.run.asked(stream, "", index), writing.text), depth=depth + 1)
