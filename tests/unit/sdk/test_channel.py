import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from worldtree import InvalidRequest, Tls
from worldtree._channel import MAX_MESSAGE_BYTES, ChannelSettings


def resolve(address: str | None = None, **given: object) -> ChannelSettings:
    arguments = {"api_key": None, "tls": False, "timeout": None} | given
    return ChannelSettings.resolve(address, **arguments)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLDTREE_ADDRESS", "WORLDTREE_API_KEY", "WORLDTREE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    settings = resolve()
    assert (settings.address, settings.api_key, settings.timeout_s) == ("localhost:7070", None, 60.0)
    assert settings.credentials is None
    assert settings.metadata == ()


def test_variables_stand_in_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDTREE_ADDRESS", "there:1")
    monkeypatch.setenv("WORLDTREE_API_KEY", "from-env")
    monkeypatch.setenv("WORLDTREE_TIMEOUT", "5")
    settings = resolve()
    assert (settings.address, settings.api_key, settings.timeout_s) == ("there:1", "from-env", 5.0)
    settings = resolve("here:2", api_key="given", timeout=7)
    assert (settings.address, settings.api_key, settings.timeout_s) == ("here:2", "given", 7.0)
    assert settings.metadata == (("authorization", "Bearer given"),)


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_an_unreadable_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLDTREE_TIMEOUT", text)
    with pytest.raises(InvalidRequest, match="WORLDTREE_TIMEOUT"):
        resolve()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    there = tmp_path / "there.pem"
    there.write_text("")
    for tls in (tmp_path / "ca.pem", str(tmp_path / "ca.pem"), Tls(there, cert_file=there, key_file="ca.pem")):
        with pytest.raises(InvalidRequest, match=r"ca\.pem"):
            resolve(tls=tls)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(InvalidRequest, match="both cert_file and key_file"):
        resolve(tls=Tls(cert_file="client.crt"))


def test_encryption_is_what_was_said_of_it(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    assert resolve(tls=True).tls == Tls()
    assert resolve(tls=False).tls is None
    assert resolve(tls=str(ca)).tls == Tls(ca_file=str(ca))


def test_messages_up_to_64_mib_pass_and_a_proxy_is_not_used_for_this_machine() -> None:
    local, remote = dict(resolve("127.0.0.1:1").options), dict(resolve("worlds.example:1").options)
    assert local["grpc.max_receive_message_length"] == local["grpc.max_send_message_length"] == MAX_MESSAGE_BYTES
    assert local["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in remote


def test_calls_join_the_trace_that_the_program_is_in() -> None:
    tracer = TracerProvider().get_tracer("a program")
    settings = resolve(api_key="given")
    with tracer.start_as_current_span("work") as span:
        context = span.get_span_context()
        said = dict(settings.metadata)
    assert said == {
        "authorization": "Bearer given",
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-01",
    }
    assert dict(settings.metadata) == {"authorization": "Bearer given"}


def test_a_program_that_traces_nothing_has_nothing_loaded_for_it() -> None:
    program = (
        "import sys, worldtree; from worldtree._channel import ChannelSettings\n"
        "settings = ChannelSettings.resolve(None, api_key=None, tls=False, timeout=None)\n"
        "print(settings.metadata, [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "() []\n", done.stderr
