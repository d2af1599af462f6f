"""Field types of the public contract: what a name, a kind or a text may be. Bad input gets one clear sentence.

The checks are marks on the types. pydantic reads them where outsiders' data comes in (see `parse`); to msgspec, which decodes what was checked
before, they mean nothing. Neither has to be loaded for the types to exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from crewlog.schemas.ids import TOKEN
from crewlog.schemas.text import find_bad

CLOSED: Final = {"extra": "forbid"}
"""The `__pydantic_config__` of a message: a field that it does not have is a fault of whoever sent it."""


class Within:
    """Bounds of a value under the names pydantic has for them: `ge`, `le`, `min_length`, `max_length`, `pattern`."""

    def __init__(self, **bounds: Any) -> None:
        self.bounds = bounds

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(**self.bounds)])


@dataclass(frozen=True)
class Check:
    """A function that a value has to pass; it returns the value, or raises ValueError with the sentence for whoever sent it."""

    check: Callable[[Any], Any]
    is_first: bool = False
    """It comes before every other check, so it may be given anything."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        then = core_schema.no_info_before_validator_function if self.is_first else core_schema.no_info_after_validator_function
        return then(self.check, handler(source))


def _safe(text: str) -> str:
    at = find_bad(text)
    if at is not None:
        raise ValueError(f"character {at} is NUL or a lone surrogate; send valid Unicode text without NUL")
    return text


def _token(text: str) -> str:
    if not TOKEN.fullmatch(text):
        raise ValueError("must match [A-Za-z0-9_-]{1,64}: it becomes part of a subject, so no dots, blanks or wildcards")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank: say what is to be done")
    return text


def relative_path(text: str) -> str:
    """Return the name of a file below some folder.

    Raises:
        ValueError: it could lead elsewhere, or cannot be shown.
    """
    parts = text.split("/")
    if not text or text.startswith("/") or "\\" in text or any(p in ("", ".", "..") for p in parts) or any(ord(c) < 32 for c in text):
        raise ValueError("must be a relative path without '..', empty parts, backslashes or control characters")
    return text


SafeText = Annotated[str, Check(_safe)]
Token = Annotated[str, Check(_token)]
RelativePath = Annotated[str, Within(max_length=512), Check(_safe), Check(relative_path)]
Kind = Annotated[str, Check(_token)]
Objective = Annotated[str, Within(min_length=1, max_length=20_000), Check(lambda value: _safe(value) if isinstance(value, str) else value, is_first=True)]
Goal = Annotated[Objective, Check(_not_blank)]
StepKey = Annotated[str, Within(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
TaskKey = Annotated[str, Within(pattern=r"^@?[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Key of a task: of the plan step it carries out, or one of the orchestrator's own, which begin with `@`."""
