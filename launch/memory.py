"""What a configuration takes on each GPU, before one is rented: weights, gradients, optimizer, activations, engine cache.

    python -m launch.memory CONFIG [--gpu h100-80gb | --gpu-memory GIB] [--model-shape qwen2.5-vl-3b] [--visual-share 1.0]
                                   [--set KEY=VALUE]

Exit codes: 0 everything fits; 1 something does not; 2 the configuration is refused or cannot be estimated.

What holds
    * Pure arithmetic on the real shapes (`models.shapes`): no GPU, no weights, nothing started. An estimate, mostly from
      above; it has not been compared with a GPU.
    * What stays: the mixed-precision accounting of ZeRO (Rajbhandari et al. 2020, section 3.1: 2 + 2 + 12 bytes per
      parameter), as DeepSpeed 0.19.8 does it under the settings of `models.deepspeed_engine`:
      - the type of gradients is that of the weights (no `data_types.grad_accum_dtype`), so bfloat16 gradients are added
        up in bfloat16; master weights and AdamW's moments are float32;
      - ZeRO-0 and ZeRO-1 keep the whole gradient until `step`, ZeRO-2 and ZeRO-3 their share; ZeRO-1 and ZeRO-2 have the
        share twice while a pass is added (zero/stage_1_and_2.py: `copy_grads_in_partition`);
      - in float32 the ZeRO stages hold a second copy of their share of the weights, ZeRO-0 does not;
      - buckets have the library's default sizes, whatever the model's.
      Counted in DeepSpeed on one CPU rank, weights, gradients and optimizer take 16 bytes per parameter in bfloat16 under
      every stage, in float32 16 under ZeRO-0 and 20 under the others.
    * What passes: tensors that autograd keeps, layer by layer as the library computes them (transformers,
      modeling_qwen2_5_vl.py), with attention that keeps no matrix of scores (flash, flex, and the tower's sdpa). With
      gradient checkpointing a layer keeps its input, and one layer at a time is computed again.
    * A pass and the optimizer's step are never alive together: the larger one counts.

Assumptions: a pass has `micro_batch_tokens` tokens, in GRPO at least `rollout.max_model_len` (one completion with its
prompt is never cut); every token is scored; `visual_share` of the tokens are visual (1: the bound for any data), each of
four patches, and no two trees share a picture. An engine's largest step has ENGINE_STEP_TOKENS tokens.

Not counted, and what MARGIN is for: CUDA context, NCCL, workspaces of kernels, fragmentation. Not counted at all: start-up
peaks, the pictures of a rank's other passes (19 KB per visual token), prompts repeated as keys (flash) and keys repeated
for all heads (`attention: sdpa`), masks of which flex makes its blocks (a byte per pair of tokens, 256 MiB for 16384),
CUDA graphs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import ConfigError, load_config
from configs.schema import RunConfig, StageName
from launch.places import input_path, home
from launch.preflight import remarks, sft_section
from models.loading import DTYPES, ModelFolderError
from models.shapes import PUBLISHED, ModelShape, folder_config, meta_model, shape_of
from models.token_logprobs import CHUNK_LOGITS, CHUNK_PRODUCT

GIB = 1 << 30
#: What torch reports as a device's memory, rounded down.
DEVICES = {"h100-80gb": int(79.0 * GIB), "a100-80gb": int(79.0 * GIB), "a100-40gb": int(39.3 * GIB)}
#: Kept free on every GPU for what is named above.
MARGIN = 3 * GIB
#: DeepSpeed's defaults (runtime/zero/config.py, engine.py): elements of a reduction bucket, of parameters gathered at the
#: same time under ZeRO-3 (`max_live_parameters`), of a group that ZeRO-3 updates at once.
BUCKET, LIVE, SUB_GROUP = 500_000_000, 1_000_000_000, 1_000_000_000
#: Tokens of an engine's largest step; vLLM's own choice is from 2048 to 16384, by GPU and use.
ENGINE_STEP_TOKENS = 8192


class EstimateError(ValueError):
    """A configuration for which there is nothing to estimate: says why."""


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes on the GPU of one rank. `activations`: the peak of a pass; `step`: what the optimizer's step adds; `host`: bytes of
    what is offloaded, in the memory of its machine."""

    weights: int
    reference: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    step: int
    host: int

    @property
    def total(self) -> int:
        kept = self.weights + self.reference + self.gradients + self.optimizer + self.buffers
        return kept + max(self.activations, self.step) + MARGIN


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one GPU of a rollout worker. `budget`: its share of the device, `cache_token`: one token in the cache."""

    weights: int
    workspace: int
    budget: int
    cache_token: int

    @property
    def cache(self) -> int:
        """What is left for keys and values; never below zero."""
        return max(0, self.budget - self.weights - self.workspace - MARGIN)

    @property
    def cache_tokens(self) -> int:
        return self.cache // self.cache_token


@dataclass(frozen=True)
class Line:
    """A role of a stage: on how many GPUs, what each holds, and whether that fits."""

    stage: StageName
    gpus: int
    memory: LearnerMemory | EngineMemory
    fits: bool


@dataclass(frozen=True)
class Ranks:
    """How a learner is run: what GRPO's and the supervised sections have in common."""

    ranks: int
    zero_stage: int
    checkpointing: bool
    tokens: int
    lora_rank: int = 0
    offload_optimizer: bool = False
    offload_reference: bool = False


def text_layer(shape: ModelShape, size: int) -> int:
    """Bytes per token that autograd keeps of one decoder layer; `size`: bytes of a number.

    Two norms keep their input in float32, its scale and the normed input, and hand on a copy (size); attention keeps
    queries, keys, values, result and the float32 sums of its heads; the MLP gate, activated gate, up and product.
    """
    keys = shape.kv_heads * shape.head_dim
    norms = 2 * ((4 + 2 * size) * shape.hidden + 4)
    attention = size * (2 * shape.hidden + 2 * keys) + 4 * shape.heads
    return norms + attention + 4 * size * shape.intermediate


def vision_block(shape: ModelShape, size: int) -> int:
    """Bytes per patch that autograd keeps of one block of the tower: as a decoder layer, but the values are a view of
    queries, keys and values together, which stay whole."""
    norms = 2 * ((4 + 2 * size) * shape.vision_hidden + 4)
    attention = 6 * size * shape.vision_hidden + 4 * shape.vision_heads
    return norms + attention + 4 * size * shape.vision_intermediate


def pass_bytes(shape: ModelShape, size: int, tokens: int, visual: int, checkpointing: bool, frozen_eyes: bool) -> int:
    """Peak of a forward and backward pass of `tokens` tokens, `visual` of them visual, beyond weights and gradients.

    The largest of three moments: the backward pass in the output head, in one decoder layer, in one block of the tower.
    A layer's backward pass adds, at its MLP, two tensors of the MLP's width, one of the model's, and a weight's gradient.
    A tied head's gradient waits for that of the embedding until the end.
    """
    patches, matrix = visual * shape.patches, shape.vocab * shape.hidden
    layer, block = tokens * text_layer(shape, size), patches * vision_block(shape, size)
    text_kept = shape.layers * (size * tokens * shape.hidden if checkpointing else layer)
    eyes_kept = shape.vision_layers * (size * patches * shape.vision_hidden if checkpointing else block)
    merger = patches * ((4 + 4 * size) * shape.vision_hidden + 4)
    pixels = patches * shape.patch_values * (4 + size)
    always = pixels + (0 if frozen_eyes else eyes_kept + merger) + size * visual * shape.hidden
    waiting = size * matrix if shape.tied else 0

    final = tokens * ((4 + 2 * size) * shape.hidden + 4) + 2 * size * tokens * shape.hidden
    logits = min(CHUNK_LOGITS, tokens * shape.vocab)
    product, copied = (CHUNK_PRODUCT * size, size * matrix) if size < 4 else (0, 0)
    backward = 4 * matrix + max((4 + size) * logits + product, copied)
    head = text_kept + final + max(backward, 2 * (4 + size) * logits)
    inner = tokens * size * (2 * shape.intermediate + shape.hidden) + size * shape.hidden * shape.intermediate
    decoder = text_kept + waiting + inner + (layer if checkpointing else 0)
    inner = patches * size * (2 * shape.vision_intermediate + shape.vision_hidden)
    inner += size * shape.vision_hidden * shape.vision_intermediate + size * tokens * shape.hidden
    tower = block if frozen_eyes else waiting + inner + (block if checkpointing else 0)
    return always + max(head, decoder, tower)


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of LoRA adapters of a rank beside the seven linear maps of every decoder layer (`models.adapters`)."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * rank * sides


def learner_memory(
    shape: ModelShape, size: int, run: Ranks, *, reference: bool, frozen_eyes: bool, visual_share: float
) -> LearnerMemory:
    """One rank of a supervised stage or of GRPO, by ZeRO stage; `size`: bytes of a weight (2 or 4).

    With adapters the reference is the policy without them. What is offloaded takes nothing here but, the reference, while
    it is asked, which is before a step's passes. On its machine an offloaded optimizer has master weights, gradient and two
    moments in float32.
    """
    adapters = adapter_parameters(shape, run.lora_rank) if run.lora_rank else 0
    everything = shape.parameters + adapters
    frozen_eyes = frozen_eyes or adapters > 0
    trained = adapters or everything - (shape.vision_parameters if frozen_eyes else 0)
    reference_bytes = size * everything if reference and not adapters else 0
    stage, mixed = run.zero_stage, size < 4
    share = -(-trained // run.ranks)
    updated = trained if stage == 0 else share
    master = 4 * updated if mixed or stage > 0 else 0
    gradients = size * {0: trained, 1: trained + share, 2: 2 * share, 3: share}[stage]
    buckets = {0: min(BUCKET, trained) if run.ranks > 1 else 0, 1: BUCKET, 2: BUCKET, 3: 2 * BUCKET}[stage]
    gathered = min(LIVE, everything) if stage == 3 else 0
    # The gradient comes to AdamW in float32, for which only float32 gradients without partitions need no copy; the fused
    # update itself has no tensors of its own.
    at_once = min(updated, SUB_GROUP) if stage == 3 else updated
    step = 0 if run.offload_optimizer else at_once * (0 if stage == 0 and not mixed else 4)
    return LearnerMemory(
        weights=size * (everything if stage < 3 else -(-everything // run.ranks)),
        reference=0 if run.offload_reference else reference_bytes,
        gradients=gradients,
        optimizer=0 if run.offload_optimizer else master + 8 * updated,
        buffers=size * (buckets + gathered),
        activations=pass_bytes(
            shape, size, run.tokens, int(run.tokens * visual_share), run.checkpointing, frozen_eyes
        ),
        step=max(step, reference_bytes) if run.offload_reference else step,
        host=16 * updated * run.offload_optimizer + reference_bytes * run.offload_reference,
    )


def engine_memory(
    shape: ModelShape, size: int, gpus: int, utilization: float, max_num_seqs: int, device: int
) -> EngineMemory:
    """One GPU of a rollout worker over `gpus` GPUs (tensor parallel: weights and heads are divided).

    Workspace: a step's tensors in one layer (gate, up and product, three of the model's width), as wide again in the
    tower if all tokens are visual, and two float32 copies of the logits of all sequences.
    """
    token = size * 3 * (shape.intermediate + shape.hidden)
    eyes = size * 3 * (shape.vision_intermediate + shape.vision_hidden) * shape.patches
    workspace = ENGINE_STEP_TOKENS * max(token, eyes) + 2 * 4 * max_num_seqs * shape.vocab
    heads = -(-shape.kv_heads // gpus)
    return EngineMemory(
        weights=-(-size * shape.parameters // gpus),
        workspace=workspace,
        budget=int(device * utilization),
        cache_token=2 * shape.layers * heads * shape.head_dim * size,
    )


def estimate(config: RunConfig, shape: ModelShape, device: int, visual_share: float = 1.0) -> list[Line]:
    """Every role of every stage of the run on GPUs of `device` bytes, one role per GPU.

    EstimateError when the run uses no GPUs, or parts of one: roles that share a GPU cannot be judged one by one.
    """
    return list(_lines(config, shape, device, visual_share))


def _lines(config: RunConfig, shape: ModelShape, device: int, visual_share: float) -> Iterator[Line]:
    learner, rollout, size = config.learner, config.rollout, DTYPES[config.model.dtype].itemsize
    if learner.num_gpus != 1 and not (learner.num_gpus == 0 == rollout.num_gpus):
        raise EstimateError(f"learner.num_gpus is {learner.num_gpus:g}: the estimate is for one whole GPU per rank")
    if learner.num_gpus == 0:
        raise EstimateError("the run uses no GPU (learner.num_gpus and rollout.num_gpus are 0): nothing to estimate")
    frozen, lora_rank = config.model.freeze_vision, config.model.lora.rank if config.model.lora else 0
    for stage in config.stages:
        if stage != "grpo":
            section = sft_section(config, stage)
            run = Ranks(section.ranks, section.zero_stage, section.gradient_checkpointing, section.micro_batch_tokens,
                        lora_rank, section.optimizer.offload)
            memory = learner_memory(shape, size, run, reference=False, frozen_eyes=frozen, visual_share=visual_share)
            yield Line(stage, run.ranks, memory, memory.total <= device)
            continue
        tokens = max(learner.micro_batch_tokens, rollout.max_model_len)
        run = Ranks(learner.ranks, learner.zero_stage, learner.gradient_checkpointing, tokens,
                    lora_rank, learner.optimizer.offload, learner.offload_reference)
        reference = config.grpo.kl.coef > 0
        memory = learner_memory(shape, size, run, reference=reference, frozen_eyes=frozen, visual_share=visual_share)
        yield Line(stage, run.ranks, memory, memory.total <= device)
        gpus = int(rollout.num_gpus)
        if gpus < 1 or gpus != rollout.num_gpus:
            raise EstimateError(f"rollout.num_gpus is {rollout.num_gpus:g}: the estimate is for whole GPUs per worker")
        engine = engine_memory(shape, size, gpus, rollout.gpu_memory_utilization, rollout.max_num_seqs, device)
        yield Line(stage, rollout.workers.max * gpus, engine, engine.cache_tokens >= rollout.max_model_len)


def table(lines: Sequence[Line], config: RunConfig) -> str:
    """The lines in GiB per GPU."""
    names = ("weights", "reference", "gradients", "optimizer", "buffers", "activations", "step")
    learners = [f"{'stage':10} {'learner on':>10}" + "".join(f"{name:>12}" for name in (*names, "total")) + "  fits"]
    names = ("weights", "workspace", "cache", "total")
    engines = [f"{'stage':10} {'rollout on':>10}" + "".join(f"{name:>12}" for name in names) + "  fits  tokens of cache"]
    for line in lines:
        start, fits = f"{line.stage:10} {line.gpus:>5} GPUs", "yes" if line.fits else "NO"
        memory = line.memory
        if isinstance(memory, LearnerMemory):
            values = (memory.weights, memory.reference, memory.gradients, memory.optimizer, memory.buffers,
                      memory.activations, memory.step, memory.total)
            host = f"  and {memory.host / GIB:.2f} GiB of its machine per GPU" if memory.host else ""
            learners.append(start + "".join(f"{value / GIB:12.2f}" for value in values) + f"  {fits}{host}")
        else:
            values = (memory.weights, memory.workspace, memory.cache, memory.budget)
            whole = memory.cache_tokens // config.rollout.max_model_len
            engines.append(start + "".join(f"{value / GIB:12.2f}" for value in values) + f"  {fits:4}  {memory.cache_tokens:,} ("
                           f"{whole} sequences of {config.rollout.max_model_len}, {config.rollout.max_num_seqs} run at once)")
    at_once = {stage: sum(line.gpus for line in lines if line.stage == stage) for stage in config.stages}
    parts = ["\n".join(learners), "\n".join(engines) if len(engines) > 1 else "",
             "GPUs at the same time: " + ", ".join(f"{stage} {gpus}" for stage, gpus in at_once.items()),
             f"total: what stays, the larger of activations and step, and a margin of {MARGIN / GIB:.0f} GiB; for an engine its "
             "share of the device. An estimate, not compared with a GPU; what it leaves out: launch/memory.py"]
    return "\n\n".join(part for part in parts if part)


def model_shape(config: RunConfig, named: str) -> tuple[str, ModelShape]:
    """The shape of the run's model folder, or of the published architecture `named` when there is no such folder."""
    folder = input_path(config.model.path, home())
    if folder.is_dir():
        return str(config.model.path), shape_of(meta_model(folder_config(folder), config.model.dtype))
    return f"{named} ({config.model.path} does not exist)", shape_of(meta_model(PUBLISHED[named](), config.model.dtype))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of a configuration and returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if not 0 <= options.visual_share <= 1:
            raise EstimateError(f"--visual-share must be from 0 to 1, got {options.visual_share:g}")
        if options.gpu_memory is not None and not 0 < options.gpu_memory < 1 << 20:
            raise EstimateError(f"--gpu-memory must be a GPU's memory in GiB, got {options.gpu_memory:g}")
        name, shape = model_shape(config, options.model_shape)
        device = int(options.gpu_memory * GIB) if options.gpu_memory else DEVICES[options.gpu]
        lines = estimate(config, shape, device, options.visual_share)
    except (ConfigError, EstimateError, ModelFolderError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    gpu = "a GPU" if options.gpu_memory else options.gpu
    print(f"{config.name} on {gpu} ({device / GIB:.1f} GiB), {name}: {shape.parameters:,} parameters in "
          f"{config.model.dtype}; GiB per GPU\n\n{table(lines, config)}")
    for remark in remarks(config):
        print(f"note: {remark}")
    return 0 if all(line.fits for line in lines) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.memory", description="Memory per GPU of a configuration.")
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("--gpu", choices=sorted(DEVICES), default="h100-80gb")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of any other GPU, in place of --gpu")
    parser.add_argument("--model-shape", choices=sorted(PUBLISHED), default="qwen2.5-vl-3b",
                        help="the architecture, where model.path does not exist")
    parser.add_argument("--visual-share", type=float, default=1.0, help="share of a pass's tokens that are visual (1: all)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override a setting, e.g. learner.zero_stage=3")
    return parser


if __name__ == "__main__":
    sys.exit(main())
