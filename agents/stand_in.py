"""What answers a tool call of a trial instead of the tool: the result that the same call got in the run it is tried after, or a note that
nothing was carried out. Which of them is possible is a rule; which one it was is recorded with the intent of the call.

A recorded result is served for a call of the same tool and version with the same arguments, made when the task had made the same files:
a workspace is its artifacts, so whatever reads it would read the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from crewlog.agents.journal import Journal
from crewlog.agents.recall import READ_CONTEXT_TOOL, RECALL_TOOL
from crewlog.agents.setup import SetupTool
from crewlog.agents.task_state import Call
from crewlog.events.prefix import read_history, tenant_of
from crewlog.events.store import Recorded
from crewlog.schemas.ids import Hash, RunId, Stream, task_stream
from crewlog.schemas.payload import Payload, content_hash
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ModelCallFinished, TaskForked, TaskOpened, ToolCall, ToolFinished, ToolStarted
from crewlog.schemas.trial import Stub
from crewlog.schemas.values import ArtifactRef, Outcome

LOCAL: Final = frozenset({RECALL_TOOL.name, READ_CONTEXT_TOOL.name})
"""Tools that read nothing but their own task: they run in any case."""
STUBBED: Final = "stubbed"
RECORDED: Final = "recorded"
MISSING: Final = "missing"

Place = tuple[str, int] | None
"""Key and revision of a task: it has the same in a trial as in the run that is tried. None: unknown."""
_Key = tuple[str, str, Hash, Hash]


_BEGINS: Final = frozenset({TaskOpened.__name__, TaskForked.__name__})


class StandIn(NamedTuple):
    """An answer, and of which sort it is."""

    stub: Stub
    finished: ToolFinished


def stubs_allowed(task: AgentTask, tool: SetupTool) -> frozenset[Stub | str]:
    """Say in which ways a call may be answered: `""` stands for carrying it out."""
    trial = task.trial
    if trial is None or tool.asks_person:
        return frozenset({""})
    is_own = tool.is_contained or (tool.effect == "read" and tool.ends_task)
    if tool.definition.name in LOCAL:
        return frozenset({""})
    if trial.only_recorded:
        return frozenset({"", RECORDED} if is_own else {RECORDED, MISSING})
    if trial.stubs_effects and tool.effect != "read" and not is_own:
        return frozenset({STUBBED, RECORDED})
    is_served = trial.source is not None and not trial.fresh_reads and not tool.ends_task and (tool.effect == "read" or is_own)
    return frozenset({"", RECORDED}) if is_served else frozenset({""})


class RecordedResults:
    """The results of a run's tool calls, found by what was called."""

    def __init__(self, events: Iterable[Recorded]) -> None:
        """Take in the events of a run in the order of the log."""
        self._found: dict[_Key, list[tuple[Place, ToolFinished]]] = defaultdict(list)
        places: dict[Stream, Place] = {}
        calls: dict[Stream, dict[str, ToolCall]] = defaultdict(dict)
        made: dict[Stream, tuple[ArtifactRef, ...]] = defaultdict(tuple)
        begun: dict[tuple[Stream, str], _Key] = {}
        kept: dict[tuple[Stream, str], tuple[_Key, int]] = {}
        for recorded in events:
            event, stream = recorded.event(), recorded.stream
            if isinstance(event, TaskOpened | TaskForked):
                places[stream] = place_of(event)
            match event:
                case TaskForked():
                    parent = task_stream(event.parent)
                    made[stream], calls[stream] = made[parent], dict(calls[parent])
                    for edit in event.results:  # what a task was told in the end is what the same call gets again
                        told: Any = {"result": edit.content, "status": "error" if edit.is_error else "ok"}
                        if (parent, edit.call_id) in kept:
                            key, at = kept[parent, edit.call_id]
                            place, finished = self._found[key][at]
                            self._found[key][at] = (place, replace(finished, **told))
                        elif (parent, edit.call_id) in begun:
                            ended = ToolFinished(edit.call_id, calls[parent][edit.call_id].tool, latency_ms=0, **told)
                            self._found[begun[parent, edit.call_id]].append((place_of(event), ended))
                case ModelCallFinished():
                    calls[stream] |= {call.call_id: call for call in event.tool_calls}
                case ToolStarted() if event.call_id in calls[stream]:
                    begun[stream, event.call_id] = _key(calls[stream][event.call_id], event.tool_version, made[stream])
                case ToolFinished():
                    called = begun.pop((stream, event.call_id), None)
                    if called is not None and event.status in ("ok", "error"):
                        kept[stream, event.call_id] = called, len(self._found[called])
                        self._found[called].append((places.get(stream), event))
                    made[stream] += event.artifacts

    def find(self, call: ToolCall, version: str, made: tuple[ArtifactRef, ...], *, earlier: int, place: Place = None) -> ToolFinished | None:
        """Return what a call got; of several calls that were the same, the one with as many `earlier` ones, or the last: of those of the task in the
        same place of its run if it made any, since a task that is revised, or stands beside others, asks the same again and may be told otherwise."""
        found = self._found.get(_key(call, version, made), [])
        own = [finished for its, finished in found if its == place] or [finished for _, finished in found]
        return own[min(earlier, len(own) - 1)] if own else None


def place_of(begin: TaskOpened | TaskForked) -> Place:
    """Say which place in its run a task has."""
    return begin.key, begin.revision


def _key(call: ToolCall, version: str, made: Iterable[ArtifactRef]) -> _Key:
    files = content_hash(msgspec.json.encode([(artifact.name, artifact.hash) for artifact in made]))
    return call.tool, version, _arguments(call.arguments), files


def _arguments(payload: Payload) -> Hash:
    """Name arguments so that the order of their names and blanks do not matter; large ones as they are written."""
    if payload.inline is None:
        return Hash(str(payload.ref))
    try:
        return content_hash(msgspec.json.encode(msgspec.json.decode(payload.inline), order="deterministic"))
    except msgspec.DecodeError:
        return content_hash(payload.inline.encode())


class StandIns:
    """The answers for one worker's hold on one task of a trial."""

    def __init__(self, task: AgentTask, journal: Journal) -> None:
        self._task, self._journal = task, journal
        self._results: RecordedResults | None = None
        self._place: Place = None

    async def for_call(self, call: Call, tool: SetupTool) -> StandIn | None:
        """Return what answers this call, None when it is to be carried out.

        Raises:
            Unavailable: the log cannot be reached.
        """
        allowed = stubs_allowed(self._task, tool)
        if RECORDED in allowed and (found := await self._recorded(call, tool)) is not None:
            await self._journal.load([found.content_of])
            return StandIn("recorded", found.finished)
        if MISSING in allowed:
            return StandIn("missing", self._missing(call, tool))
        return StandIn("stubbed", self._stubbed(call, tool)) if STUBBED in allowed else None

    async def _recorded(self, call: Call, tool: SetupTool) -> _Found | None:
        trial, state = self._task.trial, self._journal.state
        if trial is None or trial.source is None:
            return None
        if self._results is None:
            events = await read_history(self._journal.store, RunId(trial.source))
            # what another tenant's agents saw is nobody's business: to this task there is no such run
            self._results = RecordedResults(events if tenant_of(events) == self._task.tenant else ())
            self._place = await self._own_place()
        earlier = sum(_is_same(one, call.call) for exchange in state.exchanges for one in exchange.calls if one.call_id != call.call.call_id)
        found = self._results.find(call.call, tool.version, state.artifacts, earlier=earlier, place=self._place)
        if found is None:
            return None
        # what the call made then is not made again: there is nothing to take back
        nothing_done = {"ways": msgspec.UNSET, "compensation": msgspec.UNSET, "reused": msgspec.UNSET}
        return _Found(replace(found, call_id=call.call.call_id, latency_ms=0, **nothing_done), found.result)

    async def _own_place(self) -> Place:
        own = {self._journal.stream: 0}
        begins = (recorded.event() for recorded in await self._journal.store.read_streams(own, types=_BEGINS))
        return next((place_of(event) for event in begins if isinstance(event, TaskOpened | TaskForked)), None)

    def _missing(self, call: Call, tool: SetupTool) -> ToolFinished:
        trial, name = self._task.trial, call.call.tool
        said = f"{name} with these arguments is not in the record of run {trial.source if trial else ''}, and nothing else may be used"
        return ToolFinished(call.call.call_id, name, "error", self._journal.pack(said), 0, tool.trust)

    def _stubbed(self, call: Call, tool: SetupTool) -> ToolFinished:
        name = call.call.tool
        said = f"{name} was not carried out: this run tries something out, and nothing of it reaches beyond it. Go on as if it had been done."
        outcome = Outcome(said, artifacts=self._journal.state.artifacts) if tool.ends_task else None
        return ToolFinished(call.call.call_id, name, "ok", self._journal.pack(said), 0, tool.trust, outcome=outcome)


class _Found(NamedTuple):
    finished: ToolFinished
    content_of: Payload


def _is_same(one: ToolCall, other: ToolCall) -> bool:
    return one.tool == other.tool and _arguments(one.arguments) == _arguments(other.arguments)
