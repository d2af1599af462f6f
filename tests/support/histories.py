"""Random histories of runs as crewlog writes them: plans, attempts, tools, approvals, crashes, revisions, cancellations.

A history is a list of appends in the order of the log; runs and the tasks of a run interleave. The same `Random` gives the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import ANY, AppendRequest, EventStore, Recorded, Write
from crewlog.schemas.codec import Event
from crewlog.schemas.ids import (
    ApprovalId,
    Hash,
    RunId,
    Stream,
    TaskId,
    agent_stream,
    derived_approval_id,
    derived_task_id,
    memory_stream,
    run_stream,
    spend_stream,
    task_stream,
)
from crewlog.schemas.payload import EMPTY, Payload, content_hash
from crewlog.schemas.run_events import (
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunHeld,
    RunPlanned,
    RunReleased,
    RunSubmitted,
    Step,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, BillCorrected, CallSettled, MemoryForgotten, MemoryRemembered, ToolInfo
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.usage import UNPRICED, WORST_CASE, Price, Usage
from crewlog.schemas.values import ArtifactRef, Failure, Issue, Outcome, Shortfall

BEGIN_US = 1_700_000_000_000_000
KINDS = ("research", "data", "code", "communicate")
TOOLS = {"read_document": "read", "run_sql": "read", "write_file": "idempotent", "send_email": "irreversible"}
FAILURE = Failure("model_timeout", "timeout: no answer in 300 s", retryable=True)

INTERRUPTED = Failure("interrupted", "the worker died while the model was asked", retryable=True)
LOST = Failure("hedge_lost", "another model answered first")


def text(value: str) -> Payload:
    """Return a short text as a payload."""
    return Payload(len(value.encode()), inline=value)


class History:
    """Collects appends. Time advances with each."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_us = BEGIN_US
        self.appends: list[AppendRequest] = []

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def append(self, run_id: RunId | None, *writes: tuple[Stream, Sequence[Event], str | None]) -> None:
        self.now_us += self.random.randrange(1, 2_000_000)
        made = [Write(stream, events, ANY, kind) for stream, events, kind in writes]
        ids = [self.new_id() for write in made for _ in write.events]
        self.appends.append(AppendRequest(made, ids, self.now_us, run_id))


class TaskScript:
    """One task: the agent's side. `move` appends what the agent or its crash does next."""

    def __init__(self, run: RunScript, key: str, kind: str, revision: int, task_id: TaskId) -> None:
        self.run, self.key, self.kind, self.revision, self.task_id = run, key, kind, revision, task_id
        self.phase = "queued"
        self.attempt, self.turn, self.tries, self.calls, self.cost, self.starts = 1, 0, 0, 0, 0, 0
        self.open: list[tuple[ToolCall, str]] = []
        self.pending: list[tuple[ApprovalId, str, str]] = []
        self.failure = FAILURE

    def write(self, *events: Event) -> None:
        self.run.history.append(self.run.run_id, (task_stream(self.task_id), events, None))

    def move(self) -> None:
        random = self.run.history.random
        match self.phase:
            case "queued":
                self.start()
            case "asking":
                if random.random() < 0.08:
                    self.take_over()
                elif random.random() < 0.1:
                    failed = ModelCallFailed(self.call_id(), self.turn + 1, "offline", "rules-1", FAILURE, 12, Price(random.choice([None, 0, 7]), "config"))
                    self.write(failed, AttemptFailed(self.attempt, FAILURE))
                    self.phase = "failed"
                elif random.random() < 0.05:
                    self.write(BudgetWarned(f"run/{self.run.run_id}"))
                elif random.random() < 0.05:
                    self.hedge()
                else:
                    self.answer()
            case "tools":
                if random.random() < 0.05:
                    self.start()
                else:
                    self.tools()

    def call_id(self) -> str:
        return f"m{self.turn + 1}-{self.tries}"

    def ask(self) -> ModelCallStarted:
        self.tries += 1
        self.phase = "asking"
        return ModelCallStarted(self.call_id(), self.turn + 1, "offline", "rules-1", Hash("a" * 64), 3)

    def hedge(self) -> None:
        """Ask a second model beside the first one, which then loses, or both lose their worker."""
        first = self.call_id()
        self.write(msgspec.structs.replace(self.ask(), hedge=True))
        if self.run.history.random.random() < 0.3:
            self.start()
        else:
            self.write(ModelCallFailed(first, self.turn + 1, "offline", "rules-1", LOST, 12, Price(9_000, WORST_CASE)))

    def start(self) -> None:
        self.starts += 1
        started = TaskStarted(f"{self.kind}-{self.starts}", self.attempt, "1", "rules-1", "offline", True, EMPTY, EMPTY)
        if self.open and self.phase != "asking":
            self.phase = "tools"
            self.write(started)
        else:
            self.write(started, self.ask())

    def take_over(self) -> None:
        """The worker died while a model was asked; the next one charges the call with the most it can have cost, or an older program did not."""
        if self.run.history.random.random() < 0.5:
            self.start()
            return
        self.starts += 1
        lost = ModelCallFailed(self.call_id(), self.turn + 1, "offline", "rules-1", INTERRUPTED, 0, Price(9_000, WORST_CASE))
        self.write(TaskStarted(f"{self.kind}-{self.starts}", self.attempt, "1", "rules-1", "offline", True, EMPTY, EMPTY), lost, self.ask())

    def answer(self) -> None:
        random = self.run.history.random
        said_to = self.call_id()
        self.turn, self.tries = self.turn + 1, 0
        tools = random.choices(list(TOOLS), k=random.choice([0, 1, 1, 2]))
        calls = tuple(ToolCall(f"t{self.turn}-{n}", tool, text('{"x":1}')) for n, tool in enumerate(tools, 1))
        price = random.choice([Price(None, UNPRICED), Price(0, "config"), Price(1500, "genai-prices 1"), Price(1500, "genai-prices 1", 2100)])
        usage = Usage(random.randrange(10, 1000), random.randrange(100), random.randrange(10), random.randrange(2), random.randrange(5))
        words = text("Ünïcode, “quoted”\n\tand \\ back")
        stop = "tool_use" if calls else "end_turn"
        said = ModelCallFinished(random.choice([said_to, f"m{self.turn}-1"]), self.turn, stop, words, calls, usage, price, "offline", "rules-1", True, 40)  # type: ignore[arg-type]
        self.calls += len(calls)
        if not calls:
            self.write(said, self.completed())
            self.phase = "completed"
            return
        events: list[Event] = [said]
        self.open = []
        for call in calls:
            if call.tool == "send_email":
                approval_id = derived_approval_id(self.task_id, call_id=call.call_id)
                expires_us = self.run.history.now_us + 86_400_000_000
                events.append(ApprovalRequested(approval_id, call.call_id, call.tool, call.arguments, Hash("d" * 64), "sends mail", expires_us))
                self.pending.append((approval_id, call.call_id, call.tool))
            elif random.random() < 0.1:
                events.append(ToolFinished(call.call_id, call.tool, "refused", text("bad arguments"), 0))
            else:
                events.append(self.tool_started(call))
                self.open.append((call, "running"))
        self.phase = "tools"
        if not self.open:
            self.phase = "suspended" if self.pending else "asking"
            if not self.pending:
                events.append(self.ask())
        self.write(*events)

    def tool_started(self, call: ToolCall) -> ToolStarted:
        return ToolStarted(call.call_id, call.tool, "1", TOOLS[call.tool], f"key-{call.call_id}")  # type: ignore[arg-type]

    def tools(self) -> None:
        random = self.run.history.random
        call, state = self.open.pop(random.randrange(len(self.open)))
        artifacts = (ArtifactRef(f"{call.call_id}.txt", Hash("b" * 64), 3, "text/plain"),) if call.tool == "write_file" else ()
        status = random.choice(["ok", "ok", "error"])
        events: list[Event] = [self.tool_started(call)] if state == "approved" else []
        events.append(ToolFinished(call.call_id, call.tool, status, text("42"), 5, "untrusted", artifacts))  # type: ignore[arg-type]
        if not self.open:
            if self.pending:
                self.phase = "suspended"
            elif self.turn >= 3:
                events.append(self.completed())
                self.phase = "completed"
            else:
                events.append(self.ask())
        self.write(*events)

    def completed(self) -> TaskCompleted:
        outcome = Outcome("done", artifacts=(ArtifactRef("report.md", Hash("c" * 64), 9, "text/markdown"),), flags=("simulated",))
        return TaskCompleted(outcome, Usage(1, 1), self.cost, self.turn, self.calls)


class RunScript:
    """One run: the orchestrator's side."""

    def __init__(self, history: History) -> None:
        random = history.random
        self.history = history
        self.run_id = RunId(history.new_id())
        self.stream = run_stream(self.run_id)
        self.origin = random.choice(["given", "planner", "single"])
        self.plan: dict[str, Step] = {}
        self.revisions: dict[str, int] = {}
        self.tasks: dict[str, TaskScript] = {}
        self.done: set[str] = set()
        self.planned = self.over = False

    def move(self) -> None:
        """Append one thing that may happen next."""
        random = self.history.random
        if not self.tasks and not self.planned:
            self.submit()
        elif random.random() < 0.01:
            self.end(RunCancelled("not needed any more", "ann"))
        else:
            able = [t for t in self.tasks.values() if t.phase in ("queued", "asking", "tools")]
            noticed = [t for t in self.tasks.values() if t.phase in ("completed", "failed", "suspended", "retrying", "asked", "held")]
            task = random.choice([*able, *noticed])
            if task in able:
                task.move()
            else:
                self.decide(task)

    def submit(self) -> None:
        task = msgspec.Raw(msgspec.json.encode({"task_id": self.run_id, "run_id": self.run_id, "type": "run" if self.origin != "single" else "data"}))
        submitted = RunSubmitted(self.run_id, "default", "ann", "What holds the penguins together?", task, "api")
        if self.origin == "planner":
            self.dispatch([submitted], [("@plan", "planner")])
        else:
            self.dispatch([submitted, self.make_plan()], self.ready())

    def make_plan(self) -> RunPlanned:
        random = self.history.random
        keys = ["task"] if self.origin == "single" else [f"s{n}" for n in range(random.randrange(1, 5))]
        for n, key in enumerate(keys):
            before = tuple(k for k in keys[:n] if random.random() < 0.5)
            self.plan[key] = Step(key, random.choice(KINDS), f"step {key}", before, msgspec.Raw(b"{}"))
        self.planned = True
        return RunPlanned(tuple(self.plan.values()), self.origin)  # type: ignore[arg-type]

    def ready(self) -> list[tuple[str, str]]:
        return [(s.key, s.type) for s in self.plan.values() if s.key not in self.tasks and self.done.issuperset(s.depends_on)]

    def dispatch(self, events: list[Event], steps: list[tuple[str, str]], *extra: tuple[Stream, Sequence[Event], str | None]) -> None:
        writes: list[tuple[Stream, Sequence[Event], str | None]] = list(extra)
        for key, kind in steps:
            revision = self.revisions.get(key, 0)
            self.revisions[key] = revision + 1
            task_id = TaskId(self.run_id) if self.origin == "single" and revision == 0 else derived_task_id(self.run_id, key=key, revision=revision)
            self.tasks[key] = TaskScript(self, key, kind, revision, task_id)
            events.append(TaskDispatched(task_id, key, kind, 1, revision, self.history.now_us + 900_000_000))
            body = msgspec.Raw(msgspec.json.encode({"task_id": task_id, "objective": f"do {key}"}))
            writes.append((task_stream(task_id), [TaskOpened(kind, key, revision, body)], kind))
        writes.insert(self.history.random.choice([0, len(writes)]), (self.stream, events, None))
        self.history.append(self.run_id, *writes)

    def decide(self, task: TaskScript) -> None:
        if self.over or self.tasks.get(task.key) is not task:
            return
        handlers: dict[str, Callable[[TaskScript], None]] = {
            "completed": self.review, "failed": self.failed, "suspended": self.suspend, "asked": self.answer, "retrying": self.retry, "held": self.release
        }  # fmt: skip
        handlers[task.phase](task)

    def review(self, task: TaskScript) -> None:
        outcome = Outcome("done")
        if task.revision < 2 and self.history.random.random() < 0.15:
            reviewed = TaskReviewed(task.task_id, task.key, "revise", (Issue("words_max", "too long"),), outcome)
            self.dispatch([reviewed], [(task.key, task.kind)])
            return
        self.done.add(task.key)
        events: list[Event] = [TaskReviewed(task.task_id, task.key, self.history.random.choice(["accepted", "flagged"]), (), outcome)]
        if task.key == "@plan":
            events.append(self.make_plan())
        if self.done.issuperset(self.plan) and self.planned:
            self.end(RunCompleted(text("The answer."), flags=("simulated",)), *events)
        else:
            task.phase = "reviewed"
            self.dispatch(events, self.ready())

    def failed(self, task: TaskScript) -> None:
        if self.history.random.random() < 0.3:
            short, error = Shortfall(f"run/{self.run_id}", 10, 8, 5), Failure("budget", "no room")
            held = [TaskHeld(task.task_id, task.key, task.attempt, error, short), RunHeld("budget", short.scope, 10, 8, 5, text("so far"))]
            self.history.append(self.run_id, (self.stream, held, None))
            task.phase = "held"
            return
        if task.attempt < 3 and self.history.random.random() < 0.8:
            task.phase, task.attempt = "retrying", task.attempt + 1
            due_us = self.history.now_us + 1_500_000
            self.history.append(self.run_id, (self.stream, [TaskRetryScheduled(task.task_id, task.key, task.attempt, due_us, FAILURE)], None))
            return
        closing = (task_stream(task.task_id), [TaskFailed(FAILURE)], None)
        task.phase = "over"
        self.end(RunFailed(FAILURE, text("partial")), TaskReviewed(task.task_id, task.key, "failed", error=FAILURE), extra=(closing,))

    def release(self, task: TaskScript) -> None:
        task.phase, task.attempt = "queued", task.attempt + 1
        self.history.append(self.run_id, (self.stream, [RunReleased(f"run/{self.run_id}", None, 8), self.dispatched(task)], None))

    def retry(self, task: TaskScript) -> None:
        task.phase = "queued"
        self.history.append(self.run_id, (self.stream, [self.dispatched(task)], None))

    def suspend(self, task: TaskScript) -> None:
        task.phase = "asked"
        events = [TaskSuspended(task.task_id, task.key, approval_id, tool, self.history.now_us) for approval_id, _, tool in task.pending]
        self.history.append(self.run_id, (self.stream, events, None))

    def answer(self, task: TaskScript) -> None:
        approval_id, call_id, tool = task.pending.pop(0)
        decision: Any = self.history.random.choice(["approved", "denied", "expired"])
        decided = (task_stream(task.task_id), [ApprovalDecided(approval_id, call_id, Hash("d" * 64), decision, "bob", "")], None)
        events: list[Event] = [TaskResumed(task.task_id, task.key, approval_id, decision, "bob")]
        if not task.pending:
            task.phase = "queued"
            task.open = [(ToolCall(call_id, tool, text("{}")), "approved")]
            events.append(self.dispatched(task))
        self.dispatch(events, [], decided)

    def dispatched(self, task: TaskScript) -> TaskDispatched:
        return TaskDispatched(task.task_id, task.key, task.kind, task.attempt, task.revision, self.history.now_us + 900_000_000)

    def end(self, event: Event, *before: Event, extra: tuple[tuple[Stream, Sequence[Event], str | None], ...] = ()) -> None:
        cancelled = [
            (task_stream(t.task_id), [TaskCancelled("the run ended", "orchestrator")], None)
            for t in self.tasks.values()
            if t.phase not in ("reviewed", "over", "completed") and t.key not in self.done
        ]
        ending = (self.stream, [*before, event], None)
        self.history.append(self.run_id, *([ending, *cancelled, *extra] if self.history.random.random() < 0.5 else [*cancelled, *extra, ending]))
        for task in self.tasks.values():
            if task.phase == "asking" and task.key not in self.done and self.history.random.random() < 0.5:
                settled = CallSettled(task.task_id, self.run_id, task.call_id(), "offline", "rules-1", Usage(), Price(9, "worst case"))
                self.history.append(self.run_id, (spend_stream(task.task_id), [settled], None))
                luck = self.history.random.random()  # its worker was not dead after all, and says what the call really cost
                bill = (task.task_id, self.run_id, task.call_id(), "offline", "rules-1", Usage(5, 5), Price(3, "config"))
                if luck < 0.5:  # too late, as workers of before did
                    late = CallSettled(*bill) if luck < 0.2 else BillCorrected(*bill, 9)
                    self.history.append(self.run_id, (spend_stream(task.task_id), [late], None))
        self.over = True


def write_history(random: Random, *, runs: int, moves: int) -> list[AppendRequest]:
    """Make a history of up to `runs` runs, cut off after `moves` appends: some runs are left in the middle."""
    history = History(random)
    tools = (ToolInfo("run_sql", "Run SQL.", "read", False, "1"),)
    registered = AgentRegistered("data", "data-1", "Counts.", "1", 4, "offline/rules-1", True, tools)
    history.append(None, (agent_stream("data"), [registered], None))
    open_runs = [RunScript(history) for _ in range(runs)]
    while open_runs and len(history.appends) < moves:
        run = random.choice(open_runs)
        run.move()
        if run.over:
            open_runs.remove(run)
    history.append(None, (agent_stream("data"), [AgentStopped("data", "data-1")], None))
    for n in range(4):
        remember(history, f"ann likes her reports in {n + 1} parts")
    return history.appends


def remember(history: History, said: str) -> None:
    """Note something for a user, and have some of it forgotten and noted again."""
    content, some_id = content_hash(said.encode()), history.new_id()
    noted = MemoryRemembered("default", "ann", content, said, "reports", "trusted", "planner", RunId(some_id), TaskId(some_id))
    facts = [noted, MemoryForgotten("default", "ann", content, "ann"), noted]
    for fact in facts[: history.random.randrange(1, 4)]:
        history.append(None, (memory_stream("default", "ann", content), [fact], None))


async def store_history(store: EventStore, appends: Sequence[AppendRequest]) -> None:
    """Write a history to a log."""
    for append in appends:
        await store.append(append)


async def recorded_history(appends: Sequence[AppendRequest]) -> tuple[MemoryStore, list[Recorded]]:
    """Write a history to a log in memory and read it back."""
    store = MemoryStore()
    await store_history(store, appends)
    return store, list((await store.read_all(0, 1_000_000)).events)
