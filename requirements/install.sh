#!/usr/bin/env bash
# Creates the virtual environment and installs what is missing in it. Called by `make setup`; safe to run again.
# Usage: requirements/install.sh [VENV_DIR]       PYTHON=python3.12 requirements/install.sh   picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv}"

fail() {
  printf '\nset-up stopped: %s\n' "$1" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
}

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found. Install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3.11."
  echo "creating $venv with $("$python" --version)"
  "$python" -m venv "$venv" || fail "'$python -m venv' failed. On Debian: apt-get install python3-venv. Then remove $venv and try again."
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# pip 26.3 refuses the Detectron2 source package because an extra that nobody installs names a URL.
if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) >= (26, 3))'; then
  pip install --quiet "pip<26.3" || fail "could not install pip<26.3 into $venv. Check that the package index is reachable."
fi
echo "installing the dependencies of pyproject.toml (several GB with a CUDA build of torch; minutes on a first run)"
pip install --quiet "setuptools>=77.0.3" || fail "could not install setuptools. Check that the package index is reachable."
pip install --quiet --editable ".[dev]" || fail "a dependency could not be installed. The lines above name it; check disk space (7 GB) and the package index."

# A Detectron2 or panopticapi that is already there (v0.6 or upstream main) is kept.
missing="$("$venv/bin/python" - <<'PY'
import importlib.util
for package in ("detectron2", "panopticapi"):
    if importlib.util.find_spec(package) is None:
        print(package)
PY
)"
if [ -n "$missing" ]; then
  echo "installing without dependencies:" $missing
  pip install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 \
    --requirement requirements/no_deps.txt ||
    fail "Detectron2 or panopticapi could not be installed. Try: $venv/bin/pip install --no-deps panopticapi-lite==0.2.0, and Detectron2 from its own source tree."
fi
"$venv/bin/python" -c 'import padding, detectron2, panopticapi.evaluation' ||
  fail "the installation is incomplete: an import failed (see above). Remove $venv and run make again."
echo "ready: $venv"
