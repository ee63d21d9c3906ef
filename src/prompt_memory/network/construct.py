"""A frozen network with weights written by hand, whose prompts store as many bits as the linear law allows.

A prompt token is (key, values): `d_k` coordinates say where, the other w = d − d_k say what.  A query names a key, one
coordinate and a threshold; attention fetches the value and the token-wise network compares it with the threshold.

Shapes at the end of a line: `R` prompts, `m` prompt tokens, `M` codewords, `n` queries, `w` value coordinates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer, TransformerConfig

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
    """The network of Theorem 4b with its codewords; `build_memory` makes it.

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
    """The network of Theorem 4b, of width d, for these unit keys and the softmax logits `logit_range`·cosine.

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
