"""Pilot runs behind the settings of the chapter on other tunings: what was tried, on which tables, what was found.

All tables have seeds from `FIRST` on, which no chapter uses.  The network is `lexicon-small`, the task that of
`adapters.memorise` with one label for each key.  `python -m prompt_memory.experiments.pilots MODELS` tries all again.
Not listed, since it has another loss: 32 vectors with the loss, momentum and start of the tuner of strings
(`tune.cram`) retained 0.06 bits a number, fewer than with the plain loss.
"""

import sys
from typing import NamedTuple

from prompt_memory.measure import retained_bits
from prompt_memory.tune import adapters
from prompt_memory.tune.adapters import Tuning

FIRST = 900_000
STEPS = 1200  # at which learning rates and loads were compared
FULL = 0.9  # a table that is recalled better than this asks for too little
LETTERS = 27  # of the frozen network: the classes of a label

# tuning, size | load: bits asked for a trained number | steps | learning rate | betas of Adam | scale of the start |
# keys | trained numbers | recall of each table | bits that the likelihood gains, a trained number, mean over tables
RUNS = """
soft prompt,4 | 0.8 | 1200 | 0.1 | 0.9 0.99 | 1 | 22 | 128 | 0.7727 0.5909 | 0.497
soft prompt,4 | 0.8 | 1200 | 0.2 | 0.9 0.99 | 1 | 22 | 128 | 0.7727 0.6818 | 0.530
soft prompt,4 | 0.8 | 1200 | 0.4 | 0.9 0.99 | 1 | 22 | 128 | 0.7727 0.5455 | 0.512
soft prompt,4 | 0.8 | 1200 | 0.8 | 0.9 0.99 | 1 | 22 | 128 | 0.8182 0.5000 | 0.525
soft prompt,4 | 0.8 | 1200 | 0.2 | 0.9 0.99 | 3 | 22 | 128 | 0.8182 0.3182 | 0.444
soft prompt,4 | 0.8 | 1200 | 0.4 | 0.9 0.99 | 3 | 22 | 128 | 0.7727 0.5455 | 0.485
soft prompt,4 | 0.8 | 600 | 0.2 | 0.9 0.99 | 1 | 22 | 128 | 0.7727 0.5000 | 0.468
soft prompt,4 | 0.8 | 2400 | 0.2 | 0.9 0.99 | 1 | 22 | 128 | 0.8182 0.5455 | 0.449
soft prompt,4 | 0.8 | 300 | 0.2 | 0.9 0.99 | 1 | 22 | 128 | 0.8182 0.4545 | 0.450
soft prompt,32 | 0.4 | 1200 | 0.1 | 0.9 0.99 | 1 | 86 | 1024 | 0.4884 0.2326 | 0.137
soft prompt,32 | 0.4 | 1200 | 0.2 | 0.9 0.99 | 1 | 86 | 1024 | 0.5581 0.2907 | 0.147
soft prompt,32 | 0.4 | 1200 | 0.4 | 0.9 0.99 | 1 | 86 | 1024 | 0.5349 0.3721 | 0.146
soft prompt,32 | 0.4 | 1200 | 0.8 | 0.9 0.99 | 1 | 86 | 1024 | 0.5349 0.2209 | 0.151
soft prompt,32 | 0.4 | 1200 | 0.4 | 0.8 0.95 | 1 | 86 | 1024 | 0.5349 0.3605 | 0.166
soft prompt,32 | 0.4 | 1200 | 0.4 | 0.9 0.99 | 3 | 86 | 1024 | 0.5116 0.4186 | 0.175
soft prompt,32 | 0.4 | 1200 | 0.2 | 0.9 0.99 | 3 | 86 | 1024 | 0.4535 0.4070 | 0.160
soft prompt,32 | 0.4 | 300 | 0.4 | 0.9 0.99 | 3 | 86 | 1024 | 0.3837 0.2326 | 0.094
soft prompt,32 | 0.4 | 600 | 0.4 | 0.9 0.99 | 3 | 86 | 1024 | 0.4419 0.3023 | 0.132
soft prompt,32 | 0.4 | 2400 | 0.4 | 0.9 0.99 | 3 | 86 | 1024 | 0.5349 0.4884 | 0.188
prefix,1 | 1.1 | 1200 | 0.1 | 0.9 0.99 | 1 | 30 | 128 | 0.8000 0.8333 | 0.804
prefix,1 | 1.1 | 1200 | 0.2 | 0.9 0.99 | 1 | 30 | 128 | 0.8333 0.7333 | 0.792
prefix,1 | 1.1 | 1200 | 0.4 | 0.9 0.99 | 1 | 30 | 128 | 0.8000 0.8667 | 0.810
prefix,1 | 1.1 | 1200 | 0.8 | 0.9 0.99 | 1 | 30 | 128 | 0.8000 0.8333 | 0.799
prefix,1 | 1.1 | 300 | 0.4 | 0.9 0.99 | 1 | 30 | 128 | 0.8000 0.6667 | 0.732
prefix,1 | 1.1 | 600 | 0.4 | 0.9 0.99 | 1 | 30 | 128 | 0.8000 0.6667 | 0.779
prefix,1 | 1.1 | 2400 | 0.4 | 0.9 0.99 | 1 | 30 | 128 | 0.8333 0.7667 | 0.809
prefix,8 | 1.2 | 1200 | 0.1 | 0.9 0.99 | 1 | 258 | 1024 | 0.6899 0.6085 | 0.699
prefix,8 | 1.2 | 1200 | 0.2 | 0.9 0.99 | 1 | 258 | 1024 | 0.6667 | 0.743
prefix,8 | 1.2 | 1200 | 0.4 | 0.9 0.99 | 1 | 258 | 1024 | 0.6512 | 0.724
prefix,8 | 1.2 | 1200 | 0.05 | 0.9 0.99 | 1 | 258 | 1024 | 0.6202 | 0.651
prefix,8 | 1.2 | 300 | 0.1 | 0.9 0.99 | 1 | 258 | 1024 | 0.3333 0.3798 | 0.402
prefix,8 | 1.2 | 600 | 0.1 | 0.9 0.99 | 1 | 258 | 1024 | 0.3953 0.5194 | 0.550
prefix,8 | 1.2 | 2400 | 0.1 | 0.9 0.99 | 1 | 258 | 1024 | 0.7907 0.7287 | 0.802
LoRA,1 | 1.4 | 1200 | 0.05 | 0.9 0.99 | 1 | 302 | 1024 | 0.8940 | 1.106
LoRA,1 | 1.4 | 1200 | 0.1 | 0.9 0.99 | 1 | 302 | 1024 | 0.9338 | 1.135
LoRA,1 | 1.4 | 1200 | 0.2 | 0.9 0.99 | 1 | 302 | 1024 | 0.1225 | 0.139
LoRA,1 | 1.8 | 1200 | 0.1 | 0.9 0.99 | 1 | 388 | 1024 | 0.8299 0.7655 | 1.243
LoRA,1 | 1.8 | 1200 | 0.07 | 0.9 0.99 | 1 | 388 | 1024 | 0.8376 0.7655 | 1.248
LoRA,1 | 1.8 | 300 | 0.07 | 0.9 0.99 | 1 | 388 | 1024 | 0.5335 0.4098 | 0.794
LoRA,1 | 1.8 | 600 | 0.07 | 0.9 0.99 | 1 | 388 | 1024 | 0.7320 0.5567 | 1.040
LoRA,1 | 1.8 | 2400 | 0.07 | 0.9 0.99 | 1 | 388 | 1024 | 0.8557 0.7706 | 1.268
LoRA,4 | 1.4 | 1200 | 0.03 | 0.9 0.99 | 1 | 1206 | 4096 | 0.9768 | 1.223
LoRA,4 | 1.4 | 1200 | 0.06 | 0.9 0.99 | 1 | 1206 | 4096 | 0.9818 | 1.239
LoRA,4 | 2 | 1200 | 0.06 | 0.9 0.99 | 1 | 1723 | 4096 | 0.8143 | 1.440
all weights | 2 | 1500 | 0.02 | 0.9 0.99 | 1 | 12087 | 28736 | 0.7152 | 1.361
all weights | 2 | 1200 | 0.02 | 0.9 0.99 | 1 | 12087 | 28736 | 0.6315 | 1.194
all weights | 2 | 1200 | 0.01 | 0.9 0.99 | 1 | 12087 | 28736 | 0.5256 | 0.976
all weights | 2 | 1200 | 0.04 | 0.9 0.99 | 1 | 12087 | 28736 | 0.6043 | 1.150
"""


class Pilot(NamedTuple):
    """One pilot run: its settings, and what it found on tables with the seeds `FIRST`, `FIRST` + 1, …

    `load` is the number of bits that a table asks for, over trained numbers; `gain` as in `adapters.Memory`, over
    trained numbers.
    """

    tuning: Tuning
    load: float
    steps: int
    learning_rate: float
    betas: tuple[float, float]
    scale: float
    keys: int
    numbers: int
    recalls: tuple[float, ...]
    gain: float

    @property
    def recall(self) -> float:
        """The mean over tables."""
        return sum(self.recalls) / len(self.recalls)

    @property
    def bits(self) -> float:
        """Bits retained at the mean recall, a trained number."""
        return self.bits_of(len(self.recalls))

    def bits_of(self, tables: int) -> float:
        """The same for the first so many tables: runs are compared on the tables that all of them have."""
        return retained_bits(sum(self.recalls[:tables]) / tables, self.keys, LETTERS) / self.numbers


def read() -> list[Pilot]:
    """All pilot runs, in the order in which they are listed."""
    pilots = []
    for line in RUNS.strip().splitlines():
        name, load, steps, rate, betas, scale, keys, numbers, recalls, gain = (part.strip() for part in line.split("|"))
        kind, _, size = name.partition(",")
        pilots.append(
            Pilot(Tuning(kind, int(size or 0)), float(load), int(steps), float(rate),
                  tuple(map(float, betas.split())), float(scale), int(keys), int(numbers),
                  tuple(map(float, recalls.split())), float(gain))
        )  # fmt: skip
    return pilots


def chosen(tuning: Tuning) -> Pilot:
    """The settings of a tuning: the pilot run of `STEPS` steps that retained most, its recall below `FULL`.

    Runs are compared on the seeds that all of them have.

    ValueError if there was none.
    """
    tried = [pilot for pilot in read() if pilot.tuning == tuning and pilot.steps == STEPS and pilot.recall < FULL]
    if not tried:
        raise ValueError(f"there is no pilot run of {STEPS} steps with a recall below {FULL} for {tuning}")
    common = min(len(pilot.recalls) for pilot in tried)
    return max(tried, key=lambda pilot: pilot.bits_of(common))


def curve(tuning: Tuning) -> list[Pilot]:
    """Pilot runs with the chosen settings and other numbers of steps, fewest steps first."""
    settings = chosen(tuning)._replace(steps=0, recalls=(), gain=0.0)
    same = [pilot for pilot in read() if pilot._replace(steps=0, recalls=(), gain=0.0) == settings]
    return sorted(same, key=lambda pilot: pilot.steps)


def again(pilot: Pilot, model) -> Pilot:
    """The pilot run repeated: equal to `pilot` up to the rounding of the processor."""
    memories = adapters.memorise(
        model, pilot.tuning, pilot.keys, 1, seeds=range(FIRST, FIRST + len(pilot.recalls)), steps=pilot.steps,
        learning_rate=pilot.learning_rate, betas=pilot.betas, scale=pilot.scale,
    )  # fmt: skip
    gain = sum(memory.gain for memory in memories) / len(memories) / pilot.numbers
    return pilot._replace(recalls=tuple(memory.recall for memory in memories), gain=gain)


if __name__ == "__main__":
    from prompt_memory import pretrain

    frozen = pretrain.load("lexicon-small", sys.argv[1] if len(sys.argv) > 1 else None).transformer
    for each in read():
        print(each.tuning, each.load, each.steps, each.learning_rate, f"listed {each.bits:.3f} bits a number,",
              f"now {again(each, frozen).bits:.3f}", flush=True)  # fmt: skip
