"""The operator's file: Celery's settings for this deployment. ``celery -A workers …`` reads it from the working
directory.

Everything comes from ``ingest.app.defaults`` (with a reason beside each); what a deployment wants otherwise goes below.
A process that has only Celery reads results with it: ``Celery().config_from_object("celeryconfig")``.
"""

from ingest.app import defaults

globals().update(defaults())

# Examples:
# worker_concurrency = 16
# worker_max_memory_per_child = 400_000
