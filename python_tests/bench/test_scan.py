"""bench/papers/scan: the language and its splits, the network, the systems around it, training that resumes, a run."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.repository import ROOT, environment

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")

from bench.papers import figures
from bench.papers.checkpoint import Checkpoint
from bench.papers.scan import command, data, names, network, pool, report, runs, systems, training

FOLDER = ROOT / "bench" / "papers" / "scan"


@pytest.mark.parametrize("module", [data, report], ids=["data", "report"])
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# The language.


def test_counts_of_the_language_and_of_the_splits() -> None:
    every = data.sentences()
    assert len(every) == 20_910
    assert max(len(command.split()) for command in every) == 9
    assert max(len(moves.split()) for moves in every.values()) == 48
    jump, right, multi = map(data.split, names.SPLITS)
    assert (len(jump.train), len(jump.test)) == (14_670, 7_706)
    assert sum("jump" in command for command, _ in jump.train) == 1_467
    assert (len(right.train), len(right.test)) == (15_225, 4_476)
    assert len(every) - len(right.train) - len(right.test) == 1_209
    assert len(data.sentences("SCAN-II")) == 64 * 3 + 2 * (64 * 3) ** 2
    assert (len(multi.train), len(multi.test)) == (51_168, 30_552)
    for held in ("jump", "turn left", "turn up"):
        some = [command for command, _ in multi.train if held in command]
        assert set(some) == {held}
        assert len(some) == int(0.06 * (len(multi.train) - 3 * len(some)))
    assert len(multi.test) + len({command for command, _ in multi.train}) == len(data.sentences("SCAN-II"))


def test_examples_of_the_grammar() -> None:
    every = data.sentences()
    for sentence, moves in {
        "jump": "JUMP",
        "jump left": "TURN_LEFT JUMP",
        "turn opposite left": "TURN_LEFT TURN_LEFT",
        "turn around right": "TURN_RIGHT TURN_RIGHT TURN_RIGHT TURN_RIGHT",
        "jump around right": "TURN_RIGHT JUMP TURN_RIGHT JUMP TURN_RIGHT JUMP TURN_RIGHT JUMP",
        "turn left twice": "TURN_LEFT TURN_LEFT",
        "jump opposite left and walk thrice": "TURN_LEFT TURN_LEFT JUMP WALK WALK WALK",
        "run after walk right": "TURN_RIGHT WALK RUN",
    }.items():
        assert every[sentence] == moves


@pytest.mark.parametrize("name", names.SPLITS)
def test_swaps_map_the_language_to_itself(name: str) -> None:
    found = data.split(name)
    every = data.encoded(list(data.sentences(found.language).items()), found.language)
    assert every.ids.shape[1] == 10
    codes, order = data.codes(every.ids, len(data.words(found.language))).sort()
    assert bool((codes.diff() > 0).all())
    for word, action in zip(*systems.swaps(found), strict=True):
        moved = data.codes(word.act(1, every.ids), word.size)
        places = order[torch.searchsorted(codes, moved)]
        assert torch.equal(every.ids[places], word.act(1, every.ids))
        assert bool((places != torch.arange(len(places))).any())
        assert torch.equal(action.act(1, every.targets), every.targets[places])


def test_reachable_sentences_have_a_view_in_training() -> None:
    for name, swap in (("add_jump", "jump run"), ("around_right", "right left")):
        found, (a, b) = data.split(name), swap.split()
        shown = {command for command, _ in found.train}
        other = {a: b, b: a}
        expected = [" ".join(other.get(w, w) for w in command.split()) in shown for command, _ in found.test]
        assert data.reachable(name).tolist() == expected
        assert 0.7 < sum(expected) / len(expected) < 0.9
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"{100 * data.reachable(name).double().mean():.1f} %" in said for name in names.SPLITS)
    # Of those that jump, the ones that run, too, have no such view.
    assert sum("run" in command for command, _ in data.split("add_jump").test) == int(
        (~data.reachable("add_jump")).sum()
    )


def test_parts_and_batches() -> None:
    found = data.split("add_jump")
    every = data.encoded(found.train[::7], found.language)
    rest, kept = data.parts(every, 3)
    assert len(kept.ids) == int(0.2 * len(every.ids))
    both = sorted(map(str, [*rest.ids.tolist(), *kept.ids.tolist()]))
    assert both == sorted(map(str, every.ids.tolist()))
    assert not torch.equal(kept.ids, data.parts(every, 4)[1].ids)
    made = list(data.batches(rest, 20, 8, torch.Generator().manual_seed(0)))
    assert [len(some.ids) for some in made] == [8] * 20
    for some in made:  # nothing is cut off, and nothing stands behind the longest one
        assert int(data.lengths(some.targets, data.END_ID["actions"]).max()) == some.targets.shape[1]
        assert int(data.lengths(some.ids, data.END_ID["words"]).max()) == some.ids.shape[1]
        assert set(map(str, some.of(torch.arange(8)).ids.tolist())) == set(map(str, some.ids.tolist()))


# The network.


def tiny(cell: str = "LSTM", name: str = "add_jump") -> tuple[Any, data.Split, data.Data]:
    found = data.split(name)
    return runs.untrained(cell, found.language).eval(), found, data.encoded(found.test[5::97], found.language)


@pytest.mark.parametrize("cell", names.CELLS)
def test_a_sentence_does_not_see_its_batch(cell: str) -> None:
    model, _, test = tiny(cell)
    some = test.of(torch.tensor([0, 40, 20, 60]))
    with torch.no_grad():
        free, forced = model(some.ids), model(some.ids, some.targets)
        for i in range(4):
            one = some.of(torch.tensor([i]))
            alone, along = model(one.ids)[0], model(one.ids, one.targets)[0]
            torch.testing.assert_close(free[i], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(forced[i, : len(along)], along, rtol=1e-4, atol=1e-5)
            assert not bool(network.real(forced[i, len(along) :]).any())
            assert bool(network.real(along).all())
            torch.testing.assert_close(along.exp().sum(-1), torch.ones(len(along)))


def test_forced_sentences_go_along_their_targets_and_others_do_not() -> None:
    model, _, test = tiny()
    some = test.of(torch.arange(6))
    with torch.no_grad():
        forced, none = model(some.ids, some.targets), model(some.ids, some.targets, torch.zeros(6, dtype=torch.bool))
        mixed = model(some.ids, some.targets, torch.arange(6) < 3)
        free = model(some.ids)
    assert torch.equal(mixed[:3], forced[:3])
    assert torch.equal(mixed[3:], none[3:])
    assert not torch.equal(forced, none)
    most = min(free.shape[1], none.shape[1])
    there = network.real(none[:, :most])  # what goes on alone is what decodes, as far as the target goes
    torch.testing.assert_close(none[:, :most][there], free[:, :most][there], rtol=1e-4, atol=1e-5)


def test_the_network_has_the_parameters_of_the_paper() -> None:
    model = tiny()[0]
    assert model.encoder.layer.bidirectional
    assert model.encoder.embedding.weight.shape == (14, 64)
    assert model.encoder.layer.hidden_size == 64
    assert model.decoder.combine.weight.shape == (128, 256)
    assert model.decoder.cell.hidden_size == model.decoder.cell.input_size == 128
    assert model.decoder.out.weight.shape == (8, 128)
    assert model.decoder.dropout.p == 0.1


def said(rows: list[list[int]], most: int) -> torch.Tensor:
    """Log-probabilities that say these actions for sure, and zeros behind."""
    out = torch.zeros(len(rows), most, 8)
    for i, row in enumerate(rows):
        for t, action in enumerate(row):
            out[i, t] = -20.0
            out[i, t, action] = -1e-3
    return out


def test_exact_is_the_whole_sentence_and_its_end() -> None:
    targets = torch.tensor([[2, 3, 1, 1]]).expand(6, 4)
    rows = [[2, 3, 1], [2, 3, 4, 1], [2, 1], [2, 3, 1, 5], [3, 2, 1], [2, 3]]
    assert network.exact(said(rows, 4), targets).tolist() == [True, False, False, True, False, False]
    assert network.exact(said(rows, 9), targets).tolist() == [True, False, False, True, False, False]


def test_loss_stops_behind_the_first_end_that_is_said() -> None:
    targets = torch.tensor([[2, 3, 1]])
    assert float(network.translation_loss(said([[2, 3, 1]], 3), targets)) == pytest.approx(3e-3)
    assert float(network.translation_loss(said([[2, 1, 1]], 3), targets)) == pytest.approx(1e-3 + 20)
    assert float(network.translation_loss(said([[3, 3, 1]], 3), targets)) == pytest.approx(20 + 2e-3)


def test_unsure_is_a_mean_over_real_positions() -> None:
    sure, short = said([[2, 3, 1]], 12), said([[2, 1]], 12)
    half = torch.full((1, 12, 8), 0.5).log()
    views = torch.stack((sure, short, half))
    assert systems.unsure(views).flatten().tolist() == pytest.approx([-0.999, -0.999, -0.5], abs=1e-4)


# The systems.


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in names.SPLITS for kind in names.SYSTEMS[1:]] + [("scan_ii", p) for p in names.PRODUCTS],
)
def test_systems_move_with_their_sentences(name: str, kind: str) -> None:
    model, found, _ = tiny("GRU", name)
    # Of a sentence that a swap leaves as it is, two views are alike, and which of them equizero takes is not said.
    sentence = {
        "add_jump": "jump right twice and run opposite left",
        "around_right": "run around right after jump left twice",
        "scan_ii": "jump around up after turn left thrice",
    }[name]
    pairs = [(sentence, data.sentences(found.language)[sentence])] * 2
    some = data.encoded(pairs, found.language)
    equivariant = systems.system(kind, model, found).eval()
    with torch.no_grad():
        plain_moves = 0.0
        for word, action in zip(*systems.swaps(found), strict=True):
            ids, targets = word.act(1, some.ids), action.act(1, some.targets)
            forced = torch.tensor([True, False])
            for args, moved in (((), ()), ((some.targets,), (targets,)), ((some.targets, forced), (targets, forced))):
                expected = action.logits.act(1, equivariant(some.ids, *args))
                torch.testing.assert_close(equivariant(ids, *moved), expected, rtol=1e-4, atol=1e-5)
                off = action.logits.act(1, model(some.ids, *args))[:, :2] - model(ids, *moved)[:, :2]
                plain_moves = max(plain_moves, float(off.abs().max()))
        assert plain_moves > 1e-3


@torch.no_grad()
def test_equitune_and_equizero_are_their_definitions() -> None:
    model, found, test = tiny()
    some = test.of(torch.arange(5))
    (word,), (action,) = systems.swaps(found)
    views = [model(some.ids, some.targets), model(word.act(1, some.ids), action.act(1, some.targets))]
    back = torch.stack([views[0], action.logits.act(1, views[1])])
    mean = systems.system("equitune", model, found)(some.ids, some.targets)
    torch.testing.assert_close(mean, back.mean(0), rtol=1e-4, atol=1e-5)
    best = torch.stack([view.exp().amax(-1).sum(1) / network.real(view).sum(1) for view in views]).argmax(0)
    zero = systems.system("equizero", model, found)(some.ids, some.targets)
    torch.testing.assert_close(zero, back[best, torch.arange(5)], rtol=1e-4, atol=1e-5)
    assert len(set(best.tolist())) == 2


def test_product_of_one_factor_is_that_factor() -> None:
    model, found, test = tiny()
    some = test.of(torch.arange(5))
    with torch.no_grad():
        zero = systems.system("equizero", model, found)(some.ids)
        product = systems.ProductEquiZero(model, *systems.swaps(found))(some.ids)
    assert torch.equal(zero, product)


# Training.


def short_plan(**changed: Any) -> training.Plan:
    return training.Plan(updates=6, batch=4, rate=3e-3, every=2, falling=True)._replace(**changed)


def test_training_that_was_stopped_goes_on_to_the_same(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    found = data.split("add_jump")
    some = data.encoded(found.train[20:60], found.language)

    def trained(path: Path, most: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], int]:
        model, steps = runs.untrained("RNN", found.language), 0

        def advance(count: int) -> None:
            nonlocal steps
            steps += count
            if steps > most:
                raise StoppedError

        def measured() -> dict[str, float]:
            return {"validation": float(model.decoder.out.weight.detach().abs().sum())}

        equivariant = systems.system("equizero", model, found)
        history = training.train(equivariant, model, short_plan(), some, 1, measured, path, advance)
        return history, dict(model.state_dict()), steps

    history, weights, steps = trained(tmp_path / "a.pt", 6)
    assert [entry["update"] for entry in history] == [0, 2, 4, 6]
    with pytest.raises(StoppedError):
        trained(tmp_path / "b.pt", 3)
    assert (tmp_path / "b.pt").exists()
    again, resumed, steps_too = trained(tmp_path / "b.pt", 6)
    assert steps == steps_too == 6
    assert again == history
    assert all(torch.equal(t, resumed[name]) for name, t in weights.items())
    done, unchanged, steps = trained(tmp_path / "b.pt", 6)  # and one that is done gives the same again
    assert (steps, done) == (6, history)
    assert all(torch.equal(t, unchanged[name]) for name, t in weights.items())


@pytest.mark.parametrize("choose", [True, False])
def test_the_best_validation_or_the_last_is_kept(tmp_path: Path, choose: bool) -> None:
    found = data.split("add_jump")
    some = data.encoded(found.train[20:60], found.language)
    model = runs.untrained("RNN", found.language)
    seen: list[dict[str, torch.Tensor]] = []
    values = iter([0.1, 0.9, 0.9, 0.2])

    def measured() -> dict[str, float]:
        seen.append({name: t.clone() for name, t in model.state_dict().items()})
        return {"validation": next(values)}

    for _ in range(2):  # one that is done leaves the same again
        training.train(model, model, short_plan(), some, 0, measured, tmp_path / "a.pt", lambda _: None, choose)
        kept = seen[1 if choose else 3]
        assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())
    assert not torch.equal(seen[1]["decoder.out.weight"], seen[3]["decoder.out.weight"])


def test_rates_fall_or_stay() -> None:
    assert [short_plan(falling=False).at(k) for k in (0, 5)] == [3e-3, 3e-3]
    falling = [short_plan().at(k) for k in range(7)]
    assert falling == sorted(falling, reverse=True)
    assert falling[6] == pytest.approx(0)


# Runs.


SMALL = {
    **command.FULL,
    "pretraining": dict.fromkeys(names.SPLITS, (2, 4, 1e-3, 1, 0.0, True)),
    "tuning": dict.fromkeys(names.SPLITS, (2, 1, 1e-3, 1, 1e-4, False)),
    "validated": (10, 5),
    "tested": (3000, 3000),
}


def test_a_whole_run_of_all_splits_and_one_that_goes_on(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(command, "FULL", SMALL)
    monkeypatch.setattr(runs, "CELLS", ("RNN",))
    monkeypatch.setattr(runs, "MULTI_CELLS", ("RNN",))
    threads = torch.get_num_threads()
    call = [
        "--seeds=1",
        "--processes=2",
        f"--threads={threads}",
        f"--work={tmp_path / 'work'}",
        f"--output={tmp_path / 'out'}",
    ]
    assert command.run(call) == 0
    out = capsys.readouterr().out
    assert "Zero-shot" in out
    assert "SCAN-II" in out
    results = json.loads((tmp_path / "out/scan.json").read_text())
    assert len(results["runs"]) == 3 * 3
    check(results)
    assert (tmp_path / "out/scan.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "work").glob("*.pt"))
    kept = (tmp_path / "work/scan.checkpoint.jsonl").read_bytes()
    lines = kept.splitlines(keepends=True)
    (tmp_path / "work/scan.checkpoint.jsonl").write_bytes(b"".join(lines[:-1]))
    assert command.run([*call, "--report"]) == 0
    assert len(json.loads((tmp_path / "out/scan.json").read_text())["runs"]) == 3 * 3 - 1
    assert command.run(call) == 0
    assert json.loads((tmp_path / "out/scan.json").read_text())["runs"] == results["runs"]
    monkeypatch.setattr(command, "FULL", {**SMALL, "tested": (2999, 3000)})
    assert command.run(call) == 2
    assert "other settings (tested): choose another --work" in capsys.readouterr().err


def test_a_job_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    settings = runs.Settings.of(SMALL)
    done = Checkpoint(tmp_path / "done.jsonl", {})
    job = runs.Job("add_jump", "RNN", 0, "equitune")
    done[job.network.key] = {}  # but its weights are not there
    with pytest.raises(FileNotFoundError):
        list(pool.finished([job], settings, done, tmp_path, 1, 1, lambda _: None))
    assert job.key not in done


LONG = """
import sys
from pathlib import Path
from bench.papers.checkpoint import Checkpoint
from bench.papers.scan import command, pool, runs

def begun(count):
    print("begun", flush=True)

if __name__ == "__main__":
    plan = (10**5, 1, 1e-3, 10**5, 0.0, True)
    settings = runs.Settings.of({**command.FULL, "pretraining": {"add_jump": plan}, "validated": (10, 5)})
    work = Path(sys.argv[1])
    list(pool.finished([runs.Job("add_jump", "RNN", 0)], settings, Checkpoint(work / "done", {}), work, 1, 1, begun))
"""


def test_processes_end_when_the_run_was_killed(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(LONG)
    command = [sys.executable, str(tmp_path / "long.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        run.kill()
        run.communicate(timeout=60)  # ends when the last process that writes there does


def test_the_quick_run_shows_the_order_of_the_paper(tmp_path: Path, monkeypatch: Any) -> None:
    tuning = {"add_jump": (4, 8, 3e-4, 4, 1e-4, False)}
    monkeypatch.setattr(
        command, "QUICK", {**command.QUICK, "tuning": tuning, "validated": (60, 20), "tested": (60, 200)}
    )
    assert command.run(["--quick", f"--threads={torch.get_num_threads()}", f"--output={tmp_path}"]) == 0
    results = json.loads((tmp_path / "quick.json").read_text())
    check(results)
    found = results["runs"]["add_jump/LSTM/0/network"]
    accuracy = {name: value["all"] for name, value in found["accuracy"].items()}
    assert accuracy["plain"] < 0.05
    assert accuracy["plain"] <= accuracy["equitune"] < accuracy["equizero"]
    assert accuracy["equizero"] > 0.65
    assert found["accuracy"]["equizero"]["reachable"] > 0.85
    assert found["history"][0]["validation"] > 0.95


def test_jobs_are_all_there_once_and_networks_come_before_what_tunes_them() -> None:
    jobs = list(runs.jobs(3))
    assert len(jobs) == len({job.key for job in jobs}) == len({job.slug for job in jobs}) == 18 + 36 + 3 + 6
    for k, job in enumerate(jobs):
        assert not job.system or jobs.index(job.network) < k


def test_bad_options(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.run(["--seeds=0"])
    assert "1 or more" in capsys.readouterr().err


def check(results: dict[str, Any]) -> None:
    """What must hold in any results file."""
    for run in results["runs"].values():
        history = run["history"]
        updates = [entry["update"] for entry in history]
        assert updates == sorted(updates)
        for name, value in run["accuracy"].items():
            assert name in report.MULTI
            assert all(0 <= share <= 1 for share in value.values())


def test_readme_has_the_figures_of_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.rendered(text, figures.of(FOLDER, "scan", report)) == text
    if (path := FOLDER / "results" / "scan.json").exists():
        results = json.loads(path.read_text())
        check(results)
        assert path.with_suffix(".png").exists()
