"""Tables, aims, and whether two runs agree."""

import pytest

from benchmarks import aims, compare, page
from benchmarks.__main__ import scheduled
from benchmarks.aims import Aim
from benchmarks.candidates import Candidate
from benchmarks.results import Results, read
from benchmarks.scenarios import SCENARIOS, Round, Scenario

REFERENCES = {"moorline": "reference"}


def results_of(ratios):
    found = Results({"commit": "0"}, REFERENCES)
    for ratio in ratios:
        found.add("row", "moorline", {"cpu": ratio * 2.0})
        found.add("row", "reference", {"cpu": 2.0})
    return found


SEVEN = [0.50, 0.52, 0.54, 0.55, 0.56, 0.58, 0.60]


def test_what_was_written_is_read_again(tmp_path):
    written = results_of(SEVEN)
    written.write(tmp_path / "a.json")
    assert read(tmp_path / "a.json") == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}'])
def test_a_file_that_holds_no_results_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit, match=r"a\.json: no results"):
        read(tmp_path / "a.json")


def test_a_table_has_medians_and_ratios_with_their_intervals():
    table = results_of(SEVEN).table("row")
    assert "**row** (7 rounds)" in table
    assert "| reference | 2 |" in table
    assert "| moorline | 1.1 (0.55 [0.50–0.60]) |" in table


def test_runs_that_agree_are_told_from_runs_that_do_not():
    text, disagreeing = compare.compare(results_of(SEVEN), results_of([ratio + 0.05 for ratio in SEVEN]))
    assert disagreeing == 0
    assert "1 of 1 ratios agree." in text
    text, disagreeing = compare.compare(results_of(SEVEN), results_of([ratio + 0.2 for ratio in SEVEN]))
    assert disagreeing == 1
    assert "**differ**" in text


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (0.7, 0.62, "first met; then met"),
        (0.7, 0.55, "first met; then met (within noise)"),
        (0.7, 0.53, "first met; then **missed** (within noise)"),
        (0.4, None, "first **missed**"),
        (None, None, "reported"),
    ],
)
def test_an_aim_is_judged_by_the_median_and_says_where_noise_decides(first, then, said):
    aim = Aim("what", "row", "moorline", "cpu", first, then, "reference")
    assert aim.verdict(aim.measured(results_of(SEVEN))) == said


def test_every_aim_is_about_a_row_that_there_is():
    rows = {row for scenario in SCENARIOS for row in scenario.rows}
    assert {aim.row for aim in aims.AIMS} <= rows


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 7, 9])
def test_a_row_is_measured_as_often_as_it_says_however_many_passes_there_are(rounds):
    scenario = Scenario(("row",), None, rounds=rounds)
    assert sum(map(len, scheduled([scenario], 7, quick=False))) == min(rounds, 7)
    assert sum(map(len, scheduled([scenario], 7, quick=True))) == 0


def test_every_candidate_goes_first_as_often_as_the_others():
    names = ("a", "b", "c")
    candidates = {name: Candidate(name) for name in names}
    firsts = [Round(None, candidates, turn, quick=False).in_turn(names)[0].name for turn in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]


def test_publishing_replaces_what_stands_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.publish(results_of(SEVEN))
    text = page.PAGE.read_text()
    assert text.startswith(f"before\n{page.BEGIN}\n")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "old" not in text
    assert "**row**" in text
