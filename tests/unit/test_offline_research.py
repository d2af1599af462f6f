"""The offline research rules with the real research tools: answers stand in the documents, or there is none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.solo import Solo, carry_out
from support.toolbox import bench

from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.offline import Fault, OfflineModel
from crewlog.agents.specialist_research import research_agent
from crewlog.events.memory_store import MemoryStore
from crewlog.schemas.plan import Constraints

HANDBOOK = b"""# Handbook

## Time off

Every employee gets 27 days of paid vacation per
year. Sick days are not counted.

## Remote work

- Up to three days a week may be worked from home.
- Core hours are ten to three.

## Expenses

A travel claim must be filed within 30 days. Claims without a receipt are paid up to 15 euros.
"""
OTHER = b"Opening hours\n\nThe office opens at nine and closes at six.\n"
BOOK = {f"rules/{n}.md": text for n, text in enumerate((
    b"# Rule 1: Name your data\n\n- Every table states its source and its licence.\n- Do not publish names of people.\n",
    b"# Rule 2: Draw honestly\n\n- A bar chart starts at zero.\n- A chart shows its units.\n",
    b"# Rule 3: Feed the cat\n\n- The cat is fed at noon.\n",
))}  # fmt: skip


async def ask(question: str, documents: Mapping[str, bytes], constraints: Constraints | None = None, *, fault: Fault | None = None) -> Solo:
    store = MemoryStore()
    at = await bench(question, attachments=documents, constraints=constraints or Constraints(citations_min=1))
    return await carry_out(research_agent(store, MemoryKnowledge(store)), OfflineModel(fault=fault or ""), at)


async def test_a_number_is_found_and_cited_across_a_line_break() -> None:
    outcome = (await ask("How many vacation days do employees get?", {"handbook.md": HANDBOOK, "hours.txt": OTHER})).result
    assert "27 days" in outcome.summary
    assert (outcome.citations[0].source, outcome.citations[0].line) == ("handbook.md", 5)
    assert outcome.flags == ()


async def test_changing_the_document_changes_the_answer() -> None:
    outcome = (await ask("How many vacation days do employees get?", {"handbook.md": HANDBOOK.replace(b"27", b"31")})).result
    assert "31 days" in outcome.summary
    assert "27" not in outcome.summary


async def test_other_questions_find_other_lines() -> None:
    for question, wanted in (
        ("When does the office open?", "opens at nine"),
        ("What is the deadline for a travel claim?", "within 30 days"),
        ("Can I work from home?", "three days a week"),
        ("What are the core hours?", "ten to three"),
    ):
        outcome = (await ask(question, {"handbook.md": HANDBOOK, "hours.txt": OTHER})).result
        assert wanted in outcome.citations[0].quote + outcome.summary, question


async def test_each_half_of_a_question_is_answered() -> None:
    manual = b"# Heater\n\n## Warranty\nThe warranty period is 36 months from then on. Batteries are not part of it: they are excluded.\n\n## Use\nPress it.\n"
    outcome = (await ask("How long is the warranty period, and what is excluded?", {"manual.md": manual})).result
    assert "36 months" in outcome.summary
    assert "they are excluded" in outcome.summary
    assert "Not in these passages" not in outcome.summary


async def test_what_is_not_there_is_not_found() -> None:
    outcome = (await ask("What is the capital of France?", {"handbook.md": HANDBOOK})).result
    assert outcome.flags == ("not_found",)
    assert "capital and france" in outcome.summary
    assert not outcome.citations


async def test_no_documents_is_an_answer() -> None:
    outcome = (await ask("What is new?", {}, Constraints())).result
    assert outcome.flags == ("not_found",)
    assert "no documents" in outcome.summary


async def test_a_damaged_document_is_named_and_the_others_answer() -> None:
    damaged = {"scan.pdf": b"%PDF-1.4 nothing of one"}
    alone = (await ask("What is new?", damaged, Constraints())).result
    assert alone.flags == ("not_found",)
    assert "'scan.pdf' cannot be read" in alone.summary
    assert "nothing is attached" not in alone.summary
    beside = (await ask("How many vacation days are there?", {"handbook.md": HANDBOOK, **damaged})).result
    assert "27 days" in beside.summary
    assert "'scan.pdf' cannot be read" in beside.summary


async def test_a_general_question_is_answered_for_the_goal_it_is_part_of() -> None:
    outcome = (await ask("Say which rules apply\n\nPart of: Publish the table with its source and a bar chart", BOOK)).result
    sources = {citation.source for citation in outcome.citations}
    assert {"rules/0.md", "rules/1.md"} <= sources
    assert "rules/2.md" not in sources


async def test_a_summary_takes_something_from_every_document() -> None:
    outcome = (await ask("Summarise these documents", {**BOOK, "hours.txt": OTHER})).result
    assert {citation.source for citation in outcome.citations} == {*BOOK, "hours.txt"}


async def test_bad_arguments_and_malformed_json_are_corrected() -> None:
    faults: tuple[Fault, ...] = ("bad_arguments", "malformed")
    for fault in faults:
        solo = await ask("How many vacation days do employees get?", {"handbook.md": HANDBOOK}, fault=fault)
        assert solo.calls[0][3]
        assert "27 days" in solo.result.summary


async def test_constraints_are_kept() -> None:
    rules = Constraints(words_max=25, citations_min=1, must_mention=("parking",), banned_phrases=("sick",))
    outcome = (await ask("How many vacation days do employees get?", {"handbook.md": HANDBOOK}, rules)).result
    assert len(outcome.summary.split()) <= 25
    assert "parking" in outcome.summary
    assert "sick" not in outcome.summary.lower()


async def test_numbers_in_brackets_of_a_document_are_no_markers() -> None:
    outcome = (await ask("How long is the warranty?", {"w.md": b"# Warranty\n\nThe warranty lasts two years [7] and covers all parts.\n"})).result
    assert outcome.citations[0].quote.startswith("The warranty lasts two years [7]")


RATES = b"# Tickets\n\n| Group | Price per day |\n|---|---|\n| Adults | 12 euros |\n| Pupils | 4 euros |\n"
RATES += b"\nWhen visitors exceed the opening hours, the guard is called.\n"


async def test_a_row_of_a_table_is_found_by_its_cells_and_its_columns() -> None:
    outcome = (await ask("What is the price for pupils?", {"museum.md": RATES})).result
    assert outcome.citations[0].quote == "| Pupils | 4 euros |"
    assert "columns: Group and Price per day" in outcome.summary


FILLED = ("What happens if I exceed opening hours?", "Summarise the museum page in at most 30 words", "What matters in this?")


@pytest.mark.parametrize("question", FILLED)
async def test_filler_words_are_not_looked_for(question: str) -> None:
    outcome = (await ask(question, {"museum.md": RATES})).result
    assert "not_found" not in outcome.flags
    assert any("guard is called" in citation.quote for citation in outcome.citations)


LEAVE = b"""\
# Leave policy

## Vacation
Employees receive 25 days of paid vacation per calendar year. Unused days expire on 31 March.

## Forms
Late reports need the approval of the board.
"""
LEAVE_NEW = b"LEAVE POLICY 2024\n\nEmployees receive 30 days of paid vacation per calendar year.\nUnused days do not expire on 31 March.\n"
PORTS = b"# Guide\n\n| Service | Port |\n| --- | --- |\n| Billing | 8443 |\n| Search | 9200 |\n"


async def test_documents_that_contradict_each_other_are_both_quoted() -> None:
    outcome = (await ask("How many days of vacation do employees get?", {"old.md": LEAVE, "new.txt": LEAVE_NEW})).result
    assert "25 days" in outcome.summary
    assert "30 days" in outcome.summary
    assert "do not say the same" in outcome.summary
    turned = (await ask("Do unused days expire?", {"old.md": LEAVE, "new.txt": LEAVE_NEW})).result
    assert {c.source for c in turned.citations} == {"old.md", "new.txt"}
    assert not any(c.quote == "LEAVE POLICY 2024" for c in turned.citations), "a title is no statement"


async def test_a_cell_is_found_by_the_name_of_its_column() -> None:
    shop = b"Claims must be sent to the service centre in Graz.\n"
    outcome = (await ask("What is the port of the search service?", {"guide.md": PORTS, "warranty.txt": shop})).result
    assert "9200" in outcome.citations[0].quote


async def test_another_form_of_a_word_is_found() -> None:
    outcome = (await ask("Who approves late reports?", {"leave.md": LEAVE})).result
    assert "the board" in outcome.summary


async def test_what_is_said_to_be_absent_is_absent() -> None:
    outcome = (await ask("Which vacation days may managing directors sell to suppliers abroad?", {"leave.md": LEAVE})).result
    assert "no passage speaks of" in outcome.summary
    assert "vacation" not in outcome.summary.split("What comes", 1)[0]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Translate the policy into French", "cannot translate"),
        ("Summarise the policy, do not send any mail to bob@example.org", "25 days"),
        ("What does ada@example.org have to know about late reports?", "the board"),
    ],
)
async def test_what_is_not_to_be_looked_for(question: str, said: str) -> None:
    assert said in (await ask(question, {"policy.md": LEAVE})).result.summary


async def test_a_short_summary_still_takes_something_from_every_document() -> None:
    documents = {f"{n}.md": LEAVE.replace(b"25", str(n).encode()) for n in (21, 22, 23)}
    outcome = (await ask("Summarise the policies", documents, Constraints(words_max=75))).result
    assert len(outcome.summary.split()) <= 75
    assert {c.source for c in outcome.citations} == set(documents)
