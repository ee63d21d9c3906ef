"""`prompt-memory compress`: a long prompt as few weighted tokens."""

import io
import math
import os
import sys
from pathlib import Path

from prompt_memory.cli.parsers import add_command
from prompt_memory.cli.streams import sentence
from prompt_memory.files import write_bytes

EXAMPLES = """\
examples:
  prompt-memory compress --tokens tokens.npy --degree 3
      the means of all polynomials of degree 3 are kept: every query is served, approximately (Theorem 6)
  prompt-memory compress --tokens tokens.npy --queries q.npy --A A.npy --V V.npy --output short.safetensors
      these queries are served exactly (Theorem 5); softmax logits are <A x, z>, A = K'Q/sqrt(d_k)
  prompt-memory compress --tokens adapter_model.safetensors:prompt_embeddings --degree 1
      tokens that span r dimensions are saved beyond r + 1 of them: a tuned prompt of m <= d vectors hardly is

What comes out: `indices` of the tokens that are kept, their `weights`, and with --own the query's weight `own`.
How a weight w is used: ln w is added to the softmax logits of its token, in every head and for every query.
"""


def add_parser(subparsers) -> None:
    """The options of `prompt-memory compress`."""
    help = "A long prompt as few weighted tokens, verified before it is written."
    add = add_command(subparsers, "compress", run, help=help, examples=EXAMPLES).add_argument
    add("--tokens", required=True, metavar="FILE", help="[m, d]: .npy, or .safetensors (FILE:NAME)")
    add("--degree", type=int, metavar="K", help="keep the means of polynomials of degree at most K")
    add("--queries", metavar="FILE", help="[n, d]: serve these queries exactly (with --A and --V)")
    add("--A", metavar="FILE", help="[d, d] or [H, d, d], K'Q/sqrt(d_k) of each head")
    add("--V", metavar="FILE", help="[d_v, d] or [H, d_v, d], values of each head")
    add("--own", type=float, default=0.0, help="weight with which a query attends itself (default: 0)")
    add("--weights", metavar="FILE", help="[m]: weights of the tokens (default: equal)")
    add("--output", type=Path, default=Path("compressed.npz"), help=".npz or .safetensors (default: compressed.npz)")
    add("--force", action="store_true", help="overwrite the output")


def run(arguments) -> int:
    """Compress, verify, write."""
    exact = _check(arguments)
    tokens = _array(arguments.tokens)
    tokens = tokens[0] if tokens.ndim == 3 and len(tokens) == 1 else tokens
    weights = None if arguments.weights is None else _array(arguments.weights)
    queries, A, V = (_array(getattr(arguments, name)) for name in exact) if exact else (None, None, None)

    from prompt_memory import compress

    if exact:
        short = compress.caratheodory(tokens, queries, A, V, weights=weights, own=arguments.own)
    else:
        if prospect := _nothing_to_save(len(tokens), compress.spanned(tokens, arguments.degree), arguments.degree):
            print(f"prompt-memory compress: {prospect}", file=sys.stderr, flush=True)
        short = compress.moments(tokens, arguments.degree, weights=weights)
    _save(arguments.output, short._asdict())
    served = f"{len(queries)} queries exactly" if exact else f"all moments of degree at most {arguments.degree}"
    print(f"{len(short.indices)} of {len(tokens)} tokens keep {served}; verified and written to {arguments.output}")
    print("A weight w is used by adding ln w to the softmax logits of its token.")
    return 0


def _check(arguments) -> list[str]:
    """The names of the files of an exact compression, if one is asked for; ValueError for bad input."""
    exact = [name for name in ("queries", "A", "V") if getattr(arguments, name) is not None]
    if (arguments.degree is None) == (not exact):
        raise ValueError("give either --degree, or --queries with --A and --V")
    if exact and len(exact) < 3:
        raise ValueError(f"an exact compression needs --queries, --A and --V; only {' and '.join(exact)} given")
    if arguments.own and not exact:
        raise ValueError("--own belongs to --queries")
    if arguments.output.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"the output must end in .npz or .safetensors, not {arguments.output}")
    if arguments.output.exists() and not arguments.force:
        raise ValueError(f"{arguments.output} exists: choose another --output, or --force")
    if arguments.output.is_dir():
        raise ValueError(f"the output {arguments.output} is a folder")
    if not arguments.output.parent.is_dir():
        raise ValueError(f"the folder {arguments.output.parent} of the output does not exist")
    if not os.access(arguments.output.parent, os.W_OK):
        raise ValueError(f"the folder {arguments.output.parent} of the output cannot be written to")
    return exact


def _nothing_to_save(m: int, r: int, degree: int) -> str | None:
    """What to say beforehand of m tokens that span r dimensions, if no or hardly any token can be saved."""
    needed = math.comb(r + degree, degree)
    if m > needed:
        return None
    if r == m - 1:
        return f"nothing can be saved: none of the {m} tokens is an affine combination of the others"
    return f"{m} tokens span {r} dimensions; at degree {degree} up to {needed} are needed, so few or none will be saved"


def _array(place: str):
    """A float64 array from FILE.npy, FILE.safetensors or FILE.safetensors:NAME."""
    import numpy as np

    file, colon, name = place.rpartition(":")
    if not colon or Path(place).exists():
        file, name = place, ""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".npy":
        if name:
            raise ValueError(f"{path} holds one array without a name: leave out :{name}")
        try:
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of several")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not an array of numbers: {sentence(error)}") from None
    elif path.suffix == ".safetensors":
        array = _tensor(path, name)
    else:
        raise ValueError(f"{path} must be .npy or .safetensors")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{place} must hold real numbers, not {array.dtype}")
    return array.astype(np.float64)


def _tensor(path: Path, name: str):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not name and len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} arrays: name one of {', '.join(names[:5])} as FILE:NAME")
            if name and name not in names:
                raise ValueError(f"{path} holds no {name}: there are {', '.join(names[:5])}")
            tensor = file.get_tensor(name or names[0])
            return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {sentence(error)}") from None


def _save(path: Path, arrays: dict) -> None:
    import numpy as np

    buffer = io.BytesIO()
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())
    else:
        from safetensors.numpy import save

        write_bytes(path, save({name: np.atleast_1d(value) for name, value in arrays.items()}))
