"""Text of others, names and errors, as part of one sentence."""


def one_line(text: str) -> str:
    """A name in one line of moderate length."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 120 else text[:100] + "…"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(" .:")


def all_lines(error: BaseException) -> str:
    """All lines of an error's text as one, shortened: some name a field first and say what is wrong with it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(" ".join(lines)[:160].rstrip(" .:"))
