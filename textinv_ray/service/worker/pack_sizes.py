"""How many concepts share a pass on a kind of device: measured by the first worker, read from the store by others."""

from __future__ import annotations

import json
import logging
import platform

import torch

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size
from textinv_ray.service.store.store import Store
from textinv_ray.util.redact import redact

logger = logging.getLogger(__name__)

FILE = "pack_sizes.json"
_LARGEST = 1 << 20


def pack_size(store: Store, backbone: Backbone, task: ConceptTask, config: JobConfig) -> int:
    """The configured size; for "auto", what was measured on such a device with such a model, here or elsewhere.

    Workers that measure at the same time both write; the loss of one's line costs another measurement.
    """
    if config.pack.size != "auto":
        return config.pack.size
    sizes, key = _read(store), _key(backbone, task, config)
    if key not in sizes:
        size = choose_pack_size(backbone, task, config)
        key = _key(backbone, task, config)  # activations may be checkpointed now
        sizes[key] = size
        store.write(FILE, (json.dumps(_read(store) | {key: sizes[key]}, indent=1) + "\n").encode())
    return sizes[key]


def _key(backbone: Backbone, task: ConceptTask, config: JobConfig) -> str:
    """What the best size depends on, to be read by people as well."""
    if backbone.device.type == "cuda":
        properties = torch.cuda.get_device_properties(backbone.device)
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    size = "x".join(map(str, task.tensors["latent_means"].shape[1:]))
    return (
        f"{device}; {redact(config.model.path)}, {str(backbone.dtype).removeprefix('torch.')}; "
        f"latents {size}; batch size {task.concept.batch_size}; at most {config.pack.max_size}"
        + ("; activations checkpointed" if backbone.checkpoints_activations else "")
    )


def _read(store: Store) -> dict[str, int]:
    try:
        found = json.loads(store.read(FILE) or b"{}")
        return {str(key): min(max(1, int(size)), _LARGEST) for key, size in found.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        logger.warning("%s is not readable: pack sizes are measured again", FILE)
        return {}
