"""What was memorised: behaviours, recall, and the number of coordinates of a prompt that the outputs can see."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prompt_memory.transformer import Prefix, Transformer

# --- behaviours and recall -----------------------------------------------------------------------------------------


def behaviours(
    model: Transformer,
    prompts: Callable[[Int[Tensor, " R"]], Float[Tensor, "R m d"]],
    count: int,
    queries: Tensor,
    *,
    chunk: int = 1024,
) -> UInt8[np.ndarray, "N n"]:
    """The table of argmaxes of the prompts numbered 0 … count − 1, [N, n]; `prompts` turns numbers into prompts."""
    model.require_finite()
    if model.config.q > 256:
        raise ValueError(f"a behaviour is stored in bytes, so q must be at most 256, not {model.config.q}")
    table = np.empty((count, len(queries)), dtype=np.uint8)
    for start in range(0, count, chunk):
        numbers = torch.arange(start, min(start + chunk, count))
        table[start : start + chunk] = model(prompts(numbers), queries).argmax(-1).to(torch.uint8).numpy()
    return table


def distinct(table: UInt8[np.ndarray, "N n"]) -> UInt8[np.ndarray, "D n"]:
    """The different rows of a table of behaviours, [D, n], in lexicographic order."""
    rows = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1])))[:, 0]
    return np.unique(rows).view(np.uint8).reshape(-1, table.shape[1])


def best_recall(
    table: UInt8[np.ndarray, "D n"], labels: Int[Tensor, "S n"], q: int, *, chunk: int = 2**15
) -> Float[np.ndarray, " S"]:
    """The largest fraction of each labeling that some row of the table recalls, [S].

    Exact: every row is compared with every labeling, as one matrix product of one-hot codes.
    """
    n = labels.shape[1]
    if labels.numel() and not 0 <= labels.min() <= labels.max() < q:
        raise ValueError(f"labels must lie in 0 … {q - 1}")
    wanted = torch.nn.functional.one_hot(labels, q).flatten(1).to(torch.float32)  # [S, n q]
    best = torch.zeros(len(labels))
    for start in range(0, len(table), chunk):
        rows = torch.from_numpy(table[start : start + chunk].astype(np.int64))
        shown = torch.nn.functional.one_hot(rows, q).flatten(1).to(torch.float32)  # [chunk, n q]
        best = torch.maximum(best, (wanted @ shown.T).amax(1))
    return (best / n).double().numpy()


def recall(logits: Float[Tensor, "R n q"], labels: Int[Tensor, "R n"]) -> Float[Tensor, " R"]:
    """The fraction of labels that are the argmax of their logits, [R]; a tie is recalled only by the first class."""
    return (logits.argmax(-1) == labels).double().mean(-1)


# --- ranks ---------------------------------------------------------------------------------------------------------


def jacobian(
    outputs: Callable[[Float[Tensor, "R D"]], Float[Tensor, "R N"]], coordinates: Float[Tensor, "R D"]
) -> Float[Tensor, "R N D"]:
    """The Jacobians of R independent rows of a batched map, by one forward-mode pass a coordinate, [R, N, D]."""
    directions = torch.eye(coordinates.shape[1], dtype=coordinates.dtype, device=coordinates.device)

    def column(direction: Float[Tensor, " D"]) -> Float[Tensor, "R N"]:
        return torch.func.jvp(outputs, (coordinates,), (direction.expand_as(coordinates),))[1]

    return torch.func.vmap(column, out_dims=-1, chunk_size=64)(directions)


def prompt_jacobian(
    model: Transformer, prompt: Float[Tensor, "m d"] | Prefix, queries: Tensor, *, own_token: bool = True
) -> Float[Tensor, "N D"]:
    """DΦ at one prompt in float64: N = n·q outputs by D coordinates, [N, D].

    `prompt` is a soft prompt, [m, d] or [1, m, d], or a `Prefix` of one run (R = 1).
    ValueError if weights, prompt, queries or outputs are not finite, or if there are no queries.
    """
    model = copy.deepcopy(model.require_finite()).double()
    queries = queries.double() if queries.is_floating_point() else queries
    soft = not isinstance(prompt, Prefix)
    parts = [prompt.double()[None] if prompt.ndim == 2 else prompt.double()] if soft else [p.double() for p in prompt]
    if any(len(part) != 1 for part in parts):
        raise ValueError(f"the Jacobian is that of one prompt, not of a batch of {len(parts[0])}")
    for name, values in (("prompt", torch.cat([part.flatten() for part in parts])), ("queries", queries)):
        if not torch.isfinite(values).all():
            raise ValueError(f"the {name} hold NaN or infinite entries")
    if not len(queries):
        raise ValueError("at least one query is needed")
    sizes = [part[0].numel() for part in parts]

    def outputs(flat: Float[Tensor, "R D"]) -> Float[Tensor, "R N"]:
        shaped = [p.unflatten(-1, part.shape[1:]) for p, part in zip(flat.split(sizes, -1), parts, strict=True)]
        return model(shaped[0] if soft else Prefix(*shaped), queries, own_token=own_token).flatten(1)

    J = jacobian(outputs, torch.cat([part.flatten(1) for part in parts], -1))[0]
    if not torch.isfinite(J).all():
        raise ValueError("the outputs or their derivatives hold NaN or infinite entries: a norm divides by zero here")
    return J


def singular_values(
    model: Transformer, prompt: Float[Tensor, "m d"] | Prefix, queries: Tensor, *, own_token: bool = True
) -> Float[np.ndarray, " k"]:
    """The singular values of DΦ at one prompt, in float64, over the largest one, [min(N, D)].

    All are 0 if the largest is below 1e-12: such a Jacobian holds nothing but rounding.
    """
    values = torch.linalg.svdvals(prompt_jacobian(model, prompt, queries, own_token=own_token)).numpy()
    return values / values[0] if values[0] > 1e-12 else np.zeros_like(values)


def jacobian_rank(
    model: Transformer,
    prompt: Float[Tensor, "m d"] | Prefix,
    queries: Tensor,
    *,
    tolerance: float = 1e-9,
    own_token: bool = True,
) -> int:
    """rank DΦ at one prompt: the singular values above `tolerance` times the largest, in float64 (Theorem 3).

    The rank at any prompt is a lower bound on D_eff, and equals it at almost every prompt.  Returns an int.
    ValueError if weights, prompt or queries are not finite or `tolerance` is outside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, not {tolerance}")
    return int((singular_values(model, prompt, queries, own_token=own_token) > tolerance).sum())
