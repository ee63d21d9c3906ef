"""The rank of the derivative at a prompt, for networks whose Jacobian is too large to be written down."""

import copy
import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.checks import integers
from prompt_memory.network.transformer import Transformer
from prompt_memory.real.models import WrappedNetwork


class Sketch(NamedTuple):
    """What `sketched_rank` found: the rank, and the singular values of the sketch over the largest of them.

    `gap` is the smallest value that was counted over the largest that was not (infinite if there is none): a rank
    with a gap of a few units only depends on the tolerance.  `complete` is False if the sketch ended at `most` rows
    with more than half of its values above the tolerance: then the rank is a lower bound.
    """

    rank: int
    values: Float[Tensor, " k"]
    rows: int
    gap: float
    complete: bool


def sketched_rank(
    model: WrappedNetwork | Transformer,
    prompt: Float[Tensor, "m d"],
    queries: Tensor,
    *,
    tolerance: float = 1e-9,
    rows: int = 64,
    most: int | None = None,
    read: Literal["last", "all"] = "last",
    dtype: torch.dtype | None = torch.float64,
    chunk: int = 16,
    generator: torch.Generator,
) -> Sketch:
    """rank DΦ at one prompt without the Jacobian J, [N, D]: from k products with its transpose (Theorem 3).

    S has k rows of standard normal numbers; S J, [k, D], takes one reverse pass a row.  Its rank is min(k, rank J) with
    probability one, and never more than rank J.  If the r largest singular values of J stand clear, each of theirs in
    S J/√k is at least 1 − √(r/k) − t/√k times the original with probability 1 − e^{−t²/2}, so k doubles from `rows`
    until at most half of the values exceed `tolerance` times the largest: then these factors are near 0.3 and above.
    All N rows of J itself are taken where they are no more than k.  `most` bounds k.

    Queries as in `forward`: token ids [n, T] or vectors; with `read="all"` every token of a query is read, so that
    strings are queries.  In float64 (`dtype=None`: the model's own numbers; choose the tolerance accordingly).
    ValueError if something is not finite or out of range.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, not {tolerance}")
    integers(rows=rows, chunk=chunk, most=1 if most is None else most)
    model, prompt, queries = _checked(model, prompt, queries, dtype)
    with torch.no_grad():
        N, D = model(prompt, queries, read=read).numel(), prompt.numel()

    def products(weights: Float[Tensor, "k N"]) -> Float[Tensor, "k D"]:
        return torch.cat([_product(model, prompt, queries, read, some) for some in weights.split(chunk)])

    limit = min(N, 2 * D, N if most is None else most)
    sketch = prompt.new_zeros(0, D)
    while True:
        k = min(rows, limit)
        sketch = products(torch.eye(N).to(prompt)) if k == N else _more_rows(sketch, products, k, N, chunk, generator)
        if not torch.isfinite(sketch).all():
            raise ValueError("the outputs or their derivatives hold NaN or infinite entries")
        values = torch.linalg.svdvals(sketch if k == N else sketch / math.sqrt(k)).cpu()
        values = values / values[0] if values[0] > 1e-12 else torch.zeros_like(values)
        rank = int((values > tolerance).sum())
        complete = k == N or k == 2 * D or 2 * rank <= k
        if complete or k == limit:
            return Sketch(rank, values, k, _gap(values, rank), complete)
        rows = 2 * k


def _checked(model, prompt, queries, dtype):
    """The model in the number format, the prompt as a batch of one, the queries; ValueError unless they are finite."""
    model.require_finite()
    if dtype is not None and getattr(model, "dtype", model.embedding.dtype) != dtype:
        try:
            model = copy.deepcopy(model).to(dtype)
        except RuntimeError as error:  # some networks keep what they computed last
            raise ValueError(f"the network cannot be copied to {dtype}: load it in that format") from error
    device, number = model.embedding.device, model.embedding.dtype
    prompt = (prompt[None] if prompt.ndim == 2 else prompt).to(model.embedding)
    queries = (queries.to(number) if queries.is_floating_point() else queries).to(device)
    if len(prompt) != 1:
        raise ValueError(f"the rank is that of one prompt, not of a batch of {len(prompt)}")
    if not torch.isfinite(prompt).all() or (queries.is_floating_point() and not torch.isfinite(queries).all()):
        raise ValueError("the prompt and the queries must be finite")
    if not len(queries):
        raise ValueError("at least one query is needed")
    return model, prompt, queries


def _product(model, prompt, queries, read, weights: Float[Tensor, "k N"]) -> Float[Tensor, "k D"]:
    """weights @ J: the k gradients of weighted sums of the outputs, in one reverse pass."""
    copies = prompt.expand(len(weights), -1, -1).clone().requires_grad_()
    with torch.enable_grad():
        outputs = model(copies, queries, read=read).flatten(1)
        (gradient,) = torch.autograd.grad((outputs * weights).sum(), copies)
    return gradient.flatten(1)


def _more_rows(sketch: Float[Tensor, "j D"], products, k: int, N: int, chunk: int, generator) -> Float[Tensor, "k D"]:
    """The sketch with normal rows added until there are k, a few at a time: each has N numbers."""
    while len(sketch) < k:
        fresh = torch.randn(min(chunk, k - len(sketch)), N, generator=generator, dtype=torch.float64)
        sketch = torch.cat([sketch, products(fresh.to(sketch))])
    return sketch


def _gap(values: Float[Tensor, " k"], rank: int) -> float:
    """The smallest value that was counted over the largest that was not."""
    left = float(values[rank]) if rank < len(values) else 0.0
    return float(values[rank - 1]) / left if rank and left else math.inf
