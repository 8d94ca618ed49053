"""``python -m utcp_websocket_anyio``: the command ``utcp-ws``."""

from .cli import main

if __name__ == "__main__":
    main()
