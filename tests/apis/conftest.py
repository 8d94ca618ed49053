"""An option to run one case only."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--case", default="", help="a part of OPERATION: CASE; all, if not given")
