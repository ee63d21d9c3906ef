"""A family of small transformers that recall facts from their context, and what becomes of them when it grows.

One token holds one fact: a key, a unit vector drawn at random, side by side with the code of one of q values.  A query
is a key alone.  One attention layer (one head, no norm, no token-wise network; the query sees the context only) reads
the value.  All members of the family are trained at once: their weights are stacked, [R, …].

Shapes at the end of a line: `R` members, `C` contexts, `N` facts in a context, `n` queries, `q` values, `d` width.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor, nn

from prompt_memory.transformer import Transformer, TransformerConfig, require_finite


@dataclass(frozen=True)
class RecallFamily:
    """Recipe: one member for every head size, number of values, number of facts in training, and copy.

    Keys are unit vectors in as many dimensions as the head has.  Each of `steps` batches holds, for every member,
    `batch` new contexts with `queries` questions each.
    """

    head_sizes: tuple[int, ...] = (8, 12, 16)
    values: tuple[int, ...] = (4, 16)
    facts: tuple[int, ...] = (8, 32)
    copies: int = 2
    d_v: int = 16
    steps: int = 600
    batch: int = 32
    queries: int = 16
    learning_rate: float = 1e-2
    seed: int = 0

    @property
    def members(self) -> list["Member"]:
        return [
            Member(*each) for each in itertools.product(self.head_sizes, self.values, self.facts, range(self.copies))
        ]


class Member(NamedTuple):
    """What distinguishes one member: dimension of head and keys, number q of values, facts in training, copy."""

    head: int
    q: int
    facts: int
    copy: int


class Recaller(nn.Module):
    """The family's weights: tokens [key, value code] of width d, the largest head size plus the largest q."""

    def __init__(self, recipe: RecallFamily, *, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(recipe.seed)
        self.recipe, self.members = recipe, recipe.members
        R, self.width, self.q = len(self.members), max(recipe.head_sizes), max(recipe.values)
        self.d = self.width + self.q
        shapes = {
            "query": (self.d, self.width),
            "key": (self.d, self.width),
            "value": (self.d, recipe.d_v),
            "output": (recipe.d_v, self.d),
            "unembedding": (self.d, self.q),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(R, *shape, generator=generator) / shape[0] ** 0.5))
        self.requires_grad_(False)
        heads, values, facts = (torch.tensor(column) for column in list(zip(*self.members, strict=True))[:3])
        self.heads, self.values, self.facts = heads[:, None], values[:, None], facts[:, None]

    def require_finite(self) -> "Recaller":
        """Return self; ValueError that names the first weight holding NaN or infinity."""
        return require_finite(self)

    def forward(
        self, keys: Float[Tensor, "R C N w"], labels: Int[Tensor, "R C N"], asked: Float[Tensor, "R C n w"]
    ) -> Float[Tensor, "R C n q"]:
        """Logits of every member in its own contexts; −∞ for values that the member does not have.

        Facts beyond the number in a member's training are not seen: this is the training pass.
        """
        tokens = torch.cat([keys, F.one_hot(labels, self.q).to(keys.dtype)], -1)
        queries = F.pad(asked, (0, self.q))
        used = torch.arange(self.width) < self.heads  # [R, w]
        scale = used / self.heads**0.5
        q = torch.einsum("rcnd,rdh->rcnh", queries, self.query * scale[:, None])
        k, v = (torch.einsum("rcnd,rdh->rcnh", tokens, weight) for weight in (self.key, self.value))
        scores = q @ k.transpose(-1, -2)
        seen = torch.arange(keys.shape[2]) < self.facts  # [R, N]
        mixed = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1) @ v
        x = queries + torch.einsum("rcnv,rvd->rcnd", mixed, self.output)
        logits = torch.einsum("rcnd,rdq->rcnq", x, self.unembedding)
        has = torch.arange(self.q) < self.values
        return logits.masked_fill(~has[:, None, None], -torch.inf)

    def training_loss(self, generator: torch.Generator) -> Tensor:
        """Cross-entropy of one batch, averaged over members, each on its own new contexts and questions."""
        r, R = self.recipe, len(self.members)
        most = int(self.facts.max())
        keys = torch.randn(R, r.batch, most, self.width, generator=generator)
        keys = F.normalize(keys * (torch.arange(self.width) < self.heads)[:, None, None], dim=-1)
        labels = (torch.rand(R, r.batch, most, generator=generator) * self.values[..., None]).long()
        asked = (torch.rand(R, r.batch, r.queries, generator=generator) * self.facts[..., None]).long()
        logits = self(keys, labels, keys.gather(2, asked[..., None].expand(-1, -1, -1, self.width)))
        return F.cross_entropy(logits.flatten(0, 2), labels.gather(2, asked).flatten())

    def transformer(self, member: int) -> Transformer:
        """One member as a `Transformer` of the book: prompt [C, N, d], queries [n, d], read with own_token=False."""
        size = self.members[member]
        config = TransformerConfig(d=self.d, q=size.q, heads=1, d_k=size.head, d_v=self.recipe.d_v)
        model = Transformer(config)
        block = model.blocks[0]
        block.query.copy_(self.query[member, :, : size.head])
        block.key.copy_(self.key[member, :, : size.head])
        block.value.copy_(self.value[member])
        block.output.copy_(self.output[member])
        model.unembedding.copy_(self.unembedding[member, :, : size.q])
        return model


# --- what one member does with a token -----------------------------------------------------------------------------


class Reader(NamedTuple):
    """One member in numbers: softmax logit ⟨x·by_key, k⟩ + x·by_value[v], and votes for the q values.

    The token (k, v) has the vote k·key_votes + value_votes[v] + x·residual ∈ R^q in the query x, a unit vector: the
    member's logits are the votes of all tokens, averaged with the attention's weights.
    """

    by_key: Float[Tensor, "h h"]
    by_value: Float[Tensor, "h q"]
    key_votes: Float[Tensor, "h q"]
    value_votes: Float[Tensor, "q q"]
    residual: Float[Tensor, "h q"]

    def scores(self, asked: Float[Tensor, "n h"], keys: Float[Tensor, "N h"], labels: Int[Tensor, " N"]):
        """Softmax logits [n, N]."""
        return torch.addmm((asked @ self.by_value)[:, labels], asked @ self.by_key, keys.T)

    def votes(self, keys: Float[Tensor, "N h"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N q"]:
        """Votes [N, q], without the query's own x·residual."""
        return keys @ self.key_votes + self.value_votes[labels]


def reader(family: Recaller, member: int, dtype: torch.dtype = torch.float64) -> Reader:
    """The member's matrices: the weights multiplied out."""
    h, q, *_ = family.members[member]
    Q, K, V, O, U = (
        getattr(family, name)[member].to(torch.float64) for name in ("query", "key", "value", "output", "unembedding")
    )
    A = Q[:h, :h] @ K[:, :h].T / math.sqrt(h)  # [h, d]
    M = V @ O @ U[:, :q]  # [d, q]
    w = family.width
    parts = (A[:, :h], A[:, w : w + q], M[:h], M[w : w + q], U[:h, :q])
    return Reader(*(part.to(dtype) for part in parts))


def logit_range(r: Reader) -> float:
    """Δ: in every query, softmax logits of facts lie in an interval of this length; not every query attains it."""
    biases = (r.by_value[:, :, None] - r.by_value[:, None]).norm(dim=0).max()
    return float(2 * torch.linalg.matrix_norm(r.by_key, 2) + biases)


def vote_spread(r: Reader, x: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
    """D for each query: max over y ≠ y' of f_y − f_y' at its fact with value y, less the least of any fact."""
    by_key = r.key_votes[:, :, None] - r.key_votes[:, None]  # [h, y, y']
    by_value = r.value_votes[:, :, None] - r.value_votes[:, None]  # [v, y, y']
    own = torch.einsum("nh,hyz->nyz", x, by_key) + by_value.diagonal(dim1=0, dim2=1).T
    return (own - by_value.amin(0) + by_key.norm(dim=0)).amax((1, 2))


def random_facts(generator: torch.Generator, count: int, width: int, *batch: int):
    """Keys [*batch, count, width], standard normal (see `keys_of`), and numbers in [0, 1) that choose the values."""
    return torch.randn(*batch, count, width, generator=generator), torch.rand(*batch, count, generator=generator)


def keys_of(normal: Float[Tensor, "*B N w"], head: int) -> Float[Tensor, "*B N h"]:
    """Unit vectors, uniform on the sphere in `head` dimensions."""
    return F.normalize(normal[..., :head], dim=-1)


# --- statistics of logits, and what they predict -------------------------------------------------------------------


class Statistics(NamedTuple):
    """For n held-out pairs of a query and its fact: votes and their moments under random facts, relative to e^{s_t}.

    s_t is the softmax logit of the query's own fact, s that of another.  Votes have one coordinate more, which is
    always 1: it counts the attention itself, and makes a margin linear.
    """

    signal: Float[np.ndarray, "n q+1"]  # vote of the own fact
    mean: Float[np.ndarray, "n q+1"]  # E e^{s − s_t} vote
    square: Float[np.ndarray, "n q+1 q+1"]  # E e^{2(s − s_t)} vote voteᵀ
    label: Int[np.ndarray, " n"]
    most: Float[np.ndarray, " n"]  # max over values of the own fact's logit, less s_t


def statistics(r: Reader, keys: Float[Tensor, "n h"], labels: Int[Tensor, " n"]) -> Statistics:
    """Exact moments over another fact's key (uniform on the sphere) and value (uniform), for each query, in float64.

    With t = ‖a‖, E e^{⟨a, k⟩} = ₀F₁(h/2; t²/4) =: φ, E e^{⟨a, k⟩} k = ψ a, where ψ = φ'(t)/t = ₀F₁(h/2 + 1; t²/4)/h,
    and E e^{⟨a, k⟩} k kᵀ = ψ I + (φ − hψ) a aᵀ/t².
    """
    x, y = keys.double(), labels
    h, q = r.key_votes.shape
    a, b = (x @ r.by_key).numpy(), (x @ r.by_value).numpy()  # [n, h], [n, q]
    own = (a * x.numpy()).sum(1)[:, None] + b  # [n, q], the own fact's logit for each value it might have
    at = np.arange(len(x)), y.numpy()
    votes = np.concatenate([r.value_votes.numpy(), np.ones((q, 1))], 1)[None]  # [1, v, q + 1]
    residual = np.concatenate([(x @ r.residual).numpy(), np.zeros((len(x), 1))], 1)
    votes = votes + residual[:, None]  # [n, v, q + 1]
    W = np.concatenate([r.key_votes.numpy(), np.zeros((h, 1))], 1)  # [h, q + 1]
    signal = votes[at] + x.numpy() @ W

    def moments(factor):
        t2 = factor**2 * (a**2).sum(1)
        phi, psi = special.hyp0f1(h / 2, t2 / 4), special.hyp0f1(h / 2 + 1, t2 / 4) / h
        p = np.exp(factor * (b - own[at][:, None])) / q  # [n, v]
        return phi, psi, p, factor * a, t2

    phi, psi, p, c, _ = moments(1)
    mean = phi[:, None] * np.einsum("nv,nvc->nc", p, votes) + (p.sum(1) * psi)[:, None] * (c @ W)
    phi, psi, p, c, t2 = moments(2)
    linear, along = np.einsum("nv,nvc->nc", p, votes), c @ W
    cross = psi[:, None, None] * linear[:, :, None] * along[:, None]
    square = phi[:, None, None] * np.einsum("nv,nvc,nve->nce", p, votes, votes) + cross + cross.transpose(0, 2, 1)
    bend = ((phi - h * psi) / t2)[:, None, None] * along[:, :, None] * along[:, None]
    square += p.sum(1)[:, None, None] * (psi[:, None, None] * (W.T @ W) + bend)
    return Statistics(signal, mean, square, y.numpy(), (own - own[at][:, None]).max(1))


def predicted_recall(
    s: Statistics,
    lengths,
    margins,
    *,
    generator: torch.Generator,
    draws: int = 32,
    biased: bool = True,
) -> Float[np.ndarray, "L M"]:
    """Fraction of facts recalled by more than each margin in contexts of each length, if sums of votes were normal.

    In the query, N − 1 random facts and the own one have the votes signal + (N − 1)·mean + √(N − 1)·noise, up to a
    positive factor.  `biased=False` leaves the mean out of the comparison of values (not of the attention): what a
    read-out that knows the mean and subtracts it would recall.  A heuristic: central limit theorem at finite N.
    """
    n, q1 = s.signal.shape
    covariance = s.square - s.mean[:, :, None] * s.mean[:, None]
    values, vectors = np.linalg.eigh(covariance)
    normal = torch.randn(n, q1, draws, generator=generator, dtype=torch.float64).numpy()
    noise = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ normal  # [n, q + 1, draws]
    drift = s.mean.copy()
    if not biased:
        drift[:, :-1] = 0
    table = np.zeros((len(lengths), len(margins)))
    for row, N in enumerate(lengths):
        total = (s.signal + (N - 1) * drift)[..., None] + math.sqrt(N - 1) * noise
        attention = np.maximum(total[:, -1], 0)  # the sum of positive numbers that the normal law does not know to be
        own = np.take_along_axis(total, s.label[:, None, None], 1)[:, 0]
        total[np.arange(n), s.label] = -np.inf
        lead = own - total[:, :-1].max(1)  # [n, draws]
        table[row] = [(lead > margin * attention).mean() for margin in margins]
    return table


class Gaps(NamedTuple):
    """Attention alone: ln of E e^{s_t} over E e^s, and over √(E e^{2s})."""

    mean: float
    square: float


def gaps(r: Reader, keys: Float[Tensor, "n h"]) -> Gaps:
    """Δ₁ = ln(E e^{s_t} / E e^{s}) and Δ₂ = ln(E e^{s_t} / √(E e^{2s})), means over queries, facts and values."""
    x = keys.double()
    h, _q = r.key_votes.shape
    a, b = (x @ r.by_key).numpy(), (x @ r.by_value).numpy()
    t2 = (a**2).sum(1)
    target = special.logsumexp((a * x.numpy()).sum(1)[:, None] + b) - math.log(b.size)
    logs = [
        special.logsumexp(np.log(special.hyp0f1(h / 2, f**2 * t2 / 4))[:, None] + f * b) - math.log(b.size)
        for f in (1, 2)
    ]
    return Gaps(target - logs[0], target - logs[1] / 2)


# --- measurement ---------------------------------------------------------------------------------------------------


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


def sharper(r: Reader, factor: float) -> Reader:
    """The same member with its softmax logits multiplied."""
    return r._replace(by_key=r.by_key * factor, by_value=r.by_value * factor)


def mean_votes(r: Reader, x: Float[Tensor, "n h"]) -> Float[np.ndarray, "n q"]:
    """E e^{s} vote over another random fact, for each query."""
    x = x.double()
    h, q = r.key_votes.shape
    a, p = x @ r.by_key, (x @ r.by_value).exp() / q
    t2 = a.square().sum(1).numpy() / 4
    phi, psi = (torch.from_numpy(f)[:, None] for f in (special.hyp0f1(h / 2, t2), special.hyp0f1(h / 2 + 1, t2) / h))
    own = p.sum(1, keepdim=True)
    return (phi * (p @ r.value_votes + own * (x @ r.residual)) + own * psi * (a @ r.key_votes)).numpy()


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


def retained(lengths, recall: Float[np.ndarray, "*B L"], q: int) -> Float[np.ndarray, "*B L"]:
    """N R_q(1 − a) in bits, for the recall a at each length N; as `bounds.rate`, for whole arrays."""
    a = np.maximum(np.asarray(recall, float), 1 / q)  # below chance nothing is counted
    bits = math.log2(q) + (special.xlogy(a, a) + special.xlog1py(1 - a, -a) - (1 - a) * math.log(q - 1)) / math.log(2)
    return np.asarray(lengths) * np.maximum(bits, 0)


def resampled(values: Float[np.ndarray, "C *D"], rng: np.random.Generator, resamples: int) -> Float[np.ndarray, "B *D"]:
    """Means over contexts drawn with replacement, the same ones for all entries: the bootstrap, all at once."""
    values = np.asarray(values, float)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    return np.tensordot(counts, values, 1) / len(values)  # in this order no mean of ones exceeds one


def simultaneous(draws: Float[np.ndarray, "B *P"], *, level: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (lower, upper) of bootstrap draws, at `level` for all points together (Bonferroni)."""
    draws = np.sort(np.asarray(draws, float), axis=0)  # may hold infinities, which quantiles turn into NaN
    if np.isnan(draws).any():
        raise ValueError("An interval needs draws without NaN.")
    tail = level / (2 * max(1, draws[0].size)) * (len(draws) - 1)
    return draws[math.floor(tail)], draws[len(draws) - 1 - math.floor(tail)]


def critical_interval(draws: Float[np.ndarray, "B *P"], lengths, **how) -> tuple[np.ndarray, np.ndarray]:
    """`simultaneous` for critical lengths, whose ends are open beyond the lengths that were run."""
    low, high = simultaneous(draws, **how)
    return np.where(low <= lengths[0], 0.0, np.minimum(low, lengths[-1])), high


# --- one token of a deep network -----------------------------------------------------------------------------------


def averaging_network(depth: int, *, causal: bool) -> Transformer:
    """Flat attention whose layers add the mean of what they see, in one dimension; logits are ± the last state.

    One token then moves the logits by exactly `bounds.exchange_effect`, if it is the first.  Float64.
    """
    model = Transformer(TransformerConfig(d=1, q=2, depth=depth, causal=causal)).double()
    for block in model.blocks:
        block.query.zero_()
        for weight in (block.key, block.value, block.output):
            weight.fill_(1.0)
    model.unembedding.copy_(torch.tensor([[1.0, -1.0]]))
    return model


def exchanged(
    model: Transformer, prompt: Float[Tensor, "m d"], token: Float[Tensor, " d"], queries: Tensor, place: int = 0, **how
) -> float:
    """How far half the largest difference of two logits moves, at most over queries, if one token is replaced."""
    other = prompt.clone()
    other[place] = token
    moved = model(other[None], queries, **how) - model(prompt[None], queries, **how)
    return float((moved.amax(-1) - moved.amin(-1)).max()) / 2


# --- any encoder ---------------------------------------------------------------------------------------------------


def swing(r: Reader) -> tuple[float, float]:
    """(B, S) over all tokens (key, code) with key and code in unit balls, and unit queries: |softmax logits| <= B,
    and half the difference of any two votes is at most S, attained."""
    parts = [float(torch.linalg.matrix_norm(part, 2)) for part in (r.by_key, r.by_value)]
    joint = math.sqrt(2) * float(torch.linalg.matrix_norm(torch.cat([r.by_key, r.by_value], 1), 2))
    lengths = [(votes[:, :, None] - votes[:, None]).norm(dim=0) for votes in (r.key_votes, r.value_votes)]
    return min(sum(parts), joint), float(sum(lengths).max()) / 2


def encode(
    r: Reader,
    x: Float[Tensor, "n h"],
    labels: Int[Tensor, "S n"],
    m: int,
    margin: float,
    *,
    steps: int,
    generator: torch.Generator,
    rate: float = 0.05,
) -> Float[np.ndarray, " S"]:
    """Tune a prompt of m free tokens for each labeling; the fraction of labels recalled by more than the margin, [S].

    Tokens are (key, code) with both parts in unit balls, and start at facts: those asked, as many as there is room for.
    Adam from two starts, one on a hinge, which wants all labels, and one on a sigmoid, which gives up some for the sake
    of others.  Each prompt is scored every 20 steps and at the end, and the best score of a labeling counts.
    """
    r = Reader(*(part.float() for part in r))
    x, labels, q = x.float(), labels.repeat(2, 1), r.residual.shape[1]
    S, n = labels.shape
    start = torch.arange(m) % n
    keys = x[start].expand(S, -1, -1) + 0.01 * torch.randn(S, m, x.shape[1], generator=generator)
    tokens = [keys.clone(), F.one_hot(labels[:, start], q).float()]
    tokens = [part.requires_grad_() for part in tokens]
    adam = torch.optim.Adam(tokens, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=0.02 * rate)
    best = torch.zeros(S)
    for step in range(steps + 1):
        k, c = (part / part.norm(dim=-1, keepdim=True).clamp_min(1) for part in tokens)
        scores = (x @ r.by_key) @ k.transpose(1, 2) + (x @ r.by_value) @ c.transpose(1, 2)  # [S, n, m]
        logits = scores.softmax(-1) @ (k @ r.key_votes + c @ r.value_votes) + x @ r.residual
        own = logits.gather(2, labels[..., None])
        lead = (own - logits.scatter(2, labels[..., None], -torch.inf).amax(2, keepdim=True))[..., 0]
        if step % 20 == 0 or step == steps:
            best = torch.maximum(best, (lead.detach() > margin).float().mean(1))
        if step < steps:
            adam.zero_grad()
            short = 1.2 * margin + 0.05 - lead
            (F.relu(short[: S // 2]).mean(1).sum() + torch.sigmoid(short[S // 2 :]).mean(1).sum()).backward()
            adam.step()
            schedule.step()
    return best.view(2, -1).amax(0).double().numpy()


def cells(table: Float[np.ndarray, "P n"], eps: float) -> int:
    """How many of the rows a greedy search needs so that every row is within eps of one, in the largest coordinate.

    An upper bound on the covering number of the rows at eps.
    """
    left, count = np.asarray(table), 0
    while len(left):
        left = left[np.abs(left - left[len(left) // 2]).max(1) > eps]
        count += 1
    return count


def all_contexts(
    model: Transformer, queries: Float[Tensor, "n 1 d"], longest: int
) -> tuple[Float[np.ndarray, "P n"], Int[np.ndarray, "P v"]]:
    """Outputs for every context of at most `longest` tokens of the vocabulary, and how often each has each token.

    For one layer with one head, without norm, positions or token-wise network, that does not see the order and whose
    queries see the context only; the output is half the difference of the first two logits, in float64.
    """
    v, block, c = model.config.q, model.blocks[0], model.config
    steps = itertools.combinations_with_replacement(range(v + 1), longest)  # the last kind of token is no token
    counts = np.array([np.bincount(kinds, minlength=v + 1)[:v] for kinds in steps if kinds[0] < v])
    z, x = model.embedding, queries[:, 0]
    scores = (x @ block.query) @ (z @ block.key).T * (c.inverse_temperature / math.sqrt(c.d_k))
    unembedding = (model.unembedding[:, 1] - model.unembedding[:, 0]) / 2
    e, votes = scores.double().exp().numpy(), (z @ block.value @ block.output @ unembedding).double().numpy()
    return counts @ (e * votes).T / (counts @ e.T) + (x @ unembedding).double().numpy(), counts
