"""What every frozen network of the book shares: training with Adam, freezing, and files of weights."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prompt_memory.files import write_bytes


class Recipe(Protocol):
    """A frozen dataclass from whose fields the weights follow: how to build a network and what to train it on."""

    steps: int
    learning_rate: float
    seed: int

    def network(self, generator: torch.Generator) -> nn.Module:
        """The untrained network."""

    def initial_queries(self, generator: torch.Generator) -> Float[Tensor, "n T d"] | None:
        """Queries that are trained with the network, [n, T, d]; None if there are none."""

    def batch_loss(self, generator: torch.Generator) -> Callable[["FrozenModel", int], Tensor]:
        """A function of the model and the step (from 0) that draws a batch and returns its loss."""


class FrozenModel(nn.Module):
    """A frozen network and the recipe of its training; a bit reader's has the queries that it was trained to answer."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.recipe = recipe
        self.transformer = recipe.network(generator)
        queries = recipe.initial_queries(generator)
        if queries is not None:
            self.queries = nn.Parameter(queries, requires_grad=False)


def train(recipe: Recipe) -> FrozenModel:
    """Train all weights with Adam and a one-cycle schedule on fresh random batches, then freeze them."""
    model = FrozenModel(recipe)
    model.requires_grad_(True)
    batch_loss = recipe.batch_loss(torch.Generator().manual_seed(recipe.seed + 1))
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        loss = batch_loss(model, step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return model.requires_grad_(False)


def train_to_file(recipe: Recipe, path: Path) -> None:
    """Train on one thread, in this whole process (the thread count changes the last bits), and `save`."""
    torch.set_num_threads(1)
    save(train(recipe), path)


def save(model: FrozenModel, path: Path) -> None:
    """Write weights, queries and the recipe to a safetensors file; only a complete file gets the name `path`."""
    write_bytes(path, to_bytes(model.state_dict(), {"recipe": json.dumps(asdict(model.recipe))}))


def read(recipe: Recipe, path: Path) -> FrozenModel:
    """The model in the file `path`.

    ValueError for a file written by another recipe, or with weights that are not finite; FileNotFoundError if there is
    no file.
    """
    with safe_open(path, framework="pt") as file:
        if json.loads(file.metadata()["recipe"]) != json.loads(json.dumps(asdict(recipe))):
            raise ValueError(f"{path} was written by another recipe: delete it or run the build again")
    model = FrozenModel(recipe)
    model.load_state_dict(load_file(path))
    model.transformer.require_finite()
    return model
