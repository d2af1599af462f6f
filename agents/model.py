"""The model port: one method that every provider adapter and the offline provider implement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol, runtime_checkable

from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Failure

ErrorKind = Literal[
    "rate_limit",
    "overloaded",
    "server",
    "timeout",
    "connection",
    "cut",
    "malformed",
    "auth",
    "billing",
    "not_found",
    "context_length",
    "content_filter",
    "bad_request",
]

REQUEST_ID_CHARS_MAX: Final = 200
"""Longest name of a call that is kept: providers use some forty characters."""
HIDDEN: Final = "[key]"
"""What stands where a provider repeated the key."""
RETRYABLE: frozenset[ErrorKind] = frozenset({"rate_limit", "overloaded", "server", "timeout", "connection", "cut", "malformed"})


class ModelError(OrchestrationError):
    """A call to a model failed; `kind` decides what happens next."""

    code = "model"

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        request_id: str = "",
        usage: Usage | None = None,
    ) -> None:
        """Describe the failure.

        Args:
            retry_after_s: how long the provider asks to wait, in seconds; None when it does not say.
            status: HTTP status of the answer; None when there was none.
            request_id: the provider's name for the call; empty when it gave none.
            usage: what was used, and is billed, although the call failed; None when nothing is known of it.
        """
        message = clean(message)
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.retry_after_s = kind, message, retry_after_s
        self.status, self.request_id, self.usage = status, shorten(clean(request_id), REQUEST_ID_CHARS_MAX), usage

    def hide(self, secret: str) -> None:
        """Take a key out of the message: servers repeat what they were sent, and what they say is recorded."""
        if secret and secret in self.message:
            self.message = self.message.replace(secret, HIDDEN)
            self.args = (f"{self.kind}: {self.message}",)

    def failure(self) -> Failure:
        """Return this error as data for an event."""
        return Failure(f"model_{self.kind}", self.message, self.kind in RETRYABLE, self.retry_after_s)


OnText = Callable[[str], None]
"""Takes the next piece of text while an answer is being written. For eyes only: the answer is what `complete` returns. Must not block."""


class Model(Protocol):
    """One model of one provider."""

    @property
    def wire(self) -> str:
        """The protocol spoken: `anthropic.messages`, `openai.responses`, `openai.chat`, `gemini.generate_content` or `offline`."""

    @property
    def provider(self) -> str:
        """`offline`, `anthropic`, `openai`, `google`, or the name configured for a server of one's own."""

    @property
    def name(self) -> str:
        """The model id that is asked for; `ModelRequest.model` holds the same."""

    @property
    def simulated(self) -> bool:
        """True for the offline provider: its wording must be labelled wherever a person could mistake it."""

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        """Ask once. No retries in here.

        Args:
            timeout_s: longest time the whole call may take, in seconds.
            on_text: given, the answer is streamed and its text passed on as it comes.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """


@runtime_checkable
class Closable(Protocol):
    """A model that holds connections."""

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
