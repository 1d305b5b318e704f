"""Statements in other words, by a model that the user names; ours stay where it fails."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import orjson

from palestra.errors import UsageError
from palestra.forge.records import Candidate
from palestra.forge.statement import leaks

_PROMPT = """\
Below is a bug report. Write the same report again as another user of the library would: in \
other words, perhaps in another order, plain and short. Keep every code block, value, name and \
traceback exactly as it is. Add nothing that is not there: no cause, no fix, no guess, no file \
or function that it does not name. Begin with a title line "# ...". Answer with the report only.

"""
_WORDS = re.compile(r"\w+")
_BLOCK = re.compile(r"^(`{3,})\w*\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_MIN_SHARE, _MAX_SHARE = 0.4, 2.0
_SLACK_CHARS = 400
_MAX_ANSWER_BYTES = 1_000_000
_MAX_DELAY_S = 20.0
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model behind an OpenAI-compatible address.

    Attributes:
        base_url: ends in ``/v1`` mostly.
        name: of the model.
        key_variable: environment variable that holds the key; ``None``: no key is sent.
        timeout_s: for one answer.
        retries: after an answer that did not come, or asks to come back.
        delay_s: before the first retry; doubles with each one, up to 20 s.
        concurrency: questions at once.
    """

    base_url: str
    name: str
    key_variable: str | None = None
    timeout_s: float = 120.0
    retries: int = 2
    delay_s: float = 1.0
    concurrency: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A statement, and why it is still ours.

    Attributes:
        text: the model's, or ours.
        problems: with the model's; empty where it is taken.
    """

    text: str
    problems: tuple[str, ...] = ()


class Rewriter:
    """Asks a model for statements in other words; an async context manager.

    Args:
        model: to ask.

    Raises:
        UsageError: the environment variable of the key is not set.
    """

    def __init__(self, model: Model) -> None:
        headers = {}
        if model.key_variable is not None:
            key = os.environ.get(model.key_variable)
            if not key:
                raise UsageError(
                    f"the environment variable {model.key_variable} is not set",
                    hint="it shall hold the key of the model that rewrites statements",
                )
            headers["Authorization"] = f"Bearer {key}"
        self._model = model
        self._places = asyncio.Semaphore(model.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=model.timeout_s)

    async def rewrite(
        self, statement: str, candidate: Candidate, originals: Mapping[str, bytes], *, seed: int
    ) -> Rewritten:
        """Ask for a statement in other words, and keep ours where the answer is no good.

        Args:
            statement: ours.
            candidate: what it is about.
            originals: path → text without the bugs.
            seed: that the model is asked to sample with.
        """
        async with self._places:
            answer = await self._ask(statement, seed)
        if answer.problems:
            return Rewritten(text=statement, problems=answer.problems)
        text = answer.text.strip() + "\n"
        problems = (*lacks(text, statement), *leaks(text, candidate, originals))
        return Rewritten(text=statement if problems else text, problems=problems)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Rewriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, statement: str, seed: int) -> Rewritten:
        problem = ""
        for attempt in range(self._model.retries + 1):
            if attempt:
                await asyncio.sleep(min(_MAX_DELAY_S, self._model.delay_s * 2 ** (attempt - 1)))
            try:
                # httpx bounds the wait for each piece of an answer; this bounds all of it.
                async with asyncio.timeout(self._model.timeout_s):
                    status, body = await self._post(statement, seed)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                problem = f"the model does not answer: {type(error).__name__}"
                continue
            if status == httpx.codes.OK:
                text = _content(body)
                return Rewritten(text=text) if text else _refused("the answer has no text")
            problem = f"the model answers with status {status}"
            if status not in _RETRIED:
                break
        return _refused(problem)

    async def _post(self, statement: str, seed: int) -> tuple[int, bytes]:
        question = {
            "model": self._model.name,
            "messages": [{"role": "user", "content": _PROMPT + statement}],
            "temperature": 0.7,
            "seed": seed,
        }
        url = f"{self._model.base_url.rstrip('/')}/chat/completions"
        body = b""
        async with self._client.stream("POST", url, json=question) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    break
            return response.status_code, body


def lacks(text: str, statement: str) -> tuple[str, ...]:
    """What a rewritten statement lacks, or has too much of; empty where it is good.

    Every block of code, value or traceback must stand in it, and every name in backquotes;
    blocks and names of its own it must not have. Its length may differ by a factor of two.
    """
    problems = []
    blocks, own_blocks = _blocks(statement), _blocks(text)
    if not text.startswith("# "):
        problems.append("it has no title")
    if missing := [block for block in blocks if block not in own_blocks]:
        problems.append(f"it lacks {missing[0]!r}")
    if added := [block for block in own_blocks if block not in blocks]:
        problems.append(f"it adds {added[0]!r}")
    known = set(_WORDS.findall(statement))
    names = _INLINE.findall(_BLOCK.sub("", text))
    problems += [f"it names `{n}`" for n in names if not set(_WORDS.findall(n)) <= known]
    if lost := set(_INLINE.findall(_BLOCK.sub("", statement))) - set(names):
        problems += [f"it does not name `{name}`" for name in sorted(lost) if name not in text]
    if not (len(statement) * _MIN_SHARE <= len(text) <= len(statement) * _MAX_SHARE + _SLACK_CHARS):
        problems.append(f"it has {len(text)} characters, ours {len(statement)}")
    return tuple(problems)


def _blocks(text: str) -> Sequence[str]:
    return [match[2] for match in _BLOCK.finditer(text)]


def _refused(problem: str) -> Rewritten:
    return Rewritten(text="", problems=(problem,))


def _content(body: bytes) -> str:
    try:
        answer: Any = orjson.loads(body)
        content = answer["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""
    return content.strip() if isinstance(content, str) else ""
