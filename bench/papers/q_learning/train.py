"""One job: a DQN trained on one environment with one seed, evaluated plain and through the group as it learns."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from bench.papers.q_learning.gridworld import Gridworld
from equikern.rl import Symmetry, acrobot, act_through, cartpole
from equikern.rl import gridworld as gridworld_symmetry
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

SYSTEMS = ("plain", "equitune", "equizero")
AT_ONCE = 20  # environments that an evaluation steps together
# One setting for all: stable-baselines3's own agents hardly learn in so few steps (rare target updates, a low rate).
# It was chosen by the plain agent's return in training alone.
DQN_SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "learning_starts": 1000,
    "target_update_interval": 250,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.05,
}


@dataclass(frozen=True)
class Task:
    """An environment to learn, and how.

    Attributes:
        steps: environment steps of training, the paper's.
        symmetry: the group's actions.
        train, test: make an environment to train in, and one to be evaluated in.
        gamma: the discount.
    """

    steps: int
    symmetry: Callable[[], Symmetry]
    train: Callable[[], gymnasium.Env[Any, Any]]
    test: Callable[[], gymnasium.Env[Any, Any]]
    gamma: float = 0.99


def _walk(quarter: bool) -> gymnasium.Env[Any, Any]:
    return TimeLimit(Gridworld(5, quarter), 20)


TASKS = {
    "gridworld": Task(100_000, gridworld_symmetry, lambda: _walk(True), lambda: _walk(False), 0.9),
    "gridworld-all": Task(100_000, gridworld_symmetry, lambda: _walk(False), lambda: _walk(False), 0.9),
    "cartpole": Task(100_000, cartpole, lambda: gymnasium.make("CartPole-v1"), lambda: gymnasium.make("CartPole-v1")),
    "acrobot": Task(70_000, acrobot, lambda: gymnasium.make("Acrobot-v1"), lambda: gymnasium.make("Acrobot-v1")),
}


@dataclass(frozen=True)
class Job:
    """What is trained, and how often and how long it is evaluated.

    Attributes:
        task: a name in ``TASKS``.
        seed: of the network, the exploration and the training environment.
        steps: environment steps of training.
        legs: parts that training is cut into; after each one the agent is evaluated and kept.
        episodes: of an evaluation after a leg.
        final_episodes: of the one after the last leg.
    """

    task: str
    seed: int
    steps: int
    legs: int
    episodes: int
    final_episodes: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.task}-seed{self.seed}"


def job(task: str, seed: int, quick: bool) -> Job:
    """The job of a full run, or a short one that only shows that everything works."""
    if quick:
        return Job(task, seed, TASKS[task].steps // 50, 2, AT_ONCE, AT_ONCE)
    return Job(task, seed, TASKS[task].steps, 5, 40, 200)


class _Until(BaseCallback):
    """Stops training at a step, and tells of every step."""

    def __init__(self, step: int, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.step, self.tell = step, tell

    def _on_step(self) -> bool:
        self.tell(self.num_timesteps)
        return self.num_timesteps < self.step


def evaluate(model: DQN, task: Task, system: str, episodes: int, seed: int) -> list[float]:
    """The returns of some episodes, greedy, in fresh environments of one seed, so that all systems start alike."""
    environments = DummyVecEnv([lambda: Monitor(task.test())] * AT_ONCE)
    environments.seed(seed)
    with nullcontext() if system == "plain" else act_through(model, task.symmetry(), system):  # type: ignore[arg-type]
        rewards, _ = evaluate_policy(model, environments, episodes, return_episode_rewards=True)
    environments.close()
    assert isinstance(rewards, list)
    return [float(reward) for reward in rewards]


def run(job: Job, folder: Path, tell: Callable[[int], None], stop_after: int | None = None) -> dict[str, Any] | None:
    """Train and evaluate, going on from what folder keeps of this job; the record, None where it was stopped before.

    Every leg starts from a seed of its own and a fresh episode, so a run that was interrupted and resumed gives the
    numbers of one that was not.

    Args:
        job: the job.
        folder: for checkpoints while it runs, and for its record ``<name>.json``.
        tell: called with the number of steps done.
        stop_after: stop after so many legs.

    Raises:
        ValueError: the folder keeps this task and seed with other steps, legs or episodes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.name}.json"
    record: dict[str, Any] = {"job": asdict(job), "curve": [], "seconds": 0.0}
    if path.exists():
        record = json.loads(path.read_text())
        if record["job"] != asdict(job):
            raise ValueError(f"{path}: expected the record of {asdict(job)}, found {record['job']}; remove it")
    task = TASKS[job.task]
    for leg in range(len(record["curve"]), job.legs):
        if leg == stop_after:
            return None
        began = time.monotonic()
        seed = 1000 * job.seed + leg
        environment = DummyVecEnv([lambda: Monitor(task.train())])
        before, after = (folder / f"{job.name}-{done}" for done in (leg, leg + 1))
        if leg:
            model = DQN.load(before, environment, device="cpu")  # a fresh environment: the leg starts with an episode
            model.load_replay_buffer(f"{before}.pkl")
        else:
            _seed(seed)
            model = DQN(
                "MlpPolicy",
                environment,
                gamma=task.gamma,
                buffer_size=job.steps,
                seed=seed,
                device="cpu",
                **DQN_SETTINGS,
            )
        model.set_logger(Logger(None, []))  # its own would leave a folder in the system's temporary one
        model.set_random_seed(seed)
        until = _Until(job.steps * (leg + 1) // job.legs, tell)
        model.learn(job.steps - model.num_timesteps, until, reset_num_timesteps=False)
        episodes = job.final_episodes if leg == job.legs - 1 else job.episodes
        test_seed = 1_000_000 + 1000 * job.seed + leg
        returns = {system: evaluate(model, task, system, episodes, test_seed) for system in SYSTEMS}
        environment.close()
        model.save(after)
        if leg < job.legs - 1:
            model.save_replay_buffer(f"{after}.pkl")
        record["curve"].append({"steps": model.num_timesteps, "returns": returns})
        record["seconds"] += time.monotonic() - began
        _write(path, json.dumps(record))
        for suffix in (".zip", ".pkl"):  # not before the record says that this leg is done
            Path(f"{before}{suffix}").unlink(missing_ok=True)
    return record


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
