"""Language models: trained to continue strings of one of the two languages; they have never seen a soft prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.pretrain.frozen import FrozenModel
from prompt_memory.tasks import language

ALPHABETS = {"lexicon": language.LETTERS, "natural": language.PRINTABLE}


@dataclass(frozen=True)
class LanguageModel:
    """Recipe: `config`, a language, and `steps` batches of `batch` stretches of `tokens` letters each.

    `corpus` is "lexicon" (the source with known probabilities) or "natural" (the text that this Python carries).
    """

    config: TransformerConfig
    corpus: Literal["lexicon", "natural"]
    steps: int
    batch: int = 32
    tokens: int = 129
    learning_rate: float = 4e-3
    seed: int = 0

    @property
    def alphabet(self) -> str:
        """The letters, in the order of their token ids."""
        return ALPHABETS[self.corpus]

    def network(self, generator: torch.Generator) -> Transformer:
        """The transformer of `config`."""
        return Transformer(self.config, generator=generator)

    def initial_queries(self, generator: torch.Generator) -> None:
        """None: a language model continues a string."""

    def batch_loss(self, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
        """Mean loss of random stretches of the training text, in nats a letter."""
        ids = training_text(self)

        def batch_loss(model: FrozenModel, step: int) -> Tensor:
            start = torch.randint(len(ids) - self.tokens, (self.batch, 1), generator=generator)
            strings = ids[start + torch.arange(self.tokens)]
            return string_losses(model.transformer, strings).mean()

        return batch_loss


def _language_model(corpus: str, d: int, depth: int, heads: int, context: int, **schedule) -> LanguageModel:
    """The layout of GPT-2, but for rectifiers (as fast as matrix products on a CPU) and fewer biases."""
    config = TransformerConfig(
        d=d,
        q=len(ALPHABETS[corpus]),
        depth=depth,
        heads=heads,
        mlp=4 * d,
        activation="relu",
        norm="layer",
        causal=True,
        positions="learned",
        context=context,
    )
    return LanguageModel(config, corpus, tokens=context + 1, **schedule)  # the last token is only predicted


RECIPES = {
    "lexicon-small": _language_model("lexicon", 32, 2, 2, 48, steps=400, learning_rate=1e-2, seed=0),
    "lexicon": _language_model("lexicon", 64, 3, 4, 128, steps=800, seed=0),
    "natural": _language_model("natural", 64, 3, 4, 128, steps=1200, seed=0),
}


def training_text(recipe: LanguageModel) -> Int[Tensor, " N"]:
    """The token ids a language model is trained on, [N]: 400,000 letters of the lexicon, or text not held out."""
    if recipe.corpus == "natural":
        return language.held_out(language.encode(language.natural_text(), language.PRINTABLE))[0]
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    return language.Lexicon().sample(1, 400_000, generator=generator)[0]


def string_losses(model: Transformer, strings: Int[Tensor, "S T"]) -> Float[Tensor, "S T-1"]:
    """−ln of the probability that the model gives to each token after the first, [S, T − 1], in nats."""
    logits = model.stream(model.embedding[strings[:, :-1]])  # [S, T − 1, q]
    return nn.functional.cross_entropy(logits.transpose(1, 2), strings[:, 1:], reduction="none")
