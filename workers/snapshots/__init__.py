"""One moment for all partitions of a table, on however many processes and nodes they are read.

``reading`` is what planners and fetchers do, ``pins`` how a request says that it is about such a moment, ``increments``
what is new since the last job, ``keeper`` the agent's part: it supervises ``holder``, the process in which transactions
stay open. What the ledger knows of it all is a *picture*.
"""
