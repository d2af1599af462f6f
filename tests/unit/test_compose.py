"""`compose.yaml` is held to the keys it uses and to the command line; there is no Docker engine to try it with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from crewlog.events.config import Config
from crewlog.events.grants import BUILT_IN_KINDS, ROLES
from crewlog.orchestrator.cli import command_line

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()

_STRINGS = {"type": "array", "items": {"type": "string"}}
_DURATION = {"type": "string", "pattern": r"^\d+(s|m)$"}
_ENVIRONMENT = {"type": "object", "patternProperties": {"^[A-Z][A-Z0-9_]*$": {"type": ["string", "null"]}}, "additionalProperties": False}
_SERVICE = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "build": {"const": "."},
        "image": {"type": "string"},
        "command": _STRINGS,
        "profiles": _STRINGS,
        "init": {"type": "boolean"},
        "restart": {"enum": ["no", "unless-stopped"]},
        "stop_grace_period": _DURATION,
        "environment": _ENVIRONMENT,
        "volumes": {"type": "array", "items": {"type": "string", "pattern": r"^[a-z]+:/[^:]+$"}},
        "healthcheck": {
            "type": "object",
            "required": ["test", "interval", "timeout", "retries"],
            "additionalProperties": False,
            "properties": {
                "test": {"type": "array", "prefixItems": [{"const": "CMD"}], "items": {"type": "string"}, "minItems": 2},
                "interval": _DURATION,
                "timeout": _DURATION,
                "retries": {"type": "integer"},
            },
        },
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["condition"],
                "additionalProperties": False,
                "properties": {"condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]}},
            },
        },
    },
}
SCHEMA = {
    "type": "object",
    "required": ["services", "volumes"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"type": "string"},
        "services": {"type": "object", "additionalProperties": _SERVICE},
        "volumes": {"additionalProperties": {"type": "null"}},
    },
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def test_it_has_the_shape_of_a_compose_file(compose: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(compose)


def test_names_that_it_refers_to_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        for name, condition in service.get("depends_on", {}).items():
            assert condition["condition"] != "service_healthy" or "healthcheck" in services[name]


def test_every_command_exists_and_every_kind_has_a_service(compose: dict[str, Any]) -> None:
    ours = {name: service for name, service in compose["services"].items() if service["image"] == "crewlog"}
    commands: Any = get_command(command_line())
    for service in ours.values():
        command = commands
        for word in service["command"]:
            if not hasattr(command, "commands"):
                break
            command = command.commands[word]
    agents = [service["command"][1] for service in ours.values() if service["command"][0] == "agent"]
    assert sorted(agents) == sorted(BUILT_IN_KINDS)


def test_every_process_has_its_own_login(compose: dict[str, Any]) -> None:
    logins = {
        name: s["environment"]["CREWLOG_DATABASE_URL"].split("://")[1].split(":")[0] for name, s in compose["services"].items() if s["image"] == "crewlog"
    }
    assert logins.pop("migrate") == "crewlog_admin"
    assert logins.pop("cli") == "crewlog_operator"
    assert logins == {name: f"crewlog_{name}" for name in logins}
    assert {f"{role.upper()}_PASSWORD" for role in ROLES} == {key for key in compose["services"]["migrate"]["environment"] if key.endswith("_PASSWORD")}


def test_settings_are_settings_of_the_program(compose: dict[str, Any]) -> None:
    known = {f"CREWLOG_{name.upper()}" for name in Config.model_fields} | {f"{role.upper()}_PASSWORD" for role in ROLES}
    used = {key for s in compose["services"].values() if s["image"] == "crewlog" for key in s["environment"] if key.startswith("CREWLOG_")}
    assert used <= known


def test_every_variable_is_explained_in_the_example(compose: dict[str, Any]) -> None:
    explained = set(re.findall(r"^([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT)) | {"ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY"} == explained
    passed_on = {key for s in compose["services"].values() for key, value in s.get("environment", {}).items() if value is None} - explained
    assert passed_on == set(re.findall(r"^# ([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE)), "an empty value would not be none"


def test_no_password_has_a_default_and_each_is_demanded(compose: dict[str, Any]) -> None:
    for name in set(re.findall(r"\$\{([A-Z_]+PASSWORD)", TEXT)):
        assert f"${{{name}:?" in TEXT
        assert f"${{{name}:-" not in TEXT


def test_postgres_18_keeps_its_data_in_the_volume(compose: dict[str, Any]) -> None:
    assert compose["services"]["postgres"]["image"] == "postgres:18"
    assert compose["services"]["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_postgres_is_healthy_once_others_can_reach_it(compose: dict[str, Any]) -> None:
    test = compose["services"]["postgres"]["healthcheck"]["test"]
    assert test[test.index("--host") + 1] == "127.0.0.1"


def test_services_can_be_scaled(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert "container_name" not in service
        assert "ports" not in service


def test_no_setting_stands_there_twice() -> None:
    for name, pattern in ((".env.example", r"(?m)^(\w+)="), ("compose.yaml", r"(?m)^(  CREWLOG_\w+):")):
        found = re.findall(pattern, (ROOT / name).read_text())
        assert found
        assert len(found) == len(set(found)), f"{name} names a setting twice"
