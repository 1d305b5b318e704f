"""Work that is asked for again: once per key, bounded memory, cancelled when unwanted."""

from __future__ import annotations

import asyncio

import pytest

from palestra.environment.server.repeats import KeyReused, Repeats, Stopped


class Counting:
    """Work that counts how often it began and how often it was cancelled."""

    def __init__(self, answer: bytes = b"x", *, seconds: float = 0.0) -> None:
        self.began = 0
        self.cancelled = 0
        self._answer = answer
        self._seconds = seconds

    async def __call__(self) -> bytes:
        self.began += 1
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._answer


async def test_a_key_stands_for_one_subject() -> None:
    repeats, work = Repeats(), Counting()
    await repeats.run("k", "a", work)
    with pytest.raises(KeyReused):
        await repeats.run("k", "b", work)
    assert await repeats.run("k", "a", work) == b"x"
    assert work.began == 1


async def test_the_oldest_answers_go_first_when_memory_is_full() -> None:
    repeats, work = Repeats(kept_bytes=250), Counting(b"x" * 100)
    for key in ("a", "b", "c"):
        await repeats.run(key, "s", work)
    await repeats.run("c", "s", work)
    await repeats.run("b", "s", work)
    assert work.began == 3
    await repeats.run("a", "s", work)
    assert work.began == 4


async def test_an_answer_larger_than_all_memory_is_given_but_not_kept() -> None:
    repeats, work = Repeats(kept_bytes=10), Counting(b"x" * 100)
    assert len(await repeats.run("k", "s", work)) == 100
    await repeats.run("k", "s", work)
    assert work.began == 2


async def test_a_failure_is_no_answer() -> None:
    calls = 0

    async def fails() -> bytes:
        nonlocal calls
        calls += 1
        raise ValueError("once more")

    repeats = Repeats()
    for _ in range(2):
        with pytest.raises(ValueError, match="once more"):
            await repeats.run("k", "s", fails)
    assert calls == 2


async def test_one_of_two_that_leave_does_not_end_the_work() -> None:
    repeats, work = Repeats(grace_s=0.05), Counting(seconds=0.3)
    first, second = (asyncio.create_task(repeats.run("k", "s", work)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == b"x"
    assert (work.began, work.cancelled) == (1, 0)


async def test_after_the_grace_the_key_starts_anew() -> None:
    repeats, work = Repeats(grace_s=0.05), Counting(seconds=0.5)
    first = asyncio.create_task(repeats.run("k", "s", work))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0.2)
    assert work.cancelled == 1
    assert await repeats.run("k", "s", work) == b"x"
    assert work.began == 2


async def test_closing_tells_those_who_wait() -> None:
    repeats, work = Repeats(), Counting(seconds=60)
    waiting = [asyncio.create_task(repeats.run(key, "s", work)) for key in ("k", "k", None)]
    await asyncio.sleep(0.05)
    await repeats.aclose()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(e) for e in ended] == [Stopped] * 3
    assert (work.began, work.cancelled) == (2, 2)
