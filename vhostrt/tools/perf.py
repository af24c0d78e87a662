"""The command vhostrt-perf: load on a vhost-user disk of any target, and its figures.

Exit status: 0 done and nothing went wrong, 1 the target failed, requests or checks did, or the
result cannot be written, 2 bad arguments, 130 ended by Ctrl-C or SIGTERM.
"""
import sys

from vhostrt import stdio
from vhostrt.tools import perf_json, perf_plot, perf_text
from vhostrt.tools.perf_options import Plan, read_plan
from vhostrt.tools.perf_run import Run, Signals
from vhostrt.tools.perf_stats import Result
from vhostrt.vhost.client.connection import TargetError

STOPPED = 130


def complain(text: str) -> None:
    print(f"vhostrt-perf: {text}", file=sys.stderr, flush=True)


def give(plan: Plan, run: Run, result: Result) -> None:
    """Print and write the result.  Fails: OSError."""
    title = perf_text.heading(plan, run.front)
    if plan.json != "-":
        print(title)
        print("\n".join(perf_text.report(plan, result)), flush=True)
    if plan.json is not None:
        text = perf_json.text(plan, run.front, result)
        if plan.json == "-":
            print(text, flush=True)
        else:
            with open(plan.json, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    if plan.plot is not None:
        perf_plot.draw(plan.plot, plan, title, result)


def perform(plan: Plan) -> int:
    """Do it; return the exit status.  Fails: TargetError before it began, OSError of the output."""
    with Signals() as signals, Run(plan, signals) as run:
        live = perf_text.Live(plan)
        result = run.go((lambda moment: None) if plan.quiet else live)
        live.end()
        give(plan, run, result)
    if result.failure:
        complain(result.failure)
    elif result.wrong:
        complain(f"{result.wrong} sectors are not what was written")
    elif result.errors:
        complain(f"{sum(result.errors.values())} requests failed")
    if not result.ok:
        return 1
    return STOPPED if result.interrupted else 0


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    try:
        return perform(read_plan(words))
    except TargetError as error:
        complain(str(error))
        return 1
    except BrokenPipeError:
        return 0                        # who reads has seen enough
    except KeyboardInterrupt:
        return STOPPED                  # before the run, or behind it
    except OSError as error:
        complain(f"the result cannot be written: {error.filename or 'stdout'}: {error.strerror}")
        return 1
    finally:
        stdio.settle()


if __name__ == "__main__":
    sys.exit(main())
