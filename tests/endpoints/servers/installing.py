"""Getting a server that others wrote onto this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CannotInstallError", "debian_program", "node_script", "python_module"]

_HERE = Path(__file__).parent
_SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
_LONGEST = 600


class CannotInstallError(Exception):
    """A server cannot be had on this machine; the text says why."""


def python_module(name: str) -> str:
    """A module that the session has installed into its environment (requirements.txt)."""
    if importlib.util.find_spec(name) is None:
        raise CannotInstallError(f"the Python module {name} is not in this environment; see requirements.txt")
    return name


def debian_program(program: str, package: str) -> str:
    """The path of a program, from Debian's package where it is not there yet and we may install it."""
    found = shutil.which(program, path=_SYSTEM_PATH)
    if found is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise CannotInstallError(f"{program} is not installed, and installing the package {package} takes root")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        try:
            _run(install)
        except CannotInstallError:  # the lists of a new machine are empty or old
            _run(["apt-get", "update", "-qq"])
            _run(install)
        found = shutil.which(program, path=_SYSTEM_PATH)
    if found is None:
        raise CannotInstallError(f"the package {package} brings no {program}")
    return found


def node_script(name: str, cache: Path) -> list[str]:
    """The command that runs a script of this folder with the packages of package.json at hand."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise CannotInstallError("there is no node or no npm")
    folder = cache / "node"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (_HERE / "package.json").read_text()
    manifest = folder / "package.json"
    if not (folder / "node_modules").is_dir() or not manifest.is_file() or manifest.read_text() != wanted:
        manifest.unlink(missing_ok=True)
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        shutil.copy(_HERE / "package.json", draft)
        flags = ["--prefix", str(draft), "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        _run([npm, "install", *flags])
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        (draft / "node_modules").rename(folder / "node_modules")
        manifest.write_text(wanted)
        shutil.rmtree(draft)
    script = folder / name
    shutil.copy(_HERE / name, script)
    return [node, str(script)]


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise CannotInstallError(f"{' '.join(command[:2])} took longer than {_LONGEST} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise CannotInstallError(f"{Path(command[0]).name} {command[1]}: {last}")
