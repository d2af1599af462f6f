"""The model port: one method that every provider adapter and the offline provider implement."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.values import Failure

ErrorKind = Literal[
    "rate_limit",
    "overloaded",
    "server",
    "timeout",
    "connection",
    "malformed",
    "auth",
    "billing",
    "not_found",
    "context_length",
    "content_filter",
    "bad_request",
]

RETRYABLE: frozenset[ErrorKind] = frozenset({"rate_limit", "overloaded", "server", "timeout", "connection", "malformed"})


class ModelError(OrchestrationError):
    """A call to a model failed; `kind` decides what happens next."""

    code = "model"

    def __init__(self, kind: ErrorKind, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.retry_after_s = kind, message, retry_after_s

    def failure(self) -> Failure:
        """Return this error as data for an event."""
        return Failure(f"model_{self.kind}", self.message, self.kind in RETRYABLE, self.retry_after_s)


class Model(Protocol):
    """One model of one provider."""

    @property
    def provider(self) -> str:
        """`offline`, `anthropic` …"""

    @property
    def name(self) -> str:
        """The model id that is asked for; `ModelRequest.model` holds the same."""

    @property
    def simulated(self) -> bool:
        """True for the offline provider: its wording must be labelled wherever a person could mistake it."""

    async def complete(self, request: ModelRequest, *, timeout_s: float) -> ModelReply:
        """Ask once. No retries in here.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """


@runtime_checkable
class Closable(Protocol):
    """A model that holds connections."""

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
