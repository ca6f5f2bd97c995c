# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""BERTScore against the package of its authors, where that works, and where it does not."""

import json

import pytest
import torch
from evaluating import tiny_bert
from tokenizers import pre_tokenizers
from transformers import (
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from transformers_valley.evaluation.bertscore import BertScore, BertScorer, bertscore_f1


TEXTS = ["a dog runs", "people watch cars", "the house", "a dog barks at the road while it runs over a window"]
REFERENCES = [
    ["the dog runs over the road", "a dog"],
    ["people watch the cars from a window"],
    ["a window of the house", "the house", "cars"],
    ["the dog barks"],
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A tiny RoBERTa, whose byte-level tokenizer joins the space before a word to it."""
    folder = tmp_path_factory.mktemp("roberta")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["d o", "do g", "Ġ dog", "m a", "ma n"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "do", "dog", "Ġdog", "ma", "man"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tokens), max_position_embeddings=40, pad_token_id=1, **shape)
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


def theirs(texts, references, model, layer):
    bert_score = pytest.importorskip("bert_score")
    found = bert_score.score(texts, references, model_type=model, num_layers=layer, batch_size=2, device="cpu")
    return [BertScore(*map(float, row)) for row in zip(*found, strict=True)]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_scores_are_those_of_the_authors_package(bert, layer):
    ours = BertScorer(bert, layer, batch_size=2).score(TEXTS, REFERENCES)
    for text, each, score in zip(TEXTS, REFERENCES, ours, strict=True):
        expected = [theirs([text], [reference], bert, layer)[0] for reference in each]
        best = max(expected, key=lambda score: score.f1)
        assert (score.precision, score.recall, score.f1) == pytest.approx(
            (best.precision, best.recall, best.f1), abs=1e-5
        )


def test_best_reference_is_that_of_the_authors_package(bert):
    ours = BertScorer(bert, 2).score(TEXTS, REFERENCES)
    expected = theirs(TEXTS, REFERENCES, bert, 2)
    assert [score.f1 for score in ours] == pytest.approx([score.f1 for score in expected], abs=1e-5)


def test_texts_do_not_depend_on_their_neighbours(bert):
    """torchmetrics pairs texts with references of others once it sorts them by length."""
    together = BertScorer(bert, 2, batch_size=4).score(TEXTS, REFERENCES)
    apart = [BertScorer(bert, 2).score([t], [r])[0] for t, r in zip(TEXTS, REFERENCES, strict=True)]
    assert [s.f1 for s in together] == pytest.approx([s.f1 for s in apart], abs=1e-5)


def test_text_is_like_itself(bert):
    (score,) = BertScorer(bert, 2).score(["a dog runs"], [["cars", " a dog runs "]])
    assert score.f1 == pytest.approx(1, abs=1e-5)


def test_empty_text_scores_nothing(bert):
    """The authors' package fails here with transformers 5."""
    assert BertScorer(bert, 2).score(["", "  "], [["a dog"], ["a dog", "cars"]]) == [BertScore(0, 0, 0)] * 2


def test_long_text_is_cut_at_what_the_model_reads(bert, roberta):
    (score,) = BertScorer(bert, 2).score(["a dog " * 100], [["a dog"]])
    assert 0 < score.f1 < 1
    # RoBERTa counts positions from 2 on; its tokenizer here tells no length, at which the authors' package fails.
    assert BertScorer(roberta, 1)._max_length == 38
    assert len(BertScorer(roberta, 1).score(["man " * 100], [["man"]])) == 1


def test_first_word_is_written_like_the_others_for_roberta(roberta):
    scorer = BertScorer(roberta, 1)
    (embedded,) = [scorer._embed({"dog"})["dog"]]
    assert scorer.tokenizer.tokenize(" dog") == ["Ġdog"] and scorer.tokenizer.tokenize("dog") == ["dog"]
    ids = torch.tensor([scorer.tokenizer.convert_tokens_to_ids(["<s>", "Ġdog", "</s>"])])
    hidden = scorer.model(ids, output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(embedded[0], torch.nn.functional.normalize(hidden, dim=-1))


def test_what_scored_is_part_of_the_result(bert):
    found = bertscore_f1(TEXTS + [""], REFERENCES + [["a dog"]], model=bert, layer=2)
    assert found["empty"] == 1 and found["layer"] == 2 and found["model"] == bert and found["rescaled"] is False
    scores = BertScorer(bert, 2).score(TEXTS, REFERENCES)
    assert found["f1"] == pytest.approx(100 * sum(s.f1 for s in scores) / 5, abs=1e-4)


def test_layer_has_to_be_known_and_there(bert):
    with pytest.raises(ValueError, match="Which layer of .*It is known of roberta-large"):
        BertScorer(bert)
    with pytest.raises(ValueError, match="has 3 layers, and layer 4"):
        BertScorer(bert, 4)


def test_text_without_a_reference_is_an_error(bert):
    with pytest.raises(ValueError, match="none empty; got 1"):
        BertScorer(bert, 1).score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="none empty"):
        BertScorer(bert, 1).score(["a"], [[]])
