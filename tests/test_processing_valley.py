# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import json

import pytest
import torch
from clips import write_clip
from jinja2 import TemplateError
from PIL import Image
from tiny import NUM_PATCHES, random_frames, tiny_processor, tiny_tokenizer, tiny_valley
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, LlamaTokenizer

from transformers_valley import ValleyProcessor
from transformers_valley.configuration_valley import SPECIAL_TOKENS
from transformers_valley.processing_valley import join_visuals, trim_answer


TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def user(*content):
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    return {"role": "user", "content": blocks}


def video(num_frames=3, **extra):
    return {"type": "video", "video": random_frames(num_frames), **extra}


def image():
    return {"type": "image", "image": Image.new("RGB", (40, 30), "red")}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def block(placeholder, num_frames):
    return f"<im_start>{placeholder * NUM_PATCHES}<im_end><vi_start>{placeholder * num_frames}<vi_end>"


def test_prompt_is_the_papers(processor):
    chat = [user(video(), "What happens?"), assistant("It rains."), user("And then?")]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == (
        "<s>### You are Valley, an assistant that sees images and videos and answers from what they show.\n"
        "### Human: <video>\nWhat happens?\n"
        "### Assistant: It rains.</s>\n"
        "### Human: And then?\n"
        "### Assistant:"
    )


def test_own_system_message_replaces_the_default(processor):
    chat = [{"role": "system", "content": "Think step by step."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(chat) == "<s>### Think step by step.\n### Human: Hi\n"


def test_one_placeholder_becomes_the_block_of_its_visual(processor):
    inputs = processor.apply_chat_template([user(video(5), "a", image(), "b", video(1))], **TENSORS)
    text = processor.decode(inputs["input_ids"][0])
    assert f"{block('<video>', 5)}\na\n{block('<image>', 1)}\nb\n{block('<video>', 1)}\n" in text
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert inputs["pixel_values_videos"].shape == (2, 5, 3, 28, 28)
    assert inputs["video_num_frames"].tolist() == [5, 1]
    assert inputs["video_num_frames"].dtype == torch.int64


def test_any_layout_of_a_batch_gives_its_rows(processor, model):
    chats = [[user(video(2), "a", video(4))], [user(image(), "bb")], [user("text only")]]
    batch = processor.apply_chat_template(
        chats, **TENSORS, add_generation_prompt=True, processor_kwargs={"padding": True}
    )
    together = model(**batch).logits
    for row, chat in enumerate(chats):
        alone = processor.apply_chat_template(chat, **TENSORS, add_generation_prompt=True)
        real = batch["attention_mask"][row].bool()
        assert real.tolist() == sorted(real.tolist())  # padded on the left
        assert batch["input_ids"][row][real].tolist() == alone["input_ids"][0].tolist()
        torch.testing.assert_close(together[row][real], model(**alone).logits[0], rtol=1e-3, atol=1e-3)


def test_token_type_ids_mark_the_modalities(processor):
    inputs = processor.apply_chat_template(
        [user(video(3), image())], **TENSORS, processor_kwargs={"return_mm_token_type_ids": True}
    )
    types = inputs["mm_token_type_ids"][0].tolist()
    assert (types.count(1), types.count(2)) == (NUM_PATCHES + 1, NUM_PATCHES + 3)


def test_servers_count_the_same_tokens(processor):
    counts = processor._get_num_multimodal_tokens(image_sizes=[(10, 20)], video_sizes=[(7, 90, 60), (1, 9, 9)])
    assert counts.num_image_tokens == [NUM_PATCHES + 1]
    assert counts.num_image_patches == [1]
    assert counts.num_video_tokens == [NUM_PATCHES + 7, NUM_PATCHES + 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_mask_lines_up_after_expansion(processor, side):
    chats = [
        [user(video(3), "What?"), assistant("A red circle."), user(video(1), image(), "And?"), assistant("Nothing.")],
        [user("Hi"), assistant("Hello.")],
    ]
    batch = processor.apply_chat_template(
        chats, **TENSORS, return_assistant_tokens_mask=True, processor_kwargs={"padding": True, "padding_side": side}
    )
    learnt = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True)
    ]
    assert learnt == [" A red circle.</s> Nothing.</s>", " Hello.</s>"]


def test_a_prompt_is_a_token_prefix_of_its_training_row(processor):
    chat = [user(video(3), "What?"), assistant("A red circle.")]
    prompt = processor.apply_chat_template(chat[:1], **TENSORS, add_generation_prompt=True)["input_ids"][0].tolist()
    row = processor.apply_chat_template(chat, **TENSORS)["input_ids"][0].tolist()
    assert row[: len(prompt)] == prompt


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_llama_tokenizers_start_once_and_learn_whole_answers(add_bos_token):
    """SentencePiece style tokens carry the space before a word, and may add a start token of their own."""
    tokenizer = llama_tokenizer(add_bos_token=add_bos_token)
    tiny_valley(tokenizer=tokenizer)
    processor = tiny_processor(tokenizer)
    chat = [user(video(3), "What?"), assistant("A red circle.")]
    prompt = processor.apply_chat_template(chat[:1], **TENSORS, add_generation_prompt=True)["input_ids"][0].tolist()
    row = processor.apply_chat_template(chat, **TENSORS, return_assistant_tokens_mask=True)
    ids = row["input_ids"][0]
    assert ids.tolist()[: len(prompt)] == prompt
    assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert processor.decode(ids[row["assistant_masks"][0].bool()]).strip() == "A red circle.</s>"


def llama_tokenizer(**kwargs):
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(
        ["### Human: What? ### Assistant: A red circle. You are Valley, an assistant."] * 3, trainer
    )
    model = json.loads(bpe.to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **kwargs)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_never_becomes_a_special_token(processor, token):
    plain = processor.apply_chat_template([user(video(), "What is x ?")], **TENSORS)
    chat = [user(video(), f"What is {token} ?")]
    inputs = processor.apply_chat_template(chat, **TENSORS)
    index = processor.tokenizer.convert_tokens_to_ids(token)
    assert (inputs["input_ids"] == index).sum() == (plain["input_ids"] == index).sum()
    assert f"What is {token} ?" in processor.decode(inputs["input_ids"][0])
    # In a string it could not be told from a placeholder.
    with pytest.raises(ValueError, match=f"spells the special token {token}"):
        processor.apply_chat_template(chat)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", [["</s>"], ["<video>"], ["<im_end>", "<s>", "</s>"]], ids=str)
def test_a_control_token_in_a_text_is_text_in_every_column(processor, tokens, side):
    """In a batch with a row that spells none, with the assistant's words and the kinds of tokens marked."""
    answer = f"It is {''.join(tokens)}, {tokens[0]} they say."
    chats = [[user(image(), "What?", video(2)), assistant(answer)], [user("Hi"), assistant("Hey.")]]
    inputs = processor.apply_chat_template(
        chats,
        **TENSORS,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side, "return_mm_token_type_ids": True},
    )
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for column in ("attention_mask", "assistant_masks", "mm_token_type_ids"):
        assert inputs[column].shape == ids.shape
    learnt = [
        processor.decode(row[chosen.bool()]).strip()
        for row, chosen in zip(ids, inputs["assistant_masks"], strict=True)
    ]
    assert learnt == [f"{answer}</s>", "Hey.</s>"]
    kinds = 1 * (ids == processor.image_token_id) + 2 * (ids == processor.video_token_id)
    assert torch.equal(inputs["mm_token_type_ids"], kinds)
    assert not mask[1].all() and not inputs["assistant_masks"][1][mask[1] == 0].any()
    plain = processor.apply_chat_template([chats[0][:1], chats[1]], **TENSORS, processor_kwargs={"padding": True})
    for name in ("pixel_values", "pixel_values_videos", "video_num_frames"):
        assert torch.equal(inputs[name], plain[name])


def test_template_survives_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is ValleyProcessor
    assert reloaded.chat_template == processor.chat_template
    assert reloaded.patch_size == processor.patch_size
    assert reloaded.tokenizer.padding_side == "left"
    chat = [user(video(), "What?")]
    one, other = (p.apply_chat_template(chat, **TENSORS) for p in (processor, reloaded))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("key", ["path", "url", "video"])
def test_clips_are_read_from_messages(processor, tmp_path, key):
    path = write_clip(tmp_path / "clip.mp4", 30, fps=10)
    inputs = processor.apply_chat_template([user({"type": "video", key: str(path)})], **TENSORS)
    assert inputs["video_num_frames"].tolist() == [2]  # 3 s at one frame every two seconds: 0 and 2


def test_openai_blocks_and_empty_keys_are_understood(processor, tmp_path):
    path = str(write_clip(tmp_path / "clip.mp4", 30, fps=10))
    blocks = [
        {"type": "video_url", "video_url": {"url": path}},
        {"type": "video", "path": path, "text": None, "start": None, "end": None},
    ]
    for content in blocks:
        assert processor.apply_chat_template([user(content)], **TENSORS)["video_num_frames"].tolist() == [2]


def test_one_block_is_one_clip(processor, tmp_path):
    """Two animated pictures, and two lists of frame files, stay two clips each."""
    frames = [Image.new("RGB", (40, 40), (40 * index, 0, 0)) for index in range(5)]
    for name in ("a", "b"):
        frames[0].save(tmp_path / f"{name}.webp", save_all=True, append_images=frames[1:], duration=1000)
        frames[0].save(tmp_path / f"{name}.png")
    animated = [{"type": "video", "path": str(tmp_path / f"{name}.webp")} for name in ("a", "b")]
    listed = [{"type": "video", "path": [str(tmp_path / f"{name}.png") for name in names]} for names in ("ab", "aba")]
    for blocks, lengths in ((animated, [3, 3]), (listed, [2, 3])):
        inputs = processor.apply_chat_template([user(*blocks)], **TENSORS)
        assert inputs["video_num_frames"].tolist() == lengths


def test_start_and_end_cut_a_clip(processor, tmp_path):
    path = str(write_clip(tmp_path / "clip.mp4", 60, fps=10))
    cut = {"type": "video", "path": path, "start": 1.0, "end": 4.5}
    inputs = processor.apply_chat_template([user(cut)], **TENSORS)
    assert inputs["video_num_frames"].tolist() == [2]  # 1 and 3 s


def test_sound_is_never_asked_for(processor, tmp_path):
    path = str(write_clip(tmp_path / "silent.mp4", 30, fps=10))
    inputs = processor.apply_chat_template(
        [user({"type": "video", "path": path})],
        **TENSORS,
        load_audio_from_video=True,
        processor_kwargs={"num_frames": 32},
    )
    assert inputs["video_num_frames"].tolist() == [32]


FORMS = {
    "path": lambda clip, more: {"type": "video", "path": clip, **more},
    "video": lambda clip, more: {"type": "video", "video": clip, **more},
    "url": lambda clip, more: {"type": "video", "url": clip, **more},
    "video_url": lambda clip, more: {"type": "video_url", "video_url": clip, **more},
    "inside": lambda clip, more: {"type": "video_url", "video_url": {"url": clip, **more}},
    "beside": lambda clip, more: {"type": "video_url", "video_url": {"url": clip}, **more},
}


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({}, 3),  # 6 s at one frame in two seconds
        ({"start": 1.0, "end": 4.5}, 2),
        ({"start": 4.0}, 1),
        ({"fps": 2}, 12),
        ({"fps": 2, "max_frames": 5}, 5),
        ({"num_frames": 4, "start": 1, "end": 2}, 4),
    ],
    ids=str,
)
def test_a_block_cuts_and_samples_its_clip_in_every_form(processor, long_clip, form, settings, frames):
    inputs = processor.apply_chat_template([user(FORMS[form](long_clip, settings), video(7))], **TENSORS)
    assert inputs["video_num_frames"].tolist() == [frames, 7]


@pytest.fixture(scope="module")
def long_clip(folder):
    return str(write_clip(folder / "long.mp4", 60, fps=10))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"type": "video", "path": "a.mp4", "nframes": 4},
            r"unknown keys \['nframes'\].*'nframes' is called 'num_frames'",
        ),
        ({"type": "video", "path": "a.mp4", "frmes": 4}, r"unknown keys \['frmes'\]; it may have one of video, url"),
        ({"type": "video_url", "video_url": {"url": "a.mp4", "video_start": 1}}, "'video_start' is called 'start'"),
        ({"type": "video_url", "video_url": {"url": "a.mp4", "fps": 1}, "fps": 2}, "fps both inside and beside"),
        ({"type": "video", "path": "a.mp4", "fps": 1, "num_frames": 2}, "either fps or num_frames"),
        ({"type": "video", "path": "a.mp4", "start": 3, "end": 2}, "must start before it ends"),
        ({"type": "image", "path": "a.png", "fps": 1}, r"unknown keys \['fps'\]; it may have one of image, url"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}, r"unknown keys \['detail'\]"),
    ],
    ids=str,
)
def test_a_key_that_nobody_would_look_at_is_refused(processor, block, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([user(block)], **TENSORS)


def test_a_chat_without_a_message_is_refused(processor):
    for chat in ([], None, {"role": "user"}):
        with pytest.raises(ValueError, match="A chat is a list with at least one message"):
            processor.apply_chat_template(chat)


def test_the_messages_of_the_caller_stay_as_they_are(processor):
    chat = [user(image(), "What?", {"type": "video", "video": random_frames(2), "fps": None})]
    before = [dict(block) for block in chat[0]["content"]]
    processor.apply_chat_template(chat, **TENSORS)
    assert chat[0]["content"] == before


@pytest.mark.parametrize("suffix", [False, True])
def test_what_a_tokenizer_writes_around_a_text_is_written_once(suffix):
    """The same where a row is learnt and where a question is asked. As GLM-4's: no BOS token, but another prefix."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    tokenizer.add_special_tokens({"extra_special_tokens": ["[gMASK]", "<sop>"]}, replace_extra_special_tokens=False)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("[gMASK]", "<sop>", "</s>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A" + " </s>" * suffix, special_tokens=list(ids.items())
    )
    tiny_valley(tokenizer=tokenizer)
    processor = tiny_processor(tokenizer)
    chat = [user(video(), "Hi"), assistant("Hey.")]
    row = processor.apply_chat_template(chat, **TENSORS, return_assistant_tokens_mask=True)["input_ids"][0].tolist()
    asked = processor.apply_chat_template(chat[:1], **TENSORS, add_generation_prompt=True)["input_ids"][0].tolist()
    text = processor.apply_chat_template(chat[:1], add_generation_prompt=True)
    written = processor(text=text, videos=[random_frames(3)], return_tensors="pt")["input_ids"][0].tolist()
    assert row[: len(asked)] == asked == written
    assert asked[:2] == [ids["[gMASK]"], ids["<sop>"]] and asked[2] not in ids.values() and asked[-1] != ids["</s>"]


def test_a_prompt_of_the_template_gets_no_second_beginning(processor):
    text = processor.apply_chat_template([user("Hi")], add_generation_prompt=True)
    assert (
        processor(text=text)["input_ids"]
        == processor.apply_chat_template([user("Hi")], add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    )


def test_each_prompt_of_a_batch_shows_what_its_own_text_spells(processor):
    """The first is cut before the token that it spells."""
    chats = [[user("x " * 60 + "</s> tail")], [user("<s>")]]
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, processor_kwargs={"truncation": True, "max_length": 29}
    )
    first, second = (processor.decode(ids) for ids in inputs["input_ids"])
    assert "</s>" not in first and len(inputs["input_ids"][0]) == 29 and "<s>" in second.removeprefix("<s>")


@pytest.mark.parametrize("spelt", ["plain", "</s>"])
@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True},
        {"truncation": True, "max_length": 20},
        {"truncation": "only_first", "max_length": 20},
        {"max_length": 20},
        {"max_length": 20, "truncation": False, "padding": True},
        {"max_length": 90, "padding": "max_length"},
        {"padding": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_lengths_are_those_of_texts_that_spell_nothing(processor, spelt, options, nested, side):
    processor.tokenizer.truncation_side = side
    chats = [[user(f"What is {spelt} here, and what else do you see?")], [user("Who?")]]
    given = {"text_kwargs": options} if nested else options
    tensors = {"return_tensors": "pt"} if options.get("padding") else {}
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, processor_kwargs=given, **tensors)
    lengths = [len(ids) for ids in inputs["input_ids"]]
    full = processor.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]
    whole = [len(ids) for ids in full]
    if options.get("padding") == "max_length":
        assert lengths == [90, 90]
    elif options.get("padding"):
        assert lengths == [max(whole)] * 2
    elif "max_length" in options:
        assert lengths == [min(20, each) for each in whole]
        kept = full[0][-20:] if side == "left" else full[0][:20]
        assert inputs["input_ids"][0] == kept
    else:
        assert lengths == whole


# --- bad input ---


def test_truncation_inside_a_visual_block_is_an_error(processor):
    ids = processor.apply_chat_template([user(video(), "What?")], **TENSORS)["input_ids"][0].tolist()
    length = ids.index(processor.video_token_id) + NUM_PATCHES  # ends between patches and frames
    with pytest.raises(ValueError, match="Mismatch in `video` token count.*increase `max_length`"):
        processor.apply_chat_template(
            [user(video(), "What?")], **TENSORS, processor_kwargs={"truncation": True, "max_length": length}
        )


@pytest.mark.parametrize(
    ("text", "videos"),
    [("no placeholder", [random_frames(2)]), ("<video> and <video>", [random_frames(2)]), ("<video>", None)],
)
def test_placeholders_and_clips_must_match(processor, text, videos):
    with pytest.raises(ValueError, match="<video> tokens"):
        processor(text=text, videos=videos)


def test_a_tokenizer_without_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"lacks Valley's special tokens \['<image>'.*from_vision_text_pretrained"):
        tiny_processor(tiny_tokenizer())


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "tool", "content": "x"}, "not tool"),
        (user({"type": "audio"}), "not audio"),
        (user({"type": "video", "path": "a.mp4", "url": "b.mp4"}), "names its source once"),
    ],
)
def test_messages_that_valley_does_not_read(processor, message, error):
    with pytest.raises(Exception, match=error):
        processor.apply_chat_template([message])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_is_trimmed_while_it_is_written(size):
    text = "  A dog # runs. \n###"
    ends = range(size, len(text) + size, size)
    shown = [trim_answer(text[:end], ["###"], is_whole=end >= len(text)) for end in ends]
    assert shown[-1] == "A dog # runs."
    assert all(shown[-1].startswith(part) for part in shown)


def test_visuals_are_joined_in_their_order_and_clips_padded_at_the_end_of_time(processor):
    def encode(*blocks):
        return processor.apply_chat_template([user(*blocks, "What?")], **TENSORS)

    both, text, clip, picture = (encode(video(1), image()), encode(), encode(video(3)), encode(image()))
    batch = join_visuals([both, text, clip, picture])
    assert batch["video_num_frames"].tolist() == [1, 3]
    assert batch["pixel_values_videos"].shape[:2] == (2, 3) and not batch["pixel_values_videos"][0, 1:].any()
    torch.testing.assert_close(batch["pixel_values_videos"][1:], clip["pixel_values_videos"])
    torch.testing.assert_close(batch["pixel_values"], torch.cat([both["pixel_values"], picture["pixel_values"]]))
    assert join_visuals([text]) == {}


@pytest.mark.parametrize("token", ["<image>", "<video>"])
@pytest.mark.parametrize("as_blocks", [False, True])
def test_engines_that_fill_in_the_template_themselves_refuse_a_spelt_placeholder(processor, token, as_blocks):
    """vLLM does: it would put a visual there."""
    text = f"What is {token}?"
    content = [{"type": "text", "text": text}] if as_blocks else text
    with pytest.raises(TemplateError, match=f"spells the special token {token}"):
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=processor.chat_template, tokenize=False
        )
