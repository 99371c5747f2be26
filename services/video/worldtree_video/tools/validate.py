"""Whether a package can be served: its manifest, its graphs, a dry run of both, its starts and its papers."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnx
import yaml
from pydantic import ValidationError
from worldtree_runtime.model_package import OtherKind, PackageError, read_package
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.settings import SettingsError
from worldtree_runtime.video_package import StoredVideo, VideoPackage

from worldtree_video import formats
from worldtree_video.block_store import BlockStore
from worldtree_video.catalog import read_start
from worldtree_video.codec import Codec
from worldtree_video.domain import Origin, Storage
from worldtree_video.errors import SceneNotFinite
from worldtree_video.model import VideoModel
from worldtree_video.scene import SceneModel
from worldtree_video.tools.dry_run import DryRun, Look
from worldtree_video.tools.findings import Finding, Report, Verdict, bad

_MANIFEST, _CARD = "model.yaml", "MODEL_CARD.md"
_TRACE = "stack_trace"  # ends the key under which PyTorch notes where in a program a node came from
_ANY_BATCH = "must run on any batch"
_NOT_THE_PACKAGES = (MemoryError, SettingsError)  # what says something of this machine only


def validate(folder: Path) -> Report:
    """Looks at everything it can get to: what is wrong in the manifest is told whole, what is wrong in a graph only
    where the manifest is right.
    """
    folder = folder.resolve()
    findings = list(_other_kind(folder) or _manifest(folder))
    digest = ""
    if not any(finding.verdict is Verdict.BAD for finding in findings):
        try:
            stored = ModelRepository(folder.parent.parent, VideoPackage).read(folder)
        except PackageError as error:
            findings.append(bad(error))
        else:
            digest = stored.digest
            findings += [*_starts(stored), *_weights(stored), *_papers(stored)]
            if not any(finding.verdict is Verdict.BAD and finding.file.endswith(".onnx") for finding in findings):
                findings += _graphs(stored)
    return Report(f"{folder.parent.name}/{folder.name}", digest, tuple(findings))


def _other_kind(folder: Path) -> list[Finding]:
    """A package of another service is no broken world, and nothing else need be said of it."""
    try:
        read_package(folder / _MANIFEST, VideoPackage)
    except OtherKind as error:
        return [bad(error)]
    except PackageError:
        pass  # told whole by `_manifest`
    return []


def _manifest(folder: Path) -> Iterator[Finding]:
    file = folder / _MANIFEST
    try:
        VideoPackage.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield Finding(Verdict.BAD, _MANIFEST, _MANIFEST, f"must be readable YAML: {' '.join(str(error).split())}")
    except ValidationError as error:
        for each in error.errors():
            yield Finding(Verdict.BAD, _MANIFEST, ".".join(map(str, each["loc"])) or _MANIFEST, each["msg"])
    else:
        yield Finding(Verdict.OK, _MANIFEST, "schema", "every field is what it must be")


def _starts(stored: StoredVideo) -> Iterator[Finding]:
    starts = stored.package.starts
    readable = 0
    for start in starts:
        try:
            read_start(stored, start)
        except PackageError as error:
            yield bad(error)
        else:
            readable += 1
    if not starts:
        yield Finding(
            Verdict.NOTE, _MANIFEST, "starts", "none: a world begins from frames that its client brings, or a prompt"
        )
    elif readable == len(starts):
        yield Finding(Verdict.OK, _MANIFEST, "starts", f"{readable} readable, of the model's frames and actions")


def _weights(stored: StoredVideo) -> Iterator[Finding]:
    """Weights in files of their own must be inside: the package travels as one folder. Traces should not be."""
    for name in stored.package.files.named().values():
        try:
            graph = onnx.load(str(stored.folder / name), load_external_data=False)
        except Exception as error:  # the parser's own kinds are not public
            yield Finding(Verdict.BAD, name, name, f"must be an ONNX model: {' '.join(str(error).split())}")
            continue
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                place = stored.folder / entry.value
                if entry.key == "location" and not place.resolve().is_relative_to(stored.folder.resolve()):
                    yield Finding(
                        Verdict.BAD, name, tensor.name, f"must have its weights in the package, not in {entry.value}"
                    )
        if any(entry.key.endswith(_TRACE) for node in graph.graph.node for entry in node.metadata_props):
            yield Finding(
                Verdict.NOTE, name, "metadata_props", "holds the exporter's stack traces, with paths of its machine"
            )


def _graphs(stored: StoredVideo) -> Iterator[Finding]:
    package, files = stored.package, stored.package.files
    try:
        VideoModel(stored, block_counts={Storage.FP32: 1})  # opens the package's own graphs, and checks their signature
        codec = Codec(stored)
        scene = SceneModel(stored, package.prompt, codec) if package.prompt else None
    except PackageError as error:
        yield bad(error)
        return
    try:
        for storage in (Storage.FP16, Storage.INT8):
            BlockStore(stored, storage, block_count=1)
    except PackageError as error:
        yield bad(error)
        return
    except _NOT_THE_PACKAGES:
        raise
    except Exception as error:  # of a graph that takes no rewriting into another storage format
        yield _broken(files.commit, "storage", "must bear storage in 16 and 8 bits", error)
        return
    yield Finding(Verdict.OK, "*.onnx", "signature", "names, types and shapes are the contract's")
    try:
        run = DryRun(stored, codec, _origin(stored))
    except _NOT_THE_PACKAGES:
        raise
    except Exception as error:  # of any of the graphs that write a history
        yield _broken("*.onnx", "run", _ANY_BATCH, error)
        return
    yield from _looked(files.denoise, "run", _ANY_BATCH, run.denoise)
    yield from _looked(files.commit, "run", _ANY_BATCH, run.commit)
    yield from _looked(files.decode or files.denoise, "run", _ANY_BATCH, run.rollout)
    if package.latent:
        yield from _looked(files.encode or "", "run", _ANY_BATCH, run.codec_batches)
    if scene:
        yield from _looked(files.scene or "", "run", "must run for each of its words", partial(_scene, scene))
    yield from _looked(_MANIFEST, "kv", "a block must bear storage in 16 and 8 bits", partial(_storage, stored))


def _looked(file: str, field: str, must: str, looks: Callable[[], Iterator[Look]]) -> Iterator[Finding]:
    """What some looks found; where they break off, that `field` is not what it `must` be."""
    try:
        for verdict, place, found in looks():
            yield Finding(verdict, file, place, found)
    except _NOT_THE_PACKAGES:
        raise
    except Exception as error:  # whatever ONNX Runtime raises in the middle of a graph
        yield _broken(file, field, must, error)


def _broken(file: str, field: str, must: str, error: Exception) -> Finding:
    return Finding(Verdict.BAD, file, field, f"{must}: {' '.join(str(error).split())}")


def _origin(stored: StoredVideo) -> Origin | None:
    for start in stored.package.starts:
        try:
            return read_start(stored, start)
        except PackageError:
            continue
    return None


def _scene(scene: SceneModel) -> Iterator[Look]:
    """A scene of no words, and of all that there are, as many at once as a prompt may hold."""
    size, words = scene.spec.tokens, range(1, len(scene.spec.words) + 1)
    prompts = [[], *(list(words[first : first + size]) for first in range(0, len(words), size))]
    try:
        for tokens in prompts:
            asyncio.run(scene.draw(tokens + [0] * (size - len(tokens)), seed=1))
    except SceneNotFinite:
        yield Verdict.BAD, "x0", "must be finite for each word and for none"
    else:
        yield Verdict.OK, "x0", f"finite for each of {len(words)} words and for none"


def _storage(stored: StoredVideo) -> Iterator[Look]:
    """Whether blocks bear being stored in fewer bits."""
    kv, lines = stored.package.kv, []
    for storage in Storage:
        store = BlockStore(stored, storage, block_count=1)
        lines.append(f"{storage.value} {formats.block_bytes(kv, storage)} bytes")
        run = DryRun(stored, Codec(stored), _origin(stored), store=store)
        if not run.finite_in_one_block():
            yield Verdict.BAD, "kv", f"a block stored as {storage.value} must stay finite"
    yield Verdict.OK, "kv", f"a block: {', '.join(lines)}"


def _papers(stored: StoredVideo) -> Iterator[Finding]:
    if not (stored.folder / _CARD).is_file():
        yield Finding(Verdict.NOTE, _CARD, _CARD, "none: say what it was trained on, how, and what it cannot do")
    for field in ("license", "description"):
        if not getattr(stored.package, field):
            yield Finding(Verdict.NOTE, _MANIFEST, field, "empty: whoever is served the model is shown it")
