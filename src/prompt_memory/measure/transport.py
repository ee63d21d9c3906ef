"""A prompt as a measure: Wasserstein distances, and how fast heads and networks move with them."""

import copy
import itertools

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize, sparse, stats
from torch import Tensor

from prompt_memory.checks import integers
from prompt_memory.measure.slopes import ascend, into_ball, token_slopes
from prompt_memory.network.transformer import Transformer


def wasserstein(
    first: Float[np.ndarray, "a d"],
    second: Float[np.ndarray, "b d"],
    first_weights: Float[np.ndarray, " a"] | None = None,
    second_weights: Float[np.ndarray, " b"] | None = None,
) -> float:
    """W₁ between two weighted sets of vectors (default: equal weights), exactly: the cheapest transport.

    On a line the area between the distribution functions, elsewhere a linear program.  Weights are >= 0 with sum 1.
    ValueError if shapes do not fit or weights are no probabilities.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"two non-empty lists of vectors are needed, not arrays of shape {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("vectors must be finite")
    weights = []
    for points, given in ((x, first_weights), (y, second_weights)):
        w = np.full(len(points), 1 / len(points)) if given is None else np.asarray(given, dtype=float)
        if w.shape != (len(points),) or not (w >= 0).all() or not abs(w.sum() - 1) < 1e-9:
            raise ValueError("there must be one weight >= 0 for each vector, with sum 1")
        weights.append(w / w.sum())
    p, q = weights
    if x.shape[1] == 1:
        return float(stats.wasserstein_distance(x[:, 0], y[:, 0], p, q))
    cost = np.linalg.norm(x[:, None] - y[None], axis=-1)
    rows, columns = sparse.kron(sparse.eye(len(x)), np.ones(len(y))), sparse.kron(np.ones(len(x)), sparse.eye(len(y)))
    conditions = sparse.vstack([rows, columns]).tocsr()[:-1]  # the last one follows from the others
    plan = optimize.linprog(cost.ravel(), A_eq=conditions, b_eq=np.concatenate([p, q])[:-1], method="highs")
    if not plan.success:
        raise ValueError(f"the transport problem was not solved: {plan.message}")
    return float(max(0.0, plan.fun))


def measure_slope(
    A: Float[Tensor, "d d"],
    V: Float[Tensor, "o d"],
    tokens: Float[Tensor, "R K d"],
    weights: Float[Tensor, "R K"],
    query: Float[Tensor, "R d"],
    direction: Float[Tensor, "R o"],
    *,
    moving_query: bool = False,
) -> Float[Tensor, " R"]:
    """How fast one head moves along `direction` with the measure Σ_j w_j δ_{z_j}, per unit of W₁, [R].

    The largest of (s_j / w_j)‖u + ⟨u, z_j − z̄⟩ A x‖ over atoms, with u = Vᵀ·direction and s the softmax weights: one
    of them is moved.  `moving_query` adds the slope in the query, ‖Aᵀ Σ_j s_j ⟨u, z_j − z̄⟩ z_j‖ (Lemma 7a).
    """
    seen = query @ A.T  # A x, [R, d]
    tilt = (tokens @ seen[..., None])[..., 0]  # logits, [R, K]
    density = (tilt - torch.logsumexp(tilt + weights.log(), -1, keepdim=True)).exp()  # s_j / w_j
    u = direction @ V
    share = density * weights
    centred = tokens - (share[..., None] * tokens).sum(-2, keepdim=True)
    reach = (centred @ u[..., None])[..., 0]  # ⟨u, z_j − z̄⟩, [R, K]
    slope = (density * (u[:, None] + reach[..., None] * seen[:, None]).norm(dim=-1)).amax(-1)
    if moving_query:
        slope = slope + (((share * reach)[..., None] * tokens).sum(-2) @ A).norm(dim=-1)
    return slope


def steepest_measure(
    A: Float[Tensor, "d d"],
    V: Float[Tensor, "o d"],
    radius: float,
    *,
    tokens: int | None = None,
    atoms: int = 4,
    moving_query: bool = False,
    restarts: int = 16,
    steps: int = 400,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, "K d"], Float[Tensor, " K"], Float[Tensor, " d"]]:
    """The largest `measure_slope` that ascent finds over measures and queries on the ball, float64.

    Measures of `atoms` atoms with free weights, or of so many `tokens` with equal weights.  Returns (slope, atoms,
    weights, query): a lower bound on the Lipschitz constant in W₁, and where it was found.
    """
    A, V = A.double(), V.double()
    draw = {"generator": generator, "dtype": torch.float64}
    d, K = A.shape[0], atoms if tokens is None else tokens
    places, query = (radius * torch.randn(restarts, *shape, d, **draw) / d**0.5 for shape in ((K,), ()))
    direction, logs = torch.randn(restarts, V.shape[0], **draw), torch.zeros(restarts, K, dtype=torch.float64)

    def clip(places, query, logs, direction):
        return (
            into_ball(places, radius),
            into_ball(query, radius),
            logs if tokens is None else torch.zeros_like(logs),
            direction / direction.norm(dim=-1, keepdim=True),
        )

    def slope(places, query, logs, direction):
        # a step of the ascent changes a logarithm by much more than a coordinate
        return measure_slope(A, V, places, (20 * logs).softmax(-1), query, direction, moving_query=moving_query)

    value, (places, query, logs, _), _ = ascend(slope, clip, (places, query, logs, direction), 0.05 * radius, steps)
    return value, places, (20 * logs).softmax(-1), query


def local_wasserstein(
    model: Transformer, prompts: Float[Tensor, "R m d"], queries: Float[Tensor, "R T d"], *, own_token: bool = True
) -> Float[Tensor, " R"]:
    """How fast half the largest difference of two logits moves per unit of W₁ of all tokens that are seen, [R].

    One prompt token is moved: (m + T) max_j max_{c,c'} ‖∂(F_c − F_c')/∂p_j‖ / 2, with m in place of m + T without own
    tokens.  Each prompt has its own query.  A lower bound on Λ_W (Theorem 7, part 1).
    """
    slopes = token_slopes(model, prompts, queries, own_token=own_token, differences=True)
    return (prompts.shape[1] + own_token * queries.shape[1]) * slopes.amax((-1, -2))


def steepest_network_measure(
    model: Transformer,
    m: int,
    radius: float,
    query_radius: float,
    *,
    own_token: bool = True,
    restarts: int = 8,
    steps: int = 100,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, "m d"], Float[Tensor, "1 d"]]:
    """The largest `local_wasserstein` that ascent finds over prompts and queries of one token in their balls, float64.

    Returns (slope, prompt, query): a lower bound on Λ_W, and where it was found.
    """
    model = copy.deepcopy(model.require_finite()).double()
    d = model.config.d
    draw = {"generator": generator, "dtype": torch.float64}
    prompts, queries = (r * torch.randn(restarts, k, d, **draw) / d**0.5 for k, r in ((m, radius), (1, query_radius)))

    def clip(prompts, queries):
        return into_ball(prompts, radius), into_ball(queries, query_radius)

    def slope(prompts, queries):
        return local_wasserstein(model, prompts, queries, own_token=own_token)

    value, (prompt, query), _ = ascend(slope, clip, (prompts, queries), 0.05 * radius, steps)
    return value, prompt, query


def sorted_in_blocks(
    prompts: Float[Tensor, "R m d"], blocks: int, keys: Float[Tensor, "R m"]
) -> Float[Tensor, "R m d"]:  # fmt: skip
    """The prompts with the tokens of each block in increasing order of their key; blocks as in `blockwise`."""
    ends = [-(-b * prompts.shape[1] // blocks) for b in range(blocks + 1)]
    order = torch.cat([start + keys[:, start:end].argsort(1) for start, end in itertools.pairwise(ends)], 1)
    return prompts.gather(1, order[..., None].expand_as(prompts))


def blockwise(
    model: Transformer, prompts: Float[Tensor, "R m d"], queries: Float[Tensor, "R T d"], blocks: int
) -> Float[Tensor, "R q"]:
    """Logits [R, q] of a causal network whose prompt tokens see all of their block; each prompt has its own query.

    Block b of K ends at token ⌈bm/K⌉; a prompt token attends to everything up to the end of its block, the query to the
    prompt and causally to itself.  With as many blocks as tokens it is the network itself (Theorem 7, part 4).
    Positions may be added to tokens.  ValueError unless the network is causal, without rotary positions and context
    scaling, and blocks an integer >= 1.
    """
    c = model.config
    if not c.causal or c.positions == "rotary" or c.context_scaling != "none":
        raise ValueError("blocks are defined for causal networks without rotary positions and context scaling")
    (blocks,) = integers(blocks=blocks)
    m, T = prompts.shape[1], queries.shape[1]
    ends = -(-torch.arange(1, blocks + 1) * m // blocks)
    seen = torch.cat([ends[torch.searchsorted(ends, torch.arange(1, m + 1))], torch.arange(m + 1, m + T + 1)])
    mask = torch.arange(m + T) < seen[:, None]
    x = torch.cat([prompts, queries], 1)[:, None]  # [R, 1, m + T, d]
    x = x + model.position[: m + T] if c.positions == "learned" else x
    for block in model.blocks:
        h = block.norm1(x)
        q, k, v = (block.split(h, w) for w in (block.query, block.key, block.value))
        x = block.token_wise(x + block.attend(q, [k], [v], [mask]))
    return model.norm(x[:, 0, -1]) @ model.unembedding
