"""Chapter 14, a budget for your model: bounds from configurations, and brute force against them."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory import bounds, measure, tasks
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig
from prompt_memory.real import architectures, budget
from prompt_memory.real.architectures import PUBLISHED

M = 20  # vectors of a prompt in tables and figure
EPS = 2.0**-10  # the resolution that fits the follow-up's table (chapter 4d)
DRAWN = 2**14  # random prompts of a small network, before they are stored
RADII = (0.001, 0.5, 1.0, 10.74, 63.62, 240.0, 309.0)
PATTERNS = {
    "fp16": (torch.float16, torch.int16), "bf16": (torch.bfloat16, torch.int16),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8), "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
}  # fmt: skip
CASES = (  # kind of prompt, d, depth, heads, vocabulary, norm
    ("soft", 5, 2, 1, 8, "layer"), ("soft", 6, 2, 3, 16, "rms"), ("soft", 6, 3, 1, 8, "layer"),
    ("hard", 8, 2, 2, 32, "rms"), ("hard", 8, 2, 2, 64, "layer"), ("prefix", 2, 2, 1, 8, "rms"),
)  # fmt: skip
SHAPES = (
    dict(d=8, depth=2, heads=2, norm="layer"), dict(d=8, depth=2, heads=2, norm="rms"),
    dict(d=12, depth=2, heads=1, d_k=2, d_v=2, norm="rms"), dict(d=12, depth=1, heads=2, d_k=2, d_v=2, norm="rms"),
    dict(d=9, depth=3, heads=1, d_k=1, d_v=1, norm="layer"),
)  # fmt: skip
CONFIGS = {
    "GPT-2 small": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024,
    },
    "grouped queries": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    },
    "one head of keys": {
        "model_type": "gpt_bigcode", "n_embd": 768, "n_layer": 1, "n_head": 12, "multi_query": True,
        "vocab_size": 50257, "n_positions": 1024,
    },
    "capped logits": {
        "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "rms_norm_eps": 1e-6,
    },
}  # fmt: skip


@dataclass
class Result:
    """Budgets of the published models, what was counted, and numbers for sentences."""

    published: dict[str, budget.Budget]
    written: list[tuple] = field(default_factory=list)  # kind, network, m, n, budget in bits, bits of strings written
    ranks: list[tuple] = field(default_factory=list)  # shape, trained numbers, count from the configuration, rank
    numbers: dict[str, str] = field(default_factory=dict)


def run(*, record: claims.Recorder, generator: torch.Generator) -> Result:
    """Budgets of seven published models in bf16, and three brute-force checks on number formats and small networks."""
    result = Result({
        name: budget.budget(p.architecture, M, "bf16", radius=p.radius, eps=EPS) for name, p in PUBLISHED.items()
    })  # fmt: skip
    summarise(result)
    judge_formats(record, result)
    judge_strings(record, result, generator)
    judge_ranks(record, result, generator)
    return result


def summarise(result: Result) -> None:
    """Ratios between kinds of prompts, and between bounds and what was published as found."""
    budgets = result.published
    ratios = {
        "ratio": [budget.found_ratio(r) for r in budgets.values()],
        "held": [r.bounds["prefix"].bits / r.bounds["counting"].bits for r in budgets.values()],
        "hard": [r.bounds["counting"].bits / r.bounds["hard"].bits for r in budgets.values()],
    }
    for key, values in ratios.items():
        result.numbers |= {f"{key}_low": f"{min(values):.1f}", f"{key}_high": f"{max(values):.1f}"}
    result.numbers |= {
        "vacuous": f"{sum(r.bounds['moments'].vacuous for r in budgets.values())}",
        "exact_positions": budget.show(budgets["Pythia-160M"].bounds["exact_compression"].value),
        "exact_context": budget.show(PUBLISHED["Pythia-160M"].architecture.context),
        "longer": f"{sum(r.bounds['accessible_length'].vacuous for r in budgets.values())}",
        "held_range": f"{min(ratios['held']):.0f} to {max(ratios['held']):.0f}",
    }  # fmt: skip


def judge_formats(record: claims.Recorder, result: Result) -> None:
    """All bit patterns of four formats, read as numbers; those within a radius are counted."""
    counted, formula, of = [], [], []
    for name, (kind, raw) in PATTERNS.items():
        form = budget.FORMATS[name]
        numbers = torch.arange(2**form.bits).to(raw).view(kind).double()
        for radius in (radius for radius in RADII if radius <= form.counted_to):
            counted.append(math.log2(len(numbers[numbers.abs() <= radius].unique())))
            formula.append(bounds.float_bits(radius, exponent=form.exponent, fraction=form.fraction))
            of.append(name)
    record.theorem(
        "numbers-in-radius", theorem="Proposition (Budget), part 1", relation="==", tolerance=1e-12,
        statement="$\\log_2$ of the numbers of four formats in $[-r, r]$, all patterns enumerated",
        measured=counted, bound=formula, possible=(0.0, [budget.FORMATS[name].bits for name in of]),
        parameters={"formats": list(PATTERNS)},
    )  # fmt: skip
    budgets = [
        budget.budget(p.architecture, M, form, radius=min(p.radius, budget.FORMATS[form].counted_to))
        for form in PATTERNS for p in PUBLISHED.values()
    ]  # fmt: skip
    saved = max(1 - r.bounds["counting_in_radius"].bits / r.bounds["counting"].bits for r in budgets)
    result.numbers["saved"] = f"{100 * saved:.0f}"


def small(d: int, depth: int, heads: int, q: int, norm: str, generator: torch.Generator):
    """A random frozen network and its architecture, as a configuration would tell it."""
    layer = norm == "layer"
    config = TransformerConfig(d=d, q=q, depth=depth, heads=heads, mlp=4 * d, norm=norm, causal=True,
                               positions="learned" if layer else "rotary", context=32)  # fmt: skip
    fields = {"hidden_size": d, "num_hidden_layers": depth, "num_attention_heads": heads, "vocab_size": q,
              "max_position_embeddings": 32}  # fmt: skip
    rotary = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    fields |= {"model_type": "gpt2"} if layer else rotary
    return Transformer(config, generator=generator), architectures.read(fields, f"{norm}, d = {d}, L = {depth}")


@torch.no_grad()
def behind_prefix(model: Transformer, keys: Tensor, values: Tensor, n: int) -> Int[Tensor, " n"]:
    """The n tokens that greedy decoding writes after token 0 behind one prefix."""
    text = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(n):
        text = torch.cat([text, model(Prefix(keys[None], values[None]), text)[0].argmax(-1, keepdim=True)], 1)
    return text[0, 1:]


def strings_written(model: Transformer, kind: str, n: int, m: int, generator: torch.Generator) -> float:
    """log2 of the different strings of n tokens that DRAWN random prompts write, once they are stored.

    Soft prompts and prefixes are stored with one bit a number, hard prompts as the nearest tokens.
    """
    c = model.config
    shape = (c.depth, c.heads, m, c.d_k + c.d_v) if kind == "prefix" else (m, c.d)
    prompts = torch.randn(DRAWN, *shape, generator=generator)
    nearest = torch.cdist(prompts, model.embedding).argmin(-1) if kind == "hard" else None
    prompts = torch.unique(2 * prompts.sign() if nearest is None else model.embedding[nearest], dim=0)
    if kind == "prefix":
        pairs = [(one[..., : c.d_k], one[..., c.d_k :]) for one in prompts]
        strings = torch.stack([behind_prefix(model, keys, values, n) for keys, values in pairs])
    else:
        strings = torch.cat([measure.greedy(model, part, n) for part in prompts.split(4096)])
    return math.log2(len(torch.unique(strings, dim=0)))


def judge_strings(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Strings that stored prompts write, against the budget of a configuration."""
    written, allowed, lengths = [], [], []
    for kind, d, depth, heads, q, norm in CASES:
        model, architecture = small(d, depth, heads, q, norm, generator)
        m = 1 if kind == "prefix" else 2
        r = budget.budget(architecture, m, "int1")
        bits = r.bounds[{"soft": r.smallest}.get(kind, kind)].bits
        n = math.ceil(bits / math.log2(q)) + 3  # so that the strings would have room for more
        written.append(strings_written(model, kind, n, m, generator))
        allowed.append(bits)
        lengths.append(n * math.log2(q))
        result.written.append((kind, architecture.name, m, n, f"{bits:g}", f"{written[-1]:.2f}"))
    record.theorem(
        "strings-written", theorem="Proposition (Budget), parts 1 and 2",
        statement="$\\log_2$ of the strings that stored prompts of a small network write is at most its budget in bits",
        measured=written, bound=allowed, tolerance=1e-9, possible=np.minimum(lengths, math.log2(DRAWN)),
        parameters={"cases": [list(case) for case in CASES], "prompts drawn": DRAWN},
    )  # fmt: skip
    shares: Float[np.ndarray, " K"] = 100 * np.array(written) / np.array(allowed)
    result.numbers |= {"share_low": f"{shares.min():.0f}", "share_high": f"{shares.max():.0f}"}


def judge_ranks(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """The rank of the derivative in the prompt against the count from the configuration; the forecast comes first."""
    configs = [TransformerConfig(q=24, mlp=32, causal=True, positions="none", **shape) for shape in SHAPES]
    limits = []
    for c in configs:
        architecture = architectures.Architecture(
            "small", "", c.d, c.depth, c.heads, c.heads, c.d_k, c.d_v, c.q, norm=c.norm
        )  # fmt: skip
        limits.append(budget.budget(architecture, 3).bounds["dimension"].value)
    trained = [3 * shape["d"] for shape in SHAPES]
    record.predict(
        "rank-attained", theorem="Theorem 3, part 3", predicted=limits, absolute=0.0, possible=(0, trained),
        statement="The rank of $D\\Phi$ of random networks equals the count from the configuration",
    )  # fmt: skip
    ranks = []
    for config in configs:
        model = Transformer(config, generator=generator)
        prompt = torch.randn(3, config.d, generator=generator)
        queries = tasks.random_queries(24, config.d, generator=generator)
        ranks.append(measure.jacobian_rank(model, prompt, queries))
    record.measure("rank-attained", ranks)
    record.theorem(
        "rank", theorem="Proposition (Budget), part 3", measured=ranks, bound=limits, possible=trained,
        statement="$\\mathrm{rank}\\, D\\Phi$ is at most the count from the configuration",
    )  # fmt: skip
    names = [", ".join(f"{key} = {value}" for key, value in shape.items()) for shape in SHAPES]
    result.ranks = list(zip(names, trained, limits, ranks, strict=True))


def bits_table(result: Result) -> figures.Table:
    """Bits of prompts of M vectors in bf16, for the published models."""
    keys = ("counting", "counting_in_radius", "resolution", "prefix", "hard")
    header = ("model", "d", "L", "cached a position", "soft prompt, bits", "within the radius", "told apart at 2⁻¹⁰",
              "prefix", "hard prompt")  # fmt: skip
    return figures.Table(header, [
        (name, r.architecture.width, r.architecture.layers, f"{r.architecture.cached:,}",
         *(budget.show(round(r.bounds[key].bits)) for key in keys))
        for name, r in result.published.items()
    ])  # fmt: skip


def tokens_table(result: Result) -> figures.Table:
    """The smallest bound in random tokens beside what was published as found on text."""
    header = ("model", "coordinates seen", "bound, random tokens", "found: tokens of text", "found a vector")
    return figures.Table(header, [
        (name, budget.show(r.bounds["dimension"].value), budget.show(round(r.bounds[r.smallest].tokens)),
         f"{M * PUBLISHED[name].slope:,.0f}", f"{PUBLISHED[name].slope:g}")
        for name, r in result.published.items()
    ])  # fmt: skip


def written_table(result: Result) -> figures.Table:
    """Strings written by stored prompts of small networks."""
    return figures.Table(("prompt", "network", "m", "n", "budget, bits", "strings written, bits"), result.written)


def ranks_table(result: Result) -> figures.Table:
    """Ranks of small networks."""
    return figures.Table(("network", "trained numbers", "count from the configuration", "rank"), result.ranks)


def configurations_table() -> figures.Table:
    """Four configurations as their families write them."""
    header = ("configuration", "soft prompt, bits", "prefix, bits", "coordinates seen", "smallest window", "range Δ")
    budgets = {name: budget.budget(architectures.read(config, name), M, "bf16") for name, config in CONFIGS.items()}
    return figures.Table(header, [
        (name, *(budget.show(r.bounds[key].bits) for key in ("counting", "prefix")),
         budget.show(r.bounds["dimension"].value), budget.show(r.architecture.window) or "none",
         budget.show(r.given["logit_range"]) or "unknown")
        for name, r in budgets.items()
    ])  # fmt: skip


def crossing_table() -> figures.Table:
    """The distance at which counting takes over from the bits told apart."""
    return figures.Table(("model", "radius", "ε in bf16", "ε in fp8"), [
        (name, p.radius, *(f"{2 * p.radius / (2.0**bits - 1):.2g}" for bits in (16, 8)))
        for name, p in PUBLISHED.items()
    ])  # fmt: skip


def bits_figure(result: Result) -> figures.Picture:
    """Bits of hard prompts, soft prompts and prefixes of published models, beside what was found."""
    budgets = result.published
    marks = {"hard": ("|", "hard prompt"), "counting": ("o", "soft prompt"), "prefix": ("s", "prefix")}

    def draw(figure):
        ax = figure.subplots()
        small_page = figures.narrow(figure)
        y = np.arange(len(budgets))[::-1]
        ax.set_xscale("log")
        ax.set_xlim(60, 6e7)
        ax.set_ylim(-0.6, len(budgets) + 0.9)
        found = [M * PUBLISHED[name].slope * math.log2(r.architecture.vocabulary) for name, r in budgets.items()]
        for key, (marker, label) in marks.items():
            x = [r.bounds[key].bits for r in budgets.values()]
            look = {"markersize": 12, "markeredgewidth": 2.5} if marker == "|" else {"markersize": 6}
            ax.plot(x, y, marker, color=COLOURS["bound"], label=f"bound, {label}", **look)
        ax.plot(found, y, "o", color=COLOURS["measured"], mfc=COLOURS["page"], label="found, on text")
        ax.legend(loc="upper center", ncols=2, fontsize=8, columnspacing=1.0, handletextpad=0.3)
        ax.set_yticks(y, list(budgets), fontsize=8 if small_page else 9)
        ax.set_xlabel(f"bits of a prompt of {M} positions in bf16")

    return figures.show(
        draw, size=(7, 4.1), name="budgets",
        finding=f"A prefix has room for {result.numbers['held_range']} times the bits of a soft prompt.",
        caption="Bounds for seven published models; what was found is tokens of text times $\\log_2 V$, an upper"
        " estimate of its bits.",
        alt="For seven published models, on a logarithmic axis of bits: the bound on a hard prompt of twenty tokens is"
        " in the hundreds, that on a soft prompt of twenty vectors in the hundreds of thousands, that on a prefix of"
        " twenty positions in the millions. The published measurements for soft prompts, counted as random tokens, lie"
        " in the tens of thousands.",
    )  # fmt: skip
