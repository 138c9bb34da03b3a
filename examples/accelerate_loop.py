"""A loop under Hugging Face Accelerate, with the dataset's place in Accelerate's checkpoints.

    accelerate launch --num_processes 2 examples/accelerate_loop.py --folder runs --steps 5 URL…
    accelerate launch --num_processes 4 examples/accelerate_loop.py --folder runs URL…    # goes on at the next sample

A line of the sources is ``{"x": [8 numbers], "y": number}``. Ends with how many samples it saw, and the sum of ``y``.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

GLOBAL_BATCH, EPOCHS = 24, 2


class Place:
    """What Accelerate saves and loads beside the model. ``taken`` by this rank since its iteration began."""

    def __init__(self, dataset: StreamingDataset) -> None:
        self.dataset, self.epoch, self.taken, self.seen, self.total = dataset, 0, 0, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.dataset.state_dict(samples_seen=self.taken), "seen": self.seen, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state["data"])
        self.epoch, self.seen, self.total = state["data"]["epoch"], state["seen"], state["total"]


def train(accelerator: Accelerator, place: Place, args: argparse.Namespace, batch: int) -> None:
    model = torch.nn.Linear(8, 1)
    # Not the loader: a prepared one cuts into shares, or reads on rank 0 alone, what the dataset has dealt already.
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    accelerator.register_for_checkpointing(place)
    if args.folder.exists():
        accelerator.load_state(str(args.folder))
    steps = 0
    for epoch in range(place.epoch, EPOCHS):
        place.dataset.set_epoch(epoch)
        place.taken = 0
        for data in DataLoader(place.dataset, batch_size=batch, num_workers=args.workers, drop_last=True):
            x, y = send_to_device((torch.stack(data["x"], 1).float(), data["y"].float()), accelerator.device)
            accelerator.backward(torch.nn.functional.mse_loss(model(x)[:, 0], y))
            optimizer.step()
            optimizer.zero_grad()
            steps, place.taken = steps + 1, place.taken + batch
            place.seen += batch * accelerator.num_processes
            place.total += float(accelerator.reduce(y.sum()))
            if steps == args.steps:
                accelerator.save_state(str(args.folder))
                return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # without a GPU, nor cpu=, each process is alone
    batch = GLOBAL_BATCH // accelerator.num_processes
    job = ingest.distributed_job(args.sources, timeout=120)
    place = Place(StreamingDataset(job, shuffle=True, seed=1, batch_size=batch, tail="drop", timeout=120))
    train(accelerator, place, args, batch)
    accelerator.print(f"{place.seen} samples, sum {place.total:.0f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
