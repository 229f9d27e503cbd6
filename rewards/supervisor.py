"""What stands between an actor and the process its rewards run in: it ends when that ends, and leaves nothing behind.

What holds: the server is forked before anything but this is imported. When it ends, however it does, or when the thread
that started the supervisor ends, all that was started below is killed, daemons too, since orphans become the supervisor's
children; it reaps them all the while. It ends as the server did, by the same code or signal.
"""

from __future__ import annotations

import os
import signal
import sys

from rewards.process_tree import adopt_orphans, die_with_parent, kill_descendants


def main() -> None:
    """Entry: the number of the socket that the server inherits is the only argument."""
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    signal.signal(signal.SIGTERM, _end)
    supervisor = os.getpid()
    server = os.fork()
    if server == 0:
        os.setsid()  # a reward that kills its process group shall not kill what cleans up after it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before the kernel knew
            os._exit(1)
        from rewards.child import main as serve

        serve()
        return
    os.close(int(sys.argv[1]))  # else the actor would not see the server close it
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server:
            break
    kill_descendants(os.getpid())
    _end_like(status)


def _end(_number: int, _frame: object) -> None:
    kill_descendants(os.getpid())
    os._exit(128 + signal.SIGTERM)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))
