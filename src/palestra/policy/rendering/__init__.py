"""Messages ↔ ids: our ChatML renderer, and those of the renderers package."""

from palestra.policy.rendering.chatml import ChatMLConfig, ChatMLRenderer
from palestra.policy.rendering.loading import load_renderer
from palestra.policy.rendering.protocol import Renderer, Tokenizer

__all__ = ["ChatMLConfig", "ChatMLRenderer", "Renderer", "Tokenizer", "load_renderer"]
