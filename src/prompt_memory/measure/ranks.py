"""The number of coordinates of a prompt that the outputs can see: ranks of Jacobians."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.transformer import Prefix, Transformer


def jacobian(
    outputs: Callable[[Float[Tensor, "R D"]], Float[Tensor, "R N"]],
    coordinates: Float[Tensor, "R D"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "R N D"]:
    """The Jacobians of R independent rows of a batched map, [R, N, D].

    By one forward-mode pass a coordinate, or with `reverse` by one backward pass an output: cheaper where N < D.
    """
    if reverse:
        values, pull = torch.func.vjp(outputs, coordinates)
        cotangents = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        return torch.func.vmap(lambda row: pull(row.expand_as(values))[0], out_dims=1, chunk_size=64)(cotangents)
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
