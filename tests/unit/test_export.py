"""Events for other programs: chosen by tenant and time, as CloudEvents and Parquet; and runs from which secrets were taken out."""

from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import msgspec
import pytest
from support.played import histories, quiet_log, troubled_log
from typer.testing import CliRunner

from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.orchestrator.bundle import Bundle, collect, pack_bundle, unpack_bundle
from crewlog.orchestrator.bundle_redaction import redact_bundle
from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.event_export import Owned, Selection, cloud_event, selected
from crewlog.orchestrator.event_text import event_json
from crewlog.orchestrator.redaction import KNOWN, REDACTED, compile_patterns, redact
from crewlog.orchestrator.replay import replay
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import content_hash

NATURAL = "A fine day in Oslo, 2026-11-25T10:00:00Z, at 12.5 degrees; see https://example.org/a?b=1 and run 4ee47d5b-feeb-4ffe-bfc2-2e74e07efb1c"
FOUND = {
    "@secrets": (
        *("sk-ant-" + "a1B2" * 6, "sk-abcdefghijklmnop1234", "ghp_abcdefghijklmnopqrstuvwxyz", "AKIAABCDEFGHIJKLMNOP"),
        *("Authorization: Bearer abcdefghijklmnop1234", "postgresql://crew:secret@db/x", "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"),
        "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
    ),
    "@email": ("ann.lee+x@mail.example.org",),
    "@card": ("4111 1111 1111 1111", "5500-0000-0000-0004"),
    "@iban": ("DE89 3704 0044 0532 0130 00", "NO9386011117947"),
    "@phone": ("+47 22 12 34 56",),
}


def everything(log: MemoryLog, chosen: Selection) -> list[Owned]:
    async def read() -> list[Owned]:
        return [one async for page in selected(MemoryStore(log), chosen) for one in page]

    return asyncio.run(read())


def whole(log: MemoryLog) -> Bundle:
    runs = [asyncio.run(collect(MemoryStore(log), history.run_id)) for history in histories(log)]
    return max(runs, key=lambda bundle: len(bundle.events))


def test_events_are_chosen_by_tenant_and_time() -> None:
    log = troubled_log(9)
    every = everything(log, Selection())
    assert [one.recorded for one in every] == log.events
    of_runs = [one for one in every if one.recorded.run_id is not None]
    assert {one.tenant for one in of_runs} == {"default"}
    assert everything(log, Selection(tenant="default")) == [one for one in every if one.tenant == "default"]
    assert everything(log, Selection(tenant="other")) == []
    at = every[len(every) // 2].recorded.occurred_us
    before, after = everything(log, Selection(until_us=at)), everything(log, Selection(since_us=at))
    assert sorted([*before, *after], key=lambda one: one.recorded.position) == every
    assert before
    assert all(one.recorded.occurred_us >= at for one in after)


def test_a_cloud_event_has_what_the_specification_asks_for() -> None:
    for recorded, tenant in everything(quiet_log(), Selection()):
        event = cloud_event(event_json(recorded), tenant)
        assert event["specversion"] == "1.0"
        assert all(event[name] for name in ("id", "source", "type", "subject", "time"))
        assert all(name.isalnum() and name == name.lower() and len(name) <= 20 for name in event), "names of attributes"
        assert all(isinstance(value, str | int) for name, value in event.items() if name != "data"), "types of attributes"
        assert event["id"] == str(recorded.event_id)
        assert int(event["sequence"]) == recorded.position
        assert event["data"] == msgspec.json.decode(recorded.data)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "run.crewlog"
    path.write_bytes(pack_bundle(whole(quiet_log())))
    return path


def export(*arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = CliRunner().invoke(command_line(), ["export", *map(str, arguments)], env=env)
    assert done.exit_code == code, done.output
    return done.stdout


def test_a_parquet_file_has_every_event(path: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "events.parquet", tmp_path / "events.ndjson"
    export(path, "--as", "parquet", "--out", out)
    export(path, "--as", "ndjson", "--out", lines)
    connection = duckdb.connect()
    found = connection.read_parquet(str(out)).order("position").fetchall()
    events: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines.read_bytes().splitlines()]
    assert [(row[0], row[1], row[2], row[3], str(row[5]), row[6]) for row in found] == [
        (e["position"], e["stream"], e["version"], e["type"], e["event_id"], "default") for e in events
    ]
    assert [msgspec.json.decode(row[-1]) for row in found] == [event["data"] for event in events]
    assert {file.name for file in tmp_path.iterdir()} == {path.name, out.name, lines.name}, "nothing is left beside it"


KILLED = """
import os, signal, sys
from crewlog.orchestrator import __main__ as start, parquet_file
parquet_file.write_parquet = lambda lines, out: os.kill(os.getpid(), signal.SIGKILL)
start.main()
"""


def test_an_export_that_is_killed_leaves_no_texts_under_a_name_nobody_knows(path: Path, tmp_path: Path) -> None:
    words = ["export", path, "--as", "parquet", "--out", tmp_path / "events.parquet"]
    killed = subprocess.run([sys.executable, "-P", "-c", KILLED, *words], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {file.name for file in tmp_path.iterdir()} <= {path.name, ".events.parquet.part"}, "the next attempt writes over the part"


def test_formats_that_do_not_fit_are_refused(path: Path, tmp_path: Path) -> None:
    export("--out", tmp_path / "x", code=2)
    export(path, "--as", "parquet", "--out", "-", code=2)
    export(path, "--as", "ndjson", "--since", "7d", "--out", "-", code=2)
    export("--as", "ndjson", "--since", "yesterday", "--out", "-", code=2)
    cloud = export(path, "--as", "cloudevents", "--out", "-").splitlines()
    assert Counter(msgspec.json.decode(line)["type"] for line in cloud)["crewlog.RunCompleted"] == 1


@pytest.mark.hand_written("what was redacted does not follow from itself")
def test_a_redacted_run_has_no_match_and_folds() -> None:
    bundle = whole(quiet_log())
    (pattern,) = patterns = compile_patterns(["[Ll]ook(ed)?"])
    before = b"".join([*(event.data for event in bundle.events), *bundle.blobs.values()]).decode()
    assert pattern.search(before)
    read = unpack_bundle(pack_bundle(redact_bundle(bundle, patterns)), "file")
    assert read.is_redacted
    assert not any(pattern.search(event.data.decode()) for event in read.events)
    assert not any(pattern.search(blob.decode()) for blob in read.blobs.values())
    assert all(content_hash(blob) == hash_ for hash_, blob in read.blobs.items())
    report = asyncio.run(replay(read.store(), read.run_id, verify=False))
    assert (report.events, report.divergence) == (len(bundle.events), None)
    assert asyncio.run(replay(read.store(), read.run_id)).divergence is not None, "and nobody takes it for the run itself"
    assert redact_bundle(bundle, ()) == bundle


@pytest.mark.hand_written("what was redacted does not follow from itself")
def test_what_the_policy_names_is_taken_out_of_every_file(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.crewlog"
    policy = {"CREWLOG_REDACT": "look d[a-z]+\n@secrets"}
    export(path, "--out", out, env=policy)
    assert b"look done" not in gzip.decompress(out.read_bytes())
    assert REDACTED in export(path, "--as", "ndjson", "--out", "-", env=policy)
    export(path, "--out", out, env={"CREWLOG_REDACT": "@unknown"}, code=2)


@pytest.mark.parametrize("name", KNOWN)
def test_known_patterns_find_what_they_are_named_for(name: str) -> None:
    patterns = compile_patterns([name])
    assert redact(NATURAL, patterns) == NATURAL
    for text in FOUND[name]:
        told = redact(f"before {text} after", patterns)
        assert REDACTED in told
        assert text not in told
        assert told.startswith("before ")
        assert told.endswith(" after")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ContractError, match="known names"):
        compile_patterns(["@everything"])


def test_a_bundle_is_little_more_than_what_it_holds() -> None:
    """Against every distinct value once, compressed alike: ids as bytes, times, data, blobs. The smaller a run, the more names and order cost."""
    bundle = whole(quiet_log())
    ids: dict[UUID, None] = {}
    parts = [*bundle.blobs.values()]
    for event in bundle.events:
        ids |= dict.fromkeys(filter(None, (event.event_id, event.run_id, event.task_id, event.causation_id, event.trace_id)))
        parts += (event.occurred_us.to_bytes(8), event.type.encode(), event.actor.encode(), event.writer.encode(), event.data)
    distinct = gzip.compress(b"".join([*(id_.bytes for id_ in ids), *parts]))
    assert len(pack_bundle(bundle)) <= 1.25 * len(distinct)
