"""The protos: linted, commented, never broken; generated code that is fresh; the conventions that others read."""

import importlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor, MethodDescriptor
from worldtree.options.v1 import options_pb2

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
SDK = ROOT / "clients/python/src"
BUF = Path(sys.executable).with_name("buf")
VIDEO = "worldtree/video/v1/video_generator.proto"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
# Calls that belong to no session; every other call is routed by field 1 of its request.
SESSIONLESS = {"ListModels", "GetModel", "CreateSession", "Generate", "Restore", "List", "Introspect"}
SESSIONLESS |= {"ListTasks", "Predict", "CreateMerge", "GetMerge", "ListMerges", "DeleteMerge", "ParetoFront"}
SESSIONLESS |= {"ListRubrics", "Score", "Compare", "Rank", "ScoreStream", "ScoreTree"}
SESSIONLESS |= {"ListPlanners", "PurgeCache"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def git(*arguments: str) -> bytes:
    """Its answer; skips the test where there is no git or no history."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def files() -> list[FileDescriptor]:
    names = [path.relative_to(PROTOS).with_suffix("") for path in sorted(PROTOS.rglob("*.proto"))]
    return [importlib.import_module(".".join(name.parts) + "_pb2").DESCRIPTOR for name in names]


def methods() -> list[MethodDescriptor]:
    services = [service for file in files() for service in file.services_by_name.values()]
    return [method for service in services for method in service.methods]


def edited_protos(folder: Path, old: str, new: str) -> Path:
    """A copy in which the video proto says `new` where it said `old`."""
    protos = Path(shutil.copytree(PROTOS, folder / "protos", ignore=shutil.ignore_patterns("__pycache__")))
    text = (protos / VIDEO).read_text()
    assert old in text, f"{VIDEO} does not hold {old!r}"
    (protos / VIDEO).write_text(text.replace(old, new, 1))
    return protos


def test_generated_code_is_what_the_protos_generate_and_nothing_else(tmp_path: Path) -> None:
    generated = run(sys.executable, "-P", PROTOS / "generate.py", tmp_path)
    assert generated.returncode == 0, generated.stderr

    def tree(root: Path) -> dict[str, bytes]:
        paths = [path for pattern in GENERATED for path in root.rglob(pattern)]
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    committed, fresh = tree(SDK), tree(tmp_path)
    assert sorted(committed) == sorted(fresh)
    changed = sorted(name for name in fresh if fresh[name] != committed[name])
    assert not changed, f"edited, or older than the protos (make protos): {changed}"


def test_buf_has_nothing_to_say() -> None:
    linted = run(BUF, "lint", PROTOS)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    "comment",
    [
        pytest.param("// Lists the caller's live sessions on this replica, oldest first.\n", id="rpc"),
        pytest.param("// Asks for all models.\n", id="message"),
        pytest.param("// Frames of history it brings, 1 or more.\n", id="field"),
        pytest.param("// Never sent.\n", id="enum value"),
        pytest.param("// What a session is doing.\n", id="enum"),
    ],
)
def test_buf_complains_when_a_comment_is_missing(tmp_path: Path, comment: str) -> None:
    linted = run(BUF, "lint", edited_protos(tmp_path, comment, "\n"))
    assert linted.returncode != 0
    assert "comment" in linted.stdout


def test_no_change_breaks_a_client(tmp_path: Path) -> None:
    # What is being worked on against what is committed; else the last change against what was there before it.
    changed = git("status", "--porcelain", "--", "protos").strip()
    ref = "HEAD" if changed else git("log", "-1", "--format=%H", "--", "protos").decode().strip() + "^"
    archive = git("archive", "--format=tar", ref, "protos")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            reader = tar.extractfile(member)
            assert reader is not None
            target = tmp_path / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(reader.read())
    compared = run(BUF, "breaking", PROTOS, "--against", tmp_path / "protos")
    assert compared.returncode == 0, compared.stdout


def test_buf_complains_when_a_field_is_gone(tmp_path: Path) -> None:
    broken = edited_protos(tmp_path, "  int32 depth = 2;\n", "")
    compared = run(BUF, "breaking", broken, "--against", PROTOS)
    assert compared.returncode != 0
    assert "depth" in compared.stdout


@pytest.mark.parametrize("method", methods(), ids=lambda method: str(method.name))
def test_field_1_of_a_request_is_its_session(method: MethodDescriptor) -> None:
    sessions = [field for field in method.input_type.fields if field.name == "session"]
    if method.name in SESSIONLESS:
        assert not sessions, "it has a session: the gateway must route by it"
        return
    first = method.input_type.fields_by_number.get(1)
    assert first is not None
    assert (first.name, first.type, first.is_repeated) == ("session", FieldDescriptor.TYPE_STRING, False)


def test_a_snapshot_is_field_1_of_its_request() -> None:
    (restore,) = [method for method in methods() if method.name == "Restore"]
    first = restore.input_type.fields_by_number[1]
    assert (first.name, first.type) == ("snapshot", FieldDescriptor.TYPE_STRING)


def test_only_calls_without_a_session_are_cached() -> None:
    cached = [method for method in methods() if method.GetOptions().HasExtension(options_pb2.cache)]
    assert {method.name for method in cached} == {
        *("ListModels", "GetModel", "Generate"),
        *("ListTasks", "Predict"),
        *("ListRubrics", "Score", "Compare", "Rank"),
    }
    for method in cached:
        assert method.name in SESSIONLESS
        assert not method.client_streaming, f"{method.full_name}: a stream of requests has no one key"
