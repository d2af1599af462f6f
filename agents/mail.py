"""Write and send mail: plain text with an HTML alternative, and a Message-ID that is the same for every try of one call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.header import Header
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import formatdate
from pathlib import PurePosixPath
from typing import Final, Self

from crewlog.events.config import Config
from crewlog.schemas.errors import ConfigError

SEND_TIMEOUT_S: Final = 40.0
"""Longest time for everything before the message itself is handed over, and again for handing it over."""
QUIT_TIMEOUT_S: Final = 3.0
SUBMISSIONS_PORT: Final = 465
"""RFC 8314: TLS from the first byte."""
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ADDRESSES: Final = re.compile(rf"(?<![\w.%+-])\w[\w.%+-]{{0,63}}@{_LABEL}(?:\.{_LABEL})*", re.ASCII)
"""Finds the addresses in a text; what it finds in the middle of a sentence never ends in a full stop."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*")
_PAGE: Final = '<!doctype html>\n<html><head><meta charset="utf-8"></head><body>\n{}</body></html>\n'


class _Policy(EmailPolicy):
    """How a message is written out. A subject stays the text that it is: the library reads encoded words in it, and what those hold, line ends and all,
    has become headers of the message; and where it folds, it loses blanks between two words that it had to encode."""

    def header_store_parse(self, name: str, value: str) -> tuple[str, str]:
        return (name, value) if name == "Subject" else super().header_store_parse(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        if name != "Subject":
            return super().fold_binary(name, value)
        charset = "us-ascii" if value.isascii() and "=?" not in value else "utf-8"
        return f"{name}: {Header(value, charset, header_name=name).encode(linesep=self.linesep)}{self.linesep}".encode("ascii")


_WIRE: Final = _Policy(linesep="\r\n", cte_type="7bit")
"""In 7 bits: not every server says that it takes 8, and one that does not may cut them (RFC 6152)."""


class NotSent(Exception):
    """The message was certainly not accepted."""


class OutcomeUnknown(Exception):
    """The connection broke while the server had the message: it may or may not deliver it."""


@dataclass(frozen=True, slots=True)
class MailSettings:
    """The mail server to send through. Port 0: none is configured."""

    host: str = "127.0.0.1"
    port: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    starttls: bool = False
    sender: str = "crewlog@localhost"

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Take the mail settings out of the configuration."""
        password = config.smtp_password.get_secret_value() if config.smtp_password else None
        return cls(config.smtp_host, config.smtp_port, config.smtp_user, password, config.smtp_starttls, config.mail_from)

    @property
    def problem(self) -> str:
        """What keeps mail from being sent, with the setting to change; empty when nothing does."""
        if not self.port:
            return "no mail server is configured: the operator must set CREWLOG_SMTP_HOST and CREWLOG_SMTP_PORT"
        if self.user and not self.starttls and self.port != SUBMISSIONS_PORT and self.host not in _LOOPBACK:
            return (
                f"the password for {self.host}:{self.port} would travel unencrypted: the operator must set CREWLOG_SMTP_STARTTLS or use port {SUBMISSIONS_PORT}"
            )
        return ""


@dataclass(frozen=True, slots=True)
class MailFile:
    """A file that travels with a mail."""

    name: str
    data: bytes
    media_type: str


def address_problem(text: str) -> str | None:
    """Return why a text is not one plain mail address, or None."""
    local = text.rpartition("@")[0]
    if len(text) <= 254 and ADDRESSES.fullmatch(text) and ".." not in local and not local.endswith("."):
        return None
    return "must be one plain address such as name@example.org, in ASCII and without a display name"


def compose(settings: MailSettings, *, to: Sequence[str], subject: str, markdown: str, files: Sequence[MailFile], key: str, date_us: int) -> bytes:
    """Write a message as the bytes that go over the wire. The same arguments give the same bytes.

    Args:
        markdown: the text; it is its own plain-text form.
        key: becomes the Message-ID and the MIME boundaries; hexadecimal.
        date_us: for the Date header, in microseconds since 1970.

    Raises:
        ConfigError: the configured sender is not an address.
    """
    from crewlog.agents.mail_html import to_html

    if problem := address_problem(settings.sender):
        raise ConfigError(f"mail cannot be sent from {settings.sender!r}: it {problem}", hint="set CREWLOG_MAIL_FROM")
    message = EmailMessage(policy=_WIRE)
    message["From"] = settings.sender
    message["To"] = ", ".join(to)
    message["Subject"] = subject
    message["Date"] = formatdate(date_us / 1_000_000)
    message["Message-ID"] = message_id(settings, key)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(markdown)
    message.add_alternative(_PAGE.format(to_html(markdown)), subtype="html")
    for file in files:
        declared = file.media_type.partition(";")[0].strip().lower()
        main, _, sub = (declared if _MEDIA_TYPE.fullmatch(declared) else "application/octet-stream").partition("/")
        main, sub = ("application", "octet-stream") if main in ("multipart", "message") else (main, sub)
        name = PurePosixPath(file.name).name.replace("=?", "=-")  # the library reads encoded words here as well
        message.add_attachment(file.data, maintype=main, subtype=sub, filename=name)
    for number, part in enumerate(part for part in message.walk() if part.is_multipart()):
        part.set_boundary(f"=_{key}_{number}")
    return message.as_bytes()


def message_id(settings: MailSettings, key: str) -> str:
    """Return the Message-ID of the call with this idempotency key: receivers can recognise a second copy."""
    return f"<{key}@{settings.sender.rpartition('@')[2]}>"


async def send(settings: MailSettings, message: bytes, to: Sequence[str], check: Callable[[], Awaitable[None]]) -> str:
    """Hand a message to the mail server, for all recipients or for none; returns what the server said.

    Args:
        check: awaited right before the message itself is handed over; what it raises keeps that from happening.

    Raises:
        NotSent: the server was not reached or refused something.
        OutcomeUnknown: no answer after the message was handed over.
    """
    import aiosmtplib

    tls = settings.port == SUBMISSIONS_PORT
    client = aiosmtplib.SMTP(hostname=settings.host, port=settings.port, timeout=SEND_TIMEOUT_S, use_tls=tls, start_tls=settings.starttls and not tls)
    try:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await client.connect(username=settings.user, password=settings.password)
                await client.mail(settings.sender)
                for recipient in to:
                    await client.rcpt(recipient)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise NotSent(f"mail server {settings.host}:{settings.port}: {_words(error)}") from error
        await check()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                answer = await client.data(message)
        except aiosmtplib.SMTPDataError as error:
            raise NotSent(f"mail server {settings.host}:{settings.port} refused the message: {_words(error)}") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise OutcomeUnknown(f"mail server {settings.host}:{settings.port} did not confirm the message: {_words(error)}") from error
        with suppress(aiosmtplib.SMTPException, OSError):  # the message is theirs: a goodbye that fails changes nothing
            await client.quit(timeout=QUIT_TIMEOUT_S)
        return f"{answer.code} {answer.message}"
    finally:
        client.close()


def _words(error: Exception) -> str:
    return " ".join(str(part) for part in error.args) or type(error).__name__
