"""Why an engine or an actor is dead, in one line: what the exit of its process, its output and Ray say.

What holds: only what is known is said, else "no cause known". An error in an engine's output counts only if vLLM calls it
fatal there: others were survived, and a killed process has written nothing.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

UNKNOWN = "no cause known"
#: How vLLM begins the trace of the error that an engine ends with.
FATAL = re.compile(r"EngineCore (encountered a fatal error|failed to start)")
#: The last line of a trace, behind what vLLM's logger writes before it.
ERROR = re.compile(r"(?:^|\s)(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Mismatch|Missing)\b(?:: .*)?)$")
#: How far from its end the output of an actor is read, bytes.
TAIL = 1 << 18
#: Most characters of an error.
LONGEST = 300
#: What Ray says of every actor before it says why it died.
RAY_GENERAL = re.compile(
    r"(The actor died unexpectedly before finishing this task\.|(class_name|actor_id|pid|name|namespace|ip):.*)?"
)
RAY_DETAIL = re.compile(r"Worker exit detail: (.*?)(?= Some common causes| There are some potential|$)")


def engine_death(exit_codes: Mapping[str, int], output: str) -> str:
    """Of an engine whose processes ended with these codes (negative: the signal), and which has written this."""
    ends = sorted({_ended(code) for code in exit_codes.values() if code})
    return ": ".join([*ends, *([error] if (error := fatal_error(output)) else [])]) or UNKNOWN


def fatal_error(output: str) -> str | None:
    """The last line of the trace that vLLM has written of the error its engine ended with."""
    if not (begins := [found.start() for found in FATAL.finditer(output)]):
        return None
    begin = begins[-1]
    prefix = output[output.rfind("\n", 0, begin) + 1:begin]  # of every line of the trace; without it, others speak
    lines = (line.rstrip() for line in output[begin - len(prefix):].splitlines() if line.startswith(prefix))
    errors = [found.group(1) for line in lines if (found := ERROR.search(line))]
    return errors[-1][:LONGEST] if errors else None


def actor_death(text: str) -> str:
    """Of an actor, by what Ray's error says."""
    lines = [line for own in text.splitlines() if not RAY_GENERAL.fullmatch(line := own.strip())]
    if not lines:
        return UNKNOWN
    if "creation task" in lines[0]:
        return lines[-1][:LONGEST]
    detail = RAY_DETAIL.search(lines[0])
    said = (detail.group(1) if detail else lines[0])[:LONGEST]
    return f"{UNKNOWN} (Ray: {said})" if "connection error code" in said else said


def why_dead(engine: AsyncLLM) -> str:
    """`engine_death` of an engine of this process."""
    manager = engine.engine_core.resources.engine_manager
    return engine_death(manager.finished_procs() if manager is not None else {}, own_output())


def own_output() -> str:
    """The end of what this process and its engine have written; empty where that is not in a file, as Ray's logs are."""
    sys.stdout.flush()
    path = Path(f"/proc/{os.getpid()}/fd/1")
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _ended(code: int) -> str:
    if code > 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:  # of real time
        return f"its process was ended by signal {-code}"
