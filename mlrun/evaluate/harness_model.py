"""One of our networks as lm-eval asks for a model. lm-eval itself is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlrun.evaluate.scoring import continuation, score
from mlrun.evaluate.words import LONGEST

if TYPE_CHECKING:
    from mlrun.evaluate.base import Context
    from mlrun.models.network import Network


def adapted(net: Network, context: Context) -> Any:
    """Return the network as a model of lm-eval's."""
    from lm_eval.api.model import TemplateLM

    class Ours(Scores, TemplateLM):
        """What lm-eval calls is above; how it cuts a request into context and continuation is its own."""

    return Ours(net, context)


class Scores:
    """Scores token by token as `lm_eval.models.huggingface.HFLM` does, whose conventions these are."""

    def __init__(self, net: Network, context: Context) -> None:
        super().__init__()
        assert context.words is not None, "looked at before"
        self.net, self.context = net, context
        self.words = replace(context.words, longest=net.model.sizes().get("position", LONGEST))

    @property
    def eot_token_id(self) -> int:
        """Return the id that is read before a text without context."""
        return self.words.before

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return the ids of a text alone."""
        return self.words.ids(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        rows = [continuation(self.words, before, ids) for _, before, ids in requests]
        return [(one.log_probability, one.greedy) for one in score(self.net, rows, self.context)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, read in windows that do not overlap but for one token."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        cut = [
            [
                ("", *make_disjoint_window(pair))
                for pair in get_rolling_token_windows(
                    token_list=self.words.ids(request.args[0]),
                    prefix_token=self.words.before,
                    max_seq_len=self.words.longest,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scores = iter(self._loglikelihood_tokens([window for windows in cut for window in windows]))
        return [sum(next(scores)[0] for _ in windows) for windows in cut]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Tasks that write text are refused before any work."""
        raise NotImplementedError
