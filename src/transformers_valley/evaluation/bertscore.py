# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""BERTScore (Zhang et al. 2020) on transformers alone: texts in, precision, recall and F1 of each pair out.

Equal to the package `bert-score` 0.3.13 where that works. It does not with transformers 5 for empty texts, for
tokenizers without a length, and for the first word of RoBERTa, which its published numbers write with a space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

from ..checkpoint import check_reachable, why_not_loaded


# Layers that the authors of BERTScore recommend, by correlation with people on WMT16.
LAYERS = {"roberta-large": 17, "microsoft/deberta-xlarge-mnli": 40}
_NO_LIMIT = 10**9  # tokenizers without a length say 1e30


@dataclass(frozen=True)
class BertScore:
    """Precision, recall and F1 of a text against the reference that fits best; 0 where the text is empty."""

    precision: float
    recall: float
    f1: float


class BertScorer:
    """
    Scores texts by the similarity of their tokens in a hidden layer. No idf weights, no rescaling with a baseline.

    Args:
        model (`str`, *optional*, defaults to `"roberta-large"`):
            Folder or name of an encoder. MemeCap's authors used `microsoft/deberta-xlarge-mnli`; the values of
            Valley's paper are such as `roberta-large` gives.
        layer (`int`, *optional*):
            Which hidden layer; of the two models above the recommended one.
        revision (`str`, *optional*):
            Of the model on the Hub.
        batch_size (`int`, *optional*, defaults to 32):
            Texts at once.
        device (`str`, *optional*):
            Where it runs; a GPU if there is one.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the layer is not known or the model has fewer.
    """

    at_once = 512  # texts, after which a stage writes their scores

    def __init__(
        self,
        model: str = "roberta-large",
        layer: int | None = None,
        revision: str | None = None,
        batch_size: int = 32,
        device: str | None = None,
    ):
        if layer is None and model not in LAYERS:
            raise ValueError(f"Which layer of {model} scores? It is known of {', '.join(LAYERS)}; give layer=….")
        self.name, self.layer, self.batch_size = model, layer or LAYERS[model], batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_reachable(model, revision)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            config = AutoConfig.from_pretrained(model, revision=revision)
        except OSError as error:
            raise FileNotFoundError(
                f"The encoder {model!r} cannot be loaded: {why_not_loaded(model, error)}"
            ) from None
        self.revision = revision or getattr(config, "_commit_hash", None)
        layers = config.num_hidden_layers
        if not 0 < self.layer <= layers:
            raise ValueError(f"{model} has {layers} layers, and layer {self.layer} was asked for.")
        # These write a word with the space before it; without one, the first word would be other tokens than
        # elsewhere.
        self._prefix = " " if isinstance(self.tokenizer, RobertaTokenizer | GPT2Tokenizer) else ""
        positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        self._max_length = min(self.tokenizer.model_max_length, positions - offset)

    @cached_property
    def model(self) -> Any:
        """The encoder, loaded when the first texts are scored."""
        return AutoModel.from_pretrained(self.name, revision=self.revision).eval().to(self.device)

    def describe(self) -> dict[str, Any]:
        """What makes two scores comparable."""
        about = {"model": self.name, "revision": self.revision, "layer": self.layer}
        return {"kind": "bertscore", **about, "idf": False, "rescaled": False}

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[BertScore]:
        """
        The best score of each text over its references.

        Args:
            texts (`list[str]`):
                What was written.
            references (`list[list[str]]`):
                For each text one or several.

        Raises:
            ValueError: if their numbers differ, or a text has no reference.
        """
        if len(texts) != len(references) or not all(references):
            raise ValueError(
                f"{len(texts)} texts need as many lists of references, none empty; got {len(references)}."
            )
        embedded = self._embed({text.strip() for text in [*texts, *(r for each in references for r in each)]})
        best = []
        for text, each in zip(texts, references, strict=True):
            scores = [_match(embedded[text.strip()], embedded[reference.strip()]) for reference in each]
            best.append(max(scores, key=lambda score: score.f1))
        return best

    @torch.no_grad()
    def _embed(self, texts: set[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """For each text the unit vectors of its tokens, (length, dim), and which of them are not special tokens."""
        ordered = sorted(texts, key=lambda text: (len(text), text))  # texts of one batch are about as long
        embedded = {"": (torch.zeros(0, 1), torch.zeros(0, dtype=torch.bool))}
        ordered = [text for text in ordered if text]
        for start in tqdm(range(0, len(ordered), self.batch_size), desc="BERTScore"):
            batch = ordered[start : start + self.batch_size]
            length = {"truncation": True, "max_length": self._max_length} if self._max_length < _NO_LIMIT else {}
            inputs = self.tokenizer(
                [self._prefix + text for text in batch],
                padding=True,
                return_special_tokens_mask=True,
                return_tensors="pt",
                **length,
            )
            special = inputs.pop("special_tokens_mask").bool()
            hidden = self.model(**inputs.to(self.device), output_hidden_states=True).hidden_states[self.layer]
            vectors = normalize(hidden.float(), dim=-1).cpu()
            real = inputs["attention_mask"].bool().cpu()
            for row, text in enumerate(batch):
                embedded[text] = vectors[row][real[row]], ~special[row][real[row]]
        return embedded


def _match(text: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]) -> BertScore:
    """Each token is matched with the most similar one of the other text; special tokens may be, but do not count."""
    (ours, counts), (theirs, their_counts) = text, reference
    if not counts.any() or not their_counts.any():
        return BertScore(0.0, 0.0, 0.0)
    similarity = ours @ theirs.T
    precision = similarity.max(dim=1).values[counts].mean().item()
    recall = similarity.max(dim=0).values[their_counts].mean().item()
    return BertScore(precision, recall, 2 * precision * recall / (precision + recall))


def bertscore_f1(texts: Sequence[str], references: Sequence[Sequence[str]], **scorer: Any) -> dict[str, Any]:
    """
    Mean precision, recall and F1 (%), how many texts are empty, and what scored them.

    Args:
        texts, references:
            As for [`BertScorer.score`].
        **scorer:
            Arguments of [`BertScorer`].
    """
    judge = BertScorer(**scorer)
    scores = judge.score(texts, references)
    means = {
        name: 100 * sum(getattr(score, name) for score in scores) / max(1, len(scores))
        for name in ("f1", "precision", "recall")
    }
    return {**means, "empty": sum(not text.strip() for text in texts), **judge.describe()}


__all__ = ["BertScore", "BertScorer", "bertscore_f1"]
