"""Rules for kinds nobody prepared: choose tools by their names and descriptions, fill parameters from literals, answer from the results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from crewlog.agents.offline_conversation import Conversation, Turn, Want, result_data
from crewlog.agents.offline_text import EMAIL, NUMBER, QUOTED, URL, capital, closeness, join_words, name_tokens, quoted, stem, stems, terms, words
from crewlog.schemas.blocks import ToolDef
from crewlog.schemas.text import shorten

CALLS_MAX: Final = 6
ERRORS_MAX: Final = 2
_FINISH: Final = re.compile(r"^(?:submit|finish|complete|done|hand_in|answer|report)(?:_|$)")
_FILE_WORDS: Final = stems("file path name document attachment source filename image table dataset")
_TEXT_WORDS: Final = stems("text content message body input sentence string words markdown phrase title value item line")
_TASK_WORDS: Final = stems("query question objective prompt task instruction request goal topic search")
_MISSING: Final = object()


def use_tools(talk: Conversation) -> Turn:
    """Call the tools that fit the objective, each once, then answer from what they returned."""
    finishing = [tool for name, tool in sorted(talk.tools.items()) if _FINISH.match(name)]
    errors = sum(call.is_error for call in talk.calls)
    if len(talk.calls) < CALLS_MAX and errors <= ERRORS_MAX:
        for tool in _by_fit(talk):
            arguments = fill(tool, talk)
            if arguments is not None and not any(call.tool == tool.name and call.arguments == arguments for call in talk.calls):
                return Turn("", (Want(tool.name, arguments),))
    answer = _answer(talk)
    for tool in finishing:
        if sum(call.tool == tool.name for call in talk.calls) < ERRORS_MAX and (arguments := _fill_finish(tool, talk, answer)) is not None:
            return Turn("", (Want(tool.name, arguments),))
    return Turn(answer)


def _by_fit(talk: Conversation) -> list[ToolDef]:
    """Return the tools worth calling next, best first. One that has answered is done; one that failed is tried once more."""
    wanted = terms(talk.question)
    first = stem(next(iter(words(talk.question)), ""))
    scored: list[tuple[float, str, ToolDef]] = []
    for name, tool in talk.tools.items():
        if _FINISH.match(name) or talk.made(name) or len(talk.failed(name)) > 1:
            continue
        in_name = sum(any(stem_ == word or (len(word) > 4 and len(stem_) > 4 and word[:5] == stem_[:5]) for word in wanted) for stem_ in name_tokens(name))
        described = len(set(wanted) & set(terms(tool.description)))
        parameters = sum(closeness(wanted, parameter) >= 1 for parameter in _properties(tool))
        scored.append((3.0 * in_name + described + 0.5 * parameters + 1.5 * (first in name_tokens(name)), name, tool))
    fitting = [entry for entry in scored if entry[0] >= 1]
    if not fitting and not talk.calls and len(scored) == 1:
        fitting = scored
    best = max((score for score, _, _ in fitting), default=0.0)
    return [tool for score, _, tool in sorted(fitting, key=lambda entry: (-entry[0], entry[1])) if score >= 0.4 * best]


def _properties(tool: ToolDef) -> Mapping[str, Mapping[str, Any]]:
    found = tool.parameters.get("properties")
    return found if isinstance(found, dict) else {}


def fill(tool: ToolDef, talk: Conversation) -> dict[str, Any] | None:
    """Fill a tool's parameters from the objective, the attachments and earlier results; None when a required one stays open."""
    required = set(tool.parameters.get("required") or ())
    pool = _Literals(talk)
    arguments: dict[str, Any] = {}
    for name, schema in _properties(tool).items():
        value = _value(name, _resolved(schema, tool.parameters), pool, talk, is_required=name in required)
        if value is not _MISSING:
            arguments[name] = value
        elif name in required:
            return None
    return arguments


class _Literals:
    """Literals of the objective, each handed out once."""

    def __init__(self, talk: Conversation) -> None:
        text = talk.question
        self.quoted = quoted(text)
        self.emails = list(dict.fromkeys(EMAIL.findall(text)))
        self.urls = list(dict.fromkeys(URL.findall(text)))
        plain = QUOTED.sub(" ", URL.sub(" ", EMAIL.sub(" ", text)))
        self.numbers = NUMBER.findall(plain)
        self.files = sorted(
            (a.name for a in talk.attachments), key=lambda name: (name.lower() not in text.lower(), name.rsplit("/", 1)[-1].lower() not in text.lower(), name)
        )
        self.files += [artifact.name for artifact in talk.artifacts if artifact.name not in self.files]


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(reference := schema.get("$ref"), str):
        return {**(root.get("$defs") or {}).get(reference.rsplit("/", 1)[-1], {}), **{k: v for k, v in schema.items() if k != "$ref"}}
    for choice in schema.get("anyOf") or ():
        if isinstance(choice, dict) and choice.get("type") != "null":
            return {**_resolved(choice, root), **{k: v for k, v in schema.items() if k != "anyOf"}}
    return schema


def _value(name: str, schema: Mapping[str, Any], pool: _Literals, talk: Conversation, *, is_required: bool) -> Any:
    if "const" in schema:
        return schema["const"]
    if isinstance(options := schema.get("enum"), list):
        named = next((option for option in options if stem(str(option).lower()) in {stem(word) for word in words(talk.question)}), _MISSING)
        return named if named is not _MISSING or not is_required else options[0]
    match schema.get("type"):
        case "integer" | "number":
            return _number(name, schema, pool, talk, is_required=is_required)
        case "boolean":
            return True if any(token in terms(talk.question) for token in name_tokens(name)) else False if is_required else _MISSING
        case "array":
            return _list(name, schema, pool, talk, is_required=is_required)
        case "object":
            return _object(talk) if is_required else _MISSING
        case _:
            return _text(name, schema, pool, talk, is_required=is_required)


def _explicit(name: str, question: str) -> str:
    """Return what follows `name is`, `name =` or `name:` in the objective."""
    spoken = r"[\s_-]*".join(map(re.escape, re.split(r"[_\-]", name)))
    found = re.search(rf"\b{spoken}\b\s*(?:is|=|:|of|to|as)\s*(?:[\"“'`]([^\"”'`\n]+)[\"”'`]|([^\s,;]+))", question, re.IGNORECASE)
    return (found.group(1) or found.group(2)).rstrip(".") if found else ""


def _number(name: str, schema: Mapping[str, Any], pool: _Literals, talk: Conversation, *, is_required: bool) -> Any:
    text = _explicit(name, talk.question)
    if not (text and NUMBER.fullmatch(text)):
        if not pool.numbers or not (is_required or closeness(terms(talk.question), name) >= 1):
            return _MISSING
        text = pool.numbers.pop(0)
    elif text in pool.numbers:
        pool.numbers.remove(text)
    return int(float(text)) if schema.get("type") == "integer" else float(text) if "." in text else int(text)


def _list(name: str, schema: Mapping[str, Any], pool: _Literals, talk: Conversation, *, is_required: bool) -> Any:
    items = schema.get("items") if isinstance(schema.get("items"), dict) else {}
    kind = items.get("type") if items else None
    tokens = set(name_tokens(name))
    if kind in ("integer", "number"):
        found: list[Any] = [float(n) if "." in n and kind == "number" else int(float(n)) for n in pool.numbers]
        pool.numbers = []
    elif tokens & {"to", "recipient", "email", "address", "mail", "cc"}:
        found = pool.emails
    elif tokens & _FILE_WORDS and pool.files:
        found = list(pool.files)
    else:
        found, pool.quoted = list(pool.quoted), []
        if not found and is_required:
            after = talk.question.split(":", 1)[1] if ":" in talk.question else ""
            found = [part.strip(" .") for part in re.split(r",|\band\b|\n", after) if part.strip(" .")]
    return found if found or (is_required and not schema.get("minItems")) else _MISSING


def _object(talk: Conversation) -> Any:
    data = next((found for found in (result_data(call.result) for call in reversed(talk.calls) if not call.is_error) if isinstance(found, dict)), None)
    inline = result_data(talk.question[talk.question.find("{") :]) if "{" in talk.question else None
    return inline if isinstance(inline, dict) else data if data is not None else _MISSING


def _text(name: str, schema: Mapping[str, Any], pool: _Literals, talk: Conversation, *, is_required: bool) -> Any:
    tokens = set(name_tokens(name))
    if text := _explicit(name, talk.question):
        return text
    if schema.get("format") == "email" or tokens & {"email", "recipient", "mail", "to"}:
        return pool.emails.pop(0) if pool.emails else _MISSING
    if schema.get("format") == "uri" or tokens & {"url", "uri", "link"}:
        return pool.urls.pop(0) if pool.urls else _MISSING
    if tokens & _FILE_WORDS and pool.files:
        return pool.files.pop(0)
    if not is_required:
        return _MISSING
    if tokens & _TASK_WORDS:
        return talk.question
    if pool.quoted:
        return pool.quoted.pop(0)
    if tokens & _TEXT_WORDS or len(tokens) == 1:
        return _running_text(talk)
    return pool.files.pop(0) if pool.files else talk.question


def _running_text(talk: Conversation) -> str:
    """Return the text to work on: an earlier result, what follows a colon, or the objective."""
    if earlier := [call.result for call in talk.calls if call.result and not call.is_error]:
        return earlier[-1]
    if ":" in talk.question and (after := talk.question.split(":", 1)[1].strip()):
        return after
    summaries = [item.outcome.summary for item in talk.outcomes if item.outcome.summary]
    return "\n\n".join(summaries) if summaries else talk.question


def _answer(talk: Conversation) -> str:
    """Put the results into words; nothing is said that no tool returned, except what is lacking."""
    return "\n\n".join((_told(talk), *talk.lacking))


def _told(talk: Conversation) -> str:
    good = [call for call in talk.calls if call.result is not None and not call.is_error and not _FINISH.match(call.tool)]
    bad = [call for call in talk.calls if call.is_error]
    if len(good) == 1 and not bad:
        return (good[0].result or "").strip() or f"{good[0].tool} returned nothing."
    if good:
        parts = [f"**{capital(call.tool.replace('_', ' '))}**\n\n{(call.result or '').strip() or '(nothing)'}" for call in good]
        parts += [f"{call.tool} failed: {shorten(' '.join((call.result or '').split()), 300)}" for call in bad]
        return "\n\n".join(parts)
    if bad:
        return "This could not be done. " + " ".join(f"{call.tool} failed: {shorten(' '.join((call.result or '').split()), 300)}." for call in bad)
    if not talk.tools:
        return "This could not be done: the offline rules answer from what tools return, and this kind has no tools."
    lacking = [
        f"{name} (needs {join_words(_open(tool, talk)) or 'other words in the objective'})"
        for name, tool in sorted(talk.tools.items())
        if not _FINISH.match(name)
    ]
    return f"This could not be done by rules: no tool could be chosen and filled from the objective. There is {join_words(lacking) or 'only a tool to finish'}."


def _open(tool: ToolDef, talk: Conversation) -> Iterator[str]:
    pool = _Literals(talk)
    for name in tool.parameters.get("required") or ():
        if _value(name, _resolved(_properties(tool).get(name, {}), tool.parameters), pool, talk, is_required=True) is _MISSING:
            yield name


def _fill_finish(tool: ToolDef, talk: Conversation, answer: str) -> dict[str, Any] | None:
    """Fill a tool that ends the task: its first text is the answer, everything else comes from results and literals."""
    arguments: dict[str, Any] = {}
    pool = _Literals(talk)
    results = [found for found in (result_data(call.result) for call in talk.calls if not call.is_error) if isinstance(found, dict)]
    is_answered = False
    for name, raw in _properties(tool).items():
        schema = _resolved(raw, tool.parameters)
        is_required = name in (tool.parameters.get("required") or ())
        known = next((found[name] for found in reversed(results) if name in found), _MISSING)
        if known is not _MISSING:
            arguments[name] = known
        elif schema.get("type") == "string" and "enum" not in schema and not is_answered:
            arguments[name], is_answered = answer, True
        elif is_required:
            value = _value(name, schema, pool, talk, is_required=True)
            if value is _MISSING:
                return None
            arguments[name] = value
    return arguments
