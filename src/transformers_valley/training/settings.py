# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The settings that decide how a run continues.

Input: the arguments, the model, the processor and the rows of a run. Output: names and values, small enough for a
checkpoint; what is large becomes a digest.
"""

import hashlib
import json
import math
import re
from typing import Any

from datasets import Dataset, IterableDataset


# What a resumed run shares with the one that wrote the checkpoint: the optimizer and what it restores, what is
# trained, the rows and their order, and what is learnt of them.
_SAME = (
    *("optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "use_peft", "lora_r", "lora_alpha", "lora_target_modules", "lora_modules_to_save", "use_dora"),
    *("use_rslora", "seed", "data_seed", "train_sampling_strategy", "accelerator_config", "dataloader_drop_last"),
    *("max_length", "on_long_row", "pack_batches", "assistant_only_loss", "completion_only_loss", "loss_type"),
    *("label_smoothing_factor",),
)


def describe_run(
    valley_args, training_args, model_args, model, processor, rows: Dataset | IterableDataset
) -> dict[str, dict[str, Any]]:
    """The settings that a resumed run has to share, `"same"`, and the others, of which changes are logged.

    The model is frozen except for what is trained, and not wrapped by peft yet.
    """
    other = vars(valley_args) | vars(model_args) | training_args.to_dict()
    for name in ("output_dir", "resume_from_checkpoint"):
        other.pop(name)
    same = {name: other.pop(name) for name in _SAME}
    share = {name: other.pop(name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    share["processes"] = training_args.world_size
    plugin, stream = training_args.deepspeed_plugin, isinstance(rows, IterableDataset)
    precision = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else "float32"
    same |= {
        "backend": f"DeepSpeed ZeRO-{plugin.zero_stage} in {precision}" if plugin else "plain PyTorch",
        "rows in a step": math.prod(share.values()),
        "rows": "a stream" if stream else len(rows),
        "digest of the rows": _digest_rows(rows),
        "digest of the processor": _digest_processor(processor),
    }
    weights = [(name, list(weight.shape), weight) for name, weight in model.named_parameters()]
    if model_args.use_peft:
        # A few values of each weight, as the coarsest dtype reads them: an adapter belongs to one base model.
        values = [(name, shape, weight.data.flatten()[:8].bfloat16().tolist()) for name, shape, weight in weights]
        same["digest of the base model"] = _hash(values)
    else:
        same["digest of what is trained"] = _hash([(name, shape) for name, shape, w in weights if w.requires_grad])
    # Optimizer states of DeepSpeed are in shards; an epoch's last step is filled up for all processes, or left short;
    # other orders of rows than these two depend on the batch.
    is_ordered_by_step = training_args.train_sampling_strategy in ("random", "sequential") and not stream
    if plugin or not is_ordered_by_step or len(rows) % same["rows in a step"]:
        same |= share
    else:
        other |= share
    if stream:
        same["dataloader_num_workers"] = training_args.dataloader_num_workers
    return json.loads(json.dumps({"same": same, "other": other}, default=_to_plain))


def _digest_rows(rows: Dataset | IterableDataset) -> str:
    """Of several hundred rows, without the folders that their files are in."""
    if isinstance(rows, IterableDataset):
        some = rows.take(64)
    else:
        some = rows.select(range(0, len(rows), max(1, len(rows) // 512)))
    return _hash(re.sub(r'[^"]*/', "", json.dumps([[row["messages"], row["images"]] for row in some])))


def _digest_processor(processor) -> str:
    """Of how clips are sampled, pictures prepared and texts encoded."""
    parts = [part.to_dict() | {"auto_map": None} for part in (processor.image_processor, processor.video_processor)]
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    return _hash([parts, processor.patch_size, processor.chat_template, vocabulary])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=_to_plain).encode()).hexdigest()[:12]


def _to_plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


__all__ = ["describe_run"]
