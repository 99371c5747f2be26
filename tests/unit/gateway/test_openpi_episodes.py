"""What is remembered of the episodes of robots that speak openpi: the latest, for a while, each for its owner."""

from worldtree_gateway.openpi_episodes import Episode, Episodes


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def episode(step: int) -> Episode:
    return Episode("name", "joint", "go", step=step, chunk=(2, 2))


def test_an_episode_is_known_to_its_owner_by_its_name() -> None:
    episodes = Episodes(keep_s=10, limit=4)
    episodes.put("me", "a", episode(1))
    assert episodes.get("me", "a") == episode(1)
    assert episodes.get("you", "a") is None
    assert episodes.get("me", "b") is None


def test_it_is_forgotten_a_while_after_its_last_chunk() -> None:
    clock = Clock()
    episodes = Episodes(keep_s=10, limit=4, clock=clock)
    episodes.put("me", "a", episode(1))
    episodes.put("me", "b", episode(1))
    clock.now_s = 8
    episodes.put("me", "a", episode(2))
    clock.now_s = 12
    assert episodes.get("me", "b") is None
    assert episodes.get("me", "a") == episode(2)
    clock.now_s = 19
    assert episodes.get("me", "a") is None
    assert len(episodes) == 0


def test_beyond_the_limit_the_longest_forgotten_go() -> None:
    episodes = Episodes(keep_s=10, limit=2)
    for name in ("a", "b", "a", "c"):
        episodes.put("me", name, episode(1))
    assert [name for name in "abc" if episodes.get("me", name)] == ["a", "c"]
