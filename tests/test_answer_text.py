# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`AnswerText`: the pieces of an answer are those of the whole, and none is taken back."""

import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from transformers_valley.answer_text import AnswerText


class Bytes:
    """A tokenizer whose tokens are bytes, and which drops a space that a text begins with, as LLaMA's does."""

    def decode(self, ids, skip_special_tokens):
        text = bytes(i for i in ids if i < 256).decode(errors="replace")
        return text.removeprefix(" ")


def pieces(text, stop_strings=()):
    writer, told = AnswerText(Bytes(), stop_strings), []
    for token in text.encode():
        told.append(writer.add([token]))
        if writer.has_stopped:
            break
    told.append(writer.finish())
    return told, writer


@pytest.mark.parametrize("text", ["A red square.", "a  b", "Grüße, 你好 🎬!", "one\ntwo", "", " leading"])
def test_pieces_are_the_answer(text):
    told, writer = pieces(text)
    assert "".join(told) == writer.whole == text.strip()
    assert not any("\ufffd" in piece for piece in told)


def test_stop_string_is_never_told():
    told, writer = pieces("Yes. ENDING? No. END more", ["END more", "unused"])
    assert "".join(told) == writer.whole == "Yes. ENDING? No."


def test_character_that_is_cut_off_is_shown_as_such():
    writer = AnswerText(Bytes())
    assert writer.add("é".encode()[:1]) == "" and writer.finish() == "\ufffd"


def test_tokens_of_a_real_tokenizer():
    tokenizer = tiny_tokenizer()
    text = "What moves to the left?"
    writer = AnswerText(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join([*(writer.add([token]) for token in ids), writer.finish()]) == text


def test_space_that_begins_a_line_stays():
    """Tokenizers of LLaMA decode a piece without the space it begins with."""
    words = ["\u2581List:", "\n", "\u2581", "\u2581-", "\u2581first"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="\n"))
    tokenizer.decoder = decoders.Metaspace()
    writer = AnswerText(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    told = [*(writer.add([token]) for token in range(5)), writer.finish()]
    assert "".join(told) == "List:\n  - first" and sum(map(bool, told)) > 2


def test_space_after_a_special_token_stays():
    """Which is left out, so that the word after it would begin the text."""
    words = ["\u2581Hello", "\u2581world", "<special>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<special>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<special>")
    for ids in ([0, 2, 1], [0, 2, 2, 1], [2, 0, 2, 1, 2]):
        writer = AnswerText(tokenizer)
        told = [*(writer.add([token]) for token in ids), writer.finish()]
        assert "".join(told) == writer.whole == tokenizer.decode(ids, skip_special_tokens=True) == "Hello world"
