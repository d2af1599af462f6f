"""Rules of the planner's small tasks: who carries out a goal, and whether an outcome meets a rubric."""

from __future__ import annotations

from typing import Final

from crewlog.agents.offline_conversation import Conversation, Turn, Want
from crewlog.agents.offline_plan import known_kinds, make_drafts
from crewlog.agents.offline_text import terms
from crewlog.agents.planner_roles import PLAN, RUBRIC
from crewlog.schemas.values import ContextItem

SHARE_MIN: Final = 0.6
"""Share of a criterion's words that an outcome must hold for the rule to call it met."""


def choose_specialist(talk: Conversation) -> Turn:
    """Answer a routing task: the one kind that the planner's rules would use, or the wish for a plan."""
    kinds = known_kinds(talk)
    drafts, _ = make_drafts(talk.objective, talk.attachments, kinds)
    kind = drafts[0].kind if len(drafts) == 1 and drafts[0].kind in {info.kind for info in kinds} else PLAN
    return Turn("", (Want("submit_route", {"kind": kind, "why": f"the rules find {len(drafts)} piece{'s' if len(drafts) != 1 else ''} of work"}),))


def judge(talk: Conversation) -> Turn:
    """Answer a judging task by words: a criterion is met when most of its words stand in the outcome."""
    rubric = next((item.outcome.output for item in talk.context if item.key == RUBRIC), None)
    held = set(terms(" ".join(_text_of(item) for item in talk.outcomes)))
    verdicts = [_verdict(number, str(criterion), held) for number, criterion in enumerate(rubric if isinstance(rubric, list) else [], 1)]
    return Turn("", (Want("submit_verdict", {"verdicts": verdicts}),))


def _verdict(number: int, criterion: str, held: set[str]) -> dict[str, object]:
    wanted = terms(criterion)
    missing = [word for word in wanted if word not in held]
    is_met = len(missing) <= (1 - SHARE_MIN) * len(wanted)
    return {"criterion": number, "met": is_met, "why": "" if is_met else f"by its words, nothing is said of: {', '.join(missing)}"}


def _text_of(item: ContextItem) -> str:
    return " ".join((item.outcome.summary, *(citation.quote for citation in item.outcome.citations), *(ref.name for ref in item.outcome.artifacts)))
