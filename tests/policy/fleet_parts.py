"""What the tests of fleets share: weights that show in what they sample, and conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from palestra.events import MemoryEvents
from palestra.policy.engines.fleet import Fleet, Place
from palestra.policy.engines.hashed import HashedEngine, digest_of, hashed_id
from palestra.policy.engines.host import Elsewhere
from palestra.policy.engines.sglang import SGLangServer
from palestra.policy.engines.sglang_front import RunningFront, running_front
from palestra.records import Generation, SamplingParams

STOP = 7
SAMPLING = SamplingParams(max_new_tokens=40, stop_token_ids=(STOP,))


def weights(root: Path, number: int) -> Path:
    """A folder of weights unlike any other's."""
    folder = root / f"weights-{number}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights %d" % number)
    return folder


def assert_sampled(
    prompt: list[int],
    generation: Generation,
    folders: dict[int, Path],
    stop_ids: tuple[int, ...] = (STOP,),
) -> None:
    """Each id and logprob is what the weights of its version sample."""
    ids = list(prompt)
    for segment in generation.segments:
        digest = digest_of(folders[segment.policy_version])
        for token, logprob in zip(segment.ids, segment.logprobs, strict=True):
            assert (token, logprob) == hashed_id(digest, ids, stop_ids), (
                f"id {len(ids)} is not of version {segment.policy_version}"
            )
            ids.append(token)


@asynccontextmanager
async def fronts(folder: Path, number: int, **options: object) -> AsyncIterator[list[RunningFront]]:
    """Servers of SGLang's shapes in this process, each on weights of its own life."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_front(HashedEngine(folder), **options))
            for _ in range(number)
        ]


def fleet_of(
    running: list[RunningFront], folder: Path, events: MemoryEvents, **options: object
) -> Fleet:
    places = [Place(server=SGLangServer(r.url), host=Elsewhere()) for r in running]
    return Fleet(places, weights=folder, max_context=2000, events=events, **options)  # type: ignore[arg-type]


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.02)):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")
