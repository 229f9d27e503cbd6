"""Construction of a vLLM engine for rollouts: process environment, engine arguments, progress counter.

What holds
    * The same function builds the CPU and the GPU engine; `RolloutConfig.num_gpus` decides. On the CPU the worker
      lives inside the engine process, nothing is compiled at run time, and the key-value cache has an explicit size.
    * Log-probs are `processed_logprobs`: what a token was really drawn from, after temperature and bans.
    * Requests are admitted by priority, those of equal priority in the order in which they came.
    * The environment is set before vLLM is imported for the first time: `prepare_environment` first, then `build`.
      vLLM is imported inside functions only.
    * On the CPU no prefill is ever split: after a part of a prompt vLLM takes back the seeded generator's draw, which
      CPU generators cannot do (`CPU Generator does not use offset`, and the engine dies). A step's budget of tokens
      (and with it that of visual tokens) is therefore all that the running sequences can hold together.
    * The multimodal processor cache is off: a prompt is sent once with n = G, so it would only hold pixels, and it
      would be one more cache to keep in step across weight updates.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, MutableMapping

from actors.vllm_plugin import require_plugin
from configs.schema import RolloutConfig

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

#: Our weight-transfer backend, and the mix-in of vLLM's worker class whose module registers it in the engine process.
WEIGHT_BACKEND = "version"
WORKER_EXTENSION = "actors.weight_transfer.LadderWorkerExtension"
#: Most images of one prompt, and most videos (the paper's rows: eight views, one video).
MEDIA_LIMIT = {"image": 16, "video": 1}


def prepare_environment(config: RolloutConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what vLLM and the processes it spawns read from the environment; call before the first import of vllm."""
    environment.update(
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        TOKENIZERS_PARALLELISM="false",
    )
    if config.num_gpus:
        environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        return
    environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings here are all about what is chosen below
    environment.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the worker stays inside the engine process: starts faster
        TORCHDYNAMO_DISABLE="1",  # else two sampler functions need a compiler and 20 s at the first request
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # engines and learner share cores
        OMP_NUM_THREADS=str(config.threads),
    )


def engine_ranks(config: RolloutConfig) -> int:
    """Processes among which an engine divides its model: one for each GPU."""
    return max(1, int(config.num_gpus))


def engine_arguments(model_path: str, config: RolloutConfig, dtype: str, seed: int) -> dict:
    """Keyword arguments of vLLM's AsyncEngineArgs."""
    from vllm.config import WeightTransferConfig

    arguments = dict(
        model=model_path,
        dtype=dtype,
        seed=seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        scheduling_policy="priority",
        limit_mm_per_prompt=dict(MEDIA_LIMIT),
        mm_processor_cache_gb=0,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=WEIGHT_BACKEND),
        disable_log_stats=True,
        use_tqdm_on_load=False,
        worker_extension_cls=WORKER_EXTENSION,
    )
    if config.num_gpus:
        arguments.update(
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=engine_ranks(config),
        )
        if config.num_gpus >= 2:
            # In a placement group vLLM would by itself take Ray to place its ranks, and wait for room that its actor holds.
            arguments["distributed_executor_backend"] = "mp"
    else:
        arguments.update(
            kv_cache_memory_bytes=config.kv_cache_bytes,
            max_num_batched_tokens=config.max_num_seqs * config.max_model_len,
            enforce_eager=True,
            skip_mm_profiling=True,
        )
    return arguments


class Progress:
    """Counts what a worker has done: grows with every step that computed a token, and while weights are copied. Never goes
    back."""

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.moves = 0

    @property
    def value(self) -> int:
        return self.generated_tokens + self.prompt_tokens + self.moves

    def moved(self) -> None:
        """More of a weight version has come to this machine."""
        self.moves += 1

    def logger_factory(self):
        """A vLLM stat-logger factory that feeds this counter from the engine's own iteration statistics."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        progress = self

        class ProgressLogger(StatLoggerBase):
            def __init__(self, vllm_config, engine_index: int = 0):
                """Nothing to set up."""

            def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0):
                if iteration_stats is not None:
                    progress.generated_tokens += iteration_stats.num_generation_tokens
                    progress.prompt_tokens += iteration_stats.num_prompt_tokens

            def log_engine_initialized(self):
                """Nothing to say."""

        return ProgressLogger


def build(model_path: str, config: RolloutConfig, dtype: str, seed: int, progress: Progress) -> "AsyncLLM":
    """Start an engine on the model folder; blocks until its process has loaded the weights.

    Call from a running event loop: the engine belongs to that loop and answers nowhere else. Raises PluginMissing.
    """
    prepare_environment(config)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(**engine_arguments(model_path, config, dtype, seed))
    require_plugin()
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[progress.logger_factory()])
