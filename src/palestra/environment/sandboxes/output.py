"""What a command prints, held to a head and a tail."""

from __future__ import annotations


class HeadAndTail:
    """Keeps the first and the last bytes of a stream; memory stays bounded."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_bytes = limit_bytes - limit_bytes // 2
        self._tail_bytes = limit_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._num_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._num_bytes += len(data)
        room = self._head_bytes - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            # Cut in big steps: a cut moves the whole tail.
            if len(self._tail) > 2 * self._tail_bytes + (1 << 16):
                self._cut()

    @property
    def elided_bytes(self) -> int:
        """How many bytes were dropped between head and tail."""
        self._cut()
        return self._num_bytes - len(self._head) - len(self._tail)

    def bytes(self) -> bytes:
        """Head and tail, with nothing in between."""
        self._cut()
        return bytes(self._head + self._tail)

    def text(self) -> str:
        """Head and tail as UTF-8, what is not UTF-8 replaced, the gap marked."""
        if not self.elided_bytes:
            return self.bytes().decode("utf-8", "replace")
        head = self._head.decode("utf-8", "replace")
        tail = self._tail.decode("utf-8", "replace")
        return f"{head}\n[... {self.elided_bytes} bytes elided ...]\n{tail}"

    def _cut(self) -> None:
        surplus = len(self._tail) - self._tail_bytes
        if surplus > 0:
            del self._tail[:surplus]
