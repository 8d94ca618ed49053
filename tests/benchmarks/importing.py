"""How long it takes to import what a user imports first."""

from __future__ import annotations

import importlib
import time

from measure import Outcome, arguments, without_logging

contender, _, _ = arguments()
outcome = Outcome()
cpu, began = time.process_time(), time.perf_counter()
package = importlib.import_module("utcp_websocket" if contender.startswith("plugin") else "utcp_websocket_anyio")
package.register()
outcome.seconds, outcome.cpu = time.perf_counter() - began, time.process_time() - cpu
outcome.check(package.WebSocketCommunicationProtocol.__name__, "WebSocketCommunicationProtocol")
without_logging()
outcome.report()
