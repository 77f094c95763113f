"""When a test input's vote is settled, so that the rest of its augmentations need no prediction. Loads no torch.

A vote goes in rounds; a round is a row of the dataset, one augmentation of every task. After each, a rule looks at the
weight that the candidates of a test input have so far (by counting votes: how many) and at how many votes are left:

`none`       never settled: every augmentation votes, the published result
`exact`      the first two can no longer change, whatever the votes left say
`confident`  the two attempts are expected to miss little: see `missed_share`. tools.calibrate_vote finds the limit
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, field_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict, reason_of

RULES = (
    "none, exact, confident:LIMIT:DESIGN_EFFECT (LIMIT from 0 to below 1, DESIGN_EFFECT from 1), or a file that "
    "tools.calibrate_vote wrote"
)
_UNSEEN = 1.0
"""As many votes count for a candidate yet to come: after a single vote, the next is as likely to be for another."""
_NO_VOTES = 1e-9
"""Beta distributions want more than 0."""


class VoteRule(NamedTuple):
    """A rule that says when a vote is settled; `str` gives the text that `parse_vote_rule` reads."""

    name: Literal["none", "exact", "confident"] = "none"
    limit: float = 0.0
    """Of a confident rule: settled where `missed_share` is below this."""
    design_effect: float = 1.0
    """Of a confident rule: as many votes seen tell as much as one of a vote in random order."""

    def __str__(self) -> str:
        """Return the text of the command line and of evaluation.json."""
        numbers = f":{self.limit}:{self.design_effect}" if self.name == "confident" else ""
        return self.name + numbers

    def is_settled(self, support: Sequence[float], votes_left: int, num_votes: int) -> bool:
        """Say whether the vote on a test input needs no more predictions.

        support: the weight of each candidate, best first. Each of the `votes_left` adds at most 1 to one candidate,
        seen or not; num_votes: those of the full vote, seen and left.
        """
        if votes_left <= 0:
            return True
        if self.name == "exact":
            return _cannot_change(support, votes_left)
        if self.name == "confident":
            return missed_share(support, votes_left, num_votes, self.design_effect) < self.limit
        return False


def _cannot_change(support: Sequence[float], votes_left: int) -> bool:
    """Say whether the first two keep their places, the order included, whatever votes come.

    Each must be ahead of the next by more than the votes left; level with it would leave the place to the mean q. A
    candidate yet to come starts from 0, so while nobody else has votes the second place stays open: a unanimous vote is
    never settled before its end, and the rule saves little.
    """
    first, second, third = (*support, 0, 0, 0)[:3]
    return first - second > votes_left and second - third > votes_left


def missed_share(
    support: Sequence[float], votes_left: int, num_votes: int, design_effect: float = 1.0
) -> float:
    """Return the share of the full vote that the first two candidates so far are expected to miss.

    That is the sum over all others, and over one yet to come, of E[max(0, final share - final share of the second)]. A
    unanimous vote is soon settled: its second place is open, but whoever takes it will have a small share.

    The votes left are taken as Dirichlet-multinomial given those seen, of which `design_effect` tell as much as one;
    between two candidates it is a beta distribution, of the same variance.
    """
    num_seen = num_votes - votes_left
    if votes_left <= 0:
        return 0.0
    if num_seen <= 0 or not any(support):
        return 1.0
    from scipy.special import betaincc  # a quarter of a second to load

    votes = np.zeros(max(len(support), 2) + 1)  # of the first, the second, the others and one yet to come
    votes[: len(support)] = support
    votes *= num_seen / votes.sum()
    prior = votes / design_effect
    prior[-1] = _UNSEEN
    total = prior.sum()
    shares = prior / total
    # The drawing of few votes out of these shares varies, too.
    prior = np.maximum(prior * (votes_left - 1) / (total + votes_left), _NO_VOTES)
    pair = shares[1] + shares[2:]  # of the votes left, what the second and another get
    # Of that, how much more than the second the other needs to draw level.
    needed = (votes[1] - votes[2:]) / (votes_left * pair)
    level = np.minimum((1 + needed) / 2, 1)
    second, other = prior[1], prior[2:]
    mean = shares[2:] / pair * betaincc(other + 1, second, level)
    gain = pair * (2 * mean - (1 + needed) * betaincc(other, second, level))
    return float(votes_left / num_votes * np.maximum(gain, 0).sum())


class Calibration(Strict):
    """What tools.calibrate_vote writes: a rule, and what it was found and tested on."""

    rule: str
    """As `VoteRule` spells it; `exact` where no limit was good enough."""
    most_changed: float = Field(gt=0, lt=1)
    """The share of tasks that may come out differently."""
    confidence: float
    num_tasks: int
    num_changed: int
    """Of the `num_tasks` that it was calibrated on, how many came out differently."""
    bound: float
    """Upper bound on the share of such tasks."""
    calibrated_on: list[str]
    """The ids of the tasks."""
    checkpoint_ids: list[str]
    dataset_sha256: str | None

    @field_validator("rule")
    @classmethod
    def _is_spelled(cls, text: str) -> str:
        if _spelled(text) is None:
            raise ValueError(f"{text!r} spells no rule")
        return text

    @property
    def vote_rule(self) -> VoteRule:
        """The rule itself."""
        rule = _spelled(self.rule)
        assert rule is not None
        return rule


def parse_vote_rule(text: str) -> VoteRule:
    """Return the rule that a text spells, or that a file of tools.calibrate_vote holds. Raise InputError."""
    rule = _spelled(text)
    if rule is None and Path(text).is_file():
        return read_calibration(Path(text)).vote_rule
    if rule is None:
        raise InputError(
            f"--vote-until {text}: no such rule for when a vote is settled, and no such file; give {RULES}."
        )
    return rule


def read_calibration(path: Path) -> Calibration:
    """Read what tools.calibrate_vote wrote. Raise InputError."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path}: is no calibration of a vote ({reason_of(error)}); give a file that tools.calibrate_vote wrote."
        ) from error


def _spelled(text: str) -> VoteRule | None:
    name, *numbers = text.split(":")
    if name in ("none", "exact") and not numbers:
        return VoteRule(name)
    if name != "confident" or len(numbers) != 2:
        return None
    try:
        limit, design_effect = map(float, numbers)
    except ValueError:
        return None
    is_sound = 0 <= limit < 1 and 1 <= design_effect < float("inf")
    return VoteRule(name, limit, design_effect) if is_sound else None
