"""What can go wrong in a call to a model, said in one language for all wires.

Three places, three meanings: what the provider refuses has the kind of its status and code; what goes wrong on the way is `timeout`,
`connection` when nobody was reached, or `cut` when it broke behind the request; what cannot be understood in an answer is `malformed`. A
mistake while a request is being built is ours and is `bad_request`: a chain must not walk through all providers to hide it.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from crewlog.agents.model import ErrorKind, ModelError
from crewlog.schemas.text import shorten
from crewlog.schemas.usage import Usage

MESSAGE_CHARS_MAX: Final = 1_000
"""Most of a provider's own words that goes into an error."""
RETRY_AFTER_S_MAX: Final = 86_400.0
"""Longest wait that is believed, in seconds. Who wants to wait longer is asked again after a day, if the task's deadline lasts that long."""
_CONTEXT: Final = re.compile(
    r"context.{0,12}(?:length|window|size)|too many (?:input )?tokens|(?:prompt|input) is too long|maximum.{0,20}tokens|exceeds the maximum number of tokens",
    re.IGNORECASE,
)
_NO_MONEY: Final = re.compile(r"credit balance|billing (?:is|account)|exceeded your current quota", re.IGNORECASE)
_BY_NAME: Final[Mapping[str, ErrorKind]] = {
    # what stays wrong until somebody pays or changes a setting
    "insufficient_quota": "billing",
    "contract_spend_limit_reached": "billing",
    "enforced_spend_limit_reached": "billing",
    "linked_organization_spend_limit_reached": "billing",
    "organization_on_hold": "billing",
    "billing_error": "billing",
    "API_KEY_INVALID": "auth",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "UNAUTHENTICATED": "auth",
    "PERMISSION_DENIED": "auth",
    "model_not_found": "not_found",
    "not_found_error": "not_found",
    # what the request itself is
    "context_length_exceeded": "context_length",
    "request_too_large": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "invalid_prompt": "content_filter",
    # what passes
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "overloaded_error": "overloaded",
    "UNAVAILABLE": "overloaded",
    "timeout_error": "timeout",
    "DEADLINE_EXCEEDED": "timeout",
    "api_error": "server",
    "server_error": "server",
    "INTERNAL": "server",
}
"""Machine-readable codes and types of all providers. They decide alone when there is no error status, as inside a stream."""
_BEFORE_STATUS: Final[frozenset[ErrorKind]] = frozenset({"billing", "content_filter", "context_length"})
"""Kinds a code says more exactly than a status: a 429 for lack of money must not be asked again, whatever its retry-after says."""
_BY_STATUS: Final[Mapping[int, ErrorKind]] = {
    401: "auth",
    402: "billing",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "server",
    413: "context_length",
    429: "rate_limit",
    499: "timeout",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}


def kind_of(status: int, names: tuple[object, ...], message: str) -> ErrorKind:
    """Say what a refusal means for whoever decides about another try.

    Args:
        status: HTTP status; below 300 when the refusal came inside an answer or a stream.
        names: the provider's machine-readable codes and types, the most exact first; what is no text among them says nothing.
        message: the provider's words, asked only where no code tells.
    """
    named = next((_BY_NAME[name] for name in names if isinstance(name, str) and name in _BY_NAME), None)
    if named is not None and (named in _BEFORE_STATUS or status <= 400):
        return named
    if found := _BY_STATUS.get(status):
        return found
    if 300 <= status < 400:
        return "not_found"
    if status >= 500:
        return "server"
    if _CONTEXT.search(message):
        return "context_length"
    if _NO_MONEY.search(message):
        return "billing"
    return "bad_request" if status >= 400 else "server"


def refusal(
    asked: str,
    status: int,
    names: tuple[object, ...],
    message: object,
    *,
    headers: Mapping[str, str] | None = None,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> ModelError:
    """Make the error of a provider that refused.

    Args:
        asked: the model's name.
        message: the provider's words; whatever stands in their place is written out.
        headers: of the answer; they may say how long to wait.
        retry_after: what the body says about it, in seconds.
    """
    words = " ".join(str(message or "").split())
    said = retry_after_s(headers or {})
    if 300 <= status < 400:
        words = f"it redirects to {(headers or {}).get('location') or 'nowhere'}, and a conversation is not sent on"
    return ModelError(
        kind_of(status, names, words),
        f"{asked} refused: {shorten(words or f'status {status}', MESSAGE_CHARS_MAX)}",
        status=status if status >= 300 else None,
        retry_after_s=_bounded(said if said is not None else retry_after),
        request_id=request_id or "",
    )


def _bounded(wait_s: float | None) -> float | None:
    """Keep a wait that somebody else named within what a schedule can hold; what is no number says nothing."""
    return None if wait_s is None or math.isnan(wait_s) else min(max(wait_s, 0.0), RETRY_AFTER_S_MAX)


def malformed(asked: str, what: str, *, usage: Usage | None = None, request_id: str = "") -> ModelError:
    """Make the error of an answer that is none.

    Args:
        usage: what was used all the same.
    """
    return ModelError("malformed", f"{asked} sent {what}", usage=usage, request_id=request_id)


@contextmanager
def understanding(asked: str) -> Iterator[None]:
    """Turn whatever goes wrong while an answer is being parsed into `malformed`. Nothing but parsing belongs inside.

    Raises:
        ModelError: the answer is not what the wire promises.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise malformed(asked, f"what is no answer: {shorten(f'{type(error).__name__}: {error}', MESSAGE_CHARS_MAX)}") from error


@asynccontextmanager
async def one_try(
    asked: str,
    timeout_s: float,
    refused: type[Exception],
    explain: Callable[[Any], ModelError],
    *,
    secret: str,
    used: Callable[[], Usage | None] = lambda: None,
) -> AsyncIterator[None]:
    """Bound one call in time and translate its failures.

    Args:
        timeout_s: longest time for the whole call, in seconds: the timeouts of SDKs count from one read to the next.
        refused: what the SDK raises, and `explain` translates.
        secret: the key that was sent; a server that repeats it must not bring it into the log.
        used: what was used so far, for errors that come after a part of the answer.

    Raises:
        ModelError: for everything the provider or the network does, and for a request that could not be built.
    """
    import httpx2

    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (ModelError, TimeoutError, httpx2.HTTPError, refused, TypeError, ValueError) as error:
        found = explain(error) if isinstance(error, refused) else _explained(error, asked, timeout_s)
        found.usage = used() or found.usage  # what a broken answer says of itself was true when it began
        found.hide(secret)
        raise found from (None if found is error else error)


def _explained(error: BaseException, asked: str, timeout_s: float) -> ModelError:
    import httpx2

    match error:
        case ModelError():
            return error
        case TimeoutError() | httpx2.TimeoutException():
            return ModelError("timeout", f"no answer from {asked} within {timeout_s:g} s")
        case httpx2.HTTPError():
            return unreachable(asked, error)
        case _:
            return ModelError("bad_request", f"the request to {asked} could not be built: {type(error).__name__}: {error}")


def unreachable(asked: str, error: BaseException) -> ModelError:
    """Make the error of a connection that could not be opened, or that broke behind the request."""
    said = shorten(str(error) or type(error).__name__, MESSAGE_CHARS_MAX)
    if was_never_sent(error):
        return ModelError("connection", f"{asked} cannot be reached{_address(error)}: {said}")
    return ModelError("cut", f"{asked} broke off the connection: {said}")


def _address(error: BaseException) -> str:
    """Say where a request went, as far as its error knows: a wrong address is seen at once."""
    request = getattr(error, "_request", None)
    return f" at {request.url.scheme}://{request.url.netloc.decode()}" if request is not None else ""


def was_never_sent(error: BaseException | None) -> bool:
    """Say whether a call failed before its request can have reached anybody: no connection was made."""
    import httpx2

    while error is not None:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
            return True
        error = error.__cause__
    return False


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the provider asks to wait, in seconds, from a number of milliseconds or seconds, or a date; None when it does not.

    A date is measured against the provider's own `date` header, so no clock of ours is asked.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until, now = (email.utils.parsedate_to_datetime(headers.get(name, "")) for name in ("retry-after", "date"))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):  # there is none, or one of them is no date, or only one has a zone
        return None
