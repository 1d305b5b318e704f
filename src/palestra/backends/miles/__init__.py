"""Hooks for Miles, named on its command line as ``palestra.backends.miles.NAME``.

============================================  =========================================
``--custom-generate-function-path``           :func:`generate`
``--custom-rm-path``                          :func:`reward_func`
``--rollout-function-path``                   :func:`generate_rollout`
``--dynamic-sampling-filter-path``            :func:`dynamic_filter`
``--custom-tis-function-path``                :func:`mis`
``--custom-agent-function-path``              :func:`agent`, for a Miles with a session server
============================================  =========================================

Each is loaded when it is named: the process that trains needs no gateway, the one that
rolls out no losses, and whoever composes a command needs neither Miles nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palestra.backends.miles.agentic import agent
    from palestra.backends.miles.generation import generate
    from palestra.backends.miles.judging import dynamic_filter, reward_func
    from palestra.backends.miles.mismatch import mis
    from palestra.backends.miles.rolling import generate_rollout

__all__ = ["agent", "dynamic_filter", "generate", "generate_rollout", "mis", "reward_func"]

_MODULES = {
    "agent": "agentic",
    "dynamic_filter": "judging",
    "generate": "generation",
    "generate_rollout": "rolling",
    "mis": "mismatch",
    "reward_func": "judging",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
