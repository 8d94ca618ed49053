from __future__ import annotations

from collections.abc import Iterator

import pytest

from frameworks.chain import running_server


@pytest.fixture
def url() -> Iterator[str]:
    with running_server() as url:
        yield url
