"""A real Triton server, from the package nvidia-pytriton, which brings it with its Python backend.

It has an environment of its own: `make test-triton` makes one, and names its interpreter in WORLDTREE_TRITON_PYTHON.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

PYTHON = os.environ.get("WORLDTREE_TRITON_PYTHON")
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
TYPES = {"float": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
MODEL = """
import sys

sys.path.insert(0, {packages!r})
import onnxruntime as ort
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession({graph!r}, options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [node.name for node in self.session.get_inputs()]
        feeds = {{name: utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}}
        wanted = [node.name for node in self.session.get_outputs()]
        made = zip(wanted, self.session.run(wanted, feeds))
        return utils.InferenceResponse([utils.Tensor(name, array) for name, array in made])
"""


class TritonServer:
    """`graphs`: ONNX files by the names of models. It may be stopped, and started again at the same port."""

    def __init__(self, folder: Path, graphs: Mapping[str, Path], *, shares_memory: bool = True) -> None:
        assert PYTHON is not None, "whoever starts one has looked"
        packages = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))"))
        libraries = python("import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")
        version = python("import sys; print('%d.%d' % sys.version_info[:2])")
        bundle = packages / "pytriton/tritonserver"
        backend, repository = folder / "backends/python", folder / "repository"
        shutil.copytree(bundle / "backends/python", backend)
        shutil.copy(bundle / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        for name, graph in graphs.items():
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "config.pbtxt").write_text(config(graph))
            (repository / name / "1/model.py").write_text(MODEL.format(packages=str(packages), graph=str(graph)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._regions = f"triton-{port}-"  # of its Python backend, in shared memory
        self._command = [
            str(bundle / "bin/tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={folder / 'backends'}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            "--allow-http=0",
            "--allow-metrics=0",
            "--exit-timeout-secs=3",
        ]
        if not shares_memory:
            self._command.append("--grpc-restricted-protocol=shared-memory:key=value")
        self._environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{packages / 'nvidia_pytriton.libs'}"}
        self._log = folder / "triton.log"
        self._names = list(graphs)
        self.start()

    def start(self) -> None:
        # Its Python backend ends with boost::interprocess::lock_exception at times, as it starts.
        if not any(self._try_to_start() for _ in range(3)):
            raise RuntimeError(f"Triton does not serve:\n{self._log.read_text()[-4000:]}")

    def _try_to_start(self) -> bool:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        ends_s = time.monotonic() + START_TIMEOUT_S
        with triton.InferenceServerClient(self.address) as client:
            while not self._is_ready(client):
                if self._process.poll() is not None or time.monotonic() > ends_s:
                    self.stop()
                    return False
                time.sleep(0.1)
        return True

    def _is_ready(self, client: Any) -> bool:
        try:
            return all(client.is_model_ready(name, client_timeout=2.0) for name in self._names)
        except InferenceServerException:
            return False

    @property
    def region_count(self) -> int:
        with triton.InferenceServerClient(self.address) as client:
            return len(client.get_system_shared_memory_status().regions)

    def stop(self) -> None:
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a server that crashed leaves the processes of its models
        for left in Path("/dev/shm").glob(f"{self._regions}*"):
            left.unlink()

    def pause(self) -> None:
        """It answers nobody."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def python(program: str) -> str:
    return subprocess.check_output([str(PYTHON), "-c", program], text=True).strip()


def config(graph: Path) -> str:
    session = ort.InferenceSession(str(graph))
    lines = ['backend: "python"', "max_batch_size: 0", "instance_group { count: 1 kind: KIND_CPU }"]
    for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for node in nodes:
            dims = [side if isinstance(side, int) else -1 for side in node.shape]
            datatype = TYPES[node.type[len("tensor(") : -1]]
            lines.append(f'{kind} {{ name: "{node.name}" data_type: {datatype} dims: {dims} }}')
    return "\n".join(lines)
