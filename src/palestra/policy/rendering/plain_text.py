"""A tokenizer view in which text never becomes a control token.

Message contents are untrusted: a file that holds ``<|im_end|>`` must reach the
model as those characters, or it could end the observation and speak as the
user. Renderers place control tokens by id, so their text needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from palestra.errors import ConfigError
from palestra.policy.rendering.protocol import Tokenizer


class PlainTextTokenizer:
    """Wraps a tokenizer so that special tokens written in text are split like any text.

    Added tokens that are not marked special (Qwen3's ``<tool_call>``) keep
    their ids: the chat templates of those models write them as text too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def over(cls, tokenizer: Tokenizer) -> PlainTextTokenizer:
        """Wrap ``tokenizer``; one that is wrapped already is returned as it is."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode plain text with the options of the wrapped tokenizer."""
        return self._tokenizer(text, **{**options, "split_special_tokens": True})

    def encode(self, text: str, **options: Any) -> list[int]:
        """Encode plain text."""
        return self._tokenizer.encode(text, **{**options, "split_special_tokens": True})

    def require_plain(self, control_ids: Iterable[int]) -> None:
        """Check that no text can become one of ``control_ids``.

        Raises:
            ConfigError: the tokenizer turns the written form into the control token.
        """
        for control_id in control_ids:
            text = self._tokenizer.decode([control_id], skip_special_tokens=False)
            if control_id in self.encode(text, add_special_tokens=False):
                raise ConfigError(
                    f"the tokenizer {self._tokenizer.name_or_path!r} turns the text {text!r} into "
                    f"the control token {control_id}: tool output could pose as a turn",
                    hint="mark the token as special in tokenizer.json",
                )
