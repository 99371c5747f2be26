"""ONNX Runtime sessions: one place that picks providers, threads and checks a graph against its contract."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from worldtree_runtime.model_package import PackageError
from worldtree_runtime.settings import SettingsError

# Newer ones would tell their makers what they run.
ort.disable_telemetry_events()

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # Products of float32 in 19 bits, the default there, would lose what a package was measured with.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}
_INSTRUCTION_SETS = ("avx512f", "avx512_bf16", "amx_tile", "avx2", "avx", "asimd", "sve")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a graph's input or output must be. `shape`: None where an extent differs from run to run."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def open_session(
    path: Path, *, graph: bytes | None = None, device: str = "cpu", threads: int = 1, optimized: Path | None = None
) -> ort.InferenceSession:
    """Loads a graph. Raises PackageError when ONNX Runtime refuses it, SettingsError when it lacks the device.

    `graph`: bytes to load instead of the file's, a rewriting of it; weights in files beside it are found all the same.
    `optimized`: where to write the graph as it will run.
    """
    if device not in _PROVIDERS:
        raise SettingsError(f"device must be one of {sorted(_PROVIDERS)}, got {device!r}")
    provider, provider_options = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise SettingsError(f"device {device!r} needs {provider}; this onnxruntime has {ort.get_available_providers()}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads starve the event loop and the gateway on a small machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        session = ort.InferenceSession(
            str(path) if graph is None else graph, options, providers=[(provider, provider_options)]
        )
    except Exception as error:  # ORT raises one class per failure, with no common base but Exception
        raise PackageError(path, "graph", f"ONNX Runtime cannot load it: {error}") from error
    if provider not in session.get_providers():
        # A library of CUDA that is missing or too old: ONNX Runtime says so in its log only, and takes the processor.
        raise SettingsError(f"device {device!r}: {provider} could not be started; see what ONNX Runtime logged")
    return session


def check_signature(
    path: Path, session: ort.InferenceSession, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Compares a graph's inputs and outputs with a contract. Raises PackageError at the first difference."""
    compare_tensors(path, "input", inputs, [_spec(node) for node in session.get_inputs()])
    compare_tensors(path, "output", outputs, [_spec(node) for node in session.get_outputs()])


def compare_tensors(file: Path, kind: str, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    """What a graph has, by whatever runs it, beside a contract. Raises PackageError at the first difference."""
    by_name = {spec.name: spec for spec in found}
    if unknown := sorted(set(by_name) - {spec.name for spec in wanted}):
        raise PackageError(file, f"{kind} {unknown[0]}", f"is not one of {[spec.name for spec in wanted]}")
    for spec in wanted:
        have = by_name.get(spec.name)
        if have is None:
            raise PackageError(file, f"{kind} {spec.name}", f"is missing; the graph has {sorted(by_name)}")
        if have.dtype != spec.dtype:
            raise PackageError(file, f"{kind} {spec.name}", f"must be tensor({spec.dtype}), got tensor({have.dtype})")
        if not _shape_fits(have.shape, spec.shape):
            raise PackageError(file, f"{kind} {spec.name}", f"must have shape {spec.shape}, got {have.shape}")


def _spec(node: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return TensorSpec(node.name, node.type.removeprefix("tensor(").removesuffix(")"), shape)


def _shape_fits(found: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    # An extent that the graph leaves open fits anything; a fixed one only its own number.
    return len(found) == len(wanted) and all(
        have is None or have == want for have, want in zip(found, wanted, strict=True)
    )


# Of noise, samplers, block formats and rounding: to be raised with whatever moves a bit of a frame, or a store would
# give a new version the blocks of an old one as its own.
_ARITHMETIC = 1


def fingerprint(device: str, threads: int) -> str:
    """Names all that decides the last bit of a result: our own arithmetic, runtime, provider, threads, machine,
    instruction sets.
    """
    instructions = "+".join(_instruction_sets()) or "generic"
    versions = f"worldtree-{_ARITHMETIC}/onnxruntime-{ort.__version__}"
    return f"{versions}/{device}-{threads}/{platform.machine()}/{instructions}"


def _instruction_sets() -> list[str]:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [name for name in _INSTRUCTION_SETS if name in flags]
