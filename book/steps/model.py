"""Train one frozen model and say so: the build's wrapper of `python -m prompt_memory.pretrain`."""

import argparse
import subprocess
import sys
import time

import chapters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    chapters.say(f"model {options.name}: training")
    start = time.monotonic()
    command = [sys.executable, "-m", "prompt_memory.pretrain", options.name]
    result = subprocess.run([*command, "--output", options.output], check=False)
    if result.returncode:
        chapters.say(f"FAILED model {options.name}: training ended with exit status {result.returncode}")
    else:
        chapters.say(f"model {options.name}: trained in {time.monotonic() - start:.1f} s")
    return result.returncode


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
