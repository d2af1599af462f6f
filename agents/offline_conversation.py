"""What the offline provider reads out of a request: the task from the opening message, and the tool calls made so far.

Progress is never remembered, only inferred: the same request gives the same conversation, and so the same next turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from crewlog.agents.escalation import ESCALATE
from crewlog.agents.recall import READ_CONTEXT
from crewlog.schemas.blocks import ModelRequest, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.errors import ContractError
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Constraints
from crewlog.schemas.values import ArtifactRef, ContextItem

FENCE: Final = "```json"
KINDS_KEY: Final = "@kinds"
OPEN_KEY: Final = "@open"
"""Context items of the orchestrator: the kinds a plan may use, and the steps that have no result."""
NOT_DONE: Final = "\n\nCould not be done: "
"""Separates what a message has to say about failed steps; written by the planner when it plans again."""
PART: Final = re.compile(r"\A\[part \d+ of (\d+)\]\n")
"""Begins one part of a result that is read in several."""
PART_OF: Final = "\n\nPart of: "
"""Separates what a step has to do from the goal it belongs to; the planner writes it, the specialists read it."""


class Attached(NamedTuple):
    """A file of the task, as the opening message lists it."""

    name: str
    media_type: str = ""
    size: int = 0


class Want(NamedTuple):
    """A tool call the model is going to ask for."""

    tool: str
    arguments: Mapping[str, Any]


class Turn(NamedTuple):
    """What the model says next; without calls the text is the final answer."""

    text: str
    calls: tuple[Want, ...] = ()


class Call(NamedTuple):
    """A tool call of an earlier turn. `result` is None while there is none."""

    tool: str
    arguments: Mapping[str, Any]
    result: str | None
    is_error: bool
    turn: int
    """Which assistant message asked for it, from 0."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The task and how far it has come."""

    objective: str
    type: str
    key: str
    attachments: tuple[Attached, ...]
    context: tuple[ContextItem, ...]
    constraints: Constraints
    output_schema: Mapping[str, Any] | None
    tools: Mapping[str, ToolDef]
    calls: tuple[Call, ...]
    feedback: tuple[str, ...]
    """What the user side said after the opening message, such as corrections."""
    turns: int
    """Assistant messages so far."""
    unread: tuple[Want, ...] = ()
    """Calls that read what the task only lists of earlier results, as far as nobody has made them yet."""
    lacking: tuple[str, ...] = ()
    """What the agent should have and has not."""

    @property
    def question(self) -> str:
        """The objective without the goal it is part of."""
        return self.objective.split(NOT_DONE, 1)[0].split(PART_OF, 1)[0].strip()

    @property
    def goal(self) -> str:
        """The goal this step is part of, or nothing."""
        text = self.objective.split(NOT_DONE, 1)[0]
        return text.split(PART_OF, 1)[1].strip() if PART_OF in text else ""

    @property
    def not_done(self) -> tuple[str, ...]:
        """What failed before, as far as anybody said so: in the objective, or in the orchestrator's list."""
        said = self.objective.split(NOT_DONE, 1)[1].split("; ") if NOT_DONE in self.objective else []
        return (*said, *(f"{step['objective'].split(PART_OF, 1)[0]} ({step['problem']})" for step in self.open_steps))

    @property
    def open_steps(self) -> tuple[Mapping[str, str], ...]:
        """Steps of the plan that have no result: key, type, objective and problem of each."""
        listed = next((item.outcome.output for item in self.context if item.key == OPEN_KEY), None)
        fields = ("key", "type", "objective", "problem")
        return tuple({f: str(step.get(f) or "") for f in fields} for step in listed if isinstance(step, dict)) if isinstance(listed, list) else ()

    @property
    def outcomes(self) -> tuple[ContextItem, ...]:
        """Outcomes of earlier tasks, without what the orchestrator put in and without an earlier try of this task."""
        return tuple(item for item in self.context if item.type != "system" and not item.key.startswith("@") and item.key != self.key)

    @property
    def artifacts(self) -> tuple[ArtifactRef, ...]:
        """Files that earlier tasks made, in order."""
        return tuple(artifact for item in self.outcomes for artifact in item.outcome.artifacts)

    def made(self, tool: str) -> tuple[Call, ...]:
        """Return the calls of one tool that have a good result."""
        return tuple(call for call in self.calls if call.tool == tool and call.result is not None and not call.is_error)

    def failed(self, tool: str) -> tuple[Call, ...]:
        """Return the calls of one tool that ended in an error."""
        return tuple(call for call in self.calls if call.tool == tool and call.is_error)

    def tried(self, tool: str) -> bool:
        """Say whether a tool was called at all."""
        return any(call.tool == tool for call in self.calls)

    def is_due(self, tool: str) -> bool:
        """Say whether a first look with a tool is still to be taken: it was not called, or only with arguments that were refused."""
        calls = [call for call in self.calls if call.tool == tool]
        return tool in self.tools and (not calls or (len(calls) == 1 and calls[0].is_error and "not valid" in (calls[0].result or "")))

    def offers(self, *tools: str) -> bool:
        """Say whether all these tools are offered."""
        return all(tool in self.tools for tool in tools)


def read_conversation(request: ModelRequest) -> Conversation:
    """Read a request. A first message in another form is taken as the objective itself."""
    opening = next((block.text for message in request.messages for block in message.content if isinstance(block, Text)), "")
    task = _task(opening)
    attachments = tuple(
        Attached(str(a["name"]), str(a.get("media_type") or ""), int(a.get("size") or 0))
        for a in task.get("attachments") or ()
        if isinstance(a, dict) and a.get("name")
    )
    schema = task.get("output_schema")
    calls = _calls(request)
    listed = [item for item in task.get("available_context") or () if isinstance(item, dict) and item.get("key")]
    told = [item for item in map(_item, [*(task.get("context") or ()), *_fetched(listed, calls)]) if item is not None]
    own = tuple(call for call in calls if call.tool != READ_CONTEXT)
    return Conversation(
        objective=str(task.get("objective") or ""),
        type=str(task.get("type") or ""),
        key=str(task.get("key") or ""),
        attachments=attachments,
        context=tuple(told),
        constraints=_constraints(task.get("constraints")),
        output_schema=schema if isinstance(schema, dict) else None,
        tools={tool.name: tool for tool in request.tools if tool.name != ESCALATE},  # rules know when they are at their end, and say so
        calls=own,
        feedback=tuple(block.text for message in request.messages[1:] if message.role == "user" for block in message.content if isinstance(block, Text)),
        # the turn that only read what others found is none of the rules' own
        turns=sum(message.role == "assistant" for message in request.messages) - len({call.turn for call in calls} - {call.turn for call in own}),
        lacking=tuple(map(str, task.get("not_available") or ())),
        unread=tuple(_unread(listed, calls)) if any(tool.name == READ_CONTEXT for tool in request.tools) else (),
    )


def result_data(text: str | None) -> Any:
    """Return a tool result as JSON: the whole text, or the object or array that stands in it; None when there is none."""
    if not text:
        return None
    decoder = json.JSONDecoder()
    starts = [0] if text.lstrip()[:1] in ("{", "[") else [at for mark in (FENCE, "\n{", "\n[") if (at := text.find(mark)) >= 0]
    for start in starts:
        at = start + len(FENCE) if text.startswith(FENCE, start) else start
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            return decoder.raw_decode(text, at)[0]
        except json.JSONDecodeError:
            continue
    return None


def _read_parts(calls: Sequence[Call]) -> Mapping[str, dict[int, str | None]]:
    """Return, by key, the parts of earlier results that were read; None for one that could not be."""
    parts: dict[str, dict[int, str | None]] = {}
    for call in calls:
        if call.tool == READ_CONTEXT:
            part = call.arguments.get("part", 1)
            parts.setdefault(str(call.arguments.get("key")), {})[part if isinstance(part, int) else 1] = None if call.is_error else call.result
    return parts


def _unread(listed: Sequence[Mapping[str, Any]], calls: Sequence[Call]) -> Iterator[Want]:
    parts = _read_parts(calls)
    for item in listed:
        known = parts.get(str(item["key"]))
        if known is None:
            yield Want(READ_CONTEXT, {"key": item["key"]})
        elif (more := PART.match(known.get(1) or "")) is not None:
            yield from (Want(READ_CONTEXT, {"key": item["key"], "part": part}) for part in range(2, int(more[1]) + 1) if part not in known)


def _fetched(listed: Sequence[Mapping[str, Any]], calls: Sequence[Call]) -> Iterator[Mapping[str, Any]]:
    """Put what was read beside what is listed about it."""
    parts = _read_parts(calls)
    for item in listed:
        known = parts.get(str(item["key"]), {})
        outcome = result_data("".join(PART.sub("", text or "", count=1) for _, text in sorted(known.items())))
        if isinstance(outcome, dict):
            yield {"key": item["key"], "type": item.get("type"), "objective": item.get("objective"), "outcome": outcome}


def _task(opening: str) -> Mapping[str, Any]:
    at = opening.find(FENCE)
    if at >= 0:
        start = at + len(FENCE)
        start += len(opening[start:]) - len(opening[start:].lstrip())
        try:
            found = json.JSONDecoder().raw_decode(opening, start)[0]
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict) and "objective" in found:
            return found
    return {"objective": opening}


def _item(data: Any) -> ContextItem | None:
    try:
        return msgspec.convert(data, ContextItem)
    except msgspec.ValidationError:
        return None


def _constraints(data: Any) -> Constraints:
    try:
        return parse(Constraints, data or {}, "these are no constraints")
    except ContractError:
        return Constraints()


def _calls(request: ModelRequest) -> tuple[Call, ...]:
    results = {block.call_id: block for message in request.messages for block in message.content if isinstance(block, ToolResult)}
    calls: list[Call] = []
    turn = -1
    for message in request.messages:
        turn += message.role == "assistant"
        for block in message.content:
            if isinstance(block, ToolUse):
                result = results.get(block.call_id)
                calls.append(Call(block.name, _arguments(block.arguments), result.content if result else None, bool(result and result.is_error), turn))
    return tuple(calls)


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
