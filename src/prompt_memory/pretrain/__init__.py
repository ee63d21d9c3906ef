"""The small frozen networks of the book, trained from fixed seeds: bit readers, language models, recalling families.

One module a family; `python -m prompt_memory.pretrain --help` trains one network and writes its weights.
"""

import argparse
from pathlib import Path

from prompt_memory.pretrain import bit_reader, deep_recall, language, recall
from prompt_memory.pretrain.bit_reader import BitReader, bits_of
from prompt_memory.pretrain.deep_recall import DeepRecall
from prompt_memory.pretrain.frozen import FrozenModel, Recipe, read, save, train, train_to_file
from prompt_memory.pretrain.language import LanguageModel, string_losses, training_text
from prompt_memory.pretrain.recall import RecallFamily

# What a network's weights depend on is in its family's module and what that imports, never in this file: the build
# trains again what has changed.
RECIPES: dict[str, Recipe] = bit_reader.RECIPES | language.RECIPES | recall.RECIPES | deep_recall.RECIPES


def load(name: str, directory: str | Path | None = None) -> FrozenModel:
    """The frozen model `name`, read from `directory`/name.safetensors, or trained on the spot if `directory` is None.

    ValueError for an unknown name, or a file written by another recipe; FileNotFoundError if there is no file.
    """
    recipe = _recipe(name)
    return train(recipe) if directory is None else read(recipe, Path(directory) / f"{name}.safetensors")


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"unknown model {name!r}: the models of the book are {', '.join(RECIPES)}")
    return RECIPES[name]


def main() -> None:
    """Command line: train one network and write its weights."""
    parser = argparse.ArgumentParser(description="Trains a small frozen network of the book from its fixed seed.")
    parser.add_argument("name", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    try:
        recipe = _recipe(arguments.name)
    except ValueError as error:
        parser.error(str(error))
    train_to_file(recipe, arguments.output)
