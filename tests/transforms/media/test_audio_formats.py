"""Files that are no audio, are not supported, or were cut off: each has its reason."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.media_files import sound_file, tone
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.audio import decode_audio


def reason_of(data: bytes) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_audio(data)
    assert "0x" not in caught.value.detail  # a memory address would make the dead letter differ between runs
    return caught.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_FILE, id="zero-bytes"),
        pytest.param(sound_file(np.zeros(0), 8_000), Reason.EMPTY_FILE, id="no-samples"),
        pytest.param(b"I am no sound at all", Reason.NOT_AUDIO, id="text"),
        pytest.param(bytes(500), Reason.NOT_AUDIO, id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), Reason.NOT_AUDIO, id="picture"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(100), Reason.NOT_AUDIO, id="jpeg"),
        pytest.param(b"ID3\x04\0\0\0\0\0\x0a" + b"tag only  ", Reason.NOT_AUDIO, id="id3-only"),
        pytest.param(b"\0\0\0\x20ftypM4A \0\0\0\0", Reason.UNSUPPORTED_FORMAT, id="m4a"),
        pytest.param(b"\xff\xf1\x50\x80" + bytes(100), Reason.UNSUPPORTED_FORMAT, id="aac"),
        pytest.param(b"\x1a\x45\xdf\xa3" + bytes(100), Reason.UNSUPPORTED_FORMAT, id="webm"),
        pytest.param(b"MThd\0\0\0\x06" + bytes(20), Reason.UNSUPPORTED_FORMAT, id="midi"),
        pytest.param(b"OggS\0\2" + bytes(20) + b"\1\x10Speex   " + bytes(8), Reason.UNSUPPORTED_FORMAT, id="speex"),
        pytest.param(sound_file(np.array([0.0, np.nan, 0.5]), 8_000, subtype="FLOAT"), Reason.NOT_AUDIO, id="nan"),
    ],
)
def test_each_file_that_is_not_decoded_has_its_reason(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


def test_a_wav_with_an_unknown_codec_is_not_supported() -> None:
    data = bytearray(sound_file(tone(8_000), 8_000))
    data[20:22] = struct.pack("<H", 0x0161)  # Windows Media Audio
    assert reason_of(bytes(data)) is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF", "FLAC", "OGG", "MP3"])
def test_files_that_were_cut_off_are_truncated(form: str) -> None:
    data = sound_file(tone(44_100, 3.0), 44_100, form)
    for part in (0.4, 0.7, 0.97):
        assert reason_of(data[: int(len(data) * part)]) is Reason.TRUNCATED


def test_a_wav_from_a_pipe_which_states_no_size_is_decoded() -> None:
    data = bytearray(sound_file(tone(22_050), 22_050))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(decode_audio(bytes(data)), decode_audio(sound_file(tone(22_050), 22_050)))
