"""Read `crewlog submit --limit NAME=N`: where the tasks of a run stop, under the names that their errors give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crewlog.orchestrator.client import TaskFields
    from crewlog.schemas.plan import Plan
    from crewlog.schemas.task import AgentTask

TIMEOUT: Final = "timeout_seconds"
"""Not one of `Limits`: a field of the task itself, which people raise in the same way."""


def read_limits(given: Sequence[str], what: str | AgentTask | Plan) -> TaskFields:
    """Turn `NAME=N` into fields of a task. Limits of a task from a file stay where nothing else is given.

    Raises:
        ContractError: a limit has no such name, or no such value.
    """
    import msgspec

    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.parse import parse
    from crewlog.schemas.task import AgentTask, Limits

    names = (*Limits.__slots__, TIMEOUT)
    values: dict[str, int] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in names:
            raise ContractError(f"there is no limit {name!r}; there are: {', '.join(names)}")
        if not number.isascii() or not number.isdecimal():
            raise ContractError(f"limit {name} needs a whole number, got {number!r}; write --limit {name}=N")
        values[name] = int(number)
    fields: TaskFields = {}
    if TIMEOUT in values:
        fields["timeout_seconds"] = values.pop(TIMEOUT)
    if values:
        before = msgspec.to_builtins(what.limits) if isinstance(what, AgentTask) else {}
        fields["limits"] = parse(Limits, {**before, **values}, "this limit cannot be set")
    return fields
