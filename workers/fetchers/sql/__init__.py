"""Queries as Parquet. ``fetcher`` plans and writes, ``parts`` is statements and bounds, ``databases`` the drivers."""

from workers.fetchers.sql.fetcher import SqlFetcher

__all__ = ["SqlFetcher"]
