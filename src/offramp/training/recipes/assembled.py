"""``assembled``: nothing is trained, the model was put together from trained ones."""

from pydantic import Field

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.recipe import Recipe, Stage, register_recipe


@register_recipe("assembled")
class Assembled(Recipe):
    """Not trained but put together from trained models, as `offramp cascade` does."""

    runs: list[str] = Field(default=[], description="what it was put together from")

    def stages(self, model: MultiExitModel) -> list[Stage]:
        raise OfframpError(
            "recipe 'assembled' trains nothing: this run was put together by offramp cascade "
            f"{' '.join(self.runs)}".rstrip()
        )
