"""What is done to tensors on their way: a table of forms, each an inverse pair.

Both ends hold the tensors a form starts from (`base`). All of it is NumPy on one thread: encoding runs beside
other sites' training, where threads would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from wardround.common.wire import exact, rounding
from wardround.common.wire.arrays import Payload

Arrays = dict[str, np.ndarray]
WHOLE, EXACT = "whole", "exact"
# A form that saves less than this share of the whole is not worth the work at both ends.
_LEAST_SAVING = 0.1


@dataclass(frozen=True)
class Form:
    """One way to write (P,) fp32 numbers down as flat arrays."""

    encode: Callable[[np.ndarray, np.ndarray, np.ndarray | None], Arrays]
    """From tensors, base, and the residual: added before, and what is lost left in it."""
    decode: Callable[[Arrays, np.ndarray, np.ndarray], None]
    """From arrays and base into the last argument. Raises KeyError or ValueError for what is not its own."""


FORMS: dict[str, Form] = {EXACT: Form(exact.encode, exact.decode)} | {
    name: Form(partial(rounding.encode, row), partial(rounding.decode, row))
    for name, row in rounding.ROUNDINGS.items()
}
"""All but `whole`, which needs no base."""


def whole(tensors: np.ndarray) -> Payload:
    """(P,) fp32 as they are, by reference."""
    return Payload(WHOLE, {"shared": tensors})


def encode(
    form: str, tensors: np.ndarray, base: np.ndarray, residual: np.ndarray | None = None
) -> Payload:
    """Tensors, (P,) fp32, in a form of the table; whole where `exact` would save too little.

    Args:
        base: (P,) fp32, what the receiver holds.
        residual: (P,) fp32, what rounding lost so far (error feedback; Seide et al. 2014; Karimireddy et al.
            2019, arXiv:1901.09847, algorithm 2). Changed in place.
    """
    payload = Payload(form, FORMS[form].encode(tensors, base, residual))
    if form == EXACT and payload.num_bytes > (1 - _LEAST_SAVING) * tensors.nbytes:
        return whole(tensors)
    return payload


def decode(
    payload: Payload, base: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """Inverse of `encode`: (P,) fp32.

    Args:
        base: as in `encode`; of a payload that is whole only the length counts.
        out: (P,) fp32 to write into; a payload that is whole is handed over as it is.

    Raises:
        ValueError: the payload is of no such form, or of another model's size.
    """
    if payload.form == WHOLE:
        return _whole_tensors(payload.arrays, len(base))
    if payload.form not in FORMS:
        raise ValueError(
            f"its tensors are in a form named '{payload.form[:20]}', which is not known here"
        )
    out = np.empty_like(base) if out is None else out
    try:
        FORMS[payload.form].decode(payload.arrays, base, out)
    except KeyError as error:
        raise ValueError(
            f"its tensors are not of the form {payload.form}: no {error}"
        ) from None
    return out


def _whole_tensors(arrays: Arrays, size: int) -> np.ndarray:
    if arrays.keys() != {"shared"} or arrays["shared"].shape != (size,):
        raise ValueError("its tensors have other names or shapes than the global model")
    if arrays["shared"].dtype != np.float32:
        raise ValueError(f"its tensors are {arrays['shared'].dtype}, not float32")
    return arrays["shared"]
