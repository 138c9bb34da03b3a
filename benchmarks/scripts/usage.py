"""Run a command and say what it used: ``python -I -S usage.py SAID COMMAND…``; ends as the command ends.

It stands between, because the peak of a process that was just forked is that of who forked it (Linux carries it over
exec): this one is as small as a Python can be.
"""

import json
import resource
import subprocess
import sys
import time

if __name__ == "__main__":
    begun = time.perf_counter()
    status = subprocess.call(sys.argv[2:])
    seconds = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = {"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    with open(sys.argv[1], "w") as file:
        json.dump(said, file)
    sys.exit(status)
