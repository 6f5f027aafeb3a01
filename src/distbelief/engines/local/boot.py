"""Where a worker begins: it watches its controller before it imports anything that takes long.

Started as `python -m distbelief.engines.local.boot CHANNEL LIFE`, by the numbers of two descriptors.
"""

import os
import signal
import sys
import threading

from distbelief.engines.local.descendants import MARK, end_descendants
from distbelief.observe.streams import forgive


def main() -> None:
    """Run one replica to its end. Exit code 0 when there is no more work, 1 after an error that was reported."""
    # Ctrl-C and the end of a terminal are the controller's affair, which ends the run or has been started to ignore
    # them; the replicas are told by it. What a worker starts, such as the processes of data loaders, inherits this.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    forgive()
    channel, life = map(int, sys.argv[1:])
    threading.Thread(target=_die_with, args=(life,), daemon=True).start()
    from distbelief.engines.local.worker import serve

    serve(channel)


def _die_with(life: int) -> None:
    """End this process and all that it started when the controller's end of a pipe is closed, however that dies."""
    os.read(life, 1)
    end_descendants(os.environ[MARK], spared=os.getpid())
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
