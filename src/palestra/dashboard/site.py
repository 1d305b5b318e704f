"""What the pages are made from: the runs, their files, and whom to ask about now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palestra.dashboard.episode_view import StoredEpisode, parse_record
from palestra.dashboard.index import EpisodeRow, RunIndex
from palestra.dashboard.library import Library, is_live
from palestra.dashboard.listing import TRAINING, EvaluationRows
from palestra.dashboard.now import EnvironmentNow, EnvironmentWatch
from palestra.dashboard.rollout_files import RolloutFiles
from palestra.dashboard.tokens import Tokenizers
from palestra.learning.rollouts.json_lines import SUFFIX


class NothingThere(Exception):
    """What was asked for is not there; says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """Where the runs are, and which environment server to watch.

    Attributes:
        runs: folder of runs, or one run.
        environment_url: of a server to show beside the runs; a live run names its own.
        environment_token: that the servers want.
    """

    runs: Path
    environment_url: str | None = None
    environment_token: str | None = None


class Site:
    """Everything that pages read; nothing in it writes.

    Args:
        options: where to look.
    """

    def __init__(self, options: SiteOptions) -> None:
        self.options = options
        self.library = Library(options.runs)
        self.evaluations = EvaluationRows()
        self.tokenizers = Tokenizers()
        self._files = RolloutFiles()
        self._watch = EnvironmentWatch(options.environment_token)

    def close(self) -> None:
        """Close connections."""
        self._watch.close()

    def environment(self, index: RunIndex | None) -> EnvironmentNow | None:
        """What the environment server of a live run, or the named one, says now.

        An address out of a log is asked only while a process holds the run: whoever wrote
        another one must not be able to send us anywhere.
        """
        url = self.options.environment_url
        if index is not None and is_live(index.run):
            url = index.environment_url or url
        return self._watch.ask(url) if url is not None else None

    def rows(self, index: RunIndex, of: str) -> Sequence[EpisodeRow]:
        """The episodes of training, or of an evaluation (``STEP-MODE``).

        Raises:
            NothingThere: there is no such evaluation.
        """
        if of == TRAINING:
            return index.episodes()
        return self.evaluations.read(self._evaluation(index, of))

    def row(self, index: RunIndex, of: str, rollout_id: str) -> EpisodeRow:
        """One of them.

        Raises:
            NothingThere: there is none of this id.
        """
        found = (
            index.episode(rollout_id)
            if of == TRAINING
            else next((r for r in self.rows(index, of) if r.rollout_id == rollout_id), None)
        )
        if found is None:
            raise NothingThere(f"No episode {rollout_id} is known.")
        return found

    def siblings(self, index: RunIndex, of: str, row: EpisodeRow) -> list[EpisodeRow]:
        """The group of an episode: its siblings, or the attempts at the same task."""
        if of == TRAINING:
            return index.siblings(row)
        return [r for r in self.rows(index, of) if r.group_id == row.group_id]

    def record(self, index: RunIndex, of: str, row: EpisodeRow) -> bytes:
        """The stored line of an episode.

        Raises:
            NothingThere: it is not stored yet.
            HostError: its file cannot be read.
        """
        if of == TRAINING:
            if row.step is None:
                raise NothingThere("No step has used it up so far; only then is it stored.")
            path = index.run.rollouts / f"{row.step}{SUFFIX}"
        else:
            path = self._evaluation(index, of)
        line = self._files.read(path, row.rollout_id) if path.exists() else None
        if line is None:
            raise NothingThere(f"{path.name} does not hold it.")
        return line

    def stored(self, index: RunIndex, of: str, row: EpisodeRow) -> StoredEpisode:
        """The stored episode.

        Raises:
            NothingThere: it is not stored yet.
            UnreadableRecord: the line is of another version.
            HostError: its file cannot be read.
        """
        return parse_record(self.record(index, of, row))

    def _evaluation(self, index: RunIndex, name: str) -> Path:
        path = self.evaluations.path(index.run, name)
        if path is None:
            raise NothingThere(f"There is no evaluation {name}.")
        return path
