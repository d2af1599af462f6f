"""What the orchestrator is asked and answers: `{"ok": true, …}` or `{"ok": false, "error": {…}}`, for every error alike."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from crewlog.schemas.errors import ContractError, OrchestrationError
from crewlog.schemas.text import clean, shorten

TEXT_CHARS_MAX: Final = 2_000

_T = TypeVar("_T")


def decoded(data: bytes, type_: type[_T]) -> _T:
    """Decode a request.

    Raises:
        ContractError: it is none of this type.
    """
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"the request is not a valid {type_.__name__}: {error}") from None


def bounded(text: str) -> str:
    """Cut and clean what somebody wrote, for the log."""
    return shorten(clean(text), TEXT_CHARS_MAX)


def person(actor: str) -> str:
    """Return who gives a command.

    Raises:
        ContractError: it does not say.
    """
    if not actor.strip():
        raise ContractError("the log must say who did it", problems=(("/actor", "must not be empty"),))
    return bounded(actor)


def somebody(actor: str) -> str:
    """Return who asks for something that needs no name."""
    return bounded(actor.strip()) or "anonymous"


def accepted(**fields: Any) -> bytes:
    """Encode a good answer."""
    return msgspec.json.encode({"ok": True, **fields})


def refused(error: Exception) -> bytes:
    """Encode an error. Only errors of our own tree say what happened; any other is a defect whose details stay in our log."""
    if not isinstance(error, OrchestrationError):
        return _refusal("internal", "an internal error occurred; the orchestrator's log has the details", ())
    problems = error.problems if isinstance(error, ContractError) else ()
    return _refusal(error.code, error.message if isinstance(error, ContractError) and problems else str(error), problems)


def _refusal(code: str, message: str, problems: tuple[tuple[str, str], ...]) -> bytes:
    listed = [{"pointer": pointer, "message": text} for pointer, text in problems]
    return msgspec.json.encode({"ok": False, "error": {"code": code, "message": message, "problems": listed}})
