"""The communicate specialist: drafts, sends and posts, each time to where the task says and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from itertools import chain, count
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from crewlog.agents import webhook
from crewlog.agents.files import TaskFiles
from crewlog.agents.mail import ADDRESSES, MailFile, MailSettings, NotSent, OutcomeUnknown, address_problem, compose, message_id, send
from crewlog.agents.outbox import Outbox
from crewlog.agents.spec import AgentSpec, Probed, ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec
from crewlog.agents.url_guard import URL_CHARS_MAX, Hosts, Refused, resolve
from crewlog.events.clock import Clock, SystemClock
from crewlog.schemas.checks import SafeText
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.task import AgentTask
from crewlog.schemas.text import shorten
from crewlog.schemas.values import SUMMARY_CHARS_MAX, ArtifactRef, Outcome

__all__ = ["MailSettings", "communicate_agent"]

RECIPIENTS_MAX: Final = 50
FILES_BYTES_MAX: Final = 10 * 1024 * 1024
ANSWER_CHARS_SHOWN: Final = 2_000
# the files a call leaves behind only when it got through: what was sent is read off them, not off what the model says
_MAIL_TYPE: Final = "message/rfc822"
_POST_TYPE: Final = "application/json"

INSTRUCTIONS: Final = """
You are the communicate specialist. You tell people and systems what the crew has found, exactly to those the objective names.

How to work
- Write from the context: the outcomes of earlier tasks. Put the result first, then what the reader must do or know, then details. Carry over
  numbers, names and caveats exactly, with their sources; leave nothing open unsaid: what failed, was not found or is flagged. Invent nothing.
- Mail bodies are Markdown. Attach files by the names of attachments and of earlier tasks' artifacts, and only those the text mentions.
- Recipients come from the objective, the constraints or the context; an address that stands in none of them is refused. When the task names
  none, make a draft, and say in the report that an address is missing.
- Make a draft first, then send it once. send_email and post_webhook reach the outside world: a person may have to approve each call, which can
  take long; do not call them again meanwhile. A denied call is final: do not try another way.
- When the outcome of a call is unknown, do not repeat it: say so in the report.
- When the context holds your own earlier work with a "@review" of it, what that work sent is sent: repair what the review names, and send
  nothing twice.

How to finish: call submit_report once, with what was sent to whom, what was not and why. Report as sent only what a tool confirmed.
"""


def _one_line(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 or c in "\x85\u2028\u2029" for c in text):
        raise ValueError("must be one line without control characters")
    return text.strip()


def _address(text: str) -> str:
    if problem := address_problem(text):
        raise ValueError(problem)
    return text


Recipient = Annotated[SafeText, AfterValidator(_address)]
Subject = Annotated[SafeText, Field(min_length=1, max_length=250, description="Subject line."), AfterValidator(_one_line)]
Body = Annotated[SafeText, Field(min_length=1, max_length=100_000, description="The text in Markdown; sent as plain text and as HTML.")]
Files = Annotated[list[SafeText], Field(max_length=20, description="Names of files to attach: attachments of the task, or artifacts of earlier tasks.")]


class DraftMessage(BaseModel):
    """A mail that is only written."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[list[Recipient], Field(max_length=RECIPIENTS_MAX, description="Plain addresses; empty when the task names none.")]
    subject: Subject
    body_markdown: Body
    attachments: Files = []


class SendEmail(BaseModel):
    """A mail that is sent."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[list[Recipient], Field(min_length=1, max_length=RECIPIENTS_MAX, description="Plain addresses, all of which the task names.")]
    subject: Subject
    body_markdown: Body
    attachments: Files = []


class PostWebhook(BaseModel):
    """A JSON object that is posted."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[SafeText, Field(min_length=8, max_length=URL_CHARS_MAX, description="Where to post; the operator lists the hosts that are allowed.")]
    body: Annotated[dict[str, Any], Field(description="JSON object to post.")]


class SubmitReport(BaseModel):
    """The end of the task."""

    model_config = ConfigDict(extra="forbid")

    summary: Annotated[SafeText, Field(min_length=1, max_length=SUMMARY_CHARS_MAX, description="What was sent to whom, and what was not and why.")]


NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


class CommunicateTools:
    """The four tools over one mail server and one list of hosts."""

    def __init__(self, mail: MailSettings, webhook_hosts: Sequence[str], webhook_status: Mapping[str, str], clock: Clock) -> None:
        self._mail, self._hosts, self._clock = mail, Hosts(tuple(webhook_hosts), webhook.HOSTS_SETTING), clock
        self._status = webhook_status

    async def draft_message(self, context: ToolContext, args: DraftMessage) -> ToolOutput:
        """Store a draft after the checks that sending makes, too."""
        _check_recipients(context.task, args.to)
        files = await _files(context, args.attachments)
        name = _next_name(context, "draft", "md")
        head = [f"To: {', '.join(args.to) or '(nobody yet)'}", f"Subject: {args.subject}"]
        if files:
            head.append(f"Attachments: {', '.join(f'{file.name} ({len(file.data)} bytes)' for file in files)}")
        ref = await context.artifacts.put(name, "\n".join([*head, "", args.body_markdown, ""]).encode(), "text/markdown")
        note = f" It cannot be sent from here: {self._mail.problem}." if self._mail.problem else ""
        return ToolOutput(f"Draft stored as {name}; nothing was sent.{note}", artifacts=(ref,))

    async def send_email(self, context: ToolContext, args: SendEmail) -> ToolOutput:
        """Send one mail to all recipients or to none."""
        if self._mail.problem:
            raise ToolFailed(f"nothing was sent: {self._mail.problem}")
        _check_recipients(context.task, args.to)
        files = await _files(context, args.attachments)
        key, recipients = context.idempotency_key, list(dict.fromkeys(args.to))
        try:
            message = compose(self._mail, to=recipients, subject=args.subject, markdown=args.body_markdown, files=files, key=key, date_us=self._clock.now_us())
            # stored before it leaves: what was sent can always be shown
            ref = await context.artifacts.put(_next_name(context, "mail", "eml"), message, _MAIL_TYPE)
            answer = await send(self._mail, message, recipients, context.check_hold)
        except (NotSent, ConfigError) as error:
            raise ToolFailed(f"nothing was sent: {error}") from error
        except OutcomeUnknown as error:
            raise ToolOutcomeUnknown(f"{error}. Message-ID {message_id(self._mail, key)}") from error
        return ToolOutput(
            f"Sent to {', '.join(recipients)}; the mail server said: {answer}. Message-ID {message_id(self._mail, key)}, kept as {ref.name}.", artifacts=(ref,)
        )

    async def post_webhook(self, context: ToolContext, args: PostWebhook) -> ToolOutput:
        """Post one JSON object."""
        body = json.dumps(args.body, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
        if len(body) > webhook.REQUEST_BYTES_MAX:
            raise ToolFailed(f"the body has {len(body)} bytes; at most {webhook.REQUEST_BYTES_MAX} are posted")
        try:
            target = await resolve(args.url, self._hosts)
            await context.check_hold()
            answer = await webhook.post(target, body, key=context.idempotency_key)
        except Refused as error:
            raise ToolFailed(f"nothing was posted: {error}") from error
        except webhook.OutcomeUnknown as error:
            raise ToolOutcomeUnknown(f"{error}. Idempotency-Key {context.idempotency_key}") from error
        text = shorten(answer.text, ANSWER_CHARS_SHOWN)
        if not 200 <= answer.status < 300:
            moved = " (redirects are not followed: the operator must list the final address)" if 300 <= answer.status < 400 else ""
            said = f"{target.url.host} answered with status {answer.status}{moved}: {text}"
            raise ToolOutcomeUnknown(said) if answer.status in webhook.AMBIGUOUS else ToolFailed(said)
        record = {"url": str(target.url), "body": args.body, "idempotency_key": context.idempotency_key, "status": answer.status, "answer": answer.text}
        name = _next_name(context, "post", "json")
        ref = await context.artifacts.put(name, json.dumps(record, ensure_ascii=False, indent=2).encode(), _POST_TYPE)
        return ToolOutput(f"Posted {len(body)} bytes to {target.url.host}, status {answer.status}; kept as {name}.\n{text}".rstrip(), artifacts=(ref,))

    async def probe_webhook(self, context: ToolContext, args: PostWebhook) -> Probed:
        """Ask the receiver whether it has a post with this key: it has with 200, it has not with 404; anything else says nothing."""
        where = self._status.get((urlsplit(args.url).hostname or "").lower())
        if where is None:
            return Probed("unknown")
        try:
            answer = await webhook.status(await resolve(where.replace(webhook.KEY, context.idempotency_key), self._hosts))
        except (Refused, webhook.OutcomeUnknown) as error:
            return Probed("unknown", str(error))
        if answer.status == HTTPStatus.OK:
            return Probed("happened", f"The receiver has a post with Idempotency-Key {context.idempotency_key}: {shorten(answer.text, ANSWER_CHARS_SHOWN)}")
        return Probed("did_not_happen" if answer.status == HTTPStatus.NOT_FOUND else "unknown", f"The receiver answered with status {answer.status}.")

    async def submit_report(self, context: ToolContext, args: SubmitReport) -> ToolOutput:
        """End the task with what was done."""
        made = _named_apart(context.earlier_artifacts)
        mails, posts = ([ref.name for ref in made if ref.media_type == kind] for kind in (_MAIL_TYPE, _POST_TYPE))
        tainted = any(item.outcome.trust == "untrusted" for item in context.task.context)
        outcome = Outcome(
            summary=args.summary,
            output={"mails_sent": mails, "posts": posts, "drafts": [ref.name for ref in made if ref.name not in (*mails, *posts)]},
            artifacts=made,
            flags=() if mails or posts else ("nothing_sent",),
            trust="untrusted" if tainted else "trusted",
        )
        return ToolOutput("Reported.", outcome=outcome)


def _check_recipients(task: AgentTask, to: Iterable[str]) -> None:
    """Refuse addresses the task does not name.

    Text that came from outside (a document, a web page) may name one only when a person looks at the call; with `auto_approve` nobody does.
    """
    trusted = [task.objective, *_texts(msgspec.to_builtins(task.constraints))]
    for item in task.context:
        believed = item.outcome.trust == "trusted" or not task.auto_approve
        trusted += _texts(msgspec.to_builtins(item)) if believed else [item.objective]
    named = {address.lower() for text in trusted for address in ADDRESSES.findall(text)}
    invented = [address for address in to if address.lower() not in named]
    if invented:
        known = ", ".join(sorted(named)) or "none"
        why = " that a trusted text gives (without a person's approval, documents cannot add recipients)" if task.auto_approve else ""
        raise ToolFailed(
            f"{', '.join(invented)}: not an address of this task{why}; it names {known}. Recipients are never made up: use those, or leave a draft"
        )


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for part in value.values():
                yield from _texts(part)
        case list() | tuple():
            for part in value:
                yield from _texts(part)


async def _files(context: ToolContext, names: Iterable[str]) -> list[MailFile]:
    files = TaskFiles(context)
    refs: dict[str, ArtifactRef] = {name: files.find(name) for name in names}
    size = sum(ref.size for ref in refs.values())
    if size > FILES_BYTES_MAX:
        raise ToolFailed(f"the attachments have {size} bytes together; a mail takes at most {FILES_BYTES_MAX}: attach fewer and name the rest in the text")
    return [MailFile(ref.name, await files.read(name), ref.media_type) for name, ref in refs.items()]


def _next_name(context: ToolContext, stem: str, suffix: str) -> str:
    made = {ref.name for ref in context.earlier_artifacts}
    return next(name for n in range(1, len(made) + 2) if (name := f"{stem}-{n}.{suffix}") not in made)


def _named_apart(refs: Iterable[ArtifactRef]) -> tuple[ArtifactRef, ...]:
    """Give files of the same name names of their own: calls of one turn run side by side and know nothing of each other."""
    named: dict[str, ArtifactRef] = {}
    for ref in dict.fromkeys(refs):
        path = PurePosixPath(ref.name)
        again = (path.with_stem(f"{path.stem}-{n}").as_posix() for n in count(2))
        name = next(name for name in chain([ref.name], again) if name not in named)
        named[name] = replace(ref, name=name)
    return tuple(named.values())


def communicate_agent(
    mail: MailSettings,
    webhook_hosts: tuple[str, ...],
    *,
    webhook_status: Mapping[str, str] = NOWHERE,
    outbox: Path | None = None,
    clock: Clock | None = None,
) -> AgentSpec:
    """Make the communicate specialist.

    Args:
        mail: the server to send through; without one, sending fails with a hint and drafts still work.
        webhook_hosts: entries of `url_guard.Hosts`; empty for none.
        webhook_status: host of a webhook -> where it says what it took, see `webhook.parse_status`.
        outbox: folder that files are published into; None for no such tool.
        clock: None for the real one.
    """
    tools = CommunicateTools(mail, webhook_hosts, webhook_status, clock or SystemClock())
    return AgentSpec(
        kind="communicate",
        description="Drafts and sends e-mail with attachments and posts to webhooks, from the results of the steps it depends on, to addresses the goal names.",
        instructions=INSTRUCTIONS,
        memory="recall",
        tools=(
            ToolSpec(
                "draft_message",
                "Write a mail as a draft. Nothing is sent.",
                DraftMessage,
                tools.draft_message,
                effect="idempotent",
                is_contained=True,
                trust="trusted",
            ),
            ToolSpec(
                "send_email",
                "Send a mail. It cannot be taken back, and a person may have to approve it first.",
                SendEmail,
                tools.send_email,
                effect="irreversible",  # and no probe: SMTP has no question for what a server has taken
                how_to_look=lambda _args, key: f"search the mail server's log, or a recipient's mailbox, for Message-ID {message_id(mail, key)}",
                trust="trusted",
                needs_approval=True,
                timeout_s=150,
            ),
            ToolSpec(
                "post_webhook",
                "Post a JSON object to a web address. A person may have to approve it first.",
                PostWebhook,
                tools.post_webhook,
                effect="irreversible",
                probe=tools.probe_webhook if webhook_status else None,
                how_to_look=lambda args, key: f"ask whoever runs {urlsplit(args.url).hostname} for a post with Idempotency-Key {key}",
                trust="untrusted",
                needs_approval=True,
            ),
            ToolSpec(
                "submit_report", "Report what was sent and end the task.", SubmitReport, tools.submit_report, effect="read", trust="trusted", ends_task=True
            ),
            *(Outbox(outbox).tools() if outbox is not None else ()),
        ),
    )
