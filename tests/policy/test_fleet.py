"""A fleet on servers of SGLang's shapes over HTTP: routing, publishing, and lost servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fleet_parts import SAMPLING, assert_sampled, fleet_of, fronts, until, weights

from palestra.errors import ContextOverflow, EngineError
from palestra.events import MemoryEvents
from palestra.policy.engines.affinity import Affinity
from palestra.policy.engines.fleet import Fleet
from palestra.policy.engines.sglang_front import RunningFront
from palestra.records import Generation


def asked(running: RunningFront) -> list[list[int]]:
    return [body["input_ids"] for body in running.front.requests]


async def converse(fleet: Fleet, start: int, turns: int = 4) -> list[tuple[list[int], Generation]]:
    ids, turns_of = [start] * 80, []
    for turn in range(turns):
        generation = await fleet.generate(ids, SAMPLING)
        turns_of.append((list(ids), generation))
        ids = [*ids, *generation.ids, 200 + turn, 201, 202]
    return turns_of


async def test_a_conversation_stays_where_it_was_and_others_spread(tmp_path: Path) -> None:
    start = weights(tmp_path, 0)
    async with (
        fronts(start, 3, pace_s=0.01, chunk_ids=8) as running,
        fleet_of(running, start, MemoryEvents()) as fleet,
    ):
        talks = await asyncio.gather(*(converse(fleet, n) for n in range(9)))
    for turn in (turn for talk in talks for turn in talk):
        assert_sampled(*turn, {0: start})
    places = [{prompt[0] for prompt in asked(r)} for r in running]
    assert sorted(n for place in places for n in place) == list(range(9)), "none went elsewhere"
    assert all(place for place in places), f"a server had nothing to do: {places}"


async def test_a_crowded_server_lets_conversations_go(tmp_path: Path) -> None:
    start = weights(tmp_path, 0)
    async with (
        fronts(start, 2, pace_s=0.05, chunk_ids=8) as running,
        fleet_of(running, start, MemoryEvents()) as fleet,
    ):
        # All of them come to the same ids, so they are one conversation, and at one server.
        generation = await fleet.generate([1, 2], SAMPLING)
        ids = [1, 2, *generation.ids, 3]
        many = [asyncio.create_task(fleet.generate([*ids, n], SAMPLING)) for n in range(24)]
        await until(lambda: sum(len(asked(r)) for r in running) == 25)
        await asyncio.gather(*many)
    few, most = sorted(len(asked(r)) for r in running)
    assert 4 <= few < most, (few, most)


async def test_a_running_answer_goes_on_under_new_weights(tmp_path: Path) -> None:
    folders = {n: weights(tmp_path, n) for n in (0, 5)}
    events = MemoryEvents()
    async with (
        fronts(folders[0], 2, pace_s=0.02, chunk_ids=2) as running,
        fleet_of(running, folders[0], events) as fleet,
    ):
        talking = [asyncio.create_task(converse(fleet, n)) for n in range(4)]
        await until(lambda: all(len(r.front.requests) >= 2 for r in running))
        await asyncio.sleep(0.1)
        await fleet.publish(folders[5], 5)
        assert fleet.version == 5
        talks = await asyncio.gather(*talking)
    turns = [turn for talk in talks for turn in talk]
    for turn in turns:
        assert_sampled(*turn, folders)
    assert any(len(generation.segments) == 2 for _, generation in turns)
    assert all(talk[-1][1].segments[-1].policy_version == 5 for talk in talks)
    (published,) = events.of_kind("engine.published")
    assert set(published.fields["pauses_s"]) == {r.url for r in running}
    assert published.fields["seconds"] > 0
    assert not events.of_kind("engine.down")


async def test_in_turn_there_is_always_a_server_that_samples(tmp_path: Path) -> None:
    folders = {n: weights(tmp_path, n) for n in (0, 1)}
    async with (
        fronts(folders[0], 2) as running,
        fleet_of(running, folders[0], MemoryEvents(), publishing="in_turn") as fleet,
    ):
        lowest = 2

        async def watch() -> None:
            nonlocal lowest
            while True:
                lowest = min(lowest, sum(m.state == "serving" for m in fleet.members))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await fleet.publish(folders[1], 1)
        watching.cancel()
        assert lowest == 1
        assert [member.version for member in fleet.members] == [1, 1]


async def test_weights_that_nobody_takes_leave_the_old_ones(tmp_path: Path) -> None:
    start = weights(tmp_path, 0)
    events = MemoryEvents()
    async with (
        fronts(start, 2) as running,
        fleet_of(running, start, events) as fleet,
    ):
        with pytest.raises(EngineError, match="there are no weights in"):
            await fleet.publish(tmp_path, 3)
        assert fleet.version == 0
        with pytest.raises(EngineError, match="does not rise"):
            await fleet.publish(start, 0)
        generation = await fleet.generate([1, 2], SAMPLING)
    assert_sampled([1, 2], generation, {0: start})
    assert len(events.of_kind("engine.down")) == 2, "both were given the old ones again"


async def test_weights_that_are_not_ours_are_never_taken_for_ours(tmp_path: Path) -> None:
    start, foreign = weights(tmp_path, 0), weights(tmp_path, 9)
    events = MemoryEvents()
    async with (
        fronts(start, 1) as running,
        fleet_of(running, start, events) as fleet,
    ):
        # Somebody else publishes here too, or the server was restarted by its owner.
        await running[0].front.update_weights({"model_path": str(foreign), "weight_version": "0"})
        generation = await fleet.generate([1, 2], SAMPLING)
    assert_sampled([1, 2], generation, {0: start})
    (down,) = events.of_kind("engine.down")
    assert "not those given to it" in down.fields["reason"]
    assert events.of_kind("engine.replayed")


async def test_a_dead_server_s_conversations_move(tmp_path: Path) -> None:
    start = weights(tmp_path, 0)
    events = MemoryEvents()
    async with (
        fronts(start, 1, pace_s=0.02, chunk_ids=4) as staying,
        fronts(start, 1, pace_s=0.02, chunk_ids=4) as leaving,
        fleet_of([*staying, *leaving], start, events) as fleet,
    ):
        talking = [asyncio.create_task(converse(fleet, n)) for n in range(4)]
        await until(lambda: len(leaving[0].front.requests) >= 2)
        leaving[0].stop()
        talks = await asyncio.gather(*talking)
        down = [m.url for m in fleet.members if m.state == "down"]
        assert down == [leaving[0].url]
        await fleet.health()
    for turn in (turn for talk in talks for turn in talk):
        assert_sampled(*turn, {0: start})
    assert {prompt[0] for prompt in asked(staying[0])} == {0, 1, 2, 3}


async def test_when_all_are_gone_that_is_said(tmp_path: Path) -> None:
    start = weights(tmp_path, 0)
    async with (
        fronts(start, 1) as running,
        fleet_of(running, start, MemoryEvents(), outage_s=0.2) as fleet,
    ):
        running[0].stop()
        with pytest.raises(EngineError, match=r"no engine serves; http://127.*reached"):
            await fleet.generate([1], SAMPLING)
        with pytest.raises(EngineError, match="no engine serves"):
            await fleet.health()
        with pytest.raises(ContextOverflow):
            await fleet.generate([1] * 2000, SAMPLING)


def test_conversations_are_known_by_what_they_came_to() -> None:
    places = Affinity(max_conversations=3)
    first, second = list(range(100)), [*range(99), 500]
    places.note(first[:50], first, "a")
    places.note(second[:50], second, "b")
    assert places.find([*first, 1, 2]) == "a"
    assert places.find([*second, 1]) == "b"
    assert places.find(first[:50]) is None, "it has not come that far"
    longer = [*first, 1, 2, 3]
    places.note([*first, 1], longer, "c")
    assert (places.find(longer), len(places)) == ("c", 2)
    places.note([5], [5, 6], "d")
    places.note([6], [6, 6], "d")
    assert (places.find(second), len(places)) == (None, 3)
    places.leave("d")
    assert (places.find([5, 6, 7]), places.find(longer), len(places)) == (None, "c", 1)
