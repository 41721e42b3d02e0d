"""A machine with a clock that is wrong by WARDROUND_TEST_CLOCK seconds.

Python loads this file if its folder is on the path.
"""

import datetime
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

_OFF = float(os.environ.get("WARDROUND_TEST_CLOCK", "0"))
_right_time = time.time


class _Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.fromtimestamp(_right_time() + _OFF, tz)


if _OFF:
    # gRPC hands absolute times to C code, which reads the machine's true clock. It keeps that one.
    import grpc._channel  # type: ignore[import-untyped]
    import grpc._common  # type: ignore[import-untyped]  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("grpc") and getattr(module, "time", None) is time:
            module.time = SimpleNamespace(**vars(time))  # type: ignore[attr-defined]
    time.time = lambda: _right_time() + _OFF
    datetime.datetime = _Wrong  # type: ignore[misc]
