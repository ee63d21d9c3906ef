"""What commands say, to streams that may be closed, full or left by their reader."""

import contextlib
import io
import os


def sentence(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def drop_output(stream) -> None:
    """What is left in the buffer of a stream goes nowhere, or Python would fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def silence():
    """No bars and remarks of other packages: what we have to say is one sentence."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
