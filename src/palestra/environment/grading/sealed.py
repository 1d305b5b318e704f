"""What a test run reports under a key, and how to read it.

A grading makes a key for one test run. Sandboxes hand it over on a descriptor that can be
read once, and the programs of ``witness/`` take it before any code under test is imported;
a kata's own runner does the same. At its end the run writes one line with what it has seen,
signed: what prints, exits early, kills the runner or writes files does not have the key.

A signed report is lines: ``canary STATUS`` for each test that must not pass, ``finding …``
for what was seen to be tampered with, ``spread`` where worker processes ran the tests (which
have no canaries), an empty line, and the log of the runner in the row's format.
"""

from __future__ import annotations

import binascii
import hmac
import secrets
from dataclasses import dataclass
from hashlib import blake2b

SEAL_MARK = ">>>>> Palestra Sealed "


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedReport:
    """A report that only the holder of the key can have written.

    Attributes:
        log: what the runner saw, in the format of the row's log parser.
        canaries: how the tests ended that must not pass.
        findings: what the run saw of tampering.
        is_spread: whether worker processes ran the tests.
    """

    log: str
    canaries: tuple[str, ...]
    findings: tuple[str, ...]
    is_spread: bool


def new_key() -> str:
    """A key for one test run."""
    return secrets.token_hex(32)


def open_sealed(log: str, key: str) -> SealedReport | None:
    """The first report in ``log`` that is signed with ``key``, if there is one."""
    for line in log.split("\n"):
        _, mark, rest = line.partition(SEAL_MARK)
        if mark and (report := _opened(rest, key)) is not None:
            return _read(report)
    return None


def without_seals(log: str) -> str:
    """``log`` for a reader: reports and the empty lines before them left out."""
    if SEAL_MARK not in log:
        return log
    return "\n".join(line for line in log.split("\n") if SEAL_MARK not in line)


def _opened(line: str, key: str) -> str | None:
    signature, _, encoded = line.strip().partition(" ")
    try:
        report = binascii.a2b_base64(encoded.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        return None
    expected = blake2b(report, key=key.encode()).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        return None
    return report.decode("utf-8", "replace")


def _read(report: str) -> SealedReport:
    head, _, log = report.partition("\n\n") if not report.startswith("\n") else ("", "", report[1:])
    lines = [line.partition(" ") for line in head.split("\n")]
    return SealedReport(
        log=log,
        canaries=tuple(rest for word, _, rest in lines if word == "canary"),
        findings=tuple(rest for word, _, rest in lines if word == "finding"),
        is_spread=any(word == "spread" for word, _, _ in lines),
    )
