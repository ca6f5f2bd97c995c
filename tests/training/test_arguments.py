# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What is trained on: files, or data sets of the Hub in their place."""

import json

import pytest
import sft
import torch
from datasets import Dataset, Features, Value, Video
from launching import CONFIGS, arguments

from transformers_valley.training.arguments import read_arguments


RECIPE = str(CONFIGS / "fine_tune_lora.yaml")  # names `data` and `eval_data`


def read(*flags):
    valley, _, _ = read_arguments(["--config", RECIPE, "--use_cpu", "true", *flags])
    return valley


def test_a_data_set_named_by_a_flag_takes_the_place_of_the_files_of_a_recipe():
    valley = read("--dataset", "o/n@v1", "--dataset_config=en", "--dataset_eval_split", "validation")
    (source,), ((name, held),) = valley.sources(), valley.eval_sources()
    assert (source.dataset, source.revision, source.config, source.split) == ("o/n", "v1", "en", "train")
    assert (name, held.dataset, held.split) == ("validation", "o/n", "validation")
    valley = read("--dataset", "o/n")
    assert [name for name, _ in valley.eval_sources()] == [name for name, _ in read().eval_sources()]
    valley = read("--dataset", "o/n", "p/m", "--dataset_eval_split", "test")
    assert [name for name, _ in valley.eval_sources()] == ["n_test", "m_test"]


def test_files_named_by_a_flag_take_the_place_of_the_data_set_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out\ndataset: [o/n]\ndataset_eval_split: test\n")
    valley, _, _ = read_arguments(
        ["--config", str(recipe), "--data", "a.json", "--eval_data", "b.json", "--use_cpu", "true"]
    )
    assert valley.sources() == ["a.json"] and valley.eval_sources() == [("b", "b.json")]
    valley, _, _ = read_arguments(["--config", str(recipe), "--data", "a.json", "--use_cpu", "true"])
    assert valley.sources() == ["a.json"] and valley.eval_sources() == []


def test_flags_may_have_dashes():
    (held,) = read("--dataset", "o/n", "--dataset-eval-split", "test").eval_sources()
    assert held[0] == "test"


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("data: [a.json]\ndataset: [o/n]", [], "Both data and dataset are given"),
        ("", ["--data", "a.json", "--dataset", "o/n"], "Both data and dataset are given.*mixture"),
        ("", [], "nothing to train on: give data"),
        ("data: [a.json]\ndataset_eval_split: test", [], "a split of dataset, which is not given"),
    ],
)
def test_what_to_train_on_has_to_be_clear(tmp_path, recipe, flags, message):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: out\n{recipe}\n")
    with pytest.raises(ValueError, match=message):
        read_arguments(["--config", str(tmp_path / "recipe.yaml"), "--use_cpu", "true", *flags])


def test_a_model_trains_on_a_column_of_clips(checkpoint, rows, tmp_path):
    """As on a file of the same rows, to the last digit."""
    records = [record for record in json.loads(rows.read_text()) if "video" in record]
    (tmp_path / "rows.json").write_text(json.dumps(records))
    features = Features(
        {"id": Value("string"), "video": Video(), "conversations": [dict.fromkeys(("from", "value"), Value("string"))]}
    )
    columns = [{name: str(record[name]) if name == "id" else record[name] for name in features} for record in records]
    clips = Dataset.from_list(columns, features=features)
    for split in ("train", "test"):
        clips.to_parquet(tmp_path / "clips" / f"{split}.parquet")
    losses = {}
    for flags in (["--data", str(tmp_path / "rows.json")], ["--dataset", str(tmp_path / "clips")]):
        words = arguments(
            "stage2_instruct.yaml", checkpoint, "none", tmp_path / flags[0], max_steps=2, preview_steps=0
        )
        if flags[0] == "--dataset":
            flags += ["--dataset_eval_split", "test", "--eval_strategy", "steps", "--eval_steps", "2"]
        place = words.index("--data")
        history = sft.main([*words[:place], *words[place + 2 :], *flags]).state.log_history
        losses[flags[0]] = [entry["loss"] for entry in history if "loss" in entry]
    assert losses["--data"] == losses["--dataset"] and len(losses["--data"]) == 2
    assert any("eval_test_loss" in entry for entry in history)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_for_gpus_names_all_that_a_cpu_needs():
    with pytest.raises(ValueError, match="--use_cpu true --bf16 false --dtype float32"):
        read_arguments(["--config", RECIPE])
    read_arguments(["--config", RECIPE, *"--use_cpu true --bf16 false --dtype float32".split()])
