#!/usr/bin/env bash
# Installs the project on a machine that may lack Python 3.11 or newer, as many images of clouds do: uv then brings one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:$HOME/.local/bin

found() {
    local candidate
    for candidate in python3.{13,12,11} python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return 0; fi
    done
    return 1
}

if ! found; then
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv python install 3.12
fi
exec launch/local.sh true
