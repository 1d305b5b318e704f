"""Publishing weights to the local engine, also in the middle of a generation."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from engine_toys import engine_on, prompt_of, segment_error, started, toy_model, worst_error
from safetensors.torch import load_file, save_file

from palestra.errors import ConfigError, EngineError
from palestra.policy.engines.local import LocalEngine
from palestra.records import SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("new"), seed=1)


async def test_running_sequences_go_on_under_the_new_weights(old: Path, new: Path) -> None:
    prompts = [prompt_of(n) for n in (3, 60, 130)]
    sampling = SamplingParams(temperature=0.9, max_new_tokens=370, seed=5)
    async with engine_on(old) as engine:
        running = await started(engine, *((p, sampling) for p in prompts))
        # When this short one is done, the others have sampled something too.
        await engine.generate(prompt_of(1), SamplingParams(max_new_tokens=10))
        await engine.publish(new, 3)
        assert engine.version == 3
        answers = await asyncio.gather(*running)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert [s.policy_version for s in answer.segments] == [0, 3]
        first, second = answer.segments
        assert len(answer.ids) == 370
        assert segment_error(old, prompt, first, sampling) < 1e-5
        assert segment_error(new, [*prompt, *first.ids], second, sampling) < 1e-5


async def test_cached_prefixes_do_not_outlive_their_weights(old: Path, new: Path) -> None:
    prompt, sampling = prompt_of(80), SamplingParams(max_new_tokens=20, seed=0)
    async with engine_on(old) as engine:
        await engine.generate(prompt, sampling)
        await engine.publish(new, 1)
        answer = await engine.generate(prompt, sampling)
    assert [s.policy_version for s in answer.segments] == [1]
    assert worst_error(new, prompt, answer, sampling) < 1e-5


async def test_a_version_must_rise(old: Path, new: Path) -> None:
    async with engine_on(old, version=4) as engine:
        assert engine.version == 4
        for version in (3, 4):
            with pytest.raises(EngineError, match="does not rise"):
                await engine.publish(new, version)
        await engine.publish(new, 5)
        raced = await asyncio.gather(
            engine.publish(old, 6), engine.publish(new, 6), return_exceptions=True
        )
        assert sorted(type(r) for r in raced if r is not None) == [EngineError]
        assert engine.version == 6


async def test_weights_of_several_files_and_of_another_type_fit(old: Path, tmp_path: Path) -> None:
    sharded = toy_model(tmp_path / "sharded", seed=2, shard="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    async with engine_on(old) as engine:
        await engine.publish(sharded, 1)
        answer = await engine.generate(prompt_of(9), GREEDY)
        assert worst_error(sharded, prompt_of(9), answer, GREEDY) < 1e-5
        single = toy_model(tmp_path / "single", seed=2)
        _change(single, lambda weights: {k: v.bfloat16() for k, v in weights.items()})
        await engine.publish(single, 2)
        answer = await engine.generate(prompt_of(9), GREEDY)
        assert worst_error(single, prompt_of(9), answer, GREEDY) < 1e-5


async def test_untied_models_serve_and_publish(tmp_path: Path) -> None:
    first, second = (toy_model(tmp_path / f"{i}", seed=i, tied=False) for i in (0, 1))
    async with engine_on(first) as engine:
        answer = await engine.generate(prompt_of(9), GREEDY)
        assert worst_error(first, prompt_of(9), answer, GREEDY) < 1e-5
        await engine.publish(second, 1)
        answer = await engine.generate(prompt_of(9), GREEDY)
        assert worst_error(second, prompt_of(9), answer, GREEDY) < 1e-5


def _change(folder: Path, change: object) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file(change(weights), path)  # type: ignore[operator]


def _no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _no_tensor(folder: Path) -> None:
    _change(folder, lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"})


def _foreign_tensor(folder: Path) -> None:
    _change(folder, lambda w: {**w, "model.layers.9.weight": torch.zeros(1)})


def _wrong_shape(folder: Path) -> None:
    # The last in order, so that all others have been read when it shows.
    _change(folder, lambda w: {**w, "model.norm.weight": torch.zeros(3)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_file, "cannot read weights"),
        (_cut_file, "cannot read weights"),
        (_no_tensor, r"1 weights missing, first model\.norm\.weight"),
        (_foreign_tensor, r"1 unknown, first model\.layers\.9\.weight"),
        (_wrong_shape, r"shape \(3,\), the model's is \(32,\)"),
    ],
)
async def test_bad_weights_leave_the_old_ones_in_force(
    old: Path, new: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    bad = shutil.copytree(new, tmp_path / "bad")
    spoil(bad)  # type: ignore[operator]
    async with engine_on(old) as engine:
        before = await engine.generate(prompt_of(20), GREEDY)
        with pytest.raises(EngineError, match=message):
            await engine.publish(bad, 1)
        assert engine.version == 0
        await engine.health()
        after = await engine.generate(prompt_of(20), GREEDY)
        assert (before.ids, before.logprobs) == (after.ids, pytest.approx(after.logprobs))
        await engine.publish(new, 1)


@pytest.mark.parametrize("spoil", [_no_file, _cut_file, _no_tensor, _wrong_shape])
async def test_a_broken_model_folder_is_refused_at_the_start(
    old: Path, tmp_path: Path, spoil: object
) -> None:
    bad = shutil.copytree(old, tmp_path / "bad")
    spoil(bad)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="cannot load the model"):
        await engine_on(bad).__aenter__()


async def test_a_missing_folder_and_too_long_a_context_are_refused(
    old: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        await engine_on(tmp_path / "nowhere").__aenter__()
    with pytest.raises(ConfigError, match="knows 1024 positions"):
        await engine_on(old, max_context=2048).__aenter__()


def test_an_unknown_device_is_refused(old: Path) -> None:
    from palestra.config import EngineSection

    with pytest.raises(ConfigError, match="not a device"):
        LocalEngine(old, section=EngineSection(), max_context=8, device="abacus")
