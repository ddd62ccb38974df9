"""The data dictionary: every table that GradeBench writes, its columns and metrics with unit, direction and meaning.

docs/tables.md is generated from here (`python docs/hooks.py`). A row below is one column, or several that share
a description: names | kind | unit | the better direction | when it is empty | meaning.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table, or an entry of a line of JSON."""

    name: str
    kind: str  # text, number, whole (number), truth (True or False); in JSON also list and object
    unit: str  # "1" for a plain number, "" for what has no unit
    better: str  # "higher", "lower", or "" where neither is better
    empty: str  # when it is empty; "" for never
    meaning: str


@dataclass(frozen=True)
class Table:
    """A file, what one row of it is, and its columns in order."""

    file: str
    row: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


@dataclass(frozen=True)
class Metric:
    """A name in the column `metric`: one quantity, whatever the table."""

    name: str
    unit: str
    better: str
    where: str  # its phase in metrics.parquet, or probes.csv
    meaning: str


def _rows(text: str, width: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().split("\n")]
    if wrong := [row for row in rows if len(row) != width]:
        raise ValueError(f"the dictionary has a row of {len(wrong[0])} entries: {wrong[0]}")
    return rows


def _columns(text: str) -> tuple[Column, ...]:
    return tuple(Column(name, *rest) for names, *rest in _rows(text, 6) for name in names.split(", "))


def _table(file: str, row: str, *columns: tuple[Column, ...]) -> Table:
    return Table(file, row, tuple(column for part in columns for column in part))


# fmt: off
# The objective has no unit, so its gradient has that of 1/theta. Debiased squares may be negative when small.
METRICS = {row[0]: Metric(*row) for row in _rows("""
objective                                | 1              | higher | evaluation | reward - beta kl: what estimators maximize and are ranked by
reward                                   | 1              | higher | evaluation | mean reward, without the penalty
gold_reward                              | 1              | higher | evaluation | mean score of an independent judge that training never uses
kl                                       | nats/sequence  | lower  | evaluation | divergence from the policy before training
entropy                                  | nats/token     |        | evaluation | of the policy, at the tokens that it samples
distinct_2                               | 1              |        | evaluation | share of different pairs among neighbouring tokens
reference_nll                            | nats/token     |        | evaluation | surprise of the policy before training at the sampled text
gradient_variance                        | 1/theta^2      | lower  | probe      | trace of the covariance of one batch's gradient
gradient_variance_relative               | 1              | lower  | probe      | gradient_variance / squared norm of the true gradient
gradient_bias_squared                    | 1/theta^2      | lower  | probe      | squared distance between the mean estimate and the true gradient, debiased
gradient_cosine                          | 1              | higher | probe      | cosine between the mean estimate and the true gradient
gradient_snr                             | 1              | higher | probe      | squared norm of the true gradient / gradient_variance
gradient_norm_squared                    | 1/theta^2      |        | probe      | squared norm of the mean estimate, debiased
gradient_reference_dot                   | 1/theta^2      |        | probe      | inner product of the mean estimate and the true gradient
gradient_reference_norm_squared          | 1/theta^2      |        | probe      | squared norm of the true gradient, debiased
gradient_bias_relative                   | 1              | lower  | probe      | gradient_bias_squared / squared norm of the true gradient
gradient_mse                             | 1/theta^2      | lower  | probe      | mean squared error of one batch's gradient: variance + squared bias
gradient_mse_relative                    | 1              | lower  | probe      | gradient_mse / squared norm of the true gradient
gradient_direction_error                 | 1              | lower  | probe      | the relative mean squared error after scaling by the best constant factor
gradient_variance_relative_own           | 1              | lower  | probe      | gradient_variance / squared norm of the mean estimate, a denominator that differs between estimators
info_clipped_tokens                      | 1              |        | train, probe | share of tokens that the estimator's own ratio clipping affects
gradient_variance_sampling               | 1/theta^2      | lower  | probe      | the part of gradient_variance with prompts fixed
gradient_variance_prompts                | 1/theta^2      | lower  | probe      | the part of gradient_variance from the choice of prompts
gradient_variance_by_batch               | 1/theta^2      | lower  | probes.csv | gradient_variance with a batch of `samples`
gradient_variance_slope                  | 1              | lower  | probes.csv | slope of ln gradient_variance against ln batch; -1 for independent samples
gradient_variance_times_seconds          | s/theta^2      | lower  | probes.csv | gradient_variance times the seconds of one gradient: the time that a given precision takes
gradient_variance_times_reward_calls     | calls/theta^2  | lower  | probes.csv | the same with reward calls
gradient_variance_times_tokens_sampled   | tokens/theta^2 | lower  | probes.csv | the same with sampled tokens
gradient_variance_times_forward_passes   | passes/theta^2 | lower  | probes.csv | the same with forward passes
gradient_variance_times_backward_passes  | passes/theta^2 | lower  | probes.csv | the same with backward passes
cost_seconds                             | s              | lower  | probes.csv | seconds of one gradient
cost_reward_calls                        | calls          | lower  | probes.csv | sequences whose reward one gradient asks for
cost_tokens_sampled                      | tokens         | lower  | probes.csv | tokens that one gradient samples
cost_forward_passes                      | passes         | lower  | probes.csv | forward passes of one gradient
cost_backward_passes                     | passes         | lower  | probes.csv | backward passes of one gradient
seconds_per_step                         | s              | lower  | train      | seconds of the estimator and the optimizer, evaluations left out, mean over steps
seconds                                  | s              | lower  | train      | the same, since the start of the training
updates                                  | updates        |        | train      | updates of the policy since the start
clipped_updates                          | 1              |        | train      | share of updates whose gradient was clipped
clip_factor                              | 1              |        | train      | mean factor by which clipping scaled the gradient; 1 is no clipping
reward_calls                             | calls          | lower  | train      | sequences whose reward was asked for since the start
tokens_sampled                           | tokens         | lower  | train      | tokens sampled since the start
forward_passes                           | passes         | lower  | train      | forward passes since the start
backward_passes                          | passes         | lower  | train      | backward passes since the start
peak_memory_bytes                        | bytes          | lower  | train      | most memory that the cell's process held
updates_refused                          | updates        | lower  | train      | updates left out because the gradient wasn't finite
own_updates_refused                      | updates        | lower  | train      | the same for the estimator's own parameters, such as a critic
""", 5)}
METRIC_UNITS = {name: metric.unit for name, metric in METRICS.items()}

_CELL = _columns("""
run_id           | text  |   |  |  | the run: the name of its folder
cell_id          | text  |   |  |  | the cell: one estimator on one task with one seed; its folder in cells/
task             | text  |   |  |  | the task's name with the options given
setting          | text  |   |  |  | what actually ran: corpus, policy, reward, penalty
estimator        | text  |   |  |  | the estimator's name with the options given
""")
_SOURCE = _columns("""
estimator_params | text  |   |  |  | all options of the estimator, as JSON
estimator_source | text  |   |  |  | the package and version, or the file, of the estimator
""")
_SEED = _columns("seed | whole |   |  |  | of initial parameters, prompts and noise; estimators with the same seed share them")
_VALUE = _columns("""
phase   | text   |  |  |                                          | train, evaluation or probe
split   | text   |  |  |                                          | of prompts: train, validation or test
step    | whole  | steps |  |                                     | training steps done before the measurement
metric  | text   |  |  | the cell has no numbers (skipped, failed) | the quantity: see "Metrics"
value   | number | that of `unit` | that of the metric | it could not be measured, or is only noise | its value
unit    | text   |  |  | the metric is a plug-in's own             | unit of `value`
status  | text   |  |  |                                          | of the cell: ok, skipped, failed, diverged, timeout, out of memory, interrupted
""")
RATES = _columns("""
learning_rate | number | 1 |  | not known (a run of an earlier version) | of the cell's training
rate_source   | text   |   |  | not known                               | tuned, given, borrowed, or the task's own; only estimators with the same source are compared
""")
LABELS = _columns("""
control_of    | text |  |  | the cell is no A/A control | the estimator that it is the A/A control of (`--aa-test`)
trial_of      | text |  |  | the cell is no trial       | the estimator that it is a trial of (`gradebench tune`)
trial_options | text |  |  | the trial changes none     | options that the trial changes, name=value
""")
# Facts of the cell, the same in all of its rows.
FACTS = _columns("""
steps   | whole | steps     |  | not known (a run of an earlier version) | of the cell's training
batch   | whole | sequences |  | not known                               | sampled sequences a step
version | text  |           |  | not known                               | of GradeBench
commit  | text  |           |  | not from a git checkout                 | of GradeBench's checkout, "+ changes" if its files differ
date    | text  |           |  | not known                               | when the cell ended, in UTC
reason  | text  |           |  | the cell is ok and lacks nothing        | why it was skipped or failed, or what it lacks
""")
METRICS_TABLE = _table(
    "metrics.parquet, metrics.csv", "one value of one cell", _CELL, _SOURCE, _SEED, _VALUE, RATES, LABELS, FACTS
)
METRICS_COLUMNS = [column.name for part in (_CELL, _SOURCE, _SEED, _VALUE) for column in part]
RATE_COLUMNS = [column.name for column in RATES]  # of metrics, except of older versions
FACT_COLUMNS = [column.name for column in FACTS]  # likewise

_PLACE = _columns("""
task    | text |  |  | | as in metrics
setting | text |  |  | | as in metrics
""")
_PAIR = _columns("""
metric                | text   |  |  |                               | what is compared; gradient_variance by its natural logarithm
split                 | text   |  |  |                               | of prompts
estimator_a           | text   |  |  |                               | the one with the larger mean
estimator_b           | text   |  |  |                               | the other
n_pairs               | whole  | seeds |  |                          | seeds that both have
mean_difference       | number | that of `unit` | | no pairs             | mean of a - b over seeds; for gradient_variance, exp of it is a ratio
ci_low, ci_high       | number | that of `unit` | | fewer than two pairs | 95 % interval of mean_difference, by inverting the test
effect_size           | number | 1 |  | fewer than three pairs        | mean difference / standard deviation of differences, bias-corrected
test                  | text   |  |  |                               | the test, and whether its p is exact
p_value               | number | 1 | lower | fewer than two pairs, or rates that make the pair incomparable | two-sided
p_holm                | number | 1 | lower | as p_value, and for "same draws" | after Holm's correction over the family
smallest_attainable_p | number | 1 |  | no pairs                      | the smallest p that so many pairs can give
verdict               | text   |  |  |                               | "a higher", "b higher", "not distinguishable", "underpowered", "same draws", or why the two can't be compared
family                | whole  | comparisons |  |                    | how many comparisons Holm's correction is over
unit                  | text   |  |  | the metric is a plug-in's own | unit of mean_difference and its interval; "ln" for the logarithm of a ratio
better                | text   |  |  | neither direction is better   | direction of the metric: higher or lower
winner                | text   |  |  | neither is significantly better | the estimator that is significantly better, by direction and verdict
""")
TESTS = _table("tests.csv, controls.csv", "one pair of estimators by one metric", _PLACE, _PAIR)
TESTS_COLUMNS = TESTS.names
FRONTIER_TESTS = _table("frontier_tests.csv", "one pair of estimators, by the area under their frontiers", _PLACE, _PAIR, _columns(
    "kl_from, kl_to | number | nats/sequence | | no common range | the range of KL that all seeds of both reach"
))

LEADERBOARD = _table("leaderboard.csv", "one estimator on one task", _columns("""
rank       | whole  |  | lower | the ranking metric wasn't measured | place by the mean of the ranking metric; ties by name
tier       | whole  |  | lower | no rank, incomparable rates, or with baselines | group of estimators not significantly different from its first
letters    | text   |  |  | as tier               | two estimators share a letter exactly if they aren't significantly different
estimator  | text   |  |  |                       | as in metrics
same_as    | text   |  |  | its draws are its own | the estimator with bit-identical evaluations
task       | text   |  |  |                       | as in metrics
setting    | text   |  |  |                       | as in metrics
steps      | whole  | steps |  | nothing was evaluated | the last step at which test prompts were evaluated
ranked_by  | text   |  |  |                       | the metric that ranks
n_seeds    | whole  | seeds |  |                  | ok seeds that have the ranking metric
status     | text   |  |  |                       | "ok", or how many cells have each status
test_objective_mean                    | number | 1 | higher | not measured | mean over seeds on test prompts, at `steps`
test_objective_ci_low, test_objective_ci_high | number | 1 | | one seed | its 95 % interval
test_reward_mean                       | number | 1 | higher | not measured | mean reward on test prompts
test_reward_ci_low, test_reward_ci_high | number | 1 | | one seed       | its 95 % interval
test_gold_reward_mean                  | number | 1 | higher | no judge     | mean gold reward on test prompts
generalization_gap                     | number | 1 | lower  | not measured | reward on train prompts - reward on test prompts
gold_gap                               | number | 1 | lower  | no judge     | reward - gold reward on test prompts
kl_mean                                | number | nats/sequence | lower | not measured | mean divergence from the reference on test prompts
gradient_mse_relative                  | number | 1 | lower  | only noise   | as in metrics, pooled over seeds; geometric mean over checkpoints
gradient_mse_relative_ci_low, gradient_mse_relative_ci_high | number | 1 | | one seed | its 95 % interval
gradient_direction_error               | number | 1 | lower  | only noise   | as in metrics, pooled over seeds; mean over checkpoints
gradient_direction_error_ci_low, gradient_direction_error_ci_high | number | 1 | | one seed | its 95 % interval
gradient_variance                      | number | 1/theta^2 | lower | not probed | as in metrics; geometric mean over seeds and checkpoints
gradient_variance_relative             | number | 1 | lower  | only noise   | as in metrics, pooled over seeds; geometric mean over checkpoints
gradient_variance_relative_ci_low, gradient_variance_relative_ci_high | number | 1 | | one seed | its 95 % interval
gradient_bias_squared                  | number | 1 | lower  | only noise   | old name of gradient_bias_relative, kept for one version: in metrics this name is absolute
gradient_bias_squared_ci_low, gradient_bias_squared_ci_high | number | 1 | | one seed | old names of its interval
gradient_cosine                        | number | 1 | higher | only noise   | as in metrics, pooled over seeds; mean over checkpoints
gradient_cosine_ci_low, gradient_cosine_ci_high | number | 1 | | one seed | its 95 % interval
seconds_per_step                       | number | s | lower  | not trained  | mean over seeds
peak_memory_bytes                      | number | bytes | lower | not trained | largest over seeds
p_vs_best_holm                         | number | 1 |  | the best itself | p_holm of the test against the best
p_vs_baseline_holm                     | number | 1 |  | no baselines    | largest p_holm against the baselines of `--against`
verdict                                | text   |   |  | no baselines    | "above", "below" or "not significantly different from" each baseline
updates_per_step                       | number | updates | | not trained  | updates of the policy a step
clipped_updates                        | number | 1 |  | not trained     | share of updates whose gradient was clipped
clip_factor                            | number | 1 |  | not trained     | mean factor of clipping; 1 is no clipping
clipped_tokens                         | number | 1 |  | the estimator clips no tokens | share of tokens that its own ratio clipping affects
learning_rate                          | number | 1 |  | not known       | as in metrics
rate_source                            | text   |   |  | not known       | as in metrics
test_gold_reward_ci_low, test_gold_reward_ci_high | number | 1 | | one seed, or no judge | 95 % interval of test_gold_reward_mean
generalization_gap_ci_low, generalization_gap_ci_high | number | 1 | | one seed | 95 % interval of generalization_gap
gold_gap_ci_low, gold_gap_ci_high      | number | 1 |  | one seed, or no judge | 95 % interval of gold_gap
kl_ci_low, kl_ci_high                  | number | nats/sequence | | one seed | 95 % interval of kl_mean
gradient_variance_ci_low, gradient_variance_ci_high | number | 1/theta^2 | | one seed | 95 % interval of gradient_variance, on a log scale
seconds_per_step_ci_low, seconds_per_step_ci_high | number | s | | one seed | 95 % interval of seconds_per_step
updates_per_step_ci_low, updates_per_step_ci_high | number | updates | | one seed | 95 % interval of updates_per_step
clipped_updates_ci_low, clipped_updates_ci_high | number | 1 | | one seed | 95 % interval of clipped_updates
clip_factor_ci_low, clip_factor_ci_high | number | 1 | | one seed        | 95 % interval of clip_factor
clipped_tokens_ci_low, clipped_tokens_ci_high | number | 1 | | one seed  | 95 % interval of clipped_tokens
gradient_bias_relative                 | number | 1 | lower  | only noise   | as in metrics, pooled over seeds; mean over checkpoints; may be negative
gradient_bias_relative_ci_low, gradient_bias_relative_ci_high | number | 1 | | one seed | its 95 % interval
"""))
LEADERBOARD_COLUMNS = LEADERBOARD.names

PROBES = _table("probes.csv", "one quantity of the gradient at one checkpoint of one cell", _CELL, _SOURCE, _SEED, _columns("""
along      | text   |  |  |                            | reference: at points that all estimators share; own: of each estimator's own training
step       | whole  | steps |  |                       | of the checkpoint
group      | text   |  |  | all parameters             | old form of `parameters`, kept for one version: empty for all of them
samples    | whole  | sequences |  |                   | in a batch
draws      | whole  | gradients |  |                   | independent gradients that the value comes from
metric     | text   |  |  |                            | the quantity: see "Metrics"
value      | number | that of `unit` | that of the metric | only noise | its value
ci_low, ci_high | number | that of `unit` |  | no interval    | its 95 % interval
unit       | text   |  |  | the metric is a plug-in's own | unit of `value`
parameters | text   |  |  |                            | all; or a group of parameters; or "call N" of estimators that use a batch several times
"""))
PROBES_COLUMNS = PROBES.names
ALL_PARAMETERS = "all"  # in the column `parameters`
PROBES_NUMBERS = ("seed", "step", "samples", "draws", "value", "ci_low", "ci_high")

# A row for each training step, with a number in a column: as rows of one value each, as in the metrics, a run of 350 cells and
# 320 steps would have 700,000 more rows there, ten times as many as all others. Columns of `Estimate.info` follow.
_STEP_PLACE = _columns("""
status | text  |       |  | | of the cell
step   | whole | steps |  | | steps done before, so step 0 is of the untrained policy
""")
_STEP_VALUES = _columns("""
reward          | number | 1             | higher | the estimator asks for no reward | mean reward of the sequences that the estimator asked about; where a task's reward isn't apart from its penalty, of f
kl              | number | nats/sequence | lower  | the estimator asks for no KL     | mean divergence from the reference along them
entropy         | number | nats/sequence |        | the estimator asks for no log-probability | mean of -log pi(z) over them, which estimates the entropy
gradient_norm   | number | 1/theta       |        | no update                        | norm of the estimate, before clipping
clip_factor     | number | 1             |        | no update                        | the factor by which clipping scaled it
clipped_updates | number | 1             |        | no update                        | share of the step's updates that were clipped
""")
_INFO = _columns("info_NAME | number | the estimator's own | | the estimator gave none at this step | a number of `Estimate.info`, such as info_clipped_tokens")
TRAINING = _table("training.parquet", "one training step of one cell", _CELL, _SEED, _STEP_PLACE, _STEP_VALUES, _INFO)
TRAINING_UNITS = {column.name: column.unit for column in _STEP_VALUES}
TRAINING_PLACE = [column.name for part in (_CELL, _SEED, _STEP_PLACE) for column in part]
TRAINING_COLUMNS = [*TRAINING_PLACE, *TRAINING_UNITS]

_AXIS = _columns("""
metric | text |  |  | | objective, reward or gold_reward on test prompts
axis   | text |  |  | | steps, samples, tokens, updates, seconds or kl
""")
BUDGETS = _table("budgets.csv", "one estimator at one budget", _PLACE, _AXIS, _columns("""
budget           | number | that of `axis` |  |                | the budget
estimator        | text   |  |  |                              | as in metrics
n_seeds          | whole  | seeds |  |                         | seeds that have a value there
mean             | number | 1 | higher | no seed reaches it    | of the metric over seeds
ci_low, ci_high  | number | 1 |  | one seed                    | its 95 % interval
rank             | whole  |   | lower | not all seeds reach the budget, or incomparable rates | by mean, ties by name
leader           | truth  |   |  | | whether its rank is 1
p_vs_leader_holm | number | 1 |  | the leader itself           | of the paired test against the leader; Holm over all pairs at this budget
"""))
CROSSINGS = _table("crossings.csv", "one pair of estimators along one axis", _PLACE, _AXIS, _columns("""
estimator_a, estimator_b    | text   |  |  |                       | the pair, in order of names
n_pairs                     | whole  | seeds |  |                  | seeds that both have
crossing                    | number | that of `axis` | | the lead doesn't change | the budget at which it changes: the mean difference is 0
ci_low, ci_high             | number | that of `axis` | | no significant lead on that side | nearest budgets on either side with a significant lead
leader_before, leader_after | text   |  |  | no significant lead   | who leads there; the same if the lead doesn't change
sign_changes                | whole  | 1 |  | incomparable rates   | how often the mean difference changes its sign, significantly or not
first_budget, last_budget   | number | that of `axis` | |          | the range in which the two were compared
verdict                     | text   |  |  |                       | the finding in words
"""))
FRONTIER = _table("frontier.csv", "one estimator within one KL budget (`--sweep kl=...`)", _columns("""
task             | text   |  |  |                        | the swept task
metric           | text   |  |  |                        | reward or gold_reward
estimator        | text   |  |  |                        | as in metrics
kl               | number | nats/sequence |  |           | the budget
n_seeds          | whole  | seeds |  |                   | seeds that reach it
mean             | number | 1 | higher | some seed doesn't reach it | highest value within the budget, mean over seeds
ci_low, ci_high  | number | 1 |  | as mean, or one seed  | its 95 % interval
rank             | whole  |   | lower | as mean, or incomparable rates | by mean
p_vs_leader_holm | number | 1 |  | the leader itself     | against the leader; Holm over all pairs at this budget
"""))
INSTANCES = _table("instances.csv", "one pair of estimators over several instances of a task (`--instances`)", _columns("""
task, metric             | text   |  |  |                | the kind of task; what is compared
estimator_a, estimator_b | text   |  |  |                | the pair; a has the larger mean over instances
n_instances              | whole  | instances |  |       | that both have
n_seeds                  | whole  | seeds |  |           | pairs of seeds of all instances
n_a_higher               | whole  | instances |  |       | in which a has the higher mean
mean_difference          | number | 1 |  | no instance   | mean over instances of a - b
ci_low, ci_high          | number | 1 |  | one instance  | its 95 % interval over instances
sd_between, sd_within    | number | 1 |  | not estimable | standard deviation of differences between instances, and of seeds within one
p_value, p_holm          | number | 1 | lower | incomparable rates | of the test over instances, and after Holm's correction
verdict                  | text   |  |  |                | as in tests.csv
"""))
INSTANCES_BOARD = _table("instances_leaderboard.csv", "one estimator over several instances of a task", _columns("""
task, metric     | text   |  |  |                       | the kind of task; what ranks
rank             | whole  |  | lower | not measured in all instances, or incomparable rates | by mean
estimator        | text   |  |  |                       | as in metrics
n_instances      | whole  | instances |  |              | in which it was measured
n_seeds          | whole  | seeds |  |                  | of all instances
mean             | number | 1 | higher |                | mean over instances, with equal weight
ci_low, ci_high  | number | 1 |  | one instance         | its 95 % interval over instances
n_first          | whole  | instances |  |              | in which its mean is the highest
reward_mean, gold_reward_mean | number | 1 | higher | not measured | means over instances
kl_mean          | number | nats/sequence | lower | not measured | mean over instances
p_vs_best_holm   | number | 1 |  | the best itself      | of the test over instances against the best
"""))
_TRIAL = _columns("""
estimator        | text   |  |  |                       | the estimator that is tuned
learning_rate    | number | 1 |  |                      | that was tried
options          | text   |  |  | only the rate varies  | options that were tried with it
""")
TRIALS = _table("trials.csv", "one trial of a tuning with one seed, at one budget", _PLACE, _TRIAL, _columns("""
seed        | whole  |  |  |                            | reserved for tuning
step        | whole  | steps |  |                       | the budget
status      | text   |  |  |                            | of the trial
reward      | number | 1 | higher | the trial failed    | on validation prompts
kl          | number | nats/sequence | lower | the trial failed | on validation prompts
objective   | number | 1 | higher | the trial failed    | reward - beta kl, by which rates are chosen
"""))
CURVES = _table("curves.csv", "one learning rate of one estimator at one budget", _PLACE, _TRIAL, _columns("""
objective       | number | 1 | higher | a seed of the trial failed | mean over the seeds of the tuning
standard_error  | number | 1 | lower  | one seed, or a failed one  | of objective
seeds           | whole  | seeds |  |                              | of the tuning
status          | text   |  |  |                                   | of the trial's seeds, joined by +
chosen          | truth  |  |  |                                   | whether it is the trial nearest to the chosen rate
steps           | whole  | steps |  |                              | the budget
fit, fit_error  | number | 1 |  | no fit                           | the smooth fit of objective at this rate, and its standard error
tied            | truth  |  |  |                                   | whether the rate isn't significantly worse than the chosen one
"""))
SAMPLES = _table("samples.jsonl", "one text, as a line of JSON", _PLACE, _columns("""
estimator  | text   |  |  |          | as in metrics
seed       | whole  |  |  |          | as in metrics
split      | text   |  |  |          | of the prompt
step       | whole  | steps |  |     | 0 and the last
number     | whole  |  |  |          | of the prompt within the split; the same for all estimators
prompt     | text   |  |  |          | the prompt
text       | text   |  |  |          | prompt and continuation
reward     | number | 1 | higher |   | of the text
"""))
CONFIG = _table("config.json", "the run: what was asked for, and what it was resolved to", _columns("""
request        | object |  |  |                     | the options of the command
plans          | object |  |  |                     | by task: steps, batch, clipping, evaluations, probes
tasks          | object |  |  |                     | by task: setting and options
learning_rates, rate_sources | object |  |  |       | by task and estimator
tuned_options  | object |  |  |                     | options that `--tuned` chose, by task and estimator
seeds, cells   | list   |  |  |                     | of the run
left_out       | object |  |  |                     | estimators that `all` leaves out, with the reason
design         | object |  |  |                     | by task of a sweep or of several instances: the values it stands for
facts          | object |  |  |                     | all that numbers depend on, by task and by estimator: see folders.md
given          | object |  |  |                     | how tasks and estimators were spelled, for the command that repeats the run
merged         | list   |  |  | not made by `merge` | names of the merged runs
"""))
ENVIRONMENT = _table("environment.json", "when and where the command ran", _columns("""
date, python, platform, processor, device | text |  |  |   | of the last command in the folder
cpu_count      | whole  | cores |  |                       | of the machine
packages       | object |  |  |                            | versions
gpu, cuda      | text   |  |  | no CUDA                    | the graphics card, and the version of CUDA
commit         | text   |  |  | not from a git checkout    | of GradeBench's checkout
"""))
TABLES = (
    METRICS_TABLE, LEADERBOARD, TESTS, PROBES, TRAINING, BUDGETS, CROSSINGS, FRONTIER, FRONTIER_TESTS, INSTANCES,
    INSTANCES_BOARD, TRIALS, CURVES, SAMPLES, CONFIG, ENVIRONMENT,
)
# fmt: on
