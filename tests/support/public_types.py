"""Says which public names of the package a type checker does not fully know; run by ``nox -s types``.

pyright's ``--verifytypes`` reads the package as a user's type checker does. A name counts if it can be imported without
an underscore on the way.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = "utcp_websocket_anyio"


def mark_as_typed(package: str) -> None:
    """Let pyright read the annotations of a dependency that has them and does not say so (PEP 561).

    In this environment, which is nox's own.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed")
    Path(found.submodule_search_locations[0], "py.typed").touch()


def exported_symbols() -> list[dict[str, Any]]:
    """The verdict of pyright on each public name."""
    command = [sys.executable, "-m", "pyright", "--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"]
    done = subprocess.run([*command, "--pythonpath", sys.executable], stdout=subprocess.PIPE, text=True, check=False)
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    # The command is no interface for Python, though its package has no underscore.
    return [symbol for symbol in symbols if symbol["isExported"] and ".cli." not in symbol["name"]]


def main() -> None:
    """Exit with 1 if a public name is not fully typed."""
    mark_as_typed("utcp")
    symbols = exported_symbols()
    unknown = [symbol for symbol in symbols if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    for symbol in unknown:
        for diagnostic in symbol["diagnostics"]:
            print(f"{symbol['name']}: {diagnostic['message']}")
    print(f"{len(symbols) - len(unknown)} of {len(symbols)} public names are fully typed")
    if unknown or not symbols:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
