from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import sampled_group
from training_toys import (
    assert_same_bits,
    batch_of,
    path_of,
    random_groups,
    tiny_model,
    trainer_at,
    weights,
)
from transformers import AutoModelForCausalLM

from palestra.config import ModelSection, WarmstartSection
from palestra.errors import CheckpointError, ConfigError
from palestra.learning.training import CheckpointStore, Trainer, warm_start
from palestra.learning.training.batching import TrainingRow, training_rows
from palestra.learning.training.lora import ADAPTER

LORA = {"rank": 4, "alpha": 8}
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
BFLOAT16 = ModelSection(device="cpu", dtype="bfloat16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


def trained(folder: Path, steps: int = 2, **options: Any) -> Trainer:
    trainer = trainer_at(folder, **({"lora": LORA, "lr": 3e-2} | options))
    for step in range(steps):
        trainer.train_step(random_groups(step))
    return trainer


def base_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: w for n, w in weights(trainer).items() if ".lora_" not in n}


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


# peft asks transformers for a property by its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


# --- what trains ----------------------------------------------------------------


def test_gradients_masters_and_moments_are_of_adapters_only(folder: Path) -> None:
    trainer = trained(folder, model=BFLOAT16)
    state = trainer.state_dict()["optimizer"]
    names = {n for n, _ in trainer.policy.model.named_parameters() if ".lora_" in n}
    assert len(names) == 2 * 2 * len(ALL), "two layers with A and B at each linear layer"
    assert set(state["masters"]) == set(state["moments"]) == names
    rows = training_rows(random_groups(5))
    batch = batch_of(rows)
    trainer.policy.score(batch).logprobs_N.sum().backward()
    assert {n for n, w in trainer.policy.model.named_parameters() if w.grad is not None} == names


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(7)
    one = trainer_at(folder, lora=LORA, seed=1)
    state = torch.get_rng_state()
    two = trainer_at(folder, lora=LORA, seed=1)
    assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
    assert_same_bits(weights(one), weights(two))
    other = weights(trainer_at(folder, lora=LORA, seed=2))
    assert any(not torch.equal(w, other[n]) for n, w in weights(one).items() if "lora_A" in n)
    assert torch.equal(
        logits(one.policy.model), logits(AutoModelForCausalLM.from_pretrained(folder))
    )


@OLD_NAME
def test_a_step_is_that_of_a_plain_loop_over_pefts_own_model(folder: Path) -> None:
    groups = random_groups(3)
    section = {"lora": LORA, "lr": 1e-2, "weight_decay": 0.1, "correction": {"mode": "off"}}
    trainer = trainer_at(folder, **section)
    start = {
        n.replace(".default", ""): w.clone() for n, w in weights(trainer).items() if "lora_" in n
    }
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        peft.LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    peft.set_peft_model_state_dict(model, {f"base_model.model.{n}": w for n, w in start.items()})
    adamw = torch.optim.AdamW(
        [w for w in model.parameters() if w.requires_grad],
        lr=1e-2,
        betas=trainer.training.betas,
        weight_decay=0.1,
    )
    rows = training_rows(groups)
    total, num_ids = torch.tensor(0.0), 0
    for row in rows:
        mask = torch.tensor(row.path.trainable[1:])
        found = model(input_ids=torch.tensor([row.path.ids])).logits[0, :-1].float()
        targets = torch.tensor(row.path.ids[1:])[:, None]
        logp = torch.log_softmax(found, -1).gather(-1, targets)[:, 0][mask]
        total = total - (row.advantage * (logp - logp.detach()).exp()).sum()
        num_ids += int(mask.sum())
    (total / num_ids).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()

    trainer.train_step(groups)
    want = peft.get_peft_model_state_dict(model)
    got = weights(trainer)
    moved = 0
    for name, first in start.items():
        ours = got[name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default")]
        torch.testing.assert_close(ours, want[f"base_model.model.{name}"], rtol=1e-4, atol=1e-5)
        moved += not torch.equal(ours, first)
    assert moved, "the step moved nothing, so this compares nothing"


@pytest.mark.parametrize(
    "section",
    [{}, {"layout": "packed", "activation_checkpointing": True}, {"kl_coef": 0.001}],
    ids=["plain", "packed-anew", "kl"],
)
def test_the_solve_rate_of_a_toy_problem_rises(folder: Path, section: dict[str, Any]) -> None:
    trainer = trainer_at(folder, lora=LORA, lr=1e-2, weight_decay=0.0, **section)
    before = base_of(trainer)
    rng = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(40):
        groups = [sampled_group(trainer, wanted=5, size=64, rng=rng)]
        rates.append(trainer.train_step(groups)["train/reward_mean"])
    assert sum(rates[:3]) / 3 < 0.1, "the toy problem is solved before training"
    # Final norm and head stay as they are, and let no id of this model be much likelier.
    assert sum(rates[-10:]) / 10 > 0.55, rates
    assert_same_bits(base_of(trainer), before)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["layers.0.mlp.up_proj"]])
def test_targets_name_layers_by_their_ends(folder: Path, targets: list[str]) -> None:
    trainer = trainer_at(folder, lora=LORA | {"targets": targets})
    names = [n for n, _ in trainer.policy.model.named_parameters() if ".lora_A" in n]
    assert len(names) == (4 if len(targets) == 2 else 1)
    assert all(any(f"{t}.lora_A" in n for t in targets) for n in names), names


@pytest.mark.parametrize("target", ["lm_head", "c_attn", "embed_tokens"])
def test_unknown_targets_are_refused_with_those_that_there_are(folder: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=target) as raised:
        trainer_at(folder, lora=LORA | {"targets": ["q_proj", target]})
    assert all(name in str(raised.value) for name in ALL)


# --- what engines and users get -------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_written_folder_computes_what_the_adapted_model_does(
    tmp_path: Path, tied: bool
) -> None:
    folder = tiny_model(tmp_path / "start", tied=tied)
    trainer = trained(folder)
    before = weights(trainer)
    trainer.save_weights(tmp_path / "out")
    assert_same_bits(weights(trainer), before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = logits(trainer.policy.model)
    assert not torch.allclose(ours, logits(AutoModelForCausalLM.from_pretrained(folder)), atol=0.1)
    torch.testing.assert_close(logits(merged), ours, rtol=1e-4, atol=1e-4)
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert names == set(load_file(folder / "model.safetensors")), "an ordinary folder's names"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_merged_weights_are_summed_in_float32_and_rounded_once(
    folder: Path, tmp_path: Path
) -> None:
    trainer = trained(folder, model=BFLOAT16)
    trainer.save_weights(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    state = weights(trainer)
    layer = "model.layers.1.mlp.up_proj"
    a, b = (state[f"{layer}.lora_{x}.default.weight"].double() for x in "AB")
    want = state[f"{layer}.base_layer.weight"].double() + 2 * b @ a
    assert saved[f"{layer}.weight"].dtype == torch.bfloat16
    off = (saved[f"{layer}.weight"].double() - want).abs()
    assert bool((off <= want.abs() * 2**-8 * 1.001 + 1e-9).all()), "more than one rounding"


@OLD_NAME
def test_the_adapter_beside_is_one_that_peft_loads(folder: Path, tmp_path: Path) -> None:
    trainer = trained(folder)
    trainer.save_weights(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out" / ADAPTER).eval()
    torch.testing.assert_close(logits(theirs), logits(trainer.policy.model), rtol=1e-5, atol=1e-5)
    assert theirs.peft_config["default"].base_model_name_or_path == str(folder)
    written = json.loads((tmp_path / "out" / ADAPTER / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(ALL), "the same in every process"


# --- the reference --------------------------------------------------------------


def test_the_reference_is_the_base_until_a_warm_start_moves_it(folder: Path) -> None:
    trainer = trainer_at(folder, lora=LORA, kl_coef=0.1)
    batch = batch_of(
        [TrainingRow(rollout_id="r", path=path_of([(False, [1]), (True, [2, 3])]), advantage=1.0)]
    )
    alone = trainer_at(folder).policy.score(batch).logprobs_N.detach()
    trainer.train_step(random_groups(0))
    own = trainer.policy.score(batch).logprobs_N.detach()
    held = trainer._score_frozen(trainer._reference, batch)
    assert torch.equal(held, alone)
    assert not torch.equal(own, held)
    assert torch.equal(trainer.policy.score(batch).logprobs_N, own), "the adapters are back"


def test_scoring_the_reference_leaves_pending_gradients_alone(folder: Path) -> None:
    with_kl, without = (trainer_at(folder, lora=LORA, lr=3e-2, kl_coef=k) for k in (1e-12, 0.0))
    for step in range(3):
        metrics = [t.train_step(random_groups(step)) for t in (with_kl, without)]
        norms = [m["train/grad_norm"] for m in metrics]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert metrics[0]["train/kl_loss"] > 0


def test_a_warm_start_trains_adapters_and_becomes_the_reference(
    folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_at(folder, lora=LORA, kl_coef=0.1)
    before = base_of(trainer)
    section = WarmstartSection(steps=20, lr=3e-2, batch_size=2)
    paths = [path_of([(False, [1, 2]), (True, [3, 4, 5])]), path_of([(False, [6]), (True, [7])])]
    losses = [m["warmstart/loss"] for m in warm_start(trainer, paths, section, seed=0)]
    assert losses[-1] < losses[0] / 3
    assert_same_bits(base_of(trainer), before)
    first = trainer.train_step(random_groups(0))
    assert first["train/kl_loss"] == pytest.approx(0.0, abs=1e-9)
    assert trainer.train_step(random_groups(1))["train/kl_loss"] > 0


# --- resume ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"model": BFLOAT16}, {"kl_coef": 0.1, "minibatches": 2}],
    ids=["plain", "bfloat16", "kl-minibatches"],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    folder: Path, tmp_path: Path, options: dict[str, Any], warm: bool
) -> None:
    unbroken = trainer_at(folder, lora=LORA, seed=1, **options)
    if warm:
        section = WarmstartSection(steps=3, lr=1e-2, batch_size=1)
        list(warm_start(unbroken, [path_of([(False, [1]), (True, [3, 4])])], section, seed=0))
    unbroken.train_step(random_groups(0))
    store = CheckpointStore(tmp_path / "checkpoints", 3)
    store.save(unbroken.version, unbroken, {})
    resumed = trainer_at(folder, lora=LORA, seed=99, **options)
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, resumed)
    assert_same_bits(weights(unbroken), weights(resumed))
    for step in (2, 3):
        assert unbroken.train_step(random_groups(step)) == resumed.train_step(random_groups(step))
        assert_same_bits(weights(unbroken), weights(resumed))


def checkpoint_into(trainer: Trainer, other: Trainer, folder: Path) -> None:
    store = CheckpointStore(folder, 1)
    store.save(trainer.version, trainer, {})
    checkpoint = store.latest()
    assert checkpoint is not None
    store.load(checkpoint, other)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"lora": {"rank": 2}}, "another rank"),
        ({"lora": {"rank": 4, "targets": ["q_proj"]}}, "other layers"),
        ({}, "other parameters"),
    ],
    ids=["rank", "targets", "without"],
)
def test_a_checkpoint_of_other_adapters_is_refused(
    folder: Path, tmp_path: Path, other: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        checkpoint_into(trained(folder, 1), trainer_at(folder, **other), tmp_path / "c")


def test_adapters_are_bound_to_their_base(folder: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="other base"):
        checkpoint_into(trained(folder, 1), trainer_at(other, lora=LORA), tmp_path / "c")


def test_a_checkpoint_without_adapters_and_a_torn_one_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    plain = trainer_at(folder)
    with pytest.raises(CheckpointError, match="cannot read the adapters"):
        checkpoint_into(plain, trainer_at(folder, lora=LORA), tmp_path / "c")
    trained(folder, 1).save_weights(tmp_path / "out")
    path = tmp_path / "out" / ADAPTER / "adapter_model.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="other base"):
        trainer_at(folder, lora=LORA).load_weights(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cannot read"):
        trainer_at(folder, lora=LORA).load_weights(tmp_path / "out")


def test_the_scale_is_alpha_over_rank(folder: Path) -> None:
    trainer = trained(folder, 1, lora={"rank": 2, "alpha": 6})
    layer = trainer.policy.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 3.0 * (x @ a.T @ b.T))
    assert math.isclose(layer.scaling["default"], 3.0)
