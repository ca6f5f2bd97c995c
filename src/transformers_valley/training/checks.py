# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What cannot become a run, said before it begins: the checks that neither TRL, transformers nor peft makes.

`check_launch` looks at the processes, and at what DeepSpeed compiles with; `check_arguments` at the arguments alone,
before weights are loaded; `check_parts` at model, processor and rows.
"""

import copy
import logging
import os
import re
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, IntervalStrategy

from ..checkpoint import check_reachable
from ..data.lengths import check_max_length
from ..data.mixtures import is_mixture, read_mixture
from ..data.statistics import encode_answers
from ..processing_valley import ValleyProcessor


logger = logging.getLogger(__name__)

LOOKED_AT = 32  # rows whose answers are looked at before a run

# Model types of decoders whose attention tells packed rows apart by their positions, in every implementation of it.
PACKABLE = (
    *("apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
    *("granite", "granitemoe", "helium", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2"),
    *("olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2"),
)


def check_launch(args) -> None:
    """
    Refuse a launch that would train wrongly, or stop deep inside a library.

    Args:
        args (`transformers.TrainingArguments`):
            Of the run, such as `SFTConfig`.

    Raises:
        ValueError: for FSDP, and if fewer processes train together than were asked for.
        RuntimeError: if DeepSpeed has to compile something and what it compiles with is missing; it names what.
    """
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError(
            "FSDP is not supported: TRL's fused head reads a sharded lm_head, whose gradient comes out wrong. Spread "
            "the model with DeepSpeed: examples/accelerate/zero2.yaml or zero3.yaml."
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size < started:
        raise ValueError(
            f"{started} processes were started and each would train alone, on {args.device}. On a CPU add "
            "`--use_cpu true`; on GPUs see that torch finds them (torch.cuda.is_available())."
        )
    # Accelerate's launcher of a single process sets the first, and the second too when asked for several. A scheduler
    # would name a machine.
    asked = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("MASTER_ADDR") == "127.0.0.1"
    if asked and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "Accelerate was asked for several processes and started one, as it does for `--cpu` and for "
            "`distributed_type: MULTI_CPU`. Launch with examples/accelerate/ddp_cpu.yaml, or ask for one process."
        )
    if args.deepspeed_plugin is not None and (what := _compiled(args)) and (missing := missing_build_tools()):
        raise RuntimeError(
            f"DeepSpeed compiles {what}, for which this machine lacks {', '.join(missing)}. Install them (Debian, "
            "Ubuntu: apt install g++ python3-dev ninja-build), or do without: examples/accelerate/ddp_cpu.yaml on a "
            "CPU, no offload on GPUs."
        )


def _compiled(args) -> str | None:
    """What DeepSpeed would compile for a run."""
    if args.device.type == "cpu":
        return "its communication between processes on a CPU"
    offload = "zero_optimization.offload_optimizer.device"
    if args.deepspeed_plugin.hf_ds_config.get_value(offload) in ("cpu", "nvme"):
        return "an optimizer for the CPU that it is offloaded to"
    return None


def missing_build_tools() -> list[str]:
    """
    What torch needs to compile an extension and this machine lacks, in words.

    pip puts ninja beside the interpreter, where only an activated environment looks for it: that folder is put first
    into `PATH`, for this process and those it starts.
    """
    beside = Path(sys.executable).parent
    if (beside / "ninja").exists():
        os.environ["PATH"] = os.pathsep.join([str(beside), os.environ.get("PATH", "")])
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    found = {
        "ninja": shutil.which("ninja"),
        f"a C++ compiler ({compiler})": shutil.which(compiler),
        f"Python.h of Python {sys.version_info.major}.{sys.version_info.minor}": (
            Path(sysconfig.get_path("include")) / "Python.h"
        ).exists(),
    }
    return [name for name, there in found.items() if not there]


def _check_media_root(valley_args) -> None:
    files = [*valley_args.data, *valley_args.eval_data]
    if valley_args.media_root is None or valley_args.dataset or not all(map(is_mixture, files)):
        return
    if all(source.media is not None for file in files for source in read_mixture(file)):
        raise ValueError(
            f"media_root={valley_args.media_root!r} has no effect: each source of {', '.join(files)} has a `media` of "
            "its own. Change it there, or in a copy of your own that `data` names, or leave media_root out."
        )


def check_arguments(valley_args, training_args, model_args) -> None:
    """
    Refuse arguments that contradict each other or do not work here.

    Args:
        valley_args ([`ValleyArguments`]):
            Of the run.
        training_args (`trl.SFTConfig`):
            Of the run.
        model_args (`trl.ModelConfig`):
            Of the run.

    Raises:
        ValueError: says what was found and what to do.
    """
    if os.path.exists(training_args.output_dir) and not os.path.isdir(training_args.output_dir):
        raise ValueError(f"output_dir={training_args.output_dir!r} is a file. Name a folder; it is made if need be.")
    _check_model_type(valley_args, model_args)
    _check_media_root(valley_args)
    if valley_args.cache_vision_features and valley_args.streaming:
        raise ValueError(
            "cache_vision_features makes the features of all rows before the first step, and streamed rows are not "
            "known then: set streaming: false, or leave it out."
        )
    if valley_args.streaming and training_args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy={training_args.train_sampling_strategy!r} needs to know all rows before the "
            "first step, and streamed rows are not known then: set streaming: false, or leave it out."
        )
    check_trained(valley_args, model_args)
    check_options(training_args)
    _check_evaluation(valley_args, training_args)
    answers = valley_args.preview_data and valley_args.preview_steps
    if model_args.load_in_4bit and training_args.device.type == "cpu" and (valley_args.eval_sources() or answers):
        # Those with AVX512-BF16, and for good: bitsandbytes 0.50, nn/modules.py, Linear4bit.forward.
        raise ValueError(
            "On some CPUs the first evaluation or sample answer packs weights of 4 bits, which pass no gradient on "
            "from then. Leave out load_in_4bit, or evaluate after the run: without eval_data, dataset_eval_split, "
            "eval_strategy and preview_data."
        )


def _check_model_type(valley_args, model_args) -> None:
    name, vision = model_args.model_name_or_path, valley_args.vision_model_name_or_path
    if not name:
        raise ValueError(
            "There is no model_name_or_path: name a Valley checkpoint, or a language model to join "
            "(--model_name_or_path path/to/valley)."
        )
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        raise ValueError(
            f"model_name_or_path={name!r} is a LoRA adapter. To train on from it, merge it into its model first "
            "(docs/how-to/train_both_stages.md, use the result)."
        )
    check_reachable(name, model_args.model_revision)
    if vision:
        check_reachable(vision)
    kind = AutoConfig.from_pretrained(name, revision=model_args.model_revision).model_type
    if kind != "valley" and not vision:
        raise ValueError(
            f"model_name_or_path={name!r} holds a model of type {kind!r}, expected a Valley. To join it with a vision "
            "model, name that in vision_model_name_or_path."
        )
    if kind == "valley" and vision:
        raise ValueError(
            f"model_name_or_path={name!r} is a Valley already and has a vision tower. Leave "
            f"vision_model_name_or_path={vision!r} empty, or name a language model to join with it."
        )


def check_trained(valley_args, model_args) -> None:
    """Refuse arguments that name what is trained in two ways, or in none that works."""
    if model_args.use_peft and valley_args.trainable_modules:
        raise ValueError(
            "With LoRA, name the modules trained whole in lora_modules_to_save, not in trainable_modules."
        )
    if not model_args.use_peft and (model_args.load_in_4bit or model_args.load_in_8bit):
        raise ValueError("Quantized weights do not train: beside load_in_4bit or load_in_8bit, set use_peft: true.")


def check_options(args) -> None:
    """TRL's options that have no effect on a Valley, or none that is wanted."""
    if args.packing or args.padding_free:
        option = "packing" if args.packing else "padding_free"
        raise ValueError(f"TRL's {option} is for text only. Set pack_batches: true instead, which packs clips, too.")
    if args.use_liger_kernel:
        raise ValueError(
            "use_liger_kernel has no effect: Liger has no kernels for a Valley, and TRL's fused head computes the "
            "loss already. Leave it out."
        )
    if args.activation_offloading and args.device.type == "cpu":
        raise ValueError(
            "activation_offloading moves activations from a GPU to the CPU's memory, and this run is on the CPU. Set "
            "gradient_checkpointing: true to save memory."
        )


def _check_evaluation(valley_args, args) -> None:
    held = "dataset_eval_split" if valley_args.dataset_eval_split else "eval_data"
    stems = Counter(name for name, _ in valley_args.eval_sources())
    if stems and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            f"{held} is given, but eval_strategy is 'no': nothing would be evaluated. Set eval_strategy: steps and "
            "eval_steps. If it is for sample answers only, name it preview_data."
        )
    if twice := [stem for stem, number in stems.items() if number > 1]:
        raise ValueError(
            f"The losses of {held} are named by file or data set, and {twice} would name two. Rename one."
        )
    if valley_args.preview_steps < 0 or valley_args.num_previews < 1:
        raise ValueError(
            f"preview_steps={valley_args.preview_steps}, expected at least 0, which is none; "
            f"num_previews={valley_args.num_previews}, expected at least 1."
        )
    if args.load_best_model_at_end:
        measured = [f"eval_{stem}_{end}" for stem in stems for end in ("loss", "mean_token_accuracy", "entropy")]
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" not in measured:
            raise ValueError(
                f"load_best_model_at_end goes by metric_for_best_model={args.metric_for_best_model!r}, and this run "
                f"measures {measured or 'nothing, since eval_data is empty'}. Name one of those."
            )


def check_parts(model, processor: ValleyProcessor, rows, training_args, peft_config=None) -> None:
    """
    Refuse a model, a processor and rows that do not go together, or not with the arguments.

    Args:
        model (`ValleyForConditionalGeneration`):
            The model, before peft wraps it.
        processor ([`ValleyProcessor`]):
            The processor.
        rows (`datasets.Dataset` or `datasets.IterableDataset`):
            To train on. Of a stream those of the first step are counted.
        training_args (`trl.SFTConfig`):
            Of the run.
        peft_config (`peft.LoraConfig`, *optional*):
            Of the run.

    Raises:
        ValueError: says what was found, what was expected and what to do.
    """
    _check_processor(model, processor, training_args.max_length)
    enough = max(2, training_args.per_device_train_batch_size * training_args.world_size)
    number = len(rows) if isinstance(rows, Dataset) else sum(1 for _ in rows.take(enough))
    check_number_of_rows(number, training_args)
    if peft_config is not None:
        check_adapter_names(model, peft_config)
    if training_args.process_index == 0:
        _warn_of_unknown_tokens(processor.tokenizer, rows)


def _warn_of_unknown_tokens(tokenizer, rows) -> None:
    """Of answers that the tokenizer cannot spell no model learns a word. The first rows tell."""
    if tokenizer.unk_token_id is None:
        return
    some = rows.select_columns(["messages"]).take(LOOKED_AT)  # packed rows hold pictures, too
    encoded = [item for row in some for item in encode_answers(tokenizer, row["messages"])]
    unknown = [ids.count(tokenizer.unk_token_id) for _, ids in encoded]
    if number := sum(unknown):
        learnt, (worst, _) = sum(len(ids) for _, ids in encoded), encoded[unknown.index(max(unknown))]
        logger.warning(
            f"{number / learnt:.0%} of the tokens to be learnt are {tokenizer.unk_token}, in the first {LOOKED_AT} "
            f"rows: this tokenizer cannot spell answers such as {worst!r}. Begin from a model that has the words."
        )


def _check_processor(model, processor: ValleyProcessor, max_length: int | None) -> None:
    for name in ("image_token_id", "video_token_id"):
        of_model, of_processor = getattr(model.config, name), getattr(processor, name)
        if of_model != of_processor:
            raise ValueError(
                f"The processor is that of another model: its {name} is {of_processor}, that of the model's config is "
                f"{of_model}. Save both from one call of from_vision_text_pretrained, or copy the right processor."
            )
    known, embedded = len(processor.tokenizer), model.get_input_embeddings().num_embeddings
    if known > embedded:
        raise ValueError(
            f"The tokenizer has {known} tokens, the model embeds {embedded}: it is the tokenizer of another model, or "
            "was extended without the model. Copy the right one, or call model.resize_token_embeddings."
        )
    if processor.tokenizer.pad_token is None:
        raise ValueError(
            "The tokenizer has no pad token, so rows of different length make no batch. Set processor.tokenizer."
            "pad_token to a token that no text contains, such as its unk_token, and save the processor again."
        )
    check_max_length(max_length, processor)


def check_number_of_rows(number: int, args) -> None:
    """Refuse as many rows as make no run of the processes and batches in the arguments. Raises a `ValueError`."""
    if number == 1:
        raise ValueError(
            "There is 1 row of data, from which a model learns nothing but that row. Was a file cut short? To overfit "
            "one row on purpose, name its file twice."
        )
    if number < args.world_size:
        raise ValueError(
            f"There are {number} rows for {args.world_size} processes, so some would repeat others' rows. Start at "
            f"most {number} processes (num_processes), or add rows."
        )
    together = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and number < together:
        raise ValueError(
            f"There are {number} rows, and dataloader_drop_last drops them all: the batches of {args.world_size} "
            f"processes take {together}. Lower per_device_train_batch_size, or leave dataloader_drop_last out."
        )


def check_packing(model) -> None:
    """
    Refuse to pack rows for a language model that is not known to keep them apart.

    Args:
        model (`ValleyForConditionalGeneration`):
            The model, before peft wraps it.

    Raises:
        ValueError: names the types of language models that do.
    """
    config = model.config.text_config
    kind, layers = config.model_type, set(getattr(config, "layer_types", None) or ())
    if kind in PACKABLE and layers <= {"full_attention", "sliding_attention"}:  # others carry a state along
        return
    raise ValueError(
        f"pack_batches needs a language model that is known to keep packed rows apart: {', '.join(PACKABLE)}, with "
        f"layers of full or sliding attention. This one is of type {kind!r}"
        + (f" with layers of {', '.join(sorted(layers))}" if layers else "")
        + ". Set pack_batches: false; train_sampling_strategy: group_by_length saves padding, too."
    )


def check_adapter_names(model: torch.nn.Module, peft_config) -> None:
    """peft passes over a name that matches nothing, as long as another one does."""
    names = [name for name, _ in model.named_modules()]
    top = [name for name in names if name and name.count(".") <= 1]
    targets = peft_config.target_modules
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, name) for name in names):
            raise ValueError(
                f"lora_target_modules={targets!r} has no match in this model. One alone is a regular expression of "
                r"the whole name, such as .*language_model\.layers\.\d+\.\w+\.\w+_proj; several are the ends of "
                f"names. The model has {top} and their submodules."
            )
    elif unknown := _without_match(targets or (), names):
        raise ValueError(
            f"lora_target_modules has no match in this model for {unknown}. It has {top} and their submodules."
        )
    if unknown := _without_match(peft_config.modules_to_save or (), names):
        raise ValueError(
            f"lora_modules_to_save has no match in this model for {unknown}. It has {top} and their submodules."
        )
    parts = dict(model.named_modules())
    for name in peft_config.modules_to_save or ():
        found = [part for key, part in parts.items() if f".{key}".endswith(f".{name}")]
        if not any(list(part.parameters()) for part in found):
            raise ValueError(f"lora_modules_to_save names {name}, which has no weights in this model. Leave it out.")


def check_frozen_tower(model: torch.nn.Module, peft_config) -> None:
    """Refuse to keep the features of a vision tower that peft will train. The model is not wrapped yet."""
    from peft import get_peft_model

    with torch.device("meta"):  # peft itself says what it matches
        shapes = get_peft_model(type(model)(copy.deepcopy(model.config)), copy.deepcopy(peft_config))
    trained = [name for name, parameter in shapes.named_parameters() if parameter.requires_grad]
    if found := [name for name in trained if ".vision_tower." in name]:
        raise ValueError(
            f"The vision tower is trained, so its features change in every step and cannot be kept: peft adds "
            f"{len(found)} weights to it, such as {found[0]}. Leave out cache_vision_features, or let "
            r"lora_target_modules (such as .*language_model\.layers\.\d+\.\w+\.\w+_proj) and lora_modules_to_save "
            "name no module of it."
        )


def _without_match(wanted: Sequence[str], names: list[str]) -> list[str]:
    """Those of some names that end no module name."""
    return [end for end in wanted if not any(f".{name}".endswith(f".{end}") for name in names)]


__all__ = [
    "PACKABLE",
    "check_adapter_names",
    "check_arguments",
    "check_frozen_tower",
    "check_launch",
    "check_number_of_rows",
    "check_options",
    "check_packing",
    "check_parts",
    "check_trained",
    "missing_build_tools",
]
