"""What is said of a death: its cause where it is known, and that it is not where it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.exceptions import ActorDiedError

from actors.engine_death import actor_death, engine_death
from actors.ray_port import told

LOGGED = "(EngineCore pid=7) ERROR 11-23 18:51:21 [core.py:1512] "
SURVIVED = f"""{LOGGED}Invocation of collective_rpc method failed
{LOGGED}Traceback (most recent call last):
{LOGGED}actors.weights.WeightVersionError: x.bias has checksum crc32:1, the manifest says crc32:0
"""
FATAL = f"""{LOGGED}EngineCore encountered a fatal error.
{LOGGED}Traceback (most recent call last):
{LOGGED}  File "core.py", line 7, in run
{LOGGED}    raise RuntimeError("a: b")
{LOGGED}RuntimeError: CPU Generator does not use offset
(EngineCore pid=7) Process EngineCore:
ERROR 11-23 18:51:21 [async_llm.py:906] AsyncLLM output_handler failed.
ERROR 11-23 18:51:21 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See above.
"""
ACTOR = """The actor died unexpectedly before finishing this task.
\tclass_name: RolloutWorker
\tactor_id: 1f
\tpid: 4711
\tnamespace: 53
\tip: 10.0.0.2
"""
CAUSES = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) others."


@pytest.mark.parametrize(
    ("exits", "output", "expected"),
    [
        ({"EngineCore": -9}, "", "its process was ended by SIGKILL"),
        ({"EngineCore": -9}, SURVIVED, "its process was ended by SIGKILL"),
        ({"EngineCore": -40}, "", "its process was ended by signal 40"),
        ({"EngineCore": 1}, FATAL, "its process ended with exit code 1: RuntimeError: CPU Generator does not use offset"),
        ({}, SURVIVED + FATAL, "RuntimeError: CPU Generator does not use offset"),
        ({}, f"{LOGGED}EngineCore failed to start.\n{LOGGED}torch.OutOfMemoryError: 2 GiB\n", "OutOfMemoryError: 2 GiB"),
        ({}, f"{LOGGED}EngineCore failed to start.\n{LOGGED}AssertionError\n", "AssertionError"),
        ({"EngineCore": 0}, SURVIVED, "no cause known"),
        ({}, "", "no cause known"),
    ],
)
def test_an_engines_death_is_told_by_its_exit_and_its_fatal_error(exits, output, expected) -> None:
    assert engine_death(exits, output) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            f"Worker unexpectedly exits with a connection error code 2. End of file. {CAUSES}",
            "no cause known (Ray: Worker unexpectedly exits with a connection error code 2. End of file.)",
        ),
        (
            "The actor is dead because its worker process died. Worker exit type: USER_ERROR Worker exit detail: Exit 3.",
            "Exit 3.",
        ),
        ("The actor died because its node has died. Node Id: 5f", "The actor died because its node has died. Node Id: 5f"),
        ("", "no cause known"),
    ],
)
def test_an_actors_death_is_told_by_what_ray_knows(said: str, expected: str) -> None:
    assert actor_death(ACTOR + said) == expected


def test_an_actor_that_could_not_be_made_is_told_by_its_error() -> None:
    text = "The actor died because of an error raised in its creation task, ray::Worker.__init__()\n  File x\nKeyError: 'a'"
    assert actor_death(text) == "KeyError: 'a'"


def test_the_port_does_not_tell_rays_general_words() -> None:
    assert told(ActorDiedError()) == "its process died: no cause known"


def test_what_a_process_and_its_children_have_written_to_a_file_is_read(tmp_path) -> None:
    program = (
        "import os, sys; from actors.engine_death import own_output; os.system('echo child'); print('parent'); "
        "sys.stderr.write(repr(own_output()))"
    )
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr == repr("child\nparent\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "''"  # a pipe
