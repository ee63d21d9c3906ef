"""The figures follow from what was timed."""

import itertools
import math

import pytest
import torch
from benched import CPU, Scripted

from prompt_memory import pretrain, tune
from prompt_memory.bench import Settings, comparison, peft_baseline, timing
from prompt_memory.network.transformer import Transformer


def test_rates_are_work_over_time(monkeypatch, frozen):
    for module in (timing, comparison):
        monkeypatch.setattr(module, "seconds", lambda work, device: (work(), 0.5)[1])
    assert timing.matmul_rates(CPU, (3, 5)) == [4 * 27, 4 * 125]
    asked = []
    monkeypatch.setattr(tune, "cram", lambda model, strings, m, **_: asked.append((len(strings), m)))
    assert comparison.scaling(frozen, Settings(counts=(2, 5), calls=3), m=3, n=4) == [(2, 4.0), (5, 10.0)]
    assert asked == [(2, 3), *[(2, 3), (5, 3)] * 3]  # the first call warms up


def test_steps_are_counted_on_both_sides(monkeypatch, frozen):
    taken = {"single": 0, "batched": 0, "streams": 0}
    step, descend, stream = peft_baseline.OneAtATime.step, tune.cram, Transformer.stream

    def counted_step(self, string, adamw):
        taken["single"] += 1
        assert string.shape == (1, 12)
        return step(self, string, adamw)

    def counted_cram(model, strings, m, **options):
        assert (strings.shape, m, options["batch"]) == ((6, 12), 4, 6)
        found = descend(model, strings, m, **options)
        assert not found.success.any()  # nobody leaves early
        taken["batched"] += 1
        return found

    def counted_stream(self, x):
        taken["streams"] += 1
        return stream(self, x)

    clock = itertools.count()
    monkeypatch.setattr(peft_baseline.OneAtATime, "step", counted_step)
    monkeypatch.setattr(tune, "cram", counted_cram)
    monkeypatch.setattr(Transformer, "stream", counted_stream)
    monkeypatch.setattr(comparison, "seconds", lambda work, device: (work(), 2.0 + next(clock) % 5)[1])
    monkeypatch.setattr(
        comparison, "matmul_rates", lambda device, _: [1e9, 2e9, comparison.seconds(lambda: None, device) * 1e9]
    )
    settings = Settings(repetitions=3, runs=6, batched_steps=8, single_steps=5)
    figures = comparison.equal_steps(frozen, 4, 12, settings)
    assert taken == {"single": 10 + 3 * 5, "batched": 1 + 3, "streams": (3 + 1) + 3 * (8 + 1)}
    # the clock reads 2 3 4, 5 6 2, 3 4 5 seconds: one at a time, batched, a matrix product
    single, batched = [5 / 2, 5 / 5, 5 / 3], [48 / 3, 48 / 6, 48 / 4]
    assert figures["single_steps_per_second"] == pytest.approx(5 / 3)
    assert figures["batched_steps_per_second"] == pytest.approx(12)
    ratios = sorted(fast / slow for fast, slow in zip(batched, single, strict=True))
    assert figures["ratio"] == pytest.approx(ratios[1])
    assert figures["ratio_range"] == pytest.approx([ratios[0], ratios[2]])
    assert figures["matmul_flops_per_second"] == 2e9
    work = timing.step_flops(frozen.transformer.config, 6, 15) * 9  # nine passes in a call of median 4 seconds
    assert figures["matmul_fraction"] == pytest.approx(work / 4 / 2e9)
    assert figures["threads"] == 1


@pytest.mark.parametrize(
    ("solved", "full", "ratio", "full_ratio"), [(3, 12, 8.0, 24.0), (2, 12, None, 24.0), (4, 8, 8.0, None)]
)
def test_equal_success_needs_as_many_solved(monkeypatch, frozen, solved, full, ratio, full_ratio):
    outcomes = itertools.cycle([1.0, 1.0, 0.0, 1.0])  # one at a time solves three of four
    monkeypatch.setattr(comparison, "OneAtATime", lambda model, m: Scripted(lambda n, _: next(outcomes), m))
    monkeypatch.setattr(comparison, "single_n50", lambda *_, **__: 5)
    monkeypatch.setattr(comparison, "batched_n50", lambda *_, **__: 7.0)
    monkeypatch.setattr(comparison, "seconds", lambda work, device: (work(), 2.0)[1])
    seen = []

    def cram(model, strings, m, *, restarts, steps, seed, batch):
        assert (strings.shape[1], m, restarts, steps) == (5, 2, 1, 200)
        seen.append(strings)
        success = torch.arange(len(strings)) < (solved if len(strings) == 4 else full)
        return tune.Crammed(torch.zeros(len(strings), m, 32), success, success.long())

    monkeypatch.setattr(tune, "cram", cram)
    settings = Settings(strings=4, runs=12, single_limit=1)
    figures = comparison.equal_success(frozen, 2, settings)
    assert (figures["single_solved"], figures["batched_solved"]) == (3, solved)
    # four parts of two seconds one at a time; a call takes two seconds
    assert (figures["single_seconds"], figures["batched_seconds"]) == (8.0, 2.0)
    assert figures["ratio"] == (None if ratio is None else 4.0)
    assert figures["full_batch_ratio"] == (None if full_ratio is None else (8 / 4) / (2 / 12))
    assert all(torch.equal(strings[:4], seen[0]) for strings in seen)


def test_the_batched_n50_is_the_median_length(monkeypatch, frozen):
    lengths = [3, 9, 4, 8]
    found = tune.Longest(torch.zeros(4, 1, 32), torch.tensor(lengths))
    monkeypatch.setattr(tune, "longest_prefix", lambda model, strings, m, **_: found)
    assert comparison.batched_n50(frozen, 1, Settings(longest=12)) == 6
    assert comparison.batched_n50(frozen, 1, Settings(longest=6)) == math.inf  # half of the strings reach it


def test_strings_are_those_of_the_models_language(frozen):
    strings = comparison.strings_of(frozen, 3, 9, generator=torch.Generator().manual_seed(0))
    assert strings.shape == (3, 9)
    natural = pretrain.FrozenModel(pretrain.RECIPES["natural"])
    assert comparison.strings_of(natural, 50, 9, generator=torch.Generator().manual_seed(0)).max() > 27
    reader = pretrain.FrozenModel(pretrain.RECIPES["bit-reader-small"])
    with pytest.raises(ValueError, match="strings are for language models, and this is a bit reader"):
        comparison.strings_of(reader, 1, 1, generator=torch.Generator())
