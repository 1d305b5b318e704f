"""How soon a connection whose other end vanished without a word is known to be broken.

An answer may take hours, so no time-out of the answer can tell.
"""

from __future__ import annotations

import errno
import socket

IDLE_S = 15
INTERVAL_S = 5
COUNT = 6
GONE_AFTER_S = IDLE_S + INTERVAL_S * COUNT
"""Shorter outages go unnoticed: the connection then goes on where it was."""

_SILENT = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)

SocketOption = tuple[int, int, int]


def socket_options() -> list[SocketOption]:
    """What makes the system ask the other end whether it is there, and give up in time."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", COUNT),
        # While something that was sent is not acknowledged, the system asks nothing.
        ("TCP_USER_TIMEOUT", GONE_AFTER_S * 1000),
    ):
        number = getattr(socket, name, None)  # not every system has all of them
        if number is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    return options


def vanished(error: BaseException) -> bool:
    """Whether ``error`` comes of an established connection whose other end went silent.

    Connections that are refused, reset or never come about are something else.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _SILENT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
