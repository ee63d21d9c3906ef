"""Trains the small frozen models of the book from fixed seeds; `python -m prompt_memory.pretrain --help`.

A *bit reader* is trained to be told something by its prompt: the prompt holds random bits, one query asks for one of
them.  Once frozen it is the friendliest network a prompt could wish for, and shows whether a bound can be attained.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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


class FrozenModel(nn.Module):
    """A frozen transformer with the queries it was trained to answer, `queries` [n, T, d], n = bits·d·m."""

    def __init__(self, recipe: BitReader):
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.recipe = recipe
        self.transformer = Transformer(recipe.config, generator=generator)
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


def train(recipe: BitReader) -> FrozenModel:
    """Train weights and queries together on fresh random prompts with Adam and a cosine schedule, then freeze them."""
    model = FrozenModel(recipe)
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    values = grid(recipe.bits)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        pool = recipe.pool if step >= 0.6 * recipe.steps else 1
        number = torch.randint(len(values), (pool * recipe.batch, recipe.m, recipe.config.d), generator=generator)
        prompts = values[number]
        if pool > 1:
            with torch.no_grad():
                hardness = _losses(model, prompts).amax(1)
            prompts = prompts[hardness.argsort(descending=True)[: recipe.batch]]
        adam.zero_grad()
        _losses(model, prompts).mean().backward()
        adam.step()
        schedule.step()
    return model.requires_grad_(False)


def _losses(model: FrozenModel, prompts: Float[Tensor, "R m d"]) -> Float[Tensor, "R n"]:
    logits = model.transformer(prompts, model.queries)  # [R, n, 2]
    wanted = bits_of(prompts, model.recipe.bits)
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)


def save(model: FrozenModel, path: Path) -> None:
    """Write weights, queries and the recipe to a safetensors file; only a complete file gets the name `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(model.state_dict(), partial, metadata={"recipe": json.dumps(asdict(model.recipe))})
    partial.replace(path)


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
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    model = FrozenModel(recipe)
    model.load_state_dict(state)
    model.transformer.require_finite()
    return model


def _recipe(name: str) -> BitReader:
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
