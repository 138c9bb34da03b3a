"""A small language model from several sources by weight, the shorter ones again and again.

    python examples/mixing.py --of 0.7 https://host/web-{000..127}.jsonl --of 0.3 https://host/code-{0..3}.jsonl.gz

Each line of the sources is ``{"kind": "web", "text": "…"}``. The model guesses the next byte from the one before it.
Ends with how many samples of each kind it has seen, and the bits that a byte cost it in the last tenth of the steps.
"""

import argparse
import math
from collections import Counter

import torch
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

BATCH, LENGTH = 32, 64


def tensors(texts: list[str]) -> torch.Tensor:
    """(batch, LENGTH) bytes; a text that is shorter ends in zeros."""
    rows = (text.encode()[:LENGTH].ljust(LENGTH, b"\0") for text in texts)
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, LENGTH).long()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", nargs="+", action="append", required=True, metavar=("WEIGHT", "SOURCE"))
    parser.add_argument("--samples", type=int, default=64_000)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    client = ingest.Client()
    jobs = {client.submit(sources, name=f"part-{n}"): float(weight) for n, (weight, *sources) in enumerate(args.of)}
    mixture = ingest.mix(jobs, stop=args.samples)
    dataset = StreamingDataset(mixture, shuffle=True, seed=0, batch_size=BATCH, timeout=120)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=args.workers, collate_fn=list)

    torch.manual_seed(0)
    model = torch.nn.Embedding(256, 256)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    bits = []
    seen: Counter[str] = Counter()
    for batch in loader:
        seen.update(sample["kind"] for sample in batch)
        text = tensors([sample["text"] for sample in batch])
        loss = torch.nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item() / math.log(2))
    last = bits[-max(1, len(bits) // 10) :]
    print(", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())), f"at {sum(last) / len(last):.2f} bits")
    dataset.close()


if __name__ == "__main__":
    main()
