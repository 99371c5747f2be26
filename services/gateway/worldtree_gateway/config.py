"""Every knob of the gateway."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from worldtree_runtime.settings import ServiceSettings

from worldtree_gateway.discovery import to_source
from worldtree_gateway.shares import to_shares


class GatewaySettings(ServiceSettings):
    """The section `gateway:` of worldtree.yaml, WORLDTREE_GATEWAY_*, or flags."""

    section: ClassVar[str] = "gateway"

    port: int = Field(7070, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    insecure: bool = Field(False, description="listen on a non-loopback host although callers aren't authenticated")

    workers: int = Field(
        1, ge=1, le=256, description="processes that share the port, as one uses one core; above 1: needs redis_url"
    )

    video: list[str] = Field(
        ["127.0.0.1:7110"],
        description="HOST:PORT of each video replica; dns:HOST:PORT: one at each address of a name; file:PATH: a "
        "HOST:PORT a line",
    )
    navigator: list[str] = Field([], description="the same of each navigator replica; empty: not served")
    multitask: list[str] = Field([], description="the same of each multi-task replica; empty: not served")
    reward: list[str] = Field([], description="the same of each reward replica; empty: not served")

    unary_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="deadline of a unary call that came without one, seconds"
    )
    probe_timeout_s: float = Field(2.0, gt=0, le=60, description="seconds a backend has to say who it is")
    probe_interval_s: float = Field(
        0.5, ge=0.05, le=60, description="seconds between two tries to reach a backend that is down"
    )

    look_interval_s: float = Field(
        5.0, ge=0.05, le=3600, description="seconds between two looks for backends by name or in a file"
    )

    ejection_failures: int = Field(
        5, ge=1, le=10_000, description="failures in a row after which a backend gets no new calls for a while"
    )
    ejection_s: float = Field(
        5.0, gt=0, le=300, description="seconds of that while; each time in a row it is longer by as much"
    )

    start_load_factor: float = Field(
        1.25,
        ge=0,
        le=100,
        description="worlds that begin alike go to one backend while it has at most so many times its share to do; "
        "0: each goes to the one with the least to do",
    )
    slow_start_s: float = Field(
        10.0, ge=0, le=3600, description="seconds in which the share of a backend that came grows to that of the others"
    )

    retry_ratio: float = Field(
        0.2, ge=0, le=1, description="share of a service's calls that may be sent a second time, to another backend"
    )
    retries_per_s: float = Field(
        10.0, ge=0, le=1e6, description="calls a second that may be sent a second time beyond that share"
    )

    hedge_after_s: float | None = Field(
        None,
        ge=0,
        le=600,
        description="seconds after which a copy of a unary call that could be cached is sent to another backend; "
        "0: when it takes longer than 19 of 20 of its method do; unset: never",
    )

    canary: list[str] = Field(
        [],
        description="MODEL/VERSION=SHARE: of requests that name a model and no version, the share (0 to 1) that gets "
        "this one; what is left gets the newest",
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
    cache_stale_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="for so long after its time an answer is still served, while a new one is asked for; 0: never",
    )
    cache_shared_models: list[str] = Field(
        [], description="MODEL or MODEL/VERSION whose cached answers all tenants share; else each has its own"
    )
    cache_shared_tenants: dict[str, list[str]] = Field(
        {}, description="GROUP: [TENANT, ...]: tenants who share their cached answers with one another"
    )
    purge_look_s: float = Field(
        0.5, gt=0, le=60, description="seconds between two looks whether answers were purged at another gateway"
    )
    digest_ttl_s: float = Field(
        2.0, ge=0, le=300, description="seconds that the digest of a model's newest version is held"
    )
    flight_bytes: int = Field(
        256 * 1024 * 1024,
        ge=0,
        le=2**40,
        description="room for answers under way, recorded for the cache and for whoever asks the same meanwhile; "
        "and as much for those that slow readers still have to take when the cache holds them no more",
    )
    flight_ttl_s: float = Field(
        3.0,
        ge=0.2,
        le=300,
        description="seconds after which a call that another gateway makes for all counts as lost with it",
    )
    redis_read_timeout_s: float = Field(
        0.1, gt=0, le=10, description="what looking into Redis may cost a request, seconds"
    )
    redis_write_timeout_s: float = Field(2.0, gt=0, le=60, description="what writing to Redis may take, seconds")
    redis_failure_count: int = Field(3, ge=1, le=1000, description="failures in a row after which Redis is left alone")
    redis_retry_s: float = Field(2.0, gt=0, le=300, description="seconds that it is left alone before the next try")

    calls_per_s: float = Field(0.0, ge=0, le=1e6, description="calls a second that one key may make; 0: no limit")
    calls_burst: float = Field(0.0, ge=0, le=1e9, description="calls that it may make at once; 0: those of one second")
    frames_per_s: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="frames a second that one key may have made, each counted once for each of its function "
        "evaluations; 0: no limit",
    )
    frames_burst: float = Field(0.0, ge=0, le=1e12, description="frames that it may owe; 0: those of one second")
    streams_per_key: int = Field(
        0, ge=0, le=1_000_000, description="plays and navigations that one key may have open here; 0: no limit"
    )

    sessions_per_tenant: int = Field(
        0, ge=0, le=1_000_000, description="sessions that one tenant may have, on all replicas together; 0: no limit"
    )

    oip_sequences: int = Field(
        1024, ge=1, le=1_000_000, description="sequences of the inference protocol that are open at a time"
    )
    oip_sequence_idle_s: float = Field(
        60.0, gt=0, le=3600, description="seconds that a sequence may wait for its next request; then it is given up"
    )
    oip_stream_requests: int = Field(
        32, ge=1, le=10_000, description="requests of one ModelStreamInfer that are under way at a time"
    )

    http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="HTTP port of RPCs as JSON and of the inference protocol's REST side; unset: not served by HTTP",
    )

    http_json_bytes: int = Field(
        1024 * 1024,
        ge=1024,
        le=2**31,
        description="JSON of one request or inference answer by HTTP; tensors in binary are beside it",
    )
    http_buffer_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024,
        le=2**40,
        description="bodies of requests by HTTP, of all that are under way together",
    )

    openpi_port: int = Field(
        7072, ge=0, le=65535, description="WebSocket port of robots that speak openpi; unset: port + 2, or a free one"
    )
    openpi_connections: int = Field(256, ge=1, le=100_000, description="robots that are connected by openpi at a time")
    openpi_message_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=2**30, description="largest observation; beyond four times that, it disconnects"
    )
    openpi_timeout_s: float = Field(30.0, gt=0, le=3600, description="seconds that a robot waits for a chunk")
    openpi_episodes: int = Field(
        4096, ge=1, le=10_000_000, description="episodes of robots whose last chunk is remembered"
    )
    openpi_episode_ttl_s: float = Field(
        600.0, gt=0, le=86_400, description="seconds that it is; the navigator's own episode_ttl_s counts as well"
    )

    @model_validator(mode="before")
    @classmethod
    def _derive_openpi_port(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "openpi_port" in given:
            return given
        port = str(given.get("port", cls.model_fields["port"].default))
        # beside the metrics port, or free where that of gRPC is
        return {**given, "openpi_port": int(port) + 2 if port.isdecimal() and 0 < int(port) < 65534 else 0}

    keys_file: Path | None = Field(
        None, description="API keys that are taken, a line each as `worldtree keys create` prints them; may be changed"
    )
    keys_redis: bool = Field(
        False, description="take API keys from Redis too: the hash worldtree:keys of ids and such lines; may be changed"
    )
    jwks_file: Path | None = Field(
        None, description="JWKS whose keys verify JSON Web Tokens that are taken; may be changed"
    )
    jwt_issuer: str = Field("", description="what a token's iss must be")
    jwt_audience: str = Field("", description="what a token's aud must be or hold")
    jwt_leeway_s: float = Field(10.0, ge=0, le=300, description="seconds that clocks may differ by for exp and nbf")
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="the claim that holds a caller's tenant")
    jwt_role_claim: str = Field("role", min_length=1, description="that holds user or operator; absent: user")
    credentials_look_s: float = Field(
        2.0, gt=0, le=300, description="seconds between two looks whether keys or certificates have changed"
    )
    stream_look_s: float = Field(
        10.0, gt=0, le=3600, description="seconds between two looks whether the credentials of a running stream hold"
    )
    audit: Literal["all", "refused", "off"] = Field(
        "all", description="which calls the audit log holds where credentials are asked for: all, those refused, none"
    )

    tls_cert_file: Path | None = Field(
        None, description="certificate chain (PEM), for gRPC and for openpi; unset: no encryption; may be changed"
    )
    tls_key_file: Path | None = Field(None, description="its private key (PEM); may be changed")
    tls_client_ca_file: Path | None = Field(
        None, description="CA (PEM) of the certificates that clients must show; unset: none; may be changed"
    )

    channelz: bool = Field(
        False, description="serve grpc.channelz.v1 to operators: connections, streams and flow control of this process"
    )

    max_connections: int = Field(10_000, ge=1, le=10_000_000, description="gRPC connections at a time")
    max_connection_streams: int = Field(1000, ge=1, le=1_000_000, description="calls of one connection at a time")
    max_peer_calls: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="calls by gRPC under way from one address and its connections by HTTP and openpi, together; of "
        "IPv6 from one network of 64 bits; 0: no limit, as behind a proxy all callers have one address",
    )
    max_connection_age_s: float = Field(
        3600.0, ge=1, le=7 * 86_400, description="seconds after which a connection is to be made anew; its calls go on"
    )
    max_connection_idle_s: float = Field(
        900.0, ge=1, le=7 * 86_400, description="seconds after which a connection without calls is closed"
    )
    handshake_timeout_s: float = Field(10.0, gt=0, le=120, description="seconds that a connection has to be made")
    ping_interval_min_s: float = Field(
        5.0, ge=0.1, le=3600, description="a client's keepalive pings come no faster while nothing else does"
    )
    ping_strikes: int = Field(2, ge=1, le=1000, description="pings that come too fast before it is disconnected")

    @model_validator(mode="after")
    def _check_host(self) -> Self:
        if not (self.insecure or self.authenticates or self.tls_client_ca_file or self.is_on_loopback):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and callers aren't authenticated: "
                "give keys_file, keys_redis or jwks_file, listen on 127.0.0.1, or say --insecure"
            )
        return self

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.workers > 1 and self.redis_url is None:
            raise ValueError(
                f"workers: {self.workers} need redis_url, by which they share answers, limits and the calls under way"
            )
        if self.keys_redis and self.redis_url is None:
            raise ValueError("keys_redis needs redis_url")
        if self.jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("jwks_file needs jwt_issuer and jwt_audience: a token that was made for others is refused")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        if self.openpi_connections > self.max_connection_streams:
            raise ValueError(
                f"openpi_connections must be max_connection_streams ({self.max_connection_streams}) at most, as robots "
                f"share a connection inside; got {self.openpi_connections}"
            )
        return self

    @field_validator("video", "navigator", "multitask", "reward")
    @classmethod
    def _check_backends(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            to_source(address)
        if len(set(addresses)) != len(addresses):
            raise ValueError("each backend is listed once")
        return addresses

    @field_validator("start_load_factor")
    @classmethod
    def _check_start_load_factor(cls, factor: float) -> float:
        if 0 < factor < 1:
            raise ValueError(f"start_load_factor must be 0, or 1 or more, got {factor:g}")
        return factor

    @field_validator("canary")
    @classmethod
    def _check_canary(cls, texts: list[str]) -> list[str]:
        to_shares(texts)
        return texts

    @model_validator(mode="after")
    def _check_sharing(self) -> Self:
        members = [tenant for tenants in self.cache_shared_tenants.values() for tenant in tenants]
        twice = sorted({tenant for tenant in members if members.count(tenant) > 1})
        if twice:
            raise ValueError(f"cache_shared_tenants: a tenant is in one group, once: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not (self.video or self.navigator or self.multitask or self.reward):
            raise ValueError("a gateway needs at least one backend: list HOST:PORT in video")
        return self

    @property
    def authenticates(self) -> bool:
        """Whether callers must show credentials."""
        return self.keys_file is not None or self.keys_redis or self.jwks_file is not None

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return _is_loopback(self.host)

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
