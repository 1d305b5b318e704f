"""How the tests of SWE-Gym's eleven repositories are run.

The rows of SWE-Gym name their tests but bring no script; the table below says
what to run, and :func:`eval_script` composes a script of the shape that
swebench 5.x rows carry in their ``eval_script``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from palestra.errors import TaskError
from palestra.tasks.patches import patched_files

START_MARKER = ">>>>> Start Test Output"
END_MARKER = ">>>>> End Test Output"

_PIP = "python -m pip"
_CASE = re.compile(r"\[case ([^\]]+)\]")
_MYPY = "python/mypy"
# What a test patch may touch besides tests; pytest would refuse to collect it.
_DATA_SUFFIXES = (
    *(".json", ".png", ".csv", ".txt", ".md", ".jpg", ".jpeg", ".pkl"),
    *(".yml", ".yaml", ".toml"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """How one repository's tests run.

    ``install`` brings the environment up to the patched tree; without a network
    it fails and the environment is used as the image built it. ``prepare`` runs
    in the shell of the tests.
    """

    test_command: str
    install: str
    prepare: str = ""
    log_parser: str = "parse_log_pytest"


SPECS: dict[str, Spec] = {
    "getmoto/moto": Spec(test_command="pytest -n0 -rA", install="make init"),
    "conan-io/conan": Spec(
        test_command="pytest -n0 -rA",
        install=(
            "echo 'cython<3' > /tmp/constraint.txt; export PIP_CONSTRAINT=/tmp/constraint.txt; "
            f"{_PIP} install -r conans/requirements.txt -r conans/requirements_server.txt "
            "-r conans/requirements_dev.txt"
        ),
        prepare="export PYTHONPATH=${PYTHONPATH:-}:$(pwd)",
    ),
    "dask/dask": Spec(
        test_command="pytest -n0 -rA --color=no", install=f"{_PIP} install --no-deps -e ."
    ),
    "iterative/dvc": Spec(
        test_command="pytest -rA",
        install=(
            f'{_PIP} install -e ".[tests,dev,all_remotes,all,testing]"; {_PIP} install "pytest<8"'
        ),
    ),
    "Project-MONAI/MONAI": Spec(
        test_command="pytest -rA",
        install=(
            f"{_PIP} install types-pkg-resources==0.1.3 pytest; "
            f"grep -v '^git+' requirements-dev.txt | {_PIP} install -r /dev/stdin; "
            f"{_PIP} install --no-deps -e ."
        ),
    ),
    "bokeh/bokeh": Spec(
        test_command="pytest -n0 -rA",
        install=f"{_PIP} install -e .; {_PIP} install bokeh_sampledata",
    ),
    "modin-project/modin": Spec(test_command="pytest -n0 -rA", install=f"{_PIP} install -e ."),
    "pydantic/pydantic": Spec(
        test_command=("pytest -rA --tb=short -vv -o console_output_style=classic --no-header"),
        install='export PATH="$HOME/.local/bin:$PATH"; pdm add pre-commit; make install',
        log_parser="parse_log_pytest_pydantic",
    ),
    "pandas-dev/pandas": Spec(
        test_command="pytest -rA --tb=long",
        install=(
            "unset CFLAGS LDFLAGS CPPFLAGS; "
            f"{_PIP} install -ve . --no-build-isolation -Ceditable-verbose=true; "
            f"{_PIP} uninstall pytest-qt -y"
        ),
    ),
    "facebookresearch/hydra": Spec(
        test_command="pytest -rA --tb=long",
        install=f"{_PIP} install -r requirements/dev.txt; {_PIP} install -e .",
    ),
    _MYPY: Spec(
        test_command="pytest -n0 -rA",
        install=(
            f"{_PIP} install -r test-requirements.txt; {_PIP} install -e .; "
            f"{_PIP} install pytest pytest-xdist"
        ),
    ),
}


def image_name(instance_id: str) -> str:
    """The image that SWE-Gym publishes for an instance."""
    return f"xingyaoww/sweb.eval.x86_64.{instance_id.lower().replace('__', '_s_')}:latest"


def spec_for(repo: str, *, instance_id: str) -> Spec:
    """The table's entry of ``repo``.

    Raises:
        TaskError: the table does not know the repository.
    """
    try:
        return SPECS[repo]
    except KeyError:
        raise TaskError(
            f"{instance_id}: the row has no eval_script, and how to test {repo!r} is not known",
            hint="give the row the fields eval_script, log_parser and image",
        ) from None


def test_command(repo: str, test_patch: str, *, instance_id: str) -> str:
    """The command that runs the tests of ``test_patch``, targets included.

    mypy's data-driven suites are selected by their case names, everything else
    by the files that the test patch touches.

    Raises:
        TaskError: the repository is unknown, or the test patch touches no test file.
    """
    command = spec_for(repo, instance_id=instance_id).test_command
    if repo == _MYPY:
        cases = dict.fromkeys(_CASE.findall(test_patch))
        if cases:
            return f"{command} -k {shlex.quote(' or '.join(cases))}"
    files = [
        file.after
        for file in patched_files(test_patch)
        if file.after is not None and not file.after.endswith(_DATA_SUFFIXES)
    ]
    if not files:
        raise TaskError(f"{instance_id}: test_patch touches no test file")
    return " ".join([command, *map(shlex.quote, files)])


test_command.__test__ = False  # type: ignore[attr-defined]  # the name looks like a test to pytest


def eval_script(*, instance_id: str, repo: str, base_commit: str, test_patch: str) -> str:
    """A bash script that puts the hidden tests in place, runs them and takes them away.

    Raises:
        TaskError: the repository is unknown, or the test patch touches no test file.
    """
    spec = spec_for(repo, instance_id=instance_id)
    command = test_command(repo, test_patch, instance_id=instance_id)
    reset = reset_lines(base_commit, test_patch)
    lines = [
        "#!/bin/bash",
        "set -xo pipefail",
        "source /opt/miniconda3/bin/activate",
        "conda activate testbed",
        "cd /testbed",
        *([spec.prepare] if spec.prepare else []),
        "git config --global --add safe.directory /testbed",
        "git status",
        # A subshell: whatever the step does, the tests run. Without a network pip
        # would retry each package for half a minute.
        f"( export PIP_RETRIES=0 PIP_DISABLE_PIP_VERSION_CHECK=1; {spec.install} ) || true",
        *reset,
        *placing_lines(test_patch),
        f": '{START_MARKER}'",
        command,
        f": '{END_MARKER}'",
        *reset,
    ]
    return "\n".join(lines) + "\n"


def placing_lines(test_patch: str) -> list[str]:
    """Bash that applies the test patch in the current directory."""
    end = _heredoc_end(test_patch)
    return [f"git apply -v - <<'{end}'", test_patch.removesuffix("\n"), end]


def reset_lines(base_commit: str, test_patch: str) -> list[str]:
    """Bash that brings the test patch's files back to base: edits undone, new files gone."""
    files = patched_files(test_patch)
    known = [shlex.quote(file.before) for file in files if file.before is not None]
    new = [shlex.quote(file.after) for file in files if file.before != file.after and file.after]
    lines = [" ".join(["rm -f", *new])] if new else []
    if known:
        lines.append(" ".join(["git checkout", shlex.quote(base_commit), *known]))
    return lines


def _heredoc_end(text: str) -> str:
    end = "EOF_114329324912"
    lines = set(text.splitlines())
    while end in lines:
        end += "_"
    return end
