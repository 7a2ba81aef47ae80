"""TorchX's ``local_cwd`` scheduler with the Python that runs it, not whichever ``python`` is first in the PATH."""

from __future__ import annotations

import copy
import sys
from typing import Any

from torchx.plugins import register
from torchx.schedulers.api import AppDryRunInfo
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler, Opts, PopenRequest
from torchx.specs import AppDef


class InterpreterScheduler(LocalScheduler):
    """Starts processes of the working directory; ``python`` as an entrypoint means this interpreter."""

    def _submit_dryrun(self, app: AppDef, cfg: Opts) -> AppDryRunInfo[PopenRequest, Opts]:
        ours = copy.copy(app)
        ours.roles = [copy.copy(role) for role in app.roles]
        for role in ours.roles:
            if role.entrypoint == "python":
                role.entrypoint = sys.executable
        return super()._submit_dryrun(ours, cfg)


@register.scheduler(name="local_cwd")
def create_scheduler(session_name: str, cache_size: int = 100, **_: Any) -> InterpreterScheduler:
    """Takes the place of TorchX's ``local_cwd`` scheduler."""
    return InterpreterScheduler(session_name=session_name, image_provider_class=CWDImageProvider, cache_size=cache_size)
