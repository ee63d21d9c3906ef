"""A causal language model of `transformers` with the interface of our own networks."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.real.models.network import WrappedNetwork
from prompt_memory.real.sentences import first_line


class CausalLM(WrappedNetwork):
    """A causal language model of `transformers` with the interface of our `Transformer`; made by `load`.

    `model(prompts, queries)` are logits [R, n, q] after each query, `model.stream(x)` logits [R, T, q] after every
    vector of R sequences.  The network is the caller's: it is frozen and put into evaluation mode, not copied.
    ValueError if it cannot read vectors, or a vector changes what lies before it.
    """

    causal = True

    def __init__(self, network: nn.Module, name: str = ""):
        super().__init__(network, name)
        head = network.get_output_embeddings()
        if head is None:
            raise ValueError(f"{self._name} is not a causal language model: it has no output for each token")
        try:
            d, q = self.embedding.shape[1], len(self.embedding)
            x = torch.randn(1, 3, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            x = torch.cat([x, torch.cat([x[:, :2], -x[:, 2:]], 1)]).to(self.embedding)
            with torch.no_grad():
                first, second = self.stream(x)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks that want token ids fail in ways of their own; the cause is kept
            raise ValueError(f"{self._name} does not read vectors (inputs_embeds): {first_line(error)}") from error
        if len(first[0]) != q:
            raise ValueError(f"{self._name} reads {q} tokens but predicts {len(first[0])}")
        rounding = max(1e-6, 4 * torch.finfo(self.dtype).eps)
        if torch.isfinite(first).all() and (first - second)[:2].abs().max() > rounding * first.abs().max():
            raise ValueError(f"{self._name} is not a causal language model: its tokens see later ones")

    def _outputs(self) -> int:
        return len(self.embedding)

    def forward(
        self,
        prompt: Float[Tensor, "R m d"],
        queries: Float[Tensor, "n T d"] | Float[Tensor, "n d"] | Int[Tensor, "n T"],
        *,
        own_token: bool = True,
        read: Literal["last", "all"] = "last",
    ) -> Tensor:
        """Logits [R, n, q] at the last token of each query, or [R, n, T, q] with `read="all"`.

        Attention is written out, so that forward-mode derivatives and `vmap` go through it.
        """
        if read not in ("last", "all"):
            raise ValueError(f"read must be one of last, all, not {read!r}")
        x, R, T = self._pairs(prompt, queries, own_token)
        logits = self._run(x, fused=False, use_cache=False).logits[:, -T:]
        logits = logits.to(self.embedding.dtype).unflatten(0, (R, -1))  # [R, n, T, q]
        return logits[..., -1, :] if read == "last" else logits

    def stream(self, x: Float[Tensor, "R T d"]) -> Float[Tensor, "R T q"]:
        """Logits of the next token after every vector of R sequences, [R, T, q], by the network's own attention."""
        d = self.embedding.shape[1]
        if x.ndim != 3 or x.shape[-1] != d or not x.shape[1]:
            raise ValueError(f"sequences must have the shape [R, T, d] with d = {d}, not {list(x.shape)}")
        if not len(x):
            return x.new_zeros(0, x.shape[1], len(self.embedding))
        return self._run(x, fused=True, use_cache=False).logits.to(self.embedding.dtype)
