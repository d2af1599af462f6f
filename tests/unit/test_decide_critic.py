"""Judged by a model once every rule is kept, and routed to one specialist: what the orchestrator makes of it."""

from __future__ import annotations

from typing import Any

from support.decider import Spec, a_plan, breaks, broken, done, ends, plans, submit
from support.runlog import RunLog

from crewlog.agents.planner_roles import CRITIC_PREFIX as AGENTS_CRITIC
from crewlog.agents.planner_roles import ROUTER as AGENTS_ROUTER
from crewlog.orchestrator.decide import REVISIONS_MAX
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.report import run_report
from crewlog.orchestrator.run import CRITIC_PREFIX, ROUTER
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.run_events import RunCompleted, RunPlanned, RunSubmitted, TaskDispatched, TaskReviewed

RUBRIC = ["names the largest risk", "is polite"]


def judged(*met: bool) -> Any:
    """What a critic says."""
    verdicts = [{"criterion": number, "met": said, "why": "" if said else f"reason {number}"} for number, said in enumerate(met, 1)]
    return done("judged", output={"verdicts": verdicts}, cost=1)


def a_judged_run(**constraints: Any) -> Spec:
    plan = a_plan(a="research", b="data a")
    plan["steps"][0]["constraints"] = {"rubric": RUBRIC, **constraints}
    return Spec().given(submit(plan=plan))


def test_agents_and_orchestrator_mean_the_same_tasks() -> None:
    assert (AGENTS_CRITIC, AGENTS_ROUTER) == (CRITIC_PREFIX, ROUTER)


def test_what_keeps_the_rules_goes_to_a_critic_and_nothing_that_depends_on_it_starts() -> None:
    spec = a_judged_run().when(ends("a")).then(TaskReviewed, TaskDispatched)

    assert spec.event(TaskReviewed).verdict == "judging"
    assert spec.event(TaskDispatched).kind == "planner"
    message = spec.message("@critic-a-0")
    assert [(item.key, item.outcome.output) for item in message.context] == [("a", None), ("@rubric", RUBRIC)]
    assert message.context[0].outcome.summary == "result of a"
    waits = waiting_reason(spec.state, "a")
    assert waits is not None
    assert "critic" in waits.detail


def test_an_outcome_that_meets_the_rubric_is_accepted_and_its_cost_counts_once() -> None:
    spec = a_judged_run().given(ends("a")).when(ends("@critic-a-0", judged(True, True))).then(TaskReviewed, TaskReviewed, TaskDispatched)

    assert [(e.key, e.verdict, e.cost_micro_usd) for e in spec.events(TaskReviewed)] == [("@critic-a-0", "accepted", 1), ("a", "accepted", 0)]
    spec.when(ends("b")).then(TaskReviewed, RunCompleted)
    assert spec.event(RunCompleted).cost_micro_usd == 21


def test_what_is_not_met_goes_back_with_the_reasons_and_the_revision_is_judged_anew() -> None:
    spec = a_judged_run().given(ends("a")).when(ends("@critic-a-0", judged(False, True))).then(TaskReviewed, TaskReviewed, TaskDispatched)

    verdict = spec.events(TaskReviewed)[1]
    assert verdict.verdict == "revise"
    assert [issue.message for issue in verdict.issues] == ["not met: names the largest risk (reason 1)"]
    assert "names the largest risk" in spec.message("a").context[-1].outcome.summary
    spec.when(ends("a", done("better"))).then(TaskReviewed, TaskDispatched)
    assert spec.event(TaskDispatched).key == "@critic-a-1"


def test_after_the_last_revision_it_is_accepted_with_a_flag() -> None:
    spec = a_judged_run()
    for revision in range(REVISIONS_MAX + 1):
        spec.given(ends("a", done(f"try {revision}")), ends(f"@critic-a-{revision}", judged(True, False)))
    spec.when(ends("b")).then(TaskReviewed, RunCompleted)
    assert "review_failed:a" in spec.event(RunCompleted).flags


def test_rules_come_before_any_model() -> None:
    spec = a_judged_run(must_mention=["the lake"]).when(ends("a")).then(TaskReviewed, TaskDispatched)

    assert spec.event(TaskReviewed).verdict == "revise"
    assert spec.event(TaskDispatched).key == "a"


def test_a_critic_that_fails_or_makes_no_sense_leaves_a_flag_and_no_work_undone() -> None:
    for said in (breaks("@critic-a-0", broken()), ends("@critic-a-0", done("fine", output={"verdicts": [{"criterion": 1, "met": True}]}))):
        spec = a_judged_run().given(ends("a")).when(said)
        assert spec.events(TaskReviewed)[-1].verdict == "flagged"
        assert spec.events(TaskReviewed)[-1].outcome.flags == ("not_judged",)
        spec.when(ends("b"))
        assert "not_judged:a" in spec.event(RunCompleted).flags


def test_a_goal_that_one_specialist_can_do_goes_there_whole() -> None:
    spec = Spec().when(submit(routing="router")).then(RunSubmitted, TaskDispatched)
    assert spec.event(TaskDispatched).key == "@router"

    spec.when(ends("@router", done("one is enough", output={"kind": "data"}))).then(TaskReviewed, RunPlanned, TaskDispatched)
    assert (spec.event(RunPlanned).origin, spec.event(TaskDispatched).kind) == ("router", "data")
    assert spec.message("task").objective == "Write the release note"
    spec.when(ends("task")).then(TaskReviewed, RunCompleted)


def test_the_specialist_that_has_the_whole_goal_owes_the_output_that_was_asked_for() -> None:
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
    spec = Spec().given(submit(routing="router", output_schema=schema), ends("@router", done("one", output={"kind": "data"})))

    assert spec.message("task").output_schema == schema
    spec.when(ends("task", done(output={"total": "many"}))).then(TaskReviewed, TaskDispatched)
    assert [issue.message for issue in spec.events(TaskReviewed)[0].issues] == ["$.total: 'many' is not of type 'integer'"]
    spec.when(ends("task", done(output={"total": 3}))).then(TaskReviewed, RunCompleted)
    assert run_report(spec.state)["output"] == {"total": 3}


def test_what_needs_a_plan_or_is_not_understood_is_planned() -> None:
    for answer in ({"kind": "plan"}, {"kind": "nobody"}, None):
        spec = Spec().given(submit(routing="router")).when(ends("@router", done("hm", output=answer))).then(TaskReviewed, TaskDispatched)
        assert spec.event(TaskDispatched).key == "@plan"
    spec = Spec().given(submit(routing="router")).when(breaks("@router", broken()))
    assert spec.event(TaskDispatched).key == "@plan"


def test_routing_and_judging_are_derived_again_from_the_log() -> None:
    log = RunLog()
    log.decides(submit(routing="router", constraints={"rubric": RUBRIC}))
    log.says(log.spec.task("@router"), done("one", output={"kind": "data"}))
    log.says(log.spec.task("task"), done("first"))
    log.says(log.spec.task("@critic-task-0"), judged(False, True))
    log.says(log.spec.task("task"), done("second"))
    log.says(log.spec.task("@critic-task-1"), judged(True, True))

    assert log.state.status == "completed"
    assert verify_run(log.run_events, log.task_events) is None


def test_a_plan_may_ask_for_a_judgement() -> None:
    spec = Spec().given(submit()).given(plans(a="research"))
    assert "a" in spec.state.tasks


def test_steps_whose_long_keys_begin_alike_have_a_critic_each() -> None:
    keys = [f"{'compare-the-figures-of-the-quarter-with-those-of-the-'}{region}" for region in ("north", "south")]
    steps = [{"key": key, "type": "research", "objective": f"Do {key}", "constraints": {"rubric": RUBRIC}} for key in keys]
    spec = Spec().given(submit(plan={"steps": steps}), ends(keys[1]), ends(keys[0]))
    critics = [key for key in spec.state.tasks if key.startswith(CRITIC_PREFIX)]

    assert len(critics) == 2
    spec.given(ends(critics[0], judged(False, True)))  # of the one that ended first
    assert [spec.state.tasks[key].revision for key in keys] == [0, 1]
    spec.given(ends(critics[1], judged(True, True)))
    assert [spec.state.tasks[key].phase for key in keys] == ["accepted", "dispatched"]


def test_a_step_called_synthesis_does_not_take_the_critic_of_the_answer() -> None:
    step = {"key": "synthesis", "type": "research", "objective": "Do it", "constraints": {"rubric": RUBRIC}}
    spec = Spec().given(submit(plan={"steps": [step]}, synthesis="planner", constraints={"rubric": RUBRIC}), ends("synthesis"))
    spec.given(ends("@critic-synthesis-0", judged(True, True))).when(ends("@synthesis", done("the answer"))).then(TaskReviewed, TaskDispatched)
    critic = spec.event(TaskDispatched).key

    spec.when(ends(critic, judged(True, True))).then(TaskReviewed, TaskReviewed, RunCompleted)
    assert (spec.event(RunCompleted).answer.inline, spec.event(RunCompleted).flags) == ("the answer", ())
