"""The pages of the protos: each service with its methods, each message with its fields, each enum with its values."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from worldtree.options.v1 import options_pb2

PROTOS = Path(__file__).parents[1] / "protos"
FIELD, METHOD, VALUE, NESTED, ENUM = 2, 2, 2, 3, 4  # numbers of descriptor.proto, of which paths of comments are made
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE, FILE_PACKAGE, FILE_EXTENSION = 4, 5, 6, 2, 7
Kind = descriptor_pb2.FieldDescriptorProto


class File:
    """One .proto, with the comments beside what they tell of."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    @property
    def page(self) -> str:
        return f"{self.file.package.split('.')[1]}.md"

    def told(self, *path: int) -> str:
        """In one line."""
        return " ".join(self._comments.get(path, "").split())

    def told_at_length(self, *path: int) -> str:
        return "\n".join(line.strip() for line in self._comments.get(path, "").splitlines()).strip()


def proto_pages() -> dict[str, str]:
    files = [File(file) for file in _parsed() if file.package.startswith("worldtree.")]
    homes = {name: file.page for file in files for name in _type_names(file.file)}
    return {file.page: "\n".join(_page(file, homes)).rstrip() + "\n" for file in files}


def _parsed() -> Sequence[descriptor_pb2.FileDescriptorProto]:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    builtin = Path(protoc.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile() as out:
        options = [f"-I{PROTOS}", f"-I{builtin}", "--include_imports", "--include_source_info"]
        code = protoc.main(["protoc", *options, f"--descriptor_set_out={out.name}", *sources])
        if code != 0:
            raise RuntimeError(f"protoc ended with {code}")
        # bytes of our extensions are read as such, as their generated code is imported
        return descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes()).file


def _type_names(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    def inside(message: descriptor_pb2.DescriptorProto, prefix: str) -> Iterator[str]:
        yield f"{prefix}.{message.name}"
        for nested in message.nested_type:
            yield from inside(nested, f"{prefix}.{message.name}")
        for enum in message.enum_type:
            yield f"{prefix}.{message.name}.{enum.name}"

    for message in file.message_type:
        yield from inside(message, f".{file.package}")
    for enum in file.enum_type:
        yield f".{file.package}.{enum.name}"


def _page(file: File, homes: dict[str, str]) -> Iterator[str]:
    yield f"# {file.file.package}"
    yield ""
    yield file.told_at_length(FILE_PACKAGE)
    yield ""
    yield f"`protos/{file.file.name}`"
    yield ""
    for index, service in enumerate(file.file.service):
        yield from _service(file, service, index, homes)
    if file.file.extension:
        yield "## Options of methods"
        yield ""
        yield from _fields(file, file.file.extension, (), FILE_EXTENSION, homes)
    if file.file.message_type:
        yield "## Messages"
        yield ""
    for index, message in enumerate(file.file.message_type):
        yield from _message(file, message, (FILE_MESSAGE, index), message.name, homes)
    if file.file.enum_type:
        yield "## Enums"
        yield ""
    for index, enum in enumerate(file.file.enum_type):
        yield from _enum(file, enum, (FILE_ENUM, index), enum.name)


def _service(
    file: File, service: descriptor_pb2.ServiceDescriptorProto, index: int, homes: dict[str, str]
) -> Iterator[str]:
    path = (FILE_SERVICE, index)
    yield f"## {service.name}"
    yield ""
    yield file.told_at_length(*path)
    yield ""
    yield "| method | kind |"
    yield "| --- | --- |"
    for method in service.method:
        yield f"| [{method.name}](#rpc-{method.name.lower()}) | {_kind(method)} |"
    yield ""
    for number, method in enumerate(service.method):
        yield f"### {method.name} {{ #rpc-{method.name.lower()} }}"
        yield ""
        yield file.told_at_length(*path, METHOD, number)
        yield ""
        taken = f"{_stream(method.client_streaming)}{_link(method.input_type, file, homes)}"
        yield f"Takes {taken}, answers {_stream(method.server_streaming)}{_link(method.output_type, file, homes)}."
        yield from _method_options(method)
        yield ""


def _method_options(method: descriptor_pb2.MethodDescriptorProto) -> Iterator[str]:
    options = method.options
    if options.HasExtension(options_pb2.cache):
        policy = options.Extensions[options_pb2.cache]
        shared = policy.scope == options_pb2.CachePolicy.SCOPE_SHARED
        with_whom = "all callers" if shared else "the callers of one tenant"
        yield f"Its answer is kept for {policy.ttl.seconds} s, for {with_whom}."
    if options.Extensions[options_pb2.access] == options_pb2.ACCESS_OPERATOR:
        yield "For operators only."


def _message(
    file: File,
    message: descriptor_pb2.DescriptorProto,
    path: tuple[int, ...],
    name: str,
    homes: dict[str, str],
) -> Iterator[str]:
    if message.options.map_entry:
        return
    yield f"### {name} {{ #{_anchor(name)} }}"
    yield ""
    yield file.told_at_length(*path)
    yield ""
    if message.field:
        yield from _fields(file, message.field, path, FIELD, homes, message)
    for index, nested in enumerate(message.nested_type):
        yield from _message(file, nested, (*path, NESTED, index), f"{name}.{nested.name}", homes)
    for index, enum in enumerate(message.enum_type):
        yield from _enum(file, enum, (*path, ENUM, index), f"{name}.{enum.name}")


def _fields(
    file: File,
    fields: Sequence[descriptor_pb2.FieldDescriptorProto],
    path: tuple[int, ...],
    number: int,
    homes: dict[str, str],
    message: descriptor_pb2.DescriptorProto | None = None,
) -> Iterator[str]:
    yield "| field | type | number | |"
    yield "| --- | --- | --- | --- |"
    for index, field in enumerate(fields):
        told = file.told(*path, number, index)
        if message is not None and field.HasField("oneof_index") and not field.proto3_optional:
            told = f"*One of `{message.oneof_decl[field.oneof_index].name}`.* {told}"
        yield f"| `{field.name}` | {_type(field, file, homes, message)} | {field.number} | {_cell(told)} |"
    yield ""


def _enum(file: File, enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], name: str) -> Iterator[str]:
    yield f"### {name} {{ #{_anchor(name)} }}"
    yield ""
    yield file.told_at_length(*path)
    yield ""
    yield "| value | number | |"
    yield "| --- | --- | --- |"
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(file.told(*path, VALUE, index))} |"
    yield ""


def _type(
    field: descriptor_pb2.FieldDescriptorProto,
    file: File,
    homes: dict[str, str],
    message: descriptor_pb2.DescriptorProto | None,
) -> str:
    entry = None
    if message is not None:
        entry = next((each for each in message.nested_type if field.type_name.endswith(f".{each.name}")), None)
    if entry is not None and entry.options.map_entry:
        key, value = (_type(each, file, homes, None) for each in entry.field)
        return f"map of {key} to {value}"
    plain = Kind.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _link(field.type_name, file, homes) if field.type_name else plain
    if field.label == Kind.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str, file: File, homes: dict[str, str]) -> str:
    if type_name not in homes:
        return f"`{type_name.removeprefix('.')}`"
    home = homes[type_name]
    # after `.worldtree.video.v1.`
    name = ".".join(type_name.split(".")[4:])
    return f"[{name}]({'' if home == file.page else home}#{_anchor(name)})"


def _anchor(name: str) -> str:
    return name.lower().replace(".", "-")


def _kind(method: descriptor_pb2.MethodDescriptorProto) -> str:
    if method.client_streaming and method.server_streaming:
        return "bidirectional"
    return "server stream" if method.server_streaming else "unary"


def _stream(streams: bool) -> str:
    return "a stream of " if streams else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
