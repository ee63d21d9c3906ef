"""The deliberate errors of `make trust`: each still fits its file, and a run of tests tells right from wrong."""

import ast

import mutate
import pytest
import scoreboard

MUTATIONS = mutate.mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["says"])
def test_an_error_fits_its_file_and_stays_python(mutation):
    assert set(mutation) == {"says", "file", "old", "new", "tests"}
    text = (mutate.ROOT / "src" / "prompt_memory" / mutation["file"]).read_text()
    assert text.count(mutation["old"]) == 1
    ast.parse(text.replace(mutation["old"], mutation["new"]))
    assert all((mutate.ROOT / "tests" / test).exists() for test in mutation["tests"])


def test_there_are_forty_errors_of_all_rooms():
    assert len({mutation["says"] for mutation in MUTATIONS}) == len(MUTATIONS) >= 40
    assert {"bounds", "network", "measure", "tasks", "compress"} <= {each["file"].split("/")[0] for each in MUTATIONS}


def test_a_change_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(ValueError, match="exactly once"):
        mutate.apply({"says": "s", "file": "a.py", "old": "x = 1", "new": "x = 2"}, tmp_path)


def test_an_error_is_noticed_and_no_error_is_not():
    error = next(each for each in MUTATIONS if each["file"] == "intervals.py")
    assert mutate.noticed_by(None, error["tests"]) == ""
    assert mutate.noticed_by(error, error["tests"]).startswith("test_intervals.py::")


def test_the_scoreboard_shows_what_noticed_an_error():
    rows = [{"says": "A", "file": "a.py", "noticed": "b.py::test_c"}, {"says": "D", "file": "e.py", "noticed": ""}]
    table = scoreboard.errors_table({"date": "2026-12-01", "commit": "abc", "processor": "x", "rows": rows})
    assert "1 of 2 were noticed" in table
    assert "`test_c`" in table
    assert "**nothing**" in table
    assert "make trust" in scoreboard.errors_table({})


def test_the_table_that_is_kept_is_about_these_errors():
    kept = mutate.chapters.read_json(mutate.SUMMARY)["rows"]
    assert [row["says"] for row in kept] == [each["says"] for each in MUTATIONS]
    assert all(row["noticed"] for row in kept)
