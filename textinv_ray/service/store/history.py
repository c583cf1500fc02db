"""`history.parquet`: one concept step by step: losses, scores, seconds, and which steps have samples.

Every row has its wall-clock time, so that MLflow gets the same times whenever it is written.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.util import parquet
from textinv_ray.util.redact import message

_LATEST_MS = 10**14  # after the year 5000
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),  # optimizer steps done
        ("time_ms", pa.int64()),  # since the epoch
        ("seconds", pa.float64()),  # the concept's share of its workers' time so far
        ("review_seconds", pa.float64()),  # part of it that rendered and scored samples
        ("stopping_seconds", pa.float64()),  # part of it that evaluated the stopping rule
        ("loss", pa.float32()),  # of the last of these steps; null at step 0
        ("clip_image_similarity", pa.float64()),  # null where it wasn't evaluated
        ("clip_text_similarity", pa.float64()),
        ("judge_similarity", pa.float64()),  # null where it wasn't evaluated, or there is no judge
        (
            "stopping_clip_image_similarity",
            pa.float64(),
        ),  # what `stopping.rule: clip` measured; null elsewhere
        ("sampled", pa.bool_()),  # samples/step_<step>.png is there
    ]
)
_NEW = (
    "stopping_clip_image_similarity",
    "judge_similarity",
)  # histories that were written before don't have them


@dataclass
class Point:
    """One row; see SCHEMA."""

    step: int
    time_ms: int
    seconds: float
    loss: float | None = None
    clip_image_similarity: float | None = None
    clip_text_similarity: float | None = None
    judge_similarity: float | None = None
    sampled: bool = False
    review_seconds: float = 0.0
    stopping_seconds: float = 0.0
    stopping_clip_image_similarity: float | None = None


@dataclass
class History:
    """Points by rising step."""

    state_fingerprint: str
    """Concept.state_fingerprint of the optimisation that the losses are of."""
    review_fingerprint: str
    """Digest of the prompts and settings that the samples and scores were made with."""
    points: list[Point] = field(default_factory=list)
    planned_steps: int = 0
    """Optimizer steps that are to be taken, unless a stopping rule ends learning before; 0 where that isn't known."""

    @property
    def seconds(self) -> float:
        """The concept's share of its workers' time so far."""
        return self.points[-1].seconds if self.points else 0.0

    @property
    def review_seconds(self) -> float:
        """Part of `seconds` that rendered and scored samples."""
        return self.points[-1].review_seconds if self.points else 0.0

    @property
    def stopping_seconds(self) -> float:
        """Part of `seconds` that rendered and scored pictures for `stopping.rule: clip`."""
        return self.points[-1].stopping_seconds if self.points else 0.0

    def at(self, step: int, seconds: float = 0.0) -> Point:
        """The point of `step`, which is the last one or a new one; adds `seconds` of work to it. Raises ValueError."""
        if not self.points or self.points[-1].step < step:
            new = Point(step, time.time_ns() // 1_000_000, self.seconds)
            new.review_seconds, new.stopping_seconds = self.review_seconds, self.stopping_seconds
            self.points.append(new)
        point = self.points[-1]
        if point.step != step:
            raise ValueError(f"the history is at step {point.step}, not {step}")
        point.seconds += seconds
        return point

    def add_review(self, seconds: float) -> None:
        """Adds time that samples or scores of the last point took."""
        self.points[-1].seconds += seconds
        self.points[-1].review_seconds += seconds

    def add_stopping(self, seconds: float) -> None:
        """Adds time that an evaluation of the stopping rule took."""
        self.points[-1].seconds += seconds
        self.points[-1].stopping_seconds += seconds

    def forget_reviews(self) -> None:
        """Removes samples and scores, which were made with other settings."""
        for point in self.points:
            point.clip_image_similarity = point.clip_text_similarity = point.judge_similarity = None
            point.sampled = False

    def cut(self, step: int) -> None:
        """Removes points after `step`, where learning continues from."""
        while self.points and self.points[-1].step > step:
            self.points.pop()

    def set_losses(self, losses: Sequence[float]) -> None:
        """Fills in the loss of every step; losses[0] is that of step 1. Losses that aren't finite are left out."""
        for point in self.points:
            if 0 < point.step <= len(losses) and math.isfinite(losses[point.step - 1]):
                point.loss = losses[point.step - 1]

    def to_bytes(self) -> bytes:
        """A Parquet file."""
        columns = [
            pa.array([getattr(point, name) for point in self.points], SCHEMA.field(name).type)
            for name in SCHEMA.names
        ]
        metadata = {
            "state_fingerprint": self.state_fingerprint,
            "review_fingerprint": self.review_fingerprint,
            "planned_steps": str(self.planned_steps),
        }
        table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> History:
        """Raises ValueError for what isn't a history."""
        try:
            table = parquet.read(io.BytesIO(data))
            metadata = table.schema.metadata or {}
            fingerprints = [metadata[name].decode() for name in (b"state_fingerprint", b"review_fingerprint")]
            known = [name for name in SCHEMA.names if name not in _NEW or name in table.column_names]
            schema = pa.schema([SCHEMA.field(name) for name in known])
            points = [Point(**row) for row in table.select(known).cast(schema).to_pylist()]
            planned = int(metadata.get(b"planned_steps", b"0"))
        except (
            Exception
        ) as error:  # Arrow raises ArrowException, OSError, MemoryError, ... by the byte that is wrong
            raise ValueError(f"not a history: {message(str(error))}") from None
        last = -1
        for point in points:
            if not _is_sound(point, last):
                raise ValueError(f"not a history: its point after step {last} is damaged")
            last = point.step
        return cls(fingerprints[0], fingerprints[1], points, planned)


def _is_sound(point: Point, last: int) -> bool:
    """Whether a point can follow one of step `last`: no value is missing that each has, and all are finite."""
    times = (point.seconds, point.review_seconds, point.stopping_seconds)
    scores = (point.loss, point.clip_image_similarity, point.clip_text_similarity, point.judge_similarity)
    return (
        None not in (point.step, point.time_ms, point.sampled, *times)
        and last < point.step
        and 0 <= point.time_ms < _LATEST_MS
        and all(math.isfinite(value) for value in (*times, *scores) if value is not None)
    )
