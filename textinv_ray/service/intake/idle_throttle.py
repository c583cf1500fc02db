"""Ray Data's scheduler at rest while it waits for whoever takes its rows."""

from __future__ import annotations

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_REST_S = 0.05


class IdleThrottle(ExecutionCallback):
    """For `DataContext.custom_execution_callback_classes`.

    Held back by a consumer that takes nothing, the scheduler looks hundreds of times a second whether that has
    changed (Ray 2.60): 0.4 of a CPU, for as long as a job runs. While rows lie ready, a rest costs nothing.
    """

    def on_execution_step(self, executor: Any) -> None:
        """`executor`: the StreamingExecutor."""
        if not executor._consumer_idling():
            time.sleep(_REST_S)
