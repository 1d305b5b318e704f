"""The ids of an episode one by one: trained on or not, how likely, under which weights."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palestra.dashboard.episode_view import StoredEpisode
from palestra.dashboard.library import read_recipe
from palestra.report.visible import shown
from palestra.run.directory import RunDirectory

PAGE_IDS = 4_000
_MAX_TOKENIZERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage:
    """Some of the ids of one path, as parallel columns; the names are those of the JSON.

    Attributes:
        path: number of the path, from 0.
        num_paths: of the episode; more than one where the agent rewrote its history.
        offset: of the first id here.
        total: ids of the path.
        ids: token ids.
        texts: what they stand for; ``None`` without a tokenizer.
        trainable: whether the loss sees them.
        logprobs: natural log; ``None`` where not sampled.
        versions: of the weights; ``None`` where not sampled.
        ratios: trainer's likelihood over the engine's; ``None`` where not sampled or not kept.
        has_ratios: whether the run kept them.
    """

    path: int
    num_paths: int
    offset: int
    total: int
    ids: Sequence[int]
    texts: Sequence[str] | None
    trainable: Sequence[bool]
    logprobs: Sequence[float | None]
    versions: Sequence[int | None]
    ratios: Sequence[float | None]
    has_ratios: bool


def token_page(
    stored: StoredEpisode, tokenizer: Any | None, *, path: int, offset: int, limit: int = PAGE_IDS
) -> TokenPage | None:
    """Cut a page out of a path; ``None`` when the episode has no such path."""
    paths = stored.trace.paths()
    if not 0 <= path < len(paths):
        return None
    chosen = paths[path]
    offset = max(0, min(offset, len(chosen.ids)))
    part = slice(offset, offset + max(1, min(limit, PAGE_IDS)))
    ids, versions = chosen.ids[part], chosen.versions[part]
    sampled = [version >= 0 for version in versions]
    before = sum(sum(earlier.trainable) for earlier in paths[:path])
    kept = None if stored.ratios is None else stored.ratios[before:]
    return TokenPage(
        path=path,
        num_paths=len(paths),
        offset=offset,
        total=len(chosen.ids),
        ids=ids,
        texts=None if tokenizer is None else [shown(_text(tokenizer, i)) for i in ids],
        trainable=chosen.trainable[part],
        logprobs=_where(sampled, chosen.logprobs[part]),
        versions=_where(sampled, versions),
        ratios=[None] * len(ids) if kept is None else _ratios(chosen.trainable, kept)[part],
        has_ratios=kept is not None,
    )


class Tokenizers:
    """Tokenizers of the runs used last, read from the files that a run keeps anyway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, Any] = OrderedDict()

    def of(self, run: RunDirectory) -> Any | None:
        """The run's tokenizer; ``None`` where there is none, or no package to read it."""
        path = _tokenizer_file(run)
        if path is None:
            return None
        with self._lock:
            if path not in self._known:
                self._known[path] = _load(path)
            self._known.move_to_end(path)
            while len(self._known) > _MAX_TOKENIZERS:
                self._known.popitem(last=False)
            return self._known[path]


def _tokenizer_file(run: RunDirectory) -> Path | None:
    model = read_recipe(run).get("model")
    named = model.get("path") if isinstance(model, dict) else None
    folders = [run.start_model, *sorted(run.checkpoints.glob("*/model"), reverse=True)]
    if isinstance(named, str) and Path(named).is_dir():
        folders.append(Path(named))
    files = (folder / "tokenizer.json" for folder in folders)
    return next((path for path in files if path.is_file()), None)


def _load(path: Path) -> Any | None:
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except Exception:  # the package raises nothing narrower for a broken file
        return None


def _text(tokenizer: Any, token_id: int) -> str:
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    if not text or "\ufffd" in text:
        # A piece of a character: the vocabulary's own spelling says more.
        return str(tokenizer.id_to_token(token_id) or token_id)
    return str(text)


def _where(sampled: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    return [value if known else None for known, value in zip(sampled, values, strict=True)]


def _ratios(trainable: Sequence[bool], kept: Sequence[float]) -> list[float | None]:
    """Lay the ratios, one for each trained id, along the path."""
    left = iter(kept)
    return [next(left, None) if trained else None for trained in trainable]
