"""Over HTTP: one large file, one behind a server that limits each connection, many small ones, and those packed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import data
from benchmarks.harness import Against, Case, Missing
from benchmarks.lab import Lab, Ours, emptied, fetched, tally
from benchmarks.peers import Command, Script, package, program
from benchmarks.servers import Web
from ingest import Client, Source

_AT_ONCE = 16


@contextlib.contextmanager
def large(lab: Lab) -> Iterator[Case]:
    """Target 1."""
    with lab.web() as (web, folder), lab.service() as service:
        digest = data.large(folder / "large.bin", lab.scale.large_mb)
        url = f"{web.url}/large.bin"

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, [Source(url, digest=digest)])

        out = lab.dir("curl")
        curl = f"curl --silent --show-error --fail --output {out}/large.bin {url}"
        yield Case(
            "http-large",
            1,
            f"{lab.scale.large_mb} MB over HTTP from {web.software}, sha256 verified",
            (
                Ours(service, work),
                _shell(lab, "curl + sha256sum", f"{curl} && sha256sum {out}/large.bin", out, "curl"),
                _shell(lab, "curl", curl, out, "curl"),
            ),
            (Against("curl + sha256sum", 1.0), Against("curl", 0.9), Against("curl + sha256sum", None, "cpu_s")),
            lab.scale.large_mb / 1000,
            "GB",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def paced(lab: Lab) -> Iterator[Case]:
    """Target 2. The peer is told to use 16 connections, and so are we."""
    with lab.web() as (web, folder), lab.service(f"[http]\nranges = {_AT_ONCE}\n") as service:
        digest = data.large(folder / "large.bin", lab.scale.large_mb)
        base = web.paced or web.url
        out = lab.dir("aria2c")
        options = f"-x{_AT_ONCE} -s{_AT_ONCE} --quiet --file-allocation=none --checksum=sha-256={digest[7:]}"

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, [Source(f"{base}/large.bin", digest=digest)])

        def aria2c(name: str, command: str) -> Command | Missing:
            if web.paced is None:
                return Missing(name, "nginx is not installed, and our own server limits no connection")
            return _shell(lab, name, command, out, "aria2c")

        yield Case(
            "http-paced",
            2,
            f"{lab.scale.large_mb} MB from {web.software}, 20 MB/s a connection, {_AT_ONCE} connections",
            (Ours(service, work), aria2c("aria2c", f"aria2c {options} -d {out} -o large.bin {base}/large.bin")),
            (Against("aria2c", 1.0), Against("aria2c", None, "cpu_s")),
            lab.scale.large_mb / 1000,
            "GB",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def small(lab: Lab) -> Iterator[Case]:
    """Target 3, first half: each file by itself."""
    count = lab.scale.small_files
    with lab.web() as (web, folder), lab.service() as service:
        names = data.pictures(folder / "small", count)
        urls = [f"{web.url}/small/{name}" for name in names]

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, list(urls))

        yield Case(
            "http-small",
            3,
            f"{count:,} files of 20 KB over HTTP from {web.software}",
            (Ours(service, work), _curl_parallel(lab, web, names), _aria2c_list(lab, urls), _plain(lab, urls)),
            (
                Against("curl --parallel", 1.0),
                Against("aria2c -j16", 3.0),
                Against("a task a file", 5.0),
                Against("curl --parallel", None, "cpu_s"),
            ),
            count / 1000,
            "1,000 files",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def packed(lab: Lab) -> Iterator[Case]:
    """Target 3, second half: the same files as tars."""
    count = lab.scale.small_files
    with lab.web() as (web, folder), lab.service() as service:
        names = data.pictures(folder / "small", count)
        urls = [f"{web.url}/small/{name}" for name in names]
        listed = lab.dir("img2dataset") / "urls.txt"
        listed.write_text("\n".join(urls))
        out = lab.dir("img2dataset-out")

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, list(urls), pack="tar")

        yield Case(
            "http-packed",
            3,
            f"{count:,} files of 20 KB over HTTP from {web.software}, into WebDataset tars",
            (
                Ours(service, work),
                _curl_parallel(lab, web, names),
                package(
                    "img2dataset",
                    lambda python: Script(
                        "img2dataset",
                        python,
                        "images",
                        [str(listed), str(out / "tars")],
                        emptied(out),
                        {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},  # else it asks the internet for news
                    ),
                ),
            ),
            (
                Against("curl --parallel", 1.2),
                Against("img2dataset", 3.0),
                Against("curl --parallel", None, "cpu_s"),
                Against("img2dataset", None, "cpu_s"),
            ),
            count / 1000,
            "1,000 files",
            lab.scale.rounds,
        )


def _shell(lab: Lab, name: str, command: str, out: Path, needed: str) -> Command | Missing:
    def make() -> Command:
        return Command(name, ["sh", "-c", command], lab.folder / "peer.log", emptied(out), lambda: tally(out))

    return program(name, make, needed)  # type: ignore[return-value]


def _curl_parallel(lab: Lab, web: Web, names: list[str]) -> Command | Missing:
    out = lab.dir("curl")
    config = lab.folder / "curl.txt"
    config.write_text("".join(f'url = "{web.url}/small/{name}"\noutput = "{out}/{name}"\n' for name in names))
    options = f"--silent --show-error --fail --parallel --parallel-max {_AT_ONCE}"
    return _shell(lab, "curl --parallel", f"curl {options} --config {config}", out, "curl")


def _aria2c_list(lab: Lab, urls: list[str]) -> Command | Missing:
    out = lab.dir("aria2c")
    listed = lab.folder / "aria2c.txt"
    listed.write_text("\n".join(urls))
    options = f"-j{_AT_ONCE} --quiet --file-allocation=none -d {out} -i {listed}"
    return _shell(lab, "aria2c -j16", f"aria2c {options}", out, "aria2c")


def _plain(lab: Lab, urls: list[str]) -> Script:
    """The design that comes to mind first: a Celery task for each file."""
    out = lab.dir("plain")
    listed = lab.folder / "plain.txt"
    listed.write_text("\n".join(urls))
    return Script("a task a file", Path(sys.executable), "plain", [str(listed), str(out)], emptied(out))
