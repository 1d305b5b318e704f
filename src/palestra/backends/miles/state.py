"""Miles' own state of a rollout, as far as the hooks use it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol


class MilesState(Protocol):
    """The parts of Miles' ``GenerateState`` that the hooks use."""

    @property
    def tokenizer(self) -> Any:
        """Of the model that is trained."""
        ...

    @property
    def aborted(self) -> bool:
        """Whether the rollout has all samples that it wants."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoneState:
    """Stands in where Miles' rollout module cannot be imported, so that nothing aborts."""

    tokenizer: Any
    aborted: bool = False


def miles_state(args: Namespace) -> MilesState:
    """Miles' state, one in each process; made of ``args`` by the first who asks."""
    try:
        from miles.rollout.sglang_rollout import GenerateState
    except ImportError:
        return LoneState(tokenizer=_tokenizer(args.hf_checkpoint))
    state: MilesState = GenerateState(args)
    return state


@cache
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
