"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, `transformers serve`, others.

A request that fails in passing (no connection, a time-out, too many requests, a fault of the server)
is made again, each time after twice the wait. What is answered is written into a journal at once, so
that what an interruption leaves is never asked for again.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx2
from pydantic import BeforeValidator

from titer.config import Config, hash_of
from titer.data.rows import split_thought
from titer.training.settings import Watch, unwatched

Chat = Sequence[Mapping[str, Any]]  # messages, each with its role and content

AGAIN = frozenset({408, 409, 425, 429})  # statuses that pass; so do those of 500 and above
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a request is made again
# settings of a request that are always sent: the likeliest token, in as far as a server does that
GREEDY: Mapping[str, Any] = {"temperature": 0}
TOLD = 200  # characters of what a server says


class EndpointError(OSError):
    """Raised where a server gives no answer. What it answered before is kept."""

    def __init__(self, address: str, cause: str, said: str = "") -> None:
        """Make it of a cause, and of what the server said, which may repeat a prompt."""
        super().__init__(f"the server {address} gives no answer ({cause}{said and ': '}{said})")
        self.cause = cause


@dataclass(frozen=True)
class Endpoint(Config):
    """A model behind a server. A text in its place is its `url`."""

    url: str = "http://127.0.0.1:8000/v1"  # what `/chat/completions` is put behind
    model: str = ""  # its name there
    key: str = "OPENAI_API_KEY"  # the environment variable that has the key, where one is asked for
    timeout: float = 120.0  # seconds to wait for an answer
    retries: int = 4  # times that a request is made again
    at_once: int = 8  # requests at a time
    # more fields of a request, as {top_k: 1} or {chat_template_kwargs: {enable_thinking: false}}
    more: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ValueError(f"url={self.url!r}: give one as http://127.0.0.1:8000/v1")
        for name, low in (("timeout", 0), ("retries", -1), ("at_once", 0)):
            if getattr(self, name) <= low:
                raise ValueError(f"{name}={getattr(self, name)}: must be above {low}")

    def body(self, chat: Chat, max_tokens: int) -> dict[str, Any]:
        """Return a request for the answer to a chat."""
        if not self.model:
            raise ValueError(f"the server {self.url} needs the model's name there: set its `model`")
        told = {"model": self.model, "messages": list(chat), "max_tokens": max_tokens}
        return told | dict(GREEDY) | self.more


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    has_port = 0 < (1 if parsed.port is None else parsed.port) < 65536
    return parsed.scheme in ("http", "https") and bool(parsed.host) and has_port


Server = Annotated[
    Endpoint, BeforeValidator(lambda given: {"url": given} if isinstance(given, str) else given)
]


@dataclass(frozen=True)
class Reply:
    """The answer of a served model."""

    text: str
    ended: bool  # the model ended it, rather than the length limit
    thought: str = ""  # what it said beside it


class Journal:
    """What a server has answered, by request, in a file to which every answer is added at once.

    A line that a killed process left unfinished is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, threading.Lock()
        self.replies: dict[str, Reply] = {}
        for line in path.read_bytes().split(b"\n") if path and path.is_file() else []:
            with suppress(ValueError):
                fields = json.loads(line)
                request = fields.pop("request")
                self.replies[request] = Reply(**fields)

    def add(self, request: str, reply: Reply) -> None:
        """Keep an answer, and write it for its maker alone to read."""
        with self._lock:
            self.replies[request] = reply
            if self.path is None:
                return
            line = json.dumps({"request": request, **asdict(reply)}).encode()
            self.path.parent.mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"\n" + line + b"\n")


def ask_all(
    endpoint: Endpoint,
    chats: Sequence[Chat],
    max_tokens: int,
    journal: Journal,
    watch: Watch = unwatched,
    spare: int = 0,
) -> list[Reply | EndpointError]:
    """Return the answer to every chat, or why there is none, in their order.

    Equal requests are made once, and none that the journal has the answer to. Where more than
    `spare` of them fail the first of their errors is raised, and no more are made.
    """
    bodies = [endpoint.body(chat, max_tokens) for chat in chats]
    # several judges may share a journal, and a name on one server is another model on the next
    names = [hash_of([endpoint.url, body]) for body in bodies]
    open_ones = {n: b for n, b in zip(names, bodies, strict=True) if n not in journal.replies}
    failed: dict[str, EndpointError] = {}
    done, of = len(set(names)) - len(open_ones), len(set(names))
    with _Line(endpoint) as line, ThreadPoolExecutor(endpoint.at_once) as pool:
        waiting: dict[Future[Reply], str] = {}
        left = iter(open_ones.items())
        try:
            while True:
                for name, body in left:
                    waiting[pool.submit(line.ask, body)] = name
                    if len(waiting) >= endpoint.at_once:
                        break
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    name = waiting.pop(future)
                    done += 1
                    _keep(future, name, journal, failed)
                    watch(done, of, {})
                if len(failed) > spare:
                    raise next(iter(failed.values()))
        finally:
            line.over.set()  # those that wait to ask again
            for future, name in waiting.items():
                if not future.cancel():  # an answer on its way is not asked for again
                    _keep(future, name, journal, failed)
    return [journal.replies[name] if name in journal.replies else failed[name] for name in names]


def _keep(
    future: Future[Reply], name: str, journal: Journal, failed: dict[str, EndpointError]
) -> None:
    try:
        journal.add(name, future.result())
    except EndpointError as error:
        failed[name] = error


class _Line:
    """The connections to a server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.over = endpoint, threading.Event()
        self.key = _read_key(endpoint.key)
        try:
            self.client = httpx2.Client(
                timeout=endpoint.timeout,
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                limits=httpx2.Limits(max_connections=endpoint.at_once),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ValueError(
                f"a proxy of the environment is no address ({error}): mend HTTP_PROXY, HTTPS_PROXY or "
                "ALL_PROXY, or unset it"
            ) from None
        self.address = f"{endpoint.url.rstrip('/')}/chat/completions"

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Make a request, and again where it fails in passing."""
        cause, said = "", ""
        for attempt in range(self.endpoint.retries + 1):
            try:
                response = self.client.post(self.address, json=body)
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                cause, said, asked = type(error).__name__, str(error), 0.0
            else:
                status = response.status_code
                if status == 200:
                    try:
                        return read_reply(response)
                    except ValueError as error:
                        cause, said = str(error), response.text
                        break
                cause, said = f"status {status}", response.text
                asked = _asked_wait(response)
                if status not in AGAIN and status < 500:
                    break
            last = attempt == self.endpoint.retries
            if last or self.over.wait(max(asked, _wait_before(attempt))):
                break
        raise EndpointError(self.address, cause, self._tell(said))

    def _tell(self, said: str) -> str:
        """Return what a server or a library said, on one line, without the key, which may stand in it."""
        told = said.replace(self.key, "***") if self.key else said
        return " ".join(told.split())[:TOLD]


def _read_key(variable: str) -> str:
    """Read the key of a server from the environment; empty where there is none.

    Raises where no header can hold it, without a word of it.
    """
    key = os.environ.get(variable, "").strip()  # a file that it came from ends in a line break
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {variable} holds no key: white space, control characters or "
            "letters beyond ASCII stand in it; put the key there alone"
        )
    return key


def _wait_before(attempt: int) -> float:
    """Return the seconds before the next attempt: twice as many each time, and not all at once."""
    return min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.75, 1.25)


def _asked_wait(response: httpx2.Response) -> float:
    """Return the seconds that a server asks to wait; 0 where it does not say."""
    try:
        return min(float(response.headers.get("Retry-After", "0")), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def read_reply(response: httpx2.Response) -> Reply:
    """Read an answer. Raises ValueError where it is none of the protocol's."""
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        text = message["content"]
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        ended = choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"it answers otherwise than the protocol has it, {type(error).__name__}"
        ) from None
    if not isinstance(text, str | None):
        raise ValueError(f"its answer is no text but {type(text).__name__}")
    own, answer = split_thought((text or "").strip())  # where the server leaves it in the answer
    return Reply(answer, ended, str(thought) or own)
