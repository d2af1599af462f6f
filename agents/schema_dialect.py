"""JSON Schema as each provider's strict mode takes it, and the way back.

One walk over a schema serves all dialects; what differs is in the tables. A constraint that a dialect cannot enforce is told to the model in the
description instead: every answer is validated against the original schema anyway. What would change the shape of the answer when it is
left out raises `NotStrict`, and the caller asks in another way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from crewlog.schemas.json_output import read_json

Dialect = Literal["anthropic", "openai", "gemini"]
Schema = dict[str, Any]

_SHAPES: Final = [
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "prefixItems",
    "contains",
    "unevaluatedProperties",
    "unevaluatedItems",
]
"""Keywords that change what an answer may look like, and that no dialect knows."""
_SILENT: Final = frozenset({"title", "examples", "$schema", "$id", "$comment", "$anchor", "deprecated", "readOnly", "writeOnly", "discriminator"})
"""Keywords that say nothing about an answer."""
_KEPT: Final[Mapping[Dialect, frozenset[str]]] = {
    "anthropic": frozenset({"format"}),
    "openai": frozenset(
        "format pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems".split()  # noqa: SIM905
    ),
    "gemini": frozenset({"format", "minimum", "maximum", "minItems", "maxItems"}),
}
"""Constraints that a dialect enforces."""
_FORMATS: Final = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_STRUCTURE: Final = frozenset({"type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "description", "$ref", "$defs"})
PROPERTIES_MAX: Final = 5_000
DEPTH_MAX: Final = 10
ENUM_VALUES_MAX: Final = 1_000
"""Limits of OpenAI's strict mode."""
OPTIONAL_MAX: Final = 24
UNIONS_MAX: Final = 16
"""Limits of Anthropic's structured output."""


class NotStrict(ValueError):
    """A dialect cannot express this schema; the text says what of it."""


def express(schema: Schema, dialect: Dialect) -> Schema:
    """Return the schema as the provider's strict mode takes it. The result is shared: do not change it.

    Args:
        schema: JSON Schema of an object, with references into itself at most.

    Raises:
        NotStrict: the dialect cannot say it.
    """
    return _expressed(msgspec.json.encode(schema), dialect)


@lru_cache(maxsize=512)
def _expressed(encoded: bytes, dialect: Dialect) -> Schema:
    root: Schema = json.loads(encoded)
    if "definitions" in root:
        root = json.loads(encoded.replace(b'"#/definitions/', b'"#/$defs/'))
        root["$defs"] = {**root.pop("definitions"), **root.get("$defs", {})}
    if "$ref" in root:
        root = {**resolve(root, root), "$defs": root.get("$defs", {})}
    if "properties" not in root or root.get("type", "object") != "object":
        raise NotStrict("the root is no object with properties")
    if "anyOf" in root or "oneOf" in root:
        raise NotStrict("the root is a union")
    _check_cycles(root, dialect)
    found = _walk(root, dialect)
    _check_limits(found, dialect)
    return found


def _walk(node: Any, dialect: Dialect) -> Schema:
    if not isinstance(node, dict) or not node:
        raise NotStrict("a value of any kind")
    if bad := next((word for word in _SHAPES if word in node), None):
        raise NotStrict(bad)
    node = _merged({key: value for key, value in node.items() if key not in _SILENT})
    if "$ref" in node:
        return _reference(node)
    kept: Schema = {key: value for key, value in node.items() if key in _STRUCTURE}
    told = []
    for key, value in node.items():
        if key in _STRUCTURE:
            continue
        if key in _KEPT[dialect] and (key != "format" or value in _FORMATS):
            kept[key] = value
        else:
            told.append(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    if told:
        kept["description"] = f"{kept['description']} ({'; '.join(told)})" if kept.get("description") else "; ".join(told)
    if "const" in kept and dialect == "gemini":
        kept["enum"] = [kept.pop("const")]
    return _parts(kept, dialect)


def _merged(node: Schema) -> Schema:
    """Replace what is only another word: `oneOf` for `anyOf`, and an `allOf` of one."""
    if "oneOf" in node:
        if "anyOf" in node:
            raise NotStrict("oneOf beside anyOf")
        node = {**{key: value for key, value in node.items() if key != "oneOf"}, "anyOf": node["oneOf"]}
    if "allOf" not in node:
        return node
    if len(node["allOf"]) != 1 or not isinstance(node["allOf"][0], dict):
        raise NotStrict("allOf")
    rest = {key: value for key, value in node.items() if key != "allOf"}
    return _merged({**{key: value for key, value in node["allOf"][0].items() if key not in _SILENT}, **rest})


def _reference(node: Schema) -> Schema:
    """A reference stands alone: what is said beside it goes around it."""
    if not set(node) <= {"$ref", "description", "default", "$defs"}:
        raise NotStrict("constraints beside $ref")
    alone: Schema = {"$ref": node["$ref"]}
    return {"anyOf": [alone], "description": node["description"]} if node.get("description") else alone


def _parts(node: Schema, dialect: Dialect) -> Schema:
    if node.get("type") == "object" or "properties" in node:
        node = _object(node, dialect)
    if "items" in node:
        node["items"] = _walk(node["items"], dialect)
    elif node.get("type") == "array" and dialect != "gemini":
        raise NotStrict("a list of anything")
    if "anyOf" in node:
        node["anyOf"] = [_walk(branch, dialect) for branch in node["anyOf"]]
    elif not {"type", "enum", "const"} & set(node):
        raise NotStrict("a value of any kind")
    if "$defs" in node:
        node["$defs"] = {name: _walk(defined, dialect) for name, defined in node["$defs"].items()}
    return node


def _object(node: Schema, dialect: Dialect) -> Schema:
    properties = node.get("properties")
    more = node.get("additionalProperties")
    if dialect == "gemini":
        if isinstance(more, dict) and more:
            node["additionalProperties"] = _walk(more, dialect)
        walked = {name: _walk(value, dialect) for name, value in (properties or {}).items()}
        return {**node, "type": "object", **({"properties": walked} if walked else {})}
    if more not in (None, False) or (properties is None and more is None):
        raise NotStrict("an object with names of any kind")
    required = set(node.get("required", ()))
    walked = {name: _walk(value, dialect) for name, value in (properties or {}).items()}
    if dialect == "openai":
        walked = {name: value if name in required else _nullable(value) for name, value in walked.items()}
        required = set(walked)
    return {**node, "type": "object", "properties": walked, "required": [name for name in walked if name in required], "additionalProperties": False}


def _nullable(node: Schema) -> Schema:
    if _takes_null(node, {}):
        return node
    types = node.get("type")
    if "anyOf" in node:
        return {**node, "anyOf": [*node["anyOf"], {"type": "null"}]}
    if types is None or "const" in node or "properties" in node:
        return {"anyOf": [node, {"type": "null"}]}
    widened = {**node, "type": [*(types if isinstance(types, list) else [types]), "null"]}
    return {**widened, "enum": [*node["enum"], None]} if "enum" in node else widened


def _takes_null(node: Any, root: Schema, seen: set[str] | None = None) -> bool:
    seen = set() if seen is None else seen
    if not isinstance(node, dict):
        return bool(node)
    if _was_seen(node, seen):
        return False
    node = resolve(node, root) if root else node
    types = node.get("type")
    if "enum" in node and None not in node["enum"]:
        return False
    if types == "null" or (isinstance(types, list) and "null" in types) or ("const" in node and node["const"] is None):
        return True
    return any(_takes_null(branch, root, seen) for key in ("anyOf", "oneOf", "allOf") for branch in node.get(key, ()))


def _was_seen(node: Schema, seen: set[str]) -> bool:
    """Say whether a search has followed this reference before. What it found then it finds again, and a schema of some lines can lead there more often
    than anybody can wait for: each reference is followed once."""
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return False
    is_known = reference in seen
    seen.add(reference)
    return is_known


def resolve(node: Schema, root: Schema) -> Schema:
    """Follow a reference into the same schema, and what is only a reference in an `allOf` of one.

    Raises:
        NotStrict: it leads nowhere, or around in a circle.
    """
    for _ in range(16):
        if "$ref" in node:
            node = _target(node["$ref"], root)
        elif len(node.get("allOf", ())) == 1 and "properties" not in node:
            node = node["allOf"][0]
        else:
            return node
    raise NotStrict("a reference that leads around in a circle")


def _target(reference: str, root: Schema) -> Schema:
    if not reference.startswith("#"):
        raise NotStrict(f"the reference {reference} to another document")
    found: Any = root
    for part in filter(None, reference[1:].split("/")):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise NotStrict(f"the reference {reference}, which leads nowhere")
    return found


def _check_cycles(root: Schema, dialect: Dialect) -> None:
    """Anthropic takes no recursion at all, Gemini none that every value would have to follow."""

    followed: set[str] = set()

    def visit(node: Any, open_: frozenset[str]) -> None:
        if not isinstance(node, dict):
            return
        if reference := node.get("$ref"):
            target = _target(reference, root)
            if reference in open_ and dialect != "openai":
                raise NotStrict(f"the recursion through {reference}")
            if not _was_seen(node, followed):
                visit(target, open_ | {reference})
            return
        required = set(node.get("required", ()))
        for name, value in node.get("properties", {}).items():
            if dialect != "gemini" or name in required:
                visit(value, open_)
        for key in ("items", "additionalProperties") if dialect != "gemini" else ():
            visit(node.get(key), open_)
        for key in ("anyOf", "oneOf", "allOf"):
            for branch in node.get(key, ()) if dialect != "gemini" or key == "allOf" else ():
                visit(branch, open_)

    visit(root, frozenset({"#"}))
    for name in root.get("$defs", {}):
        visit({"$ref": f"#/$defs/{name}"}, frozenset({"#"}))


def _nodes(node: Any, depth: int = 0) -> Iterator[tuple[Schema, int]]:
    """Every schema in a schema, with the objects around it."""
    if not isinstance(node, dict):
        return
    yield node, depth
    below = depth + ("properties" in node)
    for child in (*node.get("properties", {}).values(), *node.get("anyOf", ()), node.get("items"), node.get("additionalProperties")):
        yield from _nodes(child, below)
    for child in node.get("$defs", {}).values():
        yield from _nodes(child, depth)


def _check_limits(found: Schema, dialect: Dialect) -> None:
    nodes = list(_nodes(found))
    if dialect == "openai":
        counts = (
            ("properties", sum(len(node.get("properties", ())) for node, _ in nodes), PROPERTIES_MAX),
            ("levels of objects", max(depth for _, depth in nodes), DEPTH_MAX),
            ("values of enums", sum(len(node.get("enum", ())) for node, _ in nodes), ENUM_VALUES_MAX),
        )
    elif dialect == "anthropic":
        optional = sum(len(node["properties"]) - len(node["required"]) for node, _ in nodes if "properties" in node)
        unions = sum(len(node.get("anyOf", ())) > 1 or isinstance(node.get("type"), list) for node, _ in nodes)
        counts = (("optional properties", optional, OPTIONAL_MAX), ("unions", unions, UNIONS_MAX), ("", 0, 0))
    else:
        return
    for what, count, most in counts:
        if count > most:
            raise NotStrict(f"{count} {what}, the most are {most}")


def prune(value: Any, schema: Schema, root: Schema | None = None) -> Any:
    """Leave out the nulls that stand for optional properties, so that the value fits the original schema again.

    Args:
        schema: the original schema of the value.
        root: where its references lead; by default the schema itself.
    """
    root = root if root is not None else schema
    schema = _branch(value, schema, root)
    if isinstance(value, list):
        return [prune(item, schema["items"], root) for item in value] if isinstance(schema.get("items"), dict) else value
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    required = schema.get("required", ())
    return {
        name: prune(item, properties[name], root) if isinstance(properties.get(name), dict) else item
        for name, item in value.items()
        if item is not None or name in required or name not in properties or _takes_null(properties[name], root)
    }


def _branch(value: Any, schema: Schema, root: Schema) -> Schema:
    """Choose the branch of a union that a value was made by."""
    for _ in range(16):
        try:
            schema = resolve(schema, root)
        except NotStrict:
            return {}
        branches = [branch for key in ("anyOf", "oneOf") for branch in schema.get(key, ()) if isinstance(branch, dict)]
        if not branches or "properties" in schema:
            return schema
        schema = next((branch for branch in branches if _fits(value, branch, root)), {})
    return schema


def _fits(value: Any, branch: Schema, root: Schema, seen: set[str] | None = None) -> bool:
    seen = set() if seen is None else seen
    if _was_seen(branch, seen):
        return False
    try:
        branch = resolve(branch, root)
    except NotStrict:
        return False
    inner = [one for key in ("anyOf", "oneOf") for one in branch.get(key, ()) if isinstance(one, dict)]
    if inner:
        return any(_fits(value, one, root, seen) for one in inner)
    if isinstance(value, list):
        items = branch.get("items")
        return branch.get("type") == "array" and (not isinstance(items, dict) or all(_fits(item, items, root) for item in value))
    if not isinstance(value, dict):
        return not isinstance(branch.get("properties"), dict) and branch.get("type") not in ("array", "object")
    properties = branch.get("properties")
    if not isinstance(properties, dict):
        return branch.get("type") == "object"
    if not set(value) <= set(properties) or not set(branch.get("required", ())) <= set(value):
        return False
    # a null may stand for any optional property, so it tells nothing
    named = ((value[name], one) for name, one in properties.items() if value.get(name) is not None and isinstance(one, dict))
    return all(("const" not in one or one["const"] == item) and ("enum" not in one or item in one["enum"]) for item, one in named)


def original(text: str, schema: Schema) -> str:
    """Return a structured answer as the original schema wants it; a text without a JSON value is returned as it is, for whoever validates it."""
    try:
        found = read_json(text)
        pruned = prune(found, schema)
    except (ValueError, RecursionError):
        return text
    return text if pruned == found and _is_json(text) else json.dumps(pruned, ensure_ascii=False)


def without_nulls(arguments: str, schema: Schema | None) -> str:
    """Return a call's arguments without the nulls by which strict mode leaves optional ones out; broken JSON stays as it is."""
    if schema is None or "null" not in arguments:
        return arguments
    try:
        found = json.loads(arguments)
        pruned = prune(found, schema)
    except (ValueError, RecursionError):
        return arguments
    return arguments if pruned == found else json.dumps(pruned, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def instruction(schema: Schema) -> str:
    """Ask in words for an answer that no strict mode enforces."""
    return (
        "Answer with one JSON value and nothing else: no fence, no explanation. It must satisfy this JSON Schema:\n"
        + msgspec.json.encode(schema, order="deterministic").decode()
    )
