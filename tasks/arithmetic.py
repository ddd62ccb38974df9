"""Arithmetic problems with a verifiable reward: 1 for the exact answer, else 0."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from gradebench import InputError, LanguageModelTask, Range, generator
from gradebench.core import progress
from gradebench.core.shown import counted
from gradebench.core.task import Log
from gradebench.kit.making import parameters_of, write_report
from gradebench.kit.options import Instance, Kl, Lora, Policy, Precision
from gradebench.kit.prompts import Prompts
from gradebench.models.saving import save_policy
from gradebench.models.transformer import ScratchPolicy

PROBLEMS = 20_000  # maximum number of problems
PROMPTS = {"train": 1024, "validation": 256, "test": 256}  # at most
PRETRAINING = 0.7  # share of the problems for pretraining the scratch policy; none of them is a prompt
END = "."
_ALPHABET = " 0123456789+-*=" + END
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
_PROMPT = re.compile(r"(\d+)([-+*])(\d+)=\s*$")


@dataclass(frozen=True)
class Pretraining:
    """Shape and training of the scratch policy.

    `wrong`: share of the texts whose answer is wrong by up to 9, so that the policy learns the form of answers and often errs.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 1200
    batch: int = 128
    learning_rate: float = 5e-3
    wrong: float = 0.3


class Characters:
    """One token for each character; a text is what comes before `end`."""

    end = _ALPHABET.index(END)

    def __len__(self) -> int:
        return len(_ALPHABET)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_ALPHABET.index(character) for character in text] for text in texts]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        return ["".join(_ALPHABET[i] for i in row).partition(END)[0] for row in ids]


class Arithmetic(LanguageModelTask):
    """Problems such as 17+5=, to be continued with the exact answer, which is checked (verifiable reward)."""

    version = 1
    default_steps = 150
    default_batch = 64
    learning_rate = 3e-4
    no_derivative = "an answer is right or wrong, which has no derivative"

    def __init__(
        self,
        digits: Annotated[int, Range(1, 4), "maximum number of digits of an operand"] = 2,
        operators: Annotated[str, "the operators, out of + - *, such as +-"] = "+",
        kl: Kl = 0.01,
        policy: Policy = "scratch",
        lora: Lora = 0,
        precision: Precision = "float32",
        instance: Instance = 0,
    ):
        if not operators or set(operators) - set(_OPERATIONS) or len(set(operators)) < len(operators):
            raise InputError(f"arithmetic: operators={operators} won't do; give some of + - *, each once, such as +-")
        super().__init__(
            kl, policy, lora=lora, precision=precision, instance=instance, digits=digits, operators=operators
        )
        self.horizon = self._answer_length
        length = self._prompt_length + self._answer_length
        self.longest_prompt = self._prompt_length + (
            0 if self.small else length
        )  # there may be fewer tokens than characters

    # --- once a run -------------------------------------------------------------------------------------------

    def prompt_texts(self) -> Mapping[str, list[str]]:
        problems = self._problems()
        width = self._prompt_length if self.small else 0
        return {split: [text.rjust(width) for text in problems[split]] for split in self.splits}

    def facts(self, prompts: Prompts) -> dict[str, Any]:
        kind = f"digits={self.options['digits']} operators={self.options['operators']}"
        return {"kind": kind, "pretraining": asdict(Pretraining())}

    def _build(self, folder: Path, device: torch.device, log: Log) -> None:
        """Pretrain the scratch policy on problems that aren't prompts, some of them with wrong answers."""
        shape, problems = Pretraining(), self._problems()["pretraining"]
        log(f"pretraining the policy: {counted(shape.steps, 'step')} on {counted(len(problems), 'problem')}")
        torch.manual_seed(self.seed)  # for initial weights, which alone use the global generator
        policy = self._scratch().to(device)
        rows = self._rows(problems).to(device)  # (problems, right answer and those off by -9 to 9, P + T)
        loss = pretrain(policy, rows, self._prompt_length, shape, self.seed)
        save_policy(policy, None, folder)
        write_report(folder, {"policy_parameters": parameters_of(policy), "policy_loss_nats_per_token": loss})

    def _problems(self) -> dict[str, list[str]]:
        """The prompts, such as 17+5=, of each part. 5+17= is in the same part as 17+5=."""
        most = 10 ** self.options["digits"]
        rng = torch.Generator().manual_seed(self.seed)
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
        """The number of characters of the longest answer, with its end."""
        return max(len(str(_OPERATIONS[o](a, b))) for o in self.options["operators"] for a, b in self._extremes) + 1

    @property
    def _extremes(self) -> list[tuple[int, int]]:
        most = 10 ** self.options["digits"] - 1
        return [(most, most), (0, most)]

    def _scratch(self) -> ScratchPolicy:
        shape, length = Pretraining(), self._prompt_length + self._answer_length
        return ScratchPolicy(len(_ALPHABET), shape.width, shape.layers, shape.heads, length)

    def _rows(self, prompts: Sequence[str]) -> Tensor:
        """Ids (N, 19, P + T) of the prompts with the right answer, and with answers off by -9 to -1 and 1 to 9."""
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

    def load_vocabulary(self, place: str) -> Characters:
        return Characters()

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        return right(prompts, completions)

    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """Metrics of a split; the gold reward equals the reward, because that is exact."""
        metrics = super().evaluate(split, rng)
        return metrics | {"gold_reward": metrics["reward"]}

    def samples(self, split: str, rng: torch.Generator) -> list[dict[str, Any]]:
        """Samples, without the spaces that pad short problems."""
        found = super().samples(split, rng)
        return [one | {"prompt": one["prompt"].strip(), "text": one["text"].strip()} for one in found]


def answer_of(prompt: str) -> int:
    """The right answer to a prompt, which ends with =."""
    match = _PROMPT.search(prompt)
    assert match is not None, prompt
    return _OPERATIONS[match[2]](int(match[1]), int(match[3]))


def right(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 if a completion is the right answer, apart from spaces around it, else 0."""
    pairs = zip(prompts, completions, strict=True)
    return [float(completion.strip() == str(answer_of(prompt))) for prompt, completion in pairs]


def pretrain(policy: ScratchPolicy, rows: Tensor, prompt: int, shape: Pretraining, seed: int) -> float:
    """Next-token prediction of the answers in rows (problems, right and wrong answers, P + T); returns the mean loss
    (nats per token) over the last tenth of the steps."""
    rng = generator("cpu", seed, "arithmetic")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=shape.learning_rate, weight_decay=0.01)
    warm = max(1, shape.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (shape.steps - step) / max(1, shape.steps - warm))
    )
    late: list[Tensor] = []
    for step in progress.track("step", range(shape.steps), shape.steps):
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
