"""Families of small transformers that recall facts from their context; all members are trained at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_memory.network.recall import Recaller, RecallerConfig
from prompt_memory.pretrain.frozen import FrozenModel


@dataclass(frozen=True)
class RecallFamily(RecallerConfig):
    """Recipe: each of `steps` batches holds, for every member, `batch` new contexts with `queries` questions each."""

    steps: int = 600
    batch: int = 32
    queries: int = 16
    learning_rate: float = 1e-2
    seed: int = 0

    def network(self, generator: torch.Generator) -> Recaller:
        """The whole family."""
        return Recaller(self, generator=generator)

    def initial_queries(self, generator: torch.Generator) -> None:
        """None: a query is a key of the context."""

    def batch_loss(self, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
        """Cross-entropy, averaged over members, each on its own new contexts and questions."""

        def batch_loss(model: FrozenModel, step: int) -> Tensor:
            family = model.transformer
            R, most, width = len(family.members), int(family.facts.max()), family.width
            keys = torch.randn(R, self.batch, most, width, generator=generator)
            keys = F.normalize(keys * (torch.arange(width) < family.heads)[:, None, None], dim=-1)
            labels = (torch.rand(R, self.batch, most, generator=generator) * family.values[..., None]).long()
            asked = (torch.rand(R, self.batch, self.queries, generator=generator) * family.facts[..., None]).long()
            logits = family(keys, labels, keys.gather(2, asked[..., None].expand(-1, -1, -1, width)))
            return F.cross_entropy(logits.flatten(0, 2), labels.gather(2, asked).flatten())

        return batch_loss


RECIPES = {
    "recall-small": RecallFamily(head_sizes=(8,), facts=(8,), copies=1, steps=400, seed=8),
    "recall": RecallFamily(seed=8),
    "recall-long": RecallFamily(steps=2400, seed=9),
}
