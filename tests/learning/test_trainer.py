from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import (
    VOCAB,
    assert_same_bits,
    batch_of,
    gradients,
    group,
    path_of,
    random_groups,
    rollout,
    sibling_groups,
    tiny_model,
    trainer_at,
    turn,
    weights,
)
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, Qwen3Model

from palestra.config import ModelSection
from palestra.config_training import CorrectionSection, TrainingSection
from palestra.errors import CheckpointError, ConfigError
from palestra.learning.training import Trainer
from palestra.learning.training.batching import TrainingRow, training_rows
from palestra.learning.training.model import Policy
from palestra.learning.training.token_loss import BeforeStep, token_loss
from palestra.records import Group, Outcome, Rollout, TokenPath

EVERYTHING = CorrectionSection(mode="truncate", high=3.0, veto=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "start")


def backward(trainer: Trainer, groups: list[Group]) -> dict[str, torch.Tensor]:
    """Gradients of one step's loss, without the step."""
    rows = training_rows(groups)
    (minibatch,) = trainer._minibatches(rows)
    trainer._backward(minibatch, trainer._before(minibatch, others=0))
    found = gradients(trainer.policy)
    trainer._optimizer.forget_gradients()
    return found


def plain_logprobs(model: Any, path: TokenPath) -> torch.Tensor:
    """One path at a time through the whole model; shares no code with the trainer."""
    logits = model(input_ids=torch.tensor([path.ids])).logits[0, :-1].double()
    logits = logits / torch.tensor(path.temperatures[1:], dtype=torch.float64)[:, None]
    targets = torch.tensor(path.ids[1:])[:, None]
    return torch.log_softmax(logits, -1).gather(-1, targets)[:, 0]


# --- gradients ------------------------------------------------------------------


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("make_groups", [random_groups, sibling_groups])
def test_gradients_are_those_of_the_formula(
    folder: Path, make_groups: Callable[[int], list[Group]], kl_coef: float
) -> None:
    groups = make_groups(5)
    trainer = trainer_at(folder, kl_coef=kl_coef, correction=EVERYTHING)
    got = backward(trainer, groups)
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    rows = training_rows(groups)
    total, num_tokens = torch.tensor(0.0, dtype=torch.float64), 0
    for row in rows:
        mask = torch.tensor(row.path.trainable[1:])
        logp = plain_logprobs(model, row.path)[mask]
        old = logp.detach()
        rollout_logp = torch.tensor(row.path.logprobs[1:], dtype=torch.float64)[mask]
        weight = (old - rollout_logp).exp().clamp(max=3.0)
        total = total - (weight * row.advantage * (logp - old).exp()).sum()
        num_tokens += int(mask.sum())
    # The reference is the start itself: its KL and the KL's gradient are 0 here.
    (total / num_tokens).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(got[name].double(), weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("microbatch_tokens", [1, 40, 100])
def test_microbatches_and_padding_do_not_change_the_gradient(
    folder: Path, microbatch_tokens: int
) -> None:
    groups = random_groups(6)
    whole = backward(trainer_at(folder, microbatch_tokens=10**6), groups)
    parts = backward(trainer_at(folder, microbatch_tokens=microbatch_tokens), groups)
    for name in whole:
        error = float((whole[name] - parts[name]).abs().max())
        assert error <= 1e-6, f"{name}: {error}"


@pytest.mark.parametrize("microbatch_tokens", [1, 40, 1000])
def test_what_siblings_begin_with_is_computed_once_and_changes_nothing(
    folder: Path, microbatch_tokens: int
) -> None:
    groups = sibling_groups(6)
    alone = trainer_at(folder, microbatch_tokens=microbatch_tokens)
    alone.policy.shares_prefixes = False
    together = trainer_at(folder, microbatch_tokens=microbatch_tokens)
    assert together.policy.shares_prefixes
    rows = training_rows(groups)
    (minibatch,) = together._minibatches(rows)
    assert all(len(batch.prefix_P) >= 12 for batch in minibatch.batches)
    plain, shared = backward(alone, groups), backward(together, groups)
    for name in plain:
        error = float((plain[name] - shared[name]).abs().max())
        assert error <= 1e-6, f"{name}: {error}"
    assert alone.train_step(groups) == pytest.approx(
        together.train_step(groups), rel=1e-4, abs=1e-6
    )


def test_a_model_whose_cache_cannot_be_handed_on_shares_no_prefix(folder: Path) -> None:
    class Forgetful(Qwen3Model):
        def forward(self, *args: Any, past_key_values: Any = None, **kw: Any) -> Any:
            return super().forward(*args, **kw)

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.__class__ = Forgetful
    assert not Policy(model).shares_prefixes


def test_metrics_do_not_depend_on_microbatches(folder: Path) -> None:
    groups = random_groups(6)
    whole = trainer_at(folder, microbatch_tokens=10**6).train_step(groups)
    parts = trainer_at(folder, microbatch_tokens=1).train_step(groups)
    assert whole == pytest.approx(parts, rel=1e-4, abs=1e-6)


def test_ids_outside_the_mask_have_no_term_of_their_own(folder: Path) -> None:
    trainer = trainer_at(folder)
    path = path_of([(False, [1, 2]), (True, [3, 4]), (False, [5, 6, 7])], logprob=-3.0)

    def loss_and_gradients(changed: TokenPath) -> tuple[float, dict[str, torch.Tensor]]:
        batch = batch_of([TrainingRow(rollout_id="r", path=changed, advantage=1.0)])
        loss_N, _ = token_loss(
            batch,
            trainer.policy.score(batch),
            before=BeforeStep(),
            section=trainer.training,
            version=0,
        )
        loss_N.sum().backward()
        found = gradients(trainer.policy)
        trainer._optimizer.forget_gradients()
        return float(loss_N.detach().sum()), found

    loss, base = loss_and_gradients(path)
    # Logprobs and temperatures of ids that were not sampled, and ids after the last sampled one.
    for changed in (
        dataclasses.replace(path, logprobs=(-9.0, -9.0, -3.0, -3.0, -9.0, -9.0, -9.0)),
        dataclasses.replace(path, temperatures=(5.0, 5.0, 1.0, 1.0, 5.0, 5.0, 5.0)),
        dataclasses.replace(path, versions=(8, 8, 0, 0, 8, 8, 8)),
        dataclasses.replace(path, ids=(1, 2, 3, 4, 9, 8, 10)),
    ):
        other_loss, other = loss_and_gradients(changed)
        assert other_loss == loss
        assert_same_bits(other, base)
    assert loss_and_gradients(dataclasses.replace(path, ids=(1, 2, 9, 4, 5, 6, 7)))[0] != loss


def test_the_engine_that_equals_the_trainer_has_ratio_one(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)

    def sampled(name: str, outcome: Outcome, ids: list[int]) -> Rollout:
        path = path_of([(False, [1, 2, 3]), (True, ids)], temperature=0.7)
        with torch.no_grad():
            logprobs = plain_logprobs(model, path)[2:].tolist()
        return rollout(name, outcome, [turn(0, [1, 2, 3], ids, logprobs, temperature=0.7)])

    groups = [
        group(sampled("a", Outcome.SOLVED, [4, 5, 6]), sampled("b", Outcome.UNSOLVED, [7, 8]))
    ]
    metrics = trainer_at(folder).train_step(groups)
    assert metrics["train/mis_tis_weight_before_bound_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/mis_tis_weight_before_bound_min"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/mis_is_ratio_mean_final"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/mis_k3_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["train/num_tokens"] == 5
    assert metrics["train/reward_mean"] == 0.5


# --- learning -------------------------------------------------------------------


def sampled_group(trainer: Trainer, wanted: int, size: int, rng: torch.Generator) -> Group:
    """One-token episodes after one prompt; ``wanted`` is the solution."""
    with torch.no_grad():
        logits = trainer.policy.model(input_ids=torch.tensor([[1, 2]])).logits[0, -1]
    logprobs = torch.log_softmax(logits, -1)
    ids = torch.multinomial(logprobs.exp(), size, replacement=True, generator=rng).tolist()
    return group(
        *(
            rollout(
                f"{trainer.version}-{number}",
                Outcome.SOLVED if i == wanted else Outcome.UNSOLVED,
                [turn(0, [1, 2], [i], [float(logprobs[i])], version=trainer.version)],
            )
            for number, i in enumerate(ids)
        )
    )


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"kl_coef": 0.001},
        {"kl_coef": 0.001, "kl": "k2"},
        {"entropy_coef": 0.001},
        {"minibatches": 2},
        {"advantage": "group_mean"},
        {"correction": {"normalize": True}},
        {"layout": "packed"},
        {"loss": "grpo"},
        {"loss": "dr_grpo", "fixed_length": 1},
        {"loss": "gspo", "minibatches": 2},
        {"loss": "cispo", "minibatches": 2},
        {"loss": "rloo"},
        {"loss": "reinforce_plus_plus_baseline"},
    ],
    ids=lambda section: "-".join(map(str, section.values())) or "plain",
)
def test_the_solve_rate_of_a_toy_problem_rises(folder: Path, section: dict[str, Any]) -> None:
    trainer = trainer_at(folder, lr=2e-2, weight_decay=0.0, **section)
    rng = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(40):
        groups = [sampled_group(trainer, wanted=5, size=64, rng=rng)]
        rates.append(trainer.train_step(groups)["train/reward_mean"])
    assert sum(rates[:3]) / 3 < 0.35, "the toy problem is solved before training"
    assert sum(rates[-3:]) / 3 > 0.9, rates


def test_equal_inputs_give_equal_bits(folder: Path) -> None:
    results = []
    for _ in range(2):
        trainer = trainer_at(folder, minibatches=2, kl_coef=0.1, seed=3)
        metrics = [trainer.train_step(random_groups(step)) for step in range(3)]
        results.append((metrics, weights(trainer)))
    assert results[0][0] == results[1][0]
    assert_same_bits(results[0][1], results[1][1])


# --- the three policies ---------------------------------------------------------


def test_with_one_minibatch_the_old_policy_is_the_current_one(folder: Path) -> None:
    metrics = trainer_at(folder).train_step(random_groups(1))
    assert metrics["train/ppo_kl"] == 0.0
    assert metrics["train/pg_clipfrac"] == 0.0


def test_later_minibatches_are_held_to_the_policy_before_the_step(folder: Path) -> None:
    groups = random_groups(1, num_groups=4)
    trainer = trainer_at(folder, lr=0.05, minibatches=3, correction={"mode": "off"})
    metrics = trainer.train_step(groups)
    assert metrics["train/ppo_kl"] != 0.0
    assert metrics["train/pg_clipfrac"] > 0.0, "a large first step must reach the clip"
    assert trainer.version == 1, "a version is a batch, however many minibatches"


def test_the_mismatch_is_measured_before_the_step(folder: Path) -> None:
    groups = random_groups(1, num_groups=4)
    one = trainer_at(folder, lr=0.05).train_step(groups)
    three = trainer_at(folder, lr=0.05, minibatches=3).train_step(groups)
    for name in one:
        if "/mis_" in name:
            assert three[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("minibatches", [1, 2])
def test_normalised_weights_do_not_depend_on_microbatches(folder: Path, minibatches: int) -> None:
    section = {"correction": {"normalize": True, "veto": 0.0}, "minibatches": minibatches}
    groups = random_groups(6)
    whole, parts = (
        trainer_at(folder, microbatch_tokens=tokens, **section) for tokens in (10**6, 1)
    )
    metrics = whole.train_step(groups)
    assert parts.train_step(groups) == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert metrics["train/mis_is_ratio_mean_final"] == pytest.approx(1, rel=0.2)
    assert metrics["train/mis_tis_weight_before_bound"] != pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "gspo", "cispo"])
def test_no_loss_depends_on_microbatches(folder: Path, loss: str) -> None:
    groups = random_groups(6)
    section = {"loss": loss, "entropy_coef": 0.01, "kl_coef": 0.1}
    whole = backward(trainer_at(folder, microbatch_tokens=10**6, **section), groups)
    parts = backward(trainer_at(folder, microbatch_tokens=1, **section), groups)
    for name in whole:
        error = float((whole[name] - parts[name]).abs().max())
        assert error <= 1e-6, f"{name}: {error}"


def test_the_entropy_bonus_raises_entropy_and_needs_no_advantage(folder: Path) -> None:
    equal = group(*(rollout(str(i), Outcome.SOLVED, [turn(0, [1], [2 + i])]) for i in range(3)))
    trainer = trainer_at(folder, entropy_coef=1.0, lr=1e-2)
    first = trainer.train_step([equal])
    for _ in range(5):
        last = trainer.train_step([equal])
    assert first["train/no_signal"] == 0.0
    assert last["train/entropy"] > first["train/entropy"]
    assert first["train/loss"] == pytest.approx(-first["train/entropy"], rel=1e-5)


def test_overlong_rollouts_are_left_out_by_the_trainer_too(folder: Path) -> None:
    trainer = Trainer(
        folder,
        model=ModelSection(device="cpu"),
        training=TrainingSection(),
        truncated="keep",
        seed=0,
        max_row_tokens=3,
    )
    groups = [
        group(
            rollout("a", Outcome.SOLVED, [turn(0, [1], [2])]),
            rollout("b", Outcome.UNSOLVED, [turn(0, [1], [2, 3, 4])]),
        )
    ]
    assert trainer.train_step(groups)["train/num_tokens"] == 1


def test_staleness_counts_versions(folder: Path) -> None:
    trainer = trainer_at(folder)
    trainer.train_step(random_groups(0))
    metrics = trainer.train_step(random_groups(1, version=0))
    assert metrics["train/staleness_mean"] == 1.0
    assert metrics["train/staleness_max"] == 1.0


def test_the_kl_is_to_the_start(folder: Path) -> None:
    trainer = trainer_at(folder, kl_coef=0.5)
    first = trainer.train_step(random_groups(0))
    second = trainer.train_step(random_groups(1))
    assert first["train/kl_loss"] == pytest.approx(0.0, abs=1e-9)
    assert second["train/kl_loss"] > 0
    want = second["train/pg_loss"] + 0.5 * second["train/kl_loss"]
    assert second["train/loss"] == pytest.approx(want)
    assert "train/kl_loss" not in trainer_at(folder).train_step(random_groups(0))


# --- batches and gradients that cannot be used ----------------------------------


def test_groups_without_a_trainable_id_are_refused(folder: Path) -> None:
    trainer = trainer_at(folder)
    trouble = group(rollout("a", Outcome.INFRA_ERROR, [turn(0, [1], [2])]))
    before = weights(trainer)
    for groups in ([], [trouble], [group(rollout("b", Outcome.SOLVED, []))]):
        with pytest.raises(ValueError, match="no sampled id"):
            trainer.train_step(groups)
    assert trainer.version == 0
    assert_same_bits(weights(trainer), before)


def test_equal_rewards_change_no_weight(folder: Path) -> None:
    trainer = trainer_at(folder, weight_decay=0.5)
    trainer.train_step(random_groups(0))  # leaves momentum behind
    before = weights(trainer)
    equal = group(*(rollout(str(i), Outcome.SOLVED, [turn(0, [1], [2 + i])]) for i in range(3)))
    metrics = trainer.train_step([equal])
    assert metrics["train/no_signal"] == 1.0
    assert "train/loss" not in metrics
    assert trainer.version == 2
    assert_same_bits(weights(trainer), before)


def test_a_gradient_that_is_not_finite_is_counted_and_never_stepped(folder: Path) -> None:
    trainer = trainer_at(folder)
    trainer.train_step(random_groups(0))
    norm = trainer.policy.model.base_model.norm.weight
    with torch.no_grad():
        norm[0] = torch.inf
    before, moments = weights(trainer), trainer.state_dict()["optimizer"]["moments"]
    counts = {name: float(state["step"]) for name, state in moments.items()}
    metrics = trainer.train_step(random_groups(1))
    assert metrics["train/nonfinite_steps"] == 1.0
    assert_same_bits(weights(trainer), before)
    after = trainer.state_dict()["optimizer"]["moments"]
    assert {name: float(state["step"]) for name, state in after.items()} == counts
    with torch.no_grad():
        norm[0] = 1.0
    metrics = trainer.train_step(random_groups(2))
    assert metrics["train/nonfinite_steps"] == 1.0, "one is counted once"
    assert metrics["train/grad_norm"] > 0
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())


# --- optimizer ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_decay_spares_norms_and_the_embedding(tmp_path: Path, tied: bool) -> None:
    folder = tiny_model(tmp_path / "model", tied=tied)
    optimizer = trainer_at(folder)._optimizer
    decayed, spared = (
        {n for n, m in optimizer._masters.items() if any(m is p for p in part["params"])}
        for part in optimizer._adamw.param_groups
    )
    assert decayed | spared == set(optimizer._masters)
    assert not decayed & spared
    assert "model.embed_tokens.weight" in spared
    assert all("norm" in n or "embed" in n for n in spared), spared
    assert tied == ("lm_head.weight" not in decayed)


def test_the_learning_rate_follows_the_step(folder: Path) -> None:
    trainer = trainer_at(folder, lr=1e-3, warmup_steps=2, steps=4, lr_decay="linear")
    rates = [trainer.train_step(random_groups(i))["train/lr"] for i in range(4)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


def test_the_gradient_is_clipped(folder: Path) -> None:
    trainer = trainer_at(folder, max_grad_norm=1e-3, betas=(0.0, 0.0))
    norm = trainer.train_step(random_groups(0))["train/grad_norm"]
    assert norm > 1e-3, "reported before clipping"
    moments = trainer.state_dict()["optimizer"]["moments"]
    clipped = sum(float(m["exp_avg"].square().sum()) for m in moments.values()) ** 0.5
    assert clipped == pytest.approx(1e-3, rel=1e-2)


def test_bfloat16_weights_move_by_steps_below_their_resolution(folder: Path) -> None:
    trainer = trainer_at(
        folder, model=ModelSection(device="cpu", dtype="bfloat16"), lr=2e-5, weight_decay=0.0
    )
    before = weights(trainer)
    assert {w.dtype for w in before.values()} == {torch.bfloat16}
    name = "model.norm.weight"  # ones: bfloat16 steps there are 2**-8 and 2**-7
    for _ in range(8):
        trainer.train_step(random_groups(0))
    masters = trainer.state_dict()["optimizer"]["masters"]
    assert (masters[name] - 1).abs().max() > 5e-5, "the small steps add up in the master"
    after = weights(trainer)
    assert all(after[name].equal(master.to(torch.bfloat16)) for name, master in masters.items())
    assert any(not after[name].equal(before[name]) for name in masters), "the model never moved"


def test_bfloat16_gradients_are_summed_over_microbatches(folder: Path) -> None:
    def norm(microbatch_tokens: int) -> float:
        model = ModelSection(device="cpu", dtype="bfloat16")
        trainer = trainer_at(folder, model=model, microbatch_tokens=microbatch_tokens)
        return trainer.train_step(random_groups(6))["train/grad_norm"]

    assert norm(1) == pytest.approx(norm(10**6), rel=0.05)


# --- files ----------------------------------------------------------------------


def test_saved_weights_are_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_at(folder)
    trainer.train_step(random_groups(0))
    target = tmp_path / "out" / "weights"
    for _ in range(2):  # a second save replaces the first
        trainer.save_weights(target)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in target.iterdir()
        }
        assert [p.name for p in target.parent.iterdir()] == ["weights"], "nothing is left behind"
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert_same_bits(dict(loaded.state_dict()), weights(trainer))
    assert json.loads((target / "tokenizer.json").read_text()) == {"made": "up"}


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    other = trainer_at(tiny_model(tmp_path / "untied", tied=False))
    other.save_weights(tmp_path / "weights")
    trainer = trainer_at(folder)
    with pytest.raises(CheckpointError, match="weights"):
        trainer.load_weights(tmp_path / "nowhere")
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="weights"):
        trainer.load_weights(tmp_path / "weights")


def test_a_model_that_is_not_there_or_not_whole_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        trainer_at(tmp_path / "nothing")
    folder = tiny_model(tmp_path / "half")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot load"):
        trainer_at(folder)


def test_a_file_that_lacks_weights_is_a_config_error(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 3, ["full_attention"] * 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="missing_keys"):
        trainer_at(folder)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_a_config_error(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        trainer_at(folder, model=ModelSection(device=device))


def test_a_head_that_is_more_than_a_product_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    with pytest.raises(ConfigError, match="changes its logits"):
        trainer_at(tmp_path / "capped")


# --- the missing extra ----------------------------------------------------------


def test_without_torch_the_package_imports_and_says_what_to_install() -> None:
    program = """
import sys
sys.modules["torch"] = None  # import torch now fails as if it were not installed
import palestra.learning.training as training
from palestra.errors import MissingExtra
try:
    training.Trainer
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "'torch'" in done.stdout
    assert "pip install 'palestra[train]'" in done.stdout
