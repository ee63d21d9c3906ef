"""`python -m prompt_memory.bench`."""

from prompt_memory.bench.command import main

main()
