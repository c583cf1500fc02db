"""What the benchmarks share: how something is measured, summed up, printed and written."""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

MEGABYTE = 2**20


def machine() -> dict[str, Any]:
    """Where the figures come from. The load says whether other work ran beside."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def machine_line() -> str:
    """The same for people."""
    found = machine()
    where = found["device"]
    if where == "CPU":
        where = f"CPU: {found['cores']} cores, {found['threads']} threads per process"
    return f"{where}; load average {found['load_average']}; torch {found['torch']}"


def synchronize() -> None:
    """Waits until the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def now() -> float:
    """Seconds, when the device has done all it was given."""
    synchronize()
    return time.perf_counter()


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is NaN for a single value."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), spread


def with_error(values: Sequence[float], sign: str = "") -> str:
    """ "0.612 ± 0.013": mean and standard error."""
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lines with a column for each key of the first row; the first column to the left, others to the right."""
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes the figures with the machine they were measured on, if a path was given."""
    if path:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1, default=str) + "\n")


class PeakMemory:
    """While entered, samples the memory of a process and all its descendants; `bytes` is the most seen.

    As often as `every_s` says, but less often where a sample is dear (with Ray's many processes 80 ms), so that at
    most a fiftieth of a core goes into it. On a GPU `device_bytes` is the most that was in use on the whole device
    above what was in the beginning.
    """

    def __init__(self, process_id: int | None = None, every_s: float = 0.5) -> None:
        """`process_id`: none for this process."""
        self.bytes = self.device_bytes = 0
        self._process = psutil.Process(process_id)
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._device_before = _device_bytes()

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:  # once at least, however short it was
            start = time.thread_time()
            self.bytes = max(self.bytes, _tree_bytes(self._process))
            self.device_bytes = max(self.device_bytes, _device_bytes() - self._device_before)
            if self._end.wait(max(self._every_s, 50 * (time.thread_time() - start))):
                return


class ProcessorTime:
    """While entered, adds up the processor time of a process and all its descendants, in seconds."""

    def __init__(self, process_id: int, every_s: float = 0.2) -> None:
        self._process = psutil.Process(process_id)
        self._every_s = every_s
        self._by_process: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessorTime:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """User and system time so far; of a process that has ended, up to its last sample."""
        return sum(list(self._by_process.values()))

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                processes = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            for one in processes:
                try:
                    times = one.cpu_times()
                except psutil.Error:
                    continue
                self._by_process[one.pid] = times.user + times.system


def _tree_bytes(process: psutil.Process) -> int:
    """Proportional set sizes: what several processes share counts once."""
    total = 0
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for one in processes:
        try:
            total += one.memory_full_info().pss
        except (psutil.Error, AttributeError):  # it ended meanwhile; or no Linux, which alone knows pss
            continue
    return total


def _device_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def matmul_flops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The most FLOP/s that a product of two square matrices reached: what a step's share is taken of."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    left, right = torch.randn((2, size, size), device=device).to(dtype)
    torch.mm(left, right)
    best, until = 0.0, now() + seconds
    while time.perf_counter() < until:
        start = now()
        for _ in range(3):
            torch.mm(left, right)
        best = max(best, 3 * 2 * size**3 / (now() - start))
    return best
