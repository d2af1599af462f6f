"""Schemas in the dialects of the providers: what comes out obeys their rules, and answers find back to the original schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.schema_dialect import Dialect, NotStrict, express, original, prune, without_nulls

DIALECTS: tuple[Dialect, ...] = ("anthropic", "openai", "gemini")
Schema = dict[str, Any]

# --- a small checker of what each provider takes

_WORDS: dict[str, set[str]] = {
    "anthropic": {"format"},
    "openai": set("format pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems".split()),  # noqa: SIM905
    "gemini": {"format", "minimum", "maximum", "minItems", "maxItems"},
}
_STRUCTURE = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "description", "$ref", "$defs"}


def faults(node: Any, dialect: str, *, is_root: bool = True) -> Iterator[str]:
    if not isinstance(node, dict):
        yield f"{node!r} is no schema"
        return
    allowed = _STRUCTURE | _WORDS[dialect] | (set() if dialect == "gemini" else {"const"})
    yield from (f"{word} is not known" for word in set(node) - allowed)
    if "$ref" in node and set(node) != {"$ref"}:
        yield "$ref is not alone"
    if is_root and ("anyOf" in node or node.get("type") != "object"):
        yield "the root is no plain object"
    if node.get("type") == "object" and dialect != "gemini":
        if node.get("additionalProperties") is not False:
            yield "an object is open"
        if dialect == "openai" and set(node["required"]) != set(node["properties"]):
            yield "a property is optional"
    if not set(node.get("required", ())) <= set(node.get("properties", {})):
        yield "required names what is no property"
    children = [*node.get("properties", {}).values(), *node.get("anyOf", ()), *node.get("$defs", {}).values()]
    more = node.get("additionalProperties")
    for child in [*children, *([node["items"]] if "items" in node else []), *([more] if isinstance(more, dict) and more else [])]:
        yield from faults(child, dialect, is_root=False)


# --- schemas with values: each value as the original schema has it, and as strict mode makes the model write it


class Shape(NamedTuple):
    schema: Schema
    pairs: st.SearchStrategy[tuple[Any, Any]]


def same(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return values.map(lambda value: (value, value))


LEAVES = st.sampled_from(
    [
        Shape({"type": "string"}, same(st.text(max_size=5))),
        Shape({"type": "string", "minLength": 1, "title": "T", "default": "x"}, same(st.text(min_size=1, max_size=5))),
        Shape({"type": "integer", "minimum": 0, "exclusiveMaximum": 9}, same(st.integers(0, 8))),
        Shape({"type": "number", "description": "How much."}, same(st.floats(0, 1))),
        Shape({"type": "boolean"}, same(st.booleans())),
        Shape({"type": "string", "enum": ["a", "b"]}, same(st.sampled_from(["a", "b"]))),
        Shape({"const": 7, "type": "integer"}, same(st.just(7))),
        Shape({"type": ["string", "null"]}, same(st.none() | st.text(max_size=3))),
    ]
)


def listed(inner: Shape) -> Shape:
    return Shape(
        {"type": "array", "items": inner.schema, "maxItems": 3},
        st.lists(inner.pairs, max_size=3).map(lambda pairs: ([a for a, _ in pairs], [b for _, b in pairs])),
    )


def nullable(inner: Shape) -> Shape:
    return Shape({"anyOf": [inner.schema, {"type": "null"}]}, inner.pairs | st.just((None, None)))


def takes_null(schema: Schema) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(None)


def object_of(properties: dict[str, tuple[Shape, bool]], tag: str = "") -> Shape:
    schema: Schema = {"type": "object", "properties": {name: shape.schema for name, (shape, _) in properties.items()}}
    schema["required"] = [name for name, (_, is_required) in properties.items() if is_required]
    if tag:
        schema["properties"] = {"kind": {"const": tag, "type": "string"}, **schema["properties"]}
        schema["required"] = ["kind", *schema["required"]]

    def values(draw: Callable[[Any], Any]) -> tuple[Any, Any]:
        one, strict = ({"kind": tag}, {"kind": tag}) if tag else ({}, {})
        for name, (shape, is_required) in properties.items():
            if is_required or draw(st.booleans()):
                one[name], strict[name] = draw(shape.pairs)
            else:
                strict[name] = None
                if takes_null(shape.schema):
                    one[name] = None  # null and left out mean the same here, and nobody can tell them apart
        return one, strict

    return Shape(schema, st.composite(values)())


def objects(inner: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    return st.dictionaries(st.sampled_from(["x", "y", "z"]), st.tuples(inner, st.booleans()), min_size=1, max_size=3).map(object_of)


def unions(inner: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    fields = st.dictionaries(st.sampled_from(["x", "y"]), st.tuples(inner, st.booleans()), max_size=2)

    def union(left: Any, right: Any, word: str) -> Shape:
        one, other = object_of(left, "one"), object_of(right, "other")
        return Shape({word: [one.schema, other.schema]}, one.pairs | other.pairs)

    return st.builds(union, fields, fields, st.sampled_from(["anyOf", "oneOf"]))


SHAPES = st.recursive(LEAVES, lambda inner: inner.map(listed) | inner.map(nullable) | objects(inner) | unions(inner), max_leaves=6)
ROOTS = objects(SHAPES)


@given(ROOTS, st.sampled_from(DIALECTS))
def test_what_comes_out_obeys_the_rules_and_the_schema_is_left_as_it_was(shape: Shape, dialect: Dialect) -> None:
    before = copy.deepcopy(shape.schema)
    try:
        expressed = express(shape.schema, dialect)
    except NotStrict:
        assert dialect == "anthropic" or depth(shape.schema) > 5, "only too many unions or too deep a nesting is a reason here"
        return
    assert shape.schema == before
    assert not list(faults(expressed, dialect))
    jsonschema.Draft202012Validator.check_schema(expressed)
    assert express(json.loads(json.dumps(shape.schema)), dialect) == expressed


@given(ROOTS, st.data())
def test_a_strict_answer_finds_back_to_the_original_schema(shape: Shape, data: st.DataObject) -> None:
    value, strict = data.draw(shape.pairs)
    jsonschema.validate(strict, express(shape.schema, "openai"))
    pruned = prune(strict, shape.schema)
    assert pruned == value
    jsonschema.validate(pruned, shape.schema)
    assert json.loads(original(json.dumps(strict), shape.schema)) == value
    assert json.loads(without_nulls(json.dumps(strict), shape.schema)) == value


@given(ROOTS, st.data(), st.sampled_from(["anthropic", "gemini"]))
def test_other_dialects_take_the_values_as_they_are(shape: Shape, data: st.DataObject, dialect: Dialect) -> None:
    value, _ = data.draw(shape.pairs)
    try:
        jsonschema.validate(value, express(shape.schema, dialect))
    except NotStrict:
        return
    assert prune(value, shape.schema) == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_an_answer_of_any_shape_is_survived(value: Any) -> None:
    schema = Trip.model_json_schema()
    text = json.dumps(value)
    assert isinstance(original(text, schema), str)
    prune(value, schema)


@given(st.text())
def test_text_of_any_kind_is_survived(text: str) -> None:
    original(text, Trip.model_json_schema())


def depth(node: Any) -> int:
    if isinstance(node, dict):
        return ("properties" in node) + max((depth(child) for child in node.values()), default=0)
    return max((depth(child) for child in node), default=0) if isinstance(node, list) else 0


# --- schemas as pydantic makes them


class Train(BaseModel):
    kind: Literal["train"]
    number: int | None = None


class Flight(BaseModel):
    kind: Literal["flight"]
    gate: str = "A1"


class Trip(BaseModel):
    """A trip."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=20, description="What it is called.")]
    legs: list[Annotated[Train | Flight, Field(discriminator="kind")]]
    days: Annotated[int, Field(ge=1, le=30)] = 3
    mood: Literal["good", "bad"] | None = None
    main: Train | None = Field(default=None, description="The longest leg.")


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Bag(BaseModel):
    counts: dict[str, int]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pydantic_models_are_expressed(dialect: Dialect) -> None:
    expressed = express(Trip.model_json_schema(), dialect)
    assert not list(faults(expressed, dialect))
    assert "default: 3" in json.dumps(expressed)


def test_an_answer_to_a_pydantic_model_comes_back() -> None:
    trip = Trip(name="South", legs=[Train(kind="train", number=5), Flight(kind="flight")])
    strict = {"name": "South", "legs": [{"kind": "train", "number": 5}, {"kind": "flight", "gate": None}], "days": None, "mood": None, "main": None}
    jsonschema.validate(strict, express(Trip.model_json_schema(), "openai"))
    assert Trip.model_validate(prune(strict, Trip.model_json_schema())) == trip


def test_recursion_is_for_those_who_take_it() -> None:
    expressed = express(Node.model_json_schema(), "openai")
    assert not list(faults(expressed, "openai"))
    jsonschema.validate({"name": "a", "children": [{"name": "b", "children": None}]}, expressed)
    assert prune({"name": "a", "children": [{"name": "b", "children": None}]}, Node.model_json_schema()) == {"name": "a", "children": [{"name": "b"}]}
    assert not list(faults(express(Node.model_json_schema(), "gemini"), "gemini"))
    with pytest.raises(NotStrict, match="recursion"):
        express(Node.model_json_schema(), "anthropic")


def test_a_map_is_for_gemini_only() -> None:
    assert express(Bag.model_json_schema(), "gemini")["properties"]["counts"]["additionalProperties"] == {"type": "integer"}
    for dialect in ("anthropic", "openai"):
        with pytest.raises(NotStrict, match="names of any kind"):
            express(Bag.model_json_schema(), dialect)


REFUSED: list[tuple[Schema, str]] = [
    ({"type": "array", "items": {"type": "string"}}, "no object"),
    ({"type": "object"}, "no object with properties"),
    ({"type": "object", "properties": {"a": {}}}, "any kind"),
    ({"type": "object", "properties": {"a": True}}, "any kind"),
    ({"type": "object", "properties": {"a": {"type": "array"}}}, "a list of anything"),
    ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "not"),
    ({"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"type": "integer"}]}}}, "allOf"),
    ({"type": "object", "properties": {"a": {"$ref": "https://example.org/s"}}}, "another document"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b", "minLength": 2}}, "$defs": {"b": {"type": "string"}}}, "beside"),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]}, "union"),
    ({"type": "object", "properties": {"a": {"type": "array", "prefixItems": [{"type": "string"}]}}}, "prefixItems"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
def test_what_cannot_be_said_is_named(schema: Schema, reason: str, dialect: Dialect) -> None:
    with pytest.raises(NotStrict, match=reason):
        express(schema, dialect)


def test_limits_of_the_providers_are_known_before_they_refuse() -> None:
    many = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(30)}}
    with pytest.raises(NotStrict, match="30 optional properties"):
        express(many, "anthropic")
    enums = {"type": "object", "properties": {"e": {"type": "string", "enum": [str(n) for n in range(1_001)]}}}
    with pytest.raises(NotStrict, match="values of enums"):
        express(enums, "openai")
    deep: Schema = {"type": "string"}
    for _ in range(12):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(NotStrict, match="levels of objects"):
        express(deep, "openai")


@pytest.mark.parametrize("dialect", ["anthropic", "openai", "gemini"])
def test_references_that_double_with_each_step_are_followed_once(dialect: Dialect) -> None:
    def twice(below: str) -> dict[str, Any]:
        names = {"x": {"$ref": f"#/$defs/{below}"}, "y": {"$ref": f"#/$defs/{below}"}}
        return {"type": "object", "properties": names, "required": ["x", "y"], "additionalProperties": False}

    defined = {f"a{n}": twice(f"a{n + 1}") for n in range(60)} | {"a60": {"type": "string"}}
    assert express({**twice("a0"), "$defs": defined}, dialect)["$defs"]["a60"] == {"type": "string"}


def test_a_null_is_left_out_whatever_the_union_that_does_not_take_it_leads_to() -> None:
    defined = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)} | {"a60": {"type": "string"}}
    schema = {"type": "object", "properties": {"r": {"$ref": "#/$defs/a0"}}, "$defs": defined}
    assert without_nulls('{"r": null}', schema) == "{}"
    assert without_nulls('{"r": [null]}', schema) == '{"r": [null]}'
    assert without_nulls('{"r": null}', {**schema, "$defs": defined | {"a60": {"type": ["string", "null"]}}}) == '{"r": null}'
