"""Packed rows: as if each went through the model alone, wherever it is computed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_toys import (
    CPU,
    VOCAB,
    assert_same_bits,
    gradients,
    path_of,
    random_groups,
    sibling_groups,
    tiny_model,
    trainer_at,
)
from transformers import AutoModelForCausalLM, Qwen3Model

from palestra.config import ModelSection
from palestra.errors import ConfigError
from palestra.learning.training import Trainer
from palestra.learning.training.attention import (
    Segment,
    Segments,
    _in_one_kernel,
    _one_by_one,
    packed_attention,
)
from palestra.learning.training.batching import (
    Microbatch,
    TrainingRow,
    collate_stream,
    packed_microbatches,
    training_rows,
)
from palestra.learning.training.losses import loss_scale
from palestra.learning.training.model import Policy
from palestra.learning.training.packing import Pack, pack_size, plan_streams
from palestra.learning.training.token_loss import BeforeStep, scaled_sum, token_loss
from palestra.records import Group

SECTION = ModelSection(device="cpu")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tiny_model(tmp_path / "start", tied=request.param)


# --- plans ----------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.lists(st.integers(0, 1), min_size=1, max_size=8)),
    max_size=20,
)


@given(rows=ROWS, max_tokens=st.integers(1, 60), num_ranks=st.integers(1, 3))
def test_streams_lose_nothing_and_share_only_what_is_the_same(
    rows: list[tuple[str, list[int]]], max_tokens: int, num_ranks: int
) -> None:
    ids, groups = [tuple(ids) for _, ids in rows], [group for group, _ in rows]
    ranks = plan_streams(ids, groups, max_tokens=max_tokens, num_ranks=num_ranks)
    assert len({len(rank) for rank in ranks}) == 1
    packs = [pack for rank in ranks for stream in rank for pack in stream]
    assert sorted(i for pack in packs for i in pack.rows) == list(range(len(rows)))
    for pack in packs:
        assert len({ids[i][: pack.num_shared] for i in pack.rows}) == 1
        assert all(len(ids[i]) > pack.num_shared for i in pack.rows)
        assert not pack.num_shared or len({groups[i] for i in pack.rows}) == 1
    lengths = [len(row) for row in ids]
    for stream in (stream for rank in ranks for stream in rank):
        size = sum(pack_size(pack, lengths) for pack in stream)
        assert size <= max_tokens or len(stream) == len(stream[0].rows) == 1


def test_a_stream_by_hand() -> None:
    def row(number: int, ids: list[int], num_context: int) -> tuple[int, TrainingRow]:
        path = path_of([(False, ids[:num_context]), (True, ids[num_context:])])
        return number, TrainingRow(rollout_id=str(number), path=path, advantage=1.0)

    rows = [row(4, [9, 8], 1), row(5, [1, 2, 3, 4], 2), row(6, [1, 2, 5, 6, 7], 1)]
    packs = [Pack(rows=(1, 2), num_shared=2), Pack(rows=(0,))]
    batch = collate_stream(rows, packs, device=CPU)
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 9, 8]]
    assert batch.segments is not None
    assert batch.segments.positions_S.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1]
    assert batch.segments.query_ends.tolist() == [0, 2, 4, 7, 9]
    assert batch.segments.key_ends.tolist() == [0, 2, 6, 11, 13]
    assert batch.segments.key_places_K is not None
    assert batch.segments.key_places_K.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8]
    assert batch.target_ids_N.tolist() == [3, 4, 2, 5, 6, 7, 8]
    # 3 after the prefix's 2; 2 within the prefix; 5 after the prefix's 2 again.
    assert batch.predictor_N.tolist() == [1, 2, 0, 1, 4, 5, 7]
    assert batch.row_N.tolist() == [5, 5, 6, 6, 6, 6, 4]


def test_nothing_to_do_is_a_microbatch_that_trains_nothing(tmp_path: Path) -> None:
    row = TrainingRow(rollout_id="r", path=path_of([(False, [1]), (True, [2])]), advantage=1.0)
    (idle,) = packed_microbatches([(0, row)], max_tokens=10, device=CPU, rank=1, num_ranks=2)
    assert idle.num_trainable == 0
    policy = Policy.load(tiny_model(tmp_path / "m"), SECTION, layout="packed")
    assert len(policy.score(idle).logprobs_N) == 0


# --- the same as one by one -----------------------------------------------------


def backward(trainer: Trainer, groups: list[Group]) -> tuple[float, dict[str, torch.Tensor]]:
    rows = training_rows(groups, advantage=trainer.training.objective.advantage)
    (minibatch,) = trainer._minibatches(rows)
    loss, _ = trainer._backward(minibatch, trainer._before(minibatch, others=1))
    found = gradients(trainer.policy)
    trainer._optimizer.forget_gradients()
    return loss, found


def one_by_one(folder: Path, **section: Any) -> Trainer:
    alone = trainer_at(folder, microbatch_tokens=1, **section)
    alone.policy.shares_prefixes = False
    return alone


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        error = float((one[name] - other[name]).abs().max())
        assert error <= 1e-6, f"{name}: {error}"


@pytest.mark.parametrize("microbatch_tokens", [40, 1000])
@pytest.mark.parametrize("make_groups", [random_groups, sibling_groups])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "gspo", "dr_grpo"])
def test_packed_rows_give_the_loss_and_gradient_of_single_ones(
    folder: Path,
    make_groups: Callable[[int], list[Group]],
    loss: str,
    microbatch_tokens: int,
) -> None:
    groups = make_groups(6)
    section = {"loss": loss, "kl_coef": 0.1, "entropy_coef": 0.01}
    want_loss, want = backward(one_by_one(folder, **section), groups)
    packed = trainer_at(folder, layout="packed", microbatch_tokens=microbatch_tokens, **section)
    got_loss, got = backward(packed, groups)
    assert got_loss == pytest.approx(want_loss, rel=1e-5, abs=1e-7)
    assert_close(got, want)


def test_packing_leaves_no_padding_and_computes_common_beginnings_once(folder: Path) -> None:
    groups = sibling_groups(6)
    rows = list(enumerate(training_rows(groups)))
    (batch,) = packed_microbatches(rows, max_tokens=10**6, device=CPU)
    common = {g.group_id: 12 for g in groups}  # of each group, by the toy
    least = sum(row.num_ids for _, row in rows) - sum(
        common[g.group_id] * (len(g.rollouts) - 1) for g in groups
    )
    assert batch.ids_BT.numel() <= least
    (plain,) = packed_microbatches(rows, max_tokens=10**6, device=CPU, share_prefixes=False)
    assert plain.ids_BT.numel() == sum(row.num_ids for _, row in rows)


def test_no_row_sees_another(folder: Path) -> None:
    policy = Policy.load(folder, SECTION, layout="packed")
    rows = list(enumerate(training_rows(random_groups(3))))

    def scores(changed: list[tuple[int, TrainingRow]]) -> dict[int, torch.Tensor]:
        (batch,) = packed_microbatches(changed, max_tokens=10**6, device=CPU)
        with torch.no_grad():
            logprobs_N = policy.score(batch).logprobs_N
        return {n: logprobs_N[batch.row_N == n] for n, _ in changed}

    before = scores(rows)
    number, row = rows[2]
    other = dataclasses.replace(row.path, ids=tuple((i + 1) % VOCAB for i in row.path.ids))
    rows[2] = (number, dataclasses.replace(row, path=other))
    after = scores(rows)
    assert not torch.equal(before.pop(2), after.pop(2))
    assert_same_bits({str(n): v for n, v in before.items()}, {str(n): v for n, v in after.items()})


def test_a_packed_step_trains_as_a_padded_one(folder: Path) -> None:
    padded, packed = trainer_at(folder), trainer_at(folder, layout="packed")
    for seed in range(2):
        want = padded.train_step(sibling_groups(seed))
        assert packed.train_step(sibling_groups(seed)) == pytest.approx(want, rel=1e-3, abs=1e-5)


# --- ranks ----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("num_ranks", [3, 16])
def test_the_gradient_does_not_depend_on_how_rows_are_dealt_out(
    folder: Path, num_ranks: int, loss: str
) -> None:
    groups = [*random_groups(6), *sibling_groups(7, num_groups=1)]
    trainer = one_by_one(folder, loss=loss)
    want_loss, want = backward(trainer, groups)

    rows = training_rows(groups, advantage=trainer.training.objective.advantage)
    packed = Policy.load(folder, SECTION, layout="packed")
    scale = loss_scale(
        [row.rollout_id for row in rows],
        [row.num_trainable for row in rows],
        aggregation=trainer.training.objective.aggregation,
        fixed_length=SECTION.max_context,
    )

    def loss_on(batch: Microbatch) -> torch.Tensor:
        loss_N, _ = token_loss(
            batch, packed.score(batch), before=BeforeStep(), section=trainer.training, version=0
        )
        numbers = tuple(range(len(rows)))
        return scaled_sum(loss_N, batch.row_N, rows=numbers, scale=scale)

    total, sizes = 0.0, []
    for rank in range(num_ranks):
        batches = packed_microbatches(
            list(enumerate(rows)), max_tokens=60, device=CPU, rank=rank, num_ranks=num_ranks
        )
        sizes.append(len(batches))
        for batch in batches:
            if batch.num_trainable:
                part = loss_on(batch)
                part.backward()  # type: ignore[no-untyped-call]
                total += float(part.detach())
    assert len(set(sizes)) == 1
    assert total == pytest.approx(want_loss, rel=1e-5, abs=1e-7)
    assert_close(gradients(packed), want)


# --- attention ------------------------------------------------------------------


def stream_of(*parts: tuple[int, int | None]) -> Segments:
    """Segments of (length, index of the prefix)."""
    made: list[Segment] = []
    for length, prefix in parts:
        start = made[-1].start + made[-1].length if made else 0
        before = None if prefix is None else made[prefix]
        made.append(Segment(start=start, length=length, prefix=before))
    return Segments.of(tuple(made), device=CPU)


def dense_kernel(
    query_SHD: torch.Tensor,
    key_KHD: torch.Tensor,
    value_KHD: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the flash kernel computes, by its documentation, with a mask over everything."""
    assert window_size == (-1, 0)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    if enable_gqa:
        repeats = query_SHD.shape[1] // key_KHD.shape[1]
        key_KHD, value_KHD = (x.repeat_interleave(repeats, dim=1) for x in (key_KHD, value_KHD))
    scores_HSK = torch.einsum("shd,khd->hsk", query_SHD, key_KHD) * scale
    seen_SK = torch.zeros(scores_HSK.shape[1:], dtype=torch.bool)
    for i in range(len(query_ends) - 1):
        queries = range(int(query_ends[i]), int(query_ends[i + 1]))
        first, end = int(key_ends[i]), int(key_ends[i + 1])
        assert len(queries) <= longest_query
        assert end - first <= longest_key
        for place, query in enumerate(queries):  # the last query sees the last key
            seen_SK[query, first : end - len(queries) + place + 1] = True
    weights_HSK = scores_HSK.masked_fill(~seen_SK, -torch.inf).softmax(-1)
    return torch.einsum("hsk,khd->shd", weights_HSK, value_KHD)


@pytest.mark.parametrize(
    "segments",
    [
        stream_of((5, None)),
        stream_of((3, None), (1, None), (4, None)),
        stream_of((4, None), (2, 0), (3, 0), (2, None), (3, None), (1, 4)),
    ],
    ids=["one row", "rows", "prefixes"],
)
def test_one_kernel_computes_what_single_segments_do(segments: Segments) -> None:
    size = len(segments.positions_S)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(heads, size, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 2)
    )
    want = _one_by_one(query, key, value, segments, 0.3)
    got = _in_one_kernel(query, key, value, segments, 0.3, kernel=dense_kernel)
    torch.testing.assert_close(got, want)


def test_layers_with_windows_sinks_or_caps_are_refused() -> None:
    ones = torch.ones(1, 2, 3, 4)
    for more in ({"sliding_window": 4096}, {"s_aux": torch.ones(2)}, {"softcap": 30.0}):
        with pytest.raises(ConfigError, match="plain causal"):
            packed_attention(
                torch.nn.Identity(),
                ones,
                ones,
                ones,
                None,
                segments=stream_of((3, None)),
                **more,  # type: ignore[arg-type]
            )


def test_a_model_whose_rows_would_see_each_other_is_refused(folder: Path) -> None:
    class Blind(Qwen3Model):
        def forward(self, *args: Any, segments: Any = None, **kw: Any) -> Any:
            return super().forward(*args, **kw)

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.__class__ = Blind
    with pytest.raises(ConfigError, match="would see each other"):
        Policy(model, layout="packed")


def test_a_model_whose_rows_would_see_too_little_is_refused(folder: Path) -> None:
    class Restarting(Qwen3Model):
        def forward(self, *args: Any, segments: Segments | None = None, **kw: Any) -> Any:
            if segments is not None:  # as kernels that know of rows, but not of prefixes
                alone = [dataclasses.replace(s, prefix=None) for s in segments.segments]
                segments = Segments.of(tuple(alone), device=CPU)
            return super().forward(*args, segments=segments, **kw)

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.__class__ = Restarting
    with pytest.raises(ConfigError, match="not all of themselves"):
        Policy(model, layout="packed")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_rows_in_16_bits(folder: Path, dtype: Any) -> None:
    section = ModelSection(device="cpu", dtype=dtype)
    trainer = trainer_at(folder, model=section, layout="packed")
    want = trainer_at(folder, model=section).train_step(sibling_groups(0))
    got = trainer.train_step(sibling_groups(0))
    assert got["train/loss"] == pytest.approx(want["train/loss"], abs=0.02)


def test_what_is_saved_says_nothing_of_packing(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder, layout="packed")
    trainer.train_step(random_groups(0))
    trainer.save_weights(tmp_path / "weights")
    assert "palestra" not in json.dumps(json.loads((tmp_path / "weights/config.json").read_text()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    assert again.config._attn_implementation != "palestra_packed"


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_layers_computed_anew_give_the_same_gradient(folder: Path, layout: str) -> None:
    groups = sibling_groups(6)
    want_loss, want = backward(trainer_at(folder, layout=layout), groups)
    anew = trainer_at(folder, layout=layout, activation_checkpointing=True)
    layer = anew.policy.model.model.layers[0]
    passes: list[bool] = []
    hook = layer.mlp.register_forward_hook(lambda *_: passes.append(layer.mlp.training))
    got_loss, got = backward(anew, groups)
    hook.remove()
    assert got_loss == pytest.approx(want_loss, rel=1e-5, abs=1e-7)
    assert_close(got, want)
    (minibatch,) = anew._minibatches(training_rows(groups))
    assert passes == [False] * 2 * len(minibatch.batches), "once forward, once more backward"
