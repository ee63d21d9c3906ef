"""What a chapter's page is made of beside claims and figures: numbers in sentences, and the source of what was run."""

import html
import inspect
from collections.abc import Mapping
from pathlib import Path

import prompt_memory


def numbers(values: Mapping[str, object]) -> None:
    """Make `values` (name to text or number) available to the sentences of the page as {glue:text}`name`."""
    from myst_nb import glue  # only the book's environment has it

    for name, value in values.items():
        glue(name, value, display=False)


class Source:
    """The source of functions and classes, folded: read from the file, never typed again."""

    def __init__(self, *objects):
        self.objects = objects

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        root = Path(prompt_memory.__file__).parent
        file = Path(inspect.getsourcefile(self.objects[0])).relative_to(root.parent)
        names = ", ".join(f"<code>{html.escape(each.__name__)}</code>" for each in self.objects)
        code = "\n\n".join(inspect.getsource(each) for each in self.objects)
        shown = highlight(code, PythonLexer(), HtmlFormatter(cssclass="highlight"))
        return (
            f'<details class="source"><summary>Source of {names} <span>(src/{html.escape(str(file))})</span></summary>'
            f"{shown}</details>"
        )

    def __repr__(self) -> str:
        return "Source of " + ", ".join(each.__name__ for each in self.objects)
