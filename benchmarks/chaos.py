"""Random faults at random moments, and the same words in the end.

    python benchmarks/chaos.py --seed 1 --minutes 10

A Ray of a head and a few nodes with a worker each, the bundled model, an S3 server for the output, real processes.
Until the minutes are over, something is killed, stopped, damaged, refused or run again every few seconds; then the
job may end in peace. Every concept must then be there once, complete, and with the word of an undisturbed run. Exit
code 1 when that isn't so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from tests.support import jobs
from tests.support.commands import Command
from tests.support.jobs import Job
from tests.support.nodes import Nodes, processes
from tests.support.s3 import BUCKET, S3Server

PAUSE_S = (4.0, 30.0)  # between faults
HANG_S = 15.0  # longer than a lease lives
AWAY_S = 20.0
# In the workers: the next step after such a file appears fails, once.
FAILING_STEPS = """
import torch
ERRORS = {{
    "raise": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}}
real = Pack.losses_and_gradient
def compute(self):
    for name, error in ERRORS.items():
        if len(self.tasks) > 1 or name != "memory":
            try:
                os.unlink(os.path.join({folder!r}, name))
            except FileNotFoundError:
                continue
            raise error
    return real(self)
Pack.losses_and_gradient = compute
"""


class Chaos:
    """A job, and what is done to it."""

    def __init__(self, job: Job, nodes: Nodes, server: S3Server, seed: int) -> None:
        self.job = job
        self.nodes = nodes
        self.server = server
        self.job.inject(FAILING_STEPS.format(folder=str(job.folder)))
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.runs = 0
        self.process: Command
        self.hung: dict[int, float] = {}
        self.redone = 0
        self.damaged_results = False
        self._log_read = 0
        self.run()

    def run(self) -> None:
        """Starts the command (again)."""
        self.redone += self._redone_of_this_run()
        self.process = self.job.start()
        self.runs += 1

    def disturb(self) -> None:
        """One random fault, if there is something to do it to."""
        kinds = {
            "worker killed": (6, lambda: self._signal("RayTrainWorker", signal.SIGKILL)),
            "worker hung": (3, self._hang),
            "scheduler killed": (2, lambda: self._signal("ray::Scheduler", signal.SIGKILL)),
            "trainer controller killed": (2, lambda: self._signal("TrainController", signal.SIGKILL)),
            "fleet killed": (1, lambda: self._signal("ray::Fleet", signal.SIGKILL)),
            "node killed, another comes": (2, self._lose_a_node),
            "driver killed, run again": (1, lambda: self._end_driver(signal.SIGKILL)),
            "SIGTERM, run again": (1, lambda: self._end_driver(signal.SIGTERM)),
            "worker raised": (2, lambda: self._fail_a_step("raise")),
            "out of memory": (2, lambda: self._fail_a_step("memory")),
            "checkpoint damaged": (2, self._damage_a_checkpoint),
            "result damaged": (1, self._damage_a_result),
            "store away for 20 s": (1, self._lose_the_store),
            "store throttled": (1, self._throttle),
            "another job refused": (1, self._start_another_job),
        }
        name = self.random.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        if kinds[name][1]():
            self.faults[name] += 1
            print(f"{time.strftime('%X')} {name}; {len(self.job.done())} done", flush=True)

    def wake(self, all_of_them: bool = False) -> None:
        """Lets hung workers go on after a while: late, and harmless."""
        for pid, since in list(self.hung.items()):
            if all_of_them or time.monotonic() - since > HANG_S:
                del self.hung[pid]
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

    def end(self) -> tuple[int, str]:
        """Lets it end in peace."""
        self.wake(all_of_them=True)
        self.nodes.complete()
        if self.process.poll() not in (None, 0):
            self.run()
        code, out = self.process.ended(3600)
        self.redone += self._redone_of_this_run()
        if code in (0, 1) and self.damaged_results:
            self.damaged_results = False
            self.run()
            return self.end()
        return code, out

    def wait(self, seconds: float) -> None:
        """Waits, but not longer than the job lives."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.2)
            self.wake()

    def _signal(self, name: str, number: signal.Signals) -> bool:
        found = processes(name)
        if found:
            self.random.choice(found).send_signal(number)
        return bool(found)

    def _hang(self) -> bool:
        found = [worker for worker in processes("RayTrainWorker") if worker.pid not in self.hung]
        if found:
            worker = self.random.choice(found)
            worker.suspend()
            self.hung[worker.pid] = time.monotonic()
        return bool(found)

    def _lose_a_node(self) -> bool:
        self.nodes.kill(self.random.randrange(len(self.nodes.workers)))
        self.nodes.add()
        return True

    def _end_driver(self, number: signal.Signals) -> bool:
        self.process.send_signal(number)
        self.process.wait(120)
        self.run()
        return True

    def _damage_a_checkpoint(self) -> bool:
        found = self.job.checkpoints()
        if found:
            self.job.store.write_concept(self.random.choice(found), "checkpoint.safetensors", b"garbage")
        return bool(found)

    def _damage_a_result(self) -> bool:
        """The running job has counted it, and may end with exit code 1: one more run learns the rest of it."""
        found = sorted(self.job.done())
        if found:
            self.job.store.write_concept(self.random.choice(found), "result.json", b"{")
            self.damaged_results = True
        return bool(found)

    def _fail_a_step(self, name: str) -> bool:
        (self.job.folder / name).touch()
        return True

    def _lose_the_store(self) -> bool:
        self.server.stop()
        self.wait(AWAY_S)
        self.server.start()
        return True

    def _throttle(self) -> bool:
        self.server.fail("slow down", times=20)
        return True

    def _start_another_job(self) -> bool:
        code, out = self.job.run()
        if code != 2 and self.process.poll() is None:
            raise AssertionError(f"a second job was let in: {out}")
        return True

    def _redone_of_this_run(self) -> int:
        log = self.job.log()
        new, self._log_read = log[self._log_read :], len(log)
        return max(map(int, re.findall(r"(\d+) steps had to be taken again", new)), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--concepts", type=int, default=150)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the store's server names every request
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    server = S3Server()
    os.environ.update(server.environment)  # for the nodes, whose workers write there
    nodes = Nodes(arguments.workers)
    overrides = (
        f"training.steps={arguments.steps}",
        f"service.workers={arguments.workers}",
        "service.checkpoint_every_s=1",
        # Each attempt that a fault costs counts while the concept doesn't get further: here that may be often.
        "service.max_attempts=20",
    )
    try:
        job = jobs.make(folder, nodes.address, arguments.concepts, *overrides, output=f"s3://{BUCKET}/chaos")
        began = time.monotonic()
        chaos = Chaos(job, nodes, server, arguments.seed)
        deadline = began + 60 * arguments.minutes
        while time.monotonic() < deadline and chaos.process.poll() is None:
            chaos.wait(chaos.random.uniform(*PAUSE_S))
            if chaos.process.poll() is None:
                chaos.disturb()
        code, out = chaos.end()
        seconds = time.monotonic() - began
        print(out)
        if code:
            raise AssertionError(f"exit code {code}")
        job.assert_all_done(jobs.words(folder, job.settings))
    finally:
        nodes.close()
        server.stop()
    figures = {
        "seed": arguments.seed,
        "minutes": round(seconds / 60, 1),
        "concepts": arguments.concepts,
        "faults": dict(chaos.faults),
        "runs of the command": chaos.runs,
        "steps needed": arguments.concepts * arguments.steps,
        "steps taken again": chaos.redone,
        "redone, per cent": round(100 * chaos.redone / (arguments.concepts * arguments.steps), 2),
    }
    print(json.dumps(figures, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
