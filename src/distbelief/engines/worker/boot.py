"""Where a worker begins: it watches its controller before it imports anything that takes long.

Started as `python -m distbelief.engines.worker.boot CHANNEL`, by the number of a descriptor.
"""

import os
import select
import signal
import sys
import threading

from distbelief.engines.worker.descendants import MARK, end_descendants
from distbelief.engines.worker.notice import Notice
from distbelief.observe.streams import forgive


def main() -> None:
    """Run one replica to its end. Exit code 0 when there is no more work, 1 after an error that was reported."""
    # Ctrl-C and the end of a terminal are the controller's affair, which ends the run or has been started to ignore
    # them; the replicas are told by it. What a worker starts, such as the processes of data loaders, inherits this.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    notice = Notice()
    notice.watch()
    forgive()
    channel = int(sys.argv[1])
    watch = threading.Thread(target=_die_with_controller, args=(channel, os.environ[MARK]), daemon=True)
    watch.start()
    from distbelief.engines.worker.worker import serve

    try:
        serve(channel, notice)
    finally:
        # The interpreter would stop this thread at its own end, before all that is to end has ended.
        if _hung_up(channel, timeout_ms=0):
            watch.join()


def _die_with_controller(channel: int, mark: str) -> None:
    """End this process and all that it started when the other end of its channel is closed, however that dies."""
    _hung_up(channel)
    end_descendants(mark, spared=os.getpid())
    os.killpg(0, signal.SIGKILL)


def _hung_up(channel: int, timeout_ms: int | None = None) -> bool:
    """Whether the other end of a socket is closed by then."""
    waiting = select.poll()
    waiting.register(channel, 0)
    return bool(waiting.poll(timeout_ms))


if __name__ == "__main__":
    main()
