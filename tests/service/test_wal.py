"""Records and segments: what was written comes back, a torn end is cut off, damage is told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.service import records
from pipeline.service.records import Kind, durable_after, header, padding, read_records
from pipeline.service.segments import Place, Segments
from schemas.errors import DamagedLogError, LockHeldError
from tests.reliability.sizes import size

PAYLOADS = st.lists(st.binary(max_size=60), max_size=8)


def framed(payloads: list[bytes], first: int = 0, durable: int = 0) -> bytes:
    """Some records, as one group writes them."""
    written = b""
    for number, payload in enumerate(payloads):
        crc = records.checksum([payload])
        head = header(Kind.PUT, len(payload), first + number, durable, crc)
        written += head + payload + padding(len(payload))
    return written


@given(PAYLOADS, st.integers(0, 2**40))
def test_records_come_back(payloads: list[bytes], first: int) -> None:
    data = framed(payloads, first)
    found = list(read_records(data, first))
    assert [bytes(record.payload) for record in found] == payloads
    assert [record.offset for record in found] == list(range(first, first + len(payloads)))
    assert (found[-1].end if found else 0) == len(data)
    assert not list(read_records(data, first + 1))


@given(PAYLOADS, st.data())
def test_what_is_cut_or_changed_ends_the_records(
    payloads: list[bytes], data: st.DataObject
) -> None:
    whole = framed(payloads)
    written = list(read_records(whole, 0))
    at = data.draw(st.integers(0, len(whole)))
    before = sum(record.end <= at for record in written)
    assert len(list(read_records(whole[:at], 0))) == before
    if at == len(whole):
        return
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    found = list(read_records(bytes(changed), 0))
    begun = written[before].position
    end = begun + len(written[before].payload)
    is_zeros = begun - 4 <= at < begun or at >= end
    assert len(found) == (len(written) if is_zeros else before)
    assert [bytes(record.payload) for record in found] == payloads[: len(found)]


def test_any_bytes_are_no_records() -> None:
    rng = random.Random(0)
    valid = framed([b"one", b"two" * 20])
    for _ in range(size(3000, 20_000)):
        data = bytearray(rng.randbytes(rng.randrange(200)) if rng.random() < 0.3 else valid)
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        for record in read_records(bytes(data), 0):
            assert len(record.payload) <= len(data)
        assert durable_after(bytes(data), 0) < 2**64


# -- segments ------------------------------------------------------------------------------------


def write(segments: Segments, payloads: list[bytes], first: int, durable: int = 0) -> list[Place]:
    """Writes one group and syncs it."""
    start, begun = segments.write([framed(payloads, first, durable)])
    segments.sync()
    places = []
    for payload in payloads:
        places.append(Place(start, begun + records.HEADER_BYTES, len(payload)))
        begun += records.record_bytes(len(payload))
    return places


def grown(folder: Path) -> list[list[bytes]]:
    """A log of three segments, of two groups each; returns the payloads of the segments."""
    segments = Segments(folder)
    kept, offset = [], 0
    for number in range(3):
        payloads = [f"{number}-{k}".encode() * (k + 1) for k in range(6)]
        segments.begin(offset)
        write(segments, payloads[:3], offset, durable=offset)
        write(segments, payloads[3:], offset + 3, durable=offset + 3)
        offset += 6
        kept.append(payloads)
    segments.close()
    return kept


def recovered(folder: Path) -> list[bytes]:
    segments = Segments(folder)
    try:
        return [bytes(record.payload) for _, record in segments.recover()]
    finally:
        segments.close()


def test_segments_come_back(tmp_path: Path) -> None:
    kept = grown(tmp_path / "a" / "wal")
    (tmp_path / "a" / "wal" / "token").write_text("not a segment")
    assert recovered(tmp_path / "a" / "wal") == [*kept[0], *kept[1], *kept[2]]


def test_a_place_is_read_back(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.begin(7)
    places = write(segments, [b"", b"four", b"eight" * 100], 7)
    assert [segments.read(place) for place in places] == [b"", b"four", b"eight" * 100]
    with pytest.raises(DamagedLogError):
        segments.read(Place(7, places[1].position + 8, 4))
    with pytest.raises(DamagedLogError):
        segments.read(Place(9, places[1].position, 4))
    segments.close()


@settings(max_examples=30)
@given(cut=st.integers(0, 10_000))
def test_a_torn_end_is_cut_off(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("wal")
    kept = grown(folder)
    last = sorted(folder.iterdir())[-1]
    data = last.read_bytes()
    at = cut % (len(data) + 1)
    last.write_bytes(data[:at] + bytes(cut % 50))
    found = recovered(folder)
    assert found[:12] == kept[0] + kept[1]
    assert found[12:] == kept[2][: len(found) - 12]
    assert recovered(folder) == found, "what is cut off stays cut off"
    assert sum(path.stat().st_size for path in folder.iterdir()) % 8 == 0


@pytest.mark.parametrize("number", [0, 1])
def test_damage_before_the_last_segment_is_told(number: int, tmp_path: Path) -> None:
    grown(tmp_path)
    path = sorted(tmp_path.iterdir())[number]
    data = path.read_bytes()
    for changed in (data[:-8], data[:90] + b"\x00" + data[91:], b""):
        path.write_bytes(changed)
        with pytest.raises(DamagedLogError, match="Expected the log's records up to"):
            recovered(tmp_path)
    path.unlink()
    if number:
        with pytest.raises(DamagedLogError):
            recovered(tmp_path)
    else:
        assert len(recovered(tmp_path)) == 12  # what is gone from the front was sealed


def test_damage_to_what_was_acknowledged_is_told(tmp_path: Path) -> None:
    """The second group of a segment says that the first one was durable."""
    kept = grown(tmp_path)
    last = sorted(tmp_path.iterdir())[-1]
    data = bytearray(last.read_bytes())
    data[41] ^= 1
    last.write_bytes(data)
    with pytest.raises(DamagedLogError, match="which was acknowledged"):
        recovered(tmp_path)
    data[41] ^= 1
    data[-100] ^= 1  # in the last group: it may never have been acknowledged
    last.write_bytes(data)
    assert recovered(tmp_path) == [*kept[0], *kept[1], *kept[2]][:16]


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    with pytest.raises(LockHeldError, match="another one does"):
        Segments(tmp_path)
    segments.close()
    Segments(tmp_path).close()


def test_segments_go_from_the_front(tmp_path: Path) -> None:
    kept = grown(tmp_path)
    segments = Segments(tmp_path)
    assert segments.drop_before(11) > 0
    assert segments.firsts == [6, 12]
    assert segments.drop_before(1000) > 0
    assert segments.firsts == [12], "the last one stays"
    assert segments.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    segments.close()
    assert recovered(tmp_path) == kept[2]


def test_what_was_not_synced_is_taken_back(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.begin(0)
    write(segments, [b"kept"], 0)
    segments.write([framed([b"gone" * 9], 1)])
    assert segments.undo()
    (place,) = write(segments, [b"next"], 1)
    assert segments.read(place) == b"next"
    segments.begin(2)
    segments.write([framed([b"gone"], 2)])
    assert not segments.undo()
    assert not segments.is_begun
    segments.close()
    assert recovered(tmp_path) == [b"kept", b"next"]
