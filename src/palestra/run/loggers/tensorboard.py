"""TensorBoard event files in ``RUN/tensorboard``, by PyTorch's writer; no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

from palestra.run.loggers.protocol import LoggedRun


class TensorBoardLogger:
    """Writes scalars.

    Args:
        run: whose metrics they are.
    """

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
