"""The forms in which tensors are sent. Each row of the table has encode and decode.

Both ends hold the tensors that a form builds on (`base`). All forms use NumPy on one thread:
encoding runs beside the training of other sites, and more threads would wait for each other.
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
# If a form saves less than this share of the whole, the work at both ends does not pay.
_LEAST_SAVING = 0.1


@dataclass(frozen=True)
class Form:
    """A way to write (P,) fp32 numbers as flat arrays."""

    encode: Callable[[np.ndarray, np.ndarray, np.ndarray | None], Arrays]
    """Takes tensors, base and residual. The residual is added first, then holds the new loss."""
    decode: Callable[[Arrays, np.ndarray, np.ndarray], None]
    """Takes arrays and base, and writes into the last argument. Raises KeyError or ValueError
    for arrays of another form."""


FORMS: dict[str, Form] = {EXACT: Form(exact.encode, exact.decode)} | {
    name: Form(partial(rounding.encode, row), partial(rounding.decode, row))
    for name, row in rounding.ROUNDINGS.items()
}
"""All forms except `whole`, which needs no base."""


def whole(tensors: np.ndarray) -> Payload:
    """Return (P,) fp32 tensors unchanged, by reference."""
    return Payload(WHOLE, {"shared": tensors})


def encode(
    form: str, tensors: np.ndarray, base: np.ndarray, residual: np.ndarray | None = None
) -> Payload:
    """Encode tensors, (P,) fp32, in a form of the table; return them whole if `exact` would save
    too little.

    Args:
        base: (P,) fp32, the tensors that the receiver holds.
        residual: (P,) fp32, the loss of all rounding so far (error feedback; Seide et al. 2014;
            Karimireddy et al. 2019, arXiv:1901.09847, algorithm 2). Changed in place.
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
        base: as in `encode`; a whole payload needs only its length.
        out: (P,) fp32, receives the result; a whole payload is returned unchanged.

    Raises:
        ValueError: the form is unknown, or the payload has another size than the model.
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
            f"its tensors are not of the form {payload.form}: {error} is missing"
        ) from None
    return out


def _whole_tensors(arrays: Arrays, size: int) -> np.ndarray:
    if arrays.keys() != {"shared"} or arrays["shared"].shape != (size,):
        raise ValueError("its tensors have other names or shapes than the global model")
    if arrays["shared"].dtype != np.float32:
        raise ValueError(f"its tensors are {arrays['shared'].dtype}, not float32")
    return arrays["shared"]
