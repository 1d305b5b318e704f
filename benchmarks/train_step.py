"""A training step of a Qwen3-4B-shaped model on a GPU, against plain transformers.

Contestants take turns on the same random weights and the same ids, in rows of 8k and in one of
32k. FLOPs of a step are those of the model, whatever is computed twice:

    6 * weights of matrix products * ids + 6 * layers * heads * head_dim * sum of row length squared

(2 a multiply-add, times 3 for forward and backward; attention is 4 * length^2 * width forward,
halved since it is causal). MFU is of 989 TFLOP/s, an H100's dense peak in bfloat16.

    python benchmarks/train_step.py check
    python benchmarks/train_step.py passes [--repeats 3]   # forward and backward
    python benchmarks/train_step.py compiled               # the same, norms and MLPs compiled
    python benchmarks/train_step.py step                   # with AdamW
    python benchmarks/train_step.py memory                 # peaks of steps against the estimate
"""

# ruff: noqa: SLF001, N806
from __future__ import annotations

import argparse
import gc
import inspect
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

from palestra.config_training import TrainingSection
from palestra.learning.training import attention
from palestra.learning.training.attention import Segment, Segments
from palestra.learning.training.batching import Microbatch, TrainingRow, packed_microbatches
from palestra.learning.training.lora import Adapters
from palestra.learning.training.memory import TrainerMemory, trainer_memory
from palestra.learning.training.model import Policy, _checkpoint_layers
from palestra.learning.training.optimizer import PolicyOptimizer
from palestra.learning.training.shape import shape_of
from palestra.records import TokenPath

PEAK_FLOPS = 989e12
CUDA = torch.device("cuda")
FLASH = "bench_one_kernel"  # transformers looks elsewhere for names with "flash"
LAYOUTS = {"4 x 8k": (8192,) * 4, "1 x 32k": (32768,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["check", "passes", "step", "compiled", "memory"])
    parser.add_argument("--repeats", type=int, default=3, help="Timed turns of each.")
    parser.add_argument("--layers", type=int, default=36, help="Layers of the model.")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("varlen_attn", inspect.signature(varlen_attn))
    if options.what == "check":
        check()
        return
    if options.what == "memory":
        memory(options.layers)
        return
    model = make_model(options.layers)
    measures = {"passes": passes, "step": steps, "compiled": compiled}
    for name, lengths in LAYOUTS.items():
        measures[options.what](model, name, lengths, options.repeats)


# --- the model and its work -----------------------------------------------------


def make_config(num_layers: int, **changes: Any) -> Qwen3Config:
    shape = {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    }
    return Qwen3Config(**(shape | changes))


def make_model(num_layers: int) -> Any:
    with torch.device(CUDA):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(make_config(num_layers))
        torch.set_default_dtype(before)
    # Rotary frequencies are meant to be float32 whatever the weights are.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(CUDA)
    return model.eval()


def make_rows(lengths: tuple[int, ...], vocab_size: int) -> list[tuple[int, TrainingRow]]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for number, length in enumerate(lengths):
        ids = tuple(torch.randint(vocab_size, (length,), generator=draw).tolist())
        path = TokenPath(
            ids=ids,
            trainable=(False, *(True,) * (length - 1)),
            logprobs=(-1.0,) * length,
            versions=(0,) * length,
            temperatures=(1.0,) * length,
        )
        rows.append((number, TrainingRow(rollout_id=f"{number}", path=path, advantage=1.0)))
    return rows


def num_flops(model: Any, lengths: tuple[int, ...]) -> float:
    config = model.config
    weights = sum(w.numel() for w in model.parameters() if w.ndim == 2)  # the tied head once
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 6.0 * weights * sum(lengths) + 6.0 * width * sum(length**2 for length in lengths)


# --- contestants ----------------------------------------------------------------


def ours(policy: Policy, batches: list[Microbatch]) -> None:
    for batch in batches:
        logprobs_N = policy.score(batch).logprobs_N
        (-logprobs_N.sum() / len(logprobs_N)).backward()


def plain(model: Any, ids: list[torch.Tensor]) -> None:
    for ids_BT in ids:
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        (loss / len(ids)).backward()


def full_logits(model: Any, batches: list[Microbatch]) -> None:
    """Packed and with our kernel, but with transformers' own loss on all logits."""
    for batch in batches:
        assert batch.segments is not None
        output = model(
            input_ids=batch.ids_BT,
            labels=batch.ids_BT,
            position_ids=batch.segments.positions_S[None],
            segments=batch.segments,
            use_cache=False,
        )
        output.loss.backward()


def in_flash(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, segments: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """All segments in one variable-length flash kernel, however long they are."""
    scaling = kwargs.get("scaling")
    output = attention._in_one_kernel(query[0], key[0], value[0], segments, scaling)
    return output[None], None


AttentionInterface.register(FLASH, in_flash)


# --- measuring ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """What is timed, and how the model stands for it."""

    run: Callable[[], None]
    attention: str = attention.NAME
    anew: bool = True

    def prepare(self, model: Any) -> None:
        """Choose attention and checkpointing."""
        model.eval()
        if self.anew:
            _checkpoint_layers(model)
        model.set_attn_implementation(self.attention)


def passes(model: Any, layout: str, lengths: tuple[int, ...], repeats: int) -> None:
    policy = Policy(model, layout="packed")
    rows = make_rows(lengths, model.config.vocab_size)
    batches = packed_microbatches(rows, max_tokens=sum(lengths), device=CUDA)
    ids = [torch.tensor([row.path.ids], device=CUDA) for _, row in rows]
    contestants = {
        "transformers, row by row, all kept": Contestant(
            run=lambda: plain(model, ids), attention="sdpa", anew=False
        ),
        "transformers, row by row, layers anew": Contestant(
            run=lambda: plain(model, ids), attention="sdpa"
        ),
        "transformers' loss on our packing": Contestant(run=lambda: full_logits(model, batches)),
        "ours": Contestant(run=lambda: ours(policy, batches)),
        "ours, one flash kernel": Contestant(run=lambda: ours(policy, batches), attention=FLASH),
    }
    if len(ids) > 1:
        together = [torch.cat(ids)]
        contestants["transformers, one batch, layers anew"] = Contestant(
            run=lambda: plain(model, together), attention="sdpa"
        )
    report(model, layout, lengths, contestants, repeats)


def compiled(model: Any, layout: str, lengths: tuple[int, ...], repeats: int) -> None:
    rows = make_rows(lengths, model.config.vocab_size)
    batches = packed_microbatches(rows, max_tokens=sum(lengths), device=CUDA)
    policy = Policy(model, layout="packed", compiled=True)
    run = lambda: ours(policy, batches)  # noqa: E731
    contestants = {
        "ours, norms and MLPs compiled": Contestant(run=run),
    }
    report(model, layout, lengths, contestants, repeats)


def steps(model: Any, layout: str, lengths: tuple[int, ...], repeats: int) -> None:
    policy = Policy(model, layout="packed")
    optimizer = PolicyOptimizer(model, betas=(0.9, 0.98), weight_decay=0.1)
    rows = make_rows(lengths, model.config.vocab_size)
    batches = packed_microbatches(rows, max_tokens=sum(lengths), device=CUDA)

    def step() -> None:
        ours(policy, batches)
        optimizer.accumulate()
        optimizer.step(lr=1e-6, max_grad_norm=1.0)

    contestants = {
        "ours, with AdamW": Contestant(run=step),
    }
    report(model, layout, lengths, contestants, repeats)


def memory(num_layers: int) -> None:
    """Steps of two microbatches of 32k ids: seconds, and the peak beside what is estimated."""
    for name, changes in (
        ("compiled, offloaded", {"compile": True, "offload_optimizer": True}),
        ("offloaded", {"offload_optimizer": True}),
        ("adapters of rank 32", {"lora": {"rank": 32}}),
        ("all on the GPU", {}),
    ):
        section = TrainingSection(
            layout="packed", microbatch_tokens=32768, activation_checkpointing=True, **changes
        )
        seconds, peak, estimate = measured_step(num_layers, section)
        standing = sum(p.num_bytes for p in estimate.gpu[:-1]) / 2**30  # without CUDA's own
        print(
            f"{name:22} {seconds:6.2f} s  peak {peak:6.2f} GiB  estimated {standing:6.2f} GiB "
            f"({standing / peak - 1:+.1%}; at {estimate.moment})",
            flush=True,
        )


def measured_step(num_layers: int, section: TrainingSection) -> tuple[float, float, TrainerMemory]:
    """Seconds and peak GiB of the second step, and the estimate."""
    gc.collect()
    torch.cuda.empty_cache()
    model = make_model(num_layers)
    estimate = trainer_memory(shape_of(model), section, dtype="bfloat16", max_row_ids=8192)
    adapters = Adapters(model, section.lora, base=Path(), seed=0) if section.lora else None
    policy = Policy(
        model,
        layout="packed",
        activation_checkpointing=True,
        adapters=adapters,
        compiled=section.compile,
    )
    optimizer = PolicyOptimizer(
        model, betas=(0.9, 0.98), weight_decay=0.1, offload=section.offload_optimizer
    )
    rows = make_rows((8192,) * 8, model.config.vocab_size)
    batches = packed_microbatches(rows, max_tokens=section.microbatch_tokens, device=CUDA)
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for batch in batches:
            ours(policy, [batch])
            optimizer.accumulate()
        optimizer.step(lr=1e-6, max_grad_norm=1.0)
        torch.cuda.synchronize()
        spent = time.perf_counter() - started
    return spent, torch.cuda.max_memory_allocated() / 2**30, estimate


def report(
    model: Any,
    layout: str,
    lengths: tuple[int, ...],
    contestants: dict[str, Contestant],
    repeats: int,
) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    for turn in range(repeats + 1):  # the first warms up
        for name, contestant in contestants.items():
            if name in failed:
                continue
            try:
                spent, peaks[name] = timed(model, contestant)
            except (RuntimeError, TypeError) as error:
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
                forget(model)
                continue
            if turn:
                seconds[name].append(spent)
    flops, num_ids = num_flops(model, lengths), sum(lengths)
    print(f"\n{layout}: {num_ids} ids, {flops / 1e12:.0f} TFLOP", flush=True)
    base = next((statistics.median(s) for s in seconds.values() if s), 0.0)
    for name in contestants:
        if name in failed:
            print(f"{name:40} {failed[name]}", flush=True)
            continue
        spent = statistics.median(seconds[name])
        print(
            f"{name:40} {spent:6.3f} s  {num_ids / spent:7.0f} ids/s  "
            f"MFU {flops / spent / PEAK_FLOPS:6.1%}  peak {peaks[name]:6.1f} GiB  "
            f"ratio {base / spent:.2f}  ({min(seconds[name]):.3f} to {max(seconds[name]):.3f} s)",
            flush=True,
        )


def timed(model: Any, contestant: Contestant) -> tuple[float, float]:
    """Seconds and peak GiB."""
    forget(model)
    contestant.prepare(model)
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    contestant.run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30


def forget(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


# --- right or wrong -------------------------------------------------------------


def check() -> None:
    """The kernel on its own, then a small model: packed against one by one."""
    segments = Segments.of(
        (
            (first := Segment(start=0, length=64)),
            Segment(start=64, length=200, prefix=first),
            Segment(start=264, length=57, prefix=first),
            Segment(start=321, length=300),
        ),
        device=CUDA,
    )
    size = len(segments.positions_S)
    inputs = [torch.randn(h, size, 128, device=CUDA, dtype=torch.bfloat16) for h in (32, 8, 8)]
    upon = torch.randn(size, 32, 128, device=CUDA)
    found = {}
    for name, attend, dtype in (
        ("float32", attention._one_by_one, torch.float32),
        ("segments", attention._one_by_one, torch.bfloat16),
        ("varlen", attention._in_one_kernel, torch.bfloat16),
    ):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        output = attend(*leaves, segments, 128**-0.5)
        (output.float() * upon).sum().backward()
        found[name] = [output.float(), *(x.grad.float() for x in leaves)]
    for name in ("segments", "varlen"):
        errors = [relative(a, b) for a, b in zip(found[name], found["float32"], strict=True)]
        print(f"kernel {name:9} off float32: " + " ".join(f"{e:.1e}" for e in errors))
    for dtype in (torch.float32, torch.bfloat16):
        check_model(dtype)


def check_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 5000, "hidden_size": 512, "intermediate_size": 1024}
    model = Qwen3ForCausalLM(make_config(4, **small, initializer_range=0.05)).to(CUDA)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rows = make_rows((700, 350, 1024, 64, 129), 5000)
    want = found_by(model, start, torch.float32, "padded", rows, max_tokens=1)
    for layout, anew, max_tokens in (
        ("padded", False, 1),
        ("packed", False, 4096),
        ("packed", True, 4096),
    ):
        got = found_by(model, start, dtype, layout, rows, max_tokens=max_tokens, anew=anew)
        errors = {name: relative(got[1][name], want[1][name]) for name in want[1]}
        worst = max(errors, key=lambda name: errors[name])
        print(
            f"{str(dtype)[6:]:9} {layout} anew={anew!s:5} loss {got[0]:.6f} (one by one float32 "
            f"{want[0]:.6f}), gradients off by median {statistics.median(errors.values()):.1e}, "
            f"at most {errors[worst]:.1e} ({worst})"
        )


def found_by(
    model: Any,
    start: dict[str, torch.Tensor],
    dtype: torch.dtype,
    layout: Any,
    rows: list[tuple[int, TrainingRow]],
    *,
    max_tokens: int,
    anew: bool = False,
) -> tuple[float, dict[str, torch.Tensor]]:
    from copy import deepcopy

    from palestra.learning.training.batching import microbatches

    fresh = deepcopy(model)
    fresh.load_state_dict(start)
    policy = Policy(fresh.to(dtype), layout=layout, activation_checkpointing=anew)
    num_ids = sum(row.num_trainable for _, row in rows)
    total, sums = 0.0, {}
    for batch in microbatches(rows, max_tokens=max_tokens, device=CUDA, layout=layout):
        loss = -policy.score(batch).logprobs_N.sum() / num_ids
        loss.backward()
        total += float(loss.detach())
        for name, weight in fresh.named_parameters():
            sums[name] = sums.get(name, 0) + weight.grad.float()
            weight.grad = None
    return total, sums


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


if __name__ == "__main__":
    main()
