# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rewards for the right letter train through TRL's own `GRPOTrainer`, and what is learnt is learnt of the clips."""

import json

import pytest
import torch
from clips import write_clip
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from transformers_valley.data.questions import load_questions, to_question
from transformers_valley.training.rewards import GRPOProcessor, choice_reward, pass_clips


CHOICES = [{"letter": "A", "text": "a dog"}, {"letter": "B", "text": "a cat"}]
TEMPERATURE = 10.0  # so that both letters are written
ANSWERS = 4  # to each question
QUESTION = {"question": "What?", "choices": ["a dog", "a cat"], "answer": "a cat"}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Clips of unlike lengths, an image, and nothing to see."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_clip(tmp_path / "long.mp4", 50, fps=10)
    write_clip(tmp_path / "short.mp4", 20, fps=10)
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    shown = [{"video": "long.mp4", "end": 4.0}, {"image": "a.png"}, {}, {"video": "short.mp4"}]
    records = [{**QUESTION, "question": f"What is it, {n}?", **one} for n, one in enumerate(shown)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, records)))
    return load_questions([tmp_path / "asked.jsonl"], tmp_path)


def test_questions_are_read(rows, tmp_path):
    assert rows["answer"] == ["B"] * 4 and rows[0]["choices"] == CHOICES and rows["id"][3] == "asked:3"
    (message,) = rows[0]["prompt"]
    assert [block["type"] for block in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == "What is it, 0?\nA. a dog\nB. a cat"
    (clip,) = rows[0]["images"]
    assert (clip["type"], clip["path"], clip["end"]) == ("video", str(tmp_path / "long.mp4"), 4.0)
    assert rows[1]["images"][0]["type"] == "image" and rows[2]["images"] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "What?", "answer": "a dog"}, "expected `question`, `choices` and `answer`"),
        ({**QUESTION, "answer": "a cow"}, "is 0 of its choices"),
        ({**QUESTION, "choices": "dog or cat"}, "`choices` is the text"),
        ({**QUESTION, "weight": 2}, "`weight`"),
    ],
)
def test_what_is_no_question_with_choices_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        to_question(record)


def test_the_reward_reads_an_answer_as_evaluations_do():
    answers = [
        "B",
        "(B) a cat",
        "the answer is A",
        "It is a cat.",
        "no idea",
        [{"role": "assistant", "content": "B."}],
    ]
    assert choice_reward(answers, [CHOICES] * 6, ["B"] * 6, trainer_state=None) == [1, 1, 0, 1, 0, 1]


def test_images_and_clips_travel_as_images(rows, processor):
    trained = GRPOProcessor.of(processor)
    texts = ["<video>", "<image>", "Hi", "<video>"]
    inputs = trained(images=[row["images"] or None for row in rows], text=texts, padding=True, return_tensors="pt")
    assert inputs["image_sizes"].tolist() == [2, 0, 1] and inputs["pixel_values"].shape[:2] == (3, 2)
    assert "pixel_values_videos" not in inputs
    assert inputs["pixel_values"][0].equal(
        processor(videos=[{"video": rows[0]["images"][0]["path"], "end": 4.0}], text="<video>", return_tensors="pt")[
            "pixel_values_videos"
        ][0]
    )


def test_the_processor_that_was_given_is_saved(processor, tmp_path):
    GRPOProcessor.of(processor).save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)


class Gradients(TrainerCallback):
    """Keeps those of the first step."""

    kept: dict[str, torch.Tensor] | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.kept is None:
            self.kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def letters(processor):
    return [processor.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]


def grpo(model, processor, rows, folder, rewards, **changes):
    """One token is written, `A` or `B`, some times for each question."""
    others = sorted(set(range(model.config.text_config.vocab_size)) - set(letters(processor)))
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 4 * ANSWERS,
        "num_generations": ANSWERS,
        "max_completion_length": 1,
        "temperature": TEMPERATURE,
        "generation_kwargs": {"suppress_tokens": others},
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "loss_type": "grpo",
        "disable_dropout": True,
        "scale_rewards": "none",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=GRPOConfig(str(folder), **options | changes),
        train_dataset=rows,
        processing_class=GRPOProcessor.of(processor),
    )
    pass_clips(trainer)
    return trainer


def gradients_of(model, processor, messages, completions, rewards):
    """By hand: what a row's reward is above the mean of its question, times the probability of what was written."""
    model.zero_grad()
    advantages = rewards - rewards.view(-1, ANSWERS).mean(1).repeat_interleave(ANSWERS)
    for said, chat, advantage in zip(completions, messages, advantages, strict=True):
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([said])], 1)
        logits = model(input_ids=ids, **{k: v for k, v in inputs.items() if k != "attention_mask"}).logits
        (-advantage * (logits[0, -2] / TEMPERATURE).log_softmax(-1)[said[0]] / len(completions)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_rewards_and_gradients_are_those_of_the_clips(rows, checkpoint, processor, tmp_path):
    seen = {}

    def reward(completions, choices, answer, prompts, completion_ids, images, **kwargs):
        seen.update(prompts=prompts, ids=completion_ids, images=images)
        seen["rewards"] = choice_reward(completions, choices, answer)
        return seen["rewards"]

    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = grpo(model, processor, rows, tmp_path / "out", reward)
    trainer.add_callback(gradients := Gradients())
    trainer.train()

    a, b = letters(processor)
    assert seen["rewards"] == [float(ids == [b]) for ids in seen["ids"]] and 0 < sum(seen["rewards"]) < 4 * ANSWERS
    assert {len(blocks) for blocks in seen["images"]} == {0, 1}

    def messages(blank=False):
        for prompt, blocks in zip(seen["prompts"], seen["images"], strict=True):
            (text,) = [block for block in prompt[0]["content"] if block["type"] == "text"]
            shown = [{name: value for name, value in block.items() if value is not None} for block in blocks]
            if blank:
                shown = [{"type": "image", "image": Image.new("RGB", (40, 40))} for _ in blocks]
            yield [{"role": "user", "content": [*shown, text]}]

    fresh = AutoModelForImageTextToText.from_pretrained(checkpoint)
    rewards = torch.tensor(seen["rewards"])
    expected = gradients_of(fresh, processor, messages(), seen["ids"], rewards)
    assert gradients.kept.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients.kept[name], gradient, rtol=1e-3, atol=1e-6)
    assert any(gradient.abs().max() > 1e-5 for name, gradient in expected.items() if "temporal_module" in name)
    other = gradients_of(fresh, processor, messages(blank=True), seen["ids"], rewards)
    for name in ("lm_head.weight", "model.multi_modal_projector.weight"):
        assert not torch.allclose(gradients.kept[name], other[name], rtol=1e-3, atol=1e-6), name


def test_grpo_learns_the_right_letter(rows, checkpoint, processor, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    clip = {"type": "video", "path": rows[0]["images"][0]["path"], "end": 4.0}
    asked = [{"role": "user", "content": [clip, rows[0]["prompt"][0]["content"][1]]}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(asked, **how)

    def lead():
        a, b = model.eval()(**inputs).logits[0, -1, letters(processor)].tolist()
        return b - a

    before, start = {name: w.clone() for name, w in model.model.temporal_module.state_dict().items()}, lead()
    # With beta the reference, a model of its own, sees the clips, too.
    changes = {"max_steps": 4, "per_device_train_batch_size": 16, "num_generations": 8, "beta": 0.01}
    trainer = grpo(model, processor, rows.select([0, 3]), tmp_path / "out", choice_reward, **changes)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "rewards/choice_reward/mean" in entry]
    assert entries[0]["kl"] == pytest.approx(0, abs=1e-6) and entries[-1]["kl"] > 0
    assert lead() > start + 1
    after = model.model.temporal_module.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_a_trainer_that_cannot_pass_clips_is_refused(rows, checkpoint, processor, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = grpo(model, processor, rows, tmp_path / "out", choice_reward)
    trainer.args.use_vllm = True
    with pytest.raises(ValueError, match="hands images alone to vLLM"):
        pass_clips(trainer)
    trainer.processing_class = processor
    with pytest.raises(
        ValueError, match=r"has a ValleyProcessor: give it processing_class=GRPOProcessor.of\(processor\)"
    ):
        pass_clips(trainer)
