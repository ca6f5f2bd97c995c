# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
r"""Train Valley, both stages and LoRA, with TRL's SFTTrainer. The YAML says which.

    accelerate launch --config_file examples/accelerate/zero2.yaml \
        examples/sft.py --config examples/configs/stage1_align.yaml

Any key of the YAML can be given as a flag too, and then wins: `--output_dir …`, `--learning_rate …`.
"""

from trl import SFTTrainer

from transformers_valley.training import clear_errors, finish, prepare, read_arguments, replace_reports


def main(argv: list[str] | None = None) -> SFTTrainer:
    valley_args, training_args, model_args = read_arguments(argv)
    with clear_errors(training_args.output_dir):
        # Model, processor, rows, collator and callbacks, checked before the first step.
        parts = prepare(valley_args, training_args, model_args)
        trainer = SFTTrainer(**parts)
        replace_reports(trainer, valley_args, model_args)
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        finish(trainer)
    return trainer


if __name__ == "__main__":
    main()
