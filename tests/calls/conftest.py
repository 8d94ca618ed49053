"""Fixtures of the tests of calls."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["exclusive", "shared"])
def multiplex(request: pytest.FixtureRequest) -> bool:
    """Both kinds of connection, by the template's field."""
    return bool(request.param)
