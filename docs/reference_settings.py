"""The page of the settings: every knob of every service, with its default and its variable."""

from collections.abc import Iterator

from pydantic.fields import FieldInfo
from worldtree_gateway.config import GatewaySettings
from worldtree_multitask.config import MultitaskSettings
from worldtree_navigator.config import NavigatorSettings
from worldtree_reward.config import RewardSettings
from worldtree_runtime.settings import ServiceSettings
from worldtree_video.config import VideoSettings

SERVICES: tuple[type[ServiceSettings], ...] = (
    GatewaySettings,
    VideoSettings,
    MultitaskSettings,
    RewardSettings,
    NavigatorSettings,
)
HEAD = """\
# Settings

Each is a key of `worldtree.yaml`, in the section of its service; a variable; and a flag of `worldtree serve SERVICE`,
`--like-this`. A flag wins over a variable, and a variable over the file. A setting that can't be read stops the start,
with one line that names it.
"""


def settings_page() -> str:
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    yield HEAD
    yield "## Of every service"
    yield ""
    yield "Those with a variable that names no service may also stand at the top of the file, for all."
    yield ""
    yield from _table(ServiceSettings, list(ServiceSettings.model_fields))
    for settings in SERVICES:
        yield f"## {settings.section}"
        yield ""
        yield (settings.__doc__ or "").partition("\n")[0]
        yield ""
        yield from _table(settings, [name for name, field in settings.model_fields.items() if _own(name, field)])


def _own(name: str, field: FieldInfo) -> bool:
    """Whether the service adds it, or means another default."""
    common = ServiceSettings.model_fields.get(name)
    return common is None or common.default != field.default


def _table(settings: type[ServiceSettings], names: list[str]) -> Iterator[str]:
    yield "| key | default | variable | |"
    yield "| --- | --- | --- | --- |"
    for name in names:
        field = settings.model_fields[name]
        told = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {_default(name, field)} | `{_variable(settings, name)}` | {told} |"
    yield ""


def _variable(settings: type[ServiceSettings], name: str) -> str:
    if name in settings.shared:
        return f"WORLDTREE_{name.upper()}"
    section = "SERVICE" if settings is ServiceSettings else settings.section.upper()
    return f"WORLDTREE_{section}_{name.upper()}"


def _default(name: str, field: FieldInfo) -> str:
    # what is derived from others is told in words
    if field.default is None or name in ("replica", "metrics_port", "openpi_port"):
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, list):
        return f"`{', '.join(field.default)}`" if field.default else ""
    return f"`{field.default}`" if field.default != "" else ""
