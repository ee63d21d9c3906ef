"""Bit readers: the prompt holds random bits, and one query asks for one of them.

Once frozen a bit reader is the friendliest network a prompt could wish for, and shows whether a bound can be attained.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.pretrain.frozen import FrozenModel
from prompt_memory.tasks.labels import grid


@dataclass(frozen=True)
class BitReader:
    """Recipe: `config`, `m` prompt tokens of `bits` bits a coordinate, `steps` batches of `batch` random prompts.

    In the last two fifths of the steps a batch is the hardest part of `pool` times as many prompts: rare misreadings
    have no weight in an average.
    """

    config: TransformerConfig
    m: int
    bits: int
    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    pool: int = 1
    seed: int = 0

    def network(self, generator: torch.Generator) -> Transformer:
        """The transformer of `config`."""
        return Transformer(self.config, generator=generator)

    def initial_queries(self, generator: torch.Generator) -> Float[Tensor, "n 1 d"]:
        """One query for each of the n = bits·d·m bits."""
        d, m, bits = self.config.d, self.m, self.bits
        # a query starts as a code for its token plus one for its coordinate plus one for its bit: unrelated vectors
        # are learned as well, but ten times more slowly
        codes = [torch.randn(*shape, d, generator=generator) for shape in ((m, 1, 1), (1, d, 1), (1, 1, bits))]
        return sum(codes).reshape(-1, 1, d)

    def batch_loss(self, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
        """Mean cross-entropy of all bits of random prompts on the grid."""
        values = grid(self.bits)

        def batch_loss(model: FrozenModel, step: int) -> Tensor:
            pool = self.pool if step >= 0.6 * self.steps else 1
            number = torch.randint(len(values), (pool * self.batch, self.m, self.config.d), generator=generator)
            prompts = values[number]
            if pool > 1:
                with torch.no_grad():
                    hardness = _losses(model, prompts).amax(1)
                prompts = prompts[hardness.argsort(descending=True)[: self.batch]]
            return _losses(model, prompts).mean()

        return batch_loss


def _reader(d: int, m: int, bits: int, *, d_v: int, mlp: int, **schedule) -> BitReader:
    config = TransformerConfig(
        d=d, depth=2, heads=2, d_k=d_v, d_v=d_v, mlp=mlp, norm="rms", causal=True, positions="learned", context=m + 2
    )
    return BitReader(config, m, bits, **schedule)


RECIPES = {
    "bit-reader-small": _reader(8, 2, 1, d_v=8, mlp=64, steps=1000, batch=64, pool=16, seed=1),
    "bit-reader": _reader(16, 8, 1, d_v=16, mlp=128, steps=1200, batch=32, learning_rate=4e-3),
}


def bits_of(prompts: Float[Tensor, "R m d"], bits: int) -> Int[Tensor, "R n"]:
    """What a bit reader is asked: the Gray code of each coordinate's place on its grid, [R, bits·d·m].

    In a Gray code neighbouring values differ in one bit, so that every bit is a function of few steps.
    """
    place = ((prompts + 1) * (2**bits - 1) / 2).round().long().flatten(1)  # [R, m d]
    gray = place ^ (place >> 1)
    return (gray[..., None] >> torch.arange(bits)).bitwise_and(1).flatten(1)


def _losses(model: FrozenModel, prompts: Float[Tensor, "R m d"]) -> Float[Tensor, "R n"]:
    logits = model.transformer(prompts, model.queries)  # [R, n, 2]
    wanted = bits_of(prompts, model.recipe.bits)
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
