"""What training code sees of a job: ``StreamingDataset`` and ``MapDataset``. Importing this loads no torch; naming one
of them does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.dataset.streaming import MapDataset, StreamingDataset

__all__ = ["MapDataset", "StreamingDataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ingest.dataset import streaming
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise ImportError(f"{name} needs PyTorch: pip install 'ingest[torch]'") from error
    return getattr(streaming, name)
