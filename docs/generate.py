"""Writes docs/reference: what the protos, the errors and the settings say of themselves.

python docs/generate.py           write it
python docs/generate.py --check   code 1 where it is not what would be written
"""

import sys
from pathlib import Path

from reference_errors import errors_page
from reference_protos import proto_pages
from reference_settings import settings_page

OUT = Path(__file__).with_name("reference")
NOTE = "<!-- Written by docs/generate.py: what is to be changed here is changed in the code. -->\n\n"


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    found = {**proto_pages(), "errors.md": errors_page(), "settings.md": settings_page()}
    return {name: NOTE + text for name, text in found.items()}


def stale(written: dict[str, str]) -> list[str]:
    """Names of files that are missing, old, or nobody's."""
    there = {file.name: file.read_text() for file in OUT.glob("*.md")}
    return sorted(name for name in {*written, *there} if written.get(name) != there.get(name))


def main() -> int:
    written = pages()
    if "--check" in sys.argv[1:]:
        found = stale(written)
        if found:
            print(f"not as docs/generate.py writes them: {', '.join(found)}", file=sys.stderr)
        return len(found) > 0
    OUT.mkdir(exist_ok=True)
    for name in stale(written):
        if name in written:
            (OUT / name).write_text(written[name])
        else:
            (OUT / name).unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
