"""A server on loopback that speaks the protocol of OpenAI's chat completions, and keeps what it was
asked.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Desk:
    """Answers by a rule: a text, or a status with a body and headers."""

    rule: Callable[[dict[str, Any]], Any]
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open_now: int = 0
    most: int = 0  # requests at a time
    lock: Any = field(default_factory=threading.Lock)
    url: str = ""

    @property
    def questions(self) -> list[str]:
        """The last message of every request, in the order of asking."""
        return [body["messages"][-1]["content"] for body in self.asked]


def said(text: Any, finish: str = "stop", **more: Any) -> str:
    """The body of an answer."""
    message = {"role": "assistant", "content": text, **more}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


@contextmanager
def serve(rule: Callable[[dict[str, Any]], Any]) -> Iterator[Desk]:
    desk = Desk(rule)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with desk.lock:
                desk.asked.append(body)
                desk.headers.append(dict(self.headers))
                desk.open_now += 1
                desk.most = max(desk.most, desk.open_now)
            try:
                found = rule(body)
            finally:
                with desk.lock:
                    desk.open_now -= 1
            status, text, more = found if isinstance(found, tuple) else (200, said(found), {})
            try:
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                payload = text.encode()
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except OSError:  # who asked has gone
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    desk.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield desk
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something holds; fail where it does not come about."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)
