"""Why a site does not do what was asked of it."""

from __future__ import annotations


class Declines(Exception):
    """The site does not do what was asked. `code` and `key` may cross the wire, the text may not."""

    def __init__(self, code: str, key: str = "", words: str = "") -> None:
        super().__init__(words or code)
        self.code, self.key = code, key
