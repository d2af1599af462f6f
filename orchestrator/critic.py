"""The deterministic critic: holds an outcome to the rules of its task. No model, no IO; the same outcome gives the same issues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from crewlog.schemas.errors import ContractError
from crewlog.schemas.json_output import schema_problems
from crewlog.schemas.plan import Constraints, read_constraints
from crewlog.schemas.run_events import Step
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Issue, Outcome

SCHEMA_DEPTH_MAX: Final = 64

REFERENCES_MAX: Final = 500

_NAMED: Final = frozenset({"properties", "$defs", "dependentSchemas"})
_DATA: Final = frozenset({"const", "enum", "default", "examples"})
_NO_PATTERN: Final = "use enum, minLength and maxLength, or propertyNames with enum"
_REFUSED: Final = {"pattern": _NO_PATTERN, "patternProperties": _NO_PATTERN} | dict.fromkeys(
    ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"), "put definitions into $defs and point to them with $ref"
)


def review(outcome: Outcome, constraints: Constraints, output_schema: Mapping[str, Any] | None = None) -> tuple[Issue, ...]:
    """Return every rule the outcome breaks, in a fixed order; nothing means accepted."""
    problems = schema_problems(outcome.output, output_schema) if output_schema is not None else ()
    schema_issues = (Issue("output_schema", problem) for problem in problems)
    return (*_text_issues(outcome, constraints), *_evidence_issues(outcome, constraints), *schema_issues)


def _text_issues(outcome: Outcome, constraints: Constraints) -> Iterator[Issue]:
    words = len(outcome.summary.split())
    if constraints.words_max is not None and words > constraints.words_max:
        yield Issue("words_max", f"the summary has {words} words, at most {constraints.words_max} are allowed; shorten it")
    folded = outcome.summary.casefold()
    for phrase in constraints.must_mention:
        if phrase.casefold() not in folded:
            yield Issue("must_mention", f"the summary does not mention {phrase!r}")
    for phrase in constraints.banned_phrases:
        if phrase.casefold() in folded:
            yield Issue("banned_phrases", f"the summary contains {phrase!r}, which is not allowed")


def _evidence_issues(outcome: Outcome, constraints: Constraints) -> Iterator[Issue]:
    if len(outcome.citations) < constraints.citations_min:
        yield Issue("citations_min", f"{len(outcome.citations)} citations, at least {constraints.citations_min} are needed")
    names = [artifact.name for artifact in outcome.artifacts]
    for pattern in constraints.files_exist:
        if not any(fnmatchcase(name, pattern) for name in names):
            yield Issue("files_exist", f"no file matches {pattern!r}; there are: {', '.join(names) or 'none'}")
    if constraints.tests_pass:
        yield from _test_issues(outcome.output)


def _test_issues(output: Any) -> Iterator[Issue]:
    tests = output.get("tests") if isinstance(output, dict) else None
    passed, failed = (tests.get("passed"), tests.get("failed")) if isinstance(tests, dict) else (None, None)
    if not isinstance(passed, int) or not isinstance(failed, int):
        yield Issue("tests_pass", "the outcome does not say how many tests passed and failed; run the tests")
    elif failed > 0 or passed < 1:
        yield Issue("tests_pass", f"{failed} tests fail and {passed} pass; none may fail and at least one must pass")


def rubric_of(step: Step) -> tuple[str, ...]:
    """Return the criteria that a model judges a step's outcome by; none for most steps."""
    if b'"rubric"' not in bytes(step.constraints):
        return ()
    return read_constraints(step.constraints).rubric


def read_judgement(output: Any, rubric: tuple[str, ...]) -> tuple[Issue, ...]:
    """Turn what a critic said into issues: one for each criterion that is not met.

    Args:
        output: of the critic's outcome: `{"verdicts": [{"criterion": 1, "met": true, "why": "…"}]}`.

    Raises:
        ContractError: it does not judge every criterion exactly once.
    """
    said = output.get("verdicts") if isinstance(output, dict) else None
    verdicts = {v["criterion"]: v for v in said if isinstance(v, dict) and isinstance(v.get("criterion"), int)} if isinstance(said, list) else {}
    if set(verdicts) != set(range(1, len(rubric) + 1)) or len(said or ()) != len(rubric):
        raise ContractError(f"the critic judged criteria {sorted(verdicts)} of 1 to {len(rubric)}")
    return tuple(
        Issue("rubric", f"not met: {criterion}" + (f" ({shorten(str(verdicts[number].get('why') or ''), 300)})" if verdicts[number].get("why") else ""))
        for number, criterion in enumerate(rubric, 1)
        if verdicts[number].get("met") is not True
    )


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse an `output_schema` that could stall or mislead the critic.

    One regular expression can keep a process busy for hours, and so can references that double with each step. So patterns are refused,
    and references must point to `#/$defs/<name>`, without recursion and without multiplying.

    Raises:
        ContractError: naming every fault.
    """
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        text = shorten(str(getattr(error, "message", error)), 300)
        raise ContractError("output_schema is not a valid JSON Schema", problems=(("/output_schema", text),)) from None
    problems = tuple(_keyword_faults(schema, "/output_schema", 0)) or tuple(_reference_faults(schema))
    if problems:
        raise ContractError("output_schema uses what the critic does not evaluate", problems=problems)


def _children(node: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (keyword or empty, pointer suffix, child) of one schema node; below `properties` and `$defs` keys are names, not keywords."""
    if isinstance(node, list):
        yield from (("", f"/{index}", child) for index, child in enumerate(node))
    elif isinstance(node, dict):
        for key, child in node.items():
            if key in _NAMED and isinstance(child, dict):
                yield from (("", f"/{key}/{name}", sub) for name, sub in child.items())
            elif key not in _DATA:
                yield key, f"/{key}", child


def _keyword_faults(node: Any, pointer: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > SCHEMA_DEPTH_MAX:
        yield pointer, f"nested deeper than {SCHEMA_DEPTH_MAX}"
        return
    for keyword, suffix, child in _children(node):
        if keyword in _REFUSED:
            yield pointer + suffix, f"{keyword} is not supported here; {_REFUSED[keyword]}"
        elif keyword == "$ref" and _definition(child) is None:
            yield pointer + suffix, f"{shorten(str(child), 80)!r} must be #/$defs/<name>"
        else:
            yield from _keyword_faults(child, pointer + suffix, depth + 1)


def _definition(reference: Any) -> str | None:
    """Return the name in `#/$defs/<name>`, or None."""
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        return None
    name = reference.removeprefix("#/$defs/")
    return name if name and "/" not in name and "~" not in name and "%" not in name else None


def _references(node: Any) -> Iterator[str]:
    for keyword, suffix, child in _children(node):
        if keyword == "$ref":
            yield _definition(child) or ""
        elif not suffix.startswith("/$defs/"):
            yield from _references(child)


def _reference_faults(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    definitions = schema.get("$defs", {})
    sizes: dict[str, int] = {}

    def size(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ContractError(f"the definitions refer to themselves: {' -> '.join([*path, name])}")
        if name not in definitions:
            raise ContractError(f"there is no definition {name!r}")
        if name not in sizes:
            sizes[name] = 1 + sum(size(child, (*path, name)) for child in _references(definitions[name]))
        return sizes[name]

    try:
        total = sum(size(name, ()) for name in _references(schema))
    except ContractError as error:
        yield "/output_schema/$defs", error.message
        return
    except RecursionError:
        yield "/output_schema/$defs", "the references form too long a chain"
        return
    if total > REFERENCES_MAX:
        yield "/output_schema/$defs", f"references unfold to {total} definitions, at most {REFERENCES_MAX} are allowed"
