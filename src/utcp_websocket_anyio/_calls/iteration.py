"""What an object needs besides `__anext__` and `aclose` to be an asynchronous generator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

__all__ = ["Iteration"]


class Iteration(AsyncGenerator[Any, None]):
    """An asynchronous generator that takes no values."""

    @abstractmethod
    async def __anext__(self) -> Any:
        """The next item."""

    @abstractmethod
    async def aclose(self) -> None:
        """End the iteration."""

    async def asend(self, value: Any) -> Any:
        """The next item; `value` must be None."""
        if value is not None:
            raise TypeError("a stream of responses takes no values")
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """End the iteration and raise the exception."""
        await self.aclose()
        if isinstance(typ, BaseException):
            raise typ
        raise typ() if val is None else val if isinstance(val, BaseException) else typ(val)
