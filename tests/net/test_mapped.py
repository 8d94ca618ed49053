"""Raising an error in place of another one."""

from __future__ import annotations

import traceback

import pytest

from utcp_websocket_anyio import WebSocketError
from utcp_websocket_anyio.errors import mapped


class LeakyError(ValueError):
    """An error with a secret in it."""

    secret = "geheim"


def clean(reason: str) -> WebSocketError:
    return WebSocketError(f"mapped: {reason}")


def test_nothing_of_the_original_is_behind_the_error_that_takes_its_place() -> None:
    with pytest.raises(WebSocketError, match="mapped: wrong") as caught, mapped(clean, ValueError):
        raise LeakyError("wrong") from KeyError("geheim")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "LeakyError" not in "".join(traceback.format_exception(caught.value))


def test_the_context_of_the_place_where_it_is_raised_does_not_come_back() -> None:
    def fail() -> None:
        raise LeakyError("wrong")

    try:
        raise KeyError("geheim")
    except KeyError:
        with pytest.raises(WebSocketError) as caught, mapped(clean, ValueError):
            fail()
    assert caught.value.__context__ is None


def test_other_errors_and_success_pass() -> None:
    with mapped(clean, ValueError):
        pass
    error = KeyError("x")
    with pytest.raises(KeyError) as caught, mapped(clean, ValueError, TypeError):
        raise error
    assert caught.value is error
    with pytest.raises(WebSocketError), mapped(clean, ValueError, TypeError):
        raise TypeError("x")
