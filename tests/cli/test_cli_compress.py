"""`prompt-memory compress` as a user meets it."""

import numpy as np
import pytest
import torch
from commands import command, refused
from safetensors.numpy import load_file
from safetensors.torch import save_file

from prompt_memory import cli, compress


@pytest.fixture
def prompt(tmp_path):
    """Files with a prompt of 200 tokens, queries and one head."""
    random = np.random.default_rng(0)
    arrays = {"tokens": (200, 3), "q": (4, 3), "A": (3, 3), "V": (2, 3)}
    arrays = {name: random.normal(size=shape) for name, shape in arrays.items()}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


def test_compress_by_moments(prompt, tmp_path):
    done = command("compress", "--tokens", "tokens.npy", "--degree", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 of 200 tokens" in done.stdout
    with np.load(tmp_path / "compressed.npz") as short:
        kept, weights = prompt["tokens"][short["indices"]], short["weights"]
    assert weights.sum() == pytest.approx(1)
    assert kept.T @ (weights[:, None] * kept) == pytest.approx(prompt["tokens"].T @ prompt["tokens"] / 200, abs=1e-11)


def test_compress_says_beforehand_when_nothing_can_be_saved(tmp_path, capsys):
    random = np.random.default_rng(1)
    wide, flat = random.normal(size=(100, 768)), random.normal(size=(12, 4)) @ random.normal(size=(4, 768))
    for name, tokens, degree, warned, kept in (
        ("wide", wide, 1, "nothing can be saved", 100),
        ("flat", flat, 2, "at degree 2 up to 15 are needed", 12),
        ("flat", flat, 1, "", 5),
    ):
        np.save(tmp_path / f"{name}.npy", tokens)
        arguments = ["compress", f"--tokens={tmp_path}/{name}.npy", f"--degree={degree}", "--force"]
        assert cli.main([*arguments, f"--output={tmp_path}/out.npz"]) == 0
        told = capsys.readouterr()
        assert warned in told.err
        assert bool(warned) == bool(told.err)
        assert f"{kept} of {len(tokens)} tokens" in told.out
        assert "ln w" in told.out


def test_compress_for_queries(prompt, tmp_path, capsys):
    save_file({"p": torch.from_numpy(prompt["tokens"])[None], "other": torch.zeros(1)}, tmp_path / "t.safetensors")
    files = [f"--{option}={tmp_path / name}.npy" for option, name in (("queries", "q"), ("A", "A"), ("V", "V"))]
    output = tmp_path / "short.safetensors"
    arguments = ["compress", f"--tokens={tmp_path}/t.safetensors:p", *files, f"--output={output}"]
    assert cli.main([*arguments, "--own", "1"]) == 0
    short = load_file(output)
    assert len(short["indices"]) <= 8
    layer = (prompt["q"], prompt["A"], prompt["V"])
    found = compress.attend(prompt["tokens"][short["indices"]], *layer, weights=short["weights"], own=short["own"][0])
    assert found == pytest.approx(compress.attend(prompt["tokens"], *layer, own=1.0), abs=1e-11)
    capsys.readouterr()
    assert "exists" in refused(capsys, *arguments)
    assert cli.main([*arguments, "--force"]) == 0


def test_bad_input_to_compress_is_one_sentence(prompt, tmp_path, capsys):
    def sentence(*arguments):
        return refused(capsys, "compress", f"--output={tmp_path}/out.npz", *arguments)

    tokens = f"--tokens={tmp_path}/tokens.npy"
    (tmp_path / "broken.npy").write_text("nothing")
    (tmp_path / "broken.safetensors").write_text("nothing")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((4, 2), np.nan))
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    for name, dtype in (("complex", torch.complex64), ("bool", torch.bool)):
        save_file({"a": torch.ones(4, 2, dtype=dtype)}, tmp_path / f"{name}.safetensors")
        assert f"not {name}" in sentence(f"--tokens={tmp_path}/{name}.safetensors", "--degree=1")
    assert "either" in sentence(tokens)
    assert "--queries, --A and --V" in sentence(tokens, f"--queries={tmp_path}/q.npy")
    assert "no file" in sentence("--tokens=missing.npy", "--degree=1")
    assert "not an array" in sentence(f"--tokens={tmp_path}/broken.npy", "--degree=1")
    assert "damaged" in sentence(f"--tokens={tmp_path}/broken.safetensors", "--degree=1")
    assert "real numbers" in sentence(f"--tokens={tmp_path}/words.npy", "--degree=1")
    np.savez(tmp_path / "archive.npz", a=np.ones((2, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    assert "archive of several" in sentence(f"--tokens={tmp_path}/archive.npy", "--degree=1")
    assert "without a name" in sentence(tokens + ":p", "--degree=1")
    assert "not an array" in sentence(f"--tokens={tmp_path}/objects.npy", "--degree=1")
    assert "finite" in sentence(f"--tokens={tmp_path}/nan.npy", "--degree=1")
    assert "FILE:NAME" in sentence(f"--tokens={tmp_path}/two.safetensors", "--degree=1")
    assert "holds no c" in sentence(f"--tokens={tmp_path}/two.safetensors:c", "--degree=1")
    assert "degree" in sentence(tokens, "--degree=-1")
    assert "moments are too many" in sentence(tokens, "--degree=4000")
    assert "does not exist" in refused(capsys, "compress", tokens, "--degree=1", f"--output={tmp_path}/no/out.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder" in refused(capsys, "compress", tokens, "--degree=1", "--force",
                                    f"--output={tmp_path}/folder.npz")  # fmt: skip
    assert ".npz" in refused(capsys, "compress", tokens, "--degree=1", f"--output={tmp_path}/out.txt")
    assert not (tmp_path / "out.npz").exists()
