"""Rows from the model hub, streamed, so that a large data set needs no disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from palestra.errors import HostError, MissingExtra, TaskError


def hub_rows(name: str, *, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set: ``{"where": …, "payload": the row}``.

    Args:
        name: ``ORGANISATION/DATASET``, or a folder in the hub's layout.
        split: of the data set.

    Raises:
        MissingExtra: the library ``datasets`` is not installed.
        TaskError: there is no such data set or split.
        HostError: the hub cannot be reached, or refuses.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra.named("hub", needed_for=f"reading {name}", module="datasets") from None
    number = 0
    try:
        for row in datasets.load_dataset(name, split=split, streaming=True):
            number += 1
            yield {"where": f"{name} ({split}): row {number}", "payload": row}
    except ValueError as error:  # an unknown split, or a layout that it cannot read
        raise TaskError(f"{name}, split {split}: {_first_line(error)}") from None
    except FileNotFoundError as error:
        raise TaskError(
            f"there is no data set {name} with a split {split}: {_first_line(error)}",
            hint="check the name; for a local file give its path, with .jsonl or .parquet",
        ) from None
    except OSError as error:  # requests' and the hub's own errors are these too
        raise HostError(
            f"cannot read {name} from the hub: {_first_line(error)}",
            hint="check the network, HF_ENDPOINT and HF_TOKEN; or give a file that you have",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
