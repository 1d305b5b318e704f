"""The files of a deployment: what they promise, who can read them, what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from palestra.errors import ConfigError
from palestra.recipe_files import parse_recipe
from palestra.run.up.compose import deploy_folder
from palestra.run.up.settings import TAKEN, TOKEN, collect, env_file, forget, source, write

DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((deploy_folder() / name).read_text(encoding="utf-8")))


def test_services_find_each_other_by_name_on_one_network() -> None:
    services = compose()["services"]
    assert set(services) == {"swe_env_bubblewrap", "swe_env_docker", "trainer"}
    for name in ("swe_env_bubblewrap", "swe_env_docker"):
        assert services[name]["networks"]["swe-net"]["aliases"] == ["swe_env"]
        assert services[name]["profiles"] == [name.removeprefix("swe_env_")]
    url = services["trainer"]["environment"]["SWE_AGENT_GYM_URL"]
    assert re.fullmatch(r"http://x:\$\{PALESTRA_TOKEN\}@\$\{\w+:-swe_env:11000\}", url)
    assert compose()["networks"]["swe-net"]["name"] == "swe-net"
    assert not any("ports" in service for service in services.values()), "nobody else gets in"


def test_every_service_has_what_the_old_commands_gave_it() -> None:
    for name, service in compose()["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["init"] is True, name
        assert "shm_size" in service, name
        assert service["ipc"].endswith(":-host}"), name
        assert set(service["ulimits"]) == {"nofile", "memlock", "stack"}, name
        assert service["ulimits"]["stack"]["soft"] == 67108864
        places = {volume.rsplit(":ro", 1)[0].rsplit(":", 1)[1] for volume in service["volumes"]}
        assert places >= {"/data", "/workspace", "/root/.cache/huggingface"}, name
    assert "/runs" in {v.rsplit(":", 1)[1] for v in compose()["services"]["trainer"]["volumes"]}


def test_only_the_docker_profile_gets_the_socket_and_only_bubblewrap_is_unconfined() -> None:
    services = compose()["services"]
    socket = {name: any("docker.sock" in v for v in s["volumes"]) for name, s in services.items()}
    assert socket == {"swe_env_bubblewrap": False, "swe_env_docker": True, "trainer": False}
    assert set(services["swe_env_bubblewrap"]["security_opt"]) == {
        "seccomp=unconfined",
        "apparmor=unconfined",
    }
    assert "security_opt" not in services["swe_env_docker"]
    devices = compose("gpu.yaml")["services"]["trainer"]["deploy"]["resources"]["reservations"]
    assert devices["devices"][0]["capabilities"] == ["gpu"]


def test_every_variable_of_the_files_is_taken_and_explained() -> None:
    text = "".join(path.read_text() for path in deploy_folder().glob("*.yaml"))
    named = set(re.findall(r"\$\{(\w+)", text)) - {"PALESTRA_RECIPE_FILE"}
    assert named <= set(TAKEN), named - set(TAKEN)
    explained = set(re.findall(r"`([A-Z_]+)`", DOCS.read_text(encoding="utf-8")))
    missing = set(TAKEN) - explained
    inner = {"PALESTRA_CONTEXT", "PALESTRA_DOCKERFILES", "PALESTRA_REQUIREMENT"}
    assert missing <= inner | {"PALESTRA_ENVIRONMENT_ADDRESS", "PALESTRA_TRAINER_PRIVILEGED"}


def test_the_token_is_kept_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    first = write(folder, collect(folder, {"PALESTRA_DATA": "~/d"}, {}), parse_recipe({}))
    assert len(first.variables[TOKEN]) >= 24
    assert Path(first.variables["PALESTRA_DATA"]).is_absolute()
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert folder.stat().st_mode & 0o077 == 0
    again = collect(folder, {}, {})
    assert again.variables[TOKEN] == first.variables[TOKEN]
    assert f"{TOKEN}='{first.variables[TOKEN]}'" in env_file(folder).read_text().splitlines()
    forget(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "value"), [("PALESTRA_DATA", "/a'b"), ("PIP_INDEX_URL", "a$b"), (TOKEN, "a/b")]
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        collect(tmp_path, {name: value}, {})


def test_the_shell_does_not_leak_into_the_services_by_accident(tmp_path: Path) -> None:
    settings = collect(tmp_path, {}, {})
    assert set(settings.environment()) & set(TAKEN) == {TOKEN}
    assert settings.environment()["PATH"] == os.environ["PATH"]


def test_a_checkout_is_built_from_itself() -> None:
    found = source(deploy_folder())
    root = Path(found["PALESTRA_CONTEXT"])
    assert (root / found["PALESTRA_DOCKERFILES"] / "trainer.Dockerfile").is_file()
    for name in ("trainer", "environment"):
        text = (deploy_folder() / f"{name}.Dockerfile").read_text()
        assert "ARG BASE_IMAGE" in text
