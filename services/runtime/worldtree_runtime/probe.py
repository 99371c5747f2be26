"""`python -m worldtree_runtime.probe SERVICE`: code 0 while that service lives here. The images' health check.

It asks the metrics port that the variables or worldtree.yaml give the service, or the default. It knows no flags, and
does not read the settings as a service does, which would take half a second of a core, every few seconds, beside
each service; its test compares the two.
"""

import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_PORTS = {"gateway": 7071, "video": 7111, "multitask": 7121, "reward": 7131, "navigator": 7141}
TIMEOUT_S = 4.0


def metrics_port(service: str, environ: Mapping[str, str]) -> int:
    """0: one that nobody can know. Raises ValueError where it is no number."""
    given = _from_yaml(service, environ)
    for name in ("port", "metrics_port"):
        value = environ.get(f"WORLDTREE_{service.upper()}_{name.upper()}")
        if value and "://" not in value:  # what Kubernetes says of a Service is none of our settings
            given[name] = value
    if given.get("metrics_port") is not None:
        return int(given["metrics_port"])
    if given.get("port") is not None:
        port = int(given["port"])
        return port + 1 if 0 < port < 65535 else 0
    return METRICS_PORTS[service]


def _from_yaml(service: str, environ: Mapping[str, str]) -> dict[str, Any]:
    file = Path(environ.get("WORLDTREE_CONFIG") or "worldtree.yaml")
    if not file.is_file():
        return {}
    import yaml  # only where there is something to read

    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    own = document.get(service) if isinstance(document, dict) else None
    return dict(own) if isinstance(own, dict) else {}


def main(service: str) -> None:
    port = metrics_port(service, os.environ)
    if not port:
        raise SystemExit(f"{service} has a free port for its metrics, which nobody can know: set metrics_port")
    # not /readyz: a replica that is full takes no new session, and is not ill
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(f"{service} does not answer at port {port}: {error}") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise SystemExit(f"{service} says {status}")


if __name__ == "__main__":
    main(sys.argv[1])
