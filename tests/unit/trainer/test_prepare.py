"""prepare: what it leaves for train, and every bad input that it must see before a GPU is held."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import FakeHub
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedModel, ResolvedSource, TrainerConfig
from finetune_api.training import HyperparametersSpec, TemplateSpec, ValidationSpec
from finetune_trainer import prepared as prepared_module
from finetune_trainer.encode import ConversationEncoder
from finetune_trainer.errors import TrainerError
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import IGNORED, SequenceSet, load_prepared
from finetune_trainer.templates import Segment
from finetune_trainer.tokenizer import load_tokenizer
from huggingface_hub import constants
from trainer_configs import ROWS, local_model, local_source, make_config, write_rows


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> TrainerConfig:
    file = write_rows(tmp_path / "data" / "rows.jsonl", ROWS)
    return make_config(tmp_path, model=local_model(tiny), sources=[local_source(file)], max_length=512)


def edited(job: TrainerConfig, **fields: Any) -> TrainerConfig:
    return job.model_copy(update=fields)


def with_rows(job: TrainerConfig, rows: list[Any], **source: Any) -> TrainerConfig:
    file = Path(str(job.sources[0].path))
    return edited(job, sources=[local_source(write_rows(file, rows), **source)])


def refused(job: TrainerConfig, code: ExitCode) -> str:
    with pytest.raises(TrainerError) as failure:
        prepare(job)
    assert failure.value.exit_code is code, failure.value
    assert not (Path(job.paths.output) / "prepare.json").exists()
    return str(failure.value)


def samples_of(sequences: SequenceSet) -> list[tuple[int, ...]]:
    """Each sample's ids, whatever sequence it is in."""
    found = []
    for index in range(len(sequences)):
        one = sequences[index]
        found += [tuple(part.tolist()) for part in np.split(one.input_ids, np.cumsum(one.lengths)[:-1])]
    return sorted(found)


def test_what_train_finds_is_what_was_reported(job: TrainerConfig, tiny: Path) -> None:
    report = prepare(edited(job, validation=ValidationSpec(fraction=0.2)))
    found = load_prepared(job)
    assert report.dataset is not None
    assert report.dataset == found.dataset
    assert report.model == found.model
    assert (found.dataset.samples, found.dataset.validation_samples) == (32, 8)
    assert (len(found.train), len(found.validation)) == (32, 8)
    assert found.dataset.tokens == found.train.tokens == sum(len(found.train[i].input_ids) for i in range(32))
    supervised = sum(int((found.train[i].labels != IGNORED).sum()) for i in range(32))
    assert found.dataset.supervised_tokens == found.train.supervised_tokens == supervised > 0
    assert found.dataset.sequences == 32
    assert found.model_directory == tiny
    assert found.model.architecture == "LlamaForCausalLM"
    assert found.model.parameters == 30_880
    assert str(found.model.digest).startswith("sha256:")
    assert (found.stop_token_ids, found.eos_token, found.replace_eos) == ((2,), "<|im_end|>", False)
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    first = found.train[0]
    assert first.input_ids.dtype == first.labels.dtype == np.int64
    said = tokenizer.decode(first.labels[first.labels != IGNORED])
    assert said.endswith("<|im_end|>")
    assert any(said == f"{row['output']}<|im_end|>" for row in ROWS)


def test_packing_changes_the_sequences_and_no_sample(job: TrainerConfig, tmp_path: Path) -> None:
    prepare(job)
    plain = load_prepared(job)
    prepare(edited(job, packing=True))
    packed = load_prepared(job)
    assert len(packed.train) < len(plain.train) / 2
    assert packed.dataset.sequences == len(packed.train)
    assert samples_of(packed.train) == samples_of(plain.train)
    for index in range(len(packed.train)):
        one = packed.train[index]
        assert one.lengths.sum() == len(one.input_ids) <= job.max_length
        starts = np.concatenate([[0], np.cumsum(one.lengths)[:-1]])
        assert (one.labels[starts] == IGNORED).all()


def test_equal_data_is_prepared_once_whatever_the_job(job: TrainerConfig, tmp_path: Path) -> None:
    first = prepare(job).dataset
    paths = job.paths.model_copy(update={"output": str(tmp_path / "another output")})
    second = prepare(edited(job, paths=paths)).dataset
    assert first is not None
    assert second is not None
    assert (first.reused, second.reused) == (False, True)
    assert second == first.model_copy(update={"reused": True})
    assert len(list((Path(job.paths.cache) / "prepared").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 500},
        {"packing": True},
        {"template": TemplateSpec(name="chatml")},
        {"template": TemplateSpec(system="Be brief.")},
        {"template": TemplateSpec(mask_history=True)},
        {"validation": ValidationSpec(fraction=0.5)},
        {"hyperparameters": HyperparametersSpec(seed=1)},
        {"on_error": "skip"},
    ],
)
def test_whatever_changes_the_data_changes_the_digest(job: TrainerConfig, change: dict[str, Any]) -> None:
    before, after = prepare(job).dataset, prepare(edited(job, **change)).dataset
    assert before is not None
    assert after is not None
    assert before.digest != after.digest
    assert not after.reused


@pytest.mark.parametrize("damage", ["cut", "removed", "manifest"])
def test_a_damaged_store_is_made_anew(job: TrainerConfig, damage: str) -> None:
    prepare(job)
    directory = load_prepared(job).directory
    samples = samples_of(load_prepared(job).train)
    if damage == "cut":
        os.truncate(directory / "tokens.bin", 8)
    elif damage == "removed":
        (directory / "trained.bin").unlink()
    else:
        (directory / "manifest.json").write_text("{")
    with pytest.raises(TrainerError, match="missing or damaged") as failure:
        load_prepared(job)
    assert failure.value.exit_code is ExitCode.PREPARED_DATA_MISSING
    report = prepare(job)
    assert report.dataset is not None
    assert not report.dataset.reused
    assert samples_of(load_prepared(job).train) == samples


def test_train_without_prepare_is_told_what_is_missing(job: TrainerConfig) -> None:
    with pytest.raises(TrainerError, match=r"there is no .*prepare\.json.*Run prepare again"):
        load_prepared(job)


def test_two_jobs_that_prepare_the_same_at_once_agree(job: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first's result in its place as it ends."""
    real = prepared_module.StoreWriter.finish

    def finish(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        target = Path(job.paths.cache) / "prepared" / self._directory.name.split(".")[1]
        if not target.exists():
            shutil.copytree(self._directory, target)

    monkeypatch.setattr(prepared_module.StoreWriter, "finish", finish)
    prepare(job)
    assert len(load_prepared(job).train) == len(ROWS)
    assert [path.name for path in (Path(job.paths.cache) / "prepared").iterdir()] == [load_prepared(job).digest]


def split_of(job: TrainerConfig, rows: list[Any], *, fraction: float = 0.25, seed: int = 42) -> list[tuple[int, ...]]:
    prepare(
        edited(
            with_rows(job, rows),
            validation=ValidationSpec(fraction=fraction),
            hyperparameters=HyperparametersSpec(seed=seed),
        )
    )
    return samples_of(load_prepared(job).validation)


def test_the_held_out_rows_follow_the_seed_and_stay_where_rows_change_place(job: TrainerConfig) -> None:
    held_out = split_of(job, ROWS)
    assert len(held_out) == 10
    assert not set(held_out) & set(samples_of(load_prepared(job).train))
    assert split_of(job, ROWS[::-1]) == held_out
    assert split_of(job, ROWS, seed=7) != held_out


@pytest.mark.parametrize(("rows", "fraction", "expected"), [(2, 0.01, 1), (2, 0.5, 1), (3, 0.5, 2), (1, 0.5, 0)])
def test_neither_part_is_empty_where_there_are_two_rows(
    job: TrainerConfig, rows: int, fraction: float, expected: int
) -> None:
    assert len(split_of(job, ROWS[:rows], fraction=fraction)) == expected
    assert len(load_prepared(job).train) == rows - expected > 0


def test_long_conversations_are_cut_and_too_long_ones_counted(job: TrainerConfig) -> None:
    history = [[f"Question {i}?", "Answer."] for i in range(20)]
    rows = [*ROWS, {"history": history, "instruction": "Last?", "output": "Yes."}]
    rows += [{"instruction": "Long?", "output": "very " * 300}] * 2
    report = prepare(edited(with_rows(job, rows), max_length=200))
    assert report.dataset is not None
    assert report.dataset.truncated == 1
    assert [row.to_dict() for row in report.dataset.dropped] == [
        {
            "reason": "first exchange longer than maxLength",
            "count": 2,
            "first": "rows.jsonl:42",
            "examples": ["rows.jsonl:42", "rows.jsonl:43"],
        }
    ]
    (cut,) = report.dataset.truncations
    assert (cut.reason, cut.count, cut.examples) == ("later turns beyond maxLength", 1, ["rows.jsonl:41"])
    assert report.dataset.samples == 41


def test_several_sources_and_directories_are_read_in_order(job: TrainerConfig, tmp_path: Path) -> None:
    write_rows(tmp_path / "more" / "b.jsonl", ROWS[2:4])
    (tmp_path / "more" / "a.json").write_text(json.dumps(ROWS[:2]))
    (tmp_path / "more" / ".hidden.jsonl").write_text("{")
    (tmp_path / "more" / "README.md").write_text("no rows")
    source = ResolvedSource(uri="pvc://data/more", path=str(tmp_path / "more"))
    prepare(edited(job, sources=[job.sources[0], source]))
    assert len(load_prepared(job).train) == len(ROWS) + 4
    again = load_prepared(job).train
    assert np.array_equal(again[len(ROWS)].input_ids, again[0].input_ids)


def weighted(job: TrainerConfig, tmp_path: Path, *weights: float | None, **fields: Any) -> TrainerConfig:
    """40 rows of one source and 10 of another."""
    more = [{"instruction": f"Colour {n}?", "output": "Red."} for n in range(10)]
    sources = [job.sources[0], local_source(write_rows(tmp_path / "data" / "more.jsonl", more))]
    for index, weight in enumerate(weights):
        sources[index] = sources[index].model_copy(update={"weight": weight})
    return edited(job, sources=sources, **fields)


@pytest.mark.parametrize("packing", [False, True])
def test_sources_are_mixed_by_weight(job: TrainerConfig, tmp_path: Path, packing: bool) -> None:
    report = prepare(weighted(job, tmp_path, 3.0, 2.0, packing=packing))
    assert report.dataset is not None
    assert [one.to_dict() for one in report.dataset.sources] == [
        {"uri": "configmap://rows/rows.jsonl", "rows": 40, "samples": 30},
        {"uri": "configmap://rows/more.jsonl", "rows": 10, "samples": 20},
    ]
    train = load_prepared(job).train
    found = samples_of(train)
    assert report.dataset.samples == len(found) == train.samples == 50
    assert sorted(found.count(one) for one in set(found)) == [1] * 30 + [2] * 10
    assert report.dataset.tokens == sum(map(len, found)) == train.tokens


def test_without_weights_each_row_is_used_once(job: TrainerConfig, tmp_path: Path) -> None:
    report = prepare(weighted(job, tmp_path, None, None))
    assert report.dataset is not None
    assert [(one.rows, one.samples) for one in report.dataset.sources] == [(40, 40), (10, 10)]


def test_a_mix_does_not_touch_what_is_held_out(job: TrainerConfig, tmp_path: Path) -> None:
    held_out = []
    for weight in (None, 0.1):
        prepare(weighted(job, tmp_path, weight, None, validation=ValidationSpec(fraction=0.2)))
        held_out.append(samples_of(load_prepared(job).validation))
        assert not set(held_out[-1]) & set(samples_of(load_prepared(job).train))
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 10


def test_a_source_that_is_repeated_too_often_is_warned_of(
    job: TrainerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="finetune")
    prepare(weighted(job, tmp_path, None, 100.0))
    assert "each sample of configmap://rows/more.jsonl is trained on 4.9 times in an epoch" in caplog.text


def test_the_log_tells_the_first_sample_and_the_sum(job: TrainerConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="finetune")
    prepare(job)
    assert "model pvc://models/tiny: LlamaForCausalLM, 30,880 parameters" in caplog.text
    assert "trained on" in caplog.text
    assert "It is 1. <|im_end|>" in caplog.text
    assert "data: 40 samples in 40 sequences" in caplog.text


def test_a_model_and_rows_of_the_hub_on_a_volume_mounted_elsewhere(
    job: TrainerConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "hub/models/acme/tiny")
    write_rows(tmp_path / "hub/datasets/acme/rows/train.jsonl", ROWS)
    model = ResolvedModel(uri="hf://acme/tiny")
    hub_job = edited(job, model=model, sources=[ResolvedSource(uri="hf://acme/rows/train.jsonl")])
    with FakeHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        report = prepare(hub_job)
        assert report.model is not None
        assert report.model.digest == hub.commit("models", "acme/tiny")
    Path(job.paths.cache).rename(tmp_path / "moved")
    moved = edited(hub_job, paths=job.paths.model_copy(update={"cache": str(tmp_path / "moved")}))
    found = load_prepared(moved)
    assert found.model_directory.is_relative_to(tmp_path / "moved")
    assert (found.model_directory / "model.safetensors").exists()


def test_a_named_template_on_a_base_model_takes_its_end_of_turn(job: TrainerConfig, tiny_base: Path) -> None:
    prepare(edited(job, model=local_model(tiny_base), template=TemplateSpec(name="chatml")))
    found = load_prepared(job)
    assert (found.replace_eos, found.eos_token, found.stop_token_ids) == (True, "<|im_end|>", (2, 0))


@pytest.mark.parametrize("name", ["granite3_3", "auto", "chatml"])
def test_data_depend_on_the_day_only_where_the_template_writes_it(
    job: TrainerConfig, tiny: Path, tmp_path: Path, name: str
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    jinja = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}\n" + jinja)
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end_of_text|>"]})
    tokenizer.save_pretrained(model)
    settings = json.loads((model / "config.json").read_text()) | {"vocab_size": len(tokenizer)}
    (model / "config.json").write_text(json.dumps(settings))
    made = []
    for day in ("2024-02-29", "2025-01-01"):
        template = TemplateSpec(name=name, date=day)
        dated = edited(job, model=local_model(model), template=template)
        report = prepare(dated).dataset
        assert report is not None
        made.append(report)
        store = load_prepared(dated)
        text = tokenizer.decode(store.train[0].input_ids)
        written = {"granite3_3": f"{date.fromisoformat(day):%B %d, %Y}", "auto": day, "chatml": ""}[name]
        assert written in text
        manifest = json.loads((store.directory / "manifest.json").read_text())
        assert manifest["origin"]["wording"]["date"] == (day if written else None)
        assert "strftime_now" in str(store.chat_template) or name == "chatml"  # the export writes the day of serving
    assert (made[0].digest == made[1].digest) == (name == "chatml") == made[1].reused


# Bad input.


def test_a_malformed_row_is_named_with_source_file_and_line(job: TrainerConfig) -> None:
    bad = with_rows(job, ROWS)
    with Path(str(bad.sources[0].path)).open("a") as file:
        file.write("{broken\n")
    said = refused(bad, ExitCode.DATASET_INVALID)
    assert said.startswith("spec.dataset.sources[0].uri (configmap://rows/rows.jsonl): rows.jsonl:41: is not JSON")
    assert not list((Path(job.paths.cache) / "prepared").iterdir())


def test_no_rows(job: TrainerConfig) -> None:
    said = refused(with_rows(job, []), ExitCode.DATASET_INVALID)
    assert "there are no rows in configmap://rows/rows.jsonl" in said


def test_one_source_of_two_without_rows(job: TrainerConfig, tmp_path: Path) -> None:
    empty = local_source(write_rows(tmp_path / "data" / "empty.jsonl", []))
    said = refused(edited(job, sources=[job.sources[0], empty]), ExitCode.DATASET_INVALID)
    assert said == "spec.dataset.sources[1].uri: there are no rows in configmap://rows/empty.jsonl"


BAD_LINES = [
    "{broken",
    '{"instruction": "a"}',
    '{"instruction": "a", "output": " "}',
    '{"instruction": "a", "output": "b", "output": "c"}',
    '{"instruction": "a", "output": "\\u0000"}',
    '{"instruction": "a", "output": 3}',
    "7",
    '{"instruction": "a", "output": "b", "tools": "{"}',
    '{"instruction": "<image>a", "output": "b", "images": ["gone.jpg"]}',
    "{broken too",
]


def test_bad_rows_are_skipped_and_counted_where_the_job_says_so(job: TrainerConfig) -> None:
    bad = edited(with_rows(job, ROWS), on_error="skip")
    with Path(str(bad.sources[0].path)).open("a") as file:
        file.write("\n".join(BAD_LINES))
    assert refused(edited(bad, on_error="fail"), ExitCode.DATASET_INVALID).endswith("at column 2")
    report = prepare(bad)
    assert report.dataset is not None
    assert report.dataset.samples == len(ROWS)
    assert {row.reason: row.count for row in report.dataset.dropped} == {
        "malformed JSON": 2,
        "missing field": 1,
        "empty field or turn": 1,
        "duplicate keys": 1,
        "not UTF-8, or not text": 1,
        "field of a wrong type": 1,
        "not an object": 1,
        "malformed tools or calls": 1,
        "images, videos or audio": 1,
    }
    first = report.dataset.dropped[0]
    assert first.reason == "malformed JSON"  # most first
    assert first.first == "rows.jsonl:41"
    assert [example.partition(": ")[0] for example in first.examples] == ["rows.jsonl:41", "rows.jsonl:50"]
    assert first.examples[0].startswith("rows.jsonl:41: is not JSON: Expecting property name")


def test_a_file_that_cannot_be_read_further_fails_a_job_that_skips_rows(job: TrainerConfig) -> None:
    bad = edited(with_rows(job, ROWS), on_error="skip")
    Path(str(bad.sources[0].path)).write_text('[{"instruction": "a", "output": "b"}, {broken}]')
    assert "rows.jsonl[2]: is not JSON" in refused(bad, ExitCode.DATASET_INVALID)


def test_bad_rows_alone_are_no_data(job: TrainerConfig) -> None:
    said = refused(edited(with_rows(job, [{"instruction": "a"}]), on_error="skip"), ExitCode.NO_SUPERVISED_TOKENS)
    assert "missing field: 1 (first rows.jsonl:1)" in said


def test_no_token_to_train_on(job: TrainerConfig) -> None:
    rows = [{"instruction": "Long?", "output": "very " * 100}]
    said = refused(edited(with_rows(job, rows), max_length=64), ExitCode.NO_SUPERVISED_TOKENS)
    assert "of 1 rows in configmap://rows/rows.jsonl none has an answer to train on" in said
    assert "first exchange longer than maxLength: 1 (first rows.jsonl:1)" in said
    assert "raise spec.dataset.maxLength, now 64" in said


def test_no_data_set(job: TrainerConfig, tmp_path: Path) -> None:
    gone = ResolvedSource(uri="pvc://data/gone.jsonl", path=str(tmp_path / "gone.jsonl"))
    said = refused(edited(job, sources=[job.sources[0], gone]), ExitCode.DATASET_NOT_FOUND)
    assert said.startswith("spec.dataset.sources[1].uri: pvc://data/gone.jsonl: there is no file")
    (tmp_path / "empty").mkdir()
    empty = ResolvedSource(uri="pvc://data/empty", path=str(tmp_path / "empty"))
    assert "has no file of rows (.jsonl, .json, .csv" in refused(
        edited(job, sources=[empty]), ExitCode.DATASET_NOT_FOUND
    )


@pytest.mark.parametrize("state", ["does not exist", "is empty", "is a file"])
def test_no_model(job: TrainerConfig, tmp_path: Path, state: str) -> None:
    place = tmp_path / "model"
    if state == "is empty":
        place.mkdir()
    elif state == "is a file":
        place.write_text("")
    said = refused(edited(job, model=ResolvedModel(uri="pvc://models/gone", path=str(place))), ExitCode.MODEL_NOT_FOUND)
    assert f"spec.model.source: pvc://models/gone: the directory {place} {state}" in said


def test_no_such_template_is_told_before_anything_is_fetched(job: TrainerConfig) -> None:
    nowhere = ResolvedModel(uri="pvc://models/gone", path="/nonexistent")
    said = refused(edited(job, template=TemplateSpec(name="qwem"), model=nowhere), ExitCode.TEMPLATE_INVALID)
    assert "there is no template 'qwem'; did you mean qwen?" in said


def test_auto_on_a_base_model(job: TrainerConfig, tiny_base: Path) -> None:
    assert "name a template" in refused(edited(job, model=local_model(tiny_base)), ExitCode.TEMPLATE_INVALID)


def test_a_template_that_refuses_a_row_names_the_row(job: TrainerConfig, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    jinja = (model / "chat_template.jinja").read_text()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + jinja
    (model / "chat_template.jinja").write_text(refusing)
    rows = [*ROWS[:2], ROWS[2] | {"system": "Be brief."}]
    said = refused(edited(with_rows(job, rows), model=local_model(model)), ExitCode.TEMPLATE_INVALID)
    assert said.endswith("refuses a conversation: no system (met at rows.jsonl:3)")


def test_a_template_whose_end_of_turn_the_tokenizer_lacks(
    job: TrainerConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (model / name).read_text()
        (model / name).write_text(text.replace("<|im_end|>", "<|other|>"))
    bad = edited(job, model=local_model(model), template=TemplateSpec(name="chatml"))
    said = refused(bad, ExitCode.TEMPLATE_INVALID)
    assert "chatml ends an answer with <|im_end|>, which is no token of this model's tokenizer" in said


def with_jinja(job: TrainerConfig, tiny: Path, tmp_path: Path, content: str) -> TrainerConfig:
    """The same job on a model whose template writes ``content`` of each message."""
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + content + "\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return edited(job, model=local_model(model))


ENDS_OTHERWISE = [*ROWS[:3], {"instruction": "A", "output": "It is off"}]
HIDES_THE_END = "{{ message['content'] }}{{ '<|endoftext|>' if 'off' in message['content'] else '<|im_end|>' }}"


def test_a_mask_that_hides_every_end_names_the_row(job: TrainerConfig, tiny: Path, tmp_path: Path) -> None:
    """As of a template that ends some answers by a token at which nothing stops."""
    bad = with_jinja(with_rows(job, ENDS_OTHERWISE), tiny, tmp_path, HIDES_THE_END)
    refused_by_row_or_counted(bad, "no answer that is trained to end", "every token that ends one, so that the model")


def test_a_mask_that_hides_all_names_the_row(job: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ConversationEncoder._tokens

    def hidden(encoder: ConversationEncoder, segments: Sequence[Segment], *media: Any) -> Any:
        made = real(encoder, segments, *media)
        if any("off" in segment.text for segment in segments):
            made.trained[:] = False
        return made

    monkeypatch.setattr(ConversationEncoder, "_tokens", hidden)
    refused_by_row_or_counted(with_rows(job, ENDS_OTHERWISE), "no token to train on", "hides all of it")


def refused_by_row_or_counted(bad: TrainerConfig, reason: str, problem: str) -> None:
    """The fourth row is at fault."""
    said = refused(bad, ExitCode.TEMPLATE_INVALID)
    assert said.startswith(
        f"spec.dataset.sources[0].uri (configmap://rows/rows.jsonl): rows.jsonl:4: {reason}: the template's mask"
    )
    assert problem in said
    report = prepare(edited(bad, on_error="skip"))
    assert report.dataset is not None
    assert report.dataset.samples == 3
    assert [(row.reason, row.count, row.first) for row in report.dataset.dropped] == [(reason, 1, "rows.jsonl:4")]


def test_what_the_base_stops_at_ends_an_answer(job: TrainerConfig, tiny: Path, tmp_path: Path) -> None:
    """As of calls, which some formats end by a token of their own."""
    fine = with_jinja(with_rows(job, ENDS_OTHERWISE), tiny, tmp_path, HIDES_THE_END)
    settings = Path(str(fine.model.path)) / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [0, 2]}))
    report = prepare(fine)
    assert report.dataset is not None
    assert report.dataset.samples == 4


def test_the_end_is_trained_where_it_pads_too(job: TrainerConfig, tiny: Path, tmp_path: Path) -> None:
    """Padding is masked by its place, so that an end that is also the pad token is none of it."""
    model = shutil.copytree(tiny, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    prepare(edited(job, model=local_model(model)))
    train = load_prepared(job).train
    for index in range(len(train)):
        labels = train[index].labels
        assert labels[labels != IGNORED][-1] == tokenizer.eos_token_id


def test_a_tokenizer_of_another_model(job: TrainerConfig, tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text()) | {"vocab_size": 100}
    (model / "config.json").write_text(json.dumps(settings))
    said = refused(edited(job, model=local_model(model)), ExitCode.MODEL_INVALID)
    assert "and the model knows 100 (vocab_size in config.json)" in said
    refused(edited(job, model=local_model(model)), ExitCode.MODEL_INVALID)  # also where the data is there already


@pytest.mark.parametrize("volume", ["output", "cache"])
def test_a_volume_that_cannot_be_written_is_told_first(
    job: TrainerConfig, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = getattr(job.paths, volume)
    real = Path.open

    def deny(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" in mode and str(path).startswith(place):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    nowhere = ResolvedModel(uri="pvc://models/gone", path="/nonexistent")
    said = refused(edited(job, model=nowhere), ExitCode.VOLUME_NOT_WRITABLE)
    assert f"the {volume} volume cannot be written" in said
    assert "fsGroup" in said


def test_a_cache_that_fills_up_leaves_nothing_behind(job: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_module.StoreWriter, "extend", full)
    assert "the cache volume is full" in refused(job, ExitCode.VOLUME_FULL)
    assert not list((Path(job.paths.cache) / "prepared").iterdir())


def test_what_is_not_supported_yet_is_refused(job: TrainerConfig) -> None:
    elsewhere = edited(job, model=ResolvedModel(uri="s3://bucket/model"))
    assert "not supported yet" in refused(elsewhere, ExitCode.CONFIG_INVALID)


def test_a_template_that_was_not_handed_over_is_refused(job: TrainerConfig) -> None:
    assert "mine was not handed over" in refused(
        edited(job, template=TemplateSpec(ref="mine")), ExitCode.CONFIG_INVALID
    )
