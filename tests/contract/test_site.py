"""The site of docs/: it builds without a warning, and its reference is what the code says today."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILD_TIMEOUT_S = 170.0


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)


def mkdocs(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target, cwd=root)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    built = mkdocs(ROOT, target)
    assert built.returncode == 0, built.stdout + built.stderr
    return target


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_fresh() -> None:
    checked = run(sys.executable, DOCS / "generate.py", "--check")
    assert checked.returncode == 0, f"{checked.stderr}write it anew: python docs/generate.py"


def test_a_reference_that_was_edited_is_called_stale(generator: ModuleType, tmp_path: Path) -> None:
    written = generator.pages()
    generator.OUT = Path(shutil.copytree(DOCS / "reference", tmp_path / "reference"))
    assert generator.stale(written) == []
    (generator.OUT / "video.md").write_text("by hand")
    (generator.OUT / "nobody.md").write_text("")
    (generator.OUT / "errors.md").unlink()
    assert generator.stale(written) == ["errors.md", "nobody.md", "video.md"]


def test_the_reference_has_every_method_field_and_value(generator: ModuleType) -> None:
    pages = generator.pages()
    for proto in sorted((ROOT / "protos/worldtree").rglob("*.proto")):
        page = pages[f"{proto.parts[-3]}.md"]
        code = re.sub(r"//.*", "", proto.read_text())
        for method in re.findall(r"^\s*rpc (\w+)", code, re.MULTILINE):
            assert f"### {method} {{" in page, method
        for name, number in re.findall(r"(\w+) = (\d+)[;\[]", code):
            assert re.search(rf"^\| `{name}` \|.* {number} \|", page, re.MULTILINE), f"{proto.name}: {name}"


def test_no_field_and_no_error_is_without_a_word(generator: ModuleType) -> None:
    for name, page in generator.pages().items():
        told = re.sub(r"^\|.*\n\|( --- \|)+\n", "", page, flags=re.MULTILINE)  # without the heads of tables
        assert not re.findall(r"^\|.*\|\s*\|$", told, re.MULTILINE), name


def test_the_site_has_a_page_for_each_document_and_for_those_of_the_root(site: Path) -> None:
    documents = {file.relative_to(DOCS).with_suffix(".html") for file in DOCS.rglob("*.md")}
    root = {Path(f"{name}.html") for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY", "runbooks")}
    there = {file.relative_to(site) for file in site.rglob("*.html")}
    assert documents | root <= there


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=.?https?://[^\s>]+", page.read_text()
        )
        assert not loaded, page.name


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "docs/index.md").open("a") as index:
        index.write("\n[nowhere](nowhere.md)\n")
    broken = mkdocs(tmp_path, tmp_path / "site")
    assert broken.returncode != 0
    assert "nowhere.md" in broken.stdout + broken.stderr


@pytest.mark.parametrize("name", ["concept-system", "concept-blocks", "concept-ticks"])
def test_a_picture_is_the_one_that_its_script_draws(name: str, tmp_path: Path) -> None:
    shutil.copy(DOCS / "draw_concepts.py", tmp_path)
    assert run(sys.executable, tmp_path / "draw_concepts.py").returncode == 0
    drawn = (tmp_path / f"{name}.svg").read_text()
    assert drawn == (DOCS / f"{name}.svg").read_text()
    ElementTree.fromstring(drawn)
