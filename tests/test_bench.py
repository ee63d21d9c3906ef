"""The benchmark: both sides are the same network and the same gradient, and the figures follow from what was timed."""

import itertools
import json
import math
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prompt_memory import bench, pretrain, tune
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)

NAME = "lexicon-small"
CPU = torch.device("cpu")
TINY = bench.Settings(
    repetitions=2, runs=8, batched_steps=3, single_steps=3, lengths=(1, 2), strings=4, trials=3, single_limit=20,
    patience=5, batched_limit=20, longest_limit=20, longest=2, counts=(1, 3), calls=1, matrices=(256,),
)  # fmt: skip


def config(**changes):
    settings = dict(d=8, q=11, depth=2, heads=2, mlp=12, activation="relu", norm="layer", causal=True)
    return TransformerConfig(**settings | dict(positions="learned", context=20) | changes)


def network(seed=0, **changes):
    """A network in which every weight matters: gains that are not one, biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config(**changes), generator=generator)
    for weight in model.parameters():
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def frozen():
    """A language model as it is before training: nothing here depends on what it has learned."""
    return pretrain.FrozenModel(pretrain.RECIPES[NAME]).requires_grad_(False)


# --- the same network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"activation": "gelu", "heads": 4}, {"depth": 1, "norm_eps": 0.1}])
def test_the_exported_network_has_the_same_logits(changes):
    model = network(**changes)
    strings = torch.randint(11, (5, 20), generator=torch.Generator().manual_seed(1))
    logits = bench.export_gpt2(model)(strings).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, model.stream(model.embedding[strings]), rtol=0, atol=1e-5)
    assert bench.export_error(model, strings) <= 1e-5


def test_a_weight_that_is_exported_wrongly_is_noticed(monkeypatch):
    model, strings = network(), torch.randint(11, (5, 20))
    for name, _ in model.named_parameters():
        other = network()
        other.get_parameter(name).mul_(1.01)
        exported = bench.export_gpt2(other)
        with monkeypatch.context() as patch:
            patch.setattr(bench, "export_gpt2", lambda _, exported=exported: exported)
            with pytest.raises(RuntimeError, match="the exported model's logits differ by"):
                bench.export_error(model, strings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rms"}, "GPT-2 needs norm = 'layer', and this network has 'rms'"),
        ({"positions": "rotary"}, "GPT-2 needs positions = 'learned'"),
        ({"causal": False}, "GPT-2 needs causal = True"),
        ({"inverse_temperature": 2.0}, "GPT-2 needs inverse_temperature"),
        ({"mlp": 0}, "GPT-2 needs a token-wise network"),
        ({"d_k": 8}, "GPT-2 needs a token-wise network and d = heads"),
    ],
)
def test_networks_that_gpt2_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bench.export_gpt2(Transformer(config(**changes)))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 6), (4, 12)])
def test_both_sides_have_the_same_gradient(m, n):
    model = network()
    string = torch.randint(11, (1, n), generator=torch.Generator().manual_seed(2))
    single = bench.OneAtATime(model, m)
    adamw = single.begin(torch.Generator().manual_seed(3))
    start = single.prompt.detach().clone()
    assert start.shape == (m, 8)
    moving = start[None].requires_grad_()
    logits = model.stream(torch.cat([moving, model.embedding[string[:, :-1]]], 1))[:, m - 1 :]
    loss = torch.nn.functional.cross_entropy(logits[0], string[0])
    (gradient,) = torch.autograd.grad(loss, moving)

    output = single.model(input_ids=string, labels=string)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(single.prompt.grad, gradient[0], rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    assert all(weight.grad is None for weight in single.model.parameters() if weight is not single.prompt)

    adamw.zero_grad()
    right = single.step(string, adamw)
    assert right == pytest.approx((logits.argmax(-1) == string).double().mean().item())
    # AdamW's first step: weight decay, then the learning rate in the direction of each coordinate's sign
    expected = start * (1 - 1e-2 * 0.01) - 1e-2 * gradient[0] / (gradient[0].abs() + 1e-8)
    torch.testing.assert_close(single.prompt.detach(), expected, rtol=0, atol=2e-5)
    assert adamw.defaults["betas"] == (0.9, 0.9)  # which a first step does not show


def test_a_prompt_starts_at_the_scale_of_the_embeddings(frozen):
    frozen.transformer.embedding.mul_(3)
    single = bench.OneAtATime(frozen.transformer, 40)
    frozen.transformer.embedding.div_(3)
    single.begin(torch.Generator().manual_seed(0))
    assert float(single.prompt.detach().std()) == pytest.approx(3 * float(frozen.transformer.embedding.std()), rel=0.1)


class Scripted(bench.OneAtATime):
    """One at a time, but what a step finds is decided by `find(length of the string, number of the step)`."""

    def __init__(self, find, m=1):
        self.find, self.m, self.lengths = find, m, []

    def begin(self, generator):
        self.taken = 0

    def step(self, string, adamw):
        self.taken += 1
        if self.taken == 1:
            self.lengths.append(string.shape[-1])
        return self.find(string.shape[-1], self.taken)


@pytest.mark.parametrize(
    ("find", "result"),
    [
        (lambda n, k: 1.0 if k == 3 else 0.5, (True, 3)),
        (lambda n, k: 0.5, (False, 11)),  # the first step was progress, then patience ran out
        (lambda n, k: 0.0, (False, 10)),
        (lambda n, k: k / 100, (False, 40)),  # progress until the steps are used up
        (lambda n, k: min(k, 8) / 10, (False, 18)),
    ],
)
def test_an_attempt_ends_with_success_lost_patience_or_the_last_step(find, result):
    string = torch.zeros(1, 10, dtype=torch.long)
    assert Scripted(find).attempt(string, generator=None, steps=40, patience=10) == result


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("half", [3, 9, 25])
def test_the_search_finds_the_length_that_is_solved_half_of_the_time(frozen, half, m):
    settings = bench.Settings(trials=40, single_limit=1)
    generator = torch.Generator().manual_seed(0)
    sharp = Scripted(lambda n, _: float(n <= half), m)
    assert abs(bench.single_n50(frozen, sharp, settings, generator=generator) - half) <= 1
    draws = torch.Generator().manual_seed(1)
    soft = Scripted(lambda n, _: float(torch.rand((), generator=draws) < 1 / (1 + math.exp((n - half) / 2))), m)
    assert abs(bench.single_n50(frozen, soft, settings, generator=generator) - half) <= 3
    for single in (sharp, soft):
        assert max(single.lengths) <= frozen.transformer.config.context - m


# --- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "R", "T"), [({}, 1, 1), ({}, 3, 15), ({"d_k": 3, "d_v": 5, "depth": 3, "q": 7}, 4, 9)]
)
def test_operations_are_those_that_torch_counts(changes, R, T):
    model = network(**changes)
    x = torch.randn(R, T, 8).requires_grad_()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(model.stream(x).sum(), x)
    assert counter.get_total_flops() == bench.step_flops(model.config, R, T)


def test_operations_of_a_network_counted_by_hand():
    tiny = TransformerConfig(d=2, q=3, depth=1, heads=1, d_k=1, d_v=1, mlp=4, causal=True)
    # weights: query, key, value and output 2 each, token-wise 8 + 8, unembedding 6; attention 2·(1 + 1) forward
    assert bench.step_flops(tiny, 1, 1) == 4 * (8 + 16 + 6) + 3 * 4
    assert bench.step_flops(tiny, 5, 3) == 5 * (3 * 4 * 30 + 9 * 12)
    with pytest.raises(ValueError, match="R and T must be at least 1, not 1 and 0"):
        bench.step_flops(tiny, 1, 0)


def test_rates_are_work_over_time(monkeypatch, frozen):
    monkeypatch.setattr(bench, "seconds", lambda work, device: (work(), 0.5)[1])
    assert bench.matmul_rates(CPU, (3, 5)) == [4 * 27, 4 * 125]
    asked = []
    monkeypatch.setattr(tune, "cram", lambda model, strings, m, **_: asked.append((len(strings), m)))
    assert bench.scaling(frozen, bench.Settings(counts=(2, 5), calls=3), m=3, n=4) == [(2, 4.0), (5, 10.0)]
    assert asked == [(2, 3), *[(2, 3), (5, 3)] * 3]  # the first call warms up


def test_steps_are_counted_on_both_sides(monkeypatch, frozen):
    taken = {"single": 0, "batched": 0, "streams": 0}
    step, descend, stream = bench.OneAtATime.step, tune.cram, Transformer.stream

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
    monkeypatch.setattr(bench.OneAtATime, "step", counted_step)
    monkeypatch.setattr(tune, "cram", counted_cram)
    monkeypatch.setattr(Transformer, "stream", counted_stream)
    monkeypatch.setattr(bench, "seconds", lambda work, device: (work(), 2.0 + next(clock) % 5)[1])
    monkeypatch.setattr(bench, "matmul_rates", lambda device, _: [1e9, 2e9, bench.seconds(lambda: None, device) * 1e9])
    settings = bench.Settings(repetitions=3, runs=6, batched_steps=8, single_steps=5)
    figures = bench.equal_steps(frozen, 4, 12, settings)
    assert taken == {"single": 10 + 3 * 5, "batched": 1 + 3, "streams": (3 + 1) + 3 * (8 + 1)}
    # the clock reads 2 3 4, 5 6 2, 3 4 5 seconds: one at a time, batched, a matrix product
    single, batched = [5 / 2, 5 / 5, 5 / 3], [48 / 3, 48 / 6, 48 / 4]
    assert figures["single_steps_per_second"] == pytest.approx(5 / 3)
    assert figures["batched_steps_per_second"] == pytest.approx(12)
    ratios = sorted(fast / slow for fast, slow in zip(batched, single, strict=True))
    assert figures["ratio"] == pytest.approx(ratios[1])
    assert figures["ratio_range"] == pytest.approx([ratios[0], ratios[2]])
    assert figures["matmul_flops_per_second"] == 2e9
    work = bench.step_flops(frozen.transformer.config, 6, 15) * 9  # nine passes in a call of median 4 seconds
    assert figures["matmul_fraction"] == pytest.approx(work / 4 / 2e9)
    assert figures["threads"] == 1


@pytest.mark.parametrize(
    ("solved", "full", "ratio", "full_ratio"), [(3, 12, 8.0, 24.0), (2, 12, None, 24.0), (4, 8, 8.0, None)]
)
def test_equal_success_needs_as_many_solved(monkeypatch, frozen, solved, full, ratio, full_ratio):
    outcomes = itertools.cycle([1.0, 1.0, 0.0, 1.0])  # one at a time solves three of four
    monkeypatch.setattr(bench, "OneAtATime", lambda model, m: Scripted(lambda n, _: next(outcomes), m))
    monkeypatch.setattr(bench, "single_n50", lambda *_, **__: 5)
    monkeypatch.setattr(bench, "batched_n50", lambda *_, **__: 7.0)
    monkeypatch.setattr(bench, "seconds", lambda work, device: (work(), 2.0)[1])
    seen = []

    def cram(model, strings, m, *, restarts, steps, seed, batch):
        assert (strings.shape[1], m, restarts, steps) == (5, 2, 1, 200)
        seen.append(strings)
        success = torch.arange(len(strings)) < (solved if len(strings) == 4 else full)
        return tune.Crammed(torch.zeros(len(strings), m, 32), success, success.long())

    monkeypatch.setattr(tune, "cram", cram)
    settings = bench.Settings(strings=4, runs=12, single_limit=1)
    figures = bench.equal_success(frozen, 2, settings)
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
    assert bench.batched_n50(frozen, 1, bench.Settings(longest=12)) == 6
    assert bench.batched_n50(frozen, 1, bench.Settings(longest=6)) == math.inf  # half of the strings reach it


def test_a_missing_ratio_leaves_no_mean():
    assert bench.geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert bench.geometric_mean([2.0, None]) is bench.geometric_mean([]) is None


def test_peak_memory_sees_what_was_held():
    held = 0.4 * 2**30
    block = torch.ones(int(held // 4))
    assert held / 2**30 < bench.peak_memory_gib() < 64
    del block


def test_strings_are_those_of_the_models_language(frozen):
    strings = bench.strings_of(frozen, 3, 9, generator=torch.Generator().manual_seed(0))
    assert strings.shape == (3, 9)
    natural = pretrain.FrozenModel(pretrain.RECIPES["natural"])
    assert bench.strings_of(natural, 50, 9, generator=torch.Generator().manual_seed(0)).max() > 27
    reader = pretrain.FrozenModel(pretrain.RECIPES["bit-reader-small"])
    with pytest.raises(ValueError, match="strings are for language models, and this is a bit reader"):
        bench.strings_of(reader, 1, 1, generator=torch.Generator())


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_quick_run_ends_with_the_ratio(frozen, tmp_path, capsys, monkeypatch):
    pretrain.save(frozen, tmp_path / "models" / f"{NAME}.safetensors")
    monkeypatch.setattr(bench, "QUICK", TINY)
    bench.main(["--quick", "--model", NAME, "--models", str(tmp_path / "models"), "--output", str(tmp_path),
                "--threads", "1", "--device", "cpu"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "bench.json").read_text())
    assert re.fullmatch(r"ratio \d+\.\dx", lines[-1])
    assert lines[-1] == f"ratio {report['equal_steps']['ratio']:.1f}x"
    assert [result["m"] for result in report["equal_success"]] == [1, 2]
    assert [count for count, _ in report["strings_per_second"]] == [1, 3]
    assert report["export_error"] <= 1e-5
    assert 0 < report["equal_steps"]["matmul_fraction"] < 1
    assert (report["device"], report["threads"]) == ("cpu", 1)
    assert set(report["versions"]) == {"python", "torch", "transformers", "peft", "numpy"}
    assert any("peak memory" in line for line in lines)


def test_a_page_gets_a_small_comparison(frozen, monkeypatch):
    monkeypatch.setattr(bench, "Settings", lambda **_: TINY)
    table = bench.rows(bench.quick(frozen))
    assert all(isinstance(cell, str) for row in table for cell in row)
    assert any(what.startswith("ratio at equal steps (m = 4, n = 12, 1 thread)") for what, _ in table)
    assert any(what.startswith("ratio of time, batched solving at least as many (m = 2") for what, _ in table)


def test_a_model_that_is_missing_is_trained_into_the_output_folder(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: commands.append(command[1:]))
    assert bench._folder(NAME, tmp_path / "models", tmp_path) == tmp_path
    (command,) = commands
    assert command == ["-m", "prompt_memory.pretrain", NAME, "--output", str(tmp_path / f"{NAME}.safetensors")]
    (tmp_path / f"{NAME}.safetensors").touch()
    assert bench._folder(NAME, tmp_path / "models", tmp_path) == tmp_path
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{NAME}.safetensors").touch()
    assert bench._folder(NAME, tmp_path / "models", tmp_path) == tmp_path / "models"
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "gpt-5"], "unknown language model 'gpt-5': choose one of lexicon-small, lexicon, natural"),
        (["--model", "bit-reader"], "unknown language model 'bit-reader': choose one of lexicon-small"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["--output", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_model_of_another_recipe_is_refused(frozen, tmp_path, capsys):
    pretrain.save(frozen, tmp_path / "natural.safetensors")
    with pytest.raises(SystemExit) as stop:
        bench.main(["--output", str(tmp_path)])
    assert stop.value.code == 2
    assert "was written by another recipe" in capsys.readouterr().err.splitlines()[-1]
