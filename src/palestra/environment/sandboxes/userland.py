"""The host's own userland as a sandbox's root file system: programs, and nothing private."""

from __future__ import annotations

import sys
from pathlib import Path

from palestra.environment.sandboxes.arguments import HOSTNAME, Bind

_PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
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
    _write(folder, _FILES)


def userland_binds(*, network: bool) -> tuple[Bind, ...]:
    """What of the host is seen, read-only: programs, libraries, the running Python."""
    binds = [Bind(source="/usr", target="/usr")]
    binds += [
        Bind(source=str(path), target=str(path))
        for path in map(Path, _PROGRAMS)
        if path.is_dir() and not path.is_symlink()
    ]
    binds += [Bind(source=name, target=name, optional=True) for name in _SETTINGS]
    if network:
        name = "/etc/resolv.conf"
        binds.append(Bind(source=name, target=name, optional=True))
    python = sys.base_prefix
    if not Path(python).is_relative_to("/usr"):
        binds.append(Bind(source=python, target=python))
    return tuple(binds)


def userland_env() -> dict[str, str]:
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
