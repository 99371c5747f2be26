"""Writes the rules as a PrometheusRule for Prometheus' operator: kustomize cannot wrap a file into an object.

python deploy/prometheus/to_kubernetes.py
"""

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).with_name("rules")
OUT = Path(__file__).parents[1] / "k8s/components/monitoring/rules.yaml"


def prometheus_rule() -> str:
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    document: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "worldtree"},
        "spec": {"groups": groups},
    }
    made = "# Made by deploy/prometheus/to_kubernetes.py from deploy/prometheus/rules; change those.\n"
    return made + yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    OUT.write_text(prometheus_rule())
