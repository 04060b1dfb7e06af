"""A bucket of S3 for tests: moto's server, one for all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own for each test, by boto's client and by its URL."""

    client: Any
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def get(self, key: str) -> dict[str, Any]:
        return self.client.get_object(Bucket=self.name, Key=key)

    def contents(self, prefix: str) -> dict[str, bytes]:
        return {key.removeprefix(prefix): self.get(key)["Body"].read() for key in self.keys(prefix)}


@pytest.fixture(scope="session")
def store() -> Iterator[Any]:
    """boto's client of a server on this machine; the environment leads every process to it."""
    pytest.importorskip("s3fs", reason="needs mambair[cloud]")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(port=0, verbose=False)
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        yield boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    server.stop()


@pytest.fixture
def bucket(store: Any, request: pytest.FixtureRequest) -> Bucket:
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    store.create_bucket(Bucket=name)
    return Bucket(store, name)
