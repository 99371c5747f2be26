"""worldtree.yaml, then variables, then flags; what can't be read is named."""

from pathlib import Path
from typing import ClassVar, Self

import pytest
from pydantic import Field, ValidationError, model_validator
from worldtree_runtime.settings import ServiceSettings, SettingsError


class VideoSettings(ServiceSettings):
    """Serves worlds."""

    section: ClassVar[str] = "video"
    port: int = Field(7110, ge=0, le=65535, description="gRPC port")
    session_count_max: int = Field(8, ge=1, le=1000, description="sessions at once")
    backends: list[str] = Field(default_factory=list, description="addresses")
    weights: dict[str, float] = Field(default_factory=dict, description="by name")
    fast: bool = Field(False, description="100% speed")


def load(tmp_path: Path, yaml_text: str = "", environ: dict[str, str] | None = None, **flags: object) -> VideoSettings:
    config = tmp_path / "worldtree.yaml"
    config.write_text(yaml_text)
    return VideoSettings.load(config, environ=environ or {}, **flags)


def test_flags_win_over_variables_and_variables_over_yaml(tmp_path: Path) -> None:
    yaml_text = "log_level: debug\nvideo: {port: 1, session_count_max: 1, drain_timeout_s: 1}\ngateway: {port: 9}\n"
    settings = load(tmp_path, yaml_text)
    assert (settings.port, settings.session_count_max, settings.log_level) == (1, 1, "debug")
    environ = {"WORLDTREE_VIDEO_PORT": "2", "WORLDTREE_VIDEO_SESSION_COUNT_MAX": "2", "WORLDTREE_LOG_LEVEL": "error"}
    settings = load(tmp_path, yaml_text, environ, port="3")
    found = (settings.port, settings.session_count_max, settings.drain_timeout_s, settings.log_level)
    assert found == (3, 2, 1.0, "error")


def test_a_service_s_own_value_wins_over_the_one_for_all_at_the_same_place(tmp_path: Path) -> None:
    yaml_text = "models: everyone\nlog_level: error\nvideo: {models: mine}\n"
    assert load(tmp_path, yaml_text).models == "mine"
    environ = {"WORLDTREE_VIDEO_LOG_LEVEL": "debug", "WORLDTREE_LOG_LEVEL": "warning"}
    settings = load(tmp_path, yaml_text, {**environ, "WORLDTREE_MODELS": "elsewhere"})
    assert (settings.log_level, settings.models) == ("debug", "elsewhere")


def test_an_empty_variable_and_an_absent_flag_count_as_unset(tmp_path: Path) -> None:
    settings = load(tmp_path, "video: {port: 5}", {"WORLDTREE_VIDEO_PORT": "", "WORLDTREE_REDIS_URL": ""}, port=None)
    assert (settings.port, settings.redis_url) == (5, None)


def test_the_file_is_found_by_variable_or_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert VideoSettings.load(environ={}).port == 7110
    (tmp_path / "worldtree.yaml").write_text("video: {port: 11}")
    (tmp_path / "other.yaml").write_text("video: {port: 12}")
    assert VideoSettings.load(environ={}).port == 11
    assert VideoSettings.load(environ={"WORLDTREE_CONFIG": "other.yaml"}).port == 12
    assert VideoSettings.load(tmp_path / "worldtree.yaml", environ={"WORLDTREE_CONFIG": "other.yaml"}).port == 11


def test_constructing_reads_only_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worldtree.yaml").write_text("video: {port: 11}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDTREE_VIDEO_PORT", "12")
    assert VideoSettings().port == 7110


def test_the_metrics_port_follows_the_port_unless_it_is_set(tmp_path: Path) -> None:
    assert VideoSettings().metrics_port == 7111
    assert VideoSettings(port=0).metrics_port == 0
    assert load(tmp_path, port="8000").metrics_port == 8001
    assert load(tmp_path, "video: {metrics_port: 9}", port="8000").metrics_port == 9


def test_a_replica_has_a_dns_safe_name_of_its_own() -> None:
    first, second = VideoSettings(), VideoSettings()
    assert first.replica.startswith("video-")
    assert first.replica != second.replica
    for bad in ("Video", "a_b", "-a", "a-", "a" * 41, ""):
        with pytest.raises(ValidationError):
            VideoSettings(replica=bad)


def test_settings_do_not_change_after_the_start() -> None:
    settings = VideoSettings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_lists_and_mappings_are_read_from_text(tmp_path: Path) -> None:
    environ = {"WORLDTREE_VIDEO_BACKENDS": "a:1, b:2", "WORLDTREE_VIDEO_WEIGHTS": '{"a": 0.5}'}
    settings = load(tmp_path, environ=environ)
    assert (settings.backends, settings.weights) == (["a:1", "b:2"], {"a": 0.5})
    assert load(tmp_path, backends='["c:3"]').backends == ["c:3"]


@pytest.mark.parametrize(
    ("yaml_text", "environ", "flags", "message"),
    [
        ("video: {port: many}", {}, {}, r"worldtree\.yaml: video\.port: .*integer.*got 'many'"),
        ("video: {prot: 1}", {}, {}, r"worldtree\.yaml: video\.prot: unknown setting; known: .*port"),
        ("vidoe: {port: 1}", {}, {}, r"worldtree\.yaml: vidoe: unknown setting; known here: .*video"),
        ("port: 1", {}, {}, r"worldtree\.yaml: port: unknown setting; known here"),
        ("video: 5", {}, {}, r"video: must be a mapping, got int"),
        ("- 1", {}, {}, r"must be a mapping, got list"),
        ("video: {", {}, {}, r"worldtree\.yaml: while parsing"),
        ("", {"WORLDTREE_VIDEO_PORT": "70000"}, {}, r"^\$WORLDTREE_VIDEO_PORT: .*65535.*got '70000'"),
        ("", {"WORLDTREE_VIDEO_PROT": "1"}, {}, r"^\$WORLDTREE_VIDEO_PROT: unknown setting"),
        ("", {"WORLDTREE_DRAIN_TIMEOUT_S": "nan"}, {}, r"^\$WORLDTREE_DRAIN_TIMEOUT_S: "),
        ("", {"WORLDTREE_VIDEO_WEIGHTS": "{"}, {}, r"^\$WORLDTREE_VIDEO_WEIGHTS: "),
        ("", {"WORLDTREE_VIDEO_WEIGHTS": "{a: heavy}"}, {}, r"^\$WORLDTREE_VIDEO_WEIGHTS\.a: .*got 'heavy'"),
        ("", {}, {"port": "x"}, r"^--port: .*integer.*got 'x'"),
        ("", {}, {"session_count_max": "0"}, r"^--session-count-max: .*greater than or equal to 1, got '0'"),
        ("", {}, {"sessions": 1}, r"^--sessions: unknown setting"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place_and_value(
    tmp_path: Path, yaml_text: str, environ: dict[str, str], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, yaml_text, environ, **flags)


def test_every_bad_value_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"WORLDTREE_VIDEO_PORT.*; --fast: "):
        load(tmp_path, environ={"WORLDTREE_VIDEO_PORT": "x"}, fast="perhaps")


def test_a_value_that_may_be_secret_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"video\.redis_url: Input should be a valid string$"):
        load(tmp_path, "video: {redis_url: [redis-with-password]}")


def test_a_check_of_several_fields_does_not_repeat_the_secret_ones() -> None:
    class Pair(VideoSettings):
        @model_validator(mode="after")
        def _check(self) -> Self:
            raise ValueError("port and host don't go together")

    with pytest.raises(SettingsError) as raised:
        Pair.load(environ={"WORLDTREE_REDIS_URL": "redis://:hunter2@cache/0"})
    assert str(raised.value) == "settings: port and host don't go together"


@pytest.mark.parametrize("url", ["redis://h:1/0", "redis://:p@h/0", "rediss://h:1", "unix:///run/redis.sock?db=1"])
def test_an_url_of_redis_is_accepted(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url", ["cache:6379", "http://h:1/0", "redis://h:99999/0", "redis://:pa/ss@h:1/0", "redis://:1/0"]
)
def test_an_url_that_is_not_redis_s_is_refused_before_anything_starts(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(tmp_path, environ={"WORLDTREE_REDIS_URL": url})
    assert str(raised.value).startswith("$WORLDTREE_REDIS_URL: must be redis://HOST:PORT/DB")
    assert url not in str(raised.value)


def test_the_last_port_leaves_the_metrics_a_free_one(tmp_path: Path) -> None:
    assert load(tmp_path, port="65535").metrics_port == 0


def test_a_message_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "video: {\n\n  port: [")
    assert "\n" not in str(caught.value)


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: no such file"):
        VideoSettings.load(tmp_path / "nowhere.yaml", environ={})


def test_what_kubernetes_injects_for_a_service_of_that_name_is_no_setting(tmp_path: Path) -> None:
    injected = {
        "WORLDTREE_VIDEO_PORT": "tcp://10.0.0.1:7110",
        "WORLDTREE_VIDEO_SERVICE_HOST": "10.0.0.1",
        "WORLDTREE_VIDEO_SERVICE_PORT": "7110",
        "WORLDTREE_VIDEO_SERVICE_PORT_GRPC": "7110",
        "WORLDTREE_VIDEO_PORT_7110_TCP": "tcp://10.0.0.1:7110",
        "WORLDTREE_VIDEO_PORT_7110_TCP_ADDR": "10.0.0.1",
    }
    assert load(tmp_path, environ=injected).port == 7110


def test_the_command_line_sets_every_field_by_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = VideoSettings.from_command_line("video", ["--port", "1", "--fast", "--backends", "a:1,b:2"])
    assert (settings.port, settings.fast, settings.backends) == (1, True, ["a:1", "b:2"])
    with pytest.raises(SystemExit) as ended:
        VideoSettings.from_command_line("video", ["--session-count-max", "many"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("video: --session-count-max: Input should be a valid integer")
    with pytest.raises(SystemExit) as ended:
        VideoSettings.from_command_line("video", ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name in VideoSettings.model_fields)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4317", "https://collector.example:4317/", "http://[::1]:4317"])
def test_a_collector_is_named_for_all_services_at_once(tmp_path: Path, endpoint: str) -> None:
    environ = {"WORLDTREE_OTEL_ENDPOINT": endpoint, "WORLDTREE_OTEL_SAMPLE_SHARE": "0.25"}
    settings = load(tmp_path, "", environ)
    assert (settings.otel_endpoint, settings.otel_sample_share) == (endpoint, 0.25)


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4317",
        "grpc://a:4317",
        "http://a",
        "http://a:x",
        "http://:4317",
        "http://a:4317/v1/traces",
        "http://me:hunter2@a:4317",
    ],
)
def test_what_is_no_collector_is_refused_and_not_repeated(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "", {"WORLDTREE_OTEL_ENDPOINT": endpoint})
    message = str(caught.value)
    assert message == "$WORLDTREE_OTEL_ENDPOINT: must be http://HOST:PORT or https://HOST:PORT, and nothing else"
