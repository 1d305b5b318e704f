from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import assert_same_bits, random_groups, tiny_model, trainer_at, weights
from transformers import AutoModelForCausalLM

from palestra.config import ModelSection
from palestra.errors import CheckpointError
from palestra.events import MemoryEvents
from palestra.learning.best import BestCheckpoints
from palestra.learning.training import CheckpointStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


# --- resume ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": ModelSection(device="cpu", dtype="bfloat16")},
        {"kl_coef": 0.1, "minibatches": 2, "lr_decay": "cosine", "steps": 5},
    ],
    ids=["plain", "bfloat16", "kl-minibatches-cosine"],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    unbroken = trainer_at(folder, seed=1, **options)
    for step in range(2):
        unbroken.train_step(random_groups(step))
    store = CheckpointStore(tmp_path / "checkpoints", 3)
    store.save(unbroken.version, unbroken, {"position": 17})
    resumed = trainer_at(folder, seed=99, **options)
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, resumed)
    assert resumed.version == 2
    assert checkpoint.progress == {"position": 17}
    for step in (2, 3):
        assert unbroken.train_step(random_groups(step)) == resumed.train_step(random_groups(step))
        assert_same_bits(weights(unbroken), weights(resumed))


def test_a_checkpoint_before_the_first_step_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(0, trainer, {})
    fresh = trainer_at(folder)
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, fresh)
    assert trainer.train_step(random_groups(0)) == fresh.train_step(random_groups(0))
    assert_same_bits(weights(trainer), weights(fresh))


def test_the_model_folder_is_for_anyone(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder)
    trainer.train_step(random_groups(0))
    saved = CheckpointStore(tmp_path / "checkpoints", 1).save(1, trainer, {})
    assert saved == tmp_path / "checkpoints" / "1"
    loaded = AutoModelForCausalLM.from_pretrained(saved / "model")
    assert_same_bits(dict(loaded.state_dict()), weights(trainer))
    assert (saved / "model" / "tokenizer.json").exists()


def test_skipped_steps_are_still_counted_after_a_resume(folder: Path) -> None:
    trainer, resumed = trainer_at(folder), trainer_at(folder)
    state = trainer.state_dict() | {"num_skipped": 4}
    trainer.load_state_dict(state)
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.train_step(random_groups(0))["train/nonfinite_steps"] == 4.0


@pytest.mark.parametrize("damage", ["step", "optimizer", "extra"])
def test_a_state_with_wrong_keys_is_refused(folder: Path, damage: str) -> None:
    trainer = trainer_at(folder)
    state = trainer.state_dict()
    if damage == "extra":
        state["surprise"] = 1
    else:
        del state[damage]
    with pytest.raises(CheckpointError, match="surprise" if damage == "extra" else damage):
        trainer.load_state_dict(state)


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(0, trainer_at(tiny_model(tmp_path / "untied", tied=False)), {})
    checkpoint = store.latest()
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match="other parameters"):
        store.load(checkpoint, trainer_at(folder))
    trainer = trainer_at(folder, model=ModelSection(device="cpu", dtype="bfloat16"))
    store.save(1, trainer_at(folder), {})
    checkpoint = store.latest()
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match="another dtype"):
        store.load(checkpoint, trainer)


# --- which checkpoint -----------------------------------------------------------


def test_old_checkpoints_are_pruned_after_the_new_one_is_safe(folder: Path, tmp_path: Path) -> None:
    trainer, events = trainer_at(folder), MemoryEvents()
    store = CheckpointStore(tmp_path / "checkpoints", 2, events=events)
    for step in (1, 2, 9, 10):
        store.save(step, trainer, {"step": step})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "9"]
    assert [e.fields["step"] for e in events.of_kind("checkpoint.pruned")] == [1, 2]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 10, "steps are numbers, not words"


def test_the_best_checkpoints_stay_beside_the_newest(folder: Path, tmp_path: Path) -> None:
    trainer, checkpoints = trainer_at(folder), tmp_path / "checkpoints"
    best = BestCheckpoints(checkpoints, metric="m", count=2)
    store = CheckpointStore(checkpoints, 1, best=best)
    for step, score in ((0, 0.2), (1, 0.6), (2, 0.1), (3, 0.3), (4, 0.2)):
        store.save(step, trainer, {})
        best.rate(step, {"m": score})
    store.save(5, trainer, {})
    assert store.steps() == [1, 3, 5]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 5, "a run goes on from the newest, not from the best"
    found = store.at(3)
    assert found is not None
    assert found.step == 3
    assert store.at(4) is None


def test_the_same_step_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", 2)
    for attempt in range(2):
        store.save(4, trainer_at(folder), {"attempt": attempt})
    latest = store.latest()
    assert latest is not None
    assert latest.progress == {"attempt": 1}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", 1).latest() is None


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "no manifest": lambda c: (c / "manifest.json").unlink(),
    "no state": lambda c: (c / "trainer.pt").unlink(),
    "torn weights": lambda c: _truncate(c / "model" / "model.safetensors"),
    "torn state": lambda c: _truncate(c / "trainer.pt"),
    "torn manifest": lambda c: _truncate(c / "manifest.json"),
    "empty": lambda c: [path.unlink() for path in c.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_torn_checkpoints_are_ignored_and_it_is_said(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    trainer, events = trainer_at(folder), MemoryEvents()
    store = CheckpointStore(tmp_path / "checkpoints", 3, events=events)
    store.save(1, trainer, {})
    DAMAGE[damage](store.save(2, trainer, {}))
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1
    (ignored,) = events.of_kind("checkpoint.ignored")
    assert ignored.fields["path"].endswith("checkpoints/2")
    assert ignored.fields["reason"]


def test_unfinished_folders_are_ignored_and_later_removed(folder: Path, tmp_path: Path) -> None:
    trainer, events = trainer_at(folder), MemoryEvents()
    store = CheckpointStore(tmp_path / "checkpoints", 3, events=events)
    unfinished = tmp_path / "checkpoints" / ".tmp-7-deadbeef"
    unfinished.mkdir(parents=True)
    (unfinished / "trainer.pt").write_bytes(b"half")
    assert store.latest() is None
    assert events.of_kind("checkpoint.ignored")[0].fields["path"] == str(unfinished)
    store.save(1, trainer, {})
    assert not unfinished.exists()


# --- trouble with the disk ------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        pytest.skip("a small disk needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=20)


def test_a_full_disk_names_the_path_and_spares_the_last_checkpoint(
    folder: Path, small_disk: Path
) -> None:
    trainer = trainer_at(folder)
    trainer.train_step(random_groups(0))
    store = CheckpointStore(small_disk / "checkpoints", 1)
    store.save(1, trainer, {})
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoints/2.*free some space"):
        store.save(2, trainer, {})
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["1"], "no debris"
    latest = store.latest()
    assert latest is not None
    store.load(latest, trainer_at(folder))


def test_whatever_file_fails_it_is_a_checkpoint_error(folder: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE fails the write of the weights (1,000 bytes) or of the state (30,000)."""
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from training_toys import random_groups, trainer_at
from palestra.errors import CheckpointError
from palestra.learning.training import CheckpointStore
trainer = trainer_at(Path({str(folder)!r}))
trainer.train_step(random_groups(0))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (1_000, 30_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        CheckpointStore(Path({str(tmp_path / "checkpoints")!r}), 1).save(limit, trainer, {{}})
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False
    )
    for limit in (1_000, 30_000):
        assert f"cannot write {tmp_path}/checkpoints/{limit}: " in done.stdout, done.stderr
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CheckpointStore(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(CheckpointError, match="cannot write"):
        store.save(1, trainer_at(folder), {})


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from training_toys import random_groups, trainer_at
from palestra.learning.training import CheckpointStore
trainer = trainer_at(Path({str(folder)!r}))
store = CheckpointStore(Path({str(tmp_path / "checkpoints")!r}), 2)
for step in range(1, 10_000):
    trainer.train_step(random_groups(step % 7))
    store.save(step, trainer, {{"step": step}})
    print(step, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            said = [int(child.stdout.readline()) for _ in range(3)]
            time.sleep(random.Random(os.getpid()).uniform(0, 0.1))
        finally:
            child.send_signal(signal.SIGKILL)
        said += [int(line) for line in child.stdout.read().split()]
    store = CheckpointStore(tmp_path / "checkpoints", 2)
    latest = store.latest()
    assert latest is not None
    assert latest.step >= said[-1], "what was reported as saved is there"
    assert latest.progress == {"step": latest.step}
    trainer = trainer_at(folder)
    store.load(latest, trainer)
    assert trainer.version == latest.step
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())
