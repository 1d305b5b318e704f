"""A recipe: one TOML file that is a whole run, as strict sections.

Unknown keys are errors that name the nearest known one. The command line
overrides any key with ``--set section.key=value``; each component gets only its
own section.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palestra.errors import ConfigError, HostError

SandboxName = Literal["auto", "bubblewrap", "docker", "podman", "local"]
AgentName = Literal["mini", "gold", "noop"]
EvaluationMode = Literal["sampled", "greedy"]


class Section(BaseModel):
    """A strict, frozen part of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TasksSection(Section):
    """Which tasks are trained on and which are held out."""

    train: str = Field(
        "katas:train?seed=0&n=256",
        description="Tasks: a JSONL file of prompt data or rows, or katas:SPLIT?seed=&n=&level=.",
    )
    heldout: str | None = Field(
        None, description="Task source of the held-out evaluation; none: no evaluation."
    )
    shuffle: bool = Field(True, description="Shuffle the tasks anew in each epoch.")


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


class AgentSection(Section):
    """The agent that works in the sandbox."""

    name: AgentName = Field("mini", description="mini (mini-swe-agent), gold or noop.")
    prompt: str = Field(
        "swebench_backticks",
        description="swebench_backticks, swebench (tool calls), kata, or a mini-swe-agent YAML.",
    )
    step_limit: int = Field(250, gt=0, description="Model calls in one episode.")
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


class EngineSection(Section):
    """The engine that samples."""

    kind: Literal["local"] = Field("local", description="local: transformers in this process.")
    max_batch: int = Field(32, gt=0, description="Sequences decoded together.")
    num_threads: int | None = Field(
        None, gt=0, description="CPU threads of the engine; none: PyTorch's default."
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
    infra_retries: int = Field(
        2, ge=0, description="Retries of an episode that ended in infra_error."
    )
    max_infra_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Stop the run when more than this share of a step's episodes fail.",
    )


class CorrectionSection(Section):
    """Masked importance sampling: the mismatch between engine and trainer."""

    mode: Literal["off", "truncate", "mask", "clip"] = Field(
        "mask", description="What happens to weights outside the bounds."
    )
    low: float = Field(0.5, ge=0, description="Lower bound of the importance weight.")
    high: float = Field(2.0, gt=0, description="Upper bound of the importance weight.")
    veto: float = Field(
        1e-4, ge=0, description="A token below this ratio masks its whole sequence; 0: never."
    )

    @model_validator(mode="after")
    def _ordered(self) -> CorrectionSection:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class TrainingSection(Section):
    """Optimizer, loss and batching."""

    steps: int = Field(100, ge=0, description="Optimizer steps of the whole run.")
    minibatches: int = Field(
        1,
        gt=0,
        description="Optimizer steps that a batch is cut into, by groups; the clip acts from 2.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    lr_decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Shape of the learning rate after warm-up."
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's betas.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    clip_low: float = Field(0.2, ge=0, description="PPO clip below 1.")
    clip_high: float = Field(0.28, ge=0, description="PPO clip above 1.")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the k3 KL to the starting policy.")
    normalize_std: bool = Field(True, description="Divide advantages by the group's deviation.")
    shuffle_rewards: bool = Field(
        False,
        description="A control: deal each group's rewards out at random, so that none is earned.",
    )
    microbatch_tokens: int = Field(
        16384, gt=0, description="Padded ids in one forward and backward pass."
    )
    correction: CorrectionSection = CorrectionSection()


class WarmstartSection(Section):
    """Supervised steps on scripted demonstrations before RL."""

    steps: int = Field(0, ge=0, description="SFT steps before the first RL step; 0: none.")
    tasks: str = Field("katas:train?seed=1&n=128", description="Task source of the demonstrations.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of the warm start.")
    batch_size: int = Field(16, gt=0, description="Demonstrations in one SFT step.")


class CheckpointSection(Section):
    """When checkpoints are written and how many are kept."""

    every: int = Field(
        10, gt=0, description="Steps between checkpoints; the last step always has one."
    )
    keep_last: int = Field(3, gt=0, description="Checkpoints that are kept.")


class EvaluationSection(Section):
    """Held-out evaluation inside training."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: before and after only.")
    modes: tuple[EvaluationMode, ...] = Field(
        ("sampled", "greedy"),
        min_length=1,
        description="Each held-out task is attempted sampled, greedy (at temperature 0) or both.",
    )
    attempts: int = Field(
        1, gt=0, description="Sampled attempts at each held-out task; greedy ones are all alike."
    )
    temperature: float | None = Field(
        None, gt=0, description="Of the sampled attempts; none: sampling.temperature."
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
    tasks: TasksSection = TasksSection()
    environment: EnvironmentSection = EnvironmentSection()
    sandbox: SandboxSection = SandboxSection()
    agent: AgentSection = AgentSection()
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
    rollouts: RolloutsSection = RolloutsSection()
    training: TrainingSection = TrainingSection()
    warmstart: WarmstartSection = WarmstartSection()
    checkpoints: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.sampling.max_new_tokens >= self.model.max_context:
            raise ValueError(
                "sampling.max_new_tokens leaves no room for a prompt in model.max_context"
            )
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay ``section.key=value`` overrides over it.

    Raises:
        ConfigError: the file is no TOML, a key is unknown or a value is wrong.
        HostError: the file cannot be read.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {path}", hint="recipes/ holds some") from None
    except OSError as error:
        raise HostError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, origin=str(path))


def parse_recipe(data: dict[str, Any], *, origin: str = "recipe") -> Recipe:
    """Validate a recipe given as nested dicts.

    Raises:
        ConfigError: names every wrong key and its nearest known one.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def recipe_keys(
    section: type[Section] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, description) of every key; the help text of ``train``."""
    for name, info in section.model_fields.items():
        sub = _section_of(info.annotation)
        if sub is not None:
            yield from recipe_keys(sub, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _show(info.get_default()), info.description or ""


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    *sections, leaf = key.strip().split(".")
    for name in sections:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override!r}: {name} is not a section")
    data[leaf] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, as on any command line


def _explain(item: Any) -> str:
    where = [str(part) for part in item["loc"]]
    key = ".".join(where)
    if item["type"] != "extra_forbidden":
        return f"{key or 'recipe'}: {item['msg'].removeprefix('Value error, ')}"
    section: type[Section] | None = Recipe
    for name in where[:-1]:
        section = _section_of(section.model_fields[name].annotation) if section else None
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(where[-1], known, n=1)
    return f"unknown key {key}, " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    )


def _section_of(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
