"""Whether the Hugging Face Hub can be reached, found out once and soon."""

from __future__ import annotations

import os
import socket
import urllib.request
from functools import cache
from urllib.parse import urlsplit

from textinv_ray.util.errors import UserError

_TIMEOUT_S = 5.0


@cache
def is_reachable() -> bool:
    """Whether a connection to the Hub (HF_ENDPOINT) can be made; True behind a proxy, which can't be asked.

    huggingface_hub itself tries again for half a minute for each file, and prints a line about each try.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if url.scheme in urllib.request.getproxies():
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def download(model: str, name: str, revision: str | None = None) -> str:
    """Path of a Hub model's file in the local cache, downloaded if the Hub can be reached.

    Raises UserError when it neither can be reached nor is the file in the cache, and for a model that is gated, private
    or unknown; other errors of the Hub pass.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return str(
            hf_hub_download(
                model,
                name,
                revision=revision,
                local_files_only=not is_reachable(),
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )
    except GatedRepoError:
        raise UserError(
            f"the model {model!r} is gated: accept its licence on its page of the Hub, then log in with "
            "`hf auth login` or set HF_TOKEN, on all machines"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hub has no model {model!r}, or it is private: check the name (or log in with `hf auth login`)"
        ) from None
    except LocalEntryNotFoundError:
        if is_reachable():
            raise
        raise UserError(
            f"the Hugging Face Hub can't be reached, and {name} of {model!r} isn't in its local cache: "
            "check the connection, or give model.path a folder"
        ) from None
