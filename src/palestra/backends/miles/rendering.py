"""Which renderer the gateway takes for a model that Miles names by a folder."""

from __future__ import annotations

from typing import Any

from palestra.errors import ConfigError
from palestra.policy.rendering import Renderer, load_renderer

_PROBE = (
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
)
_PROBED_LENGTHS = (2, 4)


def find_renderer(tokenizer: Any, *, model_type: str | None) -> Renderer | None:
    """The renderer that writes a conversation to the ids that the chat template writes.

    Tries the one named like the model's type, then ChatML; ``None`` where neither does, or
    where the tokenizer has no chat template to compare with.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    for name in dict.fromkeys((_family(model_type), "chatml")):
        try:
            renderer = load_renderer(name, tokenizer) if name else None
        except ConfigError:
            continue
        if renderer is not None and _agrees(renderer, tokenizer):
            return renderer
    return None


def _family(model_type: str | None) -> str | None:
    """``qwen3`` as it is, ``qwen3_5`` as ``qwen3.5``."""
    if not model_type:
        return None
    name, _, minor = model_type.partition("_")
    return f"{name}.{minor}" if minor.isdecimal() else name


def _agrees(renderer: Renderer, tokenizer: Any) -> bool:
    for length in _PROBED_LENGTHS:
        messages = [dict(message) for message in _PROBE[:length]]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        templated = tokenizer(text, add_special_tokens=False)["input_ids"]
        if renderer.render_ids(messages, tools=None, add_generation_prompt=True) != templated:
            return False
    return True
