#!/usr/bin/env bash
# What `make test-compose` needs from package registries, once, into out/: all else it does without a network.
#   out/wheelhouse                    the wheels that the images are built from
#   out/compose/debian.tar            Debian with Python, the BASE of our images
#   out/compose/infrastructure.tar    the same with Redis, HAProxy and Prometheus, in the place of their own images
# Debian's packages docker.io, docker-compose and debootstrap do the rest.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=$PWD/out/compose
mkdir -p "$out"

for tool in dockerd docker-compose debootstrap; do
  command -v $tool >/dev/null || { echo "$tool is missing: apt-get install docker.io docker-compose debootstrap" >&2; exit 1; }
done

# The Debian whose Python takes the wheels that are made here.
case "$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")')" in
  3.11) suite=bookworm ;;
  3.13) suite=trixie ;;
  *) echo "no Debian has the Python of .venv: make it with 3.11 or 3.13" >&2; exit 1 ;;
esac

# Made under another name first: a half-made one is not taken for whole.
if [ ! -e "$out/debian.tar" ]; then
  rm -rf "$out/tree"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv $suite "$out/tree" >"$out/debootstrap.log"
  rm -rf "$out"/tree/var/cache/apt/archives/*.deb "$out"/tree/var/lib/apt/lists/*
  tar -C "$out/tree" -cf "$out/debian.tar.part" .
  mv "$out/debian.tar.part" "$out/debian.tar"
  rm -rf "$out/tree"
fi
if [ ! -e "$out/infrastructure.tar" ]; then
  rm -rf "$out/tree"
  debootstrap --variant=minbase --include=redis-server,haproxy,prometheus,wget $suite "$out/tree" >"$out/debootstrap.log"
  rm -rf "$out"/tree/var/cache/apt/archives/*.deb "$out"/tree/var/lib/apt/lists/*
  chroot "$out/tree" sh -c 'install -d -o redis /data && install -d -o prometheus /prometheus'
  tar -C "$out/tree" -cf "$out/infrastructure.tar.part" .
  mv "$out/infrastructure.tar.part" "$out/infrastructure.tar"
  rm -rf "$out/tree"
fi

# In the versions that the tests beside us run with.
.venv/bin/python -m pip freeze --quiet --exclude-editable >"$out/constraints.txt"
.venv/bin/python tests/e2e/compose/requirements.py >"$out/requirements.txt"
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir out/wheelhouse \
  --constraint "$out/constraints.txt" --requirement "$out/requirements.txt"
