"""What the table of token embeddings tells: a radius, the rounding of a format, the scale of a search."""

import math

import torch

from prompt_memory.network.transformer import Transformer
from prompt_memory.real.models.network import WrappedNetwork, dtype_of


def embedding_radius(model: WrappedNetwork | Transformer, norm: float = 2) -> float:
    """The length of the longest token embedding, max_v ‖e_v‖ in the Euclidean norm, or in another (`math.inf`)."""
    return float(max(torch.linalg.vector_norm(part, norm, -1).max() for part in model.embedding.double().split(4096)))


def embedding_tolerance(
    model: WrappedNetwork | Transformer, dtype: str | torch.dtype = "float16", norm: float = 2
) -> float:
    """ε = r·u: no coordinate of size at most r is changed by more when it is rounded to a number format.

    r is `embedding_radius` and u the unit roundoff, 2⁻¹¹ for float16, 2⁻⁸ for bfloat16, 2⁻²⁴ for float32.  Numbers
    below the normal range of the format are off by less than its smallest normal number times u, which is smaller.
    """
    return embedding_radius(model, norm) * torch.finfo(dtype_of(dtype)).eps / 2


def search_settings(model: WrappedNetwork | Transformer) -> dict[str, float]:
    """`scale` and `learning_rate` of `tune.cram` in units of the embeddings' root mean square coordinate.

    For our own networks, where it is about 1, these are the defaults, 3 and 0.5.
    """
    size = math.sqrt(math.fsum(float(part.square().sum()) for part in model.embedding.double().split(4096)))
    size /= math.sqrt(model.embedding.numel())
    return {"scale": 3.0 * size, "learning_rate": 0.5 * size}
