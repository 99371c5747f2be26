"""The simulator: VizDoom's `my_way_home` map with Freedoom's textures, seen at 80 x 64 pixels.

ViZDoom (Kempka et al. 2016) is MIT, Freedoom's pictures are BSD. Nine rooms and corridors, each with walls of its own.
One chunk is one action held for FRAMES frames of TICS game tics (35 a second).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import vizdoom
from PIL import Image

HEIGHT, WIDTH = 64, 80
FRAMES = 4  # of a chunk
TICS = 3  # of a frame
FPS = 35 / TICS
TURN_DEGREES = 2.5  # a tic: 30 degrees a chunk, twelve chunks right round
ACTION_NAMES = ("wait", "forward", "back", "left", "right", "forward-left", "forward-right", "shoot")
NONE = len(ACTION_NAMES)  # the action of a first chunk
BUTTONS = (  # forward, back, turn (to the right is positive), shoot
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, -1, 0),
    (0, 0, 1, 0),
    (1, 0, -1, 0),
    (1, 0, 1, 0),
    (0, 0, 0, 1),
)
WAIT, FORWARD, BACK, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT, SHOOT = range(8)
RAISE_TICS = 24  # until the pistol is up

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class World:
    """One game. `reset` begins an episode; equal seeds and actions give equal frames."""

    def __init__(self) -> None:
        folder = Path(vizdoom.__file__).parent / "scenarios"
        game = vizdoom.DoomGame()
        game.load_config(str(folder / "my_way_home.cfg"))
        game.set_doom_config_path(str(Path(tempfile.mkdtemp()) / "vizdoom.ini"))  # games side by side share none
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X256)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.set_render_hud(False)
        game.set_render_crosshair(False)
        game.set_render_weapon(True)
        game.set_render_decals(False)
        game.set_render_particles(False)
        names = vizdoom.Button
        game.set_available_buttons([names.MOVE_FORWARD, names.MOVE_BACKWARD, names.TURN_LEFT_RIGHT_DELTA, names.ATTACK])
        seen = vizdoom.GameVariable
        game.set_available_game_variables([seen.POSITION_X, seen.POSITION_Y, seen.ANGLE])
        # The weapon's and the head's sway would be a phase that no single frame shows.
        game.add_game_args("+sv_cheats 1 +movebob 0 +sv_infiniteammo 1")
        self._game = game
        self._started = False

    def reset(self, seed: int) -> tuple[UInt8, Floats]:
        """Somewhere in the map, standing: frames uint8 [FRAMES, 64, 80, 3], poses [FRAMES, 3] x, y, degrees."""
        self._game.set_seed(seed % (1 << 31))
        if self._started:
            self._game.new_episode()
        else:
            self._game.init()
            self._started = True
        self._game.send_game_command("give pistol")
        self._game.make_action([0, 0, 0, 0], RAISE_TICS)
        chunk = self.step(WAIT)
        assert chunk is not None
        return chunk

    def step(self, action: int) -> tuple[UInt8, Floats] | None:
        """One chunk: frames and poses as of `reset`; None when the armour was found, which ends the episode."""
        forward, back, turn, shoot = BUTTONS[action]
        frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        poses = np.zeros((FRAMES, 3), np.float32)
        for k in range(FRAMES):
            self._game.make_action([forward, back, turn * TURN_DEGREES, shoot], TICS)
            state = self._game.get_state()
            if state is None or self._game.is_episode_finished():
                return None
            frames[k] = np.asarray(Image.fromarray(state.screen_buffer).reduce(4))
            poses[k] = state.game_variables
        return frames, poses

    def close(self) -> None:
        self._game.close()
