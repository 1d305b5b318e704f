"""Serves a policy that knows the answers: an expert who looks, edits, checks and hands in.

    python tools/expert_server.py TASKS.jsonl --port 8009
    palestra eval TASKS.jsonl --agent mini --base-url http://127.0.0.1:8009/v1 --model expert

With it a set of tasks can be solved by the real agent in real sandboxes without a model, which
shows that agent, sandboxes, diff and grading fit each other on a backend.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from palestra.environment.agents.fake_model import ScriptedModelServer
from palestra.run.demonstrations import demonstration_of
from palestra.tasks.source import load_tasks


class Expert:
    """Answers each request with the next step of the task that its prompt states."""

    def __init__(self, source: str, *, max_slips: int = 0) -> None:
        self._scripts = {
            task.problem_statement.strip(): demonstration_of(task, max_slips=max_slips).texts
            for task in load_tasks(source)
        }

    def __call__(self, request: Mapping[str, Any]) -> str:
        """The next step; the last one again where the script is at its end."""
        messages = request["messages"]
        asked = "\n".join(str(m["content"]) for m in messages if m["role"] == "user")
        known = [statement for statement in self._scripts if statement in asked]
        if not known:
            return "This is no task that I know."
        script = self._scripts[max(known, key=len)]
        turn = sum(message["role"] == "assistant" for message in messages)
        return script[min(turn, len(script) - 1)]


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", help="task source")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--max-slips", type=int, default=0, help="wrong edits that it takes back")
    options = parser.parse_args()
    expert = Expert(options.tasks, max_slips=options.max_slips)
    async with ScriptedModelServer(expert, port=options.port) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
