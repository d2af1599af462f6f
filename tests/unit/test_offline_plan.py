"""Plans made by rules, from goals as people write them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.solo import carry_out
from support.toolbox import bench, earlier

from crewlog.agents.offline import OfflineModel
from crewlog.agents.offline_clauses import split_goal
from crewlog.agents.specialist_planner import planner_agent
from crewlog.schemas.values import ContextItem, Outcome

BUILT_IN = {"code": "Repairs code.", "communicate": "Sends mail.", "data": "Computes.", "research": "Reads documents."}
PROJECT = ("app/app.py", "app/tests/test_app.py")


def kinds(**described: str) -> ContextItem:
    return ContextItem("@kinds", "system", "kinds", Outcome("", output=[{"kind": k, "description": d} for k, d in described.items()]))


async def plan(goal: str, *names: str, offered: dict[str, str] | None = None, key: str = "@plan", context: tuple[ContextItem, ...] = ()) -> dict[str, Any]:
    at = await bench(goal, kind="planner", key=key, attachments={name: name.encode() for name in names}, context=(kinds(**(offered or BUILT_IN)), *context))
    output: dict[str, Any] = (await carry_out(planner_agent(), OfflineModel(), at)).result.output
    return output


def shape(output: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    return [(step["type"], tuple(step["depends_on"])) for step in output["steps"]]


GOALS = [
    ("How many orders were placed per month?", ("orders.csv",), [("data", ())]),
    ("Until when can I cancel an order?", ("sales.csv", "terms.md"), [("research", ())]),
    ("By when must invoices be paid?", ("orders.csv", "terms.md"), [("research", ())]),
    ("Summarise sales.csv", ("sales.csv",), [("data", ())]),
    ("Summarise the handbook", ("handbook.pdf",), [("research", ())]),
    ("Analyze the data", ("d.parquet",), [("data", ())]),
    ("Fix the failing tests", PROJECT, [("code", ())]),
    ("Check our app", PROJECT, [("code", ())]),
    ("What does the contract say about termination?", ("contract.pdf",), [("research", ())]),
    ("Is the licence compatible with commercial use?", ("LICENSE.txt",), [("research", ())]),
    ("Look up the refund rules", ("refunds.md",), [("research", ())]),
    ("Calculate mean, median and standard deviation of price", ("p.csv",), [("data", ())]),
    ("correlation between height and weight", ("people.csv",), [("data", ())]),
    ("Give me the top 5 products by revenue and the share of each category", ("products.csv",), [("data", ())]),
    ("Which countries have the highest population and which have the lowest?", ("countries.csv",), [("data", ())]),
    ("Compare Q1 and Q2 revenue by region and plot it", ("revenue.csv",), [("data", ())]),
    ("Email hello to bob@example.org", (), [("communicate", ())]),
    ("Tell the team that the release is done", (), [("communicate", ())]),
    ("Read the handbook and tell me how many vacation days employees get", ("handbook.md",), [("research", ())]),
    (
        "Summarise these files and mail the result to bob@example.org",
        ("a.csv", "notes.md"),
        [("data", ()), ("research", ()), ("communicate", ("data", "research"))],
    ),
    ("Plot temperature over time and explain the trend using the notes", ("t.csv", "notes.txt"), [("data", ()), ("research", ())]),
    (
        "Find what the policy says about remote work, then compute the average salary by department and email hr@example.com",
        ("policy.md", "salaries.csv"),
        [("research", ()), ("data", ("research",)), ("communicate", ("research", "data"))],
    ),
    ("Repair the parser and run the tests; then notify dev@example.com", ("parser/p.py", "parser/test_p.py"), [("code", ()), ("communicate", ("code",))]),
    ("Please check this project, fix what is broken and send a summary to me@example.org", PROJECT, [("code", ()), ("communicate", ("code",))]),
    (
        "1. Count the rows of a.csv\n2. Search the docs for 'retention'\n3. Post the result to https://hooks.example.com/x",
        ("a.csv", "docs/r.md"),
        [("data", ()), ("research", ()), ("communicate", ("data", "research"))],
    ),
    ("Look up the refund rules. Based on the result, draft a message to c@example.com", ("refunds.md",), [("research", ()), ("communicate", ("research",))]),
    ("Write a short report about the attached files in at most 200 words", ("a.csv", "b.md"), [("data", ()), ("research", ())]),
    ("blorp the frobnicator", ("x.md",), [("research", ())]),
    ("blorp the frobnicator", (), [("research", ())]),
    (
        "Prepare the release note: check our app, summarise the measurements with a chart, say which playbook rules apply, and mail it to t@example.org.",
        ("t.csv", *PROJECT, "playbook/1.md", "playbook/2.md"),
        [("code", ()), ("data", ()), ("research", ()), ("communicate", ("code", "data", "research"))],
    ),
]


@pytest.mark.parametrize(("goal", "names", "steps"), GOALS, ids=[g[0][:40] for g in GOALS])
async def test_a_goal_becomes_steps(goal: str, names: tuple[str, ...], steps: list[tuple[str, tuple[str, ...]]]) -> None:
    assert shape(await plan(goal, *names)) == steps


async def test_a_step_gets_the_files_of_its_kind_and_rules_that_can_be_checked() -> None:
    output = await plan("Check the app, plot the sales, cite the policy", "sales.csv", "policy.md", *PROJECT, "app/README.md")
    code, data, research = output["steps"]
    assert sorted(code["attachments"]) == ["app/README.md", *PROJECT]
    assert code["constraints"]["tests_pass"] is True
    assert data["attachments"] == ["sales.csv"]
    assert data["constraints"]["files_exist"] == ["*.svg"]
    assert research["attachments"] == ["policy.md"]
    assert research["constraints"]["citations_min"] == 1


async def test_limits_in_the_goal_become_constraints() -> None:
    (step,) = (await plan('Summarise the notes in at most 50 words; it must mention "rent"', "notes.md"))["steps"]
    assert step["constraints"]["words_max"] == 50
    assert step["constraints"]["must_mention"] == ["rent"]


async def test_objectives_keep_the_words_of_the_goal() -> None:
    (step,) = (await plan("How many penguins live on Dream island?", "p.csv"))["steps"]
    assert step["objective"] == "How many penguins live on Dream island?"


@pytest.mark.parametrize(
    ("goal", "names", "expected"),
    [
        ("Send the average sales by store to bob@example.org", ("sales.csv",), [("data", ()), ("communicate", ("data",))]),
        ("Mail the refund rules to the team at team@example.org", ("terms.md",), [("research", ()), ("communicate", ("research",))]),
        ("Mail a@example.org, not bob@example.org, the total revenue", ("sales.csv",), [("data", ()), ("communicate", ("data",))]),
        ("Let bob@example.org know what the terms say about refunds", ("terms.md",), [("research", ()), ("communicate", ("research",))]),
        ("Never contact a@example.org. Mail the total revenue to bob@example.org", ("sales.csv",), [("data", ()), ("communicate", ("data",))]),
        ("Send sales.csv to bob@example.org", ("sales.csv",), [("communicate", ())]),
        ("Send greetings to bob@example.org", (), [("communicate", ())]),
    ],
)
async def test_what_is_to_be_sent_is_found_out_first(goal: str, names: tuple[str, ...], expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert shape(await plan(goal, *names)) == expected


async def test_only_offered_kinds_are_used() -> None:
    output = await plan("Count the rows and mail them to a@example.org", "a.csv", offered={"data": "Computes.", "research": "Reads."})
    assert shape(output) == [("data", ())]


async def test_a_goal_of_more_parts_than_a_plan_has_steps_is_planned_as_far_as_it_goes() -> None:
    goal = "".join(f"Compute the mean of column{n} by store. " for n in range(150)) + "Mail the results to bob@example.org"
    output = await plan(goal, "sales.csv")
    assert 90 < len(output["steps"]) <= 100
    assert output["steps"][-1]["type"] == "communicate"
    assert "No step of its own for: Compute the mean of column" in output["note"]


async def test_an_address_alone_is_no_message_and_a_prohibition_stays_with_the_work() -> None:
    asked = await plan("My colleague bob@example.org wrote this policy. What does it say about sick pay?", "policy.md")
    assert shape(asked) == [("research", ())]
    told = await plan("Don't fix anything; only say why the tests fail", *PROJECT)
    assert "Don't fix anything" in told["steps"][0]["objective"]
    assert not told["steps"][0]["constraints"]["tests_pass"]
    assert shape(await plan("Tell me what is wrong with this project, but do not change any file", *PROJECT)) == [("code", ())]


@pytest.mark.parametrize("goal", ["Summarise" + " " * 100_000 + "the sales", "and " * 25_000 + "summarise the sales"], ids=["blanks", "fillers"])
def test_a_long_goal_is_split_in_linear_time(goal: str) -> None:
    began = time.process_time()
    assert split_goal(goal)[1][-1].text == "summarise the sales" or split_goal(goal)[1][0].text == "Summarise the sales"
    assert time.process_time() - began < 20, "it took minutes when each blank or filler was looked at again and again"


async def test_a_table_is_not_left_to_who_writes_mail_while_its_kind_is_away() -> None:
    at = await bench("How many loans by branch?", kind="planner", key="@plan", attachments={"loans.csv": b"a"}, context=(kinds(communicate="Writes."),))
    carried = await carry_out(planner_agent(), OfflineModel(), at)
    refusals = [result for tool, _, result, is_error in carried.calls if tool == "submit_plan" and is_error]
    assert len(refusals) == len(carried.calls)
    assert "there is no kind 'data'" in refusals[-1]


async def test_a_kind_of_the_user_is_chosen_by_its_description() -> None:
    offered = {**BUILT_IN, "translator": "Translates documents into another language."}
    assert shape(await plan("Translate the README to French", "README.md", offered=offered)) == [("translator", ())]


async def test_the_note_says_what_was_not_understood() -> None:
    output = await plan("blorp the frobnicator")
    assert "did not tell what kind of work" in output["note"]
    assert "Nothing is attached" in output["note"]


async def test_a_missing_address_is_said() -> None:
    assert "only be drafted" in (await plan("Count the rows and mail the result to the team", "a.csv"))["note"]


async def test_planning_again_leaves_out_what_failed() -> None:
    failed = ContextItem(
        "@open",
        "system",
        "steps without a result",
        Outcome(
            "",
            output=[
                {"key": "data", "type": "data", "objective": "Count the rows", "problem": "failed: out of memory"},
                {"key": "communicate", "type": "communicate", "objective": "Mail it", "problem": "could not start because 'data' failed"},
            ],
        ),
    )
    done = earlier("research", "Found.")
    goal = "Count the rows of a.csv, look up the rules, and mail both to a@example.org"
    output = await plan(goal, "a.csv", "rules.md", key="@replan-1", context=(done, failed))
    assert [(step["key"], step["depends_on"]) for step in output["steps"]] == [("research", []), ("communicate", ["research"])]
    assert "Could not be done: Count the rows" in output["steps"][1]["objective"]


def test_an_and_between_nouns_does_not_split() -> None:
    assert [c.text for c in split_goal("Compare sales and costs per region and year")[1]] == ["Compare sales and costs per region and year"]


def test_quoted_text_is_not_split() -> None:
    assert [c.text for c in split_goal('Search for "read it, then count it" in the notes')[1]] == ['Search for "read it, then count it" in the notes']


@pytest.mark.parametrize("goal", ["tell me smth about this", "What is the longest distance?", "so, what's in here?", "anything odd in this table?"])
async def test_a_question_goes_to_the_only_kind_that_has_files(goal: str) -> None:
    assert shape(await plan(goal, "rides.parquet")) == [("data", ())]


async def test_what_matters_is_asked_of_every_file_once() -> None:
    assert shape(await plan("Look at these files and tell me what matters", "terms.md", "sold.csv")) == [("data", ()), ("research", ())]


async def test_a_search_in_documents_is_not_given_to_a_table() -> None:
    assert shape(await plan("What does our travel policy say about trains?", "trips.csv")) == [("research", ())]


def test_a_total_is_a_noun_unless_it_has_an_article() -> None:
    assert len(split_goal("Total quantity and average price by category")[1]) == 1
    assert len(split_goal("Read the table and average the prices")[1]) == 2
