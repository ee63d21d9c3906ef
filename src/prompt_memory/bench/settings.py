"""How much the benchmark measures."""

from dataclasses import dataclass


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
