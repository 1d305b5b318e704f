"""A tiny random model with a tokenizer of its own: a real policy that needs no hub.

The architecture is Qwen3's and the folder is an ordinary Hugging Face one, so
whatever serves or trains it serves and trains the big ones too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.errors import HostError, MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
"""Their ids are 0, 1 and 2."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Words, digits, operators and runs of blanks never share an id with what stands
# beside them (a word does not swallow the blank before it), so a word, a line or
# an operator has the same ids wherever it is copied to. Identifiers are words.
PIECES = (
    r"[\p{L}_]+|\p{N}|\r?\n|[^\S\r\n]+"
    r"|```|\*\*=|//=|<<=|>>=|[=!<>+\-*/%&|^@:]=|\*\*|//|<<|>>|->|&&|\|\|"
    r"|[^\s\p{L}\p{N}]|\r"
)

NUM_BYTES = 256
NUM_HEADS = 4
MAX_POSITIONS = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    vocab_size: int
    hidden_size: int
    num_layers: int

    def __post_init__(self) -> None:
        smallest = NUM_BYTES + len(SPECIAL_TOKENS)
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size {self.vocab_size} is below {smallest}")
        if self.hidden_size < 1 or self.hidden_size % (2 * NUM_HEADS):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {2 * NUM_HEADS}")
        if self.num_layers < 1:
            raise ValueError(f"num_layers {self.num_layers} is below 1")


def make_tiny_model(
    folder: Path,
    *,
    texts: Iterable[str],
    vocab_size: int = 1024,
    hidden_size: int = 128,
    num_layers: int = 4,
    seed: int = 0,
) -> Path:
    """Write a random Qwen3-architecture model and a tokenizer trained on ``texts``.

    The same arguments give the same bytes. The default has about 0.9 M
    parameters. ``<|im_end|>`` is the end-of-sequence token.

    Args:
        folder: made if need be; files in it are overwritten.
        texts: what the vocabulary is learnt from.
        vocab_size: most ids; few or short texts give fewer.
        hidden_size: a multiple of 8.
        num_layers: transformer blocks.
        seed: of the weights.

    Returns:
        ``folder``.

    Raises:
        MissingExtra: torch, transformers or tokenizers are not installed.
        HostError: the folder cannot be written.
        ValueError: a size is out of range.
    """
    shape = _Shape(vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers)
    try:
        tokenizer = _train_tokenizer(texts, shape.vocab_size)
        wrapped = _wrap(tokenizer)
        model = _random_model(shape, vocab_size=tokenizer.get_vocab_size(), seed=seed)
    except ModuleNotFoundError as error:
        module = (error.name or "torch").partition(".")[0]
        raise MissingExtra.named("train", needed_for="a tiny model", module=module) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wrapped.save_pretrained(folder)
        _save_quietly(model, folder)
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot write the tiny model to {folder}") from error
    return folder


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # Every byte has an id, so that any text comes back as it was.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def _random_model(shape: _Shape, *, vocab_size: int, seed: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=3 * shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS // 2,
        head_dim=shape.hidden_size // NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(IM_END),
        pad_token_id=SPECIAL_TOKENS.index(END_OF_TEXT),
        dtype="float32",
    )
    # The constructor draws too: the process's random numbers are not ours to use up.
    with torch.random.fork_rng(devices=[]):
        model = Qwen3ForCausalLM(config)
    # Norms keep their ones.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model


def _save_quietly(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
