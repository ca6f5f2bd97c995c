# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What is pushed to the Hub comes back as it was, with the package and without. The Hub is a fake on this machine.

Addresses and caches of the Hub are read when its client is imported, so each side of it is a process of its own: one
publishes, one reads with the package, one reads without it. Each writes what it found as JSON, and the tests look at
that.
"""

import inspect
import json
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from test_examples import EXAMPLES
from test_house import MODEL_FILES
from transformers import pipeline

import transformers_valley  # noqa: F401


pytestmark = pytest.mark.slow
CODE_FILES = {f"{name}.py" for name in MODEL_FILES}


def logits_of(model, processor, clip):
    """Of the first word of an answer, as numbers that JSON holds."""
    content = [{"type": "video", "path": clip}, {"type": "text", "text": "What happens?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model(**inputs).logits[0, -1].tolist()


def error_of(function, *args, **kwargs):
    """The class, status and words of what a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status, str(error)]


def auto_maps_in(folder):
    return [json.load(open(f"{folder}/{name}"))["auto_map"] for name in ("config.json", "processor_config.json")]


PREAMBLE = f"""
import json, os, socket, sys

connect = socket.socket.connect

def connect_to_this_machine_only(self, address):
    assert not isinstance(address, tuple) or address[0] == "127.0.0.1", address
    return connect(self, address)

socket.socket.connect = connect_to_this_machine_only

{inspect.getsource(logits_of)}
{inspect.getsource(error_of)}
{inspect.getsource(auto_maps_in)}

checkpoint, clip = sys.argv[1:]
EXAMPLES = {str(EXAMPLES)!r}
found = {{}}
"""
REPORT = "\nprint(); print(json.dumps(found))"

PUBLISH = """
import transformers_valley
from huggingface_hub import EvalResult, ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers_valley.hub.model_card import write_model_card

model = AutoModelForImageTextToText.from_pretrained(checkpoint)
processor = AutoProcessor.from_pretrained(checkpoint)
result = EvalResult("video-text-to-text", "user/clips", "Clips", "accuracy", 0.5, dataset_split="test")
card = ModelCard.load(write_model_card(checkpoint, repo_id="user/valley-tiny", eval_results=[result]))
model.push_to_hub("user/valley-tiny")
processor.push_to_hub("user/valley-tiny")
card.push_to_hub("user/valley-tiny")
model.push_to_hub("user/valley-tiny", commit_message="Again", tags=["again"])
model.push_to_hub("user/valley-secret", private=True)
processor.push_to_hub("user/valley-secret")
pipeline("video-text-to-text", model=checkpoint).push_to_hub("user/valley-pipe")

base = AutoModelForImageTextToText.from_pretrained("user/valley-tiny")
adapter = get_peft_model(base, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)).eval()
adapter.push_to_hub("user/valley-lora")
processor.push_to_hub("user/valley-lora")
adapter.save_pretrained("adapter")
ModelCard.load(write_model_card("adapter", repo_id="user/valley-lora")).push_to_hub("user/valley-lora")
found["adapter logits"] = logits_of(adapter, processor, clip)

sys.path.insert(0, EXAMPLES)
import sft
import yaml

turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Bars."}]
json.dump([{"conversations": turns}] * 2, open("rows.json", "w"))
config = yaml.safe_load(open(f"{EXAMPLES}/configs/stage1_align.yaml"))
config |= {"model_name_or_path": "user/valley-tiny", "vision_model_name_or_path": None, "data": ["rows.json"]}
config |= {"push_to_hub": True, "hub_model_id": "user/valley-run", "hub_private_repo": True, "output_dir": "run"}
config |= {"use_cpu": True, "bf16": False, "dtype": "float32", "save_steps": 1, "report_to": "none"}
config |= {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}
yaml.safe_dump(config, open("config.yaml", "w"))
sft.main(["--config", "config.yaml"])

found["wrong token"] = error_of(model.push_to_hub, "user/other", token="hf_wrong")
found["refused"] = error_of(processor.push_to_hub, "user/refuse-403")
found["broken"] = error_of(model.save_pretrained, "kept", push_to_hub=True, repo_id="user/break-500")
found["kept"] = sorted(os.listdir("kept"))
card.data.license = "my own"
found["invalid card"] = error_of(card.push_to_hub, "user/valley-tiny")
"""

READ = """
import transformers_valley
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

name = "user/valley-tiny"
model, processor = AutoModelForImageTextToText.from_pretrained(name), AutoProcessor.from_pretrained(name)
found["logits"] = logits_of(model, processor, clip)
found["classes"] = [type(part).__module__ for part in (model, processor, processor.video_processor)]
found["tokens"] = AutoTokenizer.from_pretrained(name)("<video>What?").input_ids
model.save_pretrained("resaved")
processor.save_pretrained("resaved")
found["files"] = sorted(os.listdir("resaved"))
found["auto_maps"] = auto_maps_in("resaved")

secret = AutoModelForImageTextToText.from_pretrained("user/valley-secret")
found["secret logits"] = logits_of(secret, processor, clip)
found["without token"] = error_of(AutoProcessor.from_pretrained, "user/valley-secret", token=False)
adapter = AutoModelForImageTextToText.from_pretrained("user/valley-lora")
found["adapter logits"] = logits_of(adapter, AutoProcessor.from_pretrained("user/valley-lora"), clip)
for name in ("user/valley-pipe", "user/valley-lora"):
    pipe = pipeline("video-text-to-text", model=name)
    found[name] = pipe(clip, "What?", max_new_tokens=2, return_full_text=False)[0]["generated_text"]
"""

READ_WITHOUT_PACKAGE = """
import importlib.util
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

assert importlib.util.find_spec("transformers_valley") is None
name = "user/valley-tiny"
found["untrusted"] = error_of(AutoModelForMultimodalLM.from_pretrained, name)
model = AutoModelForMultimodalLM.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
found["logits"] = logits_of(model, processor, clip)
model.save_pretrained("resaved")
processor.save_pretrained("resaved")
found["files"] = sorted(os.listdir("resaved"))
found["auto_maps"] = auto_maps_in("resaved")
again = AutoModelForMultimodalLM.from_pretrained("resaved", trust_remote_code=True)
found["resaved logits"] = logits_of(again, AutoProcessor.from_pretrained("resaved", trust_remote_code=True), clip)

found["video-text-to-text"] = error_of(pipeline, "video-text-to-text", model=name, trust_remote_code=True)
content = [{"type": "video", "path": clip}, {"type": "text", "text": "What?"}]
for task in ("any-to-any", "image-text-to-text"):
    pipe = pipeline(task, model=name, trust_remote_code=True)
    answer = pipe(text=[{"role": "user", "content": content}], max_new_tokens=2, return_full_text=False)
    found[task] = answer[0]["generated_text"]
"""


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(hub, checkpoint, clip, tmp_path_factory):
    def run(code: str, package: bool = True, argument: str = checkpoint) -> dict:
        folder = tmp_path_factory.mktemp("reader")
        environment = hub.environment(folder / "home")
        command = [sys.executable, "-c", PREAMBLE + code + REPORT, argument, clip]
        if not package:  # -S leaves out the .pth file through which an editable install is found
            command.insert(1, "-S")
            environment["PYTHONPATH"] = sysconfig.get_path("purelib")
        result = subprocess.run(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def published(run, checkpoint, tmp_path_factory):
    """What the publisher found: errors, and the logits of its adapter."""
    return run(PUBLISH, argument=shutil.copytree(checkpoint, tmp_path_factory.mktemp("published") / "checkpoint"))


@pytest.fixture(scope="module")
def read(run, published):
    return run(READ)


@pytest.fixture(scope="module")
def read_without_package(run, published):
    return run(READ_WITHOUT_PACKAGE, package=False)


@pytest.fixture
def logits(model, processor, clip):
    with torch.no_grad():
        return torch.tensor(logits_of(model, processor, clip))


def card(hub, name: str) -> ModelCard:
    return ModelCard(hub.repos[name].files["README.md"].decode())


def test_weights_processor_card_and_code_arrive(hub, published):
    files = hub.repos["user/valley-tiny"].files.keys()
    assert {"model.safetensors", "config.json", "processor_config.json", "chat_template.jinja", "README.md"} <= files
    assert files >= CODE_FILES


def test_large_files_go_to_the_large_file_storage(hub, published):
    assert hub.repos["user/valley-tiny"].files["model.safetensors"] in hub.large_files.values()


def test_card_survives_the_next_push_of_the_model(hub, published):
    pushed = card(hub, "user/valley-tiny")
    assert pushed.data.eval_results[0].metric_value == 0.5 and pushed.data.pipeline_tag == "video-text-to-text"
    assert "valley" in pushed.data.tags and pushed.data.tags[-1] == "again"


def test_repositories_are_private_where_asked(hub, published):
    private = {name: repo.private for name, repo in hub.repos.items()}
    assert private["user/valley-secret"] and not private["user/valley-tiny"]


def test_adapter_is_pushed_without_the_base(hub, published):
    files = hub.repos["user/valley-lora"].files
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    data = card(hub, "user/valley-lora").data
    assert (data.base_model, data.base_model_relation) == (["user/valley-tiny"], "adapter")
    assert data.library_name == "peft" and "lora" in data.tags


def test_training_pushes_its_own_card(hub, published):
    repo = hub.repos["user/valley-run"]
    pushed = card(hub, "user/valley-run")
    assert repo.private and "model.safetensors" in repo.files
    assert "stage 1 (align)" in pushed.text and 'model="user/valley-run"' in pushed.text
    assert pushed.data.base_model == ["user/valley-tiny"] and {"trl", "sft"} <= set(pushed.data.tags)
    assert not any("trained using [TRL]" in tree.get("README.md", b"").decode() for tree in repo.commits.values())


def test_errors_of_a_push_name_what_happened(published):
    assert published["wrong token"][:2] == ["HfHubHTTPError", 401]
    assert published["refused"][:2] == ["HfHubHTTPError", 403] and "rights" in published["refused"][2]
    assert published["invalid card"][0] == "ValueError" and "license" in published["invalid card"][2]


def test_push_that_breaks_leaves_the_files_here(hub, published):
    assert published["broken"][1] == 500
    assert {"model.safetensors", "config.json", "modeling_valley.py"} <= set(published["kept"])
    assert not hub.repos["user/break-500"].files


def test_what_comes_back_answers_as_what_was_pushed(read, published, logits):
    torch.testing.assert_close(torch.tensor(read["logits"]), logits)
    torch.testing.assert_close(torch.tensor(read["secret logits"]), logits)


def test_package_runs_its_own_code_not_that_of_the_checkpoint(read):
    assert all(module.startswith("transformers_valley.") for module in read["classes"])


def test_tokenizer_comes_back(read, processor):
    assert read["tokens"] == processor.tokenizer("<video>What?").input_ids


def test_private_repository_needs_a_token(read):
    assert read["without token"] is not None and "user/valley-secret" in read["without token"][2]


def test_adapter_comes_back_on_its_base(read, published, logits):
    found = torch.tensor(read["adapter logits"])
    torch.testing.assert_close(found, torch.tensor(published["adapter logits"]))
    assert not torch.allclose(found, logits, atol=1e-3)


def test_pipelines_are_made_of_models_and_of_adapters(read):
    assert all(isinstance(read[name], str) for name in ("user/valley-pipe", "user/valley-lora"))


def test_checkpoint_answers_the_same_without_the_package(read_without_package, logits):
    assert "trust_remote_code" in read_without_package["untrusted"][2]
    torch.testing.assert_close(torch.tensor(read_without_package["logits"]), logits)


@pytest.mark.parametrize("reader", ["read", "read_without_package"])
def test_what_was_loaded_from_the_hub_can_be_saved_again(reader, request, logits):
    found = request.getfixturevalue(reader)
    assert CODE_FILES <= set(found["files"])
    for auto_map in found["auto_maps"]:
        assert not any("--" in reference for reference in auto_map.values())  # no reference to the repository
    if reader == "read_without_package":
        torch.testing.assert_close(torch.tensor(found["resaved logits"]), logits)


def test_without_the_package_other_tasks_stand_in_for_that_of_the_package(read_without_package):
    assert read_without_package["video-text-to-text"][0] == "KeyError"
    assert isinstance(read_without_package["any-to-any"], str)
    assert isinstance(read_without_package["image-text-to-text"], str)


def test_nothing_else_was_asked_for(hub, read, read_without_package):
    assert {request.split()[0] for request in hub.requests} <= {"GET", "HEAD", "POST", "PUT"}
    assert "POST /api/validate-yaml" in hub.requests


def test_custom_pipelines_in_the_config_would_ask_for_trust_where_none_is_needed(checkpoint, tmp_path):
    """Why the config names none: transformers asks before it looks whether the task is registered."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    assert pipeline("video-text-to-text", model=str(folder)).task == "video-text-to-text"
    config = json.loads((folder / "config.json").read_text())
    custom = {"video-text-to-text": {"impl": "pipeline_valley.VideoTextToTextPipeline", "pt": ["AutoModel"]}}
    (folder / "config.json").write_text(json.dumps({**config, "custom_pipelines": custom}))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("video-text-to-text", model=str(folder))
