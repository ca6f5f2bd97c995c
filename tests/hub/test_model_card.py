# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a card says of a checkpoint, what it leaves out, and which cards it replaces."""

import ast
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import sft
import yaml
from clips import write_clip
from fake_hub import FakeHub
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants, metadata_eval_result
from peft import LoraConfig, get_peft_model
from test_docs import CONFIGS, FENCE
from transformers import AutoModelForImageTextToText

from transformers_valley.hub import model_card as module
from transformers_valley.hub.model_card import TrainingData, build_model_card, read_facts, write_model_card


BASES = ["openai/clip-vit-large-patch14", "lmsys/vicuna-13b-v1.5"]
RESULT = EvalResult(
    task_type="video-text-to-text",
    dataset_type="user/clips",
    dataset_name="Clips | short",
    dataset_split="test",
    metric_type="accuracy",
    metric_value=0.5,
    source_name="a run",
    source_url="https://example.org/run",
)


@pytest.fixture
def saved(checkpoint, tmp_path):
    """A checkpoint of this test's own."""
    return shutil.copytree(checkpoint, tmp_path / "valley-tiny")


@pytest.fixture
def adapter(saved, tmp_path):
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(saved), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def sections(card: ModelCard) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", FENCE.sub(lambda fence: fence[0].replace("\n#", "\n "), card.text), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# --- What it says --------------------------------------------------------------------------------------------------


def test_metadata_comes_back_as_it_was_given(saved):
    path = write_model_card(
        saved,
        title="Tiny",
        license="other",
        license_name="research only",
        license_link="https://example.org/license",
        base_models=BASES,
        datasets=["Valley-Instruct-73k", "user/clips"],
        eval_results=[RESULT],
        language=["en", "de"],
        tags=["tiny"],
    )
    expected = ModelCardData(
        language=["en", "de"],
        license="other",
        license_name="research only",
        license_link="https://example.org/license",
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["valley", "video", "tiny"],
        base_model=BASES,
        base_model_relation="finetune",
        datasets=["luoruipu1/Valley-Instruct-73k", "user/clips"],
        model_name="Tiny",
        eval_results=[RESULT],
    )
    loaded = ModelCard.load(path).data
    assert loaded.to_dict() == expected.to_dict()
    assert loaded.eval_results == [RESULT]


def test_results_are_an_index_as_the_hub_makes_it(saved):
    data = build_model_card(saved, title="Tiny", eval_results=[RESULT]).data.to_dict()
    theirs = metadata_eval_result(
        model_pretty_name="Tiny",
        task_pretty_name=None,
        task_id=RESULT.task_type,
        metrics_pretty_name=None,
        metrics_id=RESULT.metric_type,
        metrics_value=RESULT.metric_value,
        dataset_pretty_name=RESULT.dataset_name,
        dataset_id=RESULT.dataset_type,
        dataset_split=RESULT.dataset_split,
    )
    ours = data["model-index"]
    assert ours[0]["results"][0].pop("source") == {"url": RESULT.source_url, "name": RESULT.source_name}
    assert theirs["model-index"][0]["results"][0]["metrics"][0].pop("verified") is False
    assert ours == theirs["model-index"]


@pytest.mark.parametrize(
    "facts, problem",
    [
        (
            {"license": "cc-by-nc-4.0", "base_models": BASES, "datasets": ["Valley-702k"], "eval_results": [RESULT]},
            None,
        ),
        ({"license": "my own"}, "license"),
        ({"license": "other"}, None),
        ({"language": "English"}, "language"),
    ],
)
def test_the_hub_validates_it(saved, monkeypatch, facts, problem):
    card = build_model_card(saved, **facts)
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        if problem is None:
            card.validate()
        else:
            with pytest.raises(ValueError, match=problem):
                card.validate()
        assert hub.requests == ["POST /api/validate-yaml"]


def test_what_lies_in_the_folder_is_read(saved):
    parts = sections(build_model_card(saved))["Parts"]
    assert "`clip_vision_model`, 3 layers, 32 wide" in parts and "patches of 14 pixels in 28 × 28" in parts
    assert "`transformer` (v3 of the paper)" in parts and "`llama`, 2 layers, 48 wide" in parts
    assert "one every 2 s" in parts and "greedy, at most 256 tokens" in parts


def test_frames_sampled_by_number_are_told_so(saved):
    path = saved / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"] |= {"num_frames": 8, "fps": None}
    path.write_text(json.dumps(settings))
    assert "8, spread evenly over the clip" in sections(build_model_card(saved))["Parts"]


def test_sections_without_facts_are_left_out(saved):
    card = build_model_card(saved)
    assert list(sections(card)) == ["Parts", "Use", "Intended use", "Limits and risks", "Licence", "Citation"]
    assert not {"license", "base_model", "base_model_relation", "datasets", "language", "model-index"} & set(
        card.data.to_dict()
    )
    assert "No licence is stated" in card.text
    assert not re.search(r"TODO|More Information|None|\bnan\b", card.text)


def test_data_come_with_their_licences(saved):
    mine = TrainingData("my rows", rows="12", license="CC0", remark="of my own | clips")
    card = build_model_card(saved, datasets=["Valley-702k", "VideoChat-instruct-11K", "user/clips", mine])
    table = sections(card)["Training data"]
    assert re.search(r"Valley-702k\]\(https://huggingface.co/datasets/luoruipu1/\S+\) \| 702k \| CC BY-NC 4.0", table)
    assert "WebVid-2M, which has been withdrawn" in table
    assert re.search(r"VideoChat-instruct-11K\]\(https://github.com/\S+\) \| 11k \| see its page", table)
    assert r"| my rows | 12 | CC0 | of my own \| clips |" in table
    assert "allow no commercial use: Valley-702k." in card.text
    assert card.data.datasets == ["luoruipu1/Valley-webvid2M-Pretrain-703K", "user/clips"]


def test_folders_do_not_pass_for_models_of_the_hub(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    card = build_model_card(saved, base_models=[f"{saved.parent.name}/{saved.name}", BASES[0]])
    assert card.data.base_model == BASES[:1]
    assert "`valley-tiny`" in card.text and saved.parent.name not in card.text  # nor is anyone's folder told


@pytest.mark.parametrize(
    "name", ["/home/alice/valley-x", "../alice/valley-x", "./alice/valley-x", r"C:\alice\valley-x"]
)
def test_folders_of_any_machine_are_told_to_nobody(adapter, name):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))
    data = [name, "data/rows.json", TrainingData(f"{name}.jsonl", rows="2")]
    card = build_model_card(adapter, converted_from=name, datasets=data)
    assert "alice" not in card.content and "LoRA adapter of `valley-x`" in card.text
    assert "converted from `valley-x`" in card.text and "| valley-x.jsonl | 2 |" in card.text
    assert "| rows.json |" in card.text and "data/rows" not in card.content
    assert not {"base_model", "datasets"} & set(card.data.to_dict())


def test_conversion_says_what_it_is_of(saved):
    card = build_model_card(saved, converted_from="luoruipu1/Valley-13b-v1", notes=["It stops at `###`."])
    assert "converted from [luoruipu1/Valley-13b-v1](https://huggingface.co/luoruipu1/Valley-13b-v1)" in card.text
    assert "- It stops at `###`." in sections(card)["Notes"]


def test_model_that_does_not_follow_the_paper_does_not_cite_it(saved):
    assert "2306.07207" in build_model_card(saved).text
    assert "2306.07207" not in build_model_card(saved, paper=False).text


def test_adapter_names_its_base(adapter, saved):
    card = build_model_card(adapter, base_models=["user/valley-tiny"])
    assert card.data.base_model == ["user/valley-tiny"] and card.data.base_model_relation == "adapter"
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert "LoRA adapter of [user/valley-tiny]" in card.text and "`clip_vision_model`" in card.text
    local = build_model_card(adapter)  # the base is a folder here, which is no use to a reader elsewhere
    assert "base_model" not in local.data.to_dict() and "base_model_name_or_path" in local.text
    assert str(saved) not in local.content


def test_adapter_of_a_model_that_was_never_loaded_names_no_base(model, tmp_path):
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    card = build_model_card(tmp_path)
    assert "This is a LoRA adapter: it needs the weights of its base" in card.text
    assert "base_model" not in card.data.to_dict()


def test_quantized_weights_are_said_to_be(saved):
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    assert build_model_card(saved, base_models=["user/valley"]).data.base_model_relation == "quantized"


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither config.json nor adapter_config.json"):
        write_model_card(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x\"); import os; os.system('id')  # ", "a\n\n# b\n```\n{0}", "\\\U0001f600'"])
def test_a_folders_name_is_a_string_of_the_examples_and_one_line_of_the_heading(saved, name):
    text = build_model_card(saved.rename(saved.parent / name)).text
    for code in (code for info, code in FENCE.findall(text) if info == "python"):
        tree = ast.parse(code)
        assert name in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert "os" not in imported
    assert f"# {' '.join(name.split())}\n" in text
    assert "\n# My model\n" in build_model_card(saved.parent / name, title="My\n model ").text


@pytest.mark.parametrize(
    "facts, error, words",
    [
        ({"repo_id": 'x"); import os  # '}, ValueError, "Repo id must use alphanumeric"),
        ({"notes": "It stops."}, TypeError, r"notes is a list, got 'It stops.'. For one, write notes=\['It stops.'\]"),
        ({"base_models": BASES[0]}, TypeError, "base_models is a list"),
        ({"datasets": "user/clips"}, TypeError, "datasets is a list"),
        ({"tags": "tiny"}, TypeError, "tags is a list"),
        ({"eval_results": RESULT}, TypeError, "eval_results is a list, got EvalResult"),
        *[
            (
                {"eval_results": [RESULT, replace(RESULT, metric_value=value)]},
                ValueError,
                "accuracy on Clips .* finite",
            )
            for value in (None, float("nan"), float("inf"), "0.5", np.float64(0.5))
        ],
    ],
)
def test_facts_that_make_no_card_are_refused(saved, facts, error, words):
    with pytest.raises(error, match=words):
        write_model_card(saved, **facts)
    assert not (saved / "README.md").exists()


def test_examples_of_the_card_run(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved.parent)
    write_clip(saved.parent / "clip.mp4", 20, fps=10)
    codes = [code for info, code in FENCE.findall(build_model_card(saved).text) if info == "python"]
    assert len(codes) == 2
    exec(codes[0], {})
    for line in ("add_generation_prompt", "trust_remote_code=True", "skip_special_tokens"):
        assert line in codes[1]
    # Run with the package's own classes; tests/test_hub.py runs the code beside the weights.
    exec(codes[1].replace(", trust_remote_code=True", ""), {})
    assert capsys.readouterr().out.count("\n") >= 2


# --- Which cards it replaces ---------------------------------------------------------------------------------------


def test_a_card_of_ours_is_replaced_and_hands_on_what_it_was_told(saved):
    write_model_card(saved, training={"learning rate": "2e-5 -->"}, datasets=["Valley-702k"], paper=False)
    path = write_model_card(saved, eval_results=[RESULT], license="mit")
    card = ModelCard.load(path)
    assert card.data.eval_results == [RESULT] and card.data.license == "mit" and len(card.data.datasets) == 1
    assert "| learning rate | 2e-5 --> |" in card.text and "2306.07207" not in card.text
    assert read_facts(saved)["training"] == {"learning rate": "2e-5 -->"}


def test_results_added_to_the_metadata_are_kept(saved):
    card = ModelCard.load(write_model_card(saved, title="Tiny"))
    card.data.model_name, card.data.eval_results = "Tiny", [RESULT]
    card.save(saved / "README.md")
    assert ModelCard.load(write_model_card(saved, license="mit")).data.eval_results == [RESULT]


@pytest.mark.parametrize(
    "damage",
    [
        ("<!-- Facts: {", "<!-- Facts: {{"),
        ("pipeline_tag: ", "pipeline_tag: ["),
        ("value: 0.5", "value: .nan"),
        ("value: 0.5", "value: null"),
    ],
)
def test_a_card_that_was_damaged_is_written_anew(saved, monkeypatch, damage):
    messages = []
    monkeypatch.setattr(module.logger, "warning", messages.append)
    path = write_model_card(saved, license="mit", eval_results=[RESULT])
    assert damage[0] in path.read_text()
    path.write_text(path.read_text().replace(*damage))
    assert "license" not in ModelCard.load(write_model_card(saved)).data.to_dict()
    assert "cannot be read" in messages[0]


TEMPLATE = ModelCard.from_template(ModelCardData(library_name="peft")).content
PUSHED = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


@pytest.mark.parametrize(
    "text",
    [
        TEMPLATE,
        ModelCard.from_template(ModelCardData(tags=["x"]), model_description=PUSHED).content,
        "",
    ],
    ids=["template", "push_to_hub", "empty"],
)
def test_cards_without_a_persons_words_are_replaced(saved, text):
    (saved / "README.md").write_text(text)
    assert write_model_card(saved) and "Limits and risks" in (saved / "README.md").read_text()


def test_the_card_of_peft_is_replaced(adapter):
    assert "### Framework versions" in (adapter / "README.md").read_text()
    assert write_model_card(adapter)


@pytest.mark.parametrize(
    "text",
    [
        b"# My Valley\n\nI wrote this, caf\xe9.\n",
        b"It has been trained using [TRL](https://github.com/huggingface/trl).\n\nAnd I wrote this.\n",
        TEMPLATE.replace("[More Information Needed]", "Mine.", 1).encode(),
        TEMPLATE.replace("[More Information Needed]", "- fast", 1).encode(),
        TEMPLATE.replace("library_name: peft", "license: mit").encode(),
        module.GENERATED.join(["# How cards are written\n\nThey hold `", "`."]).encode(),
    ],
    ids=["own", "of TRL, with words", "template, filled in", "a bullet", "metadata", "quotes the mark"],
)
def test_a_persons_card_is_kept(saved, monkeypatch, text):
    messages = []
    monkeypatch.setattr(module.logger, "warning", messages.append)
    (saved / "README.md").write_bytes(text)
    assert write_model_card(saved) is None
    assert "a person may have written" in messages[0] and "Move it away" in messages[0]
    assert (saved / "README.md").read_bytes() == text


# --- Training ------------------------------------------------------------------------------------------------------


def train(recipe: str, folder, **changes):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Bars."}]
    (folder / "rows.json").write_text(json.dumps([{"conversations": turns}] * 4))
    config = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()) | {
        "data": [str(folder / "rows.json")],
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "max_steps": 1,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return sft.main(["--config", str(folder / "config.yaml")])


def test_training_writes_the_card_of_its_run(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_model_card(saved, base_models=BASES, datasets=["Valley-702k"])
    output, mixture = tmp_path / "stage2", tmp_path / "mixture.yaml"
    mixture.write_text(f"sources: [{{path: {tmp_path / 'rows.json'}}}]")  # the card names what is in it
    options = {"model_name_or_path": str(saved), "output_dir": str(output), "data": [str(mixture)]}
    trainer = train("stage2_instruct", tmp_path, **options)
    card = ModelCard.load(output / "README.md")
    assert card.data.base_model == BASES and card.data.datasets  # of the stage before
    assert {"trl", "sft"} <= set(card.data.tags)
    table = sections(card)["Training"]
    for row in (
        "| stage | stage 2 (instruct) |",
        "| began with | `valley-tiny` |",
        "| rows | 4, of `rows` |",
        "| epochs, steps | 0.5, 1 |",
        "| global batch | 2 (per process 2, processes 1, accumulated 1) |",
        "| learning rate | 2e-05, cosine, warm-up 0.03 of the steps |",
    ):
        assert row in table
    assert "`model.language_model`" in table and "trl 1." in table
    assert str(tmp_path) not in card.content

    # What a push uploads is this card, whatever the trainer gives for its own.
    (output / "README.md").unlink()
    trainer.create_model_card(model_name="x", tags=["mine"])
    assert "mine" in ModelCard.load(output / "README.md").data.tags
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    (output / "README.md").unlink()
    trainer.create_model_card()
    assert not (output / "README.md").exists()


def test_training_with_lora_writes_the_card_of_an_adapter(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_model_card(saved, repo_id="user/valley-tiny")
    output = tmp_path / "lora"
    train("stage2_lora", tmp_path, model_name_or_path=str(saved), output_dir=str(output), lora_r=2)
    card = ModelCard.load(output / "README.md")
    assert card.data.base_model == ["user/valley-tiny"] and card.data.base_model_relation == "adapter"
    assert card.data.library_name == "peft"
    assert "LoRA, `multi_modal_projector`, `temporal_module`" in sections(card)["Training"]
    assert "peft 0." in card.text and "Framework versions" not in card.text
