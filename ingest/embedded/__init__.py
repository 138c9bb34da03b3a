"""The service on one machine: a Redis of our own, a worker and a dashboard, started together and ended together.

Nothing here knows jobs or shards. ``supervisor`` needs honcho and is imported only by ``ingest up``.
"""

from ingest.embedded.redis import RedisServer, find_redis_server
from ingest.embedded.service import EmbeddedService, embedded_service

__all__ = ["EmbeddedService", "RedisServer", "embedded_service", "find_redis_server"]
