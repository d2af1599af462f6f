"""The repair operators: the wanted change is among the edits, and every edit leaves a file that parses."""

from __future__ import annotations

import pytest

from crewlog.agents.offline_code import _summary
from crewlog.agents.offline_code_edits import Source, is_valid
from crewlog.agents.offline_code_errors import error_edits
from crewlog.agents.offline_code_operators import operator_edits
from crewlog.agents.offline_code_repair import suspicious_lines
from crewlog.agents.offline_code_report import Failing, read_run
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
    return [text[: edit.start] + edit.new + text[edit.end :] for edit in edits if is_valid(text, edit)]


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
        (NONE, "n = sum(ps)\n", "n = sum([item for item in ps if item is not None])\n"),
        (NONE, "n = a.x + a.y\n", "n = a.x + (a.y or 0)\n"),
        (ENDLESS, "def f(n):\n    return f(n - 1) + f(n - 2)\n", "def f(n):\n    if n < 2:\n        return n\n    return f(n - 1) + f(n - 2)\n"),
        (ENDLESS, 'def f(n):\n    """n!"""\n    return n * f(n - 1)\n', 'def f(n):\n    """n!"""\n    if n < 2:\n        return 1\n    return n * f(n - 1)\n'),
    ],
)
def test_a_message_suggests_the_repair(message: str, before: str, after: str) -> None:
    source = Source("m.py", before)
    edits = [edit for edit in error_edits(source, [message], []) if is_valid(before, edit)]
    assert after in [before[: edit.start] + edit.new + before[edit.end :] for edit in edits]


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
        return _summary(Conversation("Repair it.", "code", "fix", (), items, Constraints(), None, {}, calls, (), 1), read_run(result))

    earlier = ContextItem("fix", "code", "Repair it.", Outcome("half", artifacts=(ArtifactRef("workspace/m.py", Hash("0" * 64), 1, "text/plain"),)))
    assert "so the files are as they were." in report()
    assert "so the files are as an earlier try left them." in report(earlier)
