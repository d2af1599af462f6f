"""Where sentences, files and effects come from, on recorded runs of the four specialists; and what is said when nobody can know."""

from __future__ import annotations

import asyncio
from cProfile import Profile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from msgspec import structs

from crewlog.events.store import Recorded
from crewlog.orchestrator.bundle import read_bundle
from crewlog.orchestrator.lineage import Source, lineage_of_answer, lineage_of_artifact, lineage_of_effect, lineage_of_sentence
from crewlog.orchestrator.lineage_text import brief_lines
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.orchestrator.shared_words import sentences, shared_words
from crewlog.schemas.codec import encode
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RunCompleted
from crewlog.schemas.task_events import TaskCompleted, ToolFinished

RUNS = Path(__file__).parents[1] / "golden_tasks"


@cache
def recorded(name: str) -> RunHistory:
    """A recorded run of a golden task."""

    async def read() -> RunHistory:
        bundle = read_bundle(RUNS / f"{name}.golden.run")
        store = bundle.store()
        history = await load_history(store, bundle.run_id)
        return await with_texts(store, history, all_payloads(history.events))

    return asyncio.run(read())


def prolonged(history: RunHistory, times: int) -> RunHistory:
    """The run, whose last task was shown its results so many times, and answered with as many sentences more."""
    task = next(r.stream for r in reversed(history.events) if r.type == "TaskCompleted")
    shown = [r for r in history.events if r.stream == task and isinstance(e := r.event(), ToolFinished) and not e.outcome]
    more = " ".join(f"In case {n} the 7{n}01 colonies were counted." for n in range(times))
    events: list[Recorded] = []
    for recorded in history.events:
        fact, data = recorded.event(), recorded.data
        if isinstance(fact, TaskCompleted) and recorded.stream == task:
            data = encode(structs.replace(fact, outcome=replace(fact.outcome, summary=f"{fact.outcome.summary} {more}")))
        elif isinstance(fact, RunCompleted):
            data = encode(structs.replace(fact, answer=Payload(1, inline=f"{history.shown(fact.answer)} {more}")))
        events += [structs.replace(recorded, data=data)] * (times if recorded in shown else 1)
    return RunHistory(history.run_id, tuple(structs.replace(r, position=n) for n, r in enumerate(events, 1)), history.texts)


@pytest.mark.hand_written("no recorded run is so long")
def test_a_result_is_read_once_however_many_sentences_are_traced() -> None:
    history, profile = prolonged(recorded("research-versions"), 60), Profile()
    found = profile.runcall(lineage_of_answer, history)
    assert len(found) > 60
    told = len(found[-1].sources)
    assert told > 60
    (reads,) = (each.callcount for each in profile.getstats() if not isinstance(each.code, str) and each.code.co_name == "_words")
    assert reads < 6 * (len(found) + told)


def flat(sources: tuple[Source, ...]) -> list[Source]:
    return [each for source in sources for each in (source, *flat(source.behind))]


def test_a_cited_sentence_leads_to_the_passage_that_was_retrieved() -> None:
    history = recorded("research-versions")
    found = lineage_of_sentence(history, "Give the release a version and a date, and never change a file under the same version")

    first = found.sources[0]
    assert (first.certainty, first.what, first.trust) == ("cited", "document", "untrusted")
    assert first.name == "playbook/10-version-every-release.md:7"
    assert history.events[first.index - 1].type == "ToolFinished"
    assert history.events[found.index - 1].type == "ModelCallFinished"
    assert all(source.index < found.index for source in found.sources if source.certainty != "cited")


def test_a_figure_leads_to_the_query_that_computed_it() -> None:
    found = lineage_of_sentence(recorded("data-top-regions"), "North is first with 161.")
    (query,) = [source for source in found.sources if source.name.startswith("run_sql")]
    assert (query.certainty, query.shared) == ("contained", "161")


def test_an_outcome_of_an_earlier_task_is_followed_back_into_it() -> None:
    found = lineage_of_sentence(recorded("goal-release-note"), "Report the number of missing values for each column in the release note.")
    assert found.key == "@synthesis"
    (outcome,) = [source for source in found.sources if source.what == "outcome" and source.certainty == "contained"]
    assert any(source.certainty == "cited" and source.name == "playbook/05-report-missing-values.md:7" for source in outcome.behind)
    assert any(source.what == "tool result" and source.key == outcome.name for source in flat(outcome.behind))


def test_a_mail_is_found_by_its_key_by_its_call_and_by_its_words() -> None:
    history = recorded("mail-approved")
    (started,) = [e for r in history.events if (e := r.event()) and r.type == "ToolStarted" and getattr(e, "tool", "") == "send_email"]
    key, call_id = started.idempotency_key, started.call_id  # type: ignore[union-attr]

    found = lineage_of_effect(history, key[:12])

    assert found == lineage_of_effect(history, call_id)
    assert "The release is ready." in found.text
    assert found.sources[0].what in ("task", "tool result")
    with pytest.raises(NotFound):
        lineage_of_effect(history, "ffffffffffff")


def test_a_file_leads_to_the_call_that_made_it() -> None:
    history = recorded("mail-approved")
    found = lineage_of_artifact(history, "draft-1.md")
    assert history.events[found.index - 1].type == "ModelCallFinished"
    with pytest.raises(NotFound, match=r"draft-1\.md"):
        lineage_of_artifact(history, "other.txt")


def test_every_sentence_of_an_answer_has_its_lineage() -> None:
    history = recorded("goal-release-note")
    found = lineage_of_answer(history)
    assert len(found) > 10
    assert {found.what for found in found} == {"sentence"}
    assert {"cited", "contained", "in context"} == {each.sources[0].certainty for each in found if each.sources}


def test_in_brief_a_sentence_leads_to_what_was_found_out_not_to_the_question_whose_words_it_repeats() -> None:
    (mailed,) = [found for found in lineage_of_answer(recorded("goal-release-note")) if found.text.startswith("Mail to team@example.org")]
    assert "task" in {source.what for source in flat(mailed.sources)}
    assert "contained: tool result send_email" in "\n".join(brief_lines(mailed))


def test_what_the_run_never_said_has_no_lineage() -> None:
    with pytest.raises(NotFound):
        lineage_of_sentence(recorded("mail-approved"), "Penguins can fly after all.")
    with pytest.raises(ContractError, match="no words"):
        lineage_of_sentence(recorded("mail-approved"), " … ")


@pytest.mark.parametrize(
    ("text", "source", "run", "whole", "figures"),
    [
        ("The colony has 412 nests.", "3\tThe **colony** has 412\n4\tnests [1].", "the colony has 412 nests", True, ("412",)),
        ("The mass is 4,400 g", "| Biscoe | 4400 |", "", False, ("4400",)),
        ("4716.02 g of 1,234", "| Biscoe | 4716.0179 | 1234.0 |", "", False, ("4716.02", "1234")),
        ("4716.02 g, 4716 g", "| 4716.05 | 4715.3 |", "", False, ("4716",)),
        ("4716.02 g", "| 4716.0 |", "", False, ()),
        ("In 20 of 30 cases", "20 and 30", "", False, ()),
        ("yes indeed", "yes, indeed it is", "yes indeed", True, ()),
        ("one two three four five", "zero one two three four", "one two three four", False, ()),
        ("anything", "", "", False, ()),
    ],
)
def test_shared_words(text: str, source: str, run: str, whole: bool, figures: tuple[str, ...]) -> None:
    found = shared_words(text, source)
    assert (found.run, found.whole, found.figures) == (run, whole, figures)
    assert 0 <= found.share <= 1


def test_more_figures_are_a_closer_tie() -> None:
    text = "Highest for Torgersen (20875 g), lowest for Dream (3700 g)."
    assert shared_words(text, "min 3700, max 38000").share < shared_words(text, "| Dream | 3700 |\n| Torgersen | 20875 |").share


def test_sentences() -> None:
    assert sentences("# A heading here\n\nFirst it rains. “Then it snows there.” Ok.\n| a | b | c |") == [
        "# A heading here",
        "First it rains.",
        "“Then it snows there.",
        "| a | b | c |",
    ]
