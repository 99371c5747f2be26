"""The `worldtree` command. Its packages come with the extra `cli`; without them it says how to get them."""

import os
import sys

CLI_PACKAGES = frozenset({"typer", "rich", "yaml", "PIL"})


def main() -> None:
    """Entry point of the `worldtree` command."""
    # gRPC's own notes (a GOAWAY when a server drains) would land in the middle of our pictures and progress bars.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from worldtree.cli.app import run
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # while the packages were still loading
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in CLI_PACKAGES:
            raise
        sys.stderr.write(
            f"worldtree: the command needs the package {package}, which is not installed; "
            "install it with: pip install 'worldtree[cli]'\n"
        )
        raise SystemExit(1) from None
    run()
