"""An image to build both services on, without an index: a Debian tree and our dependencies.

The dependencies are those that the tests themselves run with, copied from this interpreter; only
the build backend is fetched. The image is kept under a tag that names its content.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
NAME = "palestra-test/up-base"
PATIENCE_S = 540.0
_BACKEND = "hatchling"
"""What `pip install` of a checkout needs, and the services do not."""
_PIP_CONF = "[global]\nno-index = true\nfind-links = /opt/wheels\n"


def docker(*words: str, timeout_s: float = 120.0) -> str:
    """What ``docker`` prints.

    Raises:
        AssertionError: it failed; with what it said.
    """
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(words[:2])}: {done.stderr[-1000:]}"
    return done.stdout.strip()


def why_not(tree: Path) -> str | None:
    """Why this interpreter's packages cannot be copied into ``tree``; ``None`` if they can."""
    theirs = (tree / "usr" / "bin" / "python3").readlink().name
    ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return None if theirs == ours else f"the tests run with {ours}, and {tree} has {theirs}"


def brings_cuda() -> bool:
    """Whether the packages are gigabytes more than what runs on CPUs."""
    return any(name.startswith("nvidia-") for name in _needed())


def make_base(tree: Path) -> str:
    """The image's name; made unless it is there, in place of those with other content."""
    packages = _needed()
    content = [f"{name}=={one.version}" for name, one in sorted(packages.items())]
    # And how it is made: by this file, in this tree.
    made = (Path(__file__), tree / "var" / "lib" / "dpkg" / "status")
    content += [path.read_text(encoding="utf-8") for path in made]
    image = f"{NAME}:{hashlib.sha256(chr(10).join(content).encode()).hexdigest()[:12]}"
    kept = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", NAME).split()
    if image not in kept:
        _import(image, tree, packages)
        for old in kept:
            docker("rmi", old)
    return image


def _needed() -> dict[str, Distribution]:
    """Pip, and what palestra's checkout asks for with all that this needs here; by name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = ["pip", *project["dependencies"], *project["optional-dependencies"]["train"]]
    wanted = [(Requirement(line), "") for line in lines]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement, asker = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asker}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                one = found[name] = distribution(name)
                wanted += [(Requirement(line), extra) for line in one.requires or ()]
    return found


def _import(image: str, tree: Path, packages: Mapping[str, Distribution]) -> None:
    with tempfile.TemporaryDirectory(prefix="palestra-wheels-") as wheels:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-qq", "--dest", wheels, _BACKEND],
            check=True,
            timeout=PATIENCE_S,
        )
        # One pass over a gigabyte: a build would copy it three times.
        with subprocess.Popen(
            ["docker", "import", "-", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None
            with process.stdin as to, tarfile.open(fileobj=to, mode="w|") as tar:
                tar.add(tree, ".")
                tar.add(wheels, "opt/wheels")
                _add_packages(tar, tree, packages)
            assert process.wait(PATIENCE_S) == 0, f"docker import of {image} failed"


def _add_packages(tar: tarfile.TarFile, tree: Path, packages: Mapping[str, Distribution]) -> None:
    config = tarfile.TarInfo("etc/pip.conf")
    config.size = len(_PIP_CONF)
    tar.addfile(config, io.BytesIO(_PIP_CONF.encode()))
    to = f"usr/local/lib/{(tree / 'usr' / 'bin' / 'python3').readlink().name}/dist-packages"
    for package in packages.values():
        for file in package.files or ():
            path = Path(str(file.locate()))
            # Scripts lie outside, and name an interpreter that is not there.
            if ".." not in file.parts and path.is_file():
                tar.add(path, f"{to}/{file}")
