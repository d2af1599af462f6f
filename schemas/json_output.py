"""Output as JSON: reading the value a model wrote, and saying what keeps a value from satisfying a schema. Used by agents and by the critic."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from crewlog.schemas.text import shorten

PROBLEMS_MAX: Final = 5
PROBLEM_CHARS_MAX: Final = 300
STARTS_MAX: Final = 16
"""Places in a text where a value is looked for: each may cost a pass over the rest."""
_FENCED: Final = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def schema_problems(output: Any, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what keeps a value from satisfying a schema that `check_schema` of the critic has let in, in a fixed order; empty when it does.

    At most `PROBLEMS_MAX` are named, each with its JSON path and at most `PROBLEM_CHARS_MAX` characters.
    """
    # imported here: most runs bring no schema, and the library takes a while to load
    import jsonschema
    import referencing
    from referencing.exceptions import Unresolvable

    # an empty registry: the library would otherwise fetch references from the network
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    try:
        faults = sorted(validator.iter_errors(output), key=lambda fault: (fault.json_path, fault.message))
    except (Unresolvable, RecursionError) as error:
        return (f"the output cannot be checked against the schema: {shorten(str(error), 200)}",)
    return tuple(f"{fault.json_path}: {shorten(fault.message, PROBLEM_CHARS_MAX)}" for fault in faults[:PROBLEMS_MAX])


def answer_problems(text: str, schema: Mapping[str, Any], *, bytes_max: int) -> tuple[str, ...]:
    """Return what keeps a model's answer from being JSON that satisfies a schema, in words for the model; empty when nothing does.

    Args:
        bytes_max: longest answer, in UTF-8 bytes.
    """
    if (size := len(text.encode())) > bytes_max:
        return (f"the answer has {size} bytes, at most {bytes_max} are allowed",)
    try:
        return schema_problems(read_json(text), schema)
    except ValueError as error:
        return (str(error),)


def read_json(text: str) -> Any:
    """Return the JSON value of an answer: all of the text, a fenced block in it, or the first object or array that stands in it.

    Raises:
        ValueError: there is none.
    """
    fenced = _FENCED.search(text)
    for whole in (text, *((fenced[1],) if fenced else ())):
        try:
            return _loads(whole)
        except (ValueError, RecursionError):
            continue
    decoder = json.JSONDecoder(parse_constant=_refuse)
    for found in islice(re.finditer(r"[{\[]", text), STARTS_MAX):
        try:
            return decoder.raw_decode(text, found.start())[0]
        except (ValueError, RecursionError):
            continue
    raise ValueError("the answer holds no JSON value")


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
