"""The offline provider as a model: same request, same bytes; misbehaviour on demand; tools nobody prepared it for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from support.solo import carry_out
from support.toolbox import bench

from crewlog.agents.offline import Fault, OfflineModel, _goes_round, parse_fault
from crewlog.agents.offline_conversation import Call, Conversation, Turn, Want, read_conversation, result_data
from crewlog.agents.offline_text import EMAIL, cut_words, sentences, stem
from crewlog.agents.spec import AgentSpec, ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.agents.tokens import estimate_tokens
from crewlog.schemas.blocks import Message, ModelRequest, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.plan import Constraints
from crewlog.schemas.values import Outcome

ENDS = ("submit_plan", "submit_answer", "submit_findings", "submit_analysis", "submit_patch", "submit_report", "shout")
TOOLS = ("list_documents", "search_documents", "read_document", "list_sources", "describe_source", "run_sql", "list_files", "run_tests", "draft_message")


def request_of(task: dict[str, Any], tools: tuple[str, ...], turns: tuple[Message, ...] = ()) -> ModelRequest:
    opening = Message("user", (Text(f"Carry out this task.\n\n```json\n{json.dumps(task)}\n```"),))
    return ModelRequest("rules-1", "system", tuple(ToolDef(name, name, {"type": "object"}) for name in tools), (opening, *turns), 8192)


texts = st.text(max_size=200)
tasks = st.fixed_dictionaries(
    {"objective": texts | st.sampled_from(["Count the rows; mail a@b.c", "Fix it", 'Find "x" in the notes', "top 5 a by b"])},
    optional={"attachments": st.lists(st.fixed_dictionaries({"name": st.text(min_size=1, max_size=20)}), max_size=3), "key": texts, "context": st.just([])},
)


@st.composite
def requests(draw: st.DrawFn) -> ModelRequest:
    tools = (*draw(st.lists(st.sampled_from(TOOLS), max_size=9, unique=True)), draw(st.sampled_from(ENDS)))
    turns: list[Message] = []
    for number in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(tools))
        arguments = draw(st.sampled_from(["{}", '{"source": "t"}', "not json", '{"path": "a.py"}']))
        result = draw(texts | st.sampled_from(["| a | b |\n|---|---|\n| 1 | x |", "## a.md:1\n1\t# T\n2\tThe x is 5.", "1 passed, 1 failed, 0 errors"]))
        turns.append(Message("assistant", (ToolUse(f"c{number}", name, arguments),)))
        turns.append(Message("user", (ToolResult(f"c{number}", name, result, draw(st.booleans())),)))
    return request_of(draw(tasks), tools, tuple(turns))


@given(requests())
@settings(max_examples=300)
async def test_any_request_gets_the_same_well_formed_reply_twice(request: ModelRequest) -> None:
    reply = await OfflineModel().complete(request, timeout_s=1)
    again = await OfflineModel().complete(msgspec.json.decode(request.canonical(), type=ModelRequest), timeout_s=1)
    assert msgspec.json.encode(reply) == msgspec.json.encode(again)
    assert reply.content
    uses = [block for block in reply.content if isinstance(block, ToolUse)]
    assert len({use.call_id for use in uses}) == len(uses)
    assert all(use.name in {tool.name for tool in request.tools} for use in uses)
    assert all(isinstance(json.loads(use.arguments), dict) for use in uses)
    assert reply.stop == ("tool_use" if uses else "end_turn")


async def test_an_answer_says_what_was_lacking() -> None:
    asked = request_of({"objective": 'Define "lease"', "not_available": ["The tools of the MCP server x are not there: it is down."]}, ())
    (text,) = (await OfflineModel().complete(asked, timeout_s=1)).content
    assert isinstance(text, Text)
    assert text.text.startswith("This could not be done")
    assert text.text.endswith("The tools of the MCP server x are not there: it is down.")


async def test_call_ids_differ_between_turns() -> None:
    first = request_of({"objective": "Say x"}, ("list_documents", "submit_findings"))
    reply = await OfflineModel().complete(first, timeout_s=1)
    use = reply.content[-1]
    assert isinstance(use, ToolUse)
    later = msgspec.structs.replace(
        first, messages=(*first.messages, Message("assistant", reply.content), Message("user", (ToolResult(use.call_id, use.name, "x", is_error=True),)))
    )
    second = await OfflineModel().complete(later, timeout_s=1)
    assert {b.call_id for b in second.content if isinstance(b, ToolUse)}.isdisjoint({use.call_id})


class Say(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


class Convert(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: float
    unit: str
    digits: int = 2


async def shout(_: ToolContext, args: Say) -> ToolOutput:
    return ToolOutput(args.text.upper())


async def convert(_: ToolContext, args: Convert) -> ToolOutput:
    if args.unit not in ("km", "miles"):
        raise ToolFailed(f"unknown unit {args.unit!r}")
    return ToolOutput(f"{args.amount / 1.609344 if args.unit == 'km' else args.amount * 1.609344:.{args.digits}f}")


async def finish(_: ToolContext, args: Say) -> ToolOutput:
    return ToolOutput("done", outcome=Outcome(args.text))


SHOUT = ToolSpec("shout", "Return the text in capitals.", Say, shout, effect="read")
CONVERT = ToolSpec("convert_distance", "Convert a distance between km and miles.", Convert, convert, effect="read")
FINISH = ToolSpec("submit_result", "End the task.", Say, finish, effect="read", ends_task=True)


async def ask(objective: str, *tools: ToolSpec, fault: Fault | None = None) -> Any:
    agent = AgentSpec("helper", "Helps.", "Use the tools.", tools)
    return await carry_out(agent, OfflineModel(fault=fault or ""), await bench(objective, kind="helper"))


async def test_a_users_kind_with_one_tool_works() -> None:
    assert (await ask('Shout "hello there"', SHOUT)).text == "HELLO THERE"


async def test_text_behind_a_colon_is_what_a_tool_works_on() -> None:
    assert (await ask("Put this in capitals: hello you", SHOUT)).text == "HELLO YOU"


async def test_the_tool_is_chosen_by_its_name_and_filled_by_type() -> None:
    solo = await ask('Convert a distance of 10, unit is "km"', SHOUT, CONVERT)
    assert json.loads(solo.calls[0][1]) == {"amount": 10, "unit": "km"}
    assert solo.text == "6.21"


async def test_an_ending_tool_of_a_user_gets_the_answer() -> None:
    assert (await ask('Shout "hi"', SHOUT, FINISH)).result.summary == "HI"


async def test_what_cannot_be_filled_is_said() -> None:
    solo = await ask("Convert the distance please", CONVERT)
    assert not solo.calls
    assert "amount" in solo.text


async def test_an_error_is_reported_not_hidden() -> None:
    assert "unknown unit" in (await ask('Convert a distance of 10, unit is "parsec"', CONVERT)).text


async def test_bad_arguments_are_corrected_in_the_next_turn() -> None:
    solo = await ask('Shout "hi"', SHOUT, fault="bad_arguments")
    assert [is_error for _, _, _, is_error in solo.calls] == [True, False]
    assert "not valid\n  /unexpected: there is no such field" in solo.text or "HI" in solo.text


async def test_malformed_json_is_corrected_in_the_next_turn() -> None:
    solo = await ask('Shout "hi"', SHOUT, fault="malformed")
    assert [is_error for _, _, _, is_error in solo.calls] == [True, False]


async def test_a_refusal_and_a_loop_can_be_played() -> None:
    assert (await ask('Shout "hi"', SHOUT, fault="refuse")).replies[0].stop == "refusal"
    assert len((await ask('Shout "hi"', SHOUT, fault="loop")).calls) == 25


def test_an_unknown_fault_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="bad_arguments, malformed, refuse, loop"):
        parse_fault("explode")


def test_a_first_message_in_another_form_is_the_objective() -> None:
    talk = read_conversation(ModelRequest("m", "", (), (Message("user", (Text("Just do it"),)),), 10))
    assert talk.objective == "Just do it"


def test_fences_inside_the_task_do_not_end_it() -> None:
    assert read_conversation(request_of({"objective": "Run ```json {} ``` now"}, ())).objective == "Run ```json {} ``` now"


def test_results_are_read_as_json_where_they_are() -> None:
    assert result_data('before\n{"a": [1]}\nafter') == {"a": [1]}
    assert result_data("plain") is None


def test_words_that_belong_together_share_a_stem() -> None:
    assert stem("rules") == stem("rule")
    assert stem("employees") == stem("employee")
    assert stem("summarize") == stem("summarised")
    assert stem("applies") == stem("apply")
    assert {stem(word) for word in ("cancel", "cancelled", "cancelling")} == {"cancel"}
    assert stem("called") == stem("call") != stem("cal")


def test_sentences_do_not_end_behind_abbreviations() -> None:
    assert sentences("Use it, e.g. Here. Then stop.") == ["Use it, e.g. Here.", "Then stop."]


@given(st.text(alphabet="abc |`\n", max_size=300), st.integers(1, 60))
def test_cutting_never_exceeds_the_limit_by_more_than_its_marks(text: str, most: int) -> None:
    assert len(cut_words(text, most).split()) <= most + 1


def test_an_address_search_over_long_text_takes_no_time() -> None:
    assert EMAIL.findall("a" * 200_000 + " b@c.de") == ["b@c.de"]


def test_tokens_are_estimated_rather_high() -> None:
    assert estimate_tokens("How many penguins live on Dream island?") == 11
    assert estimate_tokens("数据") >= 2
    assert estimate_tokens('{"a":1}') >= 4


def test_a_call_goes_round_only_while_nothing_new_comes_of_it() -> None:
    def talk(*results: str) -> Conversation:
        calls = tuple(Call("run_tests", {}, result, is_error=False, turn=turn) for turn, result in enumerate(results))
        return Conversation("Repair it.", "code", "fix", (), (), Constraints(), None, {}, calls, (), len(results))

    again = Turn("", (Want("run_tests", {}),))
    assert not _goes_round(talk("5 failed", "4 failed", "3 failed", "2 failed"), again), "one repair after the other"
    assert not _goes_round(talk("5 failed", "5 failed"), again)
    assert _goes_round(talk("5 failed", "5 failed", "5 failed"), again)
