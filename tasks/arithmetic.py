"""Sums to be answered: a verifiable reward, 1 for the exact answer and else 0."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from gradebench import InputError, Ledger, Range, SequenceProblem, Task, generator
from gradebench.core.task import Log
from gradebench.measurement.sequence_metrics import evaluate_sequences
from gradebench.models.saving import is_scratch, load_scratch, save_policy
from gradebench.models.transformer import ScratchPolicy
from gradebench.rewards.text_reward import TextReward
from gradebench.storage.cache import cached_folder, digests_of, require_whole
from gradebench.storage.hub import is_here, locate_model

SEED = 0  # of instance 0's problems, splits and pretraining; the others count on from it
PROBLEMS = 20_000  # at most, of all that there are
PROMPTS = {"train": 1024, "validation": 256, "test": 256}  # at most
PRETRAINING = 0.7  # share of the problems that the scratch policy learns from; none of them is a prompt
SAMPLED = 4  # prompts of each split whose continuations are kept
PRETRAINED_LEARNING_RATE, ADAPTERS_LEARNING_RATE = 1e-5, 1e-4
END = "."
_ALPHABET = " 0123456789+-*=" + END
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
_PROMPT = re.compile(r"(\d+)([-+*])(\d+)=\s*$")


@dataclass(frozen=True)
class Pretraining:
    """Shape and training of the scratch policy.

    `wrong`: share of the texts whose answer is off by up to 9, so that the policy knows how to answer and errs often.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 1200
    batch: int = 128
    learning_rate: float = 5e-3
    wrong: float = 0.3


class Characters:
    """A token a character; `end` ends an answer, and what follows it is no part of a text."""

    end = _ALPHABET.index(END)

    def __len__(self) -> int:
        return len(_ALPHABET)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_ALPHABET.index(character) for character in text] for text in texts]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        return ["".join(_ALPHABET[i] for i in row).partition(END)[0] for row in ids]


class Arithmetic(Task):
    """Sums such as 17+5= continued with the exact answer, which a program checks (verifiable reward)."""

    version = 1
    default_steps = 150
    default_batch = 64
    learning_rate = 3e-4

    def __init__(
        self,
        digits: Annotated[int, Range(1, 4), "of each operand, at most"] = 2,
        operators: Annotated[str, "those of + - * that occur, such as +-"] = "+",
        kl: Annotated[float, Range(0), "beta of the KL penalty, in reward per nat"] = 0.01,
        policy: Annotated[str, "scratch, or a hub id or folder of any causal language model"] = "scratch",
        lora: Annotated[int, Range(0), "rank of adapters, trained in place of a given policy's weights; 0: none"] = 0,
        precision: Annotated[
            Literal["float32", "bfloat16"], "of a given policy's computations; what is trained stays in float32"
        ] = "float32",
        instance: Annotated[int, Range(0), "which problems, splits and scratch policy: each has its own"] = 0,
    ):
        if not operators or set(operators) - set(_OPERATIONS) or len(set(operators)) < len(operators):
            raise InputError(f"arithmetic: operators={operators} won't do; give some of + - *, each once, such as +-")
        self.options = {"digits": digits, "operators": operators, "kl": kl, "policy": policy}
        self.options |= {"lora": lora, "precision": precision, "instance": instance}
        if lora and self._scratch_shaped:
            raise InputError(f"arithmetic: lora={lora} is for a given model; leave it out, or give policy=")
        self.lacks = {"soft_reward": "an answer is right or wrong, which has no derivative"}

    @property
    def _seed(self) -> int:
        """Of all that the instance has of its own."""
        return SEED + self.options["instance"]

    @property
    def _made(self) -> bool:
        return self.options["policy"] == "scratch"

    @property
    def _scratch_shaped(self) -> bool:
        """Whether the policy is one made here, now or by an earlier run that saved it."""
        return self._made or is_scratch(self.options["policy"])

    def missing(self) -> list[str]:
        return [] if self._made or is_here(self.options["policy"]) else [self.options["policy"]]

    # --- once a run -------------------------------------------------------------------------------------------

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        kind = f"digits={self.options['digits']} operators={self.options['operators']}"
        if self._made:
            facts = {"version": self.version, "kind": kind, "pretraining": asdict(Pretraining())}
            facts |= {"instance": self.options["instance"]} if self.options["instance"] else {}
            folder = cached_folder("arithmetic", facts, lambda folder: self._build(folder, device, log), log)
            policy = "scratch"
        else:
            model = locate_model(self.options["policy"])
            folder, policy = Path(), f"{model.name}:{model.digest[:8]}"
        setting = f"{kind} policy={policy} kl={self.options['kl']:g}"
        setting += f" lora={self.options['lora']}" if self.options["lora"] else ""
        setting += f" precision={self.options['precision']}" if self._half else ""
        setting += f" instance={self.options['instance']}" if self.options["instance"] else ""
        self.settled = {"folder": str(folder), "setting": setting}
        self._adopt()

    def _adopt(self) -> None:
        """Take over what was settled, here or by the process that prepared."""
        assert self.settled is not None
        self.folder, self.setting = Path(self.settled["folder"]), self.settled["setting"]
        if not self._scratch_shaped:
            self.learning_rate = ADAPTERS_LEARNING_RATE if self.options["lora"] else PRETRAINED_LEARNING_RATE

    @property
    def _half(self) -> bool:
        return self.options["precision"] == "bfloat16"

    def _build(self, folder: Path, device: torch.device, log: Log) -> None:
        """Pretrain the scratch policy on problems that are no prompts, some of them answered wrongly."""
        shape, problems = Pretraining(), self._problems()["pretraining"]
        log(f"pretraining the policy: {shape.steps:,} steps on {len(problems):,} problems")
        torch.manual_seed(self._seed)  # initial weights, the one thing that reads the global generator
        policy = self._scratch().to(device)
        rows = self._rows(problems).to(device)  # (texts, answers right and off by -9 to 9, P + T)
        loss = pretrain(policy, rows, self._prompt_length, shape, self._seed)
        save_policy(policy, None, folder)
        report = {"policy_parameters": sum(p.numel() for p in policy.parameters()), "policy_loss_nats_per_token": loss}
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    def _problems(self) -> dict[str, list[str]]:
        """Prompts such as 17+5= of each part. 5+17= is in the part of 17+5=."""
        most = 10 ** self.options["digits"]
        rng = torch.Generator().manual_seed(self._seed)
        groups: dict[tuple[str, int, int], list[str]] = {}
        for operator in self.options["operators"]:
            everything = torch.arange(most * most)
            chosen = everything if most * most <= PROBLEMS else torch.randint(most * most, (PROBLEMS,), generator=rng)
            for a, b in ((i // most, i % most) for i in chosen.tolist()):
                group = groups.setdefault((operator, min(a, b), max(a, b)), [])
                if (prompt := f"{a}{operator}{b}=") not in group:
                    group.append(prompt)
        keys = list(groups)
        shuffled = [groups[keys[i]] for i in torch.randperm(len(keys), generator=rng).tolist()]
        counts = {"pretraining": PRETRAINING} | dict.fromkeys(self.splits, (1 - PRETRAINING) / 3)
        parts, start = {}, 0.0
        for part, share in counts.items():
            rows = shuffled[round(start * len(shuffled)) : round((start + share) * len(shuffled))]
            prompts = [prompt for group in rows for prompt in group]
            parts[part] = prompts[: PROMPTS.get(part, len(prompts))]
            start += share
        return parts

    # --- the policy made here -------------------------------------------------------------------------------------

    @property
    def _prompt_length(self) -> int:
        return 2 * self.options["digits"] + 2

    @property
    def _answer_length(self) -> int:
        """Characters of the longest answer and the end."""
        return max(len(str(_OPERATIONS[o](a, b))) for o in self.options["operators"] for a, b in self._extremes) + 1

    @property
    def _extremes(self) -> list[tuple[int, int]]:
        most = 10 ** self.options["digits"] - 1
        return [(most, most), (0, most)]

    def _scratch(self) -> ScratchPolicy:
        shape, length = Pretraining(), self._prompt_length + self._answer_length
        return ScratchPolicy(len(_ALPHABET), shape.width, shape.layers, shape.heads, length)

    def _rows(self, prompts: Sequence[str]) -> Tensor:
        """Ids (N, 19, P + T) of prompts with the right answer, and with those off by -9 to -1 and 1 to 9."""
        errors = [0, *range(-9, 0), *range(1, 10)]
        texts = [
            prompt.rjust(self._prompt_length) + str(answer_of(prompt) + error).ljust(self._answer_length, END)
            for prompt in prompts
            for error in errors
        ]
        length = self._prompt_length + self._answer_length
        return torch.tensor([row[:length] for row in Characters().encode(texts)]).view(
            len(prompts), len(errors), length
        )

    # --- in every process -------------------------------------------------------------------------------------

    def load(self, device: torch.device) -> None:
        self._adopt()
        if self._made:
            require_whole(self.folder)
        problems, length = self._problems(), self._prompt_length + self._answer_length
        width = self._prompt_length
        if self._scratch_shaped:
            self.vocabulary: Any = Characters()
            name = str(self.folder) if self._made else self.options["policy"]
            self.policy: Any = load_scratch(name, length)
        else:
            from gradebench.models.pretrained import load_policy  # the library of models takes seconds to load

            self.policy, self.vocabulary = load_policy(
                self.options["policy"], 2 * length, self._half, self.options["lora"]
            )
            width = max(len(ids) for split in self.splits for ids in self.vocabulary.encode(problems[split]))
        self.horizon = self._answer_length
        self.policy.eval().to(device)
        self.reference = self.policy.frozen()
        self.prompts: dict[str, Tensor] = {}
        self.pads: dict[str, Tensor] = {}
        for split in self.splits:
            texts = [text.rjust(width) for text in problems[split]] if self._scratch_shaped else problems[split]
            rows = self.vocabulary.encode(texts)
            self.pads[split] = torch.tensor([width - len(row) for row in rows], device=device)
            self.prompts[split] = torch.tensor(
                [[self.padding] * (width - len(row)) + row for row in rows], device=device
            )
        self.reward = TextReward(right, self.vocabulary.decode, width, self.vocabulary.end)
        self.params = [p for p in self.policy.parameters() if p.requires_grad]
        self.sizes = {split: len(prompts) for split, prompts in self.prompts.items()}

    @property
    def padding(self) -> int:
        """An id that is no end: nobody reads it."""
        end = self.vocabulary.end
        ends = end if isinstance(end, tuple) else (end,)
        return next(i for i in range(len(self.vocabulary)) if i not in ends)

    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> SequenceProblem:
        pads = self.pads[split][index]
        return SequenceProblem(
            self.policy,
            self.reward,
            self.prompts[split][index],
            self.horizon,
            len(self.vocabulary),
            self.reference,
            self.options["kl"],
            ledger,
            end=self.vocabulary.end,
            pads=pads if bool(self.pads[split].any()) else None,
        )

    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """The gold reward is the reward: there is nothing beyond an exact answer."""
        metrics, _ = evaluate_sequences(self.problem(split, self._evaluated(split, rng.device)), rng)
        return metrics | {"gold_reward": metrics["reward"]}

    def _evaluated(self, split: str, device: torch.device) -> Tensor:
        return torch.arange(min(PROMPTS["test"], self.sizes[split]), device=device)

    def samples(self, split: str, rng: torch.Generator) -> list[dict[str, Any]]:
        problem = self.problem(split, torch.arange(SAMPLED, device=rng.device))
        z = problem.sample(1, rng)
        with torch.no_grad():
            rewards = problem.raw_reward(z)[0].tolist()
        openings = self.vocabulary.decode(problem.prompts.tolist())
        texts = self.vocabulary.decode(problem.texts(z[0]))
        return [
            {"prompt": prompt.strip(), "text": text.strip(), "reward": reward}
            for prompt, text, reward in zip(openings, texts, rewards, strict=True)
        ]

    def save_policy(self, folder: Path) -> None:
        save_policy(self.policy, self.vocabulary, folder)

    def digests(self) -> dict[str, str]:
        return digests_of(self.folder) if self._made else {}

    def describe(self) -> dict[str, Any]:
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8")) if self._made else {}
        return {"options": self.options, "prompts": dict(self.sizes), **report}


def answer_of(prompt: str) -> int:
    """What comes after the = that a prompt ends with."""
    match = _PROMPT.search(prompt)
    assert match is not None, prompt
    return _OPERATIONS[match[2]](int(match[1]), int(match[3]))


def right(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 where a completion is the answer, spaces around it aside, else 0."""
    pairs = zip(prompts, completions, strict=True)
    return [float(completion.strip() == str(answer_of(prompt))) for prompt, completion in pairs]


def pretrain(policy: ScratchPolicy, rows: Tensor, prompt: int, shape: Pretraining, seed: int = SEED) -> float:
    """Next-token prediction of the answers in rows (problems, right or off by something, P + T); returns the mean loss
    (nats a token) over the last tenth of the steps."""
    rng = generator("cpu", seed, "arithmetic")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=shape.learning_rate, weight_decay=0.01)
    warm = max(1, shape.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (shape.steps - step) / max(1, shape.steps - warm))
    )
    late: list[Tensor] = []
    for step in range(shape.steps):
        problem = torch.randint(len(rows), (shape.batch,), generator=rng)
        error = torch.randint(1, rows.shape[1], (shape.batch,), generator=rng)
        error = torch.where(torch.rand(shape.batch, generator=rng) < shape.wrong, error, 0)
        ids = rows[problem, error]
        logits, _, _ = policy(policy.embed(ids[:, :-1]), last=ids.shape[1] - prompt)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, prompt:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= shape.steps - max(1, shape.steps // 10):
            late.append(loss.detach())
    return float(torch.stack(late).mean())
