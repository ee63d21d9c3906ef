"""Chapter 15, the same code on real models: two interfaces of one network, ranks in four families, prompts as files."""

import itertools
import math
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_memory import bounds, compress, intervals, measure, pretrain, tune
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.network.interop import export_gpt2
from prompt_memory.real import architectures, budget, models
from prompt_memory.real.prompts import load_prompt, save_prompt
from prompt_memory.real.ranks import sketched_rank
from prompt_memory.tasks import language

OWN = "the book's model, as GPT-2"
DRAWS = 6  # of a family's queries: one that happens to see little hides a prompt


@dataclass(frozen=True)
class Settings:
    """Strings, prompt lengths, steps for one token more; widths of random networks; tokens for the encoder's head."""

    strings: int
    lengths: tuple[int, ...]
    steps: int
    widths: tuple[int, ...]
    tokens: int
    model: str


PROFILES = {
    "smoke": Settings(4, (1, 2), 60, (16,), 400, "lexicon-small"),
    "standard": Settings(16, (1, 2, 4), 200, (16, 24), 2000, "lexicon"),
    "full": Settings(100, (1, 2, 4, 8), 1000, (16, 24, 32), 20000, "lexicon"),
}


def families() -> dict[str, tuple[str, callable]]:
    """Name to (model type, configuration of width d): layouts of four families, norms without ε₀, and narrow caches."""

    def rotary(d, heads=2, shared=2, **more):
        return {"hidden_size": d, "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": shared,
                "intermediate_size": 3 * d, "rms_norm_eps": 0.0} | more  # fmt: skip

    def gpt2(d):
        return {"n_embd": d, "n_layer": 2, "n_head": 2, "n_positions": 32, "layer_norm_epsilon": 0.0,
                "bos_token_id": None, "eos_token_id": None}  # fmt: skip

    def neox(d):
        return {"hidden_size": d, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4 * d,
                "layer_norm_eps": 0.0}  # fmt: skip

    found = {
        "gpt2": ("gpt2", gpt2),
        "gpt_neox": ("gpt_neox", neox),
        "llama": ("llama", rotary),
        "qwen2": ("qwen2", lambda d: rotary(d, shared=1)),
    }
    for shared in (1, 2):
        found[f"llama, {shared} of 4 narrow heads"] = (
            "llama", lambda d, shared=shared: rotary(d, heads=4, shared=shared, head_dim=2),
        )  # fmt: skip
    return found


@dataclass
class Sweep:
    """n50 of random strings for one prompt length, as a search found it."""

    strings: Tensor
    fit: tune.Longest
    n50: float
    ended: float  # fraction of strings that were found to their end
    interval: tuple[float, float]


@dataclass
class Result:
    """What chapter 15 measured, as rows of tables."""

    settings: Settings
    sweeps: dict[str, tuple[object, dict[int, Sweep]]] = field(default_factory=dict)
    interfaces: list[tuple] = field(default_factory=list)
    ranks: list[tuple] = field(default_factory=list)
    peft: list[tuple] = field(default_factory=list)
    encoder: list[tuple] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


def run(
    profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None, real_model: str = "",
    tokens_per_vector: int = 5,
) -> Result:  # fmt: skip
    """All experiments; with `real_model`, a folder or a name on the hub, the sweep runs on it, too."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    result.numbers["why"] = "No model was named, so the sweep runs on the book's own model only."
    given = None
    if real_model:
        try:
            given = models.load(real_model)
        except ValueError as error:
            result.numbers["why"] = f"{error}."
    how = {"settings": settings, "seed": record.seed, "tokens_per_vector": tokens_per_vector, "generator": generator}
    with tempfile.TemporaryDirectory() as house:
        folder = Path(house)
        ours = pretrain.load(settings.model, models_dir).transformer
        export_gpt2(ours).save_pretrained(folder / "gpt2")
        loaded = models.load(folder / "gpt2")
        two_interfaces(result, ours, loaded, generator)
        result.sweeps[OWN] = (loaded, sweep(loaded, **how))
        written_by_ours(result, ours)
        judge_families(record, result, folder, generator)
        peft_round_trip(result, loaded, folder, generator)
        if given is not None:
            result.sweeps[real_model] = (given, sweep(given, **how))
            result.numbers["why"] = f"The sweep ran on {real_model}, too."
        judge_encoder(record, result, generator)
    return result


def two_interfaces(result: Result, ours, loaded, generator: torch.Generator) -> None:
    """Logits of the same network in our class and as a checkpoint of transformers."""
    prompts = 3 * torch.randn(8, 3, loaded.config.d, generator=generator)
    strings = language.random_strings(5, 9, loaded.config.q, generator=generator)
    with torch.no_grad():
        a, b = ours(prompts, strings, read="all"), loaded(prompts, strings, read="all")
    error = figures.scientific(float((a - b).abs().max() / a.abs().max()), up=True)
    result.interfaces.append(("largest difference of logits, of the largest logit", error))
    result.numbers["interface_error"] = error


def sweep(
    model, *, settings: Settings, seed: int, tokens_per_vector: int, generator: torch.Generator
) -> dict[int, Sweep]:  # fmt: skip
    """n50 of random strings for each prompt length, with a bootstrap interval."""
    rows, random = {}, np.random.default_rng(seed)
    for m in settings.lengths:
        n = min(tokens_per_vector * m + 9, model.config.context - m + 1)
        strings = language.random_strings(settings.strings, n, model.config.q, generator=generator)
        fit = tune.longest_prefix(
            model, strings, m, restarts=2, steps=settings.steps, seed=seed, **models.search_settings(model)
        )  # fmt: skip

        def inside(lengths, end=n):  # infinite where every string is found to its end
            return min(measure.n50(lengths, end), end)

        lengths = fit.lengths.numpy()
        interval = intervals.bootstrap(lengths, inside, random, resamples=200)
        rows[m] = Sweep(strings, fit, inside(lengths), float(np.mean(lengths == n)), interval)
    return rows


def written_by_ours(result: Result, ours) -> None:
    """Prompts tuned on the loaded checkpoint, decoded greedily by our class."""
    written = []
    for each in result.sweeps[OWN][1].values():
        decoded = measure.greedy(ours, each.fit.prompts, each.strings.shape[1])
        rows = zip(decoded, each.strings, each.fit.lengths.tolist(), strict=True)
        written += [bool((x[:n] == t[:n]).all()) for x, t, n in rows if n]
    text = f"{sum(written)} of {len(written)}"
    result.interfaces.append(("beginnings crammed on the loaded checkpoint that our class writes", text))
    result.numbers["written"] = text


def family_network(name: str, d: int, seed: int, place: Path):
    """A random network of a family in the layout of `transformers`, saved, loaded and described by its config.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, configuration = families()[name]
    torch.manual_seed(seed)  # transformers draws its weights from the global generator
    config = AutoConfig.for_model(family, vocab_size=61, tie_word_embeddings=False, **configuration(d))
    network = AutoModelForCausalLM.from_config(config)
    for weight in network.parameters():  # its default scale is tiny: order one, as elsewhere in this book
        if weight.ndim == 2:
            weight.data.normal_(0, weight.shape[1] ** -0.5)
    network.save_pretrained(place)
    return models.load(place, dtype="float64"), architectures.load(place)


def best_sketch(model, m: int, d: int, predicted: int, generator: torch.Generator):
    """The largest of at most DRAWS sketched ranks of DΦ at random prompts of m vectors."""
    best = None
    for _ in range(DRAWS):
        queries = language.random_strings(6, 8, 61, generator=generator)
        prompt = torch.randn(m, d, generator=generator, dtype=torch.float64)
        draw = sketched_rank(model, prompt, queries, read="all", generator=generator)
        best = draw if best is None or draw.rank > best.rank else best
        if best.rank >= predicted:
            break
    return best


def judge_families(record: claims.Recorder, result: Result, folder: Path, generator: torch.Generator) -> None:
    """Sketched ranks of random networks of four families against D_eff of their configurations."""
    measured, expected, most = [], [], []
    for row, name in enumerate(families()):
        for d in result.settings.widths:
            model, architecture = family_network(name, d, record.seed + row, folder / f"family-{row}-{d}")
            for m in (1, 3):
                predicted = budget.budget(architecture, m).bounds["dimension"].value
                sketch = best_sketch(model, m, d, predicted, generator)
                measured.append(sketch.rank)
                expected.append(predicted)
                most.append(m * d)
                finite = math.isfinite(sketch.gap)
                gap = figures.scientific(sketch.gap, up=False) if finite else "none: full rank"
                result.ranks.append((name, d, architecture.cached, m, predicted, sketch.rank, gap, sketch.rows))
    record.theorem(
        "family-ranks", theorem="Theorem 3, parts 3 and 4", relation="==", possible=(0, most),
        statement="$\\mathrm{rank}\\, D\\Phi$ of random networks of four families, by sketching, best of at most six"
        " draws, is $D_{\\mathrm{eff}}$ of their configurations",
        measured=measured, bound=expected,
        parameters={"families": list(families()), "d": list(result.settings.widths), "m": [1, 3]},
    )  # fmt: skip
    agree = sum(a == b for a, b in zip(measured, expected, strict=True))
    result.numbers["ranks_agree"] = f"{agree} of {len(measured)}"


def peft_round_trip(result: Result, loaded, folder: Path, generator: torch.Generator) -> None:
    """A crammed prompt written as an adapter of peft, run by peft on the same checkpoint, and read back."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompt = result.sweeps[OWN][1][result.settings.lengths[-1]].fit.prompts[0]
    save_prompt(folder / "adapter", prompt, str(folder / "gpt2"))
    with warnings.catch_warnings():
        # peft asks for an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        network = AutoModelForCausalLM.from_pretrained(folder / "gpt2")
        adapted = PeftModel.from_pretrained(network, folder / "adapter").eval()
        text = language.random_strings(4, 8, loaded.config.q, generator=generator)
        with torch.no_grad():
            theirs = adapted(input_ids=text).logits[:, -8:]
            own = loaded(prompt[None], text, read="all")[0]
    back = load_prompt(folder / "adapter", loaded)
    difference = float((theirs - own).abs().max() / own.abs().max())
    result.peft += [
        ("logits, of the largest logit", figures.scientific(difference, up=True)),
        ("coordinates of the prompt read back", figures.scientific(float((back - prompt).abs().max()), up=True)),
    ]


def random_words(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random tokens of the encoder's vocabulary."""
    return torch.randint(1000, 20000, (rows, columns), generator=generator)


def judge_encoder(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Four theorems on the trained weights of the packaged encoder, where it is installed."""
    try:
        encoder = models.load_encoder(dtype="float64")
    except ValueError as error:
        result.numbers["encoder"] = f"The encoder is skipped on this page: {error}."
        return
    result.numbers["encoder"] = "The encoder is installed; this is what was found."
    prompt = encoder.embed(random_words(1, 2, generator))[0]
    sketch = sketched_rank(
        encoder, prompt, random_words(4, 6, generator), read="all", rows=128, tolerance=1e-6, generator=generator
    )  # fmt: skip
    seen = prompt.numel() - len(prompt)  # its first norm reads p + c and subtracts the mean
    record.theorem(
        "encoder-rank", theorem="Theorem 3", measured=sketch.rank, bound=seen, possible=prompt.numel(),
        statement="Rank of the trained encoder's map of a prompt of two vectors is at most $(d-1)m$",
    )  # fmt: skip
    result.encoder.append(("rank, two prompt vectors", sketch.rank, seen))
    texts = [encoder.layer_inputs(encoder.embed(random_words(1, 200, generator)))[0][0]
             for _ in range(result.settings.tokens // 200)]  # fmt: skip
    Z = torch.nn.functional.pad(torch.cat(texts), (0, 1), value=1.0)  # as the first layer reads them
    A, W = encoder.head(0, 0)
    judge_encoder_slope(record, result, Z, A, W, generator)
    judge_encoder_compression(record, result, Z.numpy(), A.numpy(), W.numpy())
    plain = models.load_encoder(dtype="float64", positions="none")
    twice, once = encoder.embed(random_words(1, 12, generator)), random_words(3, 5, generator)
    double = plain(twice.repeat_interleave(2, 1), once)
    weighted = plain(twice, once, weights=torch.full((1, 12), 2.0, dtype=torch.float64))
    record.theorem(
        "encoder-measure", theorem="A prompt acts through its measure", bound=0.0, tolerance=1e-9, possible=math.inf,
        statement="Trained encoder without positions: every token twice against weight two, relative",
        measured=float((double - weighted).abs().max() / double.abs().max()),
    )  # fmt: skip


def judge_encoder_slope(record: claims.Recorder, result: Result, Z: Tensor, A: Tensor, W: Tensor, generator) -> None:
    """Steepness of the encoder's first head against Lemma 2a."""
    along = torch.cat([torch.linalg.svd(W)[0].T, torch.randn(64, len(W), generator=generator, dtype=torch.float64)])
    along = along / along.norm(dim=1, keepdim=True)
    slopes = measure.head_slope(A, W, Z[:100].expand(len(along), -1, -1), Z[:1].expand(len(along), -1), along)
    steepest = bounds.head_lipschitz(A.numpy(), W.numpy(), float(Z.norm(dim=1).max()), False)
    record.theorem(
        "encoder-slope", theorem="Lemma 2a", measured=float(slopes.max()), bound=steepest, tolerance=1e-9,
        possible=math.inf, statement="Steepness of a trained head at a prompt of 100 tokens, query fixed",
    )  # fmt: skip
    result.encoder.append(("steepness of head 1, layer 1", f"{float(slopes.max()):.3g}", f"{steepest:.3g}"))


def judge_encoder_compression(record: claims.Recorder, result: Result, Z, A, W) -> None:
    """A long prompt of the encoder's first head: tokens for four queries, and for all with equal first moments."""
    n, k = 4, 1
    few = compress.caratheodory(Z, Z[:n], A, W)
    allowed_tokens = bounds.caratheodory_count(n, 1, len(W))
    record.theorem(
        "encoder-tokens", theorem="Theorem 5", measured=len(few.indices), bound=allowed_tokens, possible=len(Z),
        statement="Tokens that act like a long prompt on four queries of a trained head",
    )  # fmt: skip
    left = np.linalg.svd(A)[0]
    values = Z @ W.T
    some = compress.head_moments(Z @ left[:, : len(W)], values, k)
    queries = Z[np.random.default_rng(record.seed).choice(len(Z), 200)]
    logits = queries @ A.T @ Z.T
    spread = float((logits.max(1) - logits.min(1)).max() / 2)  # logits of one query, up to a shift
    ours = compress.attend(Z, queries, A, W)
    theirs = compress.attend(Z[some.indices], queries, A, W, weights=some.weights)
    error, trivial = np.linalg.norm(ours - theirs, axis=1).max(), 2 * np.linalg.norm(values, axis=1).max()
    allowed = bounds.moment_error(k, spread, trivial / 2)
    if allowed < trivial:
        record.theorem(
            "encoder-moments", theorem="Theorem 6", measured=error, bound=allowed, tolerance=1e-9, possible=trivial,
            statement="Error of tokens with the same first moments, at 200 queries of a trained head",
        )  # fmt: skip
    vacuous = " (vacuous: no two outputs differ by more)" if allowed >= trivial else ""
    result.encoder += [
        (f"tokens for {n} queries, of {len(Z)}", len(few.indices), allowed_tokens),
        (f"tokens for all queries (k = {k})", len(some.indices), bounds.head_moment_count(k, len(W), len(W), 1)),
        ("error of these", f"{error:.2g}", f"{allowed:.2g}{vacuous}"),
    ]


def checkpoint_table(result: Result) -> figures.Table:
    """Tokens a vector: by counting, by the follow-up's formula, and as found."""
    rows = []
    for name, (model, by_m) in result.sweeps.items():
        radius, eps, c = models.embedding_radius(model), models.embedding_tolerance(model), model.config
        slope = bounds.accessible_slope(c.d, c.q, radius, eps)
        found = np.polyfit(np.array(list(by_m), float), [each.n50 for each in by_m.values()], 1)[0]
        rows.append((name, c.d, c.q, f"{32 * c.d / math.log2(c.q):.0f}", f"{slope:.1f}", f"{found:.2f}",
                     f"{100 * max(each.ended for each in by_m.values()):.0f} %"))  # fmt: skip
    header = ("network", "d", "V", "tokens a vector, 32 bits", "follow-up's formula", "found", "found to their end")
    return figures.Table(header, rows)


def ranks_table(result: Result) -> figures.Table:
    """Predicted and found ranks, with the gap of singular values."""
    header = ("family", "d", "C", "m", "predicted", "rank found", "gap of singular values", "rows of the sketch")
    return figures.Table(header, result.ranks)


def sweep_figure(result: Result) -> figures.Picture:
    """n50 against prompt vectors for each network."""

    def draw(figure):
        ax = figure.subplots()
        for row, (name, (_, by_m)) in enumerate(result.sweeps.items()):
            colour = COLOURS["measured" if row == 0 else "constructed"]
            ms, y = np.array(list(by_m)), np.array([each.n50 for each in by_m.values()])
            low, high = np.transpose([each.interval for each in by_m.values()])
            spread = [np.maximum(0, y - low), np.maximum(0, high - y)]
            ax.errorbar(ms, y, spread, fmt="o-", color=colour, label=name)
        ax.legend(loc="upper left")
        ax.set_ylim(0, None)
        ax.margins(y=0.3)
        ax.set_xticks(result.settings.lengths)
        ax.set_xlabel("prompt vectors m")
        ax.set_ylabel("random tokens crammed, n50")

    first = list(result.sweeps[OWN][1].values())
    grows = all(a.n50 < b.n50 for a, b in itertools.pairwise(first))
    return figures.show(
        draw, size=(7, 3.6), name="real-sweep",
        finding=f"Tuned through transformers: {first[0].n50:.1f} random tokens in one vector,"
        f" {first[-1].n50:.1f} in {result.settings.lengths[-1]}" + ("; more vectors hold more." if grows else "."),
        caption="Intervals at 95 % by bootstrap over strings.",
        alt="Number of random tokens crammed into a prompt against the number of prompt vectors, for each network.",
    )  # fmt: skip
