"""How fluent a policy is: ``python tools/demo_policy/measure.py DIR`` on what ``eval --out`` wrote.

Three shares of the episodes: those that handed in, those that changed exactly one span of
one line, and those that solved their task. A demo policy must have nearly all of the
first two and a minority of the third.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIN_SUBMITTED, MIN_SINGLE_SPAN, SOLVED = 0.99, 0.95, (0.20, 0.35)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fluency:
    """Shares of all episodes."""

    submitted: float
    single_span: float
    solved: float

    @property
    def is_fit(self) -> bool:
        """Whether RL is left with one thing to teach: which edit is called for."""
        return (
            self.submitted >= MIN_SUBMITTED
            and self.single_span >= MIN_SINGLE_SPAN
            and SOLVED[0] <= self.solved <= SOLVED[1]
        )


def fluency(episodes: Iterable[Mapping[str, Any]]) -> Fluency:
    """Measure episodes as ``episodes.jsonl`` holds them.

    Raises:
        ValueError: there are none.
    """
    seen = [
        (e["exit_status"] == "Submitted", changes_one_span(e["patch"] or ""), e["outcome"])
        for e in episodes
    ]
    if not seen:
        raise ValueError("there are no episodes")
    return Fluency(
        submitted=sum(s for s, _, _ in seen) / len(seen),
        single_span=sum(one for _, one, _ in seen) / len(seen),
        solved=sum(outcome == "solved" for _, _, outcome in seen) / len(seen),
    )


def changes_one_span(patch: str) -> bool:
    """Whether a patch replaces one line by one that differs in one blank-separated word."""
    old = [line[1:] for line in patch.splitlines() if line[:1] == "-" and line[:3] != "---"]
    new = [line[1:] for line in patch.splitlines() if line[:1] == "+" and line[:3] != "+++"]
    if len(old) != 1 or len(new) != 1:
        return False
    before, after = old[0].split(" "), new[0].split(" ")
    return len(before) == len(after) and sum(map(str.__ne__, before, after)) == 1


if __name__ == "__main__":
    with (Path(sys.argv[1]) / "episodes.jsonl").open(encoding="utf-8") as lines:
        measured = fluency(map(json.loads, lines))
    print(
        f"submitted {measured.submitted:.1%}, single-span edits {measured.single_span:.1%}, "
        f"solved {measured.solved:.1%}"
    )
    sys.exit(0 if measured.is_fit else "not fit to be the demo policy")
