"""Corpora: every format gives the same corpus, every defect one line, and no text or film stands in two parts.

Long because one file tests one module.
"""

import csv
import http.server
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradebench.core.errors import InputError
from gradebench.tasks import corpora
from gradebench.tasks.corpora import Corpus, HubUnreachable, hub_corpus, read_corpus, split_corpus

IMDB = Path(__file__).parents[3] / "shared/data/imdb.parquet"
SIDES = {"train": ("train", "reward", "judge"), "test": ("validation", "test")}
PARTS = [part for parts in SIDES.values() for part in parts]


def reviews(count: int = 120) -> pd.DataFrame:
    """Raw reviews in the order of the folder layout: train neg, train pos, test neg, test pos; 30 films of 4."""
    quarter = count // 4
    return pd.DataFrame(
        {
            "text": [f'Film no. {i},\t"quoted" <br /><br />é  NA\nover lines' for i in range(count)],
            "label": [i // quarter % 2 for i in range(count)],
            "split": ["train" if i < count // 2 else "test" for i in range(count)],
            "movie": [f"tt{i // 4:07d}" for i in range(count)],
        }
    )


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return path


def write_jsonl(frame: pd.DataFrame, path: Path) -> Path:
    lines = [json.dumps(record) for record in frame.to_dict("records")]
    path.write_text("\r\n".join(lines) + "\n\n", encoding="utf-8-sig")
    return path


def write_parquet(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_parquet(path, index=False)
    return path


def write_folder(frame: pd.DataFrame, root: Path) -> Path:
    for (split, label), part in frame.groupby(["split", "label"]):
        sentiment = ("neg", "pos")[label]
        folder = root / split / sentiment
        folder.mkdir(parents=True)
        for number, text in enumerate(part["text"]):
            (folder / f"{number}_{1 + 9 * label}.txt").write_text(text, encoding="utf-8")
        urls = [f"http://www.imdb.com/title/{film}/usercomments\n" for film in part["movie"]]
        (root / split / f"urls_{sentiment}.txt").write_text("".join(urls))
    return root


def corpus_of(films: list[str] | None, texts: list[str], official: np.ndarray | None = None) -> Corpus:
    labels = np.random.default_rng(1).integers(0, 2, len(texts)).astype(np.int8)
    return Corpus("made", texts, labels, films, official)


def tangled_corpus(official: bool) -> Corpus:
    """1,000 texts on 250 films of about four; one in 20 repeats another in capitals, and some films are unknown."""
    generator = np.random.default_rng(0)
    texts = [f"review {i}" for i in range(1000)]
    for row in generator.choice(1000, 50, replace=False):
        texts[row] = texts[generator.integers(1000)].upper()
    films = [f"tt{film}" if film < 240 else "" for film in generator.integers(0, 250, 1000)]
    # One row in twenty is on the other side than the rest of its film.
    sides = [(int(film[2:] or 0) % 2) ^ (row % 20 == 0) for row, film in enumerate(films)]
    return corpus_of(films, texts, np.array(["train", "test"])[sides] if official else None)


def assert_disjoint(corpus: Corpus, parts: dict[str, np.ndarray]) -> None:
    assert set(parts) == set(PARTS)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows)
    part_of: dict[str, str] = {}
    for part, indices in parts.items():
        keys = {corpus.texts[row].casefold() for row in indices}
        keys |= {corpus.groups[row] for row in indices} - {""} if corpus.groups else set()
        assert not {key for key in keys if key in part_of}, f"{part} shares a film or a text with another part"
        part_of |= dict.fromkeys(keys, part)


# Reading


@pytest.mark.parametrize("name", ["tiny.parquet", "tiny.csv", "tiny.tsv", "tiny.jsonl", "tiny"])
def test_every_format_gives_the_same_corpus(name: str, tmp_path: Path) -> None:
    frame = reviews()
    write = {".parquet": write_parquet, ".jsonl": write_jsonl, "": write_folder}.get(Path(name).suffix, write_csv)
    corpus = read_corpus(write(frame, tmp_path / name))
    assert corpus.name == "tiny"
    assert corpus.texts == [f'Film no. {i}, "quoted" é NA over lines' for i in range(120)]
    assert corpus.labels.dtype == np.int8
    np.testing.assert_array_equal(corpus.labels, frame["label"])
    assert corpus.groups == frame["movie"].tolist()
    assert list(corpus.official) == frame["split"].tolist()
    assert corpus.digest == Corpus("other", corpus.texts, np.array(frame["label"])).digest


def test_digest_follows_texts_and_labels_only() -> None:
    base = corpus_of(None, ["ab", "c"])
    assert base.digest == f"{int(base.digest, 16):016x}"
    assert Corpus("elsewhere", base.texts, base.labels, ["a", "b"]).digest == base.digest
    assert Corpus("made", ["a", "bc"], base.labels).digest != base.digest
    assert Corpus("made", base.texts, 1 - base.labels).digest != base.digest


@pytest.mark.parametrize(
    ("text", "label", "negative", "positive"),
    [("review", "sentiment", "negative", "Positive"), ("sentence", "label", "NEG", "pos"), ("Text", "Label", "0", "1")],
)
def test_other_column_names_and_label_words(
    text: str, label: str, negative: str, positive: str, tmp_path: Path
) -> None:
    frame = reviews()
    words = np.array([negative, positive])[frame["label"]]
    frame.loc[1, "text"] = "NA"  # a review, not a missing value
    corpus = read_corpus(write_csv(pd.DataFrame({text: frame["text"], label: words}), tmp_path / "named.csv"))
    np.testing.assert_array_equal(corpus.labels, frame["label"])
    assert (corpus.texts[1], corpus.groups, corpus.official) == ("NA", None, None)


def test_what_was_read_is_said_with_numbers(tmp_path: Path) -> None:
    frame = reviews()
    frame.loc[3, "text"] = " <br/> "
    frame.loc[[7, 8], "text"] = frame.loc[5, "text"]
    path = write_csv(frame, tmp_path / "c.csv")
    said = (
        '120 rows, 117 texts (2 repeated and 1 empty left out), 60 of them positive; the first: \'Film no. 0, "quoted"'
    )
    assert read_corpus(path).reading.startswith(f"{path}: {said}")


@pytest.mark.parametrize("name", corpora.RESERVED)
def test_a_given_corpus_has_no_name_of_one_that_is_not(name: str, tmp_path: Path) -> None:
    """A file `embedded.csv` was judged by our grammar's parser."""
    assert read_corpus(write_csv(reviews(), tmp_path / f"{name}.csv")).name == f"{name}-given"
    assert read_corpus(write_folder(reviews(), tmp_path / name)).name == f"{name}-given"


def test_an_index_of_a_parquet_file_is_a_column(tmp_path: Path) -> None:
    reviews().set_index("label").to_parquet(tmp_path / "c.parquet")
    np.testing.assert_array_equal(read_corpus(tmp_path / "c.parquet").labels, reviews()["label"])


def test_splits_have_a_digest_of_films_and_sides() -> None:
    base = corpus_of(["f", "g"], ["a", "b"])
    others = [corpus_of(None, base.texts), corpus_of(["f", "f"], base.texts), corpus_of(["f", ""], base.texts)]
    others += [corpus_of(["f", "g"], base.texts, np.array(sides)) for sides in (["train", "test"], ["test", "train"])]
    digests = [one.split_digest for one in (base, *others)]
    assert len(set(digests)) == len(digests) and corpus_of(["f", "g"], ["c", "d"]).split_digest == base.split_digest


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=8), suffix=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_text_is_read_back_or_refused_and_no_row_is_lost(texts: list[str], suffix: str, tmp_path: Path) -> None:
    """Refused may be a text that holds what reads as a row, "a,1" in a line of its own, and an unquoted carriage return,
    which pandas writes and every reader takes for the end of a line."""
    frame = pd.DataFrame({"text": [f"{row} {text} ." for row, text in enumerate(texts + ["x"] * 100)]})
    frame["label"] = np.arange(len(frame)) % 2
    write = {"parquet": write_parquet, "jsonl": write_jsonl}.get(suffix, write_csv)
    try:
        corpus = read_corpus(write(frame, tmp_path / f"c.{suffix}"))
    except InputError as refusal:
        assert suffix in ("csv", "tsv") and ("looks like further rows" in str(refusal) or "\r" in "".join(texts))
        return
    cleaned = [" ".join(corpora._LINE_BREAK.sub(" ", text).split()) for text in frame["text"]]
    assert corpus.texts == cleaned and corpus.labels.tolist() == frame["label"].tolist()


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), separator=st.sampled_from(",\t"), label_first=st.booleans())
def test_a_quote_too_few_or_too_many_is_refused_or_costs_nothing_but_itself(
    data: st.DataObject, separator: str, label_first: bool, tmp_path: Path
) -> None:
    order = ["label", "text"] if label_first else ["text", "label"]
    frame = pd.DataFrame({"text": [f'so "good", no. {row}' for row in range(120)], "label": np.arange(120) % 2})[order]
    whole = frame.to_csv(sep=separator, index=False, quoting=csv.QUOTE_ALL)
    place = data.draw(st.integers(0, len(whole) - 1))
    too_few = whole[place] == '"' and data.draw(st.booleans())
    (tmp_path / "c.csv").write_text(whole[:place] + ("" if too_few else '"') + whole[place + too_few :])
    (tmp_path / "c.csv").rename(path := tmp_path / f"c.{'csv' if separator == ',' else 'tsv'}")
    try:
        texts = read_corpus(path).texts
    except InputError:
        return
    assert len(texts) == 120
    assert sum(text.replace('"', "") != f"so good, no. {row}" for row, text in enumerate(texts)) == 0


def test_film_ids_come_from_the_sidecar(tmp_path: Path) -> None:
    frame = reviews()
    path = write_csv(frame.drop(columns="movie"), tmp_path / "c.csv")
    write_parquet(frame[["movie"]], tmp_path / "c_meta.parquet")
    assert read_corpus(path).groups == frame["movie"].tolist()


def test_folder_of_pos_and_neg_alone(tmp_path: Path) -> None:
    frame = reviews(480)
    corpus = read_corpus(write_folder(frame, tmp_path / "whole") / "test")
    assert (corpus.name, len(corpus.texts), corpus.official) == ("test", 240, None)
    assert corpus.groups == frame["movie"][240:].tolist()


def test_repeats_and_empty_texts_go_and_the_test_side_keeps_its_own(tmp_path: Path) -> None:
    frame = reviews()
    frame.loc[3, "text"] = " <br/> \n"
    frame.loc[7, "text"] = frame.loc[5, "text"].replace(" ", "  ")  # a repeat only once it is cleaned
    frame.loc[80, "text"] = frame.loc[9, "text"]  # in both splits
    frame.loc[81, "text"] = None
    corpus = read_corpus(write_parquet(frame, tmp_path / "c.parquet"))
    expected = [row for row in range(120) if row not in (3, 7, 9, 81)]
    assert corpus.groups == frame["movie"][expected].tolist()
    assert list(corpus.official) == frame["split"][expected].tolist()


def with_value(column: str, value: object) -> pd.DataFrame:
    frame = reviews().astype(object)
    frame.loc[4, column] = value
    return frame


def write_short_urls(root: Path) -> None:
    (write_folder(reviews(), root) / "train" / "urls_neg.txt").write_text("title/tt1/\n")


def write_short_sidecar(path: Path) -> None:
    write_csv(reviews().drop(columns="movie"), path)
    write_parquet(reviews()[["movie"]][:50], path.with_name("c_meta.parquet"))


# What is wrong: the file or folder, what writes it, what its refusal must say.
DEFECTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "missing": ("c.csv", lambda path: None, ["c.csv", "No such file"]),
    "missing folder": ("c", lambda path: None, ["No such file"]),
    "suffix": ("c.xlsx", lambda path: write_csv(reviews(), path), [".xlsx", ".parquet, .csv, .tsv, .jsonl"]),
    "header alone": ("c.csv", lambda path: write_csv(reviews()[:0], path), ["no rows"]),
    "blank": ("c.csv", lambda path: path.write_text("\n"), ["no rows"]),
    "columns": ("c.csv", lambda path: path.write_text("body,label\na,1\n"), ["'body', 'label'", "text, review, sent"]),
    "one class": ("c.csv", lambda path: write_csv(reviews().assign(label=1), path), ["every text has the label 1"]),
    "label": ("c.csv", lambda path: write_csv(with_value("label", "neutral"), path), ["'neutral' in row 5", "0 or 1"]),
    "no label": ("c.jsonl", lambda path: write_jsonl(with_value("label", None), path), ["label '' in row 5"]),
    "split": ("c.csv", lambda path: write_csv(with_value("split", "dev"), path), ["'dev' in row 5", "train or test"]),
    "number": ("c.jsonl", lambda path: write_jsonl(with_value("text", 17), path), ["row 5 holds 17"]),
    "surrogate": ("c.jsonl", lambda path: write_jsonl(with_value("text", "\ud800"), path), ["row 5 holds '\\ud800'"]),
    "latin-1": ("c.csv", lambda path: path.write_bytes(b"text,label\ncaf\xe9,1\n"), ["c.csv", "byte 14", "UTF-8"]),
    "no parquet": ("c.parquet", lambda path: path.write_bytes(b"PAR1 no PAR1"), ["no readable parquet"]),
    "json": ("c.jsonl", lambda path: path.write_text('{"text": "a", "label": 1}\n\n{"text": \n'), ["line 3"]),
    "list": ("c.jsonl", lambda path: path.write_text('{"text": "a", "label": 1}\n[1]\n'), ["line 2"]),
    "ragged": ("c.csv", lambda path: path.write_text("text,label\na,1\nb,c,d,0\n"), ["line 3"]),
    "stray commas": (
        "c.csv",
        lambda path: path.write_text("text,label\na, b,1\nc, d,0\n"),
        ["3 fields in line 2", "2 in"],
    ),
    "open quote": ("c.tsv", lambda path: path.write_text('text\tlabel\n"a\t1\nb\t0\n'), ["line 3", "quotes within"]),
    "swallowed": (
        "c.csv",
        lambda path: path.write_text('text,label\n"a,1\nb",0\n'),
        ["line 3", "looks like further rows"],
    ),
    "swallowed first": (
        "c.csv",
        lambda path: path.write_text('label,text\n1,"a\n0,b"\n'),
        ["line 3", "looks like further"],
    ),
    "escapes": ("c.csv", lambda path: path.write_text('text,label\n"say \\"a\\"",1\n'), ["line 2", "quotes within"]),
    "twice": ("c.csv", lambda path: write_csv(reviews().assign(Text="x"), path), ["'text' and 'Text'", "keep one"]),
    "twice in parquet": (
        "c.parquet",
        lambda path: write_parquet(reviews().assign(LABEL=1), path),
        ["'label' and 'LABEL'"],
    ),
    "twice in jsonl": ("c.jsonl", lambda path: write_jsonl(reviews().assign(Movie="x"), path), ["'movie' and 'Movie'"]),
    "two names": ("c.csv", lambda path: write_csv(reviews().assign(review="x"), path), ["'text' and 'review'"]),
    "same key": (
        "c.jsonl",
        lambda path: path.write_text('{"text": "a", "text": "b"}\n'),
        ["line 1", "'text' comes twice"],
    ),
    "folder": ("c", lambda path: (path / "train/pos").mkdir(parents=True), ["no folder train/neg", "pos/ and neg/"]),
    "urls": ("c", write_short_urls, ["1_1.txt", "urls_neg.txt has no line"]),
    "few": ("c.csv", lambda path: write_csv(reviews()[10:90], path), ["80 usable texts", "at least 100"]),
    "sidecar": ("c.csv", write_short_sidecar, ["c_meta.parquet", "50 rows", "120"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_refused_in_one_line(defect: str, tmp_path: Path) -> None:
    name, write, facts = DEFECTS[defect]
    write(tmp_path / name)
    with pytest.raises(InputError) as refusal:
        read_corpus(tmp_path / name)
    message = str(refusal.value)
    assert "\n" not in message
    assert [fact for fact in [str(tmp_path), *facts] if fact not in message] == []


@pytest.mark.parametrize(("method", "target"), [("pathlib.Path.read_bytes", "c.csv"), ("os.listdir", "")])
def test_closed_paths_are_refused(method: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(reviews(), tmp_path / target) if target else write_folder(reviews(), tmp_path)

    def closed(path: object) -> None:  # stands in for mode 000, which root reads all the same
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(method, closed)
    with pytest.raises(InputError, match=r"Permission denied\); check .*permissions$"):
        read_corpus(path)


def test_parquet_with_broken_text_is_refused(tmp_path: Path) -> None:
    write_parquet(pd.DataFrame({"text": ["abcdefgh"], "label": [1]}), tmp_path / "c.parquet")
    data = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(data.replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(InputError, match=r"^[^\n]*UTF-?8[^\n]*$"):
        read_corpus(tmp_path / "c.parquet")


# Splitting


@pytest.mark.parametrize("official", [True, False])
def test_no_text_or_film_in_two_parts(official: bool) -> None:
    corpus = tangled_corpus(official)
    assert_disjoint(corpus, split_corpus(corpus, 0))


def test_split_follows_the_seed_alone() -> None:
    corpus = tangled_corpus(official=True)
    first, again, other = (split_corpus(corpus, seed) for seed in (3, 3, 4))
    for part in PARTS:
        np.testing.assert_array_equal(first[part], again[part])
        assert not np.array_equal(first[part], other[part])


def test_shares_of_the_rows() -> None:
    films = [f"tt{i // 5}" for i in range(2000)]
    texts = [f"review {i}" for i in range(2000)]
    alone = {part: len(rows) for part, rows in split_corpus(corpus_of(films, texts), 0).items()}
    # Exactly, since each cut falls between two films of five rows.
    assert alone == {"reward": 640, "judge": 640, "train": 320, "validation": 200, "test": 200}
    official = np.array(["train"] * 1000 + ["test"] * 1000)
    given = {part: len(rows) for part, rows in split_corpus(corpus_of(films, texts, official), 0).items()}
    assert given == {"reward": 400, "judge": 400, "train": 200, "validation": 500, "test": 500}


def test_official_split_is_kept_and_a_group_on_both_sides_gives_up_its_train_rows() -> None:
    films = [f"tt{i // 5}" for i in range(1000)]
    texts = [f"review {i}" for i in range(1000)]
    texts[7] = texts[700].upper()  # so that the train film of rows 5 to 9 hangs together with a test film
    parts = split_corpus(corpus_of(films, texts, np.array(["train"] * 500 + ["test"] * 500)), 0)
    used = {side: sorted(row for part in names for row in parts[part]) for side, names in SIDES.items()}
    assert used == {"train": [*range(5), *range(10, 500)], "test": list(range(500, 1000))}


def test_parts_are_shuffled() -> None:
    rows = split_corpus(corpus_of(None, [f"review {i}" for i in range(1000)]), 0)["train"]
    assert not np.array_equal(rows, np.sort(rows))


def test_part_with_one_label_is_refused() -> None:
    texts = [f"review {i}" for i in range(200)]
    with pytest.raises(InputError, match=r"^corpus made: part '\w+' \(\d+ texts\) lacks a label; give more texts$"):
        split_corpus(Corpus("made", texts, np.array([1] + [0] * 199, dtype=np.int8)), 0)


@pytest.mark.skipif(not IMDB.exists(), reason="the IMDB reviews aren't beside this checkout")
def test_imdb_reviews_read_and_split() -> None:
    corpus = read_corpus(IMDB)
    assert corpus.name == "imdb"
    assert len(corpus.texts) == 49_578  # 49,582 raw ones are distinct, and cleaning makes 4 more alike
    assert "" not in corpus.groups
    parts = split_corpus(corpus, 0)
    assert_disjoint(corpus, parts)
    sides = {part for part, rows in parts.items() if "tt0406816" in {corpus.groups[row] for row in rows}}
    assert sides in ({"validation"}, {"test"})  # of its 25 reviews the two in train are given up


# The hub


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `datasets`, online, with no hub at the endpoint."""
    import datasets

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def refused_within(seconds: float, timeout: float) -> str:
    start = time.monotonic()
    with pytest.raises(HubUnreachable) as refusal:
        hub_corpus(timeout)
    assert time.monotonic() - start < seconds
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_hub_out_of_reach_is_refused_in_time_and_silence(tmp_path: Path) -> None:
    imports = "from gradebench.tasks.corpora import HubUnreachable, hub_corpus\n"
    script = imports + "try: hub_corpus()\nexcept HubUnreachable as error: print(error)"
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    start = time.monotonic()
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=os.environ | settings, capture_output=True, timeout=60, check=False)
    assert time.monotonic() - start < 10
    assert b"can't be had from the hub: http://127.0.0.1:9: " in ran.stdout
    assert ran.stdout.count(b"\n") == 1
    assert ran.stderr == b""


def test_hub_that_never_answers_is_refused_in_time(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts; nobody reads
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "no answer within" in refused_within(5.0, timeout=2.0)
        server.settimeout(0)
        server.accept()[0].close()  # raises where nothing had connected


def test_page_that_is_no_hub_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Login(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Login) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert "isn't a hub's" in refused_within(10.0, timeout=10.0)
        server.shutdown()


def test_cached_copy_serves_without_a_hub(
    empty_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from datasets.packaged_modules.parquet.parquet import Parquet

    frame, files = reviews(), tmp_path_factory.mktemp("files")
    sides = {split: str(files / f"{split}.parquet") for split in SIDES}
    for split, file in sides.items():
        write_parquet(frame.loc[frame["split"] == split, ["text", "label"]], Path(file))
    names = {"dataset_name": "imdb", "config_name": "plain_text", "config_id": "plain_text", "hash": "0"}
    Parquet(cache_dir=str(empty_cache), data_files=sides, **names).download_and_prepare()
    (empty_cache / "imdb").rename(empty_cache / "stanfordnlp___imdb")
    monkeypatch.setattr(logging.getLogger("datasets"), "handlers", [caplog.handler])
    online = hub_corpus()
    assert caplog.records == [], "the library's warning that it uses a cached copy is kept off the terminal"
    assert (online.name, list(online.official)) == ("imdb-hub", frame["split"].tolist())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_corpus().digest == online.digest == read_corpus(write_parquet(frame, files / "all.parquet")).digest


def test_offline_without_a_cached_copy_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused_within(5.0, timeout=10.0)


def test_hub_that_answers_is_read_and_its_failures_are_refusals(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    halves = [half[["text", "label"]] for _, half in reviews().groupby("split", sort=False)]
    sides = [datasets.Dataset.from_pandas(half) for half in halves]
    monkeypatch.setattr(corpora, "_hub_refusal", lambda seconds: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: sides)
    assert hub_corpus().texts[0] == 'Film no. 0, "quoted" é NA over lines'

    def broken(name: str, split: list[str]) -> None:
        raise ConnectionError("cut off\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    assert "hub: cut off; give" in refused_within(5.0, timeout=10.0)
