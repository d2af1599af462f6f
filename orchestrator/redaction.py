"""Take secrets out of what leaves the log: every match of a pattern in any text of a JSON value is replaced. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from crewlog.schemas.errors import ContractError

REDACTED: Final = "[redacted]"


KNOWN: Final[Mapping[str, str]] = {
    "@secrets": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|rk|pk)[-_](?:ant-|proj-|live_|test_)?[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}|\bhf_[A-Za-z0-9]{20,}|\bS[AOCNUX][A-Z2-7]{54,}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+|\b[Bb]earer +[A-Za-z0-9._~+/-]{16,}=*|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",
    "@email": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    "@card": r"\b(?:\d[ -]?){12,18}\d\b",
    "@iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    "@phone": r"(?<![\w+])\+\d[\d ()/-]{6,16}\d\b",
}
"""Names for what is sought most often. `@card` and `@iban` take every number of that shape, also one that is none; names of people are no pattern. None
looks far from one place, since a text may be megabytes without a space: in front of an `@` no mail server takes more than 64 characters (RFC 5321)."""


def compile_patterns(given: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """Read regular expressions, or names of `KNOWN`.

    Raises:
        ContractError: one is no regular expression, or matches nothing at all and so everything.
    """
    patterns = []
    for text in given:
        if text.startswith("@") and text not in KNOWN:
            raise ContractError(f"--redact {text}: known names are {', '.join(KNOWN)}; write \\{text} for the text itself")
        try:
            pattern = re.compile(KNOWN.get(text, text))
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
