"""A finished run with a hostile name, and a real browser, driven over a pipe by the DevTools protocol."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess

import pandas as pd
import pytest

from gradebench.analysis import tables
from gradebench.core import schema
from gradebench.reporting.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


NASTY = './m"<b>.py:A&<script>alert(1)</script>'


@pytest.fixture(scope="session")
def nasty():
    """The label of an estimator that is markup."""
    return NASTY


@pytest.fixture
def run(tmp_path):
    """A finished run of three estimators, one of them with a label that is markup, and one skipped."""
    return write_run(tmp_path)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The report of that run."""
    return write_report([write_run(tmp_path_factory.mktemp("reported"))])[0]


def write_run(folder):
    rows = []
    for place, estimator in enumerate(("rloo", "ppo", NASTY, "exact")):
        for seed in range(8):
            identity = {"run_id": "run", "cell_id": f"{place}-{seed}", "task": "imdb", "setting": "corpus=<i>"}
            identity |= {"estimator": estimator, "estimator_params": "{}", "estimator_source": "x", "seed": seed}
            if estimator == "exact":
                rows.append(
                    identity | {"phase": "train", "split": "train", "step": 0, "metric": "", "status": "skipped"}
                )
                continue
            values = [
                ("evaluation", split, step, metric, value + 0.01 * place * step + 0.002 * (seed * 7 % 5))
                for split in ("train", "test")
                for step in (0, 20, 40)
                for metric, value in (("reward", 0.5), ("gold_reward", 0.45), ("kl", 0.1))
            ]
            for step in (0, 40):
                for metric in ("gradient_variance", "gradient_norm_squared", "gradient_bias_squared"):
                    values.append(("probe", "train", step, metric, 1.0 + place + 0.1 * seed))
                values.append(("probe", "train", step, "gradient_reference_norm_squared", 2.0))
            values.append(("train", "train", 40, "seconds_per_step", 0.01 * (1 + place)))
            names = ("phase", "split", "step", "metric", "value")
            rows += [identity | dict(zip(names, value, strict=True)) | {"unit": "", "status": "ok"} for value in values]
    tables.write_parquet(pd.DataFrame(rows, columns=schema.METRICS_COLUMNS), folder / "metrics.parquet")
    tables.write_parquet(steps_of(rows), folder / "training.parquet")
    cells = sorted({row["cell_id"] for row in rows})
    request = {"estimators": ["all", NASTY], "tasks": ["imdb"], "seeds": "0-7", "steps": 40}
    config = {"cells": cells, "request": request, "plans": {"imdb": {"steps": 40}}, "tasks": {"imdb": {"kl": "<u>"}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.13.0<"}}))
    return folder


def steps_of(rows):
    """Each training step of the cells that are ok, 90 of them: more than a figure has points."""
    cells = {row["cell_id"]: row for row in rows if row["status"] == "ok"}
    found = [
        {name: cell[name] for name in schema.TRAINING_PLACE if name != "step"}
        | {
            "step": step,
            "reward": 0.4 + 0.001 * step * (seed % 3),
            "gradient_norm": 2.0 ** (seed % 4),
            "clip_factor": 1.0,
        }
        for seed, cell in enumerate(cells.values())
        for step in range(90)
    ]
    return pd.DataFrame(found, columns=schema.TRAINING_COLUMNS)


class Browser:
    """One window. `events` are those that the protocol has reported since the page was opened."""

    def __init__(self, to, back, downloads):
        self._to, self._back, self._numbers, self._session, self.events = to, back, itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True)

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self):
        found = bytearray()
        while (one := self._back.read(1)) != b"\0":
            assert one, "the browser has ended"
            found += one
        return json.loads(found)

    def wait_for(self, method, fits=lambda parameters: True):
        """The parameters of an event of this name that fits, once it is reported."""
        while True:
            for event in self.events:
                if event.get("method") == method and fits(event["params"]):
                    return event["params"]
            self.events.append(self._read())

    def open(self, path, script=True, width=1440):
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, element, press=False):
        """Moves the pointer onto the middle of an element, an expression in the page, and presses there if so asked."""
        x, y = self.value(
            f"(() => {{ const one = {element}; one.scrollIntoView({{block: 'center'}}); "
            "const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for event in ("mousePressed", "mouseReleased") if press else ():
            self.call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def complaints(self):
        """What the console and the page's policy had to say, and everything that was asked for besides the page."""
        told = [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
        told += [e for e in self.events if e.get("method") == "Log.entryAdded"]
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return told, asked


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium is installed: the report's script is not tested here")
    folder = tmp_path_factory.mktemp("browser")
    pipes = [*os.pipe(), *os.pipe()]
    # Its own ends, on numbers that the descriptors 3 and 4, on which it speaks, can't be.
    its = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (pipes[0], pipes[3])]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" 3<&{its[0]} 4>&{its[1]}', program, *FLAGS, f"--user-data-dir={folder}"],
        pass_fds=its,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (pipes[0], pipes[3], *its):
        os.close(end)
    with os.fdopen(pipes[2], "rb") as back, contextlib.ExitStack() as stack:
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        window = Browser(pipes[1], back, folder)
        window.downloads = folder
        yield window
