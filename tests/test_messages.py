"""Messages survive packing and unpacking, and malformed answers are refused."""

from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from tests.support.tiny import Make
from wardround.client.app import app as client_app
from wardround.common.errors import BadAnswer, NoAnswer
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.tasks.sums import Sums
from wardround.common.wire.arrays import PIECE_BYTES, Payload, from_record, to_record
from wardround.common.wire.codec import (
    check_answered,
    content_of,
    pack_counts,
    pack_hello,
    pack_introduction,
    pack_refusal,
    pack_requests,
    pack_update,
    unpack_counts,
    unpack_hello,
    unpack_introduction,
    unpack_request,
    unpack_update,
)
from wardround.common.wire.messages import Introduction, TrainRequest, Update
from wardround.common.wire.refusals import REFUSALS
from wardround.server.engines.local_grid import LocalGrid

PIECE = PIECE_BYTES // 4
COUNTS = label_sums(2.5, np.array([[3, 1], [0, 4]]))


@pytest.fixture
def request_message() -> Message:
    """A message to reply to."""
    LocalGrid(client_app, 1)
    return Message(RecordDict(), 2, "train")


def numbers(count: int) -> np.ndarray:
    """(count,) fp32."""
    return np.random.default_rng(0).standard_normal(count, dtype=np.float32)


def update(tensors: np.ndarray, test: Sums | None = None) -> Update:
    """Make an update with these tensors."""
    payload = Payload("whole", {"shared": tensors})
    return Update(
        4,
        "digest",
        payload,
        17,
        num_steps=9,
        loss=0.5,
        seconds=1.5,
        test=test,
        holds="v3",
    )


def updating(message: Message) -> Message:
    """Reply to a request with an update."""
    return Message(pack_update(update(numbers(7))), reply_to=message)


def npy(array: np.ndarray) -> bytes:
    """Return an array in NumPy's file format."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def over_the_wire(array: FlowerArray) -> FlowerArray:
    """Pass an array through Flower's serialisation, as on the way to another process."""
    return FlowerArray.inflate(array.deflate(), array.children)


def test_pieces_are_flowers_own_arrays_of_one_chunk_on_the_other_side() -> None:
    arrays = {"shared": numbers(2 * PIECE + 3), "bytes": np.arange(9, dtype=np.uint8)}
    sent = to_record(arrays)
    assert list(sent) == ["shared.00000", "shared.00001", "shared.00002", "bytes.00000"]
    assert [len(array.children) for array in sent.values()] == [1, 1, 1, 1]
    received = ArrayRecord()
    for key, array in sent.items():
        received[key] = over_the_wire(array)
        assert type(received[key]) is FlowerArray
    found = from_record(received)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert len(received) == 0  # freed one by one


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 a zip, which np.load opens",
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,), }".ljust(118),
        *(
            npy(np.zeros(5, dtype=np.float32)).replace(
                b"{'descr': '<f4', ", written.ljust(17)
            )
            for written in (
                b"{'descr': '<f4'",
                b"{'descr': (), ",
                b"{'descr':'(1,,)f4',",
            )
        ),
        npy(np.zeros((2, 2), dtype=np.float32)),
        npy(np.zeros(5, dtype=np.float32))[:-3],
        npy(np.array([print], dtype=object)),
    ],
    ids=[
        *(
            "empty",
            "zip",
            "sum for a shape",
            "not closed",
            "no type",
            "bad type",
            "two dimensions",
        ),
        *("cut short", "objects"),
    ],
)
def test_bytes_that_are_no_piece_are_refused(
    request_message: Message, data: bytes
) -> None:
    message = updating(request_message)
    message.content.array_records["tensors"]["shared.00000"] = FlowerArray(
        "float32", (5,), "numpy.ndarray", data
    )
    with pytest.raises(BadAnswer, match="its answer is no update"):
        unpack_update(message.content, LABEL)


def test_a_claimed_size_reserves_no_memory(request_message: Message) -> None:
    claims = npy(np.zeros(1, dtype=np.float32)).replace(
        b"(1,), }" + b" " * 10, b"(99999999999,), }"
    )
    message = updating(request_message)
    message.content.array_records["tensors"]["shared.00000"] = FlowerArray(
        "float32", (1,), "numpy.ndarray", claims
    )
    with pytest.raises(
        BadAnswer, match=r"holds 1 numbers, and claims the shape \(99999999999,\)"
    ):
        unpack_update(message.content, LABEL)


def test_pieces_that_share_their_content_reserve_no_memory(
    request_message: Message,
) -> None:
    """A thousand names for one piece are sent as one piece."""
    message = updating(request_message)
    record = message.content.array_records["tensors"]
    piece = over_the_wire(record["shared.00000"])
    for number in range(1000):
        record[f"shared.{number:05d}"] = piece
    with pytest.raises(BadAnswer, match="larger than the model"):
        unpack_update(message.content, LABEL, most_bytes=100 * len(piece.data))


def test_a_clients_words_are_made_printable_and_short(request_message: Message) -> None:
    words = "\x1b[31mno\n2026-01-01 forged" + "x" * 10_000
    refused = BadAnswer(words)
    assert str(refused).startswith("[31mno 2026-01-01 forgedx")
    assert len(str(refused)) == 300
    for code, key in (
        (words, ""),
        ("late", words),
        ("late", "train.nothing"),
        ("", ""),
    ):
        record = ConfigRecord({"code": code, "key": key})
        with pytest.raises(NoAnswer) as declined:
            content_of(
                Message(RecordDict({"refusal": record}), reply_to=request_message)
            )
        assert str(declined.value) == (
            REFUSALS["late"]
            if code == "late"
            else "it refuses, and its reason is not known here"
        )
    with pytest.raises(NoAnswer):
        check_answered(RecordDict({"refusal": ConfigRecord()}))
    with pytest.raises(BadAnswer):
        unpack_update(RecordDict(), LABEL)
    with pytest.raises(BadAnswer):
        unpack_introduction(RecordDict())
    with pytest.raises(BadAnswer):
        unpack_counts(RecordDict(), LABEL)


def test_inside_a_process_the_tensor_is_passed_by_reference() -> None:
    array = numbers(PIECE + 1)
    assert from_record(to_record({"shared": array}))["shared"] is array


def test_pieces_survive_being_sent_to_another_process_of_ray() -> None:
    array = numbers(PIECE + 1)
    written = pickle.dumps(list(to_record({"shared": array}).values()))
    assert len(written) < 1.5 * array.nbytes  # the whole is written once
    arrays = pickle.loads(written)  # noqa: S301 - what Ray does, on one machine
    assert np.array_equal(arrays[0].whole, array)


@pytest.mark.parametrize("test", [None, COUNTS])
def test_update_round_trip(request_message: Message, test: Sums | None) -> None:
    sent = update(numbers(7), test)
    message = Message(pack_update(sent), reply_to=request_message)
    arrays = message.content.array_records["tensors"]
    for key, array in arrays.items():
        arrays[key] = over_the_wire(array)
    received = unpack_update(message.content, LABEL)
    assert received.payload.form == "whole"
    assert np.array_equal(
        received.payload.arrays["shared"], sent.payload.arrays["shared"]
    )
    assert received.holds == "v3"
    assert (received.round, received.layout, received.num_examples) == (4, "digest", 17)
    assert (received.num_steps, received.loss, received.seconds) == (9, 0.5, 1.5)
    if test is None:
        assert received.test is None
    else:
        assert received.test is not None
        assert received.test.arrays["confusion"].tolist() == [[3, 1], [0, 4]]
        assert received.test.loss == 2.5 / 8


def test_requests_round_trip_and_share_the_tensors(make_settings: Make) -> None:
    settings = make_settings()
    tensors = numbers(5)
    task = TrainRequest(
        3, "digest", Payload("whole", {"shared": tensors}), settings, "v3", "v2"
    )
    first, second = (unpack_request(content) for content in pack_requests(task, [0, 5]))
    assert (first.client, second.client) == (0, 5)
    assert first.settings == settings
    assert (first.round, first.layout, first.version, first.base) == (
        3,
        "digest",
        "v3",
        "v2",
    )
    assert first.payload.arrays["shared"] is second.payload.arrays["shared"] is tensors


def test_hello_introduction_and_counts_round_trip(make_settings: Make) -> None:
    settings = make_settings()
    assert unpack_hello(pack_hello(settings)) == settings
    assert unpack_introduction(
        pack_introduction(Introduction(3, 40, 8))
    ) == Introduction(3, 40, 8)
    found = unpack_counts(pack_counts(COUNTS), LABEL)
    assert LABEL.metrics(found)["accuracy"] == 7 / 8


def test_refusals_and_errors_are_no_answers(
    request_message: Message,
) -> None:
    with pytest.raises(
        NoAnswer, match=r"its policy does not allow it \(train.batch_size\)"
    ) as declined:
        content_of(
            Message(
                pack_refusal("policy", "train.batch_size"), reply_to=request_message
            )
        )
    assert declined.value.code == "policy"
    with pytest.raises(NoAnswer, match='error 2: "gone"'):
        content_of(Message(Error(code=2, reason="gone"), reply_to=request_message))


def test_a_malformed_update_is_refused() -> None:
    for content in (
        RecordDict(),
        RecordDict({"update": ConfigRecord({"round": "one"})}),
        RecordDict({"card": ConfigRecord({"client": 1})}),
    ):
        with pytest.raises(BadAnswer, match="no update"):
            unpack_update(content, LABEL)
        with pytest.raises(BadAnswer, match=r"no (card|counts)"):
            unpack_introduction(content)


@pytest.mark.parametrize(
    "record",
    [
        {"loss_sum": 1.0, "confusion": [1, 2, 3]},
        {"loss_sum": 1.0, "confusion": [1, -2, 3, 4]},
        {"loss_sum": float("nan"), "confusion": [1, 2, 3, 4]},
        {"confusion": [1, 2, 3, 4]},
    ],
)
def test_impossible_counts_are_refused(record: dict[str, object]) -> None:
    content = RecordDict({"counts": MetricRecord(record)})  # type: ignore[arg-type]
    with pytest.raises(BadAnswer, match="no counts"):
        unpack_counts(content, LABEL)


def test_settings_for_sites_name_no_path_of_the_server(make_settings: Make) -> None:
    settings = make_settings(
        "engine=deployment", "data.label_names=[health,money,sport]"
    )
    told = settings.for_sites().to_json()
    assert settings.run_dir not in told
    assert str(settings.data.path) not in told
    assert settings.model.name not in told
    assert settings.for_sites().train == settings.train
