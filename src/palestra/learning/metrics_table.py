"""``metrics.csv``: one row per step; columns appear as metrics do."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from palestra.errors import HostError


class MetricsTable:
    """Appends rows to a CSV file whose first column is ``step``.

    A metric that a step does not report is an empty cell.

    Args:
        path: of the file; made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the row of a step.

        Raises:
            HostError: the disk is full, there is no permission, or the like.
        """
        row = {"step": str(step)} | {name: repr(value) for name, value in metrics.items()}
        try:
            columns, rows, whole = self._read()
            new = [name for name in row if name not in columns]
            if new or not whole:
                self._rewrite([*columns, *new], [*rows, row])
            else:
                with self._path.open("a", encoding="utf-8", newline="") as file:
                    file.write(_csv(columns, [row], header=False))
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write the metrics") from error

    def truncate(self, *, after_step: int) -> None:
        """Remove the rows of later steps, which will be done again, and a torn last line.

        Raises:
            HostError: the file cannot be rewritten.
        """
        try:
            columns, rows, whole = self._read()
            kept = [row for row in rows if int(row["step"]) <= after_step]
            if columns and (len(kept) < len(rows) or not whole):
                self._rewrite(columns, kept)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write the metrics") from error

    def rows(self) -> list[dict[str, str]]:
        """All rows as text; empty cells are left out."""
        return self._read()[1]

    def _read(self) -> tuple[list[str], list[dict[str, str]], bool]:
        """The columns, the rows, and whether the file ends where a line does."""
        if not self._path.exists():
            return [], [], False
        text = self._path.read_text(encoding="utf-8")
        head, newline, torn = text.rpartition("\n")
        reader = csv.DictReader(io.StringIO(head + newline, newline=""))
        rows = [{k: v for k, v in row.items() if v} for row in reader]
        return list(reader.fieldnames or ()), rows, bool(newline) and not torn

    def _rewrite(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(_csv(columns, rows, header=True))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
