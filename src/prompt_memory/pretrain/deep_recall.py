"""Transformers of one to three layers that recall facts from their context; all are trained at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_memory.network.deep_recall import DeepRecallers
from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.pretrain.frozen import FrozenModel
from prompt_memory.tasks.facts import keys_of, random_facts


@dataclass(frozen=True)
class DeepRecall:
    """Recipe: each of `steps` batches holds, for every network, `batch` contexts of the same number of facts.

    That number is drawn from `least` to `most`; `questions` random facts are asked for behind the facts, one token
    each.  Keys are unit vectors in `key_width` dimensions.
    """

    networks: tuple[TransformerConfig, ...]
    key_width: int = 5
    steps: int = 600
    batch: int = 64
    questions: int = 16
    least: int = 4
    most: int = 32
    learning_rate: float = 3e-3
    seed: int = 0

    def network(self, generator: torch.Generator) -> DeepRecallers:
        """All networks."""
        return DeepRecallers(self.networks, self.key_width, generator=generator)

    def initial_queries(self, generator: torch.Generator) -> None:
        """None: a question is a key of the context."""

    def batch_loss(self, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
        """Sum of the networks' cross-entropies, each on its own new contexts and questions."""

        def batch_loss(model: FrozenModel, step: int) -> Tensor:
            N = int(torch.randint(self.least, self.most + 1, (1,), generator=generator))
            losses = []
            for member in model.transformer.members:
                normal, unit = random_facts(generator, N, self.key_width, self.batch)
                keys, labels = keys_of(normal, self.key_width), (unit * member.config.q).long()
                asked = torch.randint(N, (self.batch, self.questions), generator=generator)
                questions = member.questions(keys.gather(1, asked[..., None].expand(-1, -1, self.key_width)))
                logits = member.transformer.stream(torch.cat([member.facts(keys, labels), questions], 1))[:, N:]
                losses.append(F.cross_entropy(logits.flatten(0, 1), labels.gather(1, asked).flatten()))
            return sum(losses)

        return batch_loss


def _networks(*depths: int, positions: Literal["none", "rotary"] = "none") -> tuple[TransformerConfig, ...]:
    """Causal pre-norm networks with RMSNorm and two heads, one of each depth."""
    options = {"q": 4, "heads": 2, "d_k": 8, "d_v": 8, "mlp": 32, "norm": "rms", "causal": True}
    return tuple(TransformerConfig(d=32, depth=depth, positions=positions, **options) for depth in depths)


RECIPES = {
    "deep-recall-small": DeepRecall(_networks(1) + _networks(2, positions="rotary"), steps=400, batch=32, seed=18),
    "deep-recall": DeepRecall(_networks(1, 2, 3) + _networks(1, 2, 3, positions="rotary"), seed=18),
}
