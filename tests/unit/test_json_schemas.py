"""The exported JSON Schemas are what the code says. After a change of the contract, write them anew with

from pathlib import Path
from crewlog.schemas.export import json_schemas
for name, text in json_schemas().items():
    Path("schemas/json", name).write_text(text)
"""

from __future__ import annotations

import json
from importlib.resources import files
from uuid import uuid4

import jsonschema
import msgspec
import pytest

from crewlog.schemas.export import json_schemas
from crewlog.schemas.task import parse_task


@pytest.mark.parametrize("name", sorted(json_schemas()))
def test_committed_schema_is_current(name: str) -> None:
    committed = (files("crewlog.schemas") / "json" / name).read_text()
    assert committed == json_schemas()[name], __doc__


def test_no_schema_is_left_over() -> None:
    assert {p.name for p in (files("crewlog.schemas") / "json").iterdir()} == set(json_schemas())


def test_a_task_we_accept_fits_the_published_schema() -> None:
    schema = json.loads(json_schemas()["AgentTask.json"])
    task = parse_task({"task_id": str(uuid4()), "type": "run", "objective": "x", "plan": {"steps": [{"key": "a", "type": "data", "objective": "y"}]}})
    jsonschema.validate(json.loads(msgspec.json.encode(task)), schema)
