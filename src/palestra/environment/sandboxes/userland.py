"""The host's own userland as a sandbox's root file system: programs, and nothing private."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.sandboxes.arguments import HOSTNAME, Bind

_PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Copied once, into a layer: each bind is a mount, and bwrap reads the whole table of
# mounts again for every one.
_COPIED = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/openssl.cnf",
)
_BOUND = ("/etc/pki", "/etc/ssl/certs")
_FOLDERS = ("dev", "etc", "home", "opt", "proc", "root", "run", "tmp", "usr", "var/tmp")
_STICKY_FOLDERS = ("tmp", "var/tmp")
_HOSTS = f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/gitconfig": (
        "[user]\n\tname = root\n\temail = root@sandbox\n"
        "[init]\n\tdefaultBranch = main\n[safe]\n\tdirectory = *\n"
    ),
}


def build_hosts_layer(folder: Path) -> None:
    """Lay ``/etc/hosts`` into a layer: an exported image has an empty one."""
    _write(folder, {"etc/hosts": _HOSTS})


def build_skeleton(folder: Path) -> None:
    """Lay the root file system that the host's programs are bound into."""
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in _STICKY_FOLDERS:
        (folder / name).chmod(0o1777)
    for program_folder in map(Path, _PROGRAMS):
        if program_folder.is_symlink():
            (folder / program_folder.name).symlink_to(program_folder.readlink())
    for source in map(Path, _COPIED):
        _copy(source, folder / source.relative_to("/"))
    _write(folder, _FILES)
    build_hosts_layer(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Userland:
    """What of the host a sandbox sees, read-only: programs, libraries, the running Python."""

    skeleton_key: str
    """Names the layer of :func:`build_skeleton` that fits."""
    binds: tuple[Bind, ...]
    env: Mapping[str, str]
    shell: str


def find_userland() -> Userland:
    """Look at the host; once is enough, since every look is a dozen system calls."""
    has_bash = any(Path(folder, "bash").exists() for folder in ("/bin", "/usr/bin"))
    return Userland(
        skeleton_key=_skeleton_key(),
        binds=_binds(),
        env=_env(),
        shell="/bin/bash" if has_bash else "/bin/sh",
    )


def _skeleton_key() -> str:
    """A name for the skeleton that changes with the settings of the host that it copies."""
    digest = hashlib.sha256()
    for name in _COPIED:
        with suppress(OSError):
            stat = Path(name).stat()
            digest.update(f"{name} {stat.st_mtime_ns} {stat.st_size}\n".encode())
    return f"skeleton-2-{digest.hexdigest()[:16]}"


def _binds() -> tuple[Bind, ...]:
    binds = [Bind(source="/usr", target="/usr")]
    binds += [
        Bind(source=str(path), target=str(path))
        for path in map(Path, _PROGRAMS)
        if path.is_dir() and not path.is_symlink()
    ]
    binds += [Bind(source=name, target=name) for name in _BOUND if Path(name).exists()]
    python = sys.base_prefix
    if not Path(python).is_relative_to("/usr"):
        binds.append(Bind(source=python, target=python))
    return tuple(binds)


def _env() -> dict[str, str]:
    """The environment of commands; nothing of the host's own is passed on."""
    folders = [f"{sys.base_prefix}/bin", "/usr/local/sbin", "/usr/local/bin"]
    folders += ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return {
        "PATH": ":".join(dict.fromkeys(folders)),
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
    }


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy what there is and what we may read; a setting that is missing is no error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        elif source.is_file():
            shutil.copy(source, target)
