"""What `worldtree up` tells its services."""

from pathlib import Path

from worldtree.cli.stack import StackOptions


def test_only_the_video_service_is_told_where_to_journal() -> None:
    options = StackOptions(journal_folder=Path("kept"))
    arguments = options.video_arguments()
    assert arguments[arguments.index("--journal-folder") + 1] == "kept"
    assert "--journal-folder" not in options.gateway_arguments(video="127.0.0.1:7110")


def test_without_options_the_services_have_their_own_defaults() -> None:
    assert StackOptions().video_arguments() == []
    assert StackOptions().gateway_arguments(video="127.0.0.1:7110") == ["--video", "127.0.0.1:7110"]
