"""Practice conversations as ids: what mini-swe-agent, the shell and the policy would say.

Nothing is run: the observations are known, since a file is shown and an edit is silent.
``tests/tools/test_demo_policy.py`` holds these ids against those of a real episode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palestra.environment.agents.prompt_set import PromptSet, load_prompt_set
from palestra.run.demonstrations import as_action
from palestra.tasks.katas.blind import blind_edits, look_edit_submit
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.practice import draw_practice

PROMPT_SET = "kata"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
ONE_IN_SEEING = 10
"""One demonstration in this many makes the edit that the issue calls for."""

_PART = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Conversations end to end: ``ids`` of all, ``starts`` of each, and which ids are answers.

    ``costs`` is what the demonstrator's choice of its edit costs whoever knows all but the
    choice: minus the log of its probability, in nats.
    """

    ids: NDArray[np.uint16]
    is_answer: NDArray[np.bool_]
    starts: NDArray[np.int64]  # one more than there are conversations
    costs: NDArray[np.float64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids of each conversation."""
        return np.diff(self.starts)


def practice_conversation(name: str, prompts: PromptSet) -> tuple[str, float]:
    """The conversation that is drawn from the stream ``name``, and its cost (see ``Corpus``)."""
    draw = Draw(name)
    practice = draw_practice(draw)
    edits = blind_edits(practice.path, practice.text)
    seeing = 1 / ONE_IN_SEEING
    edit = practice.called_for if draw.below(ONE_IN_SEEING) == 0 else draw.weighted(edits)
    probability = seeing * (edit == practice.called_for) + (1 - seeing) * edits[edit]
    commands = look_edit_submit(practice.path, edit)
    text = conversation(prompts, practice.problem_statement, (practice.text, ""), commands)
    return text, -math.log(probability)


def practice_texts(seed: int, num: int) -> Iterator[str]:
    """``num`` practice conversations."""
    prompts = load_prompt_set(PROMPT_SET)
    return (practice_conversation(f"practice {seed} {n}", prompts)[0] for n in range(num))


def build(tokenizer_file: str, *, seed: int, num: int, num_processes: int) -> Corpus:
    """Draw and encode ``num`` conversations; the number of processes changes nothing."""
    parts = [
        (tokenizer_file, seed, first, min(first + _PART, num)) for first in range(0, num, _PART)
    ]
    # Spawned: torch's threads do not survive a fork.
    with get_context("spawn").Pool(num_processes) as pool:
        done = pool.map(_encode_part, parts, chunksize=1)
    lengths = np.concatenate([part[2] for part in done])
    return Corpus(
        ids=np.concatenate([part[0] for part in done]),
        is_answer=np.concatenate([part[1] for part in done]),
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        costs=np.concatenate([part[3] for part in done]),
    )


def answers(ids: Sequence[int], opening: Sequence[int], end: int) -> list[bool]:
    """Which ids the policy would have sampled: from after ``opening`` to ``end``, included."""
    flags, inside, n = [], False, len(opening)
    for position, token in enumerate(ids):
        flags.append(inside)
        if token == end:
            inside = False
        elif list(ids[position + 1 - n : position + 1]) == list(opening):
            inside = True
    return flags


def conversation(
    prompts: PromptSet, statement: str, outputs: Sequence[str], commands: Sequence[str]
) -> str:
    """A whole conversation as ChatML text, from the system prompt to the last answer.

    Args:
        prompts: what the agent says.
        statement: of the task.
        outputs: of all commands but the last; all succeed.
        commands: one in each answer.
    """
    texts = [
        _block("system", prompts.render(prompts.system_template, {})),
        _block("user", prompts.render(prompts.instance_template, {"task": statement})),
    ]
    for command, output in zip(commands[:-1], outputs, strict=True):
        told = {"output": output, "returncode": 0, "exception_info": ""}
        texts.append(_block("assistant", as_action(command)))
        texts.append(_block("user", prompts.render(prompts.observation_template, {"output": told})))
    texts.append(f"{IM_START}assistant\n{as_action(commands[-1])}{IM_END}")
    return "".join(texts)


def _block(role: str, content: str) -> str:
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def _encode_part(
    part: tuple[str, int, int, int],
) -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    from tokenizers import Tokenizer

    path, seed, first, last = part
    tokenizer: Any = Tokenizer.from_file(path)
    prompts = load_prompt_set(PROMPT_SET)
    opening = tokenizer.encode(f"{IM_START}assistant\n", add_special_tokens=False).ids
    end = tokenizer.token_to_id(IM_END)
    drawn = [practice_conversation(f"practice {seed} {n}", prompts) for n in range(first, last)]
    texts, costs = zip(*drawn, strict=True)
    encoded = [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    return (
        np.fromiter((i for ids in encoded for i in ids), dtype=np.uint16),
        np.fromiter((a for ids in encoded for a in answers(ids, opening, end)), dtype=np.bool_),
        np.array([len(ids) for ids in encoded], dtype=np.int64),
        np.array(costs),
    )
