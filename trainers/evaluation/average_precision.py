"""Mean average precision of any number of images in fixed memory: scores are counted in bins.

Exact average precision keeps all scores: 6·10⁹ of them for 561,052 images and 11,221 classes. Bins
lie evenly on the log-odds of a score, because probabilities of many classes are small.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 512
MOST_LOG_ODDS = 20.0  # of the last bin; float32 sigmoids reach 1 there


class BinnedAveragePrecision:
    """Counts scores and right decisions, [classes, BINS] each; scores of one bin count as equal."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(2, classes, BINS, dtype=torch.int64, device=device)
        self._first = torch.arange(classes, device=device) * BINS

    def update(
        self, probs: Float[Tensor, "rows classes"], given: Int[Tensor, "rows classes"]
    ) -> None:
        """Add scores in [0, 1], and which of the classes are there: 1, or 0, or -1 if unsure."""
        width = 2 * MOST_LOG_ODDS / BINS
        odds = torch.logit(probs.double(), eps=1e-12).float()
        place = ((odds + MOST_LOG_ODDS) / width).long().clamp_(0, BINS - 1) + self._first
        judged, right = place[given >= 0], place[given == 1]
        for counts, places in zip(self.counts, (judged, right), strict=True):
            counts.view(-1).add_(torch.bincount(places, minlength=counts.numel()))

    def micro(self) -> float:
        """Average over all decisions together."""
        return float(_average_precision(self.counts.sum(1, keepdim=True))[0])

    def macro(self) -> float:
        """The mean over classes that occur."""
        occurs = self.counts[1].sum(1) > 0
        return float(_average_precision(self.counts)[occurs].mean())


def _average_precision(counts: Tensor) -> Tensor:
    """[classes] of counts [2, classes, BINS]: Σ (R_i - R_(i-1)) P from the highest bin down.

    Within a bin precision goes from that before it to that after it, so their mean counts.
    """
    found, right = counts.flip(2).cumsum(2).double()
    precision = right / found.clamp_min(1)
    first = found - counts[0].flip(1) == 0
    before = torch.where(first, precision, precision.roll(1, dims=1))
    gained = right.diff(dim=1, prepend=torch.zeros_like(right[:, :1]))
    averages: Tensor = ((precision + before) / 2 * gained).sum(1) / right[:, -1].clamp_min(1)
    return averages
