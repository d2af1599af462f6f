"""What of an event stays in the clear: a decision about every field of every event, and forms that decode and fold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crewlog.schemas.codec import EVENT_TYPES, Unknown, decode, encode
from crewlog.schemas.public_form import PERSONAL, VEILS, public_form
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.task import AgentTask, parse_task

GOLDEN = Path(__file__).parent.parent / "golden" / "events.jsonl"

CLEAR = frozenset({
    *("tenant", "user", "type", "kind", "kinds", "key", "depends_on", "offered", "actor", "scope", "scopes", "caller", "flags", "code", "rule"),
    *("worker", "agent_version", "from_version", "taken_over_from", "tool", "tool_version", "effect_tool", "version", "call_id", "implementation", "undoes"),
    *("provider", "model", "models", "wire", "request_id", "source", "idempotency_key", "name", "made_by", "file", "cron", "zone", "status"),
    "setup.inline",  # the prompt of an agent is its maker's
})  # fmt: skip
"""Names of fields that stay in the clear wherever they hold text: who and what, never what about."""
NOT_OF_PERSONS = frozenset({
    *("AgentRegistered", "AgentStopped", "ProviderStateChanged", "McpToolPinned", "BudgetChanged", "CallSettled", "BillCorrected", "WorkerDrained"),
    *("DocumentIngested", "DocumentErased"),  # a document is the tenant's; what becomes of attached ones is told in docs/erasure.md
    *("RunStoodStill", "RunImported", "PersonErased"),  # texts of the program
    *("SchedulePaused", "ScheduleResumed", "ScheduleRemoved", "ScopePaused", "ScopeResumed", "ScopeQuarantined", "ScopeReleased"),  # of operators
})  # fmt: skip


def golden() -> list[tuple[str, int, bytes]]:
    rows = (line.split(b"\t") for line in GOLDEN.read_bytes().splitlines())
    return [(name.decode(), int(version), data) for name, version, data in rows]


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every free text, which golden lines mark with an accent, and the field it stands in."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, path)
    elif isinstance(value, str) and "é" in value:
        yield path.removeprefix("."), value


@pytest.mark.parametrize(("name", "version", "data"), golden())
def test_no_text_of_a_person_stays(name: str, version: int, data: bytes) -> None:
    event = decode(name, version, data)
    assert not isinstance(event, Unknown)
    public = encode(public_form(event))
    left = {path for path, _ in texts(msgspec.json.decode(public)) if path.rsplit(".", 1)[-1] not in CLEAR and ".".join(path.split(".")[-2:]) not in CLEAR}
    if name not in NOT_OF_PERSONS:
        assert not left, f"{name}: decide about {sorted(left)} in schemas/public_form.py"
    assert public_form(decode(name, version, public)) == decode(name, version, public), "the form of a form is itself"  # type: ignore[arg-type]


def test_every_veil_is_of_a_field_that_exists() -> None:
    for cls, veils in VEILS.items():
        assert cls.__name__ in EVENT_TYPES
        assert set(veils) <= set(cls.__struct_fields__)  # type: ignore[attr-defined]


def test_a_task_keeps_how_it_runs_and_not_what_it_is_about() -> None:
    task = parse_task({
        "task_id": "00000000-0000-4000-8000-000000000001",
        "type": "run",
        "user": "ada",
        "objective": "find Ada's doctor",
        "attachments": [{"name": "ada.txt", "hash": "0" * 64, "size": 1}],
        "constraints": {"must_mention": ["Ada"]},
        "output_schema": {"title": "Ada"},
        "plan": {"steps": [{"key": "one", "type": "code", "objective": "about Ada", "constraints": {"banned_phrases": ["Ada"]}}]},
        "budget": {"hard_micro_usd": 7},
    })  # fmt: skip
    event = RunSubmitted(task.run_id, "default", "ada", task.objective, msgspec.Raw(msgspec.json.encode(task)), "api")  # type: ignore[arg-type]
    public = public_form(event)
    assert isinstance(public, RunSubmitted)
    left: AgentTask = parse_task(bytes(public.task))
    assert b"Ada" not in encode(public)
    assert (left.objective, left.budget.hard_micro_usd, left.user) == (PERSONAL, 7, "ada")
    assert left.plan is not None
    assert [(step.key, step.type, step.objective) for step in left.plan.steps] == [("one", "code", PERSONAL)]


def test_what_is_not_personal_is_the_same_event() -> None:
    event = decode("ScopePaused", 1, b'{"scope":"kind/code","actor":"ops"}')
    assert not isinstance(event, Unknown)
    assert public_form(event) is event
