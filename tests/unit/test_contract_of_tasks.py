"""Bad tasks get one clear sentence per fault, with a pointer to it."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.schemas.errors import ContractError
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Plan
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.task import parse_task, read_task


def task(**changes: Any) -> dict[str, Any]:
    return {"task_id": str(uuid4()), "type": "data", "objective": "count rows", **changes}


def steps(*rows: tuple[str, list[str]]) -> dict[str, Any]:
    return {"steps": [{"key": key, "type": "data", "objective": key, "depends_on": waits} for key, waits in rows]}


@pytest.mark.parametrize(
    ("change", "pointer", "text"),
    [
        ({"objective": ""}, "/objective", "at least 1 character"),
        ({"objective": "a\x00b"}, "/objective", "character 1 is NUL"),
        ({"objective": "a\ud800"}, "/objective", "lone surrogate"),
        ({"tenant": "a.b"}, "/tenant", "no dots, blanks or wildcards"),
        ({"tenant": "*"}, "/tenant", "wildcards"),
        ({"type": "da ta"}, "/type", "wildcards"),
        ({"timeout_seconds": 0}, "/timeout_seconds", "greater than or equal to 1"),
        ({"surprise": 1}, "/surprise", "there is no such field; known fields: schema_version, task_id, run_id,"),
        ({"timeoutSeconds": 1}, "/timeoutSeconds", "did you mean timeout_seconds? known fields: "),
        ({"budget": {"hard": 1}}, "/budget/hard", "there is no such field; known fields: hard_micro_usd, soft_micro_usd"),
        ({"attachments": [{"sise": 1}]}, "/attachments/0/sise", "did you mean size? known fields: name, hash, size, media_type"),
        ({"context": [{"outcome": {"sumary": "s"}}]}, "/context/0/outcome/sumary", "did you mean summary?"),
        ({"task_id": "42"}, "/task_id", "valid UUID"),
        ({"budget": {"hard_micro_usd": -1}}, "/budget/hard_micro_usd", "greater than or equal to 0"),
        ({"type": "run", "plan": steps(("a", ["b"]), ("b", ["a"]))}, "/plan", "the plan has a cycle through a -> b -> a"),
        ({"type": "run", "plan": steps(("a", ["c"]))}, "/plan", "step 'a' depends on unknown c; known steps: a"),
        ({"type": "run", "plan": steps(("a", []), ("a", []))}, "/plan", "used more than once: a"),
        ({"plan": steps(("a", []))}, "/", "a plan needs type 'run'"),
        ({"priority": "shadow"}, "/", "priority 'shadow' is for trials with a name whose effects are stubbed"),
        ({"priority": "shadow", "trial": {"name": "x", "effects": "allow"}}, "/", "whose effects are stubbed"),
        ({"attachments": [{"name": "../x", "hash": "0" * 64, "size": 1}]}, "/attachments/0/name", "relative path"),
    ],
)
def test_fault_is_named(change: dict[str, Any], pointer: str, text: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_task(task(**change))
    assert any((p or "/") == pointer and text in t for p, t in caught.value.problems), caught.value.problems


def test_a_list_is_not_called_empty_because_its_parts_are_wrong() -> None:
    plan = {"steps": [{"key": "a", "type": "data", "objective": "a", "needs": []}]}
    with pytest.raises(ContractError) as caught:
        parse_task(task(type="run", plan=plan))
    known = "key, type, objective, depends_on, attachments, constraints, timeout_seconds"
    assert caught.value.problems == (("/plan/steps/0/needs", f"there is no such field; known fields: {known}"),)
    with pytest.raises(ContractError, match="not a valid") as caught:
        parse_task(task(type="run", plan={"steps": []}))
    assert [pointer for pointer, _ in caught.value.problems] == ["/plan/steps"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"task_id"'])
def test_what_is_not_a_json_object_is_a_contract_error(data: bytes) -> None:
    with pytest.raises(ContractError):
        parse_task(data)


OUTCOME = {"summary": "s", "output": {"a": [1, 2.5, None]}, "artifacts": [{"name": "a", "hash": "0" * 64, "size": 3}], "flags": ["x"], "trust": "untrusted"}
GOAL = {
    "type": "run",
    "run_id": str(uuid4()),
    "context": [{"key": "a", "type": "data", "objective": "o", "outcome": OUTCOME}],
    "attachments": [{"name": "in/a.csv", "hash": "0" * 64, "size": 1}],
    "constraints": {"words_max": 4, "must_mention": ["a"]},
    "limits": {"turns_max": 4},
    "budget": {"hard_micro_usd": 0},
    "output_schema": {"type": "object"},
    "plan": {**steps(("a", []), ("b", ["a"]))},
    "synthesis": "planner",
    "trial": {"source": str(uuid4()), "prompts": {"*": "x"}},
}


@pytest.mark.parametrize("fields", [{}, GOAL, {"limits": {}, "budget": {}, "trial": {}, "output_schema": {}}])
def test_what_is_recorded_of_a_task_reads_as_the_same_task(fields: dict[str, Any]) -> None:
    given = task(**fields)
    accepted = parse_task(json.dumps(given))
    assert read_task(sparse_json(accepted)) == read_task(msgspec.json.encode(accepted)) == accepted
    assert read_task(sparse_json(accepted)[:-1] + b',"of_a_newer_program":1}') == accepted


def test_what_holds_its_default_is_not_recorded() -> None:
    accepted = parse_task(task(task_id=GOAL["run_id"], run_id=GOAL["run_id"], limits={"attempts_max": 3}, budget={}, trial={}, timeout_seconds=5))
    ids = f'"task_id":"{GOAL["run_id"]}","run_id":"{GOAL["run_id"]}"'
    assert sparse_json(accepted).decode() == f'{{{ids},"type":"data","objective":"count rows","timeout_seconds":5,"trial":{{}}}}'


def test_the_run_is_named_after_the_task_unless_it_has_a_name() -> None:
    given_id, run_id = str(uuid4()), str(uuid4())
    assert str(parse_task(task(task_id=given_id)).run_id) == given_id
    assert str(parse_task(task(task_id=given_id, run_id=run_id)).run_id) == run_id


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_raise_anything_else(data: bytes) -> None:
    try:
        parse_task(data)
    except ContractError:
        return


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)), min_size=1, max_size=6, unique_by=lambda row: row[0]))
def test_a_plan_is_accepted_exactly_when_its_steps_can_be_put_in_order(rows: list[tuple[str, list[str]]]) -> None:
    waits = dict(rows)
    placed: set[str] = set()
    while more := {k for k in waits if k not in placed and set(waits[k]) <= placed}:
        placed |= more
    try:
        parse(Plan, steps(*rows), "no plan")
    except ContractError:
        assert placed != set(waits)
    else:
        assert placed == set(waits)
