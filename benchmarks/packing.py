"""A training pass over rows as agents leave them: packed, padded, and one row at a time.

The three layouts take turns on the same groups with the same tiny model; each has a forward
and a backward pass over all rows. Groups begin alike for a third of their longest row and
then go on for very different lengths. Times are of the processor.

    python benchmarks/packing.py [--groups 6] [--rows 8] [--longest 768] [--threads 1]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from palestra.config import ModelSection
from palestra.learning.training.batching import Microbatch, TrainingRow, microbatches
from palestra.learning.training.model import Policy
from palestra.policy.tiny import make_tiny_model
from palestra.records import TokenPath

REPEATS = 3
VOCAB = 300
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=6, help="Groups of rows.")
    parser.add_argument("--rows", type=int, default=8, help="Rows of a group.")
    parser.add_argument("--longest", type=int, default=768, help="Ids of the longest row.")
    parser.add_argument("--microbatch-tokens", type=int, default=4096, help="Ids of a pass.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    rows = list(enumerate(make_rows(options.groups, options.rows, options.longest)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tiny_model(Path(scratch), texts=[Path(__file__).read_text()])
        compare(folder, rows, options.microbatch_tokens)


def make_rows(num_groups: int, num_rows: int, longest: int) -> list[TrainingRow]:
    draw = random.Random(0)
    rows = []
    for group in range(num_groups):
        common = [draw.randrange(VOCAB) for _ in range(longest // 3)]
        for number in range(num_rows):
            own = int((longest - len(common)) * draw.random() ** 2) + 8
            ids = (*common, *(draw.randrange(VOCAB) for _ in range(own)))
            path = TokenPath(
                ids=ids,
                trainable=(False,) * len(common) + (True,) * own,
                logprobs=(-2.0,) * len(ids),
                versions=(0,) * len(ids),
                temperatures=(1.0,) * len(ids),
            )
            rows.append(
                TrainingRow(
                    rollout_id=f"{group}-{number}", group_id=f"{group}", path=path, advantage=1.0
                )
            )
    return rows


def compare(folder: Path, rows: list[tuple[int, TrainingRow]], max_tokens: int) -> None:
    section = ModelSection(device="cpu")
    padded, packed = (Policy.load(folder, section, layout=name) for name in ("padded", "packed"))
    plain = {"device": CPU, "share_prefixes": False}
    contestants = {
        "one row at a time": (padded, microbatches(rows, max_tokens=1, **plain)),
        "padded": (padded, microbatches(rows, max_tokens=max_tokens, **plain)),
        "padded, prefixes once": (padded, microbatches(rows, max_tokens=max_tokens, device=CPU)),
        "packed": (packed, microbatches(rows, max_tokens=max_tokens, layout="packed", **plain)),
        "packed, prefixes once": (
            packed,
            microbatches(rows, max_tokens=max_tokens, layout="packed", device=CPU),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, (policy, batches) in contestants.items():
            seconds[name].append(train(policy, batches))
    real = sum(row.num_ids for _, row in rows)
    print(f"{len(rows)} rows of {real} ids in all, microbatches of {max_tokens}")
    base = statistics.median(seconds["padded"])
    for name, (_, batches) in contestants.items():
        computed = sum(batch.prefix_P.numel() + batch.ids_BT.numel() for batch in batches)
        spent = statistics.median(seconds[name])
        print(
            f"{name:22} {len(batches):3} passes  {computed:7} ids computed  {spent:6.2f} s  "
            f"ratio to padded {base / spent:.2f}"
        )


def train(policy: Policy, batches: Sequence[Microbatch]) -> float:
    started = time.process_time()
    for batch in batches:
        policy.score(batch).logprobs_N.sum().backward()
    policy.model.zero_grad()
    return time.process_time() - started


if __name__ == "__main__":
    main()
