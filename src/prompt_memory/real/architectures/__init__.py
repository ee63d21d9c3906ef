"""The shape of a real language model: width, caches, heads, windows, read from a `config.json`.

Where `transformers` knows the family, its own class fills in what the file leaves out, and the network that it builds
is run on three tokens without any weights (on torch's device "meta"): caches, heads and widths are then those of the
network and not of a reading of field names.  Families that it does not know, and networks that cannot be run so, are
read from the fields; a field that could change the cache and is not understood is refused.
"""

from prompt_memory.real.architectures.architecture import Architecture as Architecture
from prompt_memory.real.architectures.published import LARGER as LARGER
from prompt_memory.real.architectures.published import PUBLISHED as PUBLISHED
from prompt_memory.real.architectures.published import SOURCE as SOURCE
from prompt_memory.real.architectures.published import Larger as Larger
from prompt_memory.real.architectures.published import Published as Published
from prompt_memory.real.architectures.published import found_slope as found_slope
from prompt_memory.real.architectures.reading import load as load
from prompt_memory.real.architectures.reading import read as read
