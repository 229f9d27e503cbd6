"""Every setting of the ladder: one typed, documented default in one place.

A configuration is a YAML file over these models (`configs.load`). Unknown keys, wrong types and values out of range
are refused before anything starts, with the place, the reason and the nearest valid name. The objects are frozen:
what a run used is what its `config.yaml` says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from configs.data_schema import DataConfig
from configs.section import Section

StageName = Literal["sft1", "sft2", "coldstart", "grpo"]
STAGES: tuple[StageName, ...] = ("sft1", "sft2", "coldstart", "grpo")


#: How a family of models writes boxes: in pixels of the picture it was given, or in thousandths of the picture's sides.
BoxFrame = Literal["absolute", "norm1000"]


class LoraConfig(Section):
    """Low-rank adapters in place of full training (`models.adapters`); the paper trains everything."""

    rank: int = Field(16, ge=1, description="Inner width of an adapter")
    alpha: float = Field(32.0, gt=0, description="Adapters count alpha / rank times")


class ModelConfig(Section):
    path: str = Field("models/tiny_base", description="Folder with model, processor and tokenizer (Hugging Face layout)")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights in learner and engine")
    box_frame: BoxFrame = Field("absolute", description="Boxes are read and written in pixels of the picture as the model was "
                                "given it (Qwen2.5-VL), or from 0 to 1000 on both sides (Qwen3-VL)")
    freeze_vision: bool = Field(False, description="Train the language model only")
    lora: LoraConfig | None = Field(None, description="Train adapters of the language model only; none: train the weights")
    attention: Literal["auto", "sdpa", "flex", "flash"] = Field("auto", description="How the learner attends (models.tree_attention)")


class SamplingConfig(Section):
    temperature: float = Field(1.0, gt=0, le=2, description="Of sampling, and of every log-prob the learner computes")
    max_new_tokens: int = Field(1024, ge=1, description="Longest completion, tokens")


class EndpointConfig(Section):
    """A server that speaks OpenAI's chat.completions and writes traces (`evaluation.endpoint`)."""

    base_url: str = Field(description="As OpenAI's clients take it, such as http://host:8000/v1")
    model: str = Field(min_length=1, description="Name under which the server knows its model")
    api_key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable with the "
                                         "key, which is written nowhere; none: no key is sent")
    extra_body: dict[str, Any] = Field({}, description="More fields of every request, such as {top_p: 0.95}")
    concurrency: int = Field(8, ge=1, description="Requests at a time")
    timeout_seconds: float = Field(120, gt=0, le=3600, description="Longest silence of the server, and longest attempt")
    retries: int = Field(4, ge=0, description="How often a request is tried again after 429, 5xx or a lost connection")
    failures: int = Field(20, ge=0, description="Requests that may fail for good; one more ends the command")


class TracesConfig(Section):
    """Cold-start traces that a model writes and the rewards keep (`ladder data traces`). The paper publishes no numbers."""

    endpoint: EndpointConfig | None = Field(None, description="Who writes; none: the model in model.path, by `rollout`'s engines")
    rows: int | None = Field(None, ge=1, description="Training rows asked, of all question types; none: all")
    localization_share: float = Field(0.3, ge=0, le=1, description="Share of rows that ask for boxes, as in GRPO; with an endpoint "
                                      "above 0 only if model.box_frame is norm1000: pixels of its pictures are not known")
    samples: int = Field(8, ge=1, description="Most completions of a row; an endpoint writes no more once `keep` are kept")
    keep: int = Field(1, ge=1, description="Most traces kept of a row: more would weigh easy rows more")
    sampling: SamplingConfig = SamplingConfig()
    min_accuracy: float = Field(1.0, gt=0, le=1, description="Least accuracy of an answer: 1 is a right letter, a number within 5 %")
    min_iou: float = Field(0.7, gt=0, le=1, description="Least IoU of kept boxes: a hand-drawn box has about as much")
    words: tuple[int, int] = Field((8, 400), description="Fewest and most words of the reasoning")
    min_latin: float = Field(0.95, ge=0, le=1, description="Least share of Latin letters: models slip into other languages they "
                             "know; 0 keeps every script")

    @model_validator(mode="after")
    def _words_in_order(self) -> "TracesConfig":
        if not 0 <= self.words[0] <= self.words[1]:
            raise ValueError(f"words: give [fewest, most] with 0 <= fewest <= most, got {list(self.words)}")
        return self


class OptimizerConfig(Section):
    lr: float = Field(1e-5, gt=0, description="Peak learning rate (paper: 1e-5 for SFT, 1e-6 for GRPO)")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="From the peak to zero, or not")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on matrices; norms and biases have none")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of the first and second moment")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm, over all ranks")
    offload: bool = Field(False, description="Keep optimizer states and their step on the CPU; needs ZeRO 1, 2 or 3")


def _check_offload(section):
    if section.optimizer.offload and section.zero_stage == 0:
        raise ValueError("optimizer.offload needs zero_stage 1, 2 or 3: at 0 every rank updates all weights on its device")
    return section


class SFTConfig(Section):
    """One supervised stage: a Ray Train job with a DeepSpeed engine inside."""

    epochs: float = Field(1.0, gt=0, description="Passes over the stage's rows")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps, whatever the epochs")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step over all ranks")
    micro_batch_tokens: int = Field(8192, ge=64, description="Packed tokens per forward pass of one rank")
    views_together: int = Field(1, ge=1, description="Most rows with the same views that follow one another: more save passes "
                                "through the vision tower and mix a step's rows less")
    ranks: int = Field(1, ge=1, description="Data-parallel learner ranks (Ray Train workers), one GPU each if learner.num_gpus")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="What ranks divide: nothing, optimizer, gradients too, weights too")
    gradient_checkpointing: bool = Field(False, description="Keep less of a pass, compute it again in the backward pass")
    checkpoint_steps: int = Field(100, ge=1, description="Steps between resumable checkpoints")
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "SFTConfig":
        return _check_offload(self)


class WorkerRange(Section):
    """Rollout workers: `min` at the start, at most `max`; between the two the run decides (`actors.autoscaler`)."""

    min: int = Field(1, ge=1, description="Workers at the start, of evaluations, and the fewest of a run")
    max: int = Field(ge=1, description="Most workers of a run")

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.min == self.max

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class RolloutConfig(Section):
    """vLLM rollout workers."""

    workers: WorkerRange = Field(WorkerRange(max=1), description="Rollout workers, one engine each: a number, or min and max")
    num_cpus: float = Field(0.5, ge=0, description="CPUs Ray reserves per worker")
    num_gpus: float = Field(0, ge=0, description="GPUs Ray reserves per worker")
    threads: int = Field(1, ge=1, description="OMP threads of a CPU engine")
    max_model_len: int = Field(4096, ge=64, description="Prompt and completion together, tokens")
    max_num_seqs: int = Field(128, ge=1, description="Sequences an engine runs at once")
    kv_cache_bytes: int = Field(256 << 20, ge=1 << 20, description="Key-value cache of a CPU engine, bytes")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="Share of its GPU an engine takes")
    transport: Literal["auto", "memory", "objects", "collective"] = Field(
        "auto",
        description="How weights come to a worker; auto: shared memory on the learner's machine, objects elsewhere; collective: "
        "sent by the learner over a group of its own (NCCL between GPUs, not run yet; gloo), as auto where that fails",
    )
    canary_tolerance: float = Field(1e-3, gt=0, description="Largest log-prob gap, nats, of a proved weight version")

    @field_validator("workers", mode="before")
    @classmethod
    def _number_of_workers(cls, value: Any) -> Any:
        """A number alone stands for a fleet that keeps its size."""
        if isinstance(value, (dict, WorkerRange)):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a number of workers, or a section like {{min: 1, max: 4}}, got {value!r}")
        if value < 1:
            raise ValueError(f"must be at least 1, got {value}")
        return {"min": value, "max": value}

    @field_serializer("workers")
    def _as_written(self, workers: WorkerRange) -> int | dict[str, int]:
        return workers.min if workers.fixed else {"min": workers.min, "max": workers.max}


#: Settings of `reward` that change how scores are computed and when a run stops, not what a completion is worth.
OPERATIONAL_REWARD = ("actors", "num_cpus", "processes", "timeout_seconds", "retries", "memory_mib", "max_failed_share",
                      "accept_changed")


#: Params of served rewards that say where and how to ask, not what a completion is worth: a server moves, a deadline grows.
OPERATIONAL_PARAMS = {
    "http": ("url", "headers", "timeout_seconds", "retries", "batch_size"),
    "judge": ("base_url", "headers", "timeout_seconds", "retries", "concurrency"),
}


class CustomRewardConfig(Section):
    """A reward of your own (docs/rewards.md)."""

    source: str = Field(description="path/file.py:name, the name of an installed entry point, or http or judge")
    name: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Its component; none: the name in `source`")
    weight: float = Field(1.0, allow_inf_nan=False, description="What its components count in the total; may be negative")
    params: dict[str, Any] = Field({}, description="Keyword arguments of every call; secrets belong in the environment")
    batched: bool = Field(False, description="Called once with the completions of a group, not once for each")

    @property
    def deciding_params(self) -> dict[str, Any]:
        """`params` without those that a resumed run may change."""
        operational = OPERATIONAL_PARAMS.get(self.source, ())
        return {name: value for name, value in self.params.items() if name not in operational}


class RewardConfig(Section):
    """Verifiable rewards. Of the first four the weights; 0 switches a component off."""

    format: float = Field(1.0, ge=0, description="One think block, one answer block")
    answer: float = Field(1.0, ge=0, description="A choice that is right, a number by relative accuracy")
    iou: float = Field(1.0, ge=0, description="Ours: the paper has no IoU reward; counts on rows that ask for boxes")
    repetition: float = Field(0.0, ge=0, description="Minus the share of word n-grams that came before")
    repetition_ngram: int = Field(4, ge=1, description="Words of such an n-gram")
    gate: Literal["none", "format", "accuracy"] = Field("none", description="Other components count only if this one holds")
    preset: Literal["ladder", "paper"] = Field("ladder", description="paper: format and answer as the authors' code scores them")
    mra_mode: Literal["inclusive", "strict", "float_compat"] = Field("inclusive", description="A number at a threshold (rewards.accuracy)")
    iou_shape: Literal["plain", "squared", "thresholded", "soft_f1", "giou"] = Field("plain", description="See rewards.iou")
    iou_threshold: float = Field(0.5, ge=0, le=1, description="Least IoU that counts, where iou_shape is thresholded")
    custom: tuple[CustomRewardConfig, ...] = Field((), description="Rewards of your own; path/file.py:name alone will do")
    actors: int = Field(1, ge=1, description="RewardActors; groups go to them in turn")
    num_cpus: float = Field(0.1, ge=0, description="CPUs Ray reserves for each RewardActor")
    processes: int = Field(1, ge=1, description="Killable scorer processes inside each RewardActor")
    timeout_seconds: float = Field(10.0, gt=0, description="Deadline of one call of a reward")
    retries: int = Field(0, ge=0, description="How often a call is tried again that timed out or whose process ended")
    memory_mib: int = Field(4096, ge=0, description="Data a scorer process may allocate; 0: any")
    max_failed_share: float = Field(0.2, ge=0, le=1, description="Stop when more completions than this fail to score")
    accept_changed: bool = Field(False, description="Go on from a checkpoint although the source of a custom reward has changed")

    @field_validator("custom", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """A location alone stands for a reward with nothing else set, and one reward for a list of it."""
        value = [value] if isinstance(value, (str, dict)) else value
        if not isinstance(value, (list, tuple)):
            return value
        return tuple({"source": item} if isinstance(item, str) else item for item in value)


class ObjectiveConfig(Section):
    """The policy term of a token's loss (`grpo.objectives`). Defaults: the paper's."""

    kind: Literal["ppo_clip", "gspo", "cispo"] = Field("ppo_clip", description="Clip per token, per completion, or of the weight")
    clip_low: float = Field(0.2, gt=0, description="The ratio counts down to 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="and up to 1 + clip_high")
    dual_clip: float | None = Field(None, gt=1, description="Bound of the loss where the advantage is negative, times it; none: off")

    @model_validator(mode="after")
    def _dual_clip_fits(self) -> "ObjectiveConfig":
        if self.kind == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip bounds a clipped ratio, which cispo does not have: leave it out")
        return self


class KLConfig(Section):
    """Divergence from the stage's base (`grpo.kl`)."""

    coef: float = Field(0.01, ge=0, description="beta; 0 keeps no reference model")
    estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 (in the reward only), k2, or k3, the paper's (grpo.kl)")
    place: Literal["loss", "reward"] = Field("loss", description="Differentiated per token, or taken off each completion's reward")

    @model_validator(mode="after")
    def _k1_only_in_the_reward(self) -> "KLConfig":
        if self.estimator == "k1" and self.place == "loss":
            raise ValueError("k1 in the loss has a gradient whose expectation is zero: take k2 or k3, or place: reward")
        return self


class ImportanceConfig(Section):
    """Correction for completions that another policy sampled than the one before the update (`grpo.importance`)."""

    level: Literal["token", "sequence"] = Field("token", description="A ratio per token, or one per completion")
    mode: Literal["truncate", "mask"] = Field("truncate", description="Weigh by at most cap, or leave out what is beyond floor and cap")
    floor: float = Field(0.5, ge=0, le=1, description="Smallest ratio that `mask` keeps")
    cap: float = Field(2.0, ge=1, description="Largest weight (truncate), or largest ratio kept (mask)")


class GRPOConfig(Section):
    """Group-relative policy optimisation. Defaults: the paper's where it gives a value."""

    steps: int | None = Field(None, ge=1, description="Steps; none: as many as one epoch of prompts fills")
    prompts_per_step: int = Field(8, ge=1, description="Groups of a step")
    group_size: int = Field(4, ge=2, description="Completions per prompt, G")
    staleness: int = Field(0, ge=0, description="Steps that are sampled ahead of the learner; 0: strictly on-policy")
    inner_epochs: int = Field(1, ge=1, description="Optimizer steps on the same completions, mu")
    objective: ObjectiveConfig = ObjectiveConfig()
    kl: KLConfig = KLConfig()
    importance: ImportanceConfig = ImportanceConfig()
    std_normalization: bool = Field(True, description="Divide by the group's standard deviation; false: Dr.GRPO")
    aggregation: Literal["sequence_mean", "token_mean", "fixed_length"] = Field(
        "sequence_mean", description="Every completion weighs the same (paper), every token (DAPO), or by a fixed length (Dr.GRPO)")
    zero_variance_tolerance: float = Field(1e-6, ge=0, description="A group whose rewards spread less carries no gradient")
    sampling_rounds: int = Field(1, ge=1, description="How often a step may ask for more prompts in place of groups without "
                                 "spread (DAPO's dynamic sampling); 1: it trains on what came")
    overlong_buffer: int = Field(0, ge=0, description="Tokens before the length limit in which a completion loses up to 1 "
                                 "(DAPO's soft overlong punishment), a truncated one 1; 0: truncated ones have no reward")
    localization_share: float = Field(0.3, ge=0, le=1, description="Share of prompts that are localisation rows")
    joined_boxes: bool = Field(False, description="Questions that a localisation row asks too begin their reasoning with its "
                               "boxes, which reward.iou scores; off: no stage before has trained that")
    sampling: SamplingConfig = SamplingConfig()
    checkpoint_steps: int = Field(20, ge=1, description="Steps between resumable checkpoints")

    @model_validator(mode="after")
    def _gspo_takes_whole_completions(self) -> "GRPOConfig":
        if self.objective.kind == "gspo" and (self.importance.level, self.importance.mode) == ("token", "mask"):
            raise ValueError("gspo has one ratio per completion, from which single tokens cannot be left out: "
                             "set importance.level to sequence or importance.mode to truncate")
        return self

    @model_validator(mode="after")
    def _replacement_looks_at_the_task(self) -> "GRPOConfig":
        if self.sampling_rounds > 1 and self.kl.coef > 0 and self.kl.place == "reward":
            raise ValueError("divergence taken off the rewards spreads every group a little, so that none would be "
                             "replaced: set kl.place to loss or sampling_rounds to 1")
        return self

    @model_validator(mode="after")
    def _buffer_within_limit(self) -> "GRPOConfig":
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(f"overlong_buffer {self.overlong_buffer} is more than sampling.max_new_tokens "
                             f"{self.sampling.max_new_tokens}: every completion would be punished")
        return self


class LearnerConfig(Section):
    """DeepSpeed learner of stage 3."""

    ranks: int = Field(1, ge=1, description="Data-parallel ranks of GRPO's learner")
    num_cpus: float = Field(0.5, ge=0, description="CPUs Ray reserves per rank")
    num_gpus: float = Field(0, ge=0, description="GPUs Ray reserves per rank; above 0 the supervised stages train on GPUs too")
    threads: int = Field(2, ge=1, description="OMP threads of a rank on a CPU, supervised stages included")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="As in the supervised stages; on one rank nothing is divided")
    micro_batch_tokens: int = Field(8192, ge=64, description="Packed tokens per forward pass of one rank; a group's prompt counts once")
    gradient_checkpointing: bool = Field(False, description="As in the supervised stages")
    offload_reference: bool = Field(False, description="Keep the reference on the CPU while it is not asked")
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6, schedule="linear", warmup_ratio=0.0)

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "LearnerConfig":
        return _check_offload(self)


class EvaluationConfig(Section):
    """Held-out evaluation before and after every stage; same prompts, greedy."""

    rows: int = Field(240, ge=1, description="Held-out rows per metric")
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer to a held-out row, tokens")
    pictures: int = Field(12, ge=0, description="Held-out pictures with boxes in the report")


class DeadlineConfig(Section):
    """Longest silences, seconds. A wait fails when nothing has progressed for this long, never by total time."""

    engine_start: float = Field(300, gt=0, description="Of an engine that loads; those below, of what they are named after")
    generation: float = Field(300, gt=0)
    reward: float = Field(120, gt=0)
    learner: float = Field(600, gt=0)
    weights: float = Field(300, gt=0)


class FailureConfig(Section):
    """What stage 3 survives; one more ends the run, whose folder can be resumed."""

    workers: int = Field(3, ge=0, description="Deaths of rollout workers within an hour")
    rewards: int = Field(3, ge=0, description="Deaths of reward actors within an hour")
    learner: int = Field(3, ge=0, description="Deaths of learner ranks without a new checkpoint between them")
    attempts: int = Field(3, ge=1, description="How often workers may be lost to a prompt, or refuse it, before it is dropped")


class RunConfig(Section):
    """A whole ladder run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder of the run below `root`")
    root: str = Field("runs", description="Folder that holds all runs")
    seed: int = Field(0, ge=0, description="Of generated rooms and rows, their order, and sampling")
    stages: tuple[StageName, ...] = Field(STAGES, description="Stages to run, in ladder order")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    traces: TracesConfig = TracesConfig()
    sft1: SFTConfig = SFTConfig()
    sft2: SFTConfig = SFTConfig()
    coldstart: SFTConfig = SFTConfig()
    grpo: GRPOConfig = GRPOConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    reward: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    failures: FailureConfig = FailureConfig()

    @model_validator(mode="after")
    def _stages_in_order(self) -> "RunConfig":
        order = [STAGES.index(stage) for stage in self.stages]
        if order != sorted(set(order)) or not order:
            raise ValueError(f"stages: must be a non-empty selection of {', '.join(STAGES)} in that order, got {', '.join(self.stages)}")
        return self

    @model_validator(mode="after")
    def _boxes_are_asked_in_words(self) -> "RunConfig":
        if self.grpo.joined_boxes and self.data.preset == "paper":
            raise ValueError("grpo.joined_boxes: data.preset paper has no words that ask a question for boxes: take ladder")
        return self

    @model_validator(mode="after")
    def _answers_leave_room_for_prompts(self) -> "RunConfig":
        tokens, limit = self.grpo.sampling.max_new_tokens, self.rollout.max_model_len
        if "grpo" in self.stages and tokens >= limit:
            raise ValueError(f"grpo.sampling.max_new_tokens: {tokens} tokens leave no room for a prompt in the engine's "
                             f"rollout.max_model_len of {limit}")
        return self
