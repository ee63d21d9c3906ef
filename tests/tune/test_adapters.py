"""Four tunings of one network: the numbers they train, the numbers outputs see, the task, and what is counted."""

import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds
from prompt_memory.experiments import pilots
from prompt_memory.network.interop import export_gpt2
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tune import adapters
from prompt_memory.tune.adapters import Table, Tuning

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
    torch.testing.assert_close(adapted(input_ids=strings).logits, export_gpt2(model)(strings).logits)


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


def measured(tuning, seed=3, queries=120, **changes):
    generator = torch.Generator().manual_seed(seed)
    c = config(**changes)
    length = c.context - (tuning.size if tuning.kind in ("soft prompt", "prefix") else 0)
    sequences = torch.randint(c.q, (queries, length), generator=generator)
    adapted = adapters.adapt(network(**changes), tuning)
    return adapters.measured_rank(adapted, sequences, spread=0.5, generator=generator)


@pytest.mark.parametrize(
    ("tuning", "changes"),
    [
        (Tuning("soft prompt", 3), {}),
        (Tuning("prefix", 2), {}),
        (Tuning("LoRA", 1), {}),
        (Tuning("soft prompt", 2), {"d": 4, "heads": 1}),
        (Tuning("prefix", 2), {"d": 4, "heads": 1}),  # a key longer than what queries span
        *((Tuning("LoRA", r), {"d": 4, "heads": H, "mlp": 5}) for r in (1, 2) for H in (1, 2, 4)),
        (Tuning("LoRA", 4), {"mlp": 2}),  # a rank above the hidden width, and gauge freedom in two heads
        (Tuning("LoRA", 2), {"d": 5, "heads": 1, "mlp": 2}),
    ],
    ids=str,
)
def test_the_rank_is_the_number_of_visible_numbers(tuning, changes):
    rank, least, rest = measured(tuning, **changes)
    assert rank == adapters.visible_numbers(config(**changes), tuning)
    assert least > 1e-7
    assert rest < 1e-13


@pytest.mark.parametrize(
    ("tuning", "biased", "more"),
    [
        (Tuning("prefix", 2), "query", True),  # queries span all of a head that is longer than d - 1
        (Tuning("LoRA", 2), "query", True),  # a change of bases that the bias does not follow
        (Tuning("LoRA", 2), "value", True),
        (Tuning("LoRA", 2), "key", False),  # the softmax is blind to it
    ],
    ids=str,
)
def test_frozen_biases_of_queries_and_values_make_more_numbers_visible(tuning, biased, more):
    changes = dict(d=4, heads=1, mlp=5)
    generator = torch.Generator().manual_seed(3)
    adapted = adapters.adapt(network(**changes), tuning)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "c_attn" in name and name.endswith("bias"):
                assert not weight.any()  # as it is exported
                weight.view(3, -1)[("query", "key", "value").index(biased)].normal_(generator=generator)
    sequences = torch.randint(7, (120, 8), generator=generator)
    rank, _, _ = adapters.measured_rank(adapted, sequences, spread=0.5, generator=generator)
    count = adapters.visible_numbers(config(**changes), tuning)
    assert rank > count if more else rank == count


@pytest.mark.parametrize("heads", [1, 2])
def test_all_weights_of_a_small_network_have_the_rank_of_the_count(heads):
    small = dict(d=4, q=5, mlp=4, context=6, heads=heads)
    rank, _, _ = measured(Tuning("all weights"), queries=150, **small)
    assert rank == adapters.visible_numbers(config(**small), Tuning("all weights")) < 0.7 * 344


@pytest.mark.parametrize("changes", [{}, {"d": 32, "heads": 4, "mlp": 128, "q": 27, "context": 48, "depth": 5}])
def test_visible_weights_are_all_weights_less_the_group_that_changes_nothing(changes):
    c = config(**changes)
    heads = c.heads * (c.d_k**2 + c.d_v**2)  # bases of keys and queries, of values
    biases = 2 * c.d  # of keys: the softmax is blind to shifts; of values: they are biases of the output
    gains = 4 * c.d + (3 * c.d + c.mlp)  # of two norms, and what multiplies the mean that a norm removes
    means = (c.d + 1) + (c.mlp + 1)  # what is written to the mean of the residual stream
    ends = 2 * c.d + c.q + c.context + (c.d - 1)  # last norm; means of embeddings; embeddings against positions
    group = c.depth * (heads + biases + gains + means) + ends + math.comb(c.d - 1, 2)
    everything = adapters.trained_numbers(c, Tuning("all weights"))
    assert adapters.visible_numbers(c, Tuning("all weights")) == everything - group


def linear_gauge(d, heads, rank, rng):
    """The dimension of the changes of bases that factors can make, solved numerically: the system of the proof."""
    e, k, r = d - 1, d // heads, rank
    A, B = rng.normal(size=(e, r)), rng.normal(size=(r, 3 * d))
    W, O = rng.normal(size=(e, 3 * d)), rng.normal(size=(d, e))
    A2, B2 = rng.normal(size=(d, r)), rng.normal(size=(r, e))
    QKV, O2 = W + A @ B, O + A2 @ B2

    def cut(matrix, part, h):
        return matrix[:, part * d + h * k : part * d + (h + 1) * k]

    def flat(parts):
        return np.concatenate([part.ravel() for part in parts])

    def equations(z):
        """Ȧ, Ḃ, Ȧ', Ḃ' and the changes of bases X, Y: what must vanish if the factors' change is one of bases."""
        shapes = [(e, r), (r, 3 * d), (d, r), (r, e), *[(k, k)] * (2 * heads)]
        parts, start = [], 0
        for shape in shapes:
            size = math.prod(shape)
            parts.append(z[start : start + size].reshape(shape))
            start += size
        da, db, da2, db2, *bases = parts
        moved, moved2, out = da @ B + A @ db, da2 @ B2 + A2 @ db2, []
        for h in range(heads):
            X, Y = bases[h], bases[heads + h]
            out += [cut(QKV, 0, h) @ X - cut(moved, 0, h), -cut(QKV, 1, h) @ X.T - cut(moved, 1, h)]
            out += [cut(QKV, 2, h) @ Y - cut(moved, 2, h), -Y @ O2[h * k : (h + 1) * k] - moved2[h * k : (h + 1) * k]]
        return flat(out)

    unknowns = e * r + 3 * d * r + d * r + r * e + 2 * heads * k * k
    system = np.stack([equations(z) for z in np.eye(unknowns)], 1)
    solutions = unknowns - np.linalg.matrix_rank(system, tol=1e-9 * np.linalg.norm(system, 2))
    return solutions - 2 * r * r - (2 if heads == 1 else 0)  # BA = (BG⁻¹)(GA) twice; what moves nothing for one head


@pytest.mark.parametrize(("d", "heads"), [(4, 1), (4, 2), (6, 1), (6, 2), (6, 3), (6, 6), (8, 2), (8, 4)])
def test_lora_gauge_is_the_dimension_of_the_solutions(d, heads):
    rng = np.random.default_rng(d + heads)
    for rank in range(1, d - 1):
        assert adapters.lora_gauge(d, heads, rank) == linear_gauge(d, heads, rank, rng)
        assert (adapters.lora_gauge(d, heads, rank) == 0) == (d // heads + rank <= d - 1)


def test_soft_prompt_and_prefix_are_counted_as_in_theorem_3():
    c = config()
    assert adapters.visible_numbers(c, Tuning("soft prompt", 4)) == bounds.effective_dimension(c, 4)
    assert adapters.visible_numbers(c, Tuning("prefix", 4)) == bounds.effective_dimension(c, 4, tuning="prefix")


# --- many tables at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [Tuning("soft prompt", 3), Tuning("prefix", 2), Tuning("LoRA", 2)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"depth": 3, "activation": "relu"}])
@pytest.mark.parametrize("n", [1, 3])
def test_logits_and_gradients_together_are_those_of_peft(tuning, changes, n):
    model = network(**changes)
    generator = torch.Generator().manual_seed(5)
    tables = [adapters.random_table(9, n, 7, generator=generator) for _ in range(2)]
    adapted = [adapters.adapt(model, tuning, seed=s).double() for s in (1, 2)]
    with torch.no_grad():  # LoRA would start where its factors have no gradient
        for weight in [weight for one in adapted for weight in adapters.trained(one)]:
            weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    stacked = [
        torch.stack([part.detach() for part in parts]).requires_grad_()
        for parts in zip(*map(adapters.trained, adapted), strict=True)
    ]
    keys, labels = (torch.stack(parts) for parts in zip(*tables, strict=True))
    together = adapters.logits_together(model.double(), tuning, stacked, Table(keys, labels))
    weight = torch.randn(together.shape, generator=generator, dtype=together.dtype)
    found = torch.autograd.grad((weight * together).sum(), stacked)
    for run, (one, table) in enumerate(zip(adapted, tables, strict=True)):
        logits = adapters.label_logits(one, table)
        torch.testing.assert_close(together[run], logits, rtol=0, atol=1e-9)
        wanted = torch.autograd.grad((weight[run] * logits).sum(), adapters.trained(one))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a[run], b, rtol=1e-6, atol=1e-9)


def test_tables_learned_together_are_learned_as_one_by_one():
    model, tuning = network(d=8, mlp=8), Tuning("prefix", 2)
    options = dict(steps=20, learning_rate=0.2, betas=(0.8, 0.9), bits=(3,))
    both = adapters.memorise(model, tuning, 6, 1, seeds=[4, 9], **options)
    alone = [adapters.memorise(model, tuning, 6, 1, seeds=[seed], **options)[0] for seed in (4, 9)]
    for a, b in zip(both, alone, strict=True):
        assert a.recall == b.recall
        assert a.gain == pytest.approx(b.gain, abs=1e-3)
        assert a.rounded[0][0] == b.rounded[0][0]
    table = adapters.random_table(6, 1, 7, generator=torch.Generator().manual_seed(4))
    by_peft = adapters.adapt(model, tuning, seed=4 + adapters.START)
    adapters.tune(by_peft, table, steps=20, learning_rate=0.2, betas=(0.8, 0.9), batch=6, generator=torch.Generator())
    assert adapters.likelihood_gain(by_peft, table) == pytest.approx(both[0].gain, abs=1e-2)


def test_the_start_does_not_follow_from_the_generator_of_the_labels():
    assert adapters.START > 0
    model, tuning = network(), Tuning("prefix", 1)
    (as_labels,), (as_used,) = (
        adapters.trained(adapters.adapt(model, tuning, seed=s)) for s in (7, 7 + adapters.START)
    )
    assert not torch.allclose(as_labels, as_used)


def test_a_smaller_table_of_the_same_seed_is_the_beginning_of_a_larger_one():
    few, many = (adapters.random_table(K, 1, 7, generator=torch.Generator().manual_seed(3)) for K in (5, 40))
    assert torch.equal(few.keys, many.keys[:5])


def test_random_guesses_are_those_of_the_adaptations():
    model, tuning = network(), Tuning("LoRA", 1)
    keys = adapters.random_table(5, 1, 7, generator=torch.Generator().manual_seed(3)).keys
    guesses = adapters.random_guesses(model, tuning, keys, 40, spread=1.0, generator=torch.Generator().manual_seed(1))
    assert guesses.shape == (40, 5)
    assert len(torch.unique(guesses, dim=0)) > 10
    still = adapters.random_guesses(model, tuning, keys, 3, spread=0.0, generator=torch.Generator().manual_seed(1))
    wanted = model.stream(model.embedding[keys])[:, -1].argmax(-1)  # LoRA starts as the frozen network
    assert (still == wanted).all()


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
    options = dict(steps=100, learning_rate=0.05, seeds=[1])
    (memory,) = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, bits=(1, 12), **options)
    (again,) = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, bits=(1, 12), **options)
    (start,) = adapters.memorise(model, Tuning("LoRA", 4), 30, 1, **options | {"steps": 1, "learning_rate": 1e-9})
    assert memory == again
    assert memory.recall > 0.9 > 0.5 > start.recall
    assert 30 * math.log2(7) > memory.gain > 0.7 * 30 * math.log2(7) > 0 > start.gain
    (coarse, fine) = memory.rounded
    assert fine[1] == pytest.approx(memory.recall, abs=0.05)
    assert coarse[1] < memory.recall


# --- bits ----------------------------------------------------------------------------------------------------------


def test_the_gain_is_what_the_probabilities_save_and_has_mean_one_as_a_likelihood_ratio():
    adapted = adapters.adapt(network(), Tuning("all weights"))
    keys = adapters.random_table(2, 1, 7, generator=torch.Generator().manual_seed(4)).keys
    every = torch.cartesian_prod(*[torch.arange(7)] * 2)  # all strings of two labels
    gains = [adapters.likelihood_gain(adapted, Table(keys[:1], string[None])) for string in every]
    assert np.mean(2.0 ** np.array(gains)) == pytest.approx(1, abs=1e-6)
    both = Table(keys, every[[3, 11]])
    parts = sum(adapters.likelihood_gain(adapted, Table(keys[i : i + 1], both.labels[i : i + 1])) for i in (0, 1))
    assert adapters.likelihood_gain(adapted, both, chunk=1) == pytest.approx(parts, abs=1e-6)


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
        (lambda: adapters.rounded(None, 0), "bits must be an integer >= 1, not 0"),
        (lambda: adapters.visible_numbers(config(depth=1), EVERY[0]), "at least two layers, norm_eps > 0 and GELU"),
        (lambda: adapters.visible_numbers(config(), Tuning("LoRA", 5)), "established for ranks below d - 1, not 5"),
        (lambda: adapters.lora_gauge(6, 4, 1), "heads must divide d"),
        (lambda: adapters.lora_gauge(6, 2, 5), "the rank be at most d - 2"),
        (
            lambda: adapters.logits_together(
                network(), EVERY[3], [], Table(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1))
            ),
            "one table at a time",
        ),
        (lambda: pilots.chosen(Tuning("prefix", 77)), "no pilot run of 1200 steps with a recall below 0.9 for prefix"),
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


# --- pilot runs ----------------------------------------------------------------------------------------------------


def test_pilot_runs_fit_their_network_and_settings_are_those_that_found_most():
    c = config(d=32, q=pilots.LETTERS, mlp=128, context=48)
    runs = pilots.read()
    assert len({run._replace(recalls=(), gain=0.0) for run in runs}) == len(runs) > 30
    for run in runs:
        assert run.numbers == adapters.trained_numbers(c, run.tuning)
        assert run.keys == round(run.load * run.numbers / math.log2(pilots.LETTERS))
        assert run.bits <= run.load + 0.01
        counts = np.array(run.recalls) * run.keys
        assert np.abs(counts - counts.round()).max() < 1e-4 * run.keys
    for tuning in {run.tuning for run in runs}:
        best = pilots.chosen(tuning)
        same = [run for run in runs if run.tuning == tuning and run.steps == pilots.STEPS]
        assert best.recall < 0.9  # its table asks for more than it holds
        rivals = [run for run in same if run.recall < 0.9]
        tables = min(len(run.recalls) for run in rivals)  # one table more or less must not decide
        assert all(best.bits_of(tables) >= run.bits_of(tables) for run in rivals)
        assert best.bits == best.bits_of(len(best.recalls))
        assert best in pilots.curve(tuning)
        steps = [run.steps for run in pilots.curve(tuning)]
        assert steps == sorted(set(steps))


def test_a_pilot_run_can_be_repeated():
    pilot = pilots.read()[0]._replace(tuning=Tuning("prefix", 1), keys=5, numbers=24, steps=2, recalls=(0.0, 0.0))
    first, second = (pilots.again(pilot, network()) for _ in range(2))
    assert first == second
    assert len(first.recalls) == 2
    assert all(0 <= 5 * recall <= 5 for recall in first.recalls)
    assert first._replace(recalls=(), gain=0.0) == pilot._replace(recalls=(), gain=0.0)
