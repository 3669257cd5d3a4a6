"""The head at the end of a cascade's member: it has nothing to compute."""

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import Carry, Exit, Outputs, register_exit


@register_exit("member")
class MemberExit(Exit):
    """A whole model's own answer, read from the state at its end in a cascade; no parameters.

    Exits of the member behind it start with an empty carry, as they do in that model alone.
    """

    def __init__(self, spec: TokenSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes)
        if not spec.answers:
            raise OfframpError(
                "exit 'member' reads the answer of a whole model: it goes behind the last block "
                "of a cascade's member"
            )

    def read(self, tokens: Tokens) -> Outputs:
        return Outputs(tokens.classes[:, 0])

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[Outputs, Carry]:
        return self.read(tokens), ()
