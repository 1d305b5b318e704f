"""One policy-gradient step after another: groups in, metrics and new weights out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from palestra.config import ModelSection
from palestra.config_training import TrainingSection
from palestra.errors import CheckpointError
from palestra.learning.training.batching import (
    Microbatch,
    TrainingRow,
    microbatches,
    training_rows,
)
from palestra.learning.training.correction import importance_weights
from palestra.learning.training.folders import whole_folder
from palestra.learning.training.losses import LossScale, loss_scale
from palestra.learning.training.model import Policy, Reference
from palestra.learning.training.movement import WeightSample
from palestra.learning.training.optimizer import PolicyOptimizer
from palestra.learning.training.ranks import Ranks
from palestra.learning.training.report import TokenReport, join, ratios_by_rollout, token_metrics
from palestra.learning.training.schedule import lr_at
from palestra.learning.training.sharding import require_shareable
from palestra.learning.training.token_loss import BeforeStep, scaled_sum, token_loss
from palestra.records import Group

_STATE_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Minibatch:
    """What one optimizer step sees."""

    batches: list[Microbatch]
    rows: tuple[int, ...]  # numbers of its rows in the whole batch
    scale: LossScale


class Trainer:
    """Group-relative policy gradients with masked importance sampling on one device.

    Three policies are kept apart: the one that sampled (the engine's logprobs, under the
    versions the ids carry), the one before the step (recomputed here), and the one being
    trained. With one minibatch the last two are the same weights, so the detached
    logprobs of the training pass stand for both; from two minibatches on, and where
    importance weights are normalised, a pass without gradients comes before the first
    optimizer step.

    On a CPU, equal groups and an equal seed give equal weights, bit for bit.

    Args:
        model_path: Hugging Face folder that the policy (and its reference) starts from.
        model: device and dtype.
        training: optimizer, loss and batching.
        truncated: whether truncated rollouts are trained on or only count in the baseline.
        max_row_tokens: rollouts with longer conversations only count in it; 0: any length.
        seed: of the order in which groups fall into minibatches, and of new adapters.
        ranks: the processes that train together, each with a trainer that is given the same; of
            every method, all must be called in the same order. ``None``: this process alone.

    Raises:
        ConfigError: the folder holds no usable model, there is no such device, or the model
            has no layers for adapters.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        model: ModelSection,
        training: TrainingSection,
        truncated: Literal["keep", "mask"],
        seed: int,
        max_row_tokens: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        if self._ranks.size > 1:
            require_shareable(training)
        self._model_path = model_path
        self._section = training
        self._truncated = truncated
        self._max_row_tokens = max_row_tokens
        self._fixed_length = training.fixed_length or model.max_context
        self._seed = seed
        self.policy = Policy.load(
            model_path,
            model,
            layout=training.layout,
            activation_checkpointing=training.activation_checkpointing,
            lora=training.lora,
            compiled=training.compile,
            seed=seed,
            ranks=ranks,
        )
        self._reference = self.policy.frozen_copy() if training.kl_coef > 0 else None
        self._reference_moved = False
        self._optimizer = PolicyOptimizer(
            self.policy.model,
            betas=training.betas,
            weight_decay=training.weight_decay,
            offload=training.offload_optimizer,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._step = 0
        self._num_skipped = 0
        self._ratios: Mapping[str, Sequence[float]] = {}

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

    @property
    def ratios(self) -> Mapping[str, Sequence[float]]:
        """Of the last step, by rollout: each trained id's importance ratio, before any bound."""
        return self._ratios

    # --- steps ----------------------------------------------------------------

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Train on groups once and raise the version by one; blocks.

        A gradient that is not finite, and a batch whose advantages are all 0 (without KL and
        entropy terms), change no weight; the version rises all the same, since the groups are
        used up. ``train/nonfinite_steps`` counts the former over the whole run,
        ``train/no_signal`` is 1 for the latter.

        Returns:
            Metrics named ``train/…``; what does not exist in this step is left out.

        Raises:
            ValueError: the groups hold no id that could be trained on. Nothing changed.
        """
        rows = training_rows(
            groups,
            advantage=self._section.objective.advantage,
            truncated=self._truncated,
            max_row_tokens=self._max_row_tokens,
            overlong=self._section.overlong,
            shuffle_seed=self._seed if self._section.shuffle_rewards else None,
        )
        if not rows:
            raise ValueError(f"{len(groups)} groups hold no sampled id with a reward to train on")
        has_signal = (
            self._reference is not None
            or self._section.entropy_coef > 0
            or any(row.advantage != 0 for row in rows)
        )
        lr = self._lr()
        self._ratios = {}
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
        known = [self._before(m, others=len(minibatches) - 1) for m in minibatches]
        start = WeightSample(self.policy.model)
        reports: list[TokenReport] = []
        losses, norms = [], []
        for minibatch, before in zip(minibatches, known, strict=True):
            try:
                loss, parts = self._backward(minibatch, before)
                norm = self._optimizer.step(lr=lr, max_grad_norm=self._section.max_grad_norm)
            finally:
                self._optimizer.forget_gradients()
            reports += parts
            losses.append(loss)
            norms.append(norm)
            self._num_skipped += not math.isfinite(norm)
        tokens = join(reports)
        self._ratios = ratios_by_rollout(tokens, [row.rollout_id for row in rows])
        metrics = token_metrics(tokens, self._section.correction)
        metrics["grad_norm"] = math.fsum(norms) / len(norms)
        metrics["loss"] = sum(losses) / len(losses)
        metrics["weight_change"] = start.relative_change()
        return metrics

    def _minibatches(self, rows: tuple[TrainingRow, ...]) -> list[_Minibatch]:
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
            self._minibatch(rows, [n for i in sorted(order[part::num_parts]) for n in groups[i]])
            for part in range(num_parts)
        ]

    def _minibatch(self, rows: tuple[TrainingRow, ...], numbers: list[int]) -> _Minibatch:
        return _Minibatch(
            batches=microbatches(
                [(number, rows[number]) for number in numbers],
                max_tokens=self._section.microbatch_tokens,
                device=self.policy.device,
                share_prefixes=self.policy.shares_prefixes,
                layout=self._section.layout,
            ),
            rows=tuple(numbers),
            scale=loss_scale(
                [rows[number].rollout_id for number in numbers],
                [rows[number].num_trainable for number in numbers],
                aggregation=self._section.objective.aggregation,
                fixed_length=self._fixed_length,
            ),
        )

    def _before(self, minibatch: _Minibatch, *, others: int) -> list[BeforeStep]:
        """What must be known before any optimizer step; the rest is left to the backward pass."""
        normalize = self._section.correction.normalize
        if not others and not normalize:
            return [BeforeStep()] * len(minibatch.batches)
        olds = self._old_logprobs(minibatch)
        if not normalize:
            return [BeforeStep(logprobs_N=old_N) for old_N in olds]
        weights_N = importance_weights(
            train_logprobs_N=torch.cat(olds),
            rollout_logprobs_N=torch.cat([b.rollout_logprobs_N for b in minibatch.batches]),
            row_N=torch.cat([b.row_N for b in minibatch.batches]),
            section=self._section.correction,
        )
        parts = torch.split(weights_N, [len(old_N) for old_N in olds])
        return [
            BeforeStep(logprobs_N=old_N, weights_N=part_N)
            for old_N, part_N in zip(olds, parts, strict=True)
        ]

    def _old_logprobs(self, minibatch: _Minibatch) -> list[torch.Tensor]:
        """Of each microbatch, under the weights before the step; of all processes' ones."""
        found = {}
        for share in self._ranks.share(minibatch.batches):
            old_N = self._score_frozen(self.policy, share.item)
            if not share.is_extra:
                found[share.index] = old_N.cpu()
        return [old_N.to(self.policy.device) for old_N in self._ranks.gather(found)]

    def _backward(
        self, minibatch: _Minibatch, known: list[BeforeStep]
    ) -> tuple[float, list[TokenReport]]:
        found: dict[int, tuple[float, TokenReport]] = {}
        for share in self._ranks.share(list(zip(minibatch.batches, known, strict=True))):
            batch, before = share.item
            scored = self.policy.score(batch, entropy_gradient=self._section.entropy_coef > 0)
            if self._reference is not None:
                reference_N = self._score_frozen(self._reference, batch)
                before = dataclasses.replace(before, reference_logprobs_N=reference_N)
            loss_N, report = token_loss(
                batch, scored, before=before, section=self._section, version=self._step
            )
            loss = scaled_sum(loss_N, batch.row_N, rows=minibatch.rows, scale=minibatch.scale)
            # Processes' gradients are averaged; a loss is already of the whole batch.
            weight = 0 if share.is_extra else self._ranks.size
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            if not share.is_extra:
                found[share.index] = (float(loss.detach()), report.on(self._meeting))
        whole = self._ranks.gather(found)
        reports = [report.on(self.policy.device) for _, report in whole]
        return math.fsum(loss for loss, _ in whole), reports

    @property
    def _meeting(self) -> torch.device:
        """Where reports of all processes meet: what is sent to others goes by the host."""
        return self.policy.device if self._ranks.size == 1 else torch.device("cpu")

    @staticmethod
    def _score_frozen(policy: Reference, batch: Microbatch) -> torch.Tensor:
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
        if self._ranks.rank:
            self.write_model(folder)
            return
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
            "reference": self._reference.state_dict() if moved and self._reference else None,
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
                self._reference.load_state_dict(state["reference"])
            except RuntimeError as error:
                raise CheckpointError(f"the reference is of another model: {error}") from error
            self._reference_moved = True
        self._step = int(state["step"])
        self._num_skipped = int(state["num_skipped"])
