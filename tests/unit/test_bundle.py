"""A run in a file: the same bytes every time, nothing lost, nothing accepted that was not written, replayed without a server."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from click.testing import Result
from msgspec.structs import replace
from support.played import histories, quiet_log, troubled_log
from typer.testing import CliRunner

from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.orchestrator.bundle import Bundle, collect, pack_bundle, read_bundle, unpack_bundle
from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import RunId
from crewlog.schemas.payload import content_hash


def planned_run(log: MemoryLog) -> RunHistory:
    return next(run for run in histories(log) if len(run.task_streams) == 3)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """An exported run."""
    log = quiet_log()
    path = tmp_path / "run.crewlog"
    path.write_bytes(pack_bundle(asyncio.run(collect(MemoryStore(log), planned_run(log).run_id))))
    return path


def test_a_run_comes_back_as_it_was_and_replays_to_the_same_state() -> None:
    for log in (quiet_log(), troubled_log(9), troubled_log(13)):
        store = MemoryStore(log)
        for history in histories(log):
            bundle = asyncio.run(collect(store, history.run_id))
            data = pack_bundle(bundle)
            read = unpack_bundle(data, "file")
            assert list(read.events) == list(asyncio.run(store.read_run(history.run_id)))
            assert read.blobs == bundle.blobs
            assert pack_bundle(asyncio.run(collect(read.store(), history.run_id))) == data, "canonical"
            here, there = (asyncio.run(replay(log_, history.run_id)) for log_ in (store, read.store()))
            assert here == there
            assert there.divergence is None


def test_blobs_of_any_bytes_and_events_of_any_text_survive() -> None:
    log = quiet_log()
    bundle = asyncio.run(collect(MemoryStore(log), planned_run(log).run_id))
    odd = (b"\x00\xff\r\n", b"", "line\r\nline\u2028\u0085 ünï\n".encode(), b"\r")
    refs = msgspec.json.encode([content_hash(blob) for blob in odd])
    strange = replace(bundle.events[-1], type="Later", data=b'{"a" :\n"\xc3\xa9\\n\\u0041", "refs": %b}\r\n' % refs)
    wider = Bundle(bundle.run_id, [*bundle.events[:-1], strange], {content_hash(blob): blob for blob in odd})

    read = unpack_bundle(pack_bundle(wider), "file")

    assert read.blobs == wider.blobs
    assert read.events[-1] == strange


def test_a_long_run_is_read_in_time_that_grows_with_its_length() -> None:
    log = quiet_log()
    run = planned_run(log)
    texts = [b"%d" % n + b"x" * 6_000 for n in range(1_200)]
    long = [
        replace(run.events[-1], event_id=UUID(int=n + 1), data=b'{"text":"%s","ref":"%s"}' % (text, content_hash(text).encode()))
        for n, text in enumerate(texts)
    ]
    packed = pack_bundle(Bundle(run.run_id, long, {content_hash(text): text for text in texts}))

    began = time.process_time()
    assert len(unpack_bundle(packed, "file").blobs) == len(texts)
    assert time.process_time() - began < 2  # looking for each blob in all events takes ten times as long


def test_a_run_that_was_erased_says_so_in_its_file() -> None:
    log = quiet_log()
    bundle = asyncio.run(collect(MemoryStore(log), planned_run(log).run_id))
    erased = bundle._replace(events=[replace(event, erased_us=7 * (n % 2)) for n, event in enumerate(bundle.events)])
    read = unpack_bundle(pack_bundle(erased), "file")
    assert list(read.events) == list(erased.events)
    report = asyncio.run(replay(read.store(), bundle.run_id))
    assert (report.erased_us, report.divergence) == (7, None)


def test_a_file_is_hardly_larger_than_its_distinct_content_packed_alone() -> None:
    """Recordings of golden tasks, read and written anew (files of version 1 are larger): data of events and texts, each once, are all that counts."""
    files = alone = 0
    for path in sorted((Path(__file__).parents[1] / "golden_tasks").glob("*.run")):
        bundle = read_bundle(path)
        data = pack_bundle(bundle)
        assert unpack_bundle(data, "file") == bundle
        assert len(data) <= path.stat().st_size
        files += len(data)
        alone += len(gzip.compress(b"\n".join([*(event.data for event in bundle.events), *bundle.blobs.values()])))
    assert files <= 1.15 * alone


def test_what_was_not_written_is_not_read(path: Path) -> None:
    data = path.read_bytes()
    body = gzip.decompress(data)
    for broken in (b"", b"nonsense", data[: len(data) // 2], data[:-9], gzip.compress(b""), gzip.compress(b"{}\n"), gzip.compress(b"x\ny\n")):
        with pytest.raises(ContractError, match="file"):
            unpack_bundle(broken, "file")
    for found, instead in ((b"look done", b"look what"), (b'"actor":', b'"aktor":')):
        assert found in body
        with pytest.raises(ContractError, match="is not what was exported"):
            unpack_bundle(gzip.compress(body.replace(found, instead, 1)), "file")


def resealed(body: bytes) -> bytes:
    *lines, _ = body.split(b"\n")[:-1]
    text = b"".join(line + b"\n" for line in lines)
    return gzip.compress(text + msgspec.json.encode({"sha256": content_hash(text)}) + b"\n")


def test_a_file_with_a_new_checksum_is_still_held_to_its_blobs_and_counts(path: Path) -> None:
    body = gzip.decompress(path.read_bytes())
    assert unpack_bundle(resealed(body), "file").run_id == read_bundle(path).run_id
    assert b"Do what you are told" in body
    with pytest.raises(ContractError, match="holds other bytes"):
        unpack_bundle(resealed(body.replace(b"Do what you are told", b"Do as you please all")), "file")
    with pytest.raises(ContractError, match=r"holds other bytes|does not fit"):
        unpack_bundle(resealed(b"".join(line + b"\n" for n, line in enumerate(body.split(b"\n")[:-1]) if n != 3)), "file")
    with pytest.raises(ContractError, match="version 9"):
        unpack_bundle(resealed(body.replace(b'"version":2', b'"version":9', 1)), "file")


def test_a_small_file_that_claims_to_hold_much_or_is_nested_deeply_is_refused(path: Path) -> None:
    body = gzip.decompress(path.read_bytes())
    events = json.loads(body[: body.index(b"\n")])["events"]
    deep = b"[" * 5_000 + b"]" * 5_000
    for found, instead in ((b'"events":%d' % events, b'"events":%d' % 10**15), (b'"version":2', b'"version":2,"x":' + deep)):
        assert found in body
        with pytest.raises(ContractError, match="is no exported run"):
            unpack_bundle(resealed(body.replace(found, instead, 1)), "file")
    with pytest.raises(ContractError, match="is no exported run"):
        unpack_bundle(gzip.compress(b"{}\n" + deep + b"\n"), "file")


@pytest.mark.hand_written("blobs are missing")
def test_a_run_that_is_not_whole_is_not_exported() -> None:
    log = quiet_log()
    history = planned_run(log)
    hollow = MemoryStore(MemoryLog(log.events, log.by_id, log.streams))
    with pytest.raises(ContractError, match="cannot be exported whole"):
        asyncio.run(collect(hollow, history.run_id))
    with pytest.raises(NotFound):
        asyncio.run(collect(MemoryStore(log), RunId(history.events[0].event_id)))


def crewlog(*arguments: object) -> Result:
    return CliRunner().invoke(command_line(), [str(argument) for argument in arguments])


def printed(*arguments: object) -> Any:
    done = crewlog(*arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def try_every_command(path: Path, tmp_path: Path) -> None:
    """Try every command on a file, as a person without a crew does."""
    report = printed("replay", path, "--verify")
    assert report["divergence"] is None
    assert {"run_id", "events", "streams", "model_calls", "state_hash", "divergence", "unknown", "erased_us"} == set(report)
    events = report["events"]
    moment = printed("replay", path, "--to", 12)
    assert set(moment) == {"event", "index", "of", "run", "tasks", "task", "conversation"}
    assert (moment["index"], moment["of"]) == (12, events)
    assert printed("replay", path, "--to", f"@{moment['event']['position']}") == moment
    steps = crewlog("replay", path, "--step", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["index"] for line in steps] == list(range(1, events + 1))
    assert {"task_id", "key", "kind", "system", "tools", "model", "is_compacted", "lines"} == set(printed("show", path, "--as", "conversation")[0])
    tree = printed("show", path, "--as", "tree")
    assert printed("show", path) == tree, "a file has no views to take an answer from"
    assert set(tree) == {"run_id", "goal", "status", "events", "submitted_us", "finished_us", "cost_micro_usd", "unpriced_calls", "answer", "tasks"}
    assert {"what", "name", "key", "turn", "status", "index", "started_us", "finished_us", "cost_micro_usd"} == set(
        printed("show", path, "--as", "timeline")[0]
    )
    assert len(crewlog("show", path, "--as", "events").stdout.splitlines()) == events
    told = printed("explain", f"{path}:12")
    assert set(told) == {"run_id", "index", "of", "event", "texts", "decided_by", "caused_by", "led_to", "request", "call", "decision"}
    assert set(told["caused_by"][0]) == {"relation", "index", "position", "event_id", "stream", "type", "text"}
    same = printed("diff", path, path)
    assert set(same) == {"is_identical", "a", "b", "differs", "first", "saw", "tasks", "steps"}
    assert same["is_identical"] is True
    part = crewlog("diff", f"{path}:12", path)
    assert part.exit_code == 1
    assert "first difference" in part.stdout
    again = tmp_path / "again.crewlog"
    assert crewlog("export", path, "--out", again).exit_code == 0
    assert again.read_bytes() == path.read_bytes()
    lines = crewlog("export", path, "--as", "ndjson", "--out", "-").stdout.splitlines()
    assert len(lines) == events
    assert json.loads(lines[0])["type"] == "RunSubmitted"
    redacted = crewlog("export", path, "--as", "ndjson", "--redact", "look d[a-z]+", "--out", "-").stdout
    assert redacted.count("[redacted]") == "\n".join(lines).count("look done") > 0
    assert crewlog("export", path, "--redact", "look", "--out", again).exit_code == 0
    assert printed("replay", again)["events"] == events
    assert crewlog("replay", again, "--verify").exit_code == 1, "what was redacted is not what was recorded"
    assert crewlog("export", again, "--out", tmp_path / "third.crewlog").exit_code == 0
    assert (tmp_path / "third.crewlog").read_bytes() == again.read_bytes()
    assert printed("explain", path)["index"] == events
    assert list(tmp_path.glob(".*")) == []
    for view in ("conversation", "timeline", "tree"):
        assert crewlog("show", path, "--as", view).exit_code == 0
    for arguments in (("replay", path, "--to", 12), ("replay", path, "--step"), ("explain", f"{path}:12")):
        assert crewlog(*arguments).exit_code == 0


@pytest.mark.hand_written("what was redacted does not follow from itself")
def test_every_command_works_on_a_file_without_a_crew(path: Path, tmp_path: Path) -> None:
    try_every_command(path, tmp_path)


def test_wrong_use_says_what_is_wrong(path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    assert crewlog("replay", tmp_path / "notes.txt").exit_code == 2
    assert crewlog("replay", path, "--to", "soon").exit_code == 2
    assert crewlog("replay", path, "--to", "9999").exit_code == 3
    assert crewlog("explain", f"{path}:9999").exit_code == 3
