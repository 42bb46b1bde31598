"""A stand-in for W&B's server: takes what runs send, or keeps silent."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers what W&B asks at the beginning and at the end of a run; ``runs`` are the ids it has seen."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.runs: list[str] = []
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.server.asked += 1
        self._send(b"")

    def do_GET(self) -> None:
        self._send(b"{}")

    def do_PUT(self) -> None:
        self._body()
        self._send(b"{}")

    def do_POST(self) -> None:
        body = self._body()
        answer = self._data(json.loads(body)) if self.path.endswith("/graphql") else {"exitcode": None, "limits": {}}
        self._send(json.dumps(answer).encode())

    def _data(self, question: dict[str, Any]) -> dict[str, Any]:
        query, given = question["query"], question.get("variables") or {}
        data: dict[str, Any] = {"project": None}
        if "mutation CreateArtifact" in query:
            return {"data": None, "errors": [{"message": "this server keeps no artifacts"}]}
        if "upsertBucket" in query:
            self.server.runs.append(given["name"])
            project = {"id": "2", "name": given["project"], "entity": {"id": "3", "name": "me"}}
            run = {"id": "1", "name": given["name"], "displayName": "run", "config": "{}", "historyLineCount": 0}
            data = {"upsertBucket": {"bucket": {**run, "project": project}, "inserted": True}}
        elif "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]]
            data = {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        elif "viewer" in query:
            data = {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"data": data}

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
