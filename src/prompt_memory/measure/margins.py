"""Labelings with a margin: how large margins are, and which labelings are memorised at all."""

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import optimize
from torch import Tensor

from prompt_memory.network.transformer import Transformer


def logit_margins(logits: Float[Tensor, "... q"], labels: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """By how much the logit of each label exceeds all others; negative where another class is larger, [...]."""
    wanted = logits.gather(-1, labels[..., None])[..., 0]
    return wanted - logits.scatter(-1, labels[..., None], -torch.inf).amax(-1)


def labels_and_gaps(
    model: Transformer, prompts: Float[Tensor, "N m d"], queries: Tensor, *, own_token: bool = True, chunk: int = 4096
) -> tuple[UInt8[np.ndarray, "N n"], Float[np.ndarray, "N n"]]:
    """For every prompt and query the argmax, and by how much its logit exceeds the second largest, [N, n] each."""
    labels, gaps = [], []
    for part in prompts.split(chunk):
        top = model(part, queries, own_token=own_token).topk(2, -1)  # [R, n, 2]
        labels.append(top.indices[..., 0].to(torch.uint8))
        gaps.append((top.values[..., 0] - top.values[..., 1]).double())
    return torch.cat(labels).numpy(), torch.cat(gaps).numpy()


def best_margins(labels: UInt8[np.ndarray, "N n"], gaps: Float[np.ndarray, "N n"]) -> Float[np.ndarray, " D"]:
    """The largest margin, over prompts, of each of the labelings that they show, in falling order, [D].

    A labeling's margin at a prompt is the least of its gaps over the queries.  `(best_margins(...) > 2 * eps).sum()`
    labelings are memorised with margin 2ε by these prompts: a lower bound on 2^{Mem_2ε} (Theorem 2).
    """
    rows, number = np.unique(labels, axis=0, return_inverse=True)
    best = np.zeros(len(rows))
    np.maximum.at(best, number.ravel(), gaps.min(1))
    return np.sort(best)[::-1]


def choose_queries(
    labels: UInt8[np.ndarray, "N n"], gaps: Float[np.ndarray, "N n"], margin: float, most: int = 64
) -> list[int]:
    """Columns of a pool of queries, at most `most`, chosen one by one so that many labelings have the margin.

    Greedy: each choice makes the number of memorised labelings largest; it ends where none makes it larger.
    """
    clear = gaps > margin
    table = labels.astype(np.int64)
    base = int(table.max()) + 1
    chosen, alive, number, count = [], np.arange(len(labels)), np.zeros(len(labels), dtype=np.int64), 1
    while len(chosen) < most and len(alive):
        codes = number[:, None] * base + table[alive]  # [prompts that are left, n]
        found = [
            int((np.bincount(code[ok], minlength=1) > 0).sum())
            for code, ok in zip(codes.T, clear[alive].T, strict=True)
        ]
        best = int(np.argmax(found))
        if found[best] <= (count if chosen else 0):
            break
        kept = clear[alive, best]
        _, number = np.unique(codes[kept, best], return_inverse=True)
        alive, count = alive[kept], found[best]
        chosen.append(best)
    return chosen


# --- all labelings, by linear programs -----------------------------------------------------------------------------


def largest_margin(
    weights: Float[np.ndarray, "n m"], thresholds: Float[np.ndarray, " n"], signs: Int[np.ndarray, " n"]
) -> float:
    """The largest margin with which values in [−1, 1] give n queries these signs ±1, by a linear program.

    Row i of `weights` is the attention of query i; its reading is weights[i]·v − thresholds[i], its margin twice that
    times its sign.  Negative if no values give all signs.
    """
    n, m = weights.shape  # the largest z with z − y⟨s, v⟩ <= −y t for all queries
    left = np.hstack([-signs[:, None] * weights, np.ones((n, 1))])
    limits = [(-1, 1)] * m + [(None, None)]
    return float(-2 * optimize.linprog(np.r_[np.zeros(m), -1], left, -signs * thresholds, bounds=limits).fun)


def memorised_labelings(
    weights: Float[np.ndarray, "n m"], thresholds: Float[np.ndarray, " n"], margin: float
) -> Int[np.ndarray, "N n"]:
    """All labelings ±1 of n queries that values in [−1, 1] memorise with more than `margin`, [N, n].

    Labelings grow query by query; a part that no values memorise is dropped, so the list is complete.
    """
    kept = np.zeros((1, 0), dtype=int)
    for n in range(1, len(weights) + 1):
        longer = np.concatenate([np.c_[kept, np.full(len(kept), sign)] for sign in (-1, 1)])
        feasible = [largest_margin(weights[:n], thresholds[:n], row) > margin + 1e-9 for row in longer]
        kept = longer[np.array(feasible, dtype=bool)]
    return kept


def price_labelings(scores: Float[np.ndarray, "n q"]) -> tuple[Int[np.ndarray, "N n"], Float[np.ndarray, "N q"]]:
    """All labelings argmax_k(κ_k + b_ik) of n rows b, each with prices κ that give it: one for every count vector.

    For given class counts the labeling is the best assignment, and prices with the largest margin come from a linear
    program.  ValueError if an assignment is not unique (ties among the scores).
    """
    n, q = scores.shape
    spread = float(np.ptp(scores)) + 1
    labels, prices = [], []
    for bars in itertools.combinations(range(n + q - 1), q - 1):
        counts = np.diff([-1, *bars, n + q - 1]) - 1
        classes = np.repeat(np.arange(q), counts)
        row, column = optimize.linear_sum_assignment(scores[:, classes], maximize=True)
        y = classes[column[np.argsort(row)]]
        # the largest z <= 1 with κ_y + b_y >= κ_k + b_k + z for all rows and other classes
        pairs = [(i, k) for i in range(n) for k in range(q) if k != y[i]]
        left, right = np.zeros((len(pairs), q + 1)), np.zeros(len(pairs))
        for line, (i, k) in enumerate(pairs):
            left[line, k], left[line, y[i]], left[line, q] = 1, -1, 1
            right[line] = scores[i, y[i]] - scores[i, k]
        solved = optimize.linprog(
            np.r_[np.zeros(q), -1], left, right, bounds=[(-q * spread, q * spread)] * q + [(None, 1)]
        )
        if solved.x[-1] <= 1e-9:
            raise ValueError(f"the best assignment with the counts {counts.tolist()} is not unique")
        labels.append(y)
        prices.append(solved.x[:q])
    return np.array(labels), np.array(prices)
