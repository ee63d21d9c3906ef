"""Adam for a batch of runs is that of torch, and the aimed loss is its formula."""

import math

import pytest
import torch

from prompt_memory import tune

torch.set_num_threads(1)


def test_adam_for_runs_of_different_age_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(5, 2, 1, 3, generator=generator, dtype=torch.float64)
    wanted = []
    for run, delay in ((0, 0), (1, 2)):  # the second run joins after two steps
        point = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([point], lr=1.0, betas=tune.BETAS)
        for slope in slopes[delay:, run]:
            point.grad = slope
            adam.step()
        wanted.append(point.detach())
    first = second = point = torch.zeros(2, 1, 3, dtype=torch.float64)
    for step, slope in enumerate(slopes):
        age = torch.tensor([step + 1, max(1, step - 1)], dtype=torch.float64)[:, None, None]
        running = torch.tensor([True, step >= 2])[:, None, None]
        direction, *moments = tune.adam_direction(slope, first, second, age, tune.BETAS)
        first, second = (torch.where(running, new, old) for new, old in zip(moments, (first, second), strict=True))
        point = torch.where(running, point - direction, point)
    torch.testing.assert_close(point, torch.stack(wanted))


def test_the_aimed_loss_is_its_formula():
    """min(c, 3)·c for each label before the goal, c = −ln softmax, and its gradient with the factor held fixed."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)
    wanted = torch.randint(3, (5, 6), generator=generator)
    goal = torch.tensor([3, 1, 6, 2, 5])
    moving = logits.clone().requires_grad_()
    loss, won = tune.aimed_loss(moving, wanted, goal, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), moving)
    capped = 0
    for run in range(5):
        expected = 0.0
        for place in range(6):
            row, label = logits[run, place].tolist(), int(wanted[run, place])
            others = max(x for k, x in enumerate(row) if k != label)
            assert bool(won[run, place]) == (row[label] - others > 0.5)
            if place >= goal[run]:
                assert not gradient[run, place].any()
                continue
            p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
            cost = -math.log(p[label])
            capped += cost > 3
            expected += min(cost, 3) * cost
            slope = [min(cost, 3) * (p[k] - (k == label)) for k in range(3)]
            assert gradient[run, place].tolist() == pytest.approx(slope, rel=1e-9)
        assert loss[run].item() == pytest.approx(expected, rel=1e-12)
    assert capped
