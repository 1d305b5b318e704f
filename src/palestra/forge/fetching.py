"""A project's source, from the package index or a git repository; nothing of it is run.

pip would run a project's build to learn its metadata, so the source distribution is found and
fetched without pip, from the index that pip is configured for.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from palestra.environment.images.locks import locked
from palestra.errors import HostError, TaskError
from palestra.forge.commands import output
from palestra.forge.unpacking import MAX_SOURCE_BYTES, unpack

_TIMEOUT_S = 120.0
_LOCK_TIMEOUT_S = 1800.0
_GIT = (
    *("git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
)
# Above all that the tree's own attributes say: every file comes, byte for byte, unfiltered.
_ATTRIBUTES = "* -export-ignore -export-subst -filter -ident -text -working-tree-encoding\n"
# -P: the working folder may be the project's, with a pip.py of its own.
_PYTHON = (sys.executable, "-P")
_DEFAULT_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An unpacked source.

    Attributes:
        name: as indexes normalise it.
        version: of the release, or the short commit id.
        origin: with a digest of what was fetched.
        tree: the unpacked files.
        num_uncommitted: files and folders of a repository whose changes are not in the commit;
            ``None`` where that cannot be told.
    """

    name: str
    version: str
    origin: str
    tree: Path
    num_uncommitted: int | None = 0


async def fetch(origin: str, folder: Path) -> Fetched:
    """Fetch ``NAME``, ``NAME==VERSION`` or the HEAD of a git repository into ``folder``.

    Raises:
        TaskError: there is no such project, no source distribution, or no commit.
        HostError: the index cannot be reached, or the disk cannot be written.
    """
    if "/" in origin or origin.startswith("."):
        return await _from_git(origin, folder)
    try:
        wanted = Requirement(origin)
    except InvalidRequirement as error:
        raise TaskError(f"{origin!r} is neither a name on an index nor a folder: {error}") from None
    file = await _find(wanted)
    tree = folder / "sources" / f"{file.name}-{file.sha256[:12]}"
    async with _only_one(folder, file.name):
        if not tree.exists():
            packed = folder / "downloads" / file.name
            if not packed.exists() or _sha256(packed) != file.sha256:
                await _download(file, packed)
            await asyncio.to_thread(unpack, packed, tree)
    name = canonicalize_name(wanted.name)
    origin = f"pypi:{name}=={file.version} sha256:{file.sha256}"
    return Fetched(name=name, version=str(file.version), origin=origin, tree=_only_folder(tree))


@asynccontextmanager
async def _only_one(folder: Path, download: str) -> AsyncIterator[None]:
    """Nobody else fetches the same meanwhile, however it was asked for."""
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(download.encode()).hexdigest()[:16]
    async with locked(locks / f"fetch-{name}", timeout_s=_LOCK_TIMEOUT_S):
        yield


# --- the index ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    url: str
    sha256: str
    version: Version


async def _find(wanted: Requirement) -> _File:
    """The newest final source distribution that fits."""
    name = canonicalize_name(wanted.name)
    found: list[_File] = []
    for index in await asyncio.to_thread(_indexes):
        found += await _listed(index, name)
    fitting = [file for file in found if wanted.specifier.contains(file.version)]
    if not fitting:
        have = ", ".join(sorted({str(file.version) for file in found})[-5:]) or "none"
        raise TaskError(
            f"{wanted}: the index has no source distribution that fits (it has {have})",
            hint="palestra forge FOLDER takes a git repository",
        )
    return max(fitting, key=lambda file: (not file.version.is_prerelease, file.version))


def _indexes() -> tuple[str, ...]:
    """The indexes that pip is configured for."""
    said = output([*_PYTHON, "-m", "pip", "config", "list"])
    urls = re.findall(r"^\S*?(?:extra-)?index-url='?([^'\n]*)'?$", said, re.MULTILINE)
    is_set = re.search(r"^\S*?(?<!extra-)index-url=", said, re.MULTILINE)
    if not is_set:
        urls.insert(0, output([*_PYTHON, "-c", _DEFAULT_INDEX]).strip())
    listed = [url for group in urls for url in group.split()]
    return tuple(dict.fromkeys(url for url in listed if url.startswith("http")))


async def _listed(index: str, name: str) -> list[_File]:
    url = f"{index.rstrip('/')}/{name}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        async with httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT_S) as http:
            answer = await http.get(url, headers={"Accept": accept})
    except httpx.HTTPError as error:
        host = urlsplit(index).hostname
        raise HostError(f"the package index at {host} cannot be reached: {error!r}") from error
    if answer.status_code == 404:
        return []
    if not answer.is_success:
        raise HostError(f"the package index answers {answer.status_code} for {name}")
    is_json = "json" in answer.headers.get("content-type", "")
    entries = _json_entries(answer.json()) if is_json else _html_entries(answer.text)
    return list(_source_files(entries, str(answer.url)))


def _json_entries(listing: Any) -> Iterator[tuple[str, str, str]]:
    for file in listing.get("files", ()):
        if not file.get("yanked"):
            yield file["filename"], file["url"], file.get("hashes", {}).get("sha256", "")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a" and "data-yanked" not in named:
            self.found.append(named.get("href") or "")


def _html_entries(text: str) -> Iterator[tuple[str, str, str]]:
    links = _Links()
    links.feed(text)
    for link in links.found:
        url, _, digest = link.partition("#sha256=")
        yield urlsplit(url).path.rsplit("/", 1)[-1], url, digest


def _source_files(entries: Iterator[tuple[str, str, str]], base: str) -> Iterator[_File]:
    for name, url, sha256 in entries:
        try:
            _, version = parse_sdist_filename(name)
        except InvalidSdistFilename:
            continue
        if sha256:
            yield _File(name=name, url=urljoin(base, url), sha256=sha256, version=version)


async def _download(file: _File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    size = 0
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT_S) as http,
            http.stream("GET", file.url) as answer,
        ):
            answer.raise_for_status()
            with part.open("wb") as out:
                async for piece in answer.aiter_bytes():
                    size += len(piece)
                    if size > MAX_SOURCE_BYTES:
                        raise TaskError(f"{file.name} is larger than {MAX_SOURCE_BYTES >> 20} MiB")
                    out.write(piece)
    except httpx.HTTPError as error:
        raise HostError(f"{file.name} cannot be fetched: {error!r}") from error
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot write {part}") from error
    if _sha256(part) != file.sha256:
        part.unlink()
        raise TaskError(f"{file.name} is not what the index says: its sha256 differs")
    part.rename(target)


def _only_folder(tree: Path) -> Path:
    entries = list(tree.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else tree


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- git ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commit:
    """The HEAD of somebody's repository."""

    top: Path
    name: str
    id: str
    objects: str
    object_format: str


async def _from_git(origin: str, folder: Path) -> Fetched:
    commit = await asyncio.to_thread(_head, origin)
    tree = folder / "sources" / f"{commit.name}-{commit.id[:12]}"
    async with _only_one(folder, tree.name):
        num_uncommitted = await asyncio.to_thread(_take, commit, tree, folder / "downloads")
    return Fetched(
        name=commit.name,
        version=commit.id[:10],
        origin=f"git:{commit.name}@{commit.id}",
        tree=tree,
        num_uncommitted=num_uncommitted,
    )


def _head(origin: str) -> _Commit:
    repository = Path(origin).expanduser()
    if not repository.is_dir():
        raise TaskError(f"there is no folder {repository}")
    look = (*_GIT, "-C", str(repository), "rev-parse")
    try:
        commit = output([*look, "--verify", "HEAD^{commit}"]).strip()
        top = Path(output([*look, "--show-toplevel"]).strip())
        objects = output([*look, "--path-format=absolute", "--git-path", "objects"])
        form = output([*look, "--show-object-format"]).strip()
    except HostError as error:
        raise TaskError(f"{repository} is no git repository with a commit: {error}") from None
    name = canonicalize_name(top.name)
    return _Commit(top=top, name=name, id=commit, objects=objects, object_format=form)


def _take(commit: _Commit, tree: Path, downloads: Path) -> int | None:
    """Unpack a commit, unless that was done; how many files of its folder are not in it."""
    with _borrowed(commit) as ours:
        if not tree.exists():
            packed = downloads / f"{tree.name}.tar"
            packed.parent.mkdir(parents=True, exist_ok=True)
            out = str(packed.absolute())
            output([*_GIT, "-C", ours, "archive", "--format=tar", "-o", out, commit.id])
            unpack(packed, tree)
            packed.unlink()
        return _num_uncommitted(commit, ours)


@contextmanager
def _borrowed(commit: _Commit) -> Iterator[str]:
    """A repository of ours that only borrows the objects.

    The project's own configuration could name filters, monitors and remotes, which are commands.
    """
    with tempfile.TemporaryDirectory(prefix="palestra-git-") as ours:
        form = f"--object-format={commit.object_format}"
        output([*_GIT, "init", "-q", "--bare", "--template=", form, ours])
        info = Path(ours) / "info"
        info.mkdir()
        (info / "attributes").write_text(_ATTRIBUTES)
        borrowed = Path(ours) / "objects" / "info" / "alternates"
        borrowed.parent.mkdir(exist_ok=True)
        borrowed.write_text(commit.objects)
        yield ours


def _num_uncommitted(commit: _Commit, ours: str) -> int | None:
    git = (*_GIT, f"--git-dir={ours}", f"--work-tree={commit.top}")
    status = ("status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=all")
    try:
        output([*git, "update-ref", "--no-deref", "HEAD", commit.id])
        output([*git, "read-tree", commit.id])
        return len(output([*git, *status]).splitlines())
    except HostError:
        return None  # only a word would come of it
