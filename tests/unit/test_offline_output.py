"""Structured answers by rules: filled from what the conversation holds, and refused with the names of what it does not hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crewlog.agents.offline import OfflineModel
from crewlog.schemas.blocks import Message, ModelRequest, OutputFormat, Text, ToolDef, ToolResult, ToolUse

TOOLS = (ToolDef("look", "Look.", {"type": "object", "properties": {}}), ToolDef("submit_findings", "Hand in.", {"type": "object", "properties": {}}))
FINDINGS = {"summary": "The warranty lasts two years. It covers 85 percent of the price.", "confidence": "high"}


def schema(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required, "additionalProperties": False}


async def ask(wanted: dict[str, Any], *results: tuple[str, Any, str]) -> str:
    """Ask for an output behind calls of (tool, arguments, result)."""
    uses = tuple(ToolUse(f"c{n}", tool, json.dumps(arguments)) for n, (tool, arguments, _) in enumerate(results))
    told = tuple(ToolResult(f"c{n}", tool, result) for n, (tool, _, result) in enumerate(results))
    messages = (Message("user", (Text("Find out about the warranty"),)), Message("assistant", uses), Message("user", (*told, Text("Now as JSON."))))
    request = ModelRequest("rules-1", "", TOOLS, messages, 500, OutputFormat("result", wanted))
    reply = await OfflineModel().complete(request, timeout_s=1)
    again = await OfflineModel().complete(request, timeout_s=1)
    assert reply == again
    assert reply.stop == "end_turn"
    (block,) = reply.content
    assert isinstance(block, Text), "no tool is called for a structured answer"
    return block.text


async def test_fields_are_filled_from_what_was_handed_in() -> None:
    wanted = schema(
        summary={"type": "string"},
        confidence={"enum": ["low", "high"]},
        percent={"type": "number", "minimum": 0},
        covers={"type": "boolean"},
        years={"type": ["integer", "null"]},
    )
    found = json.loads(await ask(wanted, ("submit_findings", FINDINGS, "accepted")))
    assert found == {"summary": FINDINGS["summary"], "confidence": "high", "percent": 85.0, "covers": True, "years": None}


async def test_json_of_a_tool_is_used_by_name_and_by_label() -> None:
    figures = {"rows": 344, "figures": [{"label": "Mean price", "value": 12.5}, {"label": "maximum", "value": 20}]}
    wanted = schema(rows={"type": "integer"}, mean_price={"type": "number"})
    assert json.loads(await ask(wanted, ("look", {}, json.dumps(figures)))) == {"rows": 344, "mean_price": 12.5}


async def test_a_list_of_objects_is_cut_to_what_is_asked_for() -> None:
    rows = [{"name": "a", "n": 1, "more": True}, {"name": "b", "n": 2, "more": False}]
    item = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["name"], "additionalProperties": False}
    found = json.loads(await ask(schema(people={"type": "array", "items": item, "maxItems": 5}), ("look", {}, json.dumps({"rows": rows}))))
    assert found == {"people": [{"name": "a", "n": 1}, {"name": "b", "n": 2}]}


async def test_listed_lines_fill_a_list_of_texts() -> None:
    found = json.loads(await ask(schema(points={"type": "array", "items": {"type": "string"}}), ("look", {}, "Two:\n- first\n- second")))
    assert found == {"points": ["first", "second"]}


async def test_nested_objects_and_references() -> None:
    wanted = schema(result={"$ref": "#/$defs/Result"}) | {"$defs": {"Result": schema(years={"type": "integer"}, status={"enum": ["open", "closed"]})}}
    assert json.loads(await ask(wanted, ("look", {}, "Years: 2. The case is closed."))) == {"result": {"years": 2, "status": "closed"}}


async def test_a_negation_is_understood() -> None:
    assert json.loads(await ask(schema(accepted={"type": "boolean"}), ("look", {}, "The offer was not accepted."))) == {"accepted": False}


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (schema(price={"type": "number"}, summary={"type": "string"}), "price"),
        (schema(verdict={"enum": ["yes", "no way"]}), "verdict"),
        (schema(detail=schema(colour={"type": "string"})), "detail.colour"),
        (schema(rows={"type": "array", "items": {"type": "integer"}}), "rows"),
    ],
)
async def test_what_cannot_be_filled_is_named_and_nothing_is_made_up(wanted: dict[str, Any], named: str) -> None:
    said = await ask(wanted, ("look", {}, "The warranty lasts two years."))
    assert said == f"The offline rules cannot fill these fields from what the tools returned: {named}."


async def test_optional_fields_without_evidence_are_left_out() -> None:
    assert json.loads(await ask(schema([], price={"type": "number"}), ("look", {}, "Nothing."))) == {}


async def test_a_value_out_of_bounds_is_no_evidence() -> None:
    assert "cannot fill" in await ask(schema(years={"type": "integer", "minimum": 5}), ("look", {}, "It lasts 2 years."))


async def test_what_announces_a_tool_call_is_no_answer() -> None:
    talk = (
        Message("user", (Text("How long does the warranty last?"),)),
        Message("assistant", (Text("I look which documents there are."), ToolUse("c1", "look", "{}"))),
        Message("user", (ToolResult("c1", "look", "nothing"),)),
        Message("assistant", (ToolUse("c2", "submit_findings", json.dumps(FINDINGS)),)),
        Message("user", (ToolResult("c2", "submit_findings", "Accepted."),)),
    )
    request = ModelRequest("rules-1", "", TOOLS, talk, 500, OutputFormat("out", schema(report={"type": "string"})))
    reply = await OfflineModel().complete(request, timeout_s=1)
    (block,) = reply.content
    assert isinstance(block, Text)
    assert json.loads(block.text) == {"report": FINDINGS["summary"]}
