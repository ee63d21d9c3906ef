"""A frozen network with weights written by hand, whose prompts store as many bits as the linear law allows.

A prompt token is (key, values): `d_k` coordinates say where, the other w = d − d_k say what.  A query names a key, one
coordinate and a threshold; attention fetches the value and the token-wise network compares it with the threshold.

Shapes at the end of a line: `R` prompts, `m` prompt tokens, `M` codewords, `n` queries, `w` value coordinates.
"""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize
from torch import Tensor

from prompt_memory.measure import logit_margins
from prompt_memory.transformer import Prefix, Transformer, TransformerConfig
from prompt_memory.tune import adam_direction

# --- keys ----------------------------------------------------------------------------------------------------------


def hypercube_code(d_k: int) -> Float[Tensor, "M d_k"]:
    """All 2^d_k vectors of signs over √d_k, the largest cosine 1 − 2/d_k.  ValueError unless 1 <= d_k <= 12."""
    if not 1 <= d_k <= 12:
        raise ValueError(f"a hypercube is listed for 1 <= d_k <= 12, not {d_k}")
    digits = torch.arange(2**d_k)[:, None] >> torch.arange(d_k)
    return (1.0 - 2.0 * (digits & 1).double()) / math.sqrt(d_k)


def hadamard_code(d_k: int) -> Float[Tensor, "M d_k"]:
    """d_k orthogonal vectors of signs over √d_k and then their negatives, M = 2 d_k.  ValueError unless d_k = 2^k."""
    if d_k < 1 or d_k & (d_k - 1):
        raise ValueError(f"this Hadamard code exists for powers of two, not for d_k = {d_k}")
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < d_k:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return torch.cat([rows, -rows]) / math.sqrt(d_k)


def simplex_code(m: int) -> Float[Tensor, "m d_k"]:
    """m unit vectors in R^{m−1} with all cosines −1/(m−1), the smallest possible.  ValueError for m < 2."""
    if m < 2:
        raise ValueError(f"a simplex of keys needs m >= 2, not {m}")
    # an orthonormal basis of the vectors with sum zero (Helmert's), read along the coordinates
    basis = torch.ones(m - 1, m, dtype=torch.float64).tril()
    basis[torch.arange(m - 1), torch.arange(1, m)] = -torch.arange(1, m).double()
    words = (basis / basis.norm(dim=1, keepdim=True)).T
    return words / words.norm(dim=1, keepdim=True)


def circle_code(m: int) -> Float[Tensor, "m 2"]:
    """m keys evenly spaced on a circle, d_k = 2, the largest cosine cos(2π/m).  ValueError for m < 1."""
    if m < 1:
        raise ValueError(f"m must be at least 1, not {m}")
    angle = 2 * math.pi * torch.arange(m).double() / m
    return torch.stack([angle.cos(), angle.sin()], 1)


def random_code(
    d_k: int, m: int, cosine: float, *, generator: torch.Generator, signs: bool = True, tries: int = 200_000
) -> Float[Tensor, "m d_k"]:
    """m random unit vectors, of signs or real, with pairwise cosines <= `cosine`: drawn, and kept if far enough.

    ValueError if `tries` draws do not give m of them (which does not show that there are none).
    """
    kept = torch.empty(0, d_k, dtype=torch.float64)
    for _ in range(math.ceil(tries / 1000)):
        drawn = torch.randn(1000, d_k, generator=generator, dtype=torch.float64)
        drawn = drawn.sign() if signs else drawn
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        for word in drawn[(drawn @ kept.T <= cosine + 1e-12).all(1)]:  # few: most fail here
            if (kept @ word <= cosine + 1e-12).all():
                kept = torch.cat([kept, word[None]])
            if len(kept) == m:
                return kept
    raise ValueError(f"{tries} draws gave {len(kept)} keys with cosines <= {cosine} in d_k = {d_k}, not m = {m}")


# --- the network ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The network of Theorem 4′ with its codewords; `build_memory` makes it.

    The difference of its two logits is 2(v̂ − t), exactly so for every prompt in the ball of `radius`: v̂ is the
    attention-weighted mean of the asked value coordinate, t in [−1, 1] the threshold.
    """

    transformer: Transformer
    codewords: Float[Tensor, "M d_k"]
    key_norm: float
    logit_range: float

    @property
    def values(self) -> int:
        """w = d − d_k, how many values a token holds."""
        return self.transformer.config.d_v

    @property
    def radius(self) -> float:
        """The largest norm of a written token, √(key_norm² + w)."""
        return math.sqrt(self.key_norm**2 + self.values)

    @property
    def ball_range(self) -> float:
        """‖A x‖·radius, the bound on softmax logits over all prompts in the ball: B·radius/key_norm."""
        return self.logit_range * self.radius / self.key_norm

    def write(self, values: Float[Tensor, "R m w"]) -> Float[Tensor, "R m d"]:
        """Prompts whose token j has the codeword j as its key and holds values[:, j], [R, m, d].

        ValueError if there are more tokens than codewords, or values outside [−1, 1].
        """
        if values.ndim != 3 or values.shape[2] != self.values:
            raise ValueError(f"values must have the shape [R, m, {self.values}], not {list(values.shape)}")
        m = self._prompt_length(values.shape[1])
        if not values.abs().max() <= 1 + 1e-9:
            raise ValueError("values must lie between -1 and 1")
        keys = (self.key_norm * self.codewords[:m]).to(self._dtype)
        return torch.cat([keys.expand(len(values), -1, -1), values.to(self._dtype)], -1)

    def write_bits(self, bits: Int[Tensor, "R m w"]) -> Float[Tensor, "R m d"]:
        """Prompts that store bits 0 and 1 as the values −1 and 1, [R, m, d].  ValueError for other bits."""
        if not ((bits == 0) | (bits == 1)).all():
            raise ValueError("bits must be 0 or 1")
        return self.write(2.0 * bits.double() - 1)

    def ask(
        self,
        keys: Int[Tensor, " n"] | Float[Tensor, "n d_k"],
        coordinates: Int[Tensor, " n"],
        thresholds: Float[Tensor, " n"] | float = 0.0,
    ) -> Float[Tensor, "n d"]:
        """Queries "is coordinate c of the value at this key above t?", [n, d]; keys are numbers or unit vectors.

        ValueError for a number that does not exist or a threshold outside [−1, 1].
        """
        w, r = self.values, self.radius
        thresholds = torch.as_tensor(thresholds, dtype=torch.float64).expand(len(coordinates))
        if not keys.is_floating_point():
            if keys.numel() and not 0 <= keys.min() <= keys.max() < len(self.codewords):
                raise ValueError(f"keys must lie in 0 … {len(self.codewords) - 1}")
            keys = self.codewords[keys]
        if coordinates.numel() and not 0 <= coordinates.min() <= coordinates.max() < w:
            raise ValueError(f"coordinates must lie in 0 … {w - 1}")
        if not (thresholds.abs() <= 1).all():
            raise ValueError("thresholds must lie between -1 and 1")
        # the selector's height carries the threshold, and stays in [0, 1] like a value
        selector = torch.nn.functional.one_hot(coordinates, w) * ((2 * r + 1 - thresholds) / (2 * r + 2))[:, None]
        return torch.cat([-self.key_norm * keys.double(), selector], 1).to(self._dtype)

    def ask_all(self, m: int, thresholds: Float[Tensor, " t"] | float = 0.0) -> Float[Tensor, "n d"]:
        """One query for each of the first m keys, each coordinate and each threshold, in this order, [m w t, d]."""
        thresholds = torch.as_tensor(thresholds, dtype=torch.float64).reshape(-1)
        grid = torch.cartesian_prod(
            torch.arange(self._prompt_length(m)), torch.arange(self.values), torch.arange(len(thresholds))
        )
        return self.ask(grid[:, 0], grid[:, 1], thresholds[grid[:, 2]])

    def attention(self, m: int, *, own_token: bool = False) -> Float[Tensor, "m m"]:
        """S: the weights that the query for key i puts on the tokens of a written prompt of length m, [m, m].

        Rows sum to one without `own_token`, and to one minus the query's own weight with it.  In float64.
        """
        words = self.codewords[: self._prompt_length(m)]
        scores = self.logit_range * (words @ words.T)
        if own_token:
            scores = torch.cat([scores, scores.new_full((m, 1), -self.logit_range)], 1)
        return scores.softmax(1)[:, :m]

    def compensate(self, readings: Float[Tensor, "R m w"], *, own_token: bool = False) -> Float[Tensor, "R m w"]:
        """Values that attention mixes to exactly these readings (without the query's own share): S⁻¹ · readings."""
        return torch.linalg.solve(self.attention(readings.shape[1], own_token=own_token), readings.double())

    def amplitude(self, m: int, *, own_token: bool = False) -> float:
        """1/‖S⁻¹‖_∞: all readings in [−a, a] are reached by values in [−1, 1], and a is the largest such number."""
        inverse = torch.linalg.inv(self.attention(m, own_token=own_token))
        return float(1 / inverse.abs().sum(1).max())

    def read(self, prompts: Float[Tensor, "R m d"], queries: Float[Tensor, "n d"], *, own_token: bool = True):
        """v̂ − t of every query, half the difference of the network's logits, [R, n]."""
        logits = self.transformer(prompts, queries, own_token=own_token)
        return (logits[..., 1] - logits[..., 0]) / 2

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.unembedding.dtype

    def _prompt_length(self, m: int) -> int:
        if not 1 <= m <= len(self.codewords):
            raise ValueError(f"with {len(self.codewords)} codewords m must lie in 1 … {len(self.codewords)}, not {m}")
        return m


def build_memory(
    codewords: Float[Tensor, "M d_k"],
    d: int,
    logit_range: float,
    *,
    key_norm: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """The network of Theorem 4′, of width d, for these unit keys and the softmax logits `logit_range`·cosine.

    One layer, one head, no norm, no positions, w + 2 rectified units, all weights set by hand.  `key_norm` is the norm
    of the key in a prompt token, by default √d_k: then sign vectors make all coordinates of a written token ±1.
    ValueError if d_k >= d, if codewords are not unit vectors, or for a range or norm that is not > 0.
    """
    if codewords.ndim != 2 or not codewords.numel():
        raise ValueError(f"codewords must have the shape [M, d_k], not {list(codewords.shape)}")
    d_k = codewords.shape[1]
    if d_k >= d:
        raise ValueError(f"keys of d_k = {d_k} coordinates leave none of d = {d} for values: give d_k < d")
    codewords = codewords.double()
    if not torch.allclose(codewords.norm(dim=1), codewords.new_ones(()), rtol=0, atol=1e-9):
        raise ValueError("codewords must be unit vectors")
    key_norm = math.sqrt(d_k) if key_norm is None else key_norm
    for name, value in (("logit_range", logit_range), ("key_norm", key_norm)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, not {value}")
    w = d - d_k
    config = TransformerConfig(
        d=d, d_k=d_k, d_v=w, mlp=w + 2, activation="relu",
        inverse_temperature=logit_range * math.sqrt(d_k) / key_norm**2,
    )  # fmt: skip
    model = Transformer(config).to(dtype)
    for weight in model.parameters():
        weight.zero_()
    block, scale = model.blocks[0], 2 * math.sqrt(key_norm**2 + w) + 2
    eye = torch.eye(d, dtype=dtype)
    block.key.copy_(eye[:, :d_k])
    block.query.copy_(-eye[:, :d_k])  # the query carries minus the key, so that it attends to itself least of all
    block.value.copy_(eye[:, d_k:])
    block.output.copy_(eye[d_k:] / scale)
    # one unit a value coordinate: relu(v̂ − t + r + 1) where the selector is, else relu(v̂ − r) = 0
    block.up[:, :w] = scale * eye[:, d_k:]
    block.up_bias[:w] = -(scale / 2 - 1)
    block.down[:w, 0] = 1
    block.down_bias[0] = -scale / 2
    # two units clear the coordinate 0, in which the answer is written: −relu(x) + relu(−x) = −x
    block.up[0, w], block.up[0, w + 1] = 1, -1
    block.down[w, 0], block.down[w + 1, 0] = -1, 1
    model.unembedding[0] = torch.tensor([-1.0, 1.0], dtype=dtype)
    return Memory(model, codewords, key_norm, float(logit_range))


# --- what else its prompts can do ----------------------------------------------------------------------------------


def tune(
    memory: Memory,
    queries: Float[Tensor, "n d"],
    labels: Int[Tensor, "R n"],
    start: Float[Tensor, "R m d"],
    *,
    margin: float,
    steps: int,
    own_token: bool = True,
    learning_rate: float = 0.1,
) -> tuple[Float[Tensor, "R m d"], Float[Tensor, " R"]]:
    """Tune real prompts in the ball of the memory's radius until each label 0 or 1 has the margin, one run a row.

    Adam on the squared shortfall of every reading from a little more than margin/2, projected to the ball after each
    step, with a decaying rate.  Returns the best prompt of each run and its margin: twice its smallest reading times
    label sign.  A run that stays below the margin shows that none was found, not that none exists.
    """
    if labels.shape != (len(start), len(queries)):
        raise ValueError(f"labels must have the shape [{len(start)}, {len(queries)}], not {list(labels.shape)}")
    signs = 2.0 * labels.to(start.dtype) - 1

    def inside(prompts: Tensor) -> Tensor:
        return prompts * (memory.radius / prompts.norm(dim=-1, keepdim=True)).clamp(max=1)

    prompts = inside(start.detach()).clone().requires_grad_()
    adam = torch.optim.Adam([prompts], lr=learning_rate)
    best, best_margin = prompts.detach().clone(), torch.full((len(start),), -torch.inf, dtype=start.dtype)
    for step in range(steps + 1):  # the last pass scores the last step
        readings = signs * memory.read(prompts, queries, own_token=own_token)
        reached = 2 * readings.detach().amin(1)
        better = reached > best_margin
        best[better], best_margin[better] = prompts.detach()[better], reached[better]
        if step == steps or (best_margin > margin).all():
            break
        adam.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        adam.zero_grad()
        torch.relu(margin / 2 + 0.1 - readings).square().sum().backward()
        adam.step()
        with torch.no_grad():
            prompts.copy_(inside(prompts))
    return best, best_margin


def best_margin(
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


def labelings(
    weights: Float[np.ndarray, "n m"], thresholds: Float[np.ndarray, " n"], margin: float
) -> Int[np.ndarray, "N n"]:
    """All labelings ±1 of n queries that values in [−1, 1] memorise with more than `margin`, [N, n].

    Labelings grow query by query; a part that no values memorise (`best_margin`) is dropped, so the list is complete.
    """
    kept = np.zeros((1, 0), dtype=int)
    for n in range(1, len(weights) + 1):
        longer = np.concatenate([np.c_[kept, np.full(len(kept), sign)] for sign in (-1, 1)])
        feasible = [best_margin(weights[:n], thresholds[:n], row) > margin + 1e-9 for row in longer]
        kept = longer[np.array(feasible, dtype=bool)]
    return kept


# --- data that no prompt memorises ---------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the tokens of n sequences see in one layer, split into their own tokens and the prompt."""

    pattern: Float[Tensor, "n H T T"]  # attention among own tokens, each row adding up to one
    log_mass: Float[Tensor, "n H T"]  # ln of the sum of exponentials over own tokens
    prompt_log_mass: Float[Tensor, "n H T"]  # the same over the prompt, −inf without one
    share: Float[Tensor, "n H T"]  # α, the attention that the prompt gets
    bias: Float[Tensor, "n H T d_v"]  # b, the prompt's values under the attention inside the prompt
    heads: Float[Tensor, "n H T d_v"]  # (1 − α) pattern · values + α b


def own_and_prompt(
    model: Transformer, tokens: Float[Tensor, "n T d"], prompt: Float[Tensor, "m d"] | Prefix | None = None
) -> tuple[list[Seen], Float[Tensor, "n T q"]]:
    """Every layer's `Seen`, and the logits of all tokens built from them: the same as those of `forward`.

    The softmax over a sequence's own tokens and that over the prompt are taken apart and never together.  Without a
    prompt every share is 0.  ValueError for learned positions or context scaling, where a prompt changes what its
    sequence is without it; for several layers the network must be causal.
    """
    c = model.config
    if c.positions == "learned" or c.context_scaling != "none":
        raise ValueError("learned positions and context scaling change a sequence when a prompt comes before it")
    if c.depth > 1 and not c.causal:
        raise ValueError("with several layers the network must be causal: the prompt must not see the sequence")
    if isinstance(prompt, Tensor):
        p = prompt[None]
    m = 0 if prompt is None else prompt.keys.shape[-2] if isinstance(prompt, Prefix) else len(prompt)
    scale = c.inverse_temperature / math.sqrt(c.d_k)
    x, layers = tokens, []
    T = x.shape[1]
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if c.causal else torch.zeros(T, T, dtype=torch.bool)
    for number, block in enumerate(model.blocks):
        q, k, v = model.heads(block, x, m)
        scores = (scale * q @ k.mT).masked_fill(hidden, -torch.inf)
        pattern, log_mass = scores.softmax(-1), scores.logsumexp(-1)
        own = pattern @ v
        if prompt is None:
            prompt_log_mass, bias = torch.full_like(log_mass, -torch.inf), torch.zeros_like(own)
        else:
            if isinstance(prompt, Prefix):
                k_p, v_p = prompt.keys[:, number], prompt.values[:, number]
            else:
                q_p, k_p, v_p = model.heads(block, p, 0)
                if number < c.depth - 1:  # the prompt's own states in the next layer
                    past = torch.ones(m, m, dtype=torch.bool).tril()
                    p = block.token_wise(p + block.attend(q_p, [k_p], [v_p], [past]))
            scores = scale * q @ k_p.mT  # [n, H, T, m]
            prompt_log_mass, bias = scores.logsumexp(-1), scores.softmax(-1) @ v_p
        share = torch.sigmoid(prompt_log_mass - log_mass)
        heads = (1 - share[..., None]) * own + share[..., None] * bias
        x = block.token_wise(x + heads.transpose(-2, -3).flatten(-2) @ block.output)
        layers.append(Seen(pattern, log_mass, prompt_log_mass, share, bias, heads))
    return layers, model.norm(x) @ model.unembedding


def joint_attention(
    model: Transformer, tokens: Float[Tensor, "n T d"], prompt: Float[Tensor, "m d"]
) -> Float[Tensor, "n H T m+T"]:
    """The attention of the first layer to prompt and own tokens, out of the network's own joint softmax.

    The layer's `attend` is run with unit vectors in place of values and no output map.
    """
    c, m, T = model.config, len(prompt), tokens.shape[1]
    block = copy.deepcopy(model.blocks[0])
    q, k, _ = model.heads(block, tokens[None], m)
    _, k_p, _ = model.heads(block, prompt[None, None], 0)
    units = torch.eye(m + T, dtype=tokens.dtype).expand(1, 1, c.heads, -1, -1)
    block.output = torch.nn.Parameter(torch.eye(c.heads * (m + T), dtype=tokens.dtype), requires_grad=False)
    past = torch.ones(T, T, dtype=torch.bool).tril() if c.causal else None
    mixed = block.attend(q, [k_p, k], [units[..., :m, :], units[..., m:, :]], [None, past])
    return mixed[0].unflatten(-1, (c.heads, m + T)).transpose(-2, -3)


def shared_token_data(
    model: Transformer, n: int, *, generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"]]:
    """n tokens and a read token: sequences (x_i, x_0) in which x_0 gives all x_i the same attention, in every head.

    x_i = c + e_i with orthonormal e_i orthogonal to what the heads compare with in the first layer (and, where there is
    a norm, to c and to the vector of ones, so that all x_i have the same norm).  Without a norm c is such that x_0
    gives x_i and itself one half each.  ValueError if d leaves no room.
    """
    c = model.config
    dtype = model.unembedding.dtype
    if c.positions == "learned":
        raise ValueError("learned positions move with the prompt's length: use none or rotary")
    read, centre = torch.randn(2, c.d, generator=generator, dtype=torch.float64).to(dtype)
    block = model.blocks[0]
    q = model._turn(block.split(block.norm1(read)[None], block.query), 1)[:, 0]  # [H, d_k], one position after x_i
    gain = torch.ones(c.d, dtype=dtype) if c.norm == "none" else block.norm1.gain
    compared = [gain * (block.key.unflatten(1, (c.heads, c.d_k))[:, h] @ q[h]) for h in range(c.heads)]
    if c.norm == "none":
        forms = torch.stack(compared)  # the logit of x_i minus that of x_0 itself, which rotary positions leave alone
        at_home = block.split(block.norm1(read)[None], block.query)[:, 0], block.split(read[None], block.key)[:, 0]
        centre = centre + torch.linalg.pinv(forms) @ ((at_home[0] * at_home[1]).sum(-1) - forms @ centre)
    else:
        compared += [centre, torch.ones(c.d, dtype=dtype)]
    free = torch.linalg.svd(torch.stack(compared)).Vh[len(compared) :]  # an orthonormal basis of the complement
    if not 1 <= n <= len(free):
        raise ValueError(f"d = {c.d} leaves {len(free)} directions that no head compares, not n = {n}")
    turn = torch.linalg.qr(torch.randn(len(free), len(free), generator=generator, dtype=torch.float64)).Q.to(dtype)
    return centre + (turn @ free)[:n], read


def value_swap(
    model: Transformer, contents: Float[Tensor, "n d"], read: Float[Tensor, " d"], order: list[int]
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r H*d_v"]]:
    """Factors A, B: with value + A B the first layer gives token x_i the value of x_order[i], in every head.

    The rank r is n minus the number of cycles of `order`; the value of the read token does not change.
    ValueError unless `order` is a permutation, or if the (normed) tokens are dependent.
    """
    n, block = len(contents), model.blocks[0]
    if sorted(order) != list(range(n)):
        raise ValueError(f"order must be a permutation of 0 … {n - 1}, not {order}")
    tokens = block.norm1(torch.cat([contents, read[None]]))
    if torch.linalg.matrix_rank(tokens) < n + 1:
        raise ValueError("the tokens are linearly dependent: no matrix gives them arbitrary values")
    eye = torch.eye(n, dtype=tokens.dtype)
    U, S, Vh = torch.linalg.svd(eye[order] - eye)
    r = int((S > 1e-9).sum())
    wanted = torch.cat([U[:, :r] * S[:r], tokens.new_zeros(1, r)])  # nothing for the read token
    return torch.linalg.pinv(tokens) @ wanted, Vh[:r] @ tokens[:n] @ block.value


def shared_texts(contents: Float[Tensor, "n d"], read: Float[Tensor, " d"]) -> Float[Tensor, "n 2 d"]:
    """The texts (x_i, x_0) that share the token they are read at."""
    return torch.stack([contents, read.expand_as(contents)], 1)


def without_prompt(model: Transformer, contents: Float[Tensor, "n d"], read: Float[Tensor, " d"]):
    """(logits [n, q], masses [n, H], values [n, H, q]) of the sequences (x_i, x_0) at x_0 in one layer.

    `values` is what each head adds to the logits, without token-wise network and final norm.
    """
    layers, logits = own_and_prompt(model, shared_texts(contents, read))
    c, seen = model.config, layers[0]
    out = (model.blocks[0].output @ model.unembedding).unflatten(0, (c.heads, c.d_v))  # [H, d_v, q]
    return logits[:, -1], seen.log_mass[..., -1].exp(), torch.einsum("nhv,hvq->nhq", seen.heads[..., -1, :], out)


def prompt_token(
    model: Transformer, read: Float[Tensor, " d"], log_mass: Float[Tensor, " H"], value: Float[Tensor, "H d_v"]
) -> Float[Tensor, "1 d"]:
    """The shortest prompt of one token with these softmax logits and these values in every head, as x_0 sees it.

    ValueError if there is a norm or there are positions, or if the H(1 + d_v) conditions are dependent.
    """
    c, block = model.config, model.blocks[0]
    if c.norm != "none" or c.positions != "none":
        raise ValueError("one token is written down for networks without norms and positions only")
    q = (read @ block.query).unflatten(0, (c.heads, c.d_k)) * (c.inverse_temperature / math.sqrt(c.d_k))
    keys = torch.einsum("dhk,hk->hd", block.key.unflatten(1, (c.heads, c.d_k)), q)
    conditions = torch.cat([keys, block.value.T])  # [H(1 + d_v), d]
    if torch.linalg.matrix_rank(conditions) < len(conditions):
        raise ValueError(f"{len(conditions)} conditions on a token of width {c.d} are dependent: give H(1 + d_v) <= d")
    return (torch.linalg.pinv(conditions) @ torch.cat([log_mass, value.flatten()]))[None]


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


def tune_labels(
    model: Transformer,
    queries: Float[Tensor, "n T d"],
    labels: Int[Tensor, "R n"],
    start: Float[Tensor, "R m d"],
    *,
    steps: int,
    learning_rate: float = 0.1,
    read: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "R m d"], Bool[Tensor, " R"]]:
    """Tune real prompts for labels by Adam, one run a row: the prompts, and whether these memorise all labels.

    The loss of a run is Σ_i relu(δ − margin_i) over its labels, with δ = 0.1 and then 0.01 for the second half; a run
    that has all labels leaves.  `read` reads these positions of one sequence instead of the last token of n sequences.
    """
    result, success = start.detach().clone(), torch.zeros(len(start), dtype=torch.bool)
    active, prompts = torch.arange(len(start)), start.detach().clone()
    first, second = torch.zeros_like(prompts), torch.zeros_like(prompts)
    for step in range(steps + 1):  # the last pass scores the last step
        prompts.requires_grad_()
        logits = model(prompts, queries) if read is None else model(prompts, queries, read="all")[:, 0, read]
        margins = logit_margins(logits, labels[active])
        (slope,) = torch.autograd.grad(torch.relu((0.1 if 2 * step < steps else 0.01) - margins).sum(), prompts)
        prompts = prompts.detach()
        done = (margins.detach() > 0).all(1)
        result[active], success[active] = prompts, done
        going = ~done
        if step == steps or not going.any():
            break
        active, prompts, slope = active[going], prompts[going], slope[going]
        direction, first, second = adam_direction(slope, first[going], second[going], step + 1, (0.9, 0.99))
        prompts = prompts - learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 * direction
    return result, success


# --- the steepest networks -----------------------------------------------------------------------------------------


def steep_network(config: TransformerConfig, *, generator: torch.Generator) -> Transformer:
    """A float64 network that is as steep as its constant at any depth, at the origin (Lemma 2b, part 5).

    Queries are blind (A = 0), each head writes a positive multiple of the mean that it reads, W₁ is a positive multiple
    of W₂ᵀ with W₂W₂ᵀ = I, and the biases put activations where they are steepest and the output for 0 at 0; norms have
    equal gains.  Multiples, the orthogonal factors and the unembedding are random.  Prompt tokens and query at the
    origin, read with own_token=False, attain `bounds.network_lipschitz`, whatever the number of tokens.
    ValueError for learned positions, d_v < d, 0 < mlp < d, or norms with norm_eps = 0 (undefined at the origin).
    """
    c = config
    if c.positions == "learned" or c.d_v < c.d or 0 < c.mlp < c.d:
        raise ValueError("it needs positions other than learned ones, d_v >= d, and mlp = 0 or >= d")
    if c.norm != "none" and c.norm_eps == 0:
        raise ValueError("norms with norm_eps = 0 are not defined at the origin: give norm_eps > 0")
    model = Transformer(c, generator=generator).double()

    def positive() -> float:
        return float(torch.rand((), generator=generator)) + 0.5

    def isometry(rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        return torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64)).Q.T

    for block in model.blocks:
        parts = [isometry(c.d, c.d_v) for _ in range(c.heads)]
        block.query.zero_()
        block.value.copy_(torch.cat([positive() * part for part in parts], 1))
        block.output.copy_(torch.cat([part.T for part in parts]))
        if c.mlp:
            part = isometry(c.d, c.mlp)
            block.up.copy_(positive() * part), block.down.copy_(part.T)
            # the slope of ReLU is 1 at 1, that of GELU is largest at √2
            block.up_bias.fill_(1.0 if c.activation == "relu" else math.sqrt(2))
            activation = torch.relu if c.activation == "relu" else torch.nn.functional.gelu
            block.down_bias.copy_(-activation(block.up_bias) @ block.down)
    for name, weight in model.named_parameters():
        if name.endswith("gain"):
            weight.fill_(positive())
    return model
