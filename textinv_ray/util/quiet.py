"""Variables that silence libraries, for the driver and for every process that it starts on a cluster."""

from __future__ import annotations

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No telemetry, no progress bars, and no threads of tokenizers that a fork would break."""
