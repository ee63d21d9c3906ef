"""What was memorised: behaviours, recall, and the number of coordinates of a prompt that the outputs can see."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import optimize, sparse, special, stats
from torch import Tensor

from prompt_memory.checks import integers
from prompt_memory.transformer import Norm, Prefix, Transformer

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


def logit_margins(logits: Float[Tensor, "... q"], labels: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """By how much the logit of each label exceeds all others; negative where another class is larger, [...]."""
    wanted = logits.gather(-1, labels[..., None])[..., 0]
    return wanted - logits.scatter(-1, labels[..., None], -torch.inf).amax(-1)


# --- strings -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model: Transformer, prompts: Float[Tensor, "R m d"], n: int) -> Int[Tensor, "R n"]:
    """The n tokens that greedy decoding yields after each prompt, [R, n]; of tied tokens the first."""
    x = prompts
    tokens = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for _ in range(n):
        token = model.stream(x)[:, -1:].argmax(-1)  # [R, 1]
        tokens = torch.cat([tokens, token], 1)
        x = torch.cat([x, model.embedding[token]], 1)
    return tokens


@torch.no_grad()
def sampled_strings(
    model: Transformer, prompts: Float[Tensor, "R m d"], n: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, "R n"], Float[Tensor, "R n"]]:
    """n tokens drawn from the model after each prompt, [R, n], and log2 of the probabilities of all beginnings, [R, n].

    Column i of the second array belongs to the first i + 1 tokens.
    """
    x, tokens, log2 = prompts, [], []
    for _ in range(n):
        probability = model.stream(x)[:, -1].double().softmax(-1)  # [R, q]
        tokens.append(torch.multinomial(probability, 1, generator=generator))
        log2.append(probability.gather(-1, tokens[-1]).log2())
        x = torch.cat([x, model.embedding[tokens[-1]]], 1)
    return torch.cat(tokens, 1), torch.cat(log2, 1).cumsum(1)


def n50(lengths: Int[np.ndarray, " S"], longest: int | None = None) -> float:
    """The number of tokens at which half of the strings are still accessible, from their longest accessible lengths.

    Maximum likelihood for the sigmoid Pr[length >= n] = 1/(1 + e^{(n − n50)/w}), n >= 1; equal lengths a give a + 1/2.
    A length of `longest`, where the strings ended, counts as "at least".  No string accessible at all: 0; every string
    to its end: infinity.  It is the centre of a sigmoid and no bound's half point: lengths with a long upper tail raise
    it (Pr[length >= n] = 0.8^{n − 5} falls to one half at 8.1 and gives 8.9); for bounds take `half_length`.
    ValueError without strings.
    """
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise ValueError("n50 needs at least one string")
    ended = lengths == longest
    if ended.all():
        return math.inf
    if not lengths.any():
        return 0.0

    def sigmoid(n, centre, width):
        return np.where(n < 0.5, 1.0, special.expit(-(n - centre) / width))

    def cost(parameters):
        centre, width = parameters[0], math.exp(parameters[1])
        mass = sigmoid(lengths, centre, width) - np.where(ended, 0.0, sigmoid(lengths + 1, centre, width))
        return -np.log(np.maximum(mass, 1e-12)).mean() + 1e-4 * parameters[1] ** 2  # equal lengths have no width

    start = (lengths.mean() + 0.5, math.log(max(0.3, 0.55 * lengths.std())))
    fit = optimize.minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8})
    return max(0.0, float(fit.x[0]))


def half_crossing(log2_fractions: Float[np.ndarray, " N"]) -> float:
    """Where the fractions 2^f_n at n = 1, 2, … first fall to one half, f being joined by straight lines from f_0 = 0.

    A fraction 2^B V^{−n} has f on a straight line and falls to one half at (B + 1)/log2 V exactly; fractions that are
    never above it do so no later.  Infinite if they do not fall so far.
    """
    curve = np.concatenate([[0.0], np.asarray(log2_fractions, dtype=float)])
    below = np.flatnonzero(curve <= -1)
    if not len(below):
        return math.inf
    n = int(below[0])
    return n - (-1 - curve[n]) / (curve[n - 1] - curve[n])


def half_length(lengths: Int[np.ndarray, " S"], longest: int | None = None) -> float:
    """The number of tokens at which half of the strings are still accessible: `half_crossing` of the fractions left.

    An estimate of what Theorem 4 bounds by (B + 1)/log2 V, from the longest accessible lengths.  Where no string is
    left, half a string is counted, so that the logarithm is finite.  If the strings end at `longest`, nothing is known
    beyond; infinite if more than half of them reach it.  ValueError without strings.
    """
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise ValueError("half_length needs at least one string")
    end = int(lengths.max()) + 1 if longest is None else longest
    left = (lengths[:, None] >= np.arange(1, end + 1)).sum(0)
    return half_crossing(np.log2(np.maximum(left, 0.5) / len(lengths)))


# --- ranks ---------------------------------------------------------------------------------------------------------


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


# --- Lipschitz constants -------------------------------------------------------------------------------------------


def numpy_weights(model: Transformer) -> dict[str, np.ndarray]:
    """The weights of a network as float64 arrays under their names, as `bounds.network_lipschitz` reads them."""
    return {name: weight.detach().double().cpu().numpy() for name, weight in model.state_dict().items()}


def head_slope(
    A: Float[Tensor, "d d"],
    V: Float[Tensor, "o d"],
    tokens: Float[Tensor, "R m d"],
    query: Float[Tensor, "R d"],
    direction: Float[Tensor, "R o"],
    moves: Literal["prompt", "both", "self"] = "prompt",
) -> Float[Tensor, " R"]:
    """How fast one head can move along `direction` when every token moves by at most one, [R].

    The head is Σ_j softmax_j(⟨A x, z_j⟩) V z_j.  With u = Vᵀ·direction and z̄ the mean under the softmax weights s, its
    derivative in z_j is s_j (u + ⟨u, z_j − z̄⟩ A x), in the query x it is Aᵀ Σ_j s_j ⟨u, z_j − z̄⟩ z_j; the answer is the
    sum of their lengths (Lemma 2a).  `moves`: the query stays fixed ("prompt"), moves as well ("both"), or is
    the first token ("self", where `query` must be `tokens[:, 0]`).
    """
    if moves not in ("prompt", "both", "self"):
        raise ValueError(f"moves must be one of prompt, both, self, not {moves!r}")
    seen = query @ A.T  # A x, [R, d]
    weight = torch.softmax((tokens @ seen[..., None])[..., 0], -1)  # [R, m]
    u = direction @ V  # [R, d]
    centred = tokens - (weight[..., None] * tokens).sum(-2, keepdim=True)
    reach = weight * (centred @ u[..., None])[..., 0]  # s_j ⟨u, z_j − z̄⟩, [R, m]
    each = weight[..., None] * u[:, None] + reach[..., None] * seen[:, None]  # [R, m, d]
    own = (reach[..., None] * tokens).sum(-2) @ A  # [R, d]
    if moves == "self":
        each = torch.cat([each[:, :1] + own[:, None], each[:, 1:]], 1)
    total = each.norm(dim=-1).sum(-1)
    return total + own.norm(dim=-1) if moves == "both" else total


def steepest_head(
    A: Float[Tensor, "d d"],
    V: Float[Tensor, "o d"],
    m: int,
    radius: float,
    moves: Literal["prompt", "both", "self"] = "prompt",
    *,
    restarts: int = 16,
    steps: int = 300,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, "m d"], Float[Tensor, " d"], Float[Tensor, " o"]]:
    """The largest `head_slope` that ascent finds over m tokens and a query in the ball and all directions, float64.

    Returns (slope, tokens, query, direction): a lower bound on the Lipschitz constant, and where it was found.
    """
    A, V = A.double(), V.double()
    draw = {"generator": generator, "dtype": torch.float64}
    tokens, query = (
        radius * torch.randn(restarts, *shape, A.shape[0], **draw) / A.shape[0] ** 0.5 for shape in ((m,), ())
    )
    direction = torch.randn(restarts, V.shape[0], **draw)

    def clip(tokens, query, direction):
        return into_ball(tokens, radius), into_ball(query, radius), direction / direction.norm(dim=-1, keepdim=True)

    def slope(tokens, query, direction):
        query = tokens[:, 0] if moves == "self" else query
        return head_slope(A, V, tokens, query, direction, moves)

    value, (tokens, query, direction), _ = _ascend(
        slope, clip, (tokens, query, direction), 0.05 * radius, steps, power=2
    )
    return value, tokens, tokens[0] if moves == "self" else query, direction


def local_lipschitz(
    model: Transformer,
    prompts: Float[Tensor, "R m d"],
    queries: Float[Tensor, "R T d"],
    *,
    own_token: bool = True,
    differences: bool = False,
) -> Float[Tensor, " R"]:
    """Local Lipschitz constants of the logits in the prompt, each prompt with its own query, [R].

    From max_j ‖p_j‖ to the largest logit: max_c Σ_j ‖∂F_c/∂p_j‖, exactly the norm of the derivative.  `differences`:
    half the largest difference of two logits instead, max_{c,c'} Σ_j ‖∂(F_c − F_c')/∂p_j‖ / 2.
    """

    def logits(prompt, query):
        return model(prompt[None], query[None], own_token=own_token)[0, 0]

    J = torch.func.vmap(torch.func.jacrev(logits))(prompts, queries)  # [R, q, m, d]
    if differences:
        first, second = torch.triu_indices(J.shape[1], J.shape[1], 1)
        J = (J[:, first] - J[:, second]) / 2
    # a root that is differentiable at 0
    return (J.square().sum(-1) + 1e-300).sqrt().sum(-1).amax(-1)


def steepest_network(
    model: Transformer,
    m: int,
    radius: float,
    query_radius: float,
    *,
    restarts: int = 8,
    steps: int = 100,
    least_norm: float = 0.0,
    own_token: bool = True,
    differences: bool = False,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, "m d"], Float[Tensor, "1 d"]]:
    """The largest `local_lipschitz` that ascent finds over prompts and queries of one token in their balls, float64.

    Norms are steepest at their origin, which random starts miss: a token is there at minus its position.  So in a
    network with norms to `restarts` random starts come eight at distances 10⁻¹ … 10⁻⁴ (times the radius) from there,
    half of them with a query that is as near to its own origin; each run takes steps of the size of its distance.
    `least_norm` keeps prompt tokens and query at least that long.  Returns (constant, prompt, query): a lower bound on
    the network's Lipschitz constant, and where it was found.
    """
    model = copy.deepcopy(model.require_finite()).double()
    d = model.config.d
    draw = {"generator": generator, "dtype": torch.float64}
    close = torch.tensor([] if model.config.norm == "none" else [1e-1, 1e-2, 1e-3, 1e-4]).double()
    ones = torch.ones(restarts).double()
    sizes = torch.cat([ones, close, close]), torch.cat([ones, torch.ones_like(close), close])
    origin = -model.position[: m + 1] if model.config.positions == "learned" else torch.zeros(m + 1, d).double()
    parts = []  # of prompts and of queries: centre, size of a step, start in units of it
    for size, r, zero in zip(sizes, (radius, query_radius), (origin[:m], origin[m:]), strict=True):
        size, r = size[:, None, None], max(r, 1e-300)
        parts.append(((size < 1) * zero, r * size, torch.randn(len(size), len(zero), d, **draw) / d**0.5))
    (p, p_step, prompts), (x, x_step, queries) = parts

    def clip(prompts, queries):
        return (
            (into_ball(p + p_step * prompts, radius, least_norm) - p) / p_step,
            (into_ball(x + x_step * queries, query_radius, least_norm) - x) / x_step,
        )

    def slope(prompts, queries):
        return local_lipschitz(
            model, p + p_step * prompts, x + x_step * queries, own_token=own_token, differences=differences
        )

    value, (prompt, query), run = _ascend(slope, clip, (prompts, queries), 0.05, steps)
    return value, p[run] + p_step[run] * prompt, x[run] + x_step[run] * query


def shortest_norm_input(model: Transformer, prompts: Float[Tensor, "R m d"], queries: Tensor) -> float:
    """The length of the shortest vector, after centring, that any norm of the network is given on these inputs."""
    shortest = torch.inf

    def watch(norm, inputs):
        nonlocal shortest
        x = inputs[0] - inputs[0].mean(-1, keepdim=True) if norm.kind == "layer" else inputs[0]
        shortest = min(shortest, float(x.norm(dim=-1).min()))

    hooks = [part.register_forward_pre_hook(watch) for part in model.modules() if isinstance(part, Norm)]
    try:
        for part in prompts.split(4096):
            model(part, queries)
    finally:
        for hook in hooks:
            hook.remove()
    return shortest


def cluster_slope(
    A: Float[Tensor, "d d"], V: Float[Tensor, "o d"], places: Float[Tensor, "R K d"], counts: Float[Tensor, "R K"]
) -> Float[Tensor, " R"]:
    """Frobenius norm gained by self-attention of clustered tokens, when each cluster moves as one, [R].

    `counts` tokens sit at each of K places.  The largest singular value of the derivative of the map of all tokens to
    all outputs, restricted to directions that are the same within a cluster; with counts of one it is the whole
    derivative.  A lower bound on the Lipschitz constant in the Frobenius norm (Proposition 2c).
    """
    R, K, d = places.shape
    logits = places @ A.T @ places.mT + counts.log()[:, None]  # query a, key b: ⟨A z_a, z_b⟩, [R, K, K]
    weight = torch.softmax(logits, -1)
    centred = places[:, None] - (weight @ places)[:, :, None]  # z_b − z̄_a, [R, a, b, d]
    keys = torch.einsum("rab,rabk,raj->rabkj", weight, centred, places @ A.T)
    keys = keys + weight[..., None, None] * torch.eye(d, dtype=A.dtype)
    covariance = torch.einsum("rab,rabk,rabj->rakj", weight, centred, centred)
    own = torch.einsum("rakj,ab->rabkj", covariance @ A, torch.eye(K, dtype=A.dtype))
    scale = (counts[:, :, None] / counts[:, None]).sqrt()[..., None, None]  # from cluster means to Frobenius norms
    J = torch.einsum("ok,rabkj->raobj", V, (keys + own) * scale)
    return torch.linalg.matrix_norm(J.reshape(R, K * V.shape[0], K * d), 2)


def steepest_clusters(
    A: Float[Tensor, "d d"],
    V: Float[Tensor, "o d"],
    tokens: int,
    radius: float,
    *,
    restarts: int = 8,
    steps: int = 300,
    generator: torch.Generator,
) -> float:
    """The largest `cluster_slope` that ascent finds for so many tokens in two clusters of all proportions, float64."""
    A, V = A.double(), V.double()
    if tokens < 2:
        raise ValueError(f"two clusters need at least two tokens, not {tokens}")
    first = sorted({round(tokens**x) for x in np.linspace(0, 1, 12)} & set(range(1, tokens)))
    counts = torch.tensor([[k, tokens - k] for k in first], dtype=torch.float64).repeat(restarts, 1)
    places = radius * torch.randn(len(counts), 2, A.shape[0], generator=generator, dtype=torch.float64)
    return _ascend(
        lambda z: cluster_slope(A, V, z, counts), lambda z: (into_ball(z, radius),), (places,), 0.05 * radius, steps
    )[0]


def into_ball(x: Float[Tensor, "... d"], radius: float, least: float = 0.0) -> Float[Tensor, "... d"]:
    """The nearest vectors of length between `least` and `radius`."""
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    return x * (length.clamp(min=least, max=radius) / length)


def _ascend(value, clip, start, rate: float, steps: int, power: int | None = None):
    """Adam with a cosine schedule on the sum of `value` [R] over independent runs, `clip`ped after every step.

    In the variable numbered `power` the value is a norm: it is replaced by its gradient, a power iteration, which never
    lowers a norm on the sphere.  Returns the largest value that any run had at any step, its row of each variable, and
    the number of the run.
    """
    variables = [x.clone().requires_grad_() for x in clip(*start)]
    adam = torch.optim.Adam([x for k, x in enumerate(variables) if k != power], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-3 * rate)
    best, place, run = -torch.inf, None, 0
    for step in range(steps + 1):
        values = value(*variables)
        top = int(values.argmax())
        if values[top] > best:
            best, place, run = float(values[top].detach()), [x[top].detach().clone() for x in variables], top
        if step < steps:
            slopes = torch.autograd.grad(-values.sum(), variables, allow_unused=True, materialize_grads=True)
            for x, slope in zip(variables, slopes, strict=True):
                x.grad = slope
            adam.step()
            schedule.step()
            with torch.no_grad():
                if power is not None:
                    variables[power].copy_(-variables[power].grad)
                for x, clipped in zip(variables, clip(*variables), strict=True):
                    x.copy_(clipped)
    return best, place, run


# --- labelings with a margin ---------------------------------------------------------------------------------------


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


# --- the measure of a prompt ---------------------------------------------------------------------------------------


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

    value, (places, query, logs, _), _ = _ascend(slope, clip, (places, query, logs, direction), 0.05 * radius, steps)
    return value, places, (20 * logs).softmax(-1), query


def local_wasserstein(
    model: Transformer, prompts: Float[Tensor, "R m d"], queries: Float[Tensor, "R T d"], *, own_token: bool = True
) -> Float[Tensor, " R"]:
    """How fast half the largest difference of two logits moves per unit of W₁ of all tokens that are seen, [R].

    One prompt token is moved: (m + T) max_j max_{c,c'} ‖∂(F_c − F_c')/∂p_j‖ / 2, with m in place of m + T without own
    tokens.  Each prompt has its own query.  A lower bound on Λ_W (Theorem 7, part 1).
    """

    def logits(prompt, query):
        return model(prompt[None], query[None], own_token=own_token)[0, 0]

    J = torch.func.vmap(torch.func.jacrev(logits))(prompts, queries)  # [R, q, m, d]
    first, second = torch.triu_indices(J.shape[1], J.shape[1], 1)
    J = ((J[:, first] - J[:, second]).square().sum(-1) + 1e-300).sqrt() / 2
    return (prompts.shape[1] + own_token * queries.shape[1]) * J.amax((-1, -2))


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

    value, (prompt, query), _ = _ascend(slope, clip, (prompts, queries), 0.05 * radius, steps)
    return value, prompt, query


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
