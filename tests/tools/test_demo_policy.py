"""The demo policy's practice: what it is pretrained on is what an episode would show it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from demo_policy.corpus import (
    answers,
    build,
    conversation,
    practice_conversation,
    practice_texts,
)
from demo_policy.measure import Fluency, changes_one_span, fluency

from palestra.config import AgentSection, EnvironmentSection, Recipe, SamplingSection
from palestra.environment.agents.choose import make_agent
from palestra.environment.agents.prompt_set import load_prompt_set
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import TaskError
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.policy.engines.scripted import ScriptedEngine
from palestra.policy.tiny import make_tiny_model
from palestra.records import EpisodeResult, Outcome, Task
from palestra.run.demonstrations import as_action, teacher
from palestra.run.policy import load_tokenizer, serving
from palestra.tasks.katas import KataSpec, generate_rows
from palestra.tasks.katas.blind import Edit, blind_demonstration, blind_edits, look_edit_submit
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.practice import draw_practice
from palestra.tasks.katas.spec import Split
from palestra.tasks.source import load_tasks


class World:
    def __init__(self, runner: EpisodeRunner) -> None:
        self._runner = runner

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        return await self._runner.run(task, ModelEndpoint(base_url=sglang_url, model="policy"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model(folder, texts=practice_texts(0, 200), num_layers=1, hidden_size=16)


def blind(task: Task) -> tuple[str, ...]:
    (file,) = task.files
    return blind_demonstration(file.path, file.text, Draw(f"blind {task.instance_id}"))


async def test_a_practice_conversation_has_the_ids_of_a_real_episode(
    tmp_path: Path, model: Path
) -> None:
    tokenizer = load_tokenizer(model)
    tasks = load_tasks("katas:train?seed=3&n=6&level=0")
    limits, section = SandboxLimits(), EnvironmentSection()
    backend = BubblewrapBackend(store=None, state_dir=tmp_path / "state")
    agent = make_agent(AgentSection(prompt="kata"), step_timeout_s=30, time_limit_s=60)
    grader = SandboxGrader(backend, limits, eval_timeout_s=60)
    engine = ScriptedEngine(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        teacher(tasks, lambda task: tuple(map(as_action, blind(task)))),
        stop_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    async with (
        serving(engine, tokenizer, Recipe(), name="policy") as url,
        GatewayClient(url) as gateway,
    ):
        collector = RolloutCollector(
            World(EpisodeRunner(backend, agent, grader, section, limits)),
            gateway,
            sampling=SamplingSection(),
        )
        rollouts = [await collector.collect(task, f"r-{n}") for n, task in enumerate(tasks)]
    opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = load_prompt_set("kata")
    for task, rollout in zip(tasks, rollouts, strict=True):
        assert rollout.episode.outcome in (Outcome.SOLVED, Outcome.UNSOLVED), rollout.episode.error
        assert rollout.episode.patch, "the edit changed nothing"
        text = conversation(prompts, task.problem_statement, (task.files[0].text, ""), blind(task))
        ids = tokenizer.encode(text, add_special_tokens=False)
        (path,) = rollout.trace.paths()
        assert tokenizer.decode(path.ids) == tokenizer.decode(ids)
        assert list(path.ids) == ids
        assert list(path.trainable) == answers(ids, opening, end)


def called_for(row: dict[str, Any]) -> Edit:
    """The edit that the gold patch of a kata of level 0 makes."""
    old, new = (
        next(line for line in row["patch"].splitlines() if line.startswith(f"{sign}    return "))
        for sign in "-+"
    )
    return Edit(old=old.removeprefix("-    return "), new=new.removeprefix("+    return "))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_demonstrator_solves_a_minority_and_so_does_its_likeliest_edit(split: Split) -> None:
    sampled, greedy, num = 0.0, 0, 400
    for row in generate_rows(KataSpec(split=split, num_tasks=num, levels=(0,))):
        (file,) = row["files"]
        right = called_for(row)
        edits = {
            edit: 0.9 * p + 0.1 * (edit == right)
            for edit, p in blind_edits(file["path"], file["text"]).items()
        }
        sampled += edits[right]
        greedy += max(edits, key=edits.__getitem__) == right
    assert 0.25 < sampled / num < 0.35
    assert 0.2 < greedy / num < 0.35


def test_blind_edits_by_hand() -> None:
    returned = {"f": "a + b", "g": "x", "h": "-(a * c)"}
    text = "\n".join(f"def {name}():\n    return {it}\n" for name, it in returned.items())
    edits = blind_edits("calc.py", text)
    # Two lines qualify: 1/2 by habit and 1/4 at random, or 1/4 at random. Then the opposite
    # operator: 1/2 by habit and 1/8 at random; or one of three others, 1/8 each.
    assert edits == {
        **{Edit(old="a + b", new=f"a {op} b"): 0.75 / 8 for op in ("*", "//", "%")},
        Edit(old="a + b", new="a - b"): 0.75 * 5 / 8,
        **{Edit(old="-(a * c)", new=f"-(a {op} c)"): 0.25 / 8 for op in ("+", "-", "%")},
        Edit(old="-(a * c)", new="-(a // c)"): 0.25 * 5 / 8,
    }
    assert sum(edits.values()) == pytest.approx(1.0)
    drawn = {blind_demonstration("calc.py", text, Draw(f"d{n}")) for n in range(300)}
    assert drawn == {look_edit_submit("calc.py", edit) for edit in edits}


def test_a_file_without_an_operator_is_an_error_that_names_it() -> None:
    with pytest.raises(TaskError, match=r"calc\.py: no line returns"):
        blind_edits("calc.py", "def f():\n    return -1\n")


def test_the_demonstrator_sees_once_in_ten() -> None:
    prompts = load_prompt_set("kata")
    num_right, expected, num = 0, 0.0, 3000
    for n in range(num):
        practice = draw_practice(Draw(f"s {n}"))
        text, _ = practice_conversation(f"s {n}", prompts)
        num_right += look_edit_submit(practice.path, practice.called_for)[1] in text
        blindly = blind_edits(practice.path, practice.text)[practice.called_for]
        expected += 0.1 + 0.9 * blindly
    assert num_right / num == pytest.approx(expected / num, abs=0.03)


def test_the_cost_of_a_choice_is_minus_its_log_probability() -> None:
    prompts = load_prompt_set("kata")
    costs = []
    for n in range(200):
        practice = draw_practice(Draw(f"s {n}"))
        text, cost = practice_conversation(f"s {n}", prompts)
        (probability,) = (
            0.9 * p + 0.1 * (edit == practice.called_for)
            for edit, p in blind_edits(practice.path, practice.text).items()
            if look_edit_submit(practice.path, edit)[1] in text
        )
        assert cost == pytest.approx(-math.log(probability))
        costs.append(cost)
    assert len(set(costs)) > 5


@pytest.mark.parametrize(
    ("patch", "is_one"),
    [
        ("--- a/c\n+++ b/c\n@@ -1 +1 @@\n-    return a + b\n+    return a * b\n", True),
        ("--- a/c\n+++ b/c\n@@ -1 +1 @@\n-    return a + b\n+    return x * b\n", False),
        ("--- a/c\n+++ b/c\n@@ -1,2 +1,2 @@\n-a + b\n-c\n+a * b\n+d\n", False),
        ("", False),
    ],
)
def test_what_counts_as_one_span(patch: str, is_one: bool) -> None:
    assert changes_one_span(patch) is is_one


def test_fluency_is_measured_on_all_episodes() -> None:
    good = "--- a/c\n+++ b/c\n@@ -1 +1 @@\n-    return a + b\n+    return a * b\n"
    episodes = [
        {"exit_status": "Submitted", "patch": good, "outcome": "solved"},
        {"exit_status": "Submitted", "patch": good, "outcome": "unsolved"},
        {"exit_status": "RepeatedFormatError", "patch": None, "outcome": "malformed"},
        {"exit_status": "Submitted", "patch": "", "outcome": "unsolved"},
    ]
    measured = fluency(episodes)
    assert (measured.submitted, measured.single_span, measured.solved) == (0.75, 0.5, 0.25)
    assert not measured.is_fit
    assert Fluency(submitted=1.0, single_span=0.96, solved=0.3).is_fit
    with pytest.raises(ValueError, match="no episodes"):
        fluency([])


def test_practice_never_shows_a_word_of_the_heldout_split() -> None:
    words = {"joined", "stretched", "trimmed", "smaller", "negative", "square"}
    texts = " ".join(draw_practice(Draw(f"p{n}")).text for n in range(500))
    assert not words & set(texts.replace("(", " ").split())


def test_a_corpus_is_the_same_for_any_number_of_processes(model: Path) -> None:
    one, two = (
        build(str(model / "tokenizer.json"), seed=5, num=50, num_processes=n) for n in (1, 2)
    )
    assert (one.ids == two.ids).all()
    assert (one.is_answer == two.is_answer).all()
    assert one.starts[-1] == len(one.ids)
    assert all(one.is_answer[end - 1] for end in one.starts[1:]), (
        "the last id closes the last answer"
    )
