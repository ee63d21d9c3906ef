"""Prompt tuning on a frozen network; R independent runs are one batch, and finished runs leave it."""

import hashlib
import inspect
import json
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from prompt_memory.checks import integers
from prompt_memory.claims import write_bytes
from prompt_memory.measure import greedy, jacobian, logit_margins, recall
from prompt_memory.transformer import Transformer


class Fit(NamedTuple):
    """Prompts (or points [R, D], by `least_squares`) and the mean squared error of exactly these."""

    prompts: Float[Tensor, "R m d"]
    error: Float[Tensor, " R"]
    steps: Int[Tensor, " R"]


class Tuned(NamedTuple):
    """Prompts found by `quantised`, with the recall of exactly these prompts as a fraction."""

    prompts: Float[Tensor, "R m d"]
    recall: Float[Tensor, " R"]


class Crammed(NamedTuple):
    """Prompts found by `cram`: whether exactly these prompts yield the strings, and the steps of the winning run.

    Where no run succeeded, the prompt with the most tokens right, and the steps that one run may take.
    """

    prompts: Float[Tensor, "S m d"]
    success: Bool[Tensor, " S"]
    steps: Int[Tensor, " S"]


class Longest(NamedTuple):
    """What `longest_prefix` found: exactly these prompts yield the first `lengths` tokens of each string."""

    prompts: Float[Tensor, "S m d"]
    lengths: Int[Tensor, " S"]


class NonFiniteLoss(RuntimeError):
    """Runs ended in a loss that is not finite; `result` holds what all others found, these strings' best included."""

    def __init__(self, runs: list[tuple[int, int]], result: Crammed | Longest):
        names = ", ".join(f"start {start} of string {string}" for string, start in runs[:5])
        more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
        super().__init__(f"the loss is not finite in {names}{more}: lower the learning rate; all other runs finished")
        self.runs, self.result = runs, result


def levenberg_marquardt(
    model: Transformer,
    queries: Tensor,
    targets: Float[Tensor, "R n q"],
    start: Float[Tensor, "R m d"],
    *,
    steps: int = 200,
    solved: float = 1e-26,
    patience: int = 25,
) -> Fit:
    """Minimise the mean squared error of the outputs from `targets`, one run of `least_squares` per row.

    Call it in float64.  ValueError if shapes disagree or something is not finite.
    """
    model.require_finite()
    R, m, d = start.shape
    if targets.shape[0] != R:
        raise ValueError(f"{targets.shape[0]} target tables for {R} starting prompts: give one table a run")
    if not all(torch.isfinite(part).all() for part in (targets, start, queries)):
        raise ValueError("targets, starting prompts and queries must be finite")
    if targets.shape[1:] != (len(queries), model.config.q):
        shape = [len(queries), model.config.q]
        raise ValueError(f"each target table must have the shape [n, q] = {shape}, not {list(targets.shape[1:])}")

    def outputs(flat: Float[Tensor, "r D"]) -> Float[Tensor, "r N"]:
        return model(flat.unflatten(-1, (m, d)), queries).flatten(1)

    fit = least_squares(outputs, targets.flatten(1), start.flatten(1), steps=steps, solved=solved, patience=patience)
    return fit._replace(prompts=fit.prompts.unflatten(-1, (m, d)))


def least_squares(
    outputs: Callable[[Float[Tensor, "r D"]], Float[Tensor, "r N"]],
    targets: Float[Tensor, "R N"],
    start: Float[Tensor, "R D"],
    *,
    steps: int = 200,
    solved: float = 1e-26,
    patience: int = 25,
) -> Fit:
    """Minimise the mean of (outputs − targets)² over N outputs in D numbers, one damped Gauss–Newton run per row.

    Each run has its own damping λ: δ = −(JᵀJ + λI)⁻¹Jᵀr is taken if it lowers the error (λ falls by 3), refused if
    not (λ grows by 4).  Where N < D the same step is found as −Jᵀ(JJᵀ + λI)⁻¹r.  A run leaves the batch once its error
    is below `solved`, or when `patience` steps have lowered it by less than a thousandth: it sits in a local minimum.
    """
    points = start.clone()
    dual = targets.shape[1] < start.shape[1]
    error = (outputs(points) - targets).square().mean(1)
    damping = torch.full_like(error, 1e-2)
    used = torch.zeros(len(start), dtype=torch.long)
    landmark, since = error.clone(), torch.zeros_like(used)  # the last error that counted as progress
    identity = torch.eye(min(targets.shape[1], start.shape[1]), dtype=start.dtype)
    active = torch.arange(len(start))
    for _ in range(steps):
        active = active[(error[active] > solved) & (since[active] < patience)]
        if not len(active):
            break
        p = points[active]
        residual = (outputs(p) - targets[active])[..., None]  # [r, N, 1]
        J = jacobian(outputs, p, reverse=dual)  # [r, N, D]
        ridge = damping[active, None, None] * identity
        if dual:
            step = -(J.mT @ torch.linalg.solve(J @ J.mT + ridge, residual))[..., 0]
        else:
            step = torch.linalg.solve(J.mT @ J + ridge, -(J.mT @ residual))[..., 0]
        trial = (outputs(p + step) - targets[active]).square().mean(1)
        better = trial < error[active]  # a NaN trial is refused
        points[active[better]] = (p + step)[better]
        error[active[better]] = trial[better]
        damping[active] = torch.where(better, (damping[active] / 3).clamp(min=1e-15), damping[active] * 4)
        progress = error[active] < 0.999 * landmark[active]
        landmark[active[progress]] = error[active[progress]]
        since[active] = torch.where(progress, 0, since[active] + 1)
        used[active] += 1
    return Fit(points, error, used)


def quantised(
    model: Transformer,
    queries: Tensor,
    labels: Int[Tensor, "R n"],
    values: Float[Tensor, " v"],
    m: int,
    *,
    steps: int,
    sweeps: int,
    generator: torch.Generator,
    learning_rate: float = 0.05,
) -> Tuned:
    """Tune prompts whose coordinates are confined to `values`, one run per labeling, for the largest recall.

    First Adam on the cross-entropy with a straight-through rounding, keeping the best rounded prompt of each run; then
    `sweeps` rounds of coordinate search, in which each coordinate in random order takes the value with the largest
    recall, ties by cross-entropy, so that recall never falls.  The recall returned is that of the prompts returned.
    """
    model.require_finite()
    R, d = len(labels), model.config.d
    if len(values) < 2:
        raise ValueError("a coordinate needs at least two values")
    if labels.shape[1:] != queries.shape[:1] or not 0 <= labels.min() <= labels.max() < model.config.q:
        raise ValueError(f"labels must have the shape [R, {len(queries)}] and lie in 0 … {model.config.q - 1}")
    if queries.is_floating_point() and not torch.isfinite(queries).all():
        raise ValueError("queries must be finite")
    half_step = (values[1] - values[0]) / 2

    def rounded(x: Tensor) -> Tensor:
        return values[((x - values[0]) / (2 * half_step)).round().clamp(0, len(values) - 1).long()]

    def loss(logits: Float[Tensor, "R n q"]) -> Float[Tensor, " R"]:
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

    free = (torch.rand(R, m, d, generator=generator) * 2 - 1) * values[-1]
    free.requires_grad_()
    adam = torch.optim.Adam([free], lr=learning_rate)
    best, best_score = rounded(free.detach()), torch.full((R,), -torch.inf, dtype=torch.float64)
    for step in range(steps + 1):  # the last pass scores the last step
        prompts = free + (rounded(free) - free).detach()
        logits = model(prompts, queries)
        score = recall(logits.detach(), labels)
        better = score > best_score
        best[better], best_score[better] = prompts.detach()[better], score[better]
        if step < steps:
            adam.zero_grad()
            loss(logits).sum().backward()
            adam.step()
            with torch.no_grad():
                free.clamp_(values[0] - half_step, values[-1] + half_step)
    best = rounded(best)
    for _ in range(sweeps):
        for flat in torch.randperm(m * d, generator=generator).tolist():
            token, coordinate = divmod(flat, d)
            tried = best.repeat(len(values), 1, 1, 1)  # [v, R, m, d]
            tried[:, :, token, coordinate] = values[:, None]
            logits = model(tried.flatten(0, 1), queries).unflatten(0, (len(values), R))
            hits = torch.stack([(part.argmax(-1) == labels).sum(1) for part in logits])  # [v, R]
            losses = torch.stack([loss(part) for part in logits])
            best[:, token, coordinate] = values[(hits - losses / (1 + losses.amax(0))).argmax(0)]
    return Tuned(best, recall(model(best, queries), labels))


def cram(
    model: Transformer,
    strings: Int[Tensor, "S n"],
    m: int,
    *,
    restarts: int = 4,
    steps: int = 400,
    learning_rate: float = 0.5,
    scale: float = 3.0,
    margin: float = 1e-3,
    seed: int = 0,
    batch: int = 120,
    chunk: int = 480,
    directory: str | Path | None = None,
) -> Crammed:
    """For each string a prompt of m vectors after which greedy decoding yields it, found by gradient descent.

    Each string has up to `restarts` runs from normal starts of standard deviation `scale`; a run takes up to `steps`
    steps of Adam, its step size falling along a half cosine, and has succeeded once the logit of every token exceeds
    all others by more than `margin` under teacher forcing.  At most `batch` runs are in flight: those that are done
    leave, the next ones take their place.  The runs of one string follow one another until one succeeds: what is found
    for a string does not depend on the others, up to rounding.  Every start depends on `seed`, the string and its
    number only.  The loss of a token is min(c, 3)·c with c its cross-entropy and the factor held fixed, so that effort
    goes where it is needed.  Successes are confirmed by decoding.

    Strings are cut into chunks of `chunk`.  With `directory` each finished chunk is written there and read back by a
    later call with the same model, strings and settings, so that an interrupted call can be resumed.

    ValueError for tokens outside the vocabulary, m < 1, strings that are empty or longer than the context, settings
    out of range; `NonFiniteLoss`, once everything else is finished and saved, if a run left the finite numbers.
    """
    settings = dict(restarts=restarts, steps=steps, learning_rate=learning_rate, scale=scale, margin=margin, seed=seed)
    parts, lost = _in_chunks(model, strings, m, settings | {"grow": False}, batch, chunk, directory)
    prompts, lengths, used = (torch.cat(part) for part in zip(*parts, strict=True))
    success = lengths == strings.shape[1]
    result = Crammed(prompts, success, torch.where(success, used, steps))
    if lost:
        raise NonFiniteLoss(lost, result)
    return result


def longest_prefix(
    model: Transformer,
    strings: Int[Tensor, "S n"],
    m: int,
    *,
    restarts: int = 4,
    steps: int = 400,
    learning_rate: float = 0.5,
    scale: float = 3.0,
    margin: float = 1e-3,
    seed: int = 0,
    batch: int = 120,
    chunk: int = 480,
    directory: str | Path | None = None,
    progress: Callable[[Int[Tensor, " s"]], None] | None = None,
) -> Longest:
    """For each string the longest beginning for which a prompt of m vectors is found; settings as in `cram`.

    A prompt that yields a string yields its beginnings, so the accessible lengths of a string are 0 … N.  A run aims
    one token beyond the longest beginning that this and earlier runs of the string found; when it succeeds it goes on
    from where it is, as a new run would, with a fresh budget of `steps`.  Length 0 where not even the first token was
    found.  `progress` is called with the lengths of each chunk as it is finished.
    """
    settings = dict(restarts=restarts, steps=steps, learning_rate=learning_rate, scale=scale, margin=margin, seed=seed)
    parts, lost = _in_chunks(model, strings, m, settings | {"grow": True}, batch, chunk, directory, progress)
    prompts, lengths, _ = (torch.cat(part) for part in zip(*parts, strict=True))
    result = Longest(prompts, lengths)
    if lost:
        raise NonFiniteLoss(lost, result)
    return result


@torch.no_grad()
def longest_prefix_on_grid(
    model: Transformer,
    strings: Int[Tensor, "S n"],
    m: int,
    basis: Float[Tensor, "k d"],
    values: Float[Tensor, " v"],
    *,
    chains: int,
    steps: int,
    candidates: int = 16,
    temperature: float = 1.0,
    margin: float = 1e-3,
    generator: torch.Generator,
) -> Longest:
    """`longest_prefix` for prompts p_j = Σ_i z_ji basis_i whose k coordinates z_ji take the given values only.

    A search in few coordinates: each of `chains` chains a string tries, in every step, `candidates` changes of one
    coordinate, drawn with a preference for those that the gradient favours, and moves to the best of them if the loss
    falls, or with probability e^(−increase/temperature).  The allowed prompts number v^(k·m).  For many coordinates
    Adam with straight-through rounding, as in `quantised`, does as well.  ValueError as in `longest_prefix`, or if
    basis or values do not fit.
    """
    check_strings(model, strings, m)
    if basis.ndim != 2 or basis.shape[1] != model.config.d or len(values) < 2:
        raise ValueError(f"a basis [k, {model.config.d}] and at least two values are needed")
    S, n, k, v = *strings.shape, len(basis), len(values)
    embedded = model.embedding[strings[:, :-1]]
    goal, found = torch.ones(S, dtype=torch.long), torch.zeros(S, dtype=torch.long)
    best = torch.zeros(S, m, k, dtype=torch.long)
    row = torch.arange(S).repeat_interleave(chains)  # the string of each chain
    place = torch.randint(v, (len(row), m, k), generator=generator)

    def score(z: Float[Tensor, "r m k"], row: Int[Tensor, " r"]) -> tuple[Float[Tensor, " r"], Int[Tensor, " r"]]:
        """(loss, tokens right at the beginning) of prompts."""
        longest = int(goal[row].max())
        logits = model.stream(torch.cat([z @ basis, embedded[row, : longest - 1]], 1))[:, m - 1 :]
        wanted = strings[row, :longest]
        loss, won = aimed_loss(logits, wanted, goal[row], margin)
        return loss, won.long().cumprod(1).sum(1)

    for _ in range(steps):
        unfinished = found[row] < n
        row, place = row[unfinished], place[unfinished]
        r = len(row)
        if not r:
            break
        with torch.enable_grad():
            z = values[place].requires_grad_()
            loss, _ = score(z, row)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        rise = (values - values[place][..., None]) * gradient[..., None]  # predicted change of the loss, [r, m, k, v]
        rise = rise / rise.abs().flatten(1).mean(1)[:, None, None, None].clamp(min=1e-12)
        rise = rise.scatter(-1, place[..., None], torch.inf).flatten(1)  # staying is no change
        gumbel = -torch.log(-torch.log(torch.rand(rise.shape, generator=generator).clamp(min=1e-12)))
        chosen = (gumbel - rise).topk(min(candidates, m * k * (v - 1)), 1).indices  # [r, c]
        c = chosen.shape[1]
        tried = place.flatten(1)[:, None].repeat(1, c, 1)
        tried.scatter_(2, (chosen // v)[..., None], (chosen % v)[..., None])
        tried = tried.unflatten(-1, (m, k))  # [r, c, m, k]
        losses, right = score(values[tried.flatten(0, 1)], row.repeat_interleave(c))
        losses, right = losses.view(r, c), right.view(r, c)
        lowest, which = losses.min(1)
        moves = torch.rand(r, generator=generator) < torch.exp((loss.detach() - lowest) / temperature)
        place = torch.where(moves[:, None, None], tried[torch.arange(r), which], place)
        most, which = right.max(1)
        for run in (most > found[row]).nonzero()[:, 0].tolist():
            s = int(row[run])
            if most[run] > found[s]:
                found[s], best[s] = most[run], tried[run, which[run]]
                goal[s] = min(n, int(found[s]) + 1)
    prompts = values[best] @ basis
    same = (greedy(model, prompts, n) == strings) & (torch.arange(n) < found[:, None])
    return Longest(prompts, same.long().cumprod(1).sum(1))


def aimed_loss(
    logits: Float[Tensor, "r n q"], wanted: Int[Tensor, "r n"], goal: Int[Tensor, " r"], margin: float
) -> tuple[Float[Tensor, " r"], Bool[Tensor, "r n"]]:
    """(loss of the first `goal` labels of each run, whether each label wins by more than `margin`).

    The loss of a label is min(c, 3)·c with c its cross-entropy and the factor held fixed.
    """
    cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    cost = cost.masked_fill(torch.arange(wanted.shape[1], device=cost.device) >= goal[:, None], 0.0)
    return (cost * cost.detach().clamp(max=3)).sum(1), logit_margins(logits.detach(), wanted) > margin


def check_strings(model, strings, m):
    """ValueError unless these strings can follow m prompt vectors."""
    model.require_finite()
    integers(m=m)
    if strings.ndim != 2 or strings.is_floating_point() or strings.dtype == torch.bool or not strings.numel():
        raise ValueError(f"strings must be token ids of the shape [S, n], S and n >= 1, not {list(strings.shape)}")
    wrong = ((strings < 0) | (strings >= model.config.q)).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"string {row} has the token {int(strings[row, place])} at place {place}: "
            f"token ids must lie in 0 … {model.config.q - 1}"
        )
    needed = m + strings.shape[1] - 1
    if model.config.positions == "learned" and needed > model.config.context:
        raise ValueError(
            f"{m} prompt vectors and strings of {strings.shape[1]} tokens need {needed} positions, "
            f"more than the {model.config.context} of the model"
        )


def _in_chunks(model, strings, m, settings, batch, chunk, directory, progress=None):
    """Search chunk by chunk: [(prompts, lengths, steps), …] and the runs whose loss was not finite."""
    check_strings(model, strings, m)
    restarts, batch, chunk = integers(restarts=settings["restarts"], batch=batch, chunk=chunk)
    settings |= {"restarts": restarts, "steps": integers(0, steps=settings["steps"])[0]}
    for name in ("learning_rate", "scale", "margin"):
        if not (math.isfinite(settings[name]) and settings[name] >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, not {settings[name]!r}")
        settings[name] = float(settings[name])
    settings["seed"] = int(settings["seed"])  # numbers of numpy have no JSON
    parts, lost = [], []
    strings, device = strings.long(), model.embedding.device
    work = None if directory is None else _work(model, m, settings, batch)
    for first in range(0, len(strings), chunk):
        piece = strings[first : first + chunk].to(device)
        path = None if directory is None else Path(directory) / f"{_key(work, piece)}.safetensors"
        if path is not None and path.exists():
            part, gone = _read_chunk(path)
        else:
            part, gone = _descend(model, piece, m, batch=batch, **settings)
            if path is not None:
                _write_chunk(path, part, gone)
        parts.append(tuple(tensor.to(device) for tensor in part))
        lost += [(first + string, start) for string, start in gone]
        if progress is not None:
            progress(part[1])
    return parts, lost


@torch.no_grad()
def _descend(model, strings, m, *, restarts, steps, learning_rate, scale, margin, seed, batch, grow):
    """The search of `cram` (grow=False) and `longest_prefix` (grow=True) on one chunk of strings."""
    S, n = strings.shape
    device, dtype = model.embedding.device, model.embedding.dtype
    embedded = model.embedding[strings[:, :-1]]  # [S, n − 1, d]
    best = torch.full((S,), -1, device=device)  # most tokens right at the beginning of a string (grow) or anywhere
    prompts = torch.zeros(S, m, model.config.d, dtype=dtype, device=device)
    found, used = best.new_zeros(S), best.new_zeros(S)
    waiting = deque((string, 0) for string in range(S))  # a string waits here or has one run in flight or is done with
    lost = []

    string = start = age = best[:0]  # of the runs in flight
    p = first = second = prompts[:0]  # their prompts and Adam's two moments
    while True:
        if waiting and (not len(string) or batch - len(string) >= max(1, batch // 8)):
            fresh = [waiting.popleft() for _ in range(min(len(waiting), batch - len(string)))]
            begin = torch.stack([_start(strings[s], r, m, model, scale, seed) for s, r in fresh])
            string, start = (
                torch.cat([old, torch.tensor(new, device=device)])
                for old, new in zip((string, start), zip(*fresh, strict=True), strict=True)
            )
            age = torch.cat([age, age.new_zeros(len(fresh))])
            p = torch.cat([p, begin])
            first, second = (torch.cat([moment, torch.zeros_like(begin)]) for moment in (first, second))
        if not len(string):
            break
        aim = (found[string] + 1).clamp(max=n) if grow else torch.full_like(string, n)  # how many tokens a run is after
        longest = int(aim.max())
        inside = torch.arange(longest, device=device) < aim[:, None]  # [r, longest]
        wanted = strings[string, :longest]
        own = embedded[string, : longest - 1]
        if grow:  # what lies beyond a run's aim must not spoil its gradient, so it reads any finite vector there
            own = torch.where(inside[:, 1:, None], own, p[:, :1])
        with torch.enable_grad():
            moving = p.detach().requires_grad_()
            logits = model.stream(torch.cat([moving, own], 1))[:, m - 1 :]
            loss, right = aimed_loss(logits, wanted, aim, margin)
            (gradient,) = torch.autograd.grad(loss.sum(), moving)
        finite = torch.isfinite(loss)
        done = finite & (right | ~inside).all(1)
        finite &= done | torch.isfinite(gradient).flatten(1).all(1)
        lost += zip(string[~finite].tolist(), start[~finite].tolist(), strict=True)

        # what is kept was scored just now, before the step
        count = (right & inside).sum(1) if not grow else torch.where(done, aim, -1)
        better = finite & (count > best[string])
        s = string[better]
        best[s], prompts[s], used[s] = count[better], p[better], age[better]
        found[string[done]] = aim[done]

        keep = finite & (found[string] < n) & ((age < steps) | done)
        if not keep.all():
            gone = zip(string[~keep].tolist(), start[~keep].tolist(), (found[string] < n)[~keep].tolist(), strict=True)
            waiting.extend((s, r + 1) for s, r, unsolved in gone if unsolved and r + 1 < restarts)
            string, start, age, done, p, gradient, first, second = (
                part[keep] for part in (string, start, age, done, p, gradient, first, second)
            )
        age = torch.where(done, 0, age + 1)  # a run that goes on to the next token starts afresh from where it is
        gradient, first, second = (part.masked_fill(done[:, None, None], 0) for part in (gradient, first, second))
        t = age.clamp(min=1).to(dtype)[:, None, None]
        direction, first, second = adam_direction(gradient, first, second, t, BETAS)
        p = p - learning_rate * 0.5 * (1 + torch.cos(math.pi * (t - 1) / max(1, steps))) * direction
    solved = (found > 0).nonzero()[:, 0]
    if len(solved):  # teacher forcing and decoding round differently: only what decoding confirms counts
        decoded = greedy(model, prompts[solved], int(found.max()))
        same = decoded == strings[solved, : decoded.shape[1]]
        same |= torch.arange(decoded.shape[1], device=device) >= found[solved, None]
        found[solved] = torch.where(same.all(1), found[solved], same.long().cumprod(1).sum(1))
    return (prompts, found, used), sorted(lost)


BETAS = (0.8, 0.95)  # of Adam: the landscape changes fast, long memories slow it down


def adam_direction(
    gradient: Float[Tensor, "r m d"],
    first: Float[Tensor, "r m d"],
    second: Float[Tensor, "r m d"],
    t: Float[Tensor, "r 1 1"] | float,
    betas: tuple[float, float],
) -> tuple[Float[Tensor, "r m d"], Float[Tensor, "r m d"], Float[Tensor, "r m d"]]:
    """Adam's direction at step t >= 1 of each run, and both moments: for batches that runs join and leave."""
    first, second = torch.lerp(gradient, first, betas[0]), torch.lerp(gradient.square(), second, betas[1])
    return first / (1 - betas[0] ** t) / ((second / (1 - betas[1] ** t)).sqrt() + 1e-8), first, second


def _start(string, start, m, model, scale, seed):
    """The starting prompt of one run, [m, d]: a function of seed, string and the number of the start."""
    text = json.dumps([seed, start, string.tolist()])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    draw = torch.randn(m, model.config.d, generator=generator, dtype=torch.float64)
    return (scale * draw).to(model.embedding)


def _work(model, m, settings, batch):
    """A digest of everything but the strings that a result depends on, the code included (but not the processor)."""
    weights = model.state_dict()
    facts = [torch.__version__, torch.get_num_threads(), str(model.embedding.device), int(m), batch, settings, BETAS]
    facts += [repr(model.config), [[str(weight.dtype), list(weight.shape)] for weight in weights.values()]]
    code = (_descend, _start, aimed_loss, adam_direction, logit_margins, greedy, inspect.getmodule(type(model)))
    digest = hashlib.sha256(json.dumps([facts, [inspect.getsource(part) for part in code]], sort_keys=True).encode())
    for weight in weights.values():
        digest.update(_raw(weight))
    return digest


def _key(work, strings):
    """Names a chunk of work."""
    digest = work.copy()
    digest.update(json.dumps(list(strings.shape)).encode())
    digest.update(_raw(strings))
    return digest.hexdigest()[:32]


def _raw(tensor):
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16


def _write_chunk(path, part, lost):
    names = ("prompts", "lengths", "steps")
    write_bytes(path, to_bytes(dict(zip(names, part, strict=True)), {"lost": json.dumps(lost)}))


def _read_chunk(path):
    try:
        with safe_open(path, framework="pt") as file:
            part = tuple(file.get_tensor(name) for name in ("prompts", "lengths", "steps"))
            return part, [tuple(run) for run in json.loads(file.metadata()["lost"])]
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: delete it and call again") from error
