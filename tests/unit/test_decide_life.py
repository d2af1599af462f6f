"""The life of a run: submitted, planned, dispatched, collected or written up, completed."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from support.decider import RUN_UUID, SECOND_US, Spec, a_plan, a_task, done, ends, plans, submit

from crewlog.events.store import NO_STREAM
from crewlog.orchestrator.brief import Brief
from crewlog.orchestrator.dispatch import kinds_told
from crewlog.orchestrator.planning import Offer
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import task_stream
from crewlog.schemas.run_events import RunCompleted, RunPlanned, RunSubmitted, TaskDispatched, TaskReviewed
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TaskOpened
from crewlog.schemas.values import ArtifactRef, Citation

FAN_OUT = a_plan(research="research", code="code", data="data", communicate="communicate")


def test_own_plan_is_dispatched_at_once() -> None:
    spec = Spec().when(submit(plan=FAN_OUT)).then(RunSubmitted, RunPlanned, *[TaskDispatched] * 4)

    assert [d.kind for d in spec.last.dispatches] == ["research", "code", "data", "communicate"]
    assert [(w.stream, w.expected, w.kind) for w in spec.last.writes] == [
        (task_stream(spec.task(key)), NO_STREAM, key) for key in ("research", "code", "data", "communicate")
    ]
    assert spec.event(RunPlanned).origin == "given"


def test_independent_steps_collect_into_the_answer() -> None:
    spec = Spec().given(submit(plan=FAN_OUT), ends("research"), ends("data"), ends("code"))

    spec.when(ends("communicate")).then(TaskReviewed, RunCompleted)

    end = spec.event(RunCompleted)
    assert end.answer.inline == "\n\n".join(f"## {key}\n\nresult of {key}" for key in ("research", "code", "data", "communicate"))
    assert (end.cost_micro_usd, end.usage.input_tokens, end.flags) == (40, 400, ())


def test_a_step_starts_when_its_last_dependency_is_done_and_gets_their_outcomes() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="data", c="code a b"), context=[as_json_item()]))

    spec.when(ends("b")).then(TaskReviewed)
    assert waiting_reason(spec.state, "c").reason == "dependency"  # type: ignore[union-attr]
    spec.when(ends("a")).then(TaskReviewed, TaskDispatched)

    assert [item.key for item in spec.message("c").context] == ["earlier", "a", "b"]
    assert spec.message("c").context[1].outcome.summary == "result of a"


def as_json_item() -> dict[str, object]:
    return {"key": "earlier", "type": "research", "objective": "before", "outcome": {"summary": "what we knew"}}


def test_the_dispatched_task_carries_what_the_run_was_submitted_with() -> None:
    files = [{"name": name, "hash": "a" * 64, "size": 1} for name in ("a.csv", "b.md")]
    plan = {"steps": [{"key": "s", "type": "data", "objective": "Count", "attachments": ["a.csv"], "constraints": {"words_max": 5}, "timeout_seconds": 60}]}
    fields = {"tenant": "acme", "user": "eve", "priority": "high", "auto_approve": True, "limits": {"turns_max": 3}, "budget": {"hard_micro_usd": 500}}

    message = Spec().when(submit(plan=plan, attachments=files, **fields)).message("s")

    assert message == parse_task(
        {
            "task_id": message.task_id,
            "run_id": RUN_UUID,
            "parent_task_id": RUN_UUID,
            "key": "s",
            "type": "data",
            "objective": "Count",
            "attachments": files[:1],
            "constraints": {"words_max": 5},
            "timeout_seconds": 60,
            **fields,
        }
    )


def test_a_single_task_keeps_its_id_and_its_rules() -> None:
    spec = Spec().when(submit(type="data", objective="Count", constraints={"words_max": 3})).then(RunSubmitted, RunPlanned, TaskDispatched)

    assert spec.task("task") == RUN_UUID
    assert spec.message("task").constraints.words_max == 3
    spec.when(ends("task", done("forty two", flags=("simulated", "not_found")))).then(TaskReviewed, RunCompleted)
    assert spec.event(RunCompleted).answer.inline == "forty two"
    assert spec.event(RunCompleted).flags == ("simulated", "not_found")


def test_a_goal_is_planned_by_the_planner() -> None:
    spec = Spec().when(submit()).then(RunSubmitted, TaskDispatched)

    asked = spec.message("@plan")
    assert (asked.type, asked.objective, asked.key) == ("planner", "Write the release note", "@plan")
    (kinds,) = [item for item in asked.context if item.key == "@kinds"]
    assert [kind["kind"] for kind in kinds.outcome.output] == ["code", "communicate", "data", "research"]
    assert spec.event(TaskDispatched).offered == ("code", "communicate", "data", "research")

    spec.when(plans(a="research", b="communicate a")).then(TaskReviewed, RunPlanned, TaskDispatched)
    assert (spec.event(RunPlanned).origin, spec.event(RunPlanned).note) == ("planner", "as asked")


def test_the_planner_writes_the_answer_of_a_planned_run() -> None:
    spec = Spec().given(submit(constraints={"must_mention": ["release"]}), plans(a="research"))

    spec.when(ends("a")).then(TaskReviewed, TaskDispatched)
    asked = spec.message("@synthesis")
    assert [item.key for item in asked.context] == ["a"]
    assert asked.constraints.must_mention == ("release",)
    spec.when(ends("@synthesis", done("The release is out"))).then(TaskReviewed, RunCompleted)

    assert spec.event(RunCompleted).answer.inline == "The release is out"


def test_who_submits_chooses_who_writes_the_answer() -> None:
    collected = Spec().given(submit(synthesis="collect"), plans(a="research")).when(ends("a")).then(TaskReviewed, RunCompleted)
    assert collected.event(RunCompleted).answer.inline == "result of a"

    Spec().given(submit(plan=a_plan(a="data"), synthesis="planner")).when(ends("a")).then(TaskReviewed, TaskDispatched)


def test_files_of_all_steps_reach_the_answer_under_unique_names() -> None:
    chart = ArtifactRef("chart.svg", "1" * 64, 10)  # type: ignore[arg-type]
    other = ArtifactRef("chart.svg", "2" * 64, 10)  # type: ignore[arg-type]
    quote = Citation("a.md", 3, "so it is")
    spec = Spec().given(submit(plan=a_plan(a="data", b="data", c="data")), ends("a", done(artifacts=(chart,), citations=(quote,))))

    spec.given(ends("b", done(artifacts=(other,), citations=(quote,))), ends("c", done(artifacts=(chart,))))

    assert spec.event(RunCompleted).artifacts == (chart, replace(other, name="b/chart.svg"))
    assert spec.event(RunCompleted).citations == (quote,)


def test_untrusted_and_simulated_work_labels_the_answer() -> None:
    spec = Spec().given(submit(plan=a_plan(a="research", b="communicate a")), ends("a", done(trust="untrusted", flags=("simulated",))))

    spec.when(ends("b", done("clean words")))

    assert spec.event(TaskReviewed).outcome.trust == "untrusted", "what was made from untrusted text is untrusted, whatever the agent says"
    assert spec.event(RunCompleted).flags == ("simulated", "untrusted")


def test_calls_without_a_price_are_flagged() -> None:
    spec = Spec().given(submit(type="data")).when(ends("task", done(unpriced=2)))

    assert spec.event(RunCompleted).flags == ("unpriced",)


def test_a_long_answer_is_a_blob() -> None:
    spec = Spec().given(submit(type="data")).when(ends("task", done("word " * 1500)))

    answer = spec.event(RunCompleted).answer
    assert answer.inline is None
    assert [len(blob) for blob in spec.last.blobs] == [answer.size]


def test_outcomes_are_cut_to_what_the_log_and_the_queue_take() -> None:
    keys = [f"s{n}" for n in range(30)]
    plan = a_plan(**dict.fromkeys(keys, "research"), last=["communicate", *keys])
    spec = Spec().given(submit(plan=plan))
    big = done("x" * 16_000, output=["y" * 200_000], citations=tuple(Citation("a.md", n, "q" * 200) for n in range(200)))

    for key in keys:
        spec.when(ends(key, big))
        assert len(msgspec.json.encode(spec.event(TaskReviewed))) < 100_000

    message = spec.last.dispatches[0].message
    assert message is not None
    assert len(message) < 100_000
    assert all("truncated" in item.outcome.flags for item in spec.message("last").context)


def test_submitting_again_is_no_news() -> None:
    spec = Spec().given(submit(type="data")).when(submit(type="data")).then()

    assert spec.last.writes == ()


def test_the_same_event_again_is_no_news() -> None:
    spec = Spec().given(submit(plan=FAN_OUT))
    again = ends("data")(spec)

    spec.when(again).then(TaskReviewed)
    spec.when(again).then()


def test_a_planner_is_told_which_kinds_cannot_work_and_a_replay_knows_it_too() -> None:
    spec = Spec()
    spec.kinds = {**spec.kinds, "weather": Offer("Knows the weather.", "missing sky; install with: pip install weather")}
    spec.when(submit()).then(RunSubmitted, TaskDispatched)
    asked = spec.message("@plan")
    told = {item.key: item.outcome.output for item in asked.context}
    assert "weather" not in [kind["kind"] for kind in told["@kinds"]]
    assert told["@away"] == [{"kind": "weather", "unavailable": "missing sky; install with: pip install weather"}]
    assert kinds_told(asked) == {kind: offer for kind, offer in spec.kinds.items() if kind != "planner"} | {
        "weather": Offer("", "missing sky; install with: pip install weather")
    }


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"type": "reserch"}, "/type", "unknown kind 'reserch'; known kinds: code, communicate, data, planner, research, weather"),
        ({"plan": a_plan(a="research", b="reserch")}, "/plan/steps/1/type", "unknown kind 'reserch'"),
        ({"type": "Reserch"}, "/type", "; name one of them, perhaps 'research', or start an agent of kind 'Reserch' with `crewlog agent MODULE:ATTR`"),
        ({"type": "sorcery"}, "/type", "research, weather; name one of them, or start an agent of kind 'sorcery' with"),
        ({"plan": a_plan(a="run")}, "/plan/steps/0/type", "research, weather; name one of them"),
        ({"type": "weather"}, "/type", "unavailable: pip install weather"),
        ({"type": "data", "key": "@plan"}, "/key", "must not begin with '@'"),
        ({"plan": a_plan(a="data"), "output_schema": {}}, "/output_schema", "set synthesis to 'planner'"),
        ({"synthesis": "collect", "output_schema": {}}, "/output_schema", "set synthesis to 'planner'"),
        ({"type": "data", "output_schema": {"type": 5}}, "/output_schema", "is not valid under any of the given schemas"),
    ],
)
def test_what_nobody_can_carry_out_is_refused(fields: dict[str, object], pointer: str, text: str) -> None:
    spec = Spec()
    spec.kinds = {**spec.kinds, "weather": Offer("Knows the weather.", "pip install weather")}

    with pytest.raises(ContractError) as caught:
        spec.when(submit(**fields))

    assert [(at, text in problem) for at, problem in caught.value.problems] == [(pointer, True)]


def test_an_oversized_task_is_refused() -> None:
    with pytest.raises(ContractError, match="at most 98304 are kept in the log"):
        Spec().when(submit(plan={"steps": [{"key": f"s{n}", "type": "data", "objective": "x" * 10_000} for n in range(10)]}))


def test_the_brief_has_the_defaults_of_the_contract() -> None:
    task = a_task(objective="x")
    brief = msgspec.json.decode(sparse_json(task), type=Brief)

    for name in Brief.__struct_fields__:
        ours, theirs = getattr(brief, name), getattr(task, name)
        if name == "constraints":
            ours, theirs = bytes(ours), b"{}"
        elif name == "limits":
            ours, theirs = brief.attempts_max, task.limits.attempts_max
        elif name == "budget":
            ours, theirs = (ours.hard_micro_usd, ours.soft_micro_usd), (theirs.hard_micro_usd, theirs.soft_micro_usd)
        assert ours == theirs, name


def test_deadlines_stand_in_the_events() -> None:
    spec = Spec().when(submit(plan=a_plan(a="data"), timeout_seconds=100))

    assert spec.event(RunSubmitted).deadline_us == spec.now_us + 100 * SECOND_US
    assert spec.event(TaskDispatched).deadline_us == spec.now_us + 100 * SECOND_US
    assert spec.written(TaskOpened)[0].kind == "data"
