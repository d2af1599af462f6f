"""Small values shared by messages and events: artifacts, citations, outcomes, failures.

Plain frozen dataclasses, because both pydantic (messages) and msgspec (events) understand them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from crewlog.schemas.ids import Hash

SUMMARY_CHARS_MAX: Final = 16_000

Trust = Literal["trusted", "untrusted"]
"""`untrusted`: the text was influenced by something outside the tenant's own instructions (a document, a web page, a tool)."""


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A content-addressed file: `hash` names the bytes, `name` is a relative path for people and workspaces."""

    name: str
    hash: Hash
    size: int
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a sentence comes from: `quote` stands verbatim in `source` at `line` (from 1)."""

    source: str
    line: int
    quote: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished task hands on. `output` is JSON for programs, `summary` is text for people and models."""

    summary: str
    output: Any = None
    artifacts: tuple[ArtifactRef, ...] = ()
    citations: tuple[Citation, ...] = ()
    flags: tuple[str, ...] = ()
    """What a reader must know before relying on it: `simulated`, `not_found`, `tests_failing`, `review_failed` …"""
    trust: Trust = "trusted"


@dataclass(frozen=True, slots=True)
class ContextItem:
    """The outcome of an earlier task, as passed to one that depends on it."""

    key: str
    type: str
    objective: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not work. `code` is stable (the error tree's codes, or a provider kind); `message` is for people."""

    code: str
    message: str
    retryable: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Money that was not there: the call needed `needed_micro_usd`, and `scope` had `used_micro_usd` of its hard limit spent or reserved."""

    scope: str
    limit_micro_usd: int
    used_micro_usd: int
    needed_micro_usd: int


@dataclass(frozen=True, slots=True)
class Issue:
    """One rule of the critic that the outcome breaks."""

    rule: str
    message: str
