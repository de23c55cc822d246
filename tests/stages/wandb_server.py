"""As much of a W&B server as `wandb sweep` and `wandb agent` talk to, and W&B's own reader of what a run leaves."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = {"id": "p", "name": "del-lightning", "entity": {"id": "e", "name": "somebody"}}


@dataclass
class FakeServer:
    """Keeps the sweep that it is given, and hands out runs with the arguments in ``draws``."""

    draws: list[dict[str, Any]] = field(default_factory=list)
    sweep: str = ""
    """The uploaded configuration, YAML."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Names of the operations, in order."""
    states: list[dict[str, bool]] = field(default_factory=list)
    """What an agent reports of its runs: run -> whether it still goes on."""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(operation)
        match operation:
            case "Viewer":
                person = {"id": "u", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}
                return {"viewer": {**person, "teams": {"edges": []}}}
            case "UpsertSweep":
                self.sweep = variables["config"]
                return {
                    "upsertSweep": {"sweep": {"name": "abcd1234", "project": PROJECT}, "configValidationWarnings": []}
                }
            case "SweepWithRuns":
                sweep = {"id": "s", "name": "abcd1234", "state": "RUNNING", "config": self.sweep, "runs": {"edges": []}}
                return {"project": {"sweep": sweep}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "a"}}}
            case "Heartbeat":
                self.states.append(json.loads(variables["runState"]))
                return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(self._commands())}}
            case other:
                raise NotImplementedError(other)

    def _commands(self) -> list[dict[str, Any]]:
        if not self.draws:
            return []
        args = {name: {"value": value} for name, value in self.draws.pop(0).items()}
        return [{"type": "run", "run_id": f"run{len(self.draws)}", "program": "unused", "args": args}]


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """A server on a free port of this machine."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":  # usage statistics
                self.send_error(404)
                return
            request = json.loads(sent)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            assert operation is not None
            body = json.dumps({"data": fake.answer(operation[1], request.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class RunFile:
    """What a run's ``.wandb`` file holds."""

    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    """Type -> the artefact; of several of one type the last."""
    exit_code: int | None

    @classmethod
    def read(cls, file: Path) -> "RunFile":
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found = cls({}, [], {}, {}, None)
        for record in map(json.loads, done.stdout.splitlines()):
            match record["type"]:
                case "run":
                    found.config |= record["run"]["config"]["update"]
                case "history":
                    found.history.append(record["history"]["item"])
                case "summary":
                    found.summary |= record["summary"]["update"]
                case "artifact":
                    found.artifacts[record["artifact"]["type"]] = record["artifact"]
                case "exit":
                    found.exit_code = record["exit"].get("exit_code", 0)
        return found
