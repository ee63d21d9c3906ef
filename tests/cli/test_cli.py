"""The command line whatever the command: help, streams that fail, errors."""

import errno
import io
import os
import resource
import subprocess
import sys

import pytest

from prompt_memory import cli
from prompt_memory.cli import budget, compress, cram


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
    for text in (budget.EXAMPLES, cram.EXAMPLES, compress.EXAMPLES):
        lines = [line.split()[1:] for line in text.splitlines() if line.startswith("  prompt-memory")]
        assert lines
        for line in lines:
            cli.parser().parse_args(line)


def test_what_no_user_can_mend_is_one_sentence_and_no_bad_input(config, capsys, monkeypatch):
    monkeypatch.setattr(budget.architectures, "load", lambda _: {}["somewhere"])
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


def test_closed_streams_are_no_error(config, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["budget", "--model", str(config), "--prompt-length", "1"]) == 0
    assert cli.main(["budget", "--model", "missing", "--prompt-length", "1"]) == 2
