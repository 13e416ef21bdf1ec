"""Models that see and hear, really trained: from rows with media to a result that is served as it was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import fused_loss
from finetune_trainer.evaluate import token_losses
from finetune_trainer.media_files import Held
from finetune_trainer.media_processor import find_processor
from finetune_trainer.messages import Medium, Message
from finetune_trainer.model import load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import IGNORED, load_prepared
from finetune_trainer.templates.plain import plain_messages
from media_jobs import COLOURS, KINDS, collator_of, edited
from peft import PeftModel
from safetensors.torch import load_file
from tiny_media import MAKERS, image, image_bytes, tone
from torch.nn import functional
from trainings import output_of, run
from transformers import AutoModelForMultimodalLM, AutoProcessor

every_type = pytest.mark.parametrize("job", MAKERS, indirect=True)


@every_type
def test_a_model_that_sees_or_hears_is_trained_and_can_be_served(job: TrainerConfig) -> None:
    asked = {"prompts": ["Which colour?"], "maxNewTokens": 2}
    report = run(edited(job, validation={"fraction": 0.2}, evaluation=asked))
    assert report.progress is not None
    assert report.progress.step == 4
    assert report.progress.eval_loss is not None
    assert len(report.samples) == 1
    task = f"pipeline_tag: {KINDS[Path(str(job.model.path)).name]}-text-to-text"
    assert task in output_of(job, "adapter", "README.md").read_text()
    adapter = load_file(output_of(job, "adapter", "adapter_model.safetensors"))
    assert adapter
    assert all("language_model" in name for name in adapter), "what sees and hears is left as it is"
    assert any(bool(value.any()) for name, value in adapter.items() if "lora_B" in name)
    base = Path(str(job.model.path))
    processor = AutoProcessor.from_pretrained(output_of(job, "adapter"))
    assert type(processor) is type(AutoProcessor.from_pretrained(base))
    tuned = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(base), output_of(job, "adapter"))
    kind = KINDS[base.name]
    opened = {"image": image("red"), "audio": np.zeros(8000, np.float32)}[kind]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "Which is it?"}]}],
        add_generation_prompt=True,
        chat_template=processor.tokenizer.chat_template,
    )
    inputs = processor(text=[asked], **{f"{kind}s" if kind == "image" else kind: [opened]}, return_tensors="pt")
    assert tuned.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


@every_type
def test_ids_and_pixels_are_those_of_the_models_own_processor(job: TrainerConfig) -> None:
    base, kind = Path(str(job.model.path)), KINDS[Path(str(job.model.path)).name]
    prepare(job)
    prepared = load_prepared(job)
    processor = AutoProcessor.from_pretrained(base)
    processor.tokenizer.chat_template = processor.chat_template = prepared.chat_template
    files = [(Path(str(job.sources[0].path)).parent / "media" / f"{colour}").with_suffix(
        ".png" if kind == "image" else ".wav") for colour in COLOURS[:2]]  # fmt: skip
    own = find_processor(base, job.multimodal, trust_remote_code=False)
    assert own is not None
    opened = [own.open(kind, Held((file.read_bytes(),))) for file in files]
    media = [Medium(kind, ""), " or ", Medium(kind, ""), "?"]
    asked = [Message("user", "").with_pieces(media), Message("assistant", "Both.")]
    text = processor.apply_chat_template(plain_messages(asked))
    given = {"images": [opened]} if kind == "image" else {"audio": opened, "sampling_rate": 16000}
    expected = processor(text=[text], return_tensors="pt", add_special_tokens=False, **given)
    pair = next(one for one in (prepared.train[i] for i in range(len(prepared.train))) if len(one.media) == 2)
    batch = collator_of(job, prepared)([pair])
    length = expected["input_ids"].shape[1]
    assert pair.input_ids[:length].tolist() == expected["input_ids"][0].tolist()
    assert len(pair.input_ids) == length
    inputs = set(expected) - {"input_ids", "attention_mask"}
    if base.name in ("llava", "llava_next", "qwen2_audio"):  # of no account to these models
        inputs -= {"token_type_ids", "mm_token_type_ids"}
    assert inputs
    assert inputs <= set(batch)
    for name in inputs:
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(expected[name])), name


@every_type
def test_the_loss_depends_on_what_is_seen_and_on_no_neighbour(job: TrainerConfig) -> None:
    """The same words to another image cost something else; padding and other rows' images change nothing."""
    kind = KINDS[Path(str(job.model.path)).name]
    rows = Path(str(job.sources[0].path))
    media = rows.parent / "media"
    names = []
    for number, colour in enumerate(("red", "blue")):
        names.append(f"media/same-size-{number}")
        content = image_bytes(image(colour)) if kind == "image" else tone(300 * (number + 1))
        (media / f"same-size-{number}").write_bytes(content)
    column, mark = f"{kind}s", f"<{kind}>"
    question = {"instruction": f"{mark}Which is it?", "output": "It is red."}
    longer = {"instruction": f"{mark}{mark}Which are these two?", "output": "They are red and blue.", column: names}
    plain = {"instruction": "Which colour?", "output": "Green."}
    data = [question | {column: [name]} for name in names] + [longer, plain]
    rows.write_text("".join(json.dumps(row) + "\n" for row in data))
    prepare(job)
    prepared = load_prepared(job)
    by_row = {prepared.train[i].rows[0]: prepared.train[i] for i in range(len(prepared.train))}
    one, other, long, bare = (by_row[number] for number in (1, 2, 3, 4))
    assert np.array_equal(one.input_ids, other.input_ids)
    model = load_model(job, prepared.model_directory, torch.device("cpu")).model.eval()
    collator = collator_of(job, prepared)
    with torch.no_grad():
        alone = [token_losses(model, collator([row])) for row in (one, other, long, bare)]
        together = token_losses(model, collator([one, bare, long, other]))
    assert float((alone[0] - alone[1]).abs().max()) > 1e-4
    in_order = torch.cat([alone[0], alone[3], alone[2], alone[1]])
    assert torch.allclose(together, in_order, atol=1e-4), (together - in_order).abs().max()


@pytest.mark.parametrize("job", ["qwen2_audio"], indirect=True)
def test_each_token_counts_the_same_whatever_its_batch(job: TrainerConfig) -> None:
    prepare(job)
    prepared = load_prepared(job)
    model = load_model(job, prepared.model_directory, torch.device("cpu")).model.eval()
    batch = collator_of(job, prepared)([prepared.train[i] for i in range(3)])
    batch.pop("tokens")
    with torch.no_grad():
        summed = float(token_losses(model, batch).sum())
        assert float(model(**batch, num_items_in_batch=50).loss) == pytest.approx(summed / 50, rel=1e-5)
    assert model.base_model.model.accepts_loss_kwargs


@every_type
def test_the_loss_without_logits_sees_the_same(job: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the head runs over supervised tokens alone; here by torch's own kernels."""

    def summed(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: None) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(hidden, weight, bias), targets, reduction="sum")

    monkeypatch.setattr(fused_loss, "linear_cross_entropy", summed)
    prepare(job)
    prepared = load_prepared(job)
    model = AutoModelForMultimodalLM.from_pretrained(prepared.model_directory)
    rows = [prepared.train[i] for i in range(len(prepared.train))]
    plain, fusing = collator_of(job, prepared), collator_of(job, prepared, fused_loss=True)
    with torch.no_grad():
        expected = float(token_losses(model, plain(rows)).mean())
        fused_loss.fuse_loss(model)
        batch = fusing(rows)
        batch.pop("tokens")
        assert float(model(**batch).loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("job", ["qwen2_vl", "gemma3"], indirect=True)
def test_no_token_of_an_image_is_trained_even_with_the_prompt(job: TrainerConfig) -> None:
    asked = job.template.model_copy(update={"train_on_prompt": True})
    config = job.model_copy(update={"template": asked})
    prepare(config)
    prepared = load_prepared(config)
    processor = find_processor(prepared.model_directory, job.multimodal, trust_remote_code=False)
    assert processor is not None
    seen = 0
    for index in range(len(prepared.train)):
        one = prepared.train[index]
        (types,) = processor.token_types(one.input_ids[None]).values()
        of_image = types[0].numpy() == 1
        assert (one.labels[of_image] == IGNORED).all()
        assert (one.labels[~of_image] != IGNORED).sum() > 10, "the question is trained"
        seen += int(of_image.sum())
    assert seen > 0


@pytest.mark.parametrize("job", ["qwen2_vl", "llava"], indirect=True)
def test_a_turn_is_cut_with_its_image_and_never_within(job: TrainerConfig) -> None:
    rows = Path(str(job.sources[0].path))
    turns = [
        {"role": "user", "content": [{"type": "image", "image": "media/red.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "image", "image": "media/blue.png"}]},
        {"role": "assistant", "content": "Blue."},
    ]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    source = job.sources[0].model_copy(update={"format": "openai"})
    whole = job.model_copy(update={"sources": [source]})
    prepare(whole)
    long = load_prepared(whole).train[0]
    assert len(long.media) == 2
    for most in range(len(long.input_ids) - 1, len(long.input_ids) - 12, -6):
        cut = whole.model_copy(update={"max_length": most})
        prepare(cut)
        short = load_prepared(cut)
        assert short.dataset.truncated == 1
        assert [Path(str(medium.content)).name for medium in short.train[0].media] == ["red.png"]
        batch = collator_of(cut, short)([short.train[0]])
        batch.pop("tokens")
        model = AutoModelForMultimodalLM.from_pretrained(short.model_directory)
        assert model(**batch).loss.isfinite()  # it refuses tokens that are not as many as the image's features


@pytest.mark.parametrize("job", ["llava"], indirect=True)
def test_all_weights_but_those_that_see_are_trained_unless_told_otherwise(job: TrainerConfig) -> None:
    def trained(method: dict[str, Any], **wishes: bool) -> set[str]:
        config = edited(job, method=method, multimodal=wishes)
        model = load_model(config, Path(str(job.model.path)), torch.device("cpu")).model
        parts = ("vision_tower", "multi_modal_projector", "language_model")
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return {part for part in parts for name in names if part in name}

    unfrozen = {"freezeVisionTower": False, "freezeMultiModalProjector": False}
    for method in ({"full": {}}, {"lora": {"rank": 2}}):
        assert trained(method) == {"language_model"}
        assert trained(method, freezeMultiModalProjector=False) == {"language_model", "multi_modal_projector"}
        assert trained(method, **unfrozen) == {"language_model", "multi_modal_projector", "vision_tower"}
    assert trained({"freeze": {"trainableLayers": 1}}) == {"language_model"}
    assert trained({"lora": {"rank": 2, "targetModules": ["q_proj"]}}) == {"language_model"}


@pytest.mark.parametrize("job", ["llava"], indirect=True)
def test_a_merged_model_sees_as_its_adapter_does(job: TrainerConfig) -> None:
    config = edited(job, merge={"dtype": "fp32"})
    run(config)
    prepared = load_prepared(config)
    batch = collator_of(config, prepared)([prepared.train[0]])
    batch.pop("tokens")
    base = AutoModelForMultimodalLM.from_pretrained(prepared.model_directory)
    merged = AutoModelForMultimodalLM.from_pretrained(output_of(config, "merged"))
    assert AutoProcessor.from_pretrained(output_of(config, "merged")).tokenizer.chat_template == prepared.chat_template
    with torch.no_grad():
        before = base(**batch).logits
        tuned = PeftModel.from_pretrained(base, output_of(config, "adapter"))
        expected, found = tuned(**batch).logits, merged(**batch).logits
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(found, before, atol=1e-2)


@pytest.mark.parametrize("job", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_a_video_is_trained_by_its_frames(job: TrainerConfig) -> None:
    """Ids, pixels and positions are those that the model's own processor makes of the same frames."""
    rows = Path(str(job.sources[0].path))
    frames = [image((40 * number, 0, 0), (64, 56)) for number in range(5)]
    names = []
    for number, frame in enumerate(frames):
        names.append(f"media/frame-{number}.png")
        (rows.parent / names[-1]).write_bytes(image_bytes(frame))
    data = [{"instruction": "<video>Which is it?", "output": "Red.", "videos": [names]},
            {"instruction": "<image><video>And now?", "output": "Blue.", "videos": [names[::-1]], "images": names[:1]},
            {"instruction": "Which?", "output": "Both."}]  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in data))
    (run if Path(str(job.model.path)).name == "qwen2_vl" else prepare)(job)
    prepared = load_prepared(job)
    (mixed,) = (one for one in (prepared.train[i] for i in range(3)) if len(one.media) == 2)
    processor = AutoProcessor.from_pretrained(prepared.model_directory)
    asked = [Message("user", "").with_pieces([Medium("image", ""), Medium("video", ""), "And now?"]),
             Message("assistant", "Blue.")]  # fmt: skip
    text = processor.apply_chat_template(plain_messages(asked), chat_template=prepared.chat_template)
    told = {"total_num_frames": 5, "fps": 2.0, "frames_indices": list(range(5))}
    video = np.stack([np.asarray(frame) for frame in frames[::-1]])
    expected = processor(
        text=[text], images=[frames[0]], videos=[video], video_metadata=[told], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    assert mixed.input_ids.tolist() == expected["input_ids"][0].tolist()
    batch = collator_of(job, prepared)([mixed])
    inputs = set(expected) - {"input_ids", "attention_mask"}
    assert {"pixel_values_videos", "video_grid_thw", "mm_token_type_ids"} <= inputs
    assert ("second_per_grid_ts" in inputs) == (Path(str(job.model.path)).name == "qwen2_5_vl")
    for name in inputs:
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(expected[name])), name
    model = AutoModelForMultimodalLM.from_pretrained(prepared.model_directory)
    (once,) = (one for one in (prepared.train[i] for i in range(3)) if len(one.media) == 1)
    other = dataclasses.replace(once, media=mixed.media[1:])
    collator = collator_of(job, prepared)
    with torch.no_grad():
        forwards, backwards = (token_losses(model, collator([one])) for one in (once, other))
    assert float((forwards - backwards).abs().max()) > 1e-5, "the order of the frames is seen"
