"""Weights & Biases; ``WANDB_MODE=offline`` keeps all in ``RUN/wandb``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from palestra.errors import HostError
from palestra.run.loggers.protocol import LoggedRun

STEP = "step"


class WandbLogger:
    """Logs to one wandb run, which a resumed run of ours goes on with.

    Args:
        run: whose metrics they are.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        online = wandb.setup().settings.mode == "online"
        # Never a question on the terminal of a run that nobody watches.
        if online and not wandb.login(prompt=False):
            raise HostError("it has no key", hint="wandb login, or WANDB_MODE=offline")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=hashlib.blake2b(str(run.folder).encode(), digest_size=8).hexdigest(),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Not wandb's own step, which cannot go back to a checkpoint.
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics with their step as one of them."""
        self._run.log({STEP: step, **metrics})

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()
