"""`gradebench enumerate`: what it prints, in which form, and what it refuses in one line."""

import io

import pandas as pd
import pytest

TASK = "enumerable-lm:vocabulary=2,horizon=2,layers=1,width=2,end=true"


def enumerated(command, *words, task=TASK):
    return command("enumerate", "-t", task, "--contexts", 2, *words)


def test_csv_has_all_digits(command):
    status, out, err = enumerated(command, "-e", "rloo:n=2", "-e", "dr-grpo:n=2,kl=reward", "--format", "csv")
    assert status == 0, err
    found = pd.read_csv(io.StringIO(out)).set_index("estimator")
    assert list(found.columns) == ["task", "bias_squared", "bias_after_scaling", "cosine", "length", "variance", "mse"]
    assert found.loc["rloo:n=2", "bias_squared"] < 1e-25
    group = found.loc["dr-grpo:n=2,kl=reward"]  # shortened by 1 - 1/n
    assert group["length"] == pytest.approx(0.5) and group["bias_squared"] == pytest.approx(0.25)
    assert group["variance"] == pytest.approx(found.loc["rloo:n=2", "variance"] / 4)


def test_table_and_markdown_show_rounding_as_zero(command):
    status, out, _ = enumerated(command, "-e", "rloo:n=2")
    assert status == 0 and "Exact, relative to" in out and "e-3" not in out
    status, out, _ = enumerated(command, "-e", "rloo:n=2", "--format", "markdown")
    assert out.splitlines()[0] == "| estimator | bias² | after scaling | cosine | length | variance | MSE |"
    assert out.splitlines()[2].startswith("| `rloo:n=2` | 0 | 0 | 1.0000 | 1 |")


def test_of_several_instances_the_median_is_shown(command):
    def variance(*words, task=TASK):
        out = enumerated(command, "-e", "rloo:n=2", "--format", "csv", *words, task=task)[1]
        return pd.read_csv(io.StringIO(out))["variance"].tolist()

    single = sorted(variance(task=f"{TASK},instance={i}")[0] for i in range(3))
    assert variance("--instances", 3) == [pytest.approx(single[1])]


@pytest.mark.parametrize("words, said", [
    (("-e", "grade"), "draws random numbers besides problem.sample"),
    (("-e", "ppo"), "takes 8 gradients from a batch"),
    (("-e", "disarm", "-t", "enumerable-lm"), "disarm needs binary"),
    (("-e", "rloo", "-t", "polynomial"), "can't all be listed"),
    (("-e", "rloo", "-t", "bernoulli-toy", "--temperature", "0.5"), "can only sample from its policy"),
    (("-e", "policy-gradient:scale=batch", "-t", "enumerable-lm:vocabulary=3"), "lower its n"),
    (("-e", "rlooo",), "did you mean rloo"),
    (("-e", "rloo", "--noise", "much"), "--noise much"),
])  # fmt: skip
def test_what_it_cannot_do_is_one_line(command, words, said):
    task = () if "-t" in words else ("-t", TASK)
    status, _, err = command("enumerate", *task, *words)
    assert (status, err.count("\n")) == (2, 1) and said in err
