"""Protocols of URIs whose package isn't installed, or that nobody knows."""

from __future__ import annotations

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "adl": "azure",
}


def why_unusable(protocol: str, error: ImportError | ValueError) -> str:
    """What to do about an error of `fsspec.core.url_to_fs`, in a sentence."""
    if not isinstance(error, ImportError):
        return f"{protocol}:// is no protocol that fsspec knows"
    extra = _EXTRAS.get(protocol)
    what = f"pip install 'textinv_ray[{extra}]'" if extra else str(error)
    return f"{protocol}:// needs another Python package: {what}"
