"""Q-learning: the symmetries are the environments' own, and a DQN acts through them."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equikern
import pytest
import torch
from helpers.repository import ROOT
from torch import Tensor, nn

pytest.importorskip("stable_baselines3", reason='the extra "rl" is not installed')
import gymnasium
import numpy as np
from equikern.rl import Symmetry, acrobot, act_through, acting, cartpole, gridworld
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

BENCH = ROOT / "bench" / "papers" / "q_learning"
System = Literal["equitune", "equizero"]
SYSTEMS: tuple[System, ...] = ("equitune", "equizero")


@pytest.fixture
def bench() -> Callable[[str], Any]:
    """A module of the experiment by name."""
    if not BENCH.exists():
        pytest.skip("bench/ is not here")
    return lambda name: importlib.import_module(f"bench.papers.q_learning.{name}")


def moved(symmetry: Symmetry, g: int, move: int) -> int:
    """g's image of a move."""
    return int(symmetry.out.act(g, torch.eye(symmetry.out.size)[move]).argmax())


def seen(symmetry: Symmetry, g: int, observation: Any) -> Tensor:
    return symmetry.inp.act(g, torch.as_tensor(observation))


# --- the actions are symmetries of the real dynamics ---


def mirrored_step(name: str, symmetry: Symmetry, state: Any, move: int) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
    """One step from a state and from its mirror image with the mirrored move: observations, and what came with them."""
    observations, rest = [], []
    for g in (0, 1):
        environment = gymnasium.make(name).unwrapped
        environment.reset(seed=0)
        environment.state = -state if g else state  # type: ignore[attr-defined]  # both are odd in their own state
        observation, *others = environment.step(np.int64(moved(symmetry, g, move)))
        observations.append(torch.as_tensor(observation))
        rest.append(tuple(others[:3]))
    return observations, rest


@pytest.mark.parametrize(("name", "symmetry", "scale"), [
    ("CartPole-v1", cartpole(), (2.2, 2.0, 0.2, 2.0)),
    ("Acrobot-v1", acrobot(), (3.1, 3.1, 6.0, 12.0)),
])  # fmt: skip
def test_mirrored_steps(name: str, symmetry: Symmetry, scale: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    ended = 0
    for trial in range(150):
        state = random.uniform(-1, 1, 4) * scale
        move = trial % symmetry.out.size
        (straight, mirror), (rest, mirrored_rest) = mirrored_step(name, symmetry, state, move)
        torch.testing.assert_close(mirror, seen(symmetry, 1, straight), atol=1e-5, rtol=1e-5)
        assert rest == mirrored_rest
        ended += rest[1]
    assert 0 < ended < 150


def test_what_cartpole_and_acrobot_show_first_is_mirrored_too() -> None:
    """The start states are drawn from a box that is its own mirror image, and acrobot's observation is its state's."""
    for name, bound in (("CartPole-v1", 0.05), ("Acrobot-v1", 0.1)):
        environment = gymnasium.make(name).unwrapped
        states = []
        for seed in range(30):
            environment.reset(seed=seed)
            states.append(np.array(environment.state))  # type: ignore[attr-defined]
        assert np.abs(states).max() <= bound
        assert np.abs(np.mean(states, 0)).max() < bound / 2


@pytest.mark.parametrize("g", range(4))
def test_gridworld_turns_with_its_moves(bench: Any, g: int) -> None:
    symmetry = gridworld()
    environment = bench("gridworld").Gridworld(5)
    for agent in range(25):
        for move in range(4):
            place = {"agent": divmod(agent, 5), "goal": (0, 1)}
            start, _ = environment.reset(options=place)
            after, *rest = environment.step(move)
            turned = seen(symmetry, g, start)
            places = [tuple(map(int, plane.nonzero()[0])) for plane in turned]
            again, _ = environment.reset(options={"agent": places[0], "goal": places[1]})
            assert torch.equal(torch.as_tensor(again), turned)
            other, *other_rest = environment.step(moved(symmetry, g, move))
            assert torch.equal(torch.as_tensor(other), seen(symmetry, g, after))
            assert rest == other_rest


def test_a_quarter_of_the_goals_and_its_turns_are_all_but_the_centre(bench: Any) -> None:
    environment = bench("gridworld").Gridworld(5, quarter=True)
    goals = torch.zeros(5, 5)
    environment.reset(seed=0)
    for _ in range(200):
        observation, _ = environment.reset()
        assert observation.sum() == 2
        assert environment.agent != environment.goal
        goals[environment.goal] = 1
    turned = sum(goals.rot90(k) for k in range(4))
    assert isinstance(turned, Tensor)
    assert turned[2, 2] == 0
    assert turned.sum() == 24 == (turned == 1).sum()


def test_moves_in_another_order() -> None:
    lake = ("left", "down", "right", "up")
    symmetry, plain = gridworld(lake), gridworld()
    order = ["right", "up", "left", "down"]
    for g in range(4):
        for i, name in enumerate(lake):
            assert lake[moved(symmetry, g, i)] == order[moved(plain, g, order.index(name))]
    with pytest.raises(ValueError, match="moves: expected each of right, up, left, down once"):
        gridworld(("left", "left", "right", "up"))


# --- a DQN through them ---


def agent(symmetry: Symmetry, bench: Any, steps: int = 0) -> DQN:
    environment: Any
    if symmetry.inp.order == 4:
        environment = gymnasium.wrappers.TimeLimit(bench("gridworld").Gridworld(5), 20)
    else:
        environment = gymnasium.make("CartPole-v1" if symmetry.out.size == 2 else "Acrobot-v1")
    model = DQN("MlpPolicy", environment, buffer_size=1000, learning_starts=50, seed=0, device="cpu")
    model.set_logger(Logger(None, []))  # its own would leave a folder in the system's temporary one
    return model.learn(steps) if steps else model


def batch(model: DQN, n: int = 16) -> Tensor:
    """Observations in general position."""
    torch.manual_seed(1)
    assert model.observation_space.shape is not None
    return torch.randn(n, *model.observation_space.shape)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("symmetry", [cartpole(), acrobot(), gridworld()], ids=["cartpole", "acrobot", "gridworld"])
def test_policies_are_equivariant(system: System, symmetry: Symmetry, bench: Any) -> None:
    model = agent(symmetry, bench)
    x = batch(model)
    with act_through(model, symmetry, system) as acting:
        q = model.q_net(x)
        torch.testing.assert_close(acting.net(x), q)
        moves = model.predict(x.numpy(), deterministic=True)[0]
        assert moves.tolist() == q.argmax(1).tolist()
        for g in range(symmetry.inp.order):
            turned = seen(symmetry, g, x)
            torch.testing.assert_close(model.q_net(turned), symmetry.out.act(g, q), atol=1e-5, rtol=1e-5)
            turned_moves = model.predict(turned.numpy(), deterministic=True)[0]
            assert turned_moves.tolist() == [moved(symmetry, g, move) for move in moves]
        assert not torch.allclose(acting.plain(x), q)
    views = torch.stack([symmetry.out.act(symmetry.inp.group.inverse[g].item(), model.q_net(seen(symmetry, g, x)))
                         for g in range(symmetry.inp.order)])  # fmt: skip
    if system == "equitune":
        expected = views.mean(0)
    else:  # the maximum over g and moves of the softmax-normalised values
        best = views.softmax(-1).amax(-1).argmax(0)
        expected = views[best, torch.arange(len(x))]
    torch.testing.assert_close(q, expected, atol=1e-6, rtol=1e-6)


def test_two_views_of_two_moves_leave_the_systems_no_difference(bench: Any) -> None:
    """The larger |Q₁ − Q₀| outweighs the smaller in the mean, and wins the softmax: one greedy move on CartPole."""
    model = agent(cartpole(), bench)
    x = batch(model, 500)
    moves = []
    for system in SYSTEMS:
        with act_through(model, cartpole(), system):
            moves.append(model.predict(x.numpy(), deterministic=True)[0].tolist())
    assert moves[0] == moves[1]
    assert moves[0] != model.predict(x.numpy(), deterministic=True)[0].tolist()


@pytest.mark.parametrize("system", SYSTEMS)
def test_wrapping_and_unwrapping(system: System, bench: Any) -> None:
    model = agent(cartpole(), bench, 300)
    x = batch(model)
    plain = model.q_net(x)
    target = model.q_net_target(x)
    acting = act_through(model, cartpole(), system)
    torch.testing.assert_close(acting.plain(x), plain, atol=0, rtol=0)
    assert acting.system == system
    if system == "equizero":
        q = torch.stack([acting.plain(x), acting.plain(-x).flip(-1)])
        surest = q.softmax(-1).amax(-1).argmax(0)
        torch.testing.assert_close(model.q_net(x), q[surest, torch.arange(len(x))])
    assert not torch.equal(model.q_net_target(x), target)
    with pytest.raises(ValueError, match="got one that is wrapped"):
        act_through(model, cartpole(), system)
    rewards, _ = evaluate_policy(model, gymnasium.make("CartPole-v1"), 2, return_episode_rewards=True, warn=False)
    assert isinstance(rewards, list)
    assert len(rewards) == 2
    twin = copy.deepcopy(model.policy.q_net)
    assert torch.equal(twin(x), model.q_net(x))
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(twin(x), model.q_net(x)), "a copy goes through its own parameters"
    acting.remove()
    acting.remove()
    assert torch.equal(model.q_net(x), plain)
    assert torch.equal(model.q_net_target(x), target)


def test_saved_files_hold_the_plain_network_and_remember_the_symmetry(tmp_path: Path, bench: Any) -> None:
    model = agent(acrobot(), bench, 200)
    x = batch(model)
    keys, plain = list(model.policy.state_dict()), model.q_net(x)
    with act_through(model, acrobot()) as through:
        assert list(model.policy.state_dict()) == keys
        model.save(tmp_path / "model")
        symmetric = model.q_net(x)
        assert not list(through.net.parameters())
    model.save(tmp_path / "plain")
    loaded = DQN.load(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.q_net(x), symmetric)
    assert not torch.equal(symmetric, plain)
    again = acting(loaded)
    assert (again.system, again.symmetry) == ("equizero", acrobot())
    assert torch.equal(again.plain(x), plain)
    again.remove()
    assert torch.equal(loaded.q_net(x), plain)
    unwrapped = DQN.load(tmp_path / "plain", device="cpu")
    assert torch.equal(unwrapped.q_net(x), plain)
    with pytest.raises(ValueError, match="model: expected an agent that acts through a group"):
        acting(unwrapped)


@pytest.mark.parametrize("system", SYSTEMS)
def test_learning_goes_through_the_group(system: System, bench: Any) -> None:
    model = agent(cartpole(), bench)
    before = [p.clone() for p in model.q_net.parameters()]
    x = batch(model)
    with act_through(model, cartpole(), system):
        model.learn(200)
        q = model.q_net(x)
        torch.testing.assert_close(model.q_net(-x), q.flip(-1), atol=1e-5, rtol=1e-5)
        assert q.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(before, model.q_net.parameters(), strict=True))


def test_refusals(bench: Any) -> None:
    model = agent(cartpole(), bench)
    with pytest.raises(TypeError, match="model: expected an agent of stable_baselines3, got Linear"):
        act_through(nn.Linear(2, 2), cartpole())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="symmetry: expected a Symmetry"):
        act_through(model, "c4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="system: expected"):
        act_through(model, cartpole(), "plain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model's 2 moves, got one on 3"):
        act_through(model, acrobot())
    with pytest.raises(ValueError, match="symmetry: expected actions of one group"):
        act_through(model, Symmetry(gridworld().inp, cartpole().out))
    assert model.q_net(batch(model)).shape == (16, 2), "a refused model stays as it was"


def test_a_batch_of_one_and_flat_observations(bench: Any) -> None:
    """A grid that a wrapper has flattened is no grid any more: refused, not turned wrongly."""
    model = agent(gridworld(), bench)
    environment = FlattenObservation(bench("gridworld").Gridworld(5))
    flat = DQN("MlpPolicy", environment, buffer_size=10, device="cpu")
    with act_through(model, gridworld()), act_through(flat, gridworld()):
        assert model.predict(np.zeros((2, 5, 5), np.float32), deterministic=True)[0].shape == ()
        with pytest.raises(ValueError, match="observations: expected a batch"):
            flat.predict(np.zeros(50, np.float32), deterministic=True)


# --- the experiment ---


def test_resumed_is_as_if_never_stopped(tmp_path: Path, bench: Any) -> None:
    train = bench("train")
    job = train.Job("cartpole", 3, 400, 2, 20, 20)
    steps: list[int] = []
    whole = train.run(job, tmp_path / "whole", steps.append)
    assert (steps[0], max(steps)) == (1, 400)
    assert train.run(job, tmp_path / "parts", steps.append, stop_after=1) is None
    resumed = train.run(job, tmp_path / "parts", steps.append)
    assert resumed["curve"] == whole["curve"]
    assert [point["steps"] for point in whole["curve"]] == [200, 400]
    files = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert files == ["cartpole-seed3-2.zip", "cartpole-seed3.json"], "the agent and its record stay"
    count = len(steps)
    assert train.run(job, tmp_path / "parts", steps.append)["curve"] == whole["curve"]
    assert len(steps) == count, "what is done is not done again"
    with pytest.raises(ValueError, match="expected the record of"):
        train.run(train.Job("cartpole", 3, 800, 2, 20, 20), tmp_path / "parts", steps.append)


def test_command_and_report(tmp_path: Path, bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, report = bench("run"), bench("report")
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    threads = torch.get_num_threads()
    try:
        assert run.main(["--quick", "--tasks", "gridworld", *folders]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "| Gridworld" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "quick.json").read_text())
    assert results["versions"]["equikern"] == equikern.__version__
    (only,) = results["runs"]
    assert [len(point["returns"]["plain"]) for point in only["curve"]] == [20, 20]
    assert (tmp_path / "out" / "quick.png").read_bytes()[:4] == b"\x89PNG"
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nb\n")
    assert report.update(page, tmp_path / "out" / "quick.json") == 0
    assert "2,000, 1" in page.read_text()
    assert "old" not in page.read_text()
    page.write_text("no markers")
    assert report.update(page, tmp_path / "out" / "quick.json") == 2
    assert run.main(["--tasks", "chess", *folders]) == 2


def test_readme_agrees_with_the_results(bench: Any) -> None:
    report, path = bench("report"), BENCH / "results" / "results.json"
    text = (BENCH / "README.md").read_text()
    assert report.figures.rendered(text, report.shown(json.loads(path.read_text()))) == text
