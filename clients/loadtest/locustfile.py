"""`locust -f clients/loadtest/locustfile.py --host localhost:7070`: the user class of worldtree_loadtest."""

from worldtree_loadtest.locust_user import WorldtreeUser

__all__ = ["WorldtreeUser"]
