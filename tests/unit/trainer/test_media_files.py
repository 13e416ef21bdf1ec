"""Files of images and sounds: what is in them, and what is wrong with them."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer import media_files
from finetune_trainer.media_clips import Clip, open_clip
from finetune_trainer.media_files import Held, MediaError, evenly, open_image, open_sound, read_medium, resampled
from PIL import Image
from tiny_media import image, image_bytes, tone

MANY = 10**9


@pytest.mark.parametrize("kind", media_files.IMAGE_FORMATS)
def test_every_format_is_opened_in_rgb(kind: str) -> None:
    opened = open_image(image_bytes(image("red"), kind), MANY)
    assert (opened.mode, opened.size) == ("RGB", (60, 40))
    red, green, blue = opened.getpixel((50, 30))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


def test_an_image_is_scaled_down_to_the_most_pixels_and_keeps_its_shape() -> None:
    content = image_bytes(image("red", (400, 100)))
    assert open_image(content, 40_000).size == (400, 100)
    assert open_image(content, 10_000).size == (200, 50)
    assert open_image(image_bytes(image("red", (3000, 1))), 1024).size[1] == 1


def test_a_camera_says_which_side_is_up() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    file = io.BytesIO()
    image("red", (60, 40)).save(file, "JPEG", exif=turned)
    assert open_image(file.getvalue(), MANY).size == (40, 60)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no image", "it is no image of a known format (PNG, JPEG, WEBP, GIF, BMP, TIFF)"),
        (b"", "it is no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image of a known format"),
        (image_bytes(image("red", (300, 300)), "JPEG")[:400], "the image is damaged"),
        (image_bytes(image("red"))[:60], "the image is damaged"),
    ],
)
def test_what_is_no_whole_image_is_told(content: bytes, problem: str) -> None:
    with pytest.raises(MediaError) as failure:
        open_image(content, MANY)
    assert problem in str(failure.value)


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match=r"damaged: Image size \(2400 pixels\) exceeds limit"):
        open_image(image_bytes(image("red")), MANY)


def loudest(samples: np.ndarray, rate: int) -> float:
    """Hertz of the strongest part."""
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_one_channel_at_the_models_rate(rate: int, channels: int) -> None:
    found = open_sound(tone(440, 0.5, rate, channels), 16000, longest=None)
    assert found.dtype == np.float32
    assert len(found) == 8000
    assert loudest(found, 16000) == pytest.approx(440, abs=2)
    assert float(np.abs(found).max()) == pytest.approx(20000 / 2**15, rel=0.05)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_each_width_of_a_sample_is_read(width: int) -> None:
    levels = np.array([0.0, 0.5, -0.5, 0.25])
    if width == 1:
        frames = (levels * 128 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(levels * 2.0 ** (8 * width - 1)).astype("<i4")
        frames = b"".join(int(value).to_bytes(width, "little", signed=True) for value in whole)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(width)
        out.setframerate(16000)
        out.writeframes(frames)
    assert open_sound(file.getvalue(), 16000, longest=None) == pytest.approx(levels, abs=1e-6)


def test_resampling_keeps_what_both_rates_can_hold() -> None:
    time = np.arange(4000) / 8000
    low, high = np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 3500 * time)
    down = resampled(low + high, 8000, 4000)
    assert down == pytest.approx(low[::2], abs=1e-6), "what the lower rate cannot hold is gone, and not folded back"
    assert resampled(down, 4000, 8000) == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ID3", "it is no WAV file in PCM"),
        (b"", "it is no WAV file in PCM"),
        (tone(440)[:-10], "the WAV file is empty or cut short"),
        (tone(440, 0), "the WAV file is empty or cut short"),
        (tone(440, 3), "it takes 3.0 s, and the model hears 2 s at most"),
    ],
)
def test_what_is_no_whole_sound_is_told(content: bytes, problem: str) -> None:
    with pytest.raises(MediaError) as failure:
        open_sound(content, 16000, longest=2)
    assert problem in str(failure.value)


def content_of(origin: ResolvedSource, content: str | bytes) -> bytes:
    (file,) = read_medium(origin, "image", content, most=9).files
    return file


def source(root: Path, rows: str = "data/rows.jsonl") -> ResolvedSource:
    return ResolvedSource(uri=f"pvc://claim/{rows}", path=str(root / rows), root=str(root))


def test_files_are_beside_the_rows_or_below_the_volumes_root(tmp_path: Path) -> None:
    for place in ("data/a.png", "b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(place.encode())
    (tmp_path / "data/rows.jsonl").touch()
    assert content_of(source(tmp_path), "a.png") == b"data/a.png"
    assert content_of(source(tmp_path), "../b.png") == b"b.png"
    assert content_of(source(tmp_path), "/b.png") == b"b.png"
    assert content_of(source(tmp_path, "data"), "a.png") == b"data/a.png"
    assert content_of(source(tmp_path), b"itself") == b"itself"


def test_no_path_leads_out_of_the_volume(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "data").mkdir(parents=True)
    (root / "data/rows.jsonl").touch()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "data/link").symlink_to(tmp_path / "secret")
    for path in ("../../secret", "link", str(tmp_path / "secret")):
        with pytest.raises(MediaError, match=r"leads out of the volume|cannot be read: No such file"):
            content_of(source(root), path)
    alone = ResolvedSource(uri="configmap://rows/rows.jsonl", path=str(root / "data/rows.jsonl"))
    with pytest.raises(MediaError, match="leads out of the volume"):
        content_of(alone, "../x")


def test_files_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"12345")
    with pytest.raises(MediaError, match=r"'gone\.png' cannot be read: No such file or directory"):
        content_of(source(tmp_path), "gone.png")
    with pytest.raises(MediaError, match=r"'\.' cannot be read: Is a directory"):
        content_of(source(tmp_path), ".")
    with pytest.raises(MediaError, match=r"beside rows from hf://org/set no files are fetched; hold them in the rows"):
        content_of(ResolvedSource(uri="hf://org/set"), "a.png")
    monkeypatch.setattr(media_files, "MAX_BYTES", 4)
    with pytest.raises(MediaError, match=r"'a\.png' has 5 bytes, and 4 are the most"):
        content_of(source(tmp_path), "a.png")


def test_frames_are_a_list_or_a_directory_and_are_taken_evenly(tmp_path: Path) -> None:
    frames = [image_bytes(image((number * 20, 0, 0))) for number in range(10)]
    (tmp_path / "data/clip").mkdir(parents=True)
    for number, frame in enumerate(frames):
        (tmp_path / f"data/clip/{number:02}.png").write_bytes(frame)
    (tmp_path / "data/clip/notes.txt").touch()
    whole = read_medium(source(tmp_path), "video", "clip", most=10)
    assert (whole.files, whole.of) == (tuple(frames), 10)
    some = read_medium(source(tmp_path), "video", "clip/", most=4)
    assert (some.files, some.of) == (tuple(frames[number] for number in (0, 3, 6, 9)), 10)
    named = ("clip/00.png", frames[5], "clip/09.png")
    listed = read_medium(source(tmp_path), "video", named, most=10)
    assert listed.files == (frames[0], frames[5], frames[9])
    assert len({one.sha256 for one in (whole, some, listed, Held((frames[0],)))}) == 4
    clip = open_clip(some, fps=2, most=4, max_pixels=600)
    assert clip.frames.shape == (4, 20, 30, 3)
    assert clip.fps == pytest.approx(0.8), "four of ten frames of five seconds"
    with pytest.raises(MediaError, match="'clip' cannot be read: Is a directory"):
        read_medium(source(tmp_path), "image", "clip", most=4)
    (tmp_path / "data/empty").mkdir()
    with pytest.raises(MediaError, match=r"'empty' is a directory without frames \(\.png"):
        read_medium(source(tmp_path), "video", "empty", most=4)


def animated(milliseconds: list[int], kind: str = "GIF") -> bytes:
    drawn = [image((20 * number, 0, 0)) for number in range(len(milliseconds))]
    file = io.BytesIO()
    drawn[0].save(file, kind, save_all=True, append_images=drawn[1:], duration=milliseconds)
    return file.getvalue()


def reds(clip: Clip) -> list[int]:
    """How red each frame is, as the number of the drawn one."""
    return [round(float(frame[-3, -3, 0]) / 20) for frame in clip.frames]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animated_image_is_looked_at_as_often_as_the_job_says(kind: str) -> None:
    held = Held((animated([1000, 500, 250, 250, 1000], kind),))
    twice = open_clip(held, fps=2, most=99, max_pixels=MANY)
    assert (reds(twice), twice.fps) == ([0, 0, 1, 2, 4, 4], 2)
    assert reds(open_clip(held, fps=4, most=99, max_pixels=MANY)) == [0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4]
    few = open_clip(held, fps=2, most=3, max_pixels=600)
    assert (reds(few), few.fps, few.frames.shape[1:]) == ([0, 1, 4], 1, (20, 30, 3))


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        (Held((b"\0\0\0\x18ftypmp42",)), "For films (MP4 and the like) there is no decoder: name their frames"),
        (Held((animated([100] * 5)[:-300],)), "the video is damaged"),
        (Held(tuple(image_bytes(image("red", size)) for size in ((60, 40), (9, 9))), 2),
         "its frames differ in size: 9x9, 60x40"),
        (Held((image_bytes(image("red")), b"x"), 2), "it is no image of a known format"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_told(held: Held, problem: str) -> None:
    with pytest.raises(MediaError) as failure:
        open_clip(held, fps=2, most=9, max_pixels=MANY)
    assert problem in str(failure.value)


@pytest.mark.parametrize(("count", "most", "chosen"), [(3, 5, [0, 1, 2]), (5, 3, [0, 2, 4]), (128, 2, [0, 127])])
def test_the_first_and_the_last_are_among_the_chosen(count: int, most: int, chosen: list[int]) -> None:
    assert evenly(count, most) == chosen
