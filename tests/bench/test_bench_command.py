"""The command of the benchmark, and the small comparison of a page."""

import json
import re

import pytest
from benched import NAME, TINY

from prompt_memory import pretrain
from prompt_memory.bench import command, report


def test_the_quick_run_ends_with_the_ratio(frozen, tmp_path, capsys, monkeypatch):
    pretrain.save(frozen, tmp_path / "models" / f"{NAME}.safetensors")
    monkeypatch.setattr(command, "QUICK", TINY)
    command.main(["--quick", "--model", NAME, "--models", str(tmp_path / "models"), "--output", str(tmp_path),
                "--threads", "1", "--device", "cpu"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "bench.json").read_text())
    assert re.fullmatch(r"ratio \d+\.\dx", lines[-1])
    assert lines[-1] == f"ratio {report['equal_steps']['ratio']:.1f}x"
    assert [result["m"] for result in report["equal_success"]] == [1, 2]
    assert [count for count, _ in report["strings_per_second"]] == [1, 3]
    assert report["export_error"] <= 1e-5
    assert 0 < report["equal_steps"]["matmul_fraction"] < 1
    assert (report["device"], report["threads"]) == ("cpu", 1)
    assert set(report["versions"]) == {"python", "torch", "transformers", "peft", "numpy"}
    assert any("peak memory" in line for line in lines)


def test_a_page_gets_a_small_comparison(frozen, monkeypatch):
    monkeypatch.setattr(report, "Settings", lambda **_: TINY)
    table = report.rows(report.quick(frozen))
    assert all(isinstance(cell, str) for row in table for cell in row)
    assert any(what.startswith("ratio at equal steps (m = 4, n = 12, 1 thread)") for what, _ in table)
    assert any(what.startswith("ratio of time, batched solving at least as many (m = 2") for what, _ in table)


def test_a_model_that_is_missing_is_trained_into_the_output_folder(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(command.subprocess, "run", lambda line, check: commands.append(line[1:]))
    assert command._folder(NAME, tmp_path / "models", tmp_path) == tmp_path
    (line,) = commands
    assert line == ["-m", "prompt_memory.pretrain", NAME, "--output", str(tmp_path / f"{NAME}.safetensors")]
    (tmp_path / f"{NAME}.safetensors").touch()
    assert command._folder(NAME, tmp_path / "models", tmp_path) == tmp_path
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{NAME}.safetensors").touch()
    assert command._folder(NAME, tmp_path / "models", tmp_path) == tmp_path / "models"
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "gpt-5"], "unknown language model 'gpt-5': choose one of lexicon-small, lexicon, natural"),
        (["--model", "bit-reader"], "unknown language model 'bit-reader': choose one of lexicon-small"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--output", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_model_of_another_recipe_is_refused(frozen, tmp_path, capsys):
    pretrain.save(frozen, tmp_path / "natural.safetensors")
    with pytest.raises(SystemExit) as stop:
        command.main(["--output", str(tmp_path)])
    assert stop.value.code == 2
    assert "was written by another recipe" in capsys.readouterr().err.splitlines()[-1]
