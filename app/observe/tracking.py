"""Tells TorchX's tracker about a run, without importing TorchX: a JSON object under the tracker's URL.

TorchX hands the job's handle and the tracker's URL to the pods in the environment; ``torchx_plugins/tracker`` reads
what is written here, so that ``torchx tracker`` answers from object storage.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from app import storage
from app.parsing import dump_json
from app.storage import StorageError

ENV_JOB, ENV_URL = "TORCHX_JOB_ID", "TORCHX_TRACKER_ARCFACE_CONFIG"


def track_run(metadata: Mapping[str, Any], artifacts: Mapping[str, str]) -> None:
    """Record metadata and artifact URLs of this job; nothing where no tracker is configured.

    A store that fails is warned about: a finished run is worth more than its record.
    """
    job, url = os.environ.get(ENV_JOB, ""), os.environ.get(ENV_URL, "")
    if not (job and url):
        return
    record = {"run_id": job, "metadata": dict(metadata), "artifacts": dict(artifacts), "sources": []}
    try:
        storage.write_bytes(storage.join(url, f"{quote(job, safe='')}.json"), dump_json(record, indent=1).encode())
    except StorageError as error:
        warnings.warn(f"the tracker could not be told: {error}", stacklevel=2)
