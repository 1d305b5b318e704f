"""One policy-gradient step after another: groups in, metrics and new weights out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from palestra.config import ModelSection, TrainingSection
from palestra.errors import CheckpointError
from palestra.learning.training.batching import (
    Microbatch,
    TrainingRow,
    microbatches,
    training_rows,
)
from palestra.learning.training.correction import importance_weights
from palestra.learning.training.folders import whole_folder
from palestra.learning.training.logprobs import TokenLogprobs
from palestra.learning.training.losses import k3_kl, policy_loss
from palestra.learning.training.model import Policy
from palestra.learning.training.movement import WeightSample
from palestra.learning.training.optimizer import PolicyOptimizer
from palestra.learning.training.report import TokenReport, join, token_metrics
from palestra.learning.training.schedule import lr_at
from palestra.records import Group

_STATE_FORMAT = 1


class Trainer:
    """GRPO with masked importance sampling on one device.

    Three policies are kept apart: the one that sampled (the engine's logprobs, under the
    versions the ids carry), the one before the step (recomputed here), and the one being
    trained. With one minibatch the last two are the same weights, so the detached
    logprobs of the training pass stand for both; from two minibatches on, a pass without
    gradients comes before the first optimizer step.

    On a CPU, equal groups and an equal seed give equal weights, bit for bit.

    Args:
        model_path: Hugging Face folder that the policy (and its reference) starts from.
        model: device and dtype.
        training: optimizer, loss and batching.
        truncated: whether truncated rollouts are trained on or only count in the baseline.
        seed: of the order in which groups fall into minibatches.

    Raises:
        ConfigError: the folder holds no usable model, or there is no such device.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        model: ModelSection,
        training: TrainingSection,
        truncated: Literal["keep", "mask"],
        seed: int,
    ) -> None:
        self._model_path = model_path
        self._section = training
        self._truncated = truncated
        self._seed = seed
        self.policy = Policy.load(model_path, model)
        self._reference = self.policy.frozen_copy() if training.kl_coef > 0 else None
        self._reference_moved = False
        self._optimizer = PolicyOptimizer(
            self.policy.model, betas=training.betas, weight_decay=training.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._step = 0
        self._num_skipped = 0

    @property
    def version(self) -> int:
        """Steps done; the version of the weights as they are."""
        return self._step

    @property
    def training(self) -> TrainingSection:
        """The section this trainer was made with."""
        return self._section

    @property
    def model_path(self) -> Path:
        """The folder that the policy started from."""
        return self._model_path

    # --- steps ----------------------------------------------------------------

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Train on groups once and raise the version by one; blocks.

        A gradient that is not finite, and a batch whose advantages are all 0 (without a
        KL term), change no weight; the version rises all the same, since the groups are
        used up. ``train/nonfinite_steps`` counts the former over the whole run,
        ``train/no_signal`` is 1 for the latter.

        Returns:
            Metrics named ``train/…``; what does not exist in this step is left out.

        Raises:
            ValueError: the groups hold no id that could be trained on. Nothing changed.
        """
        rows = training_rows(
            groups,
            normalize_std=self._section.normalize_std,
            truncated=self._truncated,
            shuffle_seed=self._seed if self._section.shuffle_rewards else None,
        )
        if not rows:
            raise ValueError(f"{len(groups)} groups hold no sampled id with a reward to train on")
        has_signal = self._reference is not None or any(row.advantage != 0 for row in rows)
        lr = self._lr()
        metrics = self._optimize(rows, lr) if has_signal else {}
        self._step += 1
        rewards = [r.reward for g in groups for r in g.rollouts if r.reward is not None]
        metrics |= {
            "lr": lr,
            "no_signal": float(not has_signal),
            "nonfinite_steps": float(self._num_skipped),
            "num_rows": float(len(rows)),
            "reward_mean": math.fsum(rewards) / len(rewards),
        }
        return {f"train/{name}": value for name, value in metrics.items()}

    def _optimize(self, rows: tuple[TrainingRow, ...], lr: float) -> dict[str, float]:
        minibatches = self._minibatches(rows)
        old_logprobs: list[list[torch.Tensor | None]] = [
            [
                self._score_frozen(self.policy, batch) if len(minibatches) > 1 else None
                for batch in m
            ]
            for m in minibatches
        ]
        before = WeightSample(self.policy.model)
        reports: list[TokenReport] = []
        norms = []
        for minibatch, old in zip(minibatches, old_logprobs, strict=True):
            try:
                reports += self._backward(minibatch, old)
                norm = self._optimizer.step(lr=lr, max_grad_norm=self._section.max_grad_norm)
            finally:
                self._optimizer.forget_gradients()
            norms.append(norm)
            self._num_skipped += not math.isfinite(norm)
        metrics = token_metrics(join(reports), self._section.correction)
        metrics["weight_change"] = before.relative_change()
        metrics["grad_norm"] = math.fsum(norms) / len(norms)
        metrics["loss"] = metrics["pg_loss"]
        if "kl_loss" in metrics:
            metrics["loss"] += self._section.kl_coef * metrics["kl_loss"]
        return metrics

    def _minibatches(self, rows: tuple[TrainingRow, ...]) -> list[list[Microbatch]]:
        # Whole groups: their baseline stays balanced, and they share what they begin with.
        groups = [
            list(members)
            for _, members in groupby(range(len(rows)), key=lambda number: rows[number].group_id)
        ]
        num_parts = min(self._section.minibatches, len(groups))
        order = list(range(len(groups)))
        if num_parts > 1:
            order = torch.randperm(len(groups), generator=self._generator).tolist()
        return [
            microbatches(
                [(n, rows[n]) for index in sorted(order[part::num_parts]) for n in groups[index]],
                max_tokens=self._section.microbatch_tokens,
                device=self.policy.device,
                share_prefixes=self.policy.shares_prefixes,
            )
            for part in range(num_parts)
        ]

    def _backward(
        self, minibatch: list[Microbatch], old_logprobs: list[torch.Tensor | None]
    ) -> list[TokenReport]:
        # One normaliser for all microbatches, so that how rows are packed changes nothing.
        num_tokens = sum(batch.num_trainable for batch in minibatch)
        reports = []
        for batch, old_N in zip(minibatch, old_logprobs, strict=True):
            scored = self.policy.score(batch)
            loss_N, report = self._loss(batch, scored, old_N)
            (loss_N.sum() / num_tokens).backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            reports.append(report)
        return reports

    def _loss(
        self, batch: Microbatch, scored: TokenLogprobs, old_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, TokenReport]:
        current_N = scored.logprobs_N.detach()
        old_N = current_N if old_N is None else old_N
        weights_N = importance_weights(
            train_logprobs_N=old_N,
            rollout_logprobs_N=batch.rollout_logprobs_N,
            row_N=batch.row_N,
            section=self._section.correction,
        )
        clipped = policy_loss(
            logprobs_N=scored.logprobs_N,
            old_logprobs_N=old_N,
            advantages_N=batch.advantages_N,
            weights_N=weights_N,
            clip_low=self._section.clip_low,
            clip_high=self._section.clip_high,
        )
        loss_N, kl_N = clipped.loss_N, None
        if self._reference is not None:
            kl_N = k3_kl(scored.logprobs_N, self._score_frozen(self._reference, batch))
            loss_N = loss_N + self._section.kl_coef * kl_N
        return loss_N, TokenReport(
            row_N=batch.row_N,
            logprobs_N=current_N,
            old_logprobs_N=old_N,
            rollout_logprobs_N=batch.rollout_logprobs_N,
            weights_N=weights_N,
            entropy_N=scored.entropy_N,
            policy_loss_N=clipped.loss_N.detach(),
            clipped_N=clipped.clipped_N,
            staleness_N=self._step - batch.version_N,
            kl_N=None if kl_N is None else kl_N.detach(),
        )

    @staticmethod
    def _score_frozen(policy: Policy, batch: Microbatch) -> torch.Tensor:
        with torch.no_grad():
            return policy.score(batch).logprobs_N

    def _lr(self) -> float:
        return lr_at(
            self._step,
            peak_lr=self._section.lr,
            warmup_steps=self._section.warmup_steps,
            total_steps=self._section.steps,
            decay=self._section.lr_decay,
        )

    # --- state ----------------------------------------------------------------

    def start_from_here(self) -> None:
        """Make the present weights the start of RL: fresh moments, and the reference is they.

        Raises:
            ValueError: RL has already begun.
        """
        if self._step:
            raise ValueError(f"RL has begun: {self._step} steps are done")
        self._optimizer.reset()
        if self._reference is not None:
            self._reference = self.policy.frozen_copy()
            self._reference_moved = True

    def save_weights(self, folder: Path) -> None:
        """Write a Hugging Face folder (weights, config, tokenizer) that appears whole.

        Raises:
            CheckpointError: it cannot be written; what was in ``folder`` is still there.
        """
        with whole_folder(folder) as temporary:
            self.write_model(temporary)

    def write_model(self, folder: Path) -> None:
        """Write the Hugging Face files into a folder that exists."""
        self.policy.write(folder, tokenizer_from=self._model_path)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights of a folder that :meth:`save_weights` wrote.

        Raises:
            CheckpointError: they are missing, broken or of another architecture.
        """
        self.policy.read(folder)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: tensors, numbers and dicts of them.

        The reference is in it only when it is not the model at ``model_path``.
        """
        moved = self._reference is not None and self._reference_moved
        return {
            "format": _STATE_FORMAT,
            "step": self._step,
            "num_skipped": self._num_skipped,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "reference": self._reference.model.state_dict() if moved and self._reference else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; load the weights first.

        Raises:
            CheckpointError: keys, shapes or dtypes are not those of this trainer.
        """
        wrong = set(state) ^ set(self.state_dict())
        if wrong or state["format"] != _STATE_FORMAT:
            raise CheckpointError(
                "the trainer's state is of another format" + (f": {sorted(wrong)}" if wrong else "")
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        if state["reference"] is not None and self._reference is not None:
            try:
                self._reference.model.load_state_dict(state["reference"], strict=True)
            except RuntimeError as error:
                raise CheckpointError(f"the reference is of another model: {error}") from error
            self._reference_moved = True
        self._step = int(state["step"])
        self._num_skipped = int(state["num_skipped"])
