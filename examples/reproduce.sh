#!/usr/bin/env bash
# From a vision transformer and a language model to Valley-13b, on 8 GPUs of 80 GiB: both stages of the paper.
#
#     DRY_RUN=1 examples/reproduce.sh                    # print the commands
#     examples/reproduce.sh                              # CLIP ViT-L/14 and Vicuna 13B
#     TEXT=Qwen/Qwen3-8B GPUS=4 examples/reproduce.sh    # another language model, half of the GPUs
#     examples/reproduce.sh --report_to wandb            # flags of examples/sft.py, for both stages
#
# The rows have to lie where the recipes' mixtures look for them: docs/how-to/get_the_data.md. After a kill, the same
# command goes on: a finished stage is not run again, the other begins at its last complete checkpoint. What it takes:
# docs/how-to/train_both_stages.md. Not run yet at this size.
set -euo pipefail
cd "$(dirname "$0")/.."

VISION=${VISION:-openai/clip-vit-large-patch14}
TEXT=${TEXT:-lmsys/vicuna-13b-v1.5}
GPUS=${GPUS:-8}
LAUNCHER=${LAUNCHER:-examples/accelerate/zero2.yaml}
OUTPUT=${OUTPUT:-outputs}

# The recipes' batches are those of 8 GPUs; fewer GPUs accumulate what is missing.
if ((GPUS < 1 || 8 % GPUS)); then
    echo "GPUS=$GPUS does not divide 8. Print the commands for 8 with DRY_RUN=1, and run them with --num_processes $GPUS" \
        "and a --per_device_train_batch_size that keeps the global batches at 128 and 32." \
        "For several machines: docs/how-to/train_on_many_gpus.md." >&2
    exit 1
fi

run() {
    printf '%q ' "$@"
    echo
    if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

stage() { # name of the recipe, then flags
    local name=$1 last=$OUTPUT/$1/trainer_state.json # which sft.py writes last
    shift
    if [ -e "$last" ] && [ -z "${DRY_RUN:-}" ]; then
        echo "# $name is done: $last is there"
        return
    fi
    run accelerate launch --config_file "$LAUNCHER" --num_processes "$GPUS" examples/sft.py \
        --config "examples/configs/$name.yaml" --gradient_accumulation_steps $((8 / GPUS)) \
        --output_dir "$OUTPUT/$name" --resume_from_checkpoint auto "$@"
}

stage stage1_align --vision_model_name_or_path "$VISION" --model_name_or_path "$TEXT" "$@"
stage stage2_instruct --model_name_or_path "$OUTPUT/stage1_align" "$@"
echo "# Now ask it: valley chat $OUTPUT/stage2_instruct clip.mp4"
