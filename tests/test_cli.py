"""The command line as a user meets it: what it prints, writes and returns."""

import contextlib
import csv
import errno
import io
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file

from prompt_memory import cli, compress, tune

CONFIG = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
TEXT = "".join(chr(97 + (7 * i + i * i // 5) % 26) for i in range(400))


def command(*arguments, cwd=None):
    line = [sys.executable, "-m", "prompt_memory.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def refused(capsys, *arguments) -> str:
    """Run in this process what must be refused: exit status 2 and one sentence, which is returned."""
    try:
        status = cli.main(list(map(str, arguments)))
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2, captured.err
    assert captured.out == ""
    (sentence,) = captured.err.splitlines()
    assert sentence.startswith("prompt-memory")
    return sentence


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


# --- budget ---------------------------------------------------------------------------------------------------------


def test_budget_as_a_program(config):
    plain = command("budget", "--model", config, "--prompt-length", 20, "--precision", "bf16")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "245,760" in plain.stdout
    data = command("budget", "--model", config.parent, "--prompt-length", 20, "--json", "--radius", 3, "--eps", 0.1)
    assert (data.returncode, data.stderr) == (0, "")
    content = json.loads(data.stdout)
    assert content["bounds"]["counting"]["bits"] == 245760
    assert content["bounds"]["resolution"]["bits"] == pytest.approx(20 * 768 * np.log2(61))
    assert content["smallest"] == "counting_in_radius"  # strings told apart at eps are not all strings
    assert content["bounds"]["resolution"]["bits"] < content["bounds"]["counting_in_radius"]["bits"]
    wrong = command("budget", "--model", "Pythia-160M", "--prompt-length", 0)
    assert wrong.returncode == 2
    assert wrong.stderr == "prompt-memory budget: prompt_length must be an integer >= 1, not 0\n"


def test_the_budget_of_a_published_model_needs_no_torch():
    code = "import sys; from prompt_memory import cli; " + (
        "status = cli.main(['budget', '--model', 'Pythia-160M', '--prompt-length', '1']); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_table_says_what_a_number_rests_on(capsys):
    arguments = ["budget", "--model", "Gemma-3-270M", "--prompt-length", "3", "--eps", "1e-3", "--logit-range", "10"]
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert "window 512" in table
    assert "told apart at eps: strings for which prompts at least eps apart can be chosen" in table
    assert "smallest bound on a soft prompt: soft prompt, numbers within the radius" in table
    assert ", given radius" in table
    assert cli.main([*arguments[:5]]) == 0
    assert "told apart at eps: strings" not in capsys.readouterr().out


def test_every_json_number_is_json(capsys):
    assert cli.main(["budget", "--model", "Gemma-3-270M", "--prompt-length", "3", "--eps", "1e-3", "--json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert content["given"]["radius"] == 10.74  # of the table: eps alone would say nothing
    assert all({"bits", "tokens", "value", "unit", "theorem"} <= set(bound) for bound in content["bounds"].values())


def test_the_vocabulary_can_be_smaller_than_the_configuration(capsys, config):
    assert cli.main(["budget", "--model", str(config), "--prompt-length", "1", "--vocabulary", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bounds"]["counting"]["tokens"] == 16 * 768
    assert "between 2 and 50257" in refused(
        capsys, "budget", "--model", config, "--prompt-length", 1, "--vocabulary", 99999
    )


@pytest.mark.parametrize("arguments", [
    [], ["nothing"], ["budget"], ["budget", "--model", "x", "--prompt-length", "two"],
    ["budget", "--model", "no/such/place", "--prompt-length", "2"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--precision", "bf17"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--margin", "0.1"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--radius", "nan"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "1" + 400 * "0"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--length", "1" + 400 * "0"],
])  # fmt: skip
def test_bad_input_to_the_budget_is_one_sentence(capsys, arguments):
    refused(capsys, *arguments)


def test_numbers_beyond_a_float_are_shown(capsys):
    assert cli.main(["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--degree", "100000000000"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "all its moments" in line]
    # C(64 + k, k) (1 + 64) in each of 12 heads, k = 10^11: 64 * 11 - log10(64!) + log10(12 * 65) = 704 - 89.1 + 2.9
    assert "about 10^618 weighted positions (vacuous)" in line


def test_a_margin_restricts_what_strings_and_recall_are_about(capsys):
    arguments = ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--radius", "1"]
    assert cli.main(arguments) == 0
    assert "counted with it\n" in capsys.readouterr().out
    assert cli.main([*arguments, "--lipschitz", "1", "--margin", "1"]) == 0
    assert "answers with that margin\n" in capsys.readouterr().out


def budget_into(output, before=None) -> subprocess.CompletedProcess:
    """The table of a budget, written to a file or pipe by a process of its own, in which `before` is called first."""
    line = [sys.executable, "-m", "prompt_memory.cli", "budget", "--model", "Pythia-160M", "--prompt-length", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(line, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment,
                          preexec_fn=before)  # fmt: skip


def test_a_reader_that_leaves():
    reader, writer = os.pipe()
    os.close(reader)
    gone = budget_into(writer)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (0, "")


def test_a_file_without_room(tmp_path):
    def at_most_100_bytes():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    with (tmp_path / "table.txt").open("w") as full:
        result = budget_into(full, at_most_100_bytes)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("prompt-memory budget: ")
    assert os.strerror(errno.EFBIG) in sentence


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_fails_is_no_bad_input(number, config, capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["budget", "--model", str(config), "--prompt-length", "1"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in sentence


@pytest.mark.parametrize("which", ["budget", "cram", "compress"])
def test_help_has_examples(capsys, which):
    with pytest.raises(SystemExit) as stop:
        cli.main([which, "--help"])
    assert stop.value.code == 0
    assert f"examples:\n  prompt-memory {which} --" in capsys.readouterr().out


def test_the_examples_of_the_help_parse():
    for text in (cli.BUDGET_EXAMPLES, cli.CRAM_EXAMPLES, cli.COMPRESS_EXAMPLES):
        lines = [line.split()[1:] for line in text.splitlines() if line.startswith("  prompt-memory")]
        assert lines
        for line in lines:
            cli.parser().parse_args(line)


# --- compress -------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt(tmp_path):
    """Files with a prompt of 200 tokens, queries and one head."""
    random = np.random.default_rng(0)
    arrays = {"tokens": (200, 3), "q": (4, 3), "A": (3, 3), "V": (2, 3)}
    arrays = {name: random.normal(size=shape) for name, shape in arrays.items()}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


def test_compress_by_moments(prompt, tmp_path):
    done = command("compress", "--tokens", "tokens.npy", "--degree", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 of 200 tokens" in done.stdout
    with np.load(tmp_path / "compressed.npz") as short:
        kept, weights = prompt["tokens"][short["indices"]], short["weights"]
    assert weights.sum() == pytest.approx(1)
    assert kept.T @ (weights[:, None] * kept) == pytest.approx(prompt["tokens"].T @ prompt["tokens"] / 200, abs=1e-11)


def test_compress_says_beforehand_when_nothing_can_be_saved(tmp_path, capsys):
    random = np.random.default_rng(1)
    wide, flat = random.normal(size=(100, 768)), random.normal(size=(12, 4)) @ random.normal(size=(4, 768))
    for name, tokens, degree, warned, kept in (
        ("wide", wide, 1, "nothing can be saved", 100),
        ("flat", flat, 2, "at degree 2 up to 15 are needed", 12),
        ("flat", flat, 1, "", 5),
    ):
        np.save(tmp_path / f"{name}.npy", tokens)
        arguments = ["compress", f"--tokens={tmp_path}/{name}.npy", f"--degree={degree}", "--force"]
        assert cli.main([*arguments, f"--output={tmp_path}/out.npz"]) == 0
        told = capsys.readouterr()
        assert warned in told.err
        assert bool(warned) == bool(told.err)
        assert f"{kept} of {len(tokens)} tokens" in told.out
        assert "ln w" in told.out


def test_compress_for_queries(prompt, tmp_path, capsys):
    save_file({"p": torch.from_numpy(prompt["tokens"])[None], "other": torch.zeros(1)}, tmp_path / "t.safetensors")
    files = [f"--{option}={tmp_path / name}.npy" for option, name in (("queries", "q"), ("A", "A"), ("V", "V"))]
    output = tmp_path / "short.safetensors"
    arguments = ["compress", f"--tokens={tmp_path}/t.safetensors:p", *files, f"--output={output}"]
    assert cli.main([*arguments, "--own", "1"]) == 0
    short = load_file(output)
    assert len(short["indices"]) <= 8
    layer = (prompt["q"], prompt["A"], prompt["V"])
    found = compress.attend(prompt["tokens"][short["indices"]], *layer, weights=short["weights"], own=short["own"][0])
    assert found == pytest.approx(compress.attend(prompt["tokens"], *layer, own=1.0), abs=1e-11)
    capsys.readouterr()
    assert "exists" in refused(capsys, *arguments)
    assert cli.main([*arguments, "--force"]) == 0


def test_bad_input_to_compress_is_one_sentence(prompt, tmp_path, capsys):
    def sentence(*arguments):
        return refused(capsys, "compress", f"--output={tmp_path}/out.npz", *arguments)

    tokens = f"--tokens={tmp_path}/tokens.npy"
    (tmp_path / "broken.npy").write_text("nothing")
    (tmp_path / "broken.safetensors").write_text("nothing")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((4, 2), np.nan))
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    for name, dtype in (("complex", torch.complex64), ("bool", torch.bool)):
        save_file({"a": torch.ones(4, 2, dtype=dtype)}, tmp_path / f"{name}.safetensors")
        assert f"not {name}" in sentence(f"--tokens={tmp_path}/{name}.safetensors", "--degree=1")
    assert "either" in sentence(tokens)
    assert "--queries, --A and --V" in sentence(tokens, f"--queries={tmp_path}/q.npy")
    assert "no file" in sentence("--tokens=missing.npy", "--degree=1")
    assert "not an array" in sentence(f"--tokens={tmp_path}/broken.npy", "--degree=1")
    assert "damaged" in sentence(f"--tokens={tmp_path}/broken.safetensors", "--degree=1")
    assert "real numbers" in sentence(f"--tokens={tmp_path}/words.npy", "--degree=1")
    np.savez(tmp_path / "archive.npz", a=np.ones((2, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    assert "archive of several" in sentence(f"--tokens={tmp_path}/archive.npy", "--degree=1")
    assert "without a name" in sentence(tokens + ":p", "--degree=1")
    assert "not an array" in sentence(f"--tokens={tmp_path}/objects.npy", "--degree=1")
    assert "finite" in sentence(f"--tokens={tmp_path}/nan.npy", "--degree=1")
    assert "FILE:NAME" in sentence(f"--tokens={tmp_path}/two.safetensors", "--degree=1")
    assert "holds no c" in sentence(f"--tokens={tmp_path}/two.safetensors:c", "--degree=1")
    assert "degree" in sentence(tokens, "--degree=-1")
    assert "moments are too many" in sentence(tokens, "--degree=4000")
    assert "does not exist" in refused(capsys, "compress", tokens, "--degree=1", f"--output={tmp_path}/no/out.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder" in refused(capsys, "compress", tokens, "--degree=1", "--force",
                                    f"--output={tmp_path}/folder.npz")  # fmt: skip
    assert ".npz" in refused(capsys, "compress", tokens, "--degree=1", f"--output={tmp_path}/out.txt")
    assert not (tmp_path / "out.npz").exists()


# --- cram -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny GPT-2 with random weights and a tokenizer of single letters, as `transformers` writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        vocab_size=27, n_positions=24, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
    letters = {chr(97 + i): i for i in range(26)} | {"?": 26}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token="?"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


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
    from prompt_memory import hf, measure

    model = hf.load(checkpoint)
    prompts = []
    for path in (whole / "chunks").iterdir():
        part, _ = tune._read_chunk(path)
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
    descend, calls = tune._descend, []

    def counted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*arguments, **settings)

    monkeypatch.setattr(tune, "_descend", counted)
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
        cli._claim_folder(options, **digests, threads=threads)
        said = capsys.readouterr().err
        assert words in said
        assert bool(words) == bool(said)
    (tmp_path / "settings.json").write_text("{")
    capsys.readouterr()
    assert "settings.json is damaged" in refused(capsys, *sweep(checkpoint, tmp_path))


def test_the_length_of_strings_comes_from_the_model(checkpoint, tmp_path, capsys, monkeypatch):
    """As many tokens as bits allow, cut at the model's positions and at the text; kept when lengths are added."""
    import dataclasses

    from prompt_memory import hf

    config = hf.load(checkpoint).config
    assert cli._longest(config, 1, 1, 6, None) == 2  # 8 bits and log2(27) = 4.75 bits a token: 9/4.75 = 1.9
    assert cli._longest(config, 1, 32, 6, None) == 24  # positions
    assert cli._longest(config, 2, 32, 6, range(60)) == 10  # text
    real = dataclasses.replace(config, d=768, q=50304, context=2048, positions="computed")
    assert cli._longest(real, 4, 16, 6, None) == 1600
    assert cli._longest(real, 4, 4, 6, None) == 787  # (4 · 768 · 4 + 1)/log2(50304)

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
    assert cli._text(tmp_path / "marked.txt") == "abc"


def test_what_no_user_can_mend_is_one_sentence_and_no_bad_input(config, capsys, monkeypatch):
    monkeypatch.setattr(cli.budgets, "load", lambda _: {}["somewhere"])
    assert cli.main(["budget", "--model", str(config), "--prompt-length", "1"]) == 1
    assert capsys.readouterr().err == "prompt-memory budget: failed with KeyError: 'somewhere'\n"


def test_names_that_the_terminal_cannot_show(tmp_path):
    (tmp_path / "模型.json").write_text("{")
    line = [sys.executable, "-m", "prompt_memory.cli", "budget", "--model", tmp_path / "模型.json", "--prompt-length=1"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    shown = subprocess.run(line, capture_output=True, check=False, env=ascii_only)
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert rb"\u6a21" in shown.stderr
    assert b"cannot be read as JSON" in shown.stderr


def test_what_was_found_before_a_failure_is_reported(checkpoint, tmp_path, capsys, monkeypatch):
    descend = tune._descend

    def failing(model, strings, m, **settings):
        if m == 2:
            raise MemoryError("no room for m = 2")
        return descend(model, strings, m, **settings)

    monkeypatch.setattr(tune, "_descend", failing)
    assert cli.main(sweep(checkpoint, tmp_path, "--quiet")) == 1
    captured = capsys.readouterr()
    assert captured.err == "prompt-memory cram: no room for m = 2\n"
    assert [row["m"] for row in rows(tmp_path / "summary.csv")] == ["1"]
    assert (tmp_path / "cram.svg").exists()
    assert "n50" in captured.out


def test_closed_streams_are_no_error(config, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["budget", "--model", str(config), "--prompt-length", "1"]) == 0
    assert cli.main(["budget", "--model", "missing", "--prompt-length", "1"]) == 2


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

    report = cli._Report(tmp_path, [""] * 3, 4, 8, 27, 32, 0)
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
