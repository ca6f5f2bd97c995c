# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows to batches.

Input: rows with the paths of their clips. Output: model inputs, padded or packed; bad rows are named or left out, long
ones truncated. The processor encodes each row on its own, so that whatever goes wrong belongs to one row.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from transformers import DataCollatorWithFlattening
from trl import get_training_chat_template

from ..configuration_valley import SPECIAL_TOKENS
from ..data.decode import BadSampleError, messages_of
from ..data.lengths import check_max_length
from ..processing_valley import ValleyProcessor, join_visuals
from ..video_sources import VideoDecodeError
from .bad_rows import BadRows
from .features import FeatureCache


class ValleyDataCollator:
    """
    Makes batches of rows of [`load_rows`], for `SFTTrainer(data_collator=…)`.

    A row is bad if a clip or an image of it cannot be read, it is longer than `max_length` after `on_long_row`, its
    text cannot be rendered, or nothing of it would be learnt. With `on_bad_sample="raise"` the first one ends the run.
    With `"skip"` it is left out of its batch, and [`BadRows`] counts it; a batch without a good row teaches nothing.

    The loss of a step is a mean over the tokens of all processes, so it does not matter in whose batch a bad row is.
    That of an evaluation is a mean over batches, and TRL gives one without a good row 0.0: take bad rows out before,
    as [`prepare`] does.

    Args:
        processor ([`ValleyProcessor`]):
            Of the model.
        max_length (`int`, *optional*):
            Longest row in tokens; longer ones are left to `on_long_row`.
        assistant_only_loss (`bool`, *optional*, defaults to `True`):
            Whether only the assistant's words are learnt, or all of the text. Visuals never are.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"raise"` or `"skip"`.
        bad_sample_file (`str`, *optional*):
            See [`BadRows`].
        max_bad_share (`float`, *optional*, defaults to 0.05):
            See [`BadRows`].
        on_long_row (`str`, *optional*, defaults to `"cut"`):
            `"cut"`: what exceeds `max_length` is truncated from the text after the last visual, never inside a visual.
            `"drop"`: the row is bad.
        padding_free (`bool`, *optional*, defaults to `False`):
            Join the rows of a batch into one instead of padding them, see below.
        pad_to_multiple_of (`int`, *optional*):
            Of the padded length.

    Attributes:
        bad_rows ([`BadRows`]):
            What was read, and what could not be.
        features ([`FeatureCache`], *optional*):
            Where what the vision tower makes of visuals is read from instead of decoding them; set by
            [`cache_vision_features`].

    Raises:
        ValueError: if an argument makes no sense, `max_length` holds no visual, or too many rows are bad.
        BadSampleError: at a bad row. From a worker its message follows the worker's traceback.
    """

    def __init__(
        self,
        processor: ValleyProcessor,
        max_length: int | None = None,
        assistant_only_loss: bool = True,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        bad_sample_file: str | os.PathLike | None = None,
        max_bad_share: float = 0.05,
        on_long_row: Literal["cut", "drop"] = "cut",
        padding_free: bool = False,
        pad_to_multiple_of: int | None = None,
    ):
        for name, value, known in (
            ("on_bad_sample", on_bad_sample, ("raise", "skip")),
            ("on_long_row", on_long_row, ("cut", "drop")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if padding_free and pad_to_multiple_of is not None:
            raise ValueError(f"Packed batches have no padding, but pad_to_multiple_of={pad_to_multiple_of} is given.")
        check_max_length(max_length, processor)
        self.processor = processor
        self.max_length = max_length
        self.on_bad_sample = on_bad_sample
        self.on_long_row = on_long_row
        self.padding_free = padding_free
        self.pad_to_multiple_of = pad_to_multiple_of
        self.assistant_only_loss = assistant_only_loss
        # A template that does not mark the assistant's words is replaced by TRL's own, as `SFTTrainer` does.
        is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", str(processor.chat_template))
        self._chat_template = None if is_marked or not assistant_only_loss else get_training_chat_template(processor)
        self._visual_ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
        self.features: FeatureCache | None = None
        self.bad_rows = BadRows(bad_sample_file, max_bad_share)

    @classmethod
    def from_arguments(cls, processor: ValleyProcessor, valley_args: Any, training_args: Any):
        """The collator that a run's [`ValleyArguments`] and `SFTConfig` describe."""
        return cls(
            processor,
            max_length=training_args.max_length,
            assistant_only_loss=training_args.assistant_only_loss,
            on_bad_sample=valley_args.on_bad_sample,
            bad_sample_file=Path(training_args.output_dir, "bad_samples", f"rank{training_args.process_index}.jsonl"),
            max_bad_share=valley_args.max_bad_share,
            on_long_row=valley_args.on_long_row,
            padding_free=valley_args.pack_batches,
            pad_to_multiple_of=training_args.pad_to_multiple_of,
        )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        A batch of rows.

        Returns:
            `dict` of a batch of B rows with L tokens in the longest:

            - `input_ids`, `attention_mask`, `labels` (B, L) int64, right padded; labels are -100 where nothing is
              learnt.
            - `pixel_values` (images, 3, H, W), `pixel_values_videos` (clips, T max, 3, H, W) float32 and
              `video_num_frames`, a list with the frames of each clip, if there are any.
            - `placeholder_counts`: placeholders of each row, under `"image"` and `"video"`. These and the frames are
              Python's numbers: the model need not wait for a device to read them.
            - with `features` in place of pixels `mm_encoder_outputs`: `last_hidden_state` (frames, tokens, D) under
              `"image"` and `"video"`.

            With `padding_free`, of S tokens in all: `input_ids`, `labels`, `position_ids` (1, S) int64, where
            positions restart with each row; no `attention_mask`: without one, attention finds rows by positions;
            `cu_seq_lens_q`, `cu_seq_lens_k` (B + 1,) int32 and `max_length_q`, `max_length_k` for flash attention;
            `use_cache=False`, since with a cache rows would see each other.
        """
        # Of a batch without a good row, a row is left that shows nothing and of which nothing is learnt.
        good = [encoded for row in rows if (encoded := self._try(row)) is not None] or [self._empty_row()]
        batch = self._pack(good) if self.padding_free else self._pad(good)
        ids = {"image": self.processor.image_token_id, "video": self.processor.video_token_id}
        counts = {name: [row.count(token) for row in batch["input_ids"].tolist()] for name, token in ids.items()}
        return batch | _join_visuals(good) | {"placeholder_counts": counts}

    def encode(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """
        One row to `input_ids` and `labels` (length,), and to its pixels where it has some.

        Raises:
            BadSampleError: if the row is bad.
        """
        try:
            messages, features = (messages_of(row), {}) if self.features is None else self.features.read_row(row)
            encoded = self.processor.apply_chat_template(
                messages,
                chat_template=self._chat_template,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=self.assistant_only_loss,
            )
        except VideoDecodeError as error:
            raise BadSampleError(str(row.get("id")), str(row.get("source")), error.path, error.reason) from error
        except (ValueError, TemplateError) as error:
            raise _bad(row, str(error)) from error
        ids = encoded["input_ids"][0]
        is_visual = torch.isin(ids, self._visual_ids)
        labels = ids.masked_fill(~self.find_learnt(is_visual, encoded), -100)
        limit = self.max_length
        if limit is not None and len(ids) > limit:
            if self.on_long_row == "drop":
                raise _bad(row, f"it has {len(ids)} tokens, more than max_length={limit}.")
            if is_visual[limit:].any():
                end = is_visual.nonzero().max() + 1
                raise _bad(row, f"its last visual ends at token {end}, and max_length={limit} may not cut it.")
            ids, labels = ids[:limit], labels[:limit]
        if (labels[1:] == -100).all():
            where = "" if limit is None else f" within max_length={limit}"
            raise _bad(row, f"it holds no word{where} to learn from.")
        visuals = {name: encoded[name] for name in ("pixel_values", *_VIDEO_INPUTS) if name in encoded}
        if features:
            visuals = {name: visuals[name] for name in ("video_num_frames",) if name in visuals} | features
        return {"input_ids": ids, "labels": labels} | visuals

    def find_learnt(self, is_visual: torch.Tensor, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which tokens of a whole row are learnt, before it is truncated: (length,) bool."""
        return ~is_visual & (encoded["assistant_masks"][0] != 0) if self.assistant_only_loss else ~is_visual

    def is_good(self, row: dict[str, Any]) -> bool:
        """Whether a row can be learnt from; a bad one is counted, or ends the run, as in a batch."""
        return self._try(row) is not None

    def _try(self, row: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """A row encoded, `None` if it is bad and left out."""
        self.bad_rows.add_read()
        try:
            return self.encode(row)
        except BadSampleError as error:
            if self.on_bad_sample == "raise":
                raise
            self.bad_rows.add_bad(error)
            return None

    def _empty_row(self) -> dict[str, torch.Tensor]:
        ids = torch.full((2,), self.processor.tokenizer.pad_token_id)
        return {"input_ids": ids, "labels": torch.full_like(ids, -100)}

    def _pad(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        length, step = max(len(row["input_ids"]) for row in rows), self.pad_to_multiple_of or 1
        length = math.ceil(length / step) * step

        def stack(name: str, value: int) -> torch.Tensor:
            return torch.stack([F.pad(row[name], (0, length - len(row[name])), value=value) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": stack("input_ids", self.processor.tokenizer.pad_token_id),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "labels": stack("labels", -100),
        }

    def _pack(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        inputs = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in rows]
        batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(inputs)
        return dict(batch) | {"use_cache": False}


_VIDEO_INPUTS = ("pixel_values_videos", "video_num_frames")


def _join_visuals(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = join_visuals(rows)
    if "video_num_frames" in batch:
        batch["video_num_frames"] = batch["video_num_frames"].tolist()
    kept = {modality: [row[modality] for row in rows if modality in row] for modality in ("image", "video")}
    if kept := {modality: {"last_hidden_state": torch.cat(parts)} for modality, parts in kept.items() if parts}:
        batch["mm_encoder_outputs"] = kept
    return batch


def _bad(row: dict[str, Any], reason: str) -> BadSampleError:
    return BadSampleError(str(row.get("id")), str(row.get("source")), None, reason)


__all__ = ["ValleyDataCollator"]
