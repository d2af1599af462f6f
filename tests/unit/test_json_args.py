"""Arguments described by a JSON Schema that nobody trusts: checked as far as that is bounded, refused in words a model can act on."""

from __future__ import annotations

from typing import Any

import pytest
from support.toolbox import bench

from crewlog.agents.json_args import ARGUMENT_BYTES_MAX, JsonSchemaArgs
from crewlog.agents.spec import ToolContext, ToolOutput, ToolSpec
from crewlog.agents.tool_runner import arguments_problem, run_tool
from crewlog.agents.tool_ways import ToolHealth
from crewlog.events.clock import SystemClock
from crewlog.schemas.errors import ConfigError, ContractError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "pattern": "(a+)+$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "units": {"enum": ["c", "f"]},
        "where": {"$ref": "#/$defs/place"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object"}},
}


async def echo(context: ToolContext, args: dict[str, Any]) -> ToolOutput:
    return ToolOutput(repr(sorted(args.items())))


def tool(schema: dict[str, Any] = SCHEMA) -> ToolSpec:
    return ToolSpec("weather", "Tells the weather.", JsonSchemaArgs(schema), echo, effect="read")


def test_a_model_is_shown_the_schema_as_it_came() -> None:
    assert tool().definition().parameters == SCHEMA


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("{}", "'city' is a required property"),
        ('{"city": ""}', "/city: '' should be non-empty"),
        ('{"city": "x", "days": 9}', "/days: 9 is greater than the maximum of 7"),
        ('{"city": "x", "days": "two"}', "/days: 'two' is not of type 'integer'"),
        ('{"city": "x", "units": "k"}', "/units: 'k' is not one of"),
        ('{"city": "x", "tags": ["a", 1]}', "/tags/1: 1 is not of type 'string'"),
        ('{"city": "x", "more": 1}', "'more' was unexpected"),
        ("[1]", "must be a JSON object, got list"),
        ('"x"', "must be a JSON object, got str"),
        ("{city: x}", "they are not JSON"),
        ('{"city": "x", "days": NaN}', "NaN is not JSON"),
        ('{"city": "\\u0000"}', "NUL or a lone surrogate"),
        ('{"city": "\\ud800"}', "NUL or a lone surrogate"),
        ('{"city": ' + "[" * 100_000, "nested too deeply"),
        ('{"city": "' + "x" * ARGUMENT_BYTES_MAX + '"}', "at most 262144 are passed on"),
    ],
)
def test_arguments_that_do_not_fit(arguments: str, problem: str) -> None:
    text = arguments_problem(tool(), arguments)
    assert text is not None
    assert text.startswith("the arguments of weather are not valid: ")
    assert problem in text


async def test_good_arguments_reach_the_tool_as_a_dictionary() -> None:
    # a pattern that would take for ever and a reference are left to whoever runs the tool
    arguments = '{"city": "' + "a" * 60 + '!", "where": 7}'
    assert arguments_problem(tool(), arguments) is None
    ran = await run_tool(tool(), (await bench()).context(), arguments, SystemClock(), ToolHealth())
    assert (ran.is_ok, ran.output.content) == (True, f"[('city', '{'a' * 60}!'), ('where', 7)]")


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({}, "must have type 'object', got None"),
        ({"type": "string"}, "must have type 'object', got 'string'"),
        ({"type": "object", "properties": [1]}, "not a valid JSON Schema"),
        ({"type": "object", "properties": {"a": {"type": "strang"}}}, "not a valid JSON Schema"),
    ],
)
def test_what_is_no_schema_of_arguments(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        JsonSchemaArgs(schema)


def test_schemas_that_multiply_cost_nothing() -> None:
    doubling: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": doubling}
    assert arguments_problem(tool(schema), '{"a": 1}') is None


@pytest.mark.parametrize("name", ["", "1st", "with blank", "dotted.name", "a" * 65, "ümlaut", "a\n"])
def test_a_tool_has_a_name_every_provider_accepts(name: str) -> None:
    with pytest.raises(ConfigError, match="a tool cannot be called"):
        ToolSpec(name, "", JsonSchemaArgs(SCHEMA), echo)
