"""A stranger with nothing but grpcio and protobuf: learns the API through reflection, as grpcurl does, and calls it."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

SERVICE = "worldtree.video.v1.VideoGenerator"
TIMEOUT_S = 60.0


def reflection_messages() -> tuple[Any, Any]:
    """The part of reflection.proto that is used here, written by hand: (request, response)."""
    file = descriptor_pb2.FileDescriptorProto(name="by_hand.proto", package="by.hand", syntax="proto3")
    text, octets, message = (getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind}") for kind in
                             ("STRING", "BYTES", "MESSAGE"))  # fmt: skip
    for name, fields in {
        "Request": [("file_by_filename", 3, text), ("file_containing_symbol", 4, text), ("list_services", 7, text)],
        "Files": [("file_descriptor_proto", 1, octets)],
        "Service": [("name", 1, text)],
        "Services": [("service", 1, "Service")],
        "Error": [("error_code", 1, descriptor_pb2.FieldDescriptorProto.TYPE_INT32), ("error_message", 2, text)],
        "Response": [
            ("file_descriptor_response", 4, "Files"),
            ("list_services_response", 6, "Services"),
            ("error_response", 7, "Error"),
        ],
    }.items():
        declared = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            field = declared.field.add(name=field_name, number=number, label=1)
            if isinstance(kind, str):
                field.type, field.type_name = message, f".by.hand.{kind}"
            else:
                field.type = kind
            if field_name in ("file_descriptor_proto", "service"):
                field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"by.hand.{name}")) for name in
             ("Request", "Response")]  # fmt: skip
    return found[0], found[1]


REQUEST, RESPONSE = reflection_messages()


class Stranger:
    """Holds a channel and what reflection told. Its descriptor pool is its own: no generated code of ours is in it."""

    def __init__(self, channel: grpc.Channel, reflection: str) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        self._channel = channel
        self._ask = channel.stream_stream(
            f"/{reflection}/ServerReflectionInfo",
            request_serializer=REQUEST.SerializeToString,
            response_deserializer=RESPONSE.FromString,
        )

    def services(self) -> list[str]:
        return [service.name for service in self.reflect(list_services="*").list_services_response.service]

    def learn(self, service: str) -> None:
        """Adds the service's file and all that it imports, imports first."""
        known: set[str] = set()

        def add(files: list[Any]) -> None:
            by_name = {file.name: file for file in files}

            def visit(name: str) -> None:
                if name in known:
                    return
                known.add(name)
                if name not in by_name:
                    add(self.files(file_by_filename=name))
                    return
                for imported in by_name[name].dependency:
                    visit(imported)
                self.pool.Add(by_name[name])

            for name in by_name:
                visit(name)

        add(self.files(file_containing_symbol=service))

    def files(self, **question: str) -> list[Any]:
        response = self.reflect(**question)
        return [
            descriptor_pb2.FileDescriptorProto.FromString(file)
            for file in response.file_descriptor_response.file_descriptor_proto
        ]

    def reflect(self, **question: str) -> Any:
        (response,) = self._ask(iter([REQUEST(**question)]), timeout=TIMEOUT_S)
        return response

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """A unary call, JSON-like both ways."""
        descriptor: MethodDescriptor = self.pool.FindServiceByName(SERVICE).methods_by_name[method]
        request_class = message_factory.GetMessageClass(descriptor.input_type)
        response_class = message_factory.GetMessageClass(descriptor.output_type)
        invoke = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        response = invoke(json_format.ParseDict(request, request_class()), timeout=TIMEOUT_S)
        answer: dict[str, Any] = json_format.MessageToDict(response)
        return answer


@pytest.fixture(params=["video", "gateway"])
def channel(request: pytest.FixtureRequest, deployment: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(getattr(deployment, request.param)) as opened:
        yield opened


@pytest.fixture(params=["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"])
def stranger(request: pytest.FixtureRequest, channel: grpc.Channel) -> Stranger:
    return Stranger(channel, request.param)


def test_a_stranger_learns_the_api_and_steps_a_world(stranger: Stranger) -> None:
    assert SERVICE in stranger.services()
    stranger.learn(SERVICE)

    models = stranger.call("ListModels", {})["models"]
    model = next(model for model in models if model["ref"]["name"] == "minigrid")
    height_px, width_px = model["heightPx"], model["widthPx"]
    assert "forward" in model["actionSpace"]["discrete"]["names"]
    assert "four-rooms" in [start["name"] for start in model["starts"]]

    created = stranger.call(
        "CreateSession", {"model": {"name": "minigrid"}, "origin": {"start": "four-rooms"}, "seed": "7"}
    )
    session = created["session"]["session"]
    stepped = stranger.call("Step", {"session": session, "actions": [{"name": "forward"}, {"name": "left"}]})
    assert stepped["chunkIndex"] == "2"
    assert [chunk.get("index", "0") for chunk in stepped["chunks"]] == ["0", "1"]
    for chunk in stepped["chunks"]:
        assert chunk["frames"]["tensor"]["dtype"] == "D_TYPE_UINT8"
        assert chunk["frames"]["tensor"]["shape"] == [str(model["framesPerChunk"]), str(height_px), str(width_px), "3"]

    stranger.call("Delete", {"session": session})
    with pytest.raises(grpc.RpcError) as refused:
        stranger.call("Get", {"session": session})
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_carries_the_cache_option_of_the_methods(stranger: Stranger) -> None:
    stranger.learn(SERVICE)
    extension: Any = stranger.pool.FindExtensionByName("worldtree.options.v1.cache")
    options_class = message_factory.GetMessageClass(
        stranger.pool.FindMessageTypeByName("google.protobuf.MethodOptions")
    )
    message_factory.GetMessageClassesForFiles(["worldtree/options/v1/options.proto"], stranger.pool)
    cached = {
        method.name
        for method in stranger.pool.FindServiceByName(SERVICE).methods
        if options_class.FromString(method.GetOptions().SerializeToString()).HasExtension(extension)
    }
    assert cached == {"ListModels", "GetModel", "Generate"}


def test_reflection_says_so_when_asked_for_what_is_not_served(stranger: Stranger) -> None:
    response = stranger.reflect(file_containing_symbol="worldtree.video.v1.Nothing")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
