"""Messages are the same after packing and unpacking. Malformed answers are refused."""

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
    """Return a message to reply to."""
    LocalGrid(client_app, 1)
    return Message(RecordDict(), 2, "train")


def numbers(count: int) -> np.ndarray:
    """Return random numbers, (count,) fp32."""
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


def test_pieces_arrive_as_flowers_own_arrays_of_one_chunk() -> None:
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
    # Each array is freed when it is read.
    assert len(received) == 0


FIVE = npy(np.zeros(5, dtype=np.float32))
HEAD = b"{'descr': '<f4', "
LARGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,), }"
NO_PIECES = {
    "empty": b"",
    "a zip file, which np.load opens": b"PK\x03\x04 a zip",
    "a power as a shape": b"\x93NUMPY\x01\x00v\x00" + LARGE.ljust(118),
    "not closed": FIVE.replace(HEAD, b"{'descr': '<f4'".ljust(17)),
    "no type": FIVE.replace(HEAD, b"{'descr': (), ".ljust(17)),
    "bad type": FIVE.replace(HEAD, b"{'descr':'(1,,)f4',".ljust(17)),
    "two dimensions": npy(np.zeros((2, 2), dtype=np.float32)),
    "cut short": FIVE[:-3],
    "objects": npy(np.array([print], dtype=object)),
}


@pytest.mark.parametrize("kind", NO_PIECES)
def test_bytes_that_are_no_piece_are_refused(
    request_message: Message, kind: str
) -> None:
    message = updating(request_message)
    piece = FlowerArray("float32", (5,), "numpy.ndarray", NO_PIECES[kind])
    message.content.array_records["tensors"]["shared.00000"] = piece
    with pytest.raises(BadAnswer, match=r"no update \("):
        unpack_update(message.content, LABEL)


def test_a_claimed_size_reserves_no_memory(request_message: Message) -> None:
    one = npy(np.zeros(1, dtype=np.float32))
    claims = one.replace(b"(1,), }" + b" " * 10, b"(99999999999,), }")
    message = updating(request_message)
    piece = FlowerArray("float32", (1,), "numpy.ndarray", claims)
    message.content.array_records["tensors"]["shared.00000"] = piece
    with pytest.raises(BadAnswer, match=r" 1 numbers.* \(99999999999,\)"):
        unpack_update(message.content, LABEL)


def test_many_pieces_with_the_same_content_reserve_no_memory(
    request_message: Message,
) -> None:
    """A thousand names for one piece are sent as one piece."""
    message = updating(request_message)
    record = message.content.array_records["tensors"]
    piece = over_the_wire(record["shared.00000"])
    for number in range(1000):
        record[f"shared.{number:05d}"] = piece
    with pytest.raises(BadAnswer, match="arrays are larger"):
        unpack_update(message.content, LABEL, most_bytes=100 * len(piece.data))


def test_the_words_of_a_client_are_made_printable_and_short(
    request_message: Message,
) -> None:
    words = "\x1b[31mno\n2026-01-01 forged" + "x" * 10_000
    refused = BadAnswer(words)
    assert str(refused).startswith("[31mno 2026-01-01 forgedx")
    assert len(str(refused)) == 300
    for code, key, known in (
        (words, "", ""),
        ("late", words, "late"),
        ("late", "train.nothing", "late"),
        ("", "", ""),
    ):
        record = ConfigRecord({"code": code, "key": key})
        content = RecordDict({"refusal": record})
        with pytest.raises(NoAnswer) as declined:
            content_of(Message(content, reply_to=request_message))
        assert declined.value.code == known
        text = str(declined.value)
        if known:
            assert text == REFUSALS[known]
        else:
            assert text not in REFUSALS.values()
            assert "forged" not in text
    with pytest.raises(NoAnswer):
        check_answered(RecordDict({"refusal": ConfigRecord()}))
    with pytest.raises(BadAnswer):
        unpack_update(RecordDict(), LABEL)
    with pytest.raises(BadAnswer):
        unpack_introduction(RecordDict())
    with pytest.raises(BadAnswer):
        unpack_counts(RecordDict(), LABEL)


def test_in_one_process_a_tensor_is_passed_by_reference() -> None:
    array = numbers(PIECE + 1)
    assert from_record(to_record({"shared": array}))["shared"] is array


def test_pieces_can_be_sent_to_another_process_of_ray() -> None:
    array = numbers(PIECE + 1)
    written = pickle.dumps(list(to_record({"shared": array}).values()))
    # The array is written once.
    assert len(written) < 1.5 * array.nbytes
    arrays = pickle.loads(written)  # noqa: S301 - Ray does this, on one machine
    assert np.array_equal(arrays[0].whole, array)


@pytest.mark.parametrize("test", [None, COUNTS])
def test_an_update_is_the_same_after_packing_and_unpacking(
    request_message: Message, test: Sums | None
) -> None:
    sent = update(numbers(7), test)
    message = Message(pack_update(sent), reply_to=request_message)
    arrays = message.content.array_records["tensors"]
    for key, array in arrays.items():
        arrays[key] = over_the_wire(array)
    received = unpack_update(message.content, LABEL)
    assert received.payload.form == "whole"
    ours, theirs = received.payload.arrays["shared"], sent.payload.arrays["shared"]
    assert np.array_equal(ours, theirs)
    assert received.holds == "v3"
    assert received.round == 4
    assert received.layout == "digest"
    assert received.num_examples == 17
    assert received.num_steps == 9
    assert received.loss == 0.5
    assert received.seconds == 1.5
    if test is None:
        assert received.test is None
    else:
        assert received.test is not None
        assert received.test.arrays["confusion"].tolist() == [[3, 1], [0, 4]]
        assert received.test.loss == 2.5 / 8


def test_requests_of_all_clients_share_their_tensors(make_settings: Make) -> None:
    settings = make_settings()
    tensors = numbers(5)
    payload = Payload("whole", {"shared": tensors})
    task = TrainRequest(3, "digest", payload, settings, "v3", "v2")
    first, second = (unpack_request(content) for content in pack_requests(task, [0, 5]))
    assert first.client == 0
    assert second.client == 5
    assert first.settings == settings
    assert first.round == 3
    assert first.layout == "digest"
    assert first.version == "v3"
    assert first.base == "v2"
    assert first.payload.arrays["shared"] is second.payload.arrays["shared"] is tensors


def test_hello_introduction_and_counts_are_the_same_after_unpacking(
    make_settings: Make,
) -> None:
    settings = make_settings()
    assert unpack_hello(pack_hello(settings)) == settings
    introduction = Introduction(3, 40, 8)
    assert unpack_introduction(pack_introduction(introduction)) == introduction
    found = unpack_counts(pack_counts(COUNTS), LABEL)
    assert LABEL.metrics(found)["accuracy"] == 7 / 8


def test_refusals_and_errors_are_no_answers(request_message: Message) -> None:
    refusal = pack_refusal("policy", "train.batch_size")
    with pytest.raises(NoAnswer, match=r"\(train\.batch_size\)") as declined:
        content_of(Message(refusal, reply_to=request_message))
    assert declined.value.code == "policy"
    error = Error(code=2, reason="gone")
    with pytest.raises(NoAnswer, match='error 2: "gone"') as declined:
        content_of(Message(error, reply_to=request_message))
    assert declined.value.code == ""


def test_a_malformed_update_is_refused() -> None:
    for content in (
        RecordDict(),
        RecordDict({"update": ConfigRecord({"round": "one"})}),
        RecordDict({"card": ConfigRecord({"client": 1})}),
    ):
        with pytest.raises(BadAnswer, match=r"no update \("):
            unpack_update(content, LABEL)
        with pytest.raises(BadAnswer, match=r"no card \("):
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
    with pytest.raises(BadAnswer, match=r"no counts \("):
        unpack_counts(content, LABEL)


def test_settings_for_sites_name_no_path_of_the_server(make_settings: Make) -> None:
    labels = "data.label_names=[health,money,sport]"
    settings = make_settings("engine=deployment", labels)
    sent = settings.for_sites().to_json()
    assert settings.run_dir not in sent
    assert str(settings.data.path) not in sent
    assert settings.model.name not in sent
    assert settings.for_sites().train == settings.train
