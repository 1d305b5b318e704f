from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from palestra.errors import HostError
from palestra.run.places import images_folder, state_folder


def test_named_places_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALESTRA_IMAGES", str(tmp_path / "i"))
    monkeypatch.setenv("PALESTRA_STATE", str(tmp_path / "s"))
    assert (images_folder(), state_folder()) == (tmp_path / "i", tmp_path / "s")


def test_the_cache_is_below_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PALESTRA_STATE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "palestra" / "sandboxes"


def test_without_a_home_it_is_a_private_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PALESTRA_STATE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = state_folder().parent
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0, "others may not look into it"


def test_a_folder_that_somebody_else_planted_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PALESTRA_STATE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = state_folder().parent
    planted.chmod(0o777)
    with pytest.raises(HostError, match="PALESTRA_STATE"):
        state_folder()
