"""A whole run while the store fails the first request for every object: training, going on, verification."""

from __future__ import annotations

import re

import numpy as np
import pytest

from app import storage
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy
from tests.forked import run_forked
from tests.jobs import ROOT, SMALL, environment, write_faces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(endpoint: str, module: str, *options: str) -> str:
    """The output of a program that must succeed; it sees the store at ``endpoint``, its driver never retries."""
    variables = {**environment(), "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}
    done = run_forked(module, options, [variables], ROOT, 800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["truncate", "lost"])
def test_the_first_request_for_every_object_fails(object_store: ObjectStore, bucket_url: str, kind: str) -> None:
    write_faces(bucket_url)
    generator = np.random.default_rng(0)
    pictures = [encode_jpeg(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(40)]
    storage.write_bytes(storage.join(bucket_url, "lfw.bin"), dump_set(pictures, [i % 2 == 0 for i in range(20)]))
    runs, seen = storage.join(bucket_url, "runs"), set[tuple[str, str]]()

    def decide(method: str, path: str) -> str:
        # Names that are drawn anew for each attempt are one object here.
        place = re.sub(r"write-check-\w+|step-0*\d+-[\w.]+", "drawn", path).partition("?")[0]
        if (method, place) in seen or (kind == "truncate" and method != "GET"):
            return ""
        seen.add((method, place))
        return kind

    options = (*SMALL, "--verify.sets", "lfw", "--train.logical-workers", "1", "--checkpoint.every-steps", "100")
    options = (*options, "--train.epochs", "1", "--data.url", bucket_url, "--output.url", runs)
    with Proxy(object_store.endpoint, decide) as proxy:
        run(proxy.endpoint, "app.train", *options, "--train.last-step", "7")
        seen.clear()
        assert "from step 7" in run(proxy.endpoint, "app.train", *options)
        seen.clear()
        run(proxy.endpoint, "app.verify", "--model", storage.join(runs, "orl"), "--sets-url", bucket_url)
        assert sum(fault == kind for *_, fault in proxy.requests) > 10
