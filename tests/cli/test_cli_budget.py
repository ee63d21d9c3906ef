"""`prompt-memory budget` as a user meets it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from commands import command, refused

from prompt_memory import cli


def test_budget_as_a_program(config):
    plain = command("budget", "--model", config, "--prompt-length", 20, "--precision", "bf16")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "246,000" in plain.stdout  # three digits for people, all of them for scripts
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


def test_the_least_prompt_length(capsys, config):
    """1,000 facts of ten labels are 3,322 bits, and a vector of GPT-2 in int1 has 768."""
    line = ["budget", "--model", str(config), "--facts", "1000", "--labels", "10", "--precision", "int1"]
    assert cli.main(line) == 0
    assert "a soft prompt needs at least 5 vectors (soft prompt, all its bits)" in capsys.readouterr().out
    assert cli.main([*line, "--json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert content["bits"] == pytest.approx(1000 * np.log2(10))
    assert content["bounds"]["counting"]["length"] == 5
    assert (content["largest"], content["found"], content["tokens"]) == ("counting", None, None)
    assert cli.main(["budget", "--model", "Pythia-160M", "--tokens", "1000", "--eps", "0.001", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["given"]["radius"] == 63.62
    assert content["found"] == {"tokens": 90.4, "length": 12, "source": "arXiv 2605.22223"}


@pytest.mark.parametrize("arguments", [
    [], ["nothing"], ["budget"], ["budget", "--model", "x", "--prompt-length", "two"],
    ["budget", "--model", "no/such/place", "--prompt-length", "2"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--precision", "bf17"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--margin", "0.1"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--radius", "nan"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "1" + 400 * "0"],
    ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--length", "1" + 400 * "0"],
    ["budget", "--model", "Pythia-160M"],
    ["budget", "--model", "Pythia-160M", "--facts", "2", "--tokens", "2"],
    ["budget", "--model", "Pythia-160M", "--facts", "2", "--prompt-length", "2"],
    ["budget", "--model", "Pythia-160M", "--facts", "0"],
    ["budget", "--model", "Pythia-160M", "--facts", "2", "--labels", "1"],
    ["budget", "--model", "Pythia-160M", "--tokens", "2", "--labels", "2"],
    ["budget", "--model", "Pythia-160M", "--tokens", "2", "--length", "2"],
    ["budget", "--model", "Pythia-160M", "--tokens", "1" + 400 * "0"],
    ["budget", "--model", "Pythia-160M", "--facts", "1" + 30 * "0"],
])  # fmt: skip
def test_bad_input_to_the_budget_is_one_sentence(capsys, arguments):
    refused(capsys, *arguments)


def test_numbers_beyond_a_float_are_no_error(capsys):
    assert cli.main(["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--degree", "100000000000"]) == 0
    assert "cache positions of a layer with all its moments (vacuous)" in capsys.readouterr().out
    assert (
        cli.main(["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--degree", "100000000000", "--json"])
        == 0
    )
    value = json.loads(capsys.readouterr().out)["bounds"]["moments"]["value"]
    # C(64 + k, k) (1 + 64) in each of 12 heads, k = 10^11: 64 * 11 - log10(64!) + log10(12 * 65) = 704 - 89.1 + 2.9
    assert len(str(value)) == 618


def test_a_margin_restricts_what_strings_and_recall_are_about(capsys):
    arguments = ["budget", "--model", "Pythia-160M", "--prompt-length", "2", "--radius", "1"]
    assert cli.main(arguments) == 0
    assert "counted with it\n" in capsys.readouterr().out
    assert cli.main([*arguments, "--lipschitz", "1", "--margin", "1"]) == 0
    assert "answers with that margin\n" in capsys.readouterr().out
