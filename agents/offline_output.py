"""Rules for a structured answer: each field is filled from what the conversation holds, or named as one that cannot be filled.

Evidence, best first: JSON that tools returned or were given, what was said in the end, what tools returned as text. A field takes a value under
its own name; an enum the option that is spoken of; a number the one that stands beside the field's words; a text the answer or the
sentence that speaks of it. Nothing is made up: a required field without evidence fails the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from crewlog.agents.offline_conversation import Conversation, result_data
from crewlog.agents.offline_text import NUMBER, closeness, join_words, name_tokens, sentences, stem, stems, terms, words
from crewlog.agents.schema_dialect import NotStrict, Schema, resolve
from crewlog.schemas.blocks import Message, ModelRequest, Text, ToolUse
from crewlog.schemas.json_output import schema_problems
from crewlog.schemas.text import shorten

_ANSWER_WORDS: Final = stems("answer summary text report result finding findings markdown message content conclusion explanation description reason body")
_TITLE_WORDS: Final = stems("title headline subject heading")
_NEGATIONS: Final = frozenset({"no", "not", "never", "none", "without", "cannot", "failed"})
_HANDS_IN: Final = ("submit", "finish", "complete", "report")
"""How the names of tools begin whose arguments are the result of the task."""
_LABELS: Final = ("label", "name", "key", "field")
_NEAR_CHARS: Final = 60
"""How far from a field's words its number may stand."""
_DEPTH_MAX: Final = 6
_MISSING: Final = object()


class Evidence(NamedTuple):
    """What a conversation holds: JSON values, and texts, each best first."""

    data: tuple[Any, ...]
    texts: tuple[str, ...]


class Unfilled(Exception):
    """Fields that nothing in the conversation fills."""

    def __init__(self, fields: list[str]) -> None:
        super().__init__(join_words(fields))
        self.fields = fields


def write_output(talk: Conversation, request: ModelRequest) -> str:
    """Return the answer as JSON, or a sentence that names what cannot be filled by rules."""
    assert request.output is not None
    schema = request.output.schema
    evidence = gather(talk, request)
    names = set(schema.get("properties") or ())
    whole = next((found for found in evidence.data if isinstance(found, dict) and names & set(found) and not schema_problems(found, schema)), None)
    try:
        filled = whole if whole is not None else _Filler(schema, evidence).object(schema, "")
    except (Unfilled, NotStrict) as error:
        return f"The offline rules cannot fill these fields from what the tools returned: {error}."
    if problems := schema_problems(filled, schema):
        return f"The offline rules cannot satisfy the schema: {'; '.join(problems)}."
    return json.dumps(filled, ensure_ascii=False, sort_keys=True)


def gather(talk: Conversation, request: ModelRequest) -> Evidence:
    """Collect what fields may be filled from."""
    good = [call for call in reversed(talk.calls) if call.result is not None and not call.is_error]
    results = [found for call in good if isinstance(found := result_data(call.result), dict | list)]
    given = [dict(call.arguments) for call in good if call.tool.startswith(_HANDS_IN)]
    outputs = [item.outcome.output for item in reversed(talk.outcomes) if item.outcome.output is not None]
    said = [block.text for message in reversed(request.messages) if _is_said(message) for block in message.content if isinstance(block, Text)]
    spoken = [text for arguments in given for text in arguments.values() if isinstance(text, str)]
    texts = (*said, *spoken, *(call.result or "" for call in good), *(item.outcome.summary for item in talk.outcomes))
    return Evidence((*given, *results, *outputs), tuple(text for text in texts if text.strip()))


def _is_said(message: Message) -> bool:
    """Whether it is an answer: what stands beside tool calls only announces them."""
    return message.role == "assistant" and not any(isinstance(block, ToolUse) for block in message.content)


class _Filler:
    def __init__(self, root: Schema, evidence: Evidence) -> None:
        self._root, self._evidence = root, evidence

    def object(self, schema: Schema, path: str, depth: int = 0) -> dict[str, Any]:
        required = schema.get("required", ())
        filled: dict[str, Any] = {}
        missing: list[str] = []
        for name, raw in (schema.get("properties") or {}).items():
            try:
                value = self._value(name, raw, f"{path}{name}", depth)
            except Unfilled as error:
                value = _MISSING
                missing += error.fields if name in required else []
            else:
                missing += [f"{path}{name}"] if value is _MISSING and name in required else []
            if value is not _MISSING:
                filled[name] = value
        if missing:
            raise Unfilled(missing)
        return filled

    def _value(self, name: str, raw: Any, path: str, depth: int) -> Any:
        if not isinstance(raw, dict) or depth > _DEPTH_MAX:
            return _MISSING
        branches, takes_null = self._branches(raw)
        for schema in branches:
            if (value := self._of(name, schema, path, depth)) is not _MISSING and not schema_problems(value, {**schema, "$defs": self._root.get("$defs", {})}):
                return value
        return None if takes_null else _MISSING

    def _branches(self, raw: Schema) -> tuple[list[Schema], bool]:
        """Return what a value may be, and whether it may be null."""
        schema = resolve(raw, self._root)
        choices = [resolve(choice, self._root) for key in ("anyOf", "oneOf") for choice in schema.get(key, ()) if isinstance(choice, dict)] or [schema]
        kinds = [(choice, kind) for choice in choices for kind in _types(choice)]
        return [{**choice, "type": kind} if kind else choice for choice, kind in kinds if kind != "null"], any(kind == "null" for _, kind in kinds)

    def _of(self, name: str, schema: Schema, path: str, depth: int) -> Any:
        if "const" in schema:
            return schema["const"]
        if isinstance(options := schema.get("enum"), list):
            return self._option(options, name)
        for known in self._known(name):
            if not schema_problems(known, {**schema, "$defs": self._root.get("$defs", {})}):
                return known
        match schema.get("type"):
            case "object":
                return self.object(schema, f"{path}.", depth + 1) if schema.get("properties") else _MISSING
            case "array":
                return self._list(schema)
            case "integer" | "number":
                return self._number(name, is_whole=schema["type"] == "integer")
            case "boolean":
                return self._truth(name)
            case "string":
                return self._text(name, int(schema.get("maxLength", 0)))
            case _:
                return _MISSING

    def _known(self, name: str) -> Iterator[Any]:
        """Values under the field's own name, in the JSON of the conversation."""
        tokens = name_tokens(name)
        for mapping in (found for data in self._evidence.data for found in _mappings(data)):
            yield from (value for key, value in sorted(mapping.items(), key=lambda item: item[0] != name) if name_tokens(str(key)) == tokens)
            label = next((str(mapping[key]) for key in _LABELS if key in mapping), "")
            if "value" in mapping and label and closeness(terms(label), name) >= 1:
                yield mapping["value"]

    def _option(self, options: list[Any], name: str) -> Any:
        if (known := next((value for value in self._known(name) if value in options), _MISSING)) is not _MISSING:
            return known
        for text in self._evidence.texts:
            spoken = [stem(word) for word in words(text)]
            counts = [sum(spoken.count(token) for token in name_tokens(str(option))) for option in options]
            if max(counts) > 0:
                return options[counts.index(max(counts))]
        return _MISSING

    def _number(self, name: str, *, is_whole: bool) -> Any:
        tokens = name_tokens(name)
        best: tuple[float, int, str] | None = None
        for sentence in self._sentences():
            fit = closeness(terms(sentence), name)
            for found in NUMBER.finditer(sentence) if fit >= 0.5 else ():
                away = min((_distance(found, word) for word in re.finditer(r"\w+", sentence) if stem(word[0].lower()) in tokens), default=_NEAR_CHARS + 1)
                if away <= _NEAR_CHARS and (best is None or (-fit, away) < best[:2]):
                    best = (-fit, away, found[0])
        if best is None:
            return _MISSING
        return (int(best[2]) if "." not in best[2] else _MISSING) if is_whole else float(best[2])

    def _truth(self, name: str) -> Any:
        for sentence in self._sentences():
            if closeness(terms(sentence), name) >= 1:
                return not _NEGATIONS & set(words(sentence))
        return _MISSING

    def _text(self, name: str, chars_max: int) -> Any:
        tokens = set(name_tokens(name))
        if not self._evidence.texts:
            return _MISSING
        answer = self._evidence.texts[0]
        if tokens & _ANSWER_WORDS:
            found = answer
        elif tokens & _TITLE_WORDS:
            found = next((line.lstrip("# ") for line in answer.splitlines() if line.strip(" #*")), answer)
        else:
            found = next((sentence for sentence in self._sentences() if closeness(terms(sentence), name) >= 1), "")
        return (shorten(found, chars_max) if chars_max else found) or _MISSING

    def _list(self, schema: Schema) -> Any:
        items = resolve(schema["items"], self._root) if isinstance(schema.get("items"), dict) else {}
        kept = {**items, "$defs": self._root.get("$defs", {})}
        for data in self._evidence.data:
            for found in (value for value in (data, *(v for m in _mappings(data) for v in m.values())) if isinstance(value, list) and value):
                cut = [_cut(item, items) for item in found]
                if not any(schema_problems(item, kept) for item in cut):
                    return cut[: schema.get("maxItems", len(cut))]
        if items.get("type") == "string":
            for text in self._evidence.texts:
                listed = [found[1].strip() for found in re.finditer(r"(?m)^\s*(?:[-*]|\d+[.)])\s+(.+)$", text)]
                if listed and not any(schema_problems(item, kept) for item in listed):
                    return listed[: schema.get("maxItems", len(listed))]
        return _MISSING

    def _sentences(self) -> Iterator[str]:
        for text in self._evidence.texts:
            for line in filter(None, map(str.strip, text.splitlines())):
                yield from sentences(line)


def _types(schema: Schema) -> list[str]:
    types = schema.get("type", "")
    return types if isinstance(types, list) else [types]


def _mappings(data: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value, outer ones first."""
    if depth > _DEPTH_MAX:
        return
    if isinstance(data, dict):
        yield data
    for child in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _mappings(child, depth + 1)


def _cut(item: Any, schema: Schema) -> Any:
    """Keep the properties that are asked for."""
    properties = schema.get("properties")
    return {name: item[name] for name in properties if name in item} if isinstance(item, dict) and isinstance(properties, dict) else item


def _distance(number: re.Match[str], word: re.Match[str]) -> int:
    return max(number.start() - word.end(), word.start() - number.end())
