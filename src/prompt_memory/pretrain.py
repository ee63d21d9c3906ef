"""Trains the small frozen models of the book from fixed seeds; `python -m prompt_memory.pretrain --help`.

A *bit reader* is trained to be told something by its prompt: the prompt holds random bits, one query asks for one of
them.  Once frozen it is the friendliest network a prompt could wish for, and shows whether a bound can be attained.
A *language model* is trained to continue strings of one of the two languages, and has never seen a soft prompt.
A *family* of small transformers is trained to recall facts from its context, all members at once.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prompt_memory import language
from prompt_memory.claims import write_bytes
from prompt_memory.recall import Recaller, RecallFamily
from prompt_memory.tasks import grid
from prompt_memory.transformer import Transformer, TransformerConfig


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
        return language.LETTERS if self.corpus == "lexicon" else language.PRINTABLE


Recipe = BitReader | LanguageModel | RecallFamily


class FrozenModel(nn.Module):
    """A frozen transformer, or a family of them; a bit reader's has the queries it was trained to answer, [n, T, d].

    There n = bits·d·m.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.recipe = recipe
        if isinstance(recipe, RecallFamily):
            self.transformer = Recaller(recipe, generator=generator)
            return
        self.transformer = Transformer(recipe.config, generator=generator)
        if isinstance(recipe, LanguageModel):
            return
        d, m, bits = recipe.config.d, recipe.m, recipe.bits
        # a query starts as a code for its token plus one for its coordinate plus one for its bit: unrelated vectors
        # are learned as well, but ten times more slowly
        codes = [torch.randn(*shape, d, generator=generator) for shape in ((m, 1, 1), (1, d, 1), (1, 1, bits))]
        self.queries = nn.Parameter(sum(codes).reshape(-1, 1, d), requires_grad=False)


def _reader(d: int, m: int, bits: int, *, d_v: int, mlp: int, **schedule) -> BitReader:
    config = TransformerConfig(
        d=d, depth=2, heads=2, d_k=d_v, d_v=d_v, mlp=mlp, norm="rms", causal=True, positions="learned", context=m + 2
    )
    return BitReader(config, m, bits, **schedule)


def _language_model(corpus: str, d: int, depth: int, heads: int, context: int, **schedule) -> LanguageModel:
    """The layout of GPT-2, but for rectifiers (as fast as matrix products on a CPU) and fewer biases."""
    config = TransformerConfig(
        d=d,
        q=len(language.LETTERS if corpus == "lexicon" else language.PRINTABLE),
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


RECIPES: dict[str, Recipe] = {
    "bit-reader-small": _reader(8, 2, 1, d_v=8, mlp=64, steps=1000, batch=64, pool=16, seed=1),
    "bit-reader": _reader(16, 8, 1, d_v=16, mlp=128, steps=1200, batch=32, learning_rate=4e-3),
    "lexicon-small": _language_model("lexicon", 32, 2, 2, 48, steps=400, learning_rate=1e-2, seed=0),
    "lexicon": _language_model("lexicon", 64, 3, 4, 128, steps=800, seed=0),
    "natural": _language_model("natural", 64, 3, 4, 128, steps=1200, seed=0),
    "recall-small": RecallFamily(head_sizes=(8,), facts=(8,), copies=1, steps=400, seed=8),
    "recall": RecallFamily(seed=8),
    "recall-long": RecallFamily(steps=2400, seed=9),
}


def bits_of(prompts: Float[Tensor, "R m d"], bits: int) -> Int[Tensor, "R n"]:
    """What a bit reader is asked: the Gray code of each coordinate's place on its grid, [R, bits·d·m].

    In a Gray code neighbouring values differ in one bit, so that every bit is a function of few steps.
    """
    place = ((prompts + 1) * (2**bits - 1) / 2).round().long().flatten(1)  # [R, m d]
    gray = place ^ (place >> 1)
    return (gray[..., None] >> torch.arange(bits)).bitwise_and(1).flatten(1)


def train(recipe: Recipe) -> FrozenModel:
    """Train all weights with Adam and a one-cycle schedule on fresh random batches, then freeze them."""
    model = FrozenModel(recipe)
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    losses = {BitReader: _bit_loss, LanguageModel: _string_loss, RecallFamily: _recall_loss}
    batch_loss = losses[type(recipe)](recipe, generator)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        loss = batch_loss(model, step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return model.requires_grad_(False)


def _recall_loss(recipe: RecallFamily, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
    def batch_loss(model: FrozenModel, step: int) -> Tensor:
        return model.transformer.training_loss(generator)

    return batch_loss


def _bit_loss(recipe: BitReader, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
    values = grid(recipe.bits)

    def batch_loss(model: FrozenModel, step: int) -> Tensor:
        pool = recipe.pool if step >= 0.6 * recipe.steps else 1
        number = torch.randint(len(values), (pool * recipe.batch, recipe.m, recipe.config.d), generator=generator)
        prompts = values[number]
        if pool > 1:
            with torch.no_grad():
                hardness = _losses(model, prompts).amax(1)
            prompts = prompts[hardness.argsort(descending=True)[: recipe.batch]]
        return _losses(model, prompts).mean()

    return batch_loss


def _losses(model: FrozenModel, prompts: Float[Tensor, "R m d"]) -> Float[Tensor, "R n"]:
    logits = model.transformer(prompts, model.queries)  # [R, n, 2]
    wanted = bits_of(prompts, model.recipe.bits)
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)


def _string_loss(recipe: LanguageModel, generator: torch.Generator) -> Callable[[FrozenModel, int], Tensor]:
    ids = training_text(recipe)

    def batch_loss(model: FrozenModel, step: int) -> Tensor:
        start = torch.randint(len(ids) - recipe.tokens, (recipe.batch, 1), generator=generator)
        strings = ids[start + torch.arange(recipe.tokens)]
        return string_losses(model.transformer, strings).mean()

    return batch_loss


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


def save(model: FrozenModel, path: Path) -> None:
    """Write weights, queries and the recipe to a safetensors file; only a complete file gets the name `path`."""
    write_bytes(path, to_bytes(model.state_dict(), {"recipe": json.dumps(asdict(model.recipe))}))


def load(name: str, directory: str | Path | None = None) -> FrozenModel:
    """The frozen model `name`, read from `directory`/name.safetensors, or trained on the spot if `directory` is None.

    ValueError for an unknown name, or a file written by another recipe; FileNotFoundError if there is no file.
    """
    recipe = _recipe(name)
    if directory is None:
        return train(recipe)
    path = Path(directory) / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        if json.loads(file.metadata()["recipe"]) != json.loads(json.dumps(asdict(recipe))):
            raise ValueError(f"{path} was written by another recipe: delete it or run the build again")
    model = FrozenModel(recipe)
    model.load_state_dict(load_file(path))
    model.transformer.require_finite()
    return model


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"unknown model {name!r}: the models of the book are {', '.join(RECIPES)}")
    return RECIPES[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    try:
        recipe = _recipe(arguments.name)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # the thread count changes the last bits
    save(train(recipe), arguments.output)


if __name__ == "__main__":
    main()
