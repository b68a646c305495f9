"""What is brought to be compared: results, a model, or a model behind a server, as a person names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from titer.findings import measured

SERVED = re.compile(r"(?P<model>.+)@(?P<url>https?://\S+)")
OF_SERVER = "server."  # how a setting of servers begins


@dataclass(frozen=True)
class Contender:
    """Results, a model, or a model behind a server."""

    name: str  # what a record calls it
    server: Mapping[str, Any] | None = None  # the fields of the `Endpoint` of one that is served

    @staticmethod
    def read(given: str | Mapping[str, Any]) -> Contender:
        """Read a path or name, NAME@URL of a served model, or the fields of its `Endpoint`.

        Raises where these lack the address or the model's name there.
        """
        if isinstance(given, str):
            named = None if measured.is_measured(given) else SERVED.fullmatch(given)
            return Contender(given, named.groupdict() if named else None)
        for needed in ("url", "model"):
            if not given.get(needed):
                raise ValueError(
                    f"the model {dict(given)} lacks its {needed}: give one behind a server as "
                    "{url: http://127.0.0.1:8000/v1, model: NAME}, or as NAME@http://127.0.0.1:8000/v1"
                )
        return Contender(f"{given['model']}@{given['url']}", dict(given))

    @property
    def is_measured(self) -> bool:
        """Whether it names results, which are not evaluated."""
        return self.server is None and measured.is_measured(self.name)

    @property
    def model(self) -> str:
        """The name of a model, here or on its server."""
        return str(self.server["model"]) if self.server else self.name
