"""A real S3 server on loopback for tests: moto's, in a thread of this process, on a free port. No assertions here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore.config import Config
from moto.server import ThreadedMotoServer


@dataclass
class S3Server:
    """``endpoint`` and a client to put things there. moto takes any key and secret."""

    endpoint: str
    client: Any = field(repr=False)
    key: str = "test"
    secret: str = "test-secret"

    def put(self, bucket: str, objects: dict[str, bytes]) -> dict[str, str]:
        """Makes the bucket where it is missing; gives each key's ETag."""
        if bucket not in {b["Name"] for b in self.client.list_buckets()["Buckets"]}:
            self.client.create_bucket(Bucket=bucket)
        return {key: self.client.put_object(Bucket=bucket, Key=key, Body=body)["ETag"] for key, body in objects.items()}

    def profile(self, **more: Any) -> dict[str, Any]:
        """The values of a ``[connections.NAME]`` for it."""
        return {"endpoint": self.endpoint, "key": self.key, "secret": self.secret, **more}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = botocore.session.Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=endpoint,
            aws_access_key_id="test", aws_secret_access_key="test-secret",
            config=Config(retries={"total_max_attempts": 3}),
        )  # fmt: skip
        yield S3Server(endpoint, client)
    finally:
        server.stop()
