"""``utcp-ws serve``: the functions of a Python module as tools."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import ssl
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import click

from .._connections.task_groups import single_error_task_group
from .._server.server import ToolServer
from .command import Command
from .failures import Failure
from .options import as_json_option, backend_option
from .output import echo, json_text, note
from .running import run

__all__ = ["Published", "publish", "serve"]


@click.command(
    cls=Command,
    examples=(
        "utcp-ws serve tools.py",
        "utcp-ws serve package.tools --port 9000 --origin http://localhost:3000",
        "utcp-ws serve tools.py --host 0.0.0.0 --token TOKEN --allow-host tools.lan",
    ),
)
@click.argument("module", metavar="MODULE")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one.")
@click.option(
    "--token",
    envvar="UTCP_WS_TOKEN",
    metavar="TOKEN",
    help="Serve only clients that send it, as 'Authorization: Bearer TOKEN' or '?token=TOKEN'. "
    "Better set in the environment, as UTCP_WS_TOKEN: other users see command lines.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin connect, such as http://localhost:3000. May be repeated.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A further name or address under which clients reach the server. May be repeated.",
)
@click.option("--certificate", type=click.Path(path_type=Path), help="A PEM file, to serve wss://.")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key, if not in the same file.")
@backend_option
@as_json_option
def serve(
    module: str,
    *,
    host: str,
    port: int,
    token: str | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
    backend: str,
    as_json: bool,
) -> None:
    """Publish the functions of a Python module as tools, until Ctrl-C.

    MODULE is a file (tools.py) or a name (package.tools). Every public function that it defines becomes a tool, its
    schema made of the type hints; if it has __all__, every function that is listed there. A module that has a
    ToolServer is served as that says.

    Async functions run in the event loop that --backend chooses, plain ones in threads. Generators are streams.
    """
    options = {"token": token, "origins": origins, "hosts": hosts, "ssl_context": _tls(certificate, key)}
    published = publish(module, {name: value for name, value in options.items() if value not in (None, ())})
    run(partial(_serve, published, host, port, as_json), backend=backend)


@dataclass(frozen=True)
class Published:
    """A server of a module's functions.

    Attributes:
        left_out: The functions that cannot be tools, and why.
    """

    server: ToolServer
    left_out: dict[str, str] = field(default_factory=dict)


async def _serve(published: Published, host: str, port: int, as_json: bool) -> None:
    async with single_error_task_group() as task_group:
        try:
            await task_group.start(published.server.serve, host, port)
        except OSError as error:
            raise Failure(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None
        _announce(published, as_json=as_json)
        await anyio.sleep_forever()


def _announce(published: Published, *, as_json: bool) -> None:
    """Say what is served, to whom, and what is not."""
    server = published.server
    tools = server.manual()["tools"]
    if as_json:
        names = [tool["name"] for tool in tools]
        said = {"url": server.url, "tools": names, "audience": server.audience, "left_out": published.left_out}
        echo(json_text(said))
        return
    echo(server.url)
    for tool in tools:
        parameters = ", ".join(tool["inputs"].get("properties", {}))
        summary = tool["description"].partition("\n")[0]
        note(f"  {tool['name']}({parameters}){f': {summary}' if summary else ''}")
    for name, reason in published.left_out.items():
        echo(f"  {name} is left out: {reason}", err=True, style={"fg": "yellow"})
    if "everybody" in server.audience and "token" not in server.audience:
        echo("There is no token: --token would keep others out.", err=True, style={"fg": "yellow"})
    note(f"for {server.audience}; Ctrl-C ends it")


def _load(name: str) -> ModuleType:
    """Import a module by its file or name; its own directory is where it finds others."""
    try:
        path = Path(name)
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(name)
        if not path.is_file():
            raise Failure(f"file not found: {name}")
        sys.path.insert(0, str(path.parent.resolve()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except Failure:
        raise
    except Exception as error:  # noqa: BLE001 - a module may raise anything when it is imported
        reason = f"{name} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
    raise Failure(reason)


def _place(error: BaseException) -> str:
    """The place in the user's own code where it was raised."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "importlib" not in code.co_filename and code.co_filename != __file__:
            place = f" ({Path(code.co_filename).name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


def publish(name: str, options: dict[str, Any]) -> Published:
    """The server of a module, by its file or name: the one that is in it, or one of its functions.

    Args:
        options: Options of a new `ToolServer`.

    Raises:
        Failure: The module cannot be imported, or has nothing to serve, or a server of its own and options are given.
    """
    module = _load(name)
    own = _own_server(module)
    if own is not None:
        if options:
            given = ", ".join(sorted(options))
            raise Failure(f"the module has a ToolServer of its own; give {given} there")
        return Published(own)
    try:
        server = ToolServer(module.__name__, **options)
    except ValueError as error:
        raise Failure(str(error)) from None
    functions = _functions(module)
    if not functions:
        raise Failure(f"{module.__name__} defines no public function")
    left_out = {}
    for tool, function in functions.items():
        try:
            server.tool(name=tool)(function)
        except Exception as error:  # noqa: BLE001 - type hints can be anything, too
            left_out[tool] = str(error).removeprefix(f"{tool}: ") or type(error).__name__
    if len(left_out) == len(functions):
        reasons = "; ".join(f"the function {tool} cannot be a tool: {reason}" for tool, reason in left_out.items())
        raise Failure(reasons)
    return Published(server, left_out)


def _own_server(module: ModuleType) -> ToolServer | None:
    """The `ToolServer` that a module has; of several the one that is in its ``__all__``."""
    servers = {name: value for name, value in vars(module).items() if isinstance(value, ToolServer)}
    different = set(servers.values())
    if len(different) > 1:
        listed = getattr(module, "__all__", ())
        different = {server for name, server in servers.items() if name in listed}
        if len(different) != 1:
            names = ", ".join(servers)
            raise Failure(f"{module.__name__} has several ToolServers ({names}); list the one to serve in __all__")
    return next(iter(different), None)


def _functions(module: ModuleType) -> dict[str, Any]:
    """The functions that become tools: those in ``__all__``, or the public ones defined in the module itself."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        return {
            name: value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        }
    values = {name: getattr(module, name, None) for name in listed}
    return {name: value for name, value in values.items() if callable(value) and not inspect.isclass(value)}


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise Failure("--key needs --certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = f"the certificate cannot be used: {error.strerror or error}"
    else:
        return context
    raise Failure(reason)
