"""The sections of a recipe that say what is learnt from: loss, mismatch, optimizer, batching.

A loss is four choices: an advantage estimator, the level of the ratio between the policy and
the one before the step, what holds that ratio, and how losses of single ids become one number.
``training.loss`` names a paper's four; single keys replace one of them. The formulas are in
docs/losses.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from palestra.config_base import Section

LossName = Literal[
    "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_plus_plus_baseline"
]
AdvantageName = Literal["group_std", "group_mean", "leave_one_out", "batch_std"]
RatioLevel = Literal["token", "sequence"]
ClipRule = Literal["ppo", "cispo", "none"]
Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]
KlEstimator = Literal["k1", "k2", "k3"]
MismatchLevel = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss, spelled out.

    Attributes:
        advantage: how rewards become advantages.
        ratio: of each id, or the geometric mean over its row.
        clip: what holds the ratio.
        clip_low: how far it may fall below 1.
        clip_high: how far it may rise above 1.
        aggregation: how losses of ids become one number.
    """

    advantage: AdvantageName
    ratio: RatioLevel
    clip: ClipRule
    clip_low: float
    clip_high: float
    aggregation: Aggregation


def _of_tokens(
    advantage: AdvantageName,
    aggregation: Aggregation,
    *,
    clip: ClipRule = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Objective:
    return Objective(
        advantage=advantage,
        ratio="token",
        clip=clip,
        clip_low=clip_low,
        clip_high=clip_high,
        aggregation=aggregation,
    )


OBJECTIVES: MappingProxyType[LossName, Objective] = MappingProxyType(
    {
        # Shao et al. 2024, DeepSeekMath, arXiv:2402.03300
        "grpo": _of_tokens("group_std", "sequence_mean"),
        # Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783
        "dr_grpo": _of_tokens("group_mean", "fixed_length"),
        # Yu et al. 2025, DAPO, arXiv:2503.14476
        "dapo": _of_tokens("group_std", "token_mean", clip_high=0.28),
        # Zheng et al. 2025, Group Sequence Policy Optimization, arXiv:2507.18071
        "gspo": Objective(
            advantage="group_std",
            ratio="sequence",
            clip="ppo",
            clip_low=3e-4,
            clip_high=4e-4,
            aggregation="sequence_mean",
        ),
        # MiniMax 2025, MiniMax-M1, arXiv:2506.13585: no lower bound; they do not give the
        # upper one, 5 is that of Khatri et al. 2025, ScaleRL, arXiv:2510.13786
        "cispo": _of_tokens("group_std", "token_mean", clip="cispo", clip_low=1.0, clip_high=4.0),
        # Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740
        "rloo": _of_tokens("leave_one_out", "fixed_length", clip="none"),
        # Hu et al. 2025, REINFORCE++, arXiv:2501.03262
        "reinforce_plus_plus_baseline": _of_tokens("batch_std", "token_mean"),
    }
)


class CorrectionSection(Section):
    """Importance sampling against the mismatch between engine and trainer."""

    mode: Literal["off", "truncate", "mask", "clip", "icepop"] = Field(
        "mask",
        description="What happens to weights outside the bounds: truncate caps at high (TIS), "
        "clip holds within both, mask makes them 0 (MIS); icepop is mask on single ids with high "
        "= 5 and no veto.",
    )
    level: MismatchLevel = Field(
        "token",
        description="Ratio of each token, of the whole sequence (their product), or their "
        "geometric mean.",
    )
    low: float = Field(0.5, ge=0, description="Lower bound of the importance weight.")
    high: float = Field(2.0, gt=0, description="Upper bound of the importance weight.")
    veto: float = Field(
        1e-4, ge=0, description="A token below this ratio masks its whole sequence; 0: never."
    )
    reject: Literal["off", "token", "sequence", "geometric"] = Field(
        "off",
        description="Besides mode: mask what has a ratio outside of reject_low and reject_high "
        "at this level.",
    )
    reject_low: float | None = Field(
        None, ge=0, description="Lower bound of what is not rejected; none: low."
    )
    reject_high: float | None = Field(
        None, gt=0, description="Upper bound of what is not rejected; none: high."
    )
    normalize: bool = Field(
        False,
        description="Divide the weights of a step by their mean, over sequences where the level "
        "is not token.",
    )

    @property
    def reject_bounds(self) -> tuple[float, float]:
        """What is not rejected."""
        low = self.low if self.reject_low is None else self.reject_low
        return low, self.high if self.reject_high is None else self.reject_high

    @model_validator(mode="before")
    @classmethod
    def _icepop(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") == "icepop":
            return {"high": 5.0, "veto": 0.0, **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> CorrectionSection:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        reject_low, reject_high = self.reject_bounds
        if reject_low >= reject_high:
            raise ValueError(f"reject_low ({reject_low}) must be below reject_high ({reject_high})")
        if self.reject == "off" and not (self.reject_low is None and self.reject_high is None):
            raise ValueError("reject_low and reject_high need reject to name a level")
        if self.mode == "off" and (self.reject != "off" or self.normalize):
            raise ValueError("mode off corrects nothing: reject and normalize need another mode")
        if self.mode == "icepop" and self.level != "token":
            raise ValueError(f"icepop masks single tokens; for level {self.level} take mode mask")
        return self


class OverlongSection(Section):
    """A soft punishment of long rollouts (DAPO, arXiv:2503.14476, equation 13)."""

    max_tokens: int = Field(
        0, ge=0, description="Sampled ids of a rollout that earn the whole penalty; 0: no penalty."
    )
    buffer: int = Field(
        0, ge=0, description="Over how many ids below max_tokens the penalty grows from 0."
    )
    penalty: float = Field(1.0, gt=0, description="What a rollout of max_tokens ids loses.")

    @model_validator(mode="after")
    def _fits(self) -> OverlongSection:
        if self.buffer > self.max_tokens:
            raise ValueError(f"buffer ({self.buffer}) is above max_tokens ({self.max_tokens})")
        return self


ALL_LINEAR = "all-linear"
"""Every linear layer but the output embedding, as peft calls them."""


class LoraSection(Section):
    """Low-rank adapters train in place of the weights; there is no dropout, as in engines."""

    rank: int = Field(32, gt=0, description="Width of the adapters.")
    alpha: int = Field(
        64, gt=0, description="Adapters count alpha / rank times; twice the rank is usual."
    )
    targets: tuple[str, ...] = Field(
        (ALL_LINEAR,),
        min_length=1,
        description="Names of linear layers, such as q_proj; all-linear: all but the output "
        "embedding.",
    )


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
    loss: LossName = Field(
        "dapo",
        description="A paper's choice of advantage, ratio, clip, clip_low, clip_high and "
        "aggregation (docs/losses.md); each of these keys replaces one.",
    )
    advantage: AdvantageName | None = Field(
        None,
        description="Reward less the group's mean (group_mean), divided by the group's deviation "
        "(group_std) or the batch's (batch_std), or less the mean of the others (leave_one_out).",
    )
    ratio: RatioLevel | None = Field(
        None,
        description="Ratio to the policy before the step: of each token, or the geometric mean "
        "over the sequence.",
    )
    clip: ClipRule | None = Field(
        None,
        description="ppo: no gain from beyond the bounds; cispo: the ratio is a bounded weight "
        "without a gradient; none.",
    )
    clip_low: float | None = Field(
        None, ge=0, le=1, description="How far below 1 the ratio may go; 1: no lower bound."
    )
    clip_high: float | None = Field(None, ge=0, description="How far above 1 the ratio may go.")
    aggregation: Aggregation | None = Field(
        None,
        description="Mean over all tokens, mean over sequences of their token means, or sum over "
        "tokens divided by sequences times fixed_length.",
    )
    fixed_length: int | None = Field(
        None, gt=0, description="Divisor of aggregation fixed_length; none: model.max_context."
    )
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL to the starting policy.")
    kl: KlEstimator = Field(
        "k3",
        description="Estimator of that KL: k1 (log ratio; its gradient has no direction), k2 "
        "(half its square), k3 (never negative).",
    )
    entropy_coef: float = Field(
        0.0, ge=0, description="Weight of an entropy bonus, at the sampling temperature."
    )
    shuffle_rewards: bool = Field(
        False,
        description="A control: deal each group's rewards out at random, so that none is earned.",
    )
    layout: Literal["padded", "packed"] = Field(
        "padded",
        description="Rows of a pass beside each other with padding, or one behind the other "
        "without any.",
    )
    microbatch_tokens: int = Field(
        16384, gt=0, description="Ids in one forward and backward pass, with their padding."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only what enters each layer and compute the rest anew in the backward "
        "pass: less memory for a third more work.",
    )
    compile: bool = Field(
        False,
        description="Put norms and MLPs through torch.compile: faster on GPUs after some minutes "
        "of compiling; results differ by rounding.",
    )
    offload_optimizer: bool = Field(
        False,
        description="Keep float32 weights, moments and gradients in the host's memory (16 bytes a "
        "weight) and let the CPU do the optimizer's step.",
    )
    memory_check: Literal["refuse", "warn"] = Field(
        "refuse",
        description="When a run will likely not fit its GPU (docs/training.md): refuse to begin, "
        "or say so and begin.",
    )
    lora: LoraSection | None = Field(
        None, description="Train low-rank adapters only; true: with the defaults; none: all."
    )
    overlong: OverlongSection = OverlongSection()
    correction: CorrectionSection = CorrectionSection()

    @field_validator("lora", mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return LoraSection() if value else None
        return value

    @property
    def objective(self) -> Objective:
        """The loss as the preset and the keys that replace parts of it say."""
        preset = OBJECTIVES[self.loss]
        return Objective(
            advantage=self.advantage or preset.advantage,
            ratio=self.ratio or preset.ratio,
            clip=self.clip or preset.clip,
            clip_low=preset.clip_low if self.clip_low is None else self.clip_low,
            clip_high=preset.clip_high if self.clip_high is None else self.clip_high,
            aggregation=self.aggregation or preset.aggregation,
        )

    @model_validator(mode="after")
    def _fits(self) -> TrainingSection:
        objective = self.objective
        if objective.clip == "cispo" and objective.ratio == "sequence":
            raise ValueError("clip cispo weighs single tokens: it needs ratio = token")
        if objective.clip == "none" and not (self.clip_low is None and self.clip_high is None):
            raise ValueError("clip_low and clip_high have no meaning with clip = none")
        preset = OBJECTIVES[self.loss]
        is_other = (objective.clip, objective.ratio) != (preset.clip, preset.ratio)
        if is_other and objective.clip != "none" and None in (self.clip_low, self.clip_high):
            raise ValueError(
                f"the bounds of {self.loss} do not fit clip {objective.clip} on ratios of each "
                f"{objective.ratio}: name clip_low and clip_high too"
            )
        if self.fixed_length is not None and objective.aggregation != "fixed_length":
            raise ValueError(
                f"fixed_length has no meaning with aggregation {objective.aggregation}"
            )
        return self
