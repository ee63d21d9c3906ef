"""Chapter 9, the other hypotheses: keys in many dimensions, smooth attention, norms, and a margin."""

import math
from dataclasses import dataclass, field
from decimal import localcontext

import numpy as np
import torch
from jaxtyping import Float
from scipy import special

from prompt_memory import bounds, intervals, tasks
from prompt_memory.book import claims, figures
from prompt_memory.experiments.hypotheses import B0, EPS, GAP, Result, circle_prediction
from prompt_memory.measure import fact_recall, load, retained_bits
from prompt_memory.network import associative
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tune.associative import compensated_values, decimal_attention

WIDE = (8, 16, 32, 64)  # key dimensions
KEY_SCALE = 4 / 3  # with d = 3 the norm allows logits up to 3 · 4/3 = 4
MOST = 40  # facts tried behind the norm; 9e allows fewer
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 1e3, 1e6)  # of prompt vectors behind the norm
ANGLES = 10.0 ** -np.arange(1, 13)
FORMATS = {"bfloat16": (torch.bfloat16, 8), "float16": (torch.float16, 11), "float32": (torch.float32, 24),
           "float64": (torch.float64, 53)}  # fmt: skip


@dataclass
class Escapes:
    """What was measured where a hypothesis is dropped."""

    wide_sizes: np.ndarray = None
    wide_bits: Float[np.ndarray, "d N"] = None
    long: np.ndarray = None  # contexts run as networks
    without: list[float] = field(default_factory=list)  # bits without a norm
    with_norm: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)  # facts recalled without a margin in each format
    exact_sizes: list[int] = field(default_factory=list)
    amplitudes: list[float] = field(default_factory=list)  # log2 of half the least margin in exact arithmetic
    precisions: np.ndarray = None
    numbers: dict[str, str] = field(default_factory=dict)


def run(
    result: Result, *, record: claims.Recorder, rng: np.random.Generator, generator: torch.Generator
) -> Escapes:  # fmt: skip
    """All of them, on the settings of `result`."""
    found = Escapes()
    judge_wide(record, result, found, rng)
    judge_poisson(record, result, found, rng)
    judge_slopes(record, found)
    judge_norms(record, result, found, rng)
    judge_stretch(record, generator)
    judge_precision(record, result, found, rng)
    judge_exact(record, result, found, rng)
    return found


def neighbour_recall(N: int, d_k: int) -> float:
    """Heuristic: no key with the other label in the cap around the query where it would be louder than e^{−Δ}."""
    height = 1 - GAP / (2 * math.log(N))
    cap = special.betainc((d_k - 1) / 2, 0.5, 1 - height**2) / 2
    return math.exp(-(N - 1) / 2 * (cap if height > 0 else 1 - cap))


def judge_wide(record: claims.Recorder, result: Result, found: Escapes, rng: np.random.Generator) -> None:
    """Random keys at B = 2 ln N; each trial is a context of its own, one fact of which is asked for."""
    settings = result.settings
    sizes = found.wide_sizes = 2 ** np.arange(4, settings.random + 1)
    safe = np.array([[max(0.0, 1 - 3 * bounds.expected_leak_odds(int(N), d_k, 2 * math.log(N))) for N in sizes]
                     for d_k in WIDE])  # fmt: skip
    nearest = np.array([[neighbour_recall(int(N), d_k) for N in sizes] for d_k in WIDE[:2]])
    record.predict(
        "wide-neighbours", theorem="Heuristic beside Proposition 9b", predicted=nearest, possible=(0, 1), absolute=0.1,
        statement="Recall of random keys at $B = 2 \\ln N$, from the nearest neighbour alone, $d_k = 8$ and $16$",
        parameters={"N": sizes},
    )  # fmt: skip
    record.predict(
        "wide-linear", theorem="Proposition 9b, part 3", predicted=np.ones(len(sizes)), possible=(0, 1), absolute=0.05,
        statement="Retained bits over $N$ at $B = 2 \\ln N$, $d_k = 64$: all of them at every $N$",
        parameters={"N": sizes},
    )  # fmt: skip
    # [d_k, N]; most for the forecast that needs them
    trials = np.minimum(4096, settings.draws * np.array([[1], [1], [1], [4]]) // sizes)
    hits = np.array([
        [load.random_recall(int(N), d_k, 2 * math.log(N), eps=EPS, trials=int(T), rng=rng)
         for N, T in zip(sizes, row, strict=True)]
        for d_k, row in zip(WIDE, trials, strict=True)
    ])  # fmt: skip
    mean = hits / trials
    low, high = intervals.clopper_pearson(hits, trials, 0.05 / hits.size)
    record.measure("wide-neighbours", mean[:2], interval=(low[:2], high[:2]))
    bits, *ends = (fact_recall.retained(1, value[-1], 2) for value in (mean, low, high))
    record.measure("wide-linear", bits, interval=ends)
    found.wide_bits = fact_recall.retained(1, mean, 2)
    record.sampled(
        "wide-safe", theorem="Proposition 9b, part 3", relation=">=", mean=mean, samples=trials, successes=hits,
        bound=safe, parameters={"d_k": WIDE, "N": sizes},
        statement="Expected recall at $B = 2 \\ln N$ is at least $1 - 3$ times the expected leak odds",
    )  # fmt: skip
    misses = (np.abs(mean[:2] - nearest) > 0.1).sum(1)
    last = sizes[-1]
    found.numbers |= {
        "neighbour_misses": f"{misses[0]} of {len(sizes)} context sizes with 8 key dimensions, {misses[1]} with 16",
        "safe_zero": f"{int(sizes[np.argmax(safe[0] == 0)])}",
        "crowd_odds": f"{bounds.expected_leak_odds(int(last), 8, 2 * math.log(last)):.0f}",
    }  # fmt: skip


def judge_poisson(record: claims.Recorder, result: Result, found: Escapes, rng: np.random.Generator) -> None:
    """Random keys on the circle at B = N²: the limit is computed first, by sampling the Poisson process."""
    sizes = 2 ** np.arange(6, min(result.settings.random, 11) + 1)
    limit = load.poisson_recall(1.0, eps=EPS, samples=100_000, rng=rng)
    record.predict(
        "poisson", theorem="Limit beside Proposition 9c", possible=(0, 1), absolute=0.03,
        statement="Recall of $N$ random keys on the circle at $B = N^2$, from a Poisson process, for $N$ from $64$ on",
        predicted=np.full(len(sizes), limit),
    )  # fmt: skip
    trials = 8192
    hits = np.array([load.random_recall(int(N), 2, float(N) ** 2, eps=EPS, trials=trials, rng=rng) for N in sizes])
    record.measure("poisson", hits / trials, interval=intervals.clopper_pearson(hits, trials, 0.05 / len(hits)))
    bits = fact_recall.retained(sizes, hits / trials, 2)
    slope = np.polyfit(np.log(sizes), np.log(bits), 1)[0]
    found.numbers |= {"poisson": f"{100 * limit:.0f}", "poisson_slope": f"{slope:.2f}"}


def swap_slope(eta: float, B: float) -> float:
    """Change of the output over the distance moved, if two opposite tokens exchange which is turned away by eta."""
    outputs = []
    for turned in ([0, eta], [eta, 0]):
        gaps = -np.sin(np.array(turned, float))
        weights = np.exp(B * gaps) if math.isfinite(B) else (gaps == gaps.max()).astype(float)
        outputs.append(float(weights @ [1, -1] / weights.sum()))
    return abs(outputs[0] - outputs[1]) / (2 * math.sin(eta / 2))


def judge_slopes(record: claims.Recorder, found: Escapes) -> None:
    """Softmax stays below its Lipschitz constant at every distance; argmax has none."""
    record.theorem(
        "slope-softmax", theorem="Lemma 2a", parameters={"angles": ANGLES},
        statement="Softmax: the quotient stays below $\\sqrt{1+B^2}$ at every distance, $B = 4$ and $100$",
        measured=[[swap_slope(eta, B) for eta in ANGLES] for B in (4.0, 100.0)],
        bound=[[math.sqrt(1 + B**2)] * len(ANGLES) for B in (4.0, 100.0)],
        possible=1 / np.sin(ANGLES / 2),  # outputs lie in [−1, 1]
    )  # fmt: skip
    steepest = max(swap_slope(eta, math.inf) for eta in ANGLES)
    found.numbers["steepest_argmax"] = figures.scientific(steepest, up=False)


def network_bits(network: Transformer, N: int, labels: Float[np.ndarray, "T M"], rho: float) -> float:
    """Bits retained with margin 1 by M facts on ⌊N/M⌋ tokens each, of length rho, in each of the labelings."""
    tables, M = labels.shape
    keys = associative.circle_keys(M)
    prompt = associative.head_prompt(keys, labels, length=rho, copies=N // M)
    parts = associative.head_queries(keys).split(max(1, 2**22 // (N * tables)))
    logits = torch.cat([network(prompt, part, own_token=False) for part in parts], 1)
    margins = (logits[..., 0] - logits[..., 1]).numpy() * labels
    return retained_bits((margins > 2 * EPS).mean(), M)


def held_by_network(network: Transformer, facts: int, rho: float) -> bool:
    """Whether the circle is held with margin 1: its worst labeling opposes one fact with all others."""
    keys = associative.circle_keys(facts)
    prompt = associative.head_prompt(keys, np.r_[1.0, -np.ones(facts - 1)][None], length=rho)
    logits = network(prompt, associative.head_queries(keys[:1]), own_token=False)
    return float(logits[0, 0, 0] - logits[0, 0, 1]) > 2 * EPS


def judge_norms(record: claims.Recorder, result: Result, found: Escapes, rng: np.random.Generator) -> None:
    """The head as a transformer with fixed weights: prompts that grow without a norm, and any prompt behind one."""
    free = associative.head_network(2, KEY_SCALE)
    normed = associative.head_network(2, KEY_SCALE, norm="rms")
    squared = result.laws["N², d_k = 2"].logit_range
    long = found.long = 2 ** np.arange(4, result.settings.long + 1)
    record.predict(
        "no-norm", theorem="Proposition 9e, part 1", relative=0.05, parameters={"N": long},
        statement="Without norms, $\\rho \\propto N^2$: the network retains the bits of the memory with $B = N^2/64$,"
        " at every $N$",
        predicted=[circle_prediction(int(N), squared) for N in long], possible=(0, long.astype(float)),
    )  # fmt: skip
    record.predict(
        "pre-norm", theorem="Proposition 9e, part 3", predicted=0.0, possible=(-math.inf, math.inf), absolute=0.02,
        statement="With RMSNorm and the best of all $\\rho$ and loads, $d \\ln \\mathrm{bits}/d \\ln N$ over all $N$"
        " is $0$",
    )  # fmt: skip
    tables = {M: tasks.signs((8, M), rng) for M in range(2, MOST + 1)}  # the same in contexts of every size
    for N in map(int, long):
        M = circle_prediction(N, squared)
        n = M * (N // M)
        found.without.append(network_bits(free, N, tasks.signs((2, M), rng), n * n / 64 / KEY_SCALE))
        found.with_norm.append(max(network_bits(normed, N, tables[facts], rho) for rho in LENGTHS
                                   for facts in range(2, min(N, MOST) + 1)))  # fmt: skip
    record.measure("no-norm", found.without)
    record.measure("pre-norm", np.polyfit(np.log(long), np.log(found.with_norm), 1)[0])
    limit = bounds.addressed_facts(2, 3 * KEY_SCALE, 1 / math.sqrt(33))
    held = [max((facts for facts in range(2, MOST + 1) if held_by_network(normed, facts, rho)), default=1)
            for rho in LENGTHS]  # fmt: skip
    record.theorem(
        "pre-norm-limit", theorem="Proposition 9e, part 3", measured=held, bound=limit, possible=MOST,
        statement="With RMSNorm no number of facts is held beyond $(1 + \\sqrt{2\\kappa d/\\Delta'})^{d_k}$, whatever"
        " $\\rho$",
        parameters={"facts tried": MOST, "rho": LENGTHS},
    )  # fmt: skip
    found.numbers |= {
        "prenorm_held": f"{max(held)}", "prenorm_bits": f"{max(found.with_norm):.0f}", "prenorm_limit": f"{limit:.0f}",
        "no_norm_bits": f"{found.without[-1]:,.0f}", "no_norm_tokens": f"{long[-1]:,}",
    }  # fmt: skip


def judge_stretch(record: claims.Recorder, generator: torch.Generator) -> None:
    """Behind a pre-norm without ε₀ the lengths of prompt vectors do not matter."""
    config = TransformerConfig(d=8, q=5, heads=2, mlp=16, norm="rms", norm_eps=0.0)
    model, prompt, queries = tasks.generic_instance(config, 12, 40, generator=generator)
    reference = model(prompt[None], queries)
    stretch = 10.0 ** torch.empty(12, 1, dtype=torch.float64).uniform_(-6, 6, generator=generator)
    moved = (model((stretch * prompt)[None], queries) - reference).abs().max()
    record.theorem(
        "pre-norm-scale", theorem="Proposition 9e, part 2", relation="==", tolerance=1e-9, measured=float(moved),
        bound=0.0, possible=(0, math.inf),
        statement="One pre-norm layer, $\\varepsilon_0 = 0$, random weights: tokens stretched by $10^{-6}$ to $10^6$"
        " each change no output",
    )  # fmt: skip


def recalled_in(format_: torch.dtype, M: int, labels: np.ndarray, values) -> float:
    """Recall without a margin, values rounded to a number format and read by the network in that format."""
    network = associative.head_network(2, B0, dtype=format_)
    keys = associative.circle_keys(M)
    prompt = associative.head_prompt(keys, np.array(values, dtype=float)).to(format_)
    logits = network(prompt, associative.head_queries(keys).to(format_), own_token=False)
    return float((logits[..., 0].double().numpy() * labels > 0).mean())


def judge_precision(record: claims.Recorder, result: Result, found: Escapes, rng: np.random.Generator) -> None:
    """How many facts each number format recalls without a margin."""
    gains = {p: max(M for M in range(2, 100, 2) if bounds.circle_gain_log2(M, B0) >= -p) for _, p in FORMATS.values()}
    record.predict(
        "precision", theorem="Proposition 9f", predicted=list(gains.values()), possible=(0, 60), absolute=4.0,
        statement="The largest even $M$ up to which every label is recalled without a margin, at $B = 4$, in four"
        " number formats",
        parameters={"formats": list(FORMATS)},
    )  # fmt: skip
    count = min(16, result.settings.tables)
    recalled = {name: {} for name in FORMATS}
    for M in range(2, 61, 2):
        labels = tasks.signs((count, M), rng).astype(int)
        values, _ = compensated_values(labels, B0, digits=60)
        for name, (format_, _) in FORMATS.items():
            recalled[name][M] = recalled_in(format_, M, labels, values)
    found.found = [max((M for M in curve if all(curve[k] == 1 for k in curve if k <= M)), default=0)
                   for curve in recalled.values()]  # fmt: skip
    record.measure("precision", found.found)
    pairs = zip(found.found, FORMATS, strict=True)
    found.numbers["formats"] = ", ".join(f"{M} in {name}" for M, name in pairs)


def judge_exact(record: claims.Recorder, result: Result, found: Escapes, rng: np.random.Generator) -> None:
    """In decimals with enough digits the bounded head recalls everything; its margin is what precision must pay."""
    exact = []
    sizes = found.exact_sizes = [2**k for k in range(3, int(math.log2(result.settings.exact)) + 1)]
    for M in sizes:
        digits = 60 - round(bounds.circle_gain_log2(M, B0) * math.log10(2))
        labels = tasks.signs((2, M), rng).astype(int)
        values, a = compensated_values(labels, B0, digits=digits)
        with localcontext() as context:
            context.prec = digits
            attention = decimal_attention(M, B0)
            read = [[sum(attention[(i - j) % M] * u[j] for j in range(M)) for i in range(M)] for u in values]
        exact.append(np.mean([[x > 0 for x in line] for line in read] == (labels > 0)))
        found.amplitudes.append(min(float(x.log10()) / math.log10(2) for x in a))
    record.theorem(
        "exact-recall", theorem="Proposition 9f", relation="==", measured=exact, bound=1.0, possible=(0, 1),
        statement="In exact arithmetic (decimals with enough digits) a bounded head recalls every one of $M$ labels"
        " without a margin",
        parameters={"M": sizes},
    )  # fmt: skip
    least = [2 ** (a - bounds.circle_gain_log2(M, B0) + math.log2(M) / 2)
             for a, M in zip(found.amplitudes, sizes, strict=True)]  # fmt: skip
    record.theorem(
        "exact-margin", theorem="Proposition 9f", relation=">=", tolerance=1e-9, measured=least, bound=1.0,
        possible=0.0, statement="... with a margin that is at least $2\\lambda_{\\min}/\\sqrt M$ (ratio)",
    )  # fmt: skip
    found.precisions = np.array([2.0, 4, 8, 16, 24][: 4 if result.settings.exact < 64 else 5])
    found.numbers |= {"exact_most": f"{sizes[-1]}", "exact_margin": f"{-found.amplitudes[-1]:.0f}"}
