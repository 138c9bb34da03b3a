"""What training code sees of a job: ``StreamingDataset``. Importing this loads no torch; naming the class does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.dataset.streaming import StreamingDataset

__all__ = ["StreamingDataset"]


def __getattr__(name: str) -> Any:
    if name != "StreamingDataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ingest.dataset.streaming import StreamingDataset
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise ImportError("StreamingDataset needs PyTorch: pip install 'ingest[torch]'") from error
    return StreamingDataset
