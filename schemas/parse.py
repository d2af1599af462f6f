"""What outsiders send, read strictly: pydantic checks it against the classes of the contract, and every fault gets its place and one sentence.

Only here, at the border. What is in the log was checked when it was accepted: it is decoded by msgspec into the same classes, without pydantic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from crewlog.schemas.errors import ContractError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_UNKNOWN_FIELD: Final = frozenset({"unexpected_keyword_argument", "extra_forbidden"})
"""What pydantic calls a field that dataclasses and models do not have."""


def parse(cls: type[T], data: Any, message: str) -> T:
    """Decode and check a value.

    Args:
        cls: a frozen dataclass of the contract.
        data: bytes of JSON, or what they would decode to; its parts may be objects already.
        message: what it is not when it is refused, for the error's first line.

    Raises:
        ContractError: with every problem and its JSON pointer.
    """
    from pydantic import ValidationError

    try:
        parsed: T = _adapter(cls).validate_json(data) if isinstance(data, bytes) else _adapter(cls).validate_python(data)
    except ValidationError as error:
        raise contract_error(message, error, json_schema(cls)) from None
    return parsed


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of a class of the contract: what `parse` accepts."""
    return _adapter(cls).json_schema()


def contract_error(message: str, error: ValidationError, schema: Mapping[str, Any]) -> ContractError:
    """Turn pydantic's report into ours: a JSON pointer and one sentence for each problem.

    Args:
        schema: JSON Schema of what the value should be: it has the names of the fields that could be meant.
    """
    details = [e for e in error.errors(include_url=False, include_input=False) if not (e["type"] == "too_short" and _has_parts(error, e["loc"]))]
    problems = (("".join(f"/{part}" for part in e["loc"]), _unknown(schema, e["loc"]) if e["type"] in _UNKNOWN_FIELD else e["msg"]) for e in details)
    return ContractError(message, problems=tuple((pointer, text.removeprefix("Value error, ")) for pointer, text in problems))


def _unknown(schema: Mapping[str, Any], place: tuple[int | str, ...]) -> str:
    """Say that there is no such field, which one may be meant, and which there are."""
    from difflib import get_close_matches

    known = _fields_at(schema, place[:-1])
    spelled = {_spelling(name): name for name in known}
    near = get_close_matches(_spelling(str(place[-1])), spelled, n=1)
    meant = f"did you mean {spelled[near[0]]}? " if near else ""
    return f"there is no such field; {meant}known fields: {', '.join(known)}" if known else "there is no such field"


def _spelling(name: str) -> str:
    """Return a name without what languages spell differently: timeoutSeconds, timeout-seconds."""
    return "".join(c for c in name.lower() if c.isalnum())


def _fields_at(schema: Mapping[str, Any], place: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields that an object may have at a place of a value, by its JSON Schema."""
    node = _object_in(schema, schema)
    for part in place:
        node = _object_in(schema, node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, node))
    return list(node.get("properties", ()))


def _object_in(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references, and of several possibilities take the one that has parts."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        elif "anyOf" in node:
            node = next((each for each in node["anyOf"] if {"$ref", "properties", "items"} & set(each)), {})
        else:
            return node


def _has_parts(error: ValidationError, place: tuple[int | str, ...]) -> bool:
    """Say whether parts of what stands there are at fault themselves: pydantic counts those out and then calls the whole too short."""
    return any(len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in error.errors(include_url=False, include_input=False))


def _made(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


_adapter: Final[Callable[[type], TypeAdapter[Any]]] = cache(_made)
