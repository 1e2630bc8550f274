"""Q-learning: the symmetries of known environments, and stable-baselines3's DQN acting through them.

Not imported by ``import equikern``; the extra ``rl`` brings stable-baselines3 and gymnasium, which only ``act_through``
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn

from .actions import GroupAction, PermutationAction, grid, permutation
from .core import checks
from .groups import cyclic_group
from .nn import EquiTune, EquiZero

if TYPE_CHECKING:
    from stable_baselines3 import DQN
    from stable_baselines3.dqn.policies import QNetwork

__all__ = ["EquivariantDQN", "Symmetry", "acrobot", "act_through", "cartpole", "gridworld"]

TURN = ("right", "up", "left", "down")  # torch.rot90 takes each to the next


class Symmetry(NamedTuple):
    """How one group acts on an environment: on what is observed, and on what can be done.

    Attributes:
        inp: the action on a batch of observations.
        out: the action on the Q-values (…, n), one for each move.
    """

    inp: GroupAction
    out: PermutationAction


def cartpole() -> Symmetry:
    """C2 on ``CartPole-v1``: the mirror image negates all four state entries and swaps the two moves.

    Example:
        >>> import torch
        >>> policy = EquiTune(nn.Linear(4, 2), *cartpole())
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(policy(-x), policy(x).flip(-1))
        True
    """
    state = permutation([[0, 1, 2, 3]] * 2, [[1] * 4, [-1] * 4], group=cyclic_group(2))
    return Symmetry(state, permutation([[0, 1], [1, 0]], group=cyclic_group(2)))


def acrobot() -> Symmetry:
    """C2 on ``Acrobot-v1``: sines and angular velocities change sign, cosines stay, torques −1 and 1 swap.

    The state is (cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ₁', θ₂').

    Example:
        >>> import torch
        >>> acrobot().inp.act(1, torch.tensor([0.8, 0.6, 1.0, 0.0, 2.0, -3.0])).tolist()[1::2]
        [-0.6000000238418579, -0.0, 3.0]
    """
    state = permutation([list(range(6))] * 2, [[1] * 6, [1, -1, 1, -1, -1, -1]], group=cyclic_group(2))
    return Symmetry(state, permutation([[0, 1, 2], [2, 1, 0]], group=cyclic_group(2)))


def gridworld(moves: Sequence[str] = TURN) -> Symmetry:
    """C4 on a square grid world seen from above: a quarter turn of the grid turns the four moves.

    Observations are planes (B, \\*, n, n), rows counted downwards as in an image.

    Args:
        moves: the directions of moves 0 … 3, each of "right", "up", "left" and "down" once. FrozenLake's would be
            ``("left", "down", "right", "up")``.

    Raises:
        ValueError: moves are not these four words.

    Example:
        >>> import torch
        >>> symmetry = gridworld()
        >>> symmetry.out.act(1, torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()  # right becomes up
        [0.0, 1.0, 0.0, 0.0]
    """
    names = list(moves)
    if sorted(names) != sorted(TURN):
        raise ValueError(f"moves: expected each of {', '.join(TURN)} once, got {moves!r}")
    turned = [[names.index(TURN[(TURN.index(name) + k) % 4]) for name in names] for k in range(4)]
    return Symmetry(grid("c4"), permutation(turned, group=cyclic_group(4)))


class EquivariantDQN:
    """What ``act_through`` returns: a DQN whose Q-networks answer equivariantly until ``remove``.

    Also a context manager, which removes at the end.

    Attributes:
        model: the DQN, the same object.
        system: ``"equitune"`` or ``"equizero"``.
        symmetry: the actions on observations and Q-values.
        net: the wrapper around the online Q-network.
    """

    def __init__(self, model: DQN, symmetry: Symmetry, system: Literal["equitune", "equizero"]) -> None:
        self.model, self.symmetry, self.system = model, symmetry, system
        self._nets: list[QNetwork] = [model.policy.q_net, model.policy.q_net_target]
        # A bound method as backbone: the wrapper holds no parameters, so that state dicts and saved files stay as
        # they are, and what it calls is the network's own forward, not the one that is put in its place below.
        self._plain: list[Callable[[Tensor], Tensor]] = [net.forward for net in self._nets]
        wrapped: list[nn.Module] = [
            EquiTune(plain, *symmetry) if system == "equitune" else EquiZero(plain, *symmetry, loss="max_q")
            for plain in self._plain
        ]
        self.net = wrapped[0]
        for net, through in zip(self._nets, wrapped, strict=True):
            vars(net)["forward"] = through.forward  # shadows the class's method, as long as it is there

    def plain(self, observations: Tensor) -> Tensor:
        """The unwrapped network's Q-values: observations (B, \\*) → (B, n)."""
        return self._plain[0](observations)

    def remove(self) -> None:
        """Let the model act by its own network again. Once removed, nothing happens."""
        for net in self._nets:
            vars(net).pop("forward", None)

    def __enter__(self) -> EquivariantDQN:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def act_through(model: DQN, symmetry: Symmetry, system: Literal["equitune", "equizero"] = "equizero") -> EquivariantDQN:
    """Make a trained stable-baselines3 DQN act through the group, zero-shot.

    From now on its Q-networks answer with ``1/|G| Σ_g g⁻¹ Q(g x)`` (equitune) or with the view ``g*⁻¹ Q(g* x)`` whose
    softmax-normalised Q-values have the largest entry (equizero: the maximum over g and moves). ``model.predict``,
    ``evaluate_policy`` and whatever else asks the model go through it. Parameters, optimizer and saved files stay those
    of the plain network. ``learn`` goes through it as well: online and target network are both wrapped, so that it
    fine-tunes the equivariant policy (equizero with equitune's gradient).

    Args:
        model: the DQN; its observations must be one tensor.
        symmetry: one of this module's, or a ``Symmetry`` of your own actions of one group.
        system: ``"equitune"`` or ``"equizero"``.

    Returns:
        The handle: ``remove()`` it, or use it in a ``with`` statement, to get the plain agent back.

    Raises:
        ImportError: stable-baselines3 is not installed.
        TypeError: model is not a DQN, symmetry not a Symmetry.
        ValueError: an unknown system; a model that already acts through a group; actions of two groups; moves that are
            not as many as the model's.

    Example:
        >>> from stable_baselines3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
        >>> with act_through(model, cartpole(), "equitune"):
        ...     x = model.observation_space.sample()
        ...     moves = [int(model.predict(state, deterministic=True)[0]) for state in (x, -x)]
        >>> sorted(moves)
        [0, 1]
    """
    from stable_baselines3 import DQN

    if not isinstance(model, DQN):
        raise TypeError(f"model: expected a stable_baselines3.DQN, got {type(model).__name__}")
    if not isinstance(symmetry, Symmetry):
        raise TypeError(f"symmetry: expected a Symmetry, such as cartpole(), got {type(symmetry).__name__}")
    checks.choice("system", system, ("equitune", "equizero"))
    if symmetry.inp.group != symmetry.out.group:
        raise ValueError(
            f"symmetry: expected actions of one group, got {symmetry.inp.group!r} and {symmetry.out.group!r}"
        )
    if "forward" in vars(model.policy.q_net):
        raise ValueError("model: expected a DQN that acts by its own network, got one that is wrapped; remove() that")
    moves = int(model.action_space.n)  # type: ignore[attr-defined]  # DQN takes Discrete alone
    if symmetry.out.size != moves:
        raise ValueError(f"symmetry: expected an action on the model's {moves} moves, got one on {symmetry.out.size}")
    return EquivariantDQN(model, symmetry, system)
