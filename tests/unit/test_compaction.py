"""What is left out of a conversation that grows too long, in which order, and what stands in its place."""

from __future__ import annotations

from msgspec.structs import replace
from support.turns import SETUP, Texts, state_behind, turn

from crewlog.agents.compaction import Compact, make_room, ratio_of
from crewlog.agents.conversation import build_request, payloads_of
from crewlog.agents.recall import RECALL
from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Count, TaskState, evolve
from crewlog.agents.tokens import estimate_request
from crewlog.schemas.blocks import ModelRequest, Text, ToolResult, ToolUse
from crewlog.schemas.task_events import ContextCompacted, Link
from crewlog.schemas.values import Failure


def link(provider: str, model: str, window: int = 0) -> Link:
    return Link("wire", provider, model, window=window)


SMALL = link("openai", "gpt", window=20_000)


class Talk:
    """A task of many turns, compacted as a worker would."""

    def __init__(self, turns: int, *, said: str = "I look further.", result: str = "row " * 1_000) -> None:
        self.texts = Texts()
        used = [("look", f'{{"page":{n}}}', f"{n}: {result}") for n in range(1, turns + 1)]
        self.state: TaskState = state_behind([turn(one, number=n, text=f"{n}: {said}", texts=self.texts) for n, one in enumerate(used, 1)])
        self.setup: Setup = SETUP

    def request(self) -> ModelRequest:
        return build_request(self.state, self.setup, self.texts.read)

    def tokens(self, target: Link = SMALL) -> int:
        return round(estimate_request(self.request(), provider=target.provider) * ratio_of(self.state, target))

    def decide(self, target: Link = SMALL, *, refused: bool = False) -> Compact | Failure | int:
        self.state = replace(self.state, chain=(target,))
        return make_room(self.state, self.setup, self.texts.read, is_too_long=refused)

    def compact(self, target: Link = SMALL, *, refused: bool = False) -> Compact:
        step = self.decide(target, refused=refused)
        assert isinstance(step, Compact)
        event = ContextCompacted(1, step.reason, target.provider, target.model, step.tokens_before, step.tokens_after, step.tokens_max, step.replaced)
        self.state = evolve(self.state, event)
        return step


def test_what_fits_is_sent_whole() -> None:
    talk = Talk(5)
    assert isinstance(talk.decide(), int)
    assert RECALL not in [tool.name for tool in talk.request().tools]


def test_the_oldest_results_go_first_and_say_how_to_get_them_back() -> None:
    talk = Talk(30)
    step = talk.compact()

    assert [r.turn for r in step.replaced] == list(range(1, len(step.replaced) + 1))
    assert {r.what for r in step.replaced} == {"result"}
    first = step.replaced[0]
    assert first.by == f'[the result of look was left out to make room: {first.size} bytes; recall_result shows it: {{"call_id": "t1-1"}}]'
    request = talk.request()
    assert request.messages[1].content == (Text("1: I look further."), ToolUse("t1-1", "look", '{"page":1}'))
    assert request.messages[2].content == (ToolResult("t1-1", "look", first.by),)
    assert RECALL in [tool.name for tool in request.tools]


def test_it_is_cut_down_far_enough_to_last_for_a_while() -> None:
    talk = Talk(30)
    step = talk.compact()
    assert step.tokens_before > step.tokens_max == 11_808
    assert step.tokens_after <= step.tokens_max * 2 / 3
    # this agent had no tools before: the one that reads results back comes on top
    assert talk.tokens() <= step.tokens_after + 1_000
    assert isinstance(talk.decide(), int)


def test_the_task_and_the_last_turns_are_never_touched() -> None:
    talk = Talk(30)
    before = talk.request()
    talk.compact(link("openai", "gpt", window=1_000))
    after = talk.request()
    assert after.messages[0] == before.messages[0]
    assert after.messages[-8:] == before.messages[-8:]


def test_words_go_only_when_all_results_have_gone() -> None:
    talk = Talk(12, said="word " * 800, result="few " * 40)
    step = talk.compact(link("openai", "gpt", window=4_000))
    assert [r.what for r in step.replaced] == ["result"] * 8 + ["text"] * 8
    assert step.replaced[8].by == "[what was said here was left out to make room: 4003 bytes]"


def test_what_is_shorter_than_the_line_in_its_place_stays() -> None:
    talk = Talk(12, said="", result="")
    assert not isinstance(talk.decide(link("openai", "gpt", window=10)), Compact)


def test_a_conversation_that_cannot_fit_is_refused_with_the_way_out() -> None:
    talk = Talk(3, result="row " * 10_000)
    failure = talk.decide(link("openai", "gpt", window=5_000))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.retryable) == ("model_context_length", False)
    assert "openai/gpt has a context window of 5000 tokens" in failure.message
    assert "use a model with a larger window" in failure.message


def test_a_window_nobody_knows_is_no_reason_to_refuse() -> None:
    talk = Talk(3, result="row " * 100_000)
    assert isinstance(talk.decide(link("openai", "gpt")), int)


def test_a_request_the_provider_found_too_long_is_at_least_halved() -> None:
    talk = Talk(20)
    needed = talk.tokens(link("local", "m"))
    step = talk.compact(link("local", "m"), refused=True)
    assert step.tokens_after <= needed // 2
    for _ in range(4):
        if not isinstance(talk.decide(link("local", "m"), refused=True), Compact):
            break
        talk.compact(link("local", "m"), refused=True)
    failure = talk.decide(link("local", "m"), refused=True)
    assert isinstance(failure, Failure)
    assert "local/m has a smaller context window" in failure.message


def test_estimates_are_corrected_by_what_was_counted() -> None:
    talk = Talk(5)
    plain = talk.tokens()
    counts = (Count("openai", "gpt", 1_000, 1_500), Count("openai", "gpt", 1_000, 1_200), Count("other", "gpt", 1, 9), Count("openai", "gpt", 9, 0))
    talk.state = replace(talk.state, counts=counts)
    assert ratio_of(talk.state, SMALL) == 1.5
    assert talk.tokens() in (int(plain * 1.5), int(plain * 1.5) + 1)
    talk.state = replace(talk.state, counts=(Count("openai", "gpt", 1_000, 3),))
    assert ratio_of(talk.state, SMALL) == 0.5, "a count beyond reason is bounded"


def test_texts_that_were_left_out_need_not_be_fetched() -> None:
    talk = Talk(30)
    all_of_it = len(list(payloads_of(talk.state)))
    step = talk.compact()
    assert len(list(payloads_of(talk.state))) == all_of_it - len(step.replaced)


def test_a_task_that_began_before_conversations_were_cut_keeps_its_rules() -> None:
    talk = Talk(30)
    talk.setup = replace(SETUP, room=None)
    assert isinstance(talk.decide(), int)


def test_the_offline_rules_are_shown_everything() -> None:
    talk = Talk(30)
    assert talk.decide(link("offline", "rules-1", window=10)) == 0
