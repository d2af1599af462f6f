"""How two runs read side by side in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any, Final

from crewlog.orchestrator.cli_output import printable
from crewlog.orchestrator.run_diff import RunDiff, Side, StepDiff, TaskDiff, task_differences
from crewlog.schemas.usage import format_usd

LINES_MAX: Final = 12
"""Lines of one text that are shown of each side; JSON has all of it."""
ALIKE_CHARS: Final = 20
"""Characters that are shown on both sides of a difference which nobody sees."""
_GAP: Final = " │ "


def diff_lines(found: RunDiff, width: int) -> Iterator[str]:
    """Yield a comparison: the verdict, what the first differing model call saw, then what differs of tasks and every step, those that differ side by side.

    Args:
        width: columns of the terminal.
    """
    column = max((width - len(_GAP)) // 2, 20)
    yield from _columns(_about(found.a), _about(found.b), column)
    if found.is_identical:
        yield f"identical: {len(found.steps)} steps, the same requests, calls, results, costs and answer"
        return
    if found.first is None:
        yield f"every step is the same; the runs differ in {', '.join(found.differs)}"
    else:
        step = found.steps[found.first]
        yield printable(f"first difference: {_where(step)}: {', '.join(step.differs)}")
    if found.saw is not None:
        yield f"the models saw different {found.saw.where}:"
        yield from _columns(_short(found.saw.a), _short(found.saw.b), column)
    yield from map(printable, _task_lines(found.tasks))
    for step in found.steps:
        yield from _step_lines(step, column)
    if "answer" in found.differs:
        yield "answer:"
        yield from _columns(found.a["answer"] or "", found.b["answer"] or "", column)


def _about(run: dict[str, Any]) -> str:
    took = "" if run["took_s"] is None else f"  {run['took_s']:.1f} s"
    return f"run {run['run_id'][:8]}  {run['status']}  {run['events']} events{took}  {format_usd(run['cost_micro_usd'])}"


def _where(step: StepDiff) -> str:
    return f"{_named(step)} turn {step.turn} {step.what} {step.call_id}"


def _task_lines(tasks: Sequence[TaskDiff]) -> Iterator[str]:
    for task in tasks:
        if differs := task_differences(task):
            told = (f"{name} {_amount(task.a, name)} / {_amount(task.b, name)}" if task.a and task.b else name for name in differs)
            yield f"≠ {_named(task)}: {', '.join(told)}"


def _amount(task: Mapping[str, Any], name: str) -> str:
    return format_usd(task[name]) if name == "cost_micro_usd" else str(task[name] or "none")


def _named(of: TaskDiff | StepDiff) -> str:
    return of.key + (f" revision {of.revision}" if of.revision else "")


def _step_lines(step: StepDiff, column: int) -> Iterator[str]:
    side = step.a or step.b
    assert side is not None
    name = side.name if step.a is None or step.b is None or step.a.name == step.b.name else f"{step.a.name} / {step.b.name}"
    yield printable(f"{'≠' if step.differs else '='} {_where(step)}  {name}  {_times(step)}  {', '.join(step.differs)}").rstrip()
    if step.differs and step.a is not None and step.b is not None:
        for field in ("input", "output"):
            if field in step.differs:
                yield from _columns(getattr(step.a, field) or "", getattr(step.b, field) or "", column)
        for field in ("status", "asks", "cost"):
            if field in step.differs:
                yield from _columns(_field(step.a, field), _field(step.b, field), column)
    elif step.differs:
        own = _told(side)
        yield from _columns(own if step.a is not None else "", own if step.b is not None else "", column)


def _times(step: StepDiff) -> str:
    """Return latency and cost of both sides."""
    shown = [
        f"{side.latency_ms} ms" + (f" {format_usd(side.cost_micro_usd)}" if side.cost_micro_usd != 0 else "") if side else "–" for side in (step.a, step.b)
    ]
    return " / ".join(shown)


def _field(side: Side, name: str) -> str:
    value = side.cost_micro_usd if name == "cost" else getattr(side, name)
    return f"{name}: {format_usd(value) if name == 'cost' else ', '.join(value) if isinstance(value, tuple) else value}"


def _told(side: Side) -> str:
    asked = f"calls {', '.join(side.asks)}" if side.asks else ""
    return "\n".join(text for text in (side.input, side.output, asked) if text) or side.status


def _short(value: Any) -> str:
    return "(nothing)" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def _columns(left: str, right: str, column: int) -> Iterator[str]:
    both = [_fitted(text, column) for text in (left, right)]
    if left != right and [line.rstrip() for line in both[0]] == [line.rstrip() for line in both[1]]:
        both = [_fitted(text, column) for text in _escaped(left, right)]
    if len(both[0]) > LINES_MAX or len(both[1]) > LINES_MAX:
        both = _from_difference(*both)
    for one, other in zip_longest(*both, fillvalue=""):
        yield f"  {one.ljust(column - 2)}{_GAP}{other}".rstrip()


def _fitted(text: str, column: int) -> list[str]:
    return [piece for line in text.splitlines() for piece in (wrap(printable(line), column - 2, drop_whitespace=False) or [""])]


def _escaped(left: str, right: str) -> Iterator[str]:
    """Write two texts that look alike, such as a tab and spaces, with escapes, around the first character that differs."""
    at = next((n for n, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), min(len(left), len(right)))
    begin = max(at - ALIKE_CHARS, 0)
    return (f"character {at + 1}: {text[begin : at + ALIKE_CHARS]!a}" for text in (left, right))


def _from_difference(left: list[str], right: list[str]) -> list[list[str]]:
    """Cut two long texts to the lines around the first one that differs."""
    at = next((n for n, (one, other) in enumerate(zip_longest(left, right)) if one != other), 0)
    begin = max(at - 2, 0)
    return [[*(["…"] if begin else []), *lines[begin : begin + LINES_MAX], *(["…"] if len(lines) > begin + LINES_MAX else [])] for lines in (left, right)]
