# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
r"""Train Valley, both stages and LoRA, with TRL's SFTTrainer. The YAML says which.

    accelerate launch --config_file examples/accelerate/zero2.yaml \
        examples/sft.py --config examples/configs/stage1_align.yaml

Any key of the YAML can be given as a flag too, and then wins: `--output_dir …`, `--learning_rate …`.
"""

from functools import partial
from pathlib import Path

from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from transformers_valley.data import load_rows
from transformers_valley.training import (
    ValleyArguments,
    ValleyDataCollator,
    attend_by_row,
    cache_vision_features,
    check_arguments,
    check_launch,
    check_parts,
    explain_full_disk,
    find_checkpoint,
    load_model_and_processor,
    prepare_rows,
    set_trainable,
    watch,
    write_training_card,
)


def main(argv: list[str] | None = None) -> SFTTrainer:
    parser = TrlParser((ValleyArguments, SFTConfig, ModelConfig))
    valley_args, training_args, model_args = parser.parse_args_and_config(argv)
    check_launch(training_args)
    check_arguments(valley_args, training_args, model_args)

    model, processor = load_model_and_processor(
        model_args.model_name_or_path,
        valley_args.vision_model_name_or_path,
        valley_args.temporal_module,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.model_revision,
        quantization_config=get_quantization_config(model_args),
    )
    if valley_args.pack_batches:
        attend_by_row(model)
    peft_config = get_peft_config(model_args)
    rows = load_rows(valley_args.data, valley_args.media_root, valley_args.streaming)
    eval_rows = {Path(file).stem: load_rows([file], valley_args.media_root) for file in valley_args.eval_data}
    check_parts(model, processor, rows, training_args, peft_config)
    if peft_config is None:
        set_trainable(model, valley_args.trainable_modules)
    elif valley_args.trainable_modules:
        raise ValueError(
            "With LoRA, name the modules trained whole in lora_modules_to_save, not in trainable_modules."
        )
    else:  # peft keeps adapters in float32; what is trained whole beside them has to be, too
        for name, module in model.named_modules():
            if name.endswith(tuple(peft_config.modules_to_save or [])):
                module.float()

    rows = prepare_rows(rows, processor, valley_args, training_args)
    training_args.remove_unused_columns = False  # the collator reads which row it is
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        data_collator=ValleyDataCollator.from_arguments(processor, valley_args, training_args),
        train_dataset=rows,
        eval_dataset=eval_rows or None,
        processing_class=processor,
        peft_config=peft_config,
    )
    # The card of this run in place of TRL's generic one, in the output folder and on the Hub.
    trainer.create_model_card = partial(write_training_card, trainer, valley_args, model_args)
    checkpoint = find_checkpoint(trainer)
    watch(trainer, valley_args)  # the last to add callbacks: the time that others take is no step's
    if valley_args.cache_vision_features:
        cache_vision_features(trainer, valley_args.cache_vision_features)
    with explain_full_disk(training_args.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    trainer.accelerator.end_training()
    return trainer


if __name__ == "__main__":
    main()
