"""Speed of `tune.cram`, beside prompt tuning of one string at a time on the same frozen weights; `make bench`.

*One at a time* is what the published measurements of accessible strings do (the code of arXiv 2605.22223 and
2502.13063): a `transformers` GPT-2, here with our weights, the prompt tuning of `peft`, AdamW, one string after the
other.  *Batched* is `tune.cram`.  Both compute the forward pass, the gradient with respect to the prompt and a step of
the optimiser; both run in this process with the same number of threads, in turns.  Times never enter a claim.
"""

import argparse
import contextlib
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from prompt_memory import language, pretrain, tune
from prompt_memory.claims import number, plain, write_json
from prompt_memory.pretrain import FrozenModel
from prompt_memory.transformer import Transformer, TransformerConfig

UNREACHED = 1e9  # a margin that no logit has: no run counts as solved, so every run takes all of its steps
AGREEMENT = 1e-5  # allowed difference of the exported model's logits


@dataclass(frozen=True)
class Settings:
    """How much is measured.  `lengths` are prompt lengths m; `runs` is the batch of `tune.cram`."""

    repetitions: int = 7
    runs: int = 120
    batched_steps: int = 50  # of each run in one timed call
    single_steps: int = 100  # of one string in one timed call
    lengths: tuple[int, ...] = (1, 2, 4)
    strings: int = 24  # of the comparison at equal success
    trials: int = 20  # of the search for the n50 of one at a time
    single_limit: int = 3000  # steps of an attempt on one string
    patience: int = 500
    batched_limit: int = 200  # steps of a run: half of the default, for as many successes and not for most
    longest_limit: int = 400  # of the search for the batched n50, for which most successes count
    longest: int = 24  # tokens a prompt vector: where the batched n50 is looked for
    counts: tuple[int, ...] = (10, 30, 100, 300, 1000)
    calls: int = 3  # for each count
    matrices: tuple[int, ...] = (1024, 1536, 2048)  # rows of the products that give the rate


QUICK = Settings(repetitions=3, batched_steps=10, single_steps=20, lengths=(1,), strings=4, trials=6,
                 single_limit=600, patience=100, longest=8, counts=(10, 30), calls=1, matrices=(1024,))  # fmt: skip


# --- one at a time -------------------------------------------------------------------------------------------------


def export_gpt2(model: Transformer):
    """The same network as a `transformers` GPT2LMHeadModel, in evaluation mode on the model's device.

    Biases that ours does not have are zero, the output matrix is not tied.  ValueError for a network that GPT-2 cannot
    be: it needs LayerNorm, learned positions, causal attention, a token-wise network and d_k = d_v = d / heads.
    """
    c = model.config
    needed = dict(norm="layer", positions="learned", causal=True, inverse_temperature=1.0, context_scaling="none")
    for name, value in needed.items():
        if getattr(c, name) != value:
            raise ValueError(f"GPT-2 needs {name} = {value!r}, and this network has {getattr(c, name)!r}")
    if not c.mlp or not c.d == c.heads * c.d_k == c.heads * c.d_v:
        raise ValueError("GPT-2 needs a token-wise network and d = heads * d_k = heads * d_v")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=c.q, n_positions=c.context, n_embd=c.d, n_layer=c.depth, n_head=c.heads, n_inner=c.mlp,
        activation_function=c.activation, layer_norm_epsilon=c.norm_eps, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(config)
    weights = {name: torch.zeros_like(weight) for name, weight in gpt2.state_dict().items()}
    ours = {
        "transformer.wte.weight": model.embedding,
        "transformer.wpe.weight": model.position,
        "transformer.ln_f.weight": model.norm.gain,
        "lm_head.weight": model.unembedding.T,
    }
    for layer, block in enumerate(model.blocks):
        parts = {
            "ln_1.weight": block.norm1.gain,
            "attn.c_attn.weight": torch.cat([block.query, block.key, block.value], 1),
            "attn.c_proj.weight": block.output,
            "ln_2.weight": block.norm2.gain,
            "mlp.c_fc.weight": block.up,
            "mlp.c_fc.bias": block.up_bias,
            "mlp.c_proj.weight": block.down,
            "mlp.c_proj.bias": block.down_bias,
        }
        ours |= {f"transformer.h.{layer}.{name}": weight for name, weight in parts.items()}
    if unknown := ours.keys() - weights.keys():
        raise RuntimeError(f"this version of transformers has no {min(unknown)} in GPT-2")
    gpt2.load_state_dict(weights | ours)
    gpt2.loss_type = "ForCausalLM"  # what it falls back to, with a warning
    return gpt2.eval().to(model.embedding.device)


@torch.no_grad()
def export_error(model: Transformer, strings: Int[Tensor, "S T"]) -> float:
    """The largest difference of the exported model's logits from ours; RuntimeError if it exceeds `AGREEMENT`."""
    error = float((export_gpt2(model)(strings).logits - model.stream(model.embedding[strings])).abs().max())
    if not error <= AGREEMENT:
        raise RuntimeError(f"the exported model's logits differ by {error:.3g}, more than {AGREEMENT:g}: no comparison")
    return error


def peft_gpt2(model: Transformer, config) -> torch.nn.Module:
    """The exported model with an adapter of `peft`, in which the adapter's numbers alone require gradients."""
    gpt2 = export_gpt2(model)
    from peft import get_peft_model

    with warnings.catch_warnings():  # peft asks for an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(gpt2, config)


class Attempt(NamedTuple):
    """One string: whether all its tokens were right under teacher forcing, and the steps taken."""

    solved: bool
    steps: int


class OneAtATime:
    """Prompt tuning of m vectors with `peft` for one string at a time, as the published code does it.

    A prompt starts from normal noise with the standard deviation of the embeddings; AdamW with learning rate 0.01,
    betas (0.9, 0.9), weight decay 0.01, up to `steps` steps; a run ends when every token is right under teacher
    forcing, or when `patience` steps have not raised the number of right tokens.  Differences from the published
    code: the model is kept, not loaded again for each string, and there is no progress bar (both save time here);
    numbers are float32; the first token of a string, which the published code gives away, is asked for, as by `cram`.
    """

    def __init__(self, model: Transformer, m: int):
        from peft import PromptTuningConfig

        self.model = peft_gpt2(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=m))
        self.m = m
        (self.prompt,) = (weight for weight in self.model.parameters() if weight.requires_grad)  # [m, d]
        self.scale = float(model.embedding.std())

    def begin(self, generator: torch.Generator) -> torch.optim.AdamW:
        """Draw a new prompt and return its optimiser."""
        with torch.no_grad():
            self.prompt.copy_(self.scale * torch.randn(self.prompt.shape, generator=generator))
        return torch.optim.AdamW([self.prompt], lr=1e-2, betas=(0.9, 0.9), weight_decay=0.01)

    def step(self, string: Int[Tensor, "1 n"], adamw: torch.optim.AdamW) -> float:
        """One optimiser step; the fraction of tokens that were right before it."""
        output = self.model(input_ids=string, labels=string)
        right = (output.logits[:, self.m - 1 : -1].argmax(-1) == string).float().mean().item()
        output.loss.backward()
        adamw.step()
        adamw.zero_grad()
        return right

    def attempt(
        self, string: Int[Tensor, "1 n"], *, generator: torch.Generator, steps: int = 3000, patience: int = 500
    ) -> Attempt:
        """Tune one prompt for one string."""
        adamw = self.begin(generator)
        best, since = 0.0, 0
        for step in range(1, steps + 1):
            right = self.step(string, adamw)
            best, since = (right, 0) if right > best else (best, since + 1)
            if best == 1:
                return Attempt(True, step)
            if since >= patience:
                break
        return Attempt(False, step)


# --- what is measured ----------------------------------------------------------------------------------------------


def step_flops(config: TransformerConfig, R: int, T: int) -> int:
    """Floating-point operations of the matrix products in one step of R runs over sequences of T vectors.

    A step is the forward pass and the gradient with respect to the input; weights have no gradients.  A product with a
    weight matrix of N entries costs 2·N a vector forward and 2·N backward; the two products of attention, QKᵀ and AV,
    cost 2·T²·d_k and 2·T²·d_v a head forward and twice that backward, the whole T × T square counted although half of
    it is masked.  In total

        R · [4·T·(L·(H·d·(2·d_k + d_v) + H·d_v·d + 2·d·mlp) + d·q) + 6·L·H·T²·(d_k + d_v)].

    ValueError unless R, T ≥ 1.
    """
    if R < 1 or T < 1:
        raise ValueError(f"R and T must be at least 1, not {R} and {T}")
    c = config
    weights = c.depth * (c.heads * c.d * (2 * c.d_k + c.d_v) + c.heads * c.d_v * c.d + 2 * c.d * c.mlp) + c.d * c.q
    return R * (4 * T * weights + 6 * c.depth * c.heads * T**2 * (c.d_k + c.d_v))


def strings_of(frozen: FrozenModel, S: int, n: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """S strings of n tokens of the language that the model was trained on, on its device; natural ones are held out."""
    if not isinstance(frozen.recipe, pretrain.LanguageModel):
        raise ValueError("strings are for language models, and this is a bit reader")
    if frozen.recipe.corpus == "natural":
        strings = language.natural_strings(S, n, generator=generator)
    else:
        strings = language.Lexicon().sample(S, n, generator=generator)
    return strings.to(frozen.transformer.embedding.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, everything that it started on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matmul_rates(device: torch.device, sizes: Sequence[int]) -> list[float]:
    """Operations per second of `torch.mm` on square float32 matrices, one timed product for each size after another."""
    rates = []
    for size in sizes:
        a = torch.ones(size, size, device=device)
        product = torch.empty_like(a)
        torch.mm(a, a, out=product)
        rates.append(2 * size**3 / seconds(lambda a=a, product=product: torch.mm(a, a, out=product), device))
    return rates


def equal_steps(frozen: FrozenModel, m: int, n: int, settings: Settings, *, seed: int = 0) -> dict:
    """Optimiser steps of one string per second, one at a time and batched, and how much of the matrix-product rate.

    In each repetition one string takes `single_steps` steps, then `tune.cram` is called for `batched_steps` steps on
    `runs` strings, everything that a call costs included, then matrix products are timed.  `ratio` is the median of the
    repetitions' ratios.  With one thread it is also what several processes side by side would see, one for each core.
    """
    model, device = frozen.transformer, frozen.transformer.embedding.device
    generator = torch.Generator().manual_seed(seed)
    strings = strings_of(frozen, settings.runs, n, generator=generator)
    single = OneAtATime(model, m)

    def one_at_a_time(steps: int) -> None:
        adamw = single.begin(generator)
        for _ in range(steps):
            single.step(strings[:1], adamw)

    def batched(steps: int) -> None:
        tune.cram(model, strings, m, restarts=1, steps=steps, margin=UNREACHED, seed=seed, batch=settings.runs)

    one_at_a_time(10)
    batched(3)
    single_rates, batched_rates, products = [], [], []
    for _ in range(settings.repetitions):
        taken = seconds(lambda: one_at_a_time(settings.single_steps), device)
        single_rates.append(settings.single_steps / taken)
        taken = seconds(lambda: batched(settings.batched_steps), device)
        batched_rates.append(settings.runs * settings.batched_steps / taken)
        products += matmul_rates(device, settings.matrices)
    ratios = [fast / slow for fast, slow in zip(batched_rates, single_rates, strict=True)]
    # a call scores its last step too: one forward and backward pass more than it takes steps
    flops = step_flops(model.config, 1, m + n - 1) * (settings.batched_steps + 1) / settings.batched_steps
    used, product_rate = statistics.median(batched_rates) * flops, statistics.median(products)
    return {
        "m": m,
        "n": n,
        "threads": torch.get_num_threads(),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "single_steps_per_second": statistics.median(single_rates),
        "batched_steps_per_second": statistics.median(batched_rates),
        "matmul_flops_per_second": product_rate,
        "batched_flops_per_second": used,
        "matmul_fraction": used / product_rate,
    }


def single_n50(frozen: FrozenModel, single: OneAtATime, settings: Settings, *, generator: torch.Generator) -> int:
    """The string length at which tuning one at a time succeeds about half of the time, by an up-and-down search.

    Each trial is one new string.  Lengths double until the first failure; from then on the next string is longer after
    a success and shorter after a failure, by an eighth, at least one token.  Returns the mean length of the second half
    of the trials, rounded.
    """
    longest = frozen.transformer.config.context - single.m
    n, doubling, tried = min(2 * single.m, longest), True, []
    for _ in range(settings.trials):
        string = strings_of(frozen, 1, n, generator=generator)
        solved, _ = single.attempt(string, generator=generator, steps=settings.single_limit, patience=settings.patience)
        tried.append(n)
        doubling = doubling and solved
        step = n if doubling else max(1, n // 8)
        n = min(max(1, n + step if solved else n - step), longest)
    half = tried[len(tried) // 2 :]
    return round(sum(half) / len(half))


def equal_success(frozen: FrozenModel, m: int, settings: Settings, *, seed: int = 0) -> dict:
    """Time for the same strings one at a time and batched, where the first succeeds about half of the time.

    The length n is the n50 of tuning one at a time: at the n50 of `tune.cram` the other would hardly ever succeed, and
    its time until as many successes would be infinite.  Both get the same `strings` strings, drawn after n was found,
    and one start for each; `tune.cram` may take `batched_limit` steps.  A time is that of all strings, failures
    included.  `ratio` is None if `tune.cram` solves fewer strings (its successes are confirmed by decoding, the others'
    by teacher forcing only).  The strings one at a time are timed in four parts,
    whose times are added up, and the call on all of them is timed after each part (median).

    `full_batch_ratio` compares the time of one string when `tune.cram` has `runs` strings, the same and more, to fill
    its batch; None if it solves a smaller share.
    """
    model, device = frozen.transformer, frozen.transformer.embedding.device
    generator = torch.Generator().manual_seed(seed)
    single = OneAtATime(model, m)
    n = single_n50(frozen, single, settings, generator=generator)
    strings = strings_of(frozen, max(settings.strings, settings.runs), n, generator=generator)
    same = strings[: settings.strings]
    limits = dict(steps=settings.single_limit, patience=settings.patience, generator=generator)
    attempts: list[Attempt] = []

    def one_at_a_time(part: Tensor) -> None:
        attempts.extend(single.attempt(string[None], **limits) for string in part)

    def batched(chosen: Tensor) -> tuple[float, int]:
        found = []
        call = dict(restarts=1, steps=settings.batched_limit, seed=seed, batch=settings.runs)
        taken = seconds(lambda: found.append(tune.cram(model, chosen, m, **call)), device)
        return taken, int(found[0].success.sum())

    batched(same)
    single_seconds, calls = 0.0, []
    for part in same.tensor_split(4):
        single_seconds += seconds(lambda part=part: one_at_a_time(part), device)
        calls.append(batched(same))
    full_calls = [batched(strings) for _ in range(3)]
    batched_seconds = statistics.median(taken for taken, _ in calls)
    full_seconds = statistics.median(taken for taken, _ in full_calls) / len(strings)
    single_solved = sum(attempt.solved for attempt in attempts)
    batched_solved = min(solved for _, solved in calls)
    full_share = min(solved for _, solved in full_calls) / len(strings)
    enough = full_share >= single_solved / len(same)
    return {
        "m": m,
        "n": n,
        "strings": len(same),
        "single_solved": single_solved,
        "single_seconds": single_seconds,
        "single_steps": sum(attempt.steps for attempt in attempts),
        "batched_solved": batched_solved,
        "batched_seconds": batched_seconds,
        "ratio": single_seconds / batched_seconds if batched_solved >= single_solved else None,
        "full_batch_strings": len(strings),
        "full_batch_solved_share": full_share,
        "full_batch_seconds_per_string": full_seconds,
        "full_batch_ratio": single_seconds / len(same) / full_seconds if enough else None,
        "batched_n50": batched_n50(frozen, m, settings, seed=seed),
    }


def batched_n50(frozen: FrozenModel, m: int, settings: Settings, *, seed: int = 0) -> float:
    """The median length of the longest beginning that `tune.longest_prefix` finds, one start for each string.

    Infinite if half of the strings are found in full, at `longest` tokens a prompt vector.
    """
    N = min(settings.longest * m, frozen.transformer.config.context - m + 1)
    strings = strings_of(frozen, settings.strings, N, generator=torch.Generator().manual_seed(seed + 1))
    found = tune.longest_prefix(frozen.transformer, strings, m, restarts=1, steps=settings.longest_limit, seed=seed)
    median = statistics.median(found.lengths.tolist())
    return median if median < N else math.inf


def scaling(frozen: FrozenModel, settings: Settings, *, m: int = 2, n: int = 6, seed: int = 0) -> list[tuple]:
    """Strings per second of one call of `tune.cram` on many strings: [(number of strings, rate), …], medians."""
    model, rates = frozen.transformer, {count: [] for count in settings.counts}
    strings = strings_of(frozen, max(rates), n, generator=torch.Generator().manual_seed(seed))

    def batched(count: int) -> None:
        tune.cram(model, strings[:count], m, restarts=1, steps=settings.batched_limit, seed=seed)

    batched(min(rates))
    for _ in range(settings.calls):
        for count, rate in rates.items():
            rate.append(count / seconds(lambda count=count: batched(count), model.embedding.device))
    return [(count, statistics.median(rate)) for count, rate in rates.items()]


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """exp(mean ln ratio); None if there is none or one is missing."""
    if not ratios or None in ratios:
        return None
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def peak_memory_gib() -> float:
    """The most memory that this process has held so far, in GiB (2³⁰ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


# --- reports -------------------------------------------------------------------------------------------------------


def compare(frozen: FrozenModel, settings: Settings, *, seed: int = 0, say: Callable[[str], None] = lambda _: None):
    """All figures of one model, as a dictionary; `say` is told what is being measured.

    Torch's number of threads is used as it is, and one thread besides.
    """
    model = frozen.transformer.require_finite()
    device, threads = model.embedding.device, torch.get_num_threads()
    start = time.perf_counter()
    sample = strings_of(frozen, 32, min(64, model.config.context), generator=torch.Generator().manual_seed(seed))
    report = {"settings": asdict(settings), "seed": seed} | surroundings(device)
    report["export_error"] = export_error(model, sample)
    say("steps per second")
    report["equal_steps"] = equal_steps(frozen, 4, 12, settings, seed=seed)
    if device.type == "cpu" and threads > 1:
        say("steps per second on one thread")
        with _threads(1):
            report["equal_steps_one_thread"] = equal_steps(frozen, 4, 12, settings, seed=seed)
    report["equal_success"] = []
    for m in settings.lengths:
        say(f"time to equal success, m = {m}")
        report["equal_success"].append(equal_success(frozen, m, settings, seed=seed))
    for key in ("ratio", "full_batch_ratio"):
        report[f"equal_success_{key}"] = geometric_mean([result[key] for result in report["equal_success"]])
    say("strings per second")
    report["strings_per_second"] = scaling(frozen, settings, seed=seed)
    report["peak_memory_gib"] = peak_memory_gib()
    if device.type == "cuda":
        report["peak_device_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    report["seconds"] = time.perf_counter() - start
    return report


def quick(frozen: FrozenModel, *, m: int = 2, seed: int = 0) -> dict:
    """A small comparison for a page: `surroundings`, `equal_steps` at m = 4, n = 12 and `equal_success` at m.

    Thirty to sixty core-seconds with the model "natural"; `rows` turns it into a table.
    """
    settings = Settings(repetitions=3, strings=6, trials=8, longest=12, matrices=(1024,))
    return surroundings(frozen.transformer.embedding.device) | {
        "equal_steps": equal_steps(frozen, 4, 12, settings, seed=seed),
        "equal_success": [equal_success(frozen, m, settings, seed=seed)],
    }


def surroundings(device: torch.device) -> dict:
    """Where the times were taken: machine, versions, device, threads."""
    names = ("torch", "transformers", "peft", "numpy")
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def rows(report: Mapping) -> list[tuple[str, str]]:
    """A report of `compare` or `quick` as rows of text: what, and how much."""
    machine = report["machine"]
    threads = _threads_of(report)
    table = [
        ("device", f"{report['device']}, {threads}; {machine['processor']} with {machine['cores']} cores"),
        ("versions", ", ".join(f"{name} {text}" for name, text in report["versions"].items())),
    ]
    if "export_error" in report:
        table.append(("largest difference of the two models' logits", f"{report['export_error']:.2g}"))
    for key in ("equal_steps", "equal_steps_one_thread"):
        if key not in report:
            continue
        steps = report[key]
        at = f" (m = {steps['m']}, n = {steps['n']}, {_threads_of(steps)})"
        low, high = steps["ratio_range"]
        table += [
            (f"steps of a string per second, one at a time{at}", f"{steps['single_steps_per_second']:.0f}"),
            (f"steps of a string per second, batched{at}", f"{steps['batched_steps_per_second']:.0f}"),
            (f"ratio at equal steps{at}", f"{steps['ratio']:.1f}, repetitions from {low:.1f} to {high:.1f}"),
            (f"matrix products in GFLOP/s{at}", f"{steps['matmul_flops_per_second'] / 1e9:.1f}"),
            (f"part of it that the batch uses{at}", f"{100 * steps['matmul_fraction']:.0f} %"),
        ]
    for result in report["equal_success"]:
        at = f" (m = {result['m']}, n = {result['n']})"
        solved = f"{{}} of {result['strings']} solved in {{:.2f}} s"
        full = f"a string in a batch of {result['full_batch_strings']}"
        table += [
            (f"strings one at a time{at}", solved.format(result["single_solved"], result["single_seconds"])),
            (f"the same strings batched{at}", solved.format(result["batched_solved"], result["batched_seconds"])),
            (f"ratio of time, batched solving at least as many{at}", _ratio(result["ratio"])),
            (f"ratio of time for {full}{at}", _ratio(result["full_batch_ratio"])),
            (f"solved, {full}{at}", f"{100 * result['full_batch_solved_share']:.0f} %"),
            (f"n50 one at a time, batched (m = {result['m']})", f"{result['n']}, {number(result['batched_n50'])}"),
        ]
    if "strings_per_second" in report:
        table += [
            ("geometric mean over m of the ratio of time at equal success", _ratio(report["equal_success_ratio"])),
            ("the same for a string in a full batch", _ratio(report["equal_success_full_batch_ratio"])),
        ]
        table += [(f"strings per second, {count} strings (m = 2, n = 6)", f"{rate:.0f}")
                  for count, rate in report["strings_per_second"]]  # fmt: skip
        table.append(("peak memory", f"{report['peak_memory_gib']:.2f} GiB"))
        table.append(("time of all measurements", f"{report['seconds']:.0f} s"))
    return table


def _threads_of(report: Mapping) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"


def _ratio(value: float | None) -> str:
    return "none: fewer solved" if value is None else f"{value:.1f}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prompt_memory.bench",
        description="Speed of the tuner beside prompt tuning of one string at a time, on the same frozen weights.",
    )
    parser.add_argument("--model", default="natural", help="a language model of the book; default: natural")
    parser.add_argument("--models", type=Path, help="folder of trained models; one that is missing is trained")
    parser.add_argument("--output", type=Path, required=True, help="folder for bench.json and a model trained here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="seconds: shows that it runs, measures little")
    options = parser.parse_args(arguments)
    models = [name for name, recipe in pretrain.RECIPES.items() if isinstance(recipe, pretrain.LanguageModel)]
    if options.model not in models:
        parser.error(f"unknown language model {options.model!r}: choose one of {', '.join(models)}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none")
    torch.set_num_threads(options.threads)
    try:
        frozen = pretrain.load(options.model, _folder(options.model, options.models, options.output)).to(device)
    except ValueError as error:
        parser.error(str(error))
    settings = QUICK if options.quick else Settings()
    report = {"model": options.model} | compare(frozen, settings, seed=options.seed, say=_say)
    write_json(options.output / "bench.json", plain(report))
    width = max(len(what) for what, _ in rows(report))
    print()
    for what, how_much in rows(report):
        print(f"{what:{width}}  {how_much}")
    print(f"\nAll figures: {options.output / 'bench.json'}")
    print(f"ratio {report['equal_steps']['ratio']:.1f}x")


def _say(text: str) -> None:
    print(f"measuring: {text}", flush=True)


def _folder(name: str, models: Path | None, output: Path) -> Path:
    """The folder that holds the trained model; if there is none yet, it is trained into `output`, as the book does."""
    for folder in (models, output):
        if folder is not None and (folder / f"{name}.safetensors").exists():
            return folder
    print(f"training the model {name}, once", flush=True)
    command = [sys.executable, "-m", "prompt_memory.pretrain", name, "--output", str(output / f"{name}.safetensors")]
    subprocess.run(command, check=True)
    return output


if __name__ == "__main__":
    main()
