"""Settings of the engine that runs the clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from wardround.common.settings.values import require


@dataclass(frozen=True)
class EngineSettings:
    """Where the clients run."""

    name: Literal["inprocess", "ray", "deployment"]
    """Row of the table in `server/engines/simulate.py`, or `deployment`: real sites over gRPC."""
    num_cpus: Annotated[float, Field(ge=0)]
    """CPUs reserved for one client at a time (`ray`)."""
    num_gpus: Annotated[float, Field(ge=0)]
    """GPUs reserved for one client at a time; fractions share a GPU (`ray`)."""
    address: str | None
    """Address of a running Ray cluster, or `auto`; None starts one on this machine (`ray`)."""
    workers: PositiveInt | Literal["auto"]
    """Processes that train at the same time (`inprocess`); 1 trains in the simulation itself."""

    def __post_init__(self) -> None:
        require(
            self.num_cpus + self.num_gpus > 0,
            "engine.num_cpus and engine.num_gpus are both 0, but a client needs some "
            "of one. Set engine.num_cpus=1.",
        )

    @property
    def is_simulated(self) -> bool:
        """Whether this project makes the clients, which share the files of this machine."""
        return self.name != "deployment"
