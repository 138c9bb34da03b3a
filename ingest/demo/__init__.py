"""What ``ingest demo`` shows: origins with a generated dataset, a service of its own, a small training, a true table.

Only ``train`` imports torch, and only ``origins``, which runs as a process of its own, imports moto.
"""
