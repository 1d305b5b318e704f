"""Which policy endpoints a request may name.

A server that fetches what a request tells it to must not be made to fetch the cloud's
metadata, which lies on link-local addresses, or the internet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

RESOLVE_TIMEOUT_S = 5.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Written out: Python's is_private also holds for link-local and reserved ranges.
_NEAR = tuple(
    map(
        ipaddress.ip_network,
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)
# Link-local, and the one metadata address that lies in a private range.
_NEVER = tuple(
    map(ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "0.0.0.0/8"))
)


class EndpointRefused(ValueError):
    """A request named an endpoint that it may not name, or that is none."""


class EndpointUnresolved(EndpointRefused):
    """Nobody knows the host's address now, which may be different soon."""


async def check_endpoint(url: str, *, allow_hosts: Collection[str] = ()) -> str:
    """Return ``url`` if a request may name it as its policy endpoint.

    It must be an OpenAI base URL (``http(s)://HOST[:PORT]/…/v1``) whose host is
    loopback or in a private network under every address it resolves to, or is one
    of ``allow_hosts``. Link-local addresses are refused whatever the list says. Names
    are judged by what they resolve to now; redirects are never followed.

    Raises:
        EndpointRefused: it may not, with the reason.
    """
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise EndpointRefused(f"is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise EndpointRefused("is no http URL with a host")
    if not parts.path.endswith("/v1") or parts.query or parts.fragment:
        raise EndpointRefused("must end in /v1")
    addresses = await _resolve(host, port)
    allowed = host.lower() in {name.lower() for name in allow_hosts}
    for address in addresses:
        if _in(address, _NEVER) or address.is_multicast:
            raise EndpointRefused(
                f"names {_said(host, address)}, which is link-local: never allowed"
            )
        if not allowed and not _in(address, _NEAR):
            raise EndpointRefused(
                f"names {_said(host, address)}, which is neither loopback nor in a private "
                "network; environment.allow_hosts of the server's recipe may list it"
            )
    return url


async def _resolve(host: str, port: int | None) -> list[Address]:
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
    except TimeoutError:
        raise EndpointUnresolved(f"names {host}, which no name server answers for") from None
    except (OSError, UnicodeError) as error:
        raise EndpointUnresolved(f"names {host}, which cannot be resolved: {error}") from None
    return [_plain(ipaddress.ip_address(info[4][0])) for info in found]


def _said(host: str, address: Address) -> str:
    return host if host == str(address) else f"{host} ({address})"


def _plain(address: Address) -> Address:
    """An IPv4 address in IPv6 clothes is judged as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _in(
    address: Address, networks: Collection[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    return any(address.version == network.version and address in network for network in networks)
