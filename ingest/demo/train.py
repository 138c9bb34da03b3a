"""The demo's training: a small convolutional network, fed by a DataLoader over the job while its files land."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ingest.client import Job
from ingest.dataset import StreamingDataset
from ingest.demo import data
from ingest.demo.interrupts import Interrupts
from ingest.errors import IngestError, ServiceFailed

BATCH = 32
WORKERS = 2
_STALL_S = 30.0  # for the next file of the order; they take about a second each

#: Pictures, float32 of shape (n, 1, SIDE, SIDE) in [0, 1]; labels, int64 of shape (n,); samples by kind of source.
Batch = tuple[Tensor, Tensor, Counter[str]]


@dataclass(frozen=True)
class Trained:
    """What the loop saw. ``step_s``: when each step ended, in seconds after the job was submitted."""

    first_batch_s: float
    step_s: Sequence[float]
    losses: Sequence[float]
    samples: Mapping[str, int]
    accuracy: float


def train(job: Job, submitted: float, interrupts: Interrupts, stepped: Callable[[int, float], None]) -> Trained:
    """One pass over all samples of the job. ``submitted`` is :func:`time.monotonic` of then; ``stepped(steps, loss)``
    is called after each step. Raises :class:`ServiceFailed` when no more batches come, though not for a source that
    failed."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for so small a network more threads only wait for each other, and for everybody else
    model = _model()
    learn = _Momentum(model)
    losses: list[float] = []
    step_s: list[float] = []
    seen: Counter[str] = Counter()
    first_batch_s = 0.0
    # One process reads the job, whatever a launcher has put into the environment.
    dataset = StreamingDataset(job, decode=True, on_failure="skip", timeout=_STALL_S, rank=0, world_size=1)
    try:
        for pictures, labels, kinds in _batches(dataset, interrupts):
            first_batch_s = first_batch_s or time.monotonic() - submitted
            loss = nn.functional.cross_entropy(model(pictures), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            learn()
            interrupts.check()
            seen += kinds
            losses.append(loss.item())
            step_s.append(time.monotonic() - submitted)
            stepped(len(losses), losses[-1])
    finally:
        dataset.close()
    return Trained(first_batch_s, step_s, losses, seen, _accuracy(model))


class _Momentum:
    """Gradient descent with momentum. torch.optim would do it, but its first use imports torch's compiler: that takes
    two seconds, and leaves a directory among the temporary files."""

    def __init__(self, model: nn.Module, rate: float = 0.02, momentum: float = 0.9) -> None:
        self._parameters = list(model.parameters())
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._rate, self._momentum = rate, momentum

    def __call__(self) -> None:
        """One step along the gradients, which are then forgotten."""
        with torch.no_grad():
            for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
                if parameter.grad is not None:
                    velocity.mul_(self._momentum).add_(parameter.grad)
                    parameter.sub_(velocity, alpha=self._rate)
                    parameter.grad = None


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of what the three kinds of source give: tar members that are decoded, and rows."""
    pictures = [s["npy"] if "npy" in s else np.frombuffer(s["image"], np.uint8) for s in samples]
    labels = [s["cls"] if "cls" in s else s["label"] for s in samples]
    kinds = Counter("HTTP" if "npy" in s else "SQL" if "id" in s else "S3" for s in samples)
    return _pictures(np.stack([p.reshape(data.SIDE, data.SIDE) for p in pictures])), torch.tensor(labels), kinds


def quiet(worker: int) -> None:
    """In a DataLoader worker: what goes wrong reaches the loop by itself, so it need not be on stderr as well."""
    logging.getLogger("ingest").addHandler(logging.NullHandler())  # a file that is skipped is in the table
    # An interrupt while a batch is handed over ends the other side; multiprocessing's thread would say so with a trace.
    sys.excepthook = lambda *_: None


def _batches(dataset: StreamingDataset, interrupts: Interrupts) -> Iterator[Batch]:
    with warnings.catch_warnings(), interrupts.held():  # one that comes while it forks would be dropped, with noise
        # On a machine with one processor torch advises fewer workers; they mostly wait here.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, worker_init_fn=quiet)
        batches = iter(loader)
    while True:
        try:
            batch = next(batches, None)
        except (RuntimeError, IngestError) as error:  # RuntimeError is torch's, for a worker that was killed
            said = str(error).strip().splitlines()[-1]  # what comes from a worker has its traceback above
            raise ServiceFailed("demo", f"no more batches: {said}") from error
        if batch is None:
            return
        yield batch


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (data.SIDE // 4) ** 2, data.CLASSES),
    )  # fmt: skip


def _pictures(raw: Any) -> Tensor:
    return torch.from_numpy(raw).unsqueeze(1).float() / 255


def _accuracy(model: nn.Module) -> float:
    pictures, labels = data.held_out()
    model.eval()
    with torch.inference_mode():
        return float((model(_pictures(pictures)).argmax(1) == torch.from_numpy(labels)).float().mean())
