import errno
import json
import math

import numpy as np
import pytest

from prompt_memory import files, intervals
from prompt_memory.book import claims, verdicts


@pytest.fixture
def record(tmp_path):
    return claims.Recorder("01_test", profile="smoke", seed=7, path=tmp_path / "claims.json")


def about(**rest):
    wide = {} if "mean" in rest else {"possible": (-math.inf, math.inf)} if "predicted" in rest else {}
    if "measured" in rest:
        wide["possible"] = {">=": -math.inf, "==": (-math.inf, math.inf)}.get(rest.get("relation"), math.inf)
    return {"theorem": "Theorem 1", "statement": "a ≤ b"} | wide | rest


def test_settings_choose_a_copy_and_refuse_other_names():
    profiles = {"smoke": {"n": 1}, "full": {"n": 2}}
    chosen = claims.settings(profiles, "smoke")
    chosen["n"] = 3
    assert profiles["smoke"]["n"] == 1
    with pytest.raises(ValueError, match="Unknown profile 'fast': choose one of smoke, full"):
        claims.settings(profiles, "fast")


@pytest.mark.parametrize(
    ("measured", "relation", "bound", "tolerance", "verdict"),
    [
        (1.0, "<=", 1.0, 0.0, "holds"),
        (1.0, "<", 1.0, 0.0, "violated"),
        (1.0 + 1e-9, "<=", 1.0, 0.0, "violated"),
        (1.0 + 1e-9, "<=", 1.0, 1e-8, "holds"),
        (3, ">=", 2, 0.0, "holds"),
        (1, ">=", 2, 0.0, "violated"),
        (4, "==", 4, 0.0, "holds"),
        (4, "==", 5, 0.5, "violated"),
        ([1, 2, 3], "<=", [2, 2, 2], 0.0, "violated"),
    ],
)
def test_theorem_claims(record, measured, relation, bound, tolerance, verdict):
    record.theorem("k", **about(measured=measured, bound=bound, relation=relation, tolerance=tolerance))
    assert record.records["k"]["verdict"] == verdict
    assert record.records["k"]["tolerance"] == tolerance


def test_an_array_claim_keeps_its_tightest_point(record):
    record.theorem("k", **about(measured=[[1.0], [2.0]], bound=[9.0, 3.0, 5.0]))
    kept = record.records["k"]
    assert (kept["points"], kept["tightest"], kept["measured"], kept["bound"]) == (6, 4, 2.0, 3.0)
    assert kept["closest"] == pytest.approx(2 / 3)
    assert kept["detectable"] == 3.0


def test_points_that_cannot_fail_do_not_count_and_are_not_shown(record):
    """Distinct rows of 8 labels among 16 prompts: at n = 1 and 2 no table has more than 2ⁿ rows."""
    rows = [2, 4, 16, 14]
    record.theorem("k", **about(measured=rows, bound=[2, 4, 16, 16], possible=[2, 4, 2**5, 2**8]))
    kept = record.records["k"]
    assert (kept["points"], kept["points_total"], kept["tightest"], kept["measured"]) == (2, 4, 2, 16)
    assert kept["closest"] == 1.0
    assert "2 of 4" in verdicts.Verdicts([kept]).row(kept)


@pytest.mark.parametrize(
    ("relation", "bound", "possible", "powered"),
    [
        ("<=", 1.0, 1.0, False),
        ("<=", 1.0, 1.0 + 1e-12, False),
        ("<=", 1.0, 1.1, True),
        ("<=", math.inf, math.inf, False),
        ("<", 1.0, 1.0, True),
        ("<", 1.0, 0.9, False),
        (">=", 0.25, 0.25, False),
        (">=", 0.25, 0.0, True),
        ("==", 0.5, (0.5, 0.5), False),
        ("==", 0.5, (0.5, 0.6), True),
    ],
)
def test_a_claim_that_could_not_have_failed_is_refused(record, relation, bound, possible, powered):
    claim = about(measured=0.5, bound=bound, relation=relation, possible=possible)
    if powered:
        record.theorem("k", **claim)
        assert record.records["k"]["points"] == 1
    else:
        with pytest.raises(ValueError, match="could not have failed at any point"):
            record.theorem("k", **claim)
        assert record.records == {}


def test_a_tolerance_takes_power(record):
    with pytest.raises(ValueError, match="could not have failed"):
        record.theorem("k", **about(measured=0.5, bound=0.9, possible=1.0, tolerance=0.1))


def test_a_sample_too_small_to_report_anything_is_refused(record):
    """64 recalls cannot pass a ceiling of 0.826 at the level of the book even if all are one."""
    with pytest.raises(ValueError, match="could not have failed"):
        record.sampled("k", **about(mean=1.0, samples=64, bound=0.826))
    record.sampled("k", **about(mean=[0.5, 0.9], samples=[64, 1000], bound=0.826))
    kept = record.records["k"]
    assert (kept["points"], kept["points_total"], kept["samples"], record.comparisons) == (1, 2, 1000, 1)


def test_a_violation_is_one_even_where_nothing_was_said_to_be_detectable(record):
    record.theorem("k", **about(measured=[1.0, 2.0], bound=[3.0, 1.0], possible=[9.0, 2.0]))
    assert record.records["k"]["verdict"] == "violated"
    assert record.records["k"]["tightest"] == 1


def test_sampled_claims_are_judged_by_their_limit(record):
    level = claims.LEVEL / claims.FAMILY
    threshold = intervals.detectable(0.5, 1000, level)
    record.sampled("below", **about(mean=threshold - 1e-6, samples=1000, bound=0.5))
    record.sampled("above", **about(mean=threshold + 1e-6, samples=1000, bound=0.5))
    record.sampled("at-least", **about(mean=0.1, samples=1000, bound=0.5, relation=">="))
    verdicts = {key: kept["verdict"] for key, kept in record.records.items()}
    assert verdicts == {"below": "not refuted", "above": "violated", "at-least": "violated"}
    assert record.records["below"]["detectable"] == pytest.approx(threshold)
    assert record.records["below"]["limit"] < 0.5 < record.records["above"]["limit"]


def test_a_frequency_uses_the_exact_limit(record):
    record.sampled("k", **about(mean=[0.6, 0.7], samples=200, successes=[120, 140], bound=0.5))
    kept = record.records["k"]
    assert kept["limit"] == pytest.approx(intervals.clopper_pearson(140, 200, 1e-10, "lower"))
    assert kept["points"] == record.comparisons == 2
    with pytest.raises(ValueError, match="not the mean"):
        record.sampled("other", **about(mean=0.6, samples=200, successes=100, bound=0.5))


def test_predictions_come_first(record):
    with pytest.raises(ValueError, match="was not predicted"):
        record.measure("k", 1.0)
    record.predict("k", **about(predicted=10.0, relative=0.1))
    assert record.records["k"]["verdict"] == "pending"
    with pytest.raises(ValueError, match="used already"):
        record.predict("k", **about(predicted=11.0, relative=0.1))
    record.measure("k", 10.9, interval=(10.85, 10.95))
    assert record.records["k"]["verdict"] == "hit"
    with pytest.raises(ValueError, match="measured already"):
        record.measure("k", 10.9)
    with pytest.raises(ValueError, match="used already"):
        record.predict("k", **about(predicted=10.9, relative=0.1))


def test_a_prediction_misses_at_its_worst_point(record):
    record.predict("k", **about(predicted=[1.0, 2.0, 3.0], absolute=0.1))
    record.measure("k", [1.0, 2.2, 3.05])
    kept = record.records["k"]
    assert (kept["verdict"], kept["predicted"], kept["measured"], kept["tightest"]) == ("missed", 2.0, 2.2, 1)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((9.5, 10.5), "hit"), ((9.5, 11.5), "undecided"), ((8.0, 12.0), "undecided"), ((11.1, 12.0), "missed")],
)
def test_an_interval_decides_a_prediction(record, interval, verdict):
    record.predict("k", **about(predicted=10.0, relative=0.1))
    record.measure("k", np.mean(interval), interval=interval)
    assert record.records["k"]["verdict"] == verdict


def test_one_point_outside_is_a_miss_and_one_open_point_leaves_it_undecided(record):
    record.predict("miss", **about(predicted=[1.0, 2.0, 3.0], absolute=0.1))
    record.measure("miss", [1.0, 2.1, 4.0], interval=([0.95, 2.0, 3.9], [1.05, 2.2, 4.1]))
    record.predict("open", **about(predicted=[1.0, 2.0], absolute=0.1))
    record.measure("open", [1.0, 2.1], interval=([0.95, 2.0], [1.05, 2.2]))
    kept = record.records
    assert (kept["miss"]["verdict"], kept["miss"]["violated_points"], kept["miss"]["measured"]) == ("missed", 1, 4.0)
    assert (kept["open"]["verdict"], kept["open"]["undecided_points"]) == ("undecided", 1)
    assert "undecided" in verdicts.Verdicts([kept["open"]]).row(kept["open"])[-1]


def test_infinite_limits_of_a_prediction_survive_the_record(record):
    record.predict("k", **about(predicted=[1.0, 2.0], possible=([0.0, 0.0], [math.inf, 5.0]), absolute=0.1))
    record.measure("k", [1.0, 2.0])
    assert "possible" not in record.records["k"]
    assert record.records["k"]["points"] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.theorem("k", **about(measured=math.nan, bound=1)), "measured contains NaN"),
        (lambda r: r.theorem("k", **about(measured=1, bound=[1, math.nan])), "bound contains NaN"),
        (lambda r: r.theorem("k", **about(measured=math.inf, bound=math.inf)), "measured must be finite"),
        (lambda r: r.theorem("k", **about(measured=[], bound=1)), "empty"),
        (lambda r: r.theorem("k", **about(measured=[1, 2], bound=[1, 2, 3])), "do not broadcast"),
        (lambda r: r.theorem("k", **about(measured=1, bound=1, relation="≈")), "relation"),
        (lambda r: r.theorem("k", **about(measured=1, bound=1, tolerance=-1)), "tolerance"),
        (lambda r: r.theorem("a b", **about(measured=1, bound=1)), "key"),
        (lambda r: r.theorem("k", **about(measured=1, bound=1, parameters={"f": len})), "numbers, strings"),
        (lambda r: r.sampled("k", **about(mean=1.5, samples=10, bound=1)), "mean"),
        (lambda r: r.sampled("k", **about(mean=0.5, samples=10, bound=1, relation="==")), "relation"),
        (lambda r: r.predict("k", **about(predicted=1)), "exactly one tolerance"),
        (lambda r: r.predict("k", **about(predicted=1, relative=0.1, absolute=0.1)), "exactly one tolerance"),
        (lambda r: r.predict("k", **about(predicted=math.nan, relative=0.1)), "NaN"),
        (lambda r: r.predict("k", **about(predicted=0.5, absolute=0.5, possible=(0, 1))), "could not have failed"),
        (lambda r: r.predict("k", **about(predicted=0.5, absolute=0.1, possible=1)), "pair"),
        (lambda r: r.predict("k", **about(predicted=0.5, absolute=0.1, possible=(2, 1))), "least value above"),
        (lambda r: r.theorem("k", **about(measured=2, bound=1, possible=1.5)), "outside what is said to be possible"),
        (lambda r: r.theorem("k", **about(measured=0, bound=1, relation=">=", possible=0.5)), "outside what is said"),
    ],
)
def test_bad_claims_are_refused_in_one_sentence_and_leave_nothing(record, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(record)
    assert "\n" not in str(error.value)
    assert record.records == {}


def test_everything_is_on_disk_at_once_and_timings_are_apart(record, tmp_path):
    record.theorem("b", **about(measured=1 / 3, bound=1))
    record.timing("t", statement="one step", value=0.1, unit="s")
    record.theorem("a", **about(measured=[np.float32(0.5), 0.1], bound=[np.inf, 3], parameters={"n": np.arange(3)}))
    content = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["key"] for claim in content["claims"]] == ["a", "b"]
    assert content["claims"][1]["measured"] == 0.333333333333
    assert content["claims"][0]["points"] == 1
    assert content["claims"][0]["parameters"] == {"n": [0, 1, 2]}
    assert [timing["key"] for timing in json.loads((tmp_path / "claims.timings.json").read_text())] == ["t"]
    assert not list(tmp_path.glob("*.writing"))


def test_the_same_claims_give_the_same_bytes(tmp_path):
    files = []
    for keys in ("ab", "ba"):
        record = claims.Recorder("01_test", profile="smoke", seed=7, path=tmp_path / f"{keys}.json")
        for key in keys:
            record.theorem(key, **about(measured=0.1, bound=0.2))
        files.append((tmp_path / f"{keys}.json").read_bytes())
    assert files[0] == files[1]


def test_the_verdict_box_shows_the_worst_first_and_escapes(record):
    record.theorem("good", **about(measured=1, bound=2))
    record.theorem("bad", **about(measured=3, bound=2) | {"statement": "$a|b$ <script>"})
    record.predict("open", **about(predicted=2, absolute=0.5))
    box = record.verdicts()
    assert box.counts() == {"violated": 1, "pending": 1, "holds": 1}
    html = box._repr_html_()
    assert "verdict-box-violated" in html
    assert html.index("verdict-violated") < html.index("verdict-holds")
    assert "&lt;script&gt;" in html
    assert r"\(a|b\)" in html
    assert r"$a\|b$" in box._repr_markdown_()
    assert repr(box) == "3 claims: 1 violated, 1 pending, 1 holds"


def test_the_box_keeps_theorems_and_forecasts_apart(record):
    """A missed heuristic does not colour a theorem."""
    record.theorem("good", **about(measured=1, bound=2))
    record.predict("bad", **about(predicted=2, absolute=0.5))
    record.measure("bad", 3)
    html = record.verdicts()._repr_html_()
    assert "verdict-box-good" in html
    assert "1 exact, 0 sampled, none against it" in html
    assert "Forecasts, written down before the measurement.</strong> 1 missed" in html
    record.theorem("broken", **about(measured=3, bound=2))
    html = record.verdicts()._repr_html_()
    assert "verdict-box-violated" in html
    assert "2 exact, 0 sampled, 1 against them" in html


def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = files.write_bytes(tmp_path / "new" / "a.txt", b"old")

    def full_disk(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(claims.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        files.write_bytes(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_numbers_read_well():
    shown = [verdicts.number(value) for value in (None, "inf", 65536, 0.123456, -1e-9, [0.1, 0.25], [1, 2, 3])]
    assert shown == ["–", "∞", "65,536", "0.1235", "−1·10⁻⁹", "[0.1, 0.25]", "3 values"]


def test_a_mean_of_many_weak_variables_is_judged_by_mcdiarmid():
    record = claims.Recorder("x", profile="smoke", seed=0)
    common = {"theorem": "t", "statement": "s", "samples": 10, "variables": 10_000}
    record.sampled("under", mean=0.52, bound=0.5, **common)
    record.sampled("over", mean=0.54, bound=0.5, **common)
    assert [record.records[key]["verdict"] for key in ("under", "over")] == ["not refuted", "violated"]
    reach = np.sqrt(np.log(claims.FAMILY / claims.LEVEL) / 20_000)
    assert record.records["over"]["limit"] == pytest.approx(0.54 - reach)
    assert record.records["under"]["detectable"] == pytest.approx(0.5 + reach)


def test_a_bound_that_is_a_quantile_counts_as_sampled():
    record = claims.Recorder("x", profile="smoke", seed=0)
    record.theorem("q", theorem="t", statement="s", measured=[0.1, 0.2], bound=0.3, possible=1, tail=True)
    record.theorem("r", theorem="t", statement="s", measured=[0.1, 0.4], bound=0.3, possible=1, tail=True)
    assert [record.records[key]["verdict"] for key in "qr"] == ["not refuted", "violated"]
    assert record.comparisons == 4


def test_a_line_of_a_claim_is_an_anchor_and_leads_to_the_scoreboard(record):
    record.theorem("a<b", theorem="Theorem 1", statement="$x$ is small.", measured=1, bound=2, possible=3)
    record.predict("guess", theorem="Heuristic", statement="It is 1", predicted=1, possible=(0, 9), absolute=0.5)
    record.measure("guess", 3)
    html = record.lines("a<b", "guess")._repr_html_()
    assert '<li id="claim-a&lt;b">' in html
    assert r"Theorem 1: \(x\) is small: ≤ 2, measured 1." in html
    assert "predicted 1 ± 0.5, measured 3" in html
    assert f'href="../scoreboard.html#{record.chapter}--guess"' in html
    with pytest.raises(KeyError):
        record.lines("other")


def test_what_is_kept_in_no_file_has_no_link_to_the_scoreboard(record):
    loose = claims.Recorder("01_test", profile="smoke", seed=7)
    for each, links in ((record, True), (loose, False)):
        each.theorem("k", **about(measured=1, bound=2))
        for shown in (each.verdicts(), each.lines("k")):
            assert ("scoreboard.html#" in shown._repr_html_()) == links
            assert "claim" in shown._repr_html_()


def test_of_points_that_came_as_close_the_largest_is_shown(record):
    record.theorem("counts", theorem="T", statement="s", measured=[2, 5, 4096, 3], bound=[2, 8, 4096, 9], possible=9999)
    kept = record.records["counts"]
    assert (kept["measured"], kept["bound"], kept["tightest"]) == (4096, 4096, 2)
    record.predict("p", theorem="T", statement="s", predicted=[2, 16, 8], possible=(0, 99), absolute=0.1)
    record.measure("p", [2, 16, 8])
    assert record.records["p"]["measured"] == 16
