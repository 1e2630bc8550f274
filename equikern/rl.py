"""Reinforcement learning: the symmetries of known environments, and stable-baselines3's agents acting through them.

Not imported by ``import equikern``; the extra ``rl`` brings stable-baselines3 and gymnasium, which only ``act_through``
needs. What it does to an agent's networks is in ``equikern.nn.policies``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from .actions import GroupAction, PermutationAction, grid, permutation
from .core import checks
from .groups import cyclic_group
from .nn.policies import ActorCritic, Through

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["EquivariantAgent", "Symmetry", "acrobot", "act_through", "acting", "cartpole", "gridworld"]

System = Literal["equitune", "equizero"]
TURN = ("right", "up", "left", "down")  # torch.rot90 takes each to the next


class Symmetry(NamedTuple):
    """How one group acts on an environment: on what is observed, and on what can be done.

    Attributes:
        inp: the action on a batch of observations; for observations that are dicts a dict of actions by key, None, or
            no entry, for what the group leaves alone.
        out: the action on the Q-values or logits (…, n), one for each move.
    """

    inp: GroupAction | Mapping[str, GroupAction | None]
    out: PermutationAction


def cartpole() -> Symmetry:
    """C2 on ``CartPole-v1``: the mirror image negates all four state entries and swaps the two moves.

    Example:
        >>> import torch
        >>> from equikern import EquiTune
        >>> policy = EquiTune(torch.nn.Linear(4, 2), *cartpole())
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


class EquivariantAgent:
    """What ``act_through`` returns: an agent that answers equivariantly until ``remove``.

    Also a context manager, which removes at the end.

    Attributes:
        model: the agent, the same object.
        system: ``"equitune"`` or ``"equizero"``.
        symmetry: the actions on observations and moves.
        net: the module around the network that acts: observations to Q-values (B, n), quantiles (B, N, n), or logits
            (B, n) and values (B, 1).
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model
        self._maker = cast(_Maker, model.policy_class)  # what act_through puts there
        self.system, self.symmetry = self._maker.system, self._maker.symmetry
        self.net: Through = _through(model.policy)[0]

    def plain(self, observations: Any) -> Any:
        """What the unwrapped network says of observations (B, \\*)."""
        return self.net.plain(observations)

    def remove(self) -> None:
        """Let the agent act by its own network again. Once removed, nothing happens, whatever it acts through then."""
        if cast(Any, self.model.policy_class) is not self._maker:
            return
        for through in _through(self.model.policy):
            through.remove()
        self.model.policy_class = self._maker.policy_class

    def __enter__(self) -> EquivariantAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class _Maker:
    """What stands for the policy's class in an agent that acts through a group, and in its files: makes such ones."""

    def __init__(self, policy_class: Any, symmetry: Symmetry, system: System) -> None:
        self.policy_class, self.symmetry, self.system = policy_class, symmetry, system
        self.__name__ = policy_class.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        policy = self.policy_class(*args, **kwargs)
        _wrap(policy, self.symmetry, self.system)
        return policy


def act_through(model: BaseAlgorithm, symmetry: Symmetry, system: System = "equizero") -> EquivariantAgent:
    """Make an agent of stable-baselines3 act through the group: zero-shot if it is trained, or to train it so.

    For DQN, QR-DQN, and PPO, A2C and what else has their policy; discrete moves, observations of one tensor or a dict.
    From now on its networks answer with ``1/|G| Σ_g g⁻¹ Q(g x)`` (equitune) or with the view ``g*⁻¹ Q(g* x)`` whose
    softmax-normalised Q-values have the largest entry (equizero: the maximum over g and moves). Q are Q-values, the
    quantiles of QR-DQN (chosen by their means), or the logits of a policy; values of states, which the group leaves
    alone, are the mean over the views in both systems. So a move for g x is g's image of that for x, and moves that are
    drawn have the transformed distribution.

    ``model.predict``, ``evaluate_policy`` and whatever else asks the agent go through it. ``learn`` goes through it as
    well: online and target networks, actor and critic, so that it trains the equivariant policy (equizero with
    equitune's gradient). Parameters, optimizer and their names stay those of the plain networks. Files of
    ``model.save`` remember the symmetry: the agent that ``load`` makes of them acts through it, see ``acting``. Those
    of ``model.policy.save``, which hold the policy alone, do not.
    Observations that are normalised before the agent sees them (``VecNormalize``) must be so alike in every view.

    To export, hand over the network that acts (``model.q_net``, ``model.quantile_net``) or, as without the group, a
    module that calls ``model.policy``, under ``torch.distributions.Distribution.set_default_validate_args(False)``.

    Args:
        model: the agent.
        symmetry: one of this module's, or a ``Symmetry`` of your own actions of one group.
        system: ``"equitune"`` or ``"equizero"``.

    Returns:
        The handle: ``remove()`` it, or use it in a ``with`` statement, to get the plain agent back.

    Raises:
        ImportError: stable-baselines3 is not installed.
        TypeError: model is no such agent, symmetry not a Symmetry.
        ValueError: an unknown system; a model that already acts through a group, or whose moves are not discrete;
            actions of several groups; moves that are not as many as the model's; keys that are not the observations'.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
        >>> with act_through(model, cartpole(), "equitune"):
        ...     x = model.observation_space.sample()
        ...     moves = [int(model.predict(state, deterministic=True)[0]) for state in (x, -x)]
        >>> sorted(moves)
        [0, 1]
    """
    from gymnasium import spaces
    from stable_baselines3.common.base_class import BaseAlgorithm

    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"model: expected an agent of stable_baselines3, got {type(model).__name__}")
    if not isinstance(symmetry, Symmetry):
        raise TypeError(f"symmetry: expected a Symmetry, such as cartpole(), got {type(symmetry).__name__}")
    checks.choice("system", system, ("equitune", "equizero"))
    if not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(f"model: expected an agent with discrete moves, got {model.action_space}")
    _check(symmetry, model.observation_space, int(model.action_space.n))
    if _through(model.policy):
        raise ValueError("model: expected one that acts by its own network, got one that is wrapped; remove() that")
    _wrap(model.policy, symmetry, system)
    model.policy_class = _Maker(model.policy_class, symmetry, system)  # type: ignore[assignment]
    return EquivariantAgent(model)


def acting(model: BaseAlgorithm) -> EquivariantAgent:
    """The handle of an agent that acts through a group already, such as one that was loaded.

    Args:
        model: an agent that ``act_through`` was called with, or that was loaded from such a one's file.

    Raises:
        ValueError: it acts by its own network.

    Example:
        >>> import io
        >>> from stable_baselines3 import DQN
        >>> file, model = io.BytesIO(), DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
        >>> _ = act_through(model, cartpole())
        >>> model.save(file)
        >>> acting(DQN.load(file, device="cpu")).system
        'equizero'
    """
    if not isinstance(getattr(model, "policy_class", None), _Maker):
        raise ValueError("model: expected an agent that acts through a group, got one that acts by its own network")
    return EquivariantAgent(model)


def _through(policy: Any) -> list[Through]:
    """What stands in front of a policy's networks, the one that acts first."""
    return [module for module in policy.modules() if isinstance(module, Through)]


def _wrap(policy: Any, symmetry: Symmetry, system: System) -> None:
    """Put the group in front of a policy's networks."""
    from stable_baselines3.common.distributions import CategoricalDistribution
    from stable_baselines3.common.policies import ActorCriticPolicy

    inp = symmetry.inp if isinstance(symmetry.inp, GroupAction) else dict(symmetry.inp)
    names = ("q_net", "q_net_target", "quantile_net", "quantile_net_target")
    networks = [getattr(policy, name) for name in names if hasattr(policy, name)]
    if networks:
        for network in networks:
            Through(network, inp, symmetry.out, system).stand_in()
        return
    known = isinstance(policy, ActorCriticPolicy) and isinstance(policy.action_dist, CategoricalDistribution)
    # One that answers in another way, from what it remembers or with masks, would not be asked here.
    if not known or any(getattr(type(policy), name) is not vars(ActorCriticPolicy)[name] for name in ActorCritic.names):
        raise TypeError(
            f"model: expected a DQN or QRDQN, or a policy that answers as ActorCriticPolicy does (PPO, A2C), got "
            f"{type(policy).__name__}"
        )
    ActorCritic(policy, inp, symmetry.out, system).stand_in()


def _check(symmetry: Symmetry, observations: Any, moves: int) -> None:
    """That a symmetry is one of what an agent sees and does."""
    from gymnasium import spaces

    if isinstance(symmetry.inp, Mapping) != isinstance(observations, spaces.Dict):
        raise ValueError(
            f"symmetry: expected a dict of actions where observations are dicts, and one action elsewhere, got "
            f"{symmetry.inp!r} for {observations}"
        )
    actions = symmetry.inp.values() if isinstance(symmetry.inp, Mapping) else [symmetry.inp]
    acts = [action for action in actions if action is not None]
    if isinstance(symmetry.inp, Mapping):
        unknown = [key for key in symmetry.inp if key not in observations.spaces]
        if unknown:
            raise ValueError(f"symmetry: expected keys of {[*observations.spaces]}, got {unknown[0]!r}")
        if not acts:
            raise ValueError("symmetry: expected an action on one observation or more, got none")
    for action in acts:
        if not isinstance(action, GroupAction):
            raise TypeError(f"symmetry: expected actions on observations, got {type(action).__name__}")
        if action.group != symmetry.out.group:
            raise ValueError(
                f"symmetry: expected actions of one group, got {action.group!r} and {symmetry.out.group!r}"
            )
    if symmetry.out.size != moves:
        raise ValueError(f"symmetry: expected an action on the model's {moves} moves, got one on {symmetry.out.size}")
