"""Every command with every kind of stdout, each in a process forked off this one, where all is imported.

    python every_command.py FOLDER

Prints as JSON, by command and kind: exit status, what it said on stderr, and the files that it left with their bytes.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import io
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # which an optimizer imports, in a second or two

from gradebench import cli
from gradebench.checks import conformance
from gradebench.experiment import launchers, preparing, runner
from gradebench.experiment.workers import outcome_of
from gradebench.reporting import report  # noqa: F401 - so that no process has to import it

TALKS = """
import atexit, ctypes, os, subprocess, sys
from gradebench.estimators.score_function import Rloo
def talk():
    print("chatter")
    print("chatter", file=sys.__stdout__)
    os.write(1, b"chatter\\n")
    subprocess.run(["echo", "chatter"])
    libc = ctypes.CDLL(None)
    libc.puts(b"chatter")
    libc.fflush(None)
talk()
atexit.register(talk)
class Talks(Rloo):
    def __init__(self, n: int = 4):
        super().__init__(n)
        talk()
    def gradient(self, problem, rng):
        talk()
        return super().gradient(problem, rng)
"""
TRAINED = ("-e", "reinforce", "-t", "bernoulli-toy", "--steps", "2", "--jobs", "1")
# By name: a command, and whether it is too slow for every kind of stdout.
COMMANDS = {
    "run": (("run", *TRAINED, "--seeds", "0", "--out", "out"), True),
    "dry run": (("run", *TRAINED, "--seeds", "0", "--dry-run"), False),
    "tune": (("tune", *TRAINED, "--seeds", "0", "--rates", "0.1,0.2", "--out", "out"), True),
    "probe": (("probe", *TRAINED, "--draws", "4", "--out", "out"), True),
    "enumerate": (("enumerate", "-e", "TALKS:Talks:n=2", "-t", "bernoulli-toy"), False),
    "leaderboard": (("leaderboard", "RUN", "--csv", "table.csv"), False),
    "frontier": (("frontier", "SWEPT", "--csv", "table.csv"), False),
    "merge": (("merge", "RUN", "OTHER", "--out", "out"), True),
    "compare": (("compare", "RUN", "--csv", "table.csv"), False),
    "curves": (("curves", "RUN", "--csv", "table.csv"), False),
    "claims": (("claims", "RUN", "--csv", "table.csv"), False),
    "report": (("report", "RUN", "--out", "."), True),
    "status": (("status", "RUN"), False),
    "cite": (("cite", "RUN"), False),
    "check": (("check", "TALKS:Talks"), False),
    "check --json": (("check", "--json", "TALKS:Talks"), False),
    "list": (("list",), False),
    "list --json": (("list", "--json"), False),
    "show": (("show", "rloo"), False),
    "new": (("new", "mine"), False),
    "doctor": (("doctor",), False),
    "help": (("--help",), False),
    "refused": (("leaderboard", "nowhere"), False),
}
FEW = ("closed", "full")


@contextlib.contextmanager
def in_this_process(places, timeout, foreign=None):
    yield lambda function, calls: ((call, outcome_of(function, call)) for call in calls)


def no_checks(build, seed):
    build()
    return []


def plain():
    return "utf-8", os.open("../stdout", os.O_WRONLY | os.O_CREAT)


def gone():
    """A pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    return "utf-8", write


KINDS = {
    "plain": plain,
    "closed": lambda: (None, None),
    "ascii": lambda: ("ascii", plain()[1]),
    "latin-1": lambda: ("latin-1", plain()[1]),
    "gone": gone,
    "full": lambda: ("utf-8", os.open("/dev/full", os.O_WRONLY)),
}


def become(kind):
    """This process with that stdout, and stderr in a file."""
    err = os.open("../stderr", os.O_WRONLY | os.O_CREAT)
    encoding, out = KINDS[kind]()
    os.dup2(err, 2)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if out is None:
        os.close(1)
        sys.stdout = sys.__stdout__ = None
        return
    os.dup2(out, 1)
    for one in {err, out} - {1, 2}:
        os.close(one)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding, "strict")


def ended(folder, kind, arguments):
    """Exit status, stderr, stdout and files of one command in a new folder."""
    here = folder / "here"
    here.mkdir(parents=True)
    if not (child := os.fork()):
        status = 70
        try:
            os.chdir(here)
            become(kind)
            sys.argv = ["gradebench", *arguments]
            try:
                cli.main()
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.__stdout__):
                stream.flush()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            status = 70
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in ("stdout", "stderr")}
    files = {
        str(path.relative_to(here)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(here.rglob("*"))
        if path.is_file()
    }
    return {"status": status, "files": files} | {
        name: text.decode("utf-8", "backslashreplace") for name, text in said.items()
    }


def main(folder):
    os.environ["GRADEBENCH_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    torch.set_num_threads = lambda threads: None
    launchers.workers = in_this_process
    gc.freeze()  # what is shared stays so
    conformance.check = no_checks
    plan = functools.partial(preparing.Plan, evaluations=1, warm_up=1)
    plan.probe_draws, plan.reference_draws = 4, 2
    preparing.Plan = plan
    runner.Request = functools.partial(runner.Request, checkpoints=1)
    (folder / "talks.py").write_text(TALKS)
    both = [*TRAINED, "-e", "rloo"]
    swept = ["-e", "rloo", "-t", "enumerable-lm:horizon=1", "--sweep", "kl=0.1,1", "--steps", "2", "--jobs", "1"]
    made = {"RUN": [*both, "--seeds", "0-2"], "OTHER": [*both, "--seeds", "3"], "SWEPT": [*swept, "--seeds", "0"]}
    for name, words in made.items():
        done = ended(folder / name, "plain", ["run", *words, "--out", "run"])
        assert done["status"] == 0, done
    places = {name: str(folder / name / "here" / "run") for name in made} | {"TALKS": str(folder / "talks.py")}
    answer = {}
    for name, (words, slow) in COMMANDS.items():
        given = [places.get(word) or word.replace("TALKS", places["TALKS"]) for word in words]
        for kind in FEW if slow else KINDS:
            answer[f"{name}, {kind}"] = ended(folder / "commands" / name / kind, kind, given)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
