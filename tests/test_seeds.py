"""Runs under other seeds, on a chapter that is violated with seed 2 and fails with seed 3."""

import json

import pytest
import scoreboard
from building import build, copy_tree, only_chapters

STUB = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
prompt_memory:
  threads: 1
  core_seconds: {smoke: 3, standard: 3, full: 3}
  models: {}
---

# Stub

```{code-cell} ipython3
:tags: [parameters]

profile, seed, threads, claims_path, models_dir = "standard", 1, 1, None, None
```

```{code-cell} ipython3
from prompt_memory.book import claims
from prompt_memory.book.figures import show

record = claims.Recorder("00_one", profile=profile, seed=seed, path=claims_path)
record.theorem("k", theorem="T", statement="s", measured=5 if seed == 2 else 0, bound=1, possible=9)
record.predict("flips", theorem="T", statement="s", predicted=0, absolute=0, possible=(0, 9))
record.measure("flips", seed % 2)
record.predict("steady", theorem="T", statement="s", predicted=0, absolute=0, possible=(0, 9))
record.measure("steady", 0)
```

```{code-cell} ipython3
def draw(figure):
    figure.subplots().plot([1 / (seed - 3)])


show(draw, alt="what one over a number is")
```
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = copy_tree(tmp_path_factory.mktemp("seeds") / "copy", keep=())
    (root / "notebooks" / "00_one.md").write_text(STUB)
    (root / "book" / "seeds.json").unlink(missing_ok=True)
    only_chapters(root, ["00_one"])
    return root


def summary(root):
    return json.loads((root / "book" / "seeds.json").read_text())["smoke"]["00_one"]


def test_seeds_are_run_once_counted_and_named(tree):
    first = build(tree, "--seeds", "2", step="seeds.py")
    assert first.returncode == 0, first.output
    assert first.stdout.startswith("2 runs of 1 chapters in smoke (0 are known)")
    assert summary(tree)["seeds"] == 2
    second = build(tree, "--seeds", "4", "--cores", "2", step="seeds.py")
    assert second.returncode == 1
    assert second.stdout.startswith("2 runs of 1 chapters in smoke (2 are known)")
    assert "FAILED 00_one, seed 2: violated: k" in second.stdout
    assert "00_one/k is violated with seed 2" in second.stdout
    assert (
        "00_one fails with seed 3: ZeroDivisionError: division by zero (line 2 of notebooks/00_one.md" in second.stdout
    )
    row = summary(tree)
    assert (row["seeds"], row["violated"], list(row["failed"])) == (4, {"k": [2]}, ["3"])
    assert row["forecasts"]["flips"] == {"hit": 2, "undecided": 0, "missed": 2}
    assert row["forecasts"]["steady"] == {"hit": 4, "undecided": 0, "missed": 0}
    for file in (tree / "build" / "seeds").rglob("*.json"):
        file.unlink()  # another machine, which has the summary only
    third = build(tree, "--seeds", "5", step="seeds.py")
    assert third.stdout.startswith("1 runs of 1 chapters in smoke (4 are known)")
    row = summary(tree)
    assert (row["seeds"], row["violated"], list(row["failed"])) == (5, {"k": [2]}, ["3"])
    assert row["forecasts"]["flips"] == {"hit": 3, "undecided": 0, "missed": 2}


def test_a_changed_chapter_starts_anew(tree):
    path = tree / "notebooks" / "00_one.md"
    path.write_text(STUB.replace("5 if seed == 2", "0 if seed == 2").replace("seed - 3", "seed + 3"))
    result = build(tree, "--seeds", "4", step="seeds.py")
    assert result.returncode == 0, result.output
    assert result.stdout.startswith("4 runs of 1 chapters in smoke (0 are known)")
    assert summary(tree)["violated"] == {}
    assert build(tree, "--seeds", "0", step="seeds.py").returncode == 2
    none = build(tree, "--seeds", "1", "--cheap", "1", step="seeds.py")
    assert none.returncode == 1  # nothing was tried, so nothing was shown
    assert "0 of 0 chapters" in none.stdout


def test_the_scoreboard_shows_what_flips_and_what_is_of_an_earlier_state(monkeypatch, tree):
    monkeypatch.setattr(scoreboard.chapters, "ROOT", tree)
    row = summary(tree) | {"violated": {"k": [2, 7]}, "failed": {"3": "it broke"}}
    table = scoreboard.seeds_tables({"smoke": {"00_one": row, "77_gone": row}})
    assert "`k` (2, 7)" in table
    assert "seed 3: it broke" in table
    assert "`flips` 2 hit, 2 missed" in table
    assert "earlier state" not in table
    assert "77_gone" not in table
    assert ", earlier state" in scoreboard.seeds_tables({"smoke": {"00_one": row | {"digest": "0"}}})
    assert "has been run" in scoreboard.seeds_tables({})
