"""Which theorem covers which network: one table, read by the pages and by the functions that refuse a network."""

from typing import NamedTuple

_ALL = ("none", "learned", "rotary")


class Coverage(NamedTuple):
    """What a theorem needs of a network.  `positions` are those it covers; `needs` is said in words, "" for nothing."""

    theorem: str
    label: str  # of the statement in the book
    topics: tuple[str, ...]  # what it bounds, of `TOPICS`
    needs: str = ""
    one_layer: bool = False  # several layers are not covered
    causal: bool = True  # a causal mask is covered
    bidirectional: bool = True  # a network without one is covered
    hidden_query: bool = False  # from two layers on the prompt must not see the query
    positions: tuple[str, ...] = _ALL
    scaled: bool = True  # logits that are scaled with the context are covered

    def refusal(self, config, *, own_token: bool = True) -> str | None:
        """Why the theorem says nothing about this network; None if it does."""
        if self.one_layer and config.depth > 1:
            return "several layers"
        if config.causal and not self.causal:
            return "a causal network"
        if not config.causal and not self.bidirectional:
            return "a network that is not causal"
        if self.hidden_query and config.depth > 1 and not config.causal and own_token:
            return "several layers whose prompt sees the query"
        if config.positions not in self.positions:
            return f"{config.positions} positions"
        if config.context_scaling != "none" and not self.scaled:
            return "logits that are scaled with the context"
        return None


TOPICS = {
    "length": "how much a prompt of given length holds",
    "dimension": "how many numbers of a prompt outputs see",
    "strings": "how long the strings are that prompts write",
    "tokens": "that few weighted tokens do for given queries",
    "cache": "that few cache positions do for given queries",
    "any length": "how much a prompt of any length holds",
    "all queries": "that few positions do for all queries",
    "facts": "that facts of one token each are lost, with a margin",
    "plain facts": "that facts of one token each are lost, without a margin",
}
_MARGIN, _LOGITS = "a margin, bounded vectors", "a margin, bounded logits"
_ONE = {"one_layer": True, "scaled": False}
_CACHE = {"hidden_query": True, "scaled": False}
_MEASURE = {"positions": ("none", "learned"), "scaled": False, "needs": _MARGIN}
THEOREMS = (
    Coverage("Theorem 1", "thm-counting", ("length",), "numbers of a format"),
    Coverage("Theorem 2", "thm-entropy", ("length",), _MARGIN),
    Coverage("Theorem 3", "thm-dimension", ("dimension",)),
    Coverage("Theorem 4", "thm-strings", ("strings",), "a format or a margin", bidirectional=False),
    Coverage("Theorem 5", "thm-caratheodory", ("tokens",), one_layer=True),
    Coverage("Proposition 5a", "prop-cache", ("cache",), **_CACHE),
    Coverage("Theorem 6", "thm-moments", ("any length", "all queries"), _LOGITS, **_ONE),
    Coverage("Theorem 6b", "thm-caches", ("any length", "all queries"), _LOGITS, **_CACHE),
    Coverage("Theorem 7, parts 1 to 3", "thm-mean-field", ("any length",), causal=False, **_MEASURE),
    Coverage("Theorem 7, part 4", "thm-mean-field-causal", ("any length",), bidirectional=False, **_MEASURE),
    Coverage("Theorem 8, part 2", "thm-degradation", ("facts",), _LOGITS, **_ONE),
    Coverage("Theorem 8, part 4", "thm-degradation-plain", ("plain facts",), "random facts, bounded logits", **_ONE),
    Coverage("Theorem 8, part 5", "thm-degradation-depth", ("facts",), "a margin, bounded vectors or norms",
             scaled=False),
)  # fmt: skip
_BY_NAME = {each.theorem: each for each in THEOREMS}


def require(theorem: str, config, *, own_token: bool = True) -> None:
    """ValueError, with what is missing, unless the theorem covers the network.

    `own_token`: queries attend to themselves, so that the prompt of a bidirectional network sees them.
    """
    if refusal := _BY_NAME[theorem].refusal(config, own_token=own_token):
        raise ValueError(f"{theorem} does not cover {refusal}")
