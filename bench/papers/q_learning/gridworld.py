"""A grid world with the symmetry of the square: walk to a goal."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MOVES = ((0, 1), (-1, 0), (0, -1), (1, 0))  # right, up, left, down as (rows, columns)

Observation = NDArray[np.float32]


class Gridworld(gymnasium.Env[Observation, np.int64]):
    """An agent on a size × size grid walks to a goal, one cell a step; 1 reward there, nothing else.

    The observation is two planes (2, size, size): a one where the agent is, a one where the goal is. Moves against a
    wall do nothing. Start and goal are drawn at random and differ. Turning the grid by 90° turns the task into itself.

    Args:
        size: cells in a row, odd.
        quarter: draw the goals from the top left (size − 1)/2 × (size + 1)/2 cells alone. Its four turned copies and
            the centre make up the grid, so an agent that trains like this has seen one of four orientations of the
            task. Starts are drawn from the whole grid in any case.
    """

    def __init__(self, size: int = 5, quarter: bool = False) -> None:
        self.size, self.quarter = size, quarter
        self.observation_space = spaces.Box(0.0, 1.0, (2, size, size), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))
        self.agent = self.goal = (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw start and goal; ``options`` may name them, as ``{"agent": (row, column), "goal": (row, column)}``."""
        super().reset(seed=seed)
        rows, columns = (self.size // 2, self.size // 2 + 1) if self.quarter else (self.size, self.size)
        row, column = divmod(int(self.np_random.integers(rows * columns)), columns)
        self.goal = (row, column)
        agent = int(self.np_random.integers(self.size**2 - 1))
        agent += agent >= row * self.size + column  # any cell but the goal's
        self.agent = divmod(agent, self.size)
        if options:
            self.agent, self.goal = options["agent"], options["goal"]
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Walk."""
        row, column = (min(max(x + d, 0), self.size - 1) for x, d in zip(self.agent, MOVES[int(action)], strict=True))
        self.agent = (row, column)
        found = self.agent == self.goal
        return self._observation(), float(found), found, False, {}

    def _observation(self) -> Observation:
        planes = np.zeros((2, self.size, self.size), np.float32)
        planes[0][self.agent] = planes[1][self.goal] = 1.0
        return planes
