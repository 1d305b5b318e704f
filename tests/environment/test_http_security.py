from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from palestra.environment.http_security import EndpointRefused, check_endpoint


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost:8000/v1/",
        "http://10.1.2.3/v1",
        "http://172.31.0.9:30000/s/abc/v1",
        "https://192.168.1.1/v1",
        "http://[::1]:80/v1",
        "http://[fd12::1]/v1",
        "http://[::ffff:10.0.0.1]/v1",
    ],
)
async def test_what_is_near_is_let_through(url: str) -> None:
    assert await check_endpoint(url) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://169.254.169.254/v1", "link-local"),
        ("http://[fe80::1]/v1", "link-local"),
        ("http://[::ffff:169.254.169.254]/v1", "link-local"),
        ("http://[fd00:ec2::254]/v1", "link-local"),
        ("http://2852039166/v1", "link-local"),  # 169.254.169.254 as one number
        ("http://0.0.0.0:8000/v1", "link-local"),
        ("http://8.8.8.8/v1", "neither loopback"),
        ("http://172.32.0.1/v1", "neither loopback"),
        ("http://[2001:4860:4860::8888]/v1", "neither loopback"),
        ("http://[64:ff9b::a9fe:a9fe]/v1", "neither loopback"),
        ("http://100.100.100.200/v1", "neither loopback"),
        ("http://127.0.0.1:8000", "end in /v1"),
        ("http://127.0.0.1:8000/v1?x=1", "end in /v1"),
        ("http://127.0.0.1:8000/v1#/v1", "end in /v1"),
        ("http://127.0.0.1:8000/v2", "end in /v1"),
        ("ftp://127.0.0.1/v1", "no http URL"),
        ("file:///v1", "no http URL"),
        ("/v1", "no http URL"),
        ("http://127.0.0.1:99999/v1", "no URL"),
        ("http://[::1/v1", "no URL"),
        ("http://8.8.8.8@169.254.169.254/v1", "link-local"),
    ],
)
async def test_what_is_far_or_no_endpoint_is_refused(url: str, why: str) -> None:
    with pytest.raises(EndpointRefused, match=why):
        await check_endpoint(url)


class Names:
    """A name server of our own."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self._table = table

    async def getaddrinfo(self, host: str, port: int | None, **_: Any) -> list[Any]:
        if host not in self._table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(None, None, None, "", (a, port)) for a in self._table[host]]


TABLE = {
    "gateway.internal": ["10.0.0.5"],
    "metadata.internal": ["169.254.169.254"],
    "mixed.internal": ["10.0.0.5", "169.254.169.254"],
    "half.internal": ["10.0.0.5", "93.184.216.34"],
    "model.example": ["93.184.216.34"],
}


@pytest.mark.parametrize(
    ("host", "allow_hosts", "refused"),
    [
        ("gateway.internal", (), None),
        ("metadata.internal", (), "link-local"),
        ("mixed.internal", (), "link-local"),
        ("half.internal", (), "neither loopback"),
        ("model.example", (), "neither loopback"),
        ("model.example", ("Model.Example",), None),
        ("metadata.internal", ("metadata.internal",), "link-local"),
        ("nobody.internal", (), "cannot be resolved"),
    ],
)
async def test_names_are_judged_by_every_address_that_they_have(
    monkeypatch: pytest.MonkeyPatch, host: str, allow_hosts: tuple[str, ...], refused: str | None
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", Names(TABLE).getaddrinfo)
    url = f"http://{host}:8000/v1"
    if refused is None:
        assert await check_endpoint(url, allow_hosts=allow_hosts) == url
    else:
        with pytest.raises(EndpointRefused, match=refused):
            await check_endpoint(url, allow_hosts=allow_hosts)
