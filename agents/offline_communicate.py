"""Rules of the communicate specialist: a message from the outcomes of earlier tasks, to the addresses the objective names and no others."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from crewlog.agents.offline_addresses import Order, read_order, said
from crewlog.agents.offline_conversation import Call, Conversation, Turn, Want
from crewlog.agents.offline_report import open_points, section, title_of, trim
from crewlog.agents.offline_text import EMAIL, capital, cut_words, join_words, quoted
from crewlog.schemas.text import shorten

_SEND: Final = re.compile(
    r"\b(?:send|e-?mail|mail|notify|forward|inform|announce|share|tell|report|write|remind|invite|warn|let\b.*\bknow|cc)\b", re.IGNORECASE | re.DOTALL
)
_NAMED: Final = re.compile(rf"\b([A-Z][a-z]+)\s*(?:[(<]|\bat\b)?\s*({EMAIL.pattern})")
_SUBJECT: Final = re.compile(r"\bsubject\s*(?:line\s*)?(?:is|:|=)?\s*[\"“'`]([^\"”'`\n]{1,200})[\"”'`]", re.IGNORECASE)
_NO_WAY_OUT: Final = re.compile(r"It cannot be sent from here: (.+?)\.?$", re.DOTALL)
SECTION_WORDS_MAX: Final = 140
FILES_MAX: Final = 12


def communicate(talk: Conversation) -> Turn:
    """Draft, then send or post where the objective names an address, then report what really happened."""
    if talk.failed("submit_report"):
        return Turn(_report(talk)) if len(talk.failed("submit_report")) > 1 else Turn("", (_submit(talk),))
    order = read_order(talk.question)
    recipients = list(order.recipients)
    if not talk.tried("draft_message") and talk.offers("draft_message") and not (order.urls and not recipients):
        return Turn("I draft the message first.", (Want("draft_message", {**_message(talk), "to": recipients}),))
    if (failed := talk.failed("draft_message")) and not talk.made("draft_message") and len(failed) == 1:
        plain = {**_message(talk), "attachments": [], "to": recipients}
        return Turn("I draft it again without attachments.", (Want("draft_message", plain),))
    if wants := _deliveries(talk, order):
        return Turn("", wants)
    return Turn("", (_submit(talk),))


def _deliveries(talk: Conversation, order: Order) -> tuple[Want, ...]:
    if why_kept(talk, order):
        return ()
    wants: list[Want] = []
    drafted = not talk.offers("draft_message") or bool(talk.made("draft_message"))
    if order.recipients and drafted and talk.offers("send_email") and _SEND.search(talk.question):
        message = dict(talk.made("draft_message")[-1].arguments) if talk.made("draft_message") else {**_message(talk), "to": list(order.recipients)}
        if cannot_send(talk):
            pass  # a person would be asked to agree to what cannot happen
        elif not talk.tried("send_email"):
            wants.append(Want("send_email", message))
        elif _may_try_again(talk) and message.get("attachments"):
            wants.append(Want("send_email", {**message, "attachments": []}))
    posted = {call.arguments.get("url") for call in talk.calls if call.tool == "post_webhook"}
    urls = order.urls if talk.offers("post_webhook") else ()
    wants += [Want("post_webhook", {"url": url, "body": _webhook_body(talk)}) for url in urls if url not in posted]
    return tuple(wants)


def why_kept(talk: Conversation, order: Order) -> str:
    """Return why a message stays a draft although it may have recipients: the task forbids to send it, or there is nothing in it."""
    if order.is_forbidden:
        return "The task says not to send it."
    if not (_own_text(talk) or talk.outcomes or talk.not_done or _files(talk) or _named_files(talk)):
        return "There is nothing to say: the task holds no text, no file and no result of an earlier step."
    return ""


def cannot_send(talk: Conversation) -> str:
    """Return why no mail can be sent from here, as the tool that drafts says; empty when nothing is known to stand in the way."""
    drafts = talk.made("draft_message")
    found = _NO_WAY_OUT.search(drafts[-1].result or "") if drafts else None
    return " ".join(found.group(1).split()) if found else ""


def _may_try_again(talk: Conversation) -> bool:
    """Only an attachment that does not exist is safe to correct: nothing left the house. Whatever else went wrong is for a person."""
    failed = talk.failed("send_email")
    return (
        len(failed) == 1
        and not talk.made("send_email")
        and bool(re.search(r"\bno (?:file|artifact|attachment)\b|attachment.{0,80}(?:unknown|not)", failed[0].result or "", re.IGNORECASE))
    )


def _webhook_body(talk: Conversation) -> Any:
    message = _message(talk)
    wanted = talk.tools["post_webhook"].parameters.get("properties", {}).get("body", {})
    body = {"subject": message["subject"], "text": message["body_markdown"]}
    return json.dumps(body, ensure_ascii=False, sort_keys=True) if wanted.get("type") == "string" else body


def _message(talk: Conversation) -> dict[str, Any]:
    given = _SUBJECT.search(talk.question)
    topic = talk.goal
    own_text = _own_text(talk)
    subject = given.group(1) if given else title_of(topic) if topic else _subject_without_goal(talk, own_text)
    files = _files(talk)
    named = _named_files(talk)
    body = [_greeting(talk.question), ""]
    if own_text:
        body += [own_text, ""]
    if talk.outcomes:
        body += [f"Here is what was asked for{': ' + title_of(topic) if topic else ''}.", ""]
        body += [section(item, heading="##", words_max=SECTION_WORDS_MAX) for item in talk.outcomes]
        points = [*open_points(talk.outcomes), *(f"- Not done: {text}" for text in talk.not_done)]
        if points:
            body += ["## Open points", "", *points, ""]
    if files or named:
        body += [f"Attached: {join_words([*named, *files])}.", ""]
    body += ["Kind regards,", "crewlog (wording by the offline rules, not by a person)"]
    text = trim("\n".join(body), talk.constraints.banned_phrases)
    text = cut_words(text, talk.constraints.words_max) if talk.constraints.words_max else text
    return {"subject": shorten(" ".join(subject.split()), 150), "body_markdown": text, "attachments": [*named, *files]}


def _files(talk: Conversation) -> list[str]:
    """Return what is worth attaching: no working copies, and of one picture only one format."""
    names = list(dict.fromkeys(artifact.name for artifact in talk.artifacts if not artifact.name.startswith("workspace/")))
    return [name for name in names if not (name.endswith(".png") and name.removesuffix(".png") + ".svg" in names)][:FILES_MAX]


def _named_files(talk: Conversation) -> list[str]:
    """Return the attachments that the objective names."""
    return [attachment.name for attachment in talk.attachments if attachment.name in talk.question]


def _own_text(talk: Conversation) -> str:
    """Return what the objective itself wants to be said, word for word."""
    question = _SUBJECT.sub(" ", talk.question)
    if texts := quoted(EMAIL.sub(" ", question)):
        return capital(" ".join(texts))
    if text := said(question):
        return capital(" ".join(text.split()).rstrip(" .")) + "."
    if not talk.outcomes and (found := re.match(r"(?:please\s+)?(?:e-?mail|mail|send|post|write)\s+(.+?)\s+to\b", talk.question, re.IGNORECASE)):
        return capital(found.group(1))
    return ""


def _subject_without_goal(talk: Conversation, own_text: str) -> str:
    if own_text:
        return shorten(own_text.split(". ", maxsplit=1)[0].rstrip("."), 80)
    about = re.search(r"\babout\s+([^.;,\n]{3,80})", talk.question, re.IGNORECASE)
    if about:
        return capital(about.group(1))
    return title_of(talk.outcomes[0].objective) if talk.outcomes else title_of(talk.question)


def _greeting(question: str) -> str:
    """Greet by name where every recipient has one."""
    recipients = read_order(question).recipients
    named = {address: name for name, address in _NAMED.findall(question)}
    if recipients and all(address in named for address in recipients):
        return f"Hello {join_words(named[address] for address in recipients)},"
    return "Hello team," if re.search(r"\bteam\b", question, re.IGNORECASE) else "Hello,"


def _submit(talk: Conversation) -> Want:
    return Want("submit_report", {"summary": _report(talk)})


def _report(talk: Conversation) -> str:
    """Say what was done, call by call, and what was not done and why."""
    lines = []
    for call in talk.calls:
        if call.tool == "send_email":
            lines.append(_line(call, f"Mail to {join_words(call.arguments.get('to') or ['nobody'])}, subject “{call.arguments.get('subject', '')}”"))
        elif call.tool == "post_webhook":
            lines.append(_line(call, f"Post to {call.arguments.get('url')}"))
    if not lines and (drafts := talk.made("draft_message")):
        lines.append(f"A draft is ready: subject “{drafts[-1].arguments.get('subject', '')}”. Nothing was sent.")
        if reason := cannot_send(talk):
            lines.append(f"It cannot be sent from here: {reason}.")
        if reason := why_kept(talk, read_order(talk.question)):
            lines.append(reason)
        elif not drafts[-1].arguments.get("to"):
            lines.append("The task names no address, and none is made up: add one to the goal, such as `name@example.org`, to have it sent.")
    elif not lines:
        errors = [call.result for call in talk.calls if call.is_error]
        lines.append(
            "No message was made." + (f" The draft was refused: {errors[-1]}" if errors else " The task names neither an address nor something to say.")
        )
    return "\n".join(lines)


def _line(call: Call, what: str) -> str:
    answer = " ".join((call.result or "no answer").split())
    answer = answer if answer.startswith(f"{call.tool} ") else capital(answer)  # the name of a tool is written as it is
    if not call.is_error:
        return f"{what}: done. {shorten(answer, 400)}"
    is_unknown = re.search(r"\bmay (?:or may not )?have (?:been|happened)|\bunknown\b", answer)
    return f"{what}: {'outcome unknown, not repeated' if is_unknown else 'not done'}. {shorten(answer, 400)}"
