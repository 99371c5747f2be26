"""Every knob of the gateway."""

import ipaddress
from typing import ClassVar, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from worldtree_runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """The section `gateway:` of worldtree.yaml, WORLDTREE_GATEWAY_*, or flags."""

    section: ClassVar[str] = "gateway"

    port: int = Field(7070, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    insecure: bool = Field(False, description="listen on a non-loopback host although callers aren't authenticated")

    video: list[str] = Field(["127.0.0.1:7110"], description="HOST:PORT of each video replica")
    navigator: list[str] = Field([], description="HOST:PORT of each navigator replica; empty: not served")
    multitask: list[str] = Field([], description="HOST:PORT of each multi-task replica; empty: not served")
    reward: list[str] = Field([], description="HOST:PORT of each reward replica; empty: not served")

    unary_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="deadline of a unary call that came without one, seconds"
    )
    probe_timeout_s: float = Field(2.0, gt=0, le=60, description="seconds a backend has to say who it is")
    probe_interval_s: float = Field(
        0.5, ge=0.05, le=60, description="seconds between two tries to reach a backend that is down"
    )

    retry_after_s: float = Field(
        1.0, ge=0, le=300, description="seconds that a caller is told to wait for a backend that is down"
    )

    rehome_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="seconds that a call waits, inside its deadline, for a replica to take it on"
    )
    moved_sessions: int = Field(65_536, ge=1, le=10_000_000, description="sessions whose new replica is remembered")
    play_log_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=2**31, description="controls that one Play may have waiting to be done"
    )

    cache: bool = Field(True, description="answer cacheable methods from the cache")
    cache_bytes: int = Field(256 * 1024 * 1024, ge=0, le=2**40, description="room for answers in this process")
    cache_entry_bytes: int = Field(
        32 * 1024 * 1024, ge=0, le=2**31, description="largest answer that is cached, all its messages together"
    )
    cache_ttl_max_s: float = Field(
        86_400.0, gt=0, le=30 * 86_400, description="no answer is served longer than this, whatever its proto says"
    )
    digest_ttl_s: float = Field(
        2.0, ge=0, le=300, description="seconds that the digest of a model's newest version is held"
    )
    redis_read_timeout_s: float = Field(
        0.1, gt=0, le=10, description="what looking into Redis may cost a request, seconds"
    )
    redis_write_timeout_s: float = Field(2.0, gt=0, le=60, description="what writing to Redis may take, seconds")
    redis_failure_count: int = Field(3, ge=1, le=1000, description="failures in a row after which Redis is left alone")
    redis_retry_s: float = Field(2.0, gt=0, le=300, description="seconds that it is left alone before the next try")

    @field_validator("insecure")
    @classmethod
    def _check_host(cls, insecure: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host", "")
        if host and not insecure and not _is_loopback(host):
            raise ValueError(
                f"host {host} can be reached from other machines, and callers aren't authenticated: "
                "listen on 127.0.0.1, or say --insecure"
            )
        return insecure

    @field_validator("video", "navigator", "multitask", "reward")
    @classmethod
    def _check_backends(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
                raise ValueError(f'each backend is a HOST:PORT with a port of 1 to 65535, got "{address}"')
        if len(set(addresses)) != len(addresses):
            raise ValueError("each backend is listed once")
        return addresses

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not (self.video or self.navigator or self.multitask or self.reward):
            raise ValueError("a gateway needs at least one backend: list HOST:PORT in video")
        return self

    def backends(self, section: str) -> list[str]:
        """The addresses of one service's replicas."""
        addresses: list[str] = getattr(self, section)
        return addresses


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may mean anything
