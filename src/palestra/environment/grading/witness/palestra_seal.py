"""Signs what a test run reports. Runs inside the sandbox, on any Python from 3.6.

The key is read once, from a pipe, before any code under test is imported. What is signed is
a text of lines: ``canary STATUS`` and ``finding …``, an empty line, and then what the test
runner's log says in the row's own format.
"""

import binascii
import os

try:
    from _blake2 import blake2b  # without loading OpenSSL
except ImportError:
    from hashlib import blake2b

SECRET_FD = 7
MARK = b">>>>> Palestra Sealed "


def open_seal():
    """Take the key; a function that writes a signed report to what is stdout now, once.

    ``None`` where there is no key: another process took it, or nobody gave one.
    """
    write, encode = os.write, binascii.b2a_base64
    try:
        key = os.read(SECRET_FD, 256).strip()
        os.close(SECRET_FD)
    except OSError:
        key = b""
    if not key:
        return None
    log_fd = os.dup(1)
    uses = iter([True])

    def seal(text):
        if not next(uses, False):
            return
        report = text.encode("utf-8", "backslashreplace")
        signature = blake2b(report, key=key).hexdigest().encode()
        line = b"\n" + MARK + signature + b" " + encode(report, newline=False) + b"\n"
        while line:
            line = line[write(log_fd, line) :]

    return seal


def leave_no_trace(folder):
    """Take ``folder`` off the paths, so that what this process starts is not watched too."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = os.pathsep.join(path for path in paths if path != folder)
    if others:
        os.environ["PYTHONPATH"] = others
    else:
        os.environ.pop("PYTHONPATH", None)
