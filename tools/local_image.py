"""Build the image of one task row on this machine, without a registry or a docker daemon.

The result is an unpacked root file system laid out as the published images are:
the repository at its base commit in the task's workdir, an environment
``testbed`` that ``conda activate testbed`` finds, and the requirements as they
were on the day of the row. It is entered in an image store under the image name
that the row asks for. ``docs/local-images.md`` shows the whole way.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.sandboxes.bwrap import find_bwrap
from palestra.environment.sandboxes.images import ImageStore
from palestra.errors import PalestraError, TaskError
from palestra.records import Task
from palestra.tasks.source import load_tasks

_log = logging.getLogger("local_image")

_CONDA = "/opt/miniconda3"
_ENVIRONMENT = f"{_CONDA}/envs/testbed"
_IMAGE_PATH = f"{_ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

# Eval scripts say `source …/activate` and `conda activate testbed`, some of them under
# `set -u` or `set -x`; this is all they need of conda.
_ACTIVATE = f"""\
conda() {{
    if [ "${{1:-}}" = activate ]; then
        export VIRTUAL_ENV={_CONDA}/envs/"${{2:-testbed}}" CONDA_DEFAULT_ENV="${{2:-testbed}}"
        export PATH="$VIRTUAL_ENV/bin:$PATH"
    fi
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What to build: a task's image from a base system and the repository's history."""

    task: Task
    repository: Path  # a git directory that has the base commit
    base: Path  # an unpacked system with git, Python, venv and pip
    rootfs: Path  # where the image goes
    install: str  # what pip installs in editable mode: "." or ".[extra]"
    requirements: tuple[str, ...]
    before: str | None  # a date: pip takes nothing that was uploaded later
    env: tuple[str, ...]  # KEY=VALUE while the repository is installed


class BuildError(PalestraError):
    """A step of the build failed; its output is above."""


def build_image(build: Build) -> None:
    """Build the root file system; nothing is left at its place when a step fails.

    Raises:
        BuildError: a step failed, or there is something at ``build.rootfs`` already.
    """
    if build.rootfs.exists():
        raise BuildError(f"{build.rootfs} exists", hint="remove it first or choose another --out")
    partial = build.rootfs.with_name(f"{build.rootfs.name}.part")
    _call(["rm", "-rf", str(partial)])
    partial.parent.mkdir(parents=True, exist_ok=True)
    _log.info("copying the base system")
    _call(["cp", "-a", "--reflink=auto", str(build.base), str(partial)])
    _log.info("checking out %s", build.task.base_commit)
    _checkout(build, partial)
    _log.info("installing %s", build.install)
    _install(build, partial)
    partial.rename(build.rootfs)


def _checkout(build: Build, rootfs: Path) -> None:
    """Lay the repository at its base commit, with the history and tags up to it only."""
    commit = build.task.base_commit
    workdir = rootfs / build.task.workdir.lstrip("/")
    workdir.mkdir(parents=True)
    merged = _call(["git", "-C", str(build.repository), "tag", "--merged", commit])
    tags = [f"refs/tags/{tag}:refs/tags/{tag}" for tag in merged.split()]
    git = ["git", "-C", str(workdir), "-c", "advice.detachedHead=false"]
    _call([*git, "init", "-q", "-b", "main"])
    _call([*git, "fetch", "-q", "--no-tags", str(build.repository.resolve()), commit, *tags])
    _call([*git, "reset", "-q", "--hard", commit])
    (workdir / ".git" / "FETCH_HEAD").unlink(missing_ok=True)
    _call([*git, "reflog", "expire", "--expire=now", "--all"])


def _install(build: Build, rootfs: Path) -> None:
    activate = rootfs / _CONDA.lstrip("/") / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(_ACTIVATE, encoding="utf-8")
    pip = f"{_ENVIRONMENT}/bin/python -m pip"
    until = f"--uploaded-prior-to {build.before}" if build.before else ""
    _inside(rootfs, build, f"python3 -m venv {_ENVIRONMENT} && {pip} install -q -U pip")
    # Setuptools alone is not of the row's day: today's pip needs one that knows PEP 660.
    # It is left in the environment, for scripts that install the repository anew.
    requirements = shlex.join(["setuptools>=64,<81", "wheel"])
    _inside(rootfs, build, f"{pip} install -q {requirements}")
    if build.requirements:
        requirements = shlex.join(build.requirements)
        _inside(rootfs, build, f"{pip} install -q {until} {requirements}")
    install = shlex.quote(build.install)
    _inside(rootfs, build, f"{pip} install -q {until} --no-build-isolation -e {install}")


def _inside(rootfs: Path, build: Build, command: str) -> None:
    """Run ``command`` in the image, with the network and this machine's certificates."""
    # What pip is told by this machine's environment holds in the image too, but for paths.
    settings = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    settings |= {"PIP_CERT": _CERTIFICATES, "PIP_ROOT_USER_ACTION": "ignore", "HOME": "/root"}
    settings |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    settings |= {"PATH": _IMAGE_PATH, "LANG": "C.UTF-8"}
    settings |= dict(_split(item) for item in build.env)
    options = ["--bind", str(rootfs), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    for path in ("/etc/resolv.conf", _CERTIFICATES):
        options += ["--ro-bind-try", path, path]
    options += ["--clearenv", "--unshare-pid", "--die-with-parent", "--chdir", build.task.workdir]
    for key, value in settings.items():
        options += ["--setenv", key, value]
    _call([str(find_bwrap().path), *options, "bash", "-c", command])


def _call(command: Sequence[str]) -> str:
    """Run a command of the build and give its output.

    Raises:
        BuildError: it exited non-zero.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _log.error("%s%s", done.stdout, done.stderr)
        raise BuildError(f"exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


def _split(item: str) -> tuple[str, str]:
    key, _, value = item.partition("=")
    return key, value


def _task(path: str, instance_id: str) -> Task:
    for task in load_tasks(path):
        if task.instance_id == instance_id:
            return task
    raise TaskError(f"{path} has no row {instance_id}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("tasks", help="JSONL file that holds the row")
    add("instance_id", help="which row")
    add("--git", type=Path, required=True, help="git directory that has the base commit")
    add("--base", type=Path, required=True, help="unpacked base system, as from debootstrap")
    add("--out", type=Path, required=True, help="folder that gets INSTANCE_ID/, the image")
    add("--store", type=Path, required=True, help="image store that the image is entered in")
    add("--install", default=".", help="what pip installs editable, e.g. '.[all]' (default: .)")
    add("--with", dest="requirements", action="append", default=[], metavar="REQUIREMENT",
        help="a further requirement; repeatable")  # fmt: skip
    add("--before", metavar="DATE", help="take no package uploaded later, e.g. 2022-06-24")
    add("--env", action="append", default=[], metavar="KEY=VALUE",
        help="environment variable of the installation; repeatable")  # fmt: skip
    return parser


def main() -> int:
    """Build one image and enter it in the store; returns the exit code."""
    args = _arguments().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        task = _task(args.tasks, args.instance_id)
        build = Build(
            task=task,
            repository=args.git,
            base=args.base,
            rootfs=args.out.resolve() / task.instance_id,
            install=args.install,
            requirements=tuple(args.requirements),
            before=args.before,
            env=tuple(args.env),
        )
        build_image(build)
        store = ImageStore(args.store)
        store.add(task.image, build.rootfs, env={"PATH": _IMAGE_PATH}, workdir=task.workdir)
    except PalestraError as error:
        _log.error("%s", error)
        return error.exit_code
    _log.info("%s is in %s", task.image, args.store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
