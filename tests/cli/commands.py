"""The command line as a program, and in this process."""

import os
import subprocess
import sys

from prompt_memory import cli

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
