"""The section of a recipe about the engine that samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from palestra.config_base import Section

EngineKind = Literal["local", "sglang", "vllm"]


class LaunchSection(Section):
    """Engine servers that the run starts, watches and stops."""

    servers: int = Field(1, gt=0, description="Servers; each takes tensor_parallel GPUs.")
    tensor_parallel: int = Field(1, gt=0, description="GPUs of one server.")
    first_gpu: int = Field(
        0, ge=0, description="The first server's first GPU, among those that the run may see."
    )
    memory_share: float | None = Field(
        None, gt=0, lt=1, description="Share of a GPU's memory; none: the engine's own default."
    )
    port: int = Field(
        0, ge=0, le=65535, description="Of the first server, the next one's is one more; 0: free."
    )
    command: tuple[str, ...] = Field(
        (),
        description="Program that is started, with its first arguments; none: this Python with "
        "-m sglang.launch_server or -m vllm.entrypoints.openai.api_server.",
    )
    args: tuple[str, ...] = Field((), description="Further arguments, as the engine spells them.")
    start_timeout_s: float = Field(
        900, gt=0, description="Seconds that a server may take until it is healthy."
    )


class EngineSection(Section):
    """The engine that samples."""

    kind: EngineKind = Field(
        "local",
        description="local: transformers in this process; sglang or vllm: servers over HTTP.",
    )
    urls: tuple[str, ...] = Field(
        (), description="Running servers; they must see the run's folder under the same path."
    )
    launch: LaunchSection | None = Field(
        None, description="Servers to start; true: one, with the defaults."
    )
    publish: Literal["at_once", "in_turn"] = Field(
        "at_once",
        description="New weights go to all servers at once, or to one after the other while the "
        "others go on sampling under the old ones.",
    )
    outage_s: float = Field(
        600, ge=0, description="Seconds that requests wait while no server can serve."
    )
    max_batch: int = Field(32, gt=0, description="local: sequences decoded together.")
    num_threads: int | None = Field(
        None, gt=0, description="local: CPU threads of the engine; none: PyTorch's default."
    )

    @field_validator("launch", mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return LaunchSection() if value else None
        return value

    @model_validator(mode="after")
    def _one_place(self) -> EngineSection:
        if self.kind == "local":
            if self.urls or self.launch:
                raise ValueError("urls and launch are of kind sglang or vllm; local is no server")
            return self
        if bool(self.urls) == (self.launch is not None):
            raise ValueError(
                f"kind {self.kind} needs either urls of running servers or launch = true"
            )
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"urls: {url!r} is no http:// address")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: a server is named twice")
        return self
