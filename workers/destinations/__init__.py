"""Where ``into=`` leads: ``into`` is asked for each published file, ``deliver`` decides under which name it is sent;
``s3`` and ``filesystems`` are the places that are no local directory."""

from workers.destinations.into import Into

__all__ = ["Into"]
