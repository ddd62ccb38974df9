"""The language-model problem against enumeration: V = 3, T = 3, float64, a reward that is no sum over tokens.

Long because one file tests one module.
"""

import pytest
import torch
from scipy.stats import chi2, ncx2
from torch.nn import functional

from gradebench.core.problem import Ledger
from gradebench.core.sampling import exponential, generator, gumbel, harden
from gradebench.measurement.moments import flatten
from gradebench.measurement.sequence_metrics import distinct_bigrams, evaluate_sequences
from gradebench.plugins import registry
from gradebench.problems.sequence import SequenceProblem

ALPHA = 1e-3  # false alarms of each statistical test


@pytest.fixture
def problem(tiny_problem):
    return tiny_problem(beta=0.3)


def everything(problem):
    """All outcomes in every context, (V^T, B, T)."""
    return problem.support().unsqueeze(1).expand(-1, problem.contexts, -1).contiguous()


def one_hot(problem, z):
    return functional.one_hot(z, problem.categories).double()


def probabilities(problem, temperature=1.0):
    """Of every outcome in every context (V^T, B), from one policy call a prefix: no batch, no cache, no memo."""
    rows = []
    for outcome in problem.support().tolist():
        row = []
        for prompt in problem.prompts.tolist():
            p = torch.ones((), dtype=torch.float64)
            for t, token in enumerate(outcome):
                prefix = torch.tensor([prompt + outcome[:t]])
                logits = problem.policy(problem.policy.embed(prefix))[0][0, -1]
                p = p * (logits / temperature).softmax(-1)[token]
            row.append(p)
        rows.append(torch.stack(row))
    return torch.stack(rows).detach()


def chi_square(z, problem, p):
    """Statistic and degrees of freedom of sampled outcomes z (n, B, T) against p (V^T, B), summed over contexts."""
    place = problem.categories ** torch.arange(problem.horizon - 1, -1, -1)
    code = (z * place).sum(-1)  # (n, B), the row of `support`
    counts = functional.one_hot(code, len(p)).sum(0).T.double()
    expected = len(z) * p
    assert expected.min() > 5  # where the statistic is chi-square to good accuracy
    return float(((counts - expected).square() / expected).sum()), p.shape[1] * (len(p) - 1)


# --- the distribution


def test_support_lists_every_outcome_once(problem):
    support = problem.support()
    assert support.shape == (27, 3)
    assert len(support.unique(dim=0)) == 27
    assert (support.min(), support.max()) == (0, 2)


def test_support_of_one_position_is_the_vocabulary(tiny_problem):
    assert tiny_problem(horizon=1).support().tolist() == [[0], [1], [2]]


def test_a_problem_too_large_to_enumerate_says_so(tiny_problem):
    large = tiny_problem(vocabulary=5, horizon=6)
    assert "support" not in large.offers
    with pytest.raises(NotImplementedError, match="enumerated"):
        large.support()


def test_log_prob_is_the_policys_own_and_sums_to_one(problem):
    p = problem.log_prob(everything(problem)).sum(-1).exp()
    torch.testing.assert_close(p, probabilities(problem), rtol=0, atol=1e-14)
    torch.testing.assert_close(p.sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_samples_have_the_enumerated_probabilities(problem):
    n = 5000
    p = probabilities(problem)
    statistic, freedom = chi_square(problem.sample(n, generator("cpu", "chi-square")), problem, p)
    threshold = chi2.isf(ALPHA, freedom)
    warm = probabilities(problem, temperature=1.1)
    assert ncx2.sf(threshold, freedom, n * float(((warm - p).square() / p).sum())) > 0.99  # power at temperature 1.1
    assert statistic < threshold
    assert chi_square(problem.sample(n, generator("cpu", "chi-square")), problem, warm)[0] > threshold


def test_a_hard_rollout_draws_the_same_tokens_as_sample(problem):
    rng = generator("cpu", "stream")
    y = problem.rollout(lambda logits: harden(logits + gumbel(logits, rng)), 500)
    z = problem.sample(500, generator("cpu", "stream"))
    assert torch.equal(y.argmax(-1), z)
    assert torch.equal(y, one_hot(problem, z))


def test_samples_depend_on_the_generator_alone(problem):
    first, again, other = (problem.sample(50, generator("cpu", seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_relax_is_called_once_a_position_with_the_logits_of_the_tokens_fed_back(problem):
    seen = []

    def relax(logits):
        seen.append(logits)
        return (logits / 0.7).softmax(-1)

    y = problem.rollout(relax, 2)
    assert [logits.shape for logits in seen] == [(2, 4, 3)] * 3
    fresh = problem.select(torch.arange(4))
    torch.testing.assert_close(fresh.logits(y), torch.stack(seen, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(problem.logits(y), torch.stack(seen, 2), rtol=0, atol=0)


def test_features_are_those_before_each_position_without_a_graph(problem):
    z = everything(problem)
    features = problem.features(z)
    assert not features.requires_grad
    torch.testing.assert_close(features @ problem.policy.token.T.detach(), problem.logits(z).detach())
    first_token = z.unsqueeze(-1)[..., 0, :].expand(-1, -1, 4)
    for token in range(1, 3):  # nothing of the token itself, or what follows, is seen by the value of its prefix
        assert torch.equal(features[:, :, 0][first_token == token], features[:, :, 0][first_token == 0])


# --- reward and penalty


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_reward_of_ids_equals_soft_reward_of_their_one_hots(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    z = everything(problem)
    torch.testing.assert_close(problem.reward(z), problem.soft_reward(one_hot(problem, z)), rtol=0, atol=1e-13)


def test_reward_is_the_reward_model_of_prompt_and_continuation(tiny_problem):
    problem = tiny_problem()
    z = everything(problem)
    for k, b in [(0, 0), (5, 1), (26, 3)]:
        text = torch.cat([problem.prompts[b], z[k, b]])[None]
        alone = problem.reward_model(problem.reward_model.embed(text))
        torch.testing.assert_close(problem.reward(z)[k, b], alone[0])


def test_the_reward_is_neither_additive_nor_quadratic_in_the_tokens(tiny_problem):
    """What the conformance tests rely on: third differences over three positions don't vanish."""
    problem = tiny_problem()
    reward = problem.reward(everything(problem)).view(3, 3, 3, 4)
    third = (reward[1:] - reward[:-1]).diff(dim=1).diff(dim=2)
    assert third.abs().mean() > 0.05


def test_divergence_averages_to_that_of_the_sequence_distributions(problem):
    z = everything(problem)
    p = probabilities(problem)
    log_q = problem.select(torch.arange(4))
    log_q.policy = problem.reference
    expected = (p * (p.log() - log_q.log_prob(z).sum(-1))).sum(0)
    found = (p * problem.divergence(z).sum(-1)).sum(0)
    assert expected.min() > 0.1
    torch.testing.assert_close(found, expected)


def test_penalised_reward_is_the_reward_less_beta_times_the_divergence(problem):
    z = everything(problem)
    expected = problem.raw_reward(z) - 0.3 * problem.divergence(z).sum(-1)
    torch.testing.assert_close(problem.reward(z), expected)
    torch.testing.assert_close(problem.soft_reward(one_hot(problem, z)), expected)


def test_only_the_penalty_carries_a_gradient_of_the_reward(tiny_problem, problem):
    z = everything(problem)
    assert not tiny_problem().reward(z).requires_grad
    found = problem.grad(problem.reward(z).sum())
    expected = problem.grad(-0.3 * problem.divergence(z).sum())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_enumerated_gradient_equals_finite_differences_of_the_objective(tiny_problem, exact_gradient, beta):
    problem = tiny_problem(beta=beta)
    rng = generator("cpu", "direction")
    direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in problem.params]

    def objective(step):
        with problem.shifted([step * d for d in direction]), torch.no_grad():
            z = everything(problem)
            return float((probabilities(problem) * problem.reward(z)).sum(0).mean())

    h = 1e-5
    slope = (objective(h) - objective(-h)) / (2 * h)
    along = float(exact_gradient(problem) @ torch.cat([d.flatten() for d in direction]))
    assert along == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 40, 8192])
def test_the_exact_gradient_is_the_enumerated_one_in_parts_of_any_size(
    tiny_problem, exact_gradient, monkeypatch, beta, at_once
):
    monkeypatch.setattr("gradebench.core.problem.ENUMERATED_AT_ONCE", at_once)
    problem = tiny_problem(beta=beta)
    found = problem.exact_gradient()
    assert [g.shape for g in found] == [p.shape for p in problem.params]
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), exact_gradient(problem))


def test_parameter_names_are_those_of_the_policys_trained_parameters(tiny_problem):
    problem = tiny_problem()
    named = dict(problem.policy.named_parameters())
    assert [named[name] is p for name, p in zip(problem.parameter_names, problem.params, strict=True)] == [True] * len(
        problem.params
    )
    frozen = next(problem.policy.parameters()).requires_grad_(False)
    rest = problem.select(torch.arange(2))
    assert len(rest.parameter_names) == len(rest.params) == len(named) - 1 and not any(frozen is p for p in rest.params)


# --- replicas


def test_copies_share_the_contexts_out_and_give_one_gradient_each(problem, exact_gradient):
    """Context i belongs to copy i % copies, and a copy's gradient is that of its own mean over `copies`."""
    copies = problem.replicated(2)
    assert [p.shape for p in copies.params] == [(2, *p.shape) for p in problem.params]
    assert copies.parameter_names == problem.parameter_names and copies.offers == problem.offers
    found = torch.cat([g.reshape(2, -1) for g in copies.exact_gradient()], 1)
    for copy in range(2):
        alone = exact_gradient(problem.select(torch.tensor([copy, copy + 2])))
        torch.testing.assert_close(2 * found[copy], alone)


def test_copies_answer_as_the_problem_itself(problem):
    copies, z = problem.replicated(2), everything(problem)
    torch.testing.assert_close(copies.log_prob(z), problem.log_prob(z))
    torch.testing.assert_close(copies.reward(z), problem.reward(z))
    torch.testing.assert_close(copies.features(z), problem.features(z))
    drawn, plain = (one.sample(20, generator("cpu", 0)) for one in (copies, problem))
    assert torch.equal(drawn, plain)


def test_copies_leave_the_problem_and_its_ledger_alone(problem):
    before = [p.detach().clone() for p in problem.params]
    copies = problem.replicated(4)
    copies.grad(copies.log_prob(copies.sample(2, generator("cpu", 0))).mean())
    assert problem.ledger == Ledger()
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(problem.params, before, strict=True))


def test_copies_need_contexts_that_can_be_shared_out_and_stay_whole(problem):
    with pytest.raises(ValueError, match="4 contexts can't be dealt out evenly to 3 copies"):
        problem.replicated(3)
    with pytest.raises(NotImplementedError):
        problem.replicated(2).select(torch.tensor([0]))


def test_a_penalty_without_a_reference_is_refused(problem):
    problem.reference = None
    with pytest.raises(ValueError, match="reference"):
        problem.select(torch.tensor([0]))


def test_offers_say_what_can_be_done(tiny_problem):
    assert tiny_problem().offers == {"soft_reward", "support", "exact", "fixed_reward"}
    assert tiny_problem(beta=0.1).offers == {"soft_reward", "support", "exact"}
    assert tiny_problem(vocabulary=2).offers == tiny_problem().offers | {"binary"}
    assert tiny_problem(vocabulary=5, horizon=6).offers == {"soft_reward", "fixed_reward"}
    black_box = tiny_problem()
    black_box.reward_model.differentiable = False
    assert "soft_reward" not in black_box.select(torch.tensor([0])).offers


# --- the memo


def fresh_log_prob(problem, z):
    return problem.select(torch.arange(problem.contexts)).log_prob(z)


def step_in_place(problem):
    with torch.no_grad():
        problem.params[0].mul_(0.5)


def step_adam(problem, **options):
    for p in problem.params:
        p.grad = p.detach().clone()
    torch.optim.Adam(problem.params, lr=0.1, **options).step()


def step_load(problem):
    problem.policy.load_state_dict({name: value * 0.5 for name, value in problem.policy.state_dict().items()})


UPDATES = {
    "in place": step_in_place,
    "adam": step_adam,
    "adam, foreach": lambda problem: step_adam(problem, foreach=True),
    "load_state_dict": step_load,
}


@pytest.mark.parametrize("update", UPDATES)
def test_memo_is_not_stale_after_an_update_of_the_parameters(problem, update):
    z = everything(problem)
    before = problem.log_prob(z).detach()
    UPDATES[update](problem)
    assert not torch.allclose(problem.log_prob(z), before)
    assert torch.equal(problem.log_prob(z), fresh_log_prob(problem, z))


def test_memo_is_not_stale_inside_shifted_nor_after_it(problem):
    z = everything(problem)
    before = problem.log_prob(z).detach()
    with problem.shifted([torch.full_like(p, 0.1) for p in problem.params]):
        assert torch.equal(problem.log_prob(z), fresh_log_prob(problem, z))
        assert not torch.allclose(problem.log_prob(z), before)
    assert torch.equal(problem.log_prob(z), before)


def test_memo_of_a_pass_without_graph_does_not_cut_a_later_gradient(problem):
    z = everything(problem)
    with torch.no_grad():
        problem.log_prob(z)
    assert problem.grad(problem.log_prob(z)[..., 1].sum())[0].abs().max() > 0
    assert problem.divergence(z).requires_grad


def test_memo_does_not_answer_for_other_tokens(problem):
    z, other = problem.sample(2, generator("cpu", 0)), problem.sample(2, generator("cpu", 1))
    problem.log_prob(z)
    for tokens in (other, z):
        torch.testing.assert_close(problem.log_prob(tokens), fresh_log_prob(problem, tokens), rtol=0, atol=1e-12)


def test_memo_does_not_answer_for_tokens_that_were_overwritten(problem):
    z = problem.sample(2, generator("cpu", 0))
    problem.log_prob(z)
    z.copy_(2 - z)
    assert torch.equal(problem.log_prob(z), fresh_log_prob(problem, z))


def test_memo_does_not_outlive_its_freed_graph(problem):
    z = everything(problem)
    first = problem.grad(problem.log_prob(z).sum())
    second = problem.grad(problem.log_prob(z).sum())
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_part_of_the_contexts_answers_for_its_rows(problem):
    z = everything(problem)
    index = torch.tensor([2, 0])
    whole, part = problem.log_prob(z), problem.select(index)
    torch.testing.assert_close(part.log_prob(z[:, index]), whole[:, index], rtol=0, atol=1e-13)
    torch.testing.assert_close(part.reward(z[:, index]), problem.reward(z)[:, index], rtol=0, atol=1e-13)
    assert part.params == problem.params
    assert part.ledger is problem.ledger


# --- the ledger


def test_ledger_counts_samples_rewards_and_passes(tiny_problem):
    problem = tiny_problem()
    z = problem.sample(5, generator("cpu", 0))
    assert problem.ledger == Ledger(tokens_sampled=5 * 4 * 3, forward_passes=1)
    problem.reward(z)
    assert problem.ledger == Ledger(reward_calls=20, tokens_sampled=60, forward_passes=1)
    value = problem.log_prob(z).sum()
    problem.features(z)  # the same pass answers
    problem.logits(z)
    assert problem.ledger == Ledger(reward_calls=20, tokens_sampled=60, forward_passes=2)
    problem.grad(value)
    assert problem.ledger == Ledger(20, 60, 2, 1)


def test_ledger_counts_a_rollout_as_one_pass_that_its_log_prob_shares(tiny_problem):
    problem = tiny_problem()
    y = problem.rollout(lambda logits: logits.softmax(-1), 2)
    problem.logits(y)
    problem.soft_reward(y)
    assert problem.ledger == Ledger(reward_calls=8, tokens_sampled=24, forward_passes=1)


def test_ledger_is_shared_by_the_parts_of_a_problem(tiny_problem):
    problem = tiny_problem()
    problem.select(torch.tensor([1, 2])).sample(3, generator("cpu", 0))
    assert problem.ledger.tokens_sampled == 3 * 2 * 3


# --- evaluation


def test_distinct_bigrams_is_the_share_of_different_pairs():
    assert distinct_bigrams([[0, 1, 0, 1], [1, 0]]) == 2 / 4
    assert distinct_bigrams([[1], []]) == 0.0


def test_evaluation_reports_the_sampled_texts(problem):
    metrics, z = evaluate_sequences(problem, generator("cpu", 0))
    assert torch.equal(z, problem.sample(1, generator("cpu", 0))[0])
    log_p = problem.logits(z[None]).log_softmax(-1)[0]
    prior = problem.select(torch.arange(4))
    prior.policy = problem.reference
    assert metrics["reward"] == pytest.approx(problem.raw_reward(z[None]).mean().item())
    assert metrics["entropy"] == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item())
    assert metrics["kl"] == pytest.approx(problem.divergence(z[None]).sum(-1).mean().item())
    assert metrics["reference_nll"] == pytest.approx(-prior.log_prob(z[None]).mean().item())
    assert metrics["distinct_2"] == distinct_bigrams(z.tolist())


# --- draws by a rule of the estimator's own


def gumbel_max(rng):
    return lambda logits: (logits.log_softmax(-1) - exponential(logits, rng).log()).argmax(-1)


def test_drawing_by_gumbel_max_is_sampling(tiny_problem):
    problem = tiny_problem(contexts=4)
    drawn = problem.draw(gumbel_max(generator("cpu", 1)), 3)
    assert torch.equal(drawn, problem.sample(3, generator("cpu", 1)))


def test_a_draw_reads_the_logits_of_its_own_prefix(tiny_problem):
    problem, seen, rng = tiny_problem(contexts=4), [], generator("cpu", 1)

    def choose(logits):
        seen.append(logits)
        return gumbel_max(rng)(logits)

    z = problem.draw(choose, 3)
    torch.testing.assert_close(torch.stack(seen, 2), problem.logits(z).detach())


@pytest.mark.parametrize("copies", [1, 2])
def test_a_beam_continues_the_prefixes_of_its_parents(tiny_problem, copies):
    problem, seen, rng = tiny_problem(contexts=4), [], generator("cpu", 1)
    problem = problem.replicated(copies) if copies > 1 else problem
    parents = torch.tensor([[2, 1, 0, 0], [0, 0, 2, 1], [0, 2, 2, 1]])

    def choose(logits):
        seen.append(logits)
        return gumbel_max(rng)(logits), parents

    z = problem.draw(choose, 3)
    last = problem.logits(z).detach()[:, :, -1]
    before = seen[-1].gather(0, parents.unsqueeze(-1).expand_as(seen[-1]))
    torch.testing.assert_close(before, last)  # the last position's logits, dealt out to who continues them


# --- models in half precision


@pytest.mark.parametrize("how", ["sequential", "parallel"])
@pytest.mark.parametrize("name", ["reinforce", "rloo", "ppo", "grpo", "rebar", "grade", "grade-ste", "gumbel-rao"])
def test_models_in_half_precision_are_drawn_from_and_scored_in_single(tiny_problem, monkeypatch, name, how):
    """The gradient is that of float64 but for the rounding of weights and activations; the tokens are the same."""
    monkeypatch.setattr(SequenceProblem, "straight_through", how)
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        problem = tiny_problem(contexts=8, beta=0.1)
        for module in (problem.policy, problem.reward_model, problem.reference):
            module.to(torch.bfloat16).to(dtype)  # one rounding of the weights, then both compute on the same ones
        estimator = registry.resolve("estimators", name).create()
        estimator.init(problem)
        estimator.eval()
        gradient = estimator.gradient(problem, generator("cpu", 0)).grad
        assert all(g.dtype == dtype for g in gradient)
        z = problem.sample(2, generator("cpu", 1))
        assert problem.logits(z).dtype == problem.reward(z).dtype == torch.promote_types(dtype, torch.float32)
        found[dtype] = torch.cat([g.double().flatten() for g in gradient])
    exact, rounded = found[torch.float64], found[torch.bfloat16]
    least = 0.8 if name == "grade" else 0.98  # soft tokens are rounded before they are fed back, hard ones are not
    assert torch.cosine_similarity(exact, rounded, 0) > least


@pytest.mark.parametrize("name", ["reinforce", "rloo", "ppo", "relax", "rebar", "grade", "grade-ste"])
def test_checkpointing_changes_no_gradient(tiny_problem, name):
    """Pieces of two rows, of eight: with first and second derivatives, of scores and of paths."""
    found = []
    for rows_at_once in (None, 2):
        problem = tiny_problem(contexts=4, horizon=3, beta=0.3)
        problem.rows_at_once = rows_at_once
        estimator = registry.resolve("estimators", name).create().train()
        torch.manual_seed(0)
        estimator.init(problem)
        estimate = estimator.double().gradient(problem, generator("cpu", "draws"))
        own = torch.zeros(1)
        if estimate.own_loss is not None:
            own = torch.autograd.grad(estimate.own_loss, list(estimator.parameters()), materialize_grads=True)
        found.append(flatten([*estimate.grad, *own]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)
    assert found[0].norm() > 1e-6


def test_checkpointing_computes_pieces_again(tiny_problem):
    """Two pieces: each read when it is computed, and once more when it is differentiated."""
    passes = []
    for rows_at_once in (None, 2):
        problem = tiny_problem(contexts=4, horizon=3)
        problem.rows_at_once = rows_at_once
        z = problem.sample(1, generator("cpu", 0)).clone()  # not the tokens whose pass was kept
        seen = []
        problem.policy.register_forward_pre_hook(lambda *_: seen.append(1))  # noqa: B023 - the list of its own turn
        problem.grad(problem.log_prob(z).sum())
        passes.append(len(seen))
    assert passes == [1, 4]


def test_prompts_of_several_samples_are_read_once_and_mean_the_same(problem, monkeypatch):
    """The same sequences as samples of few contexts, or as one sample of many, which share nothing."""
    monkeypatch.setattr("gradebench.problems.reading.WORTH_A_PASS", 1)
    z = problem.sample(5, generator("cpu", 0))  # (n, B, T)
    apart = problem.select(torch.arange(problem.contexts).repeat(5))
    rows = z.reshape(1, -1, problem.horizon)
    torch.testing.assert_close(problem.logits(z).flatten(0, 1), apart.logits(rows)[0], rtol=0, atol=1e-12)
    together, alone = (
        flatten(p.grad((p.log_prob(draws).sum(-1) + p.reward(draws)).square().mean()))
        for p, draws in ((problem, z), (apart, rows))
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    read = []
    hook = problem.policy.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2]))
    problem.logits(z.clone())
    hook.remove()
    prompt = problem.prompts.shape[1]
    assert read == [(problem.contexts, prompt - 1), (5 * problem.contexts, problem.horizon)]
