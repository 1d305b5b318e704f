"""Text of strangers as it can be seen on a page."""

from __future__ import annotations

import unicodedata


def shown(text: str) -> str:
    """Text as it can be seen: control and direction characters by their names."""
    return "".join(_visible(char) if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cf", "Cs"}


def _visible(char: str) -> str:
    code = ord(char)
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"


def diff_line(line: str) -> str:
    """The class of a line of a unified diff."""
    if line.startswith(("+++", "---", "diff ", "index ", "@@", "new file", "deleted file")):
        return "meta"
    return {"+": "plus", "-": "minus"}.get(line[:1], "same")
