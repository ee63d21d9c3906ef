"""The reference of the book: what its pages say of functions, and who uses them."""

import ast

import chapters
import pytest
import reference

ROOMS = [page.removeprefix("reference/") for page in chapters.pages() if page.startswith("reference/")]


def test_every_room_that_a_reader_would_use_has_a_page():
    assert sorted(ROOMS) == sorted(["bounds", "network", "tasks", "measure", "tune", "compress", "pretrain", "real"])


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_that_is_documented_is_on_the_page(room):
    page = reference.page(room)
    for file in chapters.module_file(room).parent.rglob("[!_]*.py"):
        for node in filter(reference.documented, ast.parse(file.read_text()).body):
            assert f"# `{node.name}`" in page, f"{file}: {node.name}"


def test_a_function_is_shown_with_its_chapter():
    entry = reference.page("bounds").split("### `critical_length`\n")[1].split("\n## ")[0].split("\n### ")[0]
    assert "critical_length(bits: float, vocabulary: int) -> float" in entry
    assert "(Theorem 4)" in entry
    assert "[4](/notebooks/04_accessible_strings.ipynb)" in entry


def test_uses_are_those_of_the_module_that_defines_a_name():
    source = (
        "from prompt_memory import bounds, tune\nfrom prompt_memory.bounds import rate\n"
        "from prompt_memory.bounds import counting as c\nbounds.source_ceiling\nc.recall_ceiling\nother.cram"
    )
    assert reference.uses(source) == {
        ("bounds.counting", "rate"),
        ("bounds.accessible_strings", "source_ceiling"),
        ("bounds.counting", "recall_ceiling"),
    }


def test_words_stay_words():
    assert reference.prose("a_b < 2^n, *all* of `x_y`\nand $1\n\n- one\n- two") == (
        "a\\_b \\< 2\\^n, *all* of `x_y` and \\$1\n\n```text\n- one\n- two\n```"
    )


def test_a_long_signature_has_an_argument_a_line():
    node = ast.parse(f"def f(a: Float[T, 'S n'], {'b' * 60}: dict[str, int]=g(1, 2)) -> int: ...").body[0]
    lines = reference.signature(node).splitlines()
    assert lines == ["f(", "    a: Float[T, 'S n'],", f"    {'b' * 60}: dict[str, int]=g(1, 2),", ") -> int"]
