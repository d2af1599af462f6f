"""The facts of a run that its lineage is made of, by task, each put down once: texts are traced by the hundred, through results by the thousand. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.shared_words import Known, Sought, line_of, stands_in
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream
from crewlog.schemas.task_events import ModelCallFinished, TaskCompleted, TaskOpened, ToolFinished
from crewlog.schemas.text import shorten

NAME_CHARS_MAX: Final = 120


class Fact(NamedTuple):
    """An event of a run, its index in `at`, and the stream of the run that it belongs to."""

    at: int
    stream: Stream
    event: Event | Unknown


class Told(NamedTuple):
    """A text that the agent of a task was shown: a result of a tool, the quote of a citation, or what the task was opened with. `at` is an index."""

    at: int
    name: str
    trust: str
    known: Known


class Quote(NamedTuple):
    """A citation of a task's outcome. `shown_at` is the first result that has its quote, if any does."""

    told: Told
    number: int
    text: str
    shown_at: int | None


class Given(NamedTuple):
    """What a task was opened with: its objective, and the outcomes of earlier tasks by their keys."""

    objective: Told
    outcomes: tuple[Told, ...]


class RunIndex:
    """The events of a run, by task."""

    def __init__(self, history: RunHistory) -> None:
        self.history = history
        self.facts = [
            Fact(index, history.stream_of(recorded.stream), event)
            for index, (recorded, event) in enumerate(zip(history.events, history.decoded, strict=True), 1)
        ]
        self._by_stream: dict[Stream, list[Fact]] = {}
        for fact in self.facts:
            self._by_stream.setdefault(fact.stream, []).append(fact)
        self._opened = {stream: opening for stream, facts in self._by_stream.items() if (opening := _opening(facts)) is not None}
        self._calls = {stream: _calls(facts) for stream, facts in self._by_stream.items()}

    def of(self, stream: Stream) -> Sequence[Fact]:
        """Return the facts of a task in their order."""
        return self._by_stream[stream]

    def opened(self, stream: Stream) -> tuple[int, TaskOpened]:
        """Return how a task was opened, with the index of that.

        Raises:
            ContractError: the beginning of the task is missing.
        """
        opening = self._opened.get(stream)
        if opening is None:
            raise ContractError(f"{stream} has no opening: the history of the run is not whole")
        return opening

    def asked(self, stream: Stream, call_id: str, otherwise: int) -> int:
        """Return the index of the answer of a model that asked for a call; without one, of the last answer before `otherwise`."""
        asked_at, answers = self._calls[stream]
        index = asked_at.get(call_id)
        if index is not None and index <= otherwise:
            return index
        return next((answer for answer in reversed(answers) if answer <= otherwise), otherwise)

    @cached_property
    def ends(self) -> Mapping[str, Sequence[Fact]]:
        """Key -> the ends of tasks under it that completed."""
        found: dict[str, list[Fact]] = {}
        for fact in self.facts:
            if isinstance(fact.event, TaskCompleted):
                found.setdefault(self.opened(fact.stream)[1].key, []).append(fact)
        return found


class Tracing:
    """A run through which some texts are traced: everything that agents were told is compared with them once."""

    def __init__(self, run: RunIndex, texts: Iterable[str]) -> None:
        self.run, self.sought = run, Sought(texts)
        self._results: dict[Stream, tuple[Told, ...]] = {}
        self._quotes: dict[Stream, tuple[Quote, ...]] = {}
        self._given: dict[Stream, Given] = {}

    def results(self, stream: Stream) -> tuple[Told, ...]:
        """List the tool results of a task, those that ended it apart."""
        if stream not in self._results:
            self._results[stream] = tuple(self._read_results(stream))
        return self._results[stream]

    def quotes(self, stream: Stream) -> tuple[Quote, ...]:
        """List the citations of a task's outcome."""
        if stream not in self._quotes:
            self._quotes[stream] = tuple(self._read_quotes(stream))
        return self._quotes[stream]

    def given(self, stream: Stream) -> Given:
        """Return what a task was opened with."""
        if stream not in self._given:
            self._given[stream] = self._read_given(stream)
        return self._given[stream]

    def _read_results(self, stream: Stream) -> Iterator[Told]:
        history, facts = self.run.history, self.run.of(stream)
        arguments = {call.call_id: call.arguments for fact in facts if isinstance(fact.event, ModelCallFinished) for call in fact.event.tool_calls}
        for index, _, event in facts:
            if isinstance(event, ToolFinished) and event.outcome is None:
                asked = arguments.get(event.call_id)
                name = shorten(f"{event.tool} {history.shown(asked) if asked is not None else ''}".strip(), NAME_CHARS_MAX)
                yield Told(index, name, event.trust, self.sought.read(history.shown(event.result)))

    def _read_quotes(self, stream: Stream) -> Iterator[Quote]:
        for index, _, event in self.run.of(stream):
            if isinstance(event, TaskCompleted):
                for number, citation in enumerate(event.outcome.citations, 1):
                    line = line_of(citation.quote)
                    shown_at = next((told.at for told in self.results(stream) if stands_in(line, told.known.line)), None)
                    told = Told(index, f"{citation.source}:{citation.line}", event.outcome.trust, self.sought.read(citation.quote))
                    yield Quote(told, number, citation.quote, shown_at)

    def _read_given(self, stream: Stream) -> Given:
        index, opened = self.run.opened(stream)
        task = msgspec.json.decode(bytes(opened.task))
        outcomes = (
            Told(index, item["key"], outcome.get("trust", "trusted"), self.sought.read("\n".join(texts_in([outcome.get("summary"), outcome.get("output")]))))
            for item in task.get("context", ())
            for outcome in [item["outcome"]]
        )
        return Given(Told(index, "objective", "trusted", self.sought.read(task.get("objective", ""))), tuple(outcomes))


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts and numbers inside a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _opening(facts: Sequence[Fact]) -> tuple[int, TaskOpened] | None:
    return next(((fact.at, fact.event) for fact in facts if isinstance(fact.event, TaskOpened)), None)


def _calls(facts: Sequence[Fact]) -> tuple[dict[str, int], list[int]]:
    """Return call -> the first answer that asked for it, and all answers."""
    asked_at: dict[str, int] = {}
    answers = [(fact.at, fact.event) for fact in facts if isinstance(fact.event, ModelCallFinished)]
    for index, event in answers:
        for call in event.tool_calls:
            asked_at.setdefault(call.call_id, index)
    return asked_at, [index for index, _ in answers]
