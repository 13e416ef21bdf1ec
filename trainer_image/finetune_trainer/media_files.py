"""Files of images and sounds: where a row's path leads to, and what is in them.

Only formats are opened whose decoders run no code of the file's (Pillow would hand PostScript to an interpreter).
"""

from __future__ import annotations

import hashlib
import math
import warnings
import wave
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from finetune_api.trainer_config import ResolvedSource
from PIL import Image, ImageOps

from finetune_trainer.messages import Content, MediaKind

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 64 * 2**20
_FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SAMPLE_TYPES = {2: "<i2", 4: "<i4"}


class MediaError(Exception):
    """A file that cannot be found, read or understood; the message says which and why, and names no row."""


def locate(source: ResolvedSource, path: str) -> Path:
    """The file that a row of ``source`` names.

    A relative path is beside the rows, an absolute one below the root of their volume; neither leads out of it.

    Raises:
        MediaError: the source has no files beside its rows, or the path leads out.
    """
    if source.path is None:
        raise MediaError(
            f"{path!r}: beside rows from {source.uri} no files are fetched; hold them in the rows (data: URIs, or "
            "bytes in Parquet), or copy rows and files to a claim"
        )
    rows = Path(source.path)
    base = rows if rows.is_dir() else rows.parent
    root = base if source.root is None else Path(source.root)
    wanted = root / path.lstrip("/") if path.startswith("/") else base / path
    found = wanted.resolve()
    if not found.is_relative_to(root.resolve()):
        raise MediaError(f"{path!r} leads out of the volume that the rows are in")
    return wanted


def read_file(path: Path, name: str) -> bytes:
    """The content of ``path``, which a row calls ``name``.

    Raises:
        MediaError: it is missing, too large, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MediaError(f"{name!r} has {size:,} bytes, and {MAX_BYTES:,} are the most")
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{name!r} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Held:
    """What is in the files of a medium: one, or the frames of a video."""

    files: tuple[bytes, ...]
    of: int = 1
    """How many there were, of which these were taken evenly."""

    @property
    def sha256(self) -> bytes:
        """Of the file; of several, of their hashes."""
        digests = [hashlib.sha256(file).digest() for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def read_medium(source: ResolvedSource, kind: MediaKind, content: Content, *, most: int) -> Held:
    """The files of a medium of ``source``; ``most``: frames of a video.

    Raises:
        MediaError: one is not there.
    """
    frames: tuple[str | bytes, ...] = content if isinstance(content, tuple) else (content,)
    if kind == "video" and isinstance(content, str) and (place := locate(source, content)).is_dir():
        names = sorted(file.name for file in place.iterdir() if file.suffix.lower() in _FRAME_SUFFIXES)
        if not names:
            raise MediaError(f"{content!r} is a directory without frames ({', '.join(_FRAME_SUFFIXES)})")
        frames = tuple(f"{content.rstrip('/')}/{name}" for name in names)
    chosen = [frames[number] for number in evenly(len(frames), most)]
    files = tuple(one if isinstance(one, bytes) else read_file(locate(source, one), one) for one in chosen)
    return Held(files, len(frames))


def evenly(count: int, most: int) -> list[int]:
    """Numbers of ``most`` of ``count`` items at most, the first and the last among them."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """The image in ``content``, upright, in RGB, scaled down to ``max_pixels`` (width times height) where it has more.

    Raises:
        MediaError: it is no image of :data:`IMAGE_FORMATS`, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as opened:
                # As transformers opens images: cameras say by EXIF which side is up.
                image = ImageOps.exif_transpose(opened).convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"it is no image of a known format ({', '.join(IMAGE_FORMATS)})") from error
    except Exception as error:  # a damaged file makes the decoders raise whatever they like
        raise MediaError(f"the image is damaged: {error}") from error
    return scaled_down(image, max_pixels)


def scaled_down(image: Image.Image, max_pixels: int) -> Image.Image:
    """``image`` with ``max_pixels`` at most, in its shape."""
    pixels = image.width * image.height
    if pixels <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / pixels)
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def open_sound(content: bytes, rate: int, *, longest: float | None) -> np.ndarray:
    """The sound in ``content``, a WAV file in PCM.

    Args:
        content: the file.
        rate: samples a second that are wanted.
        longest: seconds that the model takes; None where there is no limit.

    Returns:
        float32 (n,), from -1 to 1, its channels' mean.

    Raises:
        MediaError: it is none, is damaged, empty or too long.
    """
    try:
        with wave.open(BytesIO(content)) as file:
            channels, width, own, count = (
                file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()
            )  # fmt: skip
            frames = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise MediaError(
            f"it is no WAV file in PCM ({error}); convert it, such as by ffmpeg -i … {rate}.wav"
        ) from error
    if len(frames) != count * channels * width or not count or own <= 0:
        raise MediaError("the WAV file is empty or cut short")
    samples = _samples(frames, width).reshape(-1, channels).mean(axis=1)
    if longest is not None and count / own > longest:
        raise MediaError(f"it takes {count / own:.1f} s, and the model hears {longest:g} s at most; cut it")
    return resampled(samples, own, rate).astype(np.float32)


def _samples(frames: bytes, width: int) -> np.ndarray:
    """Samples from -1 to 1 of ``width`` bytes each."""
    if width == 1:  # without a sign, by WAV's definition
        return (np.frombuffer(frames, dtype=np.uint8).astype(np.float64) - 128) / 128
    if width == 3:
        padded = np.zeros((len(frames) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(frames, dtype=np.uint8).reshape(-1, 3)
        return padded.view("<i4").reshape(-1) / 2.0**31
    if width not in _SAMPLE_TYPES:
        raise MediaError(f"the WAV file has {8 * width} bits a sample; 8, 16, 24 and 32 are known")
    return np.frombuffer(frames, dtype=_SAMPLE_TYPES[width]).astype(np.float64) / 2.0 ** (8 * width - 1)


def resampled(samples: np.ndarray, own: int, wanted: int) -> np.ndarray:
    """``samples`` (n,) at ``own`` a second, as ``wanted`` a second: the same spectrum, cut off where the lower of the
    two rates has no room for it (Fourier interpolation)."""
    if own == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / own))
    spectrum = np.fft.rfft(samples)
    kept = np.zeros(count // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(spectrum), len(kept))
    kept[:shared] = spectrum[:shared]
    return np.fft.irfft(kept, count) * (count / len(samples))
