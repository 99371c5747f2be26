"""Runs the commands of docs/bring-your-own-model.md, and writes there what they print.

.venv/bin/python docs/run_commands.py
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path(__file__).with_name("bring-your-own-model.md")
BROKEN = "worldtree models validate 1 | grep bad"  # of the block in which `window` is not what was exported
COLUMNS = 100


def main() -> None:
    text = DOCUMENT.read_text()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": str(COLUMNS),
        "NO_COLOR": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def printed(command: str) -> str:
            done = subprocess.run(  # noqa: S603 - the commands of our own document
                ["/bin/sh", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
            )
            return "\n".join(line.rstrip() for line in done.stdout.splitlines())

        def run(block: re.Match[str]) -> str:
            nonlocal folder
            lines = []
            for command in re.findall(r"^\$ (.*)$", block[1], re.MULTILINE):
                if command.startswith("worldtree up"):
                    return block[0]  # it prints one line, and serves for ever
                lines.append(f"$ {command}")
                if command.startswith("cd "):
                    folder /= command[3:]
                elif output := printed(command):
                    lines.append(output)
            return "\n".join(["```console", *lines, "```"])

        def run_broken(_: re.Match[str]) -> str:
            manifest = folder / "1/model.yaml"
            sound = manifest.read_text()
            manifest.write_text(sound.replace("window: 1", "window: 2"))
            said = printed(BROKEN)
            manifest.write_text(sound)
            return f"```text\n{said}\n```"

        text = re.sub(r"^```console\n(.*?)^```$", run, text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"^```text\n(.*?)^```$", run_broken, text, flags=re.MULTILINE | re.DOTALL)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
