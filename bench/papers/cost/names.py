"""The names of what is measured: steps and their systems, and the ways in which each is computed."""

from __future__ import annotations

INFERENCE, TRAINING = "inference", "training step"
LAMBDA, TUNED = "λ-equitune, λ trained", "λ-equitune, backbone tuned"
STEPS = {
    INFERENCE: ("equitune", "equizero", "λ-equitune"),
    TRAINING: ("equitune", "equizero", LAMBDA, TUNED),
}
ONE_BY_ONE, ONE_BATCH = "eager, view by view", "eager, one batch"
TOGETHER, ONE_EACH = "equikern, one forward", "equikern, view by view"
WAYS = (ONE_BY_ONE, ONE_BATCH, TOGETHER, ONE_EACH)
