"""The one base of every contract: frozen, closed to unknown keys, finite numbers only."""

from typing import NewType

from pydantic import BaseModel, ConfigDict

ModelName = NewType("ModelName", str)
RevisionName = NewType("RevisionName", str)
ReplicaId = NewType("ReplicaId", str)
NodeId = NewType("NodeId", str)
GpuId = NewType("GpuId", str)
RequestId = NewType("RequestId", str)
JobId = NewType("JobId", str)

MODEL_NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"


class Contract(BaseModel):
    """A value that crosses a process border; a change returns a new value."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )
