"""The tiny model and its tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from palestra.errors import HostError
from palestra.policy.tiny import make_tiny_model

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

TEXTS = [Path(__file__).read_text(encoding="utf-8")] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "new" / "folder", texts=TEXTS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_it_loads_like_any_other(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) <= 1024
    assert 500_000 < sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == stop == model.config.eos_token_id
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()


def test_the_template_is_chatml(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    for token, count in (("<|im_start|>", 3), ("<|im_end|>", 2)):
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == count


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    "text",
    ["", "a , b . c 's", "naïve e\u0301 漢字 🙂👩‍👩‍👧", "\r\n\t \r \u2028\x00", "<|im_end|>\n"],
)
def test_awkward_texts_come_back_as_they_were(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("piece", ["total", "<=", "**", "->", "42", "snake_case", "x[i+1]"])
def test_a_copied_piece_keeps_its_ids_wherever_it_stands(tokenizer: Any, piece: str) -> None:
    ids = tokenizer.encode(piece, add_special_tokens=False)
    for before, after in (("", ""), (" ", " "), ("\n    ", "\n"), ("(", ")"), ("`", "`")):
        around = tokenizer.encode(before + piece + after, add_special_tokens=False)
        start = len(tokenizer.encode(before, add_special_tokens=False))
        assert around[start : start + len(ids)] == ids, (before, after)


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = make_tiny_model(tmp_path / "again", texts=iter(TEXTS))
    assert _digests(again) == _digests(folder)
    other = make_tiny_model(tmp_path / "other", texts=TEXTS, seed=1)
    differing = {n for n, d in _digests(other).items() if d != _digests(folder)[n]}
    assert differing == {"model.safetensors"}
    assert torch.equal(torch.random.get_rng_state(), state), "it used up the process's numbers"


def test_sizes_are_settable(tmp_path: Path) -> None:
    folder = make_tiny_model(
        tmp_path, texts=["few words"], vocab_size=400, hidden_size=64, num_layers=2
    )
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.num_hidden_layers == 2
    # So few texts teach few merges; the model has no ids beyond the tokenizer's.
    assert model.config.vocab_size == len(tokenizer) < 400


@pytest.mark.parametrize(
    "sizes", [{"vocab_size": 200}, {"hidden_size": 100}, {"hidden_size": 0}, {"num_layers": 0}]
)
def test_senseless_sizes_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        make_tiny_model(tmp_path / "never", texts=TEXTS, **sizes)
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError, match="cannot write the tiny model"):
        make_tiny_model(tmp_path / "file" / "folder", texts=TEXTS)
