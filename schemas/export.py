"""Export the public contract as JSON Schema, one file per message type, into `schemas/json/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import msgspec

from crewlog.schemas.codec import EVENT_TYPES
from crewlog.schemas.parse import json_schema
from crewlog.schemas.plan import Plan
from crewlog.schemas.task import AgentTask

_MESSAGES: Final[tuple[type, ...]] = (AgentTask, Plan)


def json_schemas() -> Mapping[str, str]:
    """Return file name -> text of every exported schema, in the form in which they are committed."""
    files = {f"{cls.__name__}.json": json_schema(cls) for cls in _MESSAGES}
    schemas, components = msgspec.json.schema_components(EVENT_TYPES.values(), ref_template="#/$defs/{name}")
    events = {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": list(schemas), "$defs": components}
    files["events.json"] = events
    return {name: json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n" for name, schema in files.items()}
