"""Take secrets out of what leaves the log: every match of a pattern in any text of a JSON value is replaced. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from crewlog.schemas.errors import ContractError

REDACTED: Final = "[redacted]"


def compile_patterns(given: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """Read regular expressions.

    Raises:
        ContractError: one is no regular expression, or matches nothing at all and so everything.
    """
    patterns = []
    for text in given:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ContractError(f"--redact {text!r} is no regular expression: {error}") from None
        if pattern.match(""):
            raise ContractError(f"--redact {text!r} matches the empty text: it would say nothing about where a secret is")
        patterns.append(pattern)
    return tuple(patterns)


def redact(value: Any, patterns: Sequence[re.Pattern[str]]) -> Any:
    """Return a JSON value with every match in its texts and names replaced."""
    if isinstance(value, str):
        for pattern in patterns:
            value = pattern.sub(REDACTED, value)
        return value
    if isinstance(value, list):
        return [redact(item, patterns) for item in value]
    if isinstance(value, dict):
        return {redact(name, patterns): redact(item, patterns) for name, item in value.items()}
    return value
