"""The same episodes by the stock openpi client and by gRPC: `python -m training.navigator.openpi`.

Before every tenth observation its connection is cut without a word, and the episode goes on over a new one.
"""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import worldtree
from rich.progress import track
from worldtree.cli.stack import Stack, StackOptions
from worldtree.episodes import play_episode
from worldtree.navigator_types import ActionChunk
from worldtree.simulator import ACTIONS, Simulator

from training.navigator.evaluate import EXECUTED, JOINT, first_seed
from training.navigator.missions import ONE_ROOM

with warnings.catch_warnings():  # what it imports was renamed since
    warnings.simplefilter("ignore")
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

_CUT_EVERY = 10  # observations


@dataclass
class Robot:
    """A policy for openpi's broker: its connection is cut now and then. `cuts`: how often it was."""

    host: str
    port: int
    episode: str
    seed: int
    observations: int = 0
    cuts: int = 0
    _policy: Any = field(default=None, repr=False)

    def infer(self, observation: dict[str, Any]) -> Any:
        if self._policy is not None and self.observations % _CUT_EVERY == 0:
            self._policy._ws.socket.close()  # no closing handshake: the network is gone
            self._policy, self.cuts = None, self.cuts + 1
        if self._policy is None:
            self._policy = WebsocketClientPolicy(self.host, self.port)
        self.observations += 1
        return self._policy.infer({**observation, "episode": self.episode, "seed": self.seed})

    def close(self) -> None:
        if self._policy is not None:
            self._policy._ws.close()  # it has no way to be closed


def drive(robot: Robot, env_id: str, seed: int, planner: str) -> tuple[Simulator, list[int]]:
    """An episode to its end, as openpi's runtime asks for it: an action at a time."""
    world, broker, actions = Simulator(env_id, seed), ActionChunkBroker(robot, EXECUTED), []
    while not world.over:
        observation = {"image": world.frame(), "prompt": world.goal, "chunk_length": EXECUTED, "planner": planner}
        actions.append(int(broker.infer(observation)["actions"][0]))
        world.step(actions[-1])
    return world, actions


def drive_by_grpc(client: worldtree.Client, env_id: str, seed: int, planner: str) -> tuple[bool, list[int]]:
    actions: list[int] = []

    def note(_: Simulator, chunk: ActionChunk, place: int) -> None:
        actions.append(ACTIONS.index(str(chunk.actions[place])))

    played = play_episode(client, env_id, seed, planner=planner, chunk_length=EXECUTED, on_step=note)
    return played.outcome.success, actions


app = typer.Typer(add_completion=False)


@app.command()
def main(
    count: Annotated[int, typer.Option("--episodes", help="by each of the two")] = 100,
    env: Annotated[str, typer.Option(help="environment")] = ONE_ROOM[0],
    planner: Annotated[str, typer.Option(help="who plans")] = JOINT,
    models: Annotated[str, typer.Option(help="model repository")] = "models",
) -> None:
    """Prints how often each gets there, and how many episodes are the same, action by action."""
    by_openpi, by_grpc, same, cuts = 0, 0, 0, 0
    with (
        Stack(StackOptions(port=0, models=models, log_level="error"), on_log=lambda _: None) as stack,
        worldtree.Client(stack.grpc_address) as client,
    ):
        host, _, port = str(stack.openpi_address).rpartition(":")
        for seed in track(range(first_seed(), first_seed() + count), description=env):
            with closing(Robot(host, int(port), episode=str(seed), seed=seed % (1 << 31))) as robot:
                world, actions = drive(robot, env, seed, planner)
            success, by_other = drive_by_grpc(client, env, seed, planner)
            by_openpi, by_grpc = by_openpi + world.outcome.success, by_grpc + success
            same, cuts = same + (actions == by_other), cuts + robot.cuts
    typer.echo(f"{env}, {planner}, {count} episodes: openpi {by_openpi / count:.3f}, gRPC {by_grpc / count:.3f}")
    typer.echo(f"the same actions in {same}; connections that were cut on the way: {cuts}")
    if same != count:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
