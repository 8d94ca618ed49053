"""``utcp-ws serve``: the functions of a Python module as tools."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import ssl
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import click

from .._server.server import ToolServer
from .command import Command
from .failures import Failure, as_failures
from .output import console
from .running import run

__all__ = ["serve", "server_of"]


@click.command(cls=Command, examples=("utcp-ws serve tools.py", "utcp-ws serve package.tools --port 9000"))
@click.argument("module", metavar="MODULE")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one.")
@click.option("--certificate", type=click.Path(path_type=Path), help="A PEM file, to serve wss://.")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key, if not in the same file.")
@click.option("--json", "as_json", is_flag=True, help="Write where the tools are as JSON; errors too, on stderr.")
def serve(module: str, *, host: str, port: int, certificate: Path | None, key: Path | None, as_json: bool) -> None:
    """Publish the functions of a Python module as tools, until Ctrl-C.

    MODULE is a file (tools.py) or a name (package.tools). Every public function that is defined in it becomes a tool,
    its schema made of the type hints. A module that has a ToolServer is served as that says.

    It runs on trio: async functions are trio's, plain ones run in threads.
    """
    with as_failures(as_json=as_json):
        server = server_of(module, _tls(certificate, key))
        run(partial(_serve, server, host, port, as_json), backend="trio")


async def _serve(server: ToolServer, host: str, port: int, as_json: bool) -> None:
    failure: BaseException | None = None
    async with anyio.create_task_group() as task_group:
        try:
            await task_group.start(server.serve, host, port)
            names = [tool["name"] for tool in server.manual()["tools"]]
            if as_json:
                click.echo(json.dumps({"url": server.url, "tools": names}))
            else:
                click.echo(server.url)
                console(err=True).print(f"tools: {', '.join(names)}; Ctrl-C ends it", style="dim", markup=False)
            await anyio.sleep_forever()
        except OSError as error:
            # Raised inside the task group it would come out as an exception group.
            failure = Failure(f"cannot listen at {host}, port {port}: {error.strerror or error}")
            task_group.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _load(name: str) -> ModuleType:
    """Import a module by its file or name; its own directory is where it finds others."""
    try:
        path = Path(name)
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(name)
        if not path.is_file():
            raise Failure(f"there is no file {name}")
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
        fault = f"{name} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
    raise Failure(fault)


def _place(error: BaseException) -> str:
    """Where in the user's own code it was raised."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "importlib" not in code.co_filename and code.co_filename != __file__:
            place = f" ({Path(code.co_filename).name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


def server_of(name: str, context: ssl.SSLContext | None) -> ToolServer:
    """The server of a module, by its file or name: the one that is in it, or one of its functions.

    Raises:
        Failure: The module cannot be imported, or has nothing to serve.
    """
    module = _load(name)
    servers = [value for value in vars(module).values() if isinstance(value, ToolServer)]
    if servers:
        if context is not None:
            raise Failure("the module's ToolServer has an ssl_context of its own; give the certificate there")
        return servers[0]
    server = ToolServer(module.__name__, ssl_context=context)
    functions = _functions(module)
    if not functions:
        raise Failure(f"{module.__name__} defines no public function")
    for tool, function in functions.items():
        try:
            server.tool(name=tool)(function)
        except Exception as error:  # noqa: BLE001 - type hints can be anything, too
            fault = f"the function {tool} cannot be a tool: {error}"
        else:
            continue
        raise Failure(fault)
    return server


def _functions(module: ModuleType) -> dict[str, Any]:
    listed = getattr(module, "__all__", None)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and (name in listed if listed is not None else value.__module__ == module.__name__ and not name.startswith("_"))
    }


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise Failure("--key needs --certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        fault = f"the certificate cannot be used: {error.strerror or error}"
    else:
        return context
    raise Failure(fault)
