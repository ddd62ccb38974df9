"""A variational autoencoder of small digits with categorical latents, so f depends on the parameters."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradebench import Ledger, Problem, Range, Task
from gradebench.core.options import text_of
from gradebench.core.problem import ENUMERABLE, Choose, Relax, RolloutHints, independent_draws, independent_tokens
from gradebench.core.sampling import categorical
from gradebench.core.task import Log
from gradebench.models.replicas import Replicas

SPLITS = {"train": 1000, "validation": 250, "test": 500}  # images
START_SEED = 0  # of the split and of the initial weights
THRESHOLD = 8  # of 16 levels of grey


class Encoder(nn.Module):
    """q(z|x): images (N, P) to logits (N, T, V) and hidden features (N, width)."""

    def __init__(self, pixels: int, width: int, latents: int, categories: int):
        super().__init__()
        self.latents, self.categories, self.feature_size = latents, categories, width
        self.hidden = nn.Linear(pixels, width)
        self.output = nn.Linear(width, latents * categories)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = functional.silu(self.hidden(images))
        return self.output(features).unflatten(-1, (self.latents, self.categories)), features


class Decoder(nn.Module):
    """p(x|z): one-hots (N, T, V), hard or relaxed, to Bernoulli logits (N, P)."""

    def __init__(self, pixels: int, width: int, latents: int, categories: int):
        super().__init__()
        self.hidden = nn.Linear(latents * categories, width)
        self.output = nn.Linear(width, pixels)

    def forward(self, codes: Tensor) -> Tensor:
        return self.output(functional.silu(self.hidden(codes.flatten(-2))))


class LatentProblem(Problem):
    """J = mean over images of E_{z ~ q(.|x)} [ log p(x|z) - sum_t KL(q(.|x)_t || uniform) ], the ELBO in nats.

    The T latents are independent given x. The penalty is the exact divergence, not a sample of it; it doesn't depend on
    z, and its gradient is part of grad f. Encoder and decoder are both trained. The ledger counts an encoder pass for
    logits and for samples; the pass in f is part of the reward call.

    images (B, P) of 0 and 1.
    """

    def __init__(
        self,
        encoder: Encoder | Replicas,
        decoder: Decoder | Replicas,
        images: Tensor,
        horizon: int,
        categories: int,
        ledger: Ledger | None = None,
    ):
        self.encoder, self.decoder, self.images = encoder, decoder, images
        super().__init__([p for _, p in self._named()], ledger)
        self.contexts, self.horizon, self.categories = len(images), horizon, categories
        self.feature_size = encoder.feature_size
        offers = {"soft_reward", "independent"}
        offers |= {"support", "exact"} if categories**horizon <= ENUMERABLE else set()
        offers |= {"binary"} if categories == 2 else set()
        self.offers = frozenset(offers)

    def _named(self) -> list[tuple[str, Tensor]]:
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return [(f"{part}.{name}", p) for part, module in parts.items() for name, p in module.named_parameters()]

    @property
    def parameter_names(self) -> list[str]:
        return [name for name, _ in self._named()]

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return categorical(self._posterior().expand(n, -1, -1, -1), rng)

    @torch.no_grad()
    def draw(self, choose: Choose, n: int) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return independent_draws(self.encoder(self.images)[0].expand(n, -1, -1, -1), choose)

    def logits(self, z: Tensor) -> Tensor:
        self.ledger.forward_passes += 1
        return self.encoder(self.images)[0].expand(len(z), -1, -1, -1)

    def features(self, z: Tensor) -> Tensor:
        """The encoder's hidden layer at every position, because latents don't depend on earlier ones."""
        self.ledger.forward_passes += 1
        with torch.no_grad():
            features = self.encoder(self.images)[1]  # (B, D)
        return features[:, None].expand(*z.shape, -1)

    def relaxed_draws(self, relax: Relax, n: int, hints: RolloutHints) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return independent_tokens(self.encoder(self.images)[0].expand(n, -1, -1, -1), relax, hints.together)

    def reward(self, z: Tensor) -> Tensor:
        return self.soft_reward(functional.one_hot(z, self.categories).to(self.images))

    def soft_reward(self, y: Tensor) -> Tensor:
        self.ledger.reward_calls += len(y) * self.contexts
        found = self.log_likelihood(y) - self.prior_divergence()
        self.ledger.saw("reward", found, len(y) * self.contexts)
        return found

    def log_likelihood(self, y: Tensor) -> Tensor:
        """log p(x|z) in nats, (n, B), for one-hots (n, B, T, V)."""
        logits = self.decoder(y.flatten(0, 1)).view(len(y), self.contexts, -1)
        return log_bernoulli(self.images, logits).sum(-1)

    def prior_divergence(self) -> Tensor:
        """KL(q(.|x) || uniform) in nats, (B,)."""
        return self.horizon * math.log(self.categories) - self.entropy().sum(-1)

    def entropy(self) -> Tensor:
        """The entropy of every latent given its image, in nats, (B, T)."""
        log_p = self._posterior()
        return -(log_p.exp() * log_p).sum(-1)

    def select(self, index: Tensor) -> "LatentProblem":
        if isinstance(self.encoder, Replicas):
            raise NotImplementedError("a part of the contexts would deal them out to other copies")
        return self._like(self.encoder, self.decoder, self.images[index], self.ledger)

    def replicated(self, copies: int) -> "LatentProblem":
        return self._like(Replicas(self.encoder, copies), Replicas(self.decoder, copies), self.images, None)

    def support(self) -> Tensor:
        if "support" not in self.offers:
            return super().support()
        values = torch.arange(self.categories, device=self.images.device)
        return torch.cartesian_prod(*[values] * self.horizon).view(-1, self.horizon)

    def log_evidence(self) -> Tensor:
        """log p(x) = log sum_z p(z) p(x|z) in nats, (B,), exact by enumeration of all outcomes."""
        codes = functional.one_hot(self.support(), self.categories).to(self.images)  # (V^T, T, V)
        logits = self.decoder(codes)  # (V^T, P)
        # log p(x|z) is affine in x, so one product serves all pairs of images and outcomes
        log_p = self.images @ logits.T + functional.logsigmoid(-logits).sum(-1)  # (B, V^T)
        return log_p.logsumexp(-1) - math.log(len(codes))

    def _posterior(self) -> Tensor:
        """log q(z_t|x), (B, T, V)."""
        return self.encoder(self.images)[0].log_softmax(-1)

    def _like(self, encoder, decoder, images: Tensor, ledger: Ledger | None) -> "LatentProblem":
        return LatentProblem(encoder, decoder, images, self.horizon, self.categories, ledger)


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x) in nats of bits x given their logits, elementwise; twice differentiable."""
    return x * logits + functional.logsigmoid(-logits)


class DigitsVae(Task):
    """Handwritten digits of 8x8 black and white pixels through a few categorical latents (variational autoencoder).

    Reward is the ELBO, gold reward the log-likelihood of which it is a lower bound, both in nats per image.
    Data: the test part of the UCI set "Optical Recognition of Handwritten Digits", which scikit-learn ships. In black
    and white 1750 of its 1797 images are distinct; those are used, so that no test image is a train image.
    """

    default_steps = 300
    default_batch = 32
    learning_rate = 1e-2
    sizes = SPLITS

    def __init__(
        self,
        latents: Annotated[int, Range(1), "categorical latents of an image"] = 4,
        categories: Annotated[int, Range(2), "values of each"] = 8,
        width: Annotated[int, Range(1), "of the hidden layers of encoder and decoder"] = 64,
    ):
        self.options = {"latents": latents, "categories": categories, "width": width}

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        self.setting = " ".join(f"{name}={text_of(value)}" for name, value in self.options.items())

    def load(self, device: torch.device) -> None:
        images = binary_digits().to(device)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(START_SEED))
        self.rows = dict(zip(SPLITS, order.split(list(SPLITS.values())), strict=True))
        self.images = {split: images[rows.to(device)] for split, rows in self.rows.items()}
        shape = images.shape[1], self.options["width"], self.options["latents"], self.options["categories"]
        with torch.random.fork_rng(devices=[]):  # initial weights use the global generator, whose state is restored
            torch.default_generator.manual_seed(START_SEED)
            self.encoder, self.decoder = Encoder(*shape).to(device), Decoder(*shape).to(device)
        self.params = [*self.encoder.parameters(), *self.decoder.parameters()]

    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> LatentProblem:
        horizon, categories = self.options["latents"], self.options["categories"]
        return LatentProblem(self.encoder, self.decoder, self.images[split][index], horizon, categories, ledger)

    @torch.no_grad()
    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """Metrics of a whole split: the ELBO with one hard sample per image; all else is exact.

        reward, gold_reward and kl in nats per image, entropy in nats per latent; gold_reward only if outcomes can be
        enumerated.
        """
        problem = self.problem(split, torch.arange(self.sizes[split], device=rng.device))
        metrics = {
            "reward": float(problem.reward(problem.sample(1, rng)).mean()),
            "kl": float(problem.prior_divergence().mean()),
            "entropy": float(problem.entropy().mean()),
        }
        if "support" in problem.offers:
            metrics["gold_reward"] = float(problem.log_evidence().mean())
        return metrics


def binary_digits() -> Tensor:
    """The distinct images (1750, 64), 1 where a pixel has at least half of the ink."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    return (torch.from_numpy(load_digits().data) >= THRESHOLD).float().unique(dim=0)
