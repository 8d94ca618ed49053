"""placeholder"""


def register_repository() -> None: ...
