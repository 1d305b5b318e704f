"""What a live server and the gateway make of odd requests; each prints what came back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import orjson
from live_parts import Bench, Wire

TOO_MANY_IDS = 40_000
MIXED = "🦜漢字カナ한글🏔️é👩‍👩‍👧"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run a command in a shell.",
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
            },
        },
    }
]


class Session:
    """A session over HTTP that tells what came back, whatever it was."""

    def __init__(self, http: httpx.AsyncClient, base_url: str) -> None:
        self._http = http
        self._url = f"{base_url}/chat/completions"

    async def ask(self, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The whole answer, with its status."""
        body = {"model": "policy", "messages": messages, "temperature": 0.0, **more}
        answer = await self._http.post(self._url, json=body)
        return {"status": answer.status_code, **answer.json()}

    async def stream(self, messages: list[dict[str, Any]], **more: Any) -> list[str]:
        """The pieces of text of a streamed answer."""
        body = {"model": "policy", "messages": messages, "temperature": 0.0, "stream": True, **more}
        pieces = []
        async with self._http.stream("POST", self._url, json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choices = orjson.loads(line[6:])["choices"]
                    pieces += [c["delta"].get("content") or "" for c in choices]
        return [piece for piece in pieces if piece]


async def edge(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """All odd requests, each in a session of its own."""
    async with (
        bench.fleet(Wire()) as fleet,
        bench.gateway(fleet) as url,
        httpx.AsyncClient(timeout=120, trust_env=False) as http,
    ):

        async def tried(case: Case) -> dict[str, Any]:
            opened = (await http.post(f"{url}/sessions", json={"purpose": "evaluation"})).json()
            try:
                return await case(bench, Session(http, opened["base_url"]))
            # What is odd here must not hide the others.
            except Exception as error:
                return {"as_documented": False, "error": repr(error)[:500]}

        for name, case in CASES.items():
            yield {"case": name, **await tried(case)}


async def _too_long(bench: Bench, session: Session) -> dict[str, Any]:
    words = "word " * 100
    num_ids = len(bench.tokenizer.encode(words, add_special_tokens=False))
    text = words * (TOO_MANY_IDS // num_ids + 1)
    answer = await session.ask([{"role": "user", "content": text}])
    error = answer.get("error") or {}
    holds = answer["status"] == 400 and error.get("code") == "context_length_exceeded"
    return {"as_documented": holds, "status": answer["status"], "error": error}


async def _empty(bench: Bench, session: Session) -> dict[str, Any]:
    """An empty question, an answer without a word, and the turn after it."""
    stop = bench.renderer.get_stop_token_ids()[0]
    messages = [{"role": "user", "content": ""}]
    silent = await session.ask(messages, max_tokens=8, logit_bias={str(stop): 100.0})
    content = _content(silent)
    messages += [{"role": "assistant", "content": content}, {"role": "user", "content": "Go on."}]
    after = await session.ask(messages, max_tokens=8)
    return {
        "as_documented": content == "" and after["status"] == 200,
        "content": content,
        "next_status": after["status"],
        "next_content": _content(after),
    }


async def _unicode(bench: Bench, session: Session) -> dict[str, Any]:
    """Characters of several ids: the pieces of a stream are the text that its ids decode to."""
    messages = [{"role": "user", "content": f"Repeat exactly, nothing else: {MIXED}"}]
    whole = await session.ask(messages, max_tokens=64, return_token_ids=True)
    pieces = await session.stream(messages, max_tokens=64)
    ids = whole["choices"][0].get("token_ids") or []
    stops = set(bench.renderer.get_stop_token_ids())
    decoded = bench.tokenizer.decode([i for i in ids if i not in stops])
    return {
        "as_documented": _content(whole).strip() == decoded.strip(),
        "content": _content(whole),
        "decoded_ids": decoded,
        "stream_equals_whole": "".join(pieces) == _content(whole),
        "num_pieces": len(pieces),
        "holds_the_characters": MIXED in _content(whole),
    }


async def _cut(bench: Bench, session: Session) -> dict[str, Any]:
    """Answers of 1, 2, 3, … ids: one that ends inside a character is bridged all the same."""
    messages = [{"role": "user", "content": f"Repeat exactly, nothing else: {MIXED}"}]
    statuses, cut = [], []
    for length in range(1, 9):
        answer = await session.ask(messages, max_tokens=length)
        content = _content(answer)
        if content.endswith("\ufffd"):
            cut.append(length)
        more = [*messages, {"role": "assistant", "content": content}, messages[0]]
        statuses.append((await session.ask(more, max_tokens=4))["status"])
    return {"as_documented": set(statuses) == {200}, "cut_at": cut, "next_statuses": statuses}


async def _tool_call(bench: Bench, session: Session) -> dict[str, Any]:
    """A question that wants a call, and the turn after its result."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "List the files in /tmp with the bash tool."}
    ]
    answer = await session.ask(messages, tools=TOOLS, max_tokens=128)
    message = answer["choices"][0]["message"]
    calls = message.get("tool_calls") or []
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "a.txt\n"} for c in calls]
    results = results or [{"role": "user", "content": "a.txt"}]
    after = await session.ask([*messages, message, *results], tools=TOOLS, max_tokens=64)
    return {
        "as_documented": after["status"] == 200,
        "called": [call["function"] for call in calls],
        "message": message,
        "next": after["choices"][0]["message"] if after["status"] == 200 else after,
    }


async def _malformed(bench: Bench, session: Session) -> dict[str, Any]:
    """A call whose JSON is not closed stays text."""
    broken = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls\n</tool_call>'
    messages = [{"role": "user", "content": f"Repeat exactly, nothing else: {broken}"}]
    answer = await session.ask(messages, tools=TOOLS, max_tokens=64)
    message = answer["choices"][0]["message"]
    calls = message.get("tool_calls") or []
    after = await session.ask(
        [
            *messages,
            message,
            *({"role": "tool", "tool_call_id": c["id"], "content": "a"} for c in calls),
            {"role": "user", "content": "Thanks."},
        ],
        tools=TOOLS,
        max_tokens=8,
    )
    return {
        "as_documented": answer["status"] == after["status"] == 200,
        "message": message,
        "next_status": after["status"],
    }


def _content(answer: dict[str, Any]) -> str:
    if answer["status"] != 200:
        return f"status {answer['status']}"
    return answer["choices"][0]["message"]["content"] or ""


Case = Callable[[Bench, Session], Awaitable[dict[str, Any]]]
CASES: dict[str, Case] = {
    "too_long": _too_long,
    "empty": _empty,
    "unicode": _unicode,
    "cut_in_a_character": _cut,
    "tool_call": _tool_call,
    "malformed_tool_call": _malformed,
}
