"""A scripted model takes mini-swe-agent through thirty steps, on every backend alike.

``palestra serve`` runs the episode in a real image (what ``tools/test_engines.sh`` makes),
with mini-swe-agent's own prompts for SWE-bench, and the model is a server that replays a
transcript. What the model reads and what the client is answered must not tell one
backend from another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from serve_process import BACKENDS, IMAGE, SUBMIT, bodies, needs_engine, serving

from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block
from palestra.environment.sandboxes.images import ImageStore

NUM_STEPS = 30
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOTFS = os.environ.get("PALESTRA_TEST_ROOTFS", "")
TIMES_AND_IDS = ("timings", "episode", "response")
"""Fields of an answer that hold times and ids of the episode; what counts of them is compared."""

LOOK = (
    "pwd; ls -A",
    "git log --oneline --all | cat; git status --short --branch",
    "find . -path ./.git -prune -o -type f -print | sort",
    "cat calc.py",
    "grep -n 'def ' *.py",
    "cd /tmp && export LEFT=behind && pwd",
    'pwd; echo "left: ${LEFT-nothing}"',
    "echo out; echo err >&2; echo out again; exit 3",
    "ls /nonexistent-folder",
    "no-such-command-anywhere",
    r"printf 'caf\xc3\xa9 \xff\xfe end\n'",
    "seq 1 20000",
    'read -r line; echo "read ends with $?"',
    "for n in 1 2 3; do echo X = $n > /tmp/module_$n.py; done; cat /tmp/module_*.py",
    "cat <<'END' > /tmp/notes\none 'quoted' line\n\\two \"$HOME\"\nEND\ncat /tmp/notes",
    "python3 -c 'import sys; sys.exit(\"said by python\")'",
    "kill -9 $$",
    "echo alive; id -un; umask",
    'echo "$PAGER $TQDM_DISABLE"; tty',
    "sleep 1000 & echo started in the background",
    "true",
    "python3 -c 'print(\"x\" * 12000)' | fold -w 100 | tail -n 3",
    "find / -maxdepth 1 -name '[a-m]*' -not -name dev | sort",
    "sed -n '1,3p' calc.py | tee /tmp/head | wc -l; head -c 20 /tmp/head | od -c | head -n 2",
)
CHECK = (
    "git diff --stat | cat",
    "python3 -m py_compile calc.py && echo compiles; rm -rf __pycache__",
    "git diff > /tmp/patch.txt; git diff --numstat | cat",
    "cat /tmp/patch.txt",
    f"{SUBMIT} && cat /tmp/patch.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What an episode showed, without times and ids.

    Attributes:
        read: the bodies that the model was sent, in order.
        answer: of the server, without what must differ.
        verdict: every test's status.
    """

    read: Sequence[Mapping[str, Any]]
    answer: Mapping[str, Any]
    verdict: Mapping[str, Any]


def transcript(row: Mapping[str, Any], *, fixes: bool) -> list[str]:
    """Thirty commands: a look around, an edit that fixes the bug or one that does not, checks."""
    fix = f"git apply <<'END_OF_FIX'\n{row['patch']}END_OF_FIX"
    commands = [*LOOK, fix if fixes else "echo '# seen' >> calc.py", *CHECK]
    assert len(commands) == NUM_STEPS
    return commands


def replay(commands: Sequence[str], *, as_tools: bool) -> Callable[[Mapping[str, Any]], Any]:
    """A policy that says the next command of the transcript, and some words before it."""

    def answer(request: Mapping[str, Any]) -> ScriptedReply:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        thought = f"THOUGHT: step {turn + 1}."
        if as_tools:
            called = (commands[turn],)
            return ScriptedReply(text=thought, commands=called, finish_reason="tool_calls")
        return ScriptedReply(text=f"{thought}\n\n{block(commands[turn])}")

    return answer


async def play(folder: Path, backend: str, prompt: str, *, fixes: bool) -> Played:
    """Run the episode on a server of its own."""
    row = {**bodies(1)[0], "image": IMAGE}
    policy = replay(transcript(row, fixes=fixes), as_tools=prompt == "swebench")
    options = ("--agent", "mini", "--prompt", prompt, "--images", str(folder / "images"))
    async with ScriptedModelServer(policy) as model, serving(folder, backend, *options) as server:
        body = {**row, "sglang_url": model.base_url}
        answer = (await server.http.post("/run", json=body)).json()
    assert answer["error"] is None, f"{backend}: {answer['error']}"
    return told(model.requests, answer)


def told(requests: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> Played:
    metrics = answer["info"]["agent_metrics"]
    kept = {key: value for key, value in answer.items() if key not in TIMES_AND_IDS}
    counted = {name: metrics[name] for name in ("turns", "tool_calls")}
    kept["info"] = {**answer["info"], "agent_metrics": counted, "measured": sorted(metrics)}
    return Played(
        read=list(requests),
        answer=kept,
        verdict={k: v for k, v in answer["episode"]["verdict"].items() if k != "duration_s"},
    )


def assert_alike(one: Played, other: Played, names: str) -> None:
    """Compare, the messages one by one, so that a failure names the step."""
    assert len(one.read) == len(other.read), f"{names}: another number of turns"
    pairs = zip_longest(one.read[-1]["messages"], other.read[-1]["messages"])
    for number, (mine, theirs) in enumerate(pairs):
        assert mine == theirs, f"{names}: message {number} differs"
    assert asdict(one) == asdict(other), names


@pytest.fixture(autouse=True)
def _has_image() -> None:
    for backend in BACKENDS:
        needs_engine(backend)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fixes", [True, False], ids=["fixing", "not fixing"])
@pytest.mark.parametrize("prompt", ["swebench_backticks", "swebench"], ids=["text", "tools"])
async def test_thirty_steps_are_the_same_on_every_backend(
    tmp_path: Path, prompt: str, fixes: bool
) -> None:
    ImageStore(tmp_path / "images").add(str(IMAGE), Path(ROOTFS), env={"PATH": PATH})
    played = {name: await play(tmp_path, name, prompt, fixes=fixes) for name in BACKENDS}
    for name, episode in played.items():
        assert episode.answer["reward"] == (1.0 if fixes else 0.0), name
        assert episode.answer["info"]["exit_status"] == "Submitted", name
        assert len(episode.read) == NUM_STEPS, name
        assert episode.answer["info"]["agent_metrics"] == {
            "turns": NUM_STEPS,
            "tool_calls": NUM_STEPS,
        }, name
    for name in BACKENDS[1:]:
        assert_alike(played[BACKENDS[0]], played[name], f"{BACKENDS[0]} and {name}")
