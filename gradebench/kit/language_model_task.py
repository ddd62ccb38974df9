"""A task of texts: prompts that a language model continues, and a reward of the texts."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.core.options import text_of
from gradebench.core.problem import Ledger
from gradebench.core.task import Log, Task
from gradebench.kit.making import Pretraining, make_policy
from gradebench.kit.options import Instance, Kl, Lora, Policy, Precision, Reward
from gradebench.kit.prompts import Prompts, Texts, encoded, filler_of, padded, read_prompts, read_texts
from gradebench.kit.rewards import load_reward, own_reward, try_reward
from gradebench.measurement.sequence_metrics import evaluate_sequences
from gradebench.models.saving import is_scratch, load_saved_vocabulary, load_scratch, save_policy
from gradebench.problems.sequence import SequenceProblem
from gradebench.rewards.text_reward import load_function, names_function
from gradebench.storage.cache import REPORT, cached_folder, digests_of, require_whole
from gradebench.storage.digests import of_json
from gradebench.storage.hub import is_here, locate_model

PRETRAINED_LEARNING_RATE = 1e-5  # usual for tuning a whole pretrained model; the base's suits small ones
ADAPTERS_LEARNING_RATE = 1e-4  # usual for adapters, which start from zero


class LanguageModelTask(Task):
    """Prompts, a reward of the texts that continue them, and a policy: made here from a corpus, or given.

    A task of one's own overrides `prompt_texts`, `score` or `make_reward`, and `corpus` for a policy that is made here;
    docs/tasks.md shows one. Its options are those of `__init__` here, or those of an `__init__` of its own that passes
    each of them on by name: `super().__init__(kl=kl, word=word)`.

    After `prepare`: `folder` of what was made, or None. After `load`: `policy`, `reference` (frozen), `vocabulary`,
    `reward`, and by split `prompts` (N, P) int64, P = `width`, behind their padding, and `pads` (N,), tokens of padding,
    where there are any.
    """

    horizon: int = 16  # new tokens, at most
    longest_prompt: int = 64  # tokens; a longer prompt is refused
    evaluated: int = 256  # prompts of a split that an evaluation reads, at most
    sampled: int = 4  # prompts of a split whose continuations are kept
    pretraining: Pretraining = Pretraining()  # of a policy made here
    made: ClassVar[Mapping[str, str]] = {
        "policy": "scratch",
        "reward": "own",
    }  # the options' values for what isn't given
    no_derivative: str = "its reward reads texts, which have no derivative"

    folder: Path | None = None
    vocabulary: Any = None  # None where tokens stand for no texts
    categories: int  # V
    pads: Mapping[str, Tensor] = {}  # of splits where a prompt is shorter than another
    end: Any = None  # the token that ends a text, or several; None where every text has `horizon` new tokens

    def __init__(
        self,
        kl: Kl = 0.05,
        policy: Policy = "scratch",
        reward: Reward = "own",
        lora: Lora = 0,
        precision: Precision = "float32",
        instance: Instance = 0,
        **own: Any,
    ):
        known = own | {"kl": kl, "policy": policy, "reward": reward, "lora": lora, "precision": precision}
        known |= {"instance": instance}
        declared = [
            one.name for one in inspect.signature(type(self)).parameters.values() if one.kind is not one.VAR_KEYWORD
        ]
        if left := [name for name in declared if name not in known]:
            raise TypeError(f"{type(self).__name__} takes {left[0]}; pass it on: super().__init__({left[0]}={left[0]})")
        self.options = {name: known[name] for name in declared}
        self._known = {name: value for name, value in known.items() if name not in self.options}
        if lora and self.small:
            raise InputError(f"{self.name}: lora={lora} is for a given policy; leave it out, or give policy=")

    # --- what a task of one's own supplies ------------------------------------------------------------------------

    def prompt_texts(self) -> Texts | Mapping[str, Texts]:
        """The prompts: a file with one a line, the texts themselves, or either of them for each split.

        What isn't in splits is shuffled by the option `instance` and dealt out, three fifths of it for training. Raises
        InputError where the texts don't serve; so does what reads them: a file that isn't there or is empty, fewer than
        10 prompts, one that is there twice or has more than `longest_prompt` tokens.
        """
        raise InputError(f"{self.name} has no prompts; write its prompt_texts")

    def corpus(self) -> Texts | None:
        """The texts that a policy made here learns from: a file with one a line, or the texts; None for no such policy."""
        return None

    def score(self, prompts: list[str], completions: list[str]) -> Sequence[float]:
        """The reward of each text, finite; a text is its prompt and its completion.

        A subclass may also take `texts` alone, both in one. What it raises fails the cell, in one line.
        """
        raise NotImplementedError

    def make_reward(self) -> Any:
        """The reward, where none is given; may read `vocabulary` (a V of `len`, encode, decode, end) and `width`.

        By default `score`. For one with a derivative return a `DifferentiableReward`.
        """
        return own_reward(f"{type(self).__name__}.score", self.score, self.vocabulary, self.width)

    def gold_rewards(self, texts: list[str]) -> Sequence[float] | None:
        """What a judge that no training sees finds of texts, one number each; None for no judge."""
        return None

    # --- options --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """In messages, and what its folders in the cache begin with."""
        return type(self).__name__.lower()

    def option(self, name: str) -> Any:
        """Its value, also where the task doesn't leave it to the user."""
        return self.options[name] if name in self.options else self._known[name]

    @property
    def beta(self) -> float:
        return float(self.option("kl"))

    @property
    def seed(self) -> int:
        """Of all that an instance has of its own."""
        return int(self.option("instance"))

    @property
    def half(self) -> bool:
        """Whether given models compute in bfloat16."""
        return bool(self.option("precision") == "bfloat16")

    def is_made(self, part: str) -> bool:
        """Whether a part, `policy` or `reward`, is the task's own, and not given by a hub id, a folder or a function."""
        return bool(self.option(part) == self.made[part])

    @property
    def small(self) -> bool:
        """Whether the policy is one made here, now or by an earlier run that saved it."""
        return self.is_made("policy") or is_scratch(self.option("policy"))

    @property
    def reward_reads(self) -> bool:
        """Whether the reward is a function given by name."""
        return names_function(self.option("reward"))

    @property
    def head(self) -> dict[str, str]:
        """What the options say of a given classifier's outputs."""
        return {name: self.options[name] for name in ("label", "activation") if name in self.options}

    @property
    def window(self) -> int:
        """Tokens of prompt and horizon, at most."""
        return self.longest_prompt + self.horizon

    # --- once a run -----------------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Hub ids of given models that would be downloaded."""
        given = [part for part in self.made if not self.is_made(part) and not (part == "reward" and self.reward_reads)]
        return [self.option(part) for part in given if not is_here(self.option(part))]

    def given_parts(self) -> dict[str, Any]:
        """Name and digest of each given part. Raises InputError where one isn't there."""
        given = [part for part in self.made if not self.is_made(part)]
        return {
            part: load_function(self.option(part))
            if part == "reward" and self.reward_reads
            else locate_model(self.option(part))
            for part in given
        }

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        own = {type(self).score, type(self).make_reward} - {LanguageModelTask.score, LanguageModelTask.make_reward}
        if self.is_made("reward") and not own:
            raise InputError(f"{self.name} has no reward: write its score or its make_reward, or give reward=")
        given = self.given_parts()  # first, so that a misspelt one is refused at once
        prompts, folder = self.read_prompts(), None
        if self.is_made("policy"):
            facts = {"version": self.version} | self.facts(prompts)
            facts |= {"instance": self.seed} if self.seed else {}
            folder = cached_folder(self.name, facts, lambda folder: self._build(folder, device, log), log)
        words = [f"{name}={text_of(value)}" for name, value in self.options.items() if name not in _STANDARD]
        words += [f"prompts={prompts.file}:{prompts.digest[:8]}"] if prompts.file else []
        self.set_prepared(folder, words, given)
        self.prepared = {**(self.prepared or {}), "prompts": prompts.digest}

    def set_prepared(
        self, folder: Path | None, words: Sequence[str], given: Mapping[str, Any], scratch: str = "scratch"
    ) -> None:
        """Leave for workers what runs. `words` begin the setting; `scratch` is what it calls a policy made here."""
        names = {"policy": scratch} | ({"reward": self.option("reward")} if "reward" in self.options else {})
        names |= {part: f"{one.name}:{one.digest[:8]}" for part, one in given.items()}
        words = [*words, *(f"{part}={name}" for part, name in names.items()), f"kl={self.beta:g}"]
        words += [f"{name}={value}" for name, value in self.head.items()]
        words += [f"lora={self.option('lora')}"] if self.option("lora") else []
        words += ["precision=bfloat16"] if self.half else []
        words += [f"instance={self.seed}"] if self.seed else []
        self.prepared = {"folder": str(folder or ""), "setting": " ".join(words)}
        self.prepared |= {"function": given["reward"].digest} if self.reward_reads else {}
        self._restore()

    def _restore(self) -> None:
        """Take over what was prepared, here or by the process that prepared."""
        assert self.prepared is not None
        self.folder = Path(self.prepared["folder"]) if self.prepared["folder"] else None
        self.setting = self.prepared["setting"]
        if not self.small:
            self.learning_rate = ADAPTERS_LEARNING_RATE if self.option("lora") else PRETRAINED_LEARNING_RATE

    def read_prompts(self) -> Prompts:
        return read_prompts(self.prompt_texts(), self.splits, self.seed)

    def _corpus(self) -> list[str]:
        corpus = self.corpus()
        if corpus is None:
            raise InputError(f"{self.name} makes no policy, as it has no corpus; give policy=, a hub id or a folder")
        return read_texts(corpus, "the corpus")

    def facts(self, prompts: Prompts) -> dict[str, Any]:
        """What a policy made here depends on; together with `version` the key that it is cached under."""
        lengths = {"horizon": self.horizon, "longest_prompt": self.longest_prompt}
        return lengths | {
            "prompts": prompts.digest,
            "corpus": of_json(self._corpus()),
            "pretraining": asdict(self.pretraining),
        }

    def _build(self, folder: Path, device: torch.device, log: Log) -> None:
        """Make the policy and its vocabulary."""
        texts = [text for part in self.read_prompts().splits.values() for text in part]
        lengths = self.horizon, self.longest_prompt
        make_policy(folder, self._corpus(), texts, *lengths, self.pretraining, self.seed, device, log)

    # --- in every process -----------------------------------------------------------------------------------------

    def load(self, device: torch.device) -> None:
        self._restore()
        if self.folder is not None:
            require_whole(self.folder)
        self.policy, self.vocabulary = self.load_policy()
        self.policy.eval().to(device)
        self.reference = self.policy.frozen()
        self.categories, self.end = len(self.vocabulary), self.vocabulary.end
        self.prompts, self.pads = padded(self.prompt_rows(), filler_of(self.vocabulary), device)
        self.width = next(iter(self.prompts.values())).shape[1]
        self.reward: Any = self.load_reward().to(device).requires_grad_(False)
        if not self.reward.differentiable:
            given = f"reward={self.option('reward')} reads texts, which have no derivative"
            self.lacks = {"soft_reward": self.no_derivative if self.is_made("reward") else given}
        self.params = [p for p in self.policy.parameters() if p.requires_grad]
        self.sizes = {split: len(prompts) for split, prompts in self.prompts.items()}

    def load_policy(self) -> tuple[Any, Any]:
        """The policy and its vocabulary: made here, or given."""
        if self.small:
            place = str(self.folder) if self.is_made("policy") else self.option("policy")
            return load_scratch(place, self.window), self.load_vocabulary(place)
        from gradebench.models import pretrained  # the library of models takes seconds to load

        return pretrained.load_policy(self.option("policy"), self.window, self.half, self.option("lora"))

    def load_vocabulary(self, place: str) -> Any:
        """The vocabulary of a policy made here, in whose folder it is."""
        return load_saved_vocabulary(place)

    def load_reward(self) -> Any:
        """The reward: the task's own, or given. Raises InputError where it won't do."""
        if not self.is_made("reward"):
            return self.given_reward(self.vocabulary, self.width)
        reward = self.make_reward()
        if reward.differentiable:
            counted = self.end is not None or bool(self.pads)
            try_reward(reward, f"the reward of {self.name}", self.categories, self.width + self.horizon, counted)
        return reward

    def given_reward(self, vocabulary: Any, width: int) -> Any:
        """The reward given by name, for prompts of `width` tokens."""
        name = self.option("reward")
        if self.reward_reads and self.prepared and self.prepared["function"] != load_function(name).digest:
            raise InputError(f"the file of reward={name} was changed after the run had started; run again")
        return load_reward(name, vocabulary, width, self.horizon, self.half, **self.head)

    def prompt_rows(self) -> Mapping[str, Sequence[Sequence[int]]]:
        """The prompts' ids, by split."""
        prompts = self.read_prompts()
        if self.prepared is None or self.prepared["prompts"] != prompts.digest:
            raise InputError(f"{prompts.name} were changed after the run had started; run again")
        return encoded(prompts, self.vocabulary, self.longest_prompt)

    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> SequenceProblem:
        pads = self.pads.get(split)
        return SequenceProblem(
            self.policy,
            self.reward,
            self.prompts[split][index],
            self.horizon,
            self.categories,
            self.reference,
            self.beta,
            ledger,
            self.options.get("checkpointing") or None,
            self.end,
            None if pads is None else pads[index],
        )

    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """Of one sampled text for each of the first `evaluated` prompts of a split, the means of

        reward         as `score` or the reward gives it, without the penalty
        kl             from the reference, in nats a text; the objective is reward - option kl * kl
        entropy        of the policy, in nats a token
        distinct_2     distinct pairs of neighbouring tokens over all, in [0, 1]
        reference_nll  surprise of the reference, in nats a token
        gold_reward    by `gold_rewards`, where there is a judge
        """
        problem = self.problem(split, torch.arange(min(self.evaluated, self.sizes[split]), device=rng.device))
        metrics, z = evaluate_sequences(problem, rng)
        gold = self.gold_rewards(self.vocabulary.decode(problem.texts(z)))
        return metrics if gold is None else metrics | {"gold_reward": float(np.mean(gold))}

    def samples(self, split: str, rng: torch.Generator) -> list[dict[str, Any]]:
        if self.vocabulary is None:
            return []
        problem = self.problem(split, torch.arange(min(self.sampled, self.sizes[split]), device=rng.device))
        z = problem.sample(1, rng)
        with torch.no_grad():
            rewards = problem.raw_reward(z)[0].tolist()
        pads = [0] * problem.contexts if problem.pads is None else problem.pads.tolist()
        openings = [row[pad:] for row, pad in zip(problem.prompts.tolist(), pads, strict=True)]
        prompts, texts = self.vocabulary.decode(openings), self.vocabulary.decode(problem.texts(z[0]))
        return [
            {"prompt": prompt, "text": text, "reward": reward}
            for prompt, text, reward in zip(prompts, texts, rewards, strict=True)
        ]

    def save_policy(self, folder: Path) -> None:
        if self.vocabulary is None:
            return super().save_policy(folder)
        save_policy(self.policy, self.vocabulary, folder)

    def digests(self) -> dict[str, str]:
        made = digests_of(self.folder) if self.folder is not None else {}
        prompts = (self.prepared or {}).get("prompts")
        return made | ({"prompts": prompts[:16]} if prompts else {})

    def describe(self) -> dict[str, Any]:
        report = json.loads((self.folder / REPORT).read_text(encoding="utf-8")) if self.folder is not None else {}
        return {"options": self.options, **report, "prompts": dict(self.sizes)}


_STANDARD = set(inspect.signature(LanguageModelTask.__init__).parameters)
