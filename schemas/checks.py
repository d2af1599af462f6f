"""Field types of the public contract: what a name, a kind or a text may be. Bad input gets one clear sentence."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from crewlog.schemas.ids import TOKEN
from crewlog.schemas.text import find_bad


def _safe(text: str) -> str:
    at = find_bad(text)
    if at is not None:
        raise ValueError(f"character {at} is NUL or a lone surrogate; send valid Unicode text without NUL")
    return text


def _token(text: str) -> str:
    if not TOKEN.fullmatch(text):
        raise ValueError("must match [A-Za-z0-9_-]{1,64}: it becomes part of a subject, so no dots, blanks or wildcards")
    return text


def _relative_path(text: str) -> str:
    parts = text.split("/")
    if not text or text.startswith("/") or "\\" in text or any(p in ("", ".", "..") for p in parts) or any(ord(c) < 32 for c in text):
        raise ValueError("must be a relative path without '..', empty parts, backslashes or control characters")
    return text


SafeText = Annotated[str, AfterValidator(_safe)]
Token = Annotated[str, AfterValidator(_token)]
RelativePath = Annotated[str, Field(max_length=512), AfterValidator(_safe), AfterValidator(_relative_path)]
Kind = Annotated[str, AfterValidator(_token)]
Objective = Annotated[str, StringConstraints(min_length=1, max_length=20_000), BeforeValidator(lambda value: _safe(value) if isinstance(value, str) else value)]
StepKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
TaskKey = Annotated[str, StringConstraints(pattern=r"^@?[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Key of a task: of the plan step it carries out, or one of the orchestrator's own, which begin with `@`."""
