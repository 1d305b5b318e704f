"""A recipe: one TOML file that is a whole run, as strict sections.

Unknown keys are errors; each component gets only its own section. Reading and overriding
is in :mod:`palestra.recipe_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from palestra.config_base import Section
from palestra.config_engine import EngineSection as EngineSection
from palestra.config_logging import LoggingSection
from palestra.config_miles import MilesSection
from palestra.config_training import CorrectionSection as CorrectionSection
from palestra.config_training import TrainingSection as TrainingSection

SandboxName = Literal["auto", "bubblewrap", "docker", "podman", "local"]
AgentName = Literal["mini", "gold", "noop"]
EvaluationMode = Literal["sampled", "greedy"]


def reported_ks(num_tries: int) -> tuple[int, ...]:
    """For which k pass@k is reported: powers of two and the number of tries; none for one try."""
    powers = (1 << n for n in range(num_tries.bit_length()))
    return tuple(sorted({*powers, num_tries})) if num_tries > 1 else ()


class TasksSection(Section):
    """Which tasks are trained on and which are held out."""

    train: str = Field(
        "katas:train?seed=0&n=256",
        description="Tasks: a JSONL file of prompt data or rows, or katas:SPLIT?seed=&n=&level=.",
    )
    heldout: str | None = Field(
        None, description="Task source of the held-out evaluation; none: no evaluation."
    )
    certificates: Path | None = Field(
        None, description="File that palestra certify wrote of the tasks that are trained on."
    )
    uncertified: Literal["refuse", "train"] = Field(
        "refuse",
        description="When a task has no valid certificate: refuse to begin, or train on it. "
        "A katas: source needs none.",
    )
    shuffle: bool = Field(True, description="Shuffle the tasks anew in each epoch.")
    difficulty: Literal["ignore", "mixed"] = Field(
        "ignore",
        description="mixed: prefer tasks whose groups likely hold successes and failures, by the "
        "difficulty that rows state and by the results of this run; Miles draws uniformly.",
    )


class SandboxSection(Section):
    """Where episodes run, and what one sandbox may use."""

    backend: SandboxName = Field(
        "auto",
        description="auto (the first of bubblewrap, docker, podman that works), one of these, "
        "or local (no isolation).",
    )
    host_image: str = Field(
        "python:3.12",
        description="Image in which docker and podman run tasks that carry their repository; "
        "with bash, git and python3.",
    )
    memory_mb: int = Field(4096, gt=0, description="Memory of one sandbox in MiB.")
    num_pids: int = Field(512, gt=8, description="Processes and threads in one sandbox.")
    disk_mb: int = Field(8192, gt=0, description="What one sandbox may write, in MiB.")
    images: Path | None = Field(
        None,
        description="Folder of unpacked images for bubblewrap; default ~/.cache/palestra/images.",
    )


class EnvironmentSection(Section):
    """The environment server and its limits."""

    url: str | None = Field(
        None,
        description="Environment server to use; none: $SWE_AGENT_GYM_URL, else one is started.",
    )
    allow_hosts: tuple[str, ...] = Field(
        (), description="Extra hosts that a request may name as its policy endpoint."
    )
    token: str | None = Field(None, description="Token that the environment server wants.")
    concurrency: int = Field(16, gt=0, description="Episodes at once in one server.")
    outage_s: float = Field(
        60,
        ge=0,
        description="Seconds that a named server may be out of reach before an episode fails.",
    )
    queue_timeout_s: float = Field(7200, gt=0, description="Seconds to wait for a place at work.")
    image_timeout_s: float = Field(3600, gt=0, description="Seconds to bring a task's image.")
    start_timeout_s: float = Field(120, gt=0, description="Seconds to start a sandbox.")
    step_timeout_s: float = Field(600, gt=0, description="Seconds that one command may take.")
    eval_timeout_s: float = Field(1800, gt=0, description="Seconds that the hidden tests may take.")
    reuse_verdicts: bool = Field(
        False,
        description="Grade equal patches of one task once; only where tests never flake.",
    )
    episode_timeout_s: float = Field(
        3600, gt=0, description="Wall-clock seconds that the agent may work on one task."
    )
    drain_timeout_s: float = Field(
        600, ge=0, description="Seconds that a stopping server lets its episodes go on."
    )


class GradingSection(Section):
    """What of a patch counts; the rule itself is in docs/patch-policy.md."""

    refuse: tuple[str, ...] = Field(
        (),
        description="Patterns of files that do not count, besides the built-in ones; matched "
        "against /PATH, * crosses slashes.",
    )
    allow: tuple[str, ...] = Field(
        (), description="Patterns of files that count although a built-in pattern refuses them."
    )
    on_refused: Literal["drop", "tampered"] = Field(
        "drop",
        description="drop: grade the rest and report; tampered: the episode has reward 0.",
    )
    signed: bool = Field(
        True,
        description="Count only what the test run reports under a key that the code under test "
        "does not hold; false: believe the log, for runners other than pytest, unittest, sympy.",
    )


class AgentSection(Section):
    """The agent that works in the sandbox."""

    name: AgentName = Field("mini", description="mini (mini-swe-agent), gold or noop.")
    prompt: str = Field(
        "swebench_backticks",
        description="swebench_backticks, swebench (tool calls), kata, or a mini-swe-agent YAML.",
    )
    step_limit: int = Field(250, gt=0, description="Model calls in one episode.")
    token_limit: int = Field(
        0, ge=0, description="Tokens of all answers in one episode, as the policy counts; 0: any."
    )
    collapse_limit: int = Field(
        0, ge=0, description="End the episode after this many equal commands in a row; 0: never."
    )
    max_format_errors: int = Field(
        3, gt=0, description="Format errors in a row that end the episode."
    )


class ModelSection(Section):
    """The policy: which weights, how messages become ids, how ids are sampled."""

    path: str = Field(
        "tiny",
        description="Hugging Face folder or hub name; demo: the policy that comes along; "
        "tiny or tiny?hidden_size=N: a random one.",
    )
    renderer: str = Field(
        "chatml", description="chatml (ours), or the name of a renderer of the renderers package."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights.")
    max_context: int = Field(8192, gt=1, description="Most ids of a conversation.")


class GatewaySection(Section):
    """Where the environment reaches the policy."""

    host: str | None = Field(
        None,
        description="Address to listen on; none: loopback, or with a named environment server "
        "the address of this machine that faces it.",
    )
    port: int = Field(0, ge=0, le=65535, description="Port; 0: any free one.")
    public_url: str | None = Field(
        None, description="URL under which the environment server sees the gateway, if another."
    )
    memory_mib: int = Field(
        1024,
        ge=1,
        description="Turns of open sessions above so much go to the disk (ledger/ of the run).",
    )


class SamplingSection(Section):
    """How training rollouts are sampled."""

    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus; below 1 the logprobs are not those of the policy."
    )
    max_new_tokens: int = Field(1024, gt=0, description="Ids that one turn may sample.")

    @model_validator(mode="after")
    def _full_support(self) -> SamplingSection:
        if self.top_p < 1:
            raise ValueError("top_p below 1 makes rollout logprobs meaningless for training")
        return self


class RolloutsSection(Section):
    """How rollouts are collected into steps."""

    groups_per_step: int = Field(8, gt=0, description="Groups that one step trains on.")
    group_size: int = Field(8, gt=1, description="Rollouts of one task that share a baseline.")
    max_off_policy_steps: int = Field(
        0, ge=0, description="How many versions old the weights of a trained token may be."
    )
    drop_equal_groups: bool = Field(
        True, description="Drop groups whose rewards are all equal (no signal), and refill."
    )
    max_refill: int = Field(
        4,
        ge=1,
        description="At most this many times groups_per_step groups are sampled for one step.",
    )
    truncated: Literal["keep", "mask"] = Field(
        "keep", description="Truncated rollouts: train on them, or only count them in the baseline."
    )
    max_row_tokens: int = Field(
        0,
        ge=0,
        description="Conversations of more ids than this only count in the baseline; 0: any.",
    )
    aborted: Literal["drop_rollout", "drop_group"] = Field(
        "drop_rollout",
        description="A rollout without a reward drops itself, or its whole group as in Miles.",
    )
    infra_retries: int = Field(
        2, ge=0, description="Retries of an episode that ended in infra_error."
    )
    max_infra_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Stop the run when more than this share of a step's episodes fail.",
    )


class WarmstartSection(Section):
    """Supervised steps on scripted demonstrations before RL."""

    steps: int = Field(0, ge=0, description="SFT steps before the first RL step; 0: none.")
    tasks: str = Field(
        "katas:train?seed=1&n=128",
        description="Task source of the demonstrations, in which a script plays the policy; "
        "empty: none.",
    )
    solved: Path | None = Field(
        None,
        description="Run directory whose rollouts that solved their task are demonstrations too; "
        "of a model with the same tokenizer.",
    )
    max_slips: int = Field(
        0,
        ge=0,
        description="A demonstration makes up to so many wrong edits first, sees by what the issue "
        "shows that they are, and takes them back; nothing is fitted to them.",
    )
    lr: float = Field(1e-3, gt=0, description="Learning rate of the warm start.")
    batch_size: int = Field(16, gt=0, description="Demonstrations in one SFT step.")


class CheckpointSection(Section):
    """When checkpoints are written and how many are kept."""

    every: int = Field(
        10, gt=0, description="Steps between checkpoints; the last step always has one."
    )
    keep_last: int = Field(3, gt=0, description="Newest checkpoints that are kept.")
    keep_best: int = Field(
        0,
        ge=0,
        description="Checkpoints that are kept besides because they did best on the held-out "
        "tasks; above 0, every step that is evaluated has a checkpoint.",
    )
    best_by: str | None = Field(
        None,
        pattern=r"^(sampled|greedy)/(solve_rate|pass@[1-9]\d*|reward/mean)$",
        description="What of an evaluation is a checkpoint's score, as sampled/solve_rate or "
        "sampled/pass@4; none: the solve rate of the first of evaluation.modes.",
    )


class EvaluationSection(Section):
    """Held-out evaluation inside training."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: before and after only.")
    modes: tuple[EvaluationMode, ...] = Field(
        ("sampled", "greedy"),
        min_length=1,
        description="Each held-out task is attempted sampled, greedy (at temperature 0) or both.",
    )
    attempts: int = Field(
        1,
        gt=0,
        description="Sampled attempts at each held-out task, for pass@k up to as many; greedy ones "
        "are all alike.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Of the sampled attempts; none: sampling.temperature."
    )
    background: bool = Field(
        False,
        description="Evaluations between steps run beside the next steps instead of before them, "
        "on a quarter of environment.concurrency; newer weights then take over in their midst.",
    )

    @model_validator(mode="after")
    def _once_each(self) -> EvaluationSection:
        if len(set(self.modes)) < len(self.modes):
            raise ValueError("modes: a mode is named twice")
        return self


class Recipe(Section):
    """A whole run."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder name below runs/."
    )
    runs: Path = Field(Path("runs"), description="Folder of the run directories.")
    seed: int = Field(0, ge=0, description="Seed of everything that draws numbers.")
    backend: Literal["native", "miles"] = Field(
        "native", description="native: our own trainer; miles: a job of Miles on a Ray cluster."
    )
    tasks: TasksSection = TasksSection()
    environment: EnvironmentSection = EnvironmentSection()
    sandbox: SandboxSection = SandboxSection()
    agent: AgentSection = AgentSection()
    grading: GradingSection = GradingSection()
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    gateway: GatewaySection = GatewaySection()
    sampling: SamplingSection = SamplingSection()
    rollouts: RolloutsSection = RolloutsSection()
    training: TrainingSection = TrainingSection()
    warmstart: WarmstartSection = WarmstartSection()
    checkpoints: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()
    miles: MilesSection = MilesSection()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.sampling.max_new_tokens >= self.model.max_context:
            raise ValueError(
                "sampling.max_new_tokens leaves no room for a prompt in model.max_context"
            )
        # Look, each wrong edit with its check and its way back, edit, check, submit.
        num_turns = 3 * self.warmstart.max_slips + 4
        slips = self.warmstart.max_slips if self.warmstart.steps else 0
        if slips and self.agent.step_limit < num_turns:
            raise ValueError(
                f"warmstart.max_slips = {self.warmstart.max_slips} takes {num_turns} turns, more "
                "than agent.step_limit"
            )
        return self

    @property
    def score(self) -> str:
        """The metric of an evaluation by which checkpoints are best."""
        return self.checkpoints.best_by or f"{self.evaluation.modes[0]}/solve_rate"

    @model_validator(mode="after")
    def _can_be_scored(self) -> Recipe:
        if self.checkpoints.keep_best and not (self.tasks.heldout and self.evaluation.every):
            raise ValueError("checkpoints.keep_best needs tasks.heldout and evaluation.every")
        mode, _, name = self.score.partition("/")
        if mode not in self.evaluation.modes:
            raise ValueError(f"checkpoints.best_by: evaluation.modes has no {mode}")
        num_tries = self.evaluation.attempts if mode == "sampled" else 1
        if name.startswith("pass@") and int(name[5:]) not in reported_ks(num_tries):
            raise ValueError(f"checkpoints.best_by: evaluation.attempts give no {name}")
        return self
