"""Data-parallel training that is stopped and goes on with another number of processes, sample for sample.

    torchrun --nproc-per-node 2 examples/ddp.py --checkpoint c.pt --steps 5 URL…
    torchrun --nproc-per-node 4 examples/ddp.py --checkpoint c.pt URL…

Each line of the sources is ``{"x": [8 numbers], "y": number}``. The last line printed is how many samples the model has
seen in all, and the sum of their ``y``: the same, however often it was stopped and on how many processes it went on.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

GLOBAL_BATCH = 24  # samples a step of all ranks together: the same on 1, 2, 3, 4, 6 or 8 of them


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = GLOBAL_BATCH // world
    job = ingest.distributed_job(args.sources, timeout=120)
    dataset = StreamingDataset(job, shuffle=True, seed=1, batch_size=batch, tail="drop", timeout=120)

    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first, begun, seen, total = 0, 0, 0, 0.0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])
        first, begun, seen, total = saved["data"]["epoch"], saved["step"], saved["seen"], saved["total"]
    step = begun
    for epoch in range(first, args.epochs):
        dataset.set_epoch(epoch)
        taken = 0
        for data in DataLoader(dataset, batch_size=batch, num_workers=args.workers, drop_last=True):
            x, y = torch.stack(data["x"], 1).float(), data["y"].float()
            loss = torch.nn.functional.mse_loss(model(x)[:, 0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            here = torch.tensor([float(len(y)), float(y.sum())], dtype=torch.float64)
            dist.all_reduce(here)
            step, taken, seen, total = step + 1, taken + len(y), seen + int(here[0]), total + float(here[1])
            if step - begun == args.steps:
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    data_state = dataset.state_dict(samples_seen=taken)
                    torch.save({**state, "data": data_state, "seen": seen, "total": total}, args.checkpoint)
                break
        else:
            continue
        break
    if rank == 0:
        print(f"{step} steps, now on {world} processes")
        print(f"{seen} samples, sum {total:.0f}")
    dataset.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
