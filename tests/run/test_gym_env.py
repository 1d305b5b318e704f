"""Gym's env.yaml, as it is and as it should not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from palestra.errors import ConfigError
from palestra.run.gym_env import GymEnv, find_gym_env

FILE = """\
policy_base_url: http://127.0.0.1:8000/v1
policy_api_key: EMPTY
policy_model_name: Qwen/Qwen3-4B
default_host: 127.0.0.1
judge_model_name: something for another server
"""


def test_it_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    env = find_gym_env(path)
    assert env.policy_base_url == "http://127.0.0.1:8000/v1"
    assert (env.policy_api_key, env.policy_model_name) == ("EMPTY", "Qwen/Qwen3-4B")
    assert env.default_host == "127.0.0.1"
    assert "EMPTY" not in repr(env), "the key is a secret"


def test_the_working_directorys_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_gym_env(None) == GymEnv()
    (tmp_path / "env.yaml").write_text("# nothing yet\n")
    assert find_gym_env(None) == GymEnv()
    (tmp_path / "env.yaml").write_text(FILE)
    assert find_gym_env(None).policy_model_name == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not YAML"),
        ("- a list", "valid dictionary"),
        ("policy_base_url: [1]", "policy_base_url"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        find_gym_env(path)
    assert str(path) in str(caught.value)


def test_a_key_of_the_wrong_type_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "env.yaml"
    path.write_text("policy_api_key: {secret: sesame}")
    with pytest.raises(ConfigError) as caught:
        find_gym_env(path)
    assert "sesame" not in str(caught.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        find_gym_env(tmp_path / "env.yaml")
