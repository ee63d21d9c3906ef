"""One frozen network tuned in four ways: soft prompt, prefix, LoRA, all weights; and what each of them memorises.

The network is a `transformers` GPT-2 with our weights; soft prompt, prefix and LoRA are those of `peft`, not written
again here.  All of them get the same task, a *table*: K different random keys, each followed by a string of random
labels, to be held by one adaptation.  Shapes: `K` entries, `T` tokens in a key, `n` labels in a string.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prompt_memory import bounds
from prompt_memory.bench import export_gpt2, peft_gpt2
from prompt_memory.checks import integers
from prompt_memory.tasks import digits, random_labels
from prompt_memory.transformer import Transformer

KINDS = ("soft prompt", "prefix", "LoRA", "all weights")
TARGETS = ("c_attn", "c_proj", "c_fc")  # every matrix inside the layers of a GPT-2 (two of them are called c_proj)


@dataclass(frozen=True)
class Tuning:
    """Which numbers are trained: `size` is the number of virtual tokens, or the rank of LoRA; all weights have none.

    ValueError for an unknown kind, or a size that is not an integer >= 1 (0 for all weights).
    """

    kind: Literal["soft prompt", "prefix", "LoRA", "all weights"]
    size: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.kind == "all weights" and self.size != 0:
            raise ValueError(f"all weights are trained, a size of {self.size!r} has no meaning")
        if self.kind != "all weights" and not (whole and self.size >= 1):
            raise ValueError(f"a {self.kind} needs a size that is an integer >= 1, not {self.size!r}")

    def __str__(self) -> str:
        return {"LoRA": f"LoRA, rank {self.size}", "all weights": "all weights"}.get(
            self.kind, f"{self.kind}, m = {self.size}"
        )


def adapt(model: Transformer, tuning: Tuning, *, seed: int = 0) -> nn.Module:
    """The network as a `transformers` GPT-2 in which exactly the numbers of `tuning` require gradients.

    Soft prompts start from normal noise with the standard deviation of the embeddings, prefixes from standard normal
    noise, LoRA as `peft` starts it (the network unchanged, no dropout, lora_alpha = rank, on every matrix inside the
    layers); all weights start from the frozen ones.  The same seed gives the same start.
    ValueError for a network that GPT-2 cannot be, or a prompt that leaves no position for a string.
    """
    c = model.config
    if tuning.kind in ("soft prompt", "prefix") and tuning.size >= c.context:
        raise ValueError(f"{tuning.size} virtual tokens leave nothing of the {c.context} learned positions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if tuning.kind == "all weights":
            return export_gpt2(model).requires_grad_(True)
        from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

        if tuning.kind == "LoRA":
            options = dict(target_modules=list(TARGETS), fan_in_fan_out=True, lora_alpha=tuning.size, lora_dropout=0.0)
            adapted = peft_gpt2(model, LoraConfig(task_type="CAUSAL_LM", r=tuning.size, **options))
        else:
            config = {"soft prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[tuning.kind]
            adapted = peft_gpt2(model, config(task_type="CAUSAL_LM", num_virtual_tokens=tuning.size))
            (prompt,) = trained(adapted)
            scale = float(model.embedding.std()) if tuning.kind == "soft prompt" else 1.0
            with torch.no_grad():
                prompt.normal_(0.0, scale)
    return adapted.eval()


def trained(adapted: nn.Module) -> list[nn.Parameter]:
    """The tensors of numbers that are trained."""
    return [weight for weight in adapted.parameters() if weight.requires_grad]


def trained_numbers(config, tuning: Tuning) -> int:
    """How many numbers a tuning trains in a GPT-2 with the given `config`, D.

    Soft prompt m·d; prefix m·2·L·d; LoRA r·L·(4d + 2d + 2(d + mlp)); all weights of the GPT-2, its biases included.
    """
    d, L, mlp = config.d, config.depth, config.mlp
    if tuning.kind == "soft prompt":
        return tuning.size * d
    if tuning.kind == "prefix":
        return tuning.size * 2 * L * d
    if tuning.kind == "LoRA":
        return tuning.size * L * (4 * d + 2 * d + 2 * (d + mlp))
    layer = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (2 * d * mlp + mlp + d)
    return L * layer + 2 * d + 2 * config.q * d + config.context * d


# --- the task ------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """K entries: different keys of T tokens, and the labels that are to follow each key."""

    keys: Int[Tensor, "K T"]
    labels: Int[Tensor, "K n"]


def random_table(K: int, n: int, q: int, *, key_tokens: int = 3, generator: torch.Generator) -> Table:
    """K different keys of `key_tokens` tokens, drawn without replacement, and K·n uniform labels in 0 … q − 1.

    ValueError if there are fewer than K keys, or an argument is smaller than 1 (2 for q).
    """
    if min(K, n, key_tokens) < 1 or q < 2:
        raise ValueError(f"a table needs K, n, key_tokens >= 1 and q >= 2, not {K}, {n}, {key_tokens} and {q}")
    if q**key_tokens < K:
        raise ValueError(f"there are only {q**key_tokens} keys of {key_tokens} tokens, fewer than {K}")
    number = torch.randperm(q**key_tokens, generator=generator)[:K]
    return Table(digits(number, q, key_tokens).flip(1), random_labels(K, n, q, generator=generator))


def label_logits(adapted: nn.Module, table: Table) -> Float[Tensor, "K n q"]:
    """The logits that are read at each label, under teacher forcing: after the key and the labels before it."""
    sequence = torch.cat([table.keys, table.labels[:, :-1]], 1)  # [K, T + n − 1]
    return adapted(input_ids=sequence).logits[:, -table.labels.shape[1] :]  # before them: virtual tokens and the key


@torch.no_grad()
def recalled(adapted: nn.Module, table: Table, *, chunk: int = 2048) -> Bool[Tensor, "K n"]:
    """Which labels have the largest logit, under teacher forcing; a tie is recalled only by the first token."""
    parts = zip(table.keys.split(chunk), table.labels.split(chunk), strict=True)
    return torch.cat([label_logits(adapted, Table(*part)).argmax(-1) == part[1] for part in parts])


def tune(
    adapted: nn.Module, table: Table, *, steps: int, learning_rate: float, batch: int, generator: torch.Generator
) -> nn.Module:
    """Train the numbers that require gradients with Adam on the cross-entropy of all labels; the same module.

    Each step sees `batch` entries of the table, reshuffled after each pass (all of them if there are no more); the
    learning rate rises during the first tenth of the steps and then falls to nothing like a cosine.
    RuntimeError with the step if the loss is not finite.
    """
    weights = trained(adapted)
    adam = torch.optim.Adam(weights, lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, steps))
    parts = _batches(len(table.keys), batch, generator)
    for step in range(steps):
        part = next(parts)
        logits = label_logits(adapted, Table(table.keys[part], table.labels[part]))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), table.labels[part].flatten())
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is not finite in step {step}: lower the learning rate of {learning_rate:g}")
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return adapted


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(K: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(K, generator=generator)
        yield from order.split(batch) if batch < K else (order,)


# --- bits ----------------------------------------------------------------------------------------------------------


def retained_bits(recall: float, K: int, n: int, q: int) -> float:
    """K·n·R_q(1 − a), the bits that a recall of a = `recall` of K·n uniform labels retains (Theorem 1, part 2).

    ValueError unless recall is a fraction and K, n >= 1.
    """
    if min(K, n) < 1:
        raise ValueError(f"K and n must be at least 1, not {K} and {n}")
    return K * n * bounds.rate(1 - recall, q)


@torch.no_grad()
def rounded(adapted: nn.Module, bits: int, start: Sequence[Tensor] | None = None) -> float:
    """Round every trained number to one of 2^bits values, in place; the bits that describe the result.

    Each tensor becomes `start` (zero by default) plus one of 2^bits evenly spaced values from −s to s, where s is the
    largest change in the tensor, in float32.  If `start` is fixed before any label is seen, the result is one of 2^B
    adaptations with B = bits·D + 32·(number of tensors).  ValueError unless bits is an integer >= 1.
    """
    (bits,) = integers(bits=bits)
    weights = trained(adapted)
    origin = [torch.zeros_like(weight) for weight in weights] if start is None else start
    for weight, zero in zip(weights, origin, strict=True):
        change = weight - zero
        largest = change.abs().max()
        if largest > 0:
            place = ((change / largest + 1) / 2 * (2**bits - 1)).round()
            weight.copy_(zero + (2 * place / (2**bits - 1) - 1) * largest)
    return float(bits * sum(weight.numel() for weight in weights) + 32 * len(weights))


@torch.no_grad()
def recall_when_rounded(
    adapted: nn.Module, table: Table, bits: Sequence[int], start: Sequence[Tensor] | None = None
) -> list[tuple[float, float]]:
    """(bits that describe the adaptation, recall) for each entry of `bits`; the module is left as it was."""
    weights = trained(adapted)
    kept, results = [weight.clone() for weight in weights], []
    for b in bits:
        described = rounded(adapted, b, start)
        results.append((described, recalled(adapted, table).double().mean().item()))
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return results


class Memory(NamedTuple):
    """What one adaptation remembers of a table of K·n labels: `recall` of exactly this adaptation, and when rounded.

    `rounded` holds (bits that describe it, recall) for each number of bits asked for.
    """

    K: int
    n: int
    recall: float
    rounded: list[tuple[float, float]]


def memorise(
    model: Transformer, tuning: Tuning, K: int, n: int, *, steps: int, learning_rate: float, seed: int,
    batch: int = 1024, bits: Sequence[int] = (),
) -> Memory:  # fmt: skip
    """Draw a table of K keys and K·n labels, adapt the network to it, and count what is recalled.

    Everything random follows from `seed`.  ValueError and RuntimeError as in `adapt`, `random_table` and `tune`.
    """
    generator = torch.Generator().manual_seed(seed)
    table = random_table(K, n, model.config.q, generator=generator)
    adapted = adapt(model, tuning, seed=seed)
    start = [weight.detach().clone() for weight in trained(adapted)]
    tune(adapted, table, steps=steps, learning_rate=learning_rate, batch=batch, generator=generator)
    recall = recalled(adapted, table).double().mean().item()
    return Memory(K, n, recall, recall_when_rounded(adapted, table, bits, start))


# --- numbers that nothing reads ------------------------------------------------------------------------------------


def visible_numbers(config, tuning: Tuning) -> int:
    """The largest rank of the derivative of all logits in the trained numbers, D_eff, for an exported network.

    For L >= 2 layers, smooth activations, norm_eps > 0, generic weights and enough queries; see the chapter on other
    tunings, which proves "at most".  Soft prompt m(d − 1): no norm reads the mean.  Prefix m·2·L·d.  LoRA: the r² of
    BA = (BG⁻¹)(GA) in each of 4L matrices, and r for the one direction that is never fed to it or never read after it.
    All weights: D less the dimension of the group that leaves the network unchanged.
    ValueError for fewer than two layers, norm_eps = 0 or rectifiers.
    """
    c = config
    if c.depth < 2 or not c.norm_eps > 0 or c.activation != "gelu":
        raise ValueError("the count is established for at least two layers, norm_eps > 0 and GELU")
    D = trained_numbers(c, tuning)
    if tuning.kind == "soft prompt":
        return D - tuning.size
    if tuning.kind == "prefix":
        return D
    if tuning.kind == "LoRA":
        if tuning.size >= c.d - 1:
            raise ValueError(f"the count is established for ranks below d - 1, not {tuning.size}")
        return D - 4 * c.depth * tuning.size * (tuning.size + 1)
    heads = c.heads * (c.d_k**2 + c.d_v**2)  # bases of keys and queries, of values
    biases = 2 * c.d  # of keys: the softmax is blind to shifts; of values: they are biases of the output
    gains = 4 * c.d + (3 * c.d + c.mlp)  # of two norms, and what multiplies the mean that a norm removes
    means = (c.d + 1) + (c.mlp + 1)  # what is written to the mean of the residual stream
    layer = heads + biases + gains + means
    ends = 2 * c.d + c.q + c.context + (c.d - 1)  # last norm; means of embeddings; embeddings against positions
    rotations = (c.d - 1) * (c.d - 2) // 2  # of the residual stream, around the vector of ones
    return D - c.depth * layer - ends - rotations


def measured_rank(
    adapted: nn.Module, sequences: Int[Tensor, "N T"], *, spread: float, generator: torch.Generator
) -> tuple[int, float, float]:
    """The rank of the derivative of all logits at a random point, in float64, with the evidence for it.

    Every trained number is moved by normal noise of standard deviation `spread`.  The rows are D + 8 random
    combinations of all logits of all sequences.  Returns the number of singular values above 1e-11 of the largest, the
    smallest of these and the largest of the others (0 if there is none), both relative to the largest.
    """
    adapted.double()
    weights = trained(adapted)
    with torch.no_grad():
        for weight in weights:
            weight += spread * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    logits = adapted(input_ids=sequences).logits
    rows = []
    for _ in range(sum(weight.numel() for weight in weights) + 8):
        direction = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
        gradients = torch.autograd.grad(logits, weights, direction, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    values = torch.linalg.svdvals(torch.stack(rows))
    values = values / values[0]
    rank = int((values > 1e-11).sum())
    return rank, float(values[rank - 1]), float(values[rank]) if rank < len(values) else 0.0
