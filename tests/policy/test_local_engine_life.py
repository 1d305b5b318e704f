"""Cancelling, closing and breaking the local engine; and the bound of its prefix cache."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_toys import engine_on, prompt_of, started, toy_model, worst_error
from safetensors.torch import load_file, save_file

from palestra.errors import EngineError
from palestra.policy.engines.prefix import PrefixCache
from palestra.records import SamplingParams

LONG = SamplingParams(max_new_tokens=400, seed=0)
SHORT = SamplingParams(max_new_tokens=5, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("toy"))


def _nan_model(folder: Path) -> Path:
    """Weights of the right shape that give no numbers: the way a model really breaks."""
    toy_model(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file({**weights, "model.norm.weight": torch.full((32,), torch.nan)}, path)
    return folder


async def test_cancelling_frees_the_place(folder: Path) -> None:
    async with engine_on(folder, max_batch=1) as engine:
        running, waiting, third = await started(
            engine, (prompt_of(10), LONG), (prompt_of(11), LONG), (prompt_of(12), SHORT)
        )
        for _ in range(3):
            await engine.health()  # answered between two steps
        running.cancel()
        waiting.cancel()
        answer = await asyncio.wait_for(third, 30)
        assert engine.num_sampled_ids < LONG.max_new_tokens, "the cancelled one went on"
        assert worst_error(folder, prompt_of(12), answer, SHORT) < 1e-5
        assert running.cancelled()
        assert waiting.cancelled()


async def test_cancelling_one_leaves_its_neighbours_as_they_are(folder: Path) -> None:
    draw = random.Random(1)
    async with engine_on(folder, max_batch=6) as engine:
        jobs = [
            (prompt_of(n), SamplingParams(max_new_tokens=draw.randrange(5, 80), seed=n))
            for n in range(1, 40)
        ]
        tasks = [asyncio.create_task(engine.generate(p, s)) for p, s in jobs]
        for task in draw.sample(tasks, 15):
            await asyncio.sleep(0.004)
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    kept = 0
    for (prompt, sampling), answer in zip(jobs, answers, strict=True):
        if not isinstance(answer, BaseException):
            kept += 1
            assert worst_error(folder, prompt, answer, sampling) < 1e-5
    assert kept >= 24


async def test_a_broken_engine_answers_everyone_and_says_so(folder: Path, tmp_path: Path) -> None:
    bad = _nan_model(tmp_path / "nan")
    async with engine_on(folder, max_batch=2) as engine:
        await engine.health()
        tasks = await started(engine, *((prompt_of(n), LONG) for n in range(1, 9)))
        await engine.publish(bad, 1)
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        failed = [a for a in answers if isinstance(a, EngineError)]
        assert failed, "some were still running"
        assert "no finite logits" in str(failed[0])
        for call in (
            engine.health(),
            engine.generate([1], SHORT),
            engine.publish(folder, 2),
        ):
            with pytest.raises(EngineError, match="no finite logits"):
                await asyncio.wait_for(call, 30)


async def test_closing_answers_who_waits_and_ends_the_thread(folder: Path) -> None:
    engine = engine_on(folder, max_batch=1)
    async with engine:
        tasks = await started(engine, *((prompt_of(n), LONG) for n in (1, 2, 3)))
        await asyncio.sleep(0.01)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(a, EngineError) for a in answers), answers
    assert not [t for t in threading.enumerate() if t.name.startswith("palestra-")]
    await engine.aclose()
    for call in (engine.health(), engine.generate([1], SHORT), engine.publish(folder, 2)):
        with pytest.raises(EngineError, match="not running"):
            await call


async def test_the_prefix_cache_stays_in_its_bounds(folder: Path) -> None:
    async with engine_on(folder, prefix_cache_ids=300) as engine:
        prefixes = engine._running.batch.prefixes  # type: ignore[union-attr]
        for i in range(6):
            await asyncio.gather(
                *(engine.generate(prompt_of(n, seed=i), SHORT) for n in (20, 60, 90, 310))
            )
            assert 0 < prefixes.num_ids <= 300
    async with engine_on(folder, prefix_cache_ids=0) as engine:
        await engine.generate(prompt_of(20), SHORT)
        before = engine.num_prefilled_ids
        await engine.generate(prompt_of(20), SHORT)
        assert engine.num_prefilled_ids == before + 19


def _ids(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def _kv(length: int, mark: float) -> torch.Tensor:
    return torch.full((2, 1, 1, length, 1), mark)


def test_prefixes_are_found_extended_and_forgotten_oldest_first() -> None:
    cache = PrefixCache(8)
    cache.store(_ids(1, 2, 3), _kv(3, 1.0))
    cache.store(_ids(7, 8, 9), _kv(3, 2.0))
    length, kv = cache.longest(_ids(1, 2, 5, 6))
    assert kv is not None
    assert (length, kv.shape[3], float(kv[0, 0, 0, 0, 0])) == (2, 2, 1.0)
    assert cache.longest(_ids(5)) == (0, None)
    assert not cache.wants(_ids(1, 2)), "it is part of what is there"
    assert not cache.wants(_ids(*range(9))), "it can never fit"
    assert cache.wants(_ids(1, 2, 3, 4))
    cache.store(_ids(1, 2, 3, 4), _kv(4, 3.0))
    assert cache.num_ids == 7, "the shorter path went with its extension"
    cache.longest(_ids(7))  # now used more recently than the other
    cache.store(_ids(4, 4), _kv(2, 4.0))
    assert cache.longest(_ids(1, 2))[0] == 0, "the oldest goes"
    assert cache.longest(_ids(7, 8))[0] == 2
    cache.clear()
    assert (cache.num_ids, cache.longest(_ids(7))) == (0, (0, None))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from palestra.errors import MissingExtra
from palestra.policy import engines, tiny
for use in (lambda: engines.LocalEngine, lambda: tiny.make_tiny_model(Path("/x"), texts=["a"])):
    try:
        use()
    except MissingExtra as error:
        print(error)
"""


def test_without_the_extra_the_error_names_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    assert all("'torch'" in line and "palestra[train]" in line for line in lines), lines
