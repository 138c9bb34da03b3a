"""An image classifier from WebDataset tars over HTTP: train while the shards land.

    python examples/images.py https://host/train-{000..127}.tar

Each sample has an image (``png``, ``jpg``, …) and its class (``cls``). Ends with the accuracy over the last epoch.
"""

import argparse

import torch
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

IMAGES = ("png", "jpg", "jpeg", "webp")
SIDE, CLASSES = 16, 10


def tensors(samples: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded samples as a batch: (batch, 3, SIDE, SIDE) between 0 and 1, and their classes."""
    images = []
    for sample in samples:
        image = next(sample[name] for name in IMAGES if name in sample).resize((SIDE, SIDE))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.view(SIDE, SIDE, 3).permute(2, 0, 1) / 255)
    return torch.stack(images), torch.tensor([sample["cls"] for sample in samples])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    job = ingest.Client().submit(args.sources, name="images")
    dataset = StreamingDataset(job, shuffle=True, seed=0, batch_size=32, decode=True, timeout=120)
    loader = DataLoader(dataset, batch_size=32, num_workers=args.workers, collate_fn=tensors)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.LazyLinear(64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    right = seen = 0
    for epoch in range(args.epochs):
        dataset.set_epoch(epoch)
        right = seen = 0
        for images, classes in loader:
            scores = model(images)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, classes).backward()
            optimizer.step()
            right, seen = right + int((scores.argmax(1) == classes).sum()), seen + len(classes)
    stats = dataset.stats()
    print(f"first sample after {stats['first_sample_s']:.2f} s, waited {stats['waited_s']:.2f} s")
    print(f"accuracy {right / seen:.3f} over {seen} images")
    dataset.close()


if __name__ == "__main__":
    main()
