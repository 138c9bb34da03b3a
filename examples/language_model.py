"""A language model of bytes from text in a database: partitions come as Parquet, and texts are packed into sequences.

    python examples/language_model.py warehouse articles --text body --key id

``warehouse`` is a connection of the data nodes, ``articles`` a table. Texts are put one behind another, with a zero
byte after each, and cut into sequences of equal length: none of a batch is padding. Ends with the perplexity of the
last epoch and how many bytes it was learned from.
"""

import argparse
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset

LENGTH, BATCH, END = 64, 16, b"\0"


def packed(texts: Iterable[str]) -> Iterator[torch.Tensor]:
    """(BATCH, LENGTH + 1) bytes each, of texts in their order; what does not fill the last batch is left out."""
    tokens, size = bytearray(), BATCH * (LENGTH + 1)
    for text in texts:
        tokens += text.encode() + END
        while len(tokens) >= size:
            yield torch.frombuffer(bytearray(tokens[:size]), dtype=torch.uint8).view(BATCH, LENGTH + 1).long()
            del tokens[:size]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(256, 32)
        self.recur = torch.nn.GRU(32, 64, batch_first=True)
        self.score = torch.nn.Linear(64, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.score(self.recur(self.embed(tokens))[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("connection")
    parser.add_argument("table")
    parser.add_argument("--text", default="text")
    parser.add_argument("--key", default="id")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    columns = (args.key, args.text)
    source = ingest.Sql(args.connection, table=args.table, columns=columns, partition_on=args.key, partitions=4)
    job = ingest.Client().submit(source, name="language model")
    dataset = StreamingDataset(job, shuffle=True, seed=0, columns=[args.text], timeout=120)
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses: list[float] = []
    for epoch in range(args.epochs):
        dataset.set_epoch(epoch)
        rows = DataLoader(dataset, batch_size=None, num_workers=args.workers)
        losses = []
        for tokens in packed(row[args.text] for row in rows):
            scores = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    perplexity = torch.tensor(losses).mean().exp()
    print(f"perplexity {perplexity:.2f} over {len(losses) * BATCH * LENGTH} bytes")
    dataset.close()


if __name__ == "__main__":
    main()
