"""One frozen network tuned in four ways: soft prompt, prefix, LoRA, all weights; and what each of them memorises.

The network is a `transformers` GPT-2 with our weights; soft prompt, prefix and LoRA are those of `peft`: they start
there and are judged there.  Many tables are trained at once by `logits_together`, the same function without its common
work (the tests compare logits and gradients).  All tunings get the same task, a *table*: K different random keys, each
followed by a string of random labels, to be held by one adaptation.  Shapes: `K` entries, `T` tokens in a key, `n`
labels in a string, `R` tables that are learned at once, each by its own adaptation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prompt_memory import bounds
from prompt_memory.bench import export_gpt2, peft_gpt2
from prompt_memory.checks import integers
from prompt_memory.tasks import digits, random_labels
from prompt_memory.transformer import Transformer

KINDS = ("soft prompt", "prefix", "LoRA", "all weights")
TARGETS = ("c_attn", "c_proj", "c_fc")  # every matrix inside the layers of a GPT-2 (two of them are called c_proj)
START = 1_000_003  # added to the seed of a table for the start of the tuning: a start knows nothing of the labels


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
    adapted: nn.Module,
    table: Table,
    *,
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    batch: int,
    generator: torch.Generator,
) -> nn.Module:
    """Train the numbers that require gradients with Adam on the cross-entropy of all labels; the same module.

    Each step sees `batch` entries of the table, reshuffled after each pass (all of them if there are no more); the
    learning rate rises during the first tenth of the steps and then falls to nothing like a cosine.
    RuntimeError with the step if the loss is not finite.
    """
    weights = trained(adapted)
    parts = _batches(len(table.keys), batch, generator)

    def loss():
        part = next(parts)
        logits = label_logits(adapted, Table(table.keys[part], table.labels[part]))
        return F.cross_entropy(logits.flatten(0, 1), table.labels[part].flatten())

    _adam(weights, loss, steps, learning_rate, betas)
    return adapted


def tune_together(
    model: Transformer,
    tuning: Tuning,
    numbers: Sequence[Float[Tensor, "R ..."]],
    keys: Int[Tensor, "R K T"],
    labels: Int[Tensor, "R K n"],
    *,
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[Float[Tensor, "R ..."]]:
    """As `tune` with all entries in every step, for R tables at once: the numbers of R adaptations after `steps`.

    `numbers` are the trained tensors of `adapt`, stacked; the forward pass is `logits_together`.  Runs do not touch
    each other: each has its own gradient, and Adam acts on each number by itself.
    ValueError for all weights; RuntimeError with the step if a loss is not finite.
    """
    numbers = [weight.detach().clone().requires_grad_(True) for weight in numbers]
    K, n = labels.shape[1:]

    def loss():
        logits = logits_together(model, tuning, numbers, keys, labels)
        return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="sum") / (K * n)

    _adam(numbers, loss, steps, learning_rate, betas)
    return [weight.detach() for weight in numbers]


def _adam(weights, loss, steps, learning_rate, betas) -> None:
    adam = torch.optim.Adam(weights, lr=learning_rate, betas=betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, steps))
    for step in range(steps):
        value = loss()
        if not torch.isfinite(value):
            raise RuntimeError(f"the loss is not finite in step {step}: lower the learning rate of {learning_rate:g}")
        adam.zero_grad()
        value.backward()
        adam.step()
        schedule.step()


def logits_together(
    model: Transformer,
    tuning: Tuning,
    numbers: Sequence[Float[Tensor, "R ..."]],
    keys: Int[Tensor, "R K T"],
    labels: Int[Tensor, "R K n"],
) -> Float[Tensor, "R K n q"]:
    """`label_logits` of R adaptations on R tables, the same numbers up to rounding, without their common work.

    The stream of a soft prompt is computed once for a table and not once for an entry, and the last layer only where
    it is read.  `numbers` are the tensors of `trained`, in its order, stacked.  ValueError for all weights.
    """
    c, kind = model.config, tuning.kind
    if kind == "all weights":
        raise ValueError("all weights are trained one table at a time")
    (R, K), n, H = keys.shape[:2], labels.shape[-1], c.heads
    ids = torch.cat([keys, labels[..., :-1]], -1)  # [R, K, T + n − 1]
    T, m = ids.shape[-1], 0 if kind == "LoRA" else tuning.size
    x = model.embedding[ids] + model.position[m : m + T]
    factors = iter(zip(numbers[::2], numbers[1::2], strict=True)) if kind == "LoRA" else None
    if kind == "soft prompt":
        p = numbers[0] + model.position[:m]  # [R, m, d]
    elif kind == "prefix":  # keys and values of a layer, as peft cuts them out of one row
        cache = numbers[0].view(R, m, 2 * c.depth, H, c.d_k).permute(2, 0, 3, 1, 4)  # [2L, R, H, m, d_k]

    def times(x, weight, bias=None):
        y = F.linear(x, weight.T, bias)
        if factors is not None:
            A, B = next(factors)  # [R, r, inputs], [R, outputs, r]
            y = y + (x.flatten(1, -2) @ A.mT @ B.mT).view(y.shape)
        return y

    def token_wise(block, x):
        hidden = times(block.norm2(x), block.up, block.up_bias)
        return x + times(F.relu(hidden) if c.activation == "relu" else F.gelu(hidden), block.down, block.down_bias)

    def heads(x, weight):
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(-2, -3) for part in times(x, weight).split(c.d, -1))
        return q / math.sqrt(c.d_k), k, v  # [..., H, T, d_k]

    def past(t):
        return torch.full((t, t), -math.inf, dtype=x.dtype, device=x.device).triu(1)

    for layer, block in enumerate(model.blocks):
        last = layer == c.depth - 1
        weight = torch.cat([block.query, block.key, block.value], 1)
        q, k, v = heads(block.norm1(x), weight)
        if last:
            x, q = x[:, :, -n:], q[..., -n:, :]
        t = q.shape[-2]
        scores = q @ k.mT + past(T)[-t:]  # [R, K, H, t, T]
        if m:
            if kind == "soft prompt":
                q_p, k_p, v_p = heads(block.norm1(p), weight)
                if not last:
                    mixed = (q_p @ k_p.mT + past(m)).softmax(-1) @ v_p
                    p = token_wise(block, p + mixed.transpose(1, 2).flatten(2) @ block.output)
            else:
                k_p, v_p = cache[2 * layer], cache[2 * layer + 1]
            whole = q.transpose(1, 2).flatten(2, 3)  # [R, H, K t, d_k]: one product for all entries
            seen = (whole @ k_p.mT).unflatten(2, (K, t)).transpose(1, 2)
            of_prompt, own = torch.cat([seen, scores], -1).softmax(-1).split([m, T], -1)
            added = of_prompt.transpose(1, 2).flatten(2, 3) @ v_p
            mixed = own @ v + added.unflatten(2, (K, t)).transpose(1, 2)
        else:
            mixed = scores.softmax(-1) @ v
        x = token_wise(block, x + times(mixed.transpose(2, 3).flatten(3), block.output))
    return model.norm(x) @ model.unembedding


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

    `gain` is what it saves of the bits of the labels, Σ (log2 q + log2 p(label)), p its softmax under teacher forcing.
    `rounded` holds (bits that describe it, recall) for each number of bits asked for.
    """

    K: int
    n: int
    recall: float
    gain: float
    rounded: list[tuple[float, float]]


@torch.no_grad()
def likelihood_gain(adapted: nn.Module, table: Table, *, chunk: int = 2048) -> float:
    """Σ (log2 q + log2 p(label)) over all labels, in bits: what an arithmetic code with these probabilities saves."""
    total = 0.0
    for keys, labels in zip(table.keys.split(chunk), table.labels.split(chunk), strict=True):
        logits = label_logits(adapted, Table(keys, labels)).double()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        total += labels.numel() * math.log2(logits.shape[-1]) - loss / math.log(2)
    return total


@torch.no_grad()
def random_guesses(
    model: Transformer,
    tuning: Tuning,
    keys: Int[Tensor, "K T"],
    many: int,
    *,
    spread: float,
    generator: torch.Generator,
) -> Int[Tensor, "many K"]:
    """The labels that `many` random adaptations give to the keys: the start plus normal noise of deviation `spread`."""
    start = trained(adapt(model, tuning))
    numbers = [one + spread * torch.randn(many, *one.shape, generator=generator) for one in start]
    labels = torch.zeros(many, len(keys), 1, dtype=torch.long)
    return logits_together(model, tuning, numbers, keys.expand(many, -1, -1), labels)[:, :, 0].argmax(-1)


def memorise(
    model: Transformer,
    tuning: Tuning,
    K: int,
    n: int,
    *,
    seeds: Sequence[int],
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    scale: float = 1.0,
    batch: int = 1024,
    bits: Sequence[int] = (),
) -> list[Memory]:
    """Draw a table of K keys and K·n labels for each seed, adapt the network to each, and count what is recalled.

    Everything random follows from the seed: the table from `seed`, the start from `seed + START`, times `scale`.  With
    the same seed a smaller table of labels is the beginning of a larger one.  Soft prompts, prefixes and LoRA learn all
    tables together with all entries in every step, all weights one after the other with `batch` entries in a step; all
    are judged as modules of `peft` and `transformers`.  ValueError and RuntimeError as in `adapt`, `random_table`,
    `tune`.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tables = [random_table(K, n, model.config.q, generator=generator) for generator in generators]
    adapted = [adapt(model, tuning, seed=seed + START) for seed in seeds]
    with torch.no_grad():
        for weight in [weight for one in adapted for weight in trained(one)]:
            weight *= scale
    starts = [[weight.detach().clone() for weight in trained(one)] for one in adapted]
    options = dict(steps=steps, learning_rate=learning_rate, betas=betas)
    if tuning.kind == "all weights":
        for one, table, generator in zip(adapted, tables, generators, strict=True):
            tune(one, table, batch=batch, generator=generator, **options)
    else:
        stacked = [torch.stack(parts) for parts in zip(*starts, strict=True)]
        keys, labels = (torch.stack(parts) for parts in zip(*tables, strict=True))
        found = tune_together(model, tuning, stacked, keys, labels, **options)
        with torch.no_grad():
            for number, one in enumerate(adapted):
                for weight, values in zip(trained(one), found, strict=True):
                    weight.copy_(values[number])
    return [
        Memory(K, n, recalled(one, table).double().mean().item(), likelihood_gain(one, table),
               recall_when_rounded(one, table, bits, start))
        for one, table, start in zip(adapted, tables, starts, strict=True)
    ]  # fmt: skip


# --- numbers that nothing reads ------------------------------------------------------------------------------------


def visible_numbers(config, tuning: Tuning) -> int:
    """The largest rank that the derivative of all logits in the trained numbers can have, for an exported network.

    Proved as an upper bound, for L >= 2 layers, norm_eps > 0, biases of norms, queries and values that are zero where
    they are frozen (as `adapt` leaves them), and other frozen weights in general position, in the chapter on other
    tunings; attained, with smooth activations and enough queries, wherever it was measured.  With e = d − 1:

    soft prompt   m·e: no norm reads the mean of a token
    prefix        2·L·m·H·min(d_k, e)
    LoRA          L·[r(e + 3d − r) + r(d + e − r) + 2ρ(e + w − ρ) − `lora_gauge`], ρ = min(r, w)
    all weights   L·v + e(q + T − 1) + d·q − C(e, 2), v = H·k(4d − 3 − 2k) + 2e + (2d − 1)w, k = min(d_k, e)

    ValueError for fewer than two layers, norm_eps = 0, rectifiers, and ranks of LoRA from d − 1 on.
    """
    c = config
    if c.depth < 2 or not c.norm_eps > 0 or c.activation != "gelu":
        raise ValueError("the count is established for at least two layers, norm_eps > 0 and GELU")
    d, e, w, size = c.d, c.d - 1, c.mlp, tuning.size
    k = min(c.d_k, e)  # queries, keys and values of a head are linear in centred vectors
    if tuning.kind == "soft prompt":
        return size * e
    if tuning.kind == "prefix":
        return 2 * c.depth * size * c.heads * k
    if tuning.kind == "LoRA":
        if size >= e:
            raise ValueError(f"the count is established for ranks below d - 1, not {size}")
        narrow = min(size, w)
        attention = size * (e + 3 * d - size) + size * (d + e - size)
        return c.depth * (attention + 2 * narrow * (e + w - narrow) - lora_gauge(d, c.heads, size))
    heads = c.heads * (k * (2 * d - 1 - k) + k * (2 * d - 2 - k))
    layer = heads + 2 * e + (2 * d - 1) * w
    return c.depth * layer + e * (c.q + c.context - 1) + d * c.q - math.comb(e, 2)


def lora_gauge(d: int, heads: int, rank: int) -> int:
    """How many directions of LoRA's factors in one layer's attention change nothing, beyond those of BA = (BG⁻¹)(GA).

    Changes of the bases in which a head compares queries with keys, and carries values, as far as factors of this rank
    can make them: 2Hu² + 2s(Hu − s − 1)⁺, less 2 for a single head, with s = d − 1 − r and u = (d/H − s)⁺.
    None if d/H + r <= d − 1.  ValueError unless H divides d and 1 <= r <= d − 2.
    """
    d, heads, rank = integers(d=d, heads=heads, rank=rank)
    if d % heads or rank > d - 2:
        raise ValueError(f"heads must divide d and the rank be at most d - 2, not d = {d}, H = {heads}, r = {rank}")
    s = d - 1 - rank
    u = max(0, d // heads - s)
    return 2 * heads * u**2 + 2 * s * max(0, heads * u - s - 1) - (2 if heads == 1 else 0)


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
