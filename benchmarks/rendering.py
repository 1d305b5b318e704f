"""The prompt of the next turn: rendered from its start, against bridged onto what was sampled.

    python benchmarks/rendering.py [--turns 10 50 128]

Processor time, the least of several. Every result is a line with the word ``ratio``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from bench_gateway import Bench, conversation, grown

from palestra.policy.gateway.tree import TurnTree

REPEATS = 9


def compare(bench: Bench, num_turns: int) -> None:
    tree, whole = grown(bench, num_turns), conversation(num_turns)
    placed = tree.place(whole)
    assert placed.parent == num_turns - 2, "it must be bridged"
    bridged_s = _best_s(lambda: tree.place(whole))
    rendered_s = _best_s(lambda: TurnTree(bench.renderer).place(whole))
    print(
        f"prompt of turn {num_turns} ({len(placed.prompt_ids)} ids): bridged "
        f"{bridged_s * 1e3:.2f} ms, rendered from the start {rendered_s * 1e3:.2f} ms, "
        f"ratio {rendered_s / bridged_s:.1f}"
    )


def _best_s(work: Callable[[], object]) -> float:
    times_s = []
    for _ in range(REPEATS):
        started_s = time.process_time()
        work()
        times_s.append(time.process_time() - started_s)
    return min(times_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 50, 128], help="turns so far")
    options = parser.parse_args()
    bench = Bench.build()
    for num_turns in options.turns:
        compare(bench, num_turns)


if __name__ == "__main__":
    main()
