"""Celery's connections to its broker, with less patience for one that is dead, and none for what is no message. Which
broker that is, and all other settings, are in ``app``, which names this module."""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

import celery.app.amqp
from kombu.connection import Connection as PlainConnection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as kombu

log = logging.getLogger("ingest")

#: What the question may take whether a connection that was idle is still there. Of a network that forgot it no word
#: comes, and the worker's main process, which waits for each of its connections in turn, would lose a whole timeout
#: with each.
PING_S = 1.0


class _Asked:
    """Mixed into a connection of redis-py."""

    socket_timeout: float | None
    _sock: Any

    def check_health(self) -> None:
        whole = self.socket_timeout
        self._wait_for(PING_S if whole is None else min(PING_S, whole))
        try:
            super().check_health()  # type: ignore[misc]
        finally:
            self._wait_for(whole)

    def _wait_for(self, seconds: float | None) -> None:
        self.socket_timeout = seconds
        if self._sock is not None:
            self._sock.settimeout(seconds)


def _asked(plain: Any) -> Any:
    return type(f"Asked{plain.__name__}", (_Asked, plain), {})


class _Closing:
    """Mixed into a channel of kombu, which is closed twice when its broker is lost: the first time ends at the question
    that it still had open, with nothing else done, and at the second it has no address any more. If a message is in
    hand then, that is an error that nobody expects, and ends the worker."""

    connection_errors: tuple[type[Exception], ...]

    def close(self) -> None:
        try:
            super().close()  # type: ignore[misc]
        except self.connection_errors:
            super().close()  # type: ignore[misc]


class _Keeping:
    """Mixed into a channel of kombu 5.7, which makes a client of redis-py for each command or two, in a quarter of a
    millisecond. One is as good, as long as its connections are those of the channel."""

    pool: Any
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[misc]
        return self._kept


class NotAMessage(ValueError):
    """``tag`` is what kombu may have noted it under, where it has one."""

    def __init__(self, reason: str, tag: str | None) -> None:
        super().__init__(reason)
        self.tag = tag


class _Sifting:
    """Mixed into a channel of kombu 5.7, which reads a message in the worker's event loop and lets every error of that
    out: one line of garbage would end the worker, and the next one that reads it."""

    def _brpop_read(self, **options: Any) -> Any:
        """The next message. One that cannot be read is dropped, and counts as none."""
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except ValueError as error:  # also what is no JSON, and no text
            tag = getattr(error, "tag", None)
            if tag is not None:
                # else it would be noted as in hand, and be put back at the end
                self.basic_reject(tag, requeue=False)  # type: ignore[attr-defined]
            log.error("message.refused", extra={"reason": str(error)[:500]})
            raise Empty from None


class _Delivering:
    """Mixed into a transport of kombu."""

    def _deliver(self, message: Any, queue: str) -> None:
        """A message that was read, to whoever consumes that queue. Raises :class:`NotAMessage`."""
        properties = message.get("properties") if isinstance(message, dict) else None
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if not isinstance(tag, str):
            raise NotAMessage("it has no delivery tag", None)
        try:
            super()._deliver(message, queue)  # type: ignore[misc]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise NotAMessage(f"{type(error).__name__}: {error}", tag) from error


class Channel(_Sifting, _Closing, _Keeping, kombu.Channel):
    connection_class = _asked(kombu.Channel.connection_class)
    connection_class_ssl = _asked(kombu.Channel.connection_class_ssl)


class SentinelChannel(_Sifting, _Closing, _Keeping, kombu.SentinelChannel):
    connection_class = _asked(kombu.SentinelChannel.connection_class)
    connection_class_ssl = _asked(kombu.SentinelChannel.connection_class_ssl)


class Transport(_Delivering, kombu.Transport):
    Channel = Channel


class SentinelTransport(_Delivering, kombu.SentinelTransport):
    Channel = SentinelChannel


_OURS = {kombu.Transport: Transport, kombu.SentinelTransport: SentinelTransport}


class _Chosen:
    """Mixed into a connection of kombu. It keeps its URL's own scheme, by which it is shown, and read by Flower."""

    def get_transport_cls(self) -> Any:
        plain = super().get_transport_cls()  # type: ignore[misc]
        return _OURS.get(plain, plain)


class _Pooled(_Chosen, PooledConnection):
    pass


class _Pool(ConnectionPool):
    def new(self) -> Any:
        return _Pooled(self, **dict(self.connection._info(resolve=False)))  # type: ignore[no-untyped-call]


class Connection(_Chosen, PlainConnection):
    def Pool(self, limit: int | None = None, **kwargs: Any) -> Any:
        return _Pool(self, limit, **kwargs)  # type: ignore[no-untyped-call]


class AMQP(celery.app.amqp.AMQP):  # type: ignore[misc] # Celery has no types
    Connection = Connection
