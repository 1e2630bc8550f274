"""An agent's networks asked in every view of what it observes: what ``equikern.rl`` puts in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..actions import GroupAction, PermutationAction
from ..core import checks
from ..ops import orbit, orbit_mean, orbit_score, orbit_select
from .tables import ActionTables

Observation = Tensor | Mapping[str, Tensor]


class Through(nn.Module):
    """A network's answers (B, …, n), one for each move, from all views of its observations.

    It is a submodule of the network that it stands in for, to which it keeps no parameters of its own, so that state
    dicts and files stay those of the network.

    Args:
        network: the network; ``forward`` takes a batch of observations.
        inp: the action on observations, or actions by key, None for what is the same in every view.
        out: the action on what the network says of the moves.
        system: see ``equikern.rl.act_through``.
    """

    names: ClassVar[tuple[str, ...]] = ("forward",)  # the network's methods that are replaced

    def __init__(
        self,
        network: nn.Module,
        inp: GroupAction | dict[str, GroupAction | None],
        out: PermutationAction,
        system: Literal["equitune", "equizero"],
    ) -> None:
        super().__init__()
        self._held = (network,)  # no submodule: it is the other way round
        self.inp, self.out, self.system = inp, out, system
        actions = [inp] if isinstance(inp, GroupAction) else [action for action in inp.values() if action is not None]
        self._tables = ActionTables([*actions, out])

    def stand_in(self) -> None:
        """Answer in the network's place."""
        (network,) = self._held
        network.add_module("through", self)
        for name in self.names:
            # Shadows the class's method, as long as it is there.
            vars(network)[name] = getattr(self, "answer" if name == "forward" else name)

    def remove(self) -> None:
        """Let the network answer for itself."""
        (network,) = self._held
        for name in self.names:
            vars(network).pop(name, None)
        del network.through

    def plain(self, observations: Observation) -> Any:
        """What the network itself says."""
        (network,) = self._held
        return type(network).forward(network, observations)

    def answer(self, observations: Observation) -> Any:
        """What it says by all views."""
        return self(observations)

    def forward(self, observations: Observation) -> Any:
        """The answers to observations (B, …), as the network's own are."""
        return self._merged(self._split(self.plain(self.views(observations))))

    def views(self, observations: Observation) -> Any:
        """All views of observations, as one batch of |G|·B."""
        if not isinstance(observations, Mapping):
            assert isinstance(self.inp, GroupAction)
            return self._orbit("observations", observations, self.inp)
        assert isinstance(self.inp, dict)
        found = {}
        for key, x in observations.items():
            action = self.inp.get(key)
            if action is None:
                found[key] = x.repeat(self.out.order, *(1,) * (x.dim() - 1))
            else:
                found[key] = self._orbit(f"observations[{key!r}]", x, action)
        return found

    def _orbit(self, name: str, x: Tensor, action: GroupAction) -> Tensor:
        if x.dim() < action.dims + 1:
            raise ValueError(
                f"{name}: expected a batch (B, …, {checks.moved(action)}) for {action.name!r}, got {tuple(x.shape)}"
            )
        return orbit(x, self._tables(action)).flatten(0, 1)

    def _split(self, y: Tensor) -> Tensor:
        views: Tensor = y.unflatten(0, (self.out.order, -1))  # type: ignore[no-untyped-call]
        return views

    def _merged(self, y: Tensor) -> Tensor:
        """(|G|, B, …, n) → (B, …, n)."""
        out = self._tables(self.out)
        if self.system == "equitune":
            return orbit_mean(y, out)
        if y.dim() == 3:
            merged = orbit_select(y, "max_prob", out, "min", "mean")
        else:  # quantiles
            merged = orbit_select(y, orbit_score(y.mean(2), "max_prob"), out, "min", "mean")
        assert isinstance(merged, Tensor)
        return merged

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"inp={self.inp!r}, out={self.out!r}, system={self.system!r}"


class ActorCritic(Through):
    """The same for the policy of PPO and A2C: logits, which move, and values, which do not, so averaged over views."""

    names = ("forward", "evaluate_actions", "get_distribution", "predict_values")

    def plain(self, observations: Observation) -> tuple[Tensor, Tensor]:
        """The policy's own logits (B, n) and values (B, 1)."""
        policy: Any = self._held[0]
        features = policy.extract_features(observations)
        if policy.share_features_extractor:
            actor, critic = policy.mlp_extractor(features)
        else:
            actor = policy.mlp_extractor.forward_actor(features[0])
            critic = policy.mlp_extractor.forward_critic(features[1])
        return policy.action_net(actor), policy.value_net(critic)

    def forward(self, observations: Observation) -> tuple[Tensor, Tensor]:
        """Logits (B, n) and values (B, 1)."""
        logits, values = self.plain(self.views(observations))
        return self._merged(self._split(logits)), self._split(values).mean(0)

    # What ActorCriticPolicy has by these names.

    def answer(self, observations: Observation, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Moves, values and the logarithms of the moves' probabilities."""
        logits, values = self(observations)
        distribution = self._distribution(logits)
        moves = distribution.get_actions(deterministic=deterministic)
        return moves, values, distribution.log_prob(moves)

    def evaluate_actions(self, obs: Observation, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, the logarithms of the moves' probabilities and the entropies."""
        logits, values = self(obs)
        distribution = self._distribution(logits)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Observation) -> Any:
        """The distribution of moves."""
        return self._distribution(self(obs)[0])

    def predict_values(self, obs: Observation) -> Tensor:
        """Values alone."""
        values: Tensor = self(obs)[1]
        return values

    def _distribution(self, logits: Tensor) -> Any:
        policy: Any = self._held[0]
        return policy.action_dist.proba_distribution(action_logits=logits)
