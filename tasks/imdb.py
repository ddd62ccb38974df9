"""Continue the opening of a film review so that the reward model finds it positive."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradebench import Ledger, Range, SequenceProblem, Task
from gradebench.core.errors import InputError
from gradebench.core.seeds import parse_seeds
from gradebench.core.task import Log
from gradebench.measurement.sequence_metrics import evaluate_sequences
from gradebench.models.classifier_head import AUTO, Activation, Head
from gradebench.models.pretraining import TokenRows, accuracy, pretrain_policy, token_rows, train_classifier
from gradebench.models.saving import is_scratch, load_saved_vocabulary, load_scratch, save_policy
from gradebench.models.transformer import ScratchClassifier, ScratchPolicy
from gradebench.models.vocabulary import Vocabulary, load_vocabulary, train_vocabulary
from gradebench.rewards.text_reward import (
    TextReward,
    load_function,
    load_text_classifier,
    names_function,
    shares_tokens,
)
from gradebench.storage.cache import cached_folder, digests_of, require_whole
from gradebench.storage.hub import is_here, locate_model
from gradebench.storage.tuned import trials_in_words
from gradebench.tasks import grammar
from gradebench.tasks.corpora import EMBEDDED, Corpus, HubUnreachable, hub_corpus, read_corpus, split_corpus
from gradebench.tasks.judge import load_judge, train_judge
from gradebench.tasks.presets import GPT2, MINI, PAPER

if TYPE_CHECKING:
    from gradebench.models.pretrained import PretrainedVocabulary

AnyVocabulary: TypeAlias = "Vocabulary | PretrainedVocabulary"

SPLIT_SEED = 0  # of instance 0's corpus, splits and everything trained before the comparison; others count on from it
EVALUATED = 256  # prompts of each split that an evaluation reads
SAMPLED = 4  # prompts of each split whose continuations are kept
PRETRAINED_LEARNING_RATE = 1e-5  # usual for tuning a whole pretrained model; the base's suits small ones
ADAPTERS_LEARNING_RATE = 1e-4  # usual for adapters, which start from zero
_READ = ("train", "reward", "judge")  # parts that vocabulary and policy learn from
_MADE = {"policy": "scratch", "reward": "trained"}  # the options' values for what is made here


@dataclass(frozen=True)
class Size:
    """Shapes and training budgets of what is made from scratch."""

    width: int
    layers: int
    heads: int
    vocabulary: int  # at most
    prompt: int  # tokens
    horizon: int  # new tokens
    prompts: int  # in each split, at most
    policy_steps: int
    reward_steps: int
    steps: int  # of the comparison


SIZES = {
    "mini": Size(64, 2, 4, 1000, 8, 12, 256, 700, 400, 40),
    "small": Size(128, 2, 4, 1000, 12, 16, 1024, 2500, 1500, 150),
    "gpt2": Size(128, 2, 4, 1000, 16, 32, 1024, 2500, 2000, 200),
    "paper": Size(128, 2, 4, 1000, 32, 48, 10_000, 2500, 2000, 250),
}
# What that takes on 2 CPU cores, without a GPU.
MADE_HERE = {
    "mini": "a minute, 2 GB of memory",
    "small": "with 18 cells of the real reviews half an hour, 4 GB of memory",
}
PRESETS = {preset.name: preset for preset in (MINI, GPT2, PAPER)}


class ScratchReward(ScratchClassifier):
    """The trained classifier's probability of a positive text, as a reward in [0, 1]."""

    differentiable = True


class Imdb(Task):
    """Film-review openings continued towards positive sentiment (autoregressive language model)."""

    version = 1
    memory_advice = "imdb:checkpointing=8 (or fewer sequences)"

    def __init__(
        self,
        corpus: Annotated[str, "auto (hub, else embedded), hub, embedded, or a path to reviews"] = "auto",
        size: Annotated[
            Literal["auto", "mini", "small", "gpt2", "paper"],
            "of prompts, continuations and what is trained from scratch; auto: the preset's, or mini or small by corpus",
        ] = "auto",
        kl: Annotated[
            float | None, Range(0), "beta of the KL penalty, in reward per nat; none: the preset's, 0.05 in mini"
        ] = None,
        policy: Annotated[
            str, "scratch, or a hub id or folder of any causal language model; auto: the preset's, scratch in mini"
        ] = "auto",
        reward: Annotated[
            str, "trained, or a hub id or folder of a sequence classifier, or a function, FILE.py:NAME or MODULE:NAME"
        ] = "trained",
        checkpointing: Annotated[
            int | None,
            Range(0),
            "sequences whose activations are held at a time, others being computed twice; 0: all; none: the preset's",
        ] = None,
        lora: Annotated[
            int | None,
            Range(0),
            "rank of adapters, trained in place of a given policy's weights; 0: no adapters; none: the preset's",
        ] = None,
        precision: Annotated[
            Literal["auto", "float32", "bfloat16"],
            "of given models' computations; what is trained stays in float32; auto: the preset's, float32 in mini",
        ] = "auto",
        preset: Annotated[
            Literal["mini", "gpt2", "paper"],
            "what the options left open stand for: small models made here, or real ones",
        ] = "mini",
        instance: Annotated[
            int, Range(0), "which splits, models made here and, of the embedded corpus, reviews: each has its own"
        ] = 0,
        label: Annotated[
            str,
            "of a given classifier: the class that is rewarded, by name or number; auto: the only one, positive or pos, or LABEL_1 of two",
        ] = AUTO,
        activation: Annotated[
            Activation,
            "of a given classifier's outputs; auto: none for one output or regression, sigmoid for multi-label, else softmax",
        ] = AUTO,
    ):
        chosen = PRESETS[preset]
        self.options = {
            "corpus": chosen.corpus if corpus == "auto" else corpus,
            "size": chosen.size if size == "auto" else size,
            "kl": chosen.kl if kl is None else kl,
            "policy": chosen.policy if policy == "auto" else policy,
            "reward": reward,
            "checkpointing": chosen.checkpointing if checkpointing is None else checkpointing,
            "lora": chosen.lora if lora is None else lora,
            "precision": chosen.precision if precision == "auto" else precision,
            "preset": preset,
            "instance": instance,
        }
        # Only where they are given: runs from before there were such options are the same as those without.
        self.options |= {"label": label} if label != AUTO else {}
        self.options |= {"activation": activation} if activation != AUTO else {}
        if self._chosen and (self._made("reward") or self._scored):
            given = " and ".join(f"{name}={value}" for name, value in self._chosen.items())
            raise InputError(f"imdb: {given} is for a given classifier; leave it out, or give reward=")
        if self._made("policy"):  # the preset's are for a given one
            self.options |= {"lora": lora or 0, "precision": "float32" if precision == "auto" else precision}
        if lora and self._made("policy"):
            raise InputError(f"imdb: lora={lora} is for a given policy; leave it out, or give policy=")
        self.notices: list[str] = []

    # --- once a run -------------------------------------------------------------------------------------------

    def needs(self) -> list[str]:
        return PRESETS[self.options["preset"]].needs(self.options, SIZES.get(self.options["size"]))

    def missing(self) -> list[str]:
        """Hub ids of given models that would be downloaded."""
        names = [self.options[part] for part in _MADE if not (self._made(part) or (part == "reward" and self._scored))]
        return [name for name in names if not is_here(name)]

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        # First, so that a misspelt one is refused at once.
        given: dict[str, Any] = {part: self._given(part) for part in _MADE if not self._made(part)}
        corpus = self._corpus(log, strict)
        if corpus.reading:
            log(corpus.reading)
        if self.options["size"] == "auto":
            self.options["size"] = "mini" if corpus.name == EMBEDDED else "small"
        # Two copies of the same texts may differ in films and official split, so in our splits.
        facts = {"version": self.version, "corpus": [corpus.name, corpus.digest], "size": asdict(self.size)}
        facts |= {"splits": corpus.split_digest} if corpus.name != EMBEDDED else {}  # films go with its texts
        facts |= {"instance": self.options["instance"]} if self.options["instance"] else {}
        facts |= self._chosen
        # What is made here doesn't depend on a function, so editing one makes nothing anew.
        facts |= {part: "function" if part == "reward" and self._scored else one.digest for part, one in given.items()}
        folder = cached_folder("imdb", facts, lambda folder: self._build(folder, corpus, device, log), log)
        names = {"policy": f"scratch-{self.options['size']}", "reward": "trained"}
        names |= {part: f"{one.name}:{one.digest[:8]}" for part, one in given.items()}
        setting = f"corpus={corpus.name}:{corpus.digest[:8]} policy={names['policy']} reward={names['reward']} "
        setting += f"kl={self.options['kl']:g}"
        setting += "".join(f" {name}={value}" for name, value in self._chosen.items())
        setting += f" lora={self.options['lora']}" if self.options["lora"] else ""
        setting += f" precision={self.options['precision']}" if self._half else ""
        setting += f" instance={self.options['instance']}" if self.options["instance"] else ""
        self.settled = {"folder": str(folder), "setting": setting}
        if self._scored:
            self.settled["function"] = given["reward"].digest
        self._adopt()

    @property
    def size(self) -> Size:
        return SIZES[self.options["size"]]

    @property
    def _seed(self) -> int:
        """Of all that the instance has of its own."""
        return SPLIT_SEED + self.options["instance"]

    def _adopt(self) -> None:
        """Take over what was settled, here or by the process that prepared."""
        assert self.settled is not None
        self.folder, self.setting = Path(self.settled["folder"]), self.settled["setting"]
        preset = PRESETS[self.options["preset"]]
        self.default_steps, self.default_batch = self.size.steps, preset.batch
        if self.options["lora"]:
            self.learning_rate = preset.learning_rate or ADAPTERS_LEARNING_RATE
        elif not self._made("policy") and not is_scratch(self.options["policy"]):
            self.learning_rate = PRETRAINED_LEARNING_RATE

    def _corpus(self, log: Log, strict: bool) -> Corpus:
        """The corpus asked for; `auto` falls back to the embedded one, and `options` then names that."""
        wanted = self.options["corpus"]
        if wanted in ("auto", "hub"):
            try:
                corpus = hub_corpus()
                self.options["corpus"] = "hub"
                return corpus
            except HubUnreachable as reason:
                if wanted == "hub" or strict:
                    raise
                notice = f"corpus=auto: {reason}. Running on the EMBEDDED corpus instead: synthetic reviews, not IMDB."
                self.notices.append(notice)
                log(notice)
                self.options["corpus"] = wanted = "embedded"
        return embedded_corpus(self._seed) if wanted == "embedded" else read_corpus(wanted)

    def _build(self, folder: Path, corpus: Corpus, device: torch.device, log: Log) -> None:
        """Make what isn't given of vocabulary, policy and reward, and the judge, and choose the prompts."""
        size, window = self.size, self.size.prompt + self.size.horizon
        if self._made("policy") and (took := MADE_HERE.get(self.options["size"])):
            which = f", instance {self.options['instance']}" if self.options["instance"] else ""
            log(f"preset {self.options['preset']}{which}: models are trained here, once, and cached; measured: {took}")
        parts = split_corpus(corpus, self._seed)
        policy, vocabulary = self._given_policy()
        if vocabulary is None:
            learned = np.concatenate([parts[name] for name in _READ])
            log(f"training a vocabulary on {len(learned):,} reviews")
            vocabulary = train_vocabulary([corpus.texts[i] for i in learned], size.vocabulary)
            vocabulary.save(folder / "tokenizer.json")
        reward = self._given_reward(vocabulary)  # ahead of the training, so that a refusal comes at once
        ids = vocabulary.encode(corpus.texts)
        parts = {name: rows[[len(ids[i]) >= window for i in rows]] for name, rows in parts.items()}
        prompts = choose_prompts(ids, parts, size)
        save_file(prompts, folder / "prompts.safetensors")

        torch.manual_seed(self._seed)  # initial weights, the one thing that reads the global generator
        shape = self._shape(vocabulary)
        report: dict[str, Any] = {"vocabulary": len(vocabulary)}
        if policy is None:
            text = token_rows([ids[i] for name in _READ for i in parts[name]])
            report |= build_policy(folder, ScratchPolicy(*shape).to(device), text, size, log, self._seed)
        else:
            report["policy_parameters"] = parameters_of(policy)
        labels = torch.from_numpy(corpus.labels.astype(np.int64))
        if reward is None:
            reward, rows = ScratchReward(*shape).to(device), parts["reward"]
            build_reward(folder, reward, token_rows([ids[i] for i in rows]), labels[rows], size, log, self._seed)

        held_out = torch.tensor([ids[i][:window] for i in parts["validation"]], device=device)
        truth = labels[parts["validation"]]
        report["reviews"] = {name: len(rows) for name, rows in parts.items()}
        report["prompts"] = {name: len(rows) for name, rows in prompts.items()}
        if is_probability(reward):
            report["reward_accuracy_on_openings"] = accuracy(reward.to(device), held_out, truth)
        openings = vocabulary.decode(held_out.tolist())
        if corpus.name == EMBEDDED:
            gold = np.array([grammar.sentiment(text) for text in openings])
        else:
            log(f"training the gold judge on {len(parts['judge']):,} other reviews")
            judge = train_judge(*judged_windows(vocabulary, ids, parts["judge"], labels, window, self._seed))
            judge.save(folder / "judge.safetensors")
            gold = judge(openings)
        report["judge_accuracy_on_openings"] = float(((gold > 0.5) == truth.numpy()).mean())
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    # --- given parts ------------------------------------------------------------------------------------------

    def _made(self, part: str) -> bool:
        """Whether a part is made here, and not given by a hub id, a folder or a function."""
        return self.options[part] == _MADE[part]

    @property
    def _chosen(self) -> dict[str, str]:
        """What the options say of a given classifier's outputs."""
        return {name: self.options[name] for name in ("label", "activation") if name in self.options}

    @property
    def _half(self) -> bool:
        """Whether given models compute in bfloat16."""
        return self.options["precision"] == "bfloat16"

    @property
    def _scored(self) -> bool:
        """Whether the reward is a function."""
        return names_function(self.options["reward"])

    def _given(self, part: str) -> Any:
        """Name and digest of a given part."""
        return (
            load_function(self.options[part]) if part == "reward" and self._scored else locate_model(self.options[part])
        )

    def _given_policy(self) -> tuple[Any, Any]:
        """The given policy and its vocabulary; None and None where they are made here."""
        if self._made("policy"):
            return None, None
        length = self.size.prompt + self.size.horizon
        if is_scratch(self.options["policy"]):
            return load_scratch(self.options["policy"], length), load_saved_vocabulary(self.options["policy"])
        from gradebench.models.pretrained import load_policy  # the library of models takes seconds to load

        return load_policy(self.options["policy"], length, self._half, self.options["lora"])

    def _given_reward(self, vocabulary: AnyVocabulary) -> Any:
        """The given reward; None where it is made here."""
        if self._made("reward"):
            return None
        name = self.options["reward"]
        if self._scored:
            function = load_function(name)
            if self.settled is not None and self.settled["function"] != function.digest:
                raise InputError(f"the file of reward={name} was changed after the run had started; run again")
            function(["A film"], [" that I saw"])
            return TextReward(function, vocabulary.decode, self.size.prompt, vocabulary.end)
        if not shares_tokens(name, vocabulary):
            classifier = load_text_classifier(name, **self._chosen)
            return TextReward(classifier, vocabulary.decode, self.size.prompt, vocabulary.end)
        from gradebench.models.pretrained import load_reward

        return load_reward(name, vocabulary, self.size.prompt + self.size.horizon, self._half, **self._chosen)

    def _shape(self, vocabulary: AnyVocabulary) -> tuple[int, int, int, int, int]:
        """Arguments of a model made here."""
        size = self.size
        return len(vocabulary), size.width, size.layers, size.heads, size.prompt + size.horizon

    # --- in every process -------------------------------------------------------------------------------------

    def load(self, device: torch.device) -> None:
        self._adopt()
        require_whole(self.folder)
        policy, vocabulary = self._given_policy()
        self.vocabulary = vocabulary or load_vocabulary(self.folder / "tokenizer.json")
        shape = self._shape(self.vocabulary)
        self.policy = policy or _loaded(ScratchPolicy(*shape), self.folder / "policy.safetensors")
        self.policy.to(device)
        self.reference = self.policy.frozen()
        reward = self._given_reward(self.vocabulary)
        self.reward = reward or _loaded(ScratchReward(*shape), self.folder / "reward.safetensors")
        self.reward.to(device).requires_grad_(False)
        if not self.reward.differentiable:
            self.lacks = {"soft_reward": f"reward={self.options['reward']} reads texts, which have no derivative"}
        self.judge = None if self.options["corpus"] == "embedded" else load_judge(self.folder / "judge.safetensors")
        self.prompts = {k: v.to(device) for k, v in load_file(self.folder / "prompts.safetensors").items()}
        self.params = [p for p in self.policy.parameters() if p.requires_grad]
        self.sizes = {split: len(prompts) for split, prompts in self.prompts.items()}

    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> SequenceProblem:
        return SequenceProblem(
            self.policy,
            self.reward,
            self.prompts[split][index],
            self.size.horizon,
            len(self.vocabulary),
            self.reference,
            self.options["kl"],
            ledger,
            self.options["checkpointing"] or None,
            self.vocabulary.end,
        )

    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        index = torch.arange(min(EVALUATED, self.sizes[split]), device=rng.device)
        problem = self.problem(split, index)
        metrics, z = evaluate_sequences(problem, rng)
        texts = self.vocabulary.decode(problem.texts(z))
        gold = self.judge(texts) if self.judge else [grammar.sentiment(text) for text in texts]
        return metrics | {"gold_reward": float(np.mean(gold))}

    def samples(self, split: str, rng: torch.Generator) -> list[dict[str, Any]]:
        problem = self.problem(split, torch.arange(SAMPLED, device=rng.device))
        z = problem.sample(1, rng)
        with torch.no_grad():
            rewards = problem.raw_reward(z)[0].tolist()
        openings = self.vocabulary.decode(problem.prompts.tolist())
        texts = self.vocabulary.decode(problem.texts(z[0]))
        return [
            {"prompt": prompt, "text": text, "reward": reward}
            for prompt, text, reward in zip(openings, texts, rewards, strict=True)
        ]

    def save_policy(self, folder: Path) -> None:
        save_policy(self.policy, self.vocabulary, folder)

    def tuned(self, estimator: str) -> Mapping[str, Any] | None:
        if not (self._made("policy") and self._made("reward")):
            return None  # tuned on models made here
        recorded = json.loads((Path(__file__).parent / "data" / "imdb_tuned.json").read_text(encoding="utf-8"))
        corpus = "embedded" if self.options["corpus"] == "embedded" else "real"
        stored = recorded.get(corpus, {})
        own = stored.get("estimators", {}).get(estimator)
        return None if own is None else tuned_facts(stored) | own

    def digests(self) -> dict[str, str]:
        return digests_of(self.folder)

    def describe(self) -> dict[str, Any]:
        return {"options": self.options, **json.loads((self.folder / "report.json").read_text(encoding="utf-8"))}


def tuned_facts(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for every estimator of a record: its setting, its steps, its trials in words, its protocol."""
    protocol = stored["protocol"]
    facts = {name: protocol[name] for name in ("setting", "steps", "grid", "seeds")}
    return facts | {"trials": trials_in_words(len(protocol["grid"]), len(parse_seeds(protocol["seeds"])))}


def embedded_corpus(seed: int = SPLIT_SEED) -> Corpus:
    """Reviews from the grammar, whose parser is the gold judge."""
    reviews = grammar.generate_reviews(12_000, seed)
    labels = np.array([review.label for review in reviews], dtype=np.int8)
    return Corpus(EMBEDDED, [review.text for review in reviews], labels, [review.film for review in reviews])


def choose_prompts(ids: list[list[int]], parts: Mapping[str, np.ndarray], size: Size) -> dict[str, Tensor]:
    """Openings (prompts, P) for train, validation and test; none stands in two splits or twice in one."""
    chosen: dict[str, Tensor] = {}
    seen: set[tuple[int, ...]] = set()
    for split in ("test", "validation", "train"):
        prompts: list[tuple[int, ...]] = []
        for row in parts[split]:
            opening = tuple(ids[row][: size.prompt])
            if opening not in seen and len(prompts) < size.prompts:
                seen.add(opening)
                prompts.append(opening)
        if len(prompts) < 32:
            raise InputError(
                f"the corpus gives only {len(prompts)} {split} prompts of reviews with at least "
                f"{size.prompt + size.horizon} tokens, 32 are needed; use a larger corpus"
            )
        chosen[split] = torch.tensor(prompts)
    return chosen


def build_policy(
    folder: Path, policy: ScratchPolicy, text: TokenRows, size: Size, log: Log, seed: int
) -> dict[str, Any]:
    """Pretrain the policy and save it; returns facts for the report."""
    log(f"pretraining the policy: {size.policy_steps:,} steps, {parameters_of(policy):,} parameters")
    window = size.prompt + size.horizon
    loss = pretrain_policy(policy, text, window, size.policy_steps, 64, 3e-3, seed)
    save_file(policy.state_dict(), folder / "policy.safetensors")
    return {"policy_parameters": parameters_of(policy), "policy_loss_nats_per_token": loss}


def build_reward(
    folder: Path, reward: ScratchReward, text: TokenRows, labels: Tensor, size: Size, log: Log, seed: int
) -> None:
    """Train the reward on texts with labels (rows,) and save it."""
    log(f"training the reward model: {size.reward_steps:,} steps on {len(labels):,} labelled reviews")
    window = size.prompt + size.horizon
    train_classifier(reward, text, labels, window, size.reward_steps, 64, 1e-3, seed)
    save_file(reward.state_dict(), folder / "reward.safetensors")


def judged_windows(
    vocabulary: AnyVocabulary, ids: list[list[int]], rows: np.ndarray, labels: Tensor, window: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Texts as long as those that will be judged, with their review's label: four windows a review."""
    texts: TokenRows = token_rows([ids[i] for i in rows])
    index = torch.arange(len(rows)).repeat(4)
    windows = texts.windows(index, window, torch.Generator().manual_seed(seed))
    return vocabulary.decode(windows.tolist()), labels[rows][index].numpy().astype(np.int8)


def is_probability(reward: Any) -> bool:
    """Whether a reward is the probability that a text is positive, or one alike: not a function's or a raw output."""
    if isinstance(reward, ScratchReward):
        return True
    head = getattr(reward, "head", None) or getattr(getattr(reward, "score", None), "head", None)
    return isinstance(head, Head) and head.activation != "none"


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _loaded(module, path: Path):
    module.load_state_dict(load_file(path))
    return module.eval()
