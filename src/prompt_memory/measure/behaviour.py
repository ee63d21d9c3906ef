"""Behaviours, the tables of argmaxes that prompts show, and recall, how much of a labeling they get right."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prompt_memory import bounds
from prompt_memory.checks import integers
from prompt_memory.network.transformer import Transformer
from prompt_memory.tasks import grid_prompts


def behaviours(
    model: Transformer,
    prompts: Callable[[Int[Tensor, " R"]], Float[Tensor, "R m d"]],
    count: int,
    queries: Tensor,
    *,
    chunk: int = 256,
) -> UInt8[np.ndarray, "N n"]:
    """The table of argmaxes of the prompts numbered 0 … count − 1, [N, n]; `prompts` turns numbers into prompts.

    Chunks are small enough for what a layer computes to stay in a processor's cache: larger ones take twice as long.
    """
    model.require_finite()
    if model.config.q > 256:
        raise ValueError(f"a behaviour is stored in bytes, so q must be at most 256, not {model.config.q}")
    table = np.empty((count, len(queries)), dtype=np.uint8)
    for start in range(0, count, chunk):
        numbers = torch.arange(start, min(start + chunk, count))
        table[start : start + chunk] = model(prompts(numbers), queries).argmax(-1).to(torch.uint8).numpy()
    return table


def behaviour_pairs(
    model: Transformer,
    prompts: Callable[[Int[Tensor, " R"]], Float[Tensor, "R m d"]],
    numbers: Int[Tensor, " K"],
    queries: Tensor,
    *,
    generator: torch.Generator,
) -> int:
    """How many different pairs (prompt, behaviour) are seen when the prompts with these numbers are run twice.

    The second time prompts and queries come in another order and batches have another size.  A network whose answer is
    a function of prompt and query shows K pairs; one that lets a batch leak into an answer shows more.
    """
    order, asked = torch.randperm(len(numbers), generator=generator), torch.randperm(len(queries), generator=generator)
    once = behaviours(model, lambda i: prompts(numbers[i]), len(numbers), queries, chunk=512)
    again = behaviours(model, lambda i: prompts(numbers[order[i]]), len(numbers), queries[asked], chunk=199)
    differ = (once[order.numpy()][:, asked.numpy()] != again).any(1)
    return len(numbers) + int(differ.sum())


def distinct(table: UInt8[np.ndarray, "N n"]) -> UInt8[np.ndarray, "D n"]:
    """The different rows of a table of behaviours, [D, n], in lexicographic order."""
    return first_occurrences(table)[0]


def first_occurrences(
    table: UInt8[np.ndarray, "N n"],
) -> tuple[UInt8[np.ndarray, "D n"], Int[np.ndarray, " D"]]:
    """The different rows of a table, [D, n], and for each the number of the first row that equals it, [D]."""
    rows = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1])))[:, 0]
    different, first = np.unique(rows, return_index=True)
    return different.view(np.uint8).reshape(-1, table.shape[1]), first


# --- all prompts on a fine grid ------------------------------------------------------------------------------------


def grid_behaviours(
    model: Transformer,
    prompt: Float[Tensor, "m d"],
    queries: Tensor,
    *,
    coordinates: int,
    bits: int,
    radius: float = 1.0,
    own_token: bool = True,
    chunk: int = 1024,
) -> UInt8[np.ndarray, "*grid n"]:
    """The answers to n queries of all prompts that differ from `prompt` in the first D coordinates of its first token.

    Those take the values radius·(2k/2^bits − 1), k = 0 … 2^bits − 1, which contain the same grid with fewer bits.
    Returns argmaxes in an array of D axes of length 2^bits and one of length n.
    ValueError if D is not between 1 and d, if bits < 1, or if q > 256.
    """
    model.require_finite()
    if not 1 <= coordinates <= prompt.shape[1] or bits < 1:
        raise ValueError(f"give 1 to {prompt.shape[1]} coordinates and bits >= 1, not {coordinates} and {bits}")
    if model.config.q > 256:
        raise ValueError(f"an answer is stored in a byte, so q must be at most 256, not {model.config.q}")
    values = radius * (2 * torch.arange(2**bits, dtype=prompt.dtype) / 2**bits - 1)
    count = 2 ** (bits * coordinates)
    table = np.empty((count, len(queries)), dtype=np.uint8)
    for start in range(0, count, chunk):
        index = torch.arange(start, min(start + chunk, count))
        prompts = prompt.repeat(len(index), 1, 1)
        prompts[:, 0, :coordinates] = grid_prompts(index, coordinates, 1, values)[:, 0]
        answers = model(prompts, queries, own_token=own_token).argmax(-1)
        table[start : start + chunk] = answers.to(torch.uint8).numpy()
    return table.reshape(*(2**bits,) * coordinates, len(queries))


def grid_bits(table: UInt8[np.ndarray, "*grid n"], bits: int, n: int) -> float:
    """log2 of the different behaviours on the first n queries of the sub-grid with `bits` bits a coordinate, in bits.

    ValueError if the grid of `grid_behaviours` is coarser than that.
    """
    if bits < 0 or 2**bits > table.shape[0]:
        raise ValueError(f"the grid has {table.shape[0]} values a coordinate, fewer than 2^{bits}")
    every = slice(None, None, table.shape[0] // 2**bits)
    rows = table[(every,) * (table.ndim - 1)][..., :n].reshape(-1, n)
    return float(np.log2(len(distinct(rows))))


# --- recall --------------------------------------------------------------------------------------------------------


def best_recall(
    table: UInt8[np.ndarray, "D n"], labels: Int[Tensor, "S n"], q: int, *, chunk: int = 2**15
) -> Float[np.ndarray, " S"]:
    """The largest fraction of each labeling that some row of the table recalls, [S].

    Exact: every row is compared with every labeling, as one matrix product of one-hot codes.
    """
    n = labels.shape[1]
    if labels.numel() and not 0 <= labels.min() <= labels.max() < q:
        raise ValueError(f"labels must lie in 0 … {q - 1}")

    def codes(rows: Int[Tensor, "N n"]) -> Float[Tensor, "N nq"]:
        """One-hot codes in float32: `one_hot` would make them eight bytes a number first."""
        return torch.zeros(*rows.shape, q).scatter_(2, rows[..., None], 1.0).flatten(1)

    wanted, best = codes(labels), torch.zeros(len(labels))
    for start in range(0, len(table), chunk):
        shown = codes(torch.from_numpy(table[start : start + chunk].astype(np.int64)))
        best = torch.maximum(best, (wanted @ shown.T).amax(1))
    return (best / n).double().numpy()


def recall(logits: Float[Tensor, "R n q"], labels: Int[Tensor, "R n"]) -> Float[Tensor, " R"]:
    """The fraction of labels that are the argmax of their logits, [R]; a tie is recalled only by the first class."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def retained_bits(recall: float, labels: int, q: int = 2) -> float:
    """labels·R_q(1 − a), the bits about uniform labels that a recall of a = `recall` proves (Theorem 1, part 2).

    At most what is really retained if a is a mean over prompts and labelings, by convexity of R_q.
    ValueError unless recall is a fraction and labels an integer >= 1.
    """
    return integers(labels=labels)[0] * bounds.rate(1 - float(recall), q)
