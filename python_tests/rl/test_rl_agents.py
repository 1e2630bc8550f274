"""PPO, A2C and QR-DQN through the group: their symmetry, training, files, and what they are exported to."""

from __future__ import annotations

import copy
import importlib
import io
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("stable_baselines3", reason='the extra "rl" is not installed')
pytest.importorskip("sb3_contrib", reason='the extra "rl" is not installed')
import gymnasium
import numpy as np
from equikern import matrix, permutation
from equikern.groups import cyclic_group
from equikern.rl import Symmetry, act_through, acting, cartpole, gridworld
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

System = Literal["equitune", "equizero"]
SYSTEMS: tuple[System, ...] = ("equitune", "equizero")
QUIET = Logger(None, [])  # its own would leave a folder in the system's temporary one


class Board(gymnasium.Env[dict[str, Any], np.int64]):
    """Walk to the goal: the agent's board, the way to the goal as a vector, and how many steps are left."""

    def __init__(self, size: int = 5) -> None:
        self.size = size
        box = spaces.Box
        self.observation_space = spaces.Dict(
            {
                "board": box(0.0, 1.0, (1, size, size), np.float32),
                "way": box(-1.0, 1.0, (2,), np.float32),
                "left": box(0.0, 1.0, (1,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(4)
        self.at, self.goal, self.steps = [0, 0], [0, 0], 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.goal = ([int(v) for v in self.np_random.integers(self.size, size=2)] for _ in range(2))
        self.steps = 0
        return self.seen(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        row, column = ((0, 1), (-1, 0), (0, -1), (1, 0))[int(action)]
        self.at = [min(max(self.at[0] + row, 0), self.size - 1), min(max(self.at[1] + column, 0), self.size - 1)]
        self.steps += 1
        found = self.at == self.goal
        return self.seen(), float(found), found, self.steps >= 10, {}

    def seen(self) -> dict[str, Any]:
        board = np.zeros((1, self.size, self.size), np.float32)
        board[0, self.at[0], self.at[1]] = 1
        way = np.array([self.goal[1] - self.at[1], self.at[0] - self.goal[0]], np.float32) / self.size  # right, up
        return {"board": board, "way": way, "left": np.array([1 - self.steps / 10], np.float32)}


def board_symmetry() -> Symmetry:
    """A quarter turn of the board turns the way to the goal and the moves; the steps that are left stay."""
    plain = gridworld()
    assert not isinstance(plain.inp, dict)
    turns = torch.tensor([[[1.0, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])
    return Symmetry({"board": plain.inp, "way": matrix(turns, group=plain.out.group), "left": None}, plain.out)


def agent(kind: Any, symmetry: Symmetry, **options: Any) -> Any:
    if isinstance(symmetry.inp, dict):
        environment: Any = Board()
        name = "MultiInputPolicy"
    elif symmetry.inp.order == 4:
        grids = importlib.import_module("bench.papers.q_learning.gridworld")
        environment, name = gymnasium.wrappers.TimeLimit(grids.Gridworld(5), 20), "MlpPolicy"
    else:
        environment, name = gymnasium.make("CartPole-v1"), "MlpPolicy"
    usual: dict[str, Any] = {"seed": 0, "device": "cpu"}
    if kind in (DQN, QRDQN):
        usual |= {"buffer_size": 500, "learning_starts": 20, "policy_kwargs": {"net_arch": [16]}}
        if kind is QRDQN:
            usual["policy_kwargs"]["n_quantiles"] = 10
    else:
        usual |= {"n_steps": 32, "policy_kwargs": {"net_arch": [16]}}
        if kind is PPO:
            usual |= {"batch_size": 32, "n_epochs": 2}
    model = kind(name, environment, **{**usual, **options})
    model.set_logger(QUIET)
    return widened(model)


def widened(model: Any) -> Any:
    """Weights far from zero: a new policy's moves are all but equally likely."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 2)
    return model


def observed(model: Any, n: int = 12) -> Any:
    """Observations in general position."""
    torch.manual_seed(1)
    if isinstance(model.observation_space, spaces.Dict):
        return {key: torch.randn(n, *space.shape) for key, space in model.observation_space.items()}
    return torch.randn(n, *model.observation_space.shape)


def seen(symmetry: Symmetry, g: int, x: Any) -> Any:
    if not isinstance(symmetry.inp, dict):
        return symmetry.inp.act(g, x)
    return {key: t if (a := symmetry.inp[key]) is None else a.act(g, t) for key, t in x.items()}


def image_of(symmetry: Symmetry, g: int, moves: Any) -> list[int]:
    return [int(symmetry.out.act(g, torch.eye(symmetry.out.size)[int(move)]).argmax()) for move in moves]


def arrays(x: Any) -> Any:
    return {key: t.numpy() for key, t in x.items()} if isinstance(x, dict) else x.numpy()


def merged(symmetry: Symmetry, system: System, y: list[Tensor], scored: list[Tensor]) -> Tensor:
    """Each view's answers, transformed back and averaged, or those of the view that is surest of a move."""
    inverse = symmetry.out.group.inverse
    views = torch.stack([symmetry.out.act(int(inverse[g]), one) for g, one in enumerate(y)])
    if system == "equitune":
        return views.mean(0)
    best = torch.stack(scored).softmax(-1).amax(-1).argmax(0)
    return views[best, torch.arange(len(best))]


SYMMETRIES = {"cartpole": cartpole, "gridworld": gridworld, "board": board_symmetry}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("kind", [PPO, A2C])
@pytest.mark.parametrize("name", SYMMETRIES)
def test_actors_and_critics(kind: Any, name: str, system: System) -> None:
    """Logits move with what is seen and values stay, in everything that stable-baselines3 asks a policy."""
    symmetry = SYMMETRIES[name]()
    model = agent(kind, symmetry)
    policy, x = model.policy, observed(model)
    group = symmetry.out.group
    plain = [policy.get_distribution(seen(symmetry, g, x)).distribution.logits for g in range(group.order)]
    values = torch.stack([policy.predict_values(seen(symmetry, g, x)) for g in range(group.order)]).mean(0)
    with act_through(model, symmetry, system) as through:
        logits = policy.get_distribution(x).distribution.logits
        expected = merged(symmetry, system, plain, plain).log_softmax(-1)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.predict_values(x), values, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(through.plain(x)[0].log_softmax(-1), logits, atol=1e-3)
        moves = policy(x, deterministic=True)[0]
        assert moves.tolist() == logits.argmax(-1).tolist()
        for g in range(group.order):
            gx = seen(symmetry, g, x)
            torch.testing.assert_close(
                policy.get_distribution(gx).distribution.logits, symmetry.out.act(g, logits), atol=1e-5, rtol=1e-5
            )
            acted, value, log_p = policy(gx, deterministic=True)
            assert acted.tolist() == image_of(symmetry, g, moves)
            assert model.predict(arrays(gx), deterministic=True)[0].tolist() == acted.tolist()
            torch.testing.assert_close(value, values, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(log_p, logits.amax(-1), atol=1e-5, rtol=1e-5)
            judged = policy.evaluate_actions(gx, acted)
            entropy = -(logits.exp() * logits).sum(-1)
            for got, wanted in zip(judged, (values, logits.amax(-1), entropy), strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(policy.get_distribution(x).distribution.logits, plain[0])


@pytest.mark.parametrize("system", SYSTEMS)
def test_moves_that_are_drawn_are_transformed_back(system: System) -> None:
    """In one state and its turns: the moves' frequencies are those of the probabilities, turned."""
    symmetry = gridworld()
    model = agent(PPO, symmetry)
    x = observed(model, 1).expand(4000, -1, -1, -1)
    with act_through(model, symmetry, system):
        p = model.policy.get_distribution(x[:1]).distribution.probs[0]
        for g in range(4):
            torch.manual_seed(3)
            drawn = model.policy(seen(symmetry, g, x))[0]
            often = torch.bincount(drawn, minlength=4) / len(drawn)
            assert (often - symmetry.out.act(g, p)).abs().max() < 0.03
    assert p.max() - p.min() > 0.2


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", SYMMETRIES)
def test_quantiles(name: str, system: System) -> None:
    symmetry = SYMMETRIES[name]()
    model = agent(QRDQN, symmetry)
    x = observed(model)
    plain = [model.quantile_net(seen(symmetry, g, x)) for g in range(symmetry.out.group.order)]
    with act_through(model, symmetry, system):
        quantiles = model.quantile_net(x)
        assert quantiles.shape == plain[0].shape == (12, 10, symmetry.out.size)
        expected = merged(symmetry, system, plain, [y.mean(1) for y in plain])
        torch.testing.assert_close(quantiles, expected, atol=1e-5, rtol=1e-5)
        moves = quantiles.mean(1).argmax(-1)
        for g in range(symmetry.out.group.order):
            gx = seen(symmetry, g, x)
            torch.testing.assert_close(model.quantile_net(gx), symmetry.out.act(g, quantiles), atol=1e-5, rtol=1e-5)
            target = model.quantile_net_target(x)
            torch.testing.assert_close(model.quantile_net_target(gx), symmetry.out.act(g, target), atol=1e-5, rtol=1e-5)
            assert model.predict(arrays(gx), deterministic=True)[0].tolist() == image_of(symmetry, g, moves)


@pytest.mark.parametrize("kind", [DQN, QRDQN, PPO, A2C])
def test_training_saving_and_loading_keep_the_symmetry(kind: Any, tmp_path: Path) -> None:
    for name, system in (("cartpole", "equizero"), ("board", "equitune")):
        symmetry = SYMMETRIES[name]()
        model = agent(kind, symmetry)
        keys = list(model.policy.state_dict())
        before = [p.clone() for p in model.policy.parameters()]
        act_through(model, symmetry, system)  # type: ignore[arg-type]
        model.learn(200 if name == "cartpole" else 64)
        assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
        assert list(model.policy.state_dict()) == keys
        model.save(tmp_path / "agent")
        loaded = kind.load(tmp_path / "agent", env=model.get_env(), device="cpu")
        assert loaded.policy_kwargs == model.policy_kwargs
        through = acting(loaded)
        assert through.system == system
        x = observed(model)
        group = symmetry.out.group
        for learner in (model, loaded):
            learner.policy.set_training_mode(False)
            moves = learner.predict(arrays(x), deterministic=True)[0]
            for g in range(group.order):
                turned = learner.predict(arrays(seen(symmetry, g, x)), deterministic=True)[0]
                assert turned.tolist() == image_of(symmetry, g, moves), (name, g)
        same(acting(model).net(x), through.net(x))
        loaded.set_logger(QUIET)
        loaded.learn(40, reset_num_timesteps=False)
        file = io.BytesIO()
        through.remove()
        loaded.save(file)
        with pytest.raises(ValueError, match="acts by its own network"):
            acting(kind.load(file, device="cpu"))


class Greedy(nn.Module):
    """What stable-baselines3's documentation exports."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any) -> Any:
        return self.policy(observations, deterministic=True)


@pytest.fixture
def unvalidated() -> Any:
    """torch's distributions look at values when they are made, which no export can follow."""
    torch.distributions.Distribution.set_default_validate_args(False)
    yield
    torch.distributions.Distribution.set_default_validate_args(__debug__)


def test_exported_and_traced(unvalidated: Any) -> None:
    """The policy as it acts: the same moves and values, quantiles or Q-values, for any batch."""
    for kind, symmetry, system in (
        (PPO, gridworld(), "equizero"),
        (A2C, board_symmetry(), "equitune"),
        (DQN, cartpole(), "equizero"),
        (QRDQN, gridworld(), "equitune"),
    ):
        model = agent(kind, symmetry)
        act_through(model, symmetry, system)  # type: ignore[arg-type]
        module = {DQN: "q_net", QRDQN: "quantile_net"}.get(kind)
        module = Greedy(model.policy) if module is None else getattr(model, module)
        x, more = observed(model, 3), observed(model, 7)
        batch = torch.export.Dim("batch", min=2, max=100)
        sizes = {key: {0: batch} for key in x} if isinstance(x, dict) else {0: batch}
        with torch.no_grad():
            program = torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=False)
            assert len(program.state_dict) >= len(list(module.parameters()))
            same(module(more), program.module()(more))
            same(module(x), torch.jit.trace(module, (x,), strict=False)(x))


def same(expected: Any, found: Any) -> None:
    for a, b in zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]:
        torch.testing.assert_close(a, b)


def test_copies_and_devices() -> None:
    """A copy goes through its own parameters, and the tables move with the policy."""
    model = agent(PPO, cartpole())
    x = observed(model)
    act_through(model, cartpole(), "equitune")
    twin = copy.deepcopy(model.policy)
    assert torch.equal(twin.predict_values(x), model.policy.predict_values(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    assert not torch.equal(twin.predict_values(x), model.policy.predict_values(x))
    moved = model.policy.to("meta")
    assert {t.device.type for t in moved.buffers()} == {"meta"}


def test_separate_feature_extractors() -> None:
    model = agent(PPO, cartpole(), policy_kwargs={"share_features_extractor": False, "net_arch": [8]})
    x = observed(model)
    with act_through(model, cartpole(), "equitune"):
        torch.testing.assert_close(model.policy.predict_values(-x), model.policy.predict_values(x))
        assert (model.policy(-x, deterministic=True)[0] == 1 - model.policy(x, deterministic=True)[0]).all()


def test_a_handle_that_was_removed_leaves_the_next_one_alone() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    first = act_through(model, cartpole())
    first.remove()
    second = act_through(model, cartpole(), "equitune")
    first.remove()
    assert acting(model).system == "equitune"
    observation = np.array([0.1, 0.2, -0.1, 0.3], np.float32)
    left, right = (int(model.predict(o, deterministic=True)[0]) for o in (observation, -observation))
    assert left != right
    second.remove()
    with pytest.raises(ValueError, match="acts by its own network"):
        acting(model)


def test_refusals() -> None:
    class Other(ActorCriticPolicy):
        def predict_values(self, obs: Any) -> Tensor:
            return super().predict_values(obs)

    cart, board = cartpole(), board_symmetry()
    assert isinstance(board.inp, dict)
    small = {"n_steps": 8, "device": "cpu"}
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (agent(PPO, board), gridworld(), ValueError, "symmetry: expected a dict of actions where observations are"),
        (agent(PPO, cart), board, ValueError, "symmetry: expected a dict of actions where observations are"),
        (agent(A2C, board), Symmetry({"bord": board.inp["board"]}, board.out), ValueError, "got 'bord'"),
        (agent(A2C, board), Symmetry({"board": None}, board.out), ValueError, "an action on one observation or more"),
        (agent(A2C, board), Symmetry({"board": "c4"}, board.out), TypeError, "actions on observations, got str"),
        (agent(A2C, board), Symmetry(board.inp, cart.out), ValueError, "symmetry: expected actions of one group"),
        (
            agent(PPO, cart),
            Symmetry(cart.inp, permutation([[0, 1, 2], [2, 1, 0]], group=cyclic_group(2))),
            ValueError,
            "the model's 2 moves, got one on 3",
        ),
        (SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), cart, ValueError, "with discrete moves"),
        (PPO(Other, "CartPole-v1", **small), cart, TypeError, "answers as ActorCriticPolicy does .* got Other"),
        (RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **small), cart, TypeError, "got RecurrentActorCriticPolicy"),
        (MaskablePPO("MlpPolicy", "CartPole-v1", **small), cart, TypeError, "got MaskableActorCriticPolicy"),
    ]  # fmt: skip
    for model, symmetry, error, message in cases:
        with pytest.raises(error, match=message):
            act_through(model, symmetry)
        assert isinstance(model.policy_class, type), "a refused agent stays as it was"
    model = agent(PPO, cart)
    act_through(model, cart)
    with pytest.raises(ValueError, match="got one that is wrapped"):
        act_through(model, cart)
