"""The repair operators: the wanted change is among the edits, and every edit leaves a file that parses."""

from __future__ import annotations

import time
from typing import Any

import pytest

from crewlog.agents.code_runner import mended
from crewlog.agents.offline_code import _summary
from crewlog.agents.offline_code_edits import Source, is_valid
from crewlog.agents.offline_code_errors import error_edits
from crewlog.agents.offline_code_operators import operator_edits
from crewlog.agents.offline_code_repair import candidates, suspicious_lines
from crewlog.agents.offline_code_report import Failing, lines_of, paths_of_tests, read_files, read_run
from crewlog.agents.offline_code_shapes import shape_edits
from crewlog.agents.offline_conversation import Call, Conversation
from crewlog.schemas.ids import Hash
from crewlog.schemas.plan import Constraints
from crewlog.schemas.values import ArtifactRef, ContextItem, Outcome

ORDER = "def size(n):\n    if n > 1:\n        return 'some'\n    {}if n > 100:\n        return 'many'\n    return 'one'\n"
SWAPPED = "def size(n):\n    if n > 100:\n        return 'many'\n    {}if n > 1:\n        return 'some'\n    return 'one'\n"


def results(text: str) -> list[str]:
    source = Source("m.py", text)
    edits = [*operator_edits(source), *shape_edits(source, [])]
    return [text[: edit.start] + edit.new + text[edit.end :] for edit in edits if is_valid(source, edit)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def share(a, b):\n    return a - b * 100 / 7\n", "def share(a, b):\n    return (a - b) * 100 / 7\n"),
        ("def boxes(n, size):\n    return n // size\n", "def boxes(n, size):\n    return -(-n // size)\n"),
        ("def words(s):\n    return s.split(' ')\n", "def words(s):\n    return s.split()\n"),
        ("def slug(s):\n    return s.replace(' ', '-')\n", "def slug(s):\n    return s.replace(' ', '-').lower()\n"),
        ("def pair(s):\n    return s.split(':')\n", "def pair(s):\n    return s.split(':', 1)\n"),
        ("def only(s):\n    return re.findall('[a-z]+', s)\n", "def only(s):\n    return re.findall('[a-z0-9]+', s)\n"),
        ("def give(box, n):\n    box.count = n\n", "def give(box, n):\n    box.count += n\n"),
        ("def net(p, r):\n    return p * r / 100\n", "def net(p, r):\n    return p - p * r / 100\n"),
        ("def take(self, n):\n    self.moves.append(n)\n", "def take(self, n):\n    self.moves.append(-n)\n"),
        ("def pages(n, size):\n    return n // size + 1\n", "def pages(n, size):\n    return -(-n // size)\n"),
        ("def cut(x):\n    if x > 9:\n        return 9\n", "def cut(x):\n    if x > 9:\n        return 9\n    return x\n"),
        (ORDER.format(""), SWAPPED.format("")),
        (ORDER.format("el"), SWAPPED.format("el")),
    ],
)
def test_the_repair_is_among_the_edits(before: str, after: str) -> None:
    assert after in results(before)


NONE = "TypeError: unsupported operand type(s) for +=: 'int' and 'NoneType'"
ENDLESS = "RecursionError: maximum recursion depth exceeded"


@pytest.mark.parametrize(
    ("message", "before", "after"),
    [
        (NONE, "for p in ps:\n    n += p\n", "for p in ps:\n    if p is None:\n        continue\n    n += p\n"),
        (NONE, "n = sum(p * 2 for p in ps)\n", "n = sum(p * 2 for p in ps if p is not None)\n"),
        (NONE, "n = [p for p in ps if p > 0]\n", "n = [p for p in ps if p is not None and p > 0]\n"),
        ("NameError: name 'maxx' is not defined", "n = maxx(ps)\n", "n = max(ps)\n"),
        ("KeyError: 'a'", "del box['a']\n", "box.pop('a', None)\n"),
        (NONE, "n = sum(ps)\n", "n = sum([item for item in ps if item is not None])\n"),
        (NONE, "n = a.x + a.y\n", "n = a.x + (a.y or 0)\n"),
        (ENDLESS, "def f(n):\n    return f(n - 1) + f(n - 2)\n", "def f(n):\n    if n < 2:\n        return n\n    return f(n - 1) + f(n - 2)\n"),
        (ENDLESS, 'def f(n):\n    """n!"""\n    return n * f(n - 1)\n', 'def f(n):\n    """n!"""\n    if n < 2:\n        return 1\n    return n * f(n - 1)\n'),
    ],
)
def test_a_message_suggests_the_repair(message: str, before: str, after: str) -> None:
    source = Source("m.py", before)
    edits = [edit for edit in error_edits(source, [message], []) if is_valid(source, edit)]
    assert after in [before[: edit.start] + edit.new + before[edit.end :] for edit in edits]


def tried(files: dict[str, str], test: str, most: int = 60) -> list[str]:
    run = read_run(f"0 passed, 1 failed\nFAILED {test} - AssertionError: no")
    return [files[one.path].replace(one.old, one.new, 1) for one in candidates(files, run, most)]


CHECKS = (
    "class T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(greet('Ada'), 'Hello, Ada!')\n        self.assertEqual(at('h'), 'h:443')\n"
)


def test_what_a_test_expects_is_tried_in_unittest_style_and_in_parts() -> None:
    code = "def greet(name, word='Hallo'):\n    return f'{word}, {name}!'\ndef at(host, port=8080):\n    return f'{host}:{port}'\n"
    made = tried({"p/m.py": code, "p/test_m.py": CHECKS}, "p/test_m.py::T::test_a", most=180)
    assert code.replace("Hallo", "Hello") in made
    assert code.replace("8080", "443") in made


def test_a_project_may_come_in_a_folder_that_is_called_as_tests_are() -> None:
    files = {"tests/m.py": "def twice(n):\n    return n * 3\n", "tests/test_m.py": "def test_twice():\n    assert twice(2) == 4\n"}
    assert "def twice(n):\n    return n * 2\n" in tried(files, "tests/test_m.py::test_twice")
    assert paths_of_tests(["app/m.py", "app/tests/data.py", "app/tests.py", "app/test_m.py"]) == {"app/tests/data.py", "app/tests.py", "app/test_m.py"}


def test_several_errors_of_syntax_in_one_file_are_one_repair() -> None:
    broken = "def f(a)\n    return a\n\ndef g(x):\n    if x = 3:\n        return (x\n"
    assert tried({"p/m.py": broken}, "p/test_m.py") == ["def f(a):\n    return a\n\ndef g(x):\n    if x == 3:\n        return (x)\n"]


def test_a_long_file_is_not_parsed_once_for_each_of_its_edits() -> None:
    code = "".join(f"def f{n}(a, b):\n    for k in range(a):\n        b = b - k * {n}\n    return b\n\n" for n in range(300))
    files = {"p/m.py": code, "p/test_m.py": "def test_a():\n    assert f7(2, 3) == 10\n"}
    began = time.process_time()
    assert code.replace("b - k * 7\n", "b + k * 7\n") in tried(files, "p/test_m.py::test_a", most=180)
    assert time.process_time() - began < 20, "it took many minutes"


def test_a_long_file_is_read_in_parts_and_one_with_a_gap_not_taken_for_the_whole() -> None:
    def part(first: int, last: int, rows: str) -> Call:
        return Call("read_file", {"path": "m.py", "start_line": first}, f"m.py, lines {first}-{last} of 3:\n{rows}", is_error=False, turn=0)

    whole, end = part(1, 2, "    1  a = 1\n    2  "), part(3, 3, "    3  b = 2")
    assert lines_of(whole.result or "") == 3
    assert read_files(talk_of("Repair it.", whole, end)) == {"m.py": "a = 1\n\nb = 2"}
    assert read_files(talk_of("Repair it.", whole)) == {}


def test_a_file_that_could_not_be_loaded_is_mended_when_some_of_its_tests_pass() -> None:
    def run(**tests: str) -> dict[str, Any]:
        return {"tests": [{"id": f"{name}.py::t", "outcome": outcome} for name, outcome in tests.items()]}

    assert mended(["a.py"], run(a="passed")) == 1
    assert mended(["a.py", "b.py::t"], run(a="passed", b="failed")) == 1
    assert mended(["a.py"], run(a="failed", b="passed")) == 0
    assert mended(["a.py"], {"tests": [{"id": "a.py", "outcome": "error"}, {"id": "b.py::t", "outcome": "passed"}]}) == 0


def talk_of(objective: str, *calls: Call, items: tuple[ContextItem, ...] = ()) -> Conversation:
    return Conversation(objective, "code", "fix", (), items, Constraints(), None, {}, calls, (), 1)


def test_the_number_of_passing_tests_is_that_of_the_last_run() -> None:
    first = Call("run_tests", {}, "0 passed, 0 failed, 1 errors, 0 skipped\nERROR test_m.py - ImportError: cannot import name 'f'", is_error=False, turn=0)
    kept = Call("try_edits", {"candidates": [{"path": "m.py", "old": "g", "new": "f"}]}, "Kept candidate 1: all 3 tests pass.", is_error=False, turn=1)
    assert "All 3 tests pass now." in _summary(talk_of("Repair it.", first, kept), read_run(first.result or ""))


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("Add a function median", "they write no new code"),
        ("Only say why the tests fail, don't change anything", "the task says to change nothing"),
        ("Fix it without touching the tests", "after trying 0 small edits"),
    ],
)
def test_what_rules_cannot_or_may_not_do_is_said(objective: str, said: str) -> None:
    failed = "1 passed, 1 failed, 0 errors, 0 skipped\nFAILED m.py::test_a - m.py:1: AssertionError: no"
    result = "2 passed, 0 failed, 0 errors, 0 skipped" if objective.startswith("Add") else failed
    assert said in _summary(talk_of(objective, Call("run_tests", {}, result, is_error=False, turn=0)), read_run(result))


def test_a_header_is_only_suspicious_when_nothing_else_is() -> None:
    files = {"m.py": "def f(x):\n    return x\n"}
    run = read_run("0 passed, 1 failed")._replace(suspicious={("m.py", 1): 1.0, ("m.py", 2): 0.5})
    assert suspicious_lines(files, run) == ["m.py:2: return x"]


def test_a_project_in_a_folder_with_blanks_in_its_name_is_read() -> None:
    run = read_run("""\
0 passed, 1 failed, 0 errors, 0 skipped
FAILED proj ü/tests/test_bank.py::test_average - proj ü/src/bank.py:17: ZeroDivisionError: division by zero
suspicious lines:
  1.00  proj ü/src/bank.py:17: return sum(self.history) / len(self.history)
""")
    assert run.failing == (Failing("proj ü/tests/test_bank.py::test_average", "proj ü/src/bank.py", 17, "ZeroDivisionError: division by zero"),)
    assert run.suspicious == {("proj ü/src/bank.py", 17): 1.0}


def test_a_try_that_changes_nothing_says_whose_work_the_files_hold() -> None:
    def report(*items: ContextItem) -> str:
        result = "0 passed, 1 failed, 0 errors, 0 skipped\nFAILED m.py::test_a - m.py:1: AssertionError: no"
        calls = (Call("run_tests", {}, result, is_error=False, turn=0),)
        return _summary(talk_of("Repair it.", *calls, items=items), read_run(result))

    earlier = ContextItem("fix", "code", "Repair it.", Outcome("half", artifacts=(ArtifactRef("workspace/m.py", Hash("0" * 64), 1, "text/plain"),)))
    assert "so the files are as they were." in report()
    assert "so the files are as an earlier try left them." in report(earlier)
