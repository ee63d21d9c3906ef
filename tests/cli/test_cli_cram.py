"""`prompt-memory cram` as a user meets it: what it prints, writes and returns, and how it goes on."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from commands import TEXT, refused
from safetensors.numpy import load_file
from safetensors.torch import save as to_bytes

from prompt_memory import cli, tune
from prompt_memory.cli import cram
from prompt_memory.cli.cram_report import Report


def sweep(checkpoint, output, *more):
    return ["cram", f"--model={checkpoint}", f"--text={checkpoint / 'text.txt'}", "--m", "1", "2", "--strings=6",
            "--longest=5", "--steps=15", "--restarts=1", "--chunk=2", f"--output={output}", *more]  # fmt: skip


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """The results of a sweep that was not disturbed."""
    output, bar = tmp_path_factory.mktemp("whole"), io.StringIO()
    with contextlib.redirect_stderr(bar):
        assert cli.main(sweep(checkpoint, output)) == 0
    assert "12/12" in bar.getvalue()
    return output


def test_cram_writes_what_was_found(checkpoint, whole):
    found = rows(whole / "cram.csv")
    assert [(row["m"], row["string"]) for row in found] == [(str(m), str(s)) for m in (1, 2) for s in range(6)]
    from prompt_memory import measure
    from prompt_memory.real import models

    model = models.load(checkpoint)
    prompts = []
    for path in (whole / "chunks").iterdir():
        part, _ = tune.strings._read_chunk(path)
        prompts += [(p, int(n)) for p, n in zip(*part[:2], strict=True)]
    assert sorted(n for _, n in prompts) == sorted(int(row["longest_found"]) for row in found)
    assert any(n for _, n in prompts)
    written = {tuple(ord(letter) - 97 for letter in TEXT[int(row["first_token"]) :][:5]) for row in found}
    for p, n in prompts:  # what is saved does what the table says
        string = measure.greedy(model, p[None], 5)[0].tolist()
        assert n == 0 or tuple(string[:n]) in {text[:n] for text in written}
    summary = rows(whole / "summary.csv")
    bound = (32 * 8 * 2 + 1) / np.log2(27)
    assert float(summary[1]["bound"]) == pytest.approx(bound)
    assert all(float(row["low"]) - 1e-9 <= float(row["n50"]) <= float(row["high"]) + 1e-9 for row in summary)
    assert (whole / "cram.svg").read_bytes().startswith(b"<?xml")
    assert not list(whole.glob("*.writing"))


def test_an_interrupted_sweep_goes_on_where_it_was(checkpoint, whole, tmp_path, capsys, monkeypatch):
    descend, calls = tune.strings._descend, []

    def counted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*arguments, **settings)

    monkeypatch.setattr(tune.strings, "_descend", counted)
    capsys.readouterr()
    assert cli.main(sweep(checkpoint, tmp_path / "part", "--quiet")) == 1
    assert capsys.readouterr().err == (
        "prompt-memory cram: stopped; finished chunks are saved, and the same command goes on from there\n"
    )
    table = (whole / "cram.csv").read_text()
    part = (tmp_path / "part" / "cram.csv").read_text()
    assert part.splitlines() == table.splitlines()[:5]
    calls.append(1)
    assert cli.main(sweep(checkpoint, tmp_path / "part", "--quiet")) == 0
    assert len(calls) == 3 + 1 + 4  # six chunks, two of which were there
    assert (tmp_path / "part" / "cram.csv").read_text() == table


def test_a_loss_that_is_not_finite_is_reported_and_the_rest_is_written(checkpoint, tmp_path, capsys):
    more = ("--quiet", "--learning-rate=1e38", "--scale=1e38")
    status = cli.main(sweep(checkpoint, tmp_path, *more))
    captured = capsys.readouterr()
    assert status == 1
    assert "not finite" in captured.err
    assert len(captured.err.splitlines()) == 1
    found = rows(tmp_path / "cram.csv")
    assert len(found) == 12
    assert {row["not_finite"] for row in found if row["longest_found"] == "0"} == {"1"}


class Leaving(io.StringIO):
    """A standard error whose reader leaves when the bar shows that a string is done."""

    def __init__(self, path):
        super().__init__()
        self.file, self.gone = path.open("w"), False

    def write(self, text):
        self.gone |= "/12" in text and "0/12" not in text
        if self.gone:
            raise BrokenPipeError
        return super().write(text)

    def fileno(self):
        return self.file.fileno()


def test_a_reader_of_the_progress_bar_that_leaves(checkpoint, tmp_path, capsys, monkeypatch):
    stream = Leaving(tmp_path / "stderr")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert cli.main(sweep(checkpoint, tmp_path)) == 1
    assert stream.gone
    assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))  # the interpreter's last flush goes nowhere
    stream.file.close()
    assert capsys.readouterr().out == ""
    assert len(rows(tmp_path / "cram.csv")) >= 2
    assert len(list((tmp_path / "chunks").iterdir())) >= 1


def test_a_folder_holds_one_sweep(checkpoint, tmp_path, capsys):
    assert cli.main(sweep(checkpoint, tmp_path, "--quiet")) == 0
    capsys.readouterr()
    table = (tmp_path / "cram.csv").read_text()
    assert "steps = 15, not 16: choose another --output" in refused(capsys, *sweep(checkpoint, tmp_path, "--steps=16"))
    assert "m = [1, 2], not [3]" in refused(capsys, *sweep(checkpoint, tmp_path, "--m", 3))
    assert (tmp_path / "cram.csv").read_text() == table
    assert cli.main(sweep(checkpoint, tmp_path, "--quiet", "--m", "1", "2", "3")) == 0  # more lengths may be added
    assert (tmp_path / "cram.csv").read_text().startswith(table)
    capsys.readouterr()
    text, weights = checkpoint / "text.txt", checkpoint / "model.safetensors"
    for path, words in ((text, "another text than"), (weights, "other weights than")):
        before = path.read_bytes()
        if path == text:
            path.write_text(TEXT[::-1])
        else:
            changed = {name: torch.from_numpy(weight + 1) for name, weight in load_file(path).items()}
            path.write_bytes(to_bytes(changed, {"format": "pt"}))
        table, left = (tmp_path / "cram.csv").read_bytes(), (tmp_path / "settings.json").read_bytes()
        assert words in refused(capsys, *sweep(checkpoint, tmp_path, "--m", 1, 2, 3))
        assert (tmp_path / "cram.csv").read_bytes() == table
        assert (tmp_path / "settings.json").read_bytes() == left
        path.write_bytes(before)
    options = cli.parser().parse_args(sweep(checkpoint, tmp_path))
    digests = {name: value for name, value in json.loads(left).items() if name.endswith("_digest")}
    options.m = json.loads(left)["m"]
    for threads, words in ((1, ""), (7, "were found with 1 threads and are computed again with 7"), (7, "")):
        cram._claim_folder(options, **digests, threads=threads)
        said = capsys.readouterr().err
        assert words in said
        assert bool(words) == bool(said)
    (tmp_path / "settings.json").write_text("{")
    capsys.readouterr()
    assert "settings.json is damaged" in refused(capsys, *sweep(checkpoint, tmp_path))


def test_the_length_of_strings_comes_from_the_model(checkpoint, tmp_path, capsys, monkeypatch):
    """As many tokens as bits allow, cut at the model's positions and at the text; kept when lengths are added."""

    from prompt_memory.real import models

    config = models.load(checkpoint).config
    assert cram._longest(config, 1, 1, 6, None) == 2  # 8 bits and log2(27) = 4.75 bits a token: 9/4.75 = 1.9
    assert cram._longest(config, 1, 32, 6, None) == 24  # positions
    assert cram._longest(config, 2, 32, 6, range(60)) == 10  # text
    real = dataclasses.replace(config, d=768, q=50304, context=2048, positions="computed")
    assert cram._longest(real, 4, 16, 6, None) == 1600
    assert cram._longest(real, 4, 4, 6, None) == 787  # (4 · 768 · 4 + 1)/log2(50304)

    found = []
    monkeypatch.setattr(tune, "longest_prefix", lambda model, strings, m, progress, **_: found.append(strings) or [
        progress(torch.full((2,), strings.shape[1])) for _ in range(3)])  # fmt: skip
    arguments = [part for part in sweep(checkpoint, tmp_path) if not part.startswith("--longest")]
    assert cli.main([part for part in arguments if part != "2"]) == 0
    assert [strings.shape for strings in found] == [(6, 24)]
    assert capsys.readouterr().err.count("2 of the first 2 strings were found to their end") == 1
    assert cli.main(arguments) == 2  # 24 tokens and two vectors are more than the positions of this model
    assert "need 25 positions" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert cram._text(tmp_path / "marked.txt") == "abc"


def test_what_was_found_before_a_failure_is_reported(checkpoint, tmp_path, capsys, monkeypatch):
    descend = tune.strings._descend

    def failing(model, strings, m, **settings):
        if m == 2:
            raise MemoryError("no room for m = 2")
        return descend(model, strings, m, **settings)

    monkeypatch.setattr(tune.strings, "_descend", failing)
    assert cli.main(sweep(checkpoint, tmp_path, "--quiet")) == 1
    captured = capsys.readouterr()
    assert captured.err == "prompt-memory cram: no room for m = 2\n"
    assert [row["m"] for row in rows(tmp_path / "summary.csv")] == ["1"]
    assert (tmp_path / "cram.svg").exists()
    assert "n50" in captured.out


def test_random_strings_need_no_tokenizer(checkpoint, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    arguments = [
        "cram",
        f"--model={bare}",
        "--random",
        "--m",
        "1",
        "--strings=2",
        "--longest=3",
        "--steps=3",
        "--quiet",
    ]
    assert cli.main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    assert [row["first_token"] for row in rows(tmp_path / "out" / "cram.csv")] == ["", ""]


@pytest.mark.parametrize(("found", "ended"), [([0, 0, 0], 0), ([4, 4, 4], 3)])
def test_n50_stays_between_nothing_and_the_end_of_the_strings(tmp_path, found, ended):
    from prompt_memory import measure

    report = Report(tmp_path, [""] * 3, 4, 8, 27, 32, 0)
    lengths = {1: found}
    found = report.summary(lengths, measure.n50)
    assert len(report.table(found).splitlines()) == 4
    assert "cram.svg" in report.files(lengths, found, r"a $m_odel^ with a formula's signs, $\frac")
    (row,) = rows(tmp_path / "summary.csv")
    assert int(row["ended"]) == ended
    assert all(0 <= float(row[name]) <= 4 for name in ("n50", "low", "high"))
    assert (float(row["n50"]) > 3.9) == (ended == 3)


def test_bad_input_to_cram_is_one_sentence(checkpoint, tmp_path, capsys):
    def sentence(*arguments, text="--random"):
        start = ["cram", f"--model={checkpoint}", text, f"--output={tmp_path / 'out'}"]
        return refused(capsys, *start, *arguments)

    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    assert "required" in refused(capsys, "cram", f"--model={checkpoint}", "--m", 1)
    assert "--m must lie between 1 and 1000000" in sentence("--m", 1, 0)
    assert "--strings" in sentence("--m", 1, "--strings=0")
    for name in ("m", "strings", "longest", "chunk", "restarts", "steps"):
        assert f"--{name}" in sentence("--m", 1, f"--{name}", 10**30)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(capsys, "cram", f"--model={checkpoint}", "--random", "--m", 1,
                                        f"--output={tmp_path / 'file'}")  # fmt: skip
    assert "--seed" in sentence("--m", 1, "--seed=-1")  # before anything is computed, not at the end
    assert not (tmp_path / "out").exists()
    assert "positions" in sentence("--m", 20, "--longest=10")
    assert "too few for 24 strings of 20" in sentence("--m", 1, "--longest=20", text=f"--text={checkpoint}/text.txt")
    assert "is empty" in sentence("--m", 1, text=f"--text={tmp_path}/empty.txt")
    assert "UTF-8" in sentence("--m", 1, text=f"--text={tmp_path}/bytes.txt")
    assert "cannot be read" in sentence("--m", 1, text=f"--text={tmp_path}/missing.txt")
    assert "no config.json" in refused(capsys, "cram", f"--model={tmp_path}", "--random", "--m", 1,
                                       f"--output={tmp_path / 'out'}")  # fmt: skip
    assert "dtype" in sentence("--m", 1, "--dtype=int3")
    assert "--learning-rate" in sentence("--m", 1, "--longest=3", "--learning-rate=-1")
