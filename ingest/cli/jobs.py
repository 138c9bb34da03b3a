"""``ingest submit | status | failures | retry | cancel``: one job at a time, from the shell."""

from __future__ import annotations

import click

from ingest.cli.asking import Asked, asking, show_plan
from ingest.cli.output import duration, json_option, show_json, show_table, size
from ingest.client import Client, Job
from ingest.model import Consumer, JobStatus


@click.command()
@asking
@click.option("--name", default="", help="A name for people.")
@click.option("--key", help="The same key gives the same job again.")
@click.option("--shard-files", type=int, help="Files per unit of work (default: by the length of the list).")
@click.option("--queue", "queue_anyway", is_flag=True, help="Queue it even if no data node is alive.")
@json_option
def submit(
    asked: Asked, name: str, key: str | None, shard_files: int | None, queue_anyway: bool, as_json: bool
) -> None:
    """Submit a job and print its id; it is fetched whether or not anybody waits."""
    client = Client()
    if asked.dry_run:
        show_plan(client.plan(asked.sources, shard_files=shard_files, **asked.options), as_json)
        return
    job = client.submit(
        asked.sources, name=name, key=key, shard_files=shard_files, require_node=not queue_anyway, **asked.options
    )
    if as_json:
        show_json({"job": job.id})
    else:
        click.echo(job.id)


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@json_option
def status(job_id: str | None, as_json: bool) -> None:
    """How a job stands; without a job, the latest ones."""
    client = Client()
    if job_id is None:
        found = [job.status() for job in client.jobs()]
        if as_json:
            show_json([s.to_json() for s in found])
        else:
            show_table(("JOB", "NAME", "STATE", "FILES>", "FAILED>", "BYTES>", "AGE>"), (_row(s) for s in found))
        return
    job = client.job(job_id)
    one, consumers = job.status(), job.consumers()
    if as_json:
        show_json({**one.to_json(), "consumers": [each.to_json() for each in consumers]})
        return
    shards = ", ".join(f"{count} {state}" for state, count in one.shards.items()) or "none yet"
    click.echo(f"{one.id}  {one.state}  {one.name}".rstrip())
    click.echo(f"files   {one.files_done} of {one.files}, {one.files_failed} failed, {one.retries} retries")
    click.echo(f"shards  {shards}")
    click.echo(f"bytes   {size(one.bytes)} in {duration(one.seconds)} ({size(one.rate)}/s)")
    if one.eta_s is not None:
        click.echo(f"eta     {duration(one.eta_s)}")
    if one.waiting_for:
        click.echo(f"waits   {one.waiting_for}")
    if consumers:
        click.echo()
        heads = ("RANK>", "HOST", "PID>", "EPOCH>", "STEP>", "SAMPLES>", "SAMPLES/S>", "WAITED>", "HEARD>")
        show_table(heads, map(_consumer, consumers))


def _row(s: JobStatus) -> tuple[object, ...]:
    return s.id, s.name[:40], s.state, f"{s.files_done}/{s.files}", s.files_failed, size(s.bytes), duration(s.seconds)


def _consumer(c: Consumer) -> tuple[object, ...]:
    step = "-" if c.step is None else c.step
    rate, waited, heard = round(c.samples_per_s), duration(c.waited_s), duration(c.age_s)
    return f"{c.rank}/{c.world}", c.host, c.pid, c.epoch, step, c.samples, rate, waited, heard


@click.command()
@click.argument("job_id", metavar="JOB")
@json_option
def failures(job_id: str, as_json: bool) -> None:
    """What a job could not have, and why. Exit status 1 if there is anything."""
    found = Client().job(job_id).failures()
    if as_json:
        show_json([f.to_json() for f in found])
    elif found:
        show_table(
            ("SOURCE", "ERROR", "TRIES>", "SHARD", "REASON"),
            ((f.source, f.error, f.attempts, f.shard, f.reason) for f in found),
        )
    if found:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("job_id", metavar="JOB")
def retry(job_id: str) -> None:
    """Try again what failed, and only that."""
    job: Job = Client().job(job_id).retry()
    click.echo(f"{job.id} {job.status().state}")


@click.command()
@click.argument("job_id", metavar="JOB")
def cancel(job_id: str) -> None:
    """Stop a job: what has not begun does not begin, what has is interrupted."""
    job = Client().job(job_id)
    job.cancel()
    click.echo(f"{job.id} {job.status().state}")
