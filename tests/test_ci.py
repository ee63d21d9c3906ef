"""What other machines run: the workflow for GitHub, the pipeline for GitLab, and the check of links."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import chapters
import links
import pytest
import yaml

ROOT = chapters.ROOT
WORKFLOW = ROOT / ".github" / "workflows" / "book.yml"
PIPELINE = ROOT / ".gitlab-ci.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
RELEASE = re.compile(r"^[\w-]+/[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$")


def schema(path, name: str, *options: str) -> subprocess.CompletedProcess:
    """Check a file against the schema that the package brings along; it asks no network."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{name}", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("path", "name", "options"),
    [(WORKFLOW, "github-workflows", ()), (PIPELINE, "gitlab-ci", ("--data-transform", "gitlab-ci"))],
)
def test_the_files_fit_their_schemas(path, name, options):
    pytest.importorskip("check_jsonschema")
    result = schema(path, name, *options)
    assert result.returncode == 0, result.stdout


def test_a_wrong_word_in_the_workflow_would_be_found(tmp_path):
    pytest.importorskip("check_jsonschema")
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOW.read_text().replace("timeout-minutes", "timeout"))
    assert schema(broken, "github-workflows").returncode == 1


def test_actionlint_has_nothing_to_say():
    if not shutil.which("actionlint"):
        pytest.skip("no actionlint is installed")
    result = subprocess.run(["actionlint", str(WORKFLOW)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_actions_are_pinned_by_commit_and_rights_are_few():
    used = re.findall(r"uses: *(.*)", WORKFLOW.read_text())
    assert used
    assert [line for line in used if not RELEASE.match(line)] == []
    assert len({line.split("@")[0]: line for line in used if "cache" not in line}) == len(
        {line for line in used if "cache" not in line}
    ), "one action, two commits"
    assert yaml.safe_load(WORKFLOW.read_text())["permissions"] == {"contents": "read"}
    rights = {name: job.get("permissions") for name, job in JOBS.items()}
    comment, pages = {"pull-requests": "write"}, {"pages": "write", "id-token": "write"}
    assert rights == {"build": None, "pages": pages, "comment": comment}
    assert all(not re.search(r"\$\{\{(?! *matrix\.command)", step.get("run", "")) for step in STEPS), "text in a shell"


def commands() -> list[str]:
    """Every line of shell that either machine runs."""
    lines = [line for step in STEPS for line in step.get("run", "").splitlines()]
    lines += [entry["command"] for entry in JOBS["build"]["strategy"]["matrix"]["include"]]
    for job in yaml.safe_load(PIPELINE.read_text()).values():
        if isinstance(job, dict):
            lines += [*job.get("before_script", []), *job.get("script", [])]
    return lines


def test_every_make_target_is_there():
    targets = {target for line in commands() for target in re.findall(r"\bmake (\w+)", line)}
    assert targets >= {"env", "test", "book", "compare", "links"}
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {target for target in targets if not re.search(rf"^  {target} ", listed, re.MULTILINE)} == set()


def test_the_comment_says_what_compare_says(tmp_path):
    """The very steps, with a `make` that finds a difference and a `gh` that keeps what it is given."""
    for name, script in (("make", "echo changed 01/x; exit 2"), ("gh", 'echo "$@" > asked; cp "${@: -1}" said')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": "summary"}
    for step in (step for step in STEPS if "comparison.md" in step.get("run", "")):
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        subprocess.run(shell, cwd=tmp_path, env=environment | {"NUMBER": "7"}, check=True)
    said = (tmp_path / "said").read_text()
    assert said.endswith("\n````text\nchanged 01/x\n````\n")
    assert (tmp_path / "summary").read_text() in said
    assert (tmp_path / "asked").read_text() == "pr comment 7 --edit-last --create-if-none --body-file comment.md\n"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_link_that_leads_nowhere_is_named(tmp_path, monkeypatch, capsys):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        page = tmp_path / "index.html"
        page.write_text(
            f'<a href="{root}/200#x"></a><a href="{root}/200"></a><a href="{root}/403"></a><a href="y"></a>'
        )
        monkeypatch.setattr("sys.argv", ["links.py", str(tmp_path)])
        assert links.main() == 0
        assert "2 addresses, 0 broken" in capsys.readouterr().out
        page.write_text(f'<a href="{root}/404"></a>')
        assert links.main() == 1
        assert f"FAILED {root}/404 on index.html: 404" in capsys.readouterr().out
    finally:
        server.shutdown()
        server.server_close()
    assert isinstance(links.ask(f"{root}/200", tries=2, pause=0.0), str)
