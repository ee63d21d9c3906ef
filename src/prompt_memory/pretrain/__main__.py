"""`python -m prompt_memory.pretrain`."""

from prompt_memory.pretrain import main

main()
