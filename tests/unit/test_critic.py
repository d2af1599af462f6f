"""The deterministic critic: each rule, and schemas that must not be evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from crewlog.orchestrator.critic import REFERENCES_MAX, SCHEMA_DEPTH_MAX, check_schema, read_judgement, review
from crewlog.schemas.errors import ContractError
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Constraints
from crewlog.schemas.values import ArtifactRef, Citation, Outcome

GOOD = Outcome(
    "The Adelie penguins weigh 3.7 kg on average.",
    output={"tests": {"passed": 3, "failed": 0}},
    artifacts=(ArtifactRef("charts/mass.svg", "a" * 64, 9),),  # type: ignore[arg-type]
    citations=(Citation("penguins.md", 3, "3.7 kg"),),
)


@pytest.mark.parametrize(
    ("rules", "issue"),
    [
        ({"words_max": 8}, None),
        ({"words_max": 7}, "the summary has 8 words, at most 7 are allowed; shorten it"),
        ({"must_mention": ["adelie"]}, None),
        ({"must_mention": ["Gentoo"]}, "the summary does not mention 'Gentoo'"),
        ({"banned_phrases": ["As an AI"]}, None),
        ({"banned_phrases": ["ON AVERAGE"]}, "the summary contains 'ON AVERAGE', which is not allowed"),
        ({"citations_min": 1}, None),
        ({"citations_min": 2}, "1 citations, at least 2 are needed"),
        ({"files_exist": ["charts/*.svg"]}, None),
        ({"files_exist": ["*.png"]}, "no file matches '*.png'; there are: charts/mass.svg"),
        ({"tests_pass": True}, None),
    ],
)
def test_rules(rules: dict[str, Any], issue: str | None) -> None:
    found = review(GOOD, parse(Constraints, rules, "no constraints"))

    assert [i.message for i in found] == ([] if issue is None else [issue])
    assert [i.rule for i in found] == ([] if issue is None else list(rules))


@pytest.mark.parametrize(
    "output", [None, [], {"tests": None}, {"tests": {"passed": 3}}, {"tests": {"passed": 0, "failed": 0}}, {"tests": {"passed": 3, "failed": 1}}]
)
def test_tests_must_be_known_to_pass(output: Any) -> None:
    assert [i.rule for i in review(Outcome("x", output=output), Constraints(tests_pass=True))] == ["tests_pass"]


def test_all_issues_are_named_in_a_fixed_order() -> None:
    rules = Constraints(words_max=1, citations_min=1, must_mention=("a", "b"), files_exist=("c",), tests_pass=True)

    assert [i.rule for i in review(Outcome("x y"), rules)] == ["words_max", "must_mention", "must_mention", "citations_min", "files_exist", "tests_pass"]


def test_output_follows_its_schema() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "type": "object", "properties": {"total": {"$ref": "#/$defs/n"}}, "required": ["total", "unit"]}

    assert review(Outcome("x", output={"total": 1, "unit": "kg"}), Constraints(), schema) == ()
    assert [i.message for i in review(Outcome("x", output={"total": "1"}), Constraints(), schema)] == [
        "$: 'unit' is a required property",
        "$.total: '1' is not of type 'integer'",
    ]


def doubling(levels: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {}}}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "strin"}, "is not valid under any of the given schemas"),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "pattern is not supported here"),
        ({"patternProperties": {"(a+)+$": {}}}, "patternProperties is not supported here"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "must be #/$defs/<name>"),
        ({"items": [{"$ref": "#"}]}, "is not of type"),
        ({"items": {"$ref": "#"}}, "must be #/$defs/<name>"),
        ({"$ref": "#/$defs/a"}, "there is no definition 'a'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "refer to themselves: a -> a"),
        ({"$defs": {"a": {"$id": "x"}}}, "$id is not supported here"),
        (doubling(30), f"at most {REFERENCES_MAX} are allowed"),
    ],
)
def test_schemas_that_must_not_be_evaluated(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_schema(schema)

    assert problem in str(caught.value)


def test_schemas_that_only_look_dangerous() -> None:
    check_schema({"properties": {"pattern": {"const": {"$ref": "x", "pattern": "y"}}, "$id": {}}, "enum": [{"pattern": "z"}]})
    check_schema(doubling(5))


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_deep_nesting_is_refused() -> None:
    check_schema(nested(SCHEMA_DEPTH_MAX))
    with pytest.raises(ContractError, match=f"nested deeper than {SCHEMA_DEPTH_MAX}"):
        check_schema(nested(SCHEMA_DEPTH_MAX + 1))
    with pytest.raises(ContractError):  # long before, the library gives up
        check_schema(nested(2_000))


def test_so_many_references_are_taken_and_not_one_more() -> None:
    def referring(times: int) -> dict[str, Any]:
        return {"anyOf": [{"$ref": "#/$defs/a"}] * times, "$defs": {"a": {}}}

    check_schema(referring(REFERENCES_MAX))
    with pytest.raises(ContractError, match=f"unfold to {REFERENCES_MAX + 1} definitions"):
        check_schema(referring(REFERENCES_MAX + 1))


RUBRIC = ("names its sources", "is polite")


def verdict(criterion: Any, met: Any = True, **more: Any) -> dict[str, Any]:
    return {"criterion": criterion, "met": met, **more}


def test_each_criterion_that_is_not_met_is_an_issue_with_the_reason() -> None:
    assert read_judgement({"verdicts": [verdict(2), verdict(1)]}, RUBRIC) == ()
    found = read_judgement({"verdicts": [verdict(2, "yes"), verdict(1, False, why="none " * 100)]}, RUBRIC)
    assert [issue.rule for issue in found] == ["rubric", "rubric"]
    assert found[0].message.startswith("not met: names its sources (none none")
    assert len(found[0].message) < 350
    assert found[1].message == "not met: is polite", "what is not plainly met is not met"


@pytest.mark.parametrize(
    "output",
    [
        None,
        [],
        {"verdicts": "fine"},
        {"verdicts": [verdict(1)]},
        {"verdicts": [verdict(1), verdict(3)]},
        {"verdicts": [verdict(1), verdict("2")]},
        {"verdicts": [verdict(1), verdict(2), verdict(3)]},
        {"verdicts": [verdict(1, False), verdict(2), verdict(1)]},
        {"verdicts": [verdict(1), verdict(2), "and more"]},
    ],
)
def test_a_judgement_that_does_not_judge_each_criterion_once_is_none(output: Any) -> None:
    with pytest.raises(ContractError, match="the critic judged criteria"):
        read_judgement(output, RUBRIC)
