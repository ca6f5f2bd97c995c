# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Tokenizers give the pieces and ids that the original repository had; those that cannot are refused."""

import json
import re
import shutil
import sys

import pytest
from original_valley import OLD_TOKENS, OriginalValley, edit_json, old_tokenizer, refused
from tiny import tiny_tokenizer
from transformers import AutoProcessor, AutoTokenizer

from transformers_valley.hub.convert_valley_weights import convert


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A tokenizer as the original checkpoints have it: a sentencepiece model, and added tokens in a file."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = [
        "You are Valley, a large language and vision assistant.",
        "### Human: What happens? \n### Assistant: A red circle moves.",
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    ids = {token: 351 + index for index, token in enumerate(OLD_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 350, **ids}))
    special = {"bos_token": {"content": "<s>", "normalized": True}, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "[PAD]"}))
    return folder


@pytest.fixture(params=["LlamaTokenizer", "LLaMATokenizer", None])
def spoken(request, v1, sentencepiece_folder, tmp_path):
    """A checkpoint with a sentencepiece tokenizer, converted."""
    v1.save(tmp_path / "old")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / "old" / name).unlink(missing_ok=True)
    shutil.copytree(sentencepiece_folder, tmp_path / "old", dirs_exist_ok=True)
    if request.param:
        settings = {"tokenizer_class": request.param, "model_max_length": 2048, "add_bos_token": True}
        (tmp_path / "old/tokenizer_config.json").write_text(json.dumps(settings))
    convert(tmp_path / "old", tmp_path / "new")
    return tmp_path / "new"


def test_sentencepiece_tokenizers_give_the_pieces_of_the_original(spoken, sentencepiece_folder):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(spoken)
    text = "You are\n\n### Human: Hé, <im_start><im_end><vi_start><vi_end> \n### Assistant:"
    expected = [1]
    for part in re.split("(<.*?>)", text):
        expected += [tokenizer.convert_tokens_to_ids(part)] if part.startswith("<") else part and model.encode(part)
    assert tokenizer(text).input_ids == expected
    assert tokenizer.convert_tokens_to_ids(OLD_TOKENS) == list(range(351, 357))


def test_added_tokens_that_would_get_other_ids_are_refused(v1, sentencepiece_folder, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").unlink()
    shutil.copytree(sentencepiece_folder, tmp_path / "old", dirs_exist_ok=True)
    added = {token: 360 + index for index, token in enumerate(OLD_TOKENS)}
    (tmp_path / "old/added_tokens.json").write_text(json.dumps(added))
    assert "cannot keep their ids" in refused(tmp_path / "old", tmp_path / "new")


def test_a_chat_is_tokenized_as_its_prompt_is(spoken):
    processor = AutoProcessor.from_pretrained(spoken)
    chat = [{"role": "user", "content": "What happens? "}, {"role": "assistant", "content": "A dog."}]
    chat.append({"role": "user", "content": [{"type": "text", "text": "And then?"}]})
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    found = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found["input_ids"][0] == processor.tokenizer(prompt.removeprefix("<s>")).input_ids
    assert found["input_ids"][0].count(processor.tokenizer.bos_token_id) == 1


def test_what_a_user_spells_becomes_no_token(spoken):
    processor = AutoProcessor.from_pretrained(spoken)
    chat = [{"role": "user", "content": "What does <video> or <vi_end> mean?"}]
    found = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    assert not {processor.video_token_id, processor.tokenizer.convert_tokens_to_ids("<vi_end>")} & set(found)


@pytest.mark.parametrize("token", ["<im_start>", "<vi_end>"])
def test_a_tokenizer_without_a_delimiter_is_refused(tmp_path, token):
    original = OriginalValley()
    original.tokenizer = tiny_tokenizer()
    original.tokenizer.add_tokens([t for t in OLD_TOKENS if t != token], special_tokens=True)
    assert f"lacks {token}" in refused(original.save(tmp_path / "old"), tmp_path / "new")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path):
    original = OriginalValley(rows=len(old_tokenizer()) - 2)
    message = refused(original.save(tmp_path / "old"), tmp_path / "new")
    assert f"ids up to {len(original.tokenizer) - 1} " in message and f"{len(original.tokenizer) - 2} rows" in message


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ((397, 398), "<vi_start> is 397 in '{}' and became 394, <vi_end> is 398 in '{}' and became 395"),
        ((395, 394), "<vi_start> is 395 in '{}' and became 394, <vi_end> is 394 in '{}' and became 395"),
    ],
    ids=["gap", "swapped"],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json"])
def test_added_tokens_that_are_numbered_anew_are_refused(v1, tmp_path, file, ids, words):
    source = v1.save(tmp_path / "old")
    tokens = dict(zip(OLD_TOKENS[-2:], ids, strict=True))
    if file == "tokenizer.json":
        added = json.loads((source / file).read_text())["added_tokens"]
        edit_json(source / file, added_tokens=[one | {"id": tokens.get(one["content"], one["id"])} for one in added])
    else:
        edit_json(source / file, **tokens)
    message = refused(source, tmp_path / "new")
    assert "cannot keep their ids" in message and words.replace("{}", str(source / file)) in message


@pytest.mark.parametrize(
    ("highest", "words"),
    [
        (398, "ids up to 398 for 396 tokens: <image> and <video> would get ids among these"),
        (450, "ids up to 450 and the weights only 401 rows"),
    ],
)
def test_a_vocabulary_with_gaps_is_refused(v1, tmp_path, highest, words):
    source = v1.save(tmp_path / "old")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    model["vocab"][max(model["vocab"], key=model["vocab"].get)] = highest
    edit_json(source / "tokenizer.json", model=model)
    assert words in refused(source, tmp_path / "new")


def test_a_missing_tokenizer_is_told(v1, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").unlink()
    assert "There is no tokenizer in" in refused(tmp_path / "old", tmp_path / "new")


def test_packages_that_read_sentencepiece_are_named(v1, tmp_path, monkeypatch):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").rename(tmp_path / "old/tokenizer.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "transformers-valley[convert]" in refused(tmp_path / "old", tmp_path / "new", error=ImportError)
