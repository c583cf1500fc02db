"""How long from the command to the first step, and to "nothing to do"; and what the time goes into.

    python benchmarks/startup.py [--manifest PATH] [--repeats 3] [--config mini] [--set SECTION.FIELD=VALUE ...]
                                 [--json PATH]

A job of so few steps that starting is all it does, several times, each followed by the same command with nothing left
to do. The moments are read from the job's log as lines come; a figure is the median. Processor seconds are those of all
processes of the command up to the moment: on a machine that others use they say more than the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import job, measure

MOMENTS = {
    "manifest read, work planned": "to learn: ",
    "Ray started": "Ray: ",
    "scheduler and fleet made, first trainer's controller there": "Requesting resources",
    "worker's process there": "Started training worker group",
    "its imports, the models, the first concept ready": ": from step 0",
}
"""What has happened -> what the job's first line of it contains."""
FIRST_STEP = "pictures of the initializer, the first step"
END = "the other steps, pictures, scores, results, the end of Ray"
NOTHING = "the same command again: nothing to do"


@dataclass(frozen=True)
class Moment:
    """Since the command was given."""

    seconds: float
    processor_s: float
    """Of the command and all that it started."""


def moments(manifest: str, output: Path, options: argparse.Namespace) -> dict[str, Moment]:
    """The moments of one job, and of the command that finds nothing to do."""
    command = job.command(Path(manifest), output, options.config, options.set)
    found: dict[str, Moment] = {}
    began, waiting = time.time(), dict(MOMENTS)
    process = subprocess.Popen(
        [*command, "--verbose"],
        env=job.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    used: list[tuple[float, float]] = []
    with measure.ProcessorTime(process.pid) as processor:
        for line in process.stdout:
            lines.append(line)
            used.append((time.time(), processor.seconds))
            for name in [name for name, part in waiting.items() if part in line]:
                found[name] = Moment(time.time() - began, processor.seconds)
                del waiting[name]
    if process.wait() or waiting:
        raise SystemExit(f"the job ended with exit code {process.returncode}:\n{''.join(lines)[-3000:]}")
    first = job.first_step(output)
    found[FIRST_STEP] = Moment(first - began, max(seconds for at, seconds in used if at <= first))
    found[END] = Moment(time.time() - began, processor.seconds)
    began, before = time.time(), os.times()
    subprocess.run(command, env=job.environment(), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {**found, NOTHING: Moment(time.time() - began, spent)}


def rows_of(runs: list[dict[str, Moment]]) -> list[dict[str, Any]]:
    """The moments in their order, medians: seconds since the moment before and since the command; processor time."""
    rows, before = [], [Moment(0.0, 0.0)] * len(runs)
    for name in (*MOMENTS, FIRST_STEP, END):
        at = [run[name] for run in runs]
        since = [now.seconds - then.seconds for now, then in zip(at, before, strict=True)]
        rows.append(_row(name, since, at))
        before = at
    nothing = [run[NOTHING] for run in runs]
    return [*rows, _row(NOTHING, [moment.seconds for moment in nothing], nothing)]


def _row(name: str, since: list[float], at: list[Moment]) -> dict[str, Any]:
    return {
        "": name,
        "seconds": statistics.median(since),
        "since the command": statistics.median(moment.seconds for moment in at),
        "processor seconds": statistics.median(moment.processor_s for moment in at),
    }


def _plain(run: dict[str, Moment]) -> dict[str, Any]:
    return {name: asdict(moment) for name, moment in run.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.set = ["training.steps=2", *options.set]

    print(f"{options.config} on {measure.machine_line()}", flush=True)
    runs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(moments(options.manifest, Path(folder) / "output", options))
    rows = rows_of(runs)
    print(measure.table(rows))
    measure.write_json(options.json, {**vars(options), "table": rows, "runs": [_plain(run) for run in runs]})


if __name__ == "__main__":
    main()
