"""The composed command: against the scripts that it replaces, a shell, and Miles' own parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from miles_parts import real_miles
from typer.testing import CliRunner

from palestra.backends.miles.command import MilesJob
from palestra.backends.miles.compose import compose_job
from palestra.backends.miles.mismatch import correction_section
from palestra.backends.miles.settings import PREFIX, HookSettings
from palestra.cli.main import app
from palestra.config import CorrectionSection
from palestra.errors import ConfigError
from palestra.recipe_files import load_recipe
from palestra.run.recipes import find_recipe

MIS = "qwen3-4b-mis"
INSTRUCT = "qwen3-4b-instruct"

# What run-qwen3-4b-mis.sh says, flag by flag; "" where a flag has no value.
SCRIPT = {
    "actor-num-nodes": "1",
    "actor-num-gpus-per-node": "2",
    "colocate": "",
    "swiglu": "",
    "num-layers": "36",
    "hidden-size": "2560",
    "ffn-hidden-size": "9728",
    "num-attention-heads": "32",
    "group-query-attention": "",
    "num-query-groups": "8",
    "use-rotary-position-embeddings": "",
    "disable-bias-linear": "",
    "normalization": "RMSNorm",
    "norm-epsilon": "1e-6",
    "rotary-base": "1000000",
    "vocab-size": "151936",
    "kv-channels": "128",
    "qk-layernorm": "",
    "hf-checkpoint": "/root/Qwen3-4B",
    "ref-load": "/root/Qwen3-4B_torch_dist",
    "save": "/root/swe-agent-ckpt/",
    "save-interval": "50",
    "tensor-model-parallel-size": "2",
    "pipeline-model-parallel-size": "1",
    "context-parallel-size": "1",
    "expert-model-parallel-size": "1",
    "expert-tensor-parallel-size": "1",
    "recompute-granularity": "full",
    "recompute-method": "uniform",
    "recompute-num-layers": "1",
    "use-dynamic-batch-size": "",
    "max-tokens-per-gpu": "2048",
    "prompt-data": "/root/swe_train.jsonl",
    "input-key": "prompt",
    "metadata-key": "metadata",
    "rollout-shuffle": "",
    "num-rollout": "8",
    "rollout-batch-size": "1",
    "n-samples-per-prompt": "2",
    "rollout-temperature": "0.8",
    "rollout-top-p": "1.0",
    "rollout-max-response-len": "2048",
    "global-batch-size": "2",
    "advantage-estimator": "grpo",
    "use-kl-loss": "",
    "kl-loss-coef": "0.01",
    "kl-loss-type": "low_var_kl",
    "entropy-coef": "0.0",
    "eps-clip": "0.2",
    "eps-clip-high": "0.28",
    "optimizer": "adam",
    "lr": "1e-6",
    "lr-decay-style": "constant",
    "weight-decay": "0.1",
    "adam-beta1": "0.9",
    "adam-beta2": "0.98",
    "rollout-num-gpus-per-engine": "1",
    "sglang-mem-fraction-static": "0.7",
    "attention-dropout": "0.0",
    "hidden-dropout": "0.0",
    "accumulate-allreduce-grads-in-fp32": "",
    "attention-softmax-in-fp32": "",
    "attention-backend": "flash",
}
# What its successor says otherwise.
SUCCESSOR = {
    "actor-num-gpus-per-node": "4",
    "rotary-base": "5000000",
    "hf-checkpoint": "/root/qwen3-4B-Instruct-2507",
    "ref-load": "/root/qwen3-4B-Instruct-2507_torch_dist",
    "save": "/root/qwen3-4B-Instruct-2507_miles/",
    "save-interval": "100",
    "num-rollout": "3000",
    "rollout-batch-size": "8",
    "n-samples-per-prompt": "8",
    "rollout-max-response-len": "8192",
    "global-batch-size": "64",
    "balance-data": "",
}
# What we say besides: the defaults of Miles and Megatron, our hooks, and MIS.
BESIDES = {
    "rollout-seed": "42",
    "clip-grad": "1.0",
    "use-tis": "",
    "custom-generate-function-path": "palestra.backends.miles.generate",
    "custom-rm-path": "palestra.backends.miles.reward_func",
    "rollout-function-path": "palestra.backends.miles.generate_rollout",
    "dynamic-sampling-filter-path": "palestra.backends.miles.dynamic_filter",
    "custom-tis-function-path": "palestra.backends.miles.mis",
    "custom-config-path": "miles.yaml",
}


def job_of(name: str, *overrides: str, variables: dict[str, str] | None = None) -> MilesJob:
    return compose_job(load_recipe(find_recipe(Path(name)), overrides), variables or {})


def flags_of(job: MilesJob) -> dict[str, str]:
    flags = [(f.name.removeprefix("--"), " ".join(f.values)) for f in job.command.flags()]
    assert len(dict(flags)) == len(flags), "a flag is said twice"
    return dict(flags)


def same(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b


@pytest.mark.parametrize(
    ("name", "script", "max_context"),
    [(MIS, SCRIPT, "40960"), (INSTRUCT, SCRIPT | SUCCESSOR, "65536")],
)
def test_every_value_of_the_script_is_said(
    name: str, script: dict[str, str], max_context: str
) -> None:
    want = script | BESIDES | {"rollout-max-context-len": max_context}
    got = flags_of(job_of(name))
    assert set(got) == set(want)
    wrong = {flag: got[flag] for flag in want if not same(got[flag], want[flag])}
    assert not wrong


@pytest.mark.parametrize("name", [MIS, INSTRUCT])
def test_the_recipe_leaves_nothing_of_miles_to_a_default(name: str) -> None:
    recipe = load_recipe(find_recipe(Path(name)))
    decided = set(type(recipe.miles).model_fields) - {"load", "arguments", "env_vars"}
    assert decided - recipe.miles.model_fields_set == {"ray_address", "root", "megatron"}
    assert recipe.miles.model.model_fields_set | {"more"} == set(
        type(recipe.miles.model).model_fields
    )


def test_the_config_file_is_what_the_hooks_and_the_correction_read() -> None:
    job = job_of(MIS, "gateway.port=4711", "rollouts.truncated=mask")
    args = Namespace(**yaml.safe_load(job.files["miles.yaml"]))
    settings = HookSettings.read(args, {})
    assert (settings.renderer, settings.gateway_port, settings.truncated) == ("qwen3", 4711, "mask")
    assert correction_section(args) == CorrectionSection()
    assert not [key for key in vars(args) if key.startswith(PREFIX) and "token" in key]


@pytest.mark.parametrize("mode", ["off", "truncate", "clip"])
@pytest.mark.parametrize("level", ["token", "geometric"])
def test_other_corrections_arrive_as_they_are(mode: str, level: str) -> None:
    job = job_of(MIS, f"training.correction.mode={mode}", f"training.correction.level={level}")
    flags = flags_of(job)
    assert ("use-tis" in flags) == ("custom-tis-function-path" in flags) == (mode != "off")
    if mode != "off":
        args = Namespace(**yaml.safe_load(job.files["miles.yaml"]))
        assert correction_section(args) == CorrectionSection(mode=mode, level=level)  # type: ignore[arg-type]


def test_secrets_are_in_the_job_and_never_in_what_is_shown() -> None:
    variables = {
        "SWE_AGENT_GYM_URL": "http://x:s3cret@swe_env:11000",
        "PALESTRA_TOKEN": "t0ken",
        "WANDB_KEY": "w4ndb",
    }
    job = job_of(MIS, variables=variables)
    env_vars = job.runtime_env()["env_vars"]
    assert env_vars["SWE_AGENT_GYM_URL"] == variables["SWE_AGENT_GYM_URL"]
    assert env_vars["PALESTRA_TOKEN"] == "t0ken"
    assert env_vars["WANDB_API_KEY"] == "w4ndb"
    assert "use-wandb" in flags_of(job)
    shown = [job.script(), repr(job), job.command.entrypoint(), *job.files.values()]
    for secret in ("s3cret", "t0ken", "w4ndb"):
        assert not any(secret in text for text in shown)


def test_the_printed_script_does_in_a_shell_what_the_job_does(tmp_path: Path) -> None:
    variables = {"SWE_AGENT_GYM_URL": "http://x:s3c'ret@swe_env:1"}
    job = job_of(MIS, "miles.env_vars.NOTE='it''s $HOME'", variables=variables)
    ray = tmp_path / "ray"
    ray.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "folder = next(a.partition('=')[2] for a in sys.argv if a.startswith('--working-dir='))\n"
        "files = {p.name: p.read_text() for p in pathlib.Path(folder).iterdir()}\n"
        "print(json.dumps({'argv': sys.argv[1:], 'files': files}))\n"
    )
    ray.chmod(0o755)
    ran = subprocess.run(
        ["bash"],
        input=job.script(),
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen = json.loads(ran.stdout)
    argv = seen["argv"]
    assert argv[:3] == ["job", "submit", f"--address={job.address}"]
    at = argv.index("--")
    assert argv[at + 1 :] == ["python3", job.command.script, *job.command.arguments()]
    env = next(a for a in argv if a.startswith("--runtime-env-json="))
    assert json.loads(env.partition("=")[2]) == job.runtime_env()
    assert seen["files"] == dict(job.files)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tasks.train='katas:train?n=4'", "tasks.train is 'katas:train"),
        ("tasks.heldout='val.jsonl'", "tasks.heldout"),
        ("training.minibatches=3", "minibatches does not divide"),
        ("training.shuffle_rewards=true", "shuffle_rewards"),
        ("warmstart.steps=1", "warm start"),
    ],
)
def test_what_miles_cannot_do_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job_of(MIS, override)


def test_an_evaluation_is_said() -> None:
    flags = flags_of(
        job_of(MIS, "tasks.heldout=/data/val.jsonl", "evaluation.every=5", "evaluation.attempts=4")
    )
    assert flags["eval-prompt-data"] == "heldout /data/val.jsonl"
    assert flags["eval-interval"] == "5"
    assert flags["n-samples-per-eval-prompt"] == "4"


def test_arguments_as_they_stand_come_last() -> None:
    job = job_of(MIS, "miles.arguments=['--lr', '2e-6', '--ci-test']")
    assert job.command.arguments()[-3:] == ("--lr", "2e-6", "--ci-test")


def test_dry_run_prints_the_script_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWE_AGENT_GYM_URL", raising=False)
    shown = CliRunner().invoke(app, ["train", MIS, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "  --num-rollout 8 \\\n" in shown.stdout
    assert "convert_hf_to_torch_dist.py" in shown.stdout


PARSE = """
import json, sys
import torch
from transformers import AutoConfig
from miles.utils import arguments as ours
from miles.backends.megatron_utils import arguments as megatron
args = megatron.parse_args(extra_args_provider=ours.get_miles_extra_args_provider())
ours.hf_validate_args(args, AutoConfig.from_pretrained(args.hf_checkpoint))
args.rank, args.world_size = 0, args.actor_num_nodes * args.actor_num_gpus_per_node
args = megatron.set_default_megatron_args(args)
ours.miles_validate_args(args)
if torch.cuda.is_available():  # it asks the GPU for its age
    megatron.validate_args(args)
ours.sglang_validate_args(args)
names = "tis_mode tis_upper_bound palestra_renderer num_rollout global_batch_size use_tis lr"
print("PARSED " + json.dumps({name: getattr(args, name) for name in names.split()}))
"""


@pytest.mark.parametrize(("name", "rope_theta"), [(MIS, 1_000_000), (INSTRUCT, 5_000_000)])
def test_miles_own_parser_takes_it(name: str, rope_theta: int, tmp_path: Path) -> None:
    real_miles("miles.utils.arguments")
    config: Any = real_miles("transformers").Qwen3Config(
        num_hidden_layers=36,
        hidden_size=2560,
        intermediate_size=9728,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path / "model")
    (tmp_path / "ref").mkdir()
    job = job_of(name, f"model.path={tmp_path / 'model'}", f"miles.ref_load={tmp_path / 'ref'}")
    for file, text in job.files.items():
        (tmp_path / file).write_text(text)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSE, *job.command.arguments()],
        cwd=tmp_path,
        env={**os.environ, **job.env_vars, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith("PARSED ")]
    assert said, (ran.stdout + ran.stderr)[-3000:]
    parsed = json.loads(said[0].removeprefix("PARSED "))
    assert parsed["tis_mode"] == "mask"
    assert parsed["palestra_renderer"] == "qwen3"
    assert parsed["use_tis"] is True
    assert parsed["lr"] == 1e-6
    assert parsed["num_rollout"] == (8 if name == MIS else 3000)
