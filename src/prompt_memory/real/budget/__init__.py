"""What a prompt can hold in a real model: every bound of the book that a configuration alone determines.

`budget` puts an architecture, a prompt length and a number format into the functions of `prompt_memory.bounds`;
`least_length` goes the other way, from an amount to be held to the shortest prompt that the bounds allow.  Weights are
never read.  What only weights or measurements can tell (radius, resolution, Lipschitz constant, range of the softmax
logits) is asked for, not guessed.
"""

from prompt_memory.real.budget.formats import FORMATS as FORMATS
from prompt_memory.real.budget.formats import Format as Format
from prompt_memory.real.budget.formats import number_format as number_format
from prompt_memory.real.budget.forward import NOT_DETERMINED as NOT_DETERMINED
from prompt_memory.real.budget.forward import SLOPE as SLOPE
from prompt_memory.real.budget.forward import SOFT as SOFT
from prompt_memory.real.budget.forward import Bound as Bound
from prompt_memory.real.budget.forward import Budget as Budget
from prompt_memory.real.budget.forward import budget as budget
from prompt_memory.real.budget.inverse import Least as Least
from prompt_memory.real.budget.inverse import LeastLength as LeastLength
from prompt_memory.real.budget.inverse import least_length as least_length
from prompt_memory.real.budget.page import KNOWN as KNOWN
from prompt_memory.real.budget.page import START as START
from prompt_memory.real.budget.page import calculator as calculator
from prompt_memory.real.budget.page import evaluate as evaluate
from prompt_memory.real.budget.page import evaluate_question as evaluate_question
from prompt_memory.real.budget.page import found_ratio as found_ratio
from prompt_memory.real.budget.page import reference_cases as reference_cases
from prompt_memory.real.budget.text import at_least as at_least
from prompt_memory.real.budget.text import at_most as at_most
from prompt_memory.real.budget.text import least_table as least_table
from prompt_memory.real.budget.text import show as show
from prompt_memory.real.budget.text import table as table
