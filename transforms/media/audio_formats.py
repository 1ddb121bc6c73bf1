"""Audio file formats: which container a file has, which are decoded, and whether a file was cut off."""

from __future__ import annotations

from unisono.transforms.base.errors import InputError, Reason

_UNKNOWN_SIZE = 0x7FFFFF00  # writers that cannot seek leave about the largest possible size in the header
# Codes in a WAV's `fmt ` chunk that libsndfile knows: PCM, Microsoft ADPCM, float, A-law, µ-law, IMA ADPCM, GSM,
# extensible.
_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE)

# (offset, magic, name) of formats that are not decoded: libsndfile cannot read them, or it cannot be trusted to notice
# where a file was cut off.
_UNSUPPORTED = (
    (4, b"ftyp", "MP4 (AAC, ALAC)"),
    (0, b"\x30\x26\xb2\x75", "Windows Media"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"#!AMR", "AMR"),
    (0, b"MThd", "MIDI"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"DSD ", "DSD"),
    (0, b".snd", "Sun audio"),
    (0, b"caff", "Core Audio"),
    (0, b"riff", "Wave64"),
    (0, b"ADIF", "AAC"),
)


def identify_audio(data: bytes) -> str:
    """Recognises the container of an audio file by its first bytes: WAV, AIFF, FLAC, Ogg or MP3.

    Raises:
        InputError: EMPTY_FILE, UNSUPPORTED_FORMAT, or NOT_AUDIO if the bytes belong to no audio format.
    """
    if not data:
        raise InputError(Reason.EMPTY_FILE, "0 bytes")
    for offset, magic, name in _UNSUPPORTED:
        if data.startswith(magic, offset):
            raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded")
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        body = data[27 + data[26] : 27 + data[26] + 8] if len(data) > 26 else b""
        if len(body) == 8 and not body.startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC")):
            raise InputError(Reason.UNSUPPORTED_FORMAT, "Ogg without Vorbis, Opus or FLAC is not decoded")
        return "Ogg"
    if data[:3] == b"ID3":
        return "MP3"
    if data[0] == 0xFF and len(data) > 1 and data[1] & 0xE0 == 0xE0:  # MPEG frame sync; layer 0 means AAC
        if data[1] & 0xF6 == 0xF0:
            raise InputError(Reason.UNSUPPORTED_FORMAT, "AAC is not decoded")
        if data[1] & 0x06:
            return "MP3"
    raise InputError(Reason.NOT_AUDIO, f"{len(data)} bytes that begin with {data[:8].hex(' ')}")


def is_cut_audio(data: bytes, name: str) -> bool:
    """Says whether a container states more bytes than the file has.

    libsndfile would silently shorten a WAV or AIFF that was cut off, and calls an Ogg that was cut off `malformed`.

    Args:
        data: the file.
        name: its container, as `identify_audio` returns it.
    """
    if name == "WAV":
        return _riff_is_cut(data, "big" if data[:4] == b"RIFX" else "little", b"data")
    if name == "AIFF":
        return _riff_is_cut(data, "big", b"SSND")
    if name == "Ogg":
        return _ogg_is_cut(data)
    if name == "FLAC":
        return _flac_head_is_cut(data)
    if name == "MP3":
        stated = xing_bytes(data)
        # One percent is allowed, as in mpg123: writers differ in what they count.
        return stated is not None and len(data) < 0.99 * stated
    return False


def _riff_is_cut(data: bytes, order: str, wanted: bytes) -> bool:
    """Walks the chunks of a RIFF or IFF file up to the chunk `wanted`, which holds the samples."""
    at = 12
    size64 = None
    while at + 8 <= len(data):
        chunk = data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], order)  # type: ignore[arg-type]
        if chunk == b"ds64":  # RF64 (EBU Tech 3306) states the true sizes here, with 64 bits
            size64 = int.from_bytes(data[at + 16 : at + 24], "little")
        if chunk == wanted:
            if size >= _UNKNOWN_SIZE:
                size = size64 or 0
            return at + 8 + size > len(data)
        at += 8 + size + (size & 1)
    return True


def has_unknown_codec(data: bytes) -> bool:
    """Says whether the `fmt ` chunk of a WAV names a codec that libsndfile does not know.

    A WAV without such a chunk counts as PCM.
    """
    at = data.find(b"fmt ")
    code = int.from_bytes(data[at + 8 : at + 10], "little") if at >= 0 else 1
    return code not in _WAV_CODECS


def _ogg_is_cut(data: bytes) -> bool:
    """Walks the pages of an Ogg stream (RFC 3533, section 6). Half an hour has a few thousand pages."""
    at = 0
    while data.startswith(b"OggS", at):
        segments = data[at + 27 : at + 27 + data[at + 26]] if at + 26 < len(data) else b""
        at += 27 + len(segments) + sum(segments)
        if not segments and at > len(data):
            break
    return at > len(data)


def _flac_head_is_cut(data: bytes) -> bool:
    """Walks the metadata blocks of a FLAC file (RFC 9639, section 8.1). libsndfile checks what follows them."""
    at = 4
    while at + 4 <= len(data):
        last = data[at] & 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if last:
            return at > len(data)
    return True


def xing_bytes(data: bytes) -> int | None:
    """Reads the length of an MP3 that its Xing or Info header states.

    Returns:
        The number of bytes, or 0 if the header omits it. None means that there is no header with a count of frames,
        so libsndfile can only guess the length of the clip.
    """
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:  # the size of an ID3 tag is stored as four times 7 bits
        start = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    head = data[start : start + 256]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0:
        return None
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    if not flags & 1:  # no count of frames
        return None
    return start + int.from_bytes(head[at + 12 : at + 16], "big") if flags & 2 else 0
