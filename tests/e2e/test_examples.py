"""The examples, each on small data, by the figure that it ends with."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.servers.budget import never_more
from tests.servers.http import Origin
from tests.servers.node import Service, running_service
from tests.servers.postgres import PostgresServer, postgres_server

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(service: Service, *command: str) -> str:
    """What it printed last."""
    env = {**service.env, "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "example"}
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=service.root, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def torchrun(processes: int, example: str, *arguments: str) -> list[str]:
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    return [*start, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(EXAMPLES / example), *arguments]


def pairs(number: int, count: int) -> bytes:
    draw = random.Random(number)
    rows = ({"x": [draw.random() for _ in range(8)], "y": number * 1000 + n} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.long  # a dozen processes that import torch
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("example", "option"), [("ddp.py", "--checkpoint"), ("accelerate_loop.py", "--folder")])
def test_it_goes_on_with_another_number_of_processes(
    service: Service, origin: Origin, tmp_path: Path, example: str, option: str
) -> None:
    counts = [37, 5, 80, 22, 61]
    urls = [origin.put(f"/{example}-{n}.jsonl", pairs(n, count)) for n, count in enumerate(counts)]
    whole = run(service, *torchrun(1, example, option, str(tmp_path / "none"), "--workers", "0", *urls))
    assert whole.startswith(f"{sum(counts) // 24 * 24 * 2} samples, sum ")
    saved = [example, option, str(tmp_path / "saved")]
    assert run(service, *torchrun(2, *saved, "--steps", "5", *urls)).startswith("120 samples")
    assert run(service, *torchrun(1, *saved, "--steps", "6", "--workers", "0", *urls)).startswith("264 samples")
    assert run(service, *torchrun(4, *saved, *urls)) == whole


def coloured(number: int, count: int) -> bytes:
    """Images of one colour each, by class."""
    from PIL import Image

    out, draw = io.BytesIO(), random.Random(number)
    with tarfile.open(fileobj=out, mode="w") as archive:
        for n in range(count):
            cls = draw.randrange(3)
            image = io.BytesIO()
            colour = tuple(200 + draw.randrange(40) if c == cls else draw.randrange(60) for c in range(3))
            Image.new("RGB", (8, 8), colour).save(image, "png")
            for name, data in ((f"{number}-{n}.png", image.getvalue()), (f"{number}-{n}.cls", str(cls).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.long
def test_images_are_told_apart(service: Service, origin: Origin) -> None:
    urls = [origin.put(f"/images-{n}.tar", coloured(n, 60)) for n in range(4)]
    accuracy, images = run(service, str(EXAMPLES / "images.py"), *urls).removeprefix("accuracy ").split(" over ")
    assert float(accuracy) > 0.9 and images == "240 images"


@pytest.mark.long
def test_lightning_goes_on_where_it_was_stopped(service: Service, origin: Origin, tmp_path: Path) -> None:
    counts = [37, 5, 80]
    urls = [origin.put(f"/lightning-{n}.jsonl", pairs(n, count)) for n, count in enumerate(counts)]
    example = str(EXAMPLES / "lightning_module.py")
    ys = sum(number * 1000 + n for number, count in enumerate(counts) for n in range(count))
    stopped = run(service, example, "--folder", str(tmp_path), "--workers", "0", "--steps", "11", *urls)
    assert stopped.startswith(f"{sum(counts) + 3 * 16} samples"), "in the middle of the second epoch"
    rest = run(service, example, "--folder", str(tmp_path), "--workers", "0", *urls)
    assert rest == f"{2 * sum(counts)} samples, sum {2 * ys}"


@pytest.fixture(scope="module")
def articles() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(
            "CREATE TABLE articles AS SELECT i AS id, repeat('the cat sat on the mat. ', 2 + i % 5) AS body "
            "FROM generate_series(1, 400) AS i"
        )
        yield server


@pytest.mark.long
def test_a_language_model_from_a_database(articles: PostgresServer, tmp_path: Path) -> None:
    config = f'[connections.warehouse]\nurl = "{articles.url}"\n'
    with running_service(tmp_path, config=config) as service:
        said = run(service, str(EXAMPLES / "language_model.py"), "warehouse", "articles", "--text", "body")
    perplexity, size = said.removeprefix("perplexity ").split(" over ")
    tokens = sum(24 * (2 + i % 5) + 1 for i in range(1, 401))
    assert float(perplexity) < 4 and size == f"{tokens // (16 * 65) * 16 * 64} bytes"


def texts(kind: str, number: int, count: int) -> bytes:
    words = {"web": "the cat sat on the mat", "code": "for x in range(9): print(x)"}[kind].split()
    draw = random.Random(f"{kind}/{number}")
    rows = ({"kind": kind, "text": " ".join(draw.choice(words) for _ in range(20))} for _ in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.long
def test_a_mixture_has_its_weights(service: Service, origin: Origin) -> None:
    web = [origin.put(f"/web-{n}.jsonl", texts("web", n, 300)) for n in range(4)]
    code = [origin.put(f"/code-{n}.jsonl", texts("code", n, 50)) for n in range(2)]  # read three times
    of = ["--of", "7", *web, "--of", "3", *code]
    counts, bits = run(service, str(EXAMPLES / "mixing.py"), *of, "--samples", "1280").split(" at ")
    assert counts == "384 code, 896 web" and float(bits.removesuffix(" bits")) < 4


@pytest.mark.long  # a service of its own
def test_a_job_that_is_larger_than_its_store(origin: Origin, tmp_path: Path) -> None:
    budget = 250_000
    bodies = [linear(n, 600) for n in range(12)]
    assert sum(map(len, bodies)) > 4 * budget
    urls = [origin.put(f"/larger-{n}.jsonl", body) for n, body in enumerate(bodies)]
    config = f"[store]\nmax_bytes = {budget}\nmin_free_bytes = 0\nhold_s = 0\nquiet_s = 0.3\n"
    with running_service(tmp_path, config=config) as small, never_more(tmp_path / "store", budget):
        said = run(small, str(EXAMPLES / "larger_than_the_store.py"), *urls)
    figures, error = said.split(", error ")
    ys = [json.loads(line)["y"] for body in bodies for line in body.splitlines()]
    assert figures == f"{2 * len(ys)} samples, {2 * sum(map(len, bodies))} bytes, sum {2 * sum(ys)}"
    assert float(error) < 1
    assert sum(origin.count(f"/larger-{n}.jsonl") for n in range(12)) > 12, "nothing had to go"


def linear(number: int, count: int) -> bytes:
    """``y`` is the sum of ``x``, rounded."""
    draw = random.Random(number)
    rows = ([draw.uniform(-4, 4) for _ in range(8)] for _ in range(count))
    return "".join(json.dumps({"x": x, "y": round(sum(x))}) + "\n" for x in rows).encode()
