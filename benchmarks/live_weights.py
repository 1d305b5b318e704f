"""New weights under load, and a server that is killed: which weights sampled what?

The weights differ from each other by random factors on their norms, so strongly that a
forward pass tells which of them sampled an answer.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

from live_parts import Bench, Call, Plan, Progress, Talked, Wire, failures, talk_all
from live_sessions import differences

from palestra.errors import EngineError
from palestra.policy.engines.processes import Launched
from palestra.records import TokenPath, Trace

NUM_PUBLISHED = 3
STRENGTH = 0.25
"""Standard deviation of the factors on the weights of norms."""
LONG_ENOUGH = 16
"""Ids that a segment must have to be told by its mean gap."""
ROUNDING = 0.05
"""Mean gap that different kernels make of the same weights at most."""


def write_perturbed(model: Path, folder: Path, seed: int) -> Path:
    """A copy of a model whose norms are multiplied with random numbers about 1."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    for file in sorted(model.iterdir()):
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
            continue
        tensors = load_file(file)
        for name in sorted(tensors):
            if name.endswith("norm.weight"):
                factors = 1 + STRENGTH * torch.randn(tensors[name].shape, generator=draw)
                tensors[name] = (tensors[name].float() * factors).to(tensors[name].dtype)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder


def folders_of(model: Path, made: Path, number: int) -> dict[int, Path]:
    """Folders by version: the model itself as 0, and so many others, made where not there."""
    folders = {0: model}
    for version in range(1, number + 1):
        folder = made / f"weights-{version}"
        folders[version] = folder if folder.exists() else write_perturbed(model, folder, version)
    return folders


# --- which weights sampled it -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A segment, and its mean |gap| under each version's weights."""

    version: int
    num_ids: int
    gaps: dict[int, float]


def score(
    paths: Sequence[TokenPath], folders: Mapping[int, Path], *, device: str, dtype: str
) -> list[Scored]:
    """Score every segment of the paths under all weights with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    found: list[dict[int, list[float]]] = [{} for _ in paths]
    for version, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model = model.to(device).eval()
        for number, path in enumerate(paths):
            found[number][version] = _gaps(model, path)
        del model
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return [
        Scored(
            version=version,
            num_ids=len(places),
            gaps={v: statistics.fmean(gaps[i] for i in places) for v, gaps in of_path.items()},
        )
        for path, of_path in zip(paths, found, strict=True)
        for version, places in segments_of(path)
    ]


def segments_of(path: TokenPath) -> Iterator[tuple[int, list[int]]]:
    """Version and places, among the sampled ids of a path, of each run that it sampled."""
    sampled = [place for place, version in enumerate(path.versions) if version >= 0]
    order = {place: number for number, place in enumerate(sampled)}
    # What was sampled in different turns has other ids in between.
    for _, run in groupby(sampled, key=lambda p: (path.versions[p], p - order[p])):
        places = list(run)
        yield path.versions[places[0]], [order[place] for place in places]


def _gaps(model: Any, path: TokenPath) -> list[float]:
    """|logprob of the model - logprob in the ledger| of each sampled id, at temperature 1."""
    import torch

    sampled = [place for place, version in enumerate(path.versions) if version >= 0]
    ids = torch.tensor([path.ids], device=model.device)
    before = torch.tensor([place - 1 for place in sampled], device=model.device)
    with torch.no_grad():
        logits = model(ids, logits_to_keep=before, use_cache=False).logits[0].float()
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[0, before + 1][:, None])[:, 0]
    theirs = torch.tensor([path.logprobs[place] for place in sampled], device=model.device)
    return (logprobs - theirs).abs().tolist()


def own_gap(one: Scored) -> float:
    """Mean |gap| of a segment under the weights that it says it is of."""
    return one.gaps[one.version]


def verdict(scored: Sequence[Scored]) -> dict[str, Any]:
    """Mean gaps by weights, and how many segments other weights explain better than their own."""
    long = [one for one in scored if one.num_ids >= LONG_ENOUGH]
    own = [own_gap(one) for one in long]
    other = [gap for one in long for version, gap in one.gaps.items() if version != one.version]
    # Where all weights are sure of every id, rounding decides which is nearest.
    wrong = [one for one in long if own_gap(one) > max(ROUNDING, 2 * min(one.gaps.values()))]
    return {
        "scored_segments": len(long),
        "scored_ids": sum(one.num_ids for one in long),
        "versions_scored": sorted({one.version for one in long}),
        "mean_gap_own_weights": round(statistics.fmean(own), 5) if own else None,
        "mean_gap_other_weights": round(statistics.fmean(other), 5) if other else None,
        "gap_ratio": round(statistics.fmean(other) / statistics.fmean(own), 1) if own else None,
        "largest_segment_gap_own_weights": round(max(own), 4) if own else None,
        "smallest_segment_gap_other_weights": round(min(other), 4) if other else None,
        "wrong_version_segments": len(wrong),
    }


def of_versions(traces: Sequence[Trace]) -> dict[str, Any]:
    """Turns and segments by version, and whether versions only rise along a session."""
    turns = [turn for trace in traces for turn in trace.turns]
    segments = [segment for turn in turns for segment in turn.segments]
    orders = [[s.policy_version for turn in trace.turns for s in turn.segments] for trace in traces]
    return {
        "turns_of_several_segments": sum(len(turn.segments) > 1 for turn in turns),
        "ids_by_version": {
            version: sum(len(s.ids) for s in segments if s.policy_version == version)
            for version in sorted({s.policy_version for s in segments})
        },
        "sessions_of_several_versions": sum(len(set(order)) > 1 for order in orders),
        "sessions_whose_version_falls": sum(order != sorted(order) for order in orders),
    }


async def _scored(
    bench: Bench, talked: Sequence[Talked], folders: dict[int, Path]
) -> dict[str, Any]:
    options = bench.options
    # Sessions of several versions say the most.
    ordered = sorted((t.trace for t in talked), key=lambda trace: -_num_versions(trace))
    paths = [path for trace in ordered[: options.scored] for path in trace.paths()]
    work = asyncio.to_thread(score, paths, folders, device=options.device, dtype=options.dtype)
    return verdict(await work)


def _num_versions(trace: Trace) -> int:
    return len({s.policy_version for turn in trace.turns for s in turn.segments})


# --- the phases -----------------------------------------------------------------------


def _plan(bench: Bench) -> Plan:
    options = bench.options
    plan = Plan(sessions=options.load_sessions, turns=options.load_turns)
    return plan.shortened(options.text_share)


async def publish(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """Publish three times while sessions run."""
    plan, wire, progress = _plan(bench), Wire(), Progress()
    folders = folders_of(bench.model, bench.options.weights, NUM_PUBLISHED)
    num_turns = plan.sessions * plan.turns
    async with bench.fleet(wire) as fleet, bench.gateway(fleet) as url:
        talking = asyncio.create_task(talk_all(url, plan, progress))
        took_s, troubles = [], []
        for version in range(1, NUM_PUBLISHED + 1):
            await progress.until(num_turns * version // (NUM_PUBLISHED + 1), talking)
            began_s = time.monotonic()
            try:
                await fleet.publish(folders[version], version)
            except EngineError as error:
                troubles.append(str(error)[:300])
            took_s.append(round(time.monotonic() - began_s, 3))
        outcome = await talking
    pauses = [list(e.fields["pauses_s"].values()) for e in wire.events.of_kind("engine.published")]
    yield {
        "sessions": len(outcome.talked),
        **failures(outcome.errors),
        **differences(outcome.talked, wire),
        "publish_s": took_s,
        "publish_errors": troubles,
        "pauses_s": [pause for of_one in pauses for pause in of_one],
        "servers_lost": len(wire.events.of_kind("engine.down")),
        **of_versions([one.trace for one in outcome.talked]),
    }
    yield await _scored(bench, outcome.talked, folders)


async def kill(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """Publish once, kill the server with SIGKILL, and see it come back with the right weights."""
    if not isinstance(bench.host, Launched):
        yield {"skipped": "the server is not ours: start it with --launch"}
        return
    plan, wire, progress = _plan(bench), Wire(), Progress()
    folders = folders_of(bench.model, bench.options.weights, 1)
    num_turns = plan.sessions * plan.turns
    async with bench.fleet(wire, host=bench.host) as fleet, bench.gateway(fleet) as url:
        talking = asyncio.create_task(talk_all(url, plan, progress))
        await progress.until(num_turns // 4, talking)
        await fleet.publish(folders[1], 1)
        await progress.until(num_turns // 2, talking)
        in_flight = fleet.members[0].in_flight
        killed_s = time.time()
        _kill_server(bench.host)
        outcome = await talking
    ups = [e for e in wire.events.of_kind("engine.up") if e.time_s > killed_s]
    order = _after_health([call for call in wire.calls if call.time_s > killed_s])
    yield {
        "sessions": len(outcome.talked),
        **failures(outcome.errors),
        **differences(outcome.talked, wire),
        "in_flight_when_killed": in_flight,
        "replayed": len(wire.events.of_kind("engine.replayed")),
        "servers_lost": [e.fields["reason"][:120] for e in wire.events.of_kind("engine.down")],
        "seconds_until_it_serves": round(ups[0].time_s - killed_s, 2) if ups else None,
        "came_back_with_version": ups[0].fields["version"] if ups else None,
        "first_call_after": order[0].path if order else None,
        "stamps_after": sorted({str(call.stamp) for call in order}),
        **of_versions([one.trace for one in outcome.talked]),
    }
    yield await _scored(bench, outcome.talked, folders)


def _after_health(calls: Sequence[Call]) -> list[Call]:
    """What a server that came back was asked; answers given before its death may come late."""
    good = [call for call in calls if call.status == HTTPStatus.OK]
    lives = dropwhile(lambda call: call.path != "/health", good)
    return [call for call in lives if call.path != "/health"]


def _kill_server(host: Launched) -> None:
    """SIGKILL to the process group of the server, not to its keeper."""
    if host.pid is None:
        raise EngineError("the server does not run")
    children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(int(child), signal.SIGKILL)
