"""What tests have workers call, who import it by name: pytest has this folder on its path."""

import os
import random
import signal
import sys
import time
from pathlib import Path

from gradebench.plugins import descendants

BY_TESTS = ("PYTEST_", "COLUMNS", "LINES")  # the last two by readline, past Python's own table of variables


def around(names):
    """What a worker finds around it."""
    import numpy as np

    print("said on stdout", flush=True)
    os.write(1, b"written to 1\n")
    shown = Path("/proc/self/environ").read_text().split("\0")
    mark = f"{descendants.MARK}={os.environ.pop(descendants.MARK)}"
    found = {
        "environment": sorted(item for item in os.environ.items() if not item[0].startswith(BY_TESTS)),
        "folder": os.getcwd(),
        "path": sys.path,
        "arguments": sys.argv,
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "marked": mark in shown,
        "named": sorted(set(sys.modules) & set(names)),
    }
    return repr(found), repr((random.random(), np.random.random(), os.getppid()))  # noqa: NPY002


def parent():
    return "ok", str(os.getppid())


def imported(package):
    return "ok", " ".join(name for name in sys.modules if name.partition(".")[0] == package)


def kills_server():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return "ok", ""


def orphans(path):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            path.with_suffix(".draft").write_text(str(os.getpid()))
            path.with_suffix(".draft").rename(path)
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not path.exists():
        time.sleep(0.01)
    os._exit(7)
