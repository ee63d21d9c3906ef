"""Lipschitz constants from below: where a head or a network is steepest, found by gradient ascent."""

import copy
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.transformer import Norm, Transformer


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

    value, (tokens, query, direction), _ = ascend(
        slope, clip, (tokens, query, direction), 0.05 * radius, steps, power=2
    )
    return value, tokens, tokens[0] if moves == "self" else query, direction


def token_slopes(
    model: Transformer,
    prompts: Float[Tensor, "R m d"],
    queries: Float[Tensor, "R T d"],
    *,
    own_token: bool,
    differences: bool,
) -> Float[Tensor, "R c m"]:
    """‖∂F_c/∂p_j‖ for each logit c and prompt token j, each prompt with its own query, [R, c, m].

    `differences`: of half the difference of each two logits instead, ‖∂(F_c − F_c')/∂p_j‖ / 2.
    """

    def logits(prompt, query):
        return model(prompt[None], query[None], own_token=own_token)[0, 0]

    J = torch.func.vmap(torch.func.jacrev(logits))(prompts, queries)  # [R, q, m, d]
    if differences:
        first, second = torch.triu_indices(J.shape[1], J.shape[1], 1)
        J = (J[:, first] - J[:, second]) / 2
    return (J.square().sum(-1) + 1e-300).sqrt()  # a root that is differentiable at 0


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
    return token_slopes(model, prompts, queries, own_token=own_token, differences=differences).sum(-1).amax(-1)


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

    value, (prompt, query), run = ascend(slope, clip, (prompts, queries), 0.05, steps)
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
    return ascend(
        lambda z: cluster_slope(A, V, z, counts), lambda z: (into_ball(z, radius),), (places,), 0.05 * radius, steps
    )[0]


def into_ball(x: Float[Tensor, "... d"], radius: float, least: float = 0.0) -> Float[Tensor, "... d"]:
    """The nearest vectors of length between `least` and `radius`."""
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    return x * (length.clamp(min=least, max=radius) / length)


def ascend(value, clip, start, rate: float, steps: int, power: int | None = None):
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
