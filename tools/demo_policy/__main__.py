"""Makes the demo policy: ``make demo-policy``, or ``python -m demo_policy --out FOLDER`` in tools/.

On a GPU it takes minutes, on two CPU cores hours. The log beside the weights says what
was done and how well it went.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import torch
from demo_policy.corpus import build, practice_texts
from demo_policy.pretrain import Schedule, pretrain
from transformers import AutoModelForCausalLM

from palestra.policy.tiny import make_tiny_model

TOKENIZER_TEXTS = 20_000
CHECKED = 2048
ALMOST_FLUENT = 0.1


def main() -> None:
    """Draw the corpus, fit the model, write the folder."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder: Path = options.out
    if options.start is not None:
        shutil.copytree(options.start, folder, dirs_exist_ok=True)
    else:
        make_tiny_model(
            folder,
            texts=practice_texts(options.seed, TOKENIZER_TEXTS),
            vocab_size=options.vocab_size,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            seed=options.seed,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().to(device)
    num_processes = options.processes or os.cpu_count() or 1
    corpora = [
        build(
            str(folder / "tokenizer.json"),
            seed=options.seed + offset,
            num=num,
            num_processes=num_processes,
        )
        for offset, num in ((1, options.conversations), (2, CHECKED))
    ]
    schedule = Schedule(steps=options.steps, batch_size=options.batch_size, lr=options.lr)
    facts = {
        "command": " ".join(["python -m demo_policy", *sys.argv[1:]]),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "conversations": len(corpora[0].lengths),
        "ids": int(corpora[0].starts[-1]),
        "schedule": dataclasses.asdict(schedule),
    }
    lines = [json.dumps(facts)]
    print(lines[0], flush=True)
    for report in pretrain(model, *corpora, schedule, seed=options.seed):
        rounded = {k: round(v, 4) for k, v in dataclasses.asdict(report).items()}
        lines.append(json.dumps(rounded))
        print(lines[-1], flush=True)
        # Small to ship; loading makes it float32 again.
        copy.deepcopy(model).cpu().half().save_pretrained(folder)
        (folder / "pretraining.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if report.excess > ALMOST_FLUENT:
        sys.exit(
            f"not fluent: {report.excess:.3f} nats a conversation above the demonstrator's choices"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo_policy", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="go on from this folder instead of from nothing")
    parser.add_argument("--seed", type=int, default=0, help="of corpus, weights and order")
    parser.add_argument("--conversations", type=int, default=500_000, help="different ones")
    parser.add_argument("--steps", type=int, default=14_500)
    parser.add_argument("--batch-size", type=int, default=256, help="conversations a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=0, help="that draw; 0: one a core")
    return parser.parse_args()


if __name__ == "__main__":
    main()
