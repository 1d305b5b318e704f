"""The command that starts Miles, as values: flags in groups, a job around them, and its text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option of Miles' command line."""

    name: str  # with its dashes
    values: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """As words of a command."""
        return (self.name, *self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagGroup:
    """Options that belong together."""

    title: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MilesCommand:
    """Miles' training script and its options."""

    script: str
    groups: tuple[FlagGroup, ...]

    def flags(self) -> Iterator[Flag]:
        """Every option, in order."""
        for group in self.groups:
            yield from group.flags

    def arguments(self) -> tuple[str, ...]:
        """What the script finds in its ``sys.argv``, without its own name."""
        return tuple(word for flag in self.flags() for word in flag.words())

    def entrypoint(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(("python3", self.script, *self.arguments()))


@dataclass(frozen=True, slots=True, kw_only=True)
class MilesJob:
    """A job for Ray.

    Attributes:
        address: of Ray's dashboard.
        command: what it runs.
        env_vars: of all its processes.
        secrets: the same, but never shown; by name, from variables of this process.
        files: of its working folder, text by name.
        conversion: makes the checkpoint that the command begins from.
    """

    address: str
    command: MilesCommand
    env_vars: Mapping[str, str]
    files: Mapping[str, str]
    conversion: tuple[str, ...]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def runtime_env(self) -> dict[str, dict[str, str]]:
        """As Ray takes it, secrets included."""
        return {"env_vars": {**self.env_vars, **self.secrets}}

    def script(self) -> str:
        """A shell script that does the same with Ray's own command, one option a line."""
        lines = ["# Once, if the checkpoint is not there yet:"]
        lines += [f"#   {line}" for line in _wrapped(self.conversion)]
        lines += ["set -e", 'job="$(mktemp -d)"']
        for name, text in self.files.items():
            lines += [f"cat > \"$job\"/{shlex.quote(name)} <<'END'", *text.splitlines(), "END"]
        lines += [
            f"ray job submit --address={shlex.quote(self.address)} \\",
            '  --working-dir="$job" \\',
            f"  --runtime-env-json={self._quoted_env()} \\",
            f"  -- python3 {shlex.quote(self.command.script)} \\",
        ]
        options = [shlex.join(flag.words()) for flag in self.command.flags()]
        lines += [f"  {option} \\" for option in options[:-1]]
        lines += [f"  {option}" for option in options[-1:]]
        return "\n".join(lines) + "\n"

    def _quoted_env(self) -> str:
        """The environment as one word of a shell, in which secrets are variables of it."""
        holes = {name: f"<{name}>" for name in self.secrets}
        text = shlex.quote(json.dumps({"env_vars": {**self.env_vars, **holes}}))
        for name, hole in holes.items():
            text = text.replace(hole, f"'\"${name}\"'")
        return text


def _wrapped(words: tuple[str, ...]) -> list[str]:
    """A command with one option a line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    texts = [shlex.join(line) for line in lines if line]
    return [f"{text} \\" for text in texts[:-1]] + texts[-1:]
