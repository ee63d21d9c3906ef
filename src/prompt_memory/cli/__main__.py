"""`python -m prompt_memory.cli`."""

import sys

from prompt_memory.cli import main

sys.exit(main())
