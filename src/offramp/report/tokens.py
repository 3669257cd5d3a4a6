"""What becomes of a few images' patches under the model's reducer, block by block."""

from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from offramp.chains.reduced import ReducedChain
from offramp.errors import OfframpError
from offramp.reduced_run import reduced_run
from offramp.reducers import ReducerSpec
from offramp.report.findings import Findings
from offramp.report.token_picture import follow_tokens

IMAGES = 3


@dataclass(frozen=True)
class Followed:
    """One image, and how to draw its tokens."""

    image: Image.Image
    label: str


class Tokens:
    """The images that are followed, under the newest point's reducer; none without a reducer, or
    where the images are not on this machine."""

    def __init__(self, findings: Findings) -> None:
        chosen, run = findings.headline, findings.run
        self.model = reduced_run(run, chosen.point.reducer if chosen else None).model
        self.reducer: ReducerSpec | None = self.model.config.reducer
        self.followed: list[Followed] = []
        if findings.samples is None or not isinstance(self.model.chain, ReducedChain):
            return
        names = None if findings.task.fewer else self.model.labels or run.data.classes
        places = range(min(IMAGES, len(findings.samples)))
        try:
            for image, label, _ in (findings.samples[place] for place in places):
                word = f"{label:g}" if names is None else names[int(label)]
                self.followed.append(Followed(image, word))
        except OfframpError:  # a file that has gone since
            self.followed = []

    def draw(self, followed: Followed) -> Figure:
        """The image after every block."""
        return follow_tokens(self.model, followed.image)[0]
