"""torch.compile for the parts of a model where it pays."""

from __future__ import annotations

import os
import shutil
from typing import Any

from palestra.errors import ConfigError

_REGIONS = ("norm", "mlp")
"""Ends of the names of modules whose many small operations become few."""


def compile_regions(model: Any) -> None:
    """Let norms and MLPs be compiled when they are first computed, for inputs of any size.

    The rest gains nothing or cannot be compiled: projections are single matrix products, and
    attention is a kernel already, called in a loop over segments. What is around the regions,
    as recomputation and hooks, stays as it is. Outputs differ by rounding.

    Raises:
        ConfigError: there is nothing to compile, or no compiler.
    """
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        raise ConfigError(
            "training.compile needs a C++ compiler",
            hint="install g++, or training.compile = false",
        )
    regions = [module for name, module in model.named_modules() if name.endswith(_REGIONS)]
    if not regions:
        raise ConfigError(
            f"{type(model).__name__} has no norms and MLPs by these names to compile",
            hint="training.compile = false",
        )
    for region in regions:
        region.compile(dynamic=True)
