"""How many facts the members of a recalling family recall from contexts of random facts, and where that falls.

Shapes at the end of a line: `R` members, `C` contexts, `N` facts in a context, `n` queries, `q` values, `M` margins,
`L` lengths.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from prompt_memory import intervals
from prompt_memory.measure.fact_moments import mean_votes
from prompt_memory.network.recall import Reader, Recaller, reader, sharper, vote_spread
from prompt_memory.tasks.facts import keys_of, random_facts


class Measured(NamedTuple):
    """Contexts of one length with n questions each; every question is asked with each of the q values as the truth.

    Exact over the value asked for, all else being equal, so that `recall` is an average of conditional probabilities.
    """

    recall: Float[np.ndarray, "R C M"]  # fraction recalled by more than each margin
    calibrated: Float[np.ndarray, "R C"]  # fraction with the largest logit once the mean vote is subtracted
    attention: Float[np.ndarray, " R"]  # largest weight of a token over 1/(1 + (N − 1)e^{−Δ}), Δ of its query
    excess: Float[np.ndarray, " R"]  # effect of a fact's value on its margin, less its spread times its weight: largest
    tight: Float[np.ndarray, " R"]  # the same as a ratio, largest where the product is at least a tenth
    diluted: Int[np.ndarray, "R M"]  # questions with spread times weight at most twice the margin
    values: Int[np.ndarray, "R M"]  # the largest number of values that one of them recalls (0: there are none)


def measure_recall(
    family: Recaller,
    N: int,
    contexts: int,
    queries: int,
    margins,
    *,
    generator: torch.Generator,
    sharpen: Float[np.ndarray, " R"] | None = None,
    members: list[int] | None = None,
) -> Measured:
    """Run members on random contexts of N facts and ask for the first `queries` of them, float32.

    All members see the same draws.  `sharpen` multiplies a member's softmax logits (default: 1).
    """
    members = list(range(len(family.members))) if members is None else members
    factors = np.ones(len(family.members)) if sharpen is None else np.asarray(sharpen)
    shape = (len(members), len(margins))
    recall, calibrated = np.zeros((len(members), contexts, len(margins))), np.zeros((len(members), contexts))
    attention, tight = np.zeros(len(members)), np.zeros(len(members))
    excess = np.full(len(members), -np.inf)
    diluted, values = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    exact = [sharper(reader(family, member), factors[member]) for member in members]
    single = [Reader(*(part.float() for part in r)) for r in exact]
    margin = torch.tensor(margins, dtype=torch.float32)
    for c in range(contexts):
        normal, chosen = random_facts(generator, N, family.width)
        for row, member in enumerate(members):
            h, q, *_ = family.members[member]
            asked = _ask(single[row], keys_of(normal, h), (chosen * q).long(), min(queries, N))
            lead = _lead(asked.logits)  # [n, q]
            right = lead[..., None] > margin  # [n, q, M]
            recall[row, c] = right.float().mean((0, 1)).numpy()
            mean = torch.from_numpy(mean_votes(exact[row], asked.x)) * (N - 1)
            shift = (mean[:, None] * (-asked.top[..., None]).exp()).float() / asked.total[..., None]
            calibrated[row, c] = float((_lead(asked.logits - shift) > 0).float().mean())
            attention[row] = max(attention[row], asked.attention)
            reach = vote_spread(single[row], asked.x) * asked.weight
            effect = _influence(asked.logits)
            excess[row] = max(excess[row], float((effect - reach).max()))
            tight[row] = max(tight[row], float((effect / reach * (reach > 0.1)).max()))
            small = reach[:, None] <= 2 * margin * (1 - 1e-4)  # [n, M]; rounding may not decide
            diluted[row] += small.sum(0).numpy()
            values[row] = np.maximum(values[row], (right.sum(1) * small).amax(0).numpy())
    return Measured(recall, calibrated, attention, excess, tight, diluted, values)


class _Asked(NamedTuple):
    x: Tensor  # queries [n, h]
    logits: Tensor  # [n, q, q]: outputs if the fact had each of the values
    total: Tensor  # [n, q]: sum of attention, relative to e^top
    top: Tensor  # [n, 1]
    weight: Tensor  # [n]: the fact's largest weight over the values it might have
    attention: float


def _ask(r: Reader, keys: Tensor, labels: Tensor, n: int) -> _Asked:
    N, x, at = len(keys), keys[:n], torch.arange(n)
    scores = r.scores(x, keys, labels)
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    own = ((x @ r.by_key) * x).sum(1, keepdim=True) + x @ r.by_value  # [n, v]
    top = torch.maximum(high, own.amax(1, keepdim=True))
    e = scores.sub_(top).exp_()
    highest = e.amax(1)
    e[at, at] = 0
    rest, own = e.sum(1, keepdim=True), (own - top).exp()
    total = rest + own  # [n, v]
    residual = x @ r.residual
    facts = (x @ r.key_votes + residual)[:, None] + r.value_votes  # [n, v, c]
    summed = e @ r.votes(keys, labels) + rest * residual
    logits = (summed[:, None] + own[..., None] * facts) / total[..., None]
    ceiling = 1 / (1 + (N - 1) * (low - high).exp()[:, 0])
    attention = float((highest / total[at, labels[:n]] / ceiling).max())
    return _Asked(x, logits, total, top, (own / total).amax(1), attention)


def _lead(logits: Float[Tensor, "n q q"]) -> Float[Tensor, "n q"]:
    """By how much the logit of the true value exceeds the others, for each true value."""
    own = logits.diagonal(dim1=1, dim2=2)
    return own - (logits - torch.diag_embed(torch.full_like(own, torch.inf))).amax(-1)


def _influence(logits: Float[Tensor, "n q q"]) -> Float[Tensor, " n"]:
    """max over values y, y' of (F_y − F_y') with the truth y less the same with the truth y'."""
    own = logits.diagonal(dim1=1, dim2=2)
    return (own[:, :, None] + own[:, None] - logits - logits.transpose(1, 2)).amax((1, 2))


def critical_length(lengths, recall: Float[np.ndarray, "*B L"], level: float = 0.5):
    """The first N at which recall falls to `level`, interpolated linearly in log N; an array for many curves.

    Infinite where it does not within `lengths`, and the shortest length where it starts at or below the level: both
    ends are open.
    """
    logs, recall = np.log(np.asarray(lengths, float)), np.asarray(recall, float)
    below = recall <= level
    falls = below.any(-1) & ~below[..., 0]  # between two of the lengths
    at = np.maximum(below.argmax(-1), 1)[..., None]
    high, low = (np.take_along_axis(recall, i, -1)[..., 0] for i in (at - 1, at))
    share = np.divide(high - level, high - low, out=np.zeros(falls.shape), where=falls)
    found = np.exp((1 - share) * logs[at - 1][..., 0] + share * logs[at][..., 0])
    found = np.where(falls, found, np.where(below[..., 0], np.exp(logs[0]), np.inf))
    return float(found) if found.ndim == 0 else found


def critical_interval(draws: Float[np.ndarray, "B *P"], lengths, **how) -> tuple[np.ndarray, np.ndarray]:
    """`intervals.simultaneous` for critical lengths, whose ends are open beyond the lengths that were run."""
    low, high = intervals.simultaneous(draws, **how)
    return np.where(low <= lengths[0], 0.0, np.minimum(low, lengths[-1])), high


def retained(lengths, recall: Float[np.ndarray, "*B L"], q: int) -> Float[np.ndarray, "*B L"]:
    """N R_q(1 − a) in bits, for the recall a at each length N; as `bounds.rate`, for whole arrays."""
    a = np.maximum(np.asarray(recall, float), 1 / q)  # below chance nothing is counted
    bits = math.log2(q) + (special.xlogy(a, a) + special.xlog1py(1 - a, -a) - (1 - a) * math.log(q - 1)) / math.log(2)
    return np.asarray(lengths) * np.maximum(bits, 0)
