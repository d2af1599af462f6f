"""What outsiders send, read strictly: pydantic checks it against the classes of the contract, and every fault gets its place and one sentence.

Only here, at the border. What is in the log was checked when it was accepted: it is decoded by msgspec into the same classes, without pydantic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from crewlog.schemas.errors import ContractError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_UNKNOWN_FIELD: Final = "Extra inputs are not permitted"


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
        raise contract_error(message, error) from None
    return parsed


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of a class of the contract: what `parse` accepts."""
    return _adapter(cls).json_schema()


def contract_error(message: str, error: ValidationError) -> ContractError:
    """Turn pydantic's report into ours: a JSON pointer and one sentence for each problem."""
    details = [e for e in error.errors(include_url=False, include_input=False) if not (e["type"] == "too_short" and _has_parts(error, e["loc"]))]
    problems = (("".join(f"/{part}" for part in e["loc"]), _UNKNOWN_FIELD if e["type"] == "unexpected_keyword_argument" else e["msg"]) for e in details)
    return ContractError(message, problems=tuple((pointer, text.removeprefix("Value error, ")) for pointer, text in problems))


def _has_parts(error: ValidationError, place: tuple[int | str, ...]) -> bool:
    """Say whether parts of what stands there are at fault themselves: pydantic counts those out and then calls the whole too short."""
    return any(len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in error.errors(include_url=False, include_input=False))


def _made(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


_adapter: Final[Callable[[type], TypeAdapter[Any]]] = cache(_made)
