"""Under which address the two halves of a run find each other, without anybody copying one."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit, urlunsplit

from palestra.config import EnvironmentSection, GatewaySection
from palestra.errors import ConfigError, EnvironmentUnavailable

URL_VARIABLE = "SWE_AGENT_GYM_URL"
LOOPBACK = "127.0.0.1"


def named_url(section: EnvironmentSection) -> str | None:
    """The environment server that the recipe or ``$SWE_AGENT_GYM_URL`` names, if one does."""
    named = section.url or os.environ.get(URL_VARIABLE)
    return named.rstrip("/") if named else None


def without_secrets(url: str) -> str:
    """The URL without a user and a password, as it may stand in logs and on pages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"  # nobody knows what in it is a secret
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def gateway_host(section: GatewaySection, environment: str | None) -> str:
    """Where the gateway listens: where the environment server can reach it, and no further.

    Args:
        section: may name an address.
        environment: URL of a named environment server; ``None`` for one of our own, which
            is on this machine.

    Raises:
        ConfigError: ``environment`` is no URL.
        EnvironmentUnavailable: its host cannot be resolved, or no route leads there.
    """
    if section.host is not None:
        return section.host
    return LOOPBACK if environment is None else _address_towards(environment)


def _address_towards(url: str) -> str:
    """The address of this machine from which packets go to the host of ``url``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise ConfigError(f"{url} is no URL: {error}") from None
    if not host:
        raise ConfigError(f"{url} names no host")
    try:
        family, kind, _, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(peer)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        raise EnvironmentUnavailable(
            f"the environment server at {host}:{port} cannot be reached: {error.strerror or error}",
            hint="check environment.url or $SWE_AGENT_GYM_URL",
        ) from error
