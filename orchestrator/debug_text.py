"""How a look at a past run reads in a terminal: conversations, timeline, tree, one moment, one event. Texts of models and tools cannot move the cursor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from crewlog.orchestrator.cli_output import printable
from crewlog.orchestrator.event_text import event_line
from crewlog.orchestrator.run_timeline import Span
from crewlog.orchestrator.run_tree import CallNode, RunTree, TaskNode
from crewlog.schemas.blocks import Block, Text, ToolResult, ToolUse
from crewlog.schemas.text import shorten
from crewlog.schemas.usage import format_usd

if TYPE_CHECKING:  # a tree or a timeline can do without what reads a conversation
    from crewlog.agents.recorded_task import Conversation, Line
    from crewlog.orchestrator.explain import Explanation
    from crewlog.orchestrator.moments import Moment

BAR_CHARS: Final = 40
BAR_CHARS_MIN: Final = 6
WORDS_CHARS: Final = 66
"""What stands beside the bar of a timeline, with a name of usual length."""
NOTE_CHARS_MAX: Final = 100


def conversation_lines(title: str, talk: Conversation) -> Iterator[str]:
    """Yield a conversation, one part of a message after the other, each with who said it."""
    tools = ", ".join(talk.tools)
    yield f"━━ {title}" + (f"  {talk.model}" if talk.model else "") + (f"  tools: {tools}" if tools else "")
    if talk.is_compacted:
        yield "   something was left out to make room; this is what the last call saw"
    yield from _block("system", talk.system)
    for line in talk.lines:
        yield from _said(line)


def _said(line: Line) -> Iterator[str]:
    who = f"turn {line.turn}" if line.turn else line.role
    mark = " (no model was told)" if line.is_unsent and line.role == "user" else ""
    if line.reasoning:
        yield from _block(f"{who} reasoning", line.reasoning)
    for block in line.content:
        yield from _block(f"{who}{_kind(block)}{mark}", _text(block))


def _kind(block: Block) -> str:
    match block:
        case Text():
            return ""
        case ToolUse():
            return f" calls {block.name} [{block.call_id}]"
        case ToolResult():
            return f" {'error' if block.is_error else 'result'} of {block.name} [{block.call_id}]"


def _text(block: Block) -> str:
    match block:
        case Text():
            return block.text
        case ToolUse():
            return block.arguments
        case ToolResult():
            return block.content


def _block(head: str, text: str) -> Iterator[str]:
    yield f"── {printable(head)}"
    yield from (f"   {printable(line)}".rstrip() for line in text.strip().splitlines())


def timeline_lines(spans: Sequence[Span], width: int | None = None) -> Iterator[str]:
    """Yield one line per span: when it began, how long it took, and a bar on the scale of the whole run.

    Args:
        width: columns of the terminal, in which the bar gives way to the words; None for no limit.
    """
    bar_chars = BAR_CHARS if width is None else max(BAR_CHARS_MIN, min(BAR_CHARS, width - WORDS_CHARS))
    whole_us = max((span.finished_us or span.started_us for span in spans), default=0) or 1
    for span in spans:
        took = "" if span.finished_us is None else f"{(span.finished_us - span.started_us) / 1e6:.3f}s"
        cost = format_usd(span.cost_micro_usd) if span.cost_micro_usd != 0 else ""
        where = f"{span.key} {span.turn}" if span.turn else span.key
        status = "" if span.status == "ok" else span.status
        text = f"{span.started_us / 1e6:9.3f}s {took:>9}  {_bar(span, whole_us, bar_chars)}  {where:<18} {span.what:<6} {span.name}  {status}  {cost}"
        yield printable(text).rstrip()


def _bar(span: Span, whole_us: int, chars: int) -> str:
    begin = min(span.started_us * chars // whole_us, chars - 1)
    end = chars if span.finished_us is None else max(begin + 1, -(-span.finished_us * chars // whole_us))
    sign = {"queue": "·", "person": "?", "model": "█", "tool": "▒"}[span.what]
    return (" " * begin + sign * (end - begin)).ljust(chars)


def tree_lines(tree: RunTree) -> Iterator[str]:
    """Yield a run as a tree: tasks, turns, calls, each with its time and cost."""
    cost = _cost(tree.cost_micro_usd, tree.unpriced_calls)
    yield printable(f"run {tree.run_id[:8]}  {tree.status}  {_took(tree.submitted_us, tree.finished_us)}  {cost}  {shorten(tree.goal, NOTE_CHARS_MAX)}")
    for task in tree.tasks:
        yield from _task_lines(task)


def _task_lines(task: TaskNode) -> Iterator[str]:
    again = f"  revision {task.revision}" if task.revision else ""
    again += f"  {task.attempt} attempts" if task.attempt > 1 else ""
    verdict = f"  {task.verdict}" if task.verdict else ""
    cost = _cost(task.cost_micro_usd, task.unpriced_calls)
    yield printable(f"  {task.key} ({task.kind})  {task.status}{verdict}{again}  {_took(task.started_us, task.finished_us)}  {cost}")
    for turn in task.turns:
        yield f"    turn {turn.turn}  {format_usd(turn.cost_micro_usd) if turn.cost_micro_usd else ''}".rstrip()
        for call in turn.calls:
            yield printable(f"      {call_line(call)}")


def call_line(call: CallNode) -> str:
    """Return one line about a call."""
    took = f"{call.latency_ms} ms" if call.finished_us is not None else ""
    cost = format_usd(call.cost_micro_usd) if call.cost_micro_usd != 0 else ""
    asks = f"→ {', '.join(call.asks)}" if call.asks else ""
    parts = (f"[{call.index}]", f"{call.what} {call.name}", call.status if call.status != "ok" else "", took, cost, asks, shorten(call.note, NOTE_CHARS_MAX))
    return "  ".join(part for part in parts if part)


def _took(started_us: int | None, finished_us: int | None) -> str:
    return "" if started_us is None or finished_us is None else f"{(finished_us - started_us) / 1e6:.1f} s"


def _cost(micro_usd: int, unpriced: int) -> str:
    return format_usd(micro_usd) + (f" and {unpriced} unpriced" if unpriced else "")


def moment_lines(moment: Moment, described: Mapping[str, Any], first_us: int) -> Iterator[str]:
    """Yield what was known behind one event: the event, the run, each task with its next step."""
    yield printable(f"[{moment.index}/{described['of']}] {event_line(moment.recorded, first_us)}")
    run = described["run"]
    if run is not None:
        spent = sum(task["cost_micro_usd"] for task in described["tasks"])  # the run itself hears of it when a task ends
        yield f"    run {run['status']}  {format_usd(spent)}" + (f"  held by {run['hold']['scope']}" if run["hold"] else "")
        for step in run["steps"]:
            waiting = f"  waits: {shorten(step['waiting']['detail'], NOTE_CHARS_MAX)}" if step["waiting"] else ""
            yield printable(f"    step {step['key']} ({step['type']})  {step['status']}{waiting}")
    for task in described["tasks"]:
        if task["phase"] != "ended":
            yield printable(f"    task {task['key']}  {task['phase']}, turn {task['turn']}  next: {_next(task['next'])}")


def _next(step: Mapping[str, Any]) -> str:
    """Say in a few words what comes next: calls by their tools, everything else by its fields."""
    rest = {name: value for name, value in step.items() if name != "step" and value not in (None, "", 0, 0.0, False, [], ())}
    if step["step"] == "RunCalls":
        rest["calls"] = ", ".join(f"{call['call']['tool']} [{call['call']['call_id']}]" for call in step["calls"])
    return shorten(f"{step['step']} {' '.join(f'{name}={value}' for name, value in rest.items())}".rstrip(), NOTE_CHARS_MAX)


def explanation_lines(told: Explanation) -> Iterator[str]:
    """Yield why an event happened, what it led to, and what whoever decided had in front of them."""
    event = told.event
    yield printable(f"[{told.index}/{told.of}] {event['type']}  {event['stream']} version {event['version']}, position {event['position']}")
    yield printable(f"    event {event['event_id']}  {event['occurred_at']}")
    by = "  ".join(f"{name} {value}" for name, value in told.decided_by.items() if value not in ("", None))
    yield printable(f"    by {by}")
    for head, links in (("caused by", told.caused_by), ("led to", told.led_to)):
        yield f"{head}: {'' if links else 'nothing in this run'}".rstrip()
        for link in links:
            yield printable(f"    [{link.index}] {link.relation:<10}  {link.type:<18}  {link.text}")
    for name, text in told.texts.items():
        yield from _block(name, text)
    if told.call is not None:
        yield from _pairs("call", told.call)
    if told.request is not None:
        yield from _request_lines(told.request)
    if told.decision is not None:
        yield from _decision_lines(told.decision)


def _pairs(head: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"{head}:"
    for name, value in values.items():
        if value not in (None, ""):
            yield printable(f"    {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _request_lines(request: Mapping[str, Any]) -> Iterator[str]:
    yield "request:"
    if request.get("problem"):
        yield printable(f"    cannot be rebuilt: {request['problem']}")
    for link in request["chain"]:
        yield printable(f"    {'→' if link['taken'] else ' '} {link['provider']}/{link['model']}  {link['why']}".rstrip())
    for item in request["context"]:
        left = ", left out" if item["left_out"] else ""
        yield printable(f"      told: turn {item['turn']} {item['tool']} [{item['call_id']}]  {item['bytes']} bytes, {item['trust']}{left}")
    if "messages" not in request:
        return
    said = "is exactly what was asked" if request["is_exact"] else f"does not give the recorded hash: it is {request['rebuilt'][:12]}"
    yield f"    rebuilt from the log, {request['hash'][:12]}: {said}"
    yield from _block("system", request["system"])
    for tool in request["tools"]:
        yield from _block(f"tool {tool['name']}", f"{tool['description']}\n{json.dumps(tool['parameters'], ensure_ascii=False)}")
    for message in request["messages"]:
        for block in message["content"]:
            about = " ".join(str(block[name]) for name in ("name", "call_id") if name in block)
            yield from _block(
                f"{message['role']} {block['type']} {about}".rstrip(), str(block.get("text") or block.get("arguments") or block.get("content") or "")
            )


def _decision_lines(decision: Mapping[str, Any]) -> Iterator[str]:
    if decision["problem"]:
        yield printable(f"decision: cannot be derived again: {decision['problem']}")
        return
    yield from _pairs("command", decision["command"])
    yield "decided together:"
    yield from (printable(f"    {line}") for line in decision["decided"])
    if decision["alternatives"]:
        yield "alternatives:"
    for choice in decision["alternatives"]:
        yield printable(f"    {'→' if choice['taken'] else ' '} {choice['choice']}: {choice['why']}".rstrip(": "))
