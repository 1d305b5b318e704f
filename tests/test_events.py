from __future__ import annotations

import threading
from pathlib import Path

from palestra.events import EventLog, MemoryEvents, read_events


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    with EventLog(path) as log:
        log.emit("step", step=1, loss=0.5)
        log.emit("done")
    kinds = [(event.kind, event.fields) for event in read_events(path)]
    assert kinds == [("step", {"step": 1, "loss": 0.5}), ("done", {})]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit("a")
    with path.open("ab") as file:
        file.write(b'{"kind": "torn", "time')
    with EventLog(path) as log:
        log.emit("b")
    assert [event.kind for event in read_events(path)] == ["a", "b"]


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:

        def write(worker: int) -> None:
            for _ in range(200):
                log.emit("tick", worker=worker, padding="x" * 500)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = list(read_events(path))
    assert len(events) == 800
    assert all(len(event.fields["padding"]) == 500 for event in events)


def test_the_memory_sink_sorts_by_kind() -> None:
    sink = MemoryEvents()
    sink.emit("a", n=1)
    sink.emit("b")
    sink.emit("a", n=2)
    assert [event.fields["n"] for event in sink.of_kind("a")] == [1, 2]
