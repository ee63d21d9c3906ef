"""The prior mass of a string: how likely a random prompt writes it, by multilevel splitting, without bias.

Masses such as 2^{−60} cannot be counted.  Splitting counts fractions of about one in `KEEP` instead: of prompts whose
least margin exceeds one level, how many exceed the next.  Levels and step sizes are fixed in a pilot on other random
numbers, so that the product of the fractions has exactly the mass as its mean, whether chains mix or not: chains that
stick make the estimate noisy (mostly too small), never large on average.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.measure.margins import logit_margins
from prompt_memory.network.transformer import Transformer

KEEP = 0.3  # the fraction of particles that a level of the pilot leaves
WANTED = 0.3  # the acceptance rate to which the pilot sets its steps
GAIN = 2.0  # how fast the pilot adapts its steps, in logarithms a move
STUCK = 0.03  # chains that accept fewer of their moves are reported


@dataclass(frozen=True)
class Particles:
    """How prompts are drawn and moved: Q is normal with standard deviation `scale` in every coordinate."""

    count: int  # particles
    moves: int  # moves of every particle at each level
    scale: float
    m: int = 1  # vectors in a prompt


@dataclass(frozen=True)
class Plan:
    """What a pilot fixes: rising levels of the least margin, the last of them 0, and a step size behind each."""

    levels: tuple[float, ...]
    steps: tuple[float, ...]  # one fewer than levels
    arrived: bool  # False if the pilot ended below 0: then the last level is where it ended


@dataclass(frozen=True)
class Mass:
    """One unbiased estimate of a prior mass."""

    log2: float  # −inf if no particle got through
    fractions: tuple[float, ...]  # of particles above each level, given the level before
    acceptance: tuple[float, ...]  # of moves, behind each level but the last

    @property
    def stuck(self) -> bool:
        """Did the chains of some level hardly move, or did no particle get through?"""
        return self.log2 == -math.inf or min(self.acceptance, default=1.0) < STUCK


@torch.no_grad()
def least_margin(
    model: Transformer, prompts: Float[Tensor, "R m d"], string: Int[Tensor, " n"]
) -> Float[Tensor, " R"]:  # fmt: skip
    """The least margin of the string's tokens under teacher forcing; positive only if greedy decoding writes it."""
    known = model.embedding[string[:-1]].expand(len(prompts), -1, -1)
    logits = model.stream(torch.cat([prompts, known], 1))[:, prompts.shape[1] - 1 :]
    return logit_margins(logits, string.expand(len(prompts), -1)).amin(-1)


def pilot(
    model: Transformer, string: Int[Tensor, " n"], particles: Particles, *, generator: torch.Generator, most: int = 80
) -> Plan:  # fmt: skip
    """Levels that each leave about `KEEP` of the particles, and steps of which about `WANTED` are accepted.

    At most `most` levels; the pilot also ends where all scores are equal.
    """
    prompts = _draw(model, particles, generator)
    scores, levels, steps, step = least_margin(model, prompts, string), [], [], 0.5
    for _ in range(most):
        level = float(scores.quantile(1 - KEEP))
        if level >= 0 or not (scores > level).any():
            break
        levels.append(level)
        prompts, scores = _resample(prompts, scores, level, generator)
        for _ in range(particles.moves):
            prompts, scores, accepted = _move(model, string, prompts, scores, level, step, particles.scale, generator)
            step = min(0.999, max(1e-3, step * math.exp(GAIN * (accepted - WANTED))))
        steps.append(step)
    arrived = bool(float(scores.quantile(1 - KEEP)) >= 0)
    return Plan((*levels, 0.0), tuple(steps), arrived)


def split(
    model: Transformer, string: Int[Tensor, " n"], plan: Plan, particles: Particles, *, generator: torch.Generator
) -> Mass:  # fmt: skip
    """One estimate of Q(least margin > 0) along a plan; its mean over `generator`'s numbers is that mass exactly.

    `generator` must not have been used for the plan in a way that repeats its numbers: go on with the same one.
    """
    prompts = _draw(model, particles, generator)
    scores, fractions, acceptance = least_margin(model, prompts, string), [], []
    for index, level in enumerate(plan.levels):
        fractions.append(float((scores > level).double().mean()))
        if not fractions[-1]:
            return Mass(-math.inf, tuple(fractions), tuple(acceptance))
        if index == len(plan.steps):
            break
        prompts, scores = _resample(prompts, scores, level, generator)
        rates = []
        for _ in range(particles.moves):
            moved = _move(model, string, prompts, scores, level, plan.steps[index], particles.scale, generator)
            prompts, scores = moved[:2]
            rates.append(moved[2])
        acceptance.append(sum(rates) / len(rates))
    return Mass(math.fsum(map(math.log2, fractions)), tuple(fractions), tuple(acceptance))


def _draw(model: Transformer, particles: Particles, generator: torch.Generator) -> Float[Tensor, "N m d"]:
    return particles.scale * torch.randn(particles.count, particles.m, model.config.d, generator=generator)


def _resample(prompts, scores, level, generator):
    """As many prompts as before, each drawn from those above the level: multinomial, which keeps the mean."""
    above = (scores > level).nonzero()[:, 0]
    chosen = above[torch.randint(len(above), (len(prompts),), generator=generator)]
    return prompts[chosen], scores[chosen]


def _move(model, string, prompts, scores, level, step, scale, generator):
    """One step of every chain that leaves Q, restricted to scores above the level, as it is; and the share that moved.

    P′ = √(1 − step²) P + step ξ with ξ from Q leaves Q as it is and is reversible; what falls below stays where it was.
    """
    noise = scale * torch.randn(prompts.shape, generator=generator)
    there = math.sqrt(1 - step**2) * prompts + step * noise
    new = least_margin(model, there, string)
    good = new > level
    prompts = torch.where(good[:, None, None], there, prompts)
    return prompts, torch.where(good, new, scores), float(good.double().mean())
