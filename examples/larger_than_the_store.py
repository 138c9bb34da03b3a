"""Two epochs of a job that is larger than its store: what was read makes room, and is fetched again in the next epoch.

    INGEST_CONFIG=ingest.toml python examples/larger_than_the_store.py https://host/train-{0000..9999}.jsonl

where the data node's ``ingest.toml`` has ``[store] max_bytes = 200_000_000_000``. Each line of the sources is
``{"x": [8 numbers], "y": number}``. Ends with how many samples and bytes were read, the sum of all ``y``, and the error
of the model in the last epoch.
"""

import argparse

import torch
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    # A file is what comes and goes: one to a shard. A shuffle of samples would need room for all files that it mixes.
    job = ingest.Client().submit(args.sources, name="larger", shard_files=1)
    dataset = StreamingDataset(job, shuffle="files", seed=0, batch_size=BATCH, keep=False, timeout=120)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=args.workers)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen, total, error = 0, 0.0, 0.0
    for epoch in range(args.epochs):
        dataset.set_epoch(epoch)
        squares, first = 0.0, seen
        for batch in loader:
            x, y = torch.stack(batch["x"], 1).float(), batch["y"].float()
            loss = torch.nn.functional.mse_loss(model(x)[:, 0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen, total, squares = seen + len(y), total + float(y.double().sum()), squares + loss.item() * len(y)
        error = (squares / (seen - first)) ** 0.5
    stats = dataset.stats()
    print(f"waited {stats['waited_s']:.2f} s for {stats['waits']} files")
    print(f"{seen} samples, {stats['bytes']} bytes, sum {total:.0f}, error {error:.3f}")
    dataset.close()


if __name__ == "__main__":
    main()
