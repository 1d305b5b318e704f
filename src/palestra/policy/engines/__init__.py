"""Token-in-token-out samplers.

Importing this package costs nothing: PyTorch comes in with :class:`LocalEngine`, and
its absence shows there as :class:`~palestra.errors.MissingExtra`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from palestra.errors import MissingExtra
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.scripted import ScriptedEngine
from palestra.policy.engines.sglang import SGLangEngine

if TYPE_CHECKING:
    from palestra.policy.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "SGLangEngine", "ScriptedEngine"]


def __getattr__(name: str) -> Any:
    if name != "LocalEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        local = importlib.import_module(f"{__name__}.local")
    except ModuleNotFoundError as error:
        missing = (error.name or "torch").partition(".")[0]
        if missing == "palestra":  # a mistake of ours, not of the installation
            raise
        raise MissingExtra.named("train", needed_for="the local engine", module=missing) from error
    return local.LocalEngine
