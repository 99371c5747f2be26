"""What `worldtree up` tells its services."""

from pathlib import Path

from worldtree.cli.stack import StackOptions

ASKED = {"video": "127.0.0.1:7110", "reward": "127.0.0.1:7130"}
BEHIND = {**ASKED, "multitask": "127.0.0.1:7120", "navigator": "127.0.0.1:7140"}


def test_each_service_is_told_where_it_keeps_what_outlives_it() -> None:
    options = StackOptions(journal_folder=Path("kept"))
    video, multitask = options.video_arguments(), options.multitask_arguments()
    assert video[video.index("--journal-folder") + 1] == "kept"
    assert multitask[multitask.index("--merges-folder") + 1] == "kept/merges"
    navigator = options.navigator_arguments(**ASKED)
    for others in (options.reward_arguments(), navigator, options.gateway_arguments(**BEHIND)):
        assert not {"--journal-folder", "--merges-folder"} & set(others)


def test_without_options_the_services_have_their_own_defaults() -> None:
    assert StackOptions().video_arguments() == []
    assert StackOptions().multitask_arguments() == []
    assert StackOptions().reward_arguments() == []
    addresses = ["--video", "127.0.0.1:7110", "--multitask", "127.0.0.1:7120", "--reward", "127.0.0.1:7130"]
    assert StackOptions().gateway_arguments(**BEHIND) == [*addresses, "--navigator", "127.0.0.1:7140"]
    told = ["--video", "127.0.0.1:7110", "--reward", "127.0.0.1:7130"]
    assert StackOptions().navigator_arguments(**ASKED) == told


def test_port_0_is_free_ports_for_all_that_the_gateway_listens_on() -> None:
    told = StackOptions(port=0).gateway_arguments(**BEHIND)
    assert told[:6] == ["--port", "0", "--metrics-port", "0", "--openpi-port", "0"]
    assert "--openpi-port" not in StackOptions(port=8000).gateway_arguments(**BEHIND)
