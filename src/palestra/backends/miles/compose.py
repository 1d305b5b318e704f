"""From a recipe to the whole job: every flag of Miles that the recipe decides."""

from __future__ import annotations

from collections.abc import Mapping

import yaml  # type: ignore[import-untyped]

from palestra.addresses import URL_VARIABLE
from palestra.backends.miles.command import Flag, FlagGroup, MilesCommand, MilesJob
from palestra.backends.miles.settings import PREFIX, TOKEN_VARIABLE
from palestra.config import Recipe
from palestra.config_miles import MegatronSection, MilesSection
from palestra.config_training import CorrectionSection, Objective
from palestra.errors import ConfigError

CONFIG_FILE = "miles.yaml"
HOOKS = "palestra.backends.miles"
_NO_BOUND = 1e9  # as mismatch.NO_BOUND, whose module needs torch
_WANDB_VARIABLES = ("WANDB_API_KEY", "WANDB_KEY")


def compose_job(
    recipe: Recipe, variables: Mapping[str, str], *, nvlink: bool | None = None
) -> MilesJob:
    """Everything that starts Miles on ``recipe``.

    Args:
        recipe: the run.
        variables: of this process: the environment's address and token, wandb's key.
        nvlink: whether the cluster's GPUs are joined by NVLink; ``None``: not known.

    Raises:
        ConfigError: the recipe asks for what Miles cannot do.
    """
    _check(recipe)
    wandb_key = next((variables[n] for n in _WANDB_VARIABLES if variables.get(n)), None)
    env_vars = _env_vars(recipe, variables, nvlink)
    secrets = {
        TOKEN_VARIABLE: recipe.environment.token or variables.get(TOKEN_VARIABLE),
        "WANDB_API_KEY": wandb_key,
    }
    # http://x:TOKEN@HOST carries the token in the address.
    if "@" in env_vars.get(URL_VARIABLE, ""):
        secrets[URL_VARIABLE] = env_vars.pop(URL_VARIABLE)
    command = MilesCommand(
        script=f"{recipe.miles.root.rstrip('/')}/train.py",
        groups=_groups(recipe, with_wandb=wandb_key is not None),
    )
    return MilesJob(
        address=recipe.miles.ray_address.rstrip("/"),
        command=command,
        env_vars=env_vars,
        secrets={name: value for name, value in secrets.items() if value},
        files={CONFIG_FILE: yaml.safe_dump(_config(recipe), sort_keys=False)},
        conversion=_conversion(recipe),
    )


def _check(recipe: Recipe) -> None:
    tasks = recipe.tasks
    for key, source in (("tasks.train", tasks.train), ("tasks.heldout", tasks.heldout)):
        if source is not None and not source.startswith("/"):
            raise ConfigError(
                f"{key} is {source!r}, and Miles reads a file of prompt data by its whole path",
                hint="palestra data prepare writes one; name where the cluster sees it",
            )
    rollouts, training = recipe.rollouts, recipe.training
    if (rollouts.groups_per_step * rollouts.group_size) % training.minibatches:
        raise ConfigError("training.minibatches does not divide the samples of a step")
    objective = training.objective
    unknown = {
        "training.shuffle_rewards": training.shuffle_rewards,
        "training.overlong": training.overlong.max_tokens > 0,
        "rollouts.max_row_tokens": rollouts.max_row_tokens > 0,
        "advantage leave_one_out": objective.advantage == "leave_one_out",
        "clip " + objective.clip: objective.clip != "ppo",
        "aggregation fixed_length": objective.aggregation == "fixed_length",
        "batch_std with ratios of sequences": objective.advantage == "batch_std"
        and objective.ratio == "sequence",
    }
    for key, asked in unknown.items():
        if asked:
            raise ConfigError(f"{key} is not known to Miles")
    if recipe.warmstart.steps:
        raise ConfigError(
            "Miles has no warm start", hint="palestra warmstart makes a model to begin from"
        )


def _groups(recipe: Recipe, *, with_wandb: bool) -> tuple[FlagGroup, ...]:
    groups = {
        "placement": _placement(recipe.miles),
        "model": _model(recipe.miles.model),
        "checkpoints": _checkpoints(recipe),
        "rollout": _rollout(recipe),
        "optimizer": _optimizer(recipe),
        "grpo": _loss(recipe),
        "wandb": _wandb(recipe) if with_wandb else (),
        "parallelism": _parallelism(recipe),
        "evaluation": _evaluation(recipe),
        "engine": _engine(recipe.miles),
        "numerics": _numerics(recipe.miles),
        "hooks": _hooks(recipe),
        "more": _as_they_stand(recipe.miles.arguments),
    }
    return tuple(FlagGroup(title=title, flags=flags) for title, flags in groups.items() if flags)


def _placement(miles: MilesSection) -> tuple[Flag, ...]:
    return (
        _flag("actor-num-nodes", miles.num_nodes),
        _flag("actor-num-gpus-per-node", miles.gpus_per_node),
        *_switch("colocate", on=miles.colocate),
    )


def _model(model: MegatronSection) -> tuple[Flag, ...]:
    return (
        _flag("swiglu"),
        _flag("num-layers", model.num_layers),
        _flag("hidden-size", model.hidden_size),
        _flag("ffn-hidden-size", model.ffn_hidden_size),
        _flag("num-attention-heads", model.num_attention_heads),
        _flag("group-query-attention"),
        _flag("num-query-groups", model.num_query_groups),
        _flag("use-rotary-position-embeddings"),
        _flag("disable-bias-linear"),
        _flag("normalization", "RMSNorm"),
        _flag("norm-epsilon", model.norm_epsilon),
        _flag("rotary-base", model.rotary_base),
        _flag("vocab-size", model.vocab_size),
        _flag("kv-channels", model.kv_channels),
        *_switch("qk-layernorm", on=model.qk_layernorm),
        *_as_they_stand(model.more),
    )


def _checkpoints(recipe: Recipe) -> tuple[Flag, ...]:
    miles = recipe.miles
    return (
        _flag("hf-checkpoint", recipe.model.path),
        _flag("ref-load", _ref_load(recipe)),
        *((_flag("load", miles.load),) if miles.load else ()),
        _flag("save", miles.save or f"{recipe.model.path.rstrip('/')}_miles/"),
        _flag("save-interval", recipe.checkpoints.every),
    )


def _rollout(recipe: Recipe) -> tuple[Flag, ...]:
    rollouts = recipe.rollouts
    num_samples = rollouts.groups_per_step * rollouts.group_size
    return (
        _flag("prompt-data", recipe.tasks.train),
        _flag("input-key", "prompt"),
        _flag("metadata-key", "metadata"),
        *_switch("rollout-shuffle", on=recipe.tasks.shuffle),
        _flag("rollout-seed", recipe.seed),
        _flag("num-rollout", recipe.training.steps),
        _flag("rollout-batch-size", rollouts.groups_per_step),
        _flag("n-samples-per-prompt", rollouts.group_size),
        _flag("rollout-temperature", recipe.sampling.temperature),
        _flag("rollout-top-p", recipe.sampling.top_p),
        _flag("rollout-max-response-len", recipe.sampling.max_new_tokens),
        _flag("rollout-max-context-len", recipe.model.max_context),
        _flag("global-batch-size", num_samples // recipe.training.minibatches),
        *_switch("balance-data", on=recipe.miles.balance_data),
    )


def _optimizer(recipe: Recipe) -> tuple[Flag, ...]:
    training = recipe.training
    return (
        _flag("optimizer", "adam"),
        _flag("lr", training.lr),
        _flag("lr-decay-style", training.lr_decay),
        *((_flag("lr-warmup-iters", training.warmup_steps),) if training.warmup_steps else ()),
        _flag("weight-decay", training.weight_decay),
        _flag("adam-beta1", training.betas[0]),
        _flag("adam-beta2", training.betas[1]),
        _flag("clip-grad", training.max_grad_norm),
    )


def _loss(recipe: Recipe) -> tuple[Flag, ...]:
    training, objective = recipe.training, recipe.training.objective
    kl = (
        _flag("use-kl-loss"),
        _flag("kl-loss-coef", training.kl_coef),
        _flag("kl-loss-type", "low_var_kl" if training.kl == "k3" else training.kl),
    )
    return (
        _flag("advantage-estimator", _estimator(objective)),
        *(kl if training.kl_coef else ()),
        _flag("entropy-coef", training.entropy_coef),
        _flag("eps-clip", objective.clip_low),
        _flag("eps-clip-high", objective.clip_high),
        *_switch("disable-grpo-std-normalization", on=objective.advantage == "group_mean"),
        *_switch("normalize-advantages", on=objective.advantage == "batch_std"),
        *_switch("calculate-per-token-loss", on=objective.aggregation == "token_mean"),
        *_switch("use-tis", on=training.correction.mode != "off"),
    )


def _estimator(objective: Objective) -> str:
    if objective.ratio == "sequence":
        return "gspo"
    return "reinforce_plus_plus_baseline" if objective.advantage == "batch_std" else "grpo"


def _wandb(recipe: Recipe) -> tuple[Flag, ...]:
    return (
        _flag("use-wandb"),
        _flag("wandb-project", recipe.miles.wandb_project),
        _flag("wandb-group", recipe.name),
    )


def _parallelism(recipe: Recipe) -> tuple[Flag, ...]:
    miles = recipe.miles
    recompute = (
        _flag("recompute-granularity", "full"),
        _flag("recompute-method", "uniform"),
        _flag("recompute-num-layers", 1),
    )
    return (
        _flag("tensor-model-parallel-size", miles.tensor_parallel),
        _flag("pipeline-model-parallel-size", miles.pipeline_parallel),
        _flag("context-parallel-size", miles.context_parallel),
        _flag("expert-model-parallel-size", miles.expert_parallel),
        _flag("expert-tensor-parallel-size", miles.expert_tensor_parallel),
        *(recompute if miles.recompute == "full" else ()),
        _flag("use-dynamic-batch-size"),
        _flag("max-tokens-per-gpu", recipe.training.microbatch_tokens),
    )


def _evaluation(recipe: Recipe) -> tuple[Flag, ...]:
    evaluation, heldout = recipe.evaluation, recipe.tasks.heldout
    if heldout is None or not evaluation.every:
        return ()
    temperature = evaluation.temperature or recipe.sampling.temperature
    return (
        _flag("eval-interval", evaluation.every),
        _flag("eval-prompt-data", "heldout", heldout),
        _flag("eval-input-key", "prompt"),
        _flag("n-samples-per-eval-prompt", evaluation.attempts),
        _flag("eval-temperature", temperature if "sampled" in evaluation.modes else 0.0),
        _flag("eval-max-response-len", recipe.sampling.max_new_tokens),
    )


def _engine(miles: MilesSection) -> tuple[Flag, ...]:
    return (
        _flag("rollout-num-gpus-per-engine", miles.gpus_per_engine),
        _flag("sglang-mem-fraction-static", miles.engine_memory),
    )


def _numerics(miles: MilesSection) -> tuple[Flag, ...]:
    return (
        _flag("attention-dropout", 0.0),
        _flag("hidden-dropout", 0.0),
        _flag("accumulate-allreduce-grads-in-fp32"),
        _flag("attention-softmax-in-fp32"),
        _flag("attention-backend", miles.attention_backend),
    )


def _hooks(recipe: Recipe) -> tuple[Flag, ...]:
    correction = _flag("custom-tis-function-path", f"{HOOKS}.mis")
    return (
        _flag("custom-generate-function-path", f"{HOOKS}.generate"),
        _flag("custom-rm-path", f"{HOOKS}.reward_func"),
        _flag("rollout-function-path", f"{HOOKS}.generate_rollout"),
        _flag("dynamic-sampling-filter-path", f"{HOOKS}.dynamic_filter"),
        *((correction,) if recipe.training.correction.mode != "off" else ()),
        _flag("custom-config-path", CONFIG_FILE),
    )


def _config(recipe: Recipe) -> dict[str, object]:
    """What Miles lays over its arguments: the keys of the hooks and of the correction."""
    gateway, environment = recipe.gateway, recipe.environment
    keys: dict[str, object] = {
        "renderer": recipe.model.renderer,
        "max_context": recipe.model.max_context,
        "infra_retries": recipe.rollouts.infra_retries,
        "truncated": recipe.rollouts.truncated,
        "drop_equal_groups": recipe.rollouts.drop_equal_groups,
        "environment_timeout_s": environment.queue_timeout_s
        + environment.image_timeout_s
        + environment.episode_timeout_s
        + environment.eval_timeout_s,
        "outage_s": environment.outage_s,
        "gateway_host": gateway.host,
        "gateway_port": gateway.port,
        "gateway_public_url": gateway.public_url,
    }
    ours = {f"{PREFIX}{key}": value for key, value in keys.items() if value is not None}
    return {**ours, **_correction(recipe.training.correction)}


def _correction(section: CorrectionSection) -> dict[str, object]:
    if section.mode == "off":
        return {}
    veto_alone = section.reject == "off" and section.mode in ("truncate", "clip")
    reject_low, reject_high = (0.0, _NO_BOUND) if veto_alone else section.reject_bounds
    given = veto_alone or section.reject != "off"
    return {
        "tis_mode": "mask" if section.mode == "icepop" else section.mode,
        "tis_level": section.level,
        "tis_lower_bound": section.low,
        "tis_upper_bound": section.high,
        "tis_batch_normalize": section.normalize,
        "use_rs": section.veto > 0 or section.reject != "off",
        "rs_level": section.level if section.reject == "off" else section.reject,
        "rs_lower_bound": reject_low if given else None,
        "rs_upper_bound": reject_high if given else None,
        "rs_veto_threshold": section.veto or None,
    }


def _env_vars(recipe: Recipe, variables: Mapping[str, str], nvlink: bool | None) -> dict[str, str]:
    miles = recipe.miles
    env_vars = {
        "PYTHONPATH": f"{miles.megatron}:{miles.root}",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    if nvlink is not None:
        env_vars["NCCL_NVLS_ENABLE"] = str(int(nvlink))
    environment = recipe.environment.url or variables.get(URL_VARIABLE)
    if environment:
        env_vars[URL_VARIABLE] = environment
    return {**env_vars, **miles.env_vars}


def _ref_load(recipe: Recipe) -> str:
    return recipe.miles.ref_load or f"{recipe.model.path.rstrip('/')}_torch_dist"


def _conversion(recipe: Recipe) -> tuple[str, ...]:
    model = (word for flag in _model(recipe.miles.model) for word in flag.words())
    return (
        "env",
        f"PYTHONPATH={recipe.miles.megatron}",
        "python3",
        f"{recipe.miles.root.rstrip('/')}/tools/convert_hf_to_torch_dist.py",
        *model,
        "--hf-checkpoint",
        recipe.model.path,
        "--save",
        _ref_load(recipe),
    )


def _flag(name: str, *values: str | float) -> Flag:
    return Flag(name=f"--{name}", values=tuple(_text(value) for value in values))


def _switch(name: str, *, on: bool) -> tuple[Flag, ...]:
    return (Flag(name=f"--{name}"),) if on else ()


def _as_they_stand(words: tuple[str, ...]) -> tuple[Flag, ...]:
    flags: list[Flag] = []
    for word in words:
        if word.startswith("--") or not flags:
            flags.append(Flag(name=word))
        else:
            last = flags.pop()
            flags.append(Flag(name=last.name, values=(*last.values, word)))
    return tuple(flags)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else repr(value)
