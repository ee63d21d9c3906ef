"""Slopes of heads and networks against derivatives, and what the searches for the steepest find."""

import itertools

import pytest
import torch
from networks import normal

from prompt_memory import bounds, measure
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def head(A, V, tokens, query):
    return torch.softmax(tokens @ (A @ query), 0) @ tokens @ V.T


def slope_by_autograd(A, V, tokens, query, direction, moves):
    tokens, query = tokens.clone().requires_grad_(), query.clone().requires_grad_()
    seen = tokens[0] if moves == "self" else query
    (direction @ head(A, V, tokens, seen)).backward()
    total = tokens.grad.norm(dim=-1).sum()
    return total + query.grad.norm() if moves == "both" else total


@pytest.mark.parametrize("moves", ["prompt", "both", "self"])
@pytest.mark.parametrize(("d", "out", "m"), [(1, 1, 2), (2, 3, 1), (4, 2, 5), (3, 3, 17)])
def test_the_slope_of_a_head_is_its_derivative(moves, d, out, m):
    A, V, tokens, query, direction = normal(d, d), normal(out, d), normal(6, m, d), normal(6, d), normal(6, out)
    query = tokens[:, 0] if moves == "self" else query
    found = measure.head_slope(A, V, tokens, query, direction, moves)
    for run in range(6):
        wanted = slope_by_autograd(A, V, tokens[run], query[run], direction[run], moves)
        assert found[run].item() == pytest.approx(wanted.item(), rel=1e-12)


def orthogonal(d, seed):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.mark.parametrize("moves", ["prompt", "both", "self"])
def test_the_search_finds_what_it_reports(moves):
    A, V = 2 * orthogonal(2, 3), orthogonal(2, 4)
    value, *place = measure.steepest_head(A, V, 4, 1.5, moves, restarts=6, steps=150, generator=seeded(1))
    assert measure.head_slope(A, V, *(x[None] for x in place), moves).item() == pytest.approx(value, rel=1e-9)
    constant = bounds.head_lipschitz(A.numpy(), V.numpy(), 1.5, moves != "prompt")
    assert (0.6 if moves == "self" else 0.97) * constant < value <= constant * (1 + 1e-12)
    assert place[0].norm(dim=-1).max() <= 1.5 + 1e-12
    assert place[1].norm() <= 1.5 + 1e-12


def all_tokens_jacobian(A, V, tokens):
    def outputs(z):
        return torch.softmax(z @ A.T @ z.T, -1) @ z @ V.T

    return torch.autograd.functional.jacobian(outputs, tokens).reshape(tokens.shape[0] * V.shape[0], tokens.numel())


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_clusters_of_one_give_the_whole_derivative(n):
    A, V, tokens = normal(3, 3), normal(2, 3, seed=1), normal(n, 3, seed=2)
    found = measure.cluster_slope(A, V, tokens[None], torch.ones(1, n, dtype=torch.float64)).item()
    assert found == pytest.approx(torch.linalg.matrix_norm(all_tokens_jacobian(A, V, tokens), 2).item(), rel=1e-12)


def test_clusters_are_tokens_at_the_same_place():
    A, V, places = normal(2, 2), normal(2, 2, seed=1), normal(2, 2, seed=2)
    counts = torch.tensor([3, 4])
    J = all_tokens_jacobian(A, V, places.repeat_interleave(counts, 0)).reshape(7, 2, 7, 2)
    together = torch.zeros(7, 2, dtype=torch.float64)
    together[:3, 0], together[3:, 1] = 3**-0.5, 0.5
    reduced = torch.einsum("iojk,jb->iobk", J, together).reshape(14, 4)
    found = measure.cluster_slope(A, V, places[None], counts[None].double()).item()
    assert found == pytest.approx(torch.linalg.matrix_norm(reduced, 2).item(), rel=1e-12)


def constant(model, **options):
    options = {"radius": 1.0, "query_radius": 1.0} | options
    return bounds.network_lipschitz(model.config, measure.numpy_weights(model), **options)


def test_the_shortest_norm_input_of_one_layer():
    model = Transformer(TransformerConfig(d=3, norm="layer", norm_eps=0.1)).double()
    prompts, queries = 9 * normal(5, 2, 3), normal(4, 1, 3, seed=1)
    last = queries[3] = queries[3] * 1e-3 + 7
    assert measure.shortest_norm_input(model, prompts, queries) == pytest.approx((last - last.mean()).norm().item())


def slope(model, prompt, query, *, own_token=True, differences=False):
    J = torch.autograd.functional.jacobian(lambda p: model(p, query, own_token=own_token)[0, 0], prompt)[:, 0]
    J = torch.stack([(a - b) / 2 for a, b in itertools.combinations(J, 2)]) if differences else J
    return J.norm(dim=-1).sum(-1).max().item()


def test_local_lipschitz_is_a_supremum_of_differences():
    model = Transformer(TransformerConfig(d=3, q=4, depth=2, mlp=5, norm="layer", norm_eps=0.1)).double()
    prompt, query = normal(1, 4, 3), normal(1, 2, 3, seed=1)
    for differences in (False, True):
        local = measure.local_lipschitz(model, prompt, query, differences=differences).item()
        J = torch.autograd.functional.jacobian(lambda p: model(p, query)[0, 0], prompt)[:, 0]  # [q, m, d]
        pairs = [(J[a] - J[b]) / 2 for a, b in itertools.combinations(range(4), 2)] if differences else list(J)
        steepest = max(pairs, key=lambda g: g.norm(dim=-1).sum())
        step = 1e-6 * steepest / steepest.norm(dim=-1, keepdim=True)
        change = (model(prompt + step, query) - model(prompt - step, query))[0, 0] / 2e-6
        size = (change.max() - change.min()) / 2 if differences else change.abs().max()
        assert size.item() == pytest.approx(local, rel=1e-6)
        random = normal(50, 4, 3, seed=2)
        random = 1e-6 * random / random.norm(dim=-1, keepdim=True)
        moved = (model(prompt + random, query) - model(prompt - random, query))[:, 0] / 2e-6
        sizes = (moved.amax(-1) - moved.amin(-1)) / 2 if differences else moved.abs().amax(-1)
        assert sizes.max() <= local * (1 + 1e-6)


def test_the_search_over_networks_stays_below_and_finds_more_than_chance():
    model = Transformer(TransformerConfig(d=4, q=3, mlp=8, norm="rms", norm_eps=0.1)).double()
    found, prompt, query = measure.steepest_network(model, 3, 1.0, 1.0, restarts=4, steps=60, generator=seeded(0))
    assert found == pytest.approx(slope(model, prompt[None], query[None]), rel=1e-9)
    prompts, queries = (measure.into_ball(normal(200, k, 4), 1.0) for k in (3, 1))
    assert measure.local_lipschitz(model, prompts, queries).max() < found <= constant(model)
    assert prompt.norm(dim=-1).max() <= 1 + 1e-12


def test_the_search_over_networks_looks_at_the_origin_of_norms():
    config = TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, norm="rms", norm_eps=1e-6, positions="learned")
    model = Transformer(config, generator=seeded(1)).double()
    model.position.mul_(0.2)  # the origins lie in the ball
    arguments = dict(restarts=2, steps=20, generator=seeded(0))
    found, prompt, query = measure.steepest_network(model, 2, 1.0, 1.0, **arguments)
    assert found == pytest.approx(slope(model, prompt[None], query[None]), rel=1e-9)
    assert (prompt + model.position[:2]).norm(dim=-1).max() < 0.02
    random = [measure.into_ball(normal(2000, k, 4), 1.0) for k in (2, 1)]
    assert found > 20 * measure.local_lipschitz(model, *random).max()
    kept, *places = measure.steepest_network(model, 2, 1.0, 1.0, least_norm=0.5, **arguments)
    assert min(x.norm(dim=-1).min() for x in places) >= 0.5 - 1e-9
    assert kept <= found


def test_a_head_moves_in_one_of_three_ways():
    with pytest.raises(ValueError, match="moves must be one of prompt, both, self, not 'query'"):
        measure.head_slope(*(normal(1, 1),) * 2, normal(1, 1, 1), *(normal(1, 1),) * 2, "query")
