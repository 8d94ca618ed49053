"""The checks of this project. ``nox`` runs the default ones, ``nox --list`` shows all.

An interpreter that the machine does not have is skipped, and nox says so.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "lowest", "coverage", "docs", "package", "tested"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.14t", "3.15"]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
MEASURE = ["--cov", "--cov-report=", "--cov-fail-under=0"]
PROJECT = nox.project.load_toml("pyproject.toml")
SOURCES = ["src", "tests", "examples", "docs", "noxfile.py"]
TESTED: list[str] = []  # the Pythons that this run of nox has tested with

# What flake8-async has beyond ruff. Left out: its optional rules (9xx), as a call has no checkpoints beyond those of
# its I/O, and its advice on httpx, which is what UTCP itself uses.
ASYNC_RULES = ["--isolated", "--select", "ASYNC1,ASYNC2,ASYNC3,ASYNC4"]
ASYNC_RULES_OFF = {"src": "ASYNC127", "examples": "ASYNC124,ASYNC127", "tests": "ASYNC110,ASYNC124,ASYNC127"}

# What the repository's host reads, by the schema that it has for it.
GITHUB = {
    "github-workflows": "workflows/*.yml",
    "dependabot": "dependabot.yml",
    "github-issue-forms": "ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": "ISSUE_TEMPLATE/config.yml",
}


def group(name: str) -> list[str]:
    """The requirements of a dependency group (PEP 735)."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the rules for asynchronous code, and the forms of .github."""
    session.install(*group("lint"))
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    for schema, files in GITHUB.items():
        paths = [str(path) for path in sorted(Path(".github").glob(files))]
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)
    for folder, off in ASYNC_RULES_OFF.items():
        session.run("flake8", *ASYNC_RULES, "--extend-ignore", off, folder)


@nox.session
def types(session: nox.Session) -> None:
    """Types, ours and those that users see."""
    session.install(".[cli,sign]", *group("types"))
    session.run("mypy", "src", "tests", "examples")
    session.run("python", "tests/support/public_types.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on asyncio, on asyncio with uvloop, and on trio; every warning is an error."""
    session.install(".[cli,sign]", *group("test"))
    # Measuring takes as long again as testing, so the interpreter that runs nox does it for all.
    run_tests(session, *(MEASURE if session.python == HERE else ()))
    TESTED.append(str(session.python))


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The tests with the lowest version of everything this package depends on."""
    project = PROJECT["project"]
    depends = [
        *project["dependencies"],
        *(one for extra in ("cli", "sign") for one in project["optional-dependencies"][extra]),
    ]
    lowest = [re.sub(r">=\s*([^,;\s]+)", r"==\1", requirement) for requirement in depends]
    session.install(".[cli,sign]", *lowest, *group("test"))
    run_tests(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """How much of the package the tests reach, branches included, after ``tests`` on the interpreter that runs nox."""
    if not Path(".coverage").exists():
        session.skip(f"the tests did not run on Python {HERE}")
    session.install(*group("coverage"))
    session.run("coverage", "report")


@nox.session
def apis(session: nox.Session) -> None:
    """The manuals of examples/apis against simulated peers, which enforce times; such as ``nox -s apis -- -k okx``."""
    session.install(".[sign]", *group("test"))
    # Most of the time they wait.
    session.run("pytest", "-n", "6", *session.posargs, "tests/apis")


@nox.session
def endpoints(session: nox.Session) -> None:
    """The manuals of examples/endpoints against the servers they were written for, which are installed here."""
    session.install(".", *group("test"))
    # One that cannot be installed is skipped by its tests, which say so.
    session.install("-r", "tests/endpoints/servers/requirements.txt", success_codes=[0, 1])
    options = ["-rs", "-o", f"cache_dir={session.create_tmp()}"]
    session.run("python", "-X", "dev", "-W", "error", "-m", "pytest", *options, "tests/endpoints", *session.posargs)


# Each in an environment of its own: some pin what others need newer.
FRAMEWORKS = {
    "agent": ["utcp-agent"],
    "code_mode": ["code-mode"],
    "fastapi": ["fastapi", "httpx", "uvicorn"],
    "langchain": ["langchain-utcp-adapters", "langgraph"],
    "mcp": ["mcp"],
    "notebook": ["ipykernel", "jupyter-client"],
    "pydantic_ai": ["pydantic-ai-utcp"],
    "strands": ["strands-utcp"],
}


@nox.session
@nox.parametrize("framework", list(FRAMEWORKS))
def frameworks(session: nox.Session, framework: str) -> None:
    """What uses UTCP, with this plugin; such as ``nox -s "frameworks(framework='mcp')"``."""
    session.install(".", "hypothesis", "pytest", "pytest-timeout", "trustme", *FRAMEWORKS[framework])
    # Their own warnings are not ours to mend.
    options = ["-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    session.run(
        "python", "-X", "dev", "-m", "pytest", *options, f"tests/frameworks/test_{framework}.py", *session.posargs
    )


@nox.session
def proxies(session: nox.Session) -> None:
    """Calls through tinyproxy, squid and microsocks, which are installed here; what cannot be is skipped."""
    session.install(".", *group("test"))
    session.run("pytest", "-rs", "tests/proxies", *session.posargs)


@nox.session
def autobahn(session: nox.Session) -> None:
    """Autobahn's cases for WebSocket clients, with every engine; such as ``nox -s autobahn -- '6.*'``."""
    wstest = shutil.which("wstest") or install_wstest(session)
    if wstest is None:
        session.skip("there is no wstest, and no Python 2.7, which it needs, to install it for")
    session.install(".")
    session.run("python", "tests/support/autobahn_client.py", wstest, *session.posargs)


def install_wstest(session: nox.Session) -> str | None:
    """The fuzzing server of autobahntestsuite, installed for a Python 2.7, if there is one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    # Not pyenv's own command, which fails where that version is not the chosen one.
    installed = [*map(str, pyenv.glob("versions/2.7.*/bin/python2.7")), shutil.which("python2.7") or ""]
    python = next((path for path in installed if path and "shims" not in path), None)
    if python is None:
        return None
    folder = Path(session.create_tmp()) / "wstest"
    if not (folder / "bin" / "wstest").exists():
        session.install("virtualenv<20.22")  # the last that knows Python 2.7
        session.run("virtualenv", "--quiet", "--python", python, str(folder))
        session.run(str(folder / "bin" / "pip"), "install", "--quiet", "autobahntestsuite==0.8.2", external=True)
    return str(folder / "bin" / "wstest")


@nox.session(venv_backend="none")
def tested(session: nox.Session) -> None:
    """Fails if every Python was skipped: a run without a test must not look green."""
    if not TESTED:
        session.error(f"no test has run: this machine has none of Python {', '.join(PYTHONS)}")
    session.log(f"tested with Python {', '.join(TESTED)}")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; fails on what leads nowhere or is left out: a public name, a field, a command."""
    session.install(".[cli]", *group("docs"))
    output = Path(session.create_tmp(), "html")
    session.run("sphinx-build", "-q", "-E", "-W", "--keep-going", "-b", "html", "docs", str(output))
    session.log(f"the documentation is at {output / 'index.html'}")


@nox.session
def package(session: nox.Session) -> None:
    """What is published: it builds, its metadata is valid, and the wheel alone has all that the command needs."""
    session.install(*group("package"))
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(place / "dist"))
    session.run("twine", "check", "--strict", *(str(path) for path in (place / "dist").iterdir()))
    (wheel,) = (place / "dist").glob("*.whl")
    session.run("python", "-m", "venv", "--clear", str(place / "fresh"))
    scripts = place / "fresh" / ("Scripts" if sys.platform == "win32" else "bin")
    session.run(str(scripts / "python"), "-m", "pip", "install", "--quiet", f"{wheel}[cli]", external=True)
    # Not from here, where the sources are.
    with session.chdir(place):
        for backend in ("trio", "asyncio"):
            session.run(str(scripts / "utcp-ws"), "demo", "--backend", backend, external=True)


def run_tests(session: nox.Session, *options: str) -> None:
    """All tests, in several processes: much of the time they wait for a clock or a socket."""
    # They take from each other what is left: the slowest files are last, and one of four would have to do them alone.
    session.run("pytest", "-n", "4", "--dist", "worksteal", *options, *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """This package against its peers; writes tests/benchmarks/results.

    Arguments: ``--rounds N``, ``--only CONTENDER`` and workloads; ``--ours-also PATH`` measures another source tree of
    this package along, such as one made by ``git worktree``.
    """
    arguments = list(session.posargs)
    installed = {
        "ours": [".", "uvloop"],
        "plugin": ["utcp", "utcp-websocket", "uvloop"],
        "by-hand": ["picows", "aiohttp", "websockets", "trio", "trio-websocket"],
    }
    if "--ours-also" in arguments:
        place = arguments.index("--ours-also")
        installed["also"] = [arguments[place + 1], "uvloop"]
        del arguments[place : place + 2]
    for name, packages in installed.items():
        environment = Path(session.create_tmp()) / name
        session.run("python", "-m", "venv", "--clear", str(environment), silent=True)
        python = str(environment / "bin" / "python")
        session.run(python, "-m", "pip", "install", "--quiet", *packages, external=True)
        arguments += ["--environment", f"{name}={python}"]
    session.install("matplotlib")
    results = Path("tests/benchmarks/results")
    results.mkdir(exist_ok=True)
    outcomes = str(Path(session.create_tmp()) / "outcomes.json")
    session.run("python", "tests/benchmarks/run.py", *arguments, "--output", outcomes)
    table, plot = str(results / "table.md"), str(results / "plot.svg")
    session.run("python", "tests/benchmarks/report.py", outcomes, "--table", table, "--plot", plot)
