"""The two halves of a run find each other, or say which address failed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_process import serving

from palestra.addresses import URL_VARIABLE, gateway_host, named_url
from palestra.config import EnvironmentSection, GatewaySection
from palestra.errors import EnvironmentUnavailable
from palestra.learning.rollouts.environment_client import EnvironmentClient


def doctor(*arguments: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-m", "palestra", "doctor", "--json", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode, {one["about"]: one for one in json.loads(done.stdout)}


def test_doctor_says_what_to_do_about_everything_that_is_not_good(tmp_path: Path) -> None:
    code, findings = doctor("--set", f"runs={tmp_path}", PALESTRA_STATE=str(tmp_path / "state"))
    assert set(findings) >= {"python", "bubblewrap", "docker", "podman", "gpu", "hub", "images"}
    assert findings["hub"]["level"] == "note"
    for finding in findings.values():
        assert finding["seen"]
        assert finding["advice"] or finding["level"] == "good", finding
    works = [findings[name]["level"] == "good" for name in ("bubblewrap", "docker", "podman")]
    assert findings["sandbox"]["level"] == ("good" if any(works) else "bad")
    assert code == (0 if any(works) else 1)


async def test_doctor_asks_both_sides_for_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path, "local", "--agent", "gold") as server:
        url = str(server.http.base_url)
        code, findings = await asyncio.to_thread(doctor, **{URL_VARIABLE: url})
        assert findings["environment"]["level"] == "good", findings
        assert findings["way back"]["level"] == "good", findings

        # An address that the server cannot reach: its allow-list has no such network.
        blocked = ("--set", "gateway.public_url=http://192.0.2.1:9", "--set", "gateway.port=0")
        code, findings = await asyncio.to_thread(doctor, *blocked, **{URL_VARIABLE: url})
        assert findings["way back"]["level"] == "note"
        assert code == 0
    code, findings = await asyncio.to_thread(doctor, **{URL_VARIABLE: url})
    assert code == 1
    assert url.removeprefix("http://").rstrip("/") in findings["environment"]["seen"]


async def test_a_policy_that_the_server_cannot_reach_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with (
            serving(tmp_path, "local", "--agent", "gold") as server,
            EnvironmentClient(str(server.http.base_url)) as client,
        ):
            for url, why in (
                (nobody, "ConnectError"),
                ("http://192.0.2.1:9/v1", "neither loopback nor in a private network"),
                ("http://169.254.169.254/v1", "link-local"),
                ("http://127.0.0.1:1/v2", "must end in /v1"),
            ):
                with pytest.raises(EnvironmentUnavailable, match=why) as caught:
                    await client.reach(url)
                assert url in caught.value.message
                assert client.address in caught.value.message
                assert "gateway.host" in str(caught.value.hint)


def test_a_gateway_listens_where_its_environment_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert named_url(EnvironmentSection()) is None
    assert gateway_host(GatewaySection(), None) == "127.0.0.1"
    assert gateway_host(GatewaySection(), "http://x:token@127.0.0.1:11000") == "127.0.0.1"
    assert gateway_host(GatewaySection(host="0.0.0.0"), "http://127.0.0.1:1") == "0.0.0.0"
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:11000/")
    assert named_url(EnvironmentSection()) == "http://127.0.0.1:11000"
    assert named_url(EnvironmentSection(url="http://other:1")) == "http://other:1"
    with pytest.raises(EnvironmentUnavailable, match=r"no-such-host.invalid:11000"):
        gateway_host(GatewaySection(), "http://no-such-host.invalid:11000")
