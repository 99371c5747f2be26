"""What rebuilds a session after its replica has died: in Redis for all replicas, or in one replica's own folder."""

from worldtree_video.journal.entries import ActionValue, Adopted, Entry, Head, History, Step
from worldtree_video.journal.folder_journal import FolderJournal
from worldtree_video.journal.protocol import Journal
from worldtree_video.journal.redis_journal import RedisJournal

__all__ = [
    "ActionValue",
    "Adopted",
    "Entry",
    "FolderJournal",
    "Head",
    "History",
    "Journal",
    "RedisJournal",
    "Step",
]
