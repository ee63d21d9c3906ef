"""The same chapter with other vector instructions: what may differ between processors, and by how much."""

import json

import compare
import pytest
from building import ROOT, build, copy_tree

OTHER = {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott"}


@pytest.mark.parametrize("name", ["00_how_to_read", "11_capacity_law"])
def test_another_processor_moves_claims_within_what_is_allowed(html, tmp_path, monkeypatch, name):
    """No search in the first chapter, much of it in the other."""
    for variable, value in OTHER.items():
        monkeypatch.setenv(variable, value)
    root = copy_tree(tmp_path / "copy")
    result = build(root, name, "--profile", "smoke", step="execute.py")
    assert result.returncode == 0, result.output
    contents = []
    for tree in (ROOT, root):
        claims = json.loads((tree / "build" / "smoke" / "claims" / f"{name}.json").read_text())["claims"]
        contents.append({"profile": "smoke", "chapters": {}, "claims": claims})
    assert compare.differences(*contents, same_processor=False) == []
