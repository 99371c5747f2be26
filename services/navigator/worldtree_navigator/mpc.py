"""Plans by imagining: the cross-entropy search over futures of one stage."""

from collections.abc import Mapping, Sequence

from worldtree_navigator.domain import Edges, Search, Terms
from worldtree_navigator.imagining import Futures
from worldtree_navigator.peers import Metadata, Peers
from worldtree_navigator.planning import CrossEntropy
from worldtree_navigator.sampling import Proposal
from worldtree_navigator.staging import Stage


async def search(
    peers: Peers,
    stage: Stage,
    asked: Search,
    terms: Terms,
    metadata: Metadata,
    *,
    actions: Sequence[int],
    seed: int,
    ends_s: float | None,
    before: Edges = (),
    seen: Mapping[int, int] | None = None,
) -> CrossEntropy:
    """A search that has come to its end; it may have found nothing. `actions`: ids to plan with. `ends_s`: by the
    loop's clock. `before`: what is left of an earlier plan, to begin from. `seen`: as in CrossEntropy. Raises what the
    video or the reward service raises, GoalUnseen and JudgeMismatch.
    """
    proposal = Proposal(actions, asked.horizon, seed=seed)
    found = CrossEntropy(proposal, asked, chunk_limit=terms.chunk_limit, before=before, seen=seen)
    judge = stage.judge()
    async with judge.asked():
        await found.search(Futures(peers, stage.scene, judge, metadata, ends_s=ends_s))
    return found
