"""The networks that are compared, how λ is trained, and how all of them are asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from equikern import (
    EquiTune,
    EquiZero,
    GroupAction,
    LambdaEquiTune,
    orbit,
    orbit_weighted_mean,
    trivial,
    weight_network,
)
from torch import Tensor, nn

TOP = 10  # classes that make up an image's embedding
STEPS, RATE, SCALE = 100, 0.1, 20.0  # λ's training: whole batches, SGD with momentum 0.9, similarities times SCALE
BATCH = 8

System = Callable[[Tensor], Tensor]


class Remembered(nn.Module):
    """A network that runs once on every image it is shown, however often it is asked.

    The systems look at the same views of the same images again and again. An image's outputs do not depend on which
    system asks, nor on what lies beside it in a batch.

    Args:
        network: from images (N, 3, H, W) to logits (N, classes), in evaluation mode.
        features: the name of the submodule whose outputs (N, F) ``features`` gives.
    """

    def __init__(self, network: nn.Module, features: str) -> None:
        super().__init__()
        self.network = network
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._seen: list[Tensor] = []
        network.get_submodule(features).register_forward_hook(lambda _, __, output: self._seen.append(output))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self._outputs(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """What the submodule puts out, (N, F)."""
        return self._outputs(x)[1]

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys = [hashlib.blake2b(image.reshape(-1).numpy(), digest_size=16).digest() for image in x]
        new = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            logits = self.network(x[some])
            for i, row, features in zip(some, logits, self._seen.pop(), strict=True):
                self._known[keys[i]] = row, features
        logits, features = zip(*(self._known[key] for key in keys), strict=True)
        return torch.stack(logits), torch.stack(features)


class ImageText(nn.Module):
    """A PROXY for CLIP: similarities of images to names, made out of a classifier and a text model.

    An image's embedding is the mean of its ``TOP`` likeliest classes' names, weighted by their probabilities.

    Args:
        classifier: from images (N, 3, H, W) to logits (N, classes).
        classes: the embeddings of the classes' names, (classes, D).
        names: those of the names to choose from, (K, D), of length 1.

    Shapes:
        x (N, 3, H, W) → cosines (N, K).
    """

    def __init__(self, classifier: nn.Module, classes: Tensor, names: Tensor) -> None:
        super().__init__()
        self.classifier, self.classes, self.names = classifier, classes, names

    def forward(self, x: Tensor) -> Tensor:
        """The similarities."""
        p, likely = self.classifier(x).softmax(-1).topk(min(TOP, len(self.classes)))
        embedded = nn.functional.normalize((p.unsqueeze(-1) * self.classes[likely]).sum(1), dim=-1)
        return embedded @ self.names.mT


def classifiers(network: nn.Module, action: GroupAction) -> dict[str, System]:
    """The ways to classify, by their names in the tables."""
    return {
        "plain": network,
        "equitune, logits": EquiTune(network, action, "trivial"),
        "equitune, probabilities": EquiTune(network, action, "trivial", space="probs"),
        "equizero, max_prob": EquiZero(network, action, "trivial", loss="max_prob"),
        "equizero, entropy": EquiZero(network, action, "trivial", loss="entropy"),
        "equizero, margin": EquiZero(network, action, "trivial", loss="margin"),
    }


def image_text(network: nn.Module, action: GroupAction) -> dict[str, System]:
    """The ways to choose a name, those that need no training."""
    return {
        "plain": network,
        "equitune": EquiTune(network, action, "trivial"),
        "equizero, similarity": EquiZero(network, action, "trivial", loss="similarity"),
    }


def folds(count: int, parts: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Images to train on and images to ask about, which are every image once.

    Example:
        >>> for train, test in folds(4, 2, seed=0):
        ...     print(len(train), len(test), sorted(train + test))
        2 2 [0, 1, 2, 3]
        2 2 [0, 1, 2, 3]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return [([i for i in order if i not in order[k::parts]], order[k::parts]) for k in range(parts)]


def trained_weights(views: Tensor, features: Tensor, answers: Tensor, action: GroupAction, seed: int) -> nn.Module:
    """λ, trained with everything else standing still.

    Args:
        views: the similarities of every view, (|G|, N, K).
        features: what λ reads of it, (|G|, N, F).
        answers: the right names, (N,).
        action: of the input's group.
        seed: of λ's first parameters.
    """
    torch.manual_seed(seed)
    net = weight_network(features.shape[-1])
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    for _ in range(STEPS):
        merged = orbit_weighted_mean(views, net(features).squeeze(-1), trivial(action.group), "softmax")
        optimizer.zero_grad()
        nn.functional.cross_entropy(SCALE * merged, answers).backward()
        optimizer.step()
    return net.eval()


def weighted(
    network: nn.Module,
    features: Callable[[Tensor], Tensor],
    action: GroupAction,
    x: Tensor,
    answers: Tensor,
    parts: int,
    seed: int,
) -> list[list[int]]:
    """λ-equitune's choices, (|G|, N), as ``predictions``, each by a λ that was trained on other images."""
    with torch.no_grad():
        views = orbit(x, action)
        similarities, read = (torch.stack([f(view) for view in views]) for f in (network, features))
    choices = torch.zeros(action.order, len(x), dtype=torch.int64)
    for train, test in folds(len(x), parts, seed):
        net = trained_weights(similarities[:, train], read[:, train], answers[train], action, seed)
        model = LambdaEquiTune(network, action, "trivial", net, features=features)
        choices[:, test] = torch.tensor(predictions(model, x[test], action))
    return choices.tolist()


@torch.inference_mode()
def predictions(system: System, x: Tensor, action: GroupAction) -> list[list[int]]:
    """The largest entry's position for every image under every element, (|G|, N)."""
    return [system(view).argmax(-1).tolist() for view in orbit(x, action)]
