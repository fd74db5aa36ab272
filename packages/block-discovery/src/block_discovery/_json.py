"""Strict reading of JSON: a value knows its own path, so that an error can name the bad one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from block_discovery._errors import InvalidJsonError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A decoded JSON value and where it stands in the text.

    Attributes:
        data: what `json.loads` made of it.
        where: path from the top, such as ``units[3].kind``; empty at the top.

    Raises:
        InvalidJsonError: by every method, when the value is not of the wanted type.
    """

    data: Any
    where: str = ""

    @classmethod
    def parse(cls, text: str, format_name: str, version: int) -> JsonValue:
        """The object in `text`, which must announce the given format and version."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidJsonError(f"not JSON ({error})", remedy="pass the text that to_json returned") from error
        if not isinstance(data, dict) or data.get("format") != format_name:
            raise InvalidJsonError(
                f'no object with "format": "{format_name}"', remedy="pass the text that to_json returned"
            )
        if data.get("version") != version:
            raise InvalidJsonError(
                f"expected {version}, got {data.get('version')!r}",
                subject="version",
                remedy="write the tree again with this release",
            )
        return cls(data)

    def fields(self, *names: str) -> dict[str, JsonValue]:
        """The fields of an object that has exactly these names."""
        if not isinstance(self.data, dict):
            self._refuse("an object")
        dot = f"{self.where}." if self.where else ""
        for name in names:
            if name not in self.data:
                raise InvalidJsonError("the field is missing", subject=dot + name)
        for name in self.data:
            if name not in names:
                raise InvalidJsonError("unknown field", subject=dot + name, remedy=f"known are {', '.join(names)}")
        return {name: JsonValue(self.data[name], dot + name) for name in names}

    def items(self) -> list[JsonValue]:
        """The items of a list."""
        if not isinstance(self.data, list):
            self._refuse("a list")
        return [JsonValue(item, f"{self.where}[{index}]") for index, item in enumerate(self.data)]

    def text(self) -> str:
        """A string."""
        return self.data if isinstance(self.data, str) else self._refuse("a string")

    def text_or_none(self) -> str | None:
        """A string or null."""
        return None if self.data is None else self.text()

    def integer(self) -> int:
        """An integer; true and false are none."""
        if isinstance(self.data, int) and not isinstance(self.data, bool):
            return self.data
        return self._refuse("an integer")

    def flag(self) -> bool:
        """True or false."""
        return self.data if isinstance(self.data, bool) else self._refuse("true or false")

    def choice(self, options: tuple[T, ...]) -> T:
        """One of the given options."""
        for option in options:
            if option == self.data:
                return option
        return self._refuse(f"one of {', '.join(map(repr, options))}")

    def _refuse(self, wanted: str) -> NoReturn:
        raise InvalidJsonError(f"expected {wanted}, got {self.data!r}"[:200], subject=self.where)
