"""Arguments of a tool whose schema is JSON Schema from elsewhere: the same two methods a pydantic model has, so that one code path runs both.

The schema is not trusted: one regular expression can keep a process busy for hours, and references can double with each step. So only
keywords whose cost is bounded by schema and arguments are evaluated here; everything else is left to whoever runs the tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any, Final

from crewlog.schemas.errors import ContractError
from crewlog.schemas.text import find_bad, shorten

ARGUMENT_BYTES_MAX: Final = 256 * 1024
PROBLEMS_MAX: Final = 5

_PLAIN: Final = frozenset(
    {"type", "required", "enum", "const", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"}
)
_ONE: Final = frozenset({"items", "additionalProperties"})
_SEVERAL: Final = frozenset({"anyOf", "allOf"})


class JsonSchemaArgs:
    """Checks arguments against a JSON Schema of an object and hands them on as a dictionary.

    Raises:
        ContractError: the schema is no JSON Schema of an object.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        # imported here: most crews have no such tool, and the library takes a while to load
        import jsonschema

        if schema.get("type") != "object":
            raise ContractError(f"the schema of a tool's arguments must have type 'object', got {shorten(repr(schema.get('type')), 80)}")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except (jsonschema.SchemaError, RecursionError) as error:
            raise ContractError(f"not a valid JSON Schema: {shorten(str(getattr(error, 'message', error)), 300)}") from None
        self._schema = dict(schema)

    def model_json_schema(self) -> dict[str, Any]:
        """Return the schema as it came."""
        return deepcopy(self._schema)

    def model_validate_json(self, text: str) -> dict[str, Any]:
        """Return the arguments.

        Raises:
            ContractError: with every problem and its place.
        """
        import jsonschema

        arguments = _parse(text)
        faults = sorted(jsonschema.Draft202012Validator(self._evaluated).iter_errors(arguments), key=lambda fault: (fault.json_path, fault.message))
        if faults:
            problems = tuple(("".join(f"/{part}" for part in fault.absolute_path), shorten(fault.message, 300)) for fault in faults[:PROBLEMS_MAX])
            raise ContractError("they do not fit its schema", problems=problems)
        return arguments

    @cached_property
    def _evaluated(self) -> Any:
        return _bounded(self._schema)


def _parse(text: str) -> dict[str, Any]:
    if len(text) > ARGUMENT_BYTES_MAX:
        raise ContractError(f"they have {len(text)} characters; at most {ARGUMENT_BYTES_MAX} are passed on")
    try:
        arguments: Any = json.loads(text, parse_constant=_refuse_constant)
        is_bad = any(find_bad(each) is not None for each in strings_in(arguments))
    except RecursionError:
        raise ContractError("they are nested too deeply") from None
    except ValueError as error:
        raise ContractError(f"they are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ContractError(f"they must be a JSON object, got {type(arguments).__name__}")
    if is_bad:
        raise ContractError("they hold NUL or a lone surrogate")
    return arguments


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of a JSON value, names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from strings_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings_in(each)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _bounded(schema: Any) -> Any:
    """Copy a schema without what is not evaluated here: patterns, formats, references and the rarer keywords."""
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key in _PLAIN}
    kept |= {key: _bounded(value) for key, value in schema.items() if key in _ONE and not (key == "additionalProperties" and "patternProperties" in schema)}
    kept |= {key: [_bounded(each) for each in value] for key, value in schema.items() if key in _SEVERAL}
    if "properties" in schema:
        kept["properties"] = {name: _bounded(value) for name, value in schema["properties"].items()}
    return kept
