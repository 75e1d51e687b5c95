"""A small form of every harness of tests/reliability, and that each finds the fault that is planted for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reliability import page
from reliability.__main__ import caught, isolated, tried
from reliability.lines import LINES
from reliability.tally import Tally

HARNESSES = pytest.mark.parametrize("one", [one for one in LINES if one.harness is not None], ids=lambda one: one.name)


@HARNESSES
def test_a_small_form_finds_nothing_but_the_planted_fault(one):
    if one.isolated:
        done = isolated(one, "small", one.name)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout.splitlines()[-1])
        tally, found = Tally.of_json(told["tally"]), told["caught"]
    else:
        tally, found = one.summary(tried(one, one.small)), caught(one)
    assert not tally.findings
    assert all(tally.counts[name] for name in one.wanted if name != "over processes"), tally.counts
    assert found, "the planted fault was not found"


def test_the_page_has_every_line():
    text = page.PAGE.read_text("utf-8")
    for one in LINES:
        assert f"## {one.name}\n" in text and f"- **Target**: {one.target}." in text, one.name


def test_tallies_add_up():
    first, second = Tally(), Tally()
    for tally in (first, second):
        tally.count("cases", 3)
        tally.most("error", 0.5 if tally is first else 2.0)
        tally.add("bins", [1, 2])
    second.find("wrong")
    first.merge(Tally.of_json(json.loads(json.dumps(second.as_json()))))
    assert first.counts == {"cases": 6, "findings": 1} and first.largest == {"error": 2.0}
    assert first.sums["bins"].tolist() == [2, 4] and first.findings == ["wrong"]
