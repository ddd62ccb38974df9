"""Seconds a step beside TRL's trainers: the same GPT-2 shape, batch, lengths, reward and optimizer, no penalty.

    pip install trl && python benchmarks/against_trl.py --threads 1 --csv results/speed/trl.csv

A step samples 32 sequences, scores them and updates the policy once; the reward costs nothing, so that what is compared
is sampling, the gradient and the update. Ours runs on the same transformers model (`pretrained`) and on the built-in
policy of the same shape (`scratch`). Steps are taken in turn: one of ours, one of TRL, and so on. TRL's seconds leave
out its optimizer's, ours don't.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from shapes import Shape
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from gradebench.core.sampling import generator
from gradebench.models.pretrained import PretrainedPolicy
from gradebench.plugins import registry
from gradebench.problems.sequence import SequenceProblem

SAMPLES = 4  # a prompt


class FreeReward:
    """A reward of ids that costs nothing: the share of even tokens."""

    differentiable = False

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (embeddings % 2 == 0).float().mean(1)


def model_of(shape: Shape) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "vocab_size": shape.vocabulary,
    }
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(n_positions=shape.prompt + shape.horizon, **sizes, **special))


class Ours:
    """Steps of one of our estimators."""

    def __init__(self, name: str, shape: Shape, policy: Any):
        self.estimator = registry.resolve("estimators", name).create()
        prompts = torch.randint(2, shape.vocabulary, (shape.batch // self.estimator.n, shape.prompt))
        self.problem = lambda: SequenceProblem(policy, FreeReward(), prompts, shape.horizon, shape.vocabulary)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=1e-5, fused=True)
        self.rng = generator("cpu", 0)

    def step(self) -> None:
        problem = self.problem()
        for p, g in zip(problem.params, self.estimator.gradient(problem, self.rng).grad, strict=True):
            p.grad = -g
        self.optimizer.step()


class InTurn(TrainerCallback):
    """Before each step of TRL's trainer, one of each of ours."""

    def __init__(self, ours: dict[str, Ours]):
        self.ours = ours
        self.seconds: dict[str, list[float]] = {name: [] for name in ("trl", *ours)}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        for name, one in self.ours.items():
            start = time.perf_counter()
            one.step()
            self.seconds[name].append(time.perf_counter() - start)


def compared(kind: str, shape: Shape, steps: int) -> dict[str, object]:
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    ids = torch.randint(2, shape.vocabulary, (256, shape.prompt), generator=torch.Generator().manual_seed(0))
    prompts = Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in ids.tolist()]})
    config, trainer_of = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    ours = {
        f"{kind} pretrained": Ours(kind, shape, PretrainedPolicy(model_of(shape), shape.vocabulary)),
        f"{kind} scratch": Ours(kind, shape, shape.problem().policy),
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = config(
            output_dir=folder,
            per_device_train_batch_size=shape.batch,
            num_generations=SAMPLES,
            max_completion_length=shape.horizon,
            generation_kwargs={"min_new_tokens": shape.horizon},
            beta=0.0,
            max_steps=steps,
            learning_rate=1e-5,
            use_cpu=True,
            bf16=False,  # the defaults would slow a CPU by an order of magnitude
            gradient_checkpointing=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = trainer_of(
            model=model_of(shape),
            reward_funcs=lambda completion_ids, **_: [
                sum(i % 2 == 0 for i in row) / len(row) for row in completion_ids
            ],
            args=arguments,
            train_dataset=prompts,
            processing_class=wrapped,
        )
        taken = InTurn(ours)
        inner = trainer.training_step

        def training_step(*inputs: Any, **options: Any) -> Any:
            start = time.perf_counter()
            loss = inner(*inputs, **options)
            taken.seconds["trl"].append(time.perf_counter() - start)
            return loss

        trainer.training_step = training_step
        trainer.add_callback(taken)
        trainer.train()
    seconds = {name: median(values[2:]) for name, values in taken.seconds.items()}
    row: dict[str, object] = {"estimator": kind, "horizon": shape.horizon, "trl_seconds": seconds.pop("trl")}
    for name, value in seconds.items():
        where = name.split()[1]
        row |= {f"{where}_seconds": value, f"trl_over_{where}": row["trl_seconds"] / value}  # type: ignore[operator]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for kind in ("rloo", "grpo"):
        for horizon in (24, 64):
            rows.append(compared(kind, Shape(horizon=horizon), arguments.steps) | {"threads": arguments.threads})
            print(rows[-1], flush=True)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
