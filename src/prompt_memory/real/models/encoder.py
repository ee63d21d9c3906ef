"""A bidirectional encoder of `transformers` with the interface of our own networks."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.real.models.network import WrappedNetwork


class Encoder(WrappedNetwork):
    """A bidirectional encoder of the BERT family with the interface of our `Transformer`; made by `load_encoder`.

    Its outputs are the q = d coordinates of a token's last state, or `state @ readout` for a matrix [d, q].  With
    `positions="none"` every token is given position 0: the network, not trained for that, no longer sees the order of
    its tokens, and a prompt is a set, or with `weights` a measure.
    """

    causal = False

    def __init__(
        self,
        network: nn.Module,
        name: str = "",
        *,
        positions: Literal["learned", "none"] = "learned",
        readout: Float[Tensor, "d q"] | None = None,
    ):
        super().__init__(network, name)
        if positions not in ("learned", "none"):
            raise ValueError(f"positions must be one of learned, none, not {positions!r}")
        d = self.embedding.shape[1]
        if readout is not None and (readout.ndim != 2 or len(readout) != d):
            raise ValueError(f"a readout must have the shape [d, q] with d = {d}, not {list(readout.shape)}")
        self._positions = "none" if positions == "none" else self._positions
        self.register_buffer("readout", None if readout is None else readout.to(self.embedding))

    def _outputs(self) -> int:
        return self.network.config.hidden_size if self.readout is None else self.readout.shape[1]

    def forward(
        self,
        prompt: Float[Tensor, "R m d"],
        queries: Float[Tensor, "n T d"] | Float[Tensor, "n d"] | Int[Tensor, "n T"],
        *,
        own_token: bool = True,
        read: Literal["last", "all", "mean"] = "last",
        weights: Float[Tensor, "R m"] | None = None,
    ) -> Tensor:
        """Outputs [R, n, q] at the last token of each query, [R, n, T, q] with "all", or the mean over its tokens.

        `weights` > 0 multiply the attention that the tokens of a prompt get, in every layer: without positions a token
        of weight 2 is two tokens.
        """
        if read not in ("last", "all", "mean"):
            raise ValueError(f"read must be one of last, all, mean, not {read!r}")
        x, R, T = self._pairs(prompt, queries, own_token)
        log = x.new_zeros(len(x), x.shape[1])
        if weights is not None:
            if weights.shape != prompt.shape[:2] or not (weights > 0).all():
                raise ValueError(f"weights must be positive and have the shape {list(prompt.shape[:2])} of the prompts")
            log = torch.cat([weights.to(x).log().repeat_interleave(len(x) // R, 0), log[:, -T:]], 1)
        states = self._states(x, log)[-1][:, -T:].to(self.embedding.dtype).unflatten(0, (R, -1))
        outputs = states if self.readout is None else states @ self.readout
        if read == "all":
            return outputs
        return outputs.mean(-2) if read == "mean" else outputs[..., -1, :]

    def layer_inputs(self, x: Float[Tensor, "R T d"]) -> list[Float[Tensor, "R T d"]]:
        """What each layer reads, and last what the network gives out: L + 1 tensors [R, T, d]."""
        return list(self._states(x, x.new_zeros(x.shape[:2])))

    def head(self, layer: int, head: int) -> tuple[Float[Tensor, "D D"], Float[Tensor, "d_v D"]]:
        """A and V of one trained head, for tokens and queries with a coordinate 1 appended: D = d + 1.

        The head's output at x is Σ_j softmax_j(⟨A x, z_j⟩) V z_j over all tokens z_j that its layer reads, biases
        included: what `compress.attend`, `compress.caratheodory` and `measure.head_slope` take.  In float64.
        """
        try:
            part = self.network.encoder.layer[layer].attention.self
            maps = [part.query, part.key, part.value]
        except (AttributeError, IndexError) as error:
            raise ValueError(f"{self._name} has no attention of the BERT kind in layer {layer}") from error
        heads = self.network.config.num_attention_heads
        if not 0 <= head < heads:
            raise ValueError(f"head must lie in 0 … {heads - 1}, not {head}")
        query, key, value = (
            torch.cat([part.weight, part.bias[:, None]], 1).double().chunk(heads)[head] for part in maps
        )  # [d_k, D]
        return key.T @ query / math.sqrt(len(key)), value

    def _states(self, x, log):
        mask = log.to(self.dtype)[:, None, None].expand(-1, 1, x.shape[1], -1)  # added to the logits of attention
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        places = torch.zeros_like(places) if self._positions == "none" else places
        settings = dict(attention_mask=mask, position_ids=places, output_hidden_states=True)
        return self._run(x, fused=False, **settings).hidden_states
