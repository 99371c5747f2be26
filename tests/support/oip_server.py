"""A stand-in for Triton: the inference protocol by tritonclient's own stubs, ONNX Runtime behind it."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

DATATYPES = {"float": ("FP32", np.float32), "int64": ("INT64", np.int64), "uint8": ("UINT8", np.uint8)}


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`graphs`: ONNX files by the names of models. It may be stopped, and started again at the same port."""

    def __init__(self, graphs: Mapping[str, Path], *, shares_memory: bool = True) -> None:
        self._sessions = {name: ort.InferenceSession(str(path)) for name, path in graphs.items()}
        self._shares_memory = shares_memory
        self._regions: dict[str, SharedMemory] = {}
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.held_look: threading.Event | None = None  # what the next look waits for, and no other
        self.asked: list[str] = []
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def region_count(self) -> int:
        return len(self._regions)

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        self.resume()
        self._server.stop(0).wait()
        self.forget_regions()

    def forget_regions(self) -> None:
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    def pause(self) -> None:
        """It answers nobody."""
        self._goes_on.clear()

    def resume(self) -> None:
        self._goes_on.set()

    def ModelReady(self, request: Any, context: Any) -> Any:
        self.asked.append("ModelReady")
        held, self.held_look = self.held_look, None
        if held is not None:
            held.wait()
        self._goes_on.wait()
        return pb.ModelReadyResponse(ready=request.name in self._sessions)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        def tensors(nodes: Any) -> Any:
            for node in nodes:
                shape = [side if isinstance(side, int) else -1 for side in node.shape]
                datatype = DATATYPES[node.type[len("tensor(") : -1]][0]
                yield pb.ModelMetadataResponse.TensorMetadata(name=node.name, datatype=datatype, shape=shape)

        session = self._sessions[request.name]
        inputs, outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], inputs=inputs, outputs=outputs)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        if not self._shares_memory:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no shared memory here")
        self._regions[request.name] = SharedMemory(request.key.lstrip("/"))
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        if request.name in self._regions:
            self._regions.pop(request.name).close()
        return pb.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.asked.append("ModelInfer")
        self._goes_on.wait()
        raw = iter(request.raw_input_contents)
        dtypes = dict(DATATYPES.values())
        feeds = {}
        for each in request.inputs:
            place = self._place(each.parameters, context)
            data = next(raw) if place is None else bytes(place)
            feeds[each.name] = np.frombuffer(data, dtypes[each.datatype]).reshape(tuple(each.shape))
        names = [each.name for each in request.outputs]
        response = pb.ModelInferResponse(model_name=request.model_name)
        for wanted, array in zip(request.outputs, self._sessions[request.model_name].run(names, feeds), strict=True):
            datatype = next(name for name, dtype in DATATYPES.values() if array.dtype == dtype)
            response.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
            place = self._place(wanted.parameters, context)
            if place is None:
                response.raw_output_contents.append(array.tobytes())
            else:
                place[: array.nbytes] = array.tobytes()
        return response

    def _place(self, parameters: Any, context: Any) -> memoryview | None:
        """The bytes of a region that a tensor is in. None: it is in the message."""
        name = parameters["shared_memory_region"].string_param
        if not name:
            return None
        if name not in self._regions:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
        size, offset = (parameters[f"shared_memory_{key}"].int64_param for key in ("byte_size", "offset"))
        return self._regions[name].buf[offset : offset + size]
