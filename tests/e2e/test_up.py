"""``palestra up`` for real: both services, a step across their network, a cut, and ``down``."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from up_base import REPOSITORY, brings_cuda, docker, make_base, why_not

from palestra.environment.sandboxes.engine import OWNER_LABEL
from palestra.run.up.compose import NETWORK, PROJECT

ENVIRONMENT, TRAINER = "palestra-test/up-environment", "palestra-test/up-trainer"
CUT_S = 10.0
LABEL = f"label=com.docker.compose.project={PROJECT}"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = {
    "training.steps": "1",
    "warmstart.steps": "5",
    "warmstart.tasks": "katas:train?seed=1&n=8&level=0",
    # So many that no machine is through with them before the network is cut.
    "tasks.heldout": "katas:heldout?seed=0&n=64&level=0",
    "evaluation.modes": '["sampled"]',
    "rollouts.groups_per_step": "2",
    "rollouts.drop_equal_groups": "false",
}


def why_not_here() -> str | None:
    """What this machine lacks; ``None`` if nothing."""
    if os.geteuid() != 0:
        return "the network can be cut by root only"
    if not shutil.which("docker") or not shutil.which("ip"):
        return "needs docker and ip"
    asked = subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False)
    if asked.returncode:
        return "no engine answers"
    compose = (["docker", "compose", "version"], ["docker-compose", "version"])
    if not any(shutil.which(call[0]) and succeeds(call) for call in compose):
        return "there is no compose"
    if not os.environ.get("PALESTRA_TEST_ROOTFS") or not os.environ.get("PALESTRA_TEST_IMAGE"):
        return "$PALESTRA_TEST_ROOTFS and $PALESTRA_TEST_IMAGE name no Debian"
    if made := made_by_palestra():
        return f"a deployment of somebody else is here: {', '.join(made)}"
    if succeeds(["docker", "network", "inspect", NETWORK]):
        return f"there is a network {NETWORK} already"
    if brings_cuda() and not os.environ.get("PALESTRA_TEST_UP"):
        return "this torch brings gigabytes of CUDA along: set PALESTRA_TEST_UP to copy them"
    return why_not(Path(os.environ["PALESTRA_TEST_ROOTFS"]))


def succeeds(command: list[str]) -> bool:
    return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def made_by_palestra() -> list[str]:
    """Containers, networks and volumes of the deployment."""
    asked = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
    return [
        f"{kind[0]} {one}"
        for kind in asked
        for one in docker(*kind, "--quiet", "--filter", LABEL).split()
    ]


def limit(kind: int, most: int) -> str:
    """What a container may have where engines cannot raise their own limits."""
    hard = resource.getrlimit(kind)[1]
    return str(most if hard == resource.RLIM_INFINITY else hard)


def palestra(*words: str | Path, timeout_s: float, base: str = "") -> str:
    """What the command says on stderr; images are built on ``base``."""
    variables = {
        "PALESTRA_ENVIRONMENT_BASE": base,
        "PALESTRA_TRAINER_BASE": base,
        "PALESTRA_ENVIRONMENT_IMAGE": ENVIRONMENT,
        "PALESTRA_TRAINER_IMAGE": TRAINER,
        "PALESTRA_ENVIRONMENT_APT": "",
        "PALESTRA_TRAINER_APT": "",
        # No index and no mirror: what the base has must do.
        "PALESTRA_BUILD_NETWORK": "none",
        "PIP_NO_INDEX": "1",
        "PALESTRA_NOFILE": limit(resource.RLIMIT_NOFILE, 65536),
        "PALESTRA_MEMLOCK": limit(resource.RLIMIT_MEMLOCK, -1),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, "-m", "palestra", *map(str, words)],
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a deployment that is gone at the end."""
    if (reason := why_not_here()) is not None:
        pytest.skip(reason)
    folder = tmp_path / "deployment"
    try:
        yield folder
    finally:
        palestra("down", "--volumes", "--folder", folder, timeout_s=300)
        for image in (ENVIRONMENT, TRAINER):
            if succeeds(["docker", "image", "inspect", image]):
                docker("rmi", image)


def container(service: str) -> str:
    """Its id."""
    chosen = f"label=com.docker.compose.service={service}"
    found = docker("ps", "--quiet", "--filter", LABEL, "--filter", chosen).split()
    assert len(found) == 1, f"{service}: {found}"
    return found[0]


def log_of(trainer: str) -> str:
    done = subprocess.run(
        ["docker", "logs", trainer], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout + done.stderr


def link_of(trainer: str) -> str:
    """This machine's end of the trainer's only cable."""
    index = docker("exec", trainer, "cat", "/sys/class/net/eth0/iflink")
    for path in Path("/sys/class/net").iterdir():
        if (path / "ifindex").read_text().strip() == index:
            return path.name
    raise AssertionError(f"no link {index} on this machine")


def until(holds: Callable[[], bool], *, limit_s: float, said: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {said()[-3000:]}"
        time.sleep(0.1)


def reaches_environment(trainer: str) -> bool:
    """Whether the environment's name and port answer from inside the trainer."""
    program = "import socket; socket.create_connection(('swe_env', 11000), 2)"
    return succeeds(["docker", "exec", trainer, "python3", "-c", program])


def has_ended(trainer: str) -> bool:
    return succeeds(["docker", "exec", trainer, "test", "-e", "/run/palestra/ended"])


def test_two_services_train_across_their_network_and_survive_its_loss(folder: Path) -> None:
    overrides = [f"--set={key}={value}" for key, value in SHORT.items()]
    overrides.append(f"--set=sandbox.host_image={os.environ['PALESTRA_TEST_IMAGE']}")
    options = ("--sandbox", "docker", "--timeout", "300", "--folder", folder)
    smoke = REPOSITORY / "recipes" / "smoke.toml"
    base = make_base(Path(os.environ["PALESTRA_TEST_ROOTFS"]))
    said = palestra("up", smoke, *options, *overrides, timeout_s=900, base=base)
    assert "swe_env_docker: healthy" in said, said
    assert "trainer: healthy" in said, said
    trainer, environment = container("trainer"), container("swe_env_docker")

    def log() -> str:
        return log_of(trainer)

    link = link_of(trainer)
    until(lambda: "evaluating after step 0" in log(), limit_s=300, said=log)
    subprocess.run(["ip", "link", "set", link, "down"], check=True, timeout=60)
    try:
        time.sleep(CUT_S)
        assert not reaches_environment(trainer), "the cut is none"
        assert "held-out after step 0" not in log(), "it evaluates without the environment"
        assert not has_ended(trainer), f"it ended of the cut: {log()[-2000:]}"
    finally:
        subprocess.run(["ip", "link", "set", link, "up"], check=True, timeout=60)
    until(lambda: has_ended(trainer), limit_s=400, said=log)
    assert docker("exec", trainer, "cat", "/run/palestra/ended") == "0", log()[-3000:]
    assert "step 1/1" in log(), log()[-3000:]
    checkpoint = "/runs/smoke/checkpoints/1/model/model.safetensors"
    assert succeeds(["docker", "exec", trainer, "test", "-s", checkpoint]), checkpoint

    # As `owners.py` names the processes of one container.
    namespace = docker("exec", environment, "stat", "-Lc", "%i", "/proc/1/ns/pid")
    assert "down; volumes are kept" in palestra("down", "--folder", folder, timeout_s=300)
    assert {one.split()[0] for one in made_by_palestra()} == {"volume"}
    palestra("down", "--volumes", "--folder", folder, timeout_s=300)
    assert made_by_palestra() == []
    assert not succeeds(["docker", "network", "inspect", NETWORK])
    assert not folder.exists(), "the token stays on the disk"
    labels = ("--filter", f"label={OWNER_LABEL}", "--format", f'{{{{.Label "{OWNER_LABEL}"}}}}')
    owners = docker("ps", "--all", *labels).split()
    assert not [owner for owner in owners if f".{namespace}:" in owner], owners
