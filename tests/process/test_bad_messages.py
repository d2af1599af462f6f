"""What a client that knows only NATS and JSON gets: an outcome for a good task, and for a bad one the reason, with nothing lost and nothing begun."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client as Nats
from support.live_crew import DEMO, LiveCrew

from crewlog.orchestrator.client import Client
from crewlog.schemas.task import TASK_BYTES_MAX


@pytest.fixture(scope="module")
def url(crew: LiveCrew) -> str:
    return crew.run("nats", "url").stdout.strip()


@pytest.fixture
async def plain(url: str) -> AsyncIterator[Nats]:
    """A client of the library alone, with the login that `crewlog nats url` prints."""
    client = await nats.connect(url)
    yield client
    await client.close()


def step(key: str, kind: str = "data", *after: str) -> dict[str, Any]:
    return {"key": key, "type": kind, "objective": "Count the rows.", "depends_on": after}


def task(**fields: Any) -> bytes:
    return json.dumps({"task_id": str(uuid.uuid4()), "objective": "Count the rows.", **fields}).encode()


def goal(*steps: dict[str, Any]) -> bytes:
    return task(type="run", plan={"steps": steps})


def sized(size: int) -> bytes:
    body = task(type="data")
    return body[:-1] + b', "padding": "' + b"x" * (size - len(body) - 15) + b'"}'


BAD: dict[str, tuple[str, bytes, str]] = {
    "malformed JSON": ("tasks.default.data", b'{"objective": "Count', "not valid JSON"),
    "not an object": ("tasks.default.data", b'"Count"', "must be a JSON object"),
    "an unknown field": ("tasks.default.data", task(type="data", colour="red"), "/colour"),
    "an unknown type": ("tasks.default.sorcery", task(type="sorcery"), "or start an agent of kind 'sorcery' with `crewlog agent MODULE:ATTR`"),
    "another tenant": ("tasks.default.data", task(type="data", tenant="acme"), "'acme' does not fit the subject"),
    "a tenant that is no token": ("tasks.default.data", task(type="data", tenant="a.b"), "does not fit the subject"),
    "another type": ("tasks.default.data", task(type="code"), "'code' does not fit the subject"),
    "a blank objective": ("tasks.default.data", task(type="data", objective=" \t\n"), "must not be blank: say what is to be done"),
    "NUL": ("tasks.default.data", task(type="data", objective="a\0b"), "NUL"),
    "a raw NUL": ("tasks.default.data", b'{"type": "data", "objective": "a\0b"}', "not valid JSON"),
    "a lone surrogate": ("tasks.default.data", b'{"type": "data", "objective": "a\\ud800b"}', "half of a surrogate pair"),
    "broken UTF-8": ("tasks.default.data", b'{"type": "data", "objective": "\xff"}', "not valid JSON"),
    "deep nesting": ("tasks.default.data", b'{"context":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "too large": ("tasks.default.data", sized(TASK_BYTES_MAX + 1), f"at most {TASK_BYTES_MAX} are accepted"),
    "a cycle": ("tasks.default.run", goal(step("a", "data", "b"), step("b", "data", "a")), "cycle through a -> b -> a"),
    "an unknown step": ("tasks.default.run", goal(step("a", "data", "zz")), "depends on unknown zz"),
    "a kind nobody is": ("tasks.default.run", goal(step("a", "sorcery")), "unknown kind 'sorcery'"),
    "a step twice": ("tasks.default.run", goal(step("a"), step("a")), "used more than once: a"),
    "a file that is not attached": ("tasks.default.run", goal({**step("a"), "attachments": ["x.csv"]}), "unknown attachments x.csv"),
}


async def stream(plain: Nats, name: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((await plain.request(f"$JS.API.STREAM.INFO.{name}", timeout=30)).data)["state"]
    return state


async def until_empty(plain: Nats, name: str) -> None:
    async with asyncio.timeout(90):
        while (await stream(plain, name))["messages"]:  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.01)


async def until_nobody_works(client: Client) -> None:
    """Wait until no run is open. Work of one that was cancelled may lie in the queue: nobody may be there to take it."""
    store = await client.store()
    async with asyncio.timeout(90):
        while await store.open_runs(after=None, limit=1):  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_task_that_is_published_is_kept_with_the_reason_and_reaches_no_agent(client: Client, plain: Nats, what: str) -> None:
    subject, body, reason = BAD[what]
    await until_nobody_works(client)
    work, kept = await stream(plain, "WORK"), await stream(plain, "REJECTED")
    copies, verdicts = await plain.subscribe("rejected.default.*"), await plain.subscribe(inbox := plain.new_inbox())
    await plain.publish(subject, body, headers={"Reply-To": inbox})
    copy, verdict = await copies.next_msg(timeout=30), json.loads((await verdicts.next_msg(timeout=30)).data)
    assert (copy.subject, copy.data) == (subject.replace("tasks.", "rejected.", 1), body)
    assert copy.headers is not None
    assert reason in copy.headers["X-Reject-Reason"]
    assert (copy.headers["X-Reject-Code"], copy.headers["X-Orig-Subject"]) == ("contract", subject)
    assert (verdict["ok"], verdict["error"]["code"]) == (False, "contract")
    await until_empty(plain, "TASKS")
    assert (await stream(plain, "REJECTED"))["messages"] == kept["messages"] + 1
    assert (await stream(plain, "WORK"))["last_seq"] == work["last_seq"]


@pytest.mark.parametrize("what", [what for what in BAD if what != "another type"])  # a request has no type in its subject
async def test_a_bad_task_that_is_requested_is_answered_with_the_reason(plain: Nats, what: str) -> None:
    _, body, reason = BAD[what]
    work = await stream(plain, "WORK")
    error = json.loads((await plain.request("api.default.tasks.submit", body, timeout=30)).data)["error"]
    assert error["code"] == "contract"
    assert reason in f"{error['message']} {error['problems']}"
    assert (await stream(plain, "WORK"))["last_seq"] == work["last_seq"]


async def test_what_is_larger_than_the_queue_takes_is_refused_by_the_server(plain: Nats) -> None:
    with pytest.raises(nats.js.errors.APIError, match="message size exceeds"):
        await plain.jetstream().publish("tasks.default.data", sized(600_000))
    assert plain.max_payload < 2_000_000
    with pytest.raises(nats.errors.MaxPayloadError):
        await plain.publish("tasks.default.data", b"x" * (plain.max_payload + 1))


async def test_a_subject_with_too_many_tokens_is_rejected(plain: Nats) -> None:
    copies = await plain.subscribe("rejected.>")
    await plain.publish("tasks.default.data.extra", task(type="data"))
    copy = await copies.next_msg(timeout=30)
    assert copy.headers is not None
    assert "is not tasks.<tenant>.<type>" in copy.headers["X-Reject-Reason"]
    await until_empty(plain, "TASKS")


async def test_a_published_task_with_a_stored_file_ends_with_its_outcome(crew: LiveCrew, plain: Nats) -> None:
    stored = (await asyncio.to_thread(crew.json, "submit", "How many rows are there?", "--type", "data", "--attach", DEMO / "penguins.csv", "--wait"))["run_id"]
    async with crew.client() as client:
        submitted = next(r for r in [r async for r in client.events(stored)] if r.type == "RunSubmitted")
    attachments = json.loads(submitted.data)["task"]["attachments"]
    task_id = str(uuid.uuid4())
    events = await plain.subscribe(f"events.default.{task_id}.RunCompleted")
    await plain.publish("tasks.default.data", task(task_id=task_id, type="data", objective="How many rows are there?", attachments=attachments))
    event = json.loads((await events.next_msg(timeout=30)).data)
    assert (event["run_id"], event["type"]) == (task_id, "RunCompleted")
    assert "344" in event["data"]["answer"]["inline"]


async def test_the_same_task_published_twice_is_done_once(plain: Nats) -> None:
    task_id = str(uuid.uuid4())
    events = await plain.subscribe(f"events.default.{task_id}.>")
    for _ in range(2):
        await plain.publish("tasks.default.data", task(task_id=task_id, type="data"))
    seen: list[str] = []
    while "RunCompleted" not in seen:
        seen.append(json.loads((await events.next_msg(timeout=30)).data)["type"])
    await until_empty(plain, "TASKS")
    assert (seen.count("RunSubmitted"), seen.count("TaskStarted"), seen.count("TaskCompleted")) == (1, 1, 1)


async def test_an_unknown_request_is_answered_by_nobody_and_bad_ids_are_named(plain: Nats) -> None:
    for request, code in (("runs.get", "contract"), ("runs.cancel", "contract"), ("approvals.decide", "contract")):
        reply = json.loads((await plain.request(f"api.default.{request}", b'{"run_id": "no-uuid"}', timeout=30)).data)
        assert (reply["ok"], reply["error"]["code"]) == (False, code)
    reply = json.loads((await plain.request("api.default.runs.get", json.dumps({"run_id": str(uuid.uuid4())}).encode(), timeout=30)).data)
    assert (reply["ok"], reply["error"]["code"]) == (False, "not_found")
    with pytest.raises(nats.errors.NoRespondersError):
        await plain.request("api.default.runs.explode", b"{}", timeout=30)
