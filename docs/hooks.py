"""What mkdocs.yml has done beside: pages of the root are pages of the site, and runbooks are listed."""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")

log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: Any) -> Files:
    for name in PAGES:
        # as they would stand in docs/
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "runbooks.md", content=_runbooks()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """A link to what is in the repository and not on the site says where that is. A dead one stays, and is refused."""
    folder = Path(page.file.src_uri).parent

    def told(link: re.Match[str]) -> str:
        picture, text, target, _anchor = link.groups()
        if picture or "://" in target or files.get_file_from_path(_normal(folder / target)) is not None:
            return link[0]
        # a page of the root links from there, the others from docs/
        base = ROOT if page.file.src_uri in PAGES else ROOT / "docs" / folder
        there = (base / target).resolve()
        if not there.exists():
            return link[0]
        return f"{text} (`{there.relative_to(ROOT)}`)"

    return LINK.sub(told, markdown)


def _normal(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _runbooks() -> str:
    lines = ["# Runbooks", "", "A page for each alert of `deploy/prometheus/rules`.", ""]
    for file in sorted((ROOT / "docs/runbooks").glob("*.md")):
        title = file.read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}](runbooks/{file.name})")
    return "\n".join(lines) + "\n"
