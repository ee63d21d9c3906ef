"""The recalling family: its members are transformers of the book, and their numbers bound what they say."""

import itertools

import pytest
import torch
from recalling import facts_of, outputs, trained

from prompt_memory.network import recall

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return trained()


@pytest.mark.parametrize("member", range(4))
def test_a_member_is_the_transformer_of_the_book(family, member):
    keys, labels = facts_of(family, member, 4)
    h, q, *_ = family.members[member]
    wanted = outputs(family, member, keys, labels, keys)
    r = recall.reader(family, member)
    weights = r.scores(keys.double(), keys.double(), labels).softmax(-1)
    direct = weights @ r.votes(keys.double(), labels) + keys.double() @ r.residual
    torch.testing.assert_close(direct.float(), wanted, atol=2e-4, rtol=1e-4)
    # the training pass, for all members at once: facts beyond the training length are not seen
    R = len(family.members)
    padded = torch.nn.functional.pad(keys, (0, family.width - h))
    more = torch.cat([padded, torch.randn(3, family.width)])[None, None].expand(R, 1, -1, -1)
    every = family(
        more, torch.cat([labels, torch.zeros(3, dtype=torch.long)]).expand(R, 1, -1), padded.expand(R, 1, -1, -1)
    )
    torch.testing.assert_close(every[member, 0, :, :q], wanted, atol=2e-4, rtol=1e-4)
    assert torch.isinf(every[member, 0, :, q:]).all()


def test_spread_and_range_bound_what_they_say(family):
    for member in range(4):
        r = recall.reader(family, member)
        keys, labels = facts_of(family, member, 3000, seed=2)
        s = r.scores(keys.double(), keys.double(), labels)
        ranges = s.amax(1) - s.amin(1)
        assert ranges.max() <= recall.logit_range(r)
        assert ranges.max() > 0.7 * recall.logit_range(r)
        votes, q = r.votes(keys.double(), labels), r.key_votes.shape[1]
        spread = recall.vote_spread(r, keys[:20].double())
        for i in range(20):
            own = r.votes(keys[[i] * q].double(), torch.arange(q))
            brute = max(
                float(own[y, y] - own[y, z] - (votes[:, y] - votes[:, z]).min())
                for y, z in itertools.permutations(range(q), 2)
            )
            assert brute <= spread[i] <= 1.5 * brute
