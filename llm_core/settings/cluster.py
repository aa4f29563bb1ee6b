"""Section `cluster` of params.yaml: where clean and tokenize find their workers. It makes nothing stale."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm_core.contract import Config


class ClusterSettings(Config):
    """Processes of this machine, or the workers of a Dask cluster; a product is the same bytes on either."""

    kind: Literal["processes", "dask"] = "processes"
    """processes: those of this machine; dask: the workers of the scheduler at `address` (needs the extra [scale])."""
    address: Annotated[str, Field(pattern=r"^(tcp|tls|ws|wss|ucx)://.+:\d+$")] | None = None
    """The Dask scheduler, for example tcp://10.0.0.5:8786; its workers see the workspace under the same path, or the
    store that the section `storage` names."""

    @model_validator(mode="after")
    def _dask_has_an_address(self) -> ClusterSettings:
        if (self.kind == "dask") != (self.address is not None):
            raise ValueError("address is wanted where kind is dask, and nowhere else")
        return self
