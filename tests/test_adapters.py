"""Four tunings of one network: the numbers they train, the numbers outputs see, the task, and what is counted."""

import math

import pytest
import torch

from prompt_memory import adapters, bench, bounds
from prompt_memory.adapters import Table, Tuning
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)

EVERY = [Tuning("soft prompt", 3), Tuning("prefix", 2), Tuning("LoRA", 2), Tuning("all weights")]


def config(**changes):
    settings = dict(d=6, q=7, depth=2, heads=2, mlp=8, norm="layer", causal=True, positions="learned", context=10)
    return TransformerConfig(**settings | changes)


def network(seed=0, **changes):
    """A network in general position: gains are not one, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config(**changes), generator=generator)
    for name, weight in model.named_parameters():
        if name.endswith(("gain", "bias")):
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return model


# --- what is trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [*EVERY, Tuning("LoRA", 1), Tuning("soft prompt", 1)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"depth": 3, "mlp": 5, "q": 4}])
def test_as_many_numbers_are_trained_as_the_formula_says(tuning, changes):
    model = network(**changes)
    weights = adapters.trained(adapters.adapt(model, tuning))
    assert sum(weight.numel() for weight in weights) == adapters.trained_numbers(model.config, tuning)


@pytest.mark.parametrize("tuning", EVERY, ids=str)
def test_training_moves_the_trained_numbers_and_nothing_else(tuning):
    adapted = adapters.adapt(network(), tuning)
    before = {name: weight.detach().clone() for name, weight in adapted.named_parameters()}
    table = adapters.random_table(6, 2, 7, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    adapters.tune(adapted, table, steps=3, learning_rate=0.05, batch=4, generator=generator)
    frozen, moved = 0, 0
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            moved += not torch.equal(weight, before[name])
        else:
            frozen += 1
            assert torch.equal(weight, before[name]), name
    assert moved >= 1
    assert (frozen == 0) == (tuning.kind == "all weights")


@pytest.mark.parametrize("kind", ["LoRA", "all weights"])
def test_lora_and_all_weights_start_as_the_frozen_network(kind):
    model = network()
    adapted = adapters.adapt(model, Tuning(kind, 2 if kind == "LoRA" else 0))
    strings = torch.randint(7, (4, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(adapted(input_ids=strings).logits, bench.export_gpt2(model)(strings).logits)


def test_a_soft_prompt_of_peft_is_our_soft_prompt():
    model = network()
    adapted = adapters.adapt(model, Tuning("soft prompt", 3), seed=5)
    strings = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(1))
    (prompt,) = adapters.trained(adapted)
    ours = model.stream(torch.cat([prompt.expand(4, -1, -1), model.embedding[strings]], 1))
    torch.testing.assert_close(adapted(input_ids=strings).logits, ours, rtol=0, atol=1e-5)


def test_the_same_seed_starts_at_the_same_numbers_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    for tuning in EVERY[:3]:
        first, again, other = (adapters.trained(adapters.adapt(network(), tuning, seed=s)) for s in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# --- numbers that nothing reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [Tuning("soft prompt", 3), Tuning("prefix", 2), Tuning("LoRA", 1)], ids=str)
def test_the_rank_is_the_number_of_visible_numbers(tuning):
    generator = torch.Generator().manual_seed(3)
    length = 10 - (0 if tuning.kind == "LoRA" else tuning.size)
    sequences = torch.randint(7, (120, length), generator=generator)
    adapted = adapters.adapt(network(), tuning)
    rank, least, rest = adapters.measured_rank(adapted, sequences, spread=0.5, generator=generator)
    assert rank == adapters.visible_numbers(config(), tuning)
    assert least > 1e-7
    assert rest < 1e-13


def test_all_weights_of_a_small_network_have_the_rank_of_the_count():
    small = dict(d=4, q=5, mlp=4, context=6)
    generator = torch.Generator().manual_seed(3)
    adapted = adapters.adapt(network(**small), Tuning("all weights"))
    sequences = torch.randint(5, (150, 6), generator=generator)
    rank, _, _ = adapters.measured_rank(adapted, sequences, spread=0.5, generator=generator)
    assert rank == adapters.visible_numbers(config(**small), Tuning("all weights")) < 0.7 * 344


@pytest.mark.parametrize("changes", [{}, {"d": 32, "heads": 4, "mlp": 128, "q": 27, "context": 48, "depth": 5}])
def test_visible_weights_are_what_is_left_when_everything_is_written_once(changes):
    c = config(**changes)
    heads = c.heads * (c.d_k * (2 * c.d - 1 - c.d_k) + c.d_v * (2 * c.d - 2 - c.d_v))
    layer = heads + 2 * (c.d - 1) + (2 * c.d - 1) * c.mlp
    whole = c.depth * layer + (c.d - 1) * (c.q + c.context - 1) + c.d * c.q - math.comb(c.d - 1, 2)
    assert adapters.visible_numbers(c, Tuning("all weights")) == whole


def test_soft_prompt_and_prefix_are_counted_as_in_theorem_3():
    c = config()
    assert adapters.visible_numbers(c, Tuning("soft prompt", 4)) == bounds.effective_dimension(c, 4)
    assert adapters.visible_numbers(c, Tuning("prefix", 4)) == bounds.effective_dimension(c, 4, tuning="prefix")


# --- the task ------------------------------------------------------------------------------------------------------


def test_a_table_has_different_keys_and_uses_all_of_them():
    table = adapters.random_table(49, 3, 7, key_tokens=2, generator=torch.Generator().manual_seed(0))
    assert len({tuple(key) for key in table.keys.tolist()}) == 49
    assert table.labels.shape == (49, 3)
    assert set(table.labels.flatten().tolist()) == set(range(7))


def test_labels_are_read_after_the_key_and_the_labels_before_them():
    model = network()
    table = adapters.random_table(5, 3, 7, generator=torch.Generator().manual_seed(4))
    logits = adapters.label_logits(adapters.adapt(model, Tuning("all weights")), table)
    assert logits.shape == (5, 3, 7)
    for k in range(5):
        for t in range(3):
            seen = torch.cat([table.keys[k], table.labels[k, :t]])[None]
            wanted = model.stream(model.embedding[seen])[0, -1]
            torch.testing.assert_close(logits[k, t], wanted, rtol=0, atol=1e-5)


def test_recall_counts_the_argmaxes_whatever_the_chunk():
    adapted = adapters.adapt(network(), EVERY[1])
    table = adapters.random_table(40, 2, 7, generator=torch.Generator().manual_seed(4))
    right = adapters.recalled(adapted, table, chunk=7)
    answers = adapters.label_logits(adapted, table).argmax(-1)
    assert torch.equal(right, answers == table.labels)
    assert adapters.recalled(adapted, Table(table.keys, table.labels)).float().mean() < 0.5
    one = Table(table.keys, answers)  # the first labels are then all right; later ones have seen other labels
    assert adapters.recalled(adapted, one)[:, 0].all()


def test_lora_learns_a_table_that_the_frozen_network_does_not_know():
    model = network(d=16, q=7, mlp=32, context=8)
    memory = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, steps=100, learning_rate=0.05, seed=1, bits=(1, 12))
    again = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, steps=100, learning_rate=0.05, seed=1, bits=(1, 12))
    start = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, steps=1, learning_rate=1e-9, seed=1)
    assert memory == again
    assert memory.recall > 0.9 > 0.5 > start.recall
    (coarse, fine) = memory.rounded
    assert fine[1] == pytest.approx(memory.recall, abs=0.05)
    assert coarse[1] < memory.recall


# --- bits ----------------------------------------------------------------------------------------------------------


def test_retained_bits_are_those_of_theorem_1():
    assert adapters.retained_bits(1.0, 10, 3, 8) == pytest.approx(90)
    assert adapters.retained_bits(0.125, 10, 3, 8) == pytest.approx(0, abs=1e-9)
    assert adapters.retained_bits(0.5, 10, 1, 2) == pytest.approx(0, abs=1e-9)
    assert adapters.retained_bits(0.6, 7, 2, 5) == pytest.approx(14 * bounds.rate(0.4, 5))


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_rounded_numbers_take_few_values_and_the_nearest_ones(bits):
    adapted = adapters.adapt(network(), Tuning("prefix", 3))
    (weight,) = adapters.trained(adapted)
    before = weight.detach().clone()
    described = adapters.rounded(adapted, bits)
    assert described == bits * before.numel() + 32
    values = weight.detach().unique()
    assert len(values) <= 2**bits
    scale = before.abs().max()
    grid = scale * torch.linspace(-1, 1, 2**bits)
    nearest = (before[..., None] - grid).abs().amin(-1)
    torch.testing.assert_close((weight.detach() - before).abs(), nearest, rtol=0, atol=1e-6)


def test_rounding_is_relative_to_the_start_and_is_undone():
    adapted = adapters.adapt(network(), Tuning("all weights"))
    start = [weight.detach().clone() for weight in adapters.trained(adapted)]
    assert adapters.rounded(adapted, 1, start) > 0  # nothing has moved yet
    assert all(torch.equal(a, b) for a, b in zip(adapters.trained(adapted), start, strict=True))
    table = adapters.random_table(20, 1, 7, generator=torch.Generator().manual_seed(4))
    results = adapters.recall_when_rounded(adapted, table, [1, 20])
    assert all(torch.equal(a, b) for a, b in zip(adapters.trained(adapted), start, strict=True))
    assert results[1][1] == adapters.recalled(adapted, table).double().mean().item()
    assert results[1][0] - results[0][0] == 19 * adapters.trained_numbers(config(), Tuning("all weights"))


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tuning("adapter", 1), "kind must be one of soft prompt, prefix, LoRA, all weights, not 'adapter'"),
        (lambda: Tuning("LoRA"), "a LoRA needs a size that is an integer >= 1, not 0"),
        (lambda: Tuning("prefix", 1.5), "a prefix needs a size that is an integer >= 1, not 1.5"),
        (lambda: Tuning("all weights", 2), "all weights are trained, a size of 2 has no meaning"),
        (lambda: adapters.adapt(network(), Tuning("prefix", 10)), "10 virtual tokens leave nothing of the 10 learned"),
        (lambda: adapters.adapt(network(norm="rms"), EVERY[0]), "GPT-2 needs norm = 'layer'"),
        (lambda: adapters.random_table(8, 1, 7, key_tokens=1, generator=None), "only 7 keys of 1 tokens, fewer than 8"),
        (lambda: adapters.random_table(0, 1, 7, generator=None), "a table needs K, n, key_tokens >= 1 and q >= 2"),
        (lambda: adapters.retained_bits(1.2, 1, 1, 7), "a distortion is a fraction between 0 and 1"),
        (lambda: adapters.retained_bits(1.0, 0, 1, 7), "K and n must be at least 1, not 0 and 1"),
        (lambda: adapters.rounded(None, 0), "bits must be an integer >= 1, not 0"),
        (lambda: adapters.visible_numbers(config(depth=1), EVERY[0]), "at least two layers, norm_eps > 0 and GELU"),
        (lambda: adapters.visible_numbers(config(), Tuning("LoRA", 5)), "established for ranks below d - 1, not 5"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_not_finite_names_its_step():
    adapted = adapters.adapt(network(), Tuning("prefix", 2))
    with torch.no_grad():
        adapters.trained(adapted)[0].fill_(float("nan"))
    table = adapters.random_table(6, 1, 7, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="the loss is not finite in step 0: lower the learning rate of 1"):
        adapters.tune(adapted, table, steps=2, learning_rate=1, batch=8, generator=torch.Generator())
