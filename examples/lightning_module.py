"""A Lightning module on a streamed job, with the dataset's place in Lightning's checkpoints.

    python examples/lightning_module.py --folder runs --steps 7 URL…
    python examples/lightning_module.py --folder runs URL…            # goes on at the next sample

A line of the sources is ``{"x": [8 numbers], "y": number}``. Ends with how many samples it saw, and the sum of ``y``.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

BATCH = 16


class Line(lightning.LightningModule):
    def __init__(self, dataset: StreamingDataset) -> None:
        super().__init__()
        self.dataset, self.line = dataset, torch.nn.Linear(8, 1)
        self.taken = 0  # since this process began the epoch; Lightning's loader is a batch ahead of it
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    def on_train_epoch_start(self) -> None:
        self.dataset.set_epoch(self.current_epoch)
        self.taken = 0

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        x, y = torch.stack(batch["x"], 1).float(), batch["y"].float()
        self.taken += len(y)
        self.seen += len(y)
        self.total += y.sum()
        return torch.nn.functional.mse_loss(self.line(x)[:, 0], y)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["data"] = self.dataset.state_dict(samples_seen=self.taken)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.dataset.load_state_dict(checkpoint["data"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    job = ingest.distributed_job(args.sources, key=str(args.folder.absolute()), timeout=120)
    dataset = StreamingDataset(job, shuffle=True, seed=1, batch_size=BATCH, timeout=120)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=args.workers)
    lightning.seed_everything(0, verbose=False)
    model = Line(dataset)
    saving = ModelCheckpoint(args.folder, every_n_train_steps=1, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=args.epochs, max_steps=args.steps, callbacks=[saving],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    checkpoint = args.folder / "last.ckpt"
    trainer.fit(model, loader, ckpt_path=checkpoint if checkpoint.exists() else None)
    print(f"{int(model.seen)} samples, sum {model.total:.0f}")
    dataset.close()


if __name__ == "__main__":
    main()
