"""Texts that share the token they are read at, and what is written down for them: low-rank updates and prompts.

Sequences (x_i, x_0) in which the read token x_0 gives every x_i the same attention: a soft prompt moves all their
answers alike, a low-rank change of the value matrix permutes them (Theorem 13).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.transformer import Transformer


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


def shared_texts(contents: Float[Tensor, "n d"], read: Float[Tensor, " d"]) -> Float[Tensor, "n 2 d"]:
    """The texts (x_i, x_0) that share the token they are read at."""
    return torch.stack([contents, read.expand_as(contents)], 1)


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
