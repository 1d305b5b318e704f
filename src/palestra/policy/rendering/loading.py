"""Finding the renderer that a recipe names, and checking that it is fit for its duty."""

from __future__ import annotations

from typing import Any

from renderers import create_renderer
from renderers.configs import CustomRendererConfig, config_from_name

from palestra.errors import ConfigError
from palestra.policy.rendering.chatml import IMPORT_PATH
from palestra.policy.rendering.plain_text import PlainTextTokenizer
from palestra.policy.rendering.protocol import Renderer, Tokenizer


def load_renderer(name: str, tokenizer: Tokenizer, *, require_bridge: bool = True) -> Renderer:
    """Build the renderer called ``name`` for ``tokenizer``.

    Args:
        name: ``chatml`` (ours) or a name of the renderers package, such as ``qwen3``.
        tokenizer: of the model that will sample.
        require_bridge: refuse a renderer that cannot append a turn to sampled
            ids; training needs it. Thinking is then kept in the history.

    Raises:
        ConfigError: the name is unknown, does not fit the tokenizer, cannot
            bridge, or lets text forge a control token.
    """
    plain = PlainTextTokenizer.over(tokenizer)
    config = _config(name, keep_thinking=require_bridge)
    try:
        renderer: Renderer = create_renderer(plain, config)
        spoils = name != "chatml" and _probe(create_renderer(tokenizer, config)) != _probe(renderer)
    except ConfigError:
        raise
    # Third-party code signals a tokenizer that does not fit in any of these ways.
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the renderer {name!r} does not fit the tokenizer {tokenizer.name_or_path!r}: {error}"
        ) from error
    if spoils:
        raise ConfigError(
            f"the renderer {name!r} writes control tokens as text, so text could forge them",
            hint="set model.renderer to chatml or to the model family's own renderer",
        )
    if require_bridge and not _can_bridge(renderer, plain):
        raise ConfigError(
            f"the renderer {name!r} cannot append a turn to sampled ids, so it cannot train",
            hint="set model.renderer to chatml or to the model family's own renderer",
        )
    for stop_id in renderer.get_stop_token_ids():
        written = plain.decode([stop_id], skip_special_tokens=False)
        if _probe(renderer, written).count(stop_id) != _probe(renderer).count(stop_id):
            raise ConfigError(
                f"the renderer {name!r} turns the text {written!r} into the control token "
                f"{stop_id}: tool output could pose as a turn",
                hint="set model.renderer to chatml or to the model family's own renderer",
            )
    return renderer


def _config(name: str, *, keep_thinking: bool) -> Any:
    if name == "chatml":
        return CustomRendererConfig(import_path=IMPORT_PATH)
    try:
        config = config_from_name(name)
    except ValueError as error:
        raise ConfigError(
            f"there is no renderer {name!r}", hint="chatml, or a name of the renderers package"
        ) from error
    if config is None:
        raise ConfigError(
            "the renderer must be named: 'auto' would guess from the model's hub name",
            hint="chatml, or a name of the renderers package",
        )
    # The default renderer takes no retention; it is refused for what it is, below.
    if not keep_thinking or name == "default":
        return config
    try:
        return type(config)(thinking_retention="all")
    except ValueError as error:
        raise ConfigError(f"the renderer {name!r} cannot keep thinking: {error}") from error


def _probe(renderer: Renderer, content: str = "b") -> list[int]:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": content}]
    return renderer.render_ids(messages, tools=None, add_generation_prompt=True)


def _can_bridge(renderer: Renderer, tokenizer: PlainTextTokenizer) -> bool:
    """Try it on a short conversation: as sampled to the stop, and as cut by length."""
    prompt = _probe(renderer)
    reply = tokenizer.encode("b", add_special_tokens=False)
    for completion in ([*reply, *renderer.get_stop_token_ids()[:1]], reply):
        bridged = renderer.bridge_to_next_turn(
            prompt, completion, [{"role": "user", "content": "c"}]
        )
        before = [*prompt, *completion]
        if bridged is not None and bridged.token_ids[: len(before)] == before:
            return True
    return False
