"""Networks from `transformers` in the place of our own.

`load` wraps a causal language model so that `tune.cram`, `tune.longest_prefix` and what `measure` does with prompts and
logits run on it unchanged; `load_encoder` does the same for a bidirectional encoder.  Prompts enter as
`inputs_embeds`.  A network that is wrapped is the caller's own: its weights are not changed, but it is frozen
(`requires_grad` False) and put into evaluation mode.
"""

from prompt_memory.real.models.embeddings import embedding_radius as embedding_radius
from prompt_memory.real.models.embeddings import embedding_tolerance as embedding_tolerance
from prompt_memory.real.models.embeddings import search_settings as search_settings
from prompt_memory.real.models.encoder import Encoder as Encoder
from prompt_memory.real.models.language import CausalLM as CausalLM
from prompt_memory.real.models.loading import MINILM as MINILM
from prompt_memory.real.models.loading import load as load
from prompt_memory.real.models.loading import load_encoder as load_encoder
from prompt_memory.real.models.loading import tokenizer as tokenizer
from prompt_memory.real.models.network import DTYPES as DTYPES
from prompt_memory.real.models.network import NetworkConfig as NetworkConfig
from prompt_memory.real.models.network import WrappedNetwork as WrappedNetwork
