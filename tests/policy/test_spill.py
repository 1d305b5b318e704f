from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_parts import control, encode, tokenizer

from palestra.errors import GatewayError, HostError
from palestra.policy.gateway.history import Conversation
from palestra.policy.gateway.ledger import Ledger, Session, SessionLimits
from palestra.policy.gateway.packed import PackedTurns
from palestra.policy.gateway.spill import SpillFolder
from palestra.policy.rendering import ChatMLRenderer
from palestra.records import FinishReason, Generation, Message, Segment, Turn

END = control("<|im_end|>")


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[SpillFolder]:
    with SpillFolder(tmp_path) as folder:
        yield folder


def some_turns(seed: int) -> list[Turn]:
    draw = random.Random(seed)
    turns = []
    for index in range(draw.randrange(1, 12)):
        segments = []
        for version in range(draw.randrange(3)):
            n = draw.randrange(5)
            segments.append(
                Segment(
                    ids=tuple(draw.randrange(2**31) for _ in range(n)),
                    logprobs=tuple(-draw.expovariate(1) for _ in range(n)),
                    policy_version=version,
                )
            )
        turns.append(
            Turn(
                index=index,
                parent=draw.choice([None, *range(index)]),
                context_ids=tuple(draw.randrange(2**31) for _ in range(draw.randrange(9))),
                segments=tuple(segments),
                finish_reason=draw.choice(list(FinishReason)),
                temperature=draw.random(),
                duration_s=draw.random(),
                began_s=draw.choice([None, draw.random()]),
                cached_tokens=draw.choice([None, 7]),
                distortions=draw.choice([(), ("top_p", "min_p")]),
            )
        )
    return turns


@pytest.mark.parametrize("seed", range(10))
def test_turns_come_back_bit_for_bit(spill: SpillFolder, seed: int) -> None:
    turns = some_turns(seed)
    packed = PackedTurns()
    for turn in turns:
        packed.append(turn)
    spill.write("s", packed)
    for held in (packed, spill.read("s")):
        assert [held.turn(index) for index in range(len(held))] == turns
    spill.remove("s")
    assert not list(spill.folder.glob("s*"))
    spill.remove("s")


def say(session: Session, *texts: str) -> None:
    """One turn: the texts alternate between the user and the policy."""
    roles = ["user", "assistant"]
    messages = tuple(Message(role=roles[n % 2], content=t) for n, t in enumerate(texts[:-1]))
    ids = (*encode(texts[-1]), END)
    segment = Segment(ids=ids, logprobs=(-0.5,) * len(ids), policy_version=0)
    session.tree.append(
        session.tree.place(Conversation(messages=messages)),
        Generation(segments=(segment,), finish_reason=FinishReason.STOP),
        answer=Message(role="assistant", content=texts[-1]),
        temperature=1.0,
        duration_s=0.0,
    )


def small_ledger(spill: SpillFolder) -> Ledger:
    """Room for one session's turns in memory."""
    return Ledger(ChatMLRenderer(tokenizer()), max_memory_bytes=900, spill=spill)


def files(spill: SpillFolder) -> list[str]:
    return sorted(path.stem for path in spill.folder.glob("*.turns"))


def test_idle_sessions_go_to_the_disk_and_come_back(spill: SpillFolder) -> None:
    book = small_ledger(spill)
    first, second = book.open(SessionLimits()), book.open(SessionLimits())
    for session in (first, second):
        say(session, "u1", "a1")
        book.grown(session)
    assert files(spill) == [first.session_id]
    assert not first.tree.loaded
    assert book.memory_bytes < 900
    assert book.get(first.session_id) is first
    say(first, "u1", "a1", "u2", "a2")
    book.grown(first)
    assert not second.tree.loaded
    trace = book.take(first.session_id)
    assert [turn.parent for turn in trace.turns] == [None, 0]
    assert files(spill) == [second.session_id], "what was taken leaves no file"
    assert len(book.take(second.session_id).turns) == 1
    assert files(spill) == []
    assert book.memory_bytes == 0


def test_a_dropped_or_expired_session_leaves_no_file(spill: SpillFolder) -> None:
    now_s = 0.0
    book = Ledger(
        ChatMLRenderer(tokenizer()),
        max_memory_bytes=0,
        idle_timeout_s=10,
        spill=spill,
        clock=lambda: now_s,
    )
    sessions = [book.open(SessionLimits()) for _ in range(3)]
    for session in sessions:
        say(session, "u1", "a1")
        book.grown(session)
    assert len(files(spill)) == 2
    book.drop(sessions[0].session_id)
    now_s = 60.0
    assert book.expire() == 2
    assert files(spill) == []


async def test_a_session_at_work_stays_in_memory(spill: SpillFolder) -> None:
    book = small_ledger(spill)
    first, second = book.open(SessionLimits()), book.open(SessionLimits())
    say(first, "u1", "a1")
    book.grown(first)
    gate = asyncio.Event()
    work = asyncio.create_task(first.run(gate.wait()))
    await asyncio.sleep(0)
    say(second, "u1", "a1")
    book.grown(second)
    assert files(spill) == []
    gate.set()
    await work
    book.grown(second)
    assert files(spill) == [first.session_id]


def test_a_full_disk_loses_nothing(spill: SpillFolder, caplog: pytest.LogCaptureFixture) -> None:
    book = small_ledger(spill)
    first, second = book.open(SessionLimits()), book.open(SessionLimits())
    (spill.folder / f"{first.session_id}.unfinished").mkdir()
    with caplog.at_level(logging.WARNING):
        for session in (first, second):
            say(session, "u1", "a1")
            book.grown(session)
    assert "cannot write" in caplog.text
    assert len(book.take(first.session_id).turns) == 1


def test_a_damaged_file_is_said(spill: SpillFolder) -> None:
    book = small_ledger(spill)
    first, second = book.open(SessionLimits()), book.open(SessionLimits())
    for session in (first, second):
        say(session, "u1", "a1")
        book.grown(session)
    path = spill.folder / f"{first.session_id}.turns"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GatewayError, match="damaged"):
        book.take(first.session_id)
    path.unlink()
    with pytest.raises(GatewayError, match="cannot be read"):
        book.take(first.session_id)
    book.drop(first.session_id)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from palestra.policy.gateway.spill import SpillFolder;"
        "print(SpillFolder(Path(sys.argv[1])).folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    left = Path(done.stdout.strip())
    assert left.is_dir(), done.stderr
    with SpillFolder(tmp_path) as one, SpillFolder(tmp_path) as two:
        assert not left.exists()
        assert one.folder.exists(), "a live one is left alone"
        assert two.folder.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_made_is_a_host_error() -> None:
    with pytest.raises(HostError, match="cannot keep the ledger's files"):
        SpillFolder(Path("/proc/self/palestra"))
