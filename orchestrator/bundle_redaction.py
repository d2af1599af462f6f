"""Take secrets and personal data out of an exported run, texts and blobs alike, so that the rest still folds and can be looked at.

What was replaced gets new sizes and new hashes, and whatever referred to the old hash refers to the new one. Requests that models were sent
cannot be rebuilt from that: `replay --verify` of such a file finds it different, and its header says why. Artifacts are left out altogether: what
stands in a picture, an archive or the encoded part of a mail is found by no pattern. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from crewlog.events.store import Recorded
from crewlog.orchestrator.bundle import Bundle
from crewlog.orchestrator.redaction import REDACTED, redact
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash


def redact_bundle(bundle: Bundle, patterns: Sequence[re.Pattern[str]]) -> Bundle:
    """Return the bundle with every match replaced; the same bundle when there is none to look for."""
    if not patterns:
        return bundle
    fresh = {hash_: _redacted_blob(data, patterns) for hash_, data in bundle.blobs.items()}
    renamed = {hash_: content_hash(data) for hash_, data in fresh.items()}
    sizes = {renamed[hash_]: len(data) for hash_, data in fresh.items()}
    events = [_redacted_event(recorded, patterns, renamed, sizes) for recorded in bundle.events]
    blobs = {renamed[hash_]: data for hash_, data in fresh.items()}
    return bundle._replace(events=events, blobs=blobs, is_redacted=True, files={})


def _redacted_blob(data: bytes, patterns: Sequence[re.Pattern[str]]) -> bytes:
    """Replace matches in a text; what is none is left out altogether, since nobody could look into it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return REDACTED.encode()
    return str(redact(text, patterns)).encode()


def _redacted_event(recorded: Recorded, patterns: Sequence[re.Pattern[str]], renamed: Mapping[Hash, Hash], sizes: Mapping[Hash, int]) -> Recorded:
    before = msgspec.json.decode(recorded.data)
    after = _fitted(redact(_renamed(before, renamed), patterns), sizes)
    return recorded if after == before else replace(recorded, data=msgspec.json.encode(after))


def _renamed(value: Any, renamed: Mapping[Hash, Hash]) -> Any:
    """Let everything that refers to a blob refer to what it has become."""
    if isinstance(value, str):
        return renamed.get(Hash(value), value)
    if isinstance(value, list):
        return [_renamed(item, renamed) for item in value]
    if isinstance(value, dict):
        return {name: _renamed(item, renamed) for name, item in value.items()}
    return value


def _fitted(value: Any, sizes: Mapping[Hash, int]) -> Any:
    """Let payloads say the size that they have now."""
    if isinstance(value, list):
        return [_fitted(item, sizes) for item in value]
    if not isinstance(value, dict):
        return value
    fitted = {name: _fitted(item, sizes) for name, item in value.items()}
    if isinstance(fitted.get("size"), int) and fitted.keys() <= {"size", "inline", "ref"}:
        if isinstance(fitted.get("inline"), str):
            fitted["size"] = len(fitted["inline"].encode())
        elif isinstance(fitted.get("ref"), str):
            fitted["size"] = sizes.get(Hash(fitted["ref"]), fitted["size"])
    return fitted
