"""Prompt sets: mini-swe-agent's YAML files, ours, and a user's own.

Templates are compiled once here; mini-swe-agent compiles them anew at every step,
which costs milliseconds each time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from palestra.errors import ConfigError

TEXT_BLOCK = "```mswea_bash_command"
DEFAULT_ACTION_REGEX = TEXT_BLOCK + r"\s*\n(.*?)\n```"
_PLAIN_BASH = ("bash", "-c")
_OURS = ("kata",)
_MINIS = ("swebench_backticks", "swebench", "swebench_xml")
_LITELLM_ONLY = frozenset({"drop_params"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """What the agent says to the model, and how it reads the answers.

    ``interpreter`` is empty where commands run in the sandbox's own bash.
    ``model_kwargs`` are chat-completion fields that the set asks for.
    """

    name: str
    system_template: str
    instance_template: str
    observation_template: str
    format_error_template: str
    action_regex: str
    uses_tools: bool
    env: Mapping[str, str]
    interpreter: tuple[str, ...]
    model_kwargs: Mapping[str, Any]
    compiled: Mapping[str, jinja2.Template]
    """Template text → template, for the four above."""

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Fill in one of the four templates.

        Raises:
            ConfigError: it asks for a variable that there is not.
        """
        try:
            return self.compiled[template].render(variables)
        except jinja2.TemplateError as error:
            raise ConfigError(f"agent.prompt: a template of {self.name}: {error}") from error


class _AgentPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    system_template: str = Field(min_length=1)
    instance_template: str = Field(min_length=1)


class _EnvironmentPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    env: dict[str, str] = Field(default_factory=dict)
    interpreter: list[str] = Field(default_factory=list)


class _ModelPart(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    # The defaults are mini-swe-agent's own.
    observation_template: str = (
        "{% if output.exception_info %}<exception>{{output.exception_info}}</exception>\n"
        "{% endif %}<returncode>{{output.returncode}}</returncode>\n"
        "<output>\n{{output.output}}</output>"
    )
    format_error_template: str = "{{ error }}"
    action_regex: str | None = None
    model_class: str = ""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("action_regex")
    @classmethod
    def _is_a_regex(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
        return value


class _PromptFile(BaseModel):
    model_config = ConfigDict(extra="allow")

    agent: _AgentPart
    environment: _EnvironmentPart = _EnvironmentPart()
    model: _ModelPart = _ModelPart()


def load_prompt_set(name: str) -> PromptSet:
    """Load a prompt set by name, or by the path of a YAML file.

    The time-outs, limits and working directory that the file names are not taken:
    they are the recipe's and the task's.

    Raises:
        ConfigError: there is no such set, or the file is malformed.
    """
    path = _path_of(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"agent.prompt: there is no prompt set {name}",
            hint=f"{', '.join(_OURS + _MINIS)}, or the path of a mini-swe-agent YAML",
        ) from None
    except OSError as error:
        raise ConfigError(f"agent.prompt: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"agent.prompt: {path} is no YAML: {reason}") from None
    try:
        parsed = _PromptFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"agent.prompt: {path}: {field}: {message}") from None
    return _prompt_set(name, path, parsed)


def _path_of(name: str) -> Path:
    if name in _OURS:
        return Path(str(files("palestra.environment.agents") / "prompts" / f"{name}.yaml"))
    if name in _MINIS:
        # Found without importing the package, whose import has side effects.
        found = find_spec("minisweagent")
        if found is None or found.origin is None:
            raise ConfigError("agent.prompt: mini-swe-agent is not installed")
        return Path(found.origin).parent / "config" / "benchmarks" / f"{name}.yaml"
    return Path(name).expanduser()


def _prompt_set(name: str, path: Path, parsed: _PromptFile) -> PromptSet:
    agent, model = parsed.agent, parsed.model
    templates = {
        "agent.system_template": agent.system_template,
        "agent.instance_template": agent.instance_template,
        "model.observation_template": model.observation_template,
        "model.format_error_template": model.format_error_template,
    }
    interpreter = tuple(parsed.environment.interpreter)
    return PromptSet(
        name=name,
        system_template=agent.system_template,
        instance_template=agent.instance_template,
        observation_template=model.observation_template,
        format_error_template=model.format_error_template,
        action_regex=model.action_regex or DEFAULT_ACTION_REGEX,
        uses_tools=not _is_text_based(agent, model),
        env=MappingProxyType(parsed.environment.env),
        interpreter=() if interpreter == _PLAIN_BASH else interpreter,
        model_kwargs=MappingProxyType(
            {k: v for k, v in model.model_kwargs.items() if k not in _LITELLM_ONLY}
        ),
        compiled=_compile(templates, path),
    )


def _is_text_based(agent: _AgentPart, model: _ModelPart) -> bool:
    """The files do not say it: mini-swe-agent is told on its command line."""
    prompts = agent.system_template + agent.instance_template
    return "text" in model.model_class or model.action_regex is not None or TEXT_BLOCK in prompts


def _compile(templates: Mapping[str, str], path: Path) -> Mapping[str, jinja2.Template]:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    compiled = {}
    for field, text in templates.items():
        try:
            compiled[text] = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise ConfigError(f"agent.prompt: {path}: {field}: {error}") from None
    return MappingProxyType(compiled)
