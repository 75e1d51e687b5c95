"""The page of features: its generator, the plugin that feeds it, and that the committed page is the tests'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import compatibility  # noqa: E402
from compatibility import Row  # noqa: E402


def test_the_committed_page_lists_exactly_the_features_of_the_tests():
    listed = list(compatibility.rows_of(compatibility.PAGE.read_text("utf-8")))
    assert listed == compatibility.features(), "run the tests that name features, then python tests/compatibility.py"


def test_no_feature_on_the_committed_page_fails():
    outcomes = compatibility.rows_of(compatibility.PAGE.read_text("utf-8"))
    assert [row for row, text in outcomes.items() if text.startswith("fails")] == []


def test_outcomes_in_words():
    passed, failed = {"outcome": "passed", "reason": ""}, {"outcome": "failed", "reason": ""}
    skipped = {"outcome": "skipped", "reason": "needs a GPU"}
    assert compatibility.outcome([passed]) == "passes"
    assert compatibility.outcome([passed, passed]) == "passes (2 cases)"
    assert compatibility.outcome([failed]) == "fails"
    assert compatibility.outcome([passed, failed, skipped]) == "fails (1 of 3 cases)"
    assert compatibility.outcome([skipped, skipped]) == "not run here: needs a GPU"
    assert compatibility.outcome([passed, skipped]) == "passes; 1 not run here: needs a GPU"
    assert compatibility.outcome([]) == "not run yet"


def test_the_page_takes_what_ran_and_keeps_what_did_not():
    rows = [Row("a", "t.py::test_a"), Row("b", "t.py::test_b"), Row("c", "t.py::test_c")]
    case = {"outcome": "passed", "reason": ""}
    record = {"versions": {"torch": "2"}, "tests": {"t.py::test_a[1]": case, "t.py::test_a[2]": case}}
    first = compatibility.page(rows[:1], record)
    assert compatibility.rows_of(first) == {rows[0]: "passes (2 cases)"}
    skipped = {"outcome": "skipped", "reason": "a | b"}
    second = compatibility.page(rows, {"tests": {"t.py::test_b": skipped}}, first)
    wanted = {rows[0]: "passes (2 cases)", rows[1]: "not run here: a | b", rows[2]: "not run yet"}
    assert compatibility.rows_of(second) == wanted


def test_models_are_a_table_of_their_own():
    tests = {
        f"{compatibility.MODELS}[A-trained]": {"outcome": "passed", "reason": ""},
        f"{compatibility.MODELS}[A-in X]": {"outcome": "skipped", "reason": "X is not installed"},
        f"{compatibility.MODELS}[B-trained]": {"outcome": "failed", "reason": ""},
    }
    rows = [Row("whole models", compatibility.MODELS)]
    first = compatibility.page(rows, {"tests": tests})
    table = [line for line in first.splitlines() if line.startswith(("| model", "| A", "| B"))]
    assert table == ["| model, made sparse | trained | in X |", "| A | yes | not run here: X is not installed |",
                     "| B | no | not run yet |"]  # fmt: skip
    assert list(compatibility.rows_of(first)) == rows
    second = compatibility.page(rows, {"tests": {}}, first)
    assert all(line in second for line in table)


def test_the_table_of_models_has_no_holes():
    table = compatibility.models({}, compatibility.PAGE.read_text("utf-8"))
    assert len(table) == 2 + 5
    for line in table[2:]:
        assert line.count("| yes") >= 7 and line.count("| yes") + line.count("| not run here: ") == 8, line


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("@pytest.mark.feature(TEXT)\ndef test_x(): pass\n", "one string literal"),
        ("@pytest.mark.feature('')\ndef test_x(): pass\n", "one string literal"),
        ("pytestmark = pytest.mark.feature('a')\n", "must decorate functions"),
    ],
)
def test_a_feature_that_cannot_be_listed_is_refused(source, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(compatibility, "ROOT", tmp_path)
    path = tmp_path / "test_x.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=problem):
        compatibility.features_in(path)


PLUGIN_CASES = """
import pytest

@pytest.mark.feature("works")
@pytest.mark.parametrize("n", [1, 2])
def test_works(n): pass

@pytest.mark.feature("is skipped")
def test_skipped(): pytest.skip("no such device")

@pytest.mark.feature("is marked")
@pytest.mark.skip(reason="not here")
def test_marked(): pass

@pytest.mark.feature("fails")
def test_fails(): assert False

@pytest.fixture
def broken():
    yield
    raise RuntimeError

@pytest.mark.feature("fails afterwards")
def test_broken(broken): pass

def test_unmarked(): pass
"""


def test_the_plugin_writes_how_tests_ended_and_keeps_the_others(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    (tests / "test_x.py").write_text(PLUGIN_CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = feature(text)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*command, "tests"], cwd=tmp_path, capture_output=True, check=False)
    path = tmp_path / "build" / "compatibility.json"
    record = json.loads(path.read_text())
    assert record["versions"]["torch"]
    outcomes = {name.partition("::")[2]: (case["outcome"], case["reason"]) for name, case in record["tests"].items()}
    assert outcomes == {
        "test_works[1]": ("passed", ""),
        "test_works[2]": ("passed", ""),
        "test_skipped": ("skipped", "no such device"),
        "test_marked": ("skipped", "not here"),
        "test_fails": ("failed", ""),
        "test_broken": ("failed", ""),
    }
    (tests / "test_x.py").write_text(PLUGIN_CASES.replace("assert False", "pass").replace("[1, 2]", "[3]"))
    subprocess.run([*command, "tests", "-k", "fails or works"], cwd=tmp_path, capture_output=True, check=False)
    after = json.loads(path.read_text())["tests"]
    assert after["tests/test_x.py::test_fails"]["outcome"] == "passed"
    assert [name for name in after if "test_works" in name] == ["tests/test_x.py::test_works[3]"]
    assert after["tests/test_x.py::test_broken"] == record["tests"]["tests/test_x.py::test_broken"]
