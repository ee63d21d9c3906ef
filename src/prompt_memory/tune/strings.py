"""Strings crammed into prompts: R independent runs are one batch, and finished runs leave it."""

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
from prompt_memory.files import write_bytes
from prompt_memory.measure import greedy, logit_margins
from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.descent import adam_direction, aimed_loss

BETAS = (0.8, 0.95)  # of Adam: the landscape changes fast, long memories slow it down


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
    (settings["seed"],) = integers(0, seed=settings["seed"])
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
        own = embedded[string, : longest - 1]
        if grow:  # what lies beyond a run's aim must not spoil its gradient, so it reads any finite vector there
            own = torch.where(inside[:, 1:, None], own, p[:, :1])
        loss, right, gradient = _forced(model, p, own, strings[string, :longest], aim, margin)
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
    return (prompts, confirmed(model, prompts, strings, found), used), sorted(lost)


def _forced(model, p, own, wanted, aim, margin):
    """Under teacher forcing: `aimed_loss` of prompts p [r, m, d] before their own tokens, and its gradient in p."""
    with torch.enable_grad():
        moving = p.detach().requires_grad_()
        logits = model.stream(torch.cat([moving, own], 1))[:, p.shape[1] - 1 :]
        loss, right = aimed_loss(logits, wanted, aim, margin)
        (gradient,) = torch.autograd.grad(loss.sum(), moving)
    return loss, right, gradient


def confirmed(model, prompts, strings, found):
    """The lengths `found`, down to the first token that decoding gets wrong: teacher forcing rounds differently."""
    found, solved = found.clone(), (found > 0).nonzero()[:, 0]
    if len(solved):
        decoded = greedy(model, prompts[solved], int(found.max()))
        same = decoded == strings[solved, : decoded.shape[1]]
        same |= torch.arange(decoded.shape[1], device=found.device) >= found[solved, None]
        found[solved] = torch.where(same.all(1), found[solved], same.long().cumprod(1).sum(1))
    return found


def _start(string, start, m, model, scale, seed):
    """The starting prompt of one run, [m, d]: a function of seed, string and the number of the start."""
    text = json.dumps([seed, start, string.tolist()])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    draw = torch.randn(m, model.config.d, generator=generator, dtype=torch.float64)
    return (scale * draw).to(model.embedding)


# --- finished chunks on disk ---------------------------------------------------------------------------------------


def _work(model, m, settings, batch):
    """A digest of everything but the strings that a result depends on, the code included (but not the processor)."""
    weights = model.state_dict()
    facts = [torch.__version__, torch.get_num_threads(), str(model.embedding.device), int(m), batch, settings, BETAS]
    facts += [repr(model.config), [[str(weight.dtype), list(weight.shape)] for weight in weights.values()]]
    search = (_descend, _forced, confirmed, _start)
    code = (*search, aimed_loss, adam_direction, logit_margins, greedy, inspect.getmodule(type(model)))
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
