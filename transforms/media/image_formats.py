"""Image file formats: which format a file has, which formats are decoded, and whether a file was cut off."""

from __future__ import annotations

from unisono.transforms.base.errors import InputError, Reason

# (offset, magic, Pillow's name of the format or None if it is not decoded, its common name). Only the formats listed
# here are opened: some of Pillow's decoders start other programs (EPS), and others recognise their files by no magic.
_MAGIC: tuple[tuple[int, bytes, str | None, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", "PNG"),
    (0, b"GIF8", "GIF", "GIF"),
    (8, b"WEBP", "WEBP", "WebP"),
    (0, b"BM", "BMP", "BMP"),
    (0, b"II*\0", "TIFF", "TIFF"),
    (0, b"MM\0*", "TIFF", "TIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG2000", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000", "JPEG 2000"),
    (4, b"ftypavi", "AVIF", "AVIF"),
    (0, b"P4", "PPM", "PBM"),
    (0, b"P5", "PPM", "PGM"),
    (0, b"P6", "PPM", "PPM"),
    (4, b"ftyphei", None, "HEIC"),
    (4, b"ftyphev", None, "HEIC"),
    (4, b"ftypmif1", None, "HEIF"),
    (0, b"\xff\x0a", None, "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", None, "JPEG XL"),
    (0, b"8BPS", None, "Photoshop"),
    (0, b"%PDF", None, "PDF"),
    (0, b"%!PS", None, "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", None, "PostScript"),
    (0, b"\0\0\x01\0", None, "icon"),
    (0, b"\x1f\x8b", None, "gzip (compressed SVG?)"),
    (0, b"gimp xcf", None, "GIMP"),
    (0, b"\xd7\xcd\xc6\x9a", None, "Windows metafile"),
    (0, b"v/1\x01", None, "OpenEXR"),
    (0, b"#?RADIANCE", None, "Radiance HDR"),
)


def identify_image(data: bytes) -> tuple[str, str]:
    """Recognises the format of an image file by its first bytes; returns Pillow's name and the common name of it.

    Raises:
        InputError: EMPTY_FILE, UNSUPPORTED_FORMAT, or NOT_AN_IMAGE if the bytes belong to no image format.
    """
    if not data:
        raise InputError(Reason.EMPTY_FILE, "0 bytes")
    for offset, magic, pillow_name, name in _MAGIC:
        if data.startswith(magic, offset):
            if pillow_name is None:
                raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded")
            return pillow_name, name
    head = _text_head(data)
    if "<svg" in head or head.startswith(("<?xml", "<!doctype svg")):
        raise InputError(Reason.UNSUPPORTED_FORMAT, f"{'SVG' if '<svg' in head else 'XML'} is not decoded")
    if head.startswith(("<!doctype html", "<html")):
        raise InputError(Reason.NOT_AN_IMAGE, "an HTML page")
    raise InputError(Reason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {data[:8].hex(' ')}")


def _text_head(data: bytes) -> str:
    """Reads the first 4 kB as lower-case text, in UTF-16 if there is a byte order mark, else in UTF-8."""
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data[:4096].decode(codec, errors="replace").lstrip().lower()


def is_cut_image(data: bytes, name: str) -> bool:
    """Says whether a file that could not be decoded ends before its format says it should.

    Args:
        data: the file.
        name: the common name of its format, as `identify_image` returns it.
    """
    size = len(data)
    if name == "PNG":
        return b"IEND" not in data[-64:]
    if name == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if name == "GIF":
        return not data.endswith(b";")
    if name == "WebP":
        return size < int.from_bytes(data[4:8], "little") + 8
    if name == "BMP":  # the magic is only two letters, so check that the reserved bytes are zero too
        return data[6:10] == bytes(4) and size < int.from_bytes(data[2:6], "little")
    if name == "TIFF":
        return size <= int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big")
    if name in ("AVIF", "JPEG 2000"):
        return _boxes_are_cut(data)
    return False


def _boxes_are_cut(data: bytes) -> bool:
    """Walks the top-level boxes of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0 means that the box extends to the end of the file
            return False
        at += size
    return at != len(data)
