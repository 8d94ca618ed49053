"""A task group whose errors come out as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

__all__ = ["single_error_task_group"]


@asynccontextmanager
async def single_error_task_group() -> AsyncIterator[TaskGroup]:
    """A task group that raises one error instead of a group of them.

    It is for a block whose tasks serve the block and end with it. An error of the block cancels the tasks and is raised
    as it is. Where a task fails, the block is cancelled and that task's error is raised; of several, the first.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as task_group:
            try:
                yield task_group
            except anyio.get_cancelled_exc_class():
                # It belongs to this task group's scope or to one around it, and never comes out in a group.
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below
                # Raised inside the task group it would come out in a group.
                failure = error
                task_group.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = _first(group)
    if failure is not None:
        try:
            raise failure
        finally:
            # A traceback refers to this frame; without this the error would refer to itself.
            del failure


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
