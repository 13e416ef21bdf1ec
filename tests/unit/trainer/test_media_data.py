"""Data with images, prepared: what is refused, what is made anew, what is kept."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import row_batches
from finetune_trainer.errors import TrainerError
from finetune_trainer.inspection import inspect
from finetune_trainer.media_processor import find_processor
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.row_batches import BatchEncoder, batched, encode_in_worker, start_worker
from finetune_trainer.sources import find_sources
from finetune_trainer.templates import find_template
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.wording import find_wording
from media_jobs import collator_of, configure, edited, files_of
from tiny_media import data_uri, image, image_bytes


def refusal(config: TrainerConfig) -> TrainerError:
    with pytest.raises(TrainerError) as failure:
        prepare(config)
    return failure.value


def asking(config: TrainerConfig, *rows: dict[str, Any]) -> TrainerConfig:
    """The same job with other rows, of the shape alpaca."""
    whole = [{"instruction": "<image>?", "output": "b"} | row for row in rows]
    Path(str(config.sources[0].path)).write_text("".join(json.dumps(row) + "\n" for row in whole))
    return config


qwen = pytest.mark.parametrize("job", ["qwen2_vl"], indirect=True)


@qwen
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"images": ["media/gone.png"]},
         "rows.jsonl:2: images[0] (media/gone.png): 'media/gone.png' cannot be read: No such file or directory"),
        ({"images": ["rows.jsonl"]}, "rows.jsonl:2: images[0] (rows.jsonl): it is no image of a known format (PNG, "),
        ({"images": [data_uri(image_bytes(image("red"))[:90])]}, "rows.jsonl:2: images[0]: the image is damaged"),
        ({"images": [data_uri(image_bytes(image("red", (900, 2))))]},
         "rows.jsonl:2: images[0]: the model's processor refuses it: absolute aspect ratio must be smaller than 200"),
        ({"instruction": "<audio>", "audios": ["media/red.png"]},
         "rows.jsonl:2: audios[0] is of type 'audio', and the model (hf://org/tiny) takes text, image, video; models "
         "that take it: qwen2_audio"),
        ({"instruction": "<video>", "videos": ["rows.jsonl"]},
         "rows.jsonl:2: videos[0] (rows.jsonl): it is no animated image (GIF, WEBP, PNG). For films (MP4"),
        ({"instruction": "<video>", "videos": [["media/red.png", "gone.png"]]},
         "rows.jsonl:2: videos[0]: 'gone.png' cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_taken_is_named_with_its_row_and_field(
    job: TrainerConfig, row: dict[str, Any], problem: str
) -> None:
    config = asking(job, {"images": ["media/red.png"]}, row)
    error = refusal(config)
    assert error.exit_code is ExitCode.DATASET_INVALID
    assert str(error).startswith(f"spec.dataset.sources[0].uri (file:///rows.jsonl): {problem}")
    report = prepare(config.model_copy(update={"on_error": "skip"})).dataset
    assert report is not None
    assert (report.samples, sum(row.count for row in report.dropped)) == (1, 1)


def test_a_model_of_text_alone_refuses_images_and_says_so(tiny: Path, tmp_path: Path) -> None:
    files_of("image", tmp_path / "media")
    config = configure(tmp_path, tiny, [])
    config = asking(edited(config, template={"name": "auto"}), {"images": ["media/red.png"]})
    said = "images[0] is of type 'image', and the model (hf://org/tiny) is trained on text alone; models that take it: "
    assert f"{said}gemma3, llava, llava_next, qwen2_5_vl, qwen2_vl" in str(refusal(config))


@qwen
def test_what_cannot_hold_media_is_refused_by_its_field(job: TrainerConfig) -> None:
    for fields, said in (
        ({"packing": True}, "spec.dataset.packing: rows with images or sounds are not packed"),
        ({"distributed": {"strategy": "zero3"}}, "spec.distributed.strategy: zero3 shares out the weights that see"),
        ({"template": {"name": "qwen"}}, "spec.template.name: template qwen has no placeholder for what is of type"),
        ({"template": {"name": "llava"}}, "spec.template.name: "),
    ):
        error = refusal(edited(job, **fields))
        assert said in str(error), str(error)
        assert error.exit_code in (ExitCode.CONFIG_INVALID, ExitCode.TEMPLATE_INVALID)


@qwen
def test_a_micro_batch_by_an_estimate_of_the_text_alone_is_refused(job: TrainerConfig) -> None:
    with pytest.raises(TrainerError, match=r"microBatchSize: auto goes by a memory estimate that counts the language"):
        inspect(edited(job, hyperparameters={"microBatchSize": "auto"}), count=1)


@qwen
def test_the_same_words_about_other_images_are_other_data(job: TrainerConfig) -> None:
    config = asking(job, {"images": ["media/red.png"]}, {"images": ["media/blue.png"]})
    first, again = prepare(config).dataset, prepare(config).dataset
    assert first is not None
    assert again is not None
    assert (first.digest, again.reused) == (again.digest, True)
    rows = Path(str(config.sources[0].path))
    changed = rows.parent / "media" / "red.png"
    changed.write_bytes(image_bytes(image("green")))
    second = prepare(config).dataset
    assert second is not None
    assert (second.reused, second.digest == first.digest) == (False, False)
    prepared = load_prepared(config)
    changed.write_bytes(image_bytes(image("yellow")))
    with pytest.raises(TrainerError, match=r"'media/red\.png' of file:///rows\.jsonl has changed since the data was"):
        collator_of(config, prepared)([prepared.train[i] for i in range(2)])
    changed.unlink()
    with pytest.raises(TrainerError, match=r"a file of the data is gone: 'media/red\.png' cannot be read"):
        collator_of(config, prepared)([prepared.train[i] for i in range(2)])


@qwen
def test_files_in_the_rows_are_kept_once_and_need_no_rows_any_more(job: TrainerConfig) -> None:
    red, blue = (data_uri(image_bytes(image(colour))) for colour in ("red", "blue"))
    config = asking(job, *({"images": [uri], "output": str(n)} for n, uri in enumerate([red, blue, red])))
    prepare(config)
    Path(str(config.sources[0].path)).unlink()
    prepared = load_prepared(config)
    kept = (prepared.directory / "media_bytes.bin").read_bytes()
    assert len(kept) == len(image_bytes(image("red"))) + len(image_bytes(image("blue")))
    batch = collator_of(config, prepared)([prepared.train[i] for i in range(3)])
    seen = {prepared.train[i].rows[0]: part for i, part in enumerate(batch["pixel_values"].chunk(3))}
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[1], seen[2])


@qwen
def test_a_process_beside_encodes_the_same(job: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(str(job.model.path))
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    media = find_processor(model, job.multimodal, trust_remote_code=False)
    assert media is not None
    (source,) = find_sources(job)
    (batch,) = batched(0, source.rows())
    wording = find_wording(job, tokenizer, media.tokens)
    here = BatchEncoder(job, wording.encoder, wording.stop_token_ids, media).encode(batch)
    monkeypatch.setattr(row_batches, "_worker", None)
    start_worker(job.to_json(), str(model), wording.stop_token_ids)
    gc.unfreeze()
    there = pickle.loads(pickle.dumps(encode_in_worker(batch)))  # noqa: S301 - our own
    assert there.ids.tolist() == here.ids.tolist()
    assert there.units == here.units
    assert there.media == here.media
    assert [len(media) for media in here.media] == [1, 1, 1, 1, 2, 0]
    texts, digests = ([[getattr(one, name) for one in media] for media in there.media] for name in ("text", "digest"))
    assert texts == [[one.text for one in media] for media in here.media]
    assert digests == [[one.digest for one in media] for media in here.media]


@qwen
def test_images_are_scaled_down_to_what_the_job_says(job: TrainerConfig) -> None:
    config = asking(job, {"images": [data_uri(image_bytes(image("red", (224, 224))))]})
    prepare(config)
    large = load_prepared(config).train[0]
    prepare(edited(config, multimodal={"imageMaxPixels": 56 * 56}))
    small = load_prepared(config).train[0]
    assert len(large.input_ids) - len(small.input_ids) == 16 - 4  # a token for 28 x 28; the processor takes 16 at most


@qwen
def test_the_inspection_counts_an_images_tokens(job: TrainerConfig) -> None:
    config = asking(job, {"images": [data_uri(image_bytes(image("red", (112, 112))))]})
    (sample,) = inspect(config, count=1)["samples"]
    assert "<|vision_start|><|image_pad|>(x16)<|vision_end|>?" in sample["pieces"][0]["text"]
    assert sample["tokens"] > 16


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
@qwen
def test_the_processors_own_template_writes_the_same(job: TrainerConfig, tmp_path: Path, file: str) -> None:
    """Older processors keep theirs in JSON, beside a tokenizer that has none."""
    own = find_template("qwen2_vl").jinja()
    model = Path(shutil.copytree(str(job.model.path), tmp_path / "with-template"))
    (model / file).write_text(own if file.endswith("jinja") else json.dumps({"chat_template": own}))
    prepare(job)
    declared = load_prepared(job)
    auto = edited(job, template={"name": "auto"}, model={"uri": "hf://org/tiny", "path": str(model)})
    prepare(auto)
    found = load_prepared(auto)
    assert len(found.train) == len(declared.train) == 6
    for index in range(6):
        one, other = found.train[index], declared.train[index]
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.media == other.media


@qwen
def test_a_placeholders_token_in_a_persons_text_stays_text(job: TrainerConfig) -> None:
    config = asking(job, {"instruction": "<image> is not <|image_pad|>", "images": ["media/red.png"]})
    for name in ("qwen2_vl", "auto"):
        if name == "auto":
            model = Path(str(config.model.path))
            copied = Path(shutil.copytree(model, Path(config.paths.cache).parent / "copy"))
            (copied / "chat_template.jinja").write_text(find_template("qwen2_vl").jinja())
            config = edited(config, model={"uri": "hf://org/tiny", "path": str(copied)}, template={"name": "auto"})
        prepare(config)
        prepared = load_prepared(config)
        tokenizer = load_tokenizer(prepared.model_directory, trust_remote_code=False)
        one = prepared.train[0]
        assert (one.input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 2
        assert tokenizer.decode(one.input_ids).count("<|image_pad|>") == 3
